use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::gateway::metrics::Metrics;
use crate::gateway::store::record::{Assigned, Feedback, Interaction, Status};
use crate::gateway::store::{Store, schema};

/// A request of a unit, in the stratum `s1` and the arm (variant, `r1`).
fn interaction(request: &str, unit: &str, variant: &str) -> Interaction {
    Interaction {
        request: request.into(),
        time_ms: 1_000,
        expires_ms: 1_000_000,
        kind: "flow",
        namespace: "a".into(),
        name: "docs".into(),
        revision: "r1".into(),
        variant: variant.into(),
        unit: unit.into(),
        principal: "key".into(),
        status: Status::Ok,
        error: None,
        input_tokens: 1,
        output_tokens: 1,
        cost: None,
        currency: None,
        latency_ms: 1_000,
        first_token_ms: None,
        stream: false,
        pinned: false,
        assigned: Some(Assigned { stratum: "s1".into(), weight: 50 }),
        shadow: false,
        fallbacks: 0,
        nodes: "[]".into(),
        dependencies: "{}".into(),
        inputs: None,
        answer: None,
    }
}

fn opinion(request: &str) -> Feedback {
    Feedback { request: request.into(), time_ms: 2_000, principal: "key".into(), ..Feedback::default() }
}

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(&folder.path().join("gateway.db"), Arc::new(Metrics::default())).unwrap()
}

fn query(since_ms: i64) -> MeasureQuery {
    MeasureQuery { namespace: "a".into(), flow: "docs".into(), since_ms, events: BTreeSet::new() }
}

async fn measure(store: &Store, query: MeasureQuery) -> Vec<ArmMeasurements> {
    store.flush().await.unwrap();
    store.measurements(query).await.unwrap().arms
}

/// Units, mean and m2 by metric, rounded.
fn metrics(arm: &ArmMeasurements) -> BTreeMap<String, (u64, f64, f64)> {
    let rounded = |value: f64| (value * 1e6).round() / 1e6;
    let named = arm.metrics.iter().map(|metric| {
        let event = metric.event.iter().map(|event| format!("/{event}")).collect::<String>();
        (format!("{:?}{event}", metric.metric), (metric.units, rounded(metric.mean), rounded(metric.m2)))
    });
    named.collect()
}

#[tokio::test]
async fn a_unit_counts_once_with_the_mean_of_its_requests() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    // The unit u1: a good and a bad answer, one by a fallback model, and one that it did not wait for.
    store.record(Interaction { cost: Some(2.0), currency: Some("EUR".into()), ..interaction("1", "u1", "control") });
    store.record(Interaction { status: Status::Error, latency_ms: 99_000, ..interaction("2", "u1", "control") });
    store.record(Interaction { latency_ms: 3_000, fallbacks: 1, ..interaction("3", "u1", "control") });
    store.record(Interaction { status: Status::Cancelled, latency_ms: 99_000, ..interaction("4", "u1", "control") });
    // u2: an answer. u3: left before any.
    store.record(interaction("5", "u2", "control"));
    store.record(Interaction { status: Status::Cancelled, ..interaction("6", "u3", "control") });
    // Of no interest: pinned, of another flow, a model's.
    store.record(Interaction { pinned: true, assigned: None, ..interaction("7", "u4", "control") });
    store.record(Interaction { name: "other".into(), ..interaction("8", "u5", "control") });
    store.record(Interaction { kind: "model", assigned: None, ..interaction("9", "u6", "") });
    let arms = measure(&store, query(0)).await;
    assert_eq!(arms.len(), 1);
    let arm = &arms[0];
    assert_eq!((arm.stratum.as_str(), arm.variant.as_str(), arm.revision.as_str()), ("s1", "control", "r1"));
    assert_eq!((arm.weight, arm.shadow, arm.units, arm.requests), (50, false, 3, 6));
    assert_eq!(
        metrics(arm),
        BTreeMap::from([
            // u1 2/3 and u2 0; u3 has no request that ended.
            ("ErrorRate".into(), (2, 0.333_333, 0.222_222)),
            // u1 (1 + 3) / 2 seconds, u2 1 second.
            ("Latency".into(), (2, 1.5, 0.5)),
            ("Cost".into(), (1, 2.0, 0.0)),
        ])
    );
}

#[tokio::test]
async fn feedback_counts_for_the_units_that_gave_it_and_events_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for (request, unit, variant) in [
        ("1", "u1", "control"),
        ("2", "u1", "control"),
        ("3", "u2", "control"),
        ("4", "u3", "control"),
        ("5", "u4", "short"),
    ] {
        store.record(interaction(request, unit, variant));
    }
    let given = [
        Feedback { score: Some(1.0), thumbs: Some(true), ..opinion("1") },
        Feedback { score: Some(-1.0), thumbs: Some(false), ..opinion("1") },
        Feedback { score: Some(0.5), judge_score: Some(0.25), ..opinion("2") },
        Feedback { score: Some(1.0), thumbs: Some(true), event: Some("bought".into()), ..opinion("3") },
        Feedback { event: Some("bought".into()), ..opinion("1") },
        Feedback { event: Some("bought".into()), ..opinion("2") },
        Feedback { comment: Some("hm".into()), ..opinion("4") },
        Feedback { event: Some("copied".into()), ..opinion("5") },
    ];
    for feedback in given {
        store.feedback(feedback).await.unwrap();
    }
    let arms = measure(&store, MeasureQuery { events: ["rare".to_owned()].into(), ..query(0) }).await;
    let found = |variant: &str| {
        let mut found = metrics(arms.iter().find(|arm| arm.variant == variant).unwrap());
        found.retain(|name, _| name != "ErrorRate" && name != "Latency");
        found
    };
    assert_eq!(
        found("control"),
        BTreeMap::from([
            // u1: request 1 has 0, request 2 has 0.5; u2 has 1.
            ("FeedbackScore".into(), (2, 0.625, 0.28125)),
            ("Thumbs".into(), (2, 0.75, 0.125)),
            ("JudgeScore".into(), (1, 0.25, 0.0)),
            ("Event/bought".into(), (3, 0.666_667, 0.666_667)),
            ("Event/copied".into(), (3, 0.0, 0.0)),
            ("Event/rare".into(), (3, 0.0, 0.0)),
        ])
    );
    assert_eq!(
        found("short"),
        BTreeMap::from([
            ("Event/bought".into(), (1, 0.0, 0.0)),
            ("Event/copied".into(), (1, 1.0, 0.0)),
            ("Event/rare".into(), (1, 0.0, 0.0)),
        ])
    );
}

#[tokio::test]
async fn only_what_began_since_then_counts_and_strata_and_copies_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.record(Interaction { time_ms: 500, ..interaction("1", "u1", "control") });
    store.record(interaction("2", "u1", "control"));
    store.record(Interaction {
        assigned: Some(Assigned { stratum: "s2".into(), weight: 95 }),
        ..interaction("3", "u1", "control")
    });
    store.record(Interaction {
        assigned: Some(Assigned { stratum: "shadow".into(), weight: 100 }),
        shadow: true,
        revision: "r2".into(),
        ..interaction("4", "u1", "control")
    });
    // Feedback that comes late belongs to the time of its request.
    store.feedback(Feedback { score: Some(1.0), time_ms: 9_000, ..opinion("1") }).await.unwrap();
    let arms = measure(&store, query(1_000)).await;
    let told: Vec<_> = arms
        .iter()
        .map(|arm| (arm.stratum.as_str(), arm.revision.as_str(), arm.weight, arm.shadow, arm.requests))
        .collect();
    assert_eq!(told, [("s1", "r1", 50, false, 1), ("s2", "r1", 95, false, 1), ("shadow", "r2", 100, true, 1)]);
    assert!(!metrics(&arms[0]).contains_key("FeedbackScore"));
    let all = measure(&store, query(0)).await;
    assert_eq!((all[0].requests, all[0].units), (2, 1));
    assert_eq!(metrics(&all[0])["FeedbackScore"], (1, 1.0, 0.0));
    assert_eq!(measure(&store, query(2_000)).await, []);
    assert_eq!(store.splits("a", "docs").await.unwrap().len(), 1, "copies are no part of the split");
}

#[tokio::test]
async fn costs_of_different_currencies_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for (request, variant, currency) in [("1", "control", "EUR"), ("2", "short", "USD")] {
        store.record(Interaction {
            cost: Some(1.0),
            currency: Some(currency.into()),
            ..interaction(request, request, variant)
        });
    }
    let arms = measure(&store, query(0)).await;
    assert!(arms.len() == 2 && arms.iter().all(|arm| !metrics(arm).contains_key("Cost")));
}

#[tokio::test]
async fn clients_cannot_make_the_answer_as_long_as_they_like() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for place in 0..2 {
        store.record(interaction(&place.to_string(), &place.to_string(), "control"));
    }
    for place in 0..2 * MAX_EVENTS {
        store.feedback(Feedback { event: Some(format!("event{place}")), ..opinion("0") }).await.unwrap();
    }
    for request in ["0", "1"] {
        store.feedback(Feedback { event: Some("real".into()), ..opinion(request) }).await.unwrap();
    }
    let arms = measure(&store, MeasureQuery { events: ["goal".to_owned()].into(), ..query(0) }).await;
    let found = metrics(&arms[0]);
    assert_eq!(found.keys().filter(|name| name.starts_with("Event/")).count(), MAX_EVENTS + 1);
    assert_eq!(found["Event/real"].1, 1.0, "the most frequent ones are told");
    assert_eq!(found["Event/goal"].1, 0.0);
}

#[tokio::test]
async fn agrees_with_plain_sums_over_what_was_recorded() {
    let mut chance = fastrand::Rng::with_seed(7);
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let mut values: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for request in 0..3_000 {
        let (unit, variant) = (format!("{:016x}", chance.u32(..300)), ["control", "short"][chance.usize(..2)]);
        let (latency_ms, failed) = (chance.u64(1..5_000), chance.u32(..10) == 0);
        let status = if failed { Status::Error } else { Status::Ok };
        store.record(Interaction { latency_ms, status, ..interaction(&request.to_string(), &unit, variant) });
        #[allow(clippy::cast_precision_loss)]
        let seconds = latency_ms as f64 / 1e3;
        values.entry((variant.into(), unit)).or_default().push((f64::from(u8::from(failed)), seconds));
    }
    let arms = measure(&store, query(0)).await;
    for arm in &arms {
        let of = |value: fn(&(f64, f64)) -> f64, counted: fn(&(f64, f64)) -> bool| {
            let means: Vec<f64> = values
                .iter()
                .filter(|((variant, _), _)| *variant == arm.variant)
                .filter_map(|(_, requests)| {
                    let counted: Vec<f64> = requests.iter().filter(|request| counted(request)).map(value).collect();
                    #[allow(clippy::cast_precision_loss)]
                    let count = counted.len() as f64;
                    (count > 0.0).then(|| counted.iter().sum::<f64>() / count)
                })
                .collect();
            #[allow(clippy::cast_precision_loss)]
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            (means.len(), mean, means.iter().map(|value| (value - mean).powi(2)).sum::<f64>())
        };
        for (kind, (units, mean, m2)) in [
            (MetricKind::ErrorRate, of(|request| request.0, |_| true)),
            (MetricKind::Latency, of(|request| request.1, |request| request.0 == 0.0)),
        ] {
            let found = arm.metrics.iter().find(|metric| metric.metric == kind).unwrap();
            assert_eq!(found.units, units as u64);
            assert!((found.mean - mean).abs() < 1e-9 && (found.m2 - m2).abs() < 1e-6, "{found:?} {mean} {m2}");
        }
    }
    assert_eq!(arms.iter().map(|arm| arm.requests).sum::<u64>(), 3_000);
}

#[test]
fn everything_is_read_from_covering_indexes_in_the_order_of_time() {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::prepare(&mut connection).unwrap();
    for (statement, index) in
        [(INTERACTIONS, "interactions_by_arm"), (OPINIONS, "feedback_by_arm"), (EVENTS, "feedback_by_arm")]
    {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let rows = plan.query_map(params![1, 0], |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = rows.map(Result::unwrap).collect();
        assert!(plan[0].contains(&format!("USING COVERING INDEX {index} (arm=? AND ")), "{statement}: {plan:?}");
    }
}

#[tokio::test]
async fn arms_go_with_their_last_interaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.record(Interaction { expires_ms: 10, ..interaction("1", "u1", "control") });
    store.record(interaction("2", "u1", "short"));
    store.expire(100);
    store.flush().await.unwrap();
    store.flush().await.unwrap();
    let file = Connection::open(folder.path().join("gateway.db")).unwrap();
    let left: Vec<String> = file
        .prepare("SELECT variant FROM arms")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(left, ["short"]);
}

#[tokio::test]
async fn a_file_of_the_first_format_is_brought_to_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.db");
    {
        let file = Connection::open(&path).unwrap();
        file.execute_batch(schema::FIRST).unwrap();
        file.execute_batch(
            "INSERT INTO interactions VALUES ('old', 1000, 1000000, 'flow', 'a', 'docs', 'r0', 'control', 'u1', 'key',
                'ok', NULL, 1, 1, NULL, NULL, 100, NULL, 0, 0, 0, '[]', '{}', NULL, NULL);
             INSERT INTO feedback (request, time_ms, score, principal) VALUES ('old', 2000, 1.0, 'key');
             PRAGMA user_version = 1;",
        )
        .unwrap();
    }
    let store = open(&folder);
    store.record(interaction("new", "u1", "control"));
    store.feedback(Feedback { score: Some(1.0), ..opinion("old") }).await.unwrap();
    let arms = measure(&store, query(0)).await;
    assert_eq!((arms.len(), arms[0].requests), (1, 1), "what has no stratum is not measured");
    assert_eq!(store.interactions("a", "docs", 10).await.unwrap().len(), 2);
    let old = store.splits("a", "docs").await.unwrap().into_iter().find(|split| split.revision == "r0").unwrap();
    assert_eq!(old.feedback.count, 2);
}
