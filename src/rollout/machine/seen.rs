//! What the machine sees: which event is there, and why.

use std::time::Duration;

use super::{MIN_STEP, Machine};
use crate::api::rollout::{ExperimentVerdict, OnInconclusive, Promotion, RolloutStep};
use crate::rollout::request::Verb;
use crate::rollout::states::{Event, State};
use crate::rollout::{Evidence, Readiness, Reading, gates, identity, is_under_way, table};

/// What the end of the ramp comes to.
pub(super) enum Outcome {
    /// Data are missing.
    Wait,
    Proceed,
    Hold(String),
    Rollback(String),
}

impl Machine<'_> {
    pub(super) fn is_there(&self, event: Event) -> bool {
        let observed = self.observed;
        let spec = observed.desired;
        let idle = matches!(self.place(), State::Idle | State::Promoted);
        let brings = table::news(spec, &self.stable).next().is_some();
        let exposed = self.weight() > 0;
        match event {
            Event::Suspended => observed.suspended,
            Event::SpecServes => !spec.is_empty() && !brings && (!idle || spec != self.stable),
            Event::NewCandidate => {
                let same = self.state.as_ref().is_some_and(|state| table::same_arms(&state.candidate, spec));
                brings && (idle || !same)
            }
            Event::RequestInvalid => self.refusal().is_some(),
            Event::PromoteAsked => self.asks(Verb::Promote),
            Event::RollbackAsked => self.asks(Verb::Rollback),
            Event::HoldAsked => self.asks(Verb::Hold),
            Event::ResumeAsked => self.asks(Verb::Resume),
            Event::CandidateFailed => matches!(observed.ready, Readiness::Failed { .. }),
            Event::GateFailed => !exposed && gates::refusal(&observed.gates).is_some(),
            Event::Harm => self.evidence().is_some_and(|evidence| evidence.harm.is_some()),
            // A hold without traffic has nothing to lose; it looks again when it goes on.
            Event::CandidateLost => !self.ready() && (exposed || self.place() != State::Holding),
            Event::PlanChanged => exposed && self.replacement().is_some(),
            Event::Blocked => self.blocked().is_some(),
            Event::Unblocked => {
                let blind = exposed && matches!(observed.reading, Reading::Failed(_));
                !blind && self.blocked().is_none()
            }
            Event::CandidateReady => self.ready(),
            Event::GatesReopened => !exposed && !gates::passed(&self.plan.gates, &observed.gates),
            Event::GatesPassed => gates::passed(&self.plan.gates, &observed.gates),
            Event::ShadowDone => self.shadow_done(),
            Event::StepDone => !self.is_last_step() && self.step_done() && !self.is_blind(),
            Event::RampDone => self.is_last_step() && matches!(self.outcome(), Outcome::Proceed),
            Event::Undecided => self.is_last_step() && matches!(self.outcome(), Outcome::Rollback(_)),
            Event::Approved => self.approved(),
        }
    }

    pub(super) fn weight(&self) -> i32 {
        self.state.as_ref().filter(|state| is_under_way(state)).map_or(0, |state| state.weight)
    }

    pub(super) fn identity(&self) -> &str {
        let candidate = self.state.as_ref().map_or(&[][..], |state| &state.candidate);
        identity(candidate, &self.stable).unwrap_or_default()
    }

    pub(super) fn ready(&self) -> bool {
        self.observed.ready == Readiness::Ready
    }

    pub(super) fn evidence(&self) -> Option<&Evidence> {
        match &self.observed.reading {
            Reading::Taken(evidence) => Some(evidence),
            Reading::None | Reading::Failed(_) => None,
        }
    }

    pub(super) fn is_blind(&self) -> bool {
        matches!(self.observed.reading, Reading::Failed(_))
    }

    pub(super) fn asks(&self, verb: Verb) -> bool {
        matches!(&self.request, Some((_, Ok(request))) if request.verb == verb)
    }

    /// Why a request cannot be followed, in whatever state that has a candidate.
    pub(super) fn refusal(&self) -> Option<String> {
        let request = match &self.request.as_ref()?.1 {
            Ok(request) => request,
            Err(error) => return Some(error.to_string()),
        };
        if matches!(self.place(), State::Idle | State::Promoted) {
            return None;
        }
        let candidate = self.identity();
        if request.revision != candidate {
            return Some(format!("`{request}` names another revision; the candidate is {candidate}"));
        }
        if request.verb != Verb::Promote || self.place() == State::RolledBack {
            return None;
        }
        let lacks = match (&self.observed.ready, &self.observed.missing) {
            (Readiness::Ready, None) => return None,
            (Readiness::Ready, Some(message))
            | (Readiness::NotReady(message) | Readiness::Failed { message, .. }, _) => message,
        };
        Some(format!("{candidate} is not ready and cannot be promoted: {lacks}; ask again when it is"))
    }

    pub(super) fn approved(&self) -> bool {
        self.plan.promotion == Promotion::Auto || self.is_approved_by_name()
    }

    pub(super) fn is_approved_by_name(&self) -> bool {
        self.plan.approve.as_deref().is_some_and(|approved| approved == self.identity())
    }

    pub(super) fn step(&self) -> Option<&RolloutStep> {
        let place = self.state.as_ref()?.step?;
        self.plan.steps.get(usize::try_from(place).ok()?)
    }

    pub(super) fn is_last_step(&self) -> bool {
        let place = self.state.as_ref().and_then(|state| state.step).unwrap_or(i32::MAX);
        i64::from(place) + 1 >= i64::try_from(self.plan.steps.len()).unwrap_or(i64::MAX)
    }

    /// Time until the present shadow or step has lasted as long as it must.
    pub(super) fn remaining(&self, least: Duration) -> Duration {
        let since = self.state.as_ref().map_or(self.now, |state| state.since.0);
        let passed = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        least.max(MIN_STEP).saturating_sub(passed)
    }

    /// Least time of the present shadow or step.
    pub(super) fn least(&self) -> Option<Duration> {
        match self.place() {
            State::Shadowing => self.plan.shadow.as_ref()?.min_duration.map(Duration::from),
            _ => self.step()?.min_duration.map(Duration::from),
        }
    }

    pub(super) fn shadow_done(&self) -> bool {
        let wanted = self.plan.shadow.as_ref().map_or(0, |shadow| u64::try_from(shadow.min_requests).unwrap_or(0));
        let answered = self.evidence().map_or(0, |evidence| evidence.shadow_requests);
        self.remaining(self.least().unwrap_or_default()).is_zero() && answered >= wanted && !self.is_blind()
    }

    pub(super) fn step_done(&self) -> bool {
        let wanted = self.step().map_or(0, |step| u64::try_from(step.min_units).unwrap_or(0));
        let met = self.evidence().map_or(0, |evidence| evidence.units);
        self.remaining(self.least().unwrap_or_default()).is_zero() && met >= wanted
    }

    pub(super) fn outcome(&self) -> Outcome {
        // A rollout whose steps were taken from the spec has nothing more to wait for.
        if self.step().is_some() && !self.step_done() {
            return Outcome::Wait;
        }
        let evidence = match &self.observed.reading {
            Reading::Failed(_) => return Outcome::Wait,
            Reading::None => return Outcome::Proceed,
            Reading::Taken(evidence) => evidence,
        };
        if self.is_approved_by_name() {
            return Outcome::Proceed;
        }
        let why = if evidence.undecided.is_empty() { String::new() } else { format!(": {}", evidence.undecided) };
        match (evidence.goal, self.plan.on_inconclusive) {
            (None | Some(ExperimentVerdict::Better | ExperimentVerdict::NotWorse), _)
            | (Some(ExperimentVerdict::Inconclusive), OnInconclusive::Promote) => Outcome::Proceed,
            (Some(ExperimentVerdict::Inconclusive), OnInconclusive::Rollback) => Outcome::Rollback(format!(
                "the ramp is over, the goal is undecided{why}, and spec.rollout.onInconclusive is Rollback (more units at the last step, by its minUnits, decide more)"
            )),
            _ => Outcome::Hold(format!(
                "the ramp is over and the goal is undecided{why}; it goes on when the data decide, `llmops promote` and `llmops rollback` decide now"
            )),
        }
    }

    /// Why it cannot go on by itself. The same in `Holding` as in the state that it is held in, so that it does not
    /// swing between the two.
    pub(super) fn blocked(&self) -> Option<String> {
        let state = self.state.as_ref()?;
        if state.held {
            return Some("a person holds it; `llmops resume` goes on".to_owned());
        }
        if let Some(missing) = &self.observed.missing {
            return Some(missing.clone());
        }
        let place = self.place();
        if state.weight == 0 {
            let judged = matches!(place, State::Gating | State::Shadowing | State::Holding);
            return gates::undecided(&self.observed.gates)
                .filter(|_| judged)
                .map(|gate| format!("{gate}; a new run opens or shuts the gate, `llmops promote` passes it by"));
        }
        if place == State::AwaitingApproval {
            return None;
        }
        if let Some(invalid) = self.evidence().and_then(|evidence| evidence.invalid.clone()) {
            return Some(invalid);
        }
        match self.outcome() {
            Outcome::Hold(why) if self.is_last_step() => Some(why),
            _ => None,
        }
    }

    /// Where the ramp is in a list of steps that has changed; `None` when it is where it says.
    pub(super) fn replacement(&self) -> Option<Option<i32>> {
        let state = self.state.as_ref()?;
        if self.step().is_some_and(|step| step.weight == state.weight) {
            return None;
        }
        let steps = &self.plan.steps;
        let place = steps.iter().rposition(|step| step.weight <= state.weight).or((!steps.is_empty()).then_some(0));
        let place = place.and_then(|place| i32::try_from(place).ok());
        (place.is_some() || state.step.is_some()).then_some(place)
    }
}
