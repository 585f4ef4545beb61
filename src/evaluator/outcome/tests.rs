use serde_json::{Value, json};

use super::*;
use crate::evaluator::dataset::parse;
use crate::evaluator::stats::Method;

/// A plan with two variants, forty cases and the gates given.
pub(crate) fn plan(gates: Value) -> EvaluationPlan {
    serde_json::from_value(json!({
        "gatewayUrl": "http://gateway:8080", "run": "0123456789", "namespace": "team-a", "evaluation": "ask-quality",
        "target": {"flow": {"name": "ask", "inputs": {"question": {"type": "String"}}}},
        "revisions": [{"variant": "control", "revision": "aaaaaaaaaa"}, {"variant": "concise", "revision": "bbbbbbbbbb"}],
        "dataset": {"configMap": "golden", "key": "cases.jsonl", "digest": "sha256:00",
            "columns": {"id": "id", "input": "question", "expected": "expected"}},
        "metrics": [{"name": "grounded", "type": "Contains"}, {"name": "seconds", "type": "Latency"}, {"name": "price", "type": "Cost"}],
        "gates": gates, "repeats": 1, "concurrency": 2, "budget": {}, "report": ["Json", "Junit", "Html"],
    }))
    .unwrap()
}

pub(crate) fn cases(count: usize) -> Vec<Case> {
    let lines: String = (0..count)
        .map(|index| format!("{{\"id\":\"q{index}\",\"question\":\"<b>{index}</b>?\",\"expected\":\"yes\"}}\n"))
        .collect();
    parse(&lines, &crate::api::evaluation::Columns::default(), None).unwrap()
}

/// Every case answered by both variants: control right in all cases, concise in the first `right`.
pub(crate) fn answers(count: usize, right: usize) -> Answers {
    let reply = |text: &str, case: usize| Reply {
        text: text.to_owned(),
        seconds: 1.0 + case as f64 / 100.0,
        input_tokens: 100,
        output_tokens: 10,
        sources: vec![Source { uri: "concepts/gates.md".into(), heading: "Gates > Bounds".into(), score: 0.5 }],
        request_id: format!("request-{case}"),
        dependencies: BTreeMap::from([("model/writer".into(), "cccccccccc".into())]),
        ..Reply::default()
    };
    let asked = (0..count)
        .flat_map(|case| [(case, 0, "yes"), (case, 1, if case < right { "yes, it is" } else { "no" })])
        .map(|(case, revision, text)| Asked { case, revision, repeat: 0, reply: Ok(reply(text, case)) });
    Answers { asked: asked.collect(), limit: None }
}

pub(crate) fn judged(plan: &EvaluationPlan, cases: &[Case], answers: &Answers) -> Report {
    let at = |second| jiff::Timestamp::from_second(second).unwrap();
    judge(plan, cases, answers, None, (at(1_790_000_000), at(1_790_000_042))).unwrap()
}

#[test]
fn a_gate_that_is_missed_is_told_with_its_numbers() {
    let plan = plan(json!([{"metric": "grounded", "min": "0.50"}, {"metric": "seconds", "max": "2", "bound": "Mean"}]));
    let report = judged(&plan, &cases(40), &answers(40, 17));
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.message, "gate grounded ≥ 0.50 not passed for variant concise: mean 0.42 (95% CI 0.29–0.58)");
    assert_eq!(report.gates.len(), 4);
    assert_eq!(report.gates[3].gate, "seconds ≤ 2 (mean)");
    let summary = report.summary(true);
    let results: Vec<_> =
        summary.metrics.iter().map(|row| (row.name.as_str(), row.variant.as_str(), row.passed)).collect();
    assert_eq!(
        results,
        [
            ("grounded", "control", Some(true)),
            ("grounded", "concise", Some(false)),
            ("seconds", "control", Some(true)),
            ("seconds", "concise", Some(true)),
        ]
    );
    assert_eq!((summary.cases, summary.errors, summary.cost, summary.reported), (40, 0, None, true));
    assert!(report.notes.iter().any(|note| note.contains("spec.cost")), "{:?}", report.notes);
}

#[test]
fn the_bound_that_is_worse_for_the_gate_is_compared() {
    for (gate, passed) in [
        (json!({"metric": "grounded", "min": "0.91"}), Some(true)),
        (json!({"metric": "grounded", "min": "0.92"}), Some(false)),
        (json!({"metric": "grounded", "min": "1", "bound": "Mean"}), Some(true)),
        (json!({"metric": "seconds", "max": "1.19"}), Some(false)),
        (json!({"metric": "seconds", "max": "1.24"}), Some(true)),
        (json!({"metric": "seconds", "max": "1.195", "bound": "Mean"}), Some(true)),
        (json!({"metric": "price", "max": "1"}), None),
    ] {
        // 40 of 40: Wilson gives 0.912 to 1. Seconds are 1.00 to 1.39: mean 1.195, Student's t gives 1.158 to 1.232.
        let mut gate = gate;
        gate["variants"] = json!(["control"]);
        let report = judged(&plan(json!([gate])), &cases(40), &answers(40, 40));
        assert_eq!(report.gates.len(), 1);
        assert_eq!(report.gates[0].passed, passed, "{}", report.gates[0].message);
    }
}

#[test]
fn an_incomplete_run_has_no_verdict() {
    let plan = plan(json!([{"metric": "grounded", "min": "0.50"}]));
    let mut with_error = answers(40, 40);
    with_error.asked[3].reply = Err("the gateway answered 503 Service Unavailable: no pod is ready".into());
    let report = judged(&plan, &cases(40), &with_error);
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert_eq!(
        report.message,
        "1 of 80 answers could not be had; first: case q1, variant concise: the gateway answered 503 Service Unavailable: no pod is ready"
    );
    assert_eq!(report.gates.iter().map(|gate| gate.passed).collect::<Vec<_>>(), [None, None]);
    assert_eq!(report.summary(true).errors, 1);

    let mut cut = answers(40, 0);
    cut.asked.truncate(50);
    cut.limit = Some("spec.budget.maxTokens (5000) was reached".into());
    let report = judged(&plan, &cases(40), &cut);
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert_eq!(report.message, "spec.budget.maxTokens (5000) was reached after 50 of 80 answers; raise it or ask less");
    assert_eq!(report.gates[1].passed, Some(false));
}

#[test]
fn too_few_cases_decide_nothing_by_an_interval() {
    let report = judged(&plan(json!([{"metric": "seconds", "max": "9"}])), &cases(1), &answers(1, 1));
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert_eq!(
        report.message,
        "gate seconds ≤ 9 undecided for variant control: mean 1.00, too few cases for an interval; \
         gate seconds ≤ 9 undecided for variant concise: mean 1.00, too few cases for an interval"
    );
}

#[test]
fn without_gates_every_answered_case_passes() {
    let report = judged(&plan(json!([])), &cases(3), &answers(3, 0));
    assert_eq!(report.verdict, Verdict::Passed);
    assert_eq!(report.metrics[0].estimate.unwrap().method, Method::Wilson);
    assert_eq!(report.metrics[2].estimate.unwrap().method, Method::StudentT);
}

#[test]
fn a_dependency_that_changed_meanwhile_is_noted() {
    let mut changed = answers(3, 3);
    if let Ok(reply) = &mut changed.asked[2].reply {
        reply.dependencies.insert("model/writer".into(), "dddddddddd".into());
    }
    let report = judged(&plan(json!([])), &cases(3), &changed);
    assert!(
        report
            .notes
            .contains(&"model/writer changed during the run (variant control): cccccccccc, dddddddddd.".to_owned()),
        "{:?}",
        report.notes
    );
}

#[test]
fn similarity_is_scored_with_the_embedder() {
    struct Length;
    impl Embed for Length {
        fn vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            Ok(texts.iter().map(|text| if text.starts_with("yes") { vec![1.0, 0.0] } else { vec![0.0, 1.0] }).collect())
        }
    }
    let mut plan = plan(json!([]));
    plan.metrics = serde_json::from_value(json!([{"name": "alike", "type": "EmbeddingSimilarity"}])).unwrap();
    let at = jiff::Timestamp::UNIX_EPOCH;
    let report = judge(&plan, &cases(4), &answers(4, 1), Some(&Length), (at, at)).unwrap();
    let means: Vec<_> = report.metrics.iter().map(|row| row.estimate.unwrap().mean).collect();
    assert_eq!(means, [1.0, 0.25]);
    assert!(judge(&plan, &cases(4), &answers(4, 1), None, (at, at)).is_err());
}
