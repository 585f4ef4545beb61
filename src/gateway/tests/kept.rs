//! What was acknowledged is on disk, and a question that was answered is not asked again.

use std::time::Duration;

use serde_json::{Value, json};

use super::engine::{Engine, Script, index};
use super::harness::{TOKEN, TestGateway, json_of, soon};
use crate::gateway::{once, store::Store};

impl TestGateway {
    /// Ids of answered requests that are committed, as another process sees the file: what a killed gateway leaves.
    fn committed(&self) -> Vec<String> {
        let file = rusqlite::Connection::open(self.folder.path().join("gateway.db")).unwrap();
        let mut statement = file.prepare("SELECT request FROM interactions WHERE status = 'ok'").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Asks with a token that may do all that an evaluation does.
    fn evaluate(&self, path: &str, pins: &str, key: &str, body: &Value) -> reqwest::RequestBuilder {
        let granted = ["promptflows/invoke", "promptflows/pin", "modeldeployments/invoke", "ragindexes/search"];
        self.reviewer.granted.lock().unwrap().extend(granted.map(str::to_owned));
        self.client
            .post(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("llmops-pin", pins)
            .header(once::KEY, key)
            .body(body.to_string())
    }
}

#[tokio::test]
async fn every_answer_is_committed_before_it_is_given() {
    let engine = Engine::start(vec![Script::Say(vec!["one ", "two"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let chat = json!({"model": "a/writer", "messages": [{"role": "user", "content": "x"}]});
    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    // Nothing between the end of the answer and the look into the file gives the writer time.
    for (asked, end) in [
        (gateway.ask(json!({})), "}"),
        (gateway.ask(json!({"stream": true})), "event: done"),
        (gateway.post("/v1/chat/completions", &chat), "}"),
        (gateway.post("/v1/chat/completions", &streamed), "data: [DONE]"),
    ] {
        let mut response = soon(asked.send()).await.unwrap();
        let id = response.headers()["llmops-request-id"].to_str().unwrap().to_owned();
        let mut text = String::new();
        while !text.contains(end) {
            let chunk = soon(response.chunk()).await.unwrap().expect("more of the answer");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(gateway.committed().contains(&id), "not committed when this was read: {text}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_kept_is_given_all_the_same_and_counted() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    gateway.gateway.store.close().await;
    assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    let metrics = gateway.gateway.metrics.text();
    assert!(metrics.contains("llmops_gateway_interactions_dropped_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_question_under_a_key_is_asked_once() {
    let engine = Engine::start(vec![Script::Say(vec!["one"]), Script::Say(vec!["two"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let body = json!({"inputs": {"question": "why?"}});
    let ask = |key: &str| gateway.evaluate("/v1/flows/a/docs", "flow=f1", key, &body);
    let first = soon(ask("job/0/0/0").send()).await.unwrap();
    let id = first.headers()["llmops-request-id"].clone();
    assert!(!first.headers().contains_key(once::TOOK));
    let first: Value = serde_json::from_str(&first.text().await.unwrap()).unwrap();
    let again = soon(ask("job/0/0/0").send()).await.unwrap();
    assert_eq!(
        (again.headers()["llmops-request-id"].clone(), &again.headers()["llmops-revision"]),
        (id, &http::HeaderValue::from_static("f1"))
    );
    let took: u64 = again.headers()[once::TOOK].to_str().unwrap().parse().unwrap();
    let again: Value = serde_json::from_str(&again.text().await.unwrap()).unwrap();
    assert_eq!((&again, json!(took)), (&first, first["latencyMs"].clone()));
    assert_eq!((engine.seen().len(), gateway.committed().len()), (1, 1));
    assert_eq!(json_of(ask("job/1/0/0")).await.1["answer"], "two", "another key is another question");
    // A gateway that comes after a killed one finds the answers in the file.
    let after = Store::open(&gateway.folder.path().join("gateway.db"), gateway.gateway.metrics.clone()).unwrap();
    let name = "system:serviceaccount:a:eval";
    assert!(after.given(name, "job/0/0/0").await.unwrap().is_some());
    assert!(after.given("somebody else", "job/0/0/0").await.unwrap().is_none());
}

#[tokio::test]
async fn models_and_indexes_are_asked_once_too() {
    let (engine, docs) = (Engine::start(vec![Script::Say(vec!["one"])]).await, index("g1", &["text"]).await);
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.index("docs", "g1", &docs);
    let chat = json!({"model": "a/writer", "messages": [{"role": "user", "content": "x"}]});
    let search = json!({"query": "x"});
    for (path, pins, body) in
        [("/v1/chat/completions", "model/writer=r1", &chat), ("/v1/indexes/a/docs/search", "index/docs=g1", &search)]
    {
        let ask = || json_of(gateway.evaluate(path, pins, path, body));
        let first = ask().await;
        assert_eq!(first.0, 200, "{path}: {}", first.1);
        assert_eq!(ask().await, first);
    }
    assert_eq!((engine.seen().len(), docs.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_failed_question_is_asked_again_under_its_key() {
    let engine = Engine::start(vec![Script::Fail(400, "no"), Script::Say(vec!["one"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let ask = || json_of(gateway.evaluate("/v1/flows/a/docs", "flow=f1", "k", &json!({"inputs": {"question": "?"}})));
    assert_eq!(ask().await.0, 502);
    assert_eq!(ask().await.1["answer"], "one");
}

#[tokio::test]
async fn keys_are_for_pinned_requests_that_are_no_streams() {
    let gateway = TestGateway::start().await;
    gateway.simple_flow();
    let long = "k".repeat(201);
    for (pins, key, stream, word) in [
        (None, "k", false, "llmops-pin"),
        (Some("flow=f1"), "k", true, "stream"),
        (Some("flow=f1"), "", false, "200"),
        (Some("flow=f1"), long.as_str(), false, "200"),
    ] {
        let mut request = gateway.ask(json!({"stream": stream})).header(once::KEY, key);
        if let Some(pins) = pins {
            request = request.header("llmops-pin", pins);
        }
        let (status, body) = json_of(request.timeout(Duration::from_secs(20))).await;
        let error = &body["error"];
        assert_eq!((status, &error["param"]), (400, &json!(once::KEY)), "{body}");
        assert!(error["message"].as_str().unwrap().contains(word), "{body}");
    }
}
