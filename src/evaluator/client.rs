//! The gateway, as a run asks it: pinned, patient with a gateway that is busy or restarts.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::outcome::Reply;
use super::plan::{EvaluationPlan, INDEX, MODEL, PlannedTarget};
use super::report::Source;
use crate::api::evaluation::EvaluatedRevision;
use crate::api::model_deployment::Cost;
use crate::gateway::once;
use crate::indexer::job::{SearchRequest, SearchResponse};

/// Attempts for a question that the gateway cannot answer now.
const MAX_ATTEMPTS: u32 = 8;
/// Attempts where the gateway refuses: permissions and routes of a new revision take a moment to reach it.
const MAX_REFUSALS: u32 = 5;
/// Longest pause between attempts, also where the gateway asks for more.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Longest time for one answer; flows and models have limits of their own below it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The gateway, for one run.
#[derive(Debug)]
pub struct Gateway {
    client: Client,
    plan: EvaluationPlan,
    token_file: PathBuf,
    job: Option<String>,
    pause: Duration,
}

/// A question of a run.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Position of the case in the dataset.
    pub case: usize,
    /// Position of the revision in the plan: two variants may have the same revision, and are asked each.
    pub place: usize,
    /// The revision that is asked.
    pub revision: &'a EvaluatedRevision,
    /// Which repeat, from 0.
    pub repeat: u32,
}

/// What the gateway answered.
struct Exchanged {
    text: String,
    request_id: String,
    /// How long the answer took when it was given first; absent when that is now.
    took: Option<Duration>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AskError {
    /// This question; others may be answered.
    #[error("{0}")]
    Failed(String),
    /// The gateway lets this run ask nothing.
    #[error("{0}")]
    Refused(String),
}

/// What an attempt met.
enum Problem {
    /// It may go away.
    Passing { cause: String, retry_after: Option<Duration> },
    /// The run may not ask.
    Forbidden(String),
    /// It stays.
    Lasting(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlowAnswer {
    #[serde(default)]
    request_id: String,
    revision: String,
    answer: String,
    #[serde(default)]
    sources: Vec<Source>,
    #[serde(default)]
    usage: FlowUsage,
    #[serde(default)]
    dependencies: Dependencies,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FlowUsage {
    input_tokens: i64,
    output_tokens: i64,
    cost: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Dependencies {
    models: BTreeMap<String, String>,
    indexes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: i64,
    completion_tokens: i64,
}

impl Gateway {
    /// A client of the plan's gateway. The token is read for each request, because Kubernetes renews it. `job` is the identity
    /// of the Job: what one of its attempts was answered is not asked again by the next.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(
        plan: &EvaluationPlan,
        token_file: PathBuf,
        job: Option<String>,
        pause: Duration,
    ) -> Result<Self, String> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("llmops-evaluate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| causes(&error))?;
        Ok(Self { client, plan: plan.clone(), token_file, job: job.filter(|job| !job.is_empty()), pause })
    }

    /// Asks a flow revision.
    ///
    /// # Errors
    /// When no attempt brought an answer of that revision.
    pub async fn ask_flow(&self, question: Question<'_>, inputs: &Map<String, Value>) -> Result<Reply, AskError> {
        let revision = question.revision;
        let path = format!("/v1/flows/{}/{}", self.plan.namespace, self.plan.target.name());
        let body = json!({"inputs": inputs, "stream": false});
        let read = |text: &str, seconds: f64| {
            let answer: FlowAnswer =
                serde_json::from_str(text).map_err(|error| format!("its answer is not readable: {error}"))?;
            if answer.revision != revision.revision {
                return Err(format!(
                    "revision {} answered instead of the pinned {}",
                    answer.revision, revision.revision
                ));
            }
            // A pin that the gateway did not heed would judge something else than what is gated.
            let pinned = |kind: &str, revision: &String| {
                let mut of_kind = self.plan.dependencies.iter().filter(|used| used.kind == kind).peekable();
                of_kind.peek().is_none() || of_kind.any(|used| used.revision == *revision)
            };
            let strayed = answer.dependencies.models.iter().find(|(_, revision)| !pinned(MODEL, revision));
            let strayed =
                strayed.or_else(|| answer.dependencies.indexes.iter().find(|(_, found)| !pinned(INDEX, found)));
            if let Some((alias, revision)) = strayed {
                return Err(format!("{alias:?} answered with revision {revision}, which is not pinned"));
            }
            let models =
                answer.dependencies.models.into_iter().map(|(name, revision)| (format!("model/{name}"), revision));
            let indexes =
                answer.dependencies.indexes.into_iter().map(|(name, generation)| (format!("index/{name}"), generation));
            Ok(Reply {
                text: answer.answer,
                seconds,
                input_tokens: answer.usage.input_tokens,
                output_tokens: answer.usage.output_tokens,
                cost: answer.usage.cost.as_ref().and_then(decimal),
                sources: answer.sources,
                request_id: answer.request_id,
                dependencies: models.chain(indexes).collect(),
            })
        };
        self.ask(&path, &body, question, read).await
    }

    /// Asks a model revision.
    ///
    /// # Errors
    /// When no attempt brought an answer.
    pub async fn ask_model(&self, question: Question<'_>, text: &str) -> Result<Reply, AskError> {
        let revision = question.revision;
        let name = self.plan.target.name();
        let cost = match &self.plan.target {
            PlannedTarget::Model { cost, .. } => cost.as_ref(),
            PlannedTarget::Flow { .. } | PlannedTarget::Index { .. } => None,
        };
        let body = json!({
            "model": format!("{}/{name}", self.plan.namespace),
            "messages": [{"role": "user", "content": text}],
            "stream": false,
        });
        let read = |text: &str, seconds: f64| {
            let answer: Completion =
                serde_json::from_str(text).map_err(|error| format!("its answer is not readable: {error}"))?;
            let choice = answer.choices.into_iter().next().ok_or("its answer has no choices")?;
            Ok(Reply {
                text: choice.message.content.unwrap_or_default(),
                seconds,
                input_tokens: answer.usage.prompt_tokens,
                output_tokens: answer.usage.completion_tokens,
                cost: cost.and_then(|cost| price(cost, &answer.usage)),
                dependencies: BTreeMap::from([(format!("model/{name}"), revision.revision.clone())]),
                ..Reply::default()
            })
        };
        self.ask("/v1/chat/completions", &body, question, read).await
    }

    /// Searches an index generation. The answer is the text of the chunks found, the best first.
    ///
    /// # Errors
    /// When no attempt brought an answer of that generation.
    pub async fn ask_index(
        &self,
        question: Question<'_>,
        text: &str,
        filters: BTreeMap<String, String>,
    ) -> Result<Reply, AskError> {
        let revision = question.revision;
        let name = self.plan.target.name();
        let path = format!("/v1/indexes/{}/{name}/search", self.plan.namespace);
        let request = SearchRequest { query: text.to_owned(), top_k: None, min_score: None, filters };
        let body = serde_json::to_value(request)
            .map_err(|error| AskError::Failed(format!("the question cannot be written as JSON: {error}")))?;
        let read = |text: &str, seconds: f64| {
            let found: SearchResponse =
                serde_json::from_str(text).map_err(|error| format!("its answer is not readable: {error}"))?;
            if found.generation != revision.revision {
                let (met, pinned) = (&found.generation, &revision.revision);
                return Err(format!("generation {met} answered instead of the pinned {pinned}"));
            }
            let chunks: Vec<&str> = found.results.iter().map(|hit| hit.text.as_str()).collect();
            Ok(Reply {
                text: chunks.join("\n\n"),
                seconds,
                sources: found
                    .results
                    .iter()
                    .map(|hit| Source { uri: hit.uri.clone(), heading: hit.heading.clone(), score: hit.score })
                    .collect(),
                dependencies: BTreeMap::from([(format!("index/{name}"), found.generation.clone())]),
                ..Reply::default()
            })
        };
        self.ask(&path, &body, question, read).await
    }

    /// Stores a report at the gateway.
    ///
    /// # Errors
    /// When no attempt succeeded.
    pub async fn put_report(&self, format: &str, content_type: &str, body: String) -> Result<(), String> {
        let plan = &self.plan;
        let path = format!("/v1/reports/{}/{}/{}/{format}", plan.namespace, plan.evaluation, plan.run);
        let send = || async {
            let request = self.client.put(self.url(&path)).bearer_auth(self.token().await?);
            self.exchange(request.header("content-type", content_type).body(body.clone())).await.map(|_| ())
        };
        self.patiently(send).await.map_err(|error| format!("report {format} is not stored: {error}"))
    }

    async fn ask<R>(&self, path: &str, body: &Value, question: Question<'_>, read: R) -> Result<Reply, AskError>
    where
        R: Fn(&str, f64) -> Result<Reply, String>,
    {
        let pin = self.plan.pin(question.revision);
        let send = || async {
            let mut request = self.client.post(self.url(path)).bearer_auth(self.token().await?);
            request = request.header("llmops-pin", &pin);
            if let Some(job) = &self.job {
                let Question { case, place, repeat, .. } = question;
                request = request.header(once::KEY, format!("{job}/{case}/{place}/{repeat}"));
            }
            // The time of this attempt alone: what the gateway was busy before is not the answer's.
            let started = Instant::now();
            let Exchanged { text, request_id, took } = self.exchange(request.json(body)).await?;
            let took = took.unwrap_or_else(|| started.elapsed());
            let mut reply = read(&text, took.as_secs_f64()).map_err(Problem::Lasting)?;
            if reply.request_id.is_empty() {
                reply.request_id = request_id;
            }
            Ok(reply)
        };
        self.patiently(send).await
    }

    /// Repeats what met a passing problem.
    async fn patiently<T, F, S>(&self, send: S) -> Result<T, AskError>
    where
        S: Fn() -> F,
        F: Future<Output = Result<T, Problem>>,
    {
        let mut attempt = 1;
        loop {
            let backoff = self.pause.saturating_mul(1 << (attempt - 1)).min(MAX_PAUSE);
            let pause = match send().await {
                Ok(done) => return Ok(done),
                Err(Problem::Lasting(cause)) => return Err(AskError::Failed(cause)),
                Err(Problem::Forbidden(cause)) if attempt >= MAX_REFUSALS => return Err(AskError::Refused(cause)),
                Err(Problem::Passing { cause, .. }) if attempt >= MAX_ATTEMPTS => {
                    return Err(AskError::Failed(format!("{cause}, {attempt} times")));
                }
                Err(Problem::Forbidden(_)) => backoff,
                Err(Problem::Passing { retry_after, .. }) => retry_after.map_or(backoff, |asked| asked.min(MAX_PAUSE)),
            };
            attempt += 1;
            // Spread, so that the requests under way do not come back all at once.
            tokio::time::sleep(pause.mul_f64(1.0 + 0.25 * fastrand::f64())).await;
        }
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Exchanged, Problem> {
        let broken = |error: reqwest::Error| Problem::Passing {
            cause: format!("the gateway at {} cannot be reached: {}", self.plan.gateway_url, causes(&error)),
            retry_after: None,
        };
        let response = request.send().await.map_err(broken)?;
        let status = response.status();
        let retry_after = header(&response, RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
        let request_id = header(&response, "llmops-request-id").unwrap_or_default();
        let took = header(&response, once::TOOK).and_then(|took| took.parse().ok()).map(Duration::from_millis);
        let text = response.text().await.map_err(broken)?;
        if status.is_success() {
            return Ok(Exchanged { text, request_id, took });
        }
        let cause = format!("the gateway answered {status}: {}", error_message(&text));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Problem::Forbidden(cause),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Problem::Passing { cause, retry_after: retry_after.map(Duration::from_secs) }
            }
            status if status.is_server_error() => {
                Problem::Passing { cause, retry_after: retry_after.map(Duration::from_secs) }
            }
            _ => Problem::Lasting(cause),
        })
    }

    async fn token(&self) -> Result<String, Problem> {
        let token = tokio::fs::read_to_string(&self.token_file).await.map_err(|error| Problem::Passing {
            cause: format!("cannot read the token {}: {error}", self.token_file.display()),
            retry_after: None,
        })?;
        Ok(token.trim().to_owned())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.plan.gateway_url.trim_end_matches('/'))
    }
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// The message of an OpenAI-shaped error, else the start of the text.
fn error_message(text: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let message = parsed.as_ref().and_then(|value| value.pointer("/error/message")).and_then(Value::as_str);
    crate::termination::shorten(message.unwrap_or(text).trim(), 300)
}

fn decimal(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn price(cost: &Cost, usage: &Usage) -> Option<f64> {
    let per_token = |price: f64| price / 1e6;
    Some(
        usage.prompt_tokens as f64 * per_token(cost.input_per_million.value()?)
            + usage.completion_tokens as f64 * per_token(cost.output_per_million.value()?),
    )
}

/// The error with its causes, which reqwest hides.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
