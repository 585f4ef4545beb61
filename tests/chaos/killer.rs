//! Kills processes in a random order that the seed decides. The moments depend on the machine.
//!
//! Long-lived processes are killed in turn, shuffled: a kind that may not be killed now keeps its place before those that
//! have had their turn. One of two replicas is killed only while the other one is ready: what is promised for two is that one
//! may die at a time. A pod of a Job is killed or spared by lot when it is seen, and no Job more often than it may fail.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::processes::{Kind, Process, connections, victims};
use crate::rule::Kill;

/// How often the process table is read.
const TICK: Duration = Duration::from_millis(100);
/// How long a replica must have been ready before the other one may be killed: routing tables follow within this time.
const SETTLED: Duration = Duration::from_secs(1);
/// Between two kills of etcd or the API server.
const COMPONENT_PAUSE: Duration = Duration::from_secs(20);
/// Most kills of one Job; each may fail at least so often.
const JOB_KILLS: usize = 2;

/// A pod as the API server last showed it.
#[derive(Clone, Debug)]
struct Seen {
    group: String,
    address: Option<std::net::Ipv4Addr>,
    restarts: i32,
    ready: bool,
    since: Instant,
}

#[derive(Default)]
struct View {
    pods: BTreeMap<String, Seen>,
    at: Option<Instant>,
}

/// Kills until it is stopped.
pub struct Killer {
    stop: Arc<AtomicBool>,
    kills: Arc<Mutex<Vec<Kill>>>,
    task: tokio::task::JoinHandle<()>,
    watch: tokio::task::JoinHandle<()>,
}

impl Killer {
    pub fn start(client: Client, supervisor: i32, seed: u64) -> Self {
        let (stop, kills, view) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Kill>>>::default(), Arc::default());
        let watch = tokio::spawn(look(client, Arc::clone(&view)));
        let hand = Hand {
            supervisor,
            random: fastrand::Rng::with_seed(seed),
            view,
            kills: Arc::clone(&kills),
            restarts: HashMap::new(),
            first_seen: HashMap::new(),
            lots: HashMap::new(),
            round: Vec::new(),
            component: Instant::now(),
        };
        let task = tokio::task::spawn_blocking({
            let stop = Arc::clone(&stop);
            move || hand.run(&stop)
        });
        Self { stop, kills, task, watch }
    }

    /// Kills so far.
    pub fn count(&self) -> usize {
        self.kills.lock().unwrap().len()
    }

    pub async fn finish(self) -> anyhow::Result<Vec<Kill>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        self.watch.abort();
        Ok(std::mem::take(&mut *self.kills.lock().unwrap()))
    }
}

/// Keeps the view of the pods; while the API server is away, it stays what it was.
async fn look(client: Client, view: Arc<Mutex<View>>) {
    let pods: Api<Pod> = Api::all(client);
    loop {
        let listed = tokio::time::timeout(Duration::from_secs(2), pods.list(&ListParams::default())).await;
        if let Ok(Ok(listed)) = listed {
            let now = Instant::now();
            let mut view = view.lock().unwrap();
            let before = std::mem::take(&mut view.pods);
            for pod in listed {
                let seen = seen(&pod, now);
                let known = before.get(&pod.name_any());
                let same = known.filter(|known| known.ready == seen.ready && known.restarts == seen.restarts);
                let since = same.map_or(now, |known| known.since);
                view.pods.insert(pod.name_any(), Seen { since, ..seen });
            }
            view.at = Some(now);
        }
        tokio::time::sleep(TICK * 2).await;
    }
}

fn seen(pod: &Pod, now: Instant) -> Seen {
    let status = pod.status.as_ref();
    let ready = pod.metadata.deletion_timestamp.is_none()
        && status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
    let label = |name: &str| pod.labels().get(name).cloned().unwrap_or_default();
    let parts = ["app.kubernetes.io/component", "llmops.dev/component", "llmops.dev/owner", "llmops.dev/revision"];
    Seen {
        group: parts.map(label).join("/"),
        address: status.and_then(|s| s.pod_ip.as_ref()?.parse().ok()),
        restarts: status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).sum(),
        ready,
        since: now,
    }
}

struct Hand {
    supervisor: i32,
    random: fastrand::Rng,
    view: Arc<Mutex<View>>,
    kills: Arc<Mutex<Vec<Kill>>>,
    /// Restarts of a pod when it was last killed: until there is one more, what is shown of it is old.
    restarts: HashMap<String, i32>,
    first_seen: HashMap<(i32, u64), Instant>,
    /// When a pod of a Job dies, or that it is spared.
    lots: HashMap<String, Option<Instant>>,
    round: Vec<Kind>,
    component: Instant,
}

impl Hand {
    fn run(mut self, stop: &AtomicBool) {
        let mut next = Instant::now();
        // How old a victim must be at least: some die while they start.
        let mut age = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let living = victims(self.supervisor);
            let now = Instant::now();
            for process in &living {
                self.first_seen.entry((process.pid, process.started)).or_insert(now);
            }
            self.jobs(&living, now);
            if now >= next && self.one(&living, age, now) {
                next = Instant::now() + Duration::from_millis(self.random.u64(1_000..4_000));
                age = Duration::from_millis(self.random.u64(0..8_000));
            }
            std::thread::sleep(TICK);
        }
    }

    fn jobs(&mut self, living: &[Process], now: Instant) {
        for process in living.iter().filter(|process| matches!(process.kind, Kind::IndexBuild | Kind::Evaluation)) {
            let job = job_of(&process.pod);
            let killed = self.kills.lock().unwrap().iter().filter(|kill| job_of(&kill.pod) == job).count();
            let lives = if process.kind == Kind::Evaluation { 300..4_000 } else { 50..1_500 };
            let (random, lots) = (&mut self.random, &mut self.lots);
            let lot = *lots.entry(process.pod.clone()).or_insert_with(|| {
                let dies = killed < JOB_KILLS && random.u8(0..10) < 7;
                dies.then(|| now + Duration::from_millis(random.u64(lives)))
            });
            if lot.is_some_and(|dies| dies <= now) {
                self.kill(process);
            }
        }
    }

    /// Kills the next process whose turn it is; false when none may be killed now.
    fn one(&mut self, living: &[Process], age: Duration, now: Instant) -> bool {
        if self.next_of_round(living, age, now) {
            return true;
        }
        let waits = |kind: &Kind| self.round.contains(kind) || matches!(kind, Kind::IndexBuild | Kind::Evaluation);
        let mut more: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !waits(kind)).collect();
        self.random.shuffle(&mut more);
        self.round.append(&mut more);
        self.next_of_round(living, age, now)
    }

    fn next_of_round(&mut self, living: &[Process], age: Duration, now: Instant) -> bool {
        for place in 0..self.round.len() {
            let may: Vec<&Process> = living
                .iter()
                .filter(|process| process.kind == self.round[place] && self.may_die(process, living, age, now))
                .collect();
            if let Some(victim) = may.get(self.random.usize(0..may.len().max(1))) {
                self.round.remove(place);
                self.kill(victim);
                return true;
            }
        }
        false
    }

    fn may_die(&self, process: &Process, living: &[Process], age: Duration, now: Instant) -> bool {
        let old = |least: Duration| {
            self.first_seen.get(&(process.pid, process.started)).is_some_and(|seen| now.duration_since(*seen) >= least)
        };
        match process.kind {
            Kind::Controller => old(age),
            Kind::ApiServer | Kind::Etcd => {
                let reachable = self.view.lock().unwrap().at.is_some_and(|at| now.duration_since(at) < SETTLED);
                reachable && now.duration_since(self.component) >= COMPONENT_PAUSE
            }
            Kind::Gateway | Kind::Engine | Kind::IndexServer => {
                let view = self.view.lock().unwrap();
                let running: HashSet<&str> = living.iter().map(|other| other.pod.as_str()).collect();
                let usable = |pod: &str, seen: &Seen| {
                    seen.ready
                        && now.duration_since(seen.since) >= SETTLED
                        && running.contains(pod)
                        && self.restarts.get(pod).is_none_or(|before| seen.restarts > *before)
                };
                let Some(own) = view.pods.get(&process.pod).filter(|seen| usable(&process.pod, seen)) else {
                    return false;
                };
                let others = view.pods.iter().filter(|(pod, seen)| **pod != process.pod && seen.group == own.group);
                others.into_iter().any(|(pod, seen)| usable(pod, seen))
            }
            Kind::IndexBuild | Kind::Evaluation => false,
        }
    }

    fn kill(&mut self, process: &Process) {
        let seen = self.view.lock().unwrap().pods.get(&process.pod).cloned();
        let counted = Instant::now();
        let address = seen.as_ref().and_then(|seen| seen.address);
        let open = match (process.kind, address) {
            (Kind::Gateway, Some(address)) => connections(address, 8080).unwrap_or(0),
            _ => 0,
        };
        if let Some(seen) = seen {
            self.restarts.insert(process.pod.clone(), seen.restarts);
        }
        // A process that ended by itself in the meantime was not killed.
        if let Err(error) = process.kill() {
            eprintln!("not killed: {error}");
            return;
        }
        if matches!(process.kind, Kind::ApiServer | Kind::Etcd) {
            self.component = Instant::now();
        }
        let kill = Kill {
            kind: process.kind,
            pod: process.pod.clone(),
            pid: process.pid,
            counted,
            dead: Instant::now(),
            connections: open,
        };
        self.kills.lock().unwrap().push(kill);
    }
}

/// Name of the Job that a pod is of.
pub fn job_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(job, _)| job)
}
