//! The plot of a confidence interval over time: geometry only, in the units of the drawing.

use jiff::Timestamp;
use serde::Serialize;

use super::measure::Measure;
use super::shared::{count, tenth};
use crate::gateway::store::ExperimentPoint;

/// What is plotted.
pub struct Series<'a> {
    /// In the order of time.
    pub points: &'a [&'a ExperimentPoint],
    pub measure: &'a Measure,
    pub arm: &'a str,
    /// The difference at which the tolerated loss ends.
    pub limit: Option<f64>,
    /// Which way is better, in words.
    pub better: &'static str,
}

/// Space around the drawing for axes: left, right, top, bottom.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 44.0;
/// Space that the axis' title and the gap beside its labels take, and that one character of a label takes.
const TITLE: f64 = 30.0;
const DIGIT: f64 = 7.7;
/// Measurements nearer than this are drawn as one: the widest interval of them, and the last difference.
const NEAR: f64 = 3.0;
/// Most measurements that are drawn one by one.
const MARKS: usize = 24;
/// Least distance between labels of steps.
const LABEL: f64 = 34.0;

/// A plot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plot {
    pub width: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    pub y_ticks: Vec<Tick>,
    pub x_ticks: Vec<Tick>,
    pub y_title: String,
    pub x_title: &'static str,
    /// Corners of the intervals' band.
    pub band: String,
    /// The differences.
    pub line: String,
    pub marks: Vec<Mark>,
    pub steps: Vec<StepMark>,
    pub zero: f64,
    pub limit: Option<f64>,
    /// Whether early intervals go beyond the drawing.
    pub clipped: bool,
    /// What the plot shows, in words.
    pub summary: String,
}

/// A label on an axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tick {
    pub at: f64,
    pub label: String,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    pub x: f64,
    pub y: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// Where a step of the rollout begins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepMark {
    pub x: f64,
    /// Absent where it would lie on another.
    pub label: Option<String>,
}

/// Measurements that are drawn as one.
struct Group {
    x: f64,
    difference: f64,
    ends: Option<(f64, f64)>,
}

/// Draws a series on so much space.
pub fn plot(series: &Series<'_>, width: f64, height: f64) -> Plot {
    let drawn = draw(series, width, height, LEFT);
    // How long the labels are is known once it is drawn; small numbers have long ones.
    let longest = drawn.y_ticks.iter().map(|tick| tick.label.chars().count()).max().unwrap_or(0);
    let left = TITLE + DIGIT * f64::from(u32::try_from(longest).unwrap_or(u32::MAX));
    if left > LEFT && left < width / 2.0 { draw(series, width, height, left) } else { drawn }
}

fn draw(series: &Series<'_>, width: f64, height: f64, left: f64) -> Plot {
    let (right, bottom) = (width - RIGHT, height - BOTTOM);
    let times = series.points.iter().map(|point| point.measured_ms);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    // One measurement alone stands in the middle of a minute.
    let (from, to) = if last > first { (first, last) } else { (first - 30_000, last + 30_000) };
    #[allow(clippy::cast_precision_loss)]
    let x = |time: i64| left + (right - left) * ((time - from) as f64 / (to - from).max(1) as f64);
    let groups = group(series.points, x);
    let (low, high) = range(&groups, series);
    let y = |value: f64| bottom - (bottom - TOP) * (value - low) / (high - low);
    let at = |x: f64, value: f64| format!("{},{}", tenth(x), tenth(y(value)));
    let with_ends = || groups.iter().filter_map(|group| Some((group.x, group.ends?)));
    let upper = with_ends().map(|(x, (_, upper))| at(x, upper));
    let lower = with_ends().rev().map(|(x, (lower, _))| at(x, lower));
    let clipped = with_ends().any(|(_, (lower, upper))| lower < low || upper > high);
    let marks = (groups.len() <= MARKS).then(|| groups.iter().map(|group| mark(group, y)).collect());
    let factor = series.measure.factor;
    let y_ticks = ticks(low * factor, high * factor, if height > 300.0 { 6 } else { 5 });
    let digits = y_ticks.digits;
    let y_ticks = y_ticks.at.into_iter().map(|value| {
        let label = super::measure::decimal(value, digits);
        let plus = if value > 0.0 && label.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) { "+" } else { "" };
        Tick { at: tenth(y(value / factor)), label: format!("{plus}{label}") }
    });
    Plot {
        width,
        height,
        left,
        right,
        top: TOP,
        bottom,
        y_ticks: y_ticks.collect(),
        x_ticks: time_ticks(from, to, if width > 600.0 { 8 } else { 4 })
            .into_iter()
            .map(|(time, label)| Tick { at: tenth(x(time)), label })
            .collect(),
        y_title: series.measure.axis.to_owned(),
        x_title: "time of the measurement, UTC",
        band: upper.chain(lower).collect::<Vec<_>>().join(" "),
        line: groups.iter().map(|group| at(group.x, group.difference)).collect::<Vec<_>>().join(" "),
        marks: marks.unwrap_or_default(),
        steps: steps(series.points, x),
        zero: tenth(y(0.0)),
        limit: series.limit.filter(|limit| (low..=high).contains(limit)).map(|limit| tenth(y(limit))),
        clipped,
        summary: summary(series),
    }
}

fn mark(group: &Group, y: impl Fn(f64) -> f64) -> Mark {
    Mark {
        x: tenth(group.x),
        y: tenth(y(group.difference)),
        low: group.ends.map(|(lower, _)| tenth(y(lower))),
        high: group.ends.map(|(_, upper)| tenth(y(upper))),
    }
}

/// Joins what would lie on each other.
fn group(points: &[&ExperimentPoint], x: impl Fn(i64) -> f64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut began = f64::NEG_INFINITY;
    for point in points {
        let Some(difference) = point.difference else { continue };
        let at = x(point.measured_ms);
        let ends = point.lower.zip(point.upper);
        match groups.last_mut().filter(|_| at - began < NEAR) {
            Some(group) => {
                group.x = at;
                group.difference = difference;
                group.ends = match (group.ends, ends) {
                    (Some((low, high)), Some((lower, upper))) => Some((low.min(lower), high.max(upper))),
                    (known, new) => known.or(new),
                };
            }
            None => {
                began = at;
                groups.push(Group { x: at, difference, ends });
            }
        }
    }
    groups
}

/// The differences that are shown: zero, the differences, and the intervals of the later half. The first intervals of an
/// experiment are so wide that all others would be a line.
fn range(groups: &[Group], series: &Series<'_>) -> (f64, f64) {
    let later = groups.len() / 2;
    let ends = groups.iter().skip(later).filter_map(|group| group.ends).flat_map(|(lower, upper)| [lower, upper]);
    let shown = ends.chain(groups.iter().map(|group| group.difference)).chain(std::iter::once(0.0));
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in shown {
        low = low.min(value);
        high = high.max(value);
    }
    let span = high - low;
    // The limit is drawn when it is near what was measured.
    if let Some(limit) = series.limit.filter(|limit| limit.abs() <= 2.0 * span) {
        low = low.min(limit);
        high = high.max(limit);
    }
    let pad = if high > low { (high - low) * 0.08 } else { 0.01 };
    (low - pad, high + pad)
}

/// Where steps begin, the first one with its label only.
fn steps(points: &[&ExperimentPoint], x: impl Fn(i64) -> f64) -> Vec<StepMark> {
    let mut marks: Vec<StepMark> = Vec::new();
    let mut before = None;
    let mut labelled = f64::NEG_INFINITY;
    for point in points {
        let now = point.step.zip(point.weight);
        if now == before {
            continue;
        }
        before = now;
        let Some((_, weight)) = now else { continue };
        let at = x(point.measured_ms);
        let fits = at - labelled >= LABEL;
        if fits {
            labelled = at;
        }
        marks.push(StepMark { x: tenth(at), label: fits.then(|| format!("{weight} %")) });
    }
    marks
}

/// Round numbers within a range, and the decimals that they need.
struct Round {
    at: Vec<f64>,
    digits: usize,
}

fn ticks(low: f64, high: f64, most: usize) -> Round {
    #[allow(clippy::cast_precision_loss)]
    let rough = (high - low) / most as f64;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * magnitude).find(|step| *step >= rough);
    let step = step.unwrap_or(magnitude);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    let mut at = Vec::new();
    let mut place = (low / step).ceil();
    while place * step <= high && at.len() < 2 * most {
        at.push(place * step);
        place += 1.0;
    }
    Round { at, digits }
}

/// Round moments within a range, with their labels.
fn time_ticks(from: i64, to: i64, most: i64) -> Vec<(i64, String)> {
    const SECOND: i64 = 1_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const STEPS: [i64; 22] = [
        SECOND,
        2 * SECOND,
        5 * SECOND,
        10 * SECOND,
        15 * SECOND,
        30 * SECOND,
        MINUTE,
        2 * MINUTE,
        5 * MINUTE,
        10 * MINUTE,
        15 * MINUTE,
        30 * MINUTE,
        HOUR,
        2 * HOUR,
        3 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        7 * DAY,
        14 * DAY,
        28 * DAY,
    ];
    let step = STEPS.into_iter().find(|step| (to - from) / step <= most).unwrap_or(((to - from) / most).max(1));
    let format = if step < MINUTE {
        "%H:%M:%S"
    } else if step < DAY {
        "%H:%M"
    } else {
        "%-d %b"
    };
    let mut found = Vec::new();
    let mut at = from.div_euclid(step) * step;
    while at <= to {
        if at >= from
            && let Ok(time) = Timestamp::from_millisecond(at)
        {
            found.push((at, time.strftime(format).to_string()));
        }
        at += step;
    }
    found
}

fn summary(series: &Series<'_>) -> String {
    let measure = series.measure;
    let head = format!("{}, {} minus control", measure.name, series.arm);
    let Some(point) = series.points.last() else { return head };
    let difference = point.difference.map_or_else(|| "no value yet".into(), |value| measure.difference(value));
    let interval = point.lower.zip(point.upper).map_or_else(
        || "no interval yet".to_owned(),
        |(lower, upper)| format!("interval {}", measure.interval(lower, upper)),
    );
    let better = if series.better.is_empty() { String::new() } else { format!("; {}", series.better) };
    format!("{head}: {difference}, {interval} after {} units{better}", count(point.units))
}
