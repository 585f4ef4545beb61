use serde_json::{Value, json};

use super::engine::{Engine, Script};
use super::harness::{TestGateway, decode, json_of, soon};

#[tokio::test]
async fn models_answer_unchanged() {
    let answer = json!({"id": "x", "choices": [{"message": {"content": "hi"}}], "timings": {"ms": 1.5},
                        "usage": {"prompt_tokens": 4, "completion_tokens": 2}});
    let engine = Engine::start(vec![Script::Fail(503, "busy"), Script::Json(answer.clone())]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let body = json!({"model": "a/writer", "messages": [], "grammar": "root ::= \"x\""});
    let (status, found) = json_of(gateway.post("/v1/chat/completions", &body)).await;
    assert_eq!((status, &found), (200, &answer));
    assert_eq!(engine.seen()[1].body, json!({"model": "served-writer", "messages": [], "grammar": "root ::= \"x\""}));
}

#[tokio::test]
async fn what_an_engine_says_of_a_wrong_request_reaches_the_client() {
    let engine = Engine::start(vec![Script::Fail(400, "messages is empty")]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let (status, body) =
        json_of(gateway.post("/v1/chat/completions", &json!({"model": "a/writer", "messages": []}))).await;
    assert_eq!((status, body), (400, json!({"error": {"message": "messages is empty"}})));
}

#[tokio::test]
async fn embeddings_and_reranking_go_to_models_of_their_task() {
    let engine =
        Engine::start(vec![Script::Json(json!({"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}))]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.model_of("Embed", "minilm", &[&engine]);
    gateway.model_of("Rerank", "ranker", &[&engine]);
    let (status, _) = json_of(gateway.post("/v1/embeddings", &json!({"model": "a/minilm", "input": ["x"]}))).await;
    assert_eq!(status, 200);
    let (status, _) =
        json_of(gateway.post("/v1/rerank", &json!({"model": "a/ranker", "query": "x", "documents": []}))).await;
    assert_eq!(status, 200);
    assert_eq!(
        engine.seen().iter().map(|seen| seen.path.as_str()).collect::<Vec<_>>(),
        ["/v1/embeddings", "/v1/rerank"]
    );
    let (status, body) = json_of(gateway.post("/v1/embeddings", &json!({"model": "a/writer", "input": "x"}))).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");
}

#[tokio::test]
async fn a_provider_gets_its_token_and_its_own_name_of_the_model() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.add(|objects| {
        objects.models.push(decode(json!({
            "metadata": {"namespace": "a", "name": "writer"},
            "spec": {"task": "Chat", "external": {"baseUrl": format!("http://{}/api/v2", engine.address), "model": "big-1",
                                                  "credentialsRef": {"name": "provider"}}},
        })));
    });
    gateway.simple_flow();
    let (status, body) = json_of(gateway.ask(json!({}))).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("misconfigured")), "{body}");
    gateway.add(|objects| {
        objects
            .credentials
            .push(decode(json!({"metadata": {"namespace": "a", "name": "provider"}, "data": {"token": "c2stMTIz"}})));
    });
    assert_eq!(json_of(gateway.ask(json!({}))).await.0, 200);
    let body = json!({"model": "a/writer", "messages": []});
    assert_eq!(json_of(gateway.post("/v1/chat/completions", &body)).await.0, 200);
    for seen in engine.seen() {
        assert_eq!(seen.path, "/api/v2/chat/completions");
        assert_eq!(seen.authorization.as_deref(), Some("Bearer sk-123"), "the provider's token, not the client's key");
        assert_eq!(seen.body["model"], "big-1");
    }
}

#[tokio::test]
async fn the_list_shows_what_the_key_opens() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    gateway.add(|objects| {
        let mut other: Value = serde_json::to_value(&*objects.models[0]).unwrap();
        other["metadata"]["namespace"] = json!("b");
        objects.models.push(decode(other));
    });
    let (status, body) = json_of(gateway.get("/v1/models")).await;
    let ids: Vec<_> = body["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((status, ids), (200, vec!["a/docs", "a/writer"]));
    let response =
        soon(gateway.post("/v1/chat/completions", &json!({"model": "b/writer", "messages": []})).send()).await.unwrap();
    assert_eq!(response.status(), 403);
}
