//! What an Evaluation asks: a candidate while it is on its way to serve, else what serves. Pure.
//!
//! A candidate stays the subject until its rollout ends: a verdict that let it into its ramp must not become one about the past meanwhile.

use std::collections::BTreeSet;

use kube::ResourceExt;

use super::fetch::Fetched;
use super::reason;
use crate::api::conditions::{find, is_true};
use crate::api::evaluation::{Dependency, EvaluatedRevision, EvaluationSpec};
use crate::api::flow_revision::FlowRevision;
use crate::api::model_deployment::Task;
use crate::api::prompt_flow::Input;
use crate::api::rag_index::CandidatePhase;
use crate::api::rollout::{GateRef, RolloutPhase, RolloutStatus};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex, names};
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};
use crate::evaluator::plan::{INDEX, MODEL, PlannedTarget};

/// What a run asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The object.
    pub target: PlannedTarget,
    /// Its revisions.
    pub revisions: Vec<EvaluatedRevision>,
    /// What these use.
    pub dependencies: Vec<Dependency>,
}

/// Arms of a flow that may be asked, the preferred ones first: variant and revision.
pub fn arms(flow: &PromptFlow) -> Vec<Vec<EvaluatedRevision>> {
    let Some(status) = &flow.status else { return Vec::new() };
    let mut choices: Vec<Vec<(&String, &String)>> = Vec::new();
    if let Some(rollout) = status.rollout.as_ref().filter(|rollout| is_under_way(rollout)) {
        choices.push(rollout.candidate.iter().map(|arm| (&arm.variant, &arm.revision)).collect());
    }
    // A candidate whose contents are not there yet leaves what serves as the subject, and only then.
    let prepares = status.rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Preparing);
    if choices.is_empty() || prepares {
        choices.push(status.stable.iter().map(|arm| (&arm.variant, &arm.revision)).collect());
        choices.push(status.traffic.iter().map(|arm| (&arm.variant, &arm.revision)).collect());
    }
    let mut known = Vec::new();
    for choice in choices.into_iter().filter(|choice| !choice.is_empty()) {
        let mut seen = BTreeSet::new();
        let first_of_each = choice.into_iter().filter(|(variant, _)| seen.insert(*variant));
        let arms = first_of_each
            .map(|(variant, revision)| EvaluatedRevision { variant: variant.clone(), revision: revision.clone() });
        known.push(arms.collect());
    }
    known
}

fn is_under_way(rollout: &RolloutStatus) -> bool {
    !matches!(rollout.phase, RolloutPhase::Promoted | RolloutPhase::RolledBack)
}

/// What the Evaluation asks now.
///
/// # Errors
/// `Waiting` for what is missing or has no revision yet, `Stalled` for a target that cannot be asked.
pub fn subject(object: &Evaluation, fetched: &Fetched) -> Result<Subject, Error> {
    let target = &object.spec.target;
    if let Some(reference) = &target.prompt_flow_ref {
        return flow(object, fetched, &reference.name);
    }
    if let Some(reference) = &target.model_deployment_ref {
        return model(fetched, &reference.name);
    }
    let name = target.rag_index_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    index(fetched, name)
}

fn flow(object: &Evaluation, fetched: &Fetched, name: &str) -> Result<Subject, Error> {
    let flow = fetched.flow.as_ref().ok_or_else(|| not_found(Kind::PromptFlow, "promptFlowRef", name))?;
    let waiting = |why: String| {
        let on = Reference::new(Kind::PromptFlow, name);
        Error::waiting(on, reason::TARGET_NOT_READY, format!("waiting for PromptFlow {name:?}: {why}"))
    };
    let choices = arms(flow);
    let complete =
        |arms: &&Vec<EvaluatedRevision>| arms.iter().all(|arm| fetched.revisions.contains_key(&arm.revision));
    let Some(arms) = choices.iter().find(complete) else {
        if let Some(missing) =
            choices.first().into_iter().flatten().find(|arm| !fetched.revisions.contains_key(&arm.revision))
        {
            let object = names::flow_revision(name, &missing.revision);
            let on = Reference::new(Kind::ControllerRevision, &object);
            let message = format!("waiting for PromptFlow {name:?}: ControllerRevision {object:?} is not there yet");
            return Err(Error::waiting(on, reason::TARGET_NOT_READY, message));
        }
        let conditions = flow.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        return Err(waiting(match find(conditions, "Ready") {
            Some(ready) if !ready.message.is_empty() => format!("it has no revision yet: {}", ready.message),
            _ => "it has no revision yet".into(),
        }));
    };
    let revisions = wanted(&object.spec, flow, arms, waiting)?;
    let contents: Vec<&FlowRevision> =
        revisions.iter().filter_map(|arm| fetched.revisions.get(&arm.revision)).collect();
    // The inputs of the revisions, not of the spec, whose revision may be another one or be refused. Descriptions are for people and
    // change no answer, so they must not start a run.
    let inputs = contents.iter().rev().flat_map(|content| &content.inputs);
    let inputs = inputs.map(|(name, input)| (name.clone(), Input { description: String::new(), ..input.clone() }));
    let target = PlannedTarget::Flow { name: name.to_owned(), inputs: inputs.collect() };
    let dependencies = dependencies(&object.name_any(), name, &contents, fetched)?;
    Ok(Subject { target, revisions, dependencies })
}

/// The arms that the spec names, or all.
fn wanted(
    spec: &EvaluationSpec,
    flow: &PromptFlow,
    arms: &[EvaluatedRevision],
    waiting: impl Fn(String) -> Error,
) -> Result<Vec<EvaluatedRevision>, Error> {
    let declared: Vec<&str> = match flow.spec.variants.as_slice() {
        [] => vec!["control"],
        variants => variants.iter().map(|variant| variant.name.as_str()).collect(),
    };
    let named = spec.variants.iter().map(|variant| ("spec.variants", variant));
    let gated = spec.gates.iter().flat_map(|gate| &gate.variants).map(|variant| ("spec.gates[].variants", variant));
    for (field, variant) in named.chain(gated) {
        if arms.iter().any(|arm| arm.variant == *variant) {
            continue;
        }
        if declared.contains(&variant.as_str()) {
            return Err(waiting(format!("variant {variant:?} has no revision yet")));
        }
        let name = flow.name_any();
        let declared = declared.join(", ");
        let message = format!("{field}: PromptFlow {name:?} has no variant {variant:?}; it has {declared}");
        return Err(Error::stalled(reason::UNKNOWN_VARIANT, message));
    }
    let is_wanted = |arm: &&EvaluatedRevision| spec.variants.is_empty() || spec.variants.contains(&arm.variant);
    Ok(arms.iter().filter(is_wanted).cloned().collect())
}

/// The revisions of models and generations of indexes with which the flow's revisions answer.
fn dependencies(
    evaluation: &str,
    flow: &str,
    contents: &[&FlowRevision],
    fetched: &Fetched,
) -> Result<Vec<Dependency>, Error> {
    let models: BTreeSet<&String> =
        contents.iter().flat_map(|content| content.models.values().map(|model| &model.deployment)).collect();
    let indexes: BTreeSet<&String> = contents.iter().flat_map(|content| content.indexes.values()).collect();
    let mut found = Vec::new();
    for name in models {
        let model = fetched.models.get(name);
        let revision = model.and_then(|model| {
            let gated = names_gate(&model.spec.rollout.gates, evaluation);
            candidate_of_model(model).filter(|_| gated).or(model.status.as_ref()?.stable_revision.as_deref())
        });
        let revision = revision.ok_or_else(|| unserved(flow, Kind::ModelDeployment, name, model.is_some()))?;
        found.push(Dependency { kind: MODEL.into(), name: name.clone(), revision: revision.to_owned() });
    }
    for name in indexes {
        let index = fetched.indexes.get(name);
        let generation = index.and_then(|index| {
            let gates = index.spec.gates.as_ref().map(|gates| gates.evaluations.as_slice()).unwrap_or_default();
            candidate_of_index(index).filter(|_| names_gate(gates, evaluation)).or(active_of_index(index))
        });
        let generation = generation.ok_or_else(|| unserved(flow, Kind::RagIndex, name, index.is_some()))?;
        found.push(Dependency { kind: INDEX.into(), name: name.clone(), revision: generation.to_owned() });
    }
    Ok(found)
}

fn unserved(flow: &str, kind: Kind, name: &str, exists: bool) -> Error {
    let problem = if exists { "has nothing that serves yet" } else { "does not exist; create it" };
    let message = format!("waiting for {kind} {name:?}, which PromptFlow {flow:?} uses: it {problem}");
    Error::waiting(Reference::new(kind, name), reason::TARGET_NOT_READY, message)
}

fn names_gate(gates: &[GateRef], evaluation: &str) -> bool {
    gates.iter().any(|gate| gate.evaluation_ref.name == evaluation)
}

/// The revision of a model that is gated or ramps. While it is prepared, its pods cannot answer.
fn candidate_of_model(model: &ModelDeployment) -> Option<&str> {
    let rollout = model.status.as_ref()?.rollout.as_ref()?;
    let answers = is_under_way(rollout) && rollout.phase != RolloutPhase::Preparing;
    rollout.candidate.first().filter(|_| answers).map(|arm| arm.revision.as_str())
}

fn candidate_of_index(index: &RagIndex) -> Option<&str> {
    let candidate = index.status.as_ref()?.candidate.as_ref()?;
    match candidate.phase {
        CandidatePhase::Gating | CandidatePhase::AwaitingApproval => candidate.name.as_deref(),
        CandidatePhase::Building | CandidatePhase::Starting | CandidatePhase::Failed => None,
    }
}

fn active_of_index(index: &RagIndex) -> Option<&str> {
    index.status.as_ref()?.active.as_ref().map(|active| active.name.as_str())
}

fn model(fetched: &Fetched, name: &str) -> Result<Subject, Error> {
    let kind = Kind::ModelDeployment;
    let model = fetched.models.get(name).ok_or_else(|| not_found(kind, "modelDeploymentRef", name))?;
    if model.spec.task != Task::Chat {
        return Err(Error::stalled(
            reason::INVALID_SPEC,
            format!(
                "spec.target.modelDeploymentRef: ModelDeployment {name:?} has task {:?}; only Chat can be evaluated",
                model.spec.task
            ),
        ));
    }
    let stable = model.status.as_ref().and_then(|status| status.stable_revision.as_deref());
    let revision = candidate_of_model(model).or(stable).ok_or_else(|| {
        let message = format!("waiting for {kind} {name:?}: it has no revision that answers yet");
        Error::waiting(Reference::new(kind, name), reason::TARGET_NOT_READY, message)
    })?;
    Ok(Subject {
        target: PlannedTarget::Model { name: name.to_owned(), cost: model.spec.cost.clone() },
        revisions: vec![EvaluatedRevision { variant: name.to_owned(), revision: revision.to_owned() }],
        dependencies: Vec::new(),
    })
}

fn index(fetched: &Fetched, name: &str) -> Result<Subject, Error> {
    let kind = Kind::RagIndex;
    let index = fetched.indexes.get(name).ok_or_else(|| not_found(kind, "ragIndexRef", name))?;
    let generation = candidate_of_index(index).or(active_of_index(index)).ok_or_else(|| {
        let message = format!("waiting for {kind} {name:?}: it has no generation that answers yet");
        Error::waiting(Reference::new(kind, name), reason::TARGET_NOT_READY, message)
    })?;
    Ok(Subject {
        target: PlannedTarget::Index { name: name.to_owned(), filters: index.spec.retrieval.require_filters.clone() },
        revisions: vec![EvaluatedRevision { variant: name.to_owned(), revision: generation.to_owned() }],
        dependencies: Vec::new(),
    })
}

fn not_found(kind: Kind, field: &str, name: &str) -> Error {
    let on = Reference::new(kind, name);
    let message =
        format!("spec.target.{field}: there is no {kind} {name:?} in this namespace; create it or correct the name");
    Error::waiting(on, reason::TARGET_NOT_FOUND, message)
}

/// What keeps a run from starting now: something that it would ask cannot answer. Nothing keeps a run that has started.
///
/// # Errors
/// `Waiting`, naming the object.
pub fn can_answer(subject: &Subject, fetched: &Fetched) -> Result<(), Error> {
    let used = |kind: &'static str| subject.dependencies.iter().filter(move |used| used.kind == kind);
    let own = match &subject.target {
        PlannedTarget::Model { name, .. } => (Some(name), None),
        PlannedTarget::Index { name, .. } => (None, Some(name)),
        PlannedTarget::Flow { .. } => (None, None),
    };
    for name in used(MODEL).map(|used| &used.name).chain(own.0) {
        let Some(model) = fetched.models.get(name) else { continue };
        let conditions = model.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        // A candidate answers by its own pods, whatever the old ones do.
        if candidate_of_model(model).is_none() && !is_true(conditions, "Available") {
            return Err(unanswering(Kind::ModelDeployment, name, conditions));
        }
    }
    for name in used(INDEX).map(|used| &used.name).chain(own.1) {
        let Some(index) = fetched.indexes.get(name) else { continue };
        let conditions = index.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if candidate_of_index(index).is_none() && !is_true(conditions, "Ready") {
            return Err(unanswering(Kind::RagIndex, name, conditions));
        }
    }
    Ok(())
}

fn unanswering(
    kind: Kind,
    name: &str,
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
) -> Error {
    let why = match find(conditions, "Ready") {
        Some(ready) if !ready.message.is_empty() => format!("it does not answer: {}", ready.message),
        _ => "it does not answer".into(),
    };
    let message = format!("waiting for {kind} {name:?}: {why}");
    Error::waiting(Reference::new(kind, name), reason::TARGET_NOT_READY, message)
}
