//! HTML: one file, no scripts, no other files; readable on a phone and in the dark.

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;

use super::{AnswerRow, CaseRow, MetricRow, Report, Source, number, plain};
use crate::api::evaluation::Verdict;
use crate::evaluator::metrics::{is_share, more_is_better};

/// Answers shown in full; the JSON report has all.
const WORST: usize = 25;
/// Width of a bar, in the drawing's own units.
const WIDTH: f64 = 200.0;

/// A metric with its bar.
#[derive(Serialize)]
struct Bar<'a> {
    name: &'a str,
    kind: String,
    variant: &'a str,
    cases: usize,
    mean: String,
    interval: String,
    /// Positions along the bar.
    low: Option<f64>,
    high: Option<f64>,
    at: Option<f64>,
    threshold: Option<f64>,
    gates: Vec<GateCell<'a>>,
}

#[derive(Serialize)]
struct GateCell<'a> {
    text: &'a str,
    result: &'static str,
    class: &'static str,
}

/// An answer among the worst.
#[derive(Serialize)]
struct Worst<'a> {
    id: &'a str,
    line: usize,
    variant: &'a str,
    repeat: Option<u32>,
    columns: Vec<(&'a str, String)>,
    answer: Option<&'a str>,
    error: Option<&'a str>,
    sources: &'a [Source],
    scores: Vec<(&'a str, String)>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct VariantCell<'a> {
    variant: &'a str,
    revision: &'a str,
    answers: usize,
    errors: usize,
    input_tokens: i64,
    output_tokens: i64,
    cost: String,
    p50: String,
    p95: String,
    dependencies: Vec<String>,
}

/// The report as an HTML page.
///
/// # Errors
/// Never for a report of [`crate::evaluator::outcome::judge`]: the template is part of the program and tested.
pub fn render(report: &Report) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_template("report.html", include_str!("report.html"))?;
    let optional = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
    let variants: Vec<VariantCell> = report
        .variants
        .iter()
        .map(|variant| VariantCell {
            variant: &variant.variant,
            revision: &variant.revision,
            answers: variant.answers,
            errors: variant.errors,
            input_tokens: variant.input_tokens,
            output_tokens: variant.output_tokens,
            cost: optional(variant.cost),
            p50: optional(variant.latency_p50),
            p95: optional(variant.latency_p95),
            dependencies: variant
                .dependencies
                .iter()
                .map(|(name, revisions)| {
                    format!("{name} {}", revisions.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
                })
                .collect(),
        })
        .collect();
    let all = report.cases.iter().map(|case| case.answers.len()).sum::<usize>();
    let worst = worst(report);
    environment.get_template("report.html")?.render(context! {
        title => format!("{}/{}", report.namespace, report.evaluation),
        run => report.run.as_str(),
        target => format!("{} {}", report.target_kind, report.target),
        dataset => report.dataset.as_str(),
        digest => report.dataset_digest.as_str(),
        case_count => report.case_count,
        repeats => report.repeats,
        started => time(report.started),
        seconds => format!("{:.0}", report.finished.duration_since(report.started).as_secs_f64()),
        verdict => format!("{:?}", report.verdict),
        class => match report.verdict {
            Verdict::Passed => "good",
            Verdict::Failed => "bad",
            Verdict::Inconclusive => "open",
        },
        message => report.message.as_str(),
        notes => report.notes.clone(),
        width => WIDTH,
        metrics => Value::from(Serde(report.metrics.iter().map(|row| bar(report, row)).collect::<Vec<_>>())),
        variants => Value::from(Serde(variants)),
        answers => all,
        worst => Value::from(Serde(worst)),
    })
}

fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn bar<'a>(report: &'a Report, row: &'a MetricRow) -> Bar<'a> {
    let own = |gate: &&super::GateRow| gate.metric == row.name && gate.variant == row.variant;
    let interval = row.estimate.and_then(|estimate| estimate.interval);
    let mean = row.estimate.map(|estimate| estimate.mean);
    let threshold = report.gates.iter().find(own).map(|gate| gate.threshold);
    // All variants of a metric share a scale, so that their bars can be compared by eye.
    let same = report.metrics.iter().filter(|other| other.name == row.name).filter_map(|other| other.estimate);
    let ends = same.flat_map(|estimate| [estimate.mean, estimate.interval.map_or(estimate.mean, |(_, high)| high)]);
    let most =
        if more_is_better(row.r#type) { 1.0 } else { ends.chain(threshold).fold(f64::MIN_POSITIVE, f64::max) * 1.05 };
    let position = |value: f64| (WIDTH * (value / most).clamp(0.0, 1.0) * 10.0).round() / 10.0;
    Bar {
        name: &row.name,
        kind: format!("{:?}", row.r#type),
        variant: &row.variant,
        cases: row.estimate.map_or(0, |estimate| estimate.cases),
        mean: mean.map_or_else(|| "–".into(), number),
        interval: interval.map_or_else(|| "–".into(), |(low, high)| format!("{} – {}", number(low), number(high))),
        low: interval.map(|(low, _)| position(low)),
        high: interval.map(|(_, high)| position(high)),
        at: mean.map(position),
        threshold: threshold.map(position),
        gates: report
            .gates
            .iter()
            .filter(own)
            .map(|gate| GateCell {
                text: gate.gate.strip_prefix(row.name.as_str()).unwrap_or(&gate.gate).trim(),
                result: gate.result(),
                class: match gate.passed {
                    Some(true) => "good",
                    Some(false) => "bad",
                    None => "open",
                },
            })
            .collect(),
    }
}

/// Answers that could not be had, then those with the lowest mean over the metrics where more is better.
fn worst(report: &Report) -> Vec<Worst<'_>> {
    let quality: Vec<&str> =
        report.metrics.iter().filter(|row| more_is_better(row.r#type)).map(|row| row.name.as_str()).collect();
    let mut rated: Vec<(f64, &CaseRow, &AnswerRow)> = Vec::new();
    for case in &report.cases {
        for answer in &case.answers {
            let scores = answer.scores.iter().filter(|(name, _)| quality.contains(&name.as_str()));
            let scores: Vec<f64> = scores.map(|(_, score)| *score).collect();
            let rating = if answer.error.is_some() { Some(-1.0) } else { crate::evaluator::stats::mean(&scores) };
            if let Some(rating) = rating.filter(|rating| *rating < 1.0) {
                rated.push((rating, case, answer));
            }
        }
    }
    rated.sort_by(|a, b| a.0.total_cmp(&b.0));
    rated
        .into_iter()
        .take(WORST)
        .map(|(_, case, answer)| Worst {
            id: &case.id,
            line: case.line,
            variant: &answer.variant,
            repeat: (report.repeats > 1).then_some(answer.repeat + 1),
            columns: case.columns.iter().map(|(name, value)| (name.as_str(), plain(value))).collect(),
            answer: answer.answer.as_deref(),
            error: answer.error.as_deref(),
            sources: &answer.sources,
            scores: answer.scores.iter().map(|(name, score)| (name.as_str(), shown(report, name, *score))).collect(),
            request_id: &answer.request_id,
        })
        .collect()
}

/// A score: yes and no for metrics that know nothing between.
fn shown(report: &Report, name: &str, score: f64) -> String {
    match report.metrics.iter().find(|row| row.name == name) {
        Some(row) if is_share(row.r#type) => if score > 0.5 { "yes" } else { "no" }.to_owned(),
        _ => number(score),
    }
}
