//! A client of an OpenAI-compatible `POST /v1/embeddings`.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::{EmbedError, Outcome, normalise};

const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Most bytes of an answer: 1,024 vectors of 4,096 numbers of 24 characters fit.
const MAX_ANSWER_BYTES: usize = 128 << 20;
/// Most characters of a service's error text that are passed on.
const MAX_REASON_CHARS: usize = 300;

/// The client. All its vectors have the length of the first.
#[derive(Debug)]
pub struct OpenAi {
    http: reqwest::Client,
    url: String,
    model: String,
    revision: String,
    batch: usize,
    dimensions: OnceLock<usize>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    index: Option<usize>,
    embedding: Vec<f32>,
}

/// How one call ended, other than well.
enum Failure {
    /// The service refuses this input; another input may pass.
    Input(String),
    /// The service refuses every call.
    Refused(String),
    /// A retry may help, after the pause that the service asks for.
    Retry(String, Option<Duration>),
}

impl OpenAi {
    /// A client of `BASE_URL/embeddings`; `batch` texts a call.
    ///
    /// # Errors
    /// When the address is not an http or https URL.
    pub fn new(base_url: &str, model: &str, revision: &str, batch: usize) -> Result<Self, EmbedError> {
        let url = format!("{}/embeddings", base_url.trim_end_matches('/'));
        let refused = |message: String| EmbedError::Refused { url: url.clone(), message };
        let parsed = reqwest::Url::parse(&url).map_err(|error| refused(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refused("the address of an embedding service starts with http:// or https://".into()));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            http,
            url,
            model: model.to_owned(),
            revision: revision.to_owned(),
            batch: batch.max(1),
            dimensions: OnceLock::new(),
        })
    }

    /// Name of the model in requests.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Revision of the ModelDeployment.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// One outcome a text, in order.
    ///
    /// # Errors
    /// When the service refuses every call, stays away, or changes the length of its vectors.
    pub async fn embed(&self, texts: &[String]) -> Result<Vec<Outcome>, EmbedError> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; texts.len()];
        // Ranges still to do. A refused batch is halved until the text that spoils it stands alone.
        let mut ranges: Vec<(usize, usize)> =
            (0..texts.len()).step_by(self.batch).map(|from| (from, (from + self.batch).min(texts.len()))).collect();
        while let Some((from, to)) = ranges.pop() {
            let Some(part) = texts.get(from..to) else { continue };
            match self.call_with_retries(part).await? {
                Ok(vectors) => {
                    for (slot, vector) in outcomes.iter_mut().skip(from).zip(vectors) {
                        *slot = Some(self.checked(vector)?);
                    }
                }
                Err(_) if to - from > 1 => {
                    let middle = from + (to - from) / 2;
                    ranges.extend([(from, middle), (middle, to)]);
                }
                Err(reason) => {
                    if let Some(slot) = outcomes.get_mut(from) {
                        *slot = Some(Err(reason));
                    }
                }
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err("no answer".into()))).collect())
    }

    fn checked(&self, mut vector: Vec<f32>) -> Result<Outcome, EmbedError> {
        let expected = *self.dimensions.get_or_init(|| vector.len());
        if vector.len() != expected {
            return Err(EmbedError::Dimensions { model: self.model.clone(), expected, got: vector.len() });
        }
        if normalise(&mut vector) { Ok(Ok(vector)) } else { Ok(Err("its vector is zero or not finite".into())) }
    }

    /// The inner error is one of the input.
    async fn call_with_retries(&self, part: &[String]) -> Result<Result<Vec<Vec<f32>>, String>, EmbedError> {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.call(part).await {
                Ok(vectors) => return Ok(Ok(vectors)),
                Err(Failure::Input(reason)) => return Ok(Err(reason)),
                Err(Failure::Refused(message)) => return Err(EmbedError::Refused { url: self.url.clone(), message }),
                Err(Failure::Retry(message, _)) if attempts >= ATTEMPTS => {
                    return Err(EmbedError::Unavailable { url: self.url.clone(), attempts, message });
                }
                Err(Failure::Retry(message, asked)) => {
                    let jitter = Duration::from_millis(fastrand::u64(0..=FIRST_PAUSE.as_millis() as u64));
                    let wait = asked.unwrap_or(pause).min(LONGEST_PAUSE) + jitter;
                    tracing::warn!(
                        url = self.url,
                        attempts,
                        wait_ms = wait.as_millis() as u64,
                        "embedding is retried: {message}"
                    );
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn call(&self, part: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let retry = |error: reqwest::Error| Failure::Retry(causes(&error), None);
        let request = Request { model: &self.model, input: part, encoding_format: "float" };
        let mut response = self.http.post(&self.url).json(&request).send().await.map_err(retry)?;
        let status = response.status();
        let asked = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(retry)? {
            if body.len() + part.len() > MAX_ANSWER_BYTES {
                return Err(Failure::Refused(format!("its answer is above {MAX_ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&part);
        }
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(MAX_REASON_CHARS).collect();
            let reason = format!("status {}: {text}", status.as_u16());
            return Err(match status {
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                    Failure::Input(reason)
                }
                StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                    Failure::Retry(reason, asked)
                }
                // llama.cpp reports an input above its batch size as 500 with this text.
                StatusCode::INTERNAL_SERVER_ERROR if text.contains("too large to process") => Failure::Input(reason),
                status if status.is_server_error() => Failure::Retry(reason, asked),
                _ => Failure::Refused(reason),
            });
        }
        let mut answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| Failure::Refused(format!("its answer is not that of /v1/embeddings: {error}")))?;
        if answer.data.len() != part.len() {
            return Err(Failure::Refused(format!("{} vectors for {} texts", answer.data.len(), part.len())));
        }
        for (position, item) in answer.data.iter_mut().enumerate() {
            item.index.get_or_insert(position);
        }
        answer.data.sort_by_key(|item| item.index);
        if answer.data.iter().enumerate().any(|(position, item)| item.index != Some(position)) {
            return Err(Failure::Refused("the indexes of its vectors are not 0, 1, 2, …".into()));
        }
        Ok(answer.data.into_iter().map(|item| item.embedding).collect())
    }
}

/// An error with its causes; the outer message alone says only that the request failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::extract::State;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::{Json, Router, routing::post};
    use serde_json::{Value, json};

    use super::*;

    /// Refuses inputs with "bad", fails the first call, answers in reverse order.
    async fn answer(State(calls): State<Arc<AtomicUsize>>, Json(body): Json<Value>) -> Response {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let input: Vec<&str> = body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        if input.iter().any(|text| text.contains("bad")) {
            return (StatusCode::BAD_REQUEST, "input is too long").into_response();
        }
        if body["model"] != "m" {
            return (StatusCode::NOT_FOUND, "no such model").into_response();
        }
        let data: Vec<Value> = input
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let embedding =
                    if *text == "short" { vec![1.0] } else { vec![3.0 * text.len() as f32, 4.0 * text.len() as f32] };
                json!({"index": index, "embedding": embedding})
            })
            .rev()
            .collect();
        Json(json!({"data": data})).into_response()
    }

    async fn serve() -> String {
        rustls::crypto::ring::default_provider().install_default().ok();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/embeddings", post(answer)).with_state(Arc::default());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(|text| (*text).to_owned()).collect()
    }

    #[tokio::test]
    async fn retries_isolates_a_bad_input_and_keeps_order() {
        let client = OpenAi::new(&serve().await, "m", "rev", 3).unwrap();
        let outcomes = client.embed(&texts(&["a", "bb", "bad one", "c", "d"])).await.unwrap();
        for (position, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(vector) => assert!((vector[0] - 0.6).abs() < 1e-6 && position != 2),
                Err(reason) => assert!(position == 2 && reason.contains("too long"), "{position} {reason}"),
            }
        }
    }

    #[tokio::test]
    async fn a_refused_model_and_changing_dimensions_are_errors() {
        let url = serve().await;
        let error = OpenAi::new(&url, "other", "rev", 3).unwrap().embed(&texts(&["a"])).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("no such model"), "{error}");
        let error = OpenAi::new(&url, "m", "rev", 1).unwrap().embed(&texts(&["short", "a"])).await.unwrap_err();
        assert!(matches!(error, EmbedError::Dimensions { .. }), "{error}");
        assert!(OpenAi::new("ftp://host/v1", "m", "rev", 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_is_away_is_transient() {
        rustls::crypto::ring::default_provider().install_default().ok();
        // Nothing listens on the discard port of this address.
        let client = OpenAi::new("http://127.0.0.1:9/v1", "m", "rev", 1).unwrap();
        let error = client.embed(&texts(&["a"])).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("after 6 attempts"), "{error}");
    }
}
