//! The table of the rollout: every state, every event, and what is done. [`action`] is the table; the machine does
//! nothing that it does not say, and `docs/reference/rollout-states.md` is generated from it.

use std::fmt::Write as _;

use crate::api::rollout::RolloutPhase;

/// Where a rollout is: [`RolloutPhase`], and `Idle` when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum State {
    Idle,
    Preparing,
    Gating,
    Shadowing,
    Progressing,
    AwaitingApproval,
    Holding,
    Promoted,
    RolledBack,
}

/// What happens. The first event of this order that is there and that the table has an action for is acted upon, then
/// the events are looked at again, until none is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Event {
    Suspended,
    SpecServes,
    NewCandidate,
    RequestInvalid,
    PromoteAsked,
    RollbackAsked,
    HoldAsked,
    ResumeAsked,
    CandidateFailed,
    GateFailed,
    Harm,
    CandidateLost,
    PlanChanged,
    Blocked,
    Unblocked,
    CandidateReady,
    GatesReopened,
    GatesPassed,
    ShadowDone,
    StepDone,
    RampDone,
    Undecided,
    Approved,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Action {
    Freeze,
    Serve,
    Withdraw,
    Begin,
    Refuse,
    Promote,
    Reject,
    Hold,
    Release,
    Withhold,
    Replace,
    Stay,
    Continue,
    Gate,
    Advance,
    NextStep,
    Finish,
}

impl State {
    /// Every state, in the order of a rollout.
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Preparing,
        Self::Gating,
        Self::Shadowing,
        Self::Progressing,
        Self::AwaitingApproval,
        Self::Holding,
        Self::Promoted,
        Self::RolledBack,
    ];

    /// The state of a phase.
    pub fn of(phase: Option<RolloutPhase>) -> Self {
        match phase {
            None => Self::Idle,
            Some(RolloutPhase::Preparing) => Self::Preparing,
            Some(RolloutPhase::Gating) => Self::Gating,
            Some(RolloutPhase::Shadowing) => Self::Shadowing,
            Some(RolloutPhase::Progressing) => Self::Progressing,
            Some(RolloutPhase::AwaitingApproval) => Self::AwaitingApproval,
            Some(RolloutPhase::Holding) => Self::Holding,
            Some(RolloutPhase::Promoted) => Self::Promoted,
            Some(RolloutPhase::RolledBack) => Self::RolledBack,
        }
    }

    /// What it means, and who serves.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Idle => "No rollout; stable serves.",
            Self::Preparing => "The candidate starts. Stable serves everybody.",
            Self::Gating => "The gates' Evaluations run against the candidate, pinned. Stable serves everybody.",
            Self::Shadowing => "The candidate answers copies of requests that nobody sees. Stable serves everybody.",
            Self::Progressing => "The candidate serves the share of the present step, stable the rest.",
            Self::AwaitingApproval => "Everything else is done; a person approves. The split stays as it is.",
            Self::Holding => {
                "It waits for a person, a reference, a gate or the data; `message` says which. The split stays as it is."
            }
            Self::Promoted => "The candidate is stable now and serves everybody.",
            Self::RolledBack => {
                "The candidate was rejected; stable serves everybody. It is not tried again while the spec still asks for it."
            }
        }
    }
}

impl Event {
    /// Every event, in the order in which they are looked at.
    pub const ALL: [Self; 23] = [
        Self::Suspended,
        Self::SpecServes,
        Self::NewCandidate,
        Self::RequestInvalid,
        Self::PromoteAsked,
        Self::RollbackAsked,
        Self::HoldAsked,
        Self::ResumeAsked,
        Self::CandidateFailed,
        Self::GateFailed,
        Self::Harm,
        Self::CandidateLost,
        Self::PlanChanged,
        Self::Blocked,
        Self::Unblocked,
        Self::CandidateReady,
        Self::GatesReopened,
        Self::GatesPassed,
        Self::ShadowDone,
        Self::StepDone,
        Self::RampDone,
        Self::Undecided,
        Self::Approved,
    ];

    /// When it is there.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Suspended => "`spec.suspend` is true.",
            Self::SpecServes => {
                "The spec asks for nothing that stable has not: other weights, fewer variants, or the old revision again."
            }
            Self::NewCandidate => "The spec asks for a revision that neither serves nor is the candidate.",
            Self::RequestInvalid => {
                "A person's request cannot be read, names another revision, or asks to promote what is not ready."
            }
            Self::PromoteAsked => "A person asks to promote the candidate.",
            Self::RollbackAsked => "A person asks to roll the candidate back.",
            Self::HoldAsked => "A person asks to hold the candidate.",
            Self::ResumeAsked => "A person asks to go on.",
            Self::CandidateFailed => "The candidate cannot start.",
            Self::GateFailed => "A gate's Evaluation did not pass, and nobody gets the candidate yet.",
            Self::Harm => "The goal is worse, or the harm bound of a guardrail is crossed, beyond doubt.",
            Self::CandidateLost => "The candidate is not ready any more.",
            Self::PlanChanged => "`spec.rollout.steps` has no step of the present weight in its place any more.",
            Self::Blocked => {
                "A person holds it; a reference is gone; a gate gave no verdict; the sample ratio is wrong; or the ramp is over, the goal is undecided and `onInconclusive` is `Hold`."
            }
            Self::Unblocked => "Nothing of this is so any more.",
            Self::CandidateReady => "The candidate could serve.",
            Self::GatesReopened => "A gate has no passing verdict any more, and nobody gets the candidate yet.",
            Self::GatesPassed => "Every gate has passed.",
            Self::ShadowDone => "`shadow.minDuration` and `shadow.minRequests` are reached.",
            Self::StepDone => "`minDuration` and `minUnits` of the step are reached, and it is not the last.",
            Self::RampDone => {
                "Those of the last step are reached, and the goal is better or not worse, or there is none, or it is undecided and `onInconclusive` is `Promote`, or Git approves the revision."
            }
            Self::Undecided => {
                "Those of the last step are reached, the goal is undecided, and `onInconclusive` is `Rollback`."
            }
            Self::Approved => "Promotion is `Auto`, or `approve` names the candidate's revision.",
        }
    }
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 17] = [
        Self::Freeze,
        Self::Serve,
        Self::Withdraw,
        Self::Begin,
        Self::Refuse,
        Self::Promote,
        Self::Reject,
        Self::Hold,
        Self::Release,
        Self::Withhold,
        Self::Replace,
        Self::Stay,
        Self::Continue,
        Self::Gate,
        Self::Advance,
        Self::NextStep,
        Self::Finish,
    ];

    /// What it does, and the state after it.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Freeze => "Nothing changes.",
            Self::Serve => "What the spec asks for becomes stable at once.",
            Self::Withdraw => "→ Idle. Stable serves everybody; the candidate is forgotten, not rejected.",
            Self::Begin => "→ Preparing. Stable serves everybody; a candidate before it is forgotten.",
            Self::Refuse => "The request is remembered as handled, an event says why nothing is done.",
            Self::Promote => "→ Promoted. The candidate becomes stable and serves everybody.",
            Self::Reject => {
                "→ RolledBack. Stable serves everybody; the revision, a reason and a message are remembered."
            }
            Self::Hold => "→ Holding, until a person resumes.",
            Self::Release => "A person does not hold it any more.",
            Self::Withhold => {
                "→ Preparing. Stable serves everybody until the candidate is ready again and has passed the way anew."
            }
            Self::Replace => {
                "To the last step that gives no more than the present weight, else the first; the step begins anew."
            }
            Self::Stay => "→ Holding. The split stays as it is.",
            Self::Continue => "→ Progressing where users get the candidate, else → Gating.",
            Self::Gate => "→ Gating.",
            Self::Advance => {
                "To what the plan has next: Shadowing, the first step (Progressing), AwaitingApproval, Promoted. The first release has nobody to be compared with: → Promoted."
            }
            Self::NextStep => "The next step.",
            Self::Finish => "→ AwaitingApproval with promotion `Manual` and no approval, else → Promoted.",
        }
    }
}

/// The table. `None`: the event means nothing in this state and is not looked at.
pub const fn action(state: State, event: Event) -> Option<Action> {
    use State::{AwaitingApproval, Gating, Holding, Idle, Preparing, Progressing, Promoted, RolledBack, Shadowing};
    Some(match (event, state) {
        (Event::Suspended, _) => Action::Freeze,
        (Event::SpecServes, Idle | Promoted) => Action::Serve,
        (Event::SpecServes, _) => Action::Withdraw,
        (Event::NewCandidate, _) => Action::Begin,
        (Event::RequestInvalid, _) => Action::Refuse,
        (Event::PromoteAsked | Event::RollbackAsked | Event::HoldAsked | Event::ResumeAsked, Idle | Promoted) => {
            Action::Refuse
        }
        (Event::PromoteAsked, RolledBack) => Action::Begin,
        (Event::PromoteAsked, _) => Action::Promote,
        (Event::RollbackAsked | Event::HoldAsked | Event::ResumeAsked, RolledBack) => Action::Refuse,
        (Event::RollbackAsked, _) => Action::Reject,
        (Event::HoldAsked, _) => Action::Hold,
        (Event::ResumeAsked, Holding) => Action::Release,
        (Event::ResumeAsked, _) => Action::Refuse,
        (_, Idle | Promoted | RolledBack) => return None,
        (Event::CandidateFailed, _) => Action::Reject,
        (Event::GateFailed, Gating | Shadowing | AwaitingApproval | Holding)
        | (Event::Harm, Shadowing | Progressing | AwaitingApproval | Holding) => Action::Reject,
        (Event::CandidateLost, Gating | Shadowing | Progressing | AwaitingApproval | Holding) => Action::Withhold,
        (Event::PlanChanged, Progressing | AwaitingApproval | Holding) => Action::Replace,
        (Event::Blocked, Preparing | Gating | Shadowing | Progressing | AwaitingApproval) => Action::Stay,
        (Event::Unblocked, Holding) => Action::Continue,
        (Event::CandidateReady, Preparing) | (Event::GatesReopened, Shadowing | AwaitingApproval) => Action::Gate,
        (Event::GatesPassed, Gating) | (Event::ShadowDone, Shadowing) => Action::Advance,
        (Event::StepDone, Progressing) => Action::NextStep,
        (Event::RampDone, Progressing) => Action::Finish,
        (Event::Undecided, Progressing) => Action::Reject,
        (Event::Approved, AwaitingApproval) => Action::Promote,
        _ => return None,
    })
}

/// The table as Markdown, for the page.
pub fn markdown() -> String {
    let mut text = String::from("| state | meaning |\n| --- | --- |\n");
    for state in State::ALL {
        let _ = writeln!(text, "| {state:?} | {} |", state.meaning());
    }
    text.push_str("\n| event | when | in state | action |\n| --- | --- | --- | --- |\n");
    for event in Event::ALL {
        for wanted in Action::ALL {
            let states: Vec<String> = State::ALL
                .into_iter()
                .filter(|state| action(*state, event) == Some(wanted))
                .map(|state| format!("{state:?}"))
                .collect();
            if !states.is_empty() {
                let states = if states.len() == State::ALL.len() { "any".to_owned() } else { states.join(", ") };
                let _ = writeln!(text, "| {event:?} | {} | {states} | {wanted:?} |", event.meaning());
            }
        }
    }
    text.push_str("\n| action | what it does |\n| --- | --- |\n");
    for action in Action::ALL {
        let _ = writeln!(text, "| {action:?} | {} |", action.meaning());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_this_table() {
        const BEGIN: &str = "<!-- generated: begin -->\n";
        const END: &str = "<!-- generated: end -->";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/rollout-states.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (found, after) = rest.split_once(END).unwrap();
        if found != markdown() && std::env::var_os("LLMOPS_WRITE_DOCS").is_some() {
            std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", markdown())).unwrap();
            return;
        }
        assert_eq!(found, markdown(), "run LLMOPS_WRITE_DOCS=1 cargo test --lib rollout::states to write the page");
    }

    #[test]
    fn lists_are_complete_and_in_order() {
        assert!(State::ALL.is_sorted() && Event::ALL.is_sorted() && Action::ALL.is_sorted());
        for wanted in Action::ALL {
            let used = State::ALL.iter().any(|s| Event::ALL.iter().any(|e| action(*s, *e) == Some(wanted)));
            assert!(used, "{wanted:?} is in no row");
        }
        for event in Event::ALL {
            assert!(State::ALL.iter().any(|state| action(*state, event).is_some()), "{event:?} is in no row");
        }
    }
}
