//! The gateway: the data plane. It serves flows, models and indexes, splits users among variants, and records what it did.
//!
//! What it may do in the cluster, and nothing else (the chart's ClusterRole `llmops-gateway`, in all namespaces it serves):
//!
//! | API group | resources | verbs | why |
//! | --- | --- | --- | --- |
//! | `llmops.dev` | `promptflows`, `modeldeployments`, `ragindexes` | `list`, `watch` | what is served, and the routing tables in their status |
//! | `llmops.dev` | `evaluations` | `list`, `watch` | shown in the dashboard |
//! | `apps` | `controllerrevisions` | `list`, `watch` | contents of flow revisions |
//! | core | `pods` | `list`, `watch` | ready endpoints of models and indexes |
//! | core | `secrets` | `list`, `watch` | API keys (by label), and tokens of providers (by name) |
//! | `authentication.k8s.io` | `tokenreviews` | `create` | whose Kubernetes token it is |
//! | `authorization.k8s.io` | `subjectaccessreviews` | `create` | what that user may do |
//!
//! It never writes to an object. What users need, it asks the API server by SubjectAccessReview, in the group
//! `llmops.dev`: `create` on `promptflows/invoke`, `promptflows/pin`, `modeldeployments/invoke`, `ragindexes/search` and
//! `evaluations/reports`; `get` on `evaluations/reports`, `promptflows/interactions`, `promptflows/splits` and
//! `promptflows/measurements` and `modeldeployments/measurements`. The controller's ServiceAccount has the last two: it
//! decides rollouts by them.
//! The dashboard asks for `get` on each of the four kinds.

pub mod auth;
pub mod clock;
pub mod endpoints;
pub mod error;
pub mod feedback;
pub mod flow;
pub mod flow_api;
pub mod indexes;
pub mod interactions;
pub mod measurements;
pub mod metrics;
pub mod once;
pub mod openai;
pub mod reports;
pub mod routing;
pub mod server;
pub mod shadow;
pub mod store;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use auth::{Auth, KubernetesReviewer, Tokens};
use clock::Clock;
use endpoints::{Limits, Upstream};
use metrics::Metrics;
use routing::Routes;
use server::{Gateway, Lifecycle};
use store::Store;

/// How often old interactions are deleted.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// Arguments of `llmops gateway`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address for requests.
    #[arg(long, value_name = "ADDRESS", env = "LLMOPS_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address for health and metrics.
    #[arg(long, value_name = "ADDRESS", env = "LLMOPS_ADMIN_LISTEN", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,
    /// Database file of interactions, feedback and reports.
    #[arg(long, value_name = "FILE", default_value = "llmops-gateway.db")]
    pub db: PathBuf,
    /// The gateway's own namespace: API keys there may open others.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "llmops-system")]
    pub namespace: String,
    /// Longest time to finish running requests after SIGTERM.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub drain_timeout: Duration,
    /// Longest wait of a request for a free endpoint.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub queue_timeout: Duration,
    /// Most requests that wait for an endpoint of one model or index.
    #[arg(long, value_name = "NUMBER", default_value_t = 1024)]
    pub queue_length: usize,
    /// Most requests at a time on one endpoint.
    #[arg(long, value_name = "NUMBER", default_value_t = 64)]
    pub endpoint_concurrency: usize,
    /// Most shadow copies at a time; further ones are dropped and counted. 0 makes none.
    #[arg(long, value_name = "NUMBER", env = "LLMOPS_SHADOW_CONCURRENCY", default_value_t = 2)]
    pub shadow_concurrency: usize,
    /// Longest time for a whole answer of a model that is called by its name.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    pub model_timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<kube::core::Duration>()
        .map(Duration::from)
        .map_err(|error| format!("{error}; write for example 30s or 5m"))
}

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot open --db {path}: {source}; check that its folder exists and is writable")]
    Store { path: PathBuf, source: store::StoreError },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot find the Kubernetes API server: {0}; run inside a cluster or set KUBECONFIG")]
    Kubernetes(#[from] kube::Error),
    #[error("cannot set up the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("cannot listen for signals: {0}")]
    Signal(std::io::Error),
    #[error("the server failed: {0}")]
    Serve(std::io::Error),
}

/// Runs the process until SIGTERM or SIGINT.
pub async fn run(args: Args) -> ExitCode {
    match start(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the gateway cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signal)?;
    let metrics = Arc::new(Metrics::default());
    let store = Store::open(&args.db, Arc::clone(&metrics))
        .map_err(|source| StartError::Store { path: args.db.clone(), source })?;
    let store = Arc::new(store);
    let client = kube::Client::try_default().await?;
    let routes = Arc::new(Routes::default());
    let limits =
        Limits { per_endpoint: args.endpoint_concurrency, queue: args.queue_length, queue_timeout: args.queue_timeout };
    let gateway = Arc::new(Gateway {
        auth: Auth::new(Arc::clone(&routes), Tokens::new(Arc::new(KubernetesReviewer::new(client.clone())))),
        upstream: Upstream::new(Arc::clone(&routes), limits, Arc::clone(&metrics), Arc::clone(&store))?,
        routes: Arc::clone(&routes),
        store,
        metrics: Arc::clone(&metrics),
        clock: Clock::System,
        shadows: shadow::limit(args.shadow_concurrency),
        model_timeout: args.model_timeout,
    });
    let (synced, is_synced) = watch::channel(false);
    let (open, is_open) = watch::channel(false);
    let lifecycle = Arc::new(Lifecycle::new(is_open));
    let cannot_listen = |address| move |source| StartError::Listen { address, source };
    let admin = TcpListener::bind(args.admin_listen).await.map_err(cannot_listen(args.admin_listen))?;
    tracing::info!(listen = %args.listen, admin = %args.admin_listen, "gateway started");
    tokio::spawn(axum::serve(admin, server::admin_router(Arc::clone(&lifecycle), Arc::clone(&metrics))).into_future());
    let watches = tokio::spawn(routing::watch(client, args.namespace, routes, Arc::clone(&metrics), synced));
    let history = tokio::spawn(crate::dashboard::record_history(Arc::clone(&gateway)));
    let expiry = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move {
            loop {
                gateway.store.expire(server::milliseconds_now());
                tokio::time::sleep(EXPIRY_INTERVAL).await;
            }
        }
    });
    let requests = tokio::select! {
        requests = server::open(args.listen, is_synced) => requests.map_err(cannot_listen(args.listen))?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    open.send_replace(true);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        lifecycle.drain();
        let linger = server::linger(args.drain_timeout);
        tracing::info!(?linger, timeout = ?args.drain_timeout, "draining");
        tokio::time::sleep(linger).await;
    };
    let timeout = args.drain_timeout.saturating_sub(server::linger(args.drain_timeout));
    let router = server::router(Arc::clone(&gateway));
    let left = server::serve(requests, router, metrics, stop, timeout).await.map_err(StartError::Serve)?;
    if left > 0 {
        tracing::warn!(left, "requests were cut: they did not finish within --drain-timeout");
    }
    watches.abort();
    expiry.abort();
    history.abort();
    gateway.store.close().await;
    tracing::info!("gateway ended");
    Ok(())
}
