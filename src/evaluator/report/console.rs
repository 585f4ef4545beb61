//! The verdict and a table of metrics, for people who read the Job's log.

use super::{MetricRow, Report, number};

/// The table, with a line for the verdict at its end.
pub fn render(report: &Report, report_url: Option<&str>) -> String {
    let mut text = format!(
        "\nEvaluation {}/{}, run {}: {} {}\nDataset {}: {} cases, each asked {} of {}\n\n",
        report.namespace,
        report.evaluation,
        report.run,
        report.target_kind,
        report.target,
        report.dataset,
        report.case_count,
        match report.repeats {
            0 | 1 => "once".to_owned(),
            times => format!("{times} times"),
        },
        report
            .variants
            .iter()
            .map(|variant| format!("{} ({})", variant.variant, variant.revision))
            .collect::<Vec<_>>()
            .join(", "),
    );
    let header = ["METRIC", "TYPE", "VARIANT", "MEAN", "95% CI", "GATE", "RESULT"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(report.metrics.iter().flat_map(|row| lines(report, row)));
    text.push_str(&table(&rows));
    text.push('\n');
    let header = ["VARIANT", "ANSWERS", "ERRORS", "TOKENS IN", "OUT", "COST", "P50 s", "P95 s"].map(str::to_owned);
    let mut rows = vec![header];
    let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
    rows.extend(report.variants.iter().map(|variant| {
        [
            variant.variant.clone(),
            variant.answers.to_string(),
            variant.errors.to_string(),
            variant.input_tokens.to_string(),
            variant.output_tokens.to_string(),
            optional(variant.cost),
            optional(variant.latency_p50),
            optional(variant.latency_p95),
        ]
    }));
    text.push_str(&table(&rows));
    for note in &report.notes {
        text.push_str(&format!("\n{note}"));
    }
    text.push_str(&format!("\n\nVERDICT {:?}: {}\n", report.verdict, report.message));
    if let Some(url) = report_url {
        text.push_str(&format!("REPORT  {url}\n"));
    }
    text
}

/// A line for each gate of the metric, or one without.
fn lines(report: &Report, row: &MetricRow) -> Vec<[String; 7]> {
    let mean = row.estimate.map_or_else(|| "-".into(), |estimate| number(estimate.mean));
    let interval = row.estimate.and_then(|estimate| estimate.interval);
    let interval = interval.map_or_else(|| "-".into(), |(low, high)| format!("{} – {}", number(low), number(high)));
    let line = |gate: String, result: &str| {
        let kind = format!("{:?}", row.r#type);
        [row.name.clone(), kind, row.variant.clone(), mean.clone(), interval.clone(), gate, result.to_owned()]
    };
    let gates = report.gates.iter().filter(|gate| gate.metric == row.name && gate.variant == row.variant);
    let lines: Vec<_> = gates
        .map(|gate| {
            let words = gate.gate.strip_prefix(row.name.as_str()).unwrap_or(&gate.gate).trim().to_owned();
            line(words, gate.result())
        })
        .collect();
    if lines.is_empty() { vec![line("-".into(), "-")] } else { lines }
}

/// Columns as wide as their widest cell, two spaces apart.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
