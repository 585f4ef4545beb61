//! Stories, and one run of a story with what goes wrong in it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::sleep;

use crate::faults::{Case, Fault, Sudden};
use crate::properties;
use crate::snapshot::{self, Snapshot};
use crate::world::World;

/// A story: what people and the cluster do, each step once the operator has come to rest.
pub struct Story {
    /// As cases name it: kind and what happens.
    pub name: &'static str,
    /// The kind whose history decides what serves, because some steps ask for what cannot be: without it the end would
    /// be another one, so it is not deleted.
    pub remembers: Option<&'static str>,
    /// How pods behave, and what is there before the operator.
    pub setup: fn(&World),
    /// What happens then. Each looks at what came of the one before, which holds whatever goes wrong.
    pub steps: &'static [fn(&World)],
}

/// What a run showed.
pub struct Run {
    /// The end.
    pub end: Snapshot,
    /// Number of requests to write of the operator before the first restart.
    pub requests: usize,
    /// Milliseconds from each step to the operator's last write.
    pub took: Vec<u128>,
    /// What went wrong.
    pub faults: Vec<String>,
    /// Whether every fault that was planned at a request happened.
    pub reached: bool,
    /// What happened.
    pub timeline: String,
}

/// A runtime with virtual time.
pub fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime starts").block_on(future)
}

/// Runs a story once.
pub fn run(story: &Story, case: &Case) -> Run {
    in_virtual_time(async {
        let mut world = World::with_faults(case.seed, &case.faults);
        world.kept = story.remembers;
        let mut run = Run {
            end: Snapshot::new(),
            requests: 0,
            took: Vec::new(),
            faults: Vec::new(),
            reached: true,
            timeline: String::new(),
        };
        // What a step finds wrong is a fault of the run like the others.
        if let Err(panic) = AssertUnwindSafe(tell(story, case, &world, &mut run)).catch_unwind().await {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("a step panicked");
            run.faults.push(format!("P1: {}", text.split('\n').next().unwrap_or_default()));
        }
        run.reached = !world.network.is_fault_pending();
        run.faults.extend(properties::broken(&world));
        run.end = snapshot::take(&world.server);
        run.timeline = world.timeline();
        run
    })
}

async fn tell(story: &Story, case: &Case, world: &World, run: &mut Run) {
    (story.setup)(world);
    let operator = world.start_replicas(case.replicas);
    for step in 0..=story.steps.len() {
        let (writes, began) = (world.operator_requests(), world.server.now_ms());
        world.go_through(step, &case.faults).await;
        run.took.push(world.operator_writes(writes).last().map_or(0, |last| last.at - began));
        if let Some(next) = story.steps.get(step) {
            world.note(&format!("step {} of {}", step + 1, story.steps.len()));
            next(world);
        }
    }
    run.requests = world.network.requests();
    // A run without faults rests longer: several resyncs, and every watch ends meanwhile.
    let rest_for = Duration::from_secs(if case.faults.is_empty() { 3600 } else { 700 });
    rest(world, rest_for, "at rest", &mut run.faults).await;
    operator.stop().await;
    let operator = world.start_replicas(case.replicas);
    rest(world, rest_for, "after a restart", &mut run.faults).await;
    operator.stop().await;
}

/// Nothing is written for a while that holds at least one resync.
async fn rest(world: &World, time: Duration, when: &str, faults: &mut Vec<String>) {
    let before = world.operator_requests();
    sleep(time).await;
    for write in world.operator_writes(before) {
        faults.push(format!("P2: a write {when}: {write}"));
    }
}

/// How a run differs from one without faults, with everything else that went wrong in it.
pub fn judge(plain: &Run, case: &Case, run: &Run) -> Vec<String> {
    let mut faults = run.faults.clone();
    let differences = if case.faults.iter().any(|fault| fault.leaves_traces()) {
        snapshot::differences(&snapshot::essence(&plain.end), &snapshot::essence(&run.end))
    } else {
        snapshot::differences(&plain.end, &run.end)
    };
    faults.extend(differences.into_iter().map(|difference| format!("P3: {difference}")));
    let only_neighbours = |fault: &Fault| matches!(fault, Fault::Moment(_, _, Sudden::Neighbour(_)));
    if !case.faults.is_empty() && case.faults.iter().all(only_neighbours) {
        for (step, (alone, beside)) in plain.took.iter().zip(&run.took).enumerate() {
            if *beside > alone + DELAY_BY_NEIGHBOURS {
                faults.push(format!("P7: step {step} took {beside} ms beside a bad object, and {alone} ms without"));
            }
        }
    }
    faults
}

/// Jitter and latencies differ between two runs; a bad object that holds others up does so for its deadline of 30 s.
const DELAY_BY_NEIGHBOURS: u128 = 5_000;
