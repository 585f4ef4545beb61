//! From measurements to verdicts: what the controller of flows reads at every look.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::betting;
use super::cells::{self, Cell, Pair, Sample};
use super::measurements::{ArmMeasurements, Measurements};
use super::plan::{Compared, Plan};
use super::ratio::{self, SampleRatio};
use super::sequence;
use super::words;
use crate::api::rollout::{ArmRevision, ComparisonStatus, Direction, ExperimentStatus, ExperimentVerdict, MetricKind};

/// Units of each arm before a bound that rests on the normal approximation may show harm.
pub const LEAST_APPROXIMATE: u64 = 50;

/// Error probability of "the loss is above what is tolerated" once it is beyond doubt that there is a loss, for guardrails that are shares.
///
/// A guardrail's harm in a share (error rate, thumbs, event) is called when both are refuted: "no loss at all" with the plan's alpha, and "a loss
/// within what is tolerated" with this. So with no real loss a treatment is rolled back wrongly with probability at most alpha; with a loss
/// exactly at the limit with probability at most 0.1 (0.03 to 0.04 in `make bench-experiments`, since Ville's inequality has slack). Asking for alpha in
/// both would let a candidate that fails one request in five meet more users.
pub const LIKELY: f64 = 0.1;

/// Harm beyond doubt: the treatment must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    /// Name of the metric.
    pub metric: String,
    /// Whether it is the goal; otherwise a guardrail.
    pub goal: bool,
    /// What happened, in a sentence.
    pub message: String,
}

/// What the measurements say about a treatment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The metrics, the goal first.
    pub comparisons: Vec<ComparisonStatus>,
    /// Verdict on the goal; `None` when the plan has none.
    pub goal: Option<ExperimentVerdict>,
    /// Harm that was found: roll back at once.
    pub harm: Option<Harm>,
    /// Units of all arms in the routing tables in which the treatment has a share.
    pub units: u64,
    /// Units that met the treatment.
    pub treatment_units: u64,
    /// Units that met the control in the same tables.
    pub control_units: u64,
    /// Whether the units arrived in the shares that were asked for.
    pub ratio: SampleRatio,
}

/// Compares `treatment` with `control`, at any moment and as often as you like.
///
/// `arm` names the treatment in the status: a variant, or `candidate`. Variants that are in both sets are compared with themselves, stratum by stratum;
/// an arm (variant and revision) that is in both sets is no treatment; the weights in the sets are not used.
pub fn read(
    plan: &Plan,
    measured: &Measurements,
    arm: &str,
    control: &[ArmRevision],
    treatment: &[ArmRevision],
) -> Reading {
    let pairs = cells::pairs(measured, control, treatment);
    let strata: BTreeSet<&str> =
        pairs.iter().flat_map(|pair| &pair.treatment).map(|arm| arm.stratum.as_str()).collect();
    let ratio = ratio::check(measured, |stratum| strata.contains(stratum));
    let other = control_name(control, treatment);
    let look = Look { plan, pairs: &pairs, ratio: &ratio, arm, other: &other };
    let goal = plan.goal.as_ref().map(|goal| look.compare(goal, true));
    let guardrails: Vec<_> = plan.guardrails.iter().map(|guardrail| look.compare(guardrail, false)).collect();
    let harm = guardrails.iter().chain(&goal).find_map(|(_, harm)| harm.clone());
    let units =
        |arms: &mut dyn Iterator<Item = &ArmMeasurements>| arms.fold(0_u64, |sum, arm| sum.saturating_add(arm.units));
    let seen = measured.arms.iter().filter(|arm| !arm.shadow && strata.contains(arm.stratum.as_str()));
    Reading {
        goal: goal.as_ref().map(|(comparison, _)| comparison.verdict),
        harm,
        units: units(&mut seen.into_iter()),
        treatment_units: units(&mut pairs.iter().flat_map(|pair| pair.treatment.iter().copied())),
        control_units: units(&mut pairs.iter().flat_map(|pair| pair.control.iter().copied())),
        comparisons: goal.into_iter().chain(guardrails).map(|(comparison, _)| comparison).collect(),
        ratio,
    }
}

/// The status of one or more readings of the same measurements (one for each treatment).
pub fn status(readings: &[Reading], step: Option<i32>, measured: Option<Time>) -> ExperimentStatus {
    let p_value = readings.iter().filter_map(|reading| reading.ratio.p_value).reduce(f64::min);
    ExperimentStatus {
        units: readings.iter().map(|reading| whole(reading.units)).max().unwrap_or(0),
        srm_p_value: p_value.and_then(words::decimal),
        step,
        metrics: readings.iter().flat_map(|reading| reading.comparisons.clone()).collect(),
        measured,
    }
}

struct Look<'a> {
    plan: &'a Plan,
    pairs: &'a [Pair<'a>],
    ratio: &'a SampleRatio,
    arm: &'a str,
    other: &'a str,
}

impl Look<'_> {
    fn compare(&self, compared: &Compared, goal: bool) -> (ComparisonStatus, Option<Harm>) {
        let metric = &compared.metric;
        let found: Vec<Cell> = self.pairs.iter().filter_map(|pair| pair.cell(metric)).collect();
        let all = |side: fn(&Cell) -> Sample| found.iter().map(side).fold(Sample::default(), Sample::with);
        let (treated, controlled) = (all(|cell| cell.treatment), all(|cell| cell.control));
        let units = (treated.units as u64, controlled.units as u64);
        let mut status = ComparisonStatus {
            name: metric.name(),
            goal,
            arm: self.arm.to_owned(),
            control: None,
            treatment: None,
            difference: None,
            lower: None,
            upper: None,
            control_units: whole(units.1),
            treatment_units: whole(units.0),
            verdict: if self.ratio.broken { ExperimentVerdict::Invalid } else { ExperimentVerdict::Inconclusive },
            message: String::new(),
        };
        let Some(estimate) = sequence::estimate(&found, metric.range()) else {
            status.message = words::nothing_yet(self.arm, self.other, compared, units);
            return (status, None);
        };
        let enough = units.0.min(units.1) >= self.plan.min_units;
        // Of a guardrail only one of the two claims "worse" and "not worse" can be wrong, so each side has the whole of its alpha.
        let tightest = sequence::TIGHTEST * self.plan.min_units as f64 / 2.0;
        let radius = if goal {
            estimate.two_sided(self.plan.alpha, tightest)
        } else {
            estimate.one_sided(self.plan.alpha, tightest)
        };
        let sign = if metric.better == Direction::Increase { 1.0 } else { -1.0 };
        // Gain, its least and its greatest value; above 0 is better.
        let gain = sign * estimate.difference;
        let (mut least, mut most) = (gain - radius, gain + radius);
        if let Some((low, high)) = metric.range() {
            (least, most) = (least.max(low - high), most.min(high - low));
        }
        let worse = if goal {
            enough && most < -compared.tolerated
        } else if metric.kind.is_share() {
            // Large is bad from here on, and both ends are exact.
            let flipped: Vec<Cell> = if sign > 0.0 { found.iter().map(flip).collect() } else { found };
            let swapped: Vec<Cell> = flipped.iter().map(swap).collect();
            least = betting::Harm::new(&swapped, self.plan.alpha).bound().min(gain);
            let sure = betting::Harm::new(&flipped, self.plan.alpha);
            most = (-sure.bound()).max(gain);
            sure.exceeds(0.0) && betting::Harm::new(&flipped, LIKELY.max(self.plan.alpha)).exceeds(compared.tolerated)
        } else {
            units.0.min(units.1) >= LEAST_APPROXIMATE && most < -compared.tolerated
        };
        let verdict = if worse {
            ExperimentVerdict::Worse
        } else if enough && least > 0.0 {
            ExperimentVerdict::Better
        } else if enough && least > -compared.tolerated {
            ExperimentVerdict::NotWorse
        } else {
            ExperimentVerdict::Inconclusive
        };
        let (lower, upper) = if sign > 0.0 { (least, most) } else { (-most, -least) };
        status.control = words::decimal(controlled.mean);
        status.treatment = words::decimal(treated.mean);
        status.difference = words::decimal(estimate.difference);
        status.lower = words::decimal(lower);
        status.upper = words::decimal(upper);
        let say = |verdict| {
            words::sentence(&words::Finding {
                arm: self.arm,
                control: self.other,
                compared,
                goal,
                interval: (estimate.difference, lower, upper),
                units,
                min_units: self.plan.min_units,
                verdict,
            })
        };
        if self.ratio.broken {
            status.message = self.ratio.message.clone();
        } else {
            status.verdict = verdict;
            status.message = say(verdict);
        }
        // A split that is broken says nothing about gains, but failures above all doubt are reason enough to go back.
        let counts = !self.ratio.broken || (!goal && metric.kind == MetricKind::ErrorRate);
        let harm = (worse && counts).then(|| Harm { metric: metric.name(), goal, message: say(verdict) });
        (status, harm)
    }
}

fn flip(cell: &Cell) -> Cell {
    Cell { share: cell.share, treatment: cell.treatment.mapped(-1.0, 1.0), control: cell.control.mapped(-1.0, 1.0) }
}

fn swap(cell: &Cell) -> Cell {
    Cell { share: 1.0 - cell.share, treatment: cell.control, control: cell.treatment }
}

/// What the control is called: its variant, or what serves.
fn control_name(control: &[ArmRevision], treatment: &[ArmRevision]) -> String {
    match control {
        [only] if treatment.iter().all(|arm| arm.variant != only.variant) => only.variant.clone(),
        _ => "what serves now".into(),
    }
}

fn whole(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}
