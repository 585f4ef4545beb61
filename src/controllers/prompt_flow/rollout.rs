//! What a flow's rollout does now, pure: the flow seen by [`crate::rollout`], and the decision as the flow's status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::compile::Compiled;
use super::split;
use super::{Fetched, Measured, Valid};
use crate::api::prompt_flow::{FlowSwitch, FlowTraffic, PromptFlowSpec};
use crate::api::rollout::{
    ArmRevision, ExperimentStatus, GateStatus, GateVerdict, MetricKind, RejectedRevision, RolloutStatus,
};
use crate::api::{PromptFlow, PromptFlowStatus, names};
use crate::controllers::events::Note;
use crate::experiment::measurements::{ArmMeasurements, Measurements, stratum};
use crate::experiment::{self, SampleRatio};
use crate::rollout::{
    self, Decision, Evidence, Observed, Plan, Readiness, Reading, gates, is_under_way, needs_reading, table,
};

/// Time between two looks at measurements.
pub const POLL: Duration = Duration::from_secs(5);
/// Rejections that the status remembers.
const REMEMBERED: usize = 10;

/// What `build` decided, for `status`.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What the machine said.
    pub decision: Decision,
    /// The revisions that are rejected now.
    pub rejected: Vec<RejectedRevision>,
    /// What the split has shown, as the status shall say it.
    pub experiment: Option<ExperimentStatus>,
    /// The sample ratio as it was measured just now.
    pub ratio: Option<SampleRatio>,
    /// Moment at which the routing table changes over, and what held before.
    pub switch: Option<FlowSwitch>,
    /// Request that was acted upon last.
    pub handled: Option<String>,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// When to look again.
    pub again: Option<Duration>,
    /// The gateways have not changed over to the last table: nothing is decided before.
    pub postponed: bool,
}

/// The plan of a flow's spec.
pub fn plan(spec: &PromptFlowSpec) -> Plan {
    let rollout = &spec.rollout;
    Plan {
        gates: rollout.gates.iter().map(|gate| gate.evaluation_ref.name.clone()).collect(),
        shadow: rollout.shadow.clone(),
        steps: rollout.steps.clone(),
        on_inconclusive: rollout.on_inconclusive,
        promotion: spec.experiment.as_ref().map(|experiment| experiment.promotion).unwrap_or_default(),
        approve: rollout.approve.clone(),
    }
}

/// The release that serves outside a rollout. Statuses of operators that knew no rollouts have only the table.
pub fn stable(status: &PromptFlowStatus) -> Vec<ArmRevision> {
    if status.stable.is_empty() && status.rollout.is_none() {
        status.traffic.iter().map(arm_of).collect()
    } else {
        status.stable.clone()
    }
}

/// Since when measurements count, when they are needed.
pub fn measured_since(object: &PromptFlow) -> Option<jiff::Timestamp> {
    let status = object.status.as_ref()?;
    let created = || object.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0);
    match status.rollout.as_ref().filter(|state| is_under_way(state)) {
        Some(state) => needs_reading(state).then_some(state.started.0),
        None if !split::is_split(&object.spec, status) => None,
        None => {
            // Other weights or another release begin the comparison anew.
            let ended = status.rollout.as_ref().map(|state| state.since.0);
            let switched = status.switch.as_ref().map(|switch| switch.at.0);
            Some(ended.max(switched).unwrap_or_else(created))
        }
    }
}

/// Decides.
pub fn decide(object: &PromptFlow, fetched: &Fetched, valid: &Valid, now: jiff::Timestamp) -> Outcome {
    let unknown = PromptFlowStatus::default();
    let previous = object.status.as_ref().unwrap_or(&unknown);
    let spec = &object.spec;
    let before = stable(previous);
    let state = previous.rollout.as_ref();
    let mut rejected = previous.rejected_revisions.clone();
    let mut notes = Vec::new();
    let mut handled = None;

    let annotation = object.annotations().get(names::ANNOTATION_ROLLOUT).map(String::as_str);
    let mut request = annotation.filter(|text| previous.last_handled_rollout_request.as_deref() != Some(*text));
    let mut shown: Option<(ExperimentStatus, SampleRatio)> = None;
    let mut reading = Reading::None;
    if let Some(state) = state.filter(|state| is_under_way(state)) {
        (reading, shown) = ramp(spec, state, &before, &previous.traffic, &fetched.measured, now);
    } else {
        if let Some(text) = request
            && let Some(restored) = split::restore(text, &before, &mut rejected)
        {
            notes.push(Note::normal("VariantRestored", format!("{restored} takes part again, as a person asked")));
            handled = request.take().map(str::to_owned);
        }
        if let Measured::Taken(measured) = &fetched.measured {
            let look = split::read(spec, previous, &before, measured, now);
            for rejection in &look.rejected {
                rejection.remember(&mut rejected, now, REMEMBERED);
                notes.push(Note::warning(split::event(rejection), rejection.message.clone()));
            }
            shown = look.shown;
        }
    }
    let asked = desired(valid, state);
    let desired = split::without(&asked, &before, &rejected);
    let (ready, missing) = readiness(valid, state, &desired);
    let observed = Observed {
        desired: &desired,
        stable: &before,
        ready,
        missing,
        gates: gates_of(object, fetched, &desired),
        reading,
        request,
        suspended: false,
    };
    let decision = rollout::next(&plan(spec), state, &observed, now);
    conclude(previous, decision, Draft { rejected, notes, handled, shown }, spec, now)
}

struct Draft {
    rejected: Vec<RejectedRevision>,
    notes: Vec<Note>,
    handled: Option<String>,
    shown: Option<(ExperimentStatus, SampleRatio)>,
}

fn conclude(
    previous: &PromptFlowStatus,
    decision: Decision,
    draft: Draft,
    spec: &PromptFlowSpec,
    now: jiff::Timestamp,
) -> Outcome {
    let Draft { mut rejected, mut notes, handled, shown } = draft;
    let traffic: Vec<FlowTraffic> = decision.table.iter().map(traffic_of).collect();
    let changes = !previous.traffic.is_empty() && traffic != previous.traffic;
    // A change on top of one that has not taken effect would send units there and back on gateways that see the two at
    // different moments.
    let pending = previous.switch.as_ref().filter(|switch| changes && switch.at.0 > now);
    let switch = if changes {
        Some(FlowSwitch { at: Time(change_over(now)), from: previous.traffic.clone() })
    } else {
        previous.switch.clone()
    };
    decision.update_rejected(&mut rejected, now, REMEMBERED);
    notes.extend(decision.notes.iter().map(|note| {
        let make = if note.warning { Note::warning } else { Note::normal };
        make(note.reason, note.message.clone())
    }));
    let (experiment, ratio) = match shown {
        // What was measured before is about another candidate.
        _ if decision.begun => (None, None),
        None => (previous.experiment.clone(), None),
        Some((mut fresh, ratio)) => {
            if let Some(state) = decision.state.as_ref().filter(|state| is_under_way(state)) {
                fresh.step = state.step;
            }
            (Some(worth_writing(previous.experiment.as_ref(), fresh)), Some(ratio))
        }
    };
    let status = PromptFlowStatus { traffic, ..PromptFlowStatus::default() };
    let measures = match decision.state.as_ref().filter(|state| is_under_way(state)) {
        Some(state) => needs_reading(state),
        None => split::is_split(spec, &status),
    };
    let again = pending.map(|switch| until(switch.at.0, now)).or_else(|| {
        let poll = measures.then_some(POLL);
        [decision.again, poll].into_iter().flatten().min()
    });
    Outcome {
        handled: decision.handled.clone().or(handled).or_else(|| previous.last_handled_rollout_request.clone()),
        rejected,
        experiment,
        ratio,
        switch,
        notes,
        again,
        postponed: pending.is_some(),
        decision,
    }
}

/// What the spec asks for; what it asked for last where that cannot be told now.
fn desired(valid: &Valid, state: Option<&RolloutStatus>) -> Vec<ArmRevision> {
    if valid.compiled.is_empty() {
        state.map(|state| state.candidate.clone()).unwrap_or_default()
    } else {
        valid.compiled.iter().map(arm).collect()
    }
}

/// Revisions are ready as soon as they are written, which happens before the status. What lacks a reference waits; what
/// is on its way and loses one is held where it is.
fn readiness(valid: &Valid, state: Option<&RolloutStatus>, desired: &[ArmRevision]) -> (Readiness, Option<String>) {
    let Some(problem) = &valid.problem else { return (Readiness::Ready, None) };
    let message = problem.to_string();
    let same = state.is_some_and(|state| table::same_arms(&state.candidate, desired));
    let ready = if same { Readiness::Ready } else { Readiness::NotReady(message.clone()) };
    (ready, Some(message))
}

fn gates_of(object: &PromptFlow, fetched: &Fetched, candidate: &[ArmRevision]) -> Vec<GateStatus> {
    let flow = object.name_any();
    let gate = |name: &String| {
        let evaluation = fetched.evaluations.get(name);
        let target = evaluation.map(|evaluation| evaluation.spec.target.prompt_flow_ref.as_ref());
        if let Some(target) = target
            && target.is_none_or(|target| target.name != flow)
        {
            return GateStatus {
                evaluation: name.clone(),
                run: None,
                verdict: GateVerdict::Inconclusive,
                message: format!(
                    "Evaluation `{name}` does not evaluate this flow; set its spec.target.promptFlowRef.name to {flow}"
                ),
            };
        }
        let variants = evaluation.map(|evaluation| evaluation.spec.variants.clone()).unwrap_or_default();
        gates::gate(name, evaluation, |run| gates::judged(run, candidate, &variants))
    };
    plan(&object.spec).gates.iter().map(gate).collect()
}

/// What users' requests have shown of the candidate, and what to tell of it.
fn ramp(
    spec: &PromptFlowSpec,
    state: &RolloutStatus,
    stable: &[ArmRevision],
    traffic: &[FlowTraffic],
    measured: &Measured,
    now: jiff::Timestamp,
) -> (Reading, Option<(ExperimentStatus, SampleRatio)>) {
    let measured = match measured {
        Measured::Nothing => return (Reading::None, None),
        Measured::Failed(why) => return (Reading::Failed(format!("it cannot be measured: {why}")), None),
        Measured::Taken(measured) => measured,
    };
    let plan = match experiment::Plan::new(spec.experiment.as_ref(), true, 1) {
        Ok(plan) => plan,
        Err(error) => return (Reading::Failed(error.to_string()), None),
    };
    let (control, treatment) = table::compared(stable, &state.candidate);
    let read = experiment::read(&plan, measured, experiment::plan::CANDIDATE, &control, &treatment);
    let shadow = || shadow_harm(&plan, measured, &control, &treatment);
    let harm = read.harm.as_ref().map(|harm| harm.message.clone());
    let evidence = Evidence {
        units: units_now(measured, traffic, &treatment),
        shadow_requests: measured
            .arms
            .iter()
            .filter(|arm| arm.shadow && holds(&treatment, &arm.variant, &arm.revision))
            .map(|arm| arm.requests)
            .sum(),
        invalid: read.ratio.broken.then(|| read.ratio.message.clone()),
        goal: read.goal,
        harm: if rollout::shadows(state) { shadow() } else { harm },
        undecided: read
            .comparisons
            .first()
            .filter(|first| first.goal)
            .map_or_else(String::new, |goal| goal.message.clone()),
    };
    // Before anybody met the table there is nothing to tell, and a status write less.
    let shown = (state.weight > 0 && read.units > 0).then(|| {
        let status = experiment::status(std::slice::from_ref(&read), state.step, Some(Time(now)));
        (status, read.ratio)
    });
    (Reading::Taken(evidence), shown)
}

/// Harm that the copies show: they fail where the same users' own requests do not. Nobody rates what nobody sees, and the
/// time of a copy is not that of a request, so only the error rate is compared. Each side's share is that of its units:
/// the routing table says nothing about copies.
fn shadow_harm(
    plan: &experiment::Plan,
    measured: &Measurements,
    control: &[ArmRevision],
    treatment: &[ArmRevision],
) -> Option<String> {
    let errors = plan.guardrails.iter().filter(|guardrail| guardrail.metric.kind == MetricKind::ErrorRate);
    let plan = experiment::Plan { goal: None, guardrails: errors.cloned().collect(), ..plan.clone() };
    let side =
        |arm: &&ArmMeasurements| holds(if arm.shadow { treatment } else { control }, &arm.variant, &arm.revision);
    let arms = measured.arms.iter().filter(side).map(|arm| ArmMeasurements {
        stratum: "shadow".to_owned(),
        weight: i32::try_from(arm.units).unwrap_or(i32::MAX),
        shadow: false,
        ..arm.clone()
    });
    let together = Measurements { arms: arms.collect() };
    experiment::read(&plan, &together, "shadow", control, treatment).harm.map(|harm| harm.message)
}

/// Units that met the treatment under the table that holds now: those of the present step.
fn units_now(measured: &Measurements, traffic: &[FlowTraffic], treatment: &[ArmRevision]) -> u64 {
    let now = stratum(traffic.iter().map(|arm| (arm.variant.as_str(), arm.revision.as_str(), arm.weight)));
    let met = measured.arms.iter().filter(|arm| !arm.shadow && arm.stratum == now);
    met.filter(|arm| holds(treatment, &arm.variant, &arm.revision)).map(|arm| arm.units).sum()
}

fn holds(arms: &[ArmRevision], variant: &str, revision: &str) -> bool {
    arms.iter().any(|arm| arm.variant == variant && arm.revision == revision)
}

/// The new measurements where they say something new, else the old ones: units grow with every request, and each write
/// of a status wakes everybody who watches it.
fn worth_writing(old: Option<&ExperimentStatus>, new: ExperimentStatus) -> ExperimentStatus {
    let Some(old) = old else { return new };
    let said = |status: &ExperimentStatus| {
        status
            .metrics
            .iter()
            .map(|metric| (metric.name.clone(), metric.arm.clone(), metric.verdict))
            .collect::<Vec<_>>()
    };
    let grown = new.units.saturating_mul(10) >= old.units.saturating_mul(11) && new.units > old.units;
    let shrunk = new.units < old.units;
    if grown || shrunk || old.step != new.step || said(old) != said(&new) { new } else { old.clone() }
}

/// The moment at which all gateways change over: far enough for every one to have seen the status. Statuses know whole
/// seconds, so it is rounded up.
fn change_over(now: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(now.as_second().saturating_add(2)).unwrap_or(now)
}

fn until(at: jiff::Timestamp, now: jiff::Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

fn arm(compiled: &Compiled) -> ArmRevision {
    ArmRevision { variant: compiled.variant.clone(), revision: compiled.revision.clone(), weight: compiled.weight }
}

/// An entry of the routing table as an arm.
pub fn arm_of(entry: &FlowTraffic) -> ArmRevision {
    ArmRevision { variant: entry.variant.clone(), revision: entry.revision.clone(), weight: entry.weight }
}

/// An arm as an entry of the routing table.
pub fn traffic_of(arm: &ArmRevision) -> FlowTraffic {
    FlowTraffic { variant: arm.variant.clone(), revision: arm.revision.clone(), weight: arm.weight }
}
