//! Compiled flow + references → ControllerRevisions, pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;

use super::Fetched;
use super::compile::{CompileError, Compiled, compile};
use super::rollout::Outcome;
use super::status::reason;
use super::validate::{Problem, summary};
use crate::api::model_deployment::Task;
use crate::api::names;
use crate::api::prompt_flow::PromptFlowSpec;
use crate::api::{PromptFlow, PromptFlowStatus};
use crate::controllers::apply::{Desired, Removal};
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};
use crate::controllers::pipeline::Plan;

/// Compiles the flow and checks that what it refers to exists and can serve.
///
/// # Errors
/// [`Error::Stalled`] for faults of the spec and of templates, [`Error::Waiting`] for what is missing or not ready.
pub fn resolve(spec: &PromptFlowSpec, fetched: &Fetched) -> Result<Vec<Compiled>, Error> {
    let compiled = compile(spec, &fetched.config_maps);
    if let Err(CompileError::Spec(problems)) = &compiled {
        return Err(Error::stalled(reason::INVALID_SPEC, summary(problems)));
    }
    references(spec, fetched)?;
    let compiled = compiled.map_err(|error| match error {
        CompileError::Missing { config_map, key_only, problems } => {
            let reason = if key_only { reason::CONFIG_MAP_KEY_NOT_FOUND } else { reason::CONFIG_MAP_NOT_FOUND };
            Error::waiting(Reference::new(Kind::ConfigMap, config_map), reason, summary(&problems))
        }
        CompileError::Spec(problems) => Error::stalled(reason::INVALID_SPEC, summary(&problems)),
        CompileError::Template(problems) => Error::stalled(reason::INVALID_TEMPLATE, summary(&problems)),
    })?;
    servable(spec, fetched)?;
    Ok(compiled)
}

/// What is referred to must exist and be of the right sort. All that is missing is named at once.
fn references(spec: &PromptFlowSpec, fetched: &Fetched) -> Result<(), Error> {
    let mut missing: Vec<(Reference, &'static str, Problem)> = Vec::new();
    let mut wrong = Vec::new();
    for (alias, binding) in &spec.models {
        let name = &binding.model_deployment_ref.name;
        let field = format!("spec.models.{alias}.modelDeploymentRef");
        match fetched.models.get(name) {
            None => missing.push((
                Reference::new(Kind::ModelDeployment, name),
                reason::MODEL_NOT_FOUND,
                Problem::new(field, format!("there is no ModelDeployment `{name}` in the namespace; create it")),
            )),
            Some(model) if model.task != Task::Chat => wrong.push(Problem::new(
                field,
                format!("ModelDeployment `{name}` has task {:?}; nodes can only ask models with task Chat", model.task),
            )),
            Some(_) => {}
        }
    }
    for (alias, binding) in &spec.indexes {
        let name = &binding.rag_index_ref.name;
        if !fetched.indexes.contains_key(name) {
            missing.push((
                Reference::new(Kind::RagIndex, name),
                reason::INDEX_NOT_FOUND,
                Problem::new(
                    format!("spec.indexes.{alias}.ragIndexRef"),
                    format!("there is no RagIndex `{name}` in the namespace; create it"),
                ),
            ));
        }
    }
    if !wrong.is_empty() {
        return Err(Error::stalled(reason::MODEL_TASK_MISMATCH, summary(&wrong)));
    }
    let Some((on, reason, _)) = missing.first() else { return Ok(()) };
    let problems: Vec<Problem> = missing.iter().map(|(_, _, problem)| problem.clone()).collect();
    Err(Error::waiting(on.clone(), reason, summary(&problems)))
}

/// A flow takes traffic when each model and index has something that serves; one that did and is down for a moment
/// is the gateway's business.
fn servable(spec: &PromptFlowSpec, fetched: &Fetched) -> Result<(), Error> {
    for (alias, binding) in &spec.models {
        let name = &binding.model_deployment_ref.name;
        if fetched.models.get(name).is_some_and(|model| !model.servable) {
            return Err(Error::waiting(
                Reference::new(Kind::ModelDeployment, name),
                reason::MODEL_NOT_READY,
                format!(
                    "spec.models.{alias}: ModelDeployment `{name}` has no revision that serves yet; `kubectl describe mdep {name}` says why"
                ),
            ));
        }
    }
    for (alias, binding) in &spec.indexes {
        let name = &binding.rag_index_ref.name;
        if fetched.indexes.get(name) == Some(&false) {
            return Err(Error::waiting(
                Reference::new(Kind::RagIndex, name),
                reason::INDEX_NOT_READY,
                format!(
                    "spec.indexes.{alias}: RagIndex `{name}` has no generation that serves yet; `kubectl describe rag {name}` says why"
                ),
            ));
        }
    }
    Ok(())
}

/// The revisions that should exist. They are created before the status names them; old ones go beyond the limit, but
/// never one that takes traffic, now or in the table that the gateway may still hold.
///
/// # Errors
/// When a revision cannot be written as JSON.
pub fn plan(
    object: &PromptFlow,
    fetched: &Fetched,
    compiled: &[Compiled],
    outcome: Outcome,
) -> Result<Plan<PromptFlow, Outcome>, Error> {
    let flow = object.name_any();
    let existing: BTreeMap<String, i64> =
        fetched.revisions.iter().map(|revision| (revision.name_any(), revision.revision)).collect();
    let mut next = existing.values().max().copied().unwrap_or(0);
    let mut desired = Vec::new();
    let mut named = BTreeSet::new();
    for variant in compiled {
        let name = names::flow_revision(&flow, &variant.revision);
        if !named.insert(name.clone()) {
            continue;
        }
        let number = existing.get(&name).copied().unwrap_or_else(|| {
            next += 1;
            next
        });
        desired.push(Desired::once(&revision(&flow, &name, number, variant)?)?);
    }
    named.extend(in_use(object.status.as_ref(), &outcome).map(|revision| names::flow_revision(&flow, revision)));
    let mut idle: Vec<(i64, &String)> =
        existing.iter().filter(|(name, _)| !named.contains(*name)).map(|(name, number)| (*number, name)).collect();
    idle.sort_by(|a, b| b.cmp(a));
    let kept = usize::try_from(object.spec.rollout.history_limit).unwrap_or(0);
    let removals =
        idle.into_iter().skip(kept).map(|(_, name)| Removal::new(Kind::ControllerRevision, name.as_str())).collect();
    Ok(Plan { record: None, desired, removals, notes: outcome })
}

/// Revisions that serve, may serve at a gateway that is behind, or are on their way or refused and still asked for.
fn in_use<'a>(status: Option<&'a PromptFlowStatus>, outcome: &'a Outcome) -> impl Iterator<Item = &'a str> {
    let tables = status.into_iter().flat_map(|status| {
        let from = status.switch.iter().flat_map(|switch| &switch.from);
        status.traffic.iter().chain(from).map(|arm| arm.revision.as_str())
    });
    let before = status.into_iter().flat_map(|status| status.rollout.iter().map(|state| &state.candidate));
    let decision = &outcome.decision;
    let after = decision.state.iter().map(|state| &state.candidate).chain([&decision.stable, &decision.table]);
    tables.chain(before.chain(after).flatten().map(|arm| arm.revision.as_str()))
}

fn revision(flow: &str, name: &str, number: i64, variant: &Compiled) -> Result<ControllerRevision, Error> {
    let data = serde_json::to_value(&variant.content).map_err(|error| {
        Error::stalled(reason::INVALID_SPEC, format!("the flow cannot be written as JSON: {error}"))
    })?;
    let labels = [
        (names::LABEL_COMPONENT, names::COMPONENT_FLOW),
        (names::LABEL_OWNER, flow),
        (names::LABEL_REVISION, variant.revision.as_str()),
    ];
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    })
}
