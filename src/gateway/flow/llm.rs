//! An llm node: asks a model, or those that stand in for it. Engines are always asked to stream, so that the time to
//! the first token is known and a cut is noticed; the deltas reach the client only when the node is the answer.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::engine::{Run, queue_timeout};
use super::program::Program;
use crate::api::prompt_flow::Role;
use crate::gateway::endpoints::{Answer, Attempts, CallError, Target, TargetKind};
use crate::gateway::openai::chat_answer::{ChatAnswer, ChatReader};

pub(in crate::gateway) use crate::gateway::endpoints::broken;

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    /// Aliases to try, in turn.
    pub models: &'a [String],
    pub messages: &'a [(Role, String)],
    pub parameters: &'a Map<String, Value>,
    /// Whether the text is the flow's answer.
    pub is_answer: bool,
}

pub(super) async fn ask(program: &Program, question: Question<'_>, run: Run<'_>) -> Result<Value, CallError> {
    let mut last = None;
    for (place, alias) in question.models.iter().enumerate() {
        let Some(model) = program.models.get(alias) else { continue };
        let target = Target {
            kind: TargetKind::Model,
            namespace: run.namespace.to_owned(),
            name: model.deployment.clone(),
            pin: run.pins.models.get(&model.deployment).cloned(),
            unit: run.unit.to_owned(),
            background: run.background,
            counts: !run.background && run.pins.is_empty(),
        };
        // Who pins a model wants to hear of this revision, not of what stands in for it.
        let has_fallback = place + 1 < question.models.len() && target.pin.is_none();
        let queue = queue_timeout(run.upstream, has_fallback);
        let attempts = Attempts::new(model.retries, Duration::from_millis(model.timeout_ms), queue);
        match one_model(alias, &target, question, attempts, run).await {
            Ok(answer) => {
                if place > 0 {
                    run.trace.note(|done| done.fallbacks += 1);
                }
                return Ok(json!({
                    "text": answer.text,
                    "usage": {"inputTokens": answer.input_tokens, "outputTokens": answer.output_tokens},
                }));
            }
            Err(Failed { error, seen_by_client }) if seen_by_client || target.pin.is_some() => return Err(error),
            Err(Failed { error, .. }) => {
                if has_fallback {
                    tracing::info!(%target, %error, "model failed, its fallback is asked");
                }
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| CallError::Misconfigured("the node names no model".into())))
}

struct Failed {
    error: CallError,
    seen_by_client: bool,
}

async fn one_model(
    alias: &str,
    target: &Target,
    question: Question<'_>,
    mut attempts: Attempts,
    run: Run<'_>,
) -> Result<ChatAnswer, Failed> {
    let unseen = |error| Failed { error, seen_by_client: false };
    let path = path(run, target);
    loop {
        let body = body(question, run, target);
        let answer = run.upstream.send(target, path, &body, &mut attempts).await.map_err(unseen)?;
        let revision = answer.lease.revision.clone();
        let mut reader = ChatReader::default();
        let read = tokio::time::timeout_at(attempts.deadline(), read(answer, target, &mut reader, question, run)).await;
        account(target, &reader, run);
        let seen_by_client = question.is_answer && run.deltas.is_some() && reader.has_text();
        let error = match read {
            Err(_) => return Err(Failed { error: attempts.timeout(target), seen_by_client }),
            Ok(Ok(())) => {
                run.trace.note(|done| drop(done.dependencies.models.insert(alias.to_owned(), revision)));
                return Ok(reader.finish());
            }
            Ok(Err(error)) => error,
        };
        if seen_by_client || !run.upstream.again(target, &error, &mut attempts).await {
            return Err(Failed { error, seen_by_client });
        }
    }
}

/// Reads the answer to its end, passing deltas on if they are the flow's answer.
async fn read(
    answer: Answer,
    target: &Target,
    reader: &mut ChatReader,
    question: Question<'_>,
    run: Run<'_>,
) -> Result<(), CallError> {
    let Answer { mut response, lease } = answer;
    let unreadable = |cause: String| CallError::Unreadable { target: target.to_string(), cause };
    reader.start(response.headers());
    loop {
        let chunk = match response.chunk().await {
            Ok(chunk) => chunk,
            Err(error) => {
                run.upstream.broke_off(target, &lease);
                return Err(broken(target, &error));
            }
        };
        let deltas = match &chunk {
            Some(chunk) => reader.push(chunk).map_err(unreadable)?,
            None => reader.end().map_err(unreadable)?,
        };
        if question.is_answer && !deltas.is_empty() {
            run.trace.first_token();
            if let Some(channel) = run.deltas {
                // A closed channel means that the client has left; then this future is about to be dropped, too.
                let _ = channel.send(deltas).await;
            }
        }
        if reader.is_complete() {
            return Ok(());
        }
        if chunk.is_none() {
            run.upstream.broke_off(target, &lease);
            return Err(CallError::Broken {
                target: target.to_string(),
                cause: "the stream ended before the answer did".into(),
            });
        }
    }
}

/// Adds tokens and cost, also of answers that broke off.
fn account(target: &Target, reader: &ChatReader, run: Run<'_>) {
    let (input, output) = reader.tokens();
    let snapshot = run.upstream.routes().load();
    let route = snapshot.model(&target.namespace, &target.name);
    let cost = route.and_then(|route| Some((route.cost(input, output)?, route.price.as_ref()?.currency.as_str())));
    run.trace.note(|done| done.usage.add(input, output, cost));
}

/// Path below an endpoint: a provider's address ends with `/v1` or what it has instead, a pod's does not.
fn path(run: Run<'_>, target: &Target) -> &'static str {
    let snapshot = run.upstream.routes().load();
    let external = snapshot.model(&target.namespace, &target.name).is_some_and(|route| route.external.is_some());
    if external { "/chat/completions" } else { "/v1/chat/completions" }
}

fn body(question: Question<'_>, run: Run<'_>, target: &Target) -> Bytes {
    let snapshot = run.upstream.routes().load();
    let served =
        snapshot.model(&target.namespace, &target.name).map_or(target.name.as_str(), |route| &route.served_name);
    let messages: Vec<Value> =
        question.messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let mut body = json!({
        "model": served,
        "messages": messages,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let Value::Object(members) = &mut body {
        members.extend(question.parameters.clone());
    }
    body.to_string().into()
}
