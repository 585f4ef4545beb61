//! Steady traffic: users who ask flows, models and the index, and give feedback, one request after the other.
//!
//! Every request has a connection of its own, so that what is in flight on a gateway is the number of its connections. No
//! request is tried again: what a user would see is what counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::objects;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// A flow, answered as a whole.
    Flow,
    /// A flow that searches the index first.
    Grounded,
    /// A flow, streamed.
    FlowStream,
    /// The model by its name, streamed, as clients of OpenAI do.
    ModelStream,
    /// The index.
    Search,
    /// An opinion on an answer.
    Feedback,
}

impl Ask {
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Grounded => "flow with search",
            Self::FlowStream => "flow, streamed",
            Self::ModelStream => "model, streamed",
            Self::Search => "search",
            Self::Feedback => "feedback",
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered to its end; with the request id of what must have been recorded.
    Acknowledged(Option<String>),
    /// The connection broke before the answer, or in it.
    Cut(String),
    /// A stream that had begun ended with an error event.
    Broken(String),
    /// The answer is an error.
    Refused(String),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub ask: Ask,
    pub user: usize,
    pub started: Instant,
    pub ended: Instant,
    pub end: End,
}

/// Acknowledged feedback by its comment, with the request it is about.
pub type Opinions = BTreeMap<String, String>;

#[derive(Default)]
struct Log {
    requests: Mutex<Vec<Request>>,
    opinions: Mutex<Opinions>,
}

/// The users.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    log: Arc<Log>,
    users: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Clone)]
struct User {
    number: usize,
    base: String,
    key: String,
    client: reqwest::Client,
    log: Arc<Log>,
}

impl Traffic {
    /// Starts the users: what each asks, and the pause between its requests.
    pub fn start(base: &str, key: &str, users: &[(Ask, Duration)]) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .pool_max_idle_per_host(0)
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(60))
            .build()?;
        let (stop, log): (Arc<AtomicBool>, Arc<Log>) = Default::default();
        let users = users.iter().enumerate().map(|(number, (ask, pause))| {
            let user =
                User { number, base: base.into(), key: key.into(), client: client.clone(), log: Arc::clone(&log) };
            let (stop, ask, pause) = (Arc::clone(&stop), *ask, *pause);
            tokio::spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    user.round(ask, round).await;
                    round += 1;
                    tokio::time::sleep(pause).await;
                }
            })
        });
        let users = users.collect();
        Ok(Self { stop, log, users })
    }

    /// Requests that have ended so far.
    pub fn count(&self) -> usize {
        self.log.requests.lock().unwrap().len()
    }

    /// Lets the last requests end, and gives all.
    pub async fn finish(self) -> anyhow::Result<(Vec<Request>, Opinions)> {
        self.stop.store(true, Ordering::Relaxed);
        for user in self.users {
            user.await?;
        }
        Ok((
            std::mem::take(&mut *self.log.requests.lock().unwrap()),
            std::mem::take(&mut *self.log.opinions.lock().unwrap()),
        ))
    }
}

impl User {
    async fn round(&self, ask: Ask, round: usize) {
        let question = objects::question(self.number * 7 + round);
        let flow = |name: &str| format!("/v1/flows/{}/{name}", objects::NAMESPACE);
        let user = format!("user-{}", self.number);
        let (path, body) = match ask {
            Ask::Flow => (flow(objects::GATED), json!({"inputs": {"question": question}, "user": user})),
            Ask::Grounded => (flow(objects::GROUNDED), json!({"inputs": {"question": question}, "user": user})),
            Ask::FlowStream => {
                (flow(objects::GROUNDED), json!({"inputs": {"question": question}, "user": user, "stream": true}))
            }
            Ask::ModelStream => (
                "/v1/chat/completions".to_owned(),
                json!({"model": format!("{}/{}", objects::NAMESPACE, objects::MODEL), "max_tokens": 16, "stream": true,
                       "messages": [{"role": "user", "content": question}]}),
            ),
            Ask::Search | Ask::Feedback => (
                format!("/v1/indexes/{}/{}/search", objects::NAMESPACE, objects::INDEX),
                json!({"query": question, "topK": 2}),
            ),
        };
        let started = Instant::now();
        let end = self.send(ask, &path, &body).await;
        self.note(ask, started, end.clone());
        // Every second answer of a flow is judged.
        if let (End::Acknowledged(Some(request)), Ask::Flow | Ask::Grounded | Ask::FlowStream, 0) =
            (end, ask, round % 2)
        {
            let comment = format!("{user}-{round}");
            let body = json!({"requestId": request, "thumbs": if round.is_multiple_of(4) { "up" } else { "down" }, "comment": comment});
            let started = Instant::now();
            let end = self.send(Ask::Feedback, "/v1/feedback", &body).await;
            if matches!(end, End::Acknowledged(_)) {
                self.log.opinions.lock().unwrap().insert(comment, request);
            }
            self.note(Ask::Feedback, started, end);
        }
    }

    fn note(&self, ask: Ask, started: Instant, end: End) {
        let request = Request { ask, user: self.number, started, ended: Instant::now(), end };
        self.log.requests.lock().unwrap().push(request);
    }

    async fn send(&self, ask: Ask, path: &str, body: &Value) -> End {
        let cut = |error: reqwest::Error| End::Cut(causes(&error));
        let request = self.client.post(format!("{}{path}", self.base)).bearer_auth(&self.key).json(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return cut(error),
        };
        let status = response.status();
        let id = response.headers().get("llmops-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return cut(error),
        };
        if !status.is_success() {
            return End::Refused(format!("{status}: {text}"));
        }
        let last = match ask {
            Ask::FlowStream => Some("event: done"),
            Ask::ModelStream => Some("data: [DONE]"),
            _ => None,
        };
        match last {
            Some(last) if !text.contains(last) => {
                let tail: String = text.chars().skip(text.chars().count().saturating_sub(300)).collect();
                if text.contains("event: error") {
                    End::Broken(tail)
                } else {
                    End::Cut(format!("no end of the stream: {tail}"))
                }
            }
            // Searches are answered but not recorded.
            _ => End::Acknowledged(id.filter(|_| !matches!(ask, Ask::Search | Ask::Feedback))),
        }
    }
}

/// The error with its causes, which reqwest hides.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
