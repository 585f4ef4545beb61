//! A rollout as a list of its stages, and what the split shows.

use jiff::Timestamp;

use super::canvas::{Canvas, Tone, ago, fit, interval, lasting};
use crate::api::rollout::{
    ArmRevision, ComparisonStatus, ExperimentStatus, ExperimentVerdict, GateVerdict, RejectedRevision, RolloutPhase,
    RolloutStatus, RolloutStep, Shadow,
};

/// What the spec says of the way; the status names places in it.
#[derive(Debug, Default)]
pub struct Way<'a> {
    /// Copies of requests first.
    pub shadow: Option<&'a Shadow>,
    /// The ramp.
    pub steps: &'a [RolloutStep],
    /// Whether a person must approve.
    pub manual: bool,
}

/// Whether it goes on, by itself or by a person.
pub fn is_under_way(phase: RolloutPhase) -> bool {
    !matches!(phase, RolloutPhase::Promoted | RolloutPhase::RolledBack)
}

/// The phase in words, and how it looks.
pub fn phase(phase: RolloutPhase) -> (&'static str, Tone) {
    match phase {
        RolloutPhase::Preparing => ("preparing", Tone::Busy),
        RolloutPhase::Gating => ("gates run", Tone::Busy),
        RolloutPhase::Shadowing => ("in shadow", Tone::Busy),
        RolloutPhase::Progressing => ("progressing", Tone::Busy),
        RolloutPhase::AwaitingApproval => ("awaits approval", Tone::Busy),
        RolloutPhase::Holding => ("holding", Tone::Busy),
        RolloutPhase::Promoted => ("promoted", Tone::Good),
        RolloutPhase::RolledBack => ("rolled back", Tone::Bad),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Done,
    Now,
    Held,
    Failed,
    Later,
}

impl Mark {
    fn sign(self) -> (&'static str, Tone) {
        match self {
            Self::Done => ("✓", Tone::Good),
            Self::Now => ("▶", Tone::Busy),
            Self::Held => ("‖", Tone::Busy),
            Self::Failed => ("✗", Tone::Bad),
            Self::Later => ("·", Tone::Dim),
        }
    }
}

/// Places on the way, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Ready,
    Gates,
    Shadow,
    Step(i32),
    Approval,
    End,
}

fn place(rollout: &RolloutStatus, way: &Way<'_>) -> Place {
    let has_shut_gate = rollout.gates.iter().any(|gate| gate.verdict != GateVerdict::Passed);
    match (rollout.phase, rollout.step) {
        (RolloutPhase::Preparing, _) => Place::Ready,
        (RolloutPhase::Gating, _) => Place::Gates,
        (RolloutPhase::Shadowing, _) => Place::Shadow,
        (RolloutPhase::AwaitingApproval, _) => Place::Approval,
        (RolloutPhase::Promoted, _) => Place::End,
        (_, Some(step)) => Place::Step(step),
        // Before the first step: at a gate that did not open, else in shadow.
        (_, None) if has_shut_gate => Place::Gates,
        (RolloutPhase::Holding, None) if way.shadow.is_some() => Place::Shadow,
        (RolloutPhase::Holding, None) => Place::Gates,
        (_, None) => Place::End,
    }
}

/// Draws the stages: what is done, where it is, what comes.
pub fn draw(canvas: &mut Canvas, rollout: &RolloutStatus, way: &Way<'_>, now: Timestamp) {
    let names = |arms: &[ArmRevision]| {
        let mut revisions: Vec<&str> = arms.iter().map(|arm| arm.revision.as_str()).collect();
        revisions.dedup();
        revisions.join(", ")
    };
    let what = match rollout.stable.as_slice() {
        [] => format!("{}, the first release", names(&rollout.candidate)),
        stable => format!("{} for {}", names(&rollout.candidate), names(stable)),
    };
    let here =
        if is_under_way(rollout.phase) { format!(", here since {}", ago(now, &rollout.since)) } else { String::new() };
    canvas.section("Rollout", &format!("{what}, began {}{here}", ago(now, &rollout.started)));
    let at = place(rollout, way);
    let stopped = match rollout.phase {
        RolloutPhase::RolledBack => Mark::Failed,
        RolloutPhase::Holding => Mark::Held,
        RolloutPhase::Promoted => Mark::Done,
        _ => Mark::Now,
    };
    let mark = |place: Place| match place.cmp(&at) {
        std::cmp::Ordering::Less => Mark::Done,
        std::cmp::Ordering::Equal => stopped,
        std::cmp::Ordering::Greater => Mark::Later,
    };
    let longest = rollout.gates.iter().map(|gate| gate.evaluation.chars().count() + 5).max().unwrap_or_default();
    let column = longest.clamp(21, 40);
    let mut stage = |mark: Mark, name: &str, told: &str| {
        let (sign, tone) = mark.sign();
        let words = if mark == Mark::Later { Tone::Dim } else { Tone::Plain };
        let name = fit(name, column);
        canvas.line(&[
            (Tone::Plain, "  "),
            (tone, sign),
            (Tone::Plain, " "),
            (words, &name),
            (words, " "),
            (words, told),
        ]);
    };
    stage(mark(Place::Ready), "ready, nobody gets it", "");
    for gate in &rollout.gates {
        let mark = match gate.verdict {
            GateVerdict::Passed => Mark::Done,
            GateVerdict::Failed => Mark::Failed,
            GateVerdict::Inconclusive => Mark::Held,
            GateVerdict::Pending if at > Place::Gates => Mark::Done,
            GateVerdict::Pending => mark(Place::Gates),
        };
        let verdict = match gate.verdict {
            GateVerdict::Pending => "pending",
            GateVerdict::Passed => "passed",
            GateVerdict::Failed => "failed",
            GateVerdict::Inconclusive => "inconclusive",
        };
        let told = if gate.message.is_empty() { verdict.to_owned() } else { format!("{verdict}: {}", gate.message) };
        stage(mark, &format!("gate {}", gate.evaluation), &told);
    }
    if let Some(shadow) = way.shadow {
        let mut wants = vec![format!("{}% of requests copied", shadow.percent)];
        wants.extend(shadow.min_duration.map(|least| format!("for {}", lasting(least.into()))));
        wants.extend((shadow.min_requests > 0).then(|| format!("{} answers", shadow.min_requests)));
        stage(mark(Place::Shadow), "shadow", &wants.join(", "));
    }
    for (number, step) in (0..).zip(way.steps) {
        let mut wants = Vec::new();
        wants.extend(step.min_duration.map(|least| lasting(least.into())));
        wants.extend((step.min_units > 0).then(|| format!("{} units", step.min_units)));
        stage(mark(Place::Step(number)), &format!("step {:<2} {:>3}%", number + 1, step.weight), &wants.join(", "));
    }
    if way.manual || rollout.phase == RolloutPhase::AwaitingApproval {
        stage(mark(Place::Approval), "approval of a person", "");
    }
    match rollout.phase {
        RolloutPhase::RolledBack if at == Place::End => stage(Mark::Failed, "rolled back", ""),
        RolloutPhase::RolledBack => {}
        _ => stage(mark(Place::End), "everybody gets it", ""),
    }
}

/// Draws the metrics with their confidence intervals.
pub fn experiment(canvas: &mut Canvas, experiment: &ExperimentStatus, now: Timestamp) {
    let ratio = match experiment.srm_p_value.as_ref().and_then(|p| Some((p, p.value()?))) {
        Some((p, value)) if value < 0.001 => format!(", sample ratio WRONG (p = {p})"),
        Some((p, _)) => format!(", sample ratio fine (p = {p})"),
        None => String::new(),
    };
    let measured = experiment.measured.as_ref().map(|at| format!(", measured {}", ago(now, at))).unwrap_or_default();
    canvas.section("Experiment", &format!("{} units{ratio}{measured}", experiment.units));
    for metric in &experiment.metrics {
        comparison(canvas, metric);
    }
}

fn comparison(canvas: &mut Canvas, metric: &ComparisonStatus) {
    let (verdict, tone) = match metric.verdict {
        ExperimentVerdict::Better => ("Better", Tone::Good),
        ExperimentVerdict::NotWorse => ("NotWorse", Tone::Good),
        ExperimentVerdict::Worse => ("Worse", Tone::Bad),
        ExperimentVerdict::Inconclusive => ("Inconclusive", Tone::Busy),
        ExperimentVerdict::Invalid => ("Invalid", Tone::Bad),
    };
    let role = if metric.goal { "goal" } else { "guardrail" };
    let name = fit(&format!("{}, {role}", metric.name), 26);
    let number = |value: &Option<crate::api::quantity::Decimal>| value.as_ref().and_then(|value| value.value());
    let means = match (number(&metric.treatment), number(&metric.control)) {
        (Some(treatment), Some(control)) => format!("{} {treatment:.3} against {control:.3}", metric.arm),
        _ => metric.arm.clone(),
    };
    canvas.line(&[
        (Tone::Plain, "  "),
        (Tone::Plain, &name),
        (Tone::Plain, " "),
        (tone, &fit(verdict, 13)),
        (Tone::Plain, &means),
    ]);
    if let (Some(lower), Some(middle), Some(upper)) =
        (number(&metric.lower), number(&metric.difference), number(&metric.upper))
    {
        let most = lower.abs().max(upper.abs());
        let plot = interval(lower, middle, upper, (-most, most), 0.0, 31);
        let units = format!("  {} / {} units", metric.treatment_units, metric.control_units);
        canvas.line(&[
            (Tone::Dim, &format!("    {lower:>+9.3} ")),
            (tone, &plot),
            (Tone::Dim, &format!(" {upper:<+9.3}")),
            (Tone::Dim, &units),
        ]);
    }
    canvas.prose(4, Tone::Dim, &metric.message);
}

/// Draws what was refused, the newest first; `told` was said already.
pub fn rejected(canvas: &mut Canvas, rejected: &[RejectedRevision], told: &str, now: Timestamp) {
    if rejected.is_empty() {
        return;
    }
    canvas.section("Rejected", "not tried again while Git asks for it");
    for one in rejected.iter().rev().take(3) {
        canvas.line(&[
            (Tone::Plain, "  "),
            (Tone::Strong, &one.revision),
            (Tone::Plain, "  "),
            (Tone::Bad, &one.reason),
            (Tone::Dim, &format!(", {}", ago(now, &one.time))),
        ]);
        if !told.contains(&one.message) {
            canvas.prose(4, Tone::Plain, &one.message);
        }
    }
    if rejected.len() > 3 {
        canvas.line(&[(Tone::Dim, &format!("  and {} before", rejected.len() - 3))]);
    }
}
