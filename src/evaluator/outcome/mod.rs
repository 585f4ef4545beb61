//! From answers to a verdict. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::dataset::Case;
use super::metrics::{Answered, Embed, Scorer, method, similarity};
use super::plan::{EvaluationPlan, PlannedTarget};
use super::report::{AnswerRow, CaseRow, GateRow, MetricRow, Report, Source, VariantResult, number};
use super::stats::{Estimate, estimate, quantile};
use crate::api::evaluation::{Gate, GateBound, MetricType, Verdict};

/// Differences below this are rounding, not a missed threshold.
const TOLERANCE: f64 = 1e-9;

/// An answer as the gateway gave it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Time of the request that was answered, in seconds.
    pub seconds: f64,
    /// Tokens read by models.
    pub input_tokens: i64,
    /// Tokens written by models.
    pub output_tokens: i64,
    /// Cost, where the models have one.
    pub cost: Option<f64>,
    /// What the answer rests on.
    pub sources: Vec<Source>,
    /// Identity at the gateway.
    pub request_id: String,
    /// Revisions of models and generations of indexes that took part.
    pub dependencies: BTreeMap<String, String>,
}

/// What became of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Position of the case in the dataset.
    pub case: usize,
    /// Position of the revision in the plan.
    pub revision: usize,
    /// Which repeat, from 0.
    pub repeat: u32,
    /// The answer, or why there is none.
    pub reply: Result<Reply, String>,
}

/// Everything that was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// In the order of cases, then revisions, then repeats; without those that a limit left out.
    pub asked: Vec<Asked>,
    /// The limit that ended the run early, as a sentence.
    pub limit: Option<String>,
}

/// Why answers could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The dataset does not have what a metric needs.
    #[error(transparent)]
    Dataset(#[from] super::dataset::DatasetError),
    /// A metric's parameters are wrong.
    #[error(transparent)]
    Pattern(#[from] super::metrics::PatternError),
    /// Texts cannot be embedded.
    #[error("metric type EmbeddingSimilarity: {0}")]
    Embed(String),
}

/// Scores the answers and judges them by the gates.
///
/// # Errors
/// When the dataset or a metric is not what it was checked to be, or texts cannot be embedded.
pub fn judge(
    plan: &EvaluationPlan,
    cases: &[Case],
    answers: &Answers,
    embedder: Option<&dyn Embed>,
    (started, finished): (jiff::Timestamp, jiff::Timestamp),
) -> Result<Report, JudgeError> {
    let scores = score(plan, cases, answers, embedder)?;
    let metrics = estimates(plan, cases.len(), answers, &scores);
    let incomplete = incomplete(plan, cases, answers);
    let gates = gate_rows(plan, &metrics, incomplete.is_some());
    let (verdict, message) = verdict(&gates, incomplete);
    let variants =
        (0..plan.revisions.len()).filter_map(|index| variant_result(plan, answers, index)).collect::<Vec<_>>();
    Ok(Report {
        namespace: plan.namespace.clone(),
        evaluation: plan.evaluation.clone(),
        run: plan.run.clone(),
        target_kind: plan.target.kind().to_owned(),
        target: plan.target.name().to_owned(),
        dataset: format!("{}/{}", plan.dataset.config_map, plan.dataset.key),
        dataset_digest: plan.dataset.digest.clone(),
        case_count: cases.len(),
        repeats: plan.repeats,
        started,
        finished,
        verdict,
        message,
        notes: notes(plan, &metrics, &variants),
        variants,
        metrics,
        gates,
        cases: case_rows(plan, cases, answers, &scores),
    })
}

/// Scores by answer, then metric.
type Scores = Vec<Vec<Option<f64>>>;

fn score(
    plan: &EvaluationPlan,
    cases: &[Case],
    answers: &Answers,
    embedder: Option<&dyn Embed>,
) -> Result<Scores, JudgeError> {
    let mut scores: Scores = vec![Vec::with_capacity(plan.metrics.len()); answers.asked.len()];
    for metric in &plan.metrics {
        let scorer = Scorer::new(metric)?;
        let mut pairs = Vec::new();
        for (row, asked) in scores.iter_mut().zip(&answers.asked) {
            let (Ok(reply), Some(case)) = (&asked.reply, cases.get(asked.case)) else {
                row.push(None);
                continue;
            };
            let expected = case.expected(metric, &plan.dataset.columns)?;
            let answered = Answered { text: &reply.text, seconds: reply.seconds, cost: reply.cost };
            row.push(scorer.score(answered, &expected));
            if metric.r#type == MetricType::EmbeddingSimilarity {
                pairs.push((row, (reply.text.as_str(), expected)));
            }
        }
        if !pairs.is_empty() {
            let embedder = embedder.ok_or_else(|| JudgeError::Embed("no embedder is loaded".into()))?;
            let (rows, texts): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let cosines = similarity(&texts, embedder).map_err(JudgeError::Embed)?;
            for (row, cosine) in rows.into_iter().zip(cosines) {
                if let Some(last) = row.last_mut() {
                    *last = Some(cosine);
                }
            }
        }
    }
    Ok(scores)
}

fn estimates(plan: &EvaluationPlan, cases: usize, answers: &Answers, scores: &Scores) -> Vec<MetricRow> {
    let mut rows = Vec::new();
    for (position, metric) in plan.metrics.iter().enumerate() {
        for (index, revision) in plan.revisions.iter().enumerate() {
            let mut values = vec![Vec::new(); cases];
            for (asked, scores) in answers.asked.iter().zip(scores) {
                if asked.revision == index
                    && let Some(value) = scores.get(position).copied().flatten()
                    && let Some(repeats) = values.get_mut(asked.case)
                {
                    repeats.push(value);
                }
            }
            rows.push(MetricRow {
                name: metric.name.clone(),
                r#type: metric.r#type,
                variant: revision.variant.clone(),
                estimate: estimate(&values, method(metric.r#type)),
            });
        }
    }
    rows
}

/// Why the run is incomplete, if it is.
fn incomplete(plan: &EvaluationPlan, cases: &[Case], answers: &Answers) -> Option<String> {
    let total = cases.len() * plan.revisions.len() * plan.repeats as usize;
    let errors = answers.asked.iter().filter(|asked| asked.reply.is_err()).count();
    let first = answers.asked.iter().find_map(|asked| {
        let cause = asked.reply.as_ref().err()?;
        let variant = &plan.revisions.get(asked.revision)?.variant;
        Some(format!("case {}, variant {variant}: {cause}", cases.get(asked.case)?.id))
    });
    match (&answers.limit, first) {
        (Some(limit), _) => {
            Some(format!("{limit} after {} of {total} answers; raise it or ask less", answers.asked.len()))
        }
        (None, Some(first)) => Some(format!("{errors} of {total} answers could not be had; first: {first}")),
        (None, None) => None,
    }
}

fn gate_rows(plan: &EvaluationPlan, metrics: &[MetricRow], incomplete: bool) -> Vec<GateRow> {
    let mut rows = Vec::new();
    for gate in &plan.gates {
        let named = |row: &&MetricRow| {
            row.name == gate.metric && (gate.variants.is_empty() || gate.variants.contains(&row.variant))
        };
        rows.extend(metrics.iter().filter(named).filter_map(|row| gate_row(gate, row, incomplete)));
    }
    rows
}

fn gate_row(gate: &Gate, row: &MetricRow, incomplete: bool) -> Option<GateRow> {
    let (threshold, at_least) = match (&gate.min, &gate.max) {
        (Some(min), _) => (min, true),
        (None, Some(max)) => (max, false),
        (None, None) => return None,
    };
    let limit = threshold.value()?;
    let observed = row.estimate.and_then(|estimate| match (gate.bound, estimate.interval) {
        (GateBound::Mean, _) => Some(estimate.mean),
        (GateBound::LowerCI, Some((lower, upper))) => Some(if at_least { lower } else { upper }),
        (GateBound::LowerCI, None) => None,
    });
    let holds = observed.map(|value| if at_least { value + TOLERANCE >= limit } else { value - TOLERANCE <= limit });
    let passed = if incomplete { holds.filter(|holds| !holds) } else { holds };
    let sign = if at_least { "≥" } else { "≤" };
    let compared = match (gate.bound, at_least) {
        (GateBound::Mean, _) => "mean",
        (GateBound::LowerCI, true) => "lower bound",
        (GateBound::LowerCI, false) => "upper bound",
    };
    let numbers = match row.estimate {
        None => "nothing could be scored".to_owned(),
        Some(Estimate { mean, interval: None, .. }) => format!("mean {}, too few cases for an interval", number(mean)),
        Some(Estimate { mean, interval: Some((lower, upper)), .. }) => {
            format!("mean {} (95% CI {}–{})", number(mean), number(lower), number(upper))
        }
    };
    let result = match passed {
        Some(true) => "passed",
        Some(false) => "not passed",
        None => "undecided",
    };
    Some(GateRow {
        gate: format!("{} {sign} {threshold} ({compared})", row.name),
        metric: row.name.clone(),
        variant: row.variant.clone(),
        threshold: limit,
        observed,
        passed,
        message: format!("gate {} {sign} {threshold} {result} for variant {}: {numbers}", row.name, row.variant),
    })
}

fn verdict(gates: &[GateRow], incomplete: Option<String>) -> (Verdict, String) {
    let sentences = |state: Option<bool>| {
        let messages: Vec<_> = gates.iter().filter(|row| row.passed == state).map(|row| row.message.as_str()).collect();
        messages.join("; ")
    };
    if let Some(reason) = incomplete {
        return (Verdict::Inconclusive, reason);
    }
    if gates.iter().any(|row| row.passed == Some(false)) {
        return (Verdict::Failed, sentences(Some(false)));
    }
    if gates.iter().any(|row| row.passed.is_none()) {
        return (Verdict::Inconclusive, sentences(None));
    }
    match gates.len() {
        0 => (Verdict::Passed, "every case was answered; the evaluation has no gates".into()),
        1 => (Verdict::Passed, sentences(Some(true))),
        count => (Verdict::Passed, format!("all {count} gates passed")),
    }
}

fn variant_result(plan: &EvaluationPlan, answers: &Answers, index: usize) -> Option<VariantResult> {
    let revision = plan.revisions.get(index)?;
    let own = || answers.asked.iter().filter(move |asked| asked.revision == index);
    let replies: Vec<&Reply> = own().filter_map(|asked| asked.reply.as_ref().ok()).collect();
    let seconds: Vec<f64> = replies.iter().map(|reply| reply.seconds).collect();
    let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, revision) in replies.iter().flat_map(|reply| &reply.dependencies) {
        dependencies.entry(name.clone()).or_default().insert(revision.clone());
    }
    Some(VariantResult {
        variant: revision.variant.clone(),
        revision: revision.revision.clone(),
        answers: replies.len(),
        errors: own().count() - replies.len(),
        input_tokens: replies.iter().map(|reply| reply.input_tokens).sum(),
        output_tokens: replies.iter().map(|reply| reply.output_tokens).sum(),
        cost: replies.iter().filter_map(|reply| reply.cost).reduce(|sum, cost| sum + cost),
        latency_p50: quantile(&seconds, 0.5),
        latency_p95: quantile(&seconds, 0.95),
        dependencies,
    })
}

fn notes(plan: &EvaluationPlan, metrics: &[MetricRow], variants: &[VariantResult]) -> Vec<String> {
    let mut notes = Vec::new();
    let methods: Vec<_> = metrics.iter().map(|row| method(row.r#type)).collect();
    if methods.contains(&super::stats::Method::Wilson) {
        notes.push("Intervals of metrics that score 0 or 1 are Wilson score intervals (Wilson 1927), at 95 %.".into());
    }
    if methods.contains(&super::stats::Method::StudentT) {
        notes.push(
            "Intervals of the other metrics are Student's t intervals over the cases (Student 1908), at 95 %.".into(),
        );
    }
    if plan.repeats > 1 {
        notes.push("Repeats of a case are averaged first: the cases, not the answers, are the sample.".into());
    }
    for metric in metrics.iter().filter(|row| row.r#type == MetricType::Cost && row.estimate.is_none()) {
        let hint = match plan.target {
            PlannedTarget::Flow { .. } => "the ModelDeployments that the flow uses",
            PlannedTarget::Model { .. } => "the ModelDeployment",
            // Searching has no price.
            PlannedTarget::Index { .. } => continue,
        };
        notes.push(format!(
            "Metric {} of variant {} has no value: set spec.cost of {hint}.",
            metric.name, metric.variant
        ));
    }
    for variant in variants {
        for (name, revisions) in variant.dependencies.iter().filter(|(_, revisions)| revisions.len() > 1) {
            let list = revisions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            notes.push(format!("{name} changed during the run (variant {}): {list}.", variant.variant));
        }
    }
    notes
}

fn case_rows(plan: &EvaluationPlan, cases: &[Case], answers: &Answers, scores: &Scores) -> Vec<CaseRow> {
    let mut rows: Vec<CaseRow> = cases
        .iter()
        .map(|case| CaseRow {
            id: case.id.clone(),
            line: case.line,
            columns: case.columns.clone(),
            answers: Vec::new(),
        })
        .collect();
    for (asked, scores) in answers.asked.iter().zip(scores) {
        let (Some(row), Some(revision)) = (rows.get_mut(asked.case), plan.revisions.get(asked.revision)) else {
            continue;
        };
        let (reply, error) = match &asked.reply {
            Ok(reply) => (Some(reply), None),
            Err(error) => (None, Some(error.clone())),
        };
        let named = plan.metrics.iter().zip(scores);
        row.answers.push(AnswerRow {
            variant: revision.variant.clone(),
            repeat: asked.repeat,
            answer: reply.map(|reply| reply.text.clone()),
            error,
            scores: named.filter_map(|(metric, score)| Some((metric.name.clone(), (*score)?))).collect(),
            seconds: reply.map_or(0.0, |reply| reply.seconds),
            cost: reply.and_then(|reply| reply.cost),
            sources: reply.map(|reply| reply.sources.clone()).unwrap_or_default(),
            request_id: reply.map(|reply| reply.request_id.clone()).unwrap_or_default(),
        });
    }
    rows
}

#[cfg(test)]
pub(crate) mod tests;
