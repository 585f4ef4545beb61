//! Remembers what experiments showed: statuses only have the latest figures, a plot needs all of them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::PromptFlow;
use crate::gateway::server::Gateway;
use crate::gateway::store::ExperimentPoint;

/// Keeps each new measurement in `status.experiment` of any flow that the gateway's watch sees; runs until dropped.
///
/// A replica that was away misses what was measured meanwhile; the interval is about all data so far, so the next point
/// tells everything that the missed ones did.
pub async fn record(gateway: Arc<Gateway>) {
    let mut changes = gateway.routes.changes();
    let mut kept: HashMap<(String, String, String), i64> = HashMap::new();
    loop {
        changes.borrow_and_update();
        let snapshot = gateway.routes.load();
        let mut seen = HashMap::new();
        for flow in snapshot.resources.flows.values().flat_map(|flows| flows.values()) {
            let points = points(flow);
            let Some(first) = points.first() else { continue };
            let at = (first.namespace.clone(), first.flow.clone(), first.uid.clone());
            let measured = first.measured_ms;
            let known = kept.get(&at) == Some(&measured);
            // What could not be kept is tried again at the next change.
            if known || keep(&gateway, points).await {
                seen.insert(at, measured);
            }
        }
        kept = seen;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn keep(gateway: &Gateway, points: Vec<ExperimentPoint>) -> bool {
    match gateway.store.keep_points(points).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the history of an experiment was not kept");
            false
        }
    }
}

/// The figures of a flow's status, one point for each metric and arm; none before anything was measured.
pub fn points(flow: &PromptFlow) -> Vec<ExperimentPoint> {
    let Some(status) = &flow.status else { return Vec::new() };
    let Some(experiment) = &status.experiment else { return Vec::new() };
    let Some(measured) = &experiment.measured else { return Vec::new() };
    let (Some(namespace), Some(name)) = (&flow.metadata.namespace, &flow.metadata.name) else { return Vec::new() };
    let rollout = status.rollout.as_ref();
    // The share of the step that was measured: a rollout that has just ended by it has none any more, or all.
    let weight = experiment.step.and_then(|step| {
        let step = usize::try_from(step).ok().and_then(|step| flow.spec.rollout.steps.get(step));
        step.map(|step| step.weight).or(rollout.map(|rollout| rollout.weight))
    });
    let value = |number: &Option<crate::api::quantity::Decimal>| number.as_ref().and_then(|number| number.value());
    let point = |metric: &crate::api::rollout::ComparisonStatus| ExperimentPoint {
        namespace: namespace.clone(),
        flow: name.clone(),
        uid: flow.metadata.uid.clone().unwrap_or_default(),
        measured_ms: measured.0.as_millisecond(),
        arm: metric.arm.clone(),
        metric: metric.name.clone(),
        goal: metric.goal,
        started_ms: rollout.map(|rollout| rollout.started.0.as_millisecond()),
        step: experiment.step,
        weight,
        units: experiment.units,
        difference: value(&metric.difference),
        lower: value(&metric.lower),
        upper: value(&metric.upper),
        verdict: format!("{:?}", metric.verdict),
    };
    experiment.metrics.iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_ended_a_ramp_was_measured_at_the_share_of_its_step() {
        let flow = |phase: &str, weight: i32| -> PromptFlow {
            let arm = json!([{"variant": "control", "revision": "f2", "weight": 100}]);
            serde_json::from_value(json!({
                "metadata": {"namespace": "a", "name": "docs", "uid": "u"},
                "spec": {"nodes": [], "output": "x", "rollout": {"steps": [{"weight": 5}, {"weight": 50}]}},
                "status": {
                    "rollout": {"phase": phase, "candidate": arm, "weight": weight, "step": null,
                                "started": "2026-11-24T12:00:00Z", "since": "2026-11-24T12:00:00Z"},
                    "experiment": {"units": 50, "step": 1, "measured": "2026-11-24T12:01:00Z", "metrics": [
                        {"name": "Thumbs", "arm": "candidate", "goal": true, "verdict": "Worse"}]},
                },
            }))
            .unwrap()
        };
        for (phase, weight) in [("Progressing", 50), ("RolledBack", 0), ("Promoted", 100)] {
            let points = points(&flow(phase, weight));
            assert_eq!(points.iter().map(|point| point.weight).collect::<Vec<_>>(), [Some(50)], "{phase}");
        }
    }
}
