use super::*;
use crate::gateway::metrics::Metrics;
use crate::gateway::store::{GivenAnswer, Interaction, ReportFormat, Status, Store};
use std::sync::Arc;

fn interaction(request: &str) -> Interaction {
    Interaction {
        request: request.into(),
        time_ms: 1_000,
        expires_ms: 2_000,
        kind: "flow",
        namespace: "a".into(),
        name: "docs".into(),
        revision: "r1".into(),
        variant: "control".into(),
        unit: request.into(),
        principal: "key".into(),
        status: Status::Ok,
        error: None,
        input_tokens: 10,
        output_tokens: 5,
        cost: Some(0.5),
        currency: Some("EUR".into()),
        latency_ms: 100,
        first_token_ms: Some(20),
        stream: false,
        pinned: false,
        assigned: None,
        shadow: false,
        fallbacks: 0,
        nodes: "[]".into(),
        dependencies: "{}".into(),
        inputs: None,
        answer: None,
    }
}

fn feedback(request: &str, score: f64) -> Feedback {
    Feedback {
        request: request.into(),
        time_ms: 1_500,
        score: Some(score),
        principal: "key".into(),
        ..Feedback::default()
    }
}

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(&folder.path().join("gateway.db"), Arc::new(Metrics::default())).unwrap()
}

#[tokio::test]
async fn splits_count_units_errors_quantiles_and_feedback_without_pins() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for place in 0..20_u64 {
        store.record(Interaction {
            latency_ms: (place + 1) * 10,
            unit: (place % 4).to_string(),
            ..interaction(&format!("r{place}"))
        });
    }
    store.record(Interaction { status: Status::Error, latency_ms: 9_999, ..interaction("bad") });
    store.record(Interaction { pinned: true, ..interaction("pinned") });
    store.record(Interaction { variant: "short".into(), currency: Some("USD".into()), ..interaction("s1") });
    store.record(Interaction { variant: "short".into(), ..interaction("s2") });
    assert_eq!(store.answered_by("r3").await.unwrap(), Some(("a".into(), "docs".into())));
    assert_eq!(store.answered_by("none").await.unwrap(), None);
    store.feedback(feedback("r3", 1.0)).await.unwrap();
    store.feedback(feedback("r4", -0.5)).await.unwrap();
    store.feedback(feedback("pinned", -1.0)).await.unwrap();
    let splits = store.splits("a", "docs").await.unwrap();
    let control = splits.iter().find(|split| split.variant == "control").unwrap();
    assert_eq!((control.units, control.requests, control.errors), (5, 21, 1));
    assert_eq!((control.latency.p50, control.latency.p95), (Some(100), Some(190)));
    assert_eq!((control.feedback.count, control.feedback.mean), (2, Some(0.25)));
    assert_eq!((control.cost, control.currency.as_deref()), (Some(10.5), Some("EUR")));
    let short = splits.iter().find(|split| split.variant == "short").unwrap();
    assert_eq!((short.cost, &short.currency), (None, &None), "currencies do not add up");
    assert_eq!(store.interactions("a", "docs", 3).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.record(interaction("r1"));
    store.feedback(feedback("r1", 1.0)).await.unwrap();
    // No close: the process may end at any moment after the acknowledgement.
    std::mem::forget(store);
    let again = open(&folder);
    assert_eq!(again.splits("a", "docs").await.unwrap()[0].feedback.count, 1);
}

#[tokio::test]
async fn feedback_on_nothing_is_refused_and_spoils_no_other_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.record(interaction("r1"));
    let (bad, good) = tokio::join!(store.feedback(feedback("none", 1.0)), store.feedback(feedback("r1", 1.0)));
    assert!(bad.is_err() && good.is_ok());
}

#[tokio::test]
async fn interactions_expire_with_their_feedback() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for place in 0..5_000 {
        store.record(interaction(&format!("old{place}")));
    }
    store.record(Interaction { expires_ms: 9_000, ..interaction("young") });
    store.feedback(feedback("old1", 1.0)).await.unwrap();
    store.expire(5_000);
    store.flush().await.unwrap();
    store.flush().await.unwrap();
    let left = store.interactions("a", "docs", 10).await.unwrap();
    assert_eq!(left.iter().map(|row| row.request_id.as_str()).collect::<Vec<_>>(), ["young"]);
    assert_eq!(store.splits("a", "docs").await.unwrap()[0].feedback.count, 0);
}

#[tokio::test]
async fn closing_writes_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for place in 0..100 {
        store.record(interaction(&place.to_string()));
    }
    store.close().await;
    assert!(store.flush().await.is_err());
    assert_eq!(open(&folder).interactions("a", "docs", 1_000).await.unwrap().len(), 100);
}

#[tokio::test]
async fn reports_replace_their_like_and_old_runs_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let report = |run: String, time_ms, body: &str| Report {
        namespace: "a".into(),
        evaluation: "docs".into(),
        run,
        format: ReportFormat::Html,
        time_ms,
        body: body.into(),
    };
    for run in 0..120 {
        store.report(report(format!("run{run}"), i64::from(run), "first")).await.unwrap();
    }
    store.report(report("run119".into(), 500, "second")).await.unwrap();
    let body = async |run| store.find_report("a", "docs", run, ReportFormat::Html).await.unwrap();
    assert_eq!(body("run119").await.as_deref(), Some(&b"second"[..]));
    assert_eq!(body("run3").await, None);
    assert_eq!(store.reports(1_000).await.unwrap().len(), 100);
}

#[test]
fn a_database_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path, Arc::new(Metrics::default())).unwrap_err();
    assert!(error.to_string().contains("upgrade the gateway"));
}

#[tokio::test]
async fn the_course_of_experiments_is_bounded_and_goes_with_its_flow() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let point = |time: i64, metric: &str, flow: &str| ExperimentPoint {
        namespace: "a".into(),
        flow: flow.into(),
        uid: "u".into(),
        measured_ms: time,
        arm: "candidate".into(),
        metric: metric.into(),
        goal: true,
        started_ms: None,
        step: None,
        weight: None,
        units: time,
        difference: Some(0.5),
        lower: None,
        upper: Some(1.0),
        verdict: "Better".into(),
    };
    for time in 0..2_100 {
        store.keep_points(vec![point(time, "Cost", "docs"), point(time, "Latency", "docs")]).await.unwrap();
    }
    store.keep_points(vec![point(7, "Cost", "other")]).await.unwrap();
    let kept = store.points("a", "docs", "u").await.unwrap();
    assert_eq!((kept.len(), kept[0].measured_ms), (4_000, 100), "the oldest went, both metrics together");
    assert_eq!(kept[0], point(100, "Cost", "docs"));
    store.expire(1_000 * 24 * 3600 * 1000);
    store.flush().await.unwrap();
    store.flush().await.unwrap();
    assert!(store.points("a", "other", "u").await.unwrap().is_empty());
}

#[tokio::test]
async fn processes_share_one_file_and_see_what_the_others_were_told_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let stores = [open(&folder), open(&folder)];
    let write = |place: usize| {
        let (store, other) = (&stores[place % 2], &stores[(place + 1) % 2]);
        async move {
            let request = format!("r{place}");
            store.answered(Some(interaction(&request)), None).await;
            // A user's feedback may reach the other gateway.
            assert_eq!(other.answered_by(&request).await.unwrap(), Some(("a".into(), "docs".into())), "{request}");
            other.feedback(feedback(&request, 1.0)).await.unwrap();
        }
    };
    futures::future::join_all((0..200).map(write)).await;
    for store in &stores {
        assert_eq!(store.splits("a", "docs").await.unwrap()[0].feedback.count, 200);
    }
}

#[tokio::test]
async fn the_first_answer_to_a_key_stays_until_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let answer = |request: &str, body: &str| GivenAnswer {
        principal: "job".into(),
        key: "k".into(),
        request: request.into(),
        expires_ms: 5_000,
        revision: "r1".into(),
        took_ms: 7,
        body: body.into(),
    };
    store.answered(Some(interaction("1")), Some(answer("1", "first"))).await;
    store.answered(Some(interaction("2")), Some(answer("2", "second"))).await;
    assert_eq!(store.given("job", "k").await.unwrap(), Some(answer("1", "first")));
    assert_eq!(store.given("other", "k").await.unwrap(), None);
    store.expire(5_001);
    store.flush().await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(store.given("job", "k").await.unwrap(), None);
}
