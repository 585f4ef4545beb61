//! A rollout as a row of steps, and its gates.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::shared::{Badge, EVALUATION, Moment, Reports, Tone, count, moment, page_path, report_path, span};
use crate::api::rollout::{ArmRevision, GateStatus, GateVerdict, RolloutPhase, RolloutStatus, RolloutStep, Shadow};

/// What the spec asks of a rollout.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Whether it has gates.
    pub gated: bool,
    /// Copies of requests.
    pub shadow: Option<&'a Shadow>,
    /// The ramp.
    pub steps: &'a [RolloutStep],
    /// Whether a person approves.
    pub manual: bool,
    /// The last step that was measured, for a rollout that has ended: its status names none any more.
    pub reached: Option<i32>,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollout {
    pub badge: Badge,
    pub message: String,
    pub started: Moment,
    pub since: Moment,
    pub steps: Vec<Step>,
    pub gates: Vec<Gate>,
    pub arms: Vec<ArmChange>,
}

/// A place on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub label: String,
    pub detail: String,
    pub place: Place,
    pub word: &'static str,
    /// Set at the present step.
    pub since: Option<Moment>,
}

/// Where a step lies from the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    Done,
    Present,
    Held,
    Failed,
    Ahead,
}

/// A gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    pub evaluation: String,
    pub path: String,
    pub run: Option<String>,
    pub report: Option<String>,
    pub badge: Badge,
    pub message: String,
}

/// What the rollout changes for a variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArmChange {
    pub variant: String,
    pub stable: Option<String>,
    pub candidate: Option<String>,
}

/// Name of a phase, in words.
pub fn phase(phase: RolloutPhase) -> Badge {
    match phase {
        RolloutPhase::Preparing => Badge::new(Tone::Busy, "Preparing"),
        RolloutPhase::Gating => Badge::new(Tone::Busy, "Gates run"),
        RolloutPhase::Shadowing => Badge::new(Tone::Busy, "In shadow"),
        RolloutPhase::Progressing => Badge::new(Tone::Busy, "Progressing"),
        RolloutPhase::AwaitingApproval => Badge::new(Tone::Hold, "Awaiting approval"),
        RolloutPhase::Holding => Badge::new(Tone::Hold, "Holding"),
        RolloutPhase::Promoted => Badge::new(Tone::Good, "Promoted"),
        RolloutPhase::RolledBack => Badge::new(Tone::Bad, "Rolled back"),
    }
}

/// The view of a rollout in this namespace.
pub fn rollout(status: &RolloutStatus, plan: Plan<'_>, namespace: &str, reports: &Reports, now: Timestamp) -> Rollout {
    Rollout {
        badge: phase(status.phase),
        message: status.message.clone(),
        started: moment(status.started.0, now),
        since: moment(status.since.0, now),
        steps: steps(status, plan, now),
        gates: status.gates.iter().map(|gate| self::gate(gate, namespace, reports)).collect(),
        arms: changes(&status.stable, &status.candidate),
    }
}

fn gate(gate: &GateStatus, namespace: &str, reports: &Reports) -> Gate {
    let has_report = |run: &&String| reports.contains(&(gate.evaluation.clone(), (*run).clone()));
    Gate {
        evaluation: gate.evaluation.clone(),
        path: page_path(EVALUATION, namespace, &gate.evaluation),
        run: gate.run.clone(),
        report: gate.run.as_ref().filter(has_report).map(|run| report_path(namespace, &gate.evaluation, run)),
        badge: verdict(gate.verdict),
        message: gate.message.clone(),
    }
}

fn verdict(verdict: GateVerdict) -> Badge {
    let tone = match verdict {
        GateVerdict::Pending => Tone::Busy,
        GateVerdict::Passed => Tone::Good,
        GateVerdict::Failed => Tone::Bad,
        GateVerdict::Inconclusive => Tone::Hold,
    };
    Badge::new(tone, format!("{verdict:?}"))
}

/// Variants with their revisions before and after, in the candidate's order.
fn changes(stable: &[ArmRevision], candidate: &[ArmRevision]) -> Vec<ArmChange> {
    let revision = |arms: &[ArmRevision], variant: &str| {
        arms.iter().find(|arm| arm.variant == variant).map(|arm| arm.revision.clone())
    };
    let gone = stable.iter().filter(|old| !candidate.iter().any(|new| new.variant == old.variant));
    candidate
        .iter()
        .chain(gone)
        .map(|arm| ArmChange {
            variant: arm.variant.clone(),
            stable: revision(stable, &arm.variant),
            candidate: revision(candidate, &arm.variant),
        })
        .collect()
}

/// Which stage of the plan this is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    Gates,
    Shadow,
    Step(usize),
    Approval,
    End,
}

impl Stage {
    /// Whether nobody has met the candidate yet.
    fn before_traffic(self) -> bool {
        matches!(self, Self::Prepare | Self::Gates)
    }
}

fn steps(status: &RolloutStatus, plan: Plan<'_>, now: Timestamp) -> Vec<Step> {
    let mut stages = vec![(Stage::Prepare, "Prepare".to_owned(), String::new())];
    if plan.gated || !status.gates.is_empty() {
        let detail = match status.gates.len() {
            0 => String::new(),
            1 => "1 evaluation".into(),
            several => format!("{several} evaluations"),
        };
        stages.push((Stage::Gates, "Gates".into(), detail));
    }
    // Nobody can be compared with before the first revision serves, so it takes neither shadow nor ramp.
    if !status.stable.is_empty() {
        if let Some(shadow) = plan.shadow {
            let detail = least(shadow.min_duration.as_ref(), shadow.min_requests, "requests");
            stages.push((Stage::Shadow, format!("Shadow {} %", shadow.percent), detail));
        }
        for (place, step) in plan.steps.iter().enumerate() {
            let detail = least(step.min_duration.as_ref(), step.min_units, "units");
            stages.push((Stage::Step(place), format!("{} %", step.weight), detail));
        }
        if plan.manual || status.phase == RolloutPhase::AwaitingApproval {
            stages.push((Stage::Approval, "Approval".into(), String::new()));
        }
    }
    let end = if status.phase == RolloutPhase::RolledBack { "Rolled back" } else { "Promoted" };
    stages.push((Stage::End, end.into(), String::new()));
    let present = present(status, plan.reached);
    // The spec may have changed under the rollout: without its stage, the present one is the last that it has passed.
    let found = stages.iter().position(|(stage, ..)| Some(*stage) == present);
    let last = stages.len() - 1;
    let at = found.unwrap_or(last - 1);
    // A rollout that was rolled back somewhere behind its gates.
    let somewhere = present.is_none().then(|| stages.iter().filter(|(stage, ..)| stage.before_traffic()).count());
    let step = |(index, (_, label, detail)): (usize, (Stage, String, String))| {
        let (place, word) = match status.phase {
            RolloutPhase::Promoted => (Place::Done, "done"),
            RolloutPhase::RolledBack if index != last && somewhere.is_some_and(|from| index >= from) => {
                (Place::Ahead, "not finished")
            }
            RolloutPhase::RolledBack if somewhere.is_none() && index == at => (Place::Failed, "failed here"),
            RolloutPhase::RolledBack if index == last => (Place::Held, "now"),
            RolloutPhase::RolledBack if somewhere.is_none() && index > at => (Place::Ahead, "not reached"),
            _ if index < at || somewhere.is_some() => (Place::Done, "done"),
            _ if index > at => (Place::Ahead, "ahead"),
            RolloutPhase::Holding | RolloutPhase::AwaitingApproval => (Place::Held, "waits"),
            _ => (Place::Present, "now"),
        };
        let present =
            matches!(place, Place::Present | Place::Held) || (index == last && status.phase == RolloutPhase::Promoted);
        Step { label, detail, place, word, since: present.then(|| moment(status.since.0, now)) }
    };
    stages.into_iter().enumerate().map(step).collect()
}

/// The stage that a rollout is at, or was rolled back at; `None` when nothing tells the latter.
fn present(status: &RolloutStatus, reached: Option<i32>) -> Option<Stage> {
    let ended = status.phase == RolloutPhase::RolledBack;
    let ramp = status.step.or(reached.filter(|_| ended)).and_then(|step| usize::try_from(step).ok());
    let shut = status.gates.iter().any(|gate| gate.verdict != GateVerdict::Passed);
    Some(match (status.phase, ramp) {
        (RolloutPhase::Promoted, _) => Stage::End,
        (RolloutPhase::AwaitingApproval, _) => Stage::Approval,
        (RolloutPhase::Shadowing, _) => Stage::Shadow,
        (RolloutPhase::Gating, _) => Stage::Gates,
        (RolloutPhase::Preparing, _) => Stage::Prepare,
        (_, Some(step)) => Stage::Step(step),
        (_, None) if shut => Stage::Gates,
        (RolloutPhase::RolledBack, None) => return None,
        (_, None) if status.gates.is_empty() => Stage::Prepare,
        (_, None) => Stage::Shadow,
    })
}

fn least(duration: Option<&kube::core::Duration>, number: i32, what: &str) -> String {
    let duration = duration.map(|duration| Duration::from(*duration).as_secs()).filter(|seconds| *seconds > 0);
    let time = duration.map(|seconds| span(i64::try_from(seconds).unwrap_or(i64::MAX)));
    let units = (number > 0).then(|| format!("{} {what}", count(i64::from(number))));
    let parts: Vec<String> = time.into_iter().chain(units).collect();
    if parts.is_empty() { String::new() } else { format!("at least {}", parts.join(", ")) }
}
