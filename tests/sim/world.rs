//! A cluster with the operator in it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use llmops::controllers::{self, Config};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::apiserver::clock::Clock as ServerClock;
use crate::apiserver::error::ApiError;
use crate::apiserver::session::{Fault, Session};
use crate::apiserver::{ApiServer, WriteRecord};
use crate::cluster::Cluster;
use crate::cluster::pods::Behaviour;
use crate::gateway::Gateway;

/// Sessions of the operator have names that start so.
pub const OPERATOR: &str = "llmops-controller";
/// So long without a request to write, and nothing is on its way any more: longer than any back-off of a single fault,
/// than a pod needs to start and than a Job needs to retry.
const QUIET: Duration = Duration::from_secs(200);

/// A cluster.
pub struct World {
    /// The API server.
    pub server: ApiServer,
    /// What the operator measures.
    pub gateway: Gateway,
    behaviour: Arc<Mutex<Behaviour>>,
    starts: AtomicU32,
}

/// The operator's process, restarted whenever it dies.
pub struct Operator {
    keeper: JoinHandle<()>,
    shutdown: CancellationToken,
    session: Arc<Session>,
}

impl Operator {
    /// The connection of the first process.
    pub fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// Ends the process as SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.keeper.await.unwrap();
    }
}

impl World {
    /// A cluster in which everything random comes from the seed.
    pub fn new(seed: u64) -> Self {
        // The operator draws its jitter from this thread's generator.
        fastrand::seed(seed);
        // As the binary's main does; the second time it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = ApiServer::new(seed);
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        Cluster::start(&server, behaviour.clone());
        let gateway = Gateway::new(&server);
        Self { server, gateway, behaviour, starts: AtomicU32::new(0) }
    }

    /// Says how runs of containers go; the newest plan counts.
    pub fn pods(&self, plan: impl Fn(&Value, &str, u32) -> Option<crate::cluster::containers::Run> + Send + 'static) {
        self.behaviour.lock().unwrap().first(Box::new(plan));
    }

    /// Applies manifests as a person does, and fails the test when one is refused.
    pub fn apply(&self, yaml: &str) {
        self.try_apply(yaml).unwrap_or_else(|error| panic!("{}", error.message));
    }

    /// Applies manifests as a person does.
    pub fn try_apply(&self, yaml: &str) -> Result<(), ApiError> {
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let mut object: Value = serde::Deserialize::deserialize(document).expect("the test's YAML is valid");
            if object["metadata"].get("namespace").is_none() {
                object["metadata"]["namespace"] = json!("default");
            }
            self.server.apply("kubectl", &object)?;
        }
        Ok(())
    }

    /// Deletes an object of the namespace `default` as a person does.
    pub fn delete(&self, kind: &str, name: &str) {
        let object = self.get(kind, name).unwrap_or_else(|| panic!("there is no {kind} {name}"));
        self.server.delete("kubectl", &object, &json!({"propagationPolicy": "Background"}));
    }

    /// An object of the namespace `default`.
    pub fn get(&self, kind: &str, name: &str) -> Option<Arc<Value>> {
        self.server.get(kind, "default", name)
    }

    /// Starts the operator. The first process has the fault; when it dies of it, another one starts.
    pub fn start(&self, fault: Option<Fault>) -> Operator {
        let shutdown = CancellationToken::new();
        let session = self.session(fault);
        let keeper = tokio::spawn(keep(
            (self.server.clone(), self.gateway.clone()),
            session.clone(),
            self.session(None),
            shutdown.clone(),
        ));
        Operator { keeper, shutdown, session }
    }

    fn session(&self, fault: Option<Fault>) -> Arc<Session> {
        let number = self.starts.fetch_add(1, Ordering::SeqCst) + 1;
        Arc::new(Session::new(&format!("{OPERATOR}-{number}"), fault))
    }

    /// Waits until the operator has sent no write for a long while.
    pub async fn settle(&self) {
        let limit = self.server.now_ms() + 4 * 3_600_000;
        loop {
            let before = self.operator_requests();
            sleep(QUIET).await;
            if self.operator_requests() == before {
                return;
            }
            assert!(self.server.now_ms() < limit, "the operator still writes after four hours:\n{}", self.timeline());
        }
    }

    /// Number of write requests of the operator so far.
    pub fn operator_requests(&self) -> usize {
        self.server.lock().writes.iter().filter(|write| write.session.starts_with(OPERATOR)).count()
    }

    /// Write requests of the operator, without the first ones.
    pub fn operator_writes(&self, skip: usize) -> Vec<WriteRecord> {
        let inner = self.server.lock();
        inner.writes.iter().filter(|write| write.session.starts_with(OPERATOR)).skip(skip).cloned().collect()
    }

    /// What happened, for people.
    pub fn timeline(&self) -> String {
        let inner = self.server.lock();
        let quiet = ["kubelet", "scheduler", "replicaset-controller", "volume-binder"];
        let lines: Vec<String> = inner
            .writes
            .iter()
            .filter(|write| !quiet.contains(&write.session.as_str()))
            .map(|write| {
                let status = &write.body["status"];
                let body = if status.is_null() { String::new() } else { format!("  {status}") };
                format!("{write}{body}")
            })
            .collect();
        lines.join("\n")
    }
}

async fn keep(
    (server, gateway): (ApiServer, Gateway),
    first: Arc<Session>,
    second: Arc<Session>,
    shutdown: CancellationToken,
) {
    for session in [first, second] {
        let config = Config {
            image: "llmops:sim".into(),
            gateway_url: "http://llmops-gateway.llmops-system.svc:8080".into(),
            measure: Arc::new(gateway.clone()),
            namespace: "llmops-system".into(),
            watch_namespace: None,
            lease_name: None,
            identity: session.name.clone(),
            clock: Arc::new(WallClock { clock: server.lock().clock, ticks: AtomicU32::new(0) }),
            admin_listen: None,
        };
        let client = server.client(session.clone());
        tokio::select! {
            biased;
            // Everything the process holds is dropped at once; what it had spawned can reach nothing any more.
            () = session.died() => {}
            ended = controllers::start(client, config, shutdown.clone()) => {
                ended.expect("the controllers start");
                return;
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// The operator's wall clock: virtual time, and never the same twice.
struct WallClock {
    clock: ServerClock,
    ticks: AtomicU32,
}

impl controllers::clock::Clock for WallClock {
    fn now(&self) -> Timestamp {
        let tick = self.ticks.fetch_add(1, Ordering::SeqCst);
        self.clock.timestamp() + SignedDuration::from_nanos(i64::from(tick))
    }
}
