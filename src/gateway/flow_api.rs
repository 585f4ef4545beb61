//! `POST /v1/flows/{namespace}/{name}`: runs a flow, as one answer or as a stream of events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::auth::Action;
use super::endpoints::{CallError, Unavailable};
use super::error::ApiError;
use super::flow::{self, Dependencies, FlowError, NodeTime, Pins, Program, Run, Sourced, Usage};
use super::once::{Once, Question};
use super::openai::sse;
use super::routing::{FlowRoute, Routed, Snapshot};
use super::server::{Asked, Gateway, Recorder, Subject, headers_of, identify, json_body, pins_of, text};
use super::shadow;
use super::store::Assigned;
use crate::api::prompt_flow::Unit;

/// Most deltas that wait for a slow client before the model has to wait, too.
const DELTAS: usize = 64;

/// The body of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowRequest {
    /// Inputs by name.
    #[serde(default, rename = "inputs")]
    pub given: Given,
    /// The user, for `assignment.unit: User`.
    #[serde(default)]
    pub user: Option<String>,
    /// The session, for `assignment.unit: Session`.
    #[serde(default)]
    pub session: Option<String>,
    /// Whether to answer with a stream of events.
    #[serde(default)]
    pub stream: bool,
}

/// What a request gives as input.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Map<String, Value>")]
pub enum Given {
    /// Inputs by name.
    Inputs(Map<String, Value>),
    /// Text for the flow's only text input.
    Text(String),
}

impl Default for Given {
    fn default() -> Self {
        Self::Inputs(Map::new())
    }
}

impl From<Map<String, Value>> for Given {
    fn from(inputs: Map<String, Value>) -> Self {
        Self::Inputs(inputs)
    }
}

impl Given {
    /// The inputs of a program, checked.
    ///
    /// # Errors
    /// 400 that names the input.
    pub fn read(&self, program: &Program) -> Result<Map<String, Value>, ApiError> {
        let inputs = match self {
            Self::Inputs(inputs) => inputs.clone(),
            Self::Text(text) => {
                let input = flow::single_text(&program.inputs)?;
                Map::from_iter([(input.to_owned(), Value::String(text.clone()))])
            }
        };
        flow::read_inputs(&program.inputs, inputs)
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowAnswer {
    /// Request id, for feedback.
    pub request_id: String,
    /// `NAMESPACE/NAME`.
    pub flow: String,
    /// Revision that answered.
    pub revision: String,
    /// Variant of the unit.
    pub variant: String,
    /// The text.
    pub answer: String,
    /// Chunks that were given to models.
    pub sources: Vec<Sourced>,
    /// Tokens and cost.
    pub usage: Usage,
    /// Milliseconds to the end of the answer.
    pub latency_ms: u64,
    /// Milliseconds to its first token.
    pub time_to_first_token_ms: Option<u64>,
    /// Times of nodes.
    pub nodes: Vec<NodeTime>,
    /// Revisions that were used.
    pub dependencies: Dependencies,
}

/// A part of a streamed answer.
#[derive(Debug)]
pub enum Piece {
    /// More text.
    Delta(String),
    /// The end.
    Done(Box<FlowAnswer>),
    /// The end, before the answer was complete.
    Failed(ApiError),
}

/// A request for a flow, checked and ready to run.
#[derive(Debug)]
pub struct Invocation {
    gateway: Arc<Gateway>,
    program: Arc<Program>,
    pins: Pins,
    inputs: Map<String, Value>,
    copy: Option<shadow::ShadowCopy>,
    recorder: Recorder,
}

/// Handles the request.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn invoke(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::InvokeFlow, &namespace, Some(&name)).await?;
    let request: FlowRequest = json_body(body).await?;
    let stream = request.stream;
    let once = match Once::begin(&gateway, &asked, &headers, stream).await? {
        Question::Answered(given) => return Ok(given),
        Question::New(once) => once,
    };
    let invocation = Invocation::prepare(gateway, asked, &headers, &namespace, &name, request).await?;
    let headers = invocation.headers();
    if !stream {
        let response = match invocation.answer(once).await {
            Ok(answer) => axum::Json(answer).into_response(),
            Err(error) => error.into_response(),
        };
        return Ok((headers, response).into_response());
    }
    let mut pieces = Box::pin(invocation.pieces());
    // What fails before the first piece is still answered with its own status.
    let first = match pieces.next().await {
        Some(Piece::Failed(error)) => return Ok((headers, error).into_response()),
        first => first,
    };
    let events = futures::stream::iter(first).chain(pieces).map(|piece| {
        Ok::<_, std::convert::Infallible>(match piece {
            Piece::Delta(text) => sse::named("delta", &json!({"text": text})),
            Piece::Done(answer) => sse::named("done", &serde_json::to_value(answer).unwrap_or_default()),
            Piece::Failed(error) => sse::named("error", &error.body()),
        })
    });
    Ok((headers, event_stream(events)).into_response())
}

/// A response of server-sent events.
pub fn event_stream<E: Into<axum::BoxError>>(
    events: impl Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
) -> Response {
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Reverse proxies would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Invocation {
    /// Finds flow and revision, checks pins and inputs.
    ///
    /// # Errors
    /// 404, 403, 400 or 503.
    pub async fn prepare(
        gateway: Arc<Gateway>,
        asked: Asked,
        headers: &HeaderMap,
        namespace: &str,
        name: &str,
        request: FlowRequest,
    ) -> Result<Self, ApiError> {
        let pins = pins_of(&gateway, &asked, headers, namespace).await?;
        let snapshot = gateway.routes.load();
        let route = find(&snapshot, namespace, name)?;
        check_pins(&snapshot, namespace, &pins)?;
        let unit = unit_of(route, headers, &request, &asked.id);
        let Chosen { variant, revision, assigned, program } = choose(route, &unit, &pins, gateway.clock.now_ms())?;
        let given = request.given;
        let inputs = given.read(&program)?;
        let copy = if pins.is_empty() {
            shadow::plan(&gateway, route, &asked.id, &unit, (&variant, &revision), &given)
        } else {
            None
        };
        let subject = Subject {
            kind: "flow",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision,
            variant,
            unit,
            stream: request.stream,
            pinned: !pins.is_empty(),
            assigned: assigned.filter(|_| pins.is_empty()),
            shadow: false,
            capture: route.capture,
            retention: route.retention,
            inputs: Some(inputs.clone()),
        };
        let recorder = Recorder::start(Arc::clone(&gateway), asked, subject);
        Ok(Self { gateway, program, pins, inputs, copy, recorder })
    }

    /// The headers of the answer.
    pub fn headers(&self) -> HeaderMap {
        let subject = &self.recorder.subject;
        headers_of(self.recorder.id(), Some(&subject.revision), Some(&subject.variant))
    }

    /// Request id.
    pub fn id(&self) -> &str {
        self.recorder.id()
    }

    /// Runs the flow to its end. With a key, the answer is kept to be given again.
    ///
    /// # Errors
    /// Whatever failed, as the client sees it.
    pub async fn answer(mut self, once: Option<Once>) -> Result<FlowAnswer, ApiError> {
        let outcome = flow::run(&self.program, self.run(None)).await;
        self.end(outcome, once).await
    }

    /// Runs the flow, giving the answer piece by piece. Dropping the stream stops the flow.
    pub fn pieces(mut self) -> impl Stream<Item = Piece> + Send {
        async_stream::stream! {
            let (sender, mut deltas) = mpsc::channel(DELTAS);
            let outcome = {
                let run = flow::run(&self.program, self.run(Some(&sender)));
                tokio::pin!(run);
                loop {
                    tokio::select! {
                        biased;
                        Some(delta) = deltas.recv() => yield Piece::Delta(delta),
                        outcome = &mut run => break outcome,
                    }
                }
            };
            while let Ok(delta) = deltas.try_recv() {
                yield Piece::Delta(delta);
            }
            // The last piece is the acknowledgement: it goes out when the request is kept.
            yield match self.end(outcome, None).await {
                Ok(answer) => Piece::Done(Box::new(answer)),
                Err(error) => Piece::Failed(error),
            };
        }
    }

    fn run<'a>(&'a self, deltas: Option<&'a mpsc::Sender<String>>) -> Run<'a> {
        Run {
            upstream: &self.gateway.upstream,
            namespace: &self.recorder.subject.namespace,
            inputs: &self.inputs,
            unit: &self.recorder.subject.unit,
            pins: &self.pins,
            trace: &self.recorder.trace,
            deltas,
            background: false,
        }
    }

    async fn end(&mut self, outcome: Result<String, FlowError>, once: Option<Once>) -> Result<FlowAnswer, ApiError> {
        if let Some(copy) = self.copy.take() {
            shadow::start(&self.gateway, copy, self.recorder.asked(), &self.recorder.subject);
        }
        match outcome {
            Ok(answer) => {
                let latency_ms = self.recorder.trace.elapsed_ms();
                let done = self.recorder.trace.done();
                let subject = &self.recorder.subject;
                let answer = FlowAnswer {
                    request_id: self.recorder.id().to_owned(),
                    flow: format!("{}/{}", subject.namespace, subject.name),
                    revision: subject.revision.clone(),
                    variant: subject.variant.clone(),
                    answer,
                    sources: done.sources,
                    usage: done.usage,
                    latency_ms,
                    time_to_first_token_ms: done.first_token_ms,
                    nodes: done.nodes,
                    dependencies: done.dependencies,
                };
                let given = once.map(|once| {
                    let body = serde_json::to_vec(&answer).unwrap_or_default();
                    once.keep(&answer.request_id, &answer.revision, latency_ms, body)
                });
                self.recorder.ok(Some(&answer.answer), given).await;
                Ok(answer)
            }
            Err(error) => {
                let subject = &self.recorder.subject;
                tracing::info!(request = self.recorder.id(), flow = %format_args!("{}/{}", subject.namespace, subject.name), revision = subject.revision, %error, "flow failed");
                let error = flow_error(&error);
                self.recorder.failed(error.code).await;
                Err(error)
            }
        }
    }
}

fn find<'a>(snapshot: &'a Snapshot, namespace: &str, name: &str) -> Result<&'a Arc<FlowRoute>, ApiError> {
    snapshot.flow(namespace, name).ok_or_else(|| {
        ApiError::not_found(format!("there is no PromptFlow {namespace}/{name}; check the name and the namespace"))
    })
}

/// The unit of a request: what is assigned to a variant.
fn unit_of(route: &FlowRoute, headers: &HeaderMap, request: &FlowRequest, id: &str) -> String {
    let given = |body: &Option<String>| body.clone().filter(|value| !value.is_empty());
    let header = |name: &str| text(headers, name).map(str::to_owned);
    let unit = match route.assignment.unit {
        Unit::Header => route.assignment.header.as_deref().and_then(header),
        Unit::User => given(&request.user).or_else(|| header("llmops-user")),
        Unit::Session => given(&request.session).or_else(|| header("llmops-session")),
        Unit::Request => None,
    };
    unit.unwrap_or_else(|| id.to_owned())
}

/// Refuses pins of models and indexes that do not exist. Whether a revision has a ready pod shows when it is called.
fn check_pins(snapshot: &Snapshot, namespace: &str, pins: &Pins) -> Result<(), ApiError> {
    let models = pins.models.keys().filter(|name| snapshot.model(namespace, name).is_none());
    let indexes = pins.indexes.keys().filter(|name| snapshot.index(namespace, name).is_none());
    let unknown = models.map(|name| ("ModelDeployment", name)).chain(indexes.map(|name| ("RagIndex", name)));
    match unknown.into_iter().next() {
        None => Ok(()),
        Some((kind, name)) => {
            let message = format!(
                "the header llmops-pin names the {kind} {namespace}/{name}, which does not exist; check its name"
            );
            Err(ApiError::not_found(message).with_param("llmops-pin"))
        }
    }
}

/// What serves a request.
#[derive(Debug)]
struct Chosen {
    variant: String,
    revision: String,
    /// Absent with a pinned revision.
    assigned: Option<Assigned>,
    program: Arc<Program>,
}

/// What serves a unit at a moment, or a pin.
fn choose(route: &FlowRoute, unit: &str, pins: &Pins, now_ms: i64) -> Result<Chosen, ApiError> {
    let (namespace, name) = (&route.namespace, &route.name);
    let (variant, revision, assigned) = match &pins.flow {
        Some(revision) => (route.variant_of(revision).unwrap_or("pinned"), revision.as_str(), None),
        None => {
            let Routed { arm, stratum, weight } = route.route(unit, now_ms).ok_or_else(|| {
                let message = format!(
                    "PromptFlow {namespace}/{name} serves no revision yet; look at its conditions with kubectl describe"
                );
                ApiError::unavailable("not_serving", message, 5)
            })?;
            (arm.variant.as_str(), arm.revision.as_str(), Some(Assigned { stratum: stratum.to_owned(), weight }))
        }
    };
    if let Some(program) = route.revisions.get(revision) {
        let (variant, revision) = (variant.to_owned(), revision.to_owned());
        return Ok(Chosen { variant, revision, assigned, program: Arc::clone(program) });
    }
    Err(match (route.broken.get(revision), &pins.flow) {
        (Some(cause), Some(_)) => {
            let message =
                format!("the pinned revision {revision} of PromptFlow {namespace}/{name} cannot run: {cause}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "broken_revision", message).with_param("llmops-pin")
        }
        (Some(cause), None) => {
            ApiError::internal(&format!("revision {revision} of {namespace}/{name} cannot run: {cause}"))
        }
        (None, Some(_)) => ApiError::not_found(format!(
            "the header llmops-pin names the revision {revision}, which PromptFlow {namespace}/{name} does not have"
        ))
        .with_param("llmops-pin"),
        (None, None) => {
            let message =
                format!("revision {revision} of PromptFlow {namespace}/{name} has not arrived yet; try again");
            ApiError::unavailable("not_serving", message, 1)
        }
    })
}

/// What a client is told of a failed flow.
pub fn flow_error(error: &FlowError) -> ApiError {
    match error {
        FlowError::Template { .. } => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "template_failed", error.to_string())
        }
        FlowError::Call { node, cause } => {
            let mut answer = call_error(cause);
            answer.message = format!("node {node}: {}", answer.message);
            answer
        }
    }
}

/// What a client is told of a failed call.
pub fn call_error(error: &CallError) -> ApiError {
    let message = error.to_string();
    match error {
        CallError::Unavailable(Unavailable::QueueFull(..)) => {
            ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message) }
        }
        CallError::Unavailable(Unavailable::Busy(_)) => ApiError::unavailable("overloaded", message, 2),
        CallError::Unavailable(_) => ApiError::unavailable("no_ready_endpoint", message, 5),
        CallError::Misconfigured(_) => ApiError::unavailable("misconfigured", message, 30),
        CallError::Timeout { .. } => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message),
        CallError::Broken { .. } => ApiError::new(StatusCode::BAD_GATEWAY, "upstream_broken", message),
        CallError::Status { .. } => ApiError::new(StatusCode::BAD_GATEWAY, "upstream_error", message),
        CallError::Unreadable { .. } => ApiError::new(StatusCode::BAD_GATEWAY, "upstream_unreadable", message),
    }
}
