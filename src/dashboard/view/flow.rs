//! The page of a flow.

use jiff::Timestamp;
use serde::Serialize;

use super::experiment::{Course, Earlier, ExperimentView, courses, earlier, experiment};
use super::measure::decimal;
use super::rollout::{Plan, Rollout, rollout};
use super::shared::{
    Badge, Bar, ConditionRow, Fact, INDEX, MODEL, Rejected, Reports, State, Tone, bar, conditions, count, page_path,
    rejected, state,
};
use crate::api::PromptFlow;
use crate::api::prompt_flow::{FlowPhase, FlowTraffic, PromptFlowStatus};
use crate::api::rollout::{Promotion, RolloutPhase};
use crate::gateway::store::{ExperimentPoint, FlowSplit, ShadowCount};

/// What the gateway has kept of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Course of its experiments.
    pub points: &'a [ExperimentPoint],
    /// Figures by arm; `None` for who may not see them.
    pub splits: Option<&'a [FlowSplit]>,
    /// Answers that nobody saw.
    pub shadows: &'a [ShadowCount],
    /// Reports that gates may name.
    pub reports: &'a Reports,
}

/// The page of a flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FlowPage {
    pub namespace: String,
    pub name: String,
    pub state: State,
    pub summary: Option<String>,
    pub facts: Vec<Fact>,
    pub traffic: Bar,
    pub arms: Vec<Arm>,
    pub rollout: Option<Rollout>,
    pub experiment: Option<ExperimentView>,
    pub courses: Vec<Course>,
    pub earlier: Vec<Earlier>,
    pub recorded: Option<Vec<Recorded>>,
    pub shadows: Vec<ShadowRow>,
    pub rejected: Vec<Rejected>,
    pub conditions: Vec<ConditionRow>,
}

/// An entry of the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    pub variant: String,
    pub revision: String,
    pub weight: i32,
    pub colour: usize,
    pub role: &'static str,
}

/// Answers of a revision that nobody saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowRow {
    pub variant: String,
    pub revision: String,
    pub copies: String,
    pub errors: String,
    pub mean: String,
}

/// What was recorded of an arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    pub variant: String,
    pub revision: String,
    pub serves: bool,
    pub units: String,
    pub requests: String,
    pub errors: String,
    pub p50: String,
    pub p95: String,
    pub tokens: String,
    pub cost: String,
    pub feedback: String,
}

/// The state of a flow.
pub fn flow_state(flow: &PromptFlow) -> State {
    let status = flow.status.as_ref();
    let told = state(status.map(|status| status.conditions.as_slice()).unwrap_or_default(), flow.spec.suspend);
    let Some(phase) = status.and_then(|status| status.phase) else { return told };
    let tone = match phase {
        FlowPhase::Serving => Tone::Good,
        FlowPhase::Progressing | FlowPhase::Waiting => Tone::Busy,
        FlowPhase::Holding => Tone::Hold,
        FlowPhase::Degraded | FlowPhase::Failed => Tone::Bad,
        FlowPhase::Suspended => Tone::Off,
    };
    State { badge: Badge::new(tone, format!("{phase:?}")), ..told }
}

/// Whether an entry of the table is on its way.
fn is_candidate(status: &PromptFlowStatus, entry: &FlowTraffic) -> bool {
    let Some(rollout) = &status.rollout else { return false };
    let ended = matches!(rollout.phase, RolloutPhase::Promoted | RolloutPhase::RolledBack);
    let among = |arms: &[crate::api::rollout::ArmRevision]| {
        arms.iter().any(|arm| arm.variant == entry.variant && arm.revision == entry.revision)
    };
    !ended && among(&rollout.candidate) && !among(&rollout.stable)
}

/// The routing table as a bar.
pub fn flow_traffic(status: &PromptFlowStatus) -> Bar {
    bar(status.traffic.iter().map(|entry| (share_name(status, entry), entry.weight, is_candidate(status, entry))))
}

fn share_name(status: &PromptFlowStatus, entry: &FlowTraffic) -> String {
    if is_candidate(status, entry) { format!("{} (candidate)", entry.variant) } else { entry.variant.clone() }
}

/// The view of a flow.
pub fn flow(flow: &PromptFlow, kept: Kept<'_>, now: Timestamp) -> FlowPage {
    let namespace = flow.metadata.namespace.clone().unwrap_or_default();
    let none = PromptFlowStatus::default();
    let status = flow.status.as_ref().unwrap_or(&none);
    let spec = &flow.spec;
    let plan = Plan {
        gated: !spec.rollout.gates.is_empty(),
        shadow: spec.rollout.shadow.as_ref(),
        steps: &spec.rollout.steps,
        manual: spec.experiment.as_ref().is_some_and(|experiment| experiment.promotion == Promotion::Manual),
        reached: reached(status, kept.points),
    };
    let traffic = flow_traffic(status);
    FlowPage {
        name: flow.metadata.name.clone().unwrap_or_default(),
        state: flow_state(flow),
        summary: status.summary.clone(),
        facts: facts(flow, status, &namespace),
        arms: arms(status, &traffic),
        traffic,
        rollout: status.rollout.as_ref().map(|told| rollout(told, plan, &namespace, kept.reports, now)),
        experiment: status.experiment.as_ref().map(|told| experiment(told, spec.experiment.as_ref(), now)),
        courses: courses(kept.points, spec.experiment.as_ref(), now),
        earlier: earlier(kept.points, now),
        recorded: kept.splits.map(|splits| splits.iter().map(|split| recorded(split, status)).collect()),
        shadows: kept.shadows.iter().map(shadow).collect(),
        rejected: rejected(&status.rejected_revisions, now),
        conditions: conditions(&status.conditions, now),
        namespace,
    }
}

fn facts(flow: &PromptFlow, status: &PromptFlowStatus, namespace: &str) -> Vec<Fact> {
    let spec = &flow.spec;
    let mut facts = Vec::new();
    if let Some(url) = &status.url {
        facts.push(Fact::code("URL", url));
    }
    if let Some(revision) = &status.stable_revision {
        facts.push(Fact::code("Revision", revision));
    }
    if let Some(revision) = &status.candidate_revision {
        facts.push(Fact::code("Candidate", revision));
    }
    let unit = spec
        .assignment
        .header
        .as_ref()
        .map_or_else(|| format!("{:?}", spec.assignment.unit), |header| format!("{:?} {header}", spec.assignment.unit));
    facts.push(Fact::text("Split by", unit));
    for binding in spec.models.values() {
        let name = &binding.model_deployment_ref.name;
        facts.push(Fact::link("Model", name, page_path(MODEL, namespace, name)));
    }
    for binding in spec.indexes.values() {
        let name = &binding.rag_index_ref.name;
        facts.push(Fact::link("Index", name, page_path(INDEX, namespace, name)));
    }
    facts.dedup();
    facts
}

/// Entries of the same variant and revision are one here: which units they stand for is of no interest.
fn arms(status: &PromptFlowStatus, traffic: &Bar) -> Vec<Arm> {
    let mut arms: Vec<Arm> = Vec::new();
    for entry in &status.traffic {
        let same = |arm: &&mut Arm| arm.variant == entry.variant && arm.revision == entry.revision;
        if let Some(arm) = arms.iter_mut().find(same) {
            arm.weight = arm.weight.saturating_add(entry.weight);
            continue;
        }
        arms.push(Arm {
            variant: entry.variant.clone(),
            revision: entry.revision.clone(),
            weight: entry.weight,
            colour: traffic
                .parts
                .iter()
                .find(|part| part.name == share_name(status, entry))
                .map_or(0, |part| part.colour),
            role: if is_candidate(status, entry) { "candidate" } else { "" },
        });
    }
    let ramp = arms.iter().any(|arm| arm.role == "candidate");
    for arm in &mut arms {
        if ramp && arm.role.is_empty() {
            arm.role = "stable";
        }
    }
    arms
}

/// The last step that the rollout was measured at.
fn reached(status: &PromptFlowStatus, points: &[ExperimentPoint]) -> Option<i32> {
    let started = status.rollout.as_ref()?.started.0.as_millisecond();
    let of_rollout = points.iter().rev().filter(|point| point.started_ms == Some(started));
    of_rollout.filter_map(|point| point.step).next()
}

fn milliseconds(value: Option<i64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{} ms", count(value)))
}

fn shadow(shadow: &ShadowCount) -> ShadowRow {
    ShadowRow {
        variant: shadow.variant.clone(),
        revision: shadow.revision.clone(),
        copies: count(shadow.copies),
        errors: count(shadow.errors),
        mean: milliseconds(shadow.mean_ms),
    }
}

fn recorded(split: &FlowSplit, status: &PromptFlowStatus) -> Recorded {
    Recorded {
        variant: split.variant.clone(),
        revision: split.revision.clone(),
        serves: status
            .traffic
            .iter()
            .any(|entry| entry.weight > 0 && entry.variant == split.variant && entry.revision == split.revision),
        units: count(split.units),
        requests: count(split.requests),
        errors: count(split.errors),
        p50: milliseconds(split.latency.p50),
        p95: milliseconds(split.latency.p95),
        tokens: format!("{} / {}", count(split.input_tokens), count(split.output_tokens)),
        cost: match (split.cost, &split.currency) {
            (Some(cost), Some(currency)) => format!("{} {currency}", decimal(cost, 4)),
            _ => "–".into(),
        },
        feedback: split
            .feedback
            .mean
            .map_or_else(|| "–".into(), |mean| format!("{} ({})", decimal(mean, 2), count(split.feedback.count))),
    }
}
