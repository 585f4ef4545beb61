//! An index on an OpenAI-compatible embedding service.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::{Router, routing::post};
use llmops::indexer::embed::MiniLm;
use serde_json::{Value, json};

use crate::process::{Pod, embedder_dir, plan_with, until};

const WORKS: u8 = 0;
const AWAY: u8 = 1;
const OTHER_MODEL: u8 = 2;

/// The built-in model behind a service's API; it refuses texts about chess.
struct Service {
    url: String,
    state: Arc<(MiniLm, AtomicU8)>,
}

impl Service {
    async fn start() -> Self {
        let state = Arc::new((MiniLm::load(Path::new(&embedder_dir())).unwrap(), AtomicU8::new(WORKS)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/embeddings", post(embeddings)).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }

    fn becomes(&self, what: u8) {
        self.state.1.store(what, Ordering::SeqCst);
    }
}

async fn embeddings(State(state): State<Arc<(MiniLm, AtomicU8)>>, Json(body): Json<Value>) -> Response {
    let mode = state.1.load(Ordering::SeqCst);
    let texts: Vec<String> =
        body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    if mode == AWAY {
        return (StatusCode::SERVICE_UNAVAILABLE, "loading").into_response();
    }
    if texts.iter().any(|text| text.contains("Najdorf")) {
        return (StatusCode::BAD_REQUEST, "input is too large").into_response();
    }
    let vectors = tokio::task::spawn_blocking(move || state.0.embed(&texts).unwrap()).await.unwrap();
    let data: Vec<Value> = vectors
        .into_iter()
        .enumerate()
        .map(|(index, mut vector)| {
            if mode == OTHER_MODEL {
                vector.reverse();
            }
            json!({"index": index, "embedding": vector})
        })
        .collect();
    Json(json!({"data": data})).into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_on_a_service_waits_for_it_and_refuses_another_model() {
    let service = Service::start().await;
    let pod = Arc::new(Pod::new());
    let plan = plan_with(json!({
        "embedder": {"openAi": {"baseUrl": service.url, "model": "minilm", "revision": "0123456789"}},
        "gates": {"guards": {"minDocuments": 1, "maxFailedDocumentPercent": 20}}
    }));
    let report = tokio::task::spawn_blocking({
        let (pod, plan) = (pod.clone(), plan.clone());
        move || pod.build_ok(&plan)
    });
    let report = report.await.unwrap();
    assert_eq!((report.documents.failed, report.failures[0].uri.as_str()), (1, "chess.md"));
    assert_eq!(report.failures[0].reason, "EmbeddingRefused");
    assert_eq!(report.embedding.as_ref().unwrap().model_digest, "0123456789");

    service.becomes(AWAY);
    let server = pod.serve(&report);
    until(async || server.get("/readyz").await.1.contains("attempts")).await;
    service.becomes(OTHER_MODEL);
    until(async || server.get("/readyz").await.1.contains("is not the one that built")).await;
    service.becomes(WORKS);
    server.ready().await;
    let (_, answer) = server.search(json!({"query": "Why is the sea higher at full moon?"})).await;
    assert_eq!(answer["results"][0]["uri"], "nature/tides.md");
    let (status, answer) = server.search(json!({"query": "Najdorf"})).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("query")), "{answer}");
}
