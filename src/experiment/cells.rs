//! Which measurements are compared with which: a cell holds a treatment and its control, of one routing table.

use std::collections::BTreeSet;

use super::measurements::{ArmMeasurements, Measurements};
use super::plan::Metric;
use crate::api::rollout::{ArmRevision, MetricKind};

/// Units of an arm and what was measured of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Units that the metric was seen on.
    pub units: f64,
    /// Mean over the units.
    pub mean: f64,
    /// Sum of squared differences of the units from the mean.
    pub m2: f64,
}

impl Sample {
    /// Both together (Chan, Golub, LeVeque 1979: pairwise update of mean and sum of squares).
    pub fn with(self, other: Self) -> Self {
        let units = self.units + other.units;
        if units <= 0.0 {
            return Self::default();
        }
        let apart = other.mean - self.mean;
        Self {
            units,
            mean: self.mean + apart * other.units / units,
            m2: self.m2 + other.m2 + apart * apart * self.units * other.units / units,
        }
    }

    /// The same with every value `v` as `slope · v + offset`.
    pub fn mapped(self, slope: f64, offset: f64) -> Self {
        Self { units: self.units, mean: slope * self.mean + offset, m2: slope * slope * self.m2 }
    }
}

/// A treatment and its control of one stratum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Share of the cell's units that the routing table gives to the treatment, strictly between 0 and 1.
    pub share: f64,
    /// The treatment.
    pub treatment: Sample,
    /// The control.
    pub control: Sample,
}

/// Arms that are compared with each other, before a metric is chosen.
#[derive(Clone, Debug, Default)]
pub struct Pair<'a> {
    /// Arms of the treatment.
    pub treatment: Vec<&'a ArmMeasurements>,
    /// Arms of the control.
    pub control: Vec<&'a ArmMeasurements>,
}

/// Pairs what is compared: in each stratum a variant's treatment with the same variant's control; treatments whose variant the
/// control lacks are pooled and compared with the pooled control arms that have no counterpart, or else with all of them.
///
/// Arms that are in both sets are no treatment. Shadow copies and strata without one of the two sides are left out.
pub fn pairs<'a>(measured: &'a Measurements, control: &[ArmRevision], treatment: &[ArmRevision]) -> Vec<Pair<'a>> {
    let holds = |set: &[ArmRevision], arm: &ArmMeasurements| {
        set.iter().any(|entry| entry.variant == arm.variant && entry.revision == arm.revision)
    };
    let strata: BTreeSet<&str> = measured.arms.iter().map(|arm| arm.stratum.as_str()).collect();
    let mut pairs = Vec::new();
    for stratum in strata {
        let arms = || measured.arms.iter().filter(|arm| arm.stratum == stratum && !arm.shadow && arm.weight > 0);
        let controls: Vec<_> = arms().filter(|arm| holds(control, arm)).collect();
        let treatments: Vec<_> = arms().filter(|arm| holds(treatment, arm) && !holds(control, arm)).collect();
        let (matched, others): (Vec<_>, Vec<_>) =
            treatments.into_iter().partition(|arm| controls.iter().any(|other| other.variant == arm.variant));
        let variants: BTreeSet<&str> = matched.iter().map(|arm| arm.variant.as_str()).collect();
        for variant in &variants {
            let of =
                |list: &[&'a ArmMeasurements]| list.iter().copied().filter(|arm| arm.variant == *variant).collect();
            pairs.push(Pair { treatment: of(&matched), control: of(&controls) });
        }
        if !others.is_empty() && !controls.is_empty() {
            let free: Vec<_> =
                controls.iter().copied().filter(|arm| !variants.contains(arm.variant.as_str())).collect();
            pairs.push(Pair { treatment: others, control: if free.is_empty() { controls } else { free } });
        }
    }
    pairs
}

impl Pair<'_> {
    /// What was measured of a metric; `None` while one side has nothing.
    pub fn cell(&self, metric: &Metric) -> Option<Cell> {
        let weight = |arms: &[&ArmMeasurements]| arms.iter().map(|arm| f64::from(arm.weight)).sum::<f64>();
        let (treated, controlled) = (weight(&self.treatment), weight(&self.control));
        let cell = Cell {
            share: treated / (treated + controlled),
            treatment: sample(&self.treatment, metric),
            control: sample(&self.control, metric),
        };
        (cell.treatment.units > 0.0 && cell.control.units > 0.0 && cell.share > 0.0 && cell.share < 1.0).then_some(cell)
    }
}

/// A metric of some arms together. Values that cannot be (not finite, outside the metric's range) are brought into it or left out.
pub fn sample(arms: &[&ArmMeasurements], metric: &Metric) -> Sample {
    let found = arms.iter().flat_map(|arm| &arm.metrics).filter(|found| {
        found.metric == metric.kind
            && (metric.kind != MetricKind::Event || found.event == metric.event)
            && found.mean.is_finite()
            && found.m2.is_finite()
    });
    found.fold(Sample::default(), |sum, found| {
        let mean = metric.range().map_or(found.mean, |(low, high)| found.mean.clamp(low, high));
        sum.with(Sample { units: found.units as f64, mean, m2: found.m2.max(0.0) })
    })
}
