//! Evaluations, approvals and requests before a generation serves.

use super::*;

fn evaluated(world: &mut World, target: Value, generation: &str, verdict: Option<&str>) {
    let direct = target.get("ragIndexRef").is_some();
    let revisions = if direct { json!([{"variant": "handbook", "revision": generation}]) } else { json!([]) };
    let used = json!([{"kind": "RagIndex", "name": "handbook", "revision": generation}]);
    world.evaluations.insert("quality".into(), json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "quality", "generation": 1},
        "spec": {"target": target, "dataset": {"configMapRef": {"name": "c", "key": "k"}}, "metrics": [{"name": "m", "type": "JsonValid"}]},
        "status": {"observedGeneration": 1, "runs": [{"name": "r1", "revisions": revisions, "dependencies": if direct { json!([]) } else { used },
            "datasetDigest": "", "phase": if verdict.is_some() { "Complete" } else { "Running" }, "verdict": verdict, "message": "as told"}]},
    }));
}

fn itself() -> Value {
    json!({"ragIndexRef": {"name": "handbook"}})
}

fn through_a_flow() -> Value {
    json!({"promptFlowRef": {"name": "ask"}})
}

fn phase(world: &World) -> Option<crate::api::rag_index::CandidatePhase> {
    world.state().candidate.as_ref().map(|candidate| candidate.phase)
}

/// A world in which a generation serves, and another has ready pods.
fn candidate(change: impl FnOnce(&mut Value)) -> World {
    let mut world = serving();
    change(&mut world.spec);
    world.now += 100;
    world.edit_document("# A\nother");
    world.settle();
    world.pass("handbook-bbbbbb");
    world.settle();
    world.serve();
    world.settle();
    world
}

fn gated(spec: &mut Value) {
    spec["gates"]["evaluations"] = json!([{"evaluationRef": {"name": "quality"}}]);
}

use crate::api::rag_index::CandidatePhase::{AwaitingApproval, Failed, Gating};

#[test]
fn a_generation_is_searched_by_nobody_until_its_evaluations_pass() {
    for target in [itself(), through_a_flow()] {
        let mut world = candidate(gated);
        assert_eq!(phase(&world), Some(Gating));
        world.is("GatesPassed", "Unknown", "Gating");
        world.is("QualityPassed", "True", "Passed");
        assert!(world.condition("Reconciling").2.contains("there is no Evaluation `quality`"));
        evaluated(&mut world, target.clone(), "handbook-aaaaaa", Some("Passed"));
        world.settle();
        evaluated(&mut world, target.clone(), "handbook-bbbbbb", None);
        world.settle();
        assert_eq!((world.active(), world.serving().as_deref()), (Some("handbook-aaaaaa"), Some("handbook-aaaaaa")));
        world.is("Ready", "True", "Serving");
        world.is("Reconciling", "True", "Gating");
        world.writes.clear();
        world.now += 1000;
        world.settle();
        assert!(world.writes.is_empty(), "{:?}", world.writes);
        evaluated(&mut world, target.clone(), "handbook-bbbbbb", Some("Passed"));
        world.settle();
        assert_eq!((world.active(), world.serving().as_deref()), (Some("handbook-bbbbbb"), Some("handbook-bbbbbb")));
        world.is("GatesPassed", "True", "GatesPassed");
        assert_eq!(world.state().documents.as_ref().map(|documents| documents.scanned), Some(3), "its report is told");
        world.now += 20;
        world.settle();
        assert_eq!(world.names(Kind::Deployment), ["rag-handbook-bbbbbb"]);
        world.is("GatesPassed", "True", "GatesPassed");
    }
}

#[test]
fn an_index_of_the_wrong_documents_is_stopped_by_its_evaluation() {
    let mut world = candidate(gated);
    evaluated(&mut world, itself(), "handbook-bbbbbb", Some("Failed"));
    world.settle();
    assert_eq!(phase(&world), Some(Failed));
    world.is("Stalled", "True", "EvaluationFailed");
    world.is("Ready", "True", "Serving");
    world.is("GatesPassed", "False", "EvaluationFailed");
    world.is("QualityPassed", "True", "Passed");
    assert_eq!(world.state().rejected_generations[0].reason, "EvaluationFailed");
    assert_eq!(world.names(Kind::Deployment), ["rag-handbook-aaaaaa"], "the candidate's server is gone");
    assert_eq!((world.active(), world.serving().as_deref()), (Some("handbook-aaaaaa"), Some("handbook-aaaaaa")));
    // The evaluation turns to what serves; the rejected one is not tried again.
    evaluated(&mut world, itself(), "handbook-aaaaaa", Some("Passed"));
    world.writes.clear();
    world.now += 10_000;
    world.settle();
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    // Other documents are.
    world.edit_document("# A\nbetter");
    world.settle();
    world.is("Stalled", "False", "NotStalled");
    world.pass("handbook-cccccc");
    world.settle();
    world.serve();
    evaluated(&mut world, itself(), "handbook-cccccc", Some("Passed"));
    world.settle();
    assert_eq!(world.active(), Some("handbook-cccccc"));
}

#[test]
fn a_gate_without_a_verdict_stays_shut_until_a_person_decides() {
    let mut world = candidate(gated);
    evaluated(&mut world, itself(), "handbook-bbbbbb", Some("Inconclusive"));
    world.settle();
    assert_eq!(phase(&world), Some(Gating));
    assert!(world.condition("Reconciling").2.contains("reached no verdict: as told"));
    world.asked = Some("promote handbook-zzzzzz 1".into());
    world.settle();
    assert_eq!(world.active(), Some("handbook-aaaaaa"), "another generation is named");
    world.asked = Some("hold handbook-bbbbbb 2".into());
    world.settle();
    evaluated(&mut world, itself(), "handbook-bbbbbb", Some("Passed"));
    world.settle();
    assert!(world.condition("Reconciling").2.contains("a person holds it"));
    assert_eq!(world.active(), Some("handbook-aaaaaa"));
    world.asked = Some("resume handbook-bbbbbb 3".into());
    world.settle();
    assert_eq!(world.active(), Some("handbook-bbbbbb"));
    assert_eq!(world.state().last_handled_rollout_request, world.asked);
}

#[test]
fn a_person_rejects_and_tries_anew() {
    let mut world = candidate(gated);
    world.asked = Some("rollback handbook-bbbbbb 1".into());
    world.settle();
    world.is("Stalled", "True", "RolledBackByUser");
    world.is("GatesPassed", "False", "RolledBackByUser");
    assert_eq!(world.names(Kind::Deployment), ["rag-handbook-aaaaaa"]);
    world.asked = Some("promote handbook-bbbbbb 2".into());
    world.settle();
    world.serve();
    world.settle();
    assert_eq!(phase(&world), Some(Gating), "it takes its way anew");
    world.asked = Some("promote handbook-bbbbbb 3".into());
    world.settle();
    assert_eq!(world.active(), Some("handbook-bbbbbb"));
}

#[test]
fn an_approval_in_git_or_by_a_person_promotes() {
    for by_git in [true, false] {
        let mut world = candidate(|spec| spec["generations"] = json!({"promote": "Manual"}));
        assert_eq!((phase(&world), world.active()), (Some(AwaitingApproval), Some("handbook-aaaaaa")));
        world.is("Reconciling", "True", "AwaitingApproval");
        if by_git {
            world.spec["generations"]["approve"] = json!("handbook-bbbbbb");
        } else {
            world.asked = Some("promote handbook-bbbbbb 1".into());
        }
        world.settle();
        assert_eq!(world.active(), Some("handbook-bbbbbb"));
    }
}

#[test]
fn a_candidate_whose_pods_are_lost_is_started_again() {
    let mut world = candidate(gated);
    let key = (Kind::Deployment, "rag-handbook-bbbbbb".to_owned());
    world.objects.remove(&key);
    world.settle();
    assert_eq!(phase(&world), Some(crate::api::rag_index::CandidatePhase::Starting));
    world.serve();
    world.settle();
    assert_eq!(phase(&world), Some(Gating));
}

#[test]
fn the_first_generation_is_gated_by_what_asks_it_and_not_by_a_flow_that_waits_for_it() {
    for (target, passes_at_once) in [(itself(), false), (through_a_flow(), true)] {
        let mut world = World::new();
        gated(&mut world.spec);
        evaluated(&mut world, target.clone(), "another", None);
        world.settle();
        world.pass("handbook-aaaaaa");
        world.settle();
        world.serve();
        world.settle();
        assert_eq!(world.active().is_some(), passes_at_once);
        assert_eq!(world.serving().is_some(), passes_at_once);
        evaluated(&mut world, target, "handbook-aaaaaa", Some("Passed"));
        world.settle();
        assert_eq!(world.active(), Some("handbook-aaaaaa"));
    }
}
