//! The first page: all objects, and what needs somebody.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::evaluation::{evaluation_state, run_badge};
use super::experiment;
use super::flow::{flow_state, flow_traffic};
use super::index::{index_state, metric_name};
use super::model::{model_state, model_traffic};
use super::rollout::phase;
use super::shared::{Badge, Bar, EVALUATION, FLOW, INDEX, MODEL, State, Tone, age, namespace_path, page_path};
use crate::api::evaluation::{RunPhase, Verdict};
use crate::api::rollout::{ExperimentVerdict, GateVerdict, RolloutPhase, RolloutStatus};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use crate::gateway::routing::Resources;

/// The first page.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overview {
    pub attention: Vec<Attention>,
    pub namespaces: Vec<Namespace>,
    pub objects: usize,
}

/// Something that needs somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Attention {
    pub tone: Tone,
    pub label: String,
    pub kind: &'static str,
    pub what: String,
    pub path: Option<String>,
    pub message: String,
}

/// The objects of a namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Namespace {
    pub name: String,
    /// Path of the page with only this namespace.
    pub path: String,
    pub rows: Vec<Row>,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub kind: &'static str,
    pub name: String,
    pub path: String,
    pub badge: Badge,
    pub note: String,
    pub revision: String,
    pub traffic: Option<Bar>,
    pub verdict: Option<Badge>,
    pub verdict_note: String,
    pub age: String,
}

/// The view of all objects that may be seen. `problems` are objects that could not be read, with the cause.
pub fn overview(seen: &Resources, problems: &BTreeMap<String, String>, now: Timestamp) -> Overview {
    let mut page = Overview::default();
    let names: BTreeSet<&String> =
        seen.flows.keys().chain(seen.models.keys()).chain(seen.indexes.keys()).chain(seen.evaluations.keys()).collect();
    for namespace in names {
        let mut rows = Vec::new();
        for flow in seen.flows.get(namespace).into_iter().flat_map(BTreeMap::values) {
            page.attention.extend(flow_attention(flow, namespace));
            rows.push(flow_row(flow, namespace, now));
        }
        for evaluation in seen.evaluations.get(namespace).into_iter().flat_map(BTreeMap::values) {
            page.attention.extend(evaluation_attention(evaluation, namespace));
            rows.push(evaluation_row(evaluation, namespace, now));
        }
        for model in seen.models.get(namespace).into_iter().flat_map(BTreeMap::values) {
            page.attention.extend(model_attention(model, namespace));
            rows.push(model_row(model, namespace, now));
        }
        for index in seen.indexes.get(namespace).into_iter().flat_map(BTreeMap::values) {
            page.attention.extend(index_attention(index, namespace));
            rows.push(index_row(index, namespace, now));
        }
        page.objects += rows.len();
        page.namespaces.push(Namespace { name: namespace.clone(), path: namespace_path(namespace), rows });
    }
    page.attention.extend(problems.iter().map(|(what, cause)| Attention {
        tone: Tone::Bad,
        label: "Cannot be read".into(),
        kind: "",
        what: what.clone(),
        path: None,
        message: format!("others serve on, and so does its last version that could be read: {cause}"),
    }));
    page.attention.sort();
    // What is said on top is not said again in the table.
    for row in page.namespaces.iter_mut().flat_map(|namespace| &mut namespace.rows) {
        if page.attention.iter().any(|item| item.path.as_ref() == Some(&row.path) && item.message == row.note) {
            row.note.clear();
        }
    }
    page
}

fn name_of(meta: &kube::core::ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

/// Why an object is not as it should be; nothing where all is well.
fn note(state: &State) -> String {
    if matches!(state.badge.tone, Tone::Good | Tone::Off) { String::new() } else { state.message.clone() }
}

fn needs(state: &State) -> Option<(Badge, String)> {
    let text = if state.message.is_empty() { state.reason.clone() } else { state.message.clone() };
    (state.badge.tone == Tone::Bad).then(|| (state.badge.clone(), text))
}

/// What a rollout waits for, if it needs somebody.
fn rollout_needs(rollout: Option<&RolloutStatus>) -> Option<(Badge, String)> {
    let rollout = rollout?;
    if rollout.phase == RolloutPhase::RolledBack {
        return None;
    }
    if let Some(gate) = rollout.gates.iter().find(|gate| gate.verdict == GateVerdict::Failed) {
        return Some((Badge::new(Tone::Bad, "Gate failed"), format!("{}: {}", gate.evaluation, gate.message)));
    }
    matches!(rollout.phase, RolloutPhase::Holding | RolloutPhase::AwaitingApproval)
        .then(|| (phase(rollout.phase), rollout.message.clone()))
}

fn attention(
    kind: &'static str,
    folder: &str,
    namespace: &str,
    meta: &kube::core::ObjectMeta,
    found: Option<(Badge, String)>,
) -> Option<Attention> {
    let name = name_of(meta);
    found.map(|(badge, message)| Attention {
        tone: badge.tone,
        label: badge.label,
        kind,
        path: Some(page_path(folder, namespace, &name)),
        what: format!("{namespace}/{name}"),
        message,
    })
}

fn flow_attention(flow: &PromptFlow, namespace: &str) -> Option<Attention> {
    let status = flow.status.as_ref();
    let invalid = || {
        let metrics = status?.experiment.as_ref()?.metrics.iter();
        let metric = metrics.into_iter().find(|metric| metric.verdict == ExperimentVerdict::Invalid)?;
        Some((experiment::verdict(metric.verdict), metric.message.clone()))
    };
    let state = flow_state(flow);
    let holds = || (state.badge.tone == Tone::Hold).then(|| (state.badge.clone(), state.message.clone()));
    let found = needs(&state)
        .or_else(|| rollout_needs(status.and_then(|status| status.rollout.as_ref())))
        .or_else(invalid)
        .or_else(holds);
    attention("Flow", FLOW, namespace, &flow.metadata, found)
}

fn flow_row(flow: &PromptFlow, namespace: &str, now: Timestamp) -> Row {
    let state = flow_state(flow);
    let status = flow.status.as_ref();
    let compared = status
        .and_then(|status| status.experiment.as_ref())
        .and_then(|told| told.metrics.iter().find(|metric| metric.goal).or(told.metrics.first()));
    let name = name_of(&flow.metadata);
    Row {
        kind: "Flow",
        path: page_path(FLOW, namespace, &name),
        name,
        note: note(&state),
        badge: state.badge,
        revision: status.and_then(|status| status.stable_revision.clone()).unwrap_or_default(),
        traffic: status.map(flow_traffic).filter(|bar| !bar.parts.is_empty()),
        verdict: compared.map(|metric| experiment::verdict(metric.verdict)),
        verdict_note: status.and_then(|status| status.summary.clone()).unwrap_or_default(),
        age: age(&flow.metadata, now).unwrap_or_default(),
    }
}

fn model_attention(model: &ModelDeployment, namespace: &str) -> Option<Attention> {
    let rollout = model.status.as_ref().and_then(|status| status.rollout.as_ref());
    let found = needs(&model_state(model)).or_else(|| rollout_needs(rollout));
    attention("Model", MODEL, namespace, &model.metadata, found)
}

fn model_row(model: &ModelDeployment, namespace: &str, now: Timestamp) -> Row {
    let state = model_state(model);
    let status = model.status.as_ref();
    let name = name_of(&model.metadata);
    let rollout = status.and_then(|status| status.rollout.as_ref());
    let replicas = status.and_then(|status| status.replicas.as_ref()).filter(|_| model.spec.external.is_none());
    Row {
        kind: "Model",
        path: page_path(MODEL, namespace, &name),
        name,
        note: note(&state),
        badge: state.badge,
        revision: status.and_then(|status| status.stable_revision.clone()).unwrap_or_default(),
        traffic: status.map(model_traffic).filter(|bar| bar.parts.len() > 1),
        verdict: rollout.map(|rollout| phase(rollout.phase)),
        verdict_note: replicas
            .map(|replicas| format!("{} of {} replicas ready", replicas.ready, replicas.desired))
            .unwrap_or_default(),
        age: age(&model.metadata, now).unwrap_or_default(),
    }
}

fn index_attention(index: &RagIndex, namespace: &str) -> Option<Attention> {
    attention("Index", INDEX, namespace, &index.metadata, needs(&index_state(index)))
}

fn index_row(index: &RagIndex, namespace: &str, now: Timestamp) -> Row {
    let state = index_state(index);
    let status = index.status.as_ref();
    let quality = status.map(|status| status.quality.as_slice()).unwrap_or_default();
    let verdict = (!quality.is_empty()).then(|| {
        let passed = quality.iter().all(|metric| metric.passed);
        if passed { Badge::new(Tone::Good, "Passed") } else { Badge::new(Tone::Bad, "Failed") }
    });
    let numbers: Vec<String> =
        quality.iter().map(|metric| format!("{} {}", metric_name(metric), metric.candidate)).collect();
    let name = name_of(&index.metadata);
    Row {
        kind: "Index",
        path: page_path(INDEX, namespace, &name),
        name,
        note: note(&state),
        badge: state.badge,
        revision: status
            .and_then(|status| status.active.as_ref())
            .map(|active| active.name.clone())
            .unwrap_or_default(),
        traffic: None,
        verdict,
        verdict_note: numbers.join(", "),
        age: age(&index.metadata, now).unwrap_or_default(),
    }
}

fn evaluation_attention(evaluation: &Evaluation, namespace: &str) -> Option<Attention> {
    let run = evaluation.status.as_ref().and_then(|status| status.runs.first());
    let found = needs(&evaluation_state(evaluation)).or_else(|| {
        let run = run.filter(|run| !run.stale)?;
        let refused =
            run.phase == RunPhase::Failed || matches!(run.verdict, Some(Verdict::Failed | Verdict::Inconclusive));
        let badge = run_badge(run);
        let label = if run.verdict == Some(Verdict::Failed) { "Gate failed".into() } else { badge.label };
        refused.then(|| (Badge { tone: badge.tone, label }, run.message.clone()))
    });
    attention("Evaluation", EVALUATION, namespace, &evaluation.metadata, found)
}

fn evaluation_row(evaluation: &Evaluation, namespace: &str, now: Timestamp) -> Row {
    let state = evaluation_state(evaluation);
    let run = evaluation.status.as_ref().and_then(|status| status.runs.first());
    let name = name_of(&evaluation.metadata);
    let asked = run.map(|run| run.revisions.iter().map(|asked| asked.revision.as_str()).collect::<Vec<_>>().join(", "));
    let told =
        run.map(|run| if run.stale { format!("stale; {} cases", run.cases) } else { format!("{} cases", run.cases) });
    Row {
        kind: "Evaluation",
        path: page_path(EVALUATION, namespace, &name),
        name,
        note: note(&state),
        badge: state.badge,
        revision: asked.unwrap_or_default(),
        traffic: None,
        verdict: run.map(run_badge),
        verdict_note: told.unwrap_or_default(),
        age: age(&evaluation.metadata, now).unwrap_or_default(),
    }
}
