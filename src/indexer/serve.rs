//! `llmops index serve`: answers searches on one generation.
//!
//! The server listens at once, so that probes see it start; `/readyz` is 200 from the moment when the generation is
//! verified, its model has proven to be the one that built it, and a first search has warmed it, until SIGTERM.

mod metrics;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::build::report;
use super::embed::{EmbedError, Embedder, cosine};
use super::job::{EXIT_CONFIGURATION, LOADING, SearchHit, SearchRequest, SearchResponse};
use super::search::{Search, SearchError};
use super::store::{Generation, PROBES};
use metrics::Metrics;

/// Texts of a probe: 8. A question is one text.
const BATCH: usize = PROBES.len();
/// Below this cosine between a probe's vector and the recorded one, the model is another.
const SAME_MODEL: f32 = 0.999;
const MODEL_RETRY: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: usize = 256 << 10;
/// A search that waits longer for its turn is refused.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `llmops index serve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the generation.
    #[arg(long)]
    dir: PathBuf,
    /// Digest that the generation must have, `sha256:HEX`.
    #[arg(long)]
    digest: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How long to go on accepting after SIGTERM, in milliseconds: clients need a moment to see that it is not ready.
    #[arg(long, default_value_t = 2000)]
    drain_delay_ms: u64,
}

/// Why a generation cannot be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Store(#[from] super::store::StoreError),
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(
        "the model {model} is not the one that built this generation: {detail}; build the index again with it, or restore the model"
    )]
    OtherModel { model: String, detail: String },
}

struct Serving {
    generation: Arc<Generation>,
    embedder: Embedder,
}

struct App {
    serving: ArcSwapOption<Serving>,
    /// Why it is not ready.
    waiting_for: ArcSwapOption<String>,
    draining: CancellationToken,
    turns: Semaphore,
    metrics: Metrics,
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(args: Args) -> ExitCode {
    let listener = match tokio::net::TcpListener::bind(args.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            let message = format!("cannot listen on {}: {error}", args.listen);
            return end("ListenFailed", &message, ExitCode::FAILURE);
        }
    };
    let address = listener.local_addr().unwrap_or(args.listen);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let app = Arc::new(App {
        serving: ArcSwapOption::empty(),
        waiting_for: ArcSwapOption::from_pointee("the generation is being verified".to_owned()),
        draining: CancellationToken::new(),
        turns: Semaphore::new(cores * 2),
        metrics: Metrics::new(),
    });
    let stopped = CancellationToken::new();
    let server = tokio::spawn({
        let (app, stopped) = (app.clone(), stopped.clone());
        // Answers are small and wait for nothing: no delay to fill packets. Failing to set it costs only time.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        async move { axum::serve(listener, router(app)).with_graceful_shutdown(stopped.cancelled_owned()).await }
    });
    tracing::info!(%address, dir = %args.dir.display(), "listening");
    let loading = tokio::spawn(load(app.clone(), args.dir, args.digest));
    tokio::select! {
        () = terminated() => tracing::info!("told to stop; finishing requests"),
        error = failure_of(loading) => {
            return end("GenerationUnusable", &error, ExitCode::from(EXIT_CONFIGURATION));
        }
    }
    app.draining.cancel();
    tokio::time::sleep(Duration::from_millis(args.drain_delay_ms)).await;
    stopped.cancel();
    match tokio::time::timeout(DRAIN_TIMEOUT, server).await {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(_) => end("Internal", "the server failed", ExitCode::FAILURE),
        Err(_) => end("DrainTimeout", "requests were still running after 30 s", ExitCode::FAILURE),
    }
}

fn end(reason: &str, message: &str, code: ExitCode) -> ExitCode {
    tracing::error!(reason, "{message}");
    report::leave(&json!({"reason": reason, "message": message}).to_string());
    code
}

async fn terminated() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        }
        _ => std::future::pending().await,
    }
}

/// Ends only when loading fails.
async fn failure_of(loading: tokio::task::JoinHandle<Result<(), ServeError>>) -> String {
    match loading.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn load(app: Arc<App>, dir: PathBuf, digest: Option<String>) -> Result<(), ServeError> {
    let started = Instant::now();
    let opened = tokio::task::spawn_blocking(move || -> Result<_, ServeError> {
        let generation = Generation::open(&dir, digest.as_deref())?;
        let embedder = Embedder::open(&generation.manifest.head.settings.embedder, BATCH)?;
        Ok((generation, embedder))
    });
    let (generation, embedder) = match opened.await {
        Ok(opened) => opened?,
        Err(error) => return Err(EmbedError::Inference(error.to_string()).into()),
    };
    loop {
        let problem = match check_model(&generation, &embedder).await {
            Ok(()) => break,
            // A model of its own process does not change; a service may come back, or be rolled back.
            Err(error) if matches!(embedder, Embedder::Builtin(_)) => return Err(error),
            Err(error) => error.to_string(),
        };
        tracing::warn!("not ready: {problem}");
        app.waiting_for.store(Some(Arc::new(problem)));
        tokio::time::sleep(MODEL_RETRY).await;
    }
    let serving = Arc::new(Serving { generation: Arc::new(generation), embedder });
    let filters = serving.generation.manifest.head.settings.retrieval.require_filters.iter();
    let warm_up = SearchRequest {
        query: PROBES.first().copied().unwrap_or_default().to_owned(),
        filters: filters.map(|tag| (tag.clone(), String::new())).collect(),
        ..SearchRequest::default()
    };
    find(&serving, &warm_up).await?;
    let manifest = &serving.generation.manifest;
    app.metrics.loaded(manifest);
    tracing::info!(
        generation = manifest.head.generation,
        chunks = manifest.chunks,
        ms = started.elapsed().as_millis() as u64,
        "ready"
    );
    app.serving.store(Some(serving));
    Ok(())
}

/// Embeds the probe texts and compares them with what the builder recorded.
async fn check_model(generation: &Generation, embedder: &Embedder) -> Result<(), ServeError> {
    let model = &generation.manifest.head.model;
    let other = |detail: String| ServeError::OtherModel { model: embedder.model().to_owned(), detail };
    if matches!(embedder, Embedder::Builtin(_)) && embedder.model_digest() != model.digest {
        return Err(other(format!("its digest is {}, the generation's {}", embedder.model_digest(), model.digest)));
    }
    let outcomes = embedder.embed(PROBES.map(str::to_owned).to_vec()).await?;
    for ((text, recorded), outcome) in PROBES.iter().zip(&model.probes).zip(outcomes) {
        let vector = outcome.map_err(|reason| other(format!("it refuses {text:?}: {reason}")))?;
        let similarity = cosine(&vector, recorded);
        if similarity < SAME_MODEL {
            return Err(other(format!("its vector of {text:?} has cosine {similarity:.4} to the recorded one")));
        }
    }
    Ok(())
}

async fn find(serving: &Arc<Serving>, request: &SearchRequest) -> Result<Vec<SearchHit>, ServeError> {
    let search = Search::new(&serving.generation, request)?;
    let vector = match search.text_to_embed(&serving.generation) {
        Some(text) => {
            let outcome = serving.embedder.embed(vec![text]).await?.pop();
            let refused = |message| SearchError::Invalid { field: "query".into(), message };
            Some(outcome.unwrap_or_else(|| Err("no vector".into())).map_err(refused)?)
        }
        None => None,
    };
    let generation = serving.generation.clone();
    let found = tokio::task::spawn_blocking(move || search.run(&generation, vector.as_deref())).await;
    Ok(found.map_err(|error| EmbedError::Inference(error.to_string()))??)
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/search", post(search))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|State(app): State<Arc<App>>| async move { app.metrics.render() }))
        .fallback(|| async {
            error(StatusCode::NOT_FOUND, "not_found", None, "POST /search is what this server answers")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(tower_http::catch_panic::CatchPanicLayer::new())
        .with_state(app)
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down").into_response()
    } else if app.serving.load().is_some() {
        "ok".into_response()
    } else {
        let reason = app.waiting_for.load_full().map(|reason| (*reason).clone()).unwrap_or_default();
        (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
    }
}

async fn search(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let Some(serving) = app.serving.load_full() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "not_ready", None, LOADING);
    };
    let started = Instant::now();
    let mode = serving.generation.manifest.head.settings.retrieval.mode;
    let response = answer(&app, &serving, &body).await;
    app.metrics.query(mode, response.status(), started.elapsed());
    response
}

async fn answer(app: &App, serving: &Arc<Serving>, body: &[u8]) -> Response {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let request: SearchRequest = match serde_path_to_error::deserialize(&mut reader) {
        Ok(request) => request,
        Err(problem) => {
            let field = problem.path().to_string();
            let field = if field == "." { "body".to_owned() } else { field };
            let message = format!("{field}: {}", problem.into_inner());
            return error(StatusCode::BAD_REQUEST, "invalid_request", Some(&field), &message);
        }
    };
    let Ok(Ok(_turn)) = tokio::time::timeout(QUEUE_TIMEOUT, app.turns.acquire()).await else {
        let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "overloaded", None, "no free search for 10 s");
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return response;
    };
    match find(serving, &request).await {
        Ok(results) => {
            let generation = serving.generation.manifest.head.generation.clone();
            Json(SearchResponse { generation, results }).into_response()
        }
        Err(ServeError::Search(problem @ SearchError::Invalid { .. })) => {
            let field = match &problem {
                SearchError::Invalid { field, .. } => Some(field.as_str()),
                SearchError::Store(_) => None,
            };
            error(StatusCode::BAD_REQUEST, "invalid_request", field, &problem.to_string())
        }
        Err(ServeError::Embed(problem)) if problem.is_transient() => {
            error(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", None, &problem.to_string())
        }
        Err(problem) => {
            tracing::error!("search failed: {problem}");
            error(StatusCode::INTERNAL_SERVER_ERROR, "search_failed", None, &problem.to_string())
        }
    }
}

fn error(status: StatusCode, code: &str, param: Option<&str>, message: &str) -> Response {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    let body = json!({"error": {"message": message, "type": kind, "code": code, "param": param}});
    (status, Json(body)).into_response()
}
