//! Plans from specs.

use super::*;
use crate::api::prompt_flow::{Experiment, Goal, Guardrail};
use crate::api::quantity::Decimal;
use crate::api::rollout::{Direction, Promotion};
use crate::experiment::PlanError;

fn experiment(guardrails: Vec<Guardrail>) -> Experiment {
    Experiment {
        goal: Some(Goal {
            metric: MetricKind::Event,
            event: Some("bought".into()),
            direction: None,
            margin: Decimal::from("0.02"),
        }),
        guardrails,
        alpha: Decimal::from("0.06"),
        min_units: 50,
        promotion: Promotion::Auto,
    }
}

fn guardrail(metric: MetricKind, max_regression: &str) -> Guardrail {
    Guardrail { metric, event: None, max_regression: Decimal::from(max_regression) }
}

#[test]
fn a_ramp_always_guards_the_error_rate() {
    let errors = |plan: &Plan| {
        plan.guardrails
            .iter()
            .filter(|g| g.metric.kind == MetricKind::ErrorRate)
            .map(|g| g.tolerated)
            .collect::<Vec<_>>()
    };
    let none = Plan::new(None, true, 1).unwrap();
    assert_eq!((errors(&none), none.goal.is_some(), none.alpha, none.min_units), (vec![0.02], false, 0.05, 100));
    let added = Plan::new(Some(&experiment(vec![guardrail(MetricKind::Latency, "0.5")])), true, 1).unwrap();
    assert_eq!((errors(&added), added.guardrails.len()), (vec![0.02], 2));
    let own = Plan::new(Some(&experiment(vec![guardrail(MetricKind::ErrorRate, "0.01")])), true, 1).unwrap();
    assert_eq!((errors(&own), own.guardrails.len()), (vec![0.01], 1));
    assert_eq!(errors(&Plan::new(Some(&experiment(vec![])), false, 1).unwrap()), Vec::<f64>::new());
}

#[test]
fn alpha_is_shared_by_metrics_and_comparisons() {
    let experiment = experiment(vec![guardrail(MetricKind::ErrorRate, "0.05"), guardrail(MetricKind::Cost, "0")]);
    let plan = Plan::new(Some(&experiment), true, 2).unwrap();
    assert!((plan.alpha - 0.06 / 6.0).abs() < 1e-15);
    let goal = plan.goal.unwrap();
    assert_eq!(
        (goal.metric.name().as_str(), goal.metric.better, goal.tolerated),
        ("Event/bought", Direction::Increase, 0.02)
    );
    assert_eq!(plan.min_units, 50);
}

#[test]
fn what_makes_no_sense_is_named() {
    let mut wrong = experiment(vec![guardrail(MetricKind::Cost, "0"), guardrail(MetricKind::Latency, "-1")]);
    let error = Plan::new(Some(&wrong), true, 1).unwrap_err();
    assert!(error.to_string().starts_with("spec.experiment.guardrails[1].maxRegression is -1: "), "{error}");
    wrong.guardrails.clear();
    for alpha in ["0", "0.6", "1", "-0.1", "x"] {
        wrong.alpha = Decimal::from(alpha);
        assert_eq!(Plan::new(Some(&wrong), true, 1), Err(PlanError::Alpha(Decimal::from(alpha))));
    }
}
