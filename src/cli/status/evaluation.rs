//! How an Evaluation stands.

use jiff::Timestamp;

use super::canvas::{Canvas, Tone, ago, fit, interval};
use super::{Drawn, Outcome, is, trouble};
use crate::api::Evaluation;
use crate::api::conditions::find;
use crate::api::evaluation::{MetricResult, Run, RunPhase, Verdict};

impl Drawn for Evaluation {
    fn draw(&self, canvas: &mut Canvas, now: Timestamp) {
        let Some(status) = &self.status else { return super::unseen(canvas, self) };
        let (state, tone) = if self.spec.suspend {
            ("suspended", Tone::Busy)
        } else if is(&status.conditions, "Stalled", "True") {
            ("failed", Tone::Bad)
        } else if is(&status.conditions, "Stale", "True") {
            ("stale", Tone::Busy)
        } else if is(&status.conditions, "Complete", "True") && !is(&status.conditions, "Reconciling", "True") {
            status.runs.first().map_or(("no run", Tone::Busy), verdict)
        } else if status.runs.first().is_some_and(|run| run.phase == RunPhase::Running) {
            ("running", Tone::Busy)
        } else {
            ("waiting", Tone::Busy)
        };
        super::head(canvas, self, status.observed_generation, state, tone);
        canvas.prose(0, Tone::Plain, &trouble(&status.conditions));
        if let Some(stale) = find(&status.conditions, "Stale").filter(|stale| stale.status == "True") {
            canvas.prose(0, Tone::Busy, &stale.message);
        }
        let Some(newest) = status.runs.first() else { return };
        draw_run(canvas, newest, now);
        if status.runs.len() > 1 {
            canvas.section("Before", "");
        }
        for run in status.runs.iter().skip(1) {
            let (word, tone) = verdict(run);
            let stale = if run.stale { ", stale" } else { "" };
            let when = run.finished.as_ref().or(run.started.as_ref()).map(|at| ago(now, at)).unwrap_or_default();
            let revisions: Vec<&str> = run.revisions.iter().map(|one| one.revision.as_str()).collect();
            canvas.line(&[
                (Tone::Plain, "  "),
                (Tone::Strong, &fit(&run.name, 12)),
                (tone, &fit(&format!("{word}{stale}"), 22)),
                (Tone::Plain, &fit(&revisions.join(", "), 28)),
                (Tone::Dim, &when),
            ]);
        }
    }

    fn outcome(&self) -> Outcome {
        let Some(status) = &self.status else { return Outcome::UnderWay };
        if status.observed_generation != self.metadata.generation || self.spec.suspend {
            return Outcome::UnderWay;
        }
        if is(&status.conditions, "Stalled", "True") {
            return Outcome::Bad;
        }
        if !is(&status.conditions, "Complete", "True") || is(&status.conditions, "Reconciling", "True") {
            return Outcome::UnderWay;
        }
        if is(&status.conditions, "GatesPassed", "True") { Outcome::Good } else { Outcome::Bad }
    }
}

fn verdict(run: &Run) -> (&'static str, Tone) {
    match (run.phase, run.verdict) {
        (RunPhase::Running, _) => ("running", Tone::Busy),
        (RunPhase::Failed, _) => ("run failed", Tone::Bad),
        (RunPhase::Complete, Some(Verdict::Passed)) => ("passed", Tone::Good),
        (RunPhase::Complete, Some(Verdict::Failed)) => ("gates not passed", Tone::Bad),
        (RunPhase::Complete, Some(Verdict::Inconclusive) | None) => ("inconclusive", Tone::Busy),
    }
}

fn draw_run(canvas: &mut Canvas, run: &Run, now: Timestamp) {
    let when = match (&run.finished, &run.started) {
        (Some(at), _) => format!(", ended {}", ago(now, at)),
        (None, Some(at)) => format!(", began {}", ago(now, at)),
        (None, None) => String::new(),
    };
    let stale = if run.stale { ", about the past" } else { "" };
    canvas.section(
        &format!("Run {}", run.name),
        &format!("{} cases, {} without an answer{when}{stale}", run.cases, run.errors),
    );
    for asked in &run.revisions {
        canvas.line(&[
            (Tone::Plain, "  asked  "),
            (Tone::Strong, &asked.revision),
            (Tone::Dim, &format!("  {}", asked.variant)),
        ]);
    }
    for used in &run.dependencies {
        canvas.line(&[
            (Tone::Plain, "  with   "),
            (Tone::Strong, &used.revision),
            (Tone::Dim, &format!("  {} {}", used.kind, used.name)),
        ]);
    }
    let one_variant = run.metrics.windows(2).all(|two| matches!(two, [a, b] if a.variant == b.variant));
    for metric in &run.metrics {
        draw_metric(canvas, metric, one_variant);
    }
    if let Some(url) = &run.report_url {
        canvas.address("report", url);
    }
}

fn draw_metric(canvas: &mut Canvas, metric: &MetricResult, one_variant: bool) {
    let Some(value) = metric.value.value() else { return };
    let bound = |bound: &Option<crate::api::quantity::Decimal>| bound.as_ref().and_then(|bound| bound.value());
    let (lower, upper) = (bound(&metric.lower).unwrap_or(value), bound(&metric.upper).unwrap_or(value));
    let (word, tone) = match metric.passed {
        Some(true) => ("passed", Tone::Good),
        Some(false) => ("failed", Tone::Bad),
        None => ("", Tone::Plain),
    };
    // Scores lie between 0 and 1; latencies and costs get an axis of their own.
    let most = if upper <= 1.0 && lower >= 0.0 { 1.0 } else { upper.abs().max(lower.abs()) };
    let least = if lower < 0.0 { -most } else { 0.0 };
    let name = if one_variant { metric.name.clone() } else { format!("{} {}", metric.name, metric.variant) };
    canvas.line(&[
        (Tone::Plain, "  "),
        (Tone::Plain, &fit(&name, 22)),
        (Tone::Plain, " "),
        (tone, &interval(lower, value, upper, (least, most), 0.0, 31)),
        (Tone::Plain, &format!("  {value:.3} ")),
        (Tone::Dim, &format!("±{:.3} ", (upper - lower) / 2.0)),
        (tone, word),
    ]);
}
