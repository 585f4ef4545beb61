//! How a flow stands, pure.

use kube::ResourceExt;

use super::PromptFlows;
use super::compile::Compiled;
use crate::api::conditions::{Observation, find, merge};
use crate::api::prompt_flow::{FlowPhase, FlowTraffic};
use crate::api::{PromptFlow, PromptFlowStatus};
use crate::controllers::error::Error;
use crate::controllers::events::Note;
use crate::controllers::pipeline::{Stage, Verdict, View};

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

/// The status after a reconcile.
pub fn verdict(gateway_url: &str, view: &View<'_, PromptFlows>) -> Verdict<PromptFlow> {
    let object = view.object;
    let mut status = view.previous.clone();
    let namespace = object.namespace().unwrap_or_default();
    status.url = Some(format!("{gateway_url}/v1/flows/{namespace}/{}", object.name_any()));
    let mut events = Vec::new();
    let observed = match &view.stage {
        Stage::Suspended => {
            status.phase = Some(FlowPhase::Suspended);
            suspended(&status)
        }
        Stage::Failed { error, .. } => failed(&mut status, error),
        Stage::Done { validated, .. } => {
            let traffic = traffic(validated);
            if !status.traffic.is_empty() && revisions(&traffic) != revisions(&status.traffic) {
                events.push(Note::normal("RevisionServing", format!("{} serves now", summary(&traffic))));
            }
            status.stable_revision = traffic.first().map(|first| first.revision.clone());
            status.traffic = traffic;
            status.phase = Some(FlowPhase::Serving);
            serving(&status)
        }
    };
    status.traffic_summary = (!status.traffic.is_empty()).then(|| summary(&status.traffic));
    let generation = object.metadata.generation.unwrap_or_default();
    status.observed_generation = Some(generation);
    let mut conditions = merge(&view.previous.conditions, &observed, generation, view.now);
    // What this reconcile did not look at stays as it was found.
    for kind in ["Ready", "Reconciling", "Stalled", "Accepted", "RefsResolved", "TrafficProgrammed"] {
        if find(&conditions, kind).is_none() {
            conditions.extend(find(&view.previous.conditions, kind).cloned());
        }
    }
    status.conditions = conditions;
    Verdict { status, again: None, events }
}

fn traffic(compiled: &[Compiled]) -> Vec<FlowTraffic> {
    let of = |variant: &Compiled| FlowTraffic {
        variant: variant.variant.clone(),
        revision: variant.revision.clone(),
        weight: variant.weight,
    };
    compiled.iter().map(of).collect()
}

fn revisions(traffic: &[FlowTraffic]) -> Vec<(&str, &str)> {
    traffic.iter().map(|arm| (arm.variant.as_str(), arm.revision.as_str())).collect()
}

/// The routing table in one line: `control 70% 3fa9c1d2e0 · concise 30% 81be02aa11`.
pub fn summary(traffic: &[FlowTraffic]) -> String {
    let arm = |arm: &FlowTraffic| format!("{} {}% {}", arm.variant, arm.weight, arm.revision);
    traffic.iter().map(arm).collect::<Vec<_>>().join(" · ")
}

fn serving(status: &PromptFlowStatus) -> Vec<Observation> {
    let table = summary(&status.traffic);
    vec![
        Observation::yes("Ready", reason::SERVING, format!("the gateway serves {table}")),
        Observation::no("Reconciling", reason::UP_TO_DATE, "the routing table is what the spec asks for"),
        Observation::no("Stalled", reason::NOT_STALLED, ""),
        Observation::yes("Accepted", reason::VALID, "the spec is valid"),
        Observation::yes("RefsResolved", reason::RESOLVED, "all models, indexes and ConfigMaps are there"),
        Observation::yes("TrafficProgrammed", reason::PROGRAMMED, table),
    ]
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
    let keeps = if status.traffic.is_empty() {
        "nothing serves".to_owned()
    } else {
        format!("{} keeps serving", summary(&status.traffic))
    };
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
