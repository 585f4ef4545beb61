use std::time::Duration;

use super::machine::MIN_STEP;
use super::*;
use crate::api::rollout::GateVerdict;

pub(super) fn release(revision: &str) -> Vec<ArmRevision> {
    vec![ArmRevision { variant: "control".into(), revision: revision.into(), weight: 100 }]
}

pub(super) fn gate(verdict: GateVerdict) -> GateStatus {
    let message = match verdict {
        GateVerdict::Passed => String::new(),
        _ => format!("quality is {verdict:?}"),
    };
    GateStatus { evaluation: "quality".into(), run: None, verdict, message }
}

pub(super) fn step(weight: i32, seconds: u64, min_units: i32) -> RolloutStep {
    let min_duration = (seconds > 0).then(|| Duration::from_secs(seconds).into());
    RolloutStep { weight, min_duration, min_units }
}

/// A rollout that is watched through time.
struct Story {
    plan: Plan,
    state: Option<RolloutStatus>,
    stable: Vec<ArmRevision>,
    desired: Vec<ArmRevision>,
    ready: Readiness,
    missing: Option<String>,
    gates: Vec<GateStatus>,
    reading: Reading,
    second: i64,
}

impl Story {
    fn new(plan: Plan) -> Self {
        let gates = plan.gates.iter().map(|_| gate(GateVerdict::Passed)).collect();
        Self {
            plan,
            state: None,
            stable: release("1"),
            desired: release("2"),
            ready: Readiness::Ready,
            missing: None,
            gates,
            reading: Reading::Taken(Evidence { units: 1000, ..Evidence::default() }),
            second: 1000,
        }
    }

    fn look(&mut self, request: Option<&str>) -> Decision {
        let observed = Observed {
            desired: &self.desired,
            stable: &self.stable,
            ready: self.ready.clone(),
            missing: self.missing.clone(),
            gates: self.gates.clone(),
            reading: self.reading.clone(),
            request,
            suspended: false,
        };
        let now = jiff::Timestamp::from_second(self.second).unwrap();
        let decision = next(&self.plan, self.state.as_ref(), &observed, now);
        self.state.clone_from(&decision.state);
        self.stable.clone_from(&decision.stable);
        decision
    }

    /// Looks after so many seconds: phase, step, weight.
    fn after(&mut self, seconds: i64) -> String {
        self.second += seconds;
        self.look(None);
        self.place()
    }

    fn asked(&mut self, request: &str) -> Decision {
        let decision = self.look(Some(request));
        assert_eq!(decision.handled.as_deref(), Some(request));
        decision
    }

    fn place(&self) -> String {
        let Some(state) = &self.state else { return "Idle".into() };
        let step = state.step.map_or(String::new(), |step| format!(" step {step}"));
        format!("{:?}{step} {} %", state.phase, state.weight)
    }

    fn evidence(&mut self, change: impl FnOnce(&mut Evidence)) {
        let Reading::Taken(evidence) = &mut self.reading else { panic!("nothing is measured") };
        change(evidence);
    }
}

fn ramp() -> Plan {
    Plan { gates: vec!["quality".into()], steps: vec![step(5, 60, 100), step(50, 0, 0)], ..Plan::default() }
}

#[test]
fn without_a_plan_a_candidate_is_promoted_at_once() {
    let mut story = Story::new(Plan::default());
    let decision = story.look(None);
    assert_eq!(story.place(), "Promoted 100 %");
    assert_eq!((decision.table, decision.again), (release("2"), None));
    assert_eq!(
        decision.notes,
        [Note { warning: false, reason: "RevisionServing", message: "control 100% 2 serves now".into() }]
    );
    assert!(story.look(None).notes.is_empty());
}

#[test]
fn gates_shadow_steps_promotion() {
    let shadow = Shadow { percent: 10, min_duration: None, min_requests: 20 };
    let mut story = Story::new(Plan { shadow: Some(shadow), ..ramp() });
    story.gates = vec![gate(GateVerdict::Pending)];
    assert_eq!(story.after(0), "Gating 0 %");
    assert_eq!(story.state.as_ref().unwrap().message, "quality is Pending");
    story.gates = vec![gate(GateVerdict::Passed)];
    assert_eq!(story.after(100), "Shadowing 0 %");
    assert_eq!(story.after(100), "Shadowing 0 %");
    story.evidence(|evidence| evidence.shadow_requests = 20);
    assert_eq!(story.after(1), "Progressing step 0 5 %");
    assert_eq!(story.after(59), "Progressing step 0 5 %");
    story.evidence(|evidence| evidence.units = 99);
    assert_eq!(story.after(10), "Progressing step 0 5 %");
    story.evidence(|evidence| evidence.units = 100);
    assert_eq!(story.after(1), "Progressing step 1 50 %");
    assert_eq!(story.after(4), "Progressing step 1 50 %", "no step is shorter than what the gateways need");
    assert_eq!(story.after(1), "Promoted 100 %");
    assert_eq!(story.stable, release("2"));
}

#[test]
fn looks_again_when_time_decides() {
    let mut story = Story::new(ramp());
    assert_eq!(story.look(None).again, Some(Duration::from_secs(60)));
    story.second += 45;
    assert_eq!(story.look(None).again, Some(Duration::from_secs(15)));
    story.second += 15;
    assert_eq!(story.look(None).again, Some(MIN_STEP));
}

#[test]
fn a_failed_gate_rejects_and_the_rejection_holds_until_the_spec_changes() {
    let mut story = Story::new(ramp());
    story.gates = vec![gate(GateVerdict::Failed)];
    let decision = story.look(None);
    assert_eq!(story.place(), "RolledBack 0 %");
    let rejected = decision.rejected.unwrap();
    assert_eq!((rejected.reason.as_str(), rejected.revisions.as_slice()), ("EvaluationFailed", &["2".to_owned()][..]));
    assert_eq!(decision.table, release("1"));
    story.gates = vec![gate(GateVerdict::Passed)];
    assert_eq!(story.after(1000), "RolledBack 0 %");
    // Back to what serves, then the same again: it is tried anew.
    story.desired = release("1");
    assert_eq!(story.after(1), "Idle");
    story.desired = release("2");
    assert_eq!(story.after(1), "Progressing step 0 5 %");
}

#[test]
fn a_gate_without_a_verdict_holds_and_says_why() {
    let mut story = Story::new(ramp());
    story.gates = vec![gate(GateVerdict::Inconclusive)];
    assert_eq!(story.after(0), "Holding 0 %");
    assert!(story.state.as_ref().unwrap().message.starts_with("quality is Inconclusive"));
    story.gates = vec![gate(GateVerdict::Pending)];
    assert_eq!(story.after(1), "Gating 0 %");
    story.gates = vec![gate(GateVerdict::Inconclusive)];
    story.after(1);
    story.asked("promote 2 a");
    assert_eq!(story.place(), "Promoted 100 %");
}

#[test]
fn harm_rolls_back_from_wherever_users_get_it() {
    for prepare in [
        |_: &mut Story| {},
        |story: &mut Story| drop(story.asked("hold 2 a")),
        |story: &mut Story| {
            story.missing = Some("there is no ModelDeployment `m`".into());
            story.after(1);
        },
    ] {
        let mut story = Story::new(ramp());
        story.after(0);
        prepare(&mut story);
        story.evidence(|evidence| evidence.harm = Some("ErrorRate: 12 points worse".into()));
        let decision = story.look(None);
        assert_eq!(story.place(), "RolledBack 0 %");
        assert_eq!(decision.table, release("1"));
        assert_eq!(
            decision.rejected.unwrap().message,
            "ErrorRate: 12 points worse; commit another revision, or `llmops promote` tries this one again"
        );
    }
}

#[test]
fn what_cannot_be_measured_takes_no_step_and_rolls_nothing_back() {
    let mut story = Story::new(ramp());
    story.after(0);
    story.reading = Reading::Failed("the gateway does not answer".into());
    assert_eq!(story.after(3600), "Progressing step 0 5 %");
    assert!(story.state.as_ref().unwrap().message.ends_with("; the gateway does not answer"));
}

#[test]
fn an_invalid_split_holds_until_it_is_valid() {
    let mut story = Story::new(ramp());
    story.after(0);
    story.evidence(|evidence| evidence.invalid = Some("the sample ratio is wrong".into()));
    assert_eq!(story.after(100), "Holding step 0 5 %");
    story.reading = Reading::Failed("down".into());
    assert_eq!(story.after(1), "Holding step 0 5 %");
    story.reading = Reading::Taken(Evidence { units: 1000, ..Evidence::default() });
    assert_eq!(story.after(1), "Progressing step 1 50 %", "the time of the step went on");
}

#[test]
fn the_end_of_the_ramp_follows_the_goal_and_the_policy() {
    use ExperimentVerdict::{Better, Inconclusive, NotWorse};
    use OnInconclusive::{Hold, Promote, Rollback};
    for (goal, policy, expected) in [
        (Better, Hold, "Promoted 100 %"),
        (NotWorse, Hold, "Promoted 100 %"),
        (Inconclusive, Hold, "Holding step 1 50 %"),
        (Inconclusive, Promote, "Promoted 100 %"),
        (Inconclusive, Rollback, "RolledBack 0 %"),
        (ExperimentVerdict::Invalid, Promote, "Holding step 1 50 %"),
    ] {
        let mut story = Story::new(Plan { on_inconclusive: policy, ..ramp() });
        story.evidence(|evidence| evidence.goal = Some(goal));
        story.after(0);
        assert_eq!(story.after(60), "Progressing step 1 50 %", "{goal:?} {policy:?}");
        assert_eq!(story.after(5), expected, "{goal:?} {policy:?}");
    }
}

#[test]
fn undecided_ends_when_the_data_or_git_decide() {
    for decided in [false, true] {
        let mut story = Story::new(ramp());
        story.evidence(|evidence| evidence.goal = Some(ExperimentVerdict::Inconclusive));
        story.after(0);
        story.after(60);
        assert_eq!(story.after(5), "Holding step 1 50 %");
        if decided {
            story.evidence(|evidence| evidence.goal = Some(ExperimentVerdict::Better));
        } else {
            story.plan.approve = Some("2".into());
        }
        assert_eq!(story.after(1), "Promoted 100 %");
    }
}

#[test]
fn manual_promotion_waits_for_git_or_a_person() {
    for by_git in [true, false] {
        let mut story = Story::new(Plan { promotion: Promotion::Manual, ..Plan::default() });
        assert_eq!(story.after(0), "AwaitingApproval 0 %");
        story.plan.approve = Some("1".into());
        assert_eq!(story.after(0), "AwaitingApproval 0 %");
        if by_git {
            story.plan.approve = Some("2".into());
            story.after(0);
        } else {
            story.asked("promote 2 x");
        }
        assert_eq!(story.place(), "Promoted 100 %");
    }
}

#[test]
fn people_hold_resume_and_roll_back_once() {
    let mut story = Story::new(ramp());
    story.after(0);
    story.asked("hold 2 1");
    assert_eq!(story.place(), "Holding step 0 5 %");
    assert_eq!(story.after(10_000), "Holding step 0 5 %");
    story.asked("resume 2 2");
    assert_eq!(story.place(), "Progressing step 1 50 %");
    let decision = story.asked("rollback 2 3");
    assert_eq!(story.place(), "RolledBack 0 %");
    assert_eq!(decision.rejected.unwrap().reason, "RolledBackByUser");
    let again = story.asked("rollback 2 4");
    assert_eq!(again.notes[0].reason, "RequestRefused");
    assert!(again.rejected.is_none());
    story.asked("promote 2 5");
    assert_eq!(story.place(), "Progressing step 0 5 %", "a rejected one goes the whole way anew");
}

#[test]
fn requests_that_cannot_be_followed_are_refused_and_say_why() {
    let mut story = Story::new(ramp());
    story.after(0);
    for (request, why) in
        [("hold 1 1", "the candidate is 2"), ("hold", "write `ACTION REVISION ID`"), ("resume 2 1", "nobody holds it")]
    {
        let decision = story.asked(request);
        assert!(decision.notes[0].message.contains(why), "{:?}", decision.notes);
        assert_eq!(story.place(), "Progressing step 0 5 %");
    }
    story.ready = Readiness::NotReady("its pod starts".into());
    let decision = story.asked("promote 2 1");
    assert!(decision.notes[0].message.contains("its pod starts"), "{:?}", decision.notes);
    assert_eq!(story.place(), "Preparing 0 %");
    story.desired = release("1");
    let decision = story.asked("promote 2 1");
    assert!(decision.notes[1].message.contains("no rollout is under way"), "{:?}", decision.notes);
}

#[test]
fn a_new_commit_in_mid_rollout_starts_at_its_gates() {
    let mut story = Story::new(ramp());
    story.after(0);
    story.after(60);
    story.desired = release("3");
    story.gates = vec![gate(GateVerdict::Pending)];
    let decision = story.look(None);
    assert_eq!(story.place(), "Gating 0 %");
    assert_eq!(decision.table, release("1"));
    assert_eq!(decision.notes[0].message, "3 is the candidate; the rollout of 2 ends");
    story.desired = release("1");
    assert_eq!(story.after(1), "Idle");
}

#[test]
fn a_candidate_that_is_not_ready_loses_its_share_and_starts_over() {
    let mut story = Story::new(ramp());
    story.after(0);
    story.ready = Readiness::NotReady("its pod is gone".into());
    let decision = story.look(None);
    assert_eq!(decision.table, release("1"));
    assert_eq!(story.place(), "Preparing 0 %");
    story.ready = Readiness::Ready;
    assert_eq!(story.after(1), "Progressing step 0 5 %");
    story.ready = Readiness::Failed { reason: reason::CANDIDATE_FAILED, message: "out of memory".into() };
    assert_eq!(story.after(1), "RolledBack 0 %");
}

#[test]
fn the_first_release_passes_its_gates_and_nothing_else() {
    let mut story = Story::new(Plan { promotion: Promotion::Manual, ..ramp() });
    story.stable.clear();
    story.gates = vec![gate(GateVerdict::Pending)];
    let decision = story.look(None);
    assert_eq!((story.place().as_str(), decision.table.len()), ("Gating 0 %", 0));
    story.gates = vec![gate(GateVerdict::Passed)];
    assert_eq!(story.after(1), "Promoted 100 %");
}

#[test]
fn steps_may_change_in_mid_rollout() {
    let mut story = Story::new(ramp());
    story.after(0);
    assert_eq!(story.after(60), "Progressing step 1 50 %");
    story.plan.steps = vec![step(1, 0, 0), step(20, 3600, 0), step(80, 0, 0)];
    assert_eq!(story.after(1), "Progressing step 1 20 %");
    story.plan.steps = vec![step(60, 3600, 0)];
    assert_eq!(story.after(1), "Progressing step 0 60 %");
    story.plan.steps.clear();
    assert_eq!(story.after(1), "Promoted 100 %");
}

#[test]
fn a_weight_of_the_spec_takes_effect_at_once() {
    let two = |revision: &str, weight: i32| {
        let arm = |variant: &str, weight| ArmRevision { variant: variant.into(), revision: revision.into(), weight };
        vec![arm("a", weight), arm("b", 100 - weight)]
    };
    let mut story = Story::new(ramp());
    (story.stable, story.desired) = (two("1", 70), two("1", 40));
    let decision = story.look(None);
    assert_eq!((decision.table, decision.notes.len(), decision.state), (two("1", 40), 0, None));
    story.desired = two("2", 40);
    assert_eq!(story.after(1), "Progressing step 0 5 %");
    story.desired = two("2", 50);
    assert_eq!(story.after(1), "Progressing step 0 5 %");
    assert_eq!(story.state.unwrap().candidate, two("2", 50));
}

#[test]
fn suspended_nothing_changes() {
    let mut story = Story::new(ramp());
    story.after(0);
    let (desired, before) = (release("3"), story.state.clone());
    let observed = Observed {
        desired: &desired,
        stable: &story.stable,
        request: Some("rollback 2 1"),
        suspended: true,
        ..Observed::default()
    };
    let decision = next(&story.plan, before.as_ref(), &observed, jiff::Timestamp::MAX);
    assert_eq!((decision.state, decision.handled), (before, None));
    assert_eq!(decision.table, table::mix(&release("1"), &release("2"), 5));
}
