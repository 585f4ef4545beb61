//! The controller process: arguments, start, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use axum::http::HeaderValue;
use axum::http::header::USER_AGENT;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admin::{Admin, router};
use super::cache::{Caches, Change};
use super::clock::{Clock, SystemClock};
use super::contents::Contents;
use super::kinds::Kind;
use super::leadership::Leadership;
use super::lease::Election;
use super::measure::{GatewayMeasurements, Measure};
use super::metrics::Metrics;
use super::model_deployment::outside::{Ask, OverHttp};
use super::pipeline::{Controller, Shared};
use super::watches;
use super::worker::{Observer, Worker};
use super::writer::{OnChange, Writer};

/// Arguments of `llmops controller`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Image of this binary, run by the objects that the operator makes.
    #[arg(long, env = "LLMOPS_IMAGE")]
    pub image: String,
    /// Address of the gateway inside the cluster.
    #[arg(long, env = "LLMOPS_GATEWAY_URL", default_value = "http://llmops-gateway.llmops-system.svc:8080")]
    pub gateway_url: String,
    /// File with a token of the gateway's audience, by which the controller asks it for measurements. Default: no token.
    #[arg(long, env = "LLMOPS_GATEWAY_TOKEN_FILE")]
    pub gateway_token_file: Option<PathBuf>,
    /// Namespace of this process: the Lease is there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "llmops-system")]
    pub namespace: String,
    /// Watch only this namespace. Default: all.
    #[arg(long, env = "LLMOPS_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "LLMOPS_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// Name of the Lease by which replicas agree who works.
    #[arg(long, default_value = "llmops-controller")]
    pub lease_name: String,
    /// Name of this process in the Lease and in events. Default: the pod's name, else a random one.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
}

/// What [`start`] needs besides a client.
#[derive(Clone)]
pub struct Config {
    /// Image of this binary, run by the objects that the operator makes.
    pub image: String,
    /// Address of the gateway inside the cluster.
    pub gateway_url: String,
    /// Where rollouts and experiments are measured.
    pub measure: Arc<dyn Measure>,
    /// Who tells of downloads and of providers.
    pub outside: Arc<dyn Ask>,
    /// Namespace of this process.
    pub namespace: String,
    /// Watch only this namespace.
    pub watch_namespace: Option<String>,
    /// Name of the Lease; `None` leads without one (a single process, tests).
    pub lease_name: Option<String>,
    /// Name of this process in the Lease and in events.
    pub identity: String,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Where /livez, /readyz and /metrics are served; `None` serves them nowhere.
    pub admin_listen: Option<SocketAddr>,
}

/// Why the controllers could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin address cannot be bound.
    #[error("cannot listen on {address} (--admin-listen): {source}; choose a free address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// There is no way to an API server.
    #[error("no Kubernetes API server: {0}; run in a pod with a ServiceAccount, or set KUBECONFIG")]
    Client(#[from] kube::Error),
}

/// Runs the process until SIGTERM or SIGINT.
pub async fn run(args: Args) -> ExitCode {
    let shutdown = CancellationToken::new();
    let signalled = shutdown.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("shutting down: running reconciles finish, the lease is released");
        signalled.cancel();
    });
    let measure = match GatewayMeasurements::new(&args.gateway_url, args.gateway_token_file) {
        Ok(measure) => Arc::new(measure),
        Err(error) => {
            tracing::error!(%error, "there is no HTTP client");
            return ExitCode::FAILURE;
        }
    };
    let config = Config {
        image: args.image,
        gateway_url: args.gateway_url,
        measure,
        outside: Arc::new(OverHttp::default()),
        namespace: args.namespace,
        watch_namespace: args.watch_namespace,
        lease_name: Some(args.lease_name),
        identity: args.identity.unwrap_or_else(|| format!("llmops-{}", uuid::Uuid::new_v4())),
        clock: Arc::new(SystemClock),
        admin_listen: Some(args.admin_listen),
    };
    let started = async {
        let mut api = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
        // Names this process in the API server's audit log.
        let agent = HeaderValue::from_static(concat!("llmops-controller/", env!("CARGO_PKG_VERSION")));
        api.headers.push((USER_AGENT, agent));
        start(Client::try_from(api)?, config, shutdown).await
    };
    match started.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the controllers stopped");
            ExitCode::FAILURE
        }
    }
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot wait for signals; only SIGKILL stops this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Runs the controllers until `shutdown`. Returns when running reconciles have finished and the Lease is released.
///
/// # Errors
/// When the admin address cannot be bound.
pub async fn start(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
    // Each controller is registered here: `runtime.add(super::thing::Things::new(&config));`
    let mut runtime = Runtime::new(client, &config);
    runtime.add(super::prompt_flow::PromptFlows::new(&config.gateway_url, Arc::clone(&config.measure)));
    runtime
        .add(super::evaluation::Evaluations { image: config.image.clone(), gateway_url: config.gateway_url.clone() });
    runtime.add(super::model_deployment::ModelDeployments::new(&config));
    runtime.add(super::rag_index::RagIndexes::new(&config.image));
    runtime.run(config, shutdown).await
}

type Job = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Runtime {
    client: Client,
    registry: Registry,
    metrics: Metrics,
    caches: Arc<Caches>,
    shared: Arc<Shared>,
    leadership: Leadership,
    observers: Vec<Arc<dyn Observer>>,
    observed: Arc<OnceLock<Vec<Arc<dyn Observer>>>>,
    workers: Vec<Box<dyn FnOnce(Leadership, CancellationToken) -> Job + Send>>,
}

impl Runtime {
    fn new(client: Client, config: &Config) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let caches = Arc::new(Caches::default());
        let leadership = if config.lease_name.is_some() { Leadership::follower() } else { Leadership::always() };
        // The observers are complete only after the writer exists that they share.
        let observed: Arc<OnceLock<Vec<Arc<dyn Observer>>>> = Arc::default();
        let writer = Writer::new(
            client.clone(),
            Arc::clone(&caches),
            leadership.clone(),
            metrics.clone(),
            on_change(Arc::clone(&observed)),
        );
        let shared = Arc::new(Shared {
            client: client.clone(),
            caches: Arc::clone(&caches),
            contents: Contents::default(),
            writer,
            clock: Arc::clone(&config.clock),
            instance: config.identity.clone(),
        });
        Self {
            client,
            registry,
            metrics,
            caches,
            shared,
            leadership,
            observers: Vec::new(),
            observed,
            workers: Vec::new(),
        }
    }

    fn add<C: Controller>(&mut self, controller: C) {
        let worker = Arc::new(Worker::new(controller, Arc::clone(&self.shared), self.metrics.clone()));
        self.observers.push(Arc::clone(&worker) as Arc<dyn Observer>);
        self.workers.push(Box::new(move |leadership, shutdown| Box::pin(worker.run(leadership, shutdown))));
    }

    async fn run(self, config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
        let mut background = JoinSet::new();
        if let Some(address) = config.admin_listen {
            let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
            let app = router(Admin { registry: Arc::new(self.registry), caches: Arc::clone(&self.caches) });
            background.spawn(async move {
                if let Err(error) = axum::serve(listener, app).await {
                    tracing::error!(%error, "the admin server stopped");
                }
            });
        }
        // Set once, here: nothing changes a cache before the watches start.
        let observers = self.observers.clone();
        let _ = self.observed.set(self.observers);
        let notify = on_change(self.observed);
        for kind in Kind::ALL {
            background.spawn(watches::run(
                kind,
                self.client.clone(),
                config.watch_namespace.clone(),
                Arc::clone(&self.caches),
                self.metrics.clone(),
                Arc::clone(&notify),
            ));
        }
        // A reconcile on half a picture would write what is not wanted: nobody works before every cache is complete.
        let synced = tokio::select! {
            biased;
            () = self.caches.wait_synced() => true,
            () = shutdown.cancelled() => false,
        };
        if !synced {
            return Ok(());
        }
        tracing::info!("caches are complete");
        let released = CancellationToken::new();
        let election = elect(self.client, &config, self.leadership.clone(), released.clone());
        background.spawn(follow_leadership(self.leadership.clone(), self.metrics.leader.clone(), observers));
        let work = async {
            let mut running = JoinSet::new();
            for worker in self.workers {
                running.spawn(worker(self.leadership.clone(), shutdown.clone()));
            }
            while running.join_next().await.is_some() {}
            // Only now may another replica start.
            released.cancel();
        };
        tokio::join!(election, work);
        Ok(())
    }
}

fn on_change(observed: Arc<OnceLock<Vec<Arc<dyn Observer>>>>) -> OnChange {
    Arc::new(move |change: &Change| {
        for observer in observed.get().into_iter().flatten() {
            observer.changed(change);
        }
    })
}

async fn elect(client: Client, config: &Config, leadership: Leadership, stop: CancellationToken) {
    let Some(name) = config.lease_name.clone() else { return };
    let election = Election {
        client,
        namespace: config.namespace.clone(),
        name,
        identity: config.identity.clone(),
        leadership,
        clock: config.clock.as_ref(),
    };
    election.run(stop).await;
}

async fn follow_leadership(
    leadership: Leadership,
    gauge: prometheus_client::metrics::gauge::Gauge,
    observers: Vec<Arc<dyn Observer>>,
) {
    let mut standing = leadership.subscribe();
    loop {
        gauge.set(i64::from(leadership.leads()));
        for observer in &observers {
            observer.standing_changed();
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}
