//! The machine: sees which event is there ([`seen`]), looks its action up in the table, does it.

mod seen;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use self::seen::Outcome;
use super::request::Request;
use super::states::{Action, Event, State, action};
use super::{Decision, Note, Observed, Plan, Readiness, Reading, Rejection, gates, identity, reason, table};
use crate::api::rollout::{ArmRevision, RolloutPhase, RolloutStatus};

/// Least time of a step or of the shadow: the gateways have changed over and something was measured before the next.
pub const MIN_STEP: Duration = Duration::from_secs(5);
/// More actions than any observation leads to: from an abandoned ramp through all that a plan has.
const MAX_ACTIONS: usize = 64;

/// What to do now, given the plan, the state before, and what there is.
pub fn next(plan: &Plan, state: Option<&RolloutStatus>, observed: &Observed<'_>, now: jiff::Timestamp) -> Decision {
    let mut machine = Machine {
        plan,
        observed,
        now,
        state: state.cloned(),
        stable: observed.stable.to_vec(),
        request: observed.request.map(|text| (text, text.parse())),
        decision: Decision {
            state: None,
            stable: Vec::new(),
            table: Vec::new(),
            begun: false,
            rejected: None,
            handled: None,
            notes: Vec::new(),
            again: None,
        },
    };
    machine.adopt();
    for _ in 0..MAX_ACTIONS {
        let Some((event, wanted)) = machine.event() else { break };
        if wanted == Action::Freeze {
            break;
        }
        machine.act(event, wanted);
    }
    machine.conclude()
}

struct Machine<'a> {
    plan: &'a Plan,
    observed: &'a Observed<'a>,
    now: jiff::Timestamp,
    state: Option<RolloutStatus>,
    stable: Vec<ArmRevision>,
    /// The request that is still to be handled, and what it says.
    request: Option<(&'a str, Result<Request, super::request::NoRequest>)>,
    decision: Decision,
}

impl Machine<'_> {
    fn place(&self) -> State {
        State::of(self.state.as_ref().map(|state| state.phase))
    }

    /// Takes over what changes without an event: the candidate's weights follow the spec while its revisions stay, and
    /// the gates are as they are seen until somebody gets the candidate; then they stay as they opened.
    fn adopt(&mut self) {
        let Some(state) = &mut self.state else { return };
        let same = table::same_arms(&state.candidate, self.observed.desired);
        if self.observed.suspended || state.phase == RolloutPhase::Promoted || !same {
            return;
        }
        state.candidate = self.observed.desired.to_vec();
        if super::is_under_way(state) && state.weight == 0 {
            state.gates.clone_from(&self.observed.gates);
        }
    }

    /// The first event that is there and that the table has an action for.
    fn event(&self) -> Option<(Event, Action)> {
        let place = self.place();
        Event::ALL.into_iter().find_map(|event| {
            let wanted = action(place, event)?;
            self.is_there(event).then_some((event, wanted))
        })
    }

    fn act(&mut self, event: Event, wanted: Action) {
        match wanted {
            Action::Freeze => {}
            Action::Serve => {
                let desired = self.observed.desired.to_vec();
                if !table::same_arms(&desired, &self.stable) {
                    self.note("RevisionServing", format!("{} serves now", summary(&desired)));
                }
                self.stable = desired;
            }
            Action::Withdraw => {
                if self.state.as_ref().is_some_and(super::is_under_way) {
                    self.note("RolloutWithdrawn", "the spec asks again for what serves".to_owned());
                }
                self.state = None;
            }
            Action::Begin => self.begin(event),
            Action::Refuse => {
                let message = self.refusal().unwrap_or_else(|| self.pointless());
                self.warn("RequestRefused", message);
                self.handle();
            }
            Action::Promote => self.promote(event),
            Action::Reject => self.reject(event),
            Action::Hold => {
                if let Some(state) = &mut self.state {
                    state.held = true;
                }
                self.handle();
            }
            Action::Release => {
                let held = self.state.as_mut().is_some_and(|state| std::mem::take(&mut state.held));
                if !held {
                    let why = self.blocked().unwrap_or_default();
                    self.warn("RequestRefused", format!("no person holds it; it waits: {why}"));
                }
                self.handle();
            }
            Action::Withhold => {
                self.enter(RolloutPhase::Preparing);
                self.place_at(None, 0);
                self.adopt();
            }
            Action::Replace => {
                if let Some(place) = self.replacement() {
                    let weight = self.weight();
                    let step = place.and_then(|place| self.plan.steps.get(usize::try_from(place).ok()?));
                    let weight = step.map_or(weight, |step| step.weight);
                    self.place_at(place, weight);
                }
            }
            Action::Stay => {
                let why = self.blocked().unwrap_or_default();
                self.enter(RolloutPhase::Holding);
                self.note("RolloutHolding", why);
            }
            Action::Continue => {
                let phase = if self.weight() > 0 { RolloutPhase::Progressing } else { RolloutPhase::Gating };
                self.enter(phase);
            }
            Action::Gate => self.enter(RolloutPhase::Gating),
            Action::Advance => self.advance(event),
            Action::NextStep => {
                let place = self.state.as_ref().and_then(|state| state.step).map_or(0, |step| step.saturating_add(1));
                self.start_step(place);
            }
            Action::Finish => self.finish(event),
        }
    }

    fn begin(&mut self, event: Event) {
        if event == Event::PromoteAsked {
            self.handle();
        }
        self.decision.begun = true;
        let ended = self.state.take().filter(super::is_under_way);
        let candidate = self.observed.desired.to_vec();
        let name = identity(&candidate, &self.stable).unwrap_or_default().to_owned();
        if !self.plan.is_immediate() && !self.stable.is_empty() {
            let before = ended.map_or_else(String::new, |old| {
                let old = identity(&old.candidate, &self.stable).unwrap_or_default().to_owned();
                format!("; the rollout of {old} ends")
            });
            self.note("RolloutStarted", format!("{name} is the candidate{before}"));
        }
        self.state = Some(RolloutStatus {
            phase: RolloutPhase::Preparing,
            stable: self.stable.clone(),
            candidate,
            started: Time(self.now),
            step: None,
            since: Time(self.now),
            weight: 0,
            gates: self.observed.gates.clone(),
            held: false,
            message: String::new(),
        });
    }

    fn advance(&mut self, event: Event) {
        let first = self.stable.is_empty();
        if first {
            self.promote(event);
        } else if self.plan.shadow.is_some() && event == Event::GatesPassed {
            self.enter(RolloutPhase::Shadowing);
        } else if self.plan.steps.is_empty() {
            self.finish(event);
        } else {
            self.enter(RolloutPhase::Progressing);
            self.start_step(0);
        }
    }

    fn start_step(&mut self, place: i32) {
        let step = usize::try_from(place).ok().and_then(|place| self.plan.steps.get(place));
        let Some(weight) = step.map(|step| step.weight) else { return };
        self.place_at(Some(place), weight);
        let text = format!(
            "step {} of {}: {weight} % of the units get {}",
            i64::from(place) + 1,
            self.plan.steps.len(),
            self.identity()
        );
        self.note("RolloutStep", text);
    }

    fn finish(&mut self, event: Event) {
        if self.approved() {
            self.promote(event);
        } else {
            self.enter(RolloutPhase::AwaitingApproval);
            let text = format!("{} waits for approval", self.identity());
            self.note("RolloutAwaitsApproval", text);
        }
    }

    fn promote(&mut self, event: Event) {
        if event == Event::PromoteAsked {
            self.handle();
        }
        let Some(state) = &mut self.state else { return };
        state.phase = RolloutPhase::Promoted;
        state.since = Time(self.now);
        state.step = None;
        state.weight = 100;
        state.held = false;
        let promoted = state.candidate.clone();
        if !self.stable.is_empty() {
            self.note("RevisionServing", format!("{} serves now", summary(&promoted)));
        }
        self.stable = promoted;
    }

    fn reject(&mut self, event: Event) {
        let (reason, message) = self.cause(event);
        if event == Event::RollbackAsked {
            self.handle();
        }
        let Some(state) = &mut self.state else { return };
        let mut revisions: Vec<String> =
            table::news(&state.candidate, &self.stable).map(|arm| arm.revision.clone()).collect();
        revisions.sort();
        revisions.dedup();
        state.phase = RolloutPhase::RolledBack;
        state.since = Time(self.now);
        state.step = None;
        state.weight = 0;
        state.held = false;
        state.message.clone_from(&message);
        self.decision.notes.push(Note {
            warning: true,
            reason,
            message: format!("{} is rejected: {message}", revisions.join(", ")),
        });
        let message = format!("{message}; commit another revision, or `llmops promote` tries this one again");
        self.decision.rejected = Some(Rejection { revisions, reason: reason.to_owned(), message });
    }

    fn cause(&self, event: Event) -> (&'static str, String) {
        match (event, &self.observed.ready) {
            (Event::CandidateFailed, Readiness::Failed { reason, message }) => (reason, message.clone()),
            (Event::GateFailed, _) => {
                (reason::EVALUATION_FAILED, gates::refusal(&self.observed.gates).unwrap_or_default())
            }
            (Event::RollbackAsked, _) => (reason::ROLLED_BACK_BY_USER, "a person asked for it".to_owned()),
            (Event::Undecided, _) => match self.outcome() {
                Outcome::Rollback(why) | Outcome::Hold(why) => (reason::UNDECIDED, why),
                Outcome::Wait | Outcome::Proceed => (reason::UNDECIDED, String::new()),
            },
            _ => {
                let harm = self.evidence().and_then(|evidence| evidence.harm.clone()).unwrap_or_default();
                (reason::METRIC_REGRESSION, harm)
            }
        }
    }

    fn pointless(&self) -> String {
        let what = self.request.as_ref().map_or("", |(text, _)| text);
        match self.place() {
            State::Idle | State::Promoted => format!("`{what}`: no rollout is under way"),
            State::RolledBack => format!("`{what}`: the revision is rolled back already"),
            _ => format!("`{what}`: nobody holds it"),
        }
    }

    /// The request is done with.
    fn handle(&mut self) {
        if let Some((text, _)) = self.request.take() {
            self.decision.handled = Some(text.to_owned());
        }
    }

    /// Enters a phase. The time of a step goes on while it is held.
    fn enter(&mut self, phase: RolloutPhase) {
        if let Some(state) = &mut self.state
            && state.phase != phase
        {
            state.phase = phase;
            if state.weight == 0 {
                state.since = Time(self.now);
            }
        }
    }

    fn place_at(&mut self, step: Option<i32>, weight: i32) {
        if let Some(state) = &mut self.state {
            state.step = step;
            state.weight = weight;
            state.since = Time(self.now);
        }
    }

    fn note(&mut self, reason: &'static str, message: String) {
        self.decision.notes.push(Note { warning: false, reason, message });
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.decision.notes.push(Note { warning: true, reason, message });
    }

    fn conclude(mut self) -> Decision {
        if let Some(state) = self.state.as_ref().filter(|state| super::is_under_way(state))
            && !self.observed.suspended
        {
            let message = self.message(state);
            self.decision.again = self.again();
            if let Some(state) = &mut self.state {
                state.message = message;
            }
        } else if let Some(state) = &mut self.state
            && state.phase == RolloutPhase::Promoted
        {
            state.message.clear();
        }
        let weight = self.weight();
        let candidate = self.state.as_ref().map_or(&[][..], |state| &state.candidate);
        self.decision.table = table::mix(&self.stable, candidate, weight);
        self.decision.stable = self.stable;
        self.decision.state = self.state;
        self.decision
    }

    /// What it does or waits for. Numbers that grow with every request stay out: they would make a write each.
    fn message(&self, state: &RolloutStatus) -> String {
        let blind = match &self.observed.reading {
            Reading::Failed(why) => format!("; {why}"),
            Reading::None | Reading::Taken(_) => String::new(),
        };
        match state.phase {
            RolloutPhase::Preparing => match &self.observed.ready {
                Readiness::NotReady(message) | Readiness::Failed { message, .. } => message.clone(),
                Readiness::Ready => "the candidate starts".to_owned(),
            },
            RolloutPhase::Gating => {
                let waits = self.observed.gates.iter().filter(|gate| !gate.message.is_empty());
                waits.map(|gate| gate.message.as_str()).collect::<Vec<_>>().join("; ")
            }
            RolloutPhase::Shadowing => {
                let shadow = self.plan.shadow.as_ref();
                let copies = shadow.map_or(0, |shadow| shadow.min_requests);
                format!(
                    "copies of requests go to the candidate{}{blind}",
                    wants(self.least(), copies, "answered copies")
                )
            }
            RolloutPhase::Progressing => {
                let units = self.step().map_or(0, |step| step.min_units);
                format!("{} % of the units get it{}{blind}", state.weight, wants(self.least(), units, "units"))
            }
            RolloutPhase::AwaitingApproval => format!(
                "waits for approval: set the approved revision to {} in Git, or `llmops promote`{blind}",
                self.identity()
            ),
            RolloutPhase::Holding => {
                let why = self.blocked().unwrap_or_else(|| "goes on as soon as it can be measured".to_owned());
                format!("{why}{blind}")
            }
            RolloutPhase::Promoted | RolloutPhase::RolledBack => state.message.clone(),
        }
    }

    /// The next moment at which time decides.
    fn again(&self) -> Option<Duration> {
        let timed = self.place() == State::Shadowing || self.weight() > 0;
        let left = self.remaining(self.least().unwrap_or_default());
        (timed && !left.is_zero()).then_some(left)
    }
}

/// What a step or the shadow asks for.
fn wants(least: Option<Duration>, count: i32, what: &str) -> String {
    let time = least.filter(|least| !least.is_zero()).map(|least| format!("{} s", least.as_secs()));
    let count = (count > 0).then(|| format!("{count} {what}"));
    match (time, count) {
        (None, None) => String::new(),
        (Some(one), None) | (None, Some(one)) => format!(" for at least {one}"),
        (Some(time), Some(count)) => format!(" for at least {time} and {count}"),
    }
}

/// A table in one line: `control 70% 3fa9c1d2e0 · concise 30% 81be02aa11`.
pub fn summary(arms: &[ArmRevision]) -> String {
    let arm = |arm: &ArmRevision| format!("{} {}% {}", arm.variant, arm.weight, arm.revision);
    arms.iter().map(arm).collect::<Vec<_>>().join(" · ")
}
