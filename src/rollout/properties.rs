//! Properties of the machine under random sequences of events.

use proptest::prelude::*;

use super::machine_tests::{gate, release, step};
use super::*;
use crate::api::rollout::GateVerdict;

/// What happens between two looks.
#[derive(Clone, Debug)]
enum Happening {
    Commit(u8),
    Ready(bool),
    Broken,
    Missing(bool),
    Gate(GateVerdict),
    Reading(Reading),
    Ask(&'static str, bool),
    Suspend(bool),
    Policy(OnInconclusive),
    Promotion(Promotion),
    Approve(bool),
    Steps(usize),
    Wait(i64),
}

fn readings() -> impl Strategy<Value = Reading> {
    use ExperimentVerdict::{Better, Inconclusive, Invalid, NotWorse, Worse};
    let goal = prop::option::of(prop::sample::select(vec![Better, NotWorse, Worse, Inconclusive, Invalid]));
    let taken = (0_u64..200, any::<bool>(), any::<bool>(), goal).prop_map(|(units, invalid, harm, goal)| {
        Reading::Taken(Evidence {
            units,
            shadow_requests: units,
            invalid: (invalid && units % 3 == 0).then(|| "the split is wrong".into()),
            harm: (harm && units % 5 == 0).then(|| "worse".into()),
            goal,
            undecided: String::new(),
        })
    });
    prop_oneof![Just(Reading::Failed("the gateway is down".into())), Just(Reading::None), taken]
}

fn happenings() -> impl Strategy<Value = Happening> {
    use GateVerdict::{Failed, Inconclusive, Passed, Pending};
    prop_oneof![
        2 => (1_u8..4).prop_map(Happening::Commit),
        2 => any::<bool>().prop_map(Happening::Ready),
        1 => Just(Happening::Broken),
        1 => any::<bool>().prop_map(Happening::Missing),
        4 => prop::sample::select(vec![Pending, Passed, Passed, Failed, Inconclusive]).prop_map(Happening::Gate),
        4 => readings().prop_map(Happening::Reading),
        3 => (prop::sample::select(vec!["promote", "rollback", "hold", "resume", "drop"]), any::<bool>())
            .prop_map(|(verb, right)| Happening::Ask(verb, right)),
        1 => any::<bool>().prop_map(Happening::Suspend),
        1 => prop::sample::select(vec![OnInconclusive::Hold, OnInconclusive::Promote, OnInconclusive::Rollback])
            .prop_map(Happening::Policy),
        1 => prop::sample::select(vec![Promotion::Auto, Promotion::Manual]).prop_map(Happening::Promotion),
        1 => any::<bool>().prop_map(Happening::Approve),
        1 => (0_usize..4).prop_map(Happening::Steps),
        6 => (0_i64..90).prop_map(Happening::Wait),
    ]
}

struct World {
    plan: Plan,
    state: Option<RolloutStatus>,
    stable: Vec<ArmRevision>,
    desired: Vec<ArmRevision>,
    ready: Readiness,
    missing: Option<String>,
    gates: Vec<GateStatus>,
    reading: Reading,
    request: Option<String>,
    handled: Option<String>,
    suspended: bool,
    second: i64,
    asked: u32,
    promoted_by_person: bool,
}

impl World {
    fn new(gated: bool, shadow: bool, steps: usize, served: bool) -> Self {
        let plan = Plan {
            gates: if gated { vec!["quality".into()] } else { Vec::new() },
            shadow: shadow.then_some(Shadow { percent: 10, min_duration: None, min_requests: 10 }),
            steps: Self::steps(steps),
            ..Plan::default()
        };
        let mut world = Self {
            plan,
            state: None,
            stable: if served { release("0") } else { Vec::new() },
            desired: release("1"),
            ready: Readiness::Ready,
            missing: None,
            gates: Vec::new(),
            reading: Reading::None,
            request: None,
            handled: None,
            suspended: false,
            second: 1_000_000,
            asked: 0,
            promoted_by_person: false,
        };
        world.judge(GateVerdict::Pending);
        world
    }

    fn steps(count: usize) -> Vec<RolloutStep> {
        [step(5, 30, 50), step(25, 0, 10), step(60, 60, 0)].into_iter().take(count).collect()
    }

    fn judge(&mut self, verdict: GateVerdict) {
        self.gates = self.plan.gates.iter().map(|_| gate(verdict)).collect();
    }

    fn candidate(&self) -> String {
        let candidate = self.state.as_ref().map_or(&[][..], |state| &state.candidate);
        identity(candidate, &self.stable).unwrap_or("none").to_owned()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Commit(number) => {
                self.desired = release(&number.to_string());
                self.judge(GateVerdict::Pending);
            }
            Happening::Ready(true) => self.ready = Readiness::Ready,
            Happening::Ready(false) => self.ready = Readiness::NotReady("its pod starts".into()),
            Happening::Broken => {
                self.ready = Readiness::Failed { reason: reason::CANDIDATE_FAILED, message: "it crashes".into() };
            }
            Happening::Missing(missing) => self.missing = missing.then(|| "there is no model `m`".into()),
            Happening::Gate(verdict) => self.judge(verdict),
            Happening::Reading(reading) => self.reading = reading,
            Happening::Ask(verb, right) => {
                self.asked += 1;
                let revision = if right { self.candidate() } else { "other".into() };
                self.request = Some(format!("{verb} {revision} {}", self.asked));
            }
            Happening::Suspend(suspended) => self.suspended = suspended,
            Happening::Policy(policy) => self.plan.on_inconclusive = policy,
            Happening::Promotion(promotion) => self.plan.promotion = promotion,
            Happening::Approve(approve) => self.plan.approve = approve.then(|| self.candidate()),
            Happening::Steps(count) => self.plan.steps = Self::steps(count),
            Happening::Wait(seconds) => self.second += seconds,
        }
    }

    /// What the controller measures in the present state.
    fn measured(&self) -> Reading {
        match &self.state {
            Some(state) if needs_reading(state) => self.reading.clone(),
            _ => Reading::None,
        }
    }

    fn look(&self, reading: Reading) -> Decision {
        let observed = Observed {
            desired: &self.desired,
            stable: &self.stable,
            ready: self.ready.clone(),
            missing: self.missing.clone(),
            gates: self.gates.clone(),
            reading,
            request: self.request.as_deref().filter(|request| Some(*request) != self.handled.as_deref()),
            suspended: self.suspended,
        };
        next(&self.plan, self.state.as_ref(), &observed, jiff::Timestamp::from_second(self.second).unwrap())
    }

    /// Looks, checks what must always hold, and takes the decision over.
    fn decide(&mut self) -> Decision {
        let decision = self.look(self.measured());
        let total: i32 = decision.table.iter().map(|arm| arm.weight).sum();
        if !self.stable.is_empty() {
            assert_eq!(total, 100, "once something served, something serves");
            assert!(!decision.stable.is_empty());
        }
        assert!(total == 0 || total == 100, "weights sum to 100: {:?}", decision.table);
        let fresh: Vec<&ArmRevision> = table::news(&decision.table, &self.stable).collect();
        if !fresh.is_empty() && !self.suspended {
            assert!(self.ready == Readiness::Ready, "a share for what is not ready: {decision:?}");
            let state = decision.state.as_ref().unwrap();
            let by_person = decision.handled.as_deref().is_some_and(|request| request.starts_with("promote"));
            self.promoted_by_person |= by_person;
            assert!(
                by_person || gates::passed(&self.plan.gates, &state.gates),
                "a share before the gates passed: {decision:?}"
            );
        }
        if let Some(state) = decision.state.as_ref().filter(|state| is_under_way(state)) {
            assert!(!state.message.is_empty(), "{state:?} waits and does not say for what");
            assert!((0..=99).contains(&state.weight));
        }
        self.state.clone_from(&decision.state);
        self.stable.clone_from(&decision.stable);
        if let Some(handled) = &decision.handled {
            assert_ne!(self.handled.as_ref(), Some(handled), "a request acts once");
            assert_eq!(self.request.as_ref(), Some(handled));
            self.handled = Some(handled.clone());
        }
        decision
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        gated: bool, shadow: bool, steps in 0_usize..4, served: bool,
        story in prop::collection::vec(happenings(), 1..40),
    ) {
        let mut world = World::new(gated, shadow, steps, served);
        for happening in story {
            world.happen(happening);
            let measured = world.measured();
            world.decide();
            let again = world.look(measured);
            // A crash after the write, or a second look at the same things, changes nothing.
            prop_assert_eq!((&again.state, &again.stable), (&world.state, &world.stable));
            prop_assert!(again.notes.is_empty() && again.rejected.is_none() && again.handled.is_none(), "{:?}", again);
        }
        // Then all is quiet and well.
        world.suspended = false;
        world.missing = None;
        world.ready = Readiness::Ready;
        world.judge(GateVerdict::Passed);
        world.reading = Reading::Taken(Evidence { units: 1000, shadow_requests: 1000, ..Evidence::default() });
        for _ in 0..20 {
            world.second += 100;
            world.decide();
        }
        let place = world.state.as_ref().map(|state| (state.phase, state.held));
        let manual = world.plan.promotion == Promotion::Manual;
        match place {
            None => prop_assert_eq!(&world.desired, &world.stable),
            Some((RolloutPhase::Promoted, _)) => prop_assert_eq!(&world.desired, &world.stable),
            Some((RolloutPhase::RolledBack, _)) => prop_assert_ne!(&world.desired, &world.stable),
            Some((RolloutPhase::AwaitingApproval, _)) => prop_assert!(manual),
            Some((RolloutPhase::Holding, held)) => prop_assert!(held, "only a person still holds it"),
            other => prop_assert!(false, "not an end: {:?}", other),
        }
    }
}
