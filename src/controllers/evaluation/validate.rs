//! Checks an Evaluation and makes the plan of its run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::fetch::Fetched;
use super::reason;
use crate::api::conditions::{find, is_true};
use crate::api::evaluation::{EvaluatedRevision, EvaluationSpec, Gate};
use crate::api::model_deployment::Task;
use crate::api::prompt_flow::Input;
use crate::api::{Evaluation, ModelDeployment, PromptFlow};
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};
use crate::evaluator::dataset;
use crate::evaluator::metrics::Scorer;
use crate::evaluator::plan::{EvaluationPlan, PlannedDataset, PlannedTarget};

/// An Evaluation that can run.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedEvaluation {
    /// The run.
    pub plan: EvaluationPlan,
    /// Cases of the dataset.
    pub cases: usize,
}

/// Checks everything, the spec's own faults first, and plans the run.
///
/// # Errors
/// `Stalled` for spec and dataset, `Waiting` for what is missing or not ready.
pub fn validate(object: &Evaluation, fetched: &Fetched, gateway_url: &str) -> Result<ValidatedEvaluation, Error> {
    let spec = &object.spec;
    check_spec(spec)?;
    let text = dataset_text(spec, fetched)?;
    let limit = spec.dataset.limit.map(|limit| u32::try_from(limit).unwrap_or(1));
    let wrong = |error: dataset::DatasetError| {
        let source = &spec.dataset.config_map_ref;
        let place = format!("spec.dataset: ConfigMap {:?}, key {:?}", source.name, source.key);
        Error::stalled(reason::INVALID_DATASET, format!("{place}: {error}"))
    };
    let columns = &spec.dataset.columns;
    let cases = dataset::parse(text, columns, limit.map(|limit| limit as usize)).map_err(wrong)?;
    let target = target(object, fetched)?;
    dataset::check(&cases, &target, &spec.metrics, columns).map_err(wrong)?;
    let revisions = revisions(spec, fetched)?;
    let mut plan = EvaluationPlan {
        gateway_url: gateway_url.to_owned(),
        run: String::new(),
        namespace: object.namespace().unwrap_or_default(),
        evaluation: object.name_any(),
        target,
        revisions,
        dataset: PlannedDataset {
            config_map: spec.dataset.config_map_ref.name.clone(),
            key: spec.dataset.config_map_ref.key.clone(),
            digest: dataset::digest(text),
            columns: columns.clone(),
            limit,
        },
        metrics: spec.metrics.clone(),
        gates: spec.gates.clone(),
        repeats: u32::try_from(spec.repeats).unwrap_or(1),
        concurrency: u32::try_from(spec.concurrency).unwrap_or(1),
        budget: spec.budget.clone(),
        report: spec.report.clone(),
    };
    plan.run = plan.run_name(spec.trigger.on_revision).map_err(|error| {
        Error::stalled(reason::INVALID_SPEC, format!("spec: it cannot be written as JSON: {error}"))
    })?;
    Ok(ValidatedEvaluation { plan, cases: cases.len() })
}

/// Checks what the spec alone shows, also without a cluster.
///
/// # Errors
/// `Stalled`, naming the field.
pub fn check_spec(spec: &EvaluationSpec) -> Result<(), Error> {
    let wrong = |message: String| Err(Error::stalled(reason::INVALID_SPEC, message));
    if spec.target.prompt_flow_ref.is_some() == spec.target.model_deployment_ref.is_some() {
        return wrong("spec.target: set exactly one of promptFlowRef and modelDeploymentRef".into());
    }
    if spec.target.model_deployment_ref.is_some() && !spec.variants.is_empty() {
        return wrong("spec.variants: a ModelDeployment has no variants; remove the field".into());
    }
    if spec.metrics.is_empty() {
        return wrong("spec.metrics: name at least one metric".into());
    }
    let mut names = BTreeSet::new();
    for (index, metric) in spec.metrics.iter().enumerate() {
        if !names.insert(metric.name.as_str()) {
            return wrong(format!("spec.metrics[{index}].name: {:?} is there twice", metric.name));
        }
        if let Err(error) = Scorer::new(metric) {
            return wrong(format!("spec.metrics[{index}].pattern: {error}"));
        }
    }
    for (index, gate) in spec.gates.iter().enumerate() {
        if let Err(problem) = check_gate(spec, &names, gate) {
            return wrong(format!("spec.gates[{index}]{problem}"));
        }
    }
    let timeout = spec.budget.timeout;
    if timeout.is_negative() || std::time::Duration::from(timeout).is_zero() {
        return wrong(format!("spec.budget.timeout: {timeout} is not above zero"));
    }
    if spec.budget.max_cost.as_ref().is_some_and(|cost| cost.value().is_none_or(|cost| cost <= 0.0)) {
        return wrong("spec.budget.maxCost: write a decimal number above zero, such as \"0.50\"".into());
    }
    Ok(())
}

fn check_gate(spec: &EvaluationSpec, metrics: &BTreeSet<&str>, gate: &Gate) -> Result<(), String> {
    if !metrics.contains(gate.metric.as_str()) {
        let known = metrics.iter().copied().collect::<Vec<_>>().join(", ");
        return Err(format!(".metric: spec.metrics has no {:?}; it has {known}", gate.metric));
    }
    let (field, threshold) = match (&gate.min, &gate.max) {
        (Some(min), None) => ("min", min),
        (None, Some(max)) => ("max", max),
        _ => return Err(": set exactly one of min and max".into()),
    };
    if threshold.value().is_none() {
        return Err(format!(".{field}: {:?} is no decimal number; write one such as \"0.80\"", threshold.0));
    }
    match gate.variants.iter().find(|variant| !spec.variants.is_empty() && !spec.variants.contains(variant)) {
        Some(variant) => {
            Err(format!(".variants: {variant:?} is not evaluated; spec.variants has {}", spec.variants.join(", ")))
        }
        None => Ok(()),
    }
}

fn dataset_text<'a>(spec: &EvaluationSpec, fetched: &'a Fetched) -> Result<&'a str, Error> {
    let source = &spec.dataset.config_map_ref;
    let missing = |problem: String| {
        let on = Reference::new(Kind::ConfigMap, &source.name);
        Error::waiting(on, reason::DATASET_NOT_FOUND, format!("spec.dataset.configMapRef: {problem}"))
    };
    let Some(config_map) = &fetched.dataset else {
        return Err(missing(format!("there is no ConfigMap {:?} in this namespace; create it", source.name)));
    };
    let data = config_map.data.as_ref();
    data.and_then(|data| data.get(&source.key)).map(String::as_str).ok_or_else(|| {
        let keys = data.into_iter().flatten().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
        let known = if keys.is_empty() { "it has no data".to_owned() } else { format!("it has {keys}") };
        missing(format!("ConfigMap {:?} has no key {:?}; {known}", source.name, source.key))
    })
}

fn target(object: &Evaluation, fetched: &Fetched) -> Result<PlannedTarget, Error> {
    let target = &object.spec.target;
    if let Some(reference) = &target.prompt_flow_ref {
        let flow =
            fetched.flow.as_ref().ok_or_else(|| not_found(Kind::PromptFlow, "promptFlowRef", &reference.name))?;
        // Descriptions are for people and change no answer, so they must not start a run.
        let inputs = flow
            .spec
            .inputs
            .iter()
            .map(|(name, input)| (name.clone(), Input { description: String::new(), ..input.clone() }));
        return Ok(PlannedTarget::Flow { name: reference.name.clone(), inputs: inputs.collect::<BTreeMap<_, _>>() });
    }
    let name = target.model_deployment_ref.as_ref().map(|reference| reference.name.clone()).unwrap_or_default();
    let model = fetched.model.as_ref().ok_or_else(|| not_found(Kind::ModelDeployment, "modelDeploymentRef", &name))?;
    if model.spec.task != Task::Chat {
        return Err(Error::stalled(
            reason::INVALID_SPEC,
            format!(
                "spec.target.modelDeploymentRef: ModelDeployment {name:?} has task {:?}; only Chat can be evaluated",
                model.spec.task
            ),
        ));
    }
    Ok(PlannedTarget::Model { name, cost: model.spec.cost.clone() })
}

fn not_found(kind: Kind, field: &str, name: &str) -> Error {
    let on = Reference::new(kind, name);
    let message =
        format!("spec.target.{field}: there is no {kind} {name:?} in this namespace; create it or correct the name");
    Error::waiting(on, reason::TARGET_NOT_FOUND, message)
}

/// The revisions to ask: those that the target's present spec gave.
fn revisions(spec: &EvaluationSpec, fetched: &Fetched) -> Result<Vec<EvaluatedRevision>, Error> {
    match (&fetched.flow, &fetched.model) {
        (Some(flow), _) => flow_revisions(spec, flow),
        (None, Some(model)) => model_revision(model).map(|revision| vec![revision]),
        (None, None) => Ok(Vec::new()),
    }
}

fn flow_revisions(spec: &EvaluationSpec, flow: &PromptFlow) -> Result<Vec<EvaluatedRevision>, Error> {
    let name = flow.name_any();
    let declared: Vec<&str> = match flow.spec.variants.as_slice() {
        [] => vec!["control"],
        variants => variants.iter().map(|variant| variant.name.as_str()).collect(),
    };
    let named = spec.variants.iter().map(|variant| ("spec.variants", variant));
    let gated = spec.gates.iter().flat_map(|gate| &gate.variants).map(|variant| ("spec.gates[].variants", variant));
    for (field, variant) in named.chain(gated) {
        if !declared.contains(&variant.as_str()) {
            let message =
                format!("{field}: PromptFlow {name:?} has no variant {variant:?}; it has {}", declared.join(", "));
            return Err(Error::stalled(reason::UNKNOWN_VARIANT, message));
        }
    }
    let status = flow.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation) == flow.metadata.generation;
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let not_ready = |why: String| {
        let on = Reference::new(Kind::PromptFlow, &name);
        Error::waiting(on, reason::TARGET_NOT_READY, format!("waiting for PromptFlow {name:?}: {why}"))
    };
    if !observed {
        return Err(not_ready("its present spec is not looked at yet".into()));
    }
    if !is_true(conditions, "Ready") {
        return Err(not_ready(why_not_ready(conditions)));
    }
    let traffic = status.map(|status| status.traffic.as_slice()).unwrap_or_default();
    let wanted = declared
        .into_iter()
        .filter(|variant| spec.variants.is_empty() || spec.variants.iter().any(|name| name == variant));
    wanted
        .map(|variant| {
            let row = traffic.iter().find(|row| row.variant == variant);
            let row = row.ok_or_else(|| not_ready(format!("variant {variant:?} has no revision yet")))?;
            Ok(EvaluatedRevision { variant: row.variant.clone(), revision: row.revision.clone() })
        })
        .collect()
}

fn model_revision(model: &ModelDeployment) -> Result<EvaluatedRevision, Error> {
    let name = model.name_any();
    let status = model.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation) == model.metadata.generation;
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let not_ready = |why: String| {
        let on = Reference::new(Kind::ModelDeployment, &name);
        Error::waiting(on, reason::TARGET_NOT_READY, format!("waiting for ModelDeployment {name:?}: {why}"))
    };
    if !observed {
        return Err(not_ready("its present spec is not looked at yet".into()));
    }
    if !is_true(conditions, "Ready") {
        return Err(not_ready(why_not_ready(conditions)));
    }
    let revision = status.and_then(|status| status.stable_revision.clone());
    let revision = revision.ok_or_else(|| not_ready("it has no stable revision yet".into()))?;
    Ok(EvaluatedRevision { variant: name.clone(), revision })
}

fn why_not_ready(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> String {
    match find(conditions, "Ready") {
        Some(ready) if !ready.message.is_empty() => format!("it is not Ready: {}", ready.message),
        Some(ready) => format!("it is not Ready ({})", ready.reason),
        None => "it is not Ready yet".into(),
    }
}
