//! `llmops evaluate` end to end against a gateway in this process, and snapshots of the reports.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::outcome::tests::{answers, cases, judged, plan};
use super::*;
use crate::api::evaluation::Verdict;
use crate::gateway::once;

/// What the stub does, and what it saw.
#[derive(Default)]
struct Stub {
    /// Statuses for the first requests; then it answers.
    refusals: Vec<(StatusCode, Option<u64>)>,
    /// Questions whose answer has no number in it, by revision.
    wrong: HashMap<String, Vec<usize>>,
    reports: HashMap<String, (String, String)>,
    asked: Vec<(String, String)>,
    authorizations: Vec<String>,
    keys: Vec<String>,
}

type Shared = Arc<Mutex<Stub>>;

async fn start(stub: Stub) -> (SocketAddr, Shared) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shared = Arc::new(Mutex::new(stub));
    let router = Router::new()
        .route("/v1/flows/team-a/ask", post(flow))
        .route("/v1/chat/completions", post(model))
        .route("/v1/indexes/team-a/handbook/search", post(search))
        .route("/v1/reports/team-a/ask-quality/{run}/{format}", put(report))
        .with_state(Arc::clone(&shared));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, shared)
}

/// Refuses as told, else notes pin and question.
fn admit(stub: &mut Stub, headers: &HeaderMap, question: &str) -> Result<String, Box<Response>> {
    if !stub.refusals.is_empty() {
        let (status, retry_after) = stub.refusals.remove(0);
        let mut response =
            (status, Json(json!({"error": {"message": "told to", "type": "t", "code": "c", "param": null}})))
                .into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        return Err(Box::new(response));
    }
    let pin = headers["llmops-pin"].to_str().unwrap().to_owned();
    stub.authorizations.push(headers["authorization"].to_str().unwrap().to_owned());
    stub.asked.push((pin.clone(), question.to_owned()));
    stub.keys.extend(headers.get(once::KEY).map(|key| key.to_str().unwrap().to_owned()));
    Ok(pin.split(';').next().unwrap().split('=').next_back().unwrap().to_owned())
}

async fn flow(State(shared): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let mut stub = shared.lock().unwrap();
    let question = body["inputs"]["question"].as_str().unwrap();
    let revision = match admit(&mut stub, &headers, question) {
        Ok(revision) => revision,
        Err(response) => return *response,
    };
    let number: usize = question.trim_start_matches("question ").parse().unwrap();
    let wrong = stub.wrong.get(&revision).is_some_and(|wrong| wrong.contains(&number));
    let answer = if wrong { "I do not know.".to_owned() } else { format!("The answer is {}.", number * 10) };
    Json(json!({
        "requestId": format!("r-{}", stub.asked.len()), "flow": "team-a/ask", "revision": revision, "variant": "v", "answer": answer,
        "sources": [{"uri": "a.md", "heading": "A", "source": "docs", "score": 0.9}],
        "usage": {"inputTokens": 90, "outputTokens": 10, "cost": 0.001, "currency": "USD"}, "latencyMs": 5, "timeToFirstTokenMs": 2,
        "nodes": [], "dependencies": {"models": {"writer": "cccccccccc"}, "indexes": {"handbook": "handbook-0a1b"}},
    }))
    .into_response()
}

async fn model(State(shared): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let mut stub = shared.lock().unwrap();
    assert_eq!(body["model"], "team-a/tiny");
    if let Err(response) = admit(&mut stub, &headers, body["messages"][0]["content"].as_str().unwrap()) {
        return *response;
    }
    Json(json!({"choices": [{"message": {"role": "assistant", "content": "{\"ok\": true}"}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}))
    .into_response()
}

async fn search(State(shared): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let mut stub = shared.lock().unwrap();
    let question = body["query"].as_str().unwrap();
    let generation = match admit(&mut stub, &headers, question) {
        Ok(generation) => generation,
        Err(response) => return *response,
    };
    assert_eq!(body["filters"], json!({"tenant": "a"}));
    let hit = |text: &str| json!({"chunkId": "c", "source": "docs", "uri": "a.md", "heading": "A", "text": text, "score": 0.5});
    Json(json!({"generation": generation, "results": [hit("The best chunk."), hit(&format!("It is {question}."))]}))
        .into_response()
}

async fn report(
    State(shared): State<Shared>,
    UrlPath((run, format)): UrlPath<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert_eq!(run, "0123456789");
    let kind = headers["content-type"].to_str().unwrap().to_owned();
    let text = String::from_utf8(body.to_vec()).unwrap();
    shared.lock().unwrap().reports.insert(format, (kind, text));
    StatusCode::NO_CONTENT
}

/// A folder with dataset, token and room for the termination message, and the arguments for a run.
fn prepare(address: SocketAddr, change: impl FnOnce(&mut EvaluationPlan)) -> (tempfile::TempDir, Args) {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (1..=20)
        .map(|number| {
            format!("{{\"id\":\"q{number}\",\"question\":\"question {number}\",\"expected\":\"{}\"}}\n", number * 10)
        })
        .collect();
    std::fs::write(folder.path().join("cases.jsonl"), &lines).unwrap();
    std::fs::write(folder.path().join("token"), "secret\n").unwrap();
    let mut plan = plan(json!([{"metric": "grounded", "min": "0.5"}]));
    plan.gateway_url = format!("http://{address}/");
    plan.dataset.digest = dataset::digest(&lines);
    change(&mut plan);
    let args = Args {
        plan: serde_json::to_string(&plan).unwrap(),
        dataset_dir: folder.path().into(),
        token_file: folder.path().join("token"),
        job: String::new(),
        out: Some(folder.path().into()),
        termination: TerminationLog { termination_log: folder.path().join("termination") },
    };
    (folder, args)
}

async fn summary(folder: &tempfile::TempDir, args: Args) -> (ExitCode, RunSummary) {
    let code = run(args).await;
    let message = std::fs::read_to_string(folder.path().join("termination")).unwrap();
    (code, serde_json::from_str(&message).unwrap())
}

#[tokio::test]
async fn a_run_asks_every_pinned_revision_and_stores_its_reports() {
    let wrong = HashMap::from([("bbbbbbbbbb".to_owned(), (1..=9).collect())]);
    let refusals = vec![
        (StatusCode::TOO_MANY_REQUESTS, Some(0)),
        (StatusCode::SERVICE_UNAVAILABLE, Some(0)),
        (StatusCode::SERVICE_UNAVAILABLE, Some(0)),
    ];
    let (address, shared) = start(Stub { wrong, refusals, ..Stub::default() }).await;
    let (folder, args) = prepare(address, |_| {});
    let (code, summary) = summary(&folder, args).await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(summary.verdict, Some(Verdict::Failed));
    assert_eq!(summary.message, "gate grounded ≥ 0.5 not passed for variant concise: mean 0.55 (95% CI 0.34–0.74)");
    assert_eq!((summary.cases, summary.errors, summary.reported), (20, 0, true));
    assert_eq!(summary.cost.unwrap().0, "0.0400");
    let stub = shared.lock().unwrap();
    assert_eq!(stub.asked.len(), 40);
    assert_eq!(stub.asked.iter().filter(|(pin, _)| pin == "flow=aaaaaaaaaa").count(), 20);
    assert!(stub.authorizations.iter().all(|token| token == "Bearer secret"));
    let kinds: HashMap<&str, &str> =
        stub.reports.iter().map(|(format, (kind, _))| (format.as_str(), kind.as_str())).collect();
    assert_eq!(kinds["json"], "application/json");
    assert_eq!(kinds["junit"], "application/xml");
    assert_eq!(kinds["html"], "text/html; charset=utf-8");
    let report: Report = serde_json::from_str(&stub.reports["json"].1).unwrap();
    assert_eq!(report.cases.len(), 20);
    assert_eq!(report.cases[0].answers[1].answer.as_deref(), Some("I do not know."));
    assert_eq!(report.variants[0].dependencies["index/handbook"].iter().next().unwrap(), "handbook-0a1b");
    assert_eq!(std::fs::read_to_string(folder.path().join("report.html")).unwrap(), stub.reports["html"].1);
}

#[tokio::test]
async fn a_second_attempt_gives_the_whole_report_again() {
    let (address, shared) = start(Stub::default()).await;
    let (first_folder, args) = prepare(address, |_| {});
    let (_, first) = summary(&first_folder, args).await;
    let (folder, args) = prepare(address, |_| {});
    let (_, second) = summary(&folder, args).await;
    assert_eq!(first.verdict, Some(Verdict::Passed));
    assert_eq!((first.cases, &first.message), (second.cases, &second.message));
    assert_eq!(shared.lock().unwrap().asked.len(), 80);
}

#[tokio::test]
async fn attempts_of_one_job_ask_every_question_under_the_same_key() {
    let (address, shared) = start(Stub::default()).await;
    let mut keys = Vec::new();
    for job in ["first", "first", "second"] {
        // Two variants with one revision are two questions.
        let (folder, args) = prepare(address, |plan| plan.revisions[1].revision = plan.revisions[0].revision.clone());
        let (_, done) = summary(&folder, Args { job: job.into(), ..args }).await;
        assert_eq!(done.errors, 0, "{}", done.message);
        let mut asked = std::mem::take(&mut shared.lock().unwrap().keys);
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 40);
        keys.push(asked);
    }
    assert_eq!(keys[0], keys[1]);
    assert!(keys[0].iter().all(|key| !keys[2].contains(key)), "a Job made anew asks anew");
}

#[tokio::test]
async fn an_answer_that_was_given_before_took_as_long_as_it_took_then() {
    let router = Router::new().fallback(|| async {
        let answer = json!({"choices": [{"message": {"content": "yes"}}]});
        ([(once::TOOK, "7250")], Json(answer))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (folder, args) = prepare(address, |plan| {
        plan.target = serde_json::from_value(json!({"model": {"name": "tiny"}})).unwrap();
        plan.metrics = serde_json::from_value(json!([{"name": "latency", "type": "Latency"}])).unwrap();
        plan.gates = serde_json::from_value(json!([{"metric": "latency", "min": "7.2"}])).unwrap();
    });
    let (_, done) = summary(&folder, Args { job: "job".into(), ..args }).await;
    assert_eq!(done.verdict, Some(Verdict::Passed), "{}", done.message);
    assert_eq!(done.metrics[0].value.0, "7.2500");
}

#[tokio::test]
async fn models_are_asked_pinned_and_priced() {
    let (address, shared) = start(Stub::default()).await;
    let (folder, args) = prepare(address, |plan| {
        plan.target = serde_json::from_value(
            json!({"model": {"name": "tiny", "cost": {"inputPerMillion": "2", "outputPerMillion": "4"}}}),
        )
        .unwrap();
        plan.revisions.truncate(1);
        plan.revisions[0].variant = "tiny".into();
        plan.metrics =
            serde_json::from_value(json!([{"name": "valid", "type": "JsonValid"}, {"name": "price", "type": "Cost"}]))
                .unwrap();
        plan.gates =
            serde_json::from_value(json!([{"metric": "valid", "min": "0.8"}, {"metric": "price", "max": "0.004"}]))
                .unwrap();
    });
    let (code, summary) = summary(&folder, args).await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!((summary.verdict, summary.message.as_str()), (Some(Verdict::Passed), "all 2 gates passed"));
    assert_eq!(shared.lock().unwrap().asked[0].0, "model/tiny=aaaaaaaaaa");
}

#[tokio::test]
async fn an_index_answers_with_the_text_of_its_chunks() {
    let (address, shared) = start(Stub::default()).await;
    let (folder, args) = prepare(address, |plan| {
        plan.target = serde_json::from_value(json!({"index": {"name": "handbook", "filters": ["tenant"]}})).unwrap();
        plan.revisions.truncate(1);
        plan.revisions[0].revision = "handbook-0a1b".into();
        let lines = "{\"question\":\"seven\",\"expected\":\"The best chunk.\\n\\nIt is seven.\",\"tenant\":\"a\"}\n";
        plan.dataset.digest = dataset::digest(lines);
        plan.metrics = serde_json::from_value(json!([{"name": "exact", "type": "ExactMatch"}])).unwrap();
        plan.gates = serde_json::from_value(json!([{"metric": "exact", "min": "1", "bound": "Mean"}])).unwrap();
    });
    let lines = "{\"question\":\"seven\",\"expected\":\"The best chunk.\\n\\nIt is seven.\",\"tenant\":\"a\"}\n";
    std::fs::write(folder.path().join("cases.jsonl"), lines).unwrap();
    let (code, summary) = summary(&folder, args).await;
    assert_eq!((code, summary.verdict), (ExitCode::SUCCESS, Some(Verdict::Passed)), "{}", summary.message);
    let stub = shared.lock().unwrap();
    assert_eq!(stub.asked, [("index/handbook=handbook-0a1b".to_owned(), "seven".to_owned())]);
    let report: Report = serde_json::from_str(&stub.reports["json"].1).unwrap();
    assert_eq!((report.target_kind.as_str(), report.cases[0].answers[0].sources.len()), ("RagIndex", 2));
}

#[tokio::test]
async fn what_the_flow_uses_is_pinned_and_an_answer_from_elsewhere_is_none() {
    let used = |generation: &str| json!([{"kind": "ModelDeployment", "name": "tiny", "revision": "cccccccccc"}, {"kind": "RagIndex", "name": "docs", "revision": generation}]);
    let (address, shared) = start(Stub::default()).await;
    let (folder, args) =
        prepare(address, |plan| plan.dependencies = serde_json::from_value(used("handbook-0a1b")).unwrap());
    let (_, judged) = summary(&folder, args).await;
    assert_eq!(judged.verdict, Some(Verdict::Passed), "{}", judged.message);
    let pin = "flow=aaaaaaaaaa;model/tiny=cccccccccc;index/docs=handbook-0a1b";
    assert_eq!(shared.lock().unwrap().asked.iter().filter(|(asked, _)| asked == pin).count(), 20);
    let (folder, args) =
        prepare(address, |plan| plan.dependencies = serde_json::from_value(used("docs-ffff")).unwrap());
    let (_, judged) = summary(&folder, args).await;
    assert_eq!((judged.verdict, judged.errors), (Some(Verdict::Inconclusive), 40));
    assert!(
        judged.message.ends_with("\"handbook\" answered with revision handbook-0a1b, which is not pinned"),
        "{}",
        judged.message
    );
}

#[tokio::test]
async fn a_limit_ends_the_run_without_a_verdict() {
    let (address, shared) = start(Stub::default()).await;
    let (folder, args) = prepare(address, |plan| {
        plan.concurrency = 1;
        plan.budget.max_tokens = Some(500);
    });
    let (code, summary) = summary(&folder, args).await;
    assert_eq!((code, summary.verdict), (ExitCode::SUCCESS, Some(Verdict::Inconclusive)));
    assert_eq!(summary.message, "spec.budget.maxTokens (500) was reached after 5 of 40 answers; raise it or ask less");
    assert_eq!(shared.lock().unwrap().asked.len(), 5);
}

#[tokio::test]
async fn an_answer_that_cannot_be_had_is_an_error_of_its_case() {
    let refusals = vec![(StatusCode::BAD_REQUEST, None)];
    let (address, _) = start(Stub { refusals, ..Stub::default() }).await;
    let (folder, args) = prepare(address, |plan| plan.concurrency = 1);
    let (code, summary) = summary(&folder, args).await;
    assert_eq!((code, summary.verdict, summary.errors), (ExitCode::SUCCESS, Some(Verdict::Inconclusive), 1));
    assert_eq!(
        summary.message,
        "1 of 40 answers could not be had; first: case q1, variant control: the gateway answered 400 Bad Request: told to"
    );
}

#[tokio::test]
async fn a_broken_dataset_and_a_broken_plan_are_not_retried() {
    let (address, shared) = start(Stub::default()).await;
    let (folder, args) = prepare(address, |plan| plan.dataset.columns.expected = "reference".into());
    let (code, failed) = summary(&folder, args).await;
    assert_eq!(code, ExitCode::from(EXIT_CONFIGURATION));
    assert_eq!(failed.verdict, None);
    assert_eq!(
        failed.message,
        "dataset golden/cases.jsonl: line 1: column \"reference\" is missing; it is needed for metric \"grounded\", as a text or a list of texts"
    );
    let (folder, mut args) = prepare(address, |_| {});
    args.plan = "{}".into();
    let (code, failed) = summary(&folder, args).await;
    assert_eq!(code, ExitCode::from(EXIT_CONFIGURATION));
    assert!(
        failed.message.starts_with("the plan in LLMOPS_EVALUATION_PLAN is not readable: missing field"),
        "{}",
        failed.message
    );
    assert!(shared.lock().unwrap().asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_refuses_the_token_ends_the_run_to_be_retried() {
    let refusals = vec![(StatusCode::FORBIDDEN, None); 10];
    let (address, _) = start(Stub { refusals, ..Stub::default() }).await;
    let (folder, args) = prepare(address, |_| {});
    let (code, failed) = summary(&folder, args).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(
        failed.message.starts_with("the gateway answered 403 Forbidden: told to; check that the RoleBinding"),
        "{}",
        failed.message
    );
}

#[tokio::test]
async fn similarity_uses_the_built_in_embedder() {
    assert!(
        std::env::var_os("LLMOPS_EMBEDDER_DIR").is_some(),
        "set LLMOPS_EMBEDDER_DIR to the folder with the built-in embedder's model.onnx and tokenizer.json; `make test` prepares it"
    );
    let (address, _) = start(Stub::default()).await;
    let (folder, args) = prepare(address, |plan| {
        plan.metrics = serde_json::from_value(json!([{"name": "alike", "type": "EmbeddingSimilarity"}])).unwrap();
        plan.gates = serde_json::from_value(json!([{"metric": "alike", "min": "0.2"}])).unwrap();
        plan.dataset.limit = Some(5);
    });
    let (_, summary) = summary(&folder, args).await;
    assert_eq!(summary.verdict, Some(Verdict::Passed), "{summary:?}");
    let value = summary.metrics[0].value.value().unwrap();
    assert!((0.2..0.95).contains(&value), "{value}");
}

#[test]
fn reports_read_well() {
    let plan = plan(json!([{"metric": "grounded", "min": "0.50"}, {"metric": "seconds", "max": "2", "bound": "Mean"}]));
    let mut some = answers(4, 2);
    some.asked[1].reply = Err("the gateway answered 503".into());
    let report = judged(&plan, &cases(4), &some);
    insta::assert_snapshot!(
        "console",
        report::console::render(&report, Some("http://gateway:8080/v1/reports/team-a/ask-quality/0123456789"))
    );
    insta::assert_snapshot!("junit", report::junit::render(&report).unwrap());
    let html = report::html::render(&report).unwrap();
    insta::assert_snapshot!("html", html);
    assert!(html.contains("&lt;b&gt;3&lt;&#x2f;b&gt;?") && !html.contains("<b>3"), "texts are escaped");
    assert!(!html.contains("<script") && !html.contains("src="), "nothing is loaded or run");
}
