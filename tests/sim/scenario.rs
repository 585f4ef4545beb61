//! Scenarios, run without and with faults, and the properties that hold in each run.

use std::time::Duration;

use tokio::time::sleep;

use crate::apiserver::WriteRecord;
use crate::apiserver::session::{Fault, FaultKind};
use crate::snapshot::{self, Snapshot};
use crate::world::World;

/// A story: what people and the cluster do, each step once the operator has come to rest.
pub struct Scenario {
    /// For messages.
    pub name: &'static str,
    /// How pods behave, and what is there before the operator.
    pub setup: fn(&World),
    /// What happens then.
    pub steps: &'static [fn(&World)],
}

/// What a run showed.
pub struct Run {
    /// The end.
    pub end: Snapshot,
    /// Number of requests to write of the operator's first process.
    pub requests: usize,
    /// What went wrong.
    pub faults: Vec<String>,
    /// Whether the planned fault happened.
    pub reached: bool,
    /// What happened.
    pub timeline: String,
}

/// A runtime with virtual time.
pub fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime starts").block_on(future)
}

/// Runs a scenario once.
pub fn run(scenario: &Scenario, seed: u64, fault: Option<Fault>) -> Run {
    in_virtual_time(async {
        let world = World::new(seed);
        (scenario.setup)(&world);
        let operator = world.start(fault);
        let first = operator.session();
        world.settle().await;
        for step in scenario.steps {
            step(&world);
            world.settle().await;
        }
        let mut faults = Vec::new();
        let reached = !first.is_fault_pending();
        // The run without a fault rests longer: several resyncs, and every watch ends meanwhile.
        let rest_for = Duration::from_secs(if fault.is_none() { 3600 } else { 700 });
        rest(&world, rest_for, "at rest", &mut faults).await;
        operator.stop().await;
        let operator = world.start(None);
        rest(&world, rest_for, "after a restart", &mut faults).await;
        operator.stop().await;
        always(&world, &mut faults);
        let end = snapshot::take(&world.server);
        Run { end, requests: first.requests(), reached, faults, timeline: world.timeline() }
    })
}

/// Nothing is written for a while that holds at least one resync.
async fn rest(world: &World, time: Duration, when: &str, faults: &mut Vec<String>) {
    let before = world.operator_requests();
    sleep(time).await;
    for write in world.operator_writes(before) {
        faults.push(format!("a write {when}: {write}"));
    }
}

/// What must hold of every run.
fn always(world: &World, faults: &mut Vec<String>) {
    for write in world.operator_writes(0) {
        if write.key.resource.ends_with(llmops::api::GROUP) && write.subresource.as_deref() != Some("status") {
            faults.push(format!("a write of a user's object: {write}"));
        }
        if let Some(fault) = wrong_status(&write).or_else(|| taken_down_early(world, &write)) {
            faults.push(fault);
        }
    }
    let warnings = world.server.lock().warnings.clone();
    faults.extend(warnings.into_iter().map(|warning| format!("a warning of the API server: {warning}")));
}

/// What still gets traffic by its owner's status is not taken down.
fn taken_down_early(world: &World, write: &WriteRecord) -> Option<String> {
    let serves = matches!(write.key.resource.as_str(), "deployments.apps" | "controllerrevisions.apps");
    if write.verb != "delete" || !write.changed || !serves {
        return None;
    }
    let inner = world.server.lock();
    let log = inner.store.since(0)?;
    let gone = log.iter().find(|change| change.version == write.version)?.before.clone()?;
    let owner = &gone["metadata"]["ownerReferences"][0]["uid"];
    let revision = &gone["metadata"]["labels"]["llmops.dev/revision"];
    let earlier = log.iter().rev().filter(|change| change.version < write.version);
    let owner =
        earlier.filter_map(|change| change.after.as_ref()).find(|object| object["metadata"]["uid"] == *owner)?;
    let traffic = owner["status"]["traffic"].as_array()?;
    let served =
        traffic.iter().any(|one| one["revision"] == *revision) || owner["status"]["active"]["name"] == *revision;
    served.then(|| format!("taken down while its owner's status still sends it traffic: {write}"))
}

/// A patch of a status that holds anything but the status and the version that it is for.
fn wrong_status(write: &WriteRecord) -> Option<String> {
    if write.subresource.as_deref() != Some("status") || write.verb == "update" {
        return None;
    }
    let outside = write
        .body
        .as_object()?
        .keys()
        .find(|key| !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind"))?;
    Some(format!("a status patch that holds {outside}: {write}"))
}

/// Two observations that arrive together become one write, so a run may be a little shorter than the one without a
/// fault; then its last plans find nothing to hit.
const UNREACHED: usize = 2;

/// Runs a scenario without a fault, then with this fault at each request to write, and fails unless every run comes to
/// the same end and to rest.
pub fn with_each(scenario: &Scenario, seed: u64, kind: FaultKind) {
    let plain = clean(scenario, seed);
    assert!(plain.requests > 0, "{}: the operator wrote nothing:\n{}", scenario.name, plain.timeline);
    let mut failures = Vec::new();
    let mut first = None;
    let mut unreached = 0;
    for at in 1..=plain.requests {
        let run = run(scenario, seed, Some(Fault { at, kind }));
        unreached += usize::from(!run.reached);
        let mut faults = run.faults;
        faults.extend(snapshot::differences(&plain.end, &run.end));
        if !faults.is_empty() {
            failures.push(format!("at write {at}:\n  {}", faults.join("\n  ")));
            first.get_or_insert(run.timeline);
        }
    }
    assert!(
        unreached <= UNREACHED,
        "{}: {unreached} of {} planned faults did not happen",
        scenario.name,
        plain.requests
    );
    if let Some(timeline) = first {
        panic!(
            "{}, seed {seed}, {kind:?}: {} of {} plans fail\n{}\nthe first:\n{timeline}\nwithout the fault:\n{}",
            scenario.name,
            failures.len(),
            plain.requests,
            failures.join("\n"),
            plain.timeline
        );
    }
}

/// Runs a scenario without a fault, and fails unless it comes to rest with every property kept.
pub fn clean(scenario: &Scenario, seed: u64) -> Run {
    let run = run(scenario, seed, None);
    let (name, faults) = (scenario.name, run.faults.join("\n  "));
    assert!(run.faults.is_empty(), "{name}, seed {seed}:\n  {faults}\n{}", run.timeline);
    run
}
