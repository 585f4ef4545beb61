use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::engine::{Engine, Script};
use super::harness::{TestGateway, asking, decode, json_of, pod, soon};
use crate::gateway::endpoints::Limits;

#[tokio::test]
async fn an_engine_that_has_only_begun_costs_no_try() {
    let loading = Script::Fail(503, "Loading model");
    let engine = Engine::start([vec![loading; 5], vec![Script::Say(vec!["whole"])]].concat()).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["answer"]), (200, &json!("whole")));
}

#[tokio::test]
async fn what_fails_before_the_client_saw_anything_is_tried_again() {
    for first in
        [Script::Fail(500, "oops"), Script::Fail(503, "busy"), Script::Cut(vec!["half an"]), Script::Cut(vec![])]
    {
        let engine = Engine::start(vec![first.clone(), Script::Say(vec!["whole"])]).await;
        let gateway = TestGateway::start().await;
        gateway.model("writer", &[&engine]);
        gateway.simple_flow();
        let (status, body) = json_of(gateway.ask(json!({}))).await;
        assert_eq!((status, &body["answer"]), (200, &json!("whole")), "{first:?}");
        assert_eq!(engine.seen().len(), 2, "{first:?}");
    }
}

#[tokio::test]
async fn tries_end_and_wrong_requests_are_not_repeated() {
    for (script, tries, status, code) in [
        (Script::Fail(500, "oops"), 3, 502, "upstream_error"),
        (Script::Fail(400, "too long"), 1, 502, "upstream_error"),
        (Script::Cut(vec!["a"]), 3, 502, "upstream_broken"),
        (Script::Json(json!({"choices": []})), 3, 502, "upstream_unreadable"),
    ] {
        let engine = Engine::start(vec![script.clone()]).await;
        let gateway = TestGateway::start().await;
        gateway.model("writer", &[&engine]);
        gateway.simple_flow();
        let (found, body) = json_of(gateway.ask(json!({}))).await;
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{script:?}: {body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("node answer: ") && message.contains("ModelDeployment a/writer"), "{message}");
        assert_eq!(engine.seen().len(), tries, "{script:?}");
        let kept = gateway.interactions(1).await;
        assert_eq!((&kept[0]["status"], &kept[0]["error"]), (&json!("error"), &json!(code)));
    }
}

#[tokio::test]
async fn an_engine_that_hangs_runs_into_the_timeout() {
    let engine = Engine::start(vec![Script::Hang]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let mut revision = asking("writer");
    revision["models"]["writer"]["timeoutMs"] = json!(50);
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["error"]["code"]), (504, &json!("upstream_timeout")), "{body}");
    engine.running(0).await;
}

#[tokio::test]
async fn a_fallback_answers_and_counts_for_the_assigned_arm() {
    let broken = Engine::start(vec![Script::Fail(500, "oops")]).await;
    let spare = Engine::start(vec![Script::Say(vec!["spare"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&broken]);
    gateway.model("spare", &[&spare]);
    let mut revision = asking("writer");
    revision["models"] = json!({
        "writer": {"deployment": "writer", "timeoutMs": 5000, "retries": 0, "fallback": ["other"]},
        "other": {"deployment": "spare", "timeoutMs": 5000, "retries": 0},
    });
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["answer"]), (200, &json!("spare")));
    assert_eq!(body["dependencies"]["models"], json!({"other": "r1"}));
    let kept = gateway.interactions(1).await;
    assert_eq!((&kept[0]["variant"], &kept[0]["fallbacks"]), (&json!("control"), &json!(1)));
}

#[tokio::test]
async fn a_pod_that_is_gone_costs_no_request() {
    let alive = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gone = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&alive, &gone]);
    gateway.simple_flow();
    // Still listed as ready, as for some seconds after a node died. Nobody else may take the port meanwhile.
    let address = gone.address;
    drop(gone);
    soon(async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    }
    assert_eq!(alive.seen().len(), 20);
}

#[tokio::test]
async fn requests_wait_for_a_pod_that_comes() {
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[]);
    gateway.simple_flow();
    let waiting = tokio::spawn(gateway.ask(json!({})).send());
    let state = Arc::clone(&gateway.gateway.routes.load().model("a", "writer").unwrap().pool.state);
    soon(async {
        while state.waiting() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let engine = Engine::start(vec![Script::Say(vec!["at last"])]).await;
    gateway.add(|objects| objects.pods.push(decode(pod("model", "writer", "r1", &engine))));
    let response = soon(waiting).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(state.waiting(), 0);
}

#[tokio::test]
async fn the_queue_has_a_deadline_and_a_length() {
    let gateway = TestGateway::with(Limits { queue: 0, ..Limits::default() }).await;
    gateway.model("writer", &[]);
    gateway.simple_flow();
    let response = soon(gateway.ask(json!({})).send()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (429, "1"));

    let gateway = TestGateway::with(Limits { queue_timeout: Duration::from_millis(20), ..Limits::default() }).await;
    gateway.model("writer", &[]);
    gateway.simple_flow();
    let response = soon(gateway.ask(json!({})).send()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "5"));
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "no_ready_endpoint");
}

#[tokio::test]
async fn a_full_pod_takes_the_next_request_when_one_ends() {
    let gate = Arc::new(Semaphore::new(0));
    let engine = Engine::start(vec![Script::Gated(vec!["x"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::with(Limits { per_endpoint: 2, ..Limits::default() }).await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let asked: Vec<_> = (0..6).map(|_| tokio::spawn(gateway.ask(json!({})).send())).collect();
    engine.running(2).await;
    gate.add_permits(6);
    for asked in asked {
        assert_eq!(soon(asked).await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(engine.seen().len(), 6);
}
