//! Reports of a run: JSON (this struct), JUnit, HTML, and the table on the console.

pub mod console;
pub mod html;
pub mod junit;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::plan::RunSummary;
use super::stats::Estimate;
use crate::api::evaluation::{MetricResult, MetricType, Verdict};
use crate::api::quantity::Decimal;

/// A run's result: the JSON report, and what the others are made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Namespace of the Evaluation.
    pub namespace: String,
    /// Name of the Evaluation.
    pub evaluation: String,
    /// Name of the run.
    pub run: String,
    /// Kind of the target.
    pub target_kind: String,
    /// Name of the target.
    pub target: String,
    /// The dataset: ConfigMap and key.
    pub dataset: String,
    /// Its digest.
    pub dataset_digest: String,
    /// Cases.
    pub case_count: usize,
    /// How often each is asked.
    pub repeats: u32,
    /// When the run started.
    pub started: jiff::Timestamp,
    /// When the last answer was in.
    pub finished: jiff::Timestamp,
    /// What the gates say.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub message: String,
    /// What a reader should know about the numbers.
    pub notes: Vec<String>,
    /// By variant.
    pub variants: Vec<VariantResult>,
    /// By metric, then variant.
    pub metrics: Vec<MetricRow>,
    /// By gate, then variant.
    pub gates: Vec<GateRow>,
    /// Every case with every answer.
    pub cases: Vec<CaseRow>,
}

/// What a variant took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VariantResult {
    /// The variant; for a model, its name.
    pub variant: String,
    /// The revision that was pinned.
    pub revision: String,
    /// Answers received.
    pub answers: usize,
    /// Answers that could not be had.
    pub errors: usize,
    /// Tokens read by models.
    pub input_tokens: i64,
    /// Tokens written by models.
    pub output_tokens: i64,
    /// Cost, where the models have one.
    pub cost: Option<f64>,
    /// Median time of an answer, in seconds.
    pub latency_p50: Option<f64>,
    /// 95th percentile of the time of an answer, in seconds.
    pub latency_p95: Option<f64>,
    /// Revisions and generations that took part, by `model/ALIAS` and `index/ALIAS`; more than one when it changed meanwhile.
    pub dependencies: BTreeMap<String, BTreeSet<String>>,
}

/// A metric for a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricRow {
    /// Name of the metric.
    pub name: String,
    /// Its type.
    pub r#type: MetricType,
    /// The variant.
    pub variant: String,
    /// Mean and interval; absent when nothing could be scored.
    pub estimate: Option<Estimate>,
}

/// A gate for a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateRow {
    /// The gate in words: `grounded ≥ 0.50 (lower bound)`.
    pub gate: String,
    /// Name of the metric.
    pub metric: String,
    /// The variant.
    pub variant: String,
    /// Least or greatest value that passes.
    pub threshold: f64,
    /// What was compared with it.
    pub observed: Option<f64>,
    /// Whether it passed; absent when there is no number to compare, or when it would pass but the run is incomplete.
    pub passed: Option<bool>,
    /// In a sentence.
    pub message: String,
}

/// A case with its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseRow {
    /// Identity.
    pub id: String,
    /// Its line in the dataset.
    pub line: usize,
    /// Its columns.
    pub columns: Map<String, Value>,
    /// Its answers.
    pub answers: Vec<AnswerRow>,
}

/// An answer with its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerRow {
    /// The variant.
    pub variant: String,
    /// Which repeat, from 0.
    pub repeat: u32,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// By metric.
    pub scores: BTreeMap<String, f64>,
    /// In seconds.
    pub seconds: f64,
    /// Cost, where the models have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// What it rests on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Identity at the gateway.
    pub request_id: String,
}

/// A source of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The document.
    pub uri: String,
    /// Its headings.
    pub heading: String,
    /// Score of the search.
    pub score: f64,
}

impl Report {
    /// Number of answers that could not be had.
    pub fn errors(&self) -> usize {
        self.variants.iter().map(|variant| variant.errors).sum()
    }

    /// Cost of the whole run, where the models have one.
    pub fn cost(&self) -> Option<f64> {
        self.variants.iter().filter_map(|variant| variant.cost).reduce(|sum, cost| sum + cost)
    }

    /// What the Job leaves for the controller.
    pub fn summary(&self, reported: bool) -> RunSummary {
        let gates_of = |row: &MetricRow| {
            self.gates.iter().filter(|gate| gate.metric == row.name && gate.variant == row.variant).collect::<Vec<_>>()
        };
        let result = |row: &MetricRow| {
            let estimate = row.estimate?;
            let gates = gates_of(row);
            let passed = if gates.iter().any(|gate| gate.passed == Some(false)) {
                Some(false)
            } else {
                (!gates.is_empty() && gates.iter().all(|gate| gate.passed == Some(true))).then_some(true)
            };
            Some(MetricResult {
                name: row.name.clone(),
                variant: row.variant.clone(),
                value: exact(estimate.mean)?,
                lower: estimate.interval.and_then(|(lower, _)| exact(lower)),
                upper: estimate.interval.and_then(|(_, upper)| exact(upper)),
                passed,
            })
        };
        let (gated, free): (Vec<_>, Vec<_>) = self.metrics.iter().partition(|row| !gates_of(row).is_empty());
        RunSummary {
            verdict: Some(self.verdict),
            message: self.message.clone(),
            cases: count(self.case_count),
            errors: count(self.errors()),
            cost: self.cost().and_then(exact),
            metrics: gated.into_iter().chain(free).filter_map(result).collect(),
            omitted: 0,
            reported,
        }
        .fitted()
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A number for people: two decimals, or three significant digits where that says more, at most nine decimals.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || magnitude >= 0.01 {
        return format!("{value:.2}");
    }
    // Prices of an answer are often millionths.
    let decimals = (2.0 - magnitude.log10().floor()).min(9.0) as usize;
    format!("{value:.decimals$}")
}

/// The same for the status: four decimals, more for small ones.
fn exact(value: f64) -> Option<Decimal> {
    if value.abs() >= 0.01 || value == 0.0 {
        return Decimal::from_f64(value);
    }
    value.is_finite().then(|| Decimal(format!("{value:.9}")))
}

/// A column of a case as text.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(plain).collect::<Vec<_>>().join(" | ")
        }
        other => other.to_string(),
    }
}

impl GateRow {
    /// What the gate says, in a word.
    pub fn result(&self) -> &'static str {
        match self.passed {
            Some(true) => "passed",
            Some(false) => "not passed",
            None => "undecided",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_keep_their_digits() {
        for (value, shown, kept) in [
            (0.0, "0.00", "0.0000"),
            (0.416_666, "0.42", "0.4167"),
            (12.5, "12.50", "12.5000"),
            (0.000_066, "0.0000660", "0.000066000"),
            (-0.004_2, "-0.00420", "-0.004200000"),
        ] {
            assert_eq!(number(value), shown);
            assert_eq!(exact(value).unwrap().0, kept);
            assert!(exact(value).unwrap().value().is_some());
        }
        assert_eq!(exact(f64::NAN), None);
    }
}
