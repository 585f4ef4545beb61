//! Units that arrive, and what the gateway would tell of them.

use llmops::api::rollout::{ArmRevision, MetricKind};
use llmops::experiment::measurements::{ArmMeasurements, Measurements, MetricMeasurement};
use llmops::experiment::plan::{Compared, Metric, Plan};
use llmops::experiment::{Reading, read};

/// Sums over the units of an arm.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    pub units: u64,
    pub sum: f64,
    pub squares: f64,
}

impl Sums {
    pub fn add(&mut self, value: f64) {
        self.units += 1;
        self.sum += value;
        self.squares += value * value;
    }

    pub fn flips(&mut self, rng: &mut fastrand::Rng, units: u64, rate: f64) {
        (0..units).for_each(|_| self.add(f64::from(u8::from(rng.f64() < rate))));
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.units.max(1) as f64
    }

    pub fn m2(&self) -> f64 {
        (self.squares - self.sum * self.mean()).max(0.0)
    }

    pub fn minus(&self, earlier: &Self) -> Self {
        Self { units: self.units - earlier.units, sum: self.sum - earlier.sum, squares: self.squares - earlier.squares }
    }
}

/// One arm of one stratum: its share in percent and its metrics.
pub struct ArmSums<'a> {
    pub stratum: &'a str,
    pub treatment: bool,
    pub weight: i32,
    pub metrics: &'a [(MetricKind, Sums)],
}

/// Reads the arms as the controller does in a ramp of one variant.
pub fn look(plan: &Plan, arms: &[ArmSums<'_>]) -> Reading {
    let arms = arms.iter().map(|arm| ArmMeasurements {
        stratum: arm.stratum.into(),
        variant: "control".into(),
        revision: revision(arm.treatment).into(),
        weight: arm.weight,
        shadow: false,
        units: arm.metrics[0].1.units,
        requests: arm.metrics[0].1.units,
        metrics: arm.metrics.iter().map(measured).collect(),
    });
    let measured = Measurements { arms: arms.collect() };
    read(plan, &measured, "candidate", &release(false), &release(true))
}

fn measured((metric, sums): &(MetricKind, Sums)) -> MetricMeasurement {
    MetricMeasurement { metric: *metric, event: None, units: sums.units, mean: sums.mean(), m2: sums.m2() }
}

fn revision(treatment: bool) -> &'static str {
    if treatment { "new" } else { "old" }
}

fn release(treatment: bool) -> Vec<ArmRevision> {
    vec![ArmRevision { variant: "control".into(), revision: revision(treatment).into(), weight: 100 }]
}

/// A plan of a goal and guardrails with alpha 0.05 and 100 units before a verdict.
pub fn plan(goal: Option<MetricKind>, guardrails: &[(MetricKind, f64)]) -> Plan {
    let compared = |kind: MetricKind, tolerated| Compared {
        metric: Metric { kind, event: None, better: kind.direction() },
        tolerated,
    };
    let parts = guardrails.len() + usize::from(goal.is_some());
    Plan {
        goal: goal.map(|kind| compared(kind, 0.0)),
        guardrails: guardrails.iter().map(|(kind, tolerated)| compared(*kind, *tolerated)).collect(),
        alpha: 0.05 / parts as f64,
        min_units: 100,
    }
}

/// Seed of a run of a table.
pub fn rng(table: u64, run: usize) -> fastrand::Rng {
    fastrand::Rng::with_seed(table * 1_000_003 + run as u64)
}
