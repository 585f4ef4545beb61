//! What a comparison says, in a sentence for people who do not know statistics.

use super::plan::Compared;
use crate::api::quantity::Decimal;
use crate::api::rollout::{ExperimentVerdict, MetricKind};

/// What a sentence is made of. Differences are treatment minus control.
pub struct Finding<'a> {
    /// The treatment's name.
    pub arm: &'a str,
    /// The control's name.
    pub control: &'a str,
    /// The metric and its tolerated loss.
    pub compared: &'a Compared,
    /// Whether it is the goal.
    pub goal: bool,
    /// Difference and the ends of its interval.
    pub interval: (f64, f64, f64),
    /// Units of treatment and control that were seen.
    pub units: (u64, u64),
    /// Units that each must have.
    pub min_units: u64,
    /// What it says.
    pub verdict: ExperimentVerdict,
}

/// The sentence.
pub fn sentence(finding: &Finding<'_>) -> String {
    let (difference, lower, upper) = finding.interval;
    let kind = finding.compared.metric.kind;
    let interval = if (lower < 0.0) == (upper < 0.0) || lower == 0.0 {
        let (near, far) = if upper <= 0.0 { (upper, lower) } else { (lower, upper) };
        format!("between {} and {} {}", amount(kind, near), amount(kind, far), word(kind, far))
    } else {
        format!(
            "between {} {} and {} {}",
            amount(kind, lower),
            word(kind, lower),
            amount(kind, upper),
            word(kind, upper)
        )
    };
    let start = if amount(kind, difference) == amount(kind, 0.0) {
        format!("{}: the same {} as {}", finding.arm, noun(finding), finding.control)
    } else {
        format!(
            "{}: {}{} {}{} than {}",
            finding.arm,
            amount(kind, difference),
            unit(kind),
            word(kind, difference),
            space(noun_after(finding)),
            finding.control
        )
    };
    format!("{start} ({interval}); {}", end(finding))
}

/// The sentence while nothing can be compared.
pub fn nothing_yet(arm: &str, control: &str, compared: &Compared, units: (u64, u64)) -> String {
    let what = match &compared.metric.event {
        Some(event) => format!("event '{event}'"),
        None => plain(compared.metric.kind).to_owned(),
    };
    format!("no {what} to compare yet: {} of {arm}, {} of {control}", count(units.0), count(units.1))
}

/// `1 unit`, `3 units`.
pub fn count(units: u64) -> String {
    if units == 1 { "1 unit".into() } else { format!("{units} units") }
}

/// A number of the metric for the status: four decimals, more for what is small.
pub fn decimal(value: f64) -> Option<Decimal> {
    if !value.is_finite() || value.abs() >= 1e12 {
        return None;
    }
    let text = if value != 0.0 && value.abs() < 0.1 { format!("{value:.7}") } else { format!("{value:.4}") };
    // "-0.0000" would read as a number below nothing.
    Some(Decimal(if text.trim_start_matches('-').trim_matches(['0', '.']).is_empty() { "0.0000".into() } else { text }))
}

fn end(finding: &Finding<'_>) -> String {
    let kind = finding.compared.metric.kind;
    let tolerated = finding.compared.tolerated;
    let allowance = || format!("{}{}", amount(kind, tolerated), unit(kind));
    match finding.verdict {
        ExperimentVerdict::Better => "better".into(),
        ExperimentVerdict::NotWorse if tolerated > 0.0 => {
            format!("not worse: a loss above {} is ruled out", allowance())
        }
        ExperimentVerdict::NotWorse => "not worse".into(),
        ExperimentVerdict::Worse if tolerated > 0.0 => {
            let near = finding.interval.1.abs().min(finding.interval.2.abs());
            let surely = if near > tolerated { "" } else { "very likely " };
            format!("worse, {surely}by more than the {} tolerated", allowance())
        }
        ExperimentVerdict::Worse => "worse".into(),
        ExperimentVerdict::Invalid => "does not count, because the split is not what was asked for".into(),
        ExperimentVerdict::Inconclusive => {
            let (treatment, control) = finding.units;
            if treatment.min(control) < finding.min_units {
                format!(
                    "too early: {} with {} and {} with {}, {} each are asked for",
                    count(treatment),
                    finding.arm,
                    count(control),
                    finding.control,
                    finding.min_units
                )
            } else if finding.goal {
                "not enough data to tell which is better".into()
            } else if tolerated > 0.0 {
                format!("not enough data to rule out a loss above {}", allowance())
            } else {
                "not enough data to rule out a loss".into()
            }
        }
    }
}

fn amount(kind: MetricKind, value: f64) -> String {
    let value = value.abs();
    match kind {
        share if share.is_share() => format!("{:.1}", 100.0 * value),
        MetricKind::Latency => format!("{value:.2}"),
        MetricKind::Cost => {
            let text = format!("{value:.7}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.3}"),
    }
}

fn unit(kind: MetricKind) -> &'static str {
    match kind {
        share if share.is_share() => " points",
        MetricKind::Latency => " s",
        _ => "",
    }
}

fn word(kind: MetricKind, value: f64) -> &'static str {
    let (more, fewer) = match kind {
        share if share.is_share() => ("more", "fewer"),
        MetricKind::Latency => ("slower", "faster"),
        _ => ("higher", "lower"),
    };
    if value > 0.0 { more } else { fewer }
}

fn plain(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Thumbs => "thumbs",
        MetricKind::Event => "event",
        MetricKind::ErrorRate => "requests",
        MetricKind::FeedbackScore => "feedback score",
        MetricKind::JudgeScore => "judge score",
        MetricKind::Latency => "latency",
        MetricKind::Cost => "cost",
    }
}

fn noun(finding: &Finding<'_>) -> String {
    match (finding.compared.metric.kind, &finding.compared.metric.event) {
        (MetricKind::Thumbs, _) => "share of thumbs up".into(),
        (MetricKind::ErrorRate, _) => "share of failed requests".into(),
        (MetricKind::Event, Some(event)) => format!("share of '{event}'"),
        (kind, _) => plain(kind).into(),
    }
}

fn noun_after(finding: &Finding<'_>) -> String {
    match (finding.compared.metric.kind, &finding.compared.metric.event) {
        (MetricKind::Thumbs, _) => "thumbs up".into(),
        (MetricKind::ErrorRate, _) => "failed requests".into(),
        (MetricKind::Event, Some(event)) => format!("'{event}'"),
        (MetricKind::Latency, _) => String::new(),
        (kind, _) => plain(kind).into(),
    }
}

fn space(text: String) -> String {
    if text.is_empty() { text } else { format!(" {text}") }
}
