//! A retrieval server on the built-in model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::process::{Pod, client, plan, plan_with};

fn first_uri(answer: &Value) -> &str {
    answer["results"][0]["uri"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn questions_find_their_document_in_every_mode() {
    for (mode, expectation) in [("Hybrid", 6), ("Dense", 6), ("Lexical", 4)] {
        let pod = Pod::built();
        let report = pod.build_ok(&plan_with(json!({"retrieval": {"mode": mode, "topK": 3}})));
        let server = pod.serve(&report);
        server.ready().await;
        let mut right = 0;
        for (question, uri) in [
            ("How do I keep a sourdough culture alive?", "bread.md"),
            ("When should the chain be replaced?", "bicycles.md"),
            ("Why is the sea higher at full moon?", "nature/tides.md"),
            ("What happens before an eruption?", "nature/volcanoes.md"),
            ("kubectl rollout undo", "releases.txt"),
            ("Which glass can hold boiling water?", "glass.md"),
        ] {
            let (status, answer) = server.search(json!({"query": question})).await;
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["generation"].as_str(), report.generation.as_deref());
            assert_eq!(answer["results"].as_array().unwrap().len().min(3), answer["results"].as_array().unwrap().len());
            right += usize::from(first_uri(&answer) == uri);
        }
        assert!(right >= expectation, "{mode}: {right} of 6");
    }
}

#[tokio::test]
async fn requests_are_checked_and_answers_are_whole() {
    let pod = Pod::built();
    let report = pod.build_ok(&plan_with(json!({"retrieval": {"requireFilters": ["team"]}})));
    let server = pod.serve(&report);
    server.ready().await;
    let (status, answer) = server.search(json!({"query": "tempered glass", "topK": 1, "filters": {"team": "a"}})).await;
    assert_eq!(status, 200);
    let hit = &answer["results"][0];
    assert_eq!(hit["uri"], "glass.md");
    assert_eq!((&hit["source"], &hit["heading"]), (&json!("docs"), &json!("Tempered glass")));
    assert_eq!(hit["tags"], json!({"team": "a"}));
    assert!(hit["text"].as_str().unwrap().starts_with("# Tempered glass") && hit["similarity"].as_f64().unwrap() > 0.3);
    let none = server.search(json!({"query": "glass", "filters": {"team": "b"}})).await;
    assert_eq!(none.1["results"], json!([]));
    for (body, field) in [
        (json!({"query": "glass"}), "filters.team"),
        (json!({"query": "", "filters": {"team": "a"}}), "query"),
        (json!({"query": "glass", "topK": 0, "filters": {"team": "a"}}), "topK"),
        (json!({"query": "glass", "topK": "8"}), "topK"),
        (json!({"query": "glass", "limit": 8}), "limit"),
    ] {
        let (status, answer) = server.search(body).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(field)), "{answer}");
    }
    assert_eq!(server.get("/nothing").await.0, 404);
    assert_eq!(server.get("/livez").await.0, 200);
    let (_, metrics) = server.get("/metrics").await;
    for line in [
        format!("llmops_ragindex_chunks {}", report.chunks),
        "llmops_ragindex_query_seconds_count{mode=\"Hybrid\"} 2".to_owned(),
        "llmops_ragindex_query_errors_total{status=\"400\"} 5".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_loses_no_request() {
    let pod = Pod::built();
    let server = pod.serve(&pod.build_ok(&plan()));
    server.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let (url, stop, client) = (format!("{}/search", server.url), stop.clone(), client());
            tokio::spawn(async move {
                let mut answered = 0;
                while !stop.load(Ordering::SeqCst) {
                    let response = client.post(&url).json(&json!({"query": "tides"})).send().await.unwrap();
                    assert_eq!(response.status(), 200);
                    response.bytes().await.unwrap();
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    server.process.signal("TERM");
    // A client goes on until it sees that the server is not ready any more.
    crate::process::until(async || server.get("/readyz").await.0 == 503).await;
    stop.store(true, Ordering::SeqCst);
    for task in asking {
        assert!(task.await.unwrap() > 0);
    }
    assert_eq!(server.process.wait().code(), Some(0));
}

#[test]
fn another_digest_is_refused() {
    let pod = Pod::built();
    let mut report = pod.build_ok(&plan());
    report.digest = Some("sha256:00".into());
    let server = pod.serve(&report);
    assert_eq!(server.process.wait().code(), Some(42));
    let message = std::fs::read_to_string(pod.at("termination")).unwrap();
    assert!(message.contains("sha256:00 was asked for"), "{message}");
}
