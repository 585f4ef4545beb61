use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::engine::{Engine, Script, index};
use super::harness::{TestGateway, asking, json_of, soon};
use crate::experiment::assignment;

#[tokio::test]
async fn answers_with_everything_that_is_documented() {
    let engine = Engine::start(vec![Script::Say(vec!["Be", "cause", "."])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let response = soon(gateway.ask(json!({"user": "alice"})).send()).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((header("llmops-revision"), header("llmops-variant")), ("f1".into(), "control".into()));
    let id = header("llmops-request-id");
    let mut body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    for (name, what) in [("latencyMs", "a number"), ("timeToFirstTokenMs", "a number")] {
        assert!(body.as_object_mut().unwrap().remove(name).unwrap().is_u64(), "{name} is {what}");
    }
    body["nodes"][0]["ms"] = json!(0);
    assert_eq!(
        body,
        json!({
            "requestId": id, "flow": "a/docs", "revision": "f1", "variant": "control", "answer": "Because.", "sources": [],
            "usage": {"inputTokens": 100, "outputTokens": 3, "cost": 0.4, "currency": "EUR"},
            "nodes": [{"name": "answer", "ms": 0}],
            "dependencies": {"models": {"writer": "r1"}, "indexes": {}},
        })
    );
    let sent = engine.seen().remove(0);
    assert_eq!(sent.path, "/v1/chat/completions");
    assert_eq!(sent.body["model"], "served-writer");
    assert_eq!(sent.body["max_tokens"], 16);
    assert_eq!(sent.body["messages"][0], json!({"role": "system", "content": "Answer in en."}));
    assert_eq!(sent.body["messages"][1], json!({"role": "user", "content": "why?"}));
}

#[tokio::test]
async fn units_are_split_by_the_documented_function_and_stick() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let traffic = json!([{"variant": "control", "revision": "f1", "weight": 70}, {"variant": "short", "revision": "f2", "weight": 30}]);
    gateway.flow(&traffic, &json!({}), &[("f1", asking("writer")), ("f2", asking("writer"))]);
    let mut counts = BTreeMap::new();
    for user in 0..100 {
        let user = format!("user-{user}");
        let expected = ["control", "short"][assignment::assign("a/docs", &user, [70, 30]).unwrap()];
        for stream in [false, true] {
            let response = soon(gateway.ask(json!({"user": user, "stream": stream})).send()).await.unwrap();
            assert_eq!(response.headers()["llmops-variant"], expected, "{user}");
            *counts.entry(expected.to_owned()).or_insert(0) += 1;
            soon(response.bytes()).await.unwrap();
        }
    }
    gateway.interactions(50).await;
    for split in gateway.splits().await {
        assert_eq!(split["requests"], counts[split["variant"].as_str().unwrap()], "{split}");
        assert_eq!(split["units"], counts[split["variant"].as_str().unwrap()] / 2, "{split}");
    }
}

#[tokio::test]
async fn the_unit_is_what_the_flow_says() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let traffic = json!([{"variant": "control", "revision": "f1", "weight": 50}, {"variant": "short", "revision": "f2", "weight": 50}]);
    let revisions = [("f1", asking("writer")), ("f2", asking("writer"))];
    // A unit on the other side than the decoys, which lie on the first.
    let side = |unit: &str| assignment::assign("salt", unit, [50, 50]).unwrap();
    let second = (0..).map(|unit| unit.to_string()).find(|unit| side(unit) == 1).unwrap();
    let first = (0..).map(|unit| unit.to_string()).find(|unit| side(unit) == 0).unwrap();
    for (assignment, header, body) in [
        (json!({"unit": "Header", "header": "x-team", "salt": "salt"}), "x-team", None),
        (json!({"unit": "User", "salt": "salt"}), "llmops-user", None),
        (json!({"unit": "User", "salt": "salt"}), "x-none", Some("user")),
        (json!({"unit": "Session", "salt": "salt"}), "llmops-session", None),
        (json!({"unit": "Session", "salt": "salt"}), "x-none", Some("session")),
    ] {
        gateway.flow(&traffic, &json!({"assignment": assignment}), &revisions);
        let mut headers = BTreeMap::from([("x-team", &first), ("llmops-user", &first), ("llmops-session", &first)]);
        let mut fields = json!({});
        headers.insert(header, &second);
        if let Some(field) = body {
            fields[field] = json!(second);
        }
        let mut request = gateway.ask(fields);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = soon(request.send()).await.unwrap();
        assert_eq!(response.headers()["llmops-variant"], "short", "{assignment} {body:?}");
    }
}

#[tokio::test]
async fn input_errors_name_the_input() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    for (body, param) in [
        (json!({"inputs": {}}), "inputs.question"),
        (json!({"inputs": {"question": "a", "other": 1}}), "inputs.other"),
        (json!({"inputs": {"question": 1}}), "inputs.question"),
        (json!({"inputs": {"question": "a".repeat(21)}}), "inputs.question"),
        (json!({"inputs": {"question": "a"}, "usr": "x"}), "usr"),
        (json!({"inputs": []}), "inputs"),
    ] {
        let (status, answer) = json_of(gateway.post("/v1/flows/a/docs", &body)).await;
        assert_eq!(status, 400, "{body}");
        assert_eq!(answer["error"]["param"], param, "{body}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
    let (status, answer) = json_of(gateway.post("/v1/flows/a/none", &json!({}))).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")));
    assert_eq!(engine.seen().len(), 0);
}

#[tokio::test]
async fn capture_decides_what_is_kept() {
    let engine = Engine::start(vec![Script::Say(vec!["secret answer"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let traffic = json!([{"variant": "control", "revision": "f1", "weight": 100}]);
    for capture in ["None", "Metadata", "Full"] {
        gateway.flow(&traffic, &json!({"telemetry": {"capture": capture}}), &[("f1", asking("writer"))]);
        assert_eq!(json_of(gateway.ask(json!({"user": "alice"}))).await.0, 200);
    }
    let kept = gateway.interactions(2).await;
    assert_eq!(kept.len(), 2, "nothing is kept with None");
    assert_eq!(kept[0]["inputs"], json!({"question": "why?", "lang": "en"}));
    assert_eq!(kept[0]["answer"], "secret answer");
    assert_eq!((&kept[1]["inputs"], &kept[1]["answer"]), (&Value::Null, &Value::Null));
    assert_eq!(kept[1]["inputTokens"], 100);
    assert_eq!(kept[1]["dependencies"]["models"]["writer"], "r1");
    assert!(!kept[1]["unit"].as_str().unwrap().contains("alice"), "units are kept as hashes only");
}

#[tokio::test]
async fn retrieval_grounds_the_answer_and_names_its_sources() {
    let engine = Engine::start(vec![Script::Say(vec!["42"])]).await;
    let store = index("handbook-g1", &["alpha", "beta"]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.index("handbook", "handbook-g1", &store);
    let mut revision = asking("writer");
    revision["indexes"] = json!({"book": "handbook"});
    revision["nodes"] = json!([
        {"name": "search", "retrieve": {"index": "book", "query": "about {{ inputs.question }}", "topK": 2, "minScore": "0.25",
                                        "filters": {"lang": "{{ inputs.lang }}"}}},
        {"name": "answer", "after": ["search"], "llm": {"model": "writer", "parameters": {}, "messages": [
            {"role": "user", "content": "{% for chunk in nodes.search.chunks %}[{{ chunk.uri }}] {{ chunk.text }} {% endfor %}"}]}},
    ]);
    revision["output"] = json!("Answer: {{ nodes.answer.text }} ({{ nodes.answer.usage.outputTokens }})");
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["answer"]), (200, &json!("Answer: 42 (1)")));
    assert_eq!(body["sources"][1], json!({"uri": "page1.md", "heading": "Top", "source": "docs", "score": 0.5}));
    assert_eq!(body["dependencies"]["indexes"], json!({"book": "handbook-g1"}));
    assert_eq!(engine.seen()[0].body["messages"][0]["content"], "[page0.md] alpha [page1.md] beta ");
    assert_eq!(
        store.seen()[0].body,
        json!({"query": "about why?", "topK": 2, "minScore": 0.25, "filters": {"lang": "en"}})
    );
    let (status, found) = json_of(gateway.post("/v1/indexes/a/handbook/search", &json!({"query": "x"}))).await;
    assert_eq!((status, &found["generation"]), (200, &json!("handbook-g1")));
}

#[tokio::test]
async fn nodes_that_do_not_need_each_other_run_at_once() {
    let gate = Arc::new(Semaphore::new(0));
    let engine = Engine::start(vec![Script::Gated(vec!["x"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let mut revision = asking("writer");
    let node = |name: &str| json!({"name": name, "llm": {"model": "writer", "parameters": {}, "messages": [{"role": "user", "content": name}]}});
    revision["nodes"] = json!([node("one"), node("two")]);
    revision["output"] = json!("{{ nodes.one.text }}{{ nodes.two.text }}");
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let asked = tokio::spawn(gateway.ask(json!({})).send());
    engine.running(2).await;
    gate.add_permits(2);
    let body: Value = serde_json::from_str(&soon(asked).await.unwrap().unwrap().text().await.unwrap()).unwrap();
    assert_eq!(body["answer"], "xx");
}

#[tokio::test]
async fn a_new_routing_table_takes_over_between_requests_and_drops_none() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let revisions = [("f1", asking("writer")), ("f2", asking("writer"))];
    let mut open = Vec::new();
    for round in 0..40 {
        let revision = ["f1", "f2"][round % 2];
        gateway.flow(&json!([{"variant": "control", "revision": revision, "weight": 100}]), &json!({}), &revisions);
        open.push(tokio::spawn(gateway.ask(json!({"user": round.to_string()})).send()));
    }
    for asked in open {
        let response = soon(asked).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let header = response.headers()["llmops-revision"].clone();
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["revision"], header.to_str().unwrap());
    }
}
