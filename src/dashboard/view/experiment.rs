//! What a split has shown: a table with intervals, and their course over time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::measure::Measure;
use super::plot::{Plot, Series, plot};
use super::shared::{Badge, Moment, Tone, count, moment, tenth};
use crate::api::prompt_flow::Experiment;
use crate::api::rollout::{ComparisonStatus, Direction, ExperimentStatus, ExperimentVerdict, MetricKind};
use crate::experiment::plan::{CANDIDATE, IMPLICIT_ERROR_RATE};
use crate::gateway::store::ExperimentPoint;

/// Width of an interval's drawing, in its own units.
pub const INTERVAL_WIDTH: f64 = 160.0;
/// Widths of a plot: beside each other on the page, the style sheet shows the one that fits.
const WIDE: (f64, f64) = (860.0, 320.0);
const NARROW: (f64, f64) = (350.0, 280.0);
/// Measurements listed below a plot.
const LISTED: usize = 12;
/// Earlier rollouts that are listed.
const EARLIER: usize = 10;
/// Plots besides that of the goal.
const MORE_PLOTS: usize = 12;

/// What a split has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExperimentView {
    pub units: String,
    pub measured: Option<Moment>,
    pub sample_ratio: Option<Badge>,
    pub width: f64,
    pub rows: Vec<ComparisonRow>,
}

/// A metric between a treatment and its control.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparisonRow {
    pub metric: String,
    pub role: &'static str,
    pub better: &'static str,
    pub arm: String,
    pub control: String,
    pub control_units: String,
    pub treatment: String,
    pub treatment_units: String,
    pub difference: String,
    pub interval: Option<String>,
    pub drawing: Option<Drawing>,
    pub verdict: Badge,
    pub message: String,
}

/// Positions on a scale with zero in the middle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drawing {
    pub zero: f64,
    pub at: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The loss that is tolerated.
    pub limit: Option<f64>,
}

/// The course of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Course {
    pub metric: String,
    pub arm: String,
    pub goal: bool,
    pub wide: Plot,
    pub narrow: Plot,
    pub rows: Vec<CourseRow>,
    pub count: usize,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CourseRow {
    pub time: Moment,
    pub share: String,
    pub units: String,
    pub difference: String,
    pub interval: String,
    pub verdict: Badge,
}

/// The view of a status.
pub fn experiment(status: &ExperimentStatus, spec: Option<&Experiment>, now: Timestamp) -> ExperimentView {
    // The bound of `status.srmPValue` below which no verdict is given.
    let sample_ratio = status.srm_p_value.as_ref().and_then(|p| p.value()).map(|p| {
        let bad = p < 0.001;
        let text = format!("{} (p = {p:.4})", if bad { "not as asked for" } else { "as asked for" });
        Badge::new(if bad { Tone::Bad } else { Tone::Good }, text)
    });
    ExperimentView {
        units: count(status.units),
        measured: status.measured.as_ref().map(|time| moment(time.0, now)),
        sample_ratio,
        width: INTERVAL_WIDTH,
        rows: status.metrics.iter().map(|metric| row(metric, spec)).collect(),
    }
}

fn row(metric: &ComparisonStatus, spec: Option<&Experiment>) -> ComparisonRow {
    let measure = Measure::of(&metric.name);
    let value = |number: &Option<crate::api::quantity::Decimal>| number.as_ref().and_then(|number| number.value());
    let mean = |number| value(number).map_or_else(|| "–".into(), |mean| measure.value(mean));
    let (difference, lower, upper) = (value(&metric.difference), value(&metric.lower), value(&metric.upper));
    let rules = Rules::of(&metric.name, &metric.arm, metric.goal, &measure, spec);
    let ends = [difference, lower, upper, rules.limit];
    let most = ends.into_iter().flatten().fold(0.0_f64, |most, end| most.max(end.abs())) * 1.1;
    let half = INTERVAL_WIDTH / 2.0;
    let position = |value: f64| tenth(if most > 0.0 { half + half * value / most } else { half });
    ComparisonRow {
        metric: measure.name.clone(),
        role: if metric.goal { "goal" } else { "guardrail" },
        better: rules.better,
        arm: metric.arm.clone(),
        control: mean(&metric.control),
        control_units: count(metric.control_units),
        treatment: mean(&metric.treatment),
        treatment_units: count(metric.treatment_units),
        difference: difference.map_or_else(|| "–".into(), |difference| measure.difference(difference)),
        interval: lower.zip(upper).map(|(lower, upper)| measure.interval(lower, upper)),
        drawing: difference.map(|difference| Drawing {
            zero: half,
            at: position(difference),
            low: lower.map(position),
            high: upper.map(position),
            limit: rules.limit.map(position),
        }),
        verdict: verdict(metric.verdict),
        message: metric.message.clone(),
    }
}

/// What the spec says of a metric.
struct Rules {
    better: &'static str,
    /// The difference at which the tolerated loss ends.
    limit: Option<f64>,
}

impl Rules {
    fn of(name: &str, arm: &str, goal: bool, measure: &Measure, spec: Option<&Experiment>) -> Self {
        let known = MetricKind::named(name);
        let named = |metric, event: &Option<String>| known == Some((metric, event.as_deref()));
        let goal =
            spec.and_then(|spec| spec.goal.as_ref()).filter(|wanted| goal && named(wanted.metric, &wanted.event));
        let guardrail = spec
            .into_iter()
            .flat_map(|spec| &spec.guardrails)
            .find(|guardrail| named(guardrail.metric, &guardrail.event));
        let direction = measure.better(goal.and_then(|goal| goal.direction));
        let loss = match goal {
            Some(goal) => goal.margin.value(),
            None => match guardrail {
                Some(guardrail) => guardrail.max_regression.value(),
                // A ramp guards the error rate also without being asked to.
                None => {
                    (known == Some((MetricKind::ErrorRate, None)) && arm == CANDIDATE).then_some(IMPLICIT_ERROR_RATE)
                }
            },
        };
        let limit = loss.filter(|loss| *loss > 0.0).and_then(|loss| match direction? {
            Direction::Increase => Some(-loss),
            Direction::Decrease => Some(loss),
        });
        let better = match direction {
            Some(Direction::Increase) => "more is better",
            Some(Direction::Decrease) => "less is better",
            None => "",
        };
        Self { better, limit }
    }
}

/// A verdict in words.
pub fn verdict(verdict: ExperimentVerdict) -> Badge {
    match verdict {
        ExperimentVerdict::Better => Badge::new(Tone::Good, "Better"),
        ExperimentVerdict::NotWorse => Badge::new(Tone::Good, "Not worse"),
        ExperimentVerdict::Worse => Badge::new(Tone::Bad, "Worse"),
        ExperimentVerdict::Inconclusive => Badge::new(Tone::Busy, "Not decided"),
        ExperimentVerdict::Invalid => Badge::new(Tone::Bad, "Invalid"),
    }
}

/// The courses of the latest rollout or experiment, the goal's first.
pub fn courses(points: &[ExperimentPoint], spec: Option<&Experiment>, now: Timestamp) -> Vec<Course> {
    let Some(latest) = points.iter().max_by_key(|point| point.measured_ms) else { return Vec::new() };
    let current: Vec<&ExperimentPoint> = points.iter().filter(|point| point.started_ms == latest.started_ms).collect();
    let mut keys: Vec<(bool, &str, &str)> =
        current.iter().map(|point| (!point.goal, point.metric.as_str(), point.arm.as_str())).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .take(1 + MORE_PLOTS)
        .map(|(guardrail, metric, arm)| {
            let own: Vec<&ExperimentPoint> =
                current.iter().copied().filter(|point| point.metric == metric && point.arm == arm).collect();
            course(&own, metric, arm, !guardrail, spec, now)
        })
        .collect()
}

fn course(
    points: &[&ExperimentPoint],
    metric: &str,
    arm: &str,
    goal: bool,
    spec: Option<&Experiment>,
    now: Timestamp,
) -> Course {
    let measure = Measure::of(metric);
    let rules = Rules::of(metric, arm, goal, &measure, spec);
    let series = Series { points, measure: &measure, arm, limit: rules.limit, better: rules.better };
    Course {
        metric: measure.name.clone(),
        arm: arm.to_owned(),
        goal,
        wide: plot(&series, WIDE.0, WIDE.1),
        narrow: plot(&series, NARROW.0, NARROW.1),
        rows: points.iter().rev().take(LISTED).map(|point| listed(point, &measure, now)).collect(),
        count: points.len(),
    }
}

/// How an earlier rollout ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Earlier {
    pub started: Option<Moment>,
    pub last: Moment,
    pub metric: String,
    pub arm: String,
    pub share: String,
    pub units: String,
    pub difference: String,
    pub interval: String,
    pub verdict: Badge,
}

/// The last figures of rollouts before the latest, the newest first: of the goal, or of what there is.
pub fn earlier(points: &[ExperimentPoint], now: Timestamp) -> Vec<Earlier> {
    let Some(latest) = points.iter().max_by_key(|point| point.measured_ms) else { return Vec::new() };
    let mut last: BTreeMap<(Option<i64>, &str), &ExperimentPoint> = BTreeMap::new();
    for point in points.iter().filter(|point| point.started_ms != latest.started_ms) {
        let shown = last.entry((point.started_ms, point.arm.as_str())).or_insert(point);
        if (point.goal, point.measured_ms) >= (shown.goal, shown.measured_ms) {
            *shown = point;
        }
    }
    let mut last: Vec<&ExperimentPoint> = last.into_values().collect();
    last.sort_by_key(|point| std::cmp::Reverse(point.measured_ms));
    let at = |time: i64| Timestamp::from_millisecond(time).ok().map(|time| moment(time, now));
    let row = |point: &ExperimentPoint| {
        let measure = Measure::of(&point.metric);
        let measured = listed(point, &measure, now);
        Earlier {
            started: point.started_ms.and_then(at),
            last: measured.time,
            metric: measure.name,
            arm: point.arm.clone(),
            share: measured.share,
            units: measured.units,
            difference: measured.difference,
            interval: measured.interval,
            verdict: measured.verdict,
        }
    };
    last.into_iter().take(EARLIER).map(row).collect()
}

fn listed(point: &ExperimentPoint, measure: &Measure, now: Timestamp) -> CourseRow {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    CourseRow {
        time: moment(Timestamp::from_millisecond(point.measured_ms).unwrap_or(now), now),
        share: or_none(point.weight.map(|weight| format!("{weight} %"))),
        units: count(point.units),
        difference: or_none(point.difference.map(|difference| measure.difference(difference))),
        interval: or_none(point.lower.zip(point.upper).map(|(lower, upper)| measure.interval(lower, upper))),
        verdict: verdict_named(&point.verdict),
    }
}

fn verdict_named(name: &str) -> Badge {
    use ExperimentVerdict::{Better, Inconclusive, Invalid, NotWorse, Worse};
    let known = [Better, NotWorse, Worse, Inconclusive, Invalid];
    let known = known.into_iter().find(|verdict| format!("{verdict:?}") == name);
    known.map_or_else(|| Badge::new(Tone::Off, name), verdict)
}
