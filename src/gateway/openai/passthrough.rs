//! Requests for a model are passed on to one of its engines; answers come back unchanged.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use super::chat::{model_of, user_of, wants_stream, wants_usage};
use super::chat_answer::usage_of;
use super::sse::{self, Cutter};
use crate::api::model_deployment::Task;
use crate::api::prompt_flow::Capture;
use crate::gateway::auth::Action;
use crate::gateway::endpoints::{Answer, Attempts, CallError, Target, TargetKind, broken};
use crate::gateway::error::ApiError;
use crate::gateway::flow_api::{call_error, event_stream};
use crate::gateway::once::{Once, Question};
use crate::gateway::server::{Asked, Gateway, Recorder, Subject, headers_of, identify, json_body, pins_of, text};

const RETRIES: u32 = 2;
/// Longest answer that is not a stream, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long what is known of a call is kept.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// `POST /v1/embeddings`.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn embeddings(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    unary(gateway, &headers, body, Task::Embed, "embedding", "/embeddings").await
}

/// `POST /v1/rerank`.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn rerank(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    unary(gateway, &headers, body, Task::Rerank, "rerank", "/rerank").await
}

async fn unary(
    gateway: Arc<Gateway>,
    headers: &HeaderMap,
    body: Body,
    task: Task,
    kind: &'static str,
    path: &'static str,
) -> Result<Response, ApiError> {
    let asked = identify(&gateway, headers).await?;
    let body: Map<String, Value> = json_body(body).await?;
    let (namespace, name) = model_of(&body)?;
    gateway.auth.authorize(&asked.principal, Action::InvokeModel, &namespace, Some(&name)).await?;
    let call = Call::prepare(gateway, asked, headers, &namespace, &name, body, task, kind).await?;
    call.whole(path, None).await
}

/// `POST /v1/chat/completions` for a model.
pub(super) async fn chat(
    gateway: Arc<Gateway>,
    asked: Asked,
    headers: &HeaderMap,
    namespace: &str,
    name: &str,
    body: Map<String, Value>,
) -> Result<Response, ApiError> {
    let stream = wants_stream(&body);
    let once = match Once::begin(&gateway, &asked, headers, stream).await? {
        Question::Answered(given) => return Ok(given),
        Question::New(once) => once,
    };
    let call = Call::prepare(gateway, asked, headers, namespace, name, body, Task::Chat, "model").await?;
    if stream { call.stream().await } else { call.whole("/chat/completions", once).await }
}

/// A request for a model, checked and ready to be sent.
struct Call {
    gateway: Arc<Gateway>,
    target: Target,
    body: Map<String, Value>,
    external: bool,
    recorder: Recorder,
}

impl Call {
    #[allow(clippy::too_many_arguments)]
    async fn prepare(
        gateway: Arc<Gateway>,
        asked: Asked,
        headers: &HeaderMap,
        namespace: &str,
        name: &str,
        mut body: Map<String, Value>,
        task: Task,
        kind: &'static str,
    ) -> Result<Self, ApiError> {
        let pins = pins_of(&gateway, &asked, headers, namespace).await?;
        let snapshot = gateway.routes.load();
        let route = snapshot.model(namespace, name).ok_or_else(|| {
            ApiError::not_found(format!("there is no model {namespace}/{name}; GET /v1/models lists what there is"))
                .with_param("model")
        })?;
        if route.task != task {
            return Err(ApiError::invalid(
                "model",
                format!("the model {namespace}/{name} has the task {:?}, not {task:?}", route.task),
            ));
        }
        body.insert("model".into(), Value::String(route.served_name.clone()));
        let unit = user_of(&body).or_else(|| text(headers, "llmops-user").map(str::to_owned));
        let unit = unit.unwrap_or_else(|| asked.id.clone());
        let subject = Subject {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision: String::new(),
            variant: String::new(),
            unit: unit.clone(),
            stream: wants_stream(&body),
            pinned: !pins.is_empty(),
            assigned: None,
            shadow: false,
            capture: Capture::Metadata,
            retention: RETENTION,
            inputs: None,
        };
        let target = Target {
            kind: TargetKind::Model,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            pin: pins.models.get(name).cloned(),
            unit,
            background: false,
            counts: pins.is_empty(),
        };
        let external = route.external.is_some();
        let recorder = Recorder::start(Arc::clone(&gateway), asked, subject);
        Ok(Self { gateway, target, body, external, recorder })
    }

    fn path(&self, path: &'static str) -> String {
        // A provider's address ends with `/v1` or what it has instead, a pod's does not.
        if self.external { path.to_owned() } else { format!("/v1{path}") }
    }

    fn attempts(&self) -> Attempts {
        Attempts::new(RETRIES, self.gateway.model_timeout, self.gateway.upstream.limits().queue_timeout)
    }

    fn headers(&self) -> HeaderMap {
        let revision = Some(self.recorder.subject.revision.as_str()).filter(|revision| !revision.is_empty());
        headers_of(self.recorder.id(), revision, None)
    }

    /// The request as the engine gets it.
    fn bytes(&self) -> Bytes {
        Value::Object(self.body.clone()).to_string().into()
    }

    /// Passes on an answer as a whole: until it is complete, nothing has reached the client, so it may be tried again.
    async fn whole(mut self, path: &'static str, once: Option<Once>) -> Result<Response, ApiError> {
        let body = self.bytes();
        let path = self.path(path);
        let mut attempts = self.attempts();
        loop {
            let answer = match self.gateway.upstream.send(&self.target, &path, &body, &mut attempts).await {
                Ok(answer) => answer,
                Err(error) => return Ok(self.failed(&error).await),
            };
            self.recorder.subject.revision.clone_from(&answer.lease.revision);
            let kind = answer.response.headers().get(CONTENT_TYPE).cloned();
            let read = tokio::time::timeout_at(attempts.deadline(), whole(answer, &self)).await;
            let error = match read {
                Err(_) => attempts.timeout(&self.target),
                Ok(Err(error)) => error,
                Ok(Ok(body)) => {
                    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
                    self.account(usage_of(&value));
                    let (id, revision) = (self.recorder.id(), &self.recorder.subject.revision);
                    let given =
                        once.map(|once| once.keep(id, revision, self.recorder.trace.elapsed_ms(), body.to_vec()));
                    self.recorder.ok(None, given).await;
                    let kind = kind.unwrap_or(HeaderValue::from_static("application/json"));
                    return Ok((self.headers(), [(CONTENT_TYPE, kind)], body).into_response());
                }
            };
            if !self.gateway.upstream.again(&self.target, &error, &mut attempts).await {
                return Ok(self.failed(&error).await);
            }
        }
    }

    /// Passes on a stream, event by event as they come.
    async fn stream(mut self) -> Result<Response, ApiError> {
        // The usage is always asked for, for the records; a client that did not ask for it does not get it.
        let hide_usage = !wants_usage(&self.body);
        if hide_usage {
            let options = self.body.entry("stream_options").or_insert_with(|| json!({}));
            match options {
                Value::Object(options) => drop(options.insert("include_usage".into(), Value::Bool(true))),
                other => *other = json!({"include_usage": true}),
            }
        }
        let body = self.bytes();
        let path = self.path("/chat/completions");
        let mut attempts = self.attempts();
        loop {
            let mut answer = match self.gateway.upstream.send(&self.target, &path, &body, &mut attempts).await {
                Ok(answer) => answer,
                Err(error) => return Ok(self.failed(&error).await),
            };
            self.recorder.subject.revision.clone_from(&answer.lease.revision);
            // Until the first bytes are here, nothing has reached the client, so it may be tried again.
            let error = match tokio::time::timeout_at(attempts.deadline(), answer.response.chunk()).await {
                Err(_) => attempts.timeout(&self.target),
                Ok(Ok(Some(first))) => {
                    self.recorder.trace.first_token();
                    let headers = self.headers();
                    let kind = answer.response.headers().get(CONTENT_TYPE).cloned();
                    let deadline = attempts.deadline();
                    let mut response = event_stream(self.events(answer, first, hide_usage, deadline));
                    if let Some(kind) = kind {
                        response.headers_mut().insert(CONTENT_TYPE, kind);
                    }
                    return Ok((headers, response).into_response());
                }
                Ok(Ok(None)) => {
                    self.gateway.upstream.broke_off(&self.target, &answer.lease);
                    CallError::Broken {
                        target: self.target.to_string(),
                        cause: "the stream ended before it began".into(),
                    }
                }
                Ok(Err(error)) => {
                    self.gateway.upstream.broke_off(&self.target, &answer.lease);
                    broken(&self.target, &error)
                }
            };
            drop(answer);
            if !self.gateway.upstream.again(&self.target, &error, &mut attempts).await {
                return Ok(self.failed(&error).await);
            }
        }
    }

    fn events(
        mut self,
        answer: Answer,
        first: Bytes,
        hide_usage: bool,
        deadline: tokio::time::Instant,
    ) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        async_stream::stream! {
            let Answer { mut response, lease } = answer;
            let mut events = Events::new(hide_usage);
            let mut next = Ok(Some(first));
            // The end of the answer is its acknowledgement: it goes out when the request is kept.
            let mut end = Bytes::new();
            let error = loop {
                match next {
                    Ok(Some(chunk)) => match events.pass(&chunk) {
                        Ok(bytes) if events.complete => {
                            end = bytes;
                            break None;
                        }
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => yield Ok(bytes),
                        Err(cause) => break Some(CallError::Unreadable { target: self.target.to_string(), cause }),
                    },
                    Ok(None) => {
                        let rest = events.rest();
                        if events.complete {
                            end = rest;
                            break None;
                        }
                        if !rest.is_empty() {
                            yield Ok(rest);
                        }
                        self.gateway.upstream.broke_off(&self.target, &lease);
                        break Some(CallError::Broken { target: self.target.to_string(), cause: "the stream ended before the answer did".into() });
                    }
                    Err(error) => {
                        self.gateway.upstream.broke_off(&self.target, &lease);
                        break Some(broken(&self.target, &error));
                    }
                }
                next = match tokio::time::timeout_at(deadline, response.chunk()).await {
                    Ok(next) => next,
                    Err(_) => break Some(CallError::Timeout { target: self.target.to_string(), milliseconds: self.gateway.model_timeout.as_millis() }),
                };
            };
            self.account(events.usage);
            match error {
                None => {
                    self.recorder.ok(None, None).await;
                    if !end.is_empty() {
                        yield Ok(end);
                    }
                }
                Some(error) => {
                    let error = call_error(&error);
                    self.recorder.failed(error.code).await;
                    yield Ok(sse::named("error", &error.body()));
                }
            }
        }
    }

    fn account(&self, usage: Option<(u64, u64)>) {
        let Some((input, output)) = usage else { return };
        let snapshot = self.gateway.routes.load();
        let route = snapshot.model(&self.target.namespace, &self.target.name);
        let cost = route.and_then(|route| Some((route.cost(input, output)?, route.price.as_ref()?.currency.as_str())));
        self.recorder.trace.note(|done| done.usage.add(input, output, cost));
    }

    /// The answer to a call that failed: what the engine said of a wrong request is passed on unchanged.
    async fn failed(&mut self, error: &CallError) -> Response {
        let answer = call_error(error);
        self.recorder.failed(answer.code).await;
        match error {
            CallError::Status { status, body, .. }
                if status.is_client_error() && matches!(status.as_u16(), 400 | 404 | 413 | 415 | 422) =>
            {
                let is_json = serde_json::from_slice::<Value>(body).is_ok_and(|value| value.get("error").is_some());
                let mut answer = answer;
                answer.status = *status;
                if is_json {
                    (*status, self.headers(), [(CONTENT_TYPE, "application/json")], body.clone()).into_response()
                } else {
                    (self.headers(), answer).into_response()
                }
            }
            _ => (self.headers(), answer).into_response(),
        }
    }
}

async fn whole(answer: Answer, call: &Call) -> Result<Bytes, CallError> {
    let Answer { mut response, lease } = answer;
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_ANSWER => {
                let cause = format!("it is longer than {MAX_ANSWER} bytes");
                return Err(CallError::Unreadable { target: call.target.to_string(), cause });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(error) => {
                call.gateway.upstream.broke_off(&call.target, &lease);
                return Err(broken(&call.target, &error));
            }
        }
    }
}

/// Looks at events while they are passed on.
struct Events {
    cutter: Cutter,
    hide_usage: bool,
    usage: Option<(u64, u64)>,
    finished: bool,
    /// The stream ended as it should.
    complete: bool,
}

impl Events {
    fn new(hide_usage: bool) -> Self {
        Self { cutter: Cutter::default(), hide_usage, usage: None, finished: false, complete: false }
    }

    /// The bytes to pass on now.
    fn pass(&mut self, chunk: &[u8]) -> Result<Bytes, String> {
        let mut bytes = BytesMut::new();
        for event in self.cutter.push(chunk).map_err(|error| error.to_string())? {
            if self.look(&event.data) {
                bytes.extend_from_slice(&event.raw);
            }
        }
        Ok(bytes.freeze())
    }

    fn rest(&mut self) -> Bytes {
        let rest = self.cutter.rest().filter(|event| self.look(&event.data)).map(|event| event.raw);
        self.complete |= self.finished;
        rest.unwrap_or_default()
    }

    /// Whether the client gets the event.
    fn look(&mut self, data: &str) -> bool {
        if data.trim() == "[DONE]" {
            self.complete = true;
            return true;
        }
        let Ok(value) = serde_json::from_str::<Value>(data) else { return true };
        self.finished |= value.pointer("/choices/0/finish_reason").is_some_and(|reason| !reason.is_null());
        // An error that the engine reports is an end, too: the client gets it as it is.
        self.complete |= value.get("error").is_some_and(|error| !error.is_null());
        let usage = usage_of(&value);
        self.usage = usage.or(self.usage);
        let only_usage = usage.is_some() && value.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
        !(only_usage && self.hide_usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn events_are_passed_on_unchanged_and_the_usage_is_seen() {
        let mut events = Events::new(false);
        assert_eq!(events.pass(STREAM.as_bytes()).unwrap(), STREAM);
        assert_eq!(events.usage, Some((5, 1)));
        assert!(events.complete);
    }

    #[test]
    fn usage_that_was_not_asked_for_is_held_back() {
        let mut events = Events::new(true);
        let passed = events.pass(STREAM.as_bytes()).unwrap();
        let passed = std::str::from_utf8(&passed).unwrap();
        assert!(!passed.contains("usage") && passed.ends_with("data: [DONE]\n\n"));
        assert_eq!(events.usage, Some((5, 1)));
    }

    #[test]
    fn a_stream_without_its_end_is_not_complete() {
        let mut events = Events::new(true);
        events.pass(&STREAM.as_bytes()[..70]).unwrap();
        events.rest();
        assert!(!events.complete);
    }
}
