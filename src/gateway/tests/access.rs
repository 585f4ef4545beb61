use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::engine::{Engine, Script};
use super::harness::{KEY, TOKEN, TestGateway, asking, base64, json_of, soon};

#[tokio::test]
async fn nothing_is_answered_without_a_credential_that_opens_it() {
    let gateway = TestGateway::start().await;
    gateway.simple_flow();
    let paths = [
        ("GET", "/"),
        ("GET", "/dashboard"),
        ("GET", "/dashboard/flows/a/docs"),
        ("GET", "/dashboard/models/a/writer"),
        ("GET", "/dashboard/indexes/a/handbook"),
        ("GET", "/dashboard/evaluations/a/quality"),
        ("POST", "/v1/flows/a/docs"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/rerank"),
        ("GET", "/v1/models"),
        ("POST", "/v1/indexes/a/x/search"),
        ("POST", "/v1/feedback"),
        ("GET", "/v1/interactions/a/docs"),
        ("GET", "/v1/splits/a/docs"),
        ("GET", "/v1/measurements/a/docs"),
        ("GET", "/v1/reports/a/e/r"),
        ("PUT", "/v1/reports/a/e/r/json"),
    ];
    for (method, path) in paths {
        let request = || gateway.client.request(method.parse().unwrap(), format!("{}{path}", gateway.base)).body("{}");
        for credential in [None, Some("Bearer llmops_wrong"), Some("Bearer x.y.z"), Some("Bearer")] {
            let mut request = request();
            if let Some(credential) = credential {
                request = request.header("authorization", credential);
            }
            let response = soon(request.send()).await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} {credential:?}");
            assert!(response.headers().contains_key("www-authenticate"));
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(body["error"]["type"], "authentication_error");
        }
    }
    for (method, path) in [
        ("POST", "/v1/flows/b/docs"),
        ("POST", "/v1/indexes/b/x/search"),
        ("GET", "/v1/interactions/b/docs"),
        ("GET", "/v1/splits/b/docs"),
        ("GET", "/v1/reports/b/e/r"),
        ("PUT", "/v1/reports/a/e/r/json"),
    ] {
        let request = gateway.client.request(method.parse().unwrap(), format!("{}{path}", gateway.base)).body("{}");
        let (status, body) = json_of(request.header("authorization", format!("Bearer {KEY}"))).await;
        assert_eq!(status, 403, "{method} {path}: {body}");
    }
    let (status, body) = json_of(gateway.get("/v2/nothing")).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("no_such_path")));
    assert_eq!(json_of(gateway.get("/v1/flows/a/docs")).await.0, 405);
}

#[tokio::test]
async fn kubernetes_tokens_are_reviewed_and_remembered_while_the_api_server_is_away() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let ask = || {
        let body = json!({"inputs": {"question": "why?"}}).to_string();
        gateway
            .client
            .post(format!("{}/v1/flows/a/docs", gateway.base))
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(body)
    };
    gateway.reviewer.away.store(true, Ordering::Relaxed);
    let (status, body) = json_of(ask()).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("review_unavailable")), "closed without an answer");
    gateway.reviewer.away.store(false, Ordering::Relaxed);
    assert_eq!(json_of(ask()).await.0, 403);
    let gateway = {
        // A new gateway: the refusal above is remembered for some seconds.
        let other = TestGateway::start().await;
        other.model("writer", &[&engine]);
        other.simple_flow();
        other
    };
    let ask = || {
        let body = json!({"inputs": {"question": "why?"}}).to_string();
        gateway
            .client
            .post(format!("{}/v1/flows/a/docs", gateway.base))
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(body)
    };
    gateway.reviewer.granted.lock().unwrap().insert("promptflows/invoke".into());
    assert_eq!(json_of(ask()).await.0, 200);
    gateway.reviewer.away.store(true, Ordering::Relaxed);
    assert_eq!(json_of(ask()).await.0, 200, "what was reviewed a moment ago still counts");
}

#[tokio::test]
async fn pins_need_their_permission_and_stay_out_of_the_split() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    let traffic = json!([{"variant": "control", "revision": "f1", "weight": 100}]);
    gateway.flow(&traffic, &json!({}), &[("f1", asking("writer")), ("f2", asking("writer"))]);
    let pin = |pin: &str, credential: &str| {
        gateway
            .ask(json!({}))
            .header("authorization", "")
            .header("llmops-pin", pin.to_owned())
            .build()
            .map(|mut request| {
                request.headers_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
                reqwest::RequestBuilder::from_parts(gateway.client.clone(), request)
            })
            .unwrap()
    };
    gateway.reviewer.granted.lock().unwrap().insert("promptflows/invoke".into());
    assert_eq!(json_of(pin("flow=f2", KEY)).await.0, 403, "an API key never pins");
    let (status, body) = json_of(pin("flow=f2", TOKEN)).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("permission_denied")), "not without the permission");
    assert!(body["error"]["message"].as_str().unwrap().contains("promptflows/pin"), "{body}");
    assert_eq!(engine.seen().len(), 0);
    // A new gateway: the refusal is remembered for a moment.
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.flow(&traffic, &json!({}), &[("f1", asking("writer")), ("f2", asking("writer"))]);
    let pin = |pin: &str, credential: &str| {
        gateway
            .ask_pinned(pin)
            .build()
            .map(|mut request| {
                request.headers_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
                reqwest::RequestBuilder::from_parts(gateway.client.clone(), request)
            })
            .unwrap()
    };
    gateway.reviewer.granted.lock().unwrap().insert("promptflows/invoke".into());
    gateway.reviewer.granted.lock().unwrap().insert("promptflows/pin".into());
    let (status, body) = json_of(pin("flow=f2", TOKEN)).await;
    assert_eq!((status, &body["revision"]), (200, &json!("f2")), "{body}");
    let (status, body) = json_of(pin("flow=f1;model/writer=r1", TOKEN)).await;
    assert_eq!((status, &body["variant"]), (200, &json!("control")), "{body}");
    assert_eq!(json_of(pin("flow=f3", TOKEN)).await.0, 404);
    let (status, body) = json_of(pin("flow", TOKEN)).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("llmops-pin")));
    let kept = gateway.interactions(2).await;
    assert!(kept.iter().all(|row| row["pinned"] == true));
    assert_eq!(gateway.splits().await, Vec::<Value>::new());
}

#[tokio::test]
async fn feedback_belongs_to_an_answer_that_the_sender_could_ask_for() {
    let engine = Engine::start(vec![Script::Say(vec!["x"])]).await;
    let gateway = TestGateway::start().await;
    gateway.model("writer", &[&engine]);
    gateway.simple_flow();
    let (_, answer) = json_of(gateway.ask(json!({}))).await;
    let id = answer["requestId"].as_str().unwrap();
    let give = |body: Value| gateway.post("/v1/feedback", &body);
    assert_eq!(json_of(give(json!({"requestId": id, "thumbs": "up", "comment": "good"}))).await.0, 202);
    assert_eq!(json_of(give(json!({"requestId": id, "score": -0.5}))).await.0, 202);
    let (status, body) = json_of(give(json!({"requestId": id, "score": 2}))).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("score")));
    assert_eq!(json_of(give(json!({"requestId": "none", "thumbs": "up"}))).await.0, 404);
    let stranger = give(json!({"requestId": id, "thumbs": "up"})).build().unwrap();
    let mut stranger = stranger;
    stranger.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    let stranger = reqwest::RequestBuilder::from_parts(gateway.client.clone(), stranger);
    assert_eq!(json_of(stranger).await.0, 404, "ids of others stay unknown");
    assert_eq!(gateway.splits().await[0]["feedback"], json!({"count": 2, "mean": 0.25}));
    // Another process sees it at once: it has reached the file.
    let file = rusqlite::Connection::open(gateway.folder.path().join("gateway.db")).unwrap();
    let count: i64 = file.query_row("SELECT count(*) FROM feedback", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn reports_are_put_by_jobs_and_read_in_a_browser() {
    let gateway = TestGateway::start().await;
    gateway.simple_flow();
    gateway.reviewer.granted.lock().unwrap().insert("evaluations/reports".into());
    for (format, body) in [("html", "<h1>Verdict</h1>"), ("json", "{}"), ("junit", "<testsuites/>")] {
        let put = gateway.client.put(format!("{}/v1/reports/a/quality/run1/{format}", gateway.base)).body(body);
        let response = soon(put.header("authorization", format!("Bearer {TOKEN}")).send()).await.unwrap();
        assert_eq!(response.status(), 204);
    }
    let put = gateway.client.put(format!("{}/v1/reports/a/quality/run1/pdf", gateway.base)).body("x");
    assert_eq!(json_of(put.header("authorization", format!("Bearer {TOKEN}"))).await.0, 400);
    let basic = format!("Basic {}", base64(format!("me:{KEY}").as_bytes()));
    let show = async |path: &str| {
        let request = gateway.client.get(format!("{}{path}", gateway.base)).header("authorization", &basic);
        soon(request.send()).await.unwrap()
    };
    for (path, kind, body) in [
        ("/v1/reports/a/quality/run1", "text/html; charset=utf-8", "<h1>Verdict</h1>"),
        ("/v1/reports/a/quality/run1.json", "application/json", "{}"),
        ("/v1/reports/a/quality/run1.xml", "application/xml", "<testsuites/>"),
    ] {
        let response = show(path).await;
        assert_eq!(response.headers()["content-type"], kind);
        assert!(response.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert_eq!(response.text().await.unwrap(), body);
    }
    assert_eq!(show("/v1/reports/a/quality/run2").await.status(), 404);
    let closed = soon(gateway.client.get(&gateway.base).send()).await.unwrap();
    assert!(closed.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic"), "browsers ask for the key");
}
