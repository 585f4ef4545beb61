//! Gates, ramps and approvals before a new revision.

use super::*;
use crate::api::Evaluation;
use crate::api::rollout::{MetricKind, RolloutPhase};
use crate::controllers::measure::Measured;
use crate::experiment::measurements::{ArmMeasurements, MetricMeasurement, stratum};

/// An Evaluation of this target whose newest run has this verdict about a revision of the model.
fn evaluation(target: Value, revision: &str, verdict: Option<&str>) -> Evaluation {
    let direct = target.get("modelDeploymentRef").is_some();
    let revisions = if direct { json!([{"variant": "smol", "revision": revision}]) } else { json!([]) };
    let used = json!([{"kind": "ModelDeployment", "name": "smol", "revision": revision}]);
    serde_json::from_value(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "quality", "generation": 1},
        "spec": {"target": target, "dataset": {"configMapRef": {"name": "c", "key": "k"}}, "metrics": [{"name": "m", "type": "JsonValid"}]},
        "status": {"observedGeneration": 1, "runs": [{"name": "r1", "revisions": revisions, "dependencies": if direct { json!([]) } else { used },
            "datasetDigest": "", "phase": if verdict.is_some() { "Complete" } else { "Running" }, "verdict": verdict, "message": "as told"}]},
    }))
    .unwrap()
}

fn itself() -> Value {
    json!({"modelDeploymentRef": {"name": "smol"}})
}

fn through_a_flow() -> Value {
    json!({"promptFlowRef": {"name": "ask"}})
}

impl World {
    fn evaluated(&mut self, target: Value, revision: &str, verdict: Option<&str>) {
        self.fetched.evaluations.insert("quality".to_owned(), evaluation(target, revision, verdict));
    }

    fn phase(&self) -> Option<RolloutPhase> {
        self.status().rollout.as_ref().map(|rollout| rollout.phase)
    }

    fn traffic(&self) -> Vec<(&str, i32)> {
        self.status().traffic.iter().map(|arm| (arm.revision.as_str(), arm.weight)).collect()
    }

    fn ready_message(&self) -> String {
        find(&self.status().conditions, "Ready").map(|ready| ready.message.clone()).unwrap_or_default()
    }

    /// What the gateway has measured under the present table: units of each entry, and the share of their calls that failed.
    fn measured(&mut self, units: &[(u64, f64)]) {
        let traffic = self.status().traffic.clone();
        let table = stratum(traffic.iter().map(|arm| ("smol", arm.revision.as_str(), arm.weight)));
        let arms = traffic.iter().zip(units).map(|(arm, (units, failed))| ArmMeasurements {
            stratum: table.clone(),
            variant: "smol".into(),
            revision: arm.revision.clone(),
            weight: arm.weight,
            shadow: false,
            units: *units,
            requests: *units,
            metrics: vec![MetricMeasurement {
                metric: MetricKind::ErrorRate,
                event: None,
                units: *units,
                mean: *failed,
                m2: *units as f64 * failed * (1.0 - failed),
            }],
        });
        self.fetched.measured = Measured::Taken(Measurements { arms: arms.collect() });
    }

    fn rollout_message(&self) -> String {
        self.status().rollout.as_ref().map(|rollout| rollout.message.clone()).unwrap_or_default()
    }

    fn ask(&mut self, request: String) {
        self.object.metadata.annotations = Some([(names::ANNOTATION_ROLLOUT.to_owned(), request)].into());
    }
}

/// A world whose first revision serves and whose spec then changed, with this rollout.
fn rolling_out(rollout: Value) -> (World, String, String) {
    let strategy = rollout["strategy"].as_str().unwrap_or("RollingUpdate").to_owned();
    let (mut world, old) = changed(&strategy);
    world.object.spec.rollout = serde_json::from_value(rollout).unwrap();
    world.settle();
    let new = world.target();
    assert_ne!(new, old);
    (world, old, new)
}

fn gated() -> Value {
    json!({"gates": [{"evaluationRef": {"name": "quality"}}]})
}

#[test]
fn a_candidate_serves_nobody_until_its_gates_pass() {
    for target in [itself(), through_a_flow()] {
        let (mut world, old, new) = rolling_out(gated());
        assert_eq!(world.phase(), Some(RolloutPhase::Preparing));
        assert_eq!(world.runs().len(), 2);
        assert_eq!(world.condition("GatesPassed"), "Unknown/Gating");
        world.evaluated(target.clone(), &old, Some("Passed"));
        world.ready(&new);
        world.settle();
        assert_eq!((world.phase(), world.condition("Ready")), (Some(RolloutPhase::Gating), "False/Gating".to_owned()));
        assert_eq!(world.traffic(), [(old.as_str(), 100)], "a verdict about the old one opens nothing");
        assert_eq!(world.status().stable_revision.as_deref(), Some(old.as_str()));
        world.evaluated(target.clone(), &new, None);
        world.settle();
        assert_eq!(world.traffic(), [(old.as_str(), 100)]);
        world.evaluated(target, &new, Some("Passed"));
        world.reconcile();
        assert_eq!(world.phase(), Some(RolloutPhase::Promoted));
        assert_eq!(world.traffic(), [(new.as_str(), 100)]);
        assert_eq!(world.runs().len(), 2, "gateways need a moment to hear of it");
        assert!(world.notes.again.is_some());
        world.second += 6;
        world.settle();
        assert_eq!(world.runs(), [new.as_str()]);
        assert_eq!(
            (world.condition("Ready"), world.condition("GatesPassed")),
            ("True/Serving".into(), "True/GatesPassed".into())
        );
        world.second += 1000;
        assert!(!world.reconcile(), "time alone changes nothing");
    }
}

#[test]
fn a_candidate_that_fails_its_gate_goes_and_the_old_one_serves_on() {
    let (mut world, old, new) = rolling_out(gated());
    world.ready(&new);
    world.evaluated(itself(), &new, Some("Failed"));
    world.reconcile();
    assert_eq!(world.phase(), Some(RolloutPhase::RolledBack));
    assert_eq!(world.status().rejected_revisions[0].reason, "EvaluationFailed");
    assert_eq!(world.condition("Ready"), "False/EvaluationFailed");
    assert_eq!(world.condition("Stalled"), "True/EvaluationFailed");
    assert_eq!(world.condition("Available"), "True/Serving");
    assert!(world.ready_message().contains("Evaluation `quality` did not pass: as told"), "{}", world.ready_message());
    world.second += 6;
    world.settle();
    assert_eq!(world.runs(), [old.as_str()]);
    assert_eq!(world.traffic(), [(old.as_str(), 100)]);
    // The evaluation turns to what serves; Git still asks for the rejected revision, and nothing is tried.
    world.evaluated(itself(), &old, Some("Passed"));
    world.second += 1000;
    assert!(!world.reconcile());
    // Gates that are taken from the spec do not let it through.
    world.change(|object| object.spec.rollout.gates.clear());
    world.settle();
    assert_eq!(world.runs(), [old.as_str()]);
    // The spec goes back: all is well.
    world.change(|object| object.spec.engine.as_mut().unwrap().args.clear());
    world.settle();
    assert_eq!((world.condition("Ready"), world.target()), ("True/Serving".to_owned(), old));
}

#[test]
fn a_gate_without_a_verdict_stays_shut_until_a_person_or_a_run_decides() {
    let (mut world, old, new) = rolling_out(gated());
    world.ready(&new);
    world.settle();
    assert_eq!(world.condition("Ready"), "False/Holding");
    assert!(world.ready_message().contains("there is no Evaluation `quality`"), "{}", world.ready_message());
    world.evaluated(itself(), &new, Some("Inconclusive"));
    world.settle();
    assert_eq!(world.phase(), Some(RolloutPhase::Holding));
    assert!(world.ready_message().contains("reached no verdict: as told"), "{}", world.ready_message());
    assert_eq!(world.condition("Stalled"), "False/Fine");
    assert_eq!(world.traffic(), [(old.as_str(), 100)]);
    let request = format!("promote {new} 1");
    world.ask(request.clone());
    world.reconcile();
    assert_eq!(world.traffic(), [(new.as_str(), 100)]);
    assert_eq!(world.status().last_handled_rollout_request, Some(request));
    world.second += 6;
    world.settle();
    assert_eq!(world.runs(), [new.as_str()]);
}

#[test]
fn without_room_for_both_the_candidate_waits_and_says_so() {
    for strategy in ["RollingUpdate", "Recreate"] {
        let mut rollout = gated();
        rollout["strategy"] = json!(strategy);
        let (mut world, old, new) = rolling_out(rollout);
        world.pod(
            &new,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory."}]}),
        );
        world.settle();
        assert_eq!(world.phase(), Some(RolloutPhase::Preparing));
        assert_eq!(world.condition("Ready"), "False/Unschedulable");
        assert!(
            world
                .ready_message()
                .starts_with(&format!("revision {new} must run beside revision {old}, which serves on")),
            "{}",
            world.ready_message()
        );
        assert_eq!((world.runs().len(), world.traffic()), (2, vec![(old.as_str(), 100)]));
    }
}

#[test]
fn a_canary_goes_by_its_steps() {
    let (mut world, old, new) = rolling_out(json!({"strategy": "Canary", "steps": [
        {"weight": 10, "minDuration": "60s", "minUnits": 1000}, {"weight": 50, "minDuration": "60s"}]}));
    world.ready(&new);
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 90), (new.as_str(), 10)]);
    assert_eq!(world.condition("Ready"), "False/CanaryProgressing");
    assert_eq!(world.notes.again, Some(std::time::Duration::from_secs(5)), "it is measured every few seconds");
    // Time alone is not enough where the step asks for units.
    world.second += 60;
    world.measured(&[(9_000, 0.0), (999, 0.0)]);
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 90), (new.as_str(), 10)]);
    assert_eq!(world.rollout_message(), "10 % of the units get it for at least 60 s and 1000 units");
    assert!(world.ready_message().contains("1000 units"), "{}", world.ready_message());
    // Without measurements no step is taken, and nothing goes back.
    world.fetched.measured = Measured::Failed("the gateway does not answer".into());
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 90), (new.as_str(), 10)]);
    assert!(world.rollout_message().contains("the gateway does not answer"), "{}", world.rollout_message());
    world.measured(&[(9_000, 0.0), (1_000, 0.0)]);
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 50), (new.as_str(), 50)]);
    // A spec that cannot be changes nothing of the split.
    let good = world.object.spec.clone();
    world.change(|object| object.spec.cost = serde_json::from_value(json!({"inputPerMillion": "-1"})).unwrap());
    world.settle();
    assert_eq!((world.runs().len(), world.condition("Ready")), (2, "False/InvalidSpec".to_owned()));
    assert_eq!(world.traffic(), [(old.as_str(), 50), (new.as_str(), 50)]);
    world.change(|object| object.spec = good);
    world.settle();
    // The candidate is lost: everybody gets the old one until it is back and has passed the way anew.
    world.fetched.deployments.get_mut(&new).unwrap().status = None;
    world.settle();
    assert_eq!((world.phase(), world.traffic()), (Some(RolloutPhase::Preparing), vec![(old.as_str(), 100)]));
    world.ready(&new);
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 90), (new.as_str(), 10)]);
    world.ask(format!("rollback {new} 2"));
    world.reconcile();
    assert_eq!((world.traffic(), world.runs().len()), (vec![(old.as_str(), 100)], 2));
    assert_eq!(world.condition("Stalled"), "True/RolledBackByUser");
    world.second += 6;
    world.settle();
    assert_eq!(world.runs(), [old.as_str()]);
}

#[test]
fn units_of_another_step_open_none() {
    let (mut world, old, new) = rolling_out(json!({"strategy": "Canary", "steps": [
        {"weight": 10, "minUnits": 20}, {"weight": 50, "minUnits": 20}]}));
    world.ready(&new);
    world.settle();
    world.measured(&[(500, 0.0), (50, 0.0)]);
    world.second += 6;
    world.reconcile();
    assert_eq!(world.traffic(), [(old.as_str(), 50), (new.as_str(), 50)]);
    // The same numbers again: they are about the step before.
    world.second += 600;
    world.settle();
    assert_eq!(world.traffic(), [(old.as_str(), 50), (new.as_str(), 50)]);
    world.measured(&[(20, 0.0), (20, 0.0)]);
    world.settle();
    assert_eq!((world.phase(), world.traffic()), (Some(RolloutPhase::Promoted), vec![(new.as_str(), 100)]));
}

#[test]
fn a_canary_that_fails_goes_back_by_itself() {
    let (mut world, old, new) =
        rolling_out(json!({"strategy": "Canary", "steps": [{"weight": 5, "minDuration": "1h"}]}));
    world.ready(&new);
    world.settle();
    world.measured(&[(950, 0.01), (50, 0.02)]);
    world.settle();
    assert_eq!(world.phase(), Some(RolloutPhase::Progressing));
    world.measured(&[(950, 0.01), (50, 0.4)]);
    world.settle();
    assert_eq!((world.phase(), world.traffic()), (Some(RolloutPhase::RolledBack), vec![(old.as_str(), 100)]));
    let rejected = &world.status().rejected_revisions[0];
    assert_eq!(rejected.reason, "MetricRegression");
    assert!(rejected.message.starts_with("candidate: 39.0 points more failed requests"), "{}", rejected.message);
    assert_eq!(world.condition("Stalled"), "True/MetricRegression");
}

#[test]
fn an_approval_in_git_promotes() {
    let (mut world, old, new) = rolling_out(json!({"decision": {"promotion": "Manual"}}));
    world.ready(&new);
    world.settle();
    assert_eq!(
        (world.condition("Ready"), world.traffic()),
        ("False/AwaitingApproval".to_owned(), vec![(old.as_str(), 100)])
    );
    world.change(|object| object.spec.rollout.decision.approve = Some(new.clone()));
    world.settle();
    assert_eq!(world.traffic(), [(new.as_str(), 100)]);
}

#[test]
fn a_first_revision_is_gated_by_what_asks_it_and_not_by_a_flow_that_waits_for_it() {
    for (target, passes_at_once) in [(itself(), false), (through_a_flow(), true)] {
        let mut world = World::new(PVC);
        world.object.spec.rollout = serde_json::from_value(gated()).unwrap();
        world.evaluated(target.clone(), "another", None);
        world.settle();
        let revision = world.target();
        world.ready(&revision);
        world.settle();
        assert_eq!(world.status().stable_revision.is_some(), passes_at_once);
        assert_eq!(world.status().traffic.is_empty(), !passes_at_once);
        world.evaluated(target, &revision, Some("Passed"));
        world.settle();
        assert_eq!(world.condition("Ready"), "True/Serving");
    }
}

#[test]
fn a_provider_outside_cannot_be_gated() {
    let mut object = model("task: Chat\nexternal: {baseUrl: 'http://x/v1', model: m}\n");
    check(&object).unwrap();
    object.spec.rollout = serde_json::from_value(gated()).unwrap();
    assert!(check(&object).unwrap_err().to_string().starts_with("spec.rollout: a provider outside"));
}

proptest! {
    /// Whatever happens in whatever order: the weights sum to 100 or nothing serves, what gets traffic runs, and a revision that served
    /// is never left without another that does.
    #[test]
    fn something_always_serves(events in proptest::collection::vec(0_u8..12, 1..60)) {
        let (mut world, old, _) = rolling_out(json!({"strategy": "Canary", "gates": [{"evaluationRef": {"name": "quality"}}],
            "steps": [{"weight": 20, "minDuration": "10s"}, {"weight": 60, "minUnits": 5}]}));
        world.ready(&old);
        for (place, event) in events.into_iter().enumerate() {
            let target = world.target();
            match event {
                0 if world.fetched.deployments.contains_key(&target) => world.ready(&target),
                1 => if let Some(deployment) = world.fetched.deployments.get_mut(&target) { deployment.status = None },
                2 => world.evaluated(itself(), &target, Some("Passed")),
                3 => world.evaluated(itself(), &target, Some("Failed")),
                4 => world.evaluated(through_a_flow(), &target, Some("Inconclusive")),
                5 => world.change(|object| object.spec.engine.as_mut().unwrap().args = vec![format!("--n={}", place % 3)]),
                6 => world.ask(format!("rollback {target} {place}")),
                7 => world.ask(format!("promote {target} {place}")),
                8 => world.measured(&[(400, 0.0), (100, 0.0)]),
                9 => world.measured(&[(400, 0.0), (100, 0.5)]),
                10 => world.fetched.measured = Measured::Failed("no answer".into()),
                _ => world.second += 7,
            }
            world.reconcile();
            let status = world.status();
            let sum: i32 = status.traffic.iter().map(|arm| arm.weight).sum();
            prop_assert_eq!(sum, 100);
            for arm in &status.traffic {
                prop_assert!(world.fetched.deployments.contains_key(&arm.revision), "{} gets traffic and does not run", arm.revision);
            }
        }
    }
}
