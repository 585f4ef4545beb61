//! Tests of the whole: plans, measurements, verdicts.

mod coverage;
mod formulas;
mod plans;
mod properties;
mod reading;
mod sentences;

use super::measurements::{ArmMeasurements, Measurements, MetricMeasurement};
use super::plan::{Compared, Metric, Plan};
use crate::api::rollout::{ArmRevision, MetricKind};

/// A plan with one goal and guardrails, all with the metric's own direction.
pub fn plan(goal: Option<(MetricKind, f64)>, guardrails: &[(MetricKind, f64)], alpha: f64, min_units: u64) -> Plan {
    let compared = |(kind, tolerated): &(MetricKind, f64)| Compared {
        metric: Metric { kind: *kind, event: None, better: kind.direction() },
        tolerated: *tolerated,
    };
    Plan {
        goal: goal.as_ref().map(compared),
        guardrails: guardrails.iter().map(compared).collect(),
        alpha: alpha / (guardrails.len() + usize::from(goal.is_some())).max(1) as f64,
        min_units,
    }
}

/// An arm with metrics `(kind, units, mean, m2)`.
pub fn arm(
    (stratum, variant, revision, weight): (&str, &str, &str, i32),
    units: u64,
    metrics: &[(MetricKind, u64, f64, f64)],
) -> ArmMeasurements {
    let metrics = metrics.iter().map(|(metric, units, mean, m2)| MetricMeasurement {
        metric: *metric,
        event: None,
        units: *units,
        mean: *mean,
        m2: *m2,
    });
    ArmMeasurements {
        stratum: stratum.into(),
        variant: variant.into(),
        revision: revision.into(),
        weight,
        shadow: false,
        units,
        requests: units,
        metrics: metrics.collect(),
    }
}

/// A share: `hits` of `units`.
pub fn share(kind: MetricKind, units: u64, hits: u64) -> (MetricKind, u64, f64, f64) {
    let mean = hits as f64 / units.max(1) as f64;
    (kind, units, mean, units as f64 * mean * (1.0 - mean))
}

/// Measurements of some arms.
pub fn measured(arms: impl IntoIterator<Item = ArmMeasurements>) -> Measurements {
    Measurements { arms: arms.into_iter().collect() }
}

/// Arms of a release.
pub fn release(arms: &[(&str, &str, i32)]) -> Vec<ArmRevision> {
    let arms = arms.iter().map(|(variant, revision, weight)| ArmRevision {
        variant: (*variant).into(),
        revision: (*revision).into(),
        weight: *weight,
    });
    arms.collect()
}
