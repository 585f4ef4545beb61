//! An engine that does what a test says: a server of the OpenAI API, and of the retrieval API.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// What an engine does with a request.
#[derive(Clone, Debug)]
pub enum Script {
    /// Answers with these pieces.
    Say(Vec<&'static str>),
    /// Answers with these pieces, each after a permit of the gate.
    Gated(Vec<&'static str>, Arc<Semaphore>),
    /// Breaks the connection after these pieces.
    Cut(Vec<&'static str>),
    /// Answers with an error.
    Fail(u16, &'static str),
    /// Never answers.
    Hang,
    /// Answers this JSON.
    Json(Value),
}

/// A request that an engine got.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

#[derive(Debug)]
struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    otherwise: Script,
    seen: Mutex<Vec<Seen>>,
    running: watch::Sender<usize>,
}

#[derive(Debug)]
pub struct Engine {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

/// Counts a request as running until dropped.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.running.send_modify(|count| *count += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|count| *count -= 1);
    }
}

impl Engine {
    /// Does these in turn, then always the last.
    pub async fn start(scripts: Vec<Script>) -> Self {
        let mut scripts = VecDeque::from(scripts);
        let otherwise = scripts.pop_back().unwrap();
        let shared = Arc::new(Shared {
            scripts: Mutex::new(scripts),
            otherwise,
            seen: Mutex::default(),
            running: watch::channel(0).0,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, server }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until so many requests run.
    pub async fn running(&self, count: usize) {
        let mut running = self.shared.running.subscribe();
        super::harness::soon(running.wait_for(|running| *running == count)).await.unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Body) -> Response {
    let running = Running::new(&shared);
    let body: Value = serde_json::from_slice(&axum::body::to_bytes(body, usize::MAX).await.unwrap()).unwrap();
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let stream = body["stream"] == true;
    shared.seen.lock().unwrap().push(Seen { path: uri.path().into(), authorization, body });
    let script = shared.scripts.lock().unwrap().pop_front().unwrap_or_else(|| shared.otherwise.clone());
    match script {
        Script::Say(pieces) if stream => events(pieces, None, false, running),
        Script::Say(pieces) => axum::Json(json!({
            "choices": [{"index": 0, "message": {"role": "assistant", "content": pieces.concat()}, "finish_reason": "stop"}],
            "usage": usage(pieces.len()),
        }))
        .into_response(),
        Script::Gated(pieces, gate) => events(pieces, Some(gate), false, running),
        Script::Cut(pieces) => events(pieces, None, true, running),
        Script::Fail(status, message) => {
            (StatusCode::from_u16(status).unwrap(), axum::Json(json!({"error": {"message": message}}))).into_response()
        }
        Script::Hang => {
            let _running = running;
            std::future::pending().await
        }
        Script::Json(value) => axum::Json(value).into_response(),
    }
}

fn usage(pieces: usize) -> Value {
    json!({"prompt_tokens": 100, "completion_tokens": pieces, "total_tokens": 100 + pieces})
}

/// The bytes of a complete stream of these pieces.
pub fn stream_of(pieces: &[&str], with_usage: bool) -> String {
    let mut text: String = pieces.iter().map(|piece| event(&delta(piece))).collect();
    text.push_str(&event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})));
    if with_usage {
        text.push_str(&event(&json!({"choices": [], "usage": usage(pieces.len())})));
    }
    text + "data: [DONE]\n\n"
}

fn delta(piece: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": null}]})
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn events(pieces: Vec<&'static str>, gate: Option<Arc<Semaphore>>, cut: bool, running: Running) -> Response {
    let count = pieces.len();
    let stream = async_stream::stream! {
        let _running = running;
        for piece in pieces {
            if let Some(gate) = &gate {
                gate.acquire().await.unwrap().forget();
            }
            yield Ok::<_, std::io::Error>(event(&delta(piece)));
        }
        if cut {
            // Lets the pieces leave before the connection breaks.
            tokio::task::yield_now().await;
            yield Err(std::io::Error::other("cut"));
            return;
        }
        yield Ok(event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})));
        yield Ok(event(&json!({"choices": [], "usage": usage(count)})));
        yield Ok("data: [DONE]\n\n".to_owned());
    };
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

/// A retrieval server that always finds this.
pub async fn index(generation: &str, texts: &[&str]) -> Engine {
    let results: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(place, text)| {
            json!({"chunkId": place.to_string(), "source": "docs", "uri": format!("page{place}.md"), "heading": "Top",
                   "text": text, "score": 0.5})
        })
        .collect();
    Engine::start(vec![Script::Json(json!({"generation": generation, "results": results}))]).await
}
