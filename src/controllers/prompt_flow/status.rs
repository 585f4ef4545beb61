//! How a flow stands, pure.

use kube::ResourceExt;

use super::PromptFlows;
use super::rollout::{Outcome, traffic_of};
use crate::api::conditions::{Observation, find, merge};
use crate::api::prompt_flow::{FlowPhase, FlowTraffic};
use crate::api::rollout::{GateVerdict, RolloutPhase, RolloutStatus};
use crate::api::{PromptFlow, PromptFlowStatus};
use crate::controllers::error::Error;
use crate::controllers::pipeline::{Stage, Verdict, View};
use crate::experiment::SampleRatio;
use crate::rollout::{identity, is_under_way, reason as rollout_reason};

/// Reasons of a flow's conditions: all there are besides those of failed API calls.
#[allow(missing_docs)]
pub mod reason {
    pub const SERVING: &str = "Serving";
    pub const VALID: &str = "Valid";
    pub const RESOLVED: &str = "Resolved";
    pub const PROGRAMMED: &str = "Programmed";
    pub const UP_TO_DATE: &str = "UpToDate";
    pub const NOT_STALLED: &str = "NotStalled";
    pub const NOTHING_TO_SERVE: &str = "NothingToServe";
    pub const LAST_GOOD_SERVES: &str = "LastGoodServes";
    pub const ROLLOUT_IN_PROGRESS: &str = crate::controllers::events::REASON_ROLLOUT;
    pub const ROLLED_BACK: &str = "RolledBack";
    pub const EVALUATION_FAILED: &str = crate::rollout::reason::EVALUATION_FAILED;
    pub const GATES_PASSED: &str = "GatesPassed";
    pub const GATES_NOT_PASSED: &str = "GatesNotPassed";
    pub const GATES_PENDING: &str = "GatesPending";
    pub const GATES_INCONCLUSIVE: &str = "GatesInconclusive";
    pub const SAMPLE_RATIO_OK: &str = "SampleRatioOK";
    pub const SAMPLE_RATIO_MISMATCH: &str = "SampleRatioMismatch";
    pub const SUSPENDED: &str = "Suspended";
    pub const INVALID_SPEC: &str = "InvalidSpec";
    pub const INVALID_TEMPLATE: &str = "InvalidTemplate";
    pub const MODEL_TASK_MISMATCH: &str = "ModelTaskMismatch";
    pub const MODEL_NOT_FOUND: &str = "ModelNotFound";
    pub const MODEL_NOT_READY: &str = "ModelNotReady";
    pub const INDEX_NOT_FOUND: &str = "IndexNotFound";
    pub const INDEX_NOT_READY: &str = "IndexNotReady";
    pub const CONFIG_MAP_NOT_FOUND: &str = "ConfigMapNotFound";
    pub const CONFIG_MAP_KEY_NOT_FOUND: &str = "ConfigMapKeyNotFound";
}

/// The conditions, in the order in which people read them.
const ORDER: [&str; 8] = [
    "Ready",
    "Reconciling",
    "Stalled",
    "Accepted",
    "RefsResolved",
    "GatesPassed",
    "TrafficProgrammed",
    "SampleRatioOK",
];

/// The status after a reconcile.
pub fn verdict(gateway_url: &str, view: &View<'_, PromptFlows>) -> Verdict<PromptFlow> {
    let object = view.object;
    let mut status = view.previous.clone();
    let namespace = object.namespace().unwrap_or_default();
    status.url = Some(format!("{gateway_url}/v1/flows/{namespace}/{}", object.name_any()));
    let mut events = Vec::new();
    let mut again = None;
    let observed = match &view.stage {
        Stage::Suspended => {
            status.phase = Some(FlowPhase::Suspended);
            suspended(&status)
        }
        Stage::Failed { error, .. } => failed(&mut status, error),
        Stage::Done { plan, .. } if plan.notes.postponed => {
            return Verdict { status: view.previous.clone(), again: plan.notes.again, events };
        }
        Stage::Done { validated, plan, .. } => {
            let outcome = &plan.notes;
            events.extend(outcome.notes.iter().cloned());
            again = outcome.again;
            take_over(&mut status, object, outcome);
            let mut observed = match &validated.problem {
                Some(problem) => failed(&mut status, problem),
                None => rolled(&mut status),
            };
            if let Some(Error::Waiting { .. }) = &validated.problem
                && status.rollout.as_ref().is_some_and(is_under_way)
            {
                status.phase = Some(FlowPhase::Holding);
            }
            observed.extend(gates_passed(&status));
            observed.extend(outcome.ratio.as_ref().map(sample_ratio));
            observed
        }
    };
    status.traffic_summary = (!status.traffic.is_empty()).then(|| summary(&status.traffic));
    let generation = object.metadata.generation.unwrap_or_default();
    status.observed_generation = Some(generation);
    let mut conditions = merge(&view.previous.conditions, &observed, generation, view.now);
    // What this reconcile did not look at stays as it was found.
    let mut kept = vec!["Ready", "Reconciling", "Stalled", "Accepted", "RefsResolved", "TrafficProgrammed"];
    if status.experiment.is_some() {
        kept.push("SampleRatioOK");
    }
    if !matches!(view.stage, Stage::Done { .. }) {
        kept.push("GatesPassed");
    }
    for kind in kept {
        if find(&conditions, kind).is_none() {
            conditions.extend(find(&view.previous.conditions, kind).cloned());
        }
    }
    // One order, whichever were looked at: another order would be another status.
    conditions.sort_by_key(|condition| ORDER.iter().position(|kind| *kind == condition.type_));
    status.conditions = conditions;
    Verdict { status, again, events }
}

/// The decision, as the status says it.
fn take_over(status: &mut PromptFlowStatus, object: &PromptFlow, outcome: &Outcome) {
    let decision = &outcome.decision;
    status.stable.clone_from(&decision.stable);
    status.stable_revision = decision.stable.first().map(|first| first.revision.clone());
    status.rollout.clone_from(&decision.state);
    let candidate = decision.state.as_ref().filter(|state| is_under_way(state));
    status.candidate_revision =
        candidate.and_then(|state| identity(&state.candidate, &decision.stable)).map(str::to_owned);
    status.traffic = decision.table.iter().map(traffic_of).collect();
    status.switch.clone_from(&outcome.switch);
    status.rejected_revisions.clone_from(&outcome.rejected);
    status.experiment.clone_from(&outcome.experiment);
    status.last_handled_rollout_request.clone_from(&outcome.handled);
    status.summary = super::summary::line(object, outcome);
}

/// The routing table in one line: `control 70% 3fa9c1d2e0 · concise 30% 81be02aa11`.
pub fn summary(traffic: &[FlowTraffic]) -> String {
    let arm = |arm: &FlowTraffic| format!("{} {}% {}", arm.variant, arm.weight, arm.revision);
    traffic.iter().map(arm).collect::<Vec<_>>().join(" · ")
}

/// Conditions and phase by the rollout, when the spec and its references are well.
fn rolled(status: &mut PromptFlowStatus) -> Vec<Observation> {
    let Some(state) = status.rollout.clone() else {
        status.phase = Some(FlowPhase::Serving);
        return serving(status);
    };
    match state.phase {
        RolloutPhase::Promoted => {
            status.phase = Some(FlowPhase::Serving);
            serving(status)
        }
        RolloutPhase::RolledBack => {
            status.phase = Some(if status.traffic.is_empty() { FlowPhase::Failed } else { FlowPhase::Degraded });
            refused(status, &state)
        }
        RolloutPhase::Holding | RolloutPhase::AwaitingApproval => {
            status.phase = Some(FlowPhase::Holding);
            rolling(status, &state)
        }
        RolloutPhase::Preparing | RolloutPhase::Gating | RolloutPhase::Shadowing | RolloutPhase::Progressing => {
            status.phase = Some(FlowPhase::Progressing);
            rolling(status, &state)
        }
    }
}

fn resolved() -> [Observation; 2] {
    [
        Observation::yes("Accepted", reason::VALID, "the spec is valid"),
        Observation::yes("RefsResolved", reason::RESOLVED, "all models, indexes and ConfigMaps are there"),
    ]
}

fn serving(status: &PromptFlowStatus) -> Vec<Observation> {
    let table = summary(&status.traffic);
    let [accepted, references] = resolved();
    vec![
        Observation::yes("Ready", reason::SERVING, format!("the gateway serves {table}")),
        Observation::no("Reconciling", reason::UP_TO_DATE, "the routing table is what the spec asks for"),
        Observation::no("Stalled", reason::NOT_STALLED, ""),
        accepted,
        references,
        Observation::yes("TrafficProgrammed", reason::PROGRAMMED, table),
    ]
}

/// A rollout is under way: the spec's generation does not serve yet.
fn rolling(status: &PromptFlowStatus, state: &RolloutStatus) -> Vec<Observation> {
    let message = format!("{:?}: {}", state.phase, state.message);
    let programmed = if status.traffic.is_empty() {
        Observation::no("TrafficProgrammed", reason::NOTHING_TO_SERVE, "no revision has ever been served")
    } else {
        Observation::yes("TrafficProgrammed", reason::PROGRAMMED, summary(&status.traffic))
    };
    let [accepted, references] = resolved();
    vec![
        Observation::no("Ready", reason::ROLLOUT_IN_PROGRESS, message.clone()),
        Observation::yes("Reconciling", reason::ROLLOUT_IN_PROGRESS, message),
        Observation::no("Stalled", reason::NOT_STALLED, ""),
        accepted,
        references,
        programmed,
    ]
}

/// The candidate was rejected, and the spec still asks for it.
fn refused(status: &PromptFlowStatus, state: &RolloutStatus) -> Vec<Observation> {
    let candidate = identity(&state.candidate, &status.stable).unwrap_or_default();
    let rejected = status.rejected_revisions.iter().find(|rejected| rejected.revision == candidate);
    let by_gate = rejected.is_some_and(|rejected| rejected.reason == rollout_reason::EVALUATION_FAILED);
    let reason = if by_gate { reason::EVALUATION_FAILED } else { reason::ROLLED_BACK };
    let message = format!(
        "revision {candidate} is rejected: {}; {}; commit another revision, or `llmops promote` tries it again",
        state.message,
        keeps(status)
    );
    let [accepted, references] = resolved();
    vec![
        Observation::no("Ready", reason, message.clone()),
        Observation::no("Reconciling", reason, "waiting for another spec"),
        Observation::yes("Stalled", reason, message),
        accepted,
        references,
        programmed(status),
    ]
}

/// How the gates of the rollout stand, or stood.
fn gates_passed(status: &PromptFlowStatus) -> Option<Observation> {
    let gates = &status.rollout.as_ref().filter(|state| !state.gates.is_empty())?.gates;
    let all = |verdict| gates.iter().filter(move |gate| gate.verdict == verdict);
    let said = |verdict| all(verdict).map(|gate| gate.message.as_str()).collect::<Vec<_>>().join("; ");
    Some(if all(GateVerdict::Failed).next().is_some() {
        Observation::no("GatesPassed", reason::GATES_NOT_PASSED, said(GateVerdict::Failed))
    } else if all(GateVerdict::Inconclusive).next().is_some() {
        Observation::no("GatesPassed", reason::GATES_INCONCLUSIVE, said(GateVerdict::Inconclusive))
    } else if all(GateVerdict::Pending).next().is_some() {
        Observation::unknown("GatesPassed", reason::GATES_PENDING, said(GateVerdict::Pending))
    } else {
        let names: Vec<&str> = gates.iter().map(|gate| gate.evaluation.as_str()).collect();
        Observation::yes("GatesPassed", reason::GATES_PASSED, format!("{} passed", names.join(", ")))
    })
}

fn sample_ratio(ratio: &SampleRatio) -> Observation {
    if ratio.broken {
        Observation::no("SampleRatioOK", reason::SAMPLE_RATIO_MISMATCH, ratio.message.clone())
    } else {
        Observation::yes("SampleRatioOK", reason::SAMPLE_RATIO_OK, "units arrive in the shares that were asked for")
    }
}

fn keeps(status: &PromptFlowStatus) -> String {
    if status.traffic.is_empty() {
        "nothing serves".to_owned()
    } else {
        format!("{} keeps serving", summary(&status.traffic))
    }
}

fn programmed(status: &PromptFlowStatus) -> Observation {
    if status.traffic.is_empty() {
        Observation::no("TrafficProgrammed", reason::NOTHING_TO_SERVE, "no revision has ever been served")
    } else {
        let message = format!("still as the last good spec asked: {}", summary(&status.traffic));
        Observation::no("TrafficProgrammed", reason::LAST_GOOD_SERVES, message)
    }
}

fn failed(status: &mut PromptFlowStatus, error: &Error) -> Vec<Observation> {
    let keeps = keeps(status);
    let reason = error.reason();
    match error {
        Error::Stalled { message, .. } => {
            status.phase = Some(if status.traffic.is_empty() { FlowPhase::Failed } else { FlowPhase::Degraded });
            let refused = format!("spec refused: {message}; {keeps}");
            let mut observed = vec![
                Observation::no("Ready", reason, refused.clone()),
                Observation::no("Reconciling", reason, "waiting for another spec"),
                Observation::yes("Stalled", reason, refused),
                Observation::no("Accepted", reason, message.clone()),
            ];
            if reason == reason::MODEL_TASK_MISMATCH {
                observed.push(Observation::no("RefsResolved", reason, message.clone()));
            }
            observed.push(programmed(status));
            observed
        }
        Error::Waiting { message, .. } => {
            status.phase = Some(if status.traffic.is_empty() { FlowPhase::Waiting } else { FlowPhase::Degraded });
            let waiting = format!("{message}; {keeps}");
            vec![
                Observation::no("Ready", reason, waiting.clone()),
                Observation::yes("Reconciling", reason, waiting),
                Observation::no("Stalled", reason::NOT_STALLED, ""),
                Observation::yes("Accepted", reason::VALID, "the spec is valid"),
                Observation::no("RefsResolved", reason, message.clone()),
                programmed(status),
            ]
        }
        // What may go away by itself says nothing about the spec or the traffic.
        Error::Transient { message, .. } => {
            vec![
                Observation::yes("Reconciling", reason, format!("{message}; trying again, {keeps}")),
                Observation::no("Stalled", reason::NOT_STALLED, ""),
            ]
        }
        Error::Conflict(_) | Error::NotLeader => Vec::new(),
    }
}

fn suspended(status: &PromptFlowStatus) -> Vec<Observation> {
    let message = "spec.suspend is true: changes wait, what serves goes on";
    let ready = if status.traffic.is_empty() {
        Observation::no("Ready", reason::SUSPENDED, "spec.suspend is true and nothing serves yet")
    } else {
        Observation::yes("Ready", reason::SUSPENDED, format!("{message}: {}", summary(&status.traffic)))
    };
    vec![
        ready,
        Observation::no("Reconciling", reason::SUSPENDED, message),
        Observation::no("Stalled", reason::NOT_STALLED, ""),
    ]
}
