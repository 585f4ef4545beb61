//! Checks an Evaluation and makes the plan of its run. Pure.

use std::collections::BTreeSet;

use kube::ResourceExt;

use super::fetch::Fetched;
use super::reason;
use super::subject::{can_answer, subject};
use crate::api::Evaluation;
use crate::api::evaluation::{EvaluationSpec, Gate};
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};
use crate::evaluator::dataset;
use crate::evaluator::metrics::Scorer;
use crate::evaluator::plan::{EvaluationPlan, PlannedDataset};

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
    let subject = subject(object, fetched)?;
    dataset::check(&cases, &subject.target, &spec.metrics, columns).map_err(wrong)?;
    let mut plan = EvaluationPlan {
        gateway_url: gateway_url.to_owned(),
        run: String::new(),
        namespace: object.namespace().unwrap_or_default(),
        evaluation: object.name_any(),
        target: subject.target.clone(),
        revisions: subject.revisions.clone(),
        dependencies: subject.dependencies.clone(),
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
    let known = object.status.iter().flat_map(|status| &status.runs).any(|run| run.name == plan.run);
    if !known {
        can_answer(&subject, fetched)?;
    }
    Ok(ValidatedEvaluation { plan, cases: cases.len() })
}

/// Checks what the spec alone shows, also without a cluster.
///
/// # Errors
/// `Stalled`, naming the field.
pub fn check_spec(spec: &EvaluationSpec) -> Result<(), Error> {
    let wrong = |message: String| Err(Error::stalled(reason::INVALID_SPEC, message));
    let target = &spec.target;
    let targets = [&target.prompt_flow_ref, &target.model_deployment_ref, &target.rag_index_ref];
    if targets.iter().filter(|target| target.is_some()).count() != 1 {
        return wrong("spec.target: set exactly one of promptFlowRef, modelDeploymentRef and ragIndexRef".into());
    }
    if target.prompt_flow_ref.is_none() && !spec.variants.is_empty() {
        return wrong("spec.variants: only a PromptFlow has variants; remove the field".into());
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
