//! A cluster with the operator in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use llmops::api::model_deployment::Download;
use llmops::controllers::model_deployment::outside::{Ask, Provider};
use llmops::controllers::{self, Config};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::apiserver::clock::Clock as ServerClock;
use crate::apiserver::error::ApiError;
use crate::apiserver::session::Session;
use crate::apiserver::store::Key;
use crate::apiserver::{ApiServer, WriteRecord};
use crate::cluster::pods::Behaviour;
use crate::cluster::{Cluster, text};
use crate::faults::Fault;
use crate::faults::network::Network;
use crate::faults::strike::{Afterwards, neighbours};
use crate::gateway::Gateway;

/// Sessions of the operator have names that start so.
pub const OPERATOR: &str = "llmops-controller";
/// So long without a request to write, and nothing is on its way any more: longer than any back-off of a single fault,
/// than a pod needs to start and than a Job needs to retry.
const QUIET: Duration = Duration::from_secs(200);
/// Requests to write of an operator that goes round in circles: stories take some tens.
const TOO_MANY: usize = 2000;
/// A process that died is back after this time.
const RESTART: Duration = Duration::from_secs(1);
/// The Lease of two or more processes.
const LEASE: &str = "llmops-controller";

/// A cluster.
pub struct World {
    /// The API server.
    pub server: ApiServer,
    /// What the operator measures.
    pub gateway: Gateway,
    /// What is between the operator and the API server.
    pub network: Arc<Network>,
    /// Objects of this kind are not deleted by faults.
    pub kept: Option<&'static str>,
    behaviour: Arc<Mutex<Behaviour>>,
    /// What people applied last.
    made: Mutex<BTreeMap<Key, Value>>,
    /// Newest process of each replica.
    processes: Arc<Mutex<Vec<Arc<Session>>>>,
    starts: Arc<AtomicU32>,
    /// Seconds by which the operator's wall clock is wrong.
    wrong: Arc<AtomicI64>,
}

/// The operator's processes, each restarted whenever it dies.
pub struct Operator {
    keepers: Vec<JoinHandle<()>>,
    shutdown: CancellationToken,
}

impl Operator {
    /// Ends the processes as SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for keeper in self.keepers {
            keeper.await.unwrap();
        }
    }
}

impl World {
    /// A cluster in which everything random comes from the seed and nothing goes wrong.
    pub fn new(seed: u64) -> Self {
        Self::with_faults(seed, &[])
    }

    /// A cluster in which these things go wrong with the operator's requests.
    pub fn with_faults(seed: u64, faults: &[Fault]) -> Self {
        // The operator draws its jitter from this thread's generator.
        fastrand::seed(seed);
        // As the binary's main does; the second time it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = ApiServer::new(seed);
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        Cluster::start(&server, behaviour.clone());
        let gateway = Gateway::new(&server);
        Self {
            server,
            gateway,
            network: Arc::new(Network::new(faults)),
            kept: None,
            behaviour,
            made: Mutex::default(),
            processes: Arc::default(),
            starts: Arc::default(),
            wrong: Arc::default(),
        }
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
            self.made.lock().unwrap().insert(self.key(&object), object);
        }
        Ok(())
    }

    /// What people applied and did not delete.
    pub fn made(&self) -> BTreeMap<Key, Value> {
        self.made.lock().unwrap().clone()
    }

    fn key(&self, object: &Value) -> Key {
        let kind = text(object, "/kind");
        let known = self.server.lock().catalog.by_name(kind).unwrap_or_else(|| panic!("unknown kind {kind}"));
        Key {
            resource: known.resource(),
            namespace: text(object, "/metadata/namespace").to_owned(),
            name: text(object, "/metadata/name").to_owned(),
        }
    }

    /// Deletes an object of the namespace `default` as a person does.
    pub fn delete(&self, kind: &str, name: &str) {
        let object = self.get(kind, name).unwrap_or_else(|| panic!("there is no {kind} {name}"));
        self.made.lock().unwrap().remove(&self.key(&object));
        self.server.delete("kubectl", &object, &json!({"propagationPolicy": "Background"}));
    }

    /// An object of the namespace `default`.
    pub fn get(&self, kind: &str, name: &str) -> Option<Arc<Value>> {
        self.server.get(kind, "default", name)
    }

    /// Makes the operator's wall clock wrong by so many seconds.
    pub fn wrong_clock(&self, seconds: i64) {
        self.wrong.store(seconds, Ordering::SeqCst);
    }

    /// Starts the operator: one process that needs no Lease.
    pub fn start(&self) -> Operator {
        self.start_replicas(1)
    }

    /// Starts so many processes of the operator; more than one agree by a Lease who works.
    pub fn start_replicas(&self, replicas: u8) -> Operator {
        let shutdown = CancellationToken::new();
        self.processes.lock().unwrap().clear();
        let keepers = (0..usize::from(replicas)).map(|replica| {
            self.processes.lock().unwrap().push(self.launcher(replicas).session());
            tokio::spawn(keep(self.launcher(replicas), replica, shutdown.clone()))
        });
        Operator { keepers: keepers.collect(), shutdown }
    }

    fn launcher(&self, replicas: u8) -> Launcher {
        Launcher {
            server: self.server.clone(),
            gateway: self.gateway.clone(),
            network: self.network.clone(),
            processes: self.processes.clone(),
            starts: self.starts.clone(),
            wrong: self.wrong.clone(),
            lease: replicas > 1,
        }
    }

    /// The process that works: the holder of the Lease, or the only one.
    pub fn leader(&self) -> Option<Arc<Session>> {
        let processes = self.processes.lock().unwrap();
        let lease = self.server.get("Lease", "default", LEASE);
        let holder = lease.as_deref().map(|lease| text(lease, "/spec/holderIdentity"));
        let held = processes.iter().find(|process| Some(process.name.as_str()) == holder);
        held.or_else(|| processes.first()).cloned()
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
            let written = self.operator_requests();
            assert!(written < TOO_MANY, "P2: the operator has written {written} times and does not come to rest");
            assert!(
                self.server.now_ms() < limit,
                "P2: the operator still writes after four hours:\n{}",
                self.timeline()
            );
        }
    }

    /// Lets happen what is planned for a step that begins now, then waits until all of it is over and the operator has
    /// sent no write for a long while.
    pub async fn go_through(&self, step: usize, faults: &[Fault]) {
        let began = Instant::now();
        let mut planned: Vec<(Instant, Action)> = faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Moment(at, ms, what) if *at == step => {
                    Some((began + Duration::from_millis(*ms), Action::Strike(*what)))
                }
                _ => None,
            })
            .collect();
        let faulty = !planned.is_empty();
        while let Some(next) = (0..planned.len()).min_by_key(|index| planned[*index].0) {
            let (at, action) = planned.remove(next);
            sleep_until(at).await;
            match action {
                Action::Strike(what) => {
                    self.note(&format!("FAULT {what}"));
                    if let Some(Afterwards(time, undo)) = self.strike(what) {
                        planned.push((Instant::now() + time, Action::Undo(undo)));
                    }
                }
                Action::Undo(undo) => {
                    self.note("the fault is over");
                    self.undo(&undo);
                }
            }
        }
        if let Some(calm) = self.network.calm_at().filter(|_| faulty) {
            sleep_until(calm).await;
        }
        if faulty {
            // Whoever was cut off or failed again and again waits longer than after a single fault.
            sleep(Duration::from_secs(400)).await;
        }
        self.settle().await;
    }

    /// Writes a line into the timeline.
    pub fn note(&self, text: &str) {
        let mut inner = self.server.lock();
        let at = inner.clock.elapsed().as_millis();
        inner.notes.push((at, text.to_owned()));
    }

    /// Number of write requests of the operator so far, without the Lease and what concerns bad neighbours.
    pub fn operator_requests(&self) -> usize {
        self.server.lock().writes.iter().filter(|write| counts(write)).count()
    }

    /// Write requests of the operator, without the first ones.
    pub fn operator_writes(&self, skip: usize) -> Vec<WriteRecord> {
        let inner = self.server.lock();
        inner.writes.iter().filter(|write| counts(write)).skip(skip).cloned().collect()
    }

    /// What happened, for people.
    pub fn timeline(&self) -> String {
        let inner = self.server.lock();
        let quiet = ["kubelet", "scheduler", "replicaset-controller", "volume-binder"];
        let shown = |write: &&WriteRecord| {
            !quiet.contains(&write.session.as_str()) && !write.key.resource.starts_with("leases.")
        };
        let writes = inner.writes.iter().filter(shown).map(|write| {
            let status = &write.body["status"];
            let body = if status.is_null() { String::new() } else { format!("  {status}") };
            (write.at, format!("{write}{body}"))
        });
        let notes = inner.notes.iter().map(|(at, note)| (*at, format!("{at:>9} ms  -- {note}")));
        let mut lines: Vec<(u128, String)> = writes.chain(notes).collect();
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n")
    }
}

enum Action {
    Strike(crate::faults::Sudden),
    Undo(crate::faults::strike::Undo),
}

/// Whether a write is the operator's and counts.
fn counts(write: &WriteRecord) -> bool {
    let lease = write.key.resource.starts_with("leases.");
    let event_of_neighbour =
        write.key.resource.starts_with("events.") && neighbours::owns(text(&write.body, "/regarding/name"));
    write.session.starts_with(OPERATOR) && !lease && !neighbours::owns(&write.key.name) && !event_of_neighbour
}

/// What a process needs to start.
struct Launcher {
    server: ApiServer,
    gateway: Gateway,
    network: Arc<Network>,
    processes: Arc<Mutex<Vec<Arc<Session>>>>,
    starts: Arc<AtomicU32>,
    wrong: Arc<AtomicI64>,
    lease: bool,
}

impl Launcher {
    fn session(&self) -> Arc<Session> {
        let number = self.starts.fetch_add(1, Ordering::SeqCst) + 1;
        Arc::new(Session::new(&format!("{OPERATOR}-{number}"), self.network.clone()))
    }

    fn config(&self, session: &Session) -> Config {
        Config {
            image: "llmops:sim".into(),
            gateway_url: "http://llmops-gateway.llmops-system.svc:8080".into(),
            measure: Arc::new(self.gateway.clone()),
            outside: Arc::new(Nobody),
            namespace: "default".into(),
            watch_namespace: None,
            lease_name: self.lease.then(|| LEASE.to_owned()),
            identity: session.name.clone(),
            clock: Arc::new(WallClock {
                clock: self.server.lock().clock,
                ticks: AtomicU32::new(0),
                wrong: self.wrong.clone(),
            }),
            admin_listen: None,
        }
    }
}

async fn keep(launcher: Launcher, replica: usize, shutdown: CancellationToken) {
    loop {
        let session = launcher.processes.lock().unwrap()[replica].clone();
        let client = launcher.server.client(session.clone());
        tokio::select! {
            biased;
            // Everything the process holds is dropped at once; what it had spawned can reach nothing any more.
            () = session.died() => {}
            ended = controllers::start(client, launcher.config(&session), shutdown.clone()) => {
                ended.expect("the controllers start");
                return;
            }
        }
        sleep(RESTART).await;
        let next = launcher.session();
        launcher.processes.lock().unwrap()[replica] = next;
    }
}

/// Nobody answers: no pod's process runs, and there is nothing outside.
struct Nobody;

impl Ask for Nobody {
    fn progress<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Option<Download>> {
        async { None }.boxed()
    }

    fn provider<'a>(&'a self, base_url: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Provider> {
        async move { Provider::Unreachable(format!("{base_url}: no connection")) }.boxed()
    }
}

/// The operator's wall clock: virtual time, never the same twice, and wrong when asked for.
struct WallClock {
    clock: ServerClock,
    ticks: AtomicU32,
    wrong: Arc<AtomicI64>,
}

impl controllers::clock::Clock for WallClock {
    fn now(&self) -> Timestamp {
        let tick = self.ticks.fetch_add(1, Ordering::SeqCst);
        let wrong = SignedDuration::from_secs(self.wrong.load(Ordering::SeqCst));
        self.clock.timestamp() + wrong + SignedDuration::from_nanos(i64::from(tick))
    }
}
