//! The dashboard's pages over the wire: who sees them, and that nothing in them comes alive.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::harness::{KEY, TOKEN, TestGateway, asking, base64, decode, soon};
use crate::dashboard::record_history;
use crate::gateway::store::{Report, ReportFormat};

const HOSTILE: &str = "<script>alert(1)</script>\"'&{{ 7411*7411 }}`<script>`";

struct Shown {
    status: u16,
    policy: String,
    body: String,
}

async fn show(gateway: &TestGateway, path: &str, credential: &str) -> Shown {
    let basic = format!("Basic {}", base64(format!("me:{credential}").as_bytes()));
    let request = gateway.client.get(format!("{}{path}", gateway.base)).header("authorization", basic);
    let response = soon(request.send()).await.unwrap();
    let policy = response.headers().get("content-security-policy").map(|policy| policy.to_str().unwrap().to_owned());
    Shown {
        status: response.status().as_u16(),
        policy: policy.unwrap_or_default(),
        body: response.text().await.unwrap().replace("&#x2f;", "/"),
    }
}

/// One object of each kind in the namespaces `a` and `b`, with hostile words wherever the API server would take them.
fn populate(gateway: &TestGateway) {
    let conditions = json!([{"type": "Ready", "status": "False", "reason": "X", "message": HOSTILE,
                             "lastTransitionTime": "2026-11-24T12:00:00Z"}]);
    let rejected = json!([{"revision": HOSTILE, "reason": "X", "message": HOSTILE, "time": "2026-11-24T12:00:00Z"}]);
    let rollout = json!({
        "phase": "Progressing", "started": "2026-11-24T12:00:00Z", "since": "2026-11-24T12:00:00Z", "step": 0,
        "stable": [{"variant": HOSTILE, "revision": "f1", "weight": 100}],
        "candidate": [{"variant": HOSTILE, "revision": HOSTILE, "weight": 100}],
        "gates": [{"evaluation": HOSTILE, "run": HOSTILE, "verdict": "Passed", "message": HOSTILE}],
        "message": HOSTILE,
    });
    let experiment = json!({"units": 100, "step": 0, "measured": "2026-11-24T12:30:00Z", "srmPValue": "0.0001", "metrics": [{
        "name": format!("Event/{HOSTILE}"), "goal": true, "arm": HOSTILE, "control": "0.1", "treatment": "0.2",
        "difference": "0.1", "lower": "-0.1", "upper": "0.3", "verdict": "Worse", "message": HOSTILE}]});
    for namespace in ["a", "b"] {
        gateway.add(|objects| {
            let meta = |name: &str| json!({"namespace": namespace, "name": name, "uid": namespace, "creationTimestamp": "2026-11-24T11:00:00Z"});
            objects.flows.push(decode(json!({
                "metadata": meta("docs"),
                "spec": {"nodes": [], "output": "x", "models": {"m": {"modelDeploymentRef": {"name": HOSTILE}}},
                         "rollout": {"steps": [{"weight": 5}], "gates": [{"evaluationRef": {"name": HOSTILE}}]}},
                "status": {"traffic": [{"variant": HOSTILE, "revision": "f1", "weight": 100}], "conditions": conditions,
                           "summary": HOSTILE, "url": HOSTILE, "rollout": rollout, "experiment": experiment,
                           "phase": "Progressing", "rejectedRevisions": rejected},
            })));
            objects.models.push(decode(json!({
                "metadata": meta("writer"), "spec": {"task": "Chat", "external": {"baseUrl": "http://x", "model": HOSTILE}},
                "status": {"conditions": conditions, "rejectedRevisions": rejected, "rollout": rollout,
                           "download": {"bytes": 10, "totalBytes": 100}},
            })));
            objects.indexes.push(decode(json!({
                "metadata": meta("handbook"), "spec": {"sources": []},
                "status": {"conditions": conditions,
                           "failures": [{"uri": HOSTILE, "reason": "X", "message": HOSTILE}],
                           "quality": [{"metric": HOSTILE, "k": 5, "candidate": "0.5", "queries": 10, "passed": false}],
                           "rejectedGenerations": [{"inputs": HOSTILE, "reason": "X", "message": HOSTILE}]},
            })));
            objects.evaluations.push(decode(json!({
                "metadata": meta("quality"),
                "spec": {"target": {"promptFlowRef": {"name": HOSTILE}}, "dataset": {"configMapRef": {"name": "d", "key": HOSTILE}},
                         "metrics": [{"name": "m", "type": "Contains"}], "gates": [{"metric": "m", "min": "0.5"}]},
                "status": {"conditions": conditions, "runs": [{"name": "run1", "revisions": [{"variant": HOSTILE, "revision": HOSTILE}],
                    "datasetDigest": "x", "phase": "Complete", "verdict": "Failed", "message": HOSTILE, "cases": 3,
                    "metrics": [{"name": "m", "variant": HOSTILE, "value": "0.4", "lower": "0.3", "upper": "0.5", "passed": false}]}]},
            })));
            objects.revisions.push(decode(json!({
                "metadata": {"namespace": namespace, "name": "pf-docs-f1", "uid": namespace,
                             "labels": {"llmops.dev/owner": "docs", "llmops.dev/revision": "f1"}},
                "revision": 1, "data": asking("writer"),
            })));
        });
    }
}

const PAGES: [&str; 4] = ["flows/a/docs", "models/a/writer", "indexes/a/handbook", "evaluations/a/quality"];

#[tokio::test]
async fn every_page_escapes_what_it_shows_and_runs_nothing() {
    let gateway = TestGateway::start().await;
    populate(&gateway);
    let recording = tokio::spawn(record_history(gateway.gateway.clone()));
    soon(async {
        while gateway.gateway.store.points("a", "docs", "a").await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    recording.abort();
    let html = Report {
        namespace: "a".into(),
        evaluation: "quality".into(),
        run: "run1".into(),
        format: ReportFormat::Html,
        time_ms: 0,
        body: b"<h1>Report</h1>".to_vec(),
    };
    gateway.gateway.store.report(html).await.unwrap();
    let paths = PAGES.map(|page| format!("/dashboard/{page}"));
    let more = ["/", "/dashboard", "/?namespace=a&refresh=5", "/?namespace=%3Cscript%3E"].map(str::to_owned);
    for path in paths.iter().chain(&more) {
        let shown = show(&gateway, path, KEY).await;
        assert_eq!(shown.status, 200, "{path}: {}", shown.body);
        assert!(!shown.body.contains("<script"), "{path} has a script");
        assert!(!shown.body.contains(" style="), "{path} has a style that its policy forbids");
        assert!(!shown.body.contains("54922921"), "{path} ran a template from an object");
        let policy = &shown.policy;
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    }
    let flow = show(&gateway, "/dashboard/flows/a/docs", KEY).await.body;
    assert!(flow.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    for part in
        ["Interval over time", "percentage points", "not as asked for", "Rejected revisions", "aria-current=\"step\""]
    {
        assert!(flow.contains(part), "{part}");
    }
    let evaluation = show(&gateway, "/dashboard/evaluations/a/quality", KEY).await.body;
    assert!(evaluation.contains("href=\"/v1/reports/a/quality/run1\"") && evaluation.contains("<iframe"));
    let refreshed = show(&gateway, "/?namespace=a&refresh=5", KEY).await.body;
    assert!(refreshed.contains("http-equiv=\"refresh\" content=\"5\""));
}

#[tokio::test]
async fn pages_show_only_what_the_visitor_may_read() {
    let gateway = TestGateway::start().await;
    populate(&gateway);
    let first = show(&gateway, "/", KEY).await.body;
    assert!(first.contains("/dashboard/flows/a/docs") && !first.contains("/dashboard/flows/b/docs"));
    for page in PAGES {
        let path = format!("/dashboard/{page}");
        assert_eq!(show(&gateway, &path, "llmops_wrong").await.status, 401);
        // What a key does not open looks the same whether or not it exists.
        let other = show(&gateway, &path.replace("/a/", "/b/"), KEY).await;
        let none = show(&gateway, &path.replace("/a/", "/none/"), KEY).await;
        assert_eq!((other.status, none.status), (403, 403), "{page}");
        assert!(other.body.contains("<h1>Not allowed</h1>") && other.policy.contains("default-src 'none'"));
        let missing = show(&gateway, &format!("{path}-gone"), KEY).await;
        assert_eq!(missing.status, 404);
        assert!(missing.body.contains("<h1>Not found</h1>"));
        assert_eq!(show(&gateway, &path, TOKEN).await.status, 403, "{page} without a role");
    }
    let granted = |what: &str| {
        gateway.reviewer.granted.lock().unwrap().insert(what.into());
    };
    // A refusal is remembered for a second, so this is another gateway.
    let other = TestGateway::start().await;
    populate(&other);
    other.reviewer.granted.lock().unwrap().insert("promptflows/".into());
    let first = show(&other, "/", TOKEN).await.body;
    assert!(first.contains("/dashboard/flows/a/docs") && !first.contains("/dashboard/models/"), "only flows");
    assert!(!first.contains("/dashboard/flows/b/docs"));
    let flow = show(&other, "/dashboard/flows/a/docs", TOKEN).await;
    assert_eq!(flow.status, 200);
    assert!(!flow.body.contains("Recorded answers"), "figures need a permission of their own");
    granted("promptflows/");
    gateway.reviewer.away.store(true, Ordering::Relaxed);
    let away = show(&gateway, "/", "xxx.yyy.zzz").await;
    assert_eq!(away.status, 503, "an empty page would be a lie");
}

#[tokio::test]
async fn the_course_of_an_experiment_is_kept_once_for_each_measurement() {
    let gateway = TestGateway::start().await;
    let recording = tokio::spawn(record_history(gateway.gateway.clone()));
    let measured = |time: &str, difference: &str| {
        let experiment = json!({"units": 10, "measured": time, "metrics": [
            {"name": "ErrorRate", "arm": "candidate", "difference": difference, "verdict": "Inconclusive"}]});
        gateway.add(|objects| {
            objects.flows = vec![decode(json!({
                "metadata": {"namespace": "a", "name": "docs", "uid": "u1"}, "spec": {"nodes": [], "output": "x"},
                "status": {"experiment": experiment},
            }))];
        });
    };
    let kept = async |count: usize| {
        soon(async {
            loop {
                let points = gateway.gateway.store.points("a", "docs", "u1").await.unwrap();
                if points.len() >= count {
                    return points.iter().map(|point| point.difference.unwrap()).collect::<Vec<_>>();
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    };
    measured("2026-11-24T12:00:00Z", "0.1");
    assert_eq!(kept(1).await, [0.1]);
    measured("2026-11-24T12:00:00Z", "0.1");
    measured("2026-11-24T12:05:00Z", "0.2");
    assert_eq!(kept(2).await, [0.1, 0.2]);
    recording.abort();
    // A gateway that starts anew sees the last measurement again.
    let again = tokio::spawn(record_history(gateway.gateway.clone()));
    measured("2026-11-24T12:10:00Z", "0.3");
    assert_eq!(kept(3).await, [0.1, 0.2, 0.3]);
    assert!(gateway.gateway.store.points("a", "docs", "another").await.unwrap().is_empty());
    again.abort();
}
