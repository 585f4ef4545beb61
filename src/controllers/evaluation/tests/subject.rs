//! What is asked: candidates, what serves, and what they use.

use super::*;

#[test]
fn a_model_is_evaluated_at_its_candidate_while_that_is_gated_else_at_its_stable_revision() {
    let object = evaluation(|spec| spec["target"] = json!({"modelDeploymentRef": {"name": "tiny"}}));
    let fetched = |model| Fetched {
        models: [("tiny".to_owned(), model)].into(),
        dataset: Some(dataset(CASES)),
        ..Fetched::default()
    };
    let plan = validate(&object, &fetched(tiny(|_| {})), "http://gateway:8080").unwrap().plan;
    assert_eq!((plan.revisions[0].variant.as_str(), plan.revisions[0].revision.as_str()), ("tiny", "ffffffffff"));
    assert_eq!(plan.pin(&plan.revisions[0]), "model/tiny=ffffffffff");
    for (phase, asked) in [
        (RolloutPhase::Preparing, "ffffffffff"),
        (RolloutPhase::Gating, "eeeeeeeeee"),
        (RolloutPhase::Holding, "eeeeeeeeee"),
        (RolloutPhase::Progressing, "eeeeeeeeee"),
        (RolloutPhase::RolledBack, "ffffffffff"),
    ] {
        let plan = validate(&object, &fetched(rolling_out(phase)), "http://gateway:8080").unwrap().plan;
        assert_eq!(plan.revisions[0].revision, asked, "{phase:?}");
    }
    assert_eq!(
        refusal(&object, &fetched(tiny(|model| model["spec"]["task"] = json!("Embed")))),
        "InvalidSpec: spec.target.modelDeploymentRef: ModelDeployment \"tiny\" has task Embed; only Chat can be evaluated"
    );
    assert_eq!(
        refusal(&object, &fetched(tiny(|model| model["status"]["stableRevision"] = json!(null)))),
        "TargetNotReady: waiting for ModelDeployment \"tiny\": it has no revision that answers yet"
    );
    let down = |model: &mut Value| model["status"]["conditions"][0]["status"] = json!("False");
    assert_eq!(
        refusal(&object, &fetched(tiny(down))),
        "TargetNotReady: waiting for ModelDeployment \"tiny\": it does not answer"
    );
    // A verdict that is there is not taken back because pods restart.
    let mut judged = object.clone();
    reconcile(&mut judged, &fetched(tiny(|_| {})), 0);
    assert!(validate(&judged, &fetched(tiny(down)), "http://gateway:8080").is_ok());
}

#[test]
fn an_index_is_searched_at_the_generation_that_serves() {
    let object = evaluation(|spec| spec["target"] = json!({"ragIndexRef": {"name": "docs"}}));
    let fetched = |index| Fetched {
        indexes: [("docs".to_owned(), index)].into(),
        dataset: Some(dataset(CASES)),
        ..Fetched::default()
    };
    let plan = validate(&object, &fetched(docs(|_| {})), "http://gateway:8080").unwrap().plan;
    assert_eq!(plan.pin(&plan.revisions[0]), "index/docs=docs-0a1b");
    let with_candidate = |phase: &str| {
        docs(|index| index["status"]["candidate"] = json!({"inputs": "y", "name": "docs-2c3d", "phase": phase}))
    };
    for (phase, asked) in
        [("Starting", "docs-0a1b"), ("Gating", "docs-2c3d"), ("AwaitingApproval", "docs-2c3d"), ("Failed", "docs-0a1b")]
    {
        let plan = validate(&object, &fetched(with_candidate(phase)), "http://gateway:8080").unwrap().plan;
        assert_eq!(plan.revisions[0].revision, asked, "{phase}");
    }
    let filtered = docs(|index| index["spec"]["retrieval"] = json!({"requireFilters": ["tenant"]}));
    assert_eq!(
        refusal(&object, &fetched(filtered)),
        "InvalidDataset: spec.dataset: ConfigMap \"golden\", key \"cases.jsonl\": line 1: column \"tenant\" is missing; it is needed for the index's required filter \"tenant\", as a text"
    );
    assert_eq!(
        refusal(&object, &Fetched { dataset: Some(dataset(CASES)), ..Fetched::default() }),
        "TargetNotFound: spec.target.ragIndexRef: there is no RagIndex \"docs\" in this namespace; create it or correct the name"
    );
}

#[test]
fn a_flows_candidate_is_the_subject_until_its_rollout_ends() {
    let object = evaluation(|_| {});
    let asked = |fetched: &Fetched| {
        let plan = validate(&object, fetched, "http://gateway:8080").unwrap().plan;
        plan.revisions.iter().map(|asked| asked.revision.clone()).collect::<Vec<_>>().join(" ")
    };
    let at = |phase| Fetched {
        flow: Some(flow(|flow| {
            // A flow that is not Ready, because its candidate is not served, is evaluated all the same.
            flow["status"]["conditions"][0]["status"] = json!("False");
            flow["status"]["stable"] = json!([{"variant": "control", "revision": "aaaaaaaaaa", "weight": 100}]);
            flow["status"]["rollout"] = rollout(phase, "control", "cccccccccc");
        })),
        ..fetched()
    };
    for phase in [RolloutPhase::Preparing, RolloutPhase::Gating, RolloutPhase::Holding, RolloutPhase::Progressing] {
        assert_eq!(asked(&at(phase)), "cccccccccc", "{phase:?}");
    }
    for phase in [RolloutPhase::RolledBack, RolloutPhase::Promoted] {
        assert_eq!(asked(&at(phase)), "aaaaaaaaaa", "{phase:?}");
    }
    let mut preparing = at(RolloutPhase::Preparing);
    preparing.revisions.remove("cccccccccc");
    assert_eq!(asked(&preparing), "aaaaaaaaaa");
    let mut gating = at(RolloutPhase::Gating);
    gating.revisions.remove("cccccccccc");
    assert!(refusal(&object, &gating).contains("\"pf-ask-cccccccccc\" is not there yet"));
}

#[test]
fn what_the_flow_uses_is_pinned_and_part_of_the_run() {
    let object = evaluation(|_| {});
    let plan = |fetched: &Fetched| validate(&object, fetched, "http://gateway:8080").unwrap().plan;
    let first = plan(&fetched());
    assert_eq!(first.pin(&first.revisions[1]), "flow=bbbbbbbbbb;model/tiny=ffffffffff;index/docs=docs-0a1b");
    let mut newer = fetched();
    newer.indexes.insert("docs".into(), docs(|index| index["status"]["active"]["name"] = json!("docs-ffff")));
    assert_ne!(plan(&newer).run, first.run);
    // A candidate of a model is used only where its own gates name this evaluation.
    let mut gated = fetched();
    gated.models.insert("tiny".into(), rolling_out(RolloutPhase::Gating));
    assert_eq!(plan(&gated).dependencies[0].revision, "eeeeeeeeee");
    gated.indexes.insert(
        "docs".into(),
        docs(|index| {
            index["spec"]["gates"] = json!({"evaluations": [{"evaluationRef": {"name": "quality"}}]});
            index["status"]["candidate"] = json!({"inputs": "y", "name": "docs-2c3d", "phase": "Gating"});
        }),
    );
    assert_eq!(plan(&gated).dependencies[1].revision, "docs-2c3d");
    gated.indexes.insert("docs".into(), docs(|_| {}));
    let mut elsewhere = rolling_out(RolloutPhase::Gating);
    elsewhere.spec.rollout.gates[0].evaluation_ref.name = "other".into();
    gated.models.insert("tiny".into(), elsewhere);
    assert_eq!(plan(&gated).run, first.run);
}

#[test]
fn a_changed_dependency_makes_the_verdict_stale_and_is_evaluated_anew() {
    for on_revision in [true, false] {
        let mut object = evaluation(|spec| spec["trigger"] = json!({"onRevision": on_revision}));
        let mut fetched = fetched();
        let first = run_name(&object, &fetched);
        reconcile(&mut object, &fetched, 0);
        fetched.jobs = vec![job(&first, Some("Complete"))];
        fetched.pods = vec![pod(&first, &summary("Passed"))];
        reconcile(&mut object, &fetched, 10);
        assert_eq!(condition(&object, "Stale").0, "False");
        assert_eq!(status(&object).runs[0].dependencies.len(), 2);
        fetched.models.insert("tiny".into(), tiny(|model| model["status"]["stableRevision"] = json!("eeeeeeeeee")));
        let (desired, _, _) = reconcile(&mut object, &fetched, 20);
        let old = status(&object).runs.iter().find(|run| run.name == first).unwrap();
        assert!(old.stale);
        if on_revision {
            assert_eq!((desired.len(), status(&object).runs.len()), (3, 2));
            assert_eq!(
                (condition(&object, "Stale").0.as_str(), condition(&object, "Ready").1.as_str()),
                ("False", "RunInProgress")
            );
        } else {
            assert_eq!((desired.len(), status(&object).runs.len()), (2, 1));
            assert_eq!(
                condition(&object, "Stale"),
                (
                    "True".into(),
                    "RevisionsChanged".into(),
                    format!(
                        "run {first} is about control aaaaaaaaaa, concise bbbbbbbbbb, model/tiny ffffffffff, index/docs docs-0a1b, now there is control aaaaaaaaaa, concise bbbbbbbbbb, model/tiny eeeeeeeeee, index/docs docs-0a1b; set spec.trigger.onRevision to true to have that asked"
                    )
                )
            );
        }
        // Back to what was judged: the verdict counts again, at once.
        fetched.models.insert("tiny".into(), tiny(|_| {}));
        reconcile(&mut object, &fetched, 30);
        assert_eq!((status(&object).runs[0].name.as_str(), status(&object).runs[0].stale), (first.as_str(), false));
        assert_eq!(condition(&object, "Stale").0, "False");
    }
}

#[test]
fn an_evaluation_without_cases_says_that_there_is_no_verdict() {
    let mut object = evaluation(|_| {});
    let fetched = Fetched { dataset: Some(dataset("\n")), ..fetched() };
    reconcile(&mut object, &fetched, 0);
    let (passed, why, message) = condition(&object, "GatesPassed");
    assert_eq!((passed.as_str(), why.as_str()), ("Unknown", "NoVerdict"));
    assert!(message.contains("it has no cases"), "{message}");
}
