//! Shadow copies: while a rollout is in shadow, a share of the requests is answered by the candidate, too, and nobody
//! sees the answer.
//!
//! A copy never makes the request wait that it was made of: it starts when that one has ended. It also keeps away from the
//! requests of others: it waits a moment until the engines it needs are idle, never stands in their queue, gives nothing to
//! their budget of retries, and its failures leave no endpoint out. Copies have their own limit of how many run at a time;
//! one more is dropped and counted. On an engine that is never idle a copy is one more call beside those of users.
//!
//! A program with a step that has side effects is not copied at all.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use uuid::Uuid;

use super::endpoints::{CallError, Target, TargetKind, Unavailable};
use super::flow::{self, FlowError, Pins, Program, Run};
use super::flow_api::{Given, flow_error};
use super::routing::FlowRoute;
use super::server::{Asked, Gateway, Recorder, Subject, milliseconds_now};
use super::store::Assigned;
use crate::experiment::assignment::{BUCKETS, bucket};

/// Stratum of copies.
pub const STRATUM: &str = "shadow";
/// Longest wait of a copy until its engines are idle.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(25);

/// A copy that will be made when its request has ended.
#[derive(Debug)]
pub struct ShadowCopy {
    variant: String,
    revision: String,
    weight: i32,
    program: Arc<Program>,
    given: Given,
}

/// Whether and how a request is copied: chosen by the hash of its id, for the arm that its unit would have in the candidate
/// release. A unit that has this very revision already is not copied.
pub fn plan(
    gateway: &Gateway,
    route: &FlowRoute,
    request: &str,
    unit: &str,
    served: (&str, &str),
    given: &Given,
) -> Option<ShadowCopy> {
    let percent = route.shadow?;
    let share = i32::from(BUCKETS) / 100 * percent;
    if i32::from(bucket(STRATUM, request)) >= share {
        return None;
    }
    let (arm, weight) = route.candidate_arm(unit)?;
    if (arm.variant.as_str(), arm.revision.as_str()) == served {
        return None;
    }
    match route.revisions.get(&arm.revision) {
        Some(program) if !program.has_side_effects() => Some(ShadowCopy {
            variant: arm.variant.clone(),
            revision: arm.revision.clone(),
            weight,
            program: Arc::clone(program),
            given: given.clone(),
        }),
        _ => {
            gateway.metrics.shadow(&route.namespace, &route.name, "skipped");
            None
        }
    }
}

/// Starts a copy, if there is room for one. Returns at once.
pub fn start(gateway: &Arc<Gateway>, copy: ShadowCopy, asked: &Asked, original: &Subject) {
    let place = match Arc::clone(&gateway.shadows).try_acquire_owned() {
        Ok(place) => place,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
            gateway.metrics.shadow(&original.namespace, &original.name, "dropped");
            return;
        }
    };
    let subject = Subject {
        revision: copy.revision.clone(),
        variant: copy.variant.clone(),
        stream: false,
        pinned: false,
        assigned: Some(Assigned { stratum: STRATUM.to_owned(), weight: copy.weight }),
        shadow: true,
        inputs: None,
        ..original.clone()
    };
    let asked = asked.clone();
    tokio::spawn(run(Arc::clone(gateway), copy, asked, subject, place));
}

async fn run(
    gateway: Arc<Gateway>,
    copy: ShadowCopy,
    asked: Asked,
    mut subject: Subject,
    _place: OwnedSemaphorePermit,
) {
    idle(&gateway, &copy.program, &subject).await;
    let asked = Asked { id: Uuid::now_v7().simple().to_string(), time_ms: milliseconds_now(), ..asked };
    let inputs = copy.given.read(&copy.program);
    subject.inputs = inputs.as_ref().ok().cloned();
    let mut recorder = Recorder::start(Arc::clone(&gateway), asked, subject);
    let outcome = match inputs {
        // The candidate takes other inputs than the revision that answered: users would be refused.
        Err(error) => {
            recorder.failed(error.code).await;
            "error"
        }
        Ok(inputs) => answer(&gateway, &copy.program, &inputs, &mut recorder).await,
    };
    gateway.metrics.shadow(&recorder.subject.namespace, &recorder.subject.name, outcome);
}

async fn answer(
    gateway: &Gateway,
    program: &Program,
    inputs: &Map<String, Value>,
    recorder: &mut Recorder,
) -> &'static str {
    let pins = Pins::default();
    let trace = Arc::clone(&recorder.trace);
    let run = Run {
        upstream: &gateway.upstream,
        namespace: &recorder.subject.namespace,
        inputs,
        unit: &recorder.subject.unit,
        pins: &pins,
        trace: &trace,
        deltas: None,
        background: true,
    };
    match flow::run(program, run).await {
        Ok(answer) => {
            recorder.ok(Some(&answer), None).await;
            "ok"
        }
        // Engines had no room beside the requests of users: that says nothing of the candidate.
        Err(FlowError::Call { cause: CallError::Unavailable(Unavailable::Busy(_)), .. }) => {
            recorder.discard();
            "dropped"
        }
        Err(error) => {
            recorder.failed(flow_error(&error).code).await;
            "error"
        }
    }
}

/// Waits until every model of the program has an endpoint with nothing to do, but not for long.
async fn idle(gateway: &Gateway, program: &Program, subject: &Subject) {
    let targets: Vec<Target> = program
        .deployments()
        .map(|name| Target {
            kind: TargetKind::Model,
            namespace: subject.namespace.clone(),
            name: name.to_owned(),
            pin: None,
            unit: subject.unit.clone(),
            background: true,
            counts: false,
        })
        .collect();
    let all_idle = async {
        while !targets.iter().all(|target| gateway.upstream.is_idle(target)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Afterwards it goes on in any case: on a busy engine there would be no copy ever.
    let _ = tokio::time::timeout(PATIENCE, all_idle).await;
}

/// The limit of copies at a time.
pub fn limit(copies: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(copies.min(Semaphore::MAX_PERMITS)))
}
