//! A flow as a chat model: the last message of the user fills the flow's text input.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::chat::{user_of, wants_stream, wants_usage};
use super::sse;
use crate::gateway::error::ApiError;
use crate::gateway::flow_api::{FlowAnswer, FlowRequest, Given, Invocation, Piece, event_stream};
use crate::gateway::once;
use crate::gateway::server::{Asked, Gateway};

pub(super) async fn answer(
    gateway: Arc<Gateway>,
    asked: Asked,
    headers: &HeaderMap,
    namespace: &str,
    name: &str,
    body: &Map<String, Value>,
) -> Result<Response, ApiError> {
    let stream = wants_stream(body);
    let usage = wants_usage(body);
    let question = last_user_message(body)?;
    let request = FlowRequest { user: user_of(body), stream, given: Given::Text(question), session: None };
    if headers.contains_key(once::KEY) {
        return Err(ApiError::invalid(
            once::KEY,
            "the header llmops-once goes with /v1/flows/NAMESPACE/NAME, not with a flow as a chat model",
        ));
    }
    let invocation = Invocation::prepare(gateway, asked, headers, namespace, name, request).await?;
    let headers = invocation.headers();
    let shape = Shape {
        id: format!("chatcmpl-{}", invocation.id()),
        created: jiff::Timestamp::now().as_second(),
        model: format!("{namespace}/{name}"),
        usage,
    };
    if !stream {
        let response = match invocation.answer(None).await {
            Ok(answer) => axum::Json(shape.whole(&answer)).into_response(),
            Err(error) => error.into_response(),
        };
        return Ok((headers, response).into_response());
    }
    let mut pieces = Box::pin(invocation.pieces());
    let first = match pieces.next().await {
        Some(Piece::Failed(error)) => return Ok((headers, error).into_response()),
        first => first,
    };
    let start = sse::unnamed(&shape.chunk(&json!({"role": "assistant", "content": ""}), None));
    let events = stream::iter(first)
        .chain(pieces)
        .map(move |piece| match piece {
            Piece::Delta(text) => sse::unnamed(&shape.chunk(&json!({"content": text}), None)),
            Piece::Done(answer) => shape.end(&answer),
            Piece::Failed(error) => sse::named("error", &error.body()),
        })
        .map(Ok::<_, std::convert::Infallible>);
    Ok((headers, event_stream(stream::iter([Ok(start)]).chain(events))).into_response())
}

/// What all chunks of an answer share.
struct Shape {
    id: String,
    created: i64,
    model: String,
    usage: bool,
}

impl Shape {
    fn whole(&self, answer: &FlowAnswer) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "system_fingerprint": answer.revision,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer.answer}, "finish_reason": "stop", "logprobs": null}],
            "usage": usage(answer),
        })
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        })
    }

    fn end(&self, answer: &FlowAnswer) -> bytes::Bytes {
        let mut events = sse::unnamed(&self.chunk(&json!({}), Some("stop"))).to_vec();
        if self.usage {
            let last = json!({
                "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
                "choices": [], "usage": usage(answer),
            });
            events.extend_from_slice(&sse::unnamed(&last));
        }
        events.extend_from_slice(&sse::DONE);
        events.into()
    }
}

fn usage(answer: &FlowAnswer) -> Value {
    let (input, output) = (answer.usage.input_tokens, answer.usage.output_tokens);
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

/// The text of the last message with the role `user`.
fn last_user_message(body: &Map<String, Value>) -> Result<String, ApiError> {
    let messages = body.get("messages").and_then(Value::as_array);
    let last =
        messages.into_iter().flatten().rev().find(|message| message.get("role").is_some_and(|role| role == "user"));
    let content = last.and_then(|message| message.get("content"));
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for part in parts {
                match part.get("text").and_then(Value::as_str) {
                    Some(text) => texts.push(text),
                    None => {
                        return Err(ApiError::invalid(
                            "messages",
                            "a flow takes text only; leave out other parts of the message",
                        ));
                    }
                }
            }
            Ok(texts.join("\n"))
        }
        _ => Err(ApiError::invalid("messages", "messages has no message with the role user and a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(messages: &Value) -> Result<String, ApiError> {
        last_user_message(&Map::from_iter([("messages".to_owned(), messages.clone())]))
    }

    #[test]
    fn the_last_message_of_the_user_is_the_question() {
        let text = of(&json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                             {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
                             {"role": "assistant", "content": "e"}]));
        assert_eq!(text.unwrap(), "c\nd");
        assert!(of(&json!([])).is_err());
        assert!(of(&json!([{"role": "user", "content": [{"type": "image_url"}]}])).is_err());
    }
}
