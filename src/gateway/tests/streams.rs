use std::sync::Arc;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::engine::{Engine, Script, stream_of};
use super::harness::{TestGateway, asking, events, json_of, soon};

/// Reads a response until it has this text.
async fn until(
    response: &mut (impl futures::Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin),
    wanted: &str,
) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let chunk = soon(response.next()).await.expect("more of the stream").unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

#[tokio::test]
async fn deltas_are_passed_on_while_the_model_still_writes() {
    let gate = Arc::new(Semaphore::new(0));
    let engine = Engine::start(vec![Script::Gated(vec!["one ", "two"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    gate.add_permits(1);
    let response = soon(gateway.ask(json!({"stream": true})).send()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.bytes_stream();
    // The second piece cannot have been written yet: the gate holds it.
    let text = until(&mut body, "one").await;
    assert_eq!(events(&text), [("delta".to_owned(), json!({"text": "one "}).to_string())]);
    gate.add_permits(1);
    let rest = events(&until(&mut body, "event: done").await);
    assert_eq!(rest[0], ("delta".to_owned(), json!({"text": "two"}).to_string()));
    let done: Value = serde_json::from_str(&rest[1].1).unwrap();
    assert_eq!((&done["answer"], &done["usage"]["outputTokens"]), (&json!("one two"), &json!(2)));
    assert!(soon(body.next()).await.is_none());
}

#[tokio::test]
async fn an_output_that_is_more_than_a_nodes_text_comes_at_the_end() {
    let engine = Engine::start(vec![Script::Say(vec!["a", "b"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let mut revision = asking("writer");
    revision["output"] = json!("<{{ nodes.answer.text }}>");
    gateway.flow(&json!([{"variant": "control", "revision": "f1", "weight": 100}]), &json!({}), &[("f1", revision)]);
    let text = soon(soon(gateway.ask(json!({"stream": true})).send()).await.unwrap().text()).await.unwrap();
    let found = events(&text);
    assert_eq!(found[0], ("delta".to_owned(), json!({"text": "<ab>"}).to_string()));
    assert_eq!((found.len(), found[1].0.as_str()), (2, "done"));
}

#[tokio::test]
async fn a_cut_in_the_middle_is_an_error_event_and_no_end() {
    let engine = Engine::start(vec![Script::Cut(vec!["half ", "an"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let text = soon(soon(gateway.ask(json!({"stream": true})).send()).await.unwrap().text()).await.unwrap();
    let found = events(&text);
    assert_eq!(found[0].0, "delta", "{text}");
    let (name, data) = found.last().unwrap();
    assert_eq!(name, "error", "{text}");
    assert_eq!(serde_json::from_str::<Value>(data).unwrap()["error"]["code"], "upstream_broken");
    assert!(!text.contains("event: done"));
    assert_eq!(engine.seen().len(), 1, "what the client has seen is not asked for again");
    let kept = gateway.interactions(1).await;
    assert_eq!((&kept[0]["status"], &kept[0]["outputTokens"]), (&json!("error"), &json!(2)));

    for model in ["a/docs", "a/writer"] {
        let body = json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "why?"}]});
        let text = soon(soon(gateway.post("/v1/chat/completions", &body).send()).await.unwrap().text()).await.unwrap();
        let found = events(&text);
        assert_eq!(found.last().unwrap().0, "error", "{model}: {text}");
        assert!(text.contains("half ") && !text.contains("[DONE]"), "{model}: {text}");
    }
}

#[tokio::test]
async fn what_fails_before_the_first_piece_has_its_own_status() {
    let engine = Engine::start(vec![Script::Fail(500, "oops")]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    assert_eq!(json_of(gateway.ask(json!({"stream": true}))).await.0, 502);
    for model in ["a/docs", "a/writer"] {
        let body = json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "why?"}]});
        assert_eq!(json_of(gateway.post("/v1/chat/completions", &body)).await.0, 502, "{model}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_engine() {
    let gate = Arc::new(Semaphore::new(0));
    let engine = Engine::start(vec![Script::Gated(vec!["one ", "two"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    // In the middle of a stream.
    let chat = json!({"model": "a/writer", "stream": true, "messages": [{"role": "user", "content": "why?"}]});
    for request in [gateway.ask(json!({"stream": true})), gateway.post("/v1/chat/completions", &chat)] {
        gate.add_permits(1);
        let mut body = soon(request.send()).await.unwrap().bytes_stream();
        until(&mut body, "one").await;
        engine.running(1).await;
        drop(body);
        engine.running(0).await;
    }
    // Before the first piece, and in an answer that is no stream.
    for stream in [true, false] {
        let asked = tokio::spawn(gateway.ask(json!({"stream": stream})).send());
        engine.running(1).await;
        asked.abort();
        engine.running(0).await;
    }
    let kept = gateway.interactions(3).await;
    assert!(kept.iter().all(|row| row["status"] == "cancelled"), "{kept:?}");
    let in_flight = || {
        let snapshot = gateway.gateway.routes.load();
        snapshot.model("a", "writer").unwrap().pool.endpoints["r1"][0].state.in_flight()
    };
    assert_eq!(in_flight(), 0);
}

#[tokio::test]
async fn draining_breaks_no_stream() {
    let gate = Arc::new(Semaphore::new(0));
    let engine = Engine::start(vec![Script::Gated(vec!["one ", "two"], Arc::clone(&gate))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    gate.add_permits(1);
    let mut body = soon(gateway.ask(json!({"stream": true})).send()).await.unwrap().bytes_stream();
    until(&mut body, "one").await;
    gateway.drain();
    let address = gateway.base.strip_prefix("http://").unwrap().to_owned();
    soon(async {
        while tokio::net::TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.add_permits(1);
    until(&mut body, "event: done").await;
    drop(body);
    assert_eq!(gateway.ended().await, 0);
}

#[tokio::test]
async fn flows_speak_the_openai_api() {
    let engine = Engine::start(vec![Script::Say(vec!["one ", "two"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let mut body = json!({"model": "a/docs", "user": "alice", "messages": [{"role": "user", "content": "why?"}]});
    let (status, answer) = json_of(gateway.post("/v1/chat/completions", &body)).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("one two")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("a/docs")));
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = soon(gateway.post("/v1/chat/completions", &body).send()).await.unwrap();
    assert_eq!(response.headers()["llmops-variant"], "control");
    let text = soon(response.text()).await.unwrap();
    let found = events(&text);
    let deltas: String = found
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(deltas, "one two");
    assert!(found[found.len() - 2].1.contains("\"total_tokens\":102"));
    assert_eq!(found.last().unwrap().1, "[DONE]");
    let too_long = json!({"model": "a/docs", "messages": [{"role": "user", "content": "x".repeat(50)}]});
    let (status, answer) = json_of(gateway.post("/v1/chat/completions", &too_long)).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("inputs.question")));
}

#[tokio::test]
async fn streams_of_models_are_passed_on_byte_by_byte() {
    let engine = Engine::start(vec![Script::Say(vec!["Grü", "ße"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    for usage in [true, false] {
        let mut body =
            json!({"model": "a/writer", "stream": true, "messages": [{"role": "user", "content": "why?"}], "top_k": 3});
        if usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        let response = soon(gateway.post("/v1/chat/completions", &body).send()).await.unwrap();
        assert_eq!(response.headers()["llmops-revision"], "r1");
        assert_eq!(soon(response.text()).await.unwrap(), stream_of(&["Grü", "ße"], usage));
    }
    let sent = engine.seen().pop().unwrap().body;
    assert_eq!((&sent["model"], &sent["top_k"]), (&json!("served-writer"), &json!(3)));
    let metrics = gateway.gateway.metrics.text();
    assert!(
        metrics.contains(
            "llmops_gateway_tokens_total{kind=\"model\",namespace=\"a\",name=\"writer\",direction=\"input\"} 200"
        ),
        "{metrics}"
    );
}
