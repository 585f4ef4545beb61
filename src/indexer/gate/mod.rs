//! Decides whether a generation may serve: guards on counts first, then quality on golden questions.

mod bootstrap;
mod golden;
mod metrics;

use std::collections::BTreeSet;

pub use golden::{GoldenError, Question, parse};

use super::job::{SearchHit, SearchRequest};
use super::search::{MAX_TOP_K, Search, SearchError};
use super::store::Generation;
use crate::api::quantity::Decimal;
use crate::api::rag_index::{DocumentCounts, Gates, Guards, Quality, QualityMetric, QualityMetricName};

/// Why a generation may not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What happened and what helps.
    pub message: String,
}

fn reject(reason: &'static str, message: String) -> Option<Rejection> {
    Some(Rejection { reason, message })
}

/// The checks that need no questions. `active` is the number of documents of the generation that serves.
pub fn guard(guards: &Guards, counts: &DocumentCounts, active: Option<i64>) -> Option<Rejection> {
    let documents = counts.scanned - counts.failed - counts.skipped;
    if documents < i64::from(guards.min_documents) {
        let message = format!(
            "{documents} documents with text were found (of {} files), spec.gates.guards.minDocuments asks for {}; check spec.sources[].include and what the sources hold",
            counts.scanned, guards.min_documents
        );
        return reject("SourceEmpty", message);
    }
    let failed_limit = counts.scanned * i64::from(guards.max_failed_document_percent);
    if counts.failed * 100 > failed_limit {
        let message = format!(
            "{} of {} documents could not be used, more than spec.gates.guards.maxFailedDocumentPercent {}; see status.failures, mend or exclude them",
            counts.failed, counts.scanned, guards.max_failed_document_percent
        );
        return reject("TooManyFailures", message);
    }
    if let (Some(limit), Some(active)) = (guards.max_document_drop_percent, active) {
        let lost = active - documents;
        if lost * 100 > active * i64::from(limit) {
            let message = format!(
                "the sources have {documents} documents, the active generation {active}: a loss of more than spec.gates.guards.maxDocumentDropPercent {limit}; raise it if the documents were meant to go"
            );
            return reject("DeletionGuard", message);
        }
    }
    None
}

/// The best chunks for each question, as many as the metrics look at.
#[derive(Debug, Default)]
pub struct Answers(Vec<Vec<SearchHit>>);

/// The searches behind the questions, in their order.
///
/// # Errors
/// When a question is not a search that this index answers; the error names its line.
pub fn searches(generation: &Generation, gates: &Gates, questions: &[Question]) -> Result<Vec<Search>, GoldenError> {
    let k = gates.metrics.iter().map(|metric| metric.k).max().unwrap_or(1).clamp(1, MAX_TOP_K);
    questions
        .iter()
        .map(|question| {
            let request = SearchRequest {
                query: question.query.clone(),
                top_k: Some(k),
                min_score: None,
                filters: question.filters.clone(),
            };
            Search::new(generation, &request)
                .map_err(|error| GoldenError { line: question.line, message: error.to_string() })
        })
        .collect()
}

/// Runs searches with the vectors of their questions (`None` where a search needs none).
///
/// # Errors
/// When the generation cannot be searched.
pub fn answers(
    generation: &Generation,
    searches: &[Search],
    vectors: &[Option<Vec<f32>>],
) -> Result<Answers, SearchError> {
    let vectors = vectors.iter().map(Option::as_deref).chain(std::iter::repeat(None));
    searches
        .iter()
        .zip(vectors)
        .map(|(search, vector)| search.run(generation, vector))
        .collect::<Result<_, _>>()
        .map(Answers)
}

/// Judges the candidate's answers, against those of the active generation when there is one.
pub fn judge(
    gates: &Gates,
    questions: &[Question],
    candidate: &Answers,
    active: Option<&Answers>,
    known_uris: &BTreeSet<String>,
) -> (Vec<Quality>, Option<Rejection>) {
    let (mut quality, mut rejection) = (Vec::new(), None);
    for metric in &gates.metrics {
        let values = scores(metric, questions, candidate);
        let before = active.map(|active| scores(metric, questions, active));
        let (result, problem) = compare(metric, &values, before.as_deref());
        quality.push(result);
        rejection = rejection.or(problem);
    }
    let least = gates.golden.as_ref().map_or(0, |golden| golden.min_queries.unsigned_abs() as usize);
    if !gates.metrics.is_empty() && questions.len() < least {
        quality.iter_mut().for_each(|result| result.passed = false);
        let message = format!(
            "{} golden questions give no verdict, spec.gates.golden.minQueries asks for {least}; write more questions, or lower it",
            questions.len()
        );
        rejection = reject("GoldenSetInvalid", message);
    }
    if let Some(rejection) = &mut rejection {
        rejection.message.push_str(&unknown(questions, known_uris));
    }
    (quality, rejection)
}

/// The first golden documents that the index does not have: most often a renamed file.
fn unknown(questions: &[Question], known_uris: &BTreeSet<String>) -> String {
    let missing: BTreeSet<(&str, usize)> = questions
        .iter()
        .flat_map(|question| question.relevant.iter().map(|document| (document.uri.as_str(), question.line)))
        .filter(|(uri, _)| !known_uris.contains(*uri))
        .collect();
    let names: Vec<String> = missing.iter().take(3).map(|(uri, line)| format!("{uri} (line {line})")).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        "; {} golden answers name documents that the index does not have, such as {}",
        missing.len(),
        names.join(", ")
    )
}

fn scores(metric: &QualityMetric, questions: &[Question], answers: &Answers) -> Vec<f64> {
    let k = metric.k.unsigned_abs() as usize;
    let score = match metric.name {
        QualityMetricName::Recall => metrics::recall,
        QualityMetricName::Ndcg => metrics::ndcg,
    };
    questions.iter().zip(&answers.0).map(|(question, hits)| score(question, hits.get(..k).unwrap_or(hits))).collect()
}

fn compare(metric: &QualityMetric, values: &[f64], before: Option<&[f64]>) -> (Quality, Option<Rejection>) {
    let name = match metric.name {
        QualityMetricName::Recall => "recall",
        QualityMetricName::Ndcg => "ndcg",
    };
    let label = format!("{name}@{}", metric.k);
    let mean = bootstrap::mean(values);
    let lower = match before {
        Some(before) => {
            let differences: Vec<f64> = values.iter().zip(before).map(|(new, old)| new - old).collect();
            bootstrap::lower95(&differences)
        }
        None => bootstrap::lower95(values),
    };
    let mut problem = None;
    if let Some(min) = metric.min.as_ref().and_then(Decimal::value).filter(|min| mean < *min) {
        let message = format!(
            "{label} is {mean:.4} over {} questions, spec.gates.metrics asks for at least {min}; improve documents, chunking or retrieval",
            values.len()
        );
        problem = reject("QualityBelowMinimum", message);
    }
    if let (Some(limit), Some(before)) = (metric.max_regression.as_ref().and_then(Decimal::value), before)
        && lower < -limit
        && problem.is_none()
    {
        let message = format!(
            "{label} is {mean:.4}, the active generation has {:.4}; at 95 % confidence the loss may be {:.4}, more than maxRegression {limit}",
            bootstrap::mean(before),
            -lower
        );
        problem = reject("QualityRegression", message);
    }
    let quality = Quality {
        metric: name.into(),
        k: metric.k,
        candidate: decimal(mean),
        active: before.map(|before| decimal(bootstrap::mean(before))),
        lower95: Some(decimal(lower)),
        queries: i32::try_from(values.len()).unwrap_or(i32::MAX),
        passed: problem.is_none(),
    };
    (quality, problem)
}

fn decimal(value: f64) -> Decimal {
    // Without a negative zero, which would read as a loss.
    Decimal::from_f64(value + 0.0).unwrap_or_else(|| Decimal::from("0"))
}

#[cfg(test)]
mod tests;
