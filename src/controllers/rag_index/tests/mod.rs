mod gating;
mod world;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use self::world::{World, report, serving};
use super::*;
use crate::api::RagIndexStatus;

#[test]
fn from_documents_to_a_serving_generation() {
    let mut world = World::new();
    world.settle();
    insta::assert_yaml_snapshot!("building", world.state());
    let inputs = world.state().candidate.clone().unwrap().inputs;
    assert_eq!(world.jobs(), [format!("rag-handbook-build-{inputs}")]);
    assert!(world.serving().is_none());
    world.pass("handbook-aaaaaa");
    world.settle();
    insta::assert_yaml_snapshot!("starting", world.state());
    assert!(world.serving().is_none(), "nothing serves before it is proven");
    world.now += 5;
    world.serve();
    world.settle();
    insta::assert_yaml_snapshot!("serving", world.state());
    assert_eq!(world.serving().as_deref(), Some("handbook-aaaaaa"));
    let order: Vec<&str> = world.writes.iter().map(String::as_str).collect();
    let position =
        |what: &str| order.iter().position(|write| write.starts_with(what)).unwrap_or_else(|| panic!("{what}"));
    assert!(position("record") < position("Job"), "a candidate is recorded before its Job is created");
    let rendered: Vec<&Value> = world.objects.values().collect();
    insta::assert_json_snapshot!("objects", rendered);
}

#[test]
fn never_are_there_two_builders() {
    let mut world = World::new();
    let builder = |phase: &str| {
        json!({
            "metadata": {"name": "builder", "labels": {"llmops.dev/component": "index-build"}},
            "status": {"phase": phase},
        })
    };
    // The Job of this pod was deleted; the pod has a grace period to end in.
    world.pods = vec![builder("Running")];
    world.settle();
    assert!(world.jobs().is_empty(), "{:?}", world.writes);
    let status = serde_json::to_string(&world.state()).unwrap();
    assert!(status.contains("pod `builder` of an earlier build still ends"), "{status}");
    world.pods = vec![builder("Failed")];
    world.settle();
    assert_eq!(world.jobs().len(), 1);
}

#[test]
fn nothing_is_written_twice() {
    let mut world = serving();
    world.writes.clear();
    world.now += 100_000;
    world.reconcile();
    assert!(world.writes.is_empty(), "{:?}", world.writes);
}

#[test]
fn a_new_document_swaps_new_before_old() {
    let mut world = serving();
    world.now += 100;
    world.edit_document("# A\nother");
    world.writes.clear();
    world.settle();
    assert_eq!(world.active(), Some("handbook-aaaaaa"));
    world.is("Ready", "True", "Serving");
    world.is("Reconciling", "True", "Building");
    world.pass("handbook-bbbbbb");
    world.settle();
    assert_eq!(world.names(Kind::Deployment), ["rag-handbook-aaaaaa", "rag-handbook-bbbbbb"]);
    assert_eq!(world.serving().as_deref(), Some("handbook-aaaaaa"));
    world.now += 3;
    world.serve();
    world.settle();
    assert_eq!(world.serving().as_deref(), Some("handbook-bbbbbb"));
    assert_eq!(world.names(Kind::Deployment).len(), 2, "the old pods answer what is on its way to them");
    let again = world.reconcile().unwrap().unwrap();
    assert_eq!(again, advance::RETIRE_AFTER);
    world.now += i64::try_from(again.as_secs()).unwrap();
    world.settle();
    assert_eq!(world.names(Kind::Deployment), ["rag-handbook-bbbbbb"]);
    assert_eq!(world.names(Kind::ControllerRevision).len(), 1);
    assert_eq!(world.jobs().len(), 1, "only the last Job is kept");
    world.is("Reconciling", "False", "UpToDate");
}

#[test]
fn a_generation_below_the_gate_never_serves_and_is_not_built_again() {
    let mut world = serving();
    world.edit_document("worse");
    world.settle();
    world.end_job("Complete", "", 0, &report("handbook-cccccc", false));
    world.settle();
    insta::assert_yaml_snapshot!("rejected", world.state());
    let jobs = world.jobs();
    world.now += 1_000_000;
    world.settle();
    assert_eq!(world.jobs(), jobs);
    // Another content and back again: it is remembered.
    world.edit_document("# A\ntext");
    world.settle();
    world.is("Stalled", "False", "NotStalled");
    let passed = world.condition("QualityPassed");
    assert_eq!((passed.0.as_str(), passed.2.as_str()), ("True", "the generation in use passed when it was judged"));
    world.edit_document("worse");
    world.settle();
    world.is("Stalled", "True", "QualityBelowMinimum");
    assert_eq!(world.active(), Some("handbook-aaaaaa"));
    // Only a person can ask for it anew.
    world.requested = Some("2026-11-24T12:00:00Z".into());
    world.settle();
    world.is("Stalled", "False", "NotStalled");
    assert_eq!(world.state().candidate.as_ref().unwrap().attempt, 2);
    assert_ne!(world.jobs(), jobs);
    world.end_job("Complete", "", 0, &report("handbook-cccccc", false));
    world.settle();
    world.is("Stalled", "True", "QualityBelowMinimum");
    assert_eq!(world.state().rejected_generations.len(), 1);
    world.reconcile();
    world.is("Stalled", "True", "QualityBelowMinimum");
}

#[test]
fn the_same_content_from_other_inputs_swaps_nothing() {
    let mut world = serving();
    let before = world.state().active.clone().unwrap();
    world.spec["sources"][0]["exclude"] = json!(["none/**"]);
    world.settle();
    world.pass("handbook-aaaaaa");
    world.writes.clear();
    world.settle();
    let active = world.state().active.clone().unwrap();
    assert_ne!(active.inputs, before.inputs);
    assert_eq!((active.name, active.since), (before.name, before.since));
    assert!(world.state().candidate.is_none());
    assert!(world.writes.iter().all(|write| matches!(write.as_str(), "record" | "status")), "{:?}", world.writes);
}

#[test]
fn a_newer_content_supersedes_a_running_build() {
    let mut world = World::new();
    world.settle();
    let first = world.jobs();
    world.edit_document("newer");
    world.settle();
    assert_eq!(world.jobs().len(), 1, "at most one build at a time");
    assert_ne!(world.jobs(), first);
    // Back to what it was before the first build ended.
    world.edit_document("# A\ntext");
    world.settle();
    assert_eq!(world.jobs(), first);
}

#[test]
fn a_build_that_fails_is_tried_again_later_and_later() {
    let mut world = World::new();
    world.settle();
    let mut pauses = Vec::new();
    for attempt in 1..=4 {
        assert_eq!(world.state().candidate.as_ref().unwrap().attempt, attempt);
        world.end_job(
            "Failed",
            "BackoffLimitExceeded",
            1,
            &json!({"passed": false, "reason": "ModelNotReady", "message": "no answer from mdep-x"}),
        );
        world.settle();
        world.is("Stalled", "False", "NotStalled");
        world.is("Reconciling", "True", "ModelNotReady");
        let again = world.reconcile().unwrap().unwrap();
        pauses.push(again.as_secs());
        world.now += i64::try_from(again.as_secs()).unwrap();
        world.settle();
        assert_eq!(world.jobs().len(), 1);
    }
    assert_eq!(pauses, [30, 60, 120, 240]);
}

#[test]
fn what_no_retry_mends_stalls_with_the_builders_words() {
    let failed = |reason: &str, code: i32, message: Value| {
        let mut world = serving();
        world.edit_document("x");
        world.settle();
        world.end_job("Failed", reason, code, &message);
        world.settle();
        assert!(world.reconcile().unwrap().is_none(), "nothing is due by time");
        world.is("Ready", "True", "Serving");
        assert_eq!(world.condition("QualityPassed").0, "Unknown");
        world.condition("Stalled")
    };
    let words = json!({"passed": false, "reason": "GoldenSetInvalid", "message": "golden/q.jsonl, line 3: no query"});
    assert_eq!(
        failed("PodFailurePolicy", 42, words),
        (
            "True".into(),
            "GoldenSetInvalid".into(),
            "golden/q.jsonl, line 3: no query; generation handbook-aaaaaa keeps serving".into()
        )
    );
    assert_eq!(failed("DeadlineExceeded", 143, Value::Null).1, "BuildDeadlineExceeded");
    assert_eq!(
        failed("PodFailurePolicy", 42, json!({"passed": false, "reason": "Newer", "message": "m"})).1,
        "BuildFailed"
    );
}

#[test]
fn a_lost_report_is_waited_for_and_then_asked_for_again() {
    let mut world = World::new();
    world.settle();
    world.end_job("Complete", "", 0, &Value::Null);
    world.settle();
    assert_eq!(world.reconcile().unwrap().unwrap().as_secs(), 30);
    world.is("Reconciling", "True", "Building");
    world.now += 30;
    world.settle();
    assert_eq!(world.state().candidate.as_ref().unwrap().attempt, 2);
    world.pass("handbook-aaaaaa");
    world.settle();
    assert_eq!(world.state().candidate.as_ref().unwrap().name.as_deref(), Some("handbook-aaaaaa"));
}

#[test]
fn pods_that_do_not_start_leave_the_old_generation_alone() {
    let mut world = serving();
    world.now += 100;
    world.edit_document("x");
    world.settle();
    world.pass("handbook-dddddd");
    world.settle();
    world.pods.push(json!({
        "metadata": {"name": "p", "labels": {names::LABEL_REVISION: "handbook-dddddd"}},
        "status": {"containerStatuses": [{"name": "index", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "the manifest's digest differs"}}}]},
    }));
    world.settle();
    let (_, reason, message) = world.condition("Reconciling");
    assert_eq!(reason, "Starting");
    assert!(message.contains("pod `p`: CrashLoopBackOff: the manifest's digest differs"), "{message}");
    let deployment = world.objects.get_mut(&(Kind::Deployment, "rag-handbook-dddddd".into())).unwrap();
    deployment["status"] =
        json!({"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]});
    world.settle();
    world.is("Stalled", "True", "ServerNotReady");
    world.is("Ready", "True", "Serving");
    assert_eq!(world.names(Kind::Deployment), ["rag-handbook-aaaaaa"]);
    assert_eq!(world.serving().as_deref(), Some("handbook-aaaaaa"));
}

#[test]
fn what_is_missing_is_named_and_stops_nothing() {
    type Disturb = Box<dyn Fn(&mut World)>;
    let situations: Vec<(&str, Disturb)> = vec![
        ("source_missing", Box::new(|world| drop(world.config_maps.remove("docs")))),
        ("golden_key_missing", Box::new(|world| world.config_maps.get_mut("golden").unwrap().clear())),
        ("spec_refused", Box::new(|world| world.spec["retrieval"] = json!({"topK": 50, "candidates": 10}))),
        ("bad_pattern", Box::new(|world| world.spec["sources"][0]["include"] = json!(["a["]))),
        (
            "claim_missing",
            Box::new(|world| world.spec["sources"][0] = json!({"name": "files", "pvc": {"claimName": "nofiles"}})),
        ),
        ("model_missing", Box::new(|world| world.spec["embedding"] = json!({"modelRef": {"name": "minilm"}}))),
        (
            "model_loading",
            Box::new(|world| {
                world.spec["embedding"] = json!({"modelRef": {"name": "minilm"}});
                world.model = Some(model("Embed", Value::Null));
            }),
        ),
        (
            "model_is_no_embedder",
            Box::new(|world| {
                world.spec["embedding"] = json!({"modelRef": {"name": "minilm"}});
                world.model = Some(model("Chat", Value::Null));
            }),
        ),
    ];
    let mut seen = BTreeMap::new();
    for (name, disturb) in situations {
        for (stage, mut world) in [("first", World::new()), ("later", serving())] {
            disturb(&mut world);
            world.settle();
            assert_eq!(world.active().is_some(), stage == "later");
            if stage == "later" {
                world.is("Ready", "True", "Serving");
                assert!(world.serving().is_some());
            }
            let conditions: Vec<String> = world
                .state()
                .conditions
                .iter()
                .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
                .collect();
            seen.insert(format!("{name}_{stage}"), conditions);
        }
    }
    insta::assert_yaml_snapshot!("missing", seen);
}

fn model(task: &str, status: Value) -> Value {
    json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "minilm", "namespace": "team-a"},
        "spec": {"task": task, "model": {"name": "mini", "source": {"pvc": {"claimName": "x", "path": "m.gguf"}}}, "engine": {"type": "LlamaCpp"}},
        "status": status,
    })
}

#[test]
fn an_embedding_model_is_part_of_the_inputs_by_revision() {
    let mut world = World::new();
    world.spec["embedding"] = json!({"modelRef": {"name": "minilm"}});
    let ready = |revision: &str| {
        let ready = json!([{"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        model("Embed", json!({"stableRevision": revision, "conditions": ready}))
    };
    world.model = Some(ready("r1"));
    world.settle();
    let job = &world.of::<Value>(Kind::Job)[0];
    let plan = job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap();
    let plan: Value = serde_json::from_str(plan).unwrap();
    assert_eq!(
        plan["embedder"],
        json!({"openAi": {"baseUrl": "http://mdep-minilm.team-a.svc:8080/v1", "model": "mini", "revision": "r1"}})
    );
    let first = world.jobs();
    world.model = Some(ready("r2"));
    world.settle();
    assert_ne!(world.jobs(), first);
}

#[test]
fn a_volume_is_looked_at_again_when_asked() {
    let mut world = World::new();
    world.spec["sources"] = json!([{"name": "files", "pvc": {"claimName": "files", "path": "docs"}}]);
    world.settle();
    world.pass("handbook-aaaaaa");
    world.settle();
    world.serve();
    world.settle();
    let first = world.state().active.clone().unwrap().inputs;
    world.requested = Some("1".into());
    world.settle();
    assert_ne!(world.state().candidate.as_ref().unwrap().inputs, first);
    // A ConfigMap's content is seen: the annotation builds nothing.
    let mut world = serving();
    world.requested = Some("1".into());
    world.settle();
    assert!(world.state().candidate.is_none());
    assert_eq!(world.state().last_handled_reconcile_at.as_deref(), Some("1"));
}

#[test]
fn another_operator_version_restarts_nothing_and_other_resources_do() {
    let mut world = serving();
    let template = |world: &World| {
        world.objects[&(Kind::Deployment, "rag-handbook-aaaaaa".to_owned())]["spec"]["template"].clone()
    };
    let before = template(&world);
    world.image = "llmops:next".into();
    world.writes.clear();
    world.reconcile();
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.spec["resources"] = json!({"limits": {"memory": "1Gi"}});
    world.settle();
    assert_ne!(template(&world), before);
    world.is("Reconciling", "True", "Rolling");
    world.now += 100;
    world.serve();
    world.settle();
    assert_eq!(world.names(Kind::ControllerRevision).len(), 1);
}

#[test]
fn the_store_grows_and_never_shrinks() {
    let mut world = serving();
    world.writes.clear();
    world.spec["store"] = json!({"embedded": {"volume": {"size": "1Gi"}}});
    world.settle();
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.spec["store"] = json!({"embedded": {"volume": {"size": "5Gi"}}});
    world.settle();
    assert_eq!(world.writes, ["PersistentVolumeClaim rag-handbook-store"]);
}

/// Whatever write the controller dies after, it ends up where it would have without dying, and what serves never stops.
#[test]
fn a_crash_after_any_write_resumes() {
    fn story(fuse: Option<usize>) -> (RagIndexStatus, Vec<(Kind, String)>, usize, bool) {
        let mut world = World::new();
        world.fuse = fuse;
        let mut served = true;
        let mut crashed = false;
        let mut settle = |world: &mut World| {
            for _ in 0..20 {
                let before = world.writes.len();
                if world.reconcile().is_none() {
                    crashed = true;
                    world.fuse = None;
                    continue;
                }
                // What the Service selects has pods that are ready.
                if let Some(generation) = world.serving() {
                    served &= world
                        .objects
                        .get(&(Kind::Deployment, names::index_generation(&generation)))
                        .is_some_and(|deployment| deployment["status"]["readyReplicas"] == 1);
                }
                if world.writes.len() == before {
                    return;
                }
            }
            panic!("does not settle: {:?}", world.writes);
        };
        settle(&mut world);
        world.pass("handbook-aaaaaa");
        settle(&mut world);
        world.serve();
        settle(&mut world);
        world.now += 100;
        world.edit_document("second");
        settle(&mut world);
        world.pass("handbook-bbbbbb");
        settle(&mut world);
        world.serve();
        settle(&mut world);
        world.now += 100;
        settle(&mut world);
        world.edit_document("third");
        settle(&mut world);
        world.end_job("Complete", "", 0, &report("handbook-cccccc", false));
        settle(&mut world);
        assert!(served, "what serves was taken away: {fuse:?}");
        let objects = world.objects.keys().cloned().collect();
        (world.state().clone(), objects, world.writes.len(), crashed)
    }
    let (status, objects, writes, _) = story(None);
    for fuse in 0..writes {
        let (after, left, _, crashed) = story(Some(fuse));
        assert!(crashed);
        assert_eq!(after, status, "after write {fuse}");
        assert_eq!(left, objects, "after write {fuse}");
    }
}
