use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};

use super::validate::validate;
use super::*;
use crate::api::conditions::find;
use crate::api::evaluation::{EvaluationStatus, RunPhase, Verdict as Judgement};
use crate::api::flow_revision::FlowRevision;
use crate::api::rollout::RolloutPhase;
use crate::api::{ModelDeployment, PromptFlow, RagIndex};
use crate::controllers::apply::Applied;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::Stage;

mod subject;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn controller() -> Evaluations {
    Evaluations { image: "llmops:test".into(), gateway_url: "http://gateway:8080".into() }
}

fn evaluation(change: impl FnOnce(&mut Value)) -> Evaluation {
    let mut value = json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "Evaluation",
        "metadata": {"name": "quality", "namespace": "team-a", "generation": 3, "uid": "u"},
        "spec": {
            "target": {"promptFlowRef": {"name": "ask"}},
            "dataset": {"configMapRef": {"name": "golden", "key": "cases.jsonl"}},
            "metrics": [{"name": "grounded", "type": "Contains", "ignoreCase": true}],
            "gates": [{"metric": "grounded", "min": "0.50"}],
        },
    });
    change(&mut value["spec"]);
    from(value)
}

fn flow(change: impl FnOnce(&mut Value)) -> PromptFlow {
    let mut value = json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "PromptFlow", "metadata": {"name": "ask", "generation": 2},
        "spec": {
            "inputs": {"question": {"type": "String", "description": "What is asked"}},
            "nodes": [{"name": "answer", "llm": {"model": "m", "messages": [{"role": "user", "content": "{{ inputs.question }}"}]}}],
            "output": "{{ nodes.answer.text }}",
            "variants": [{"name": "control", "weight": 50}, {"name": "concise", "weight": 50}],
        },
        "status": {"observedGeneration": 2,
            "traffic": [{"variant": "control", "revision": "aaaaaaaaaa", "weight": 50}, {"variant": "concise", "revision": "bbbbbbbbbb", "weight": 50}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    change(&mut value);
    from(value)
}

fn dataset(text: &str) -> Arc<ConfigMap> {
    Arc::new(from(json!({"metadata": {"name": "golden"}, "data": {"cases.jsonl": text}})))
}

const CASES: &str =
    "{\"id\":\"a\",\"question\":\"x\",\"expected\":\"1\"}\n{\"id\":\"b\",\"question\":\"y\",\"expected\":\"2\"}\n";

fn content(change: impl FnOnce(&mut Value)) -> FlowRevision {
    let mut value = json!({
        "format": 1, "models": {"writer": {"deployment": "tiny", "timeoutMs": 1000, "retries": 0}}, "indexes": {"handbook": "docs"},
        "inputs": {"question": {"type": "String", "required": true, "maxLength": 8192}}, "nodes": [], "output": "",
    });
    change(&mut value);
    from(value)
}

fn tiny(change: impl FnOnce(&mut Value)) -> ModelDeployment {
    let mut value = json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "tiny", "generation": 1},
        "spec": {"task": "Chat", "external": {"baseUrl": "http://x/v1", "model": "m"}, "cost": {"inputPerMillion": "1"}},
        "status": {"observedGeneration": 1, "stableRevision": "ffffffffff",
            "conditions": [{"type": "Available", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    change(&mut value);
    from(value)
}

fn docs(change: impl FnOnce(&mut Value)) -> RagIndex {
    let mut value = json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "RagIndex", "metadata": {"name": "docs", "generation": 1},
        "spec": {"sources": [{"name": "docs", "configMap": {"name": "pages"}}]},
        "status": {"observedGeneration": 1, "active": {"name": "docs-0a1b", "digest": "sha256:00", "inputs": "x", "since": "2026-01-01T00:00:00Z"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    change(&mut value);
    from(value)
}

/// A ModelDeployment whose revision `eeeeeeeeee` is in this phase, with `quality` as a gate.
fn rolling_out(phase: RolloutPhase) -> ModelDeployment {
    tiny(|model| {
        model["spec"]["rollout"] = json!({"gates": [{"evaluationRef": {"name": "quality"}}]});
        model["status"]["rollout"] = rollout(phase, "tiny", "eeeeeeeeee");
    })
}

fn rollout(phase: RolloutPhase, variant: &str, revision: &str) -> Value {
    json!({"phase": phase, "candidate": [{"variant": variant, "revision": revision, "weight": 100}],
        "started": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z"})
}

fn fetched() -> Fetched {
    let revisions = ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd", "eeeeeeeeee"];
    Fetched {
        flow: Some(flow(|_| {})),
        revisions: revisions.into_iter().map(|revision| (revision.to_owned(), content(|_| {}))).collect(),
        models: [("tiny".to_owned(), tiny(|_| {}))].into(),
        indexes: [("docs".to_owned(), docs(|_| {}))].into(),
        dataset: Some(dataset(CASES)),
        ..Fetched::default()
    }
}

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_790_000_000 + second).unwrap()
}

/// One reconcile without an API server: what the stages decide, and the object with its new status.
fn reconcile(object: &mut Evaluation, fetched: &Fetched, now: i64) -> (Vec<(Kind, String)>, Vec<String>, Vec<String>) {
    let controller = controller();
    let previous = object.status.clone().unwrap_or_default();
    let validated = controller.validate(object, fetched);
    let plan = validated.as_ref().ok().map(|validated| controller.build(object, fetched, validated, at(now)).unwrap());
    let removals = plan.iter().flat_map(|plan| &plan.removals);
    let mut applied = Applied::default();
    applied.removed = removals.map(|removal| (removal.kind, removal.name.clone())).collect();
    let stage = match (&validated, &plan) {
        (Ok(validated), Some(plan)) => Stage::Done { fetched, validated, plan, applied: &applied },
        (Err(error), _) => Stage::Failed { fetched: Some(fetched), validated: None, error },
        (Ok(_), None) => unreachable!(),
    };
    let verdict = controller.status(&View { object, previous: &previous, stage, now: at(now) });
    object.status = Some(verdict.status);
    let (desired, removals) = match plan {
        Some(plan) => (plan.desired, plan.removals),
        None => (Vec::new(), Vec::new()),
    };
    (
        desired.into_iter().map(|child| (child.kind, child.name)).collect(),
        removals.into_iter().map(|removal| removal.name).collect(),
        verdict.events.into_iter().map(|note| format!("{}: {}", note.reason, note.message)).collect(),
    )
}

fn status(object: &Evaluation) -> &EvaluationStatus {
    object.status.as_ref().unwrap()
}

fn condition(object: &Evaluation, kind: &str) -> (String, String, String) {
    let condition = find(&status(object).conditions, kind).unwrap();
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

fn run_name(object: &Evaluation, fetched: &Fetched) -> String {
    validate(object, fetched, "http://gateway:8080").unwrap().plan.run
}

fn job(run: &str, condition: Option<&str>) -> Job {
    let conditions = condition.map(|kind| {
        json!([{"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "too often", "lastTransitionTime": "2026-09-21T15:00:00Z"}])
    });
    from(json!({
        "metadata": {"name": format!("eval-quality-{run}"), "uid": format!("job-{run}"), "labels": {"llmops.dev/revision": run}},
        "status": {"startTime": "2026-09-21T14:30:00Z", "conditions": conditions},
    }))
}

fn pod(run: &str, message: &str) -> Pod {
    from(json!({
        "metadata": {"name": format!("eval-quality-{run}-x"), "labels": {"batch.kubernetes.io/job-name": format!("eval-quality-{run}")},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": format!("eval-quality-{run}"), "uid": format!("job-{run}")}]},
        "status": {"containerStatuses": [{"name": "evaluate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-09-21T15:00:00Z", "message": message}}}]},
    }))
}

fn summary(verdict: &str) -> String {
    json!({"verdict": verdict, "message": "as told", "cases": 2, "errors": 0, "reported": true, "cost": "0.1000",
        "metrics": [{"name": "grounded", "variant": "control", "value": "0.5000", "lower": "0.4000", "upper": "0.6000", "passed": false}]})
    .to_string()
}

#[test]
fn a_run_goes_from_job_to_verdict_and_then_nothing_changes() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    let (desired, removals, events) = reconcile(&mut object, &fetched, 0);
    assert_eq!(
        desired,
        [
            (Kind::ServiceAccount, "eval-quality".to_owned()),
            (Kind::RoleBinding, "eval-quality".to_owned()),
            (Kind::Job, format!("eval-quality-{run}")),
        ]
    );
    assert!(removals.is_empty() && events.is_empty());
    assert_eq!(condition(&object, "Ready").1, "RunInProgress");
    assert_eq!(
        condition(&object, "Accepted"),
        ("True".into(), "Valid".into(), "2 cases fit the target and the metrics".into())
    );
    assert_eq!(status(&object).runs[0].phase, RunPhase::Running);
    assert_eq!(status(&object).runs[0].revisions.len(), 2);

    fetched.jobs = vec![job(&run, Some("Complete"))];
    fetched.pods = vec![pod(&run, &summary("Failed"))];
    let (desired, _, events) = reconcile(&mut object, &fetched, 60);
    assert_eq!(desired.len(), 2, "a complete run needs no Job any more");
    assert_eq!(events, [format!("GatesNotPassed: run {run}: as told")]);
    let first = status(&object).runs[0].clone();
    assert_eq!((first.phase, first.verdict, first.cases), (RunPhase::Complete, Some(Judgement::Failed), 2));
    assert_eq!(
        first.report_url.as_deref(),
        Some(format!("http://gateway:8080/v1/reports/team-a/quality/{run}").as_str())
    );
    assert!(first.started.is_some() && first.finished.is_some());
    assert_eq!(condition(&object, "Ready"), ("True".into(), "GatesNotPassed".into(), "as told".into()));
    assert_eq!(condition(&object, "GatesPassed").0, "False");
    assert_eq!(condition(&object, "Complete").0, "True");

    // Later the pod is collected, then the Job: the verdict stays, and no reconcile changes anything.
    let before = object.status.clone();
    fetched.pods.clear();
    let (_, removals, events) = reconcile(&mut object, &fetched, 120);
    assert_eq!((removals.len(), events.len(), &object.status), (0, 0, &before));
    fetched.jobs.clear();
    let (desired, _, _) = reconcile(&mut object, &fetched, 180);
    assert_eq!((desired.len(), &object.status), (2, &before));
}

#[test]
fn a_lost_verdict_is_asked_for_again() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    reconcile(&mut object, &fetched, 0);
    fetched.jobs = vec![job(&run, Some("Complete"))];
    let (desired, removals, _) = reconcile(&mut object, &fetched, 60);
    assert_eq!(removals, [format!("eval-quality-{run}")]);
    assert_eq!(desired.len(), 2);
    assert_eq!(status(&object).runs[0].phase, RunPhase::Running);
    fetched.jobs.clear();
    let (desired, _, _) = reconcile(&mut object, &fetched, 61);
    assert_eq!(desired.len(), 3);
}

#[test]
fn a_failed_run_says_what_its_pod_said_and_is_tried_again_when_its_job_is_deleted() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    reconcile(&mut object, &fetched, 0);
    fetched.jobs = vec![job(&run, Some("Failed"))];
    fetched.pods = vec![pod(&run, r#"{"message":"the gateway answered 403 Forbidden"}"#)];
    reconcile(&mut object, &fetched, 60);
    let (ready, why, message) = condition(&object, "Stalled");
    assert_eq!((ready.as_str(), why.as_str()), ("True", "RunFailed"));
    assert_eq!(
        message,
        format!(
            "Job \"eval-quality-{run}\" failed: BackoffLimitExceeded: the gateway answered 403 Forbidden; delete the Job to try again, or change the spec"
        )
    );
    let before = object.status.clone();
    fetched.pods.clear();
    reconcile(&mut object, &fetched, 120);
    assert_eq!(object.status, before);
    fetched.jobs.clear();
    let (desired, _, _) = reconcile(&mut object, &fetched, 180);
    assert_eq!(desired.len(), 3);
    assert_eq!(condition(&object, "Ready").1, "RunInProgress");
}

#[test]
fn a_run_that_cannot_start_or_tries_again_says_why() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    fetched.jobs = vec![job(&run, None)];
    let mut waiting = pod(&run, "");
    waiting.status = from(
        json!({"containerStatuses": [{"name": "evaluate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}),
    );
    fetched.pods = vec![waiting];
    reconcile(&mut object, &fetched, 0);
    let (_, why, message) = condition(&object, "Ready");
    assert_eq!(why, "RunInProgress");
    assert!(message.contains("no such image"), "{message}");
    fetched.pods = vec![pod(&run, r#"{"message":"the gateway answered 403 Forbidden"}"#)];
    reconcile(&mut object, &fetched, 10);
    let (_, _, message) = condition(&object, "Reconciling");
    assert!(message.ends_with("an attempt failed and is made again: the gateway answered 403 Forbidden"), "{message}");
}

#[test]
fn a_new_revision_starts_a_run_and_ends_the_one_under_way() {
    let mut object = evaluation(|spec| spec["historyLimit"] = json!(2));
    let mut fetched = fetched();
    let mut names = Vec::new();
    for (index, revision) in ["aaaaaaaaaa", "cccccccccc", "dddddddddd", "eeeeeeeeee"].into_iter().enumerate() {
        fetched.flow = Some(flow(|flow| flow["status"]["traffic"][0]["revision"] = json!(revision)));
        let run = run_name(&object, &fetched);
        let (desired, removals, _) = reconcile(&mut object, &fetched, index as i64 * 100);
        assert_eq!(desired.len(), 3, "{revision}");
        match index {
            // The second came while the first was under way.
            1 => assert_eq!(removals, [format!("eval-quality-{}", names[0])]),
            // The fourth pushes the second out of the history.
            3 => assert_eq!(removals, [format!("eval-quality-{}", names[1])]),
            _ => assert!(removals.is_empty(), "{removals:?}"),
        }
        fetched.jobs.retain(|job| !removals.contains(job.metadata.name.as_ref().unwrap()));
        if index == 0 {
            fetched.jobs.push(job(&run, None));
        } else {
            fetched.jobs.push(job(&run, Some("Complete")));
            fetched.pods.push(pod(&run, &summary("Passed")));
            reconcile(&mut object, &fetched, index as i64 * 100 + 50);
        }
        names.push(run);
    }
    let kept: Vec<&str> = status(&object).runs.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(kept, [names[3].as_str(), names[2].as_str()]);

    // Back to a revision that was judged: its verdict counts again, at once.
    fetched.flow = Some(flow(|flow| flow["status"]["traffic"][0]["revision"] = json!("dddddddddd")));
    let (desired, _, _) = reconcile(&mut object, &fetched, 500);
    assert_eq!((desired.len(), status(&object).runs[0].name.as_str()), (2, names[2].as_str()));
    assert_eq!(condition(&object, "Ready").1, "GatesPassed");
}

#[test]
fn without_the_trigger_a_new_revision_starts_nothing() {
    let mut object = evaluation(|spec| spec["trigger"] = json!({"onRevision": false}));
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    reconcile(&mut object, &fetched, 0);
    fetched.flow = Some(flow(|flow| flow["status"]["traffic"][0]["revision"] = json!("cccccccccc")));
    assert_eq!(run_name(&object, &fetched), run);
    fetched.dataset = Some(dataset("{\"question\":\"z\",\"expected\":\"3\"}"));
    assert_ne!(run_name(&object, &fetched), run);
}

#[test]
fn what_changes_no_answer_starts_no_run() {
    let fetched = fetched();
    let run = run_name(&evaluation(|_| {}), &fetched);
    assert_eq!(run_name(&evaluation(|spec| spec["historyLimit"] = json!(9)), &fetched), run);
    assert_eq!(validate(&evaluation(|_| {}), &fetched, "http://elsewhere").unwrap().plan.run, run);
    let mut described = fetched.clone();
    for content in described.revisions.values_mut() {
        content.inputs.get_mut("question").unwrap().description = "new".into();
    }
    assert_eq!(run_name(&evaluation(|_| {}), &described), run);
    assert_ne!(run_name(&evaluation(|spec| spec["repeats"] = json!(2)), &fetched), run);
}

/// Reason and message of the condition that a mistake gives.
fn refusal(object: &Evaluation, fetched: &Fetched) -> String {
    let error = validate(object, fetched, "http://gateway:8080").unwrap_err();
    format!("{}: {error}", error.reason())
}

#[test]
fn mistakes_name_the_field_and_the_fix() {
    let good = fetched();
    for (object, expected) in [
        (
            evaluation(|spec| spec["metrics"][0] = json!({"name": "grounded", "type": "Regex", "pattern": "("})),
            "InvalidSpec: spec.metrics[0].pattern: metric \"grounded\": pattern is no regular expression: regex parse error: ( ^ error: unclosed group",
        ),
        (
            evaluation(|spec| spec["gates"][0]["metric"] = json!("ground")),
            "InvalidSpec: spec.gates[0].metric: spec.metrics has no \"ground\"; it has grounded",
        ),
        (
            evaluation(|spec| spec["gates"][0]["min"] = json!("half")),
            "InvalidSpec: spec.gates[0].min: \"half\" is no decimal number; write one such as \"0.80\"",
        ),
        (
            evaluation(|spec| spec["variants"] = json!(["concice"])),
            "UnknownVariant: spec.variants: PromptFlow \"ask\" has no variant \"concice\"; it has control, concise",
        ),
        (
            evaluation(|spec| spec["gates"][0]["variants"] = json!(["terse"])),
            "UnknownVariant: spec.gates[].variants: PromptFlow \"ask\" has no variant \"terse\"; it has control, concise",
        ),
        (
            evaluation(|spec| {
                spec["variants"] = json!(["control"]);
                spec["gates"][0]["variants"] = json!(["concise"]);
            }),
            "InvalidSpec: spec.gates[0].variants: \"concise\" is not evaluated; spec.variants has control",
        ),
        (
            evaluation(|spec| spec["budget"] = json!({"timeout": "0s"})),
            "InvalidSpec: spec.budget.timeout: 0ns is not above zero",
        ),
        (
            evaluation(|spec| spec["budget"] = json!({"maxCost": "-1"})),
            "InvalidSpec: spec.budget.maxCost: write a decimal number above zero, such as \"0.50\"",
        ),
        (
            evaluation(|spec| {
                spec["metrics"] = json!([{"name": "grounded", "type": "Latency"}, {"name": "grounded", "type": "Cost"}])
            }),
            "InvalidSpec: spec.metrics[1].name: \"grounded\" is there twice",
        ),
        (
            evaluation(|spec| spec["metrics"][0]["column"] = json!("reference")),
            "InvalidDataset: spec.dataset: ConfigMap \"golden\", key \"cases.jsonl\": line 1: column \"reference\" is missing; it is needed for metric \"grounded\", as a text or a list of texts",
        ),
        (
            evaluation(|spec| spec["dataset"]["configMapRef"]["key"] = json!("other.jsonl")),
            "DatasetNotFound: spec.dataset.configMapRef: ConfigMap \"golden\" has no key \"other.jsonl\"; it has cases.jsonl",
        ),
    ] {
        assert_eq!(refusal(&object, &good), expected);
    }
    let broken = Fetched {
        dataset: Some(dataset("{\"question\":\"x\",\"expected\":\"1\"}\n{\"question\": oops}")),
        ..good.clone()
    };
    assert_eq!(
        refusal(&evaluation(|_| {}), &broken),
        "InvalidDataset: spec.dataset: ConfigMap \"golden\", key \"cases.jsonl\": line 2: not valid JSON at character 14: expected value; write one JSON object a line"
    );
    let absent = Fetched { dataset: None, ..good.clone() };
    assert_eq!(
        refusal(&evaluation(|_| {}), &absent),
        "DatasetNotFound: spec.dataset.configMapRef: there is no ConfigMap \"golden\" in this namespace; create it"
    );
    let targetless = Fetched { flow: None, ..good.clone() };
    assert_eq!(
        refusal(&evaluation(|_| {}), &targetless),
        "TargetNotFound: spec.target.promptFlowRef: there is no PromptFlow \"ask\" in this namespace; create it or correct the name"
    );
    let unserved = Fetched {
        flow: Some(flow(|flow| {
            flow["status"] = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "x",
                "message": "RagIndex \"docs\" is not Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        })),
        ..good.clone()
    };
    assert_eq!(
        refusal(&evaluation(|_| {}), &unserved),
        "TargetNotReady: waiting for PromptFlow \"ask\": it has no revision yet: RagIndex \"docs\" is not Ready"
    );
    let mut unknown = good.clone();
    unknown.revisions.remove("bbbbbbbbbb");
    assert_eq!(
        refusal(&evaluation(|_| {}), &unknown),
        "TargetNotReady: waiting for PromptFlow \"ask\": ControllerRevision \"pf-ask-bbbbbbbbbb\" is not there yet"
    );
    let declared = Fetched {
        flow: Some(flow(|flow| {
            flow["spec"]["variants"].as_array_mut().unwrap().push(json!({"name": "terse", "weight": 0}));
        })),
        ..good.clone()
    };
    assert_eq!(
        refusal(&evaluation(|spec| spec["variants"] = json!(["terse"])), &declared),
        "TargetNotReady: waiting for PromptFlow \"ask\": variant \"terse\" has no revision yet"
    );
    let mut building = good.clone();
    building.indexes.insert("docs".into(), docs(|index| index["status"] = json!({})));
    assert_eq!(
        refusal(&evaluation(|_| {}), &building),
        "TargetNotReady: waiting for RagIndex \"docs\", which PromptFlow \"ask\" uses: it has nothing that serves yet"
    );
    let mut gone = good;
    gone.models.clear();
    assert_eq!(
        refusal(&evaluation(|_| {}), &gone),
        "TargetNotReady: waiting for ModelDeployment \"tiny\", which PromptFlow \"ask\" uses: it does not exist; create it"
    );
}

#[test]
fn a_mistake_takes_nothing_from_earlier_runs() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    reconcile(&mut object, &fetched, 0);
    fetched.jobs = vec![job(&run, None)];
    fetched.dataset = Some(dataset("{"));
    let (_, removals, _) = reconcile(&mut object, &fetched, 10);
    assert!(removals.is_empty());
    assert_eq!(condition(&object, "Accepted").1, "InvalidDataset");
    assert_eq!(condition(&object, "Stalled").0, "True");
    assert_eq!(status(&object).runs.len(), 1);
    // The run under way ends meanwhile; its verdict is kept, but it is not one on the present dataset.
    fetched.jobs = vec![job(&run, Some("Complete"))];
    fetched.pods = vec![pod(&run, &summary("Passed"))];
    let (_, _, events) = reconcile(&mut object, &fetched, 20);
    assert_eq!(events.len(), 1);
    assert_eq!(status(&object).runs[0].verdict, Some(Judgement::Passed));
    assert_eq!(condition(&object, "GatesPassed").0, "Unknown");
}

#[test]
fn suspension_keeps_what_is_known() {
    let mut object = evaluation(|_| {});
    let fetched = fetched();
    reconcile(&mut object, &fetched, 0);
    let previous = object.status.clone().unwrap();
    let verdict =
        controller().status(&View { object: &object, previous: &previous, stage: Stage::Suspended, now: at(10) });
    assert_eq!(verdict.status.runs, previous.runs);
    assert_eq!(find(&verdict.status.conditions, "Ready").unwrap().reason, "Suspended");
    assert_eq!(find(&verdict.status.conditions, "Accepted"), find(&previous.conditions, "Accepted"));
}

#[test]
fn a_failing_api_server_takes_no_verdict_back() {
    let mut object = evaluation(|_| {});
    let mut fetched = fetched();
    let run = run_name(&object, &fetched);
    fetched.jobs = vec![job(&run, Some("Complete"))];
    fetched.pods = vec![pod(&run, &summary("Passed"))];
    reconcile(&mut object, &fetched, 0);
    let previous = object.status.clone().unwrap();
    let error = Error::transient("ApiError", "reading ConfigMap: timeout");
    let stage = Stage::Failed { fetched: None, validated: None, error: &error };
    let verdict = controller().status(&View { object: &object, previous: &previous, stage, now: at(10) });
    assert_eq!(find(&verdict.status.conditions, "Ready").unwrap().status, "True");
    assert_eq!(find(&verdict.status.conditions, "GatesPassed").unwrap().status, "True");
    assert_eq!(find(&verdict.status.conditions, "Reconciling").unwrap().reason, "ApiError");
}

#[test]
fn kubernetes_expands_nothing_in_the_plan() {
    let pattern = "^cost: $$(PATH)$";
    let object = evaluation(|spec| {
        spec["metrics"] = json!([{"name": "grounded", "type": "Regex", "pattern": pattern}]);
    });
    let controller = controller();
    let validated = controller.validate(&object, &fetched()).unwrap();
    let plan = controller.build(&object, &fetched(), &validated, at(0)).unwrap();
    let text = plan.desired[2].object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap();
    assert!(!text.contains('$'), "{text}");
    let read: crate::evaluator::plan::EvaluationPlan = serde_json::from_str(text).unwrap();
    assert_eq!(read.metrics[0].pattern.as_deref(), Some(pattern));
    assert_eq!(read.run_name(true).unwrap(), read.run);
}

#[test]
fn rendered_objects() {
    let object = evaluation(|spec| spec["budget"] = json!({"timeout": "10m"}));
    let fetched = fetched();
    let controller = controller();
    let validated = controller.validate(&object, &fetched).unwrap();
    let plan = controller.build(&object, &fetched, &validated, at(0)).unwrap();
    let objects: Vec<Value> = plan.desired.into_iter().map(|child| child.object).collect();
    insta::assert_yaml_snapshot!("objects", objects);
}
