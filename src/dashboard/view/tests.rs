//! Views of realistic objects, and the templates over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plot::{Series, plot};
use super::rollout::{Place, Plan, rollout};
use super::*;
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use crate::dashboard::history::points;
use crate::gateway::routing::{ByName, Resources};
use crate::gateway::store::{ExperimentPoint, FeedbackSummary, FlowSplit, LatencySummary, ReportEntry, ShadowCount};

/// The same objects as those of the browser's tests.
const OBJECTS: &str = include_str!("../../../tests/browser/objects.yaml");

fn now() -> Timestamp {
    "2026-11-24T14:00:00Z".parse().unwrap()
}

fn of_kind<T: DeserializeOwned + kube::Resource>(kind: &str) -> ByName<T> {
    let mut found = ByName::<T>::new();
    for document in serde_yaml::Deserializer::from_str(OBJECTS) {
        let value = Value::deserialize(document).unwrap();
        if value["kind"] == kind {
            let object: T = serde_path_to_error::deserialize(value).unwrap();
            let (namespace, name) = (object.meta().namespace.clone().unwrap(), object.meta().name.clone().unwrap());
            found.entry(namespace).or_default().insert(name, Arc::new(object));
        }
    }
    found
}

fn resources() -> Resources {
    Resources {
        flows: of_kind("PromptFlow"),
        models: of_kind("ModelDeployment"),
        indexes: of_kind("RagIndex"),
        evaluations: of_kind("Evaluation"),
    }
}

fn split(revision: &str, units: i64) -> FlowSplit {
    FlowSplit {
        variant: "control".into(),
        revision: revision.into(),
        units,
        requests: units * 2,
        errors: 3,
        input_tokens: units * 812,
        output_tokens: units * 96,
        cost: Some(1.25),
        currency: Some("EUR".into()),
        latency: LatencySummary { p50: Some(1_840), p95: Some(3_910) },
        feedback: FeedbackSummary { count: 410, mean: Some(0.412) },
    }
}

/// A measurement so many minutes after noon.
fn point(minute: i64, step: i32, difference: f64, half: f64) -> ExperimentPoint {
    let start: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    ExperimentPoint {
        namespace: "support".into(),
        flow: "answers".into(),
        uid: "7a1".into(),
        measured_ms: start.as_millisecond() + minute * 60_000,
        arm: "candidate".into(),
        metric: "FeedbackScore".into(),
        goal: true,
        started_ms: Some(start.as_millisecond()),
        step: Some(step),
        weight: Some([5, 25, 50][usize::try_from(step).unwrap()]),
        units: minute * 40,
        difference: Some(difference),
        lower: Some(difference - half),
        upper: Some(difference + half),
        verdict: "Inconclusive".into(),
    }
}

fn course() -> Vec<ExperimentPoint> {
    vec![
        point(1, 0, -0.1, 2.5),
        point(10, 0, 0.02, 0.4),
        point(30, 0, 0.06, 0.25),
        point(31, 1, 0.05, 0.24),
        point(60, 1, 0.051, 0.12),
        point(100, 1, 0.052, 0.063),
    ]
}

#[test]
fn the_first_page_groups_by_namespace_and_tells_what_needs_somebody() {
    let problems = BTreeMap::from([("PromptFlow support/old".to_owned(), "spec.nodes: missing field".to_owned())]);
    let page = overview(&resources(), &problems, now());
    let needs: Vec<String> = page.attention.iter().map(|item| format!("{} {}", item.label, item.what)).collect();
    assert_eq!(
        needs,
        [
            "Candidate failed support/policies",
            "Cannot be read PromptFlow support/old",
            "Degraded support/triage",
            "Gate failed support/triage-quality",
            "Awaiting approval support/writer",
        ]
    );
    insta::assert_yaml_snapshot!("overview", page);
}

#[test]
fn a_flow_in_its_ramp() {
    let flow = of_kind::<PromptFlow>("PromptFlow")["support"]["answers"].clone();
    let splits = [split("5d41a7c09e", 4_176), split("c2b98e4410", 1_284), split("91f0ad3377", 74)];
    let reports = Reports::from([("answers-quality".into(), "3fa2c1d07b".into())]);
    let shadows = [ShadowCount {
        variant: "control".into(),
        revision: "c2b98e4410".into(),
        copies: 212,
        errors: 1,
        mean_ms: Some(2_010),
    }];
    let before = |point: ExperimentPoint| ExperimentPoint {
        measured_ms: point.measured_ms - 86_400_000,
        started_ms: point.started_ms.map(|time| time - 86_400_000),
        verdict: "Worse".into(),
        ..point
    };
    let mut points: Vec<ExperimentPoint> = course().into_iter().map(before).collect();
    points.push(ExperimentPoint { metric: "Latency".into(), goal: false, ..points[5].clone() });
    points.extend(course());
    let kept = Kept { points: &points, splits: Some(&splits), shadows: &shadows, reports: &reports };
    insta::assert_yaml_snapshot!("flow", super::flow(&flow, kept, now()));
}

#[test]
fn an_evaluation_with_reports() {
    let evaluation = of_kind::<Evaluation>("Evaluation")["support"]["answers-quality"].clone();
    let report = |run: &str| ReportEntry {
        namespace: "support".into(),
        evaluation: "answers-quality".into(),
        run: run.into(),
        time: "2026-11-01T10:00:00Z".into(),
        formats: vec!["html".into(), "junit".into()],
    };
    let reports = [report("3fa2c1d07b"), report("an-old-run")];
    insta::assert_yaml_snapshot!("evaluation", super::evaluation(&evaluation, &reports, now()));
}

#[test]
fn a_model_and_an_index() {
    let models = of_kind::<ModelDeployment>("ModelDeployment");
    let endpoints = BTreeMap::from([("81d3ff02aa".to_owned(), 1), ("b07e5521cd".to_owned(), 2)]);
    insta::assert_yaml_snapshot!("model", model(&models["support"]["writer"], &endpoints, &Reports::new(), now()));
    let loading = model(&models["support"]["writer-large"], &BTreeMap::new(), &Reports::new(), now());
    insta::assert_yaml_snapshot!("model_download", loading);
    let indexes = of_kind::<RagIndex>("RagIndex");
    let one = |generation: &str| usize::from(generation == "g-0aa1bb2c");
    insta::assert_yaml_snapshot!("index", index(&indexes["support"]["policies"], one, now()));
}

#[test]
fn statuses_become_points() {
    let flow = of_kind::<PromptFlow>("PromptFlow")["support"]["answers"].clone();
    let points = points(&flow);
    assert_eq!(points.len(), 4);
    let goal = &points[0];
    assert_eq!((goal.metric.as_str(), goal.goal, goal.step, goal.weight), ("FeedbackScore", true, Some(1), Some(25)));
    assert_eq!((goal.difference, goal.lower, goal.upper), (Some(0.052), Some(-0.011), Some(0.115)));
    let experiment = of_kind::<PromptFlow>("PromptFlow")["support"]["summaries"].clone();
    assert!(super::super::history::points(&experiment).iter().all(|point| point.weight.is_none()));
}

/// Words of the steps for a phase.
fn words(phase: &str, step: Option<i32>, gate: &str, reached: Option<i32>) -> String {
    let status = json!({
        "phase": phase, "started": "2026-11-24T12:00:00Z", "since": "2026-11-24T13:00:00Z", "step": step,
        "stable": [{"variant": "control", "revision": "a", "weight": 100}],
        "candidate": [{"variant": "control", "revision": "b", "weight": 100}],
        "gates": [{"evaluation": "e", "verdict": gate}],
    });
    let steps = serde_json::from_value::<Vec<_>>(
        json!([{"weight": 5, "minDuration": "90s", "minUnits": 1000}, {"weight": 50}]),
    );
    let steps = steps.unwrap();
    let plan = Plan { gated: true, shadow: None, steps: &steps, manual: false, reached };
    let view = rollout(&serde_json::from_value(status).unwrap(), plan, "a", &Reports::new(), now());
    assert_eq!(view.steps[2].detail, "at least 1 min, 1,000 units");
    assert_eq!(view.steps.iter().filter(|step| step.since.is_some()).count(), 1, "{phase}");
    let mark = |place| match place {
        Place::Done => '+',
        Place::Present => '*',
        Place::Held => '=',
        Place::Failed => '!',
        Place::Ahead => '.',
    };
    view.steps.iter().map(|step| mark(step.place)).collect()
}

#[test]
fn the_row_of_steps_marks_the_present_one() {
    // Prepare, gates, 5 %, 50 %, promoted or rolled back.
    assert_eq!(words("Preparing", None, "Pending", None), "*....");
    assert_eq!(words("Gating", None, "Pending", None), "+*...");
    assert_eq!(words("Holding", None, "Inconclusive", None), "+=...");
    assert_eq!(words("Progressing", Some(0), "Passed", None), "++*..");
    assert_eq!(words("Holding", Some(1), "Passed", None), "+++=.");
    assert_eq!(words("AwaitingApproval", Some(1), "Passed", None), "++++=.");
    assert_eq!(words("Promoted", Some(1), "Passed", None), "+++++");
    // The status of a rollout that was rolled back names no step.
    assert_eq!(words("RolledBack", None, "Passed", Some(0)), "++!.=");
    assert_eq!(words("RolledBack", None, "Passed", None), "++..=");
    assert_eq!(words("RolledBack", None, "Failed", None), "+!..=");
    assert_eq!(words("Progressing", Some(7), "Passed", None), "+++*.", "a spec with fewer steps");
}

#[test]
fn a_plot_joins_what_lies_on_each_other_and_clips_what_is_wide() {
    let measure = super::measure::Measure::of("FeedbackScore");
    let many: Vec<ExperimentPoint> = (1..3_000)
        .map(|minute| point(minute, i32::from(minute > 1_500), 0.05, 3.0 / f64::from(i32::try_from(minute).unwrap())))
        .collect();
    let draw = |points: &[ExperimentPoint], width| {
        let points: Vec<&ExperimentPoint> = points.iter().collect();
        let series = Series { points: &points, measure: &measure, arm: "candidate", limit: Some(-0.02), better: "" };
        plot(&series, width, 320.0)
    };
    let wide = draw(&many, 860.0);
    let corners = wide.line.split(' ').count();
    assert!(corners > 100 && corners < 300, "{corners} corners");
    assert!(wide.clipped && wide.marks.is_empty());
    assert_eq!(wide.steps.len(), 2);
    assert!(wide.x_ticks.len() >= 3 && wide.x_ticks.len() <= 9, "{:?}", wide.x_ticks);
    assert!(wide.y_ticks.iter().any(|tick| (tick.at - wide.zero).abs() < 0.05), "zero has a label");
    assert!(wide.x_ticks.iter().all(|tick| (wide.left..=wide.right).contains(&tick.at)));
    let few = draw(&course(), 350.0);
    assert_eq!(few.marks.len(), 5, "two measurements are a minute apart");
    assert!(few.clipped, "the first interval is far wider than the later ones");
    let one = draw(&course()[..1], 350.0);
    assert_eq!((one.marks.len(), one.line.split(' ').count()), (1, 1));
    let none = ExperimentPoint { difference: None, lower: None, upper: None, ..point(1, 0, 0.0, 0.0) };
    assert_eq!(draw(&[none], 350.0).line, "");
    // Steps that follow each other at once share one label.
    let crowded = [point(1, 0, 0.0, 1.0), point(2, 1, 0.0, 0.9), point(600, 1, 0.0, 0.5)];
    let labels = draw(&crowded, 350.0).steps.iter().map(|step| step.label.is_some()).collect::<Vec<_>>();
    assert_eq!(labels, [true, false]);
}
