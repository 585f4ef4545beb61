//! Progressive delivery: what the controller sees of a split, and how it changes.

use serde_json::{Value, json};

use super::engine::{Engine, Script};
use super::harness::{TOKEN, TestGateway, asking, json_of};

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
    let stratum = crate::experiment::measurements::stratum([
        ("control", "f1", 30),
        ("control", "f2", 20),
        ("short", "f1", 20),
        ("control", "f2", 30),
    ]);
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
