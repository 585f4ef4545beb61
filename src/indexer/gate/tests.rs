use std::collections::BTreeMap;

use super::*;
use crate::api::rag_index::Golden;
use crate::api::refs::ConfigMapKeyRef;

fn counts(scanned: i64, skipped: i64, failed: i64) -> DocumentCounts {
    DocumentCounts { scanned, skipped, failed, ..DocumentCounts::default() }
}

#[test]
fn guards_stop_an_empty_listing_and_a_big_loss() {
    let guards = Guards { max_document_drop_percent: Some(20), ..Guards::default() };
    let reason = |counts, active| guard(&guards, &counts, active).map(|rejection| rejection.reason);
    assert_eq!(reason(counts(0, 0, 0), None), Some("SourceEmpty"));
    assert_eq!(reason(counts(3, 3, 0), None), Some("SourceEmpty"));
    assert_eq!(reason(counts(100, 0, 5), None), None);
    assert_eq!(reason(counts(100, 0, 6), None), Some("TooManyFailures"));
    assert_eq!(reason(counts(80, 0, 0), Some(100)), None);
    assert_eq!(reason(counts(79, 0, 0), Some(100)), Some("DeletionGuard"));
    assert_eq!(guard(&Guards { min_documents: 0, ..Guards::default() }, &counts(0, 0, 0), Some(5)), None);
}

fn question(line: &str) -> Question {
    parse(line).unwrap().remove(0)
}

fn hits(list: &[(&str, &str)]) -> Vec<SearchHit> {
    list.iter()
        .map(|(uri, text)| SearchHit {
            chunk_id: String::new(),
            source: String::new(),
            uri: (*uri).into(),
            heading: String::new(),
            text: (*text).into(),
            score: 0.0,
            similarity: None,
            tags: BTreeMap::new(),
        })
        .collect()
}

#[test]
fn golden_lines_are_read_and_broken_ones_named() {
    let text = "{\"id\":\"a\",\"query\":\"q\",\"relevant\":[{\"uri\":\"x\"}]}\n\n{\"query\":\"r\",\"filters\":{\"t\":\"1\"},\"relevant\":[{\"uri\":\"y\",\"grade\":3,\"quote\":\"A  b\"},{\"uri\":\"y\",\"quote\":\"c\"}]}\n";
    let questions = parse(text).unwrap();
    assert_eq!((questions[0].line, questions[1].line), (1, 3));
    assert_eq!(
        questions[1].relevant,
        [golden::RelevantDocument { uri: "y".into(), grade: 3, quotes: vec!["a b".into(), "c".into()] }]
    );
    for (broken, line, part) in [
        ("{\"query\":\"q\",\"relevant\":[{\"uri\":\"x\"}]}\n{\"query\":", 2, "EOF"),
        ("\n{\"query\":\" \",\"relevant\":[{\"uri\":\"x\"}]}", 2, "query is empty"),
        ("{\"query\":\"q\",\"relevant\":[]}", 1, "relevant is empty"),
        ("{\"query\":\"q\",\"relevant\":[{\"uri\":\"x\",\"grade\":0}]}", 1, "grade 0"),
        ("{\"query\":\"q\",\"relevant\":[{\"uri\":\"x\",\"quote\":\" \"}]}", 1, "quote of x"),
        ("{\"query\":\"q\",\"relevent\":[{\"uri\":\"x\"}]}", 1, "relevent"),
        (
            "{\"id\":\"a\",\"query\":\"q\",\"relevant\":[{\"uri\":\"x\"}]}\n{\"id\":\"a\",\"query\":\"q\",\"relevant\":[{\"uri\":\"x\"}]}",
            2,
            "also on line 1",
        ),
    ] {
        let error = parse(broken).unwrap_err();
        assert!(error.line == line && error.message.contains(part), "{error}");
    }
}

#[test]
fn recall_counts_distinct_documents_and_quotes() {
    let two = question(r#"{"query":"q","relevant":[{"uri":"a"},{"uri":"b","quote":"Second  part"}]}"#);
    let recall = |list: &[(&str, &str)]| metrics::recall(&two, &hits(list));
    assert_eq!(recall(&[("a", "1"), ("a", "2"), ("c", "3")]), 0.5);
    assert_eq!(recall(&[("a", "1"), ("b", "the first part")]), 0.5);
    assert_eq!(recall(&[("a", "1"), ("b", "the second\npart")]), 1.0);
    assert_eq!(recall(&[]), 0.0);
}

#[test]
fn ndcg_rewards_order_and_grade() {
    let graded = question(r#"{"query":"q","relevant":[{"uri":"a","grade":2},{"uri":"b"}]}"#);
    let ndcg = |list: &[(&str, &str)]| metrics::ndcg(&graded, &hits(list));
    assert_eq!(ndcg(&[("a", ""), ("b", ""), ("c", "")]), 1.0);
    let swapped = (1.0 + 3.0 / 3f64.log2()) / (3.0 + 1.0 / 3f64.log2());
    assert!((ndcg(&[("b", ""), ("a", ""), ("c", "")]) - swapped).abs() < 1e-12);
    // A second chunk of the same document gains nothing.
    assert!(ndcg(&[("a", ""), ("a", ""), ("b", "")]) < 1.0);
    assert_eq!(ndcg(&[("x", ""), ("y", "")]), 0.0);
}

fn gates(metric: QualityMetric, min_queries: i32) -> Gates {
    let config_map_ref: ConfigMapKeyRef = serde_json::from_value(serde_json::json!({"name": "g", "key": "k"})).unwrap();
    Gates {
        golden: Some(Golden { config_map_ref, min_queries }),
        metrics: vec![metric],
        guards: Guards::default(),
        evaluations: Vec::new(),
    }
}

fn recall_metric(min: Option<&str>, max_regression: Option<&str>) -> QualityMetric {
    QualityMetric {
        name: QualityMetricName::Recall,
        k: 5,
        min: min.map(Decimal::from),
        max_regression: max_regression.map(Decimal::from),
    }
}

/// Answers of which the first `right` of `all` find their document.
fn answered(right: usize, all: usize) -> Answers {
    Answers((0..all).map(|n| hits(&[(if n < right { "a" } else { "x" }, "")])).collect())
}

fn verdict(gates: &Gates, all: usize, candidate: usize, active: Option<usize>) -> (Vec<Quality>, Option<Rejection>) {
    let questions = vec![question(r#"{"query":"q","relevant":[{"uri":"a"}]}"#); all];
    let active = active.map(|right| answered(right, all));
    judge(gates, &questions, &answered(candidate, all), active.as_ref(), &BTreeSet::from(["a".to_owned()]))
}

#[test]
fn minimum_regression_and_number_of_questions_decide() {
    let min = gates(recall_metric(Some("0.80"), None), 30);
    let (quality, rejection) = verdict(&min, 40, 32, None);
    assert!(rejection.is_none() && quality[0].passed && quality[0].candidate.0 == "0.8000", "{quality:?}");
    assert_eq!(verdict(&min, 40, 31, None).1.unwrap().reason, "QualityBelowMinimum");
    assert_eq!(verdict(&min, 29, 29, None).1.unwrap().reason, "GoldenSetInvalid");
    assert!(!verdict(&min, 29, 29, None).0[0].passed);

    let regression = gates(recall_metric(None, Some("0.02")), 30);
    assert!(verdict(&regression, 100, 50, None).1.is_none(), "nothing to compare with");
    let same = verdict(&regression, 100, 90, Some(90));
    assert!(same.1.is_none());
    assert_eq!(
        (same.0[0].lower95.clone().unwrap().0, same.0[0].active.clone().unwrap().0),
        ("0.0000".into(), "0.9000".into())
    );
    assert!(verdict(&regression, 100, 95, Some(90)).1.is_none());
    assert_eq!(verdict(&regression, 100, 80, Some(90)).1.unwrap().reason, "QualityRegression");
}

#[test]
fn a_golden_document_that_the_index_lacks_is_named() {
    let questions = parse(r#"{"query":"q","relevant":[{"uri":"gone.md"}]}"#).unwrap();
    let gates = gates(recall_metric(Some("0.5"), None), 1);
    let (_, rejection) = judge(&gates, &questions, &answered(0, 1), None, &BTreeSet::new());
    assert!(rejection.unwrap().message.contains("gone.md (line 1)"));
}
