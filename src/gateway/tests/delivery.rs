//! Progressive delivery: what the controller sees of a split, and how it changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::engine::{Engine, Script, index};
use super::harness::{TOKEN, TestGateway, asking, json_of, soon};
use crate::experiment::measurements::stratum;
use crate::gateway::endpoints::Limits;

impl TestGateway {
    /// What the controller is told of the flow `a/docs`.
    async fn measurements(&self) -> Vec<Value> {
        self.reviewer.granted.lock().unwrap().insert("promptflows/measurements".into());
        let (status, body) = json_of(self.with_token("/v1/measurements/a/docs")).await;
        assert_eq!(status, 200, "{body}");
        body["arms"].as_array().unwrap().clone()
    }

    fn with_token(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.base)).header("authorization", format!("Bearer {TOKEN}"))
    }
}

#[tokio::test]
async fn measurements_are_for_kubernetes_identities_that_may_read_them() {
    let gateway = TestGateway::start().await;
    gateway.simple_flow();
    let (status, body) = json_of(gateway.get("/v1/measurements/a/docs")).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("permission_denied")), "an API key: {body}");
    assert_eq!(json_of(gateway.with_token("/v1/measurements/a/docs")).await.0, 403);
    let gateway = TestGateway::start().await;
    gateway.reviewer.granted.lock().unwrap().insert("promptflows/measurements".into());
    let (status, body) = json_of(gateway.with_token("/v1/measurements/a/docs?since=2026-11-24T12:00:00Z")).await;
    assert_eq!((status, body), (200, json!({"arms": []})));
    let (status, body) = json_of(gateway.with_token("/v1/measurements/a/docs?since=yesterday")).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("since")));
    assert_eq!(json_of(gateway.with_token("/v1/measurements/b/docs")).await.0, 403);
    let metrics = gateway.gateway.metrics.text();
    for outcome in ["ok", "invalid"] {
        let line = format!("llmops_gateway_measurements_total{{outcome=\"{outcome}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn measurements_tell_of_each_arm_in_the_table_that_assigned_it() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    // The candidate f2 has two segments: f1 is the stable revision of both variants.
    let traffic = json!([
        {"variant": "control", "revision": "f1", "weight": 30}, {"variant": "control", "revision": "f2", "weight": 20},
        {"variant": "short", "revision": "f1", "weight": 20}, {"variant": "control", "revision": "f2", "weight": 30},
    ]);
    gateway.flow(&traffic, &json!({}), &[("f1", asking("writer")), ("f2", asking("writer"))]);
    let mut last = String::new();
    for user in 0..40 {
        let (status, body) = json_of(gateway.ask(json!({"user": user.to_string()}))).await;
        assert_eq!(status, 200);
        if body["revision"] == "f2" {
            last = body["requestId"].as_str().unwrap().to_owned();
        }
    }
    let feedback = json!({"requestId": last, "thumbs": "up", "event": "bought", "judgeScore": 0.5});
    assert_eq!(json_of(gateway.post("/v1/feedback", &feedback)).await.0, 202);
    let arms = gateway.measurements().await;
    let stratum = stratum([("control", "f1", 30), ("control", "f2", 20), ("short", "f1", 20), ("control", "f2", 30)]);
    assert!(arms.iter().all(|arm| arm["stratum"] == stratum && arm["shadow"] == false), "{arms:?}");
    assert_eq!(arms.iter().map(|arm| arm["requests"].as_u64().unwrap()).sum::<u64>(), 40);
    let candidate = arms.iter().find(|arm| arm["revision"] == "f2").unwrap();
    assert_eq!((&candidate["variant"], &candidate["weight"]), (&json!("control"), &json!(50)));
    let metric = |arm: &Value, name: &str| {
        arm["metrics"].as_array().unwrap().iter().find(|metric| metric["metric"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(metric(candidate, "Thumbs")["mean"], 1.0);
    assert_eq!(metric(candidate, "JudgeScore")["mean"], 0.5);
    assert_eq!(metric(candidate, "Event")["event"], "bought");
    let control = arms.iter().find(|arm| arm["revision"] == "f1" && arm["variant"] == "control").unwrap();
    assert_eq!((&control["weight"], &metric(control, "Event")["mean"]), (&json!(30), &json!(0.0)));
}

#[tokio::test]
async fn an_arm_that_nobody_meets_is_told_of_once_others_are_met() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let traffic = json!([{"variant": "control", "revision": "f1", "weight": 95}, {"variant": "control", "revision": "f2", "weight": 5}]);
    let spec = json!({"experiment": {"goal": {"metric": "Event", "event": "bought"}}});
    gateway.flow(&traffic, &spec, &[("f1", asking("writer")), ("f2", asking("writer"))]);
    assert_eq!(gateway.measurements().await, Vec::<Value>::new());
    // bob's bucket is in the first arm: 6231.
    assert_eq!(json_of(gateway.ask(json!({"user": "bob"}))).await.1["revision"], "f1");
    let arms = gateway.measurements().await;
    let units: Vec<_> =
        arms.iter().map(|arm| (arm["revision"].clone(), arm["weight"].clone(), arm["units"].clone())).collect();
    assert_eq!(units, [(json!("f1"), json!(95), json!(1)), (json!("f2"), json!(5), json!(0))]);
    let events: Vec<_> =
        arms[0]["metrics"].as_array().unwrap().iter().filter(|metric| metric["metric"] == "Event").collect();
    assert_eq!(events, [&json!({"metric": "Event", "event": "bought", "units": 1, "mean": 0.0, "m2": 0.0})]);
}

#[tokio::test]
async fn all_replicas_change_over_at_the_moment_that_the_status_names() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let at = "2026-11-24T12:00:01Z";
    let at_ms = at.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let status = json!({
        "traffic": [{"variant": "control", "revision": "f2", "weight": 100}],
        "switch": {"at": at, "from": [{"variant": "control", "revision": "f1", "weight": 100}]},
    });
    gateway.flow_at(&status, &json!({}), &[("f1", asking("writer")), ("f2", asking("writer"))]);
    for (now, revision) in
        [(at_ms - 1_000, "f1"), (at_ms - 1, "f1"), (at_ms, "f2"), (at_ms + 1, "f2"), (at_ms - 1, "f1")]
    {
        gateway.clock.store(now, Ordering::Relaxed);
        let (status, body) = json_of(gateway.ask(json!({}))).await;
        assert_eq!((status, &body["revision"]), (200, &json!(revision)), "{now}");
    }
    gateway.clock.store(at_ms, Ordering::Relaxed);
    let arms = gateway.measurements().await;
    let told: Vec<_> =
        arms.iter().map(|arm| (arm["stratum"].as_str().unwrap().to_owned(), arm["requests"].clone())).collect();
    assert_eq!(
        told,
        [(stratum([("control", "f1", 100)]), json!(3)), (stratum([("control", "f2", 100)]), json!(2))],
        "each request counts for the table that it was routed by"
    );
}

#[tokio::test]
async fn a_candidate_can_be_asked_with_pins_before_it_gets_any_traffic() {
    let [stable, candidate] = [
        Engine::start(vec![Script::Say(vec!["stable"])]).await,
        Engine::start(vec![Script::Say(vec!["candidate"])]).await,
    ];
    let [active, next] = [index("handbook-g1", &["alpha"]).await, index("handbook-g2", &["beta"]).await];
    let gateway = TestGateway::with(Limits { queue_timeout: Duration::from_millis(50), ..Limits::default() }).await;
    gateway.model("writer", &[&stable]);
    gateway.pod("model", "writer", "r2", &candidate);
    gateway.index("handbook", "handbook-g1", &active);
    gateway.pod("index", "handbook", "handbook-g2", &next);
    let mut revision = asking("writer");
    revision["indexes"] = json!({"book": "handbook"});
    revision["nodes"] = json!([
        {"name": "search", "retrieve": {"index": "book", "query": "{{ inputs.question }}"}},
        {"name": "answer", "after": ["search"], "llm": {"model": "writer", "parameters": {}, "messages": [
            {"role": "user", "content": "{{ nodes.search.chunks[0].text }}"}]}},
    ]);
    let status = json!({"rollout": {
        "phase": "Gating", "candidate": [{"variant": "short", "revision": "f1", "weight": 100}],
        "started": "2026-11-24T12:00:00Z", "since": "2026-11-24T12:00:00Z",
    }});
    gateway.flow_at(&status, &json!({}), &[("f1", revision)]);
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("not_serving")), "{body}");
    let (status, body) = json_of(gateway.ask_pinned("flow=f1")).await;
    assert_eq!((status, &body["answer"], &body["variant"]), (200, &json!("stable"), &json!("short")), "{body}");
    let pins = "flow=f1;model/writer=r2;index/handbook=handbook-g2";
    let (status, body) = json_of(gateway.ask_pinned(pins)).await;
    assert_eq!((status, &body["answer"]), (200, &json!("candidate")), "{body}");
    assert_eq!(candidate.seen()[0].body["messages"][0]["content"], "beta");
    assert_eq!(body["dependencies"], json!({"models": {"writer": "r2"}, "indexes": {"book": "handbook-g2"}}));
    for (pins, status, named) in [
        ("flow=f9", 404, "revision f9"),
        ("flow=f1;model/writer=r9", 503, "ModelDeployment a/writer at the pinned revision r9"),
        ("flow=f1;index/handbook=handbook-g9", 503, "RagIndex a/handbook at the pinned generation handbook-g9"),
        ("flow=f1;model/reader=r1", 404, "ModelDeployment a/reader"),
        ("flow=f1;index/book=g1", 404, "RagIndex a/book"),
    ] {
        let (found, body) = json_of(gateway.ask_pinned(pins)).await;
        assert_eq!(found, status, "{pins}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(named), "{pins}: {body}");
    }
    assert_eq!(gateway.measurements().await, Vec::<Value>::new(), "pinned requests are not measured");
}

#[tokio::test]
async fn nothing_stands_in_for_a_pinned_model() {
    let [main, spare] =
        [Engine::start(vec![Script::Fail(500, "broken")]).await, Engine::start(vec![Script::Say(vec!["spare"])]).await];
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&main]);
    gateway.model("spare", &[&spare]);
    let mut revision = asking("writer");
    revision["models"] = json!({
        "writer": {"deployment": "writer", "timeoutMs": 20_000, "retries": 0, "fallback": ["spare"]},
        "spare": {"deployment": "spare", "timeoutMs": 20_000, "retries": 0},
    });
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["answer"]), (200, &json!("spare")));
    let (status, body) = json_of(gateway.ask_pinned("model/writer=r1")).await;
    assert_eq!((status, &body["error"]["code"]), (502, &json!("upstream_error")), "{body}");
}

#[tokio::test]
async fn a_canary_of_a_model_gets_its_units_and_the_others_while_it_is_away() {
    let [old, new] =
        [Engine::start(vec![Script::Say(vec!["old"])]).await, Engine::start(vec![Script::Say(vec!["new"])]).await];
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&old]);
    gateway.add(|objects| {
        let mut model = serde_json::to_value(&*objects.models[0]).unwrap();
        model["status"]["traffic"] = json!([{"revision": "r1", "weight": 80}, {"revision": "r2", "weight": 20}]);
        objects.models = vec![super::harness::decode(model)];
    });
    gateway.simple_flow();
    let expected = |user: &str| crate::experiment::assignment::assign("a/writer", user, [80, 20]).unwrap();
    let users: Vec<String> = (0..40).map(|user| user.to_string()).collect();
    // r2 has no ready pod yet: nobody waits for it.
    for user in &users {
        assert_eq!(json_of(gateway.ask(json!({"user": user}))).await.1["answer"], "old");
    }
    gateway.pod("model", "writer", "r2", &new);
    for user in &users {
        let (_, body) = json_of(gateway.ask(json!({"user": user}))).await;
        assert_eq!(body["answer"], ["old", "new"][expected(user)]);
        assert_eq!(body["dependencies"]["models"]["writer"], ["r1", "r2"][expected(user)]);
    }
    assert!(!new.seen().is_empty());
}

/// The model `writer` split between its revisions `r1` and `r2`, 80 to 20.
fn in_a_ramp(gateway: &TestGateway) {
    gateway.add(|objects| {
        let mut model = serde_json::to_value(&*objects.models[0]).unwrap();
        model["status"]["traffic"] = json!([{"revision": "r1", "weight": 80}, {"revision": "r2", "weight": 20}]);
        objects.models = vec![super::harness::decode(model)];
    });
}

/// Revision, weight, units, requests and share of failures of each arm of the model `writer`.
async fn measured_of_the_model(gateway: &TestGateway, since: &str) -> Vec<(String, i64, i64, i64, f64)> {
    gateway.reviewer.granted.lock().unwrap().insert("modeldeployments/measurements".into());
    let path = format!("/v1/measurements/a/models/writer{since}");
    let (status, body) = json_of(gateway.with_token(&path)).await;
    assert_eq!(status, 200, "{body}");
    let number = |value: &Value| value.as_i64().unwrap();
    let arms = body["arms"].as_array().unwrap().iter();
    arms.map(|arm| {
        assert_eq!(
            (&arm["variant"], &arm["stratum"]),
            (&json!("writer"), &json!(stratum([("writer", "r1", 80), ("writer", "r2", 20)])))
        );
        let [units, requests] = ["units", "requests"].map(|name| number(&arm[name]));
        let failed = arm["metrics"][0]["mean"].as_f64().unwrap();
        (arm["revision"].as_str().unwrap().to_owned(), number(&arm["weight"]), units, requests, failed)
    })
    .collect()
}

#[tokio::test]
async fn a_model_in_its_ramp_is_measured_by_unit_whoever_calls_it() {
    let fails =
        (0..60).map(|place| if place % 2 == 0 { Script::Fail(500, "broken") } else { Script::Say(vec!["new"]) });
    let [old, new] = [Engine::start(vec![Script::Say(vec!["old"])]).await, Engine::start(fails.collect()).await];
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&old]);
    gateway.simple_flow();
    // Not split, not measured.
    assert_eq!(json_of(gateway.ask(json!({"user": "0"}))).await.0, 200);
    assert_eq!(measured_of_the_model(&gateway, "").await, []);
    in_a_ramp(&gateway);
    gateway.pod("model", "writer", "r2", &new);
    let arm = |user: &str| crate::experiment::assignment::assign("a/writer", user, [80, 20]).unwrap();
    let [mut units, mut calls] = [[0; 2], [0; 2]];
    for user in 0..30 {
        let user = user.to_string();
        let place = arm(&user);
        units[place] += 1;
        // Each once through a flow, and once by the model's name; every other call of the new one fails and is tried again.
        calls[place] += if place == 0 { 2 } else { 4 };
        assert_eq!(json_of(gateway.ask(json!({"user": user}))).await.0, 200);
        let body = json!({"model": "a/writer", "user": user, "messages": [{"role": "user", "content": "Hello?"}]});
        assert_eq!(json_of(gateway.post("/v1/chat/completions", &body)).await.0, 200);
    }
    assert!(units[1] > 0);
    // What evaluations ask is no user's, even where they leave the model's revision open.
    gateway.ask_pinned("flow=f1").send().await.unwrap();
    let expected = [("r1".to_owned(), 80, units[0], calls[0], 0.0), ("r2".to_owned(), 20, units[1], calls[1], 0.5)];
    assert_eq!(measured_of_the_model(&gateway, "").await, expected);
    assert_eq!(measured_of_the_model(&gateway, "?since=2026-01-01T00:00:00Z").await, expected);
    assert_eq!(measured_of_the_model(&gateway, "?since=2126-01-01T00:00:00Z").await, [], "units that came since then");
    let (status, _) = json_of(gateway.with_token("/v1/measurements/a/models/writer?since=soon")).await;
    assert_eq!(status, 400);
    let (status, _) = json_of(gateway.get("/v1/measurements/a/models/writer")).await;
    assert_eq!(status, 403, "measurements are not for API keys");
}

/// The candidate `f2` in shadow of `f1`, with all requests copied; each asks a model of its own.
fn in_shadow(gateway: &TestGateway, percent: i32, candidate: &Value) {
    let arm = |revision: &str| json!([{"variant": "control", "revision": revision, "weight": 100}]);
    let status = json!({
        "traffic": arm("f1"), "stable": arm("f1"),
        "rollout": {"phase": "Shadowing", "stable": arm("f1"), "candidate": arm("f2"),
                    "started": "2026-11-24T12:00:00Z", "since": "2026-11-24T12:00:00Z"},
    });
    let spec = json!({"rollout": {"shadow": {"percent": percent}}});
    gateway.flow_at(&status, &spec, &[("f1", asking("writer")), ("f2", candidate.clone())]);
}

impl TestGateway {
    /// Waits until so many copies ended like this.
    async fn copies(&self, outcome: &str, count: usize) {
        let line = format!("outcome=\"{outcome}\"}} {count}\n");
        soon(async {
            while !self.gateway.metrics.text().lines().any(|found| {
                found.starts_with("llmops_gateway_shadow_copies_total") && format!("{found}\n").ends_with(&line)
            }) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn copies_are_answered_by_the_candidate_and_seen_by_nobody() {
    let [main, other] = [
        Engine::start(vec![Script::Say(vec!["seen"])]).await,
        Engine::start(vec![Script::Say(vec!["un", "seen"])]).await,
    ];
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&main]);
    gateway.model("other", &[&other]);
    in_shadow(&gateway, 100, &asking("other"));
    let (status, body) = json_of(gateway.ask(json!({"user": "alice"}))).await;
    assert_eq!((status, &body["answer"], &body["revision"]), (200, &json!("seen"), &json!("f1")));
    gateway.copies("ok", 1).await;
    let response = soon(gateway.ask(json!({"user": "alice", "stream": true})).send()).await.unwrap();
    assert!(!soon(response.text()).await.unwrap().contains("unseen"));
    gateway.copies("ok", 2).await;
    assert_eq!(other.seen()[0].body["messages"], main.seen()[0].body["messages"]);
    let kept = gateway.interactions(4).await;
    let copies: Vec<_> = kept.iter().filter(|row| row["shadow"] == true).collect();
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|row| row["revision"] == "f2" && row["stratum"] == "shadow" && row["outputTokens"] == 2));
    let originals: Vec<_> = kept.iter().filter(|row| row["shadow"] == false).collect();
    assert_eq!(copies[0]["unit"], originals[0]["unit"]);
    assert_ne!(copies[0]["requestId"], originals[0]["requestId"]);
    // A judge may score a copy as it scores the rest.
    let feedback = json!({"requestId": copies[0]["requestId"], "judgeScore": 0.75});
    assert_eq!(json_of(gateway.post("/v1/feedback", &feedback)).await.0, 202);
    let arms = gateway.measurements().await;
    let told: Vec<_> = arms
        .iter()
        .map(|arm| (arm["revision"].clone(), arm["shadow"].clone(), arm["requests"].clone(), arm["weight"].clone()))
        .collect();
    assert_eq!(
        told,
        [(json!("f1"), json!(false), json!(2), json!(100)), (json!("f2"), json!(true), json!(2), json!(100))]
    );
    assert!(arms[1]["metrics"].as_array().unwrap().iter().any(|metric| metric["metric"] == "JudgeScore"));
    assert_eq!(gateway.splits().await.len(), 1, "copies are no part of the split");
    assert!(gateway.gateway.metrics.text().lines().any(|line| {
        line.starts_with("llmops_gateway_requests_total") && line.contains("kind=\"flow\"") && line.ends_with(" 2")
    }));
    let pinned = json_of(gateway.ask_pinned("flow=f1")).await;
    assert_eq!(pinned.0, 200);
    // Out of the shadow nothing is copied any more, nor are pinned requests in it.
    gateway.simple_flow();
    assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    assert_eq!(other.seen().len(), 2);
}

#[tokio::test]
async fn nobody_waits_for_a_copy_and_too_many_are_dropped() {
    let gate = Arc::new(Semaphore::new(0));
    let main = Engine::start(vec![Script::Say(vec!["seen"])]).await;
    let other = Engine::start(vec![Script::Gated(vec!["late"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&main]);
    gateway.model("other", &[&other]);
    in_shadow(&gateway, 100, &asking("other"));
    assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    other.running(1).await;
    for dropped in 1..=3 {
        assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200, "answered while the copy still runs");
        gateway.copies("dropped", dropped).await;
    }
    gate.add_permits(10);
    gateway.copies("ok", 1).await;
    assert_eq!(other.seen().len(), 1);
}

#[tokio::test]
async fn failures_of_copies_are_recorded_and_leave_no_endpoint_out() {
    // One engine serves both; the copies' prompts break it.
    let scripts =
        (0..12).map(|place| if place % 2 == 0 { Script::Say(vec!["x"]) } else { Script::Fail(500, "broken") });
    let engine = Engine::start(scripts.chain([Script::Say(vec!["x"])]).collect()).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let mut candidate = asking("writer");
    candidate["output"] = json!("{{ nodes.answer.text }}!");
    in_shadow(&gateway, 100, &candidate);
    for failed in 1..=6 {
        assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
        gateway.copies("error", failed).await;
    }
    assert_eq!(engine.seen().len(), 12, "a copy is not tried again");
    let arms = gateway.measurements().await;
    let errors = |shadow: bool| {
        let arm = arms.iter().find(|arm| arm["shadow"] == shadow).unwrap();
        arm["metrics"].as_array().unwrap().iter().find(|metric| metric["metric"] == "ErrorRate").unwrap()["mean"]
            .clone()
    };
    assert_eq!((errors(true), errors(false)), (json!(1.0), json!(0.0)));
    let text = gateway.gateway.metrics.text();
    assert!(!text.contains("llmops_gateway_ejections_total{"), "{text}");
    assert!(!text.contains("llmops_gateway_retries_total{"), "{text}");
    // A candidate that takes other inputs would refuse the users.
    candidate["inputs"] = json!({"topic": {"type": "String"}});
    in_shadow(&gateway, 100, &candidate);
    assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    gateway.copies("error", 7).await;
    let kept = gateway.interactions(14).await;
    assert!(kept.iter().any(|row| row["shadow"] == true && row["error"] == "invalid_value"));
}

#[tokio::test]
async fn only_the_asked_share_is_copied() {
    let [main, other] =
        [Engine::start(vec![Script::Say(vec!["x"])]).await, Engine::start(vec![Script::Say(vec!["x"])]).await];
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&main]);
    gateway.model("other", &[&other]);
    in_shadow(&gateway, 20, &asking("other"));
    let mut chosen = 0;
    for _ in 0..60 {
        let (_, body) = json_of(gateway.ask(json!({}))).await;
        let id = body["requestId"].as_str().unwrap();
        if crate::experiment::assignment::bucket("shadow", id) < 2_000 {
            chosen += 1;
            gateway.copies("ok", chosen).await;
        }
    }
    assert_eq!(other.seen().len(), chosen);
}
