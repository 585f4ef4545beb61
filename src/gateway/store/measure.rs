//! Measurements: sums per arm and stratum, clustered by unit.
//!
//! Everything is read from two covering indexes in the order of time, an arm at a time, so an answer costs what was
//! recorded since the asked moment, whatever else the file holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::{Connection, params};

use super::kept::Kept;
use crate::api::rollout::MetricKind;
use crate::experiment::measurements::{ArmMeasurements, Measurements, MetricMeasurement};

/// Names of events that are told, besides those that were asked for: clients choose the names.
const MAX_EVENTS: usize = 100;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeasureQuery {
    /// Namespace of the flow.
    pub namespace: String,
    /// Name of the flow.
    pub flow: String,
    /// Interactions that began at this time or later, in milliseconds since 1970.
    pub since_ms: i64,
    /// Events that are told of even if nobody had them.
    pub events: BTreeSet<String>,
}

/// A connection for measurements alone, and the answers that took long.
#[derive(Debug)]
pub(super) struct Measurer {
    connection: Connection,
    kept: Kept<MeasureQuery, Measurements>,
}

impl Measurer {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, kept: Kept::default() }
    }

    pub(super) fn answer(&mut self, query: &MeasureQuery) -> rusqlite::Result<Measurements> {
        let find = || measurements(&self.connection, query);
        self.kept.answer(query, find, |found| found.arms.iter().map(|arm| arm.requests).sum())
    }
}

/// Number, mean and sum of squared differences from the mean (B. P. Welford, Technometrics 4, 1962).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) units: u64,
    mean: f64,
    m2: f64,
}

impl Moments {
    /// Adds a unit's mean of `count` values with this sum; a unit without values is not added.
    pub(super) fn add(&mut self, sum: f64, count: u32) {
        if count == 0 {
            return;
        }
        let value = sum / f64::from(count);
        self.units += 1;
        let difference = value - self.mean;
        self.mean += difference / float(self.units);
        self.m2 += difference * (value - self.mean);
    }

    /// Units of which so many have a property.
    fn share(having: u64, units: u64) -> Self {
        let mean = if units == 0 { 0.0 } else { float(having) / float(units) };
        Self { units, mean, m2: float(having) * (1.0 - mean) }
    }

    pub(super) fn metric(self, metric: MetricKind, event: Option<&str>) -> MetricMeasurement {
        MetricMeasurement { metric, event: event.map(str::to_owned), units: self.units, mean: self.mean, m2: self.m2 }
    }
}

/// Counts stay far below 2^53, where a float is exact.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

/// Sums of a unit.
#[derive(Clone, Copy, Debug, Default)]
struct Unit {
    /// Requests that ended with an answer or an error.
    ended: u32,
    /// Those of them that failed or were answered by a fallback model.
    failed: u32,
    answered: u32,
    latency_ms: f64,
    priced: u32,
    cost: f64,
}

/// An arm while it is measured.
struct Arm {
    id: i64,
    told: ArmMeasurements,
    /// Units by event.
    events: BTreeMap<String, u64>,
}

/// Measures a flow.
pub(super) fn measurements(connection: &Connection, query: &MeasureQuery) -> rusqlite::Result<Measurements> {
    // One view of the file: feedback must not be newer than the units that it is counted against.
    let view = connection.unchecked_transaction()?;
    let mut arms = arms(&view, query)?;
    let mut currency: Option<String> = None;
    let mut mixed = false;
    for arm in &mut arms {
        interactions(&view, query, arm, &mut currency, &mut mixed)?;
        opinions(&view, query, arm)?;
        events(&view, query, arm)?;
    }
    view.finish()?;
    arms.retain(|arm| arm.told.requests > 0);
    if mixed {
        // Amounts of different currencies cannot be compared.
        for arm in &mut arms {
            arm.told.metrics.retain(|metric| metric.metric != MetricKind::Cost);
        }
    }
    let names = event_names(&arms, &query.events);
    let told = arms.into_iter().map(|mut arm| {
        for name in &names {
            let having = arm.events.get(name).copied().unwrap_or(0);
            arm.told.metrics.push(Moments::share(having, arm.told.units).metric(MetricKind::Event, Some(name)));
        }
        arm.told
    });
    Ok(Measurements { arms: told.collect() })
}

fn arms(connection: &Connection, query: &MeasureQuery) -> rusqlite::Result<Vec<Arm>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, stratum, variant, revision, weight, shadow FROM arms WHERE namespace = ?1 AND name = ?2 ORDER BY id",
    )?;
    let rows = statement.query_map([&query.namespace, &query.flow], |row| {
        Ok(Arm {
            id: row.get(0)?,
            told: ArmMeasurements {
                stratum: row.get(1)?,
                variant: row.get(2)?,
                revision: row.get(3)?,
                weight: row.get(4)?,
                shadow: row.get(5)?,
                units: 0,
                requests: 0,
                metrics: Vec::new(),
            },
            events: BTreeMap::new(),
        })
    })?;
    rows.collect()
}

const INTERACTIONS: &str = "SELECT unit, status, fallbacks, latency_ms, cost, currency FROM interactions
    WHERE arm = ?1 AND time_ms >= ?2";

/// Units, requests, and the metrics that every request has.
fn interactions(
    connection: &Connection,
    query: &MeasureQuery,
    arm: &mut Arm,
    currency: &mut Option<String>,
    mixed: &mut bool,
) -> rusqlite::Result<()> {
    let mut units: HashMap<u64, Unit> = HashMap::new();
    let mut statement = connection.prepare_cached(INTERACTIONS)?;
    let mut rows = statement.query(params![arm.id, query.since_ms])?;
    while let Some(row) = rows.next()? {
        arm.told.requests += 1;
        let unit = units.entry(key(row.get_ref(0)?.as_str()?)).or_default();
        let status = row.get_ref(1)?.as_str()?;
        if status == "cancelled" {
            continue;
        }
        unit.ended += 1;
        unit.failed += u32::from(status == "error" || row.get::<_, i64>(2)? > 0);
        if status == "ok" {
            unit.answered += 1;
            unit.latency_ms += row.get::<_, f64>(3)?;
        }
        if let Some(cost) = row.get::<_, Option<f64>>(4)? {
            unit.priced += 1;
            unit.cost += cost;
            let in_this = row.get_ref(5)?.as_str_or_null()?.unwrap_or_default();
            match currency {
                Some(known) => *mixed |= known != in_this,
                None => *currency = Some(in_this.to_owned()),
            }
        }
    }
    arm.told.units = u64::try_from(units.len()).unwrap_or(u64::MAX);
    let (mut errors, mut latency, mut cost) = (Moments::default(), Moments::default(), Moments::default());
    for unit in units.values() {
        errors.add(f64::from(unit.failed), unit.ended);
        latency.add(unit.latency_ms / 1e3, unit.answered);
        cost.add(unit.cost, unit.priced);
    }
    let found = [(MetricKind::ErrorRate, errors), (MetricKind::Latency, latency), (MetricKind::Cost, cost)];
    tell(arm, &found);
    Ok(())
}

const OPINIONS: &str = "SELECT unit, avg(score), avg(thumbs), avg(judge_score) FROM feedback
    WHERE arm = ?1 AND asked_ms >= ?2 AND (score IS NOT NULL OR judge_score IS NOT NULL)
    GROUP BY unit, request ORDER BY unit";

/// What people and judges think: the mean over the unit's requests, and of a request over its feedback.
fn opinions(connection: &Connection, query: &MeasureQuery, arm: &mut Arm) -> rusqlite::Result<()> {
    let mut all = [Moments::default(); 3];
    let mut sums = [(0.0, 0_u32); 3];
    let mut current = String::new();
    let mut statement = connection.prepare_cached(OPINIONS)?;
    let mut rows = statement.query(params![arm.id, query.since_ms])?;
    let mut end = |sums: &mut [(f64, u32); 3]| {
        for (moments, (sum, count)) in all.iter_mut().zip(std::mem::take(sums)) {
            moments.add(sum, count);
        }
    };
    // Groups come in the order of their units.
    while let Some(row) = rows.next()? {
        let unit = row.get_ref(0)?.as_str_or_null()?.unwrap_or_default();
        if unit != current {
            end(&mut sums);
            unit.clone_into(&mut current);
        }
        for (place, (sum, count)) in sums.iter_mut().enumerate() {
            if let Some(value) = row.get::<_, Option<f64>>(place + 1)? {
                *sum += value;
                *count += 1;
            }
        }
    }
    end(&mut sums);
    let [score, thumbs, judge] = all;
    tell(arm, &[(MetricKind::FeedbackScore, score), (MetricKind::Thumbs, thumbs), (MetricKind::JudgeScore, judge)]);
    Ok(())
}

const EVENTS: &str = "SELECT event, count(DISTINCT unit) FROM feedback
    WHERE arm = ?1 AND asked_ms >= ?2 AND event <> '' GROUP BY event";

fn events(connection: &Connection, query: &MeasureQuery, arm: &mut Arm) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(EVENTS)?;
    let rows = statement.query_map(params![arm.id, query.since_ms], |row| {
        Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0)))
    })?;
    arm.events = rows.collect::<rusqlite::Result<_>>()?;
    Ok(())
}

fn tell(arm: &mut Arm, found: &[(MetricKind, Moments)]) {
    let seen = found.iter().filter(|(_, moments)| moments.units > 0);
    arm.told.metrics.extend(seen.map(|(metric, moments)| moments.metric(*metric, None)));
}

/// The events that every arm tells of: those asked for, then the most frequent ones.
fn event_names(arms: &[Arm], asked: &BTreeSet<String>) -> BTreeSet<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, units) in arms.iter().flat_map(|arm| &arm.events) {
        *counts.entry(name).or_default() += units;
    }
    let mut seen: Vec<(&str, u64)> = counts.into_iter().collect();
    // Stable: names with the same number stay in their order.
    seen.sort_by_key(|(_, units)| std::cmp::Reverse(*units));
    let mut names = asked.clone();
    names.extend(seen.into_iter().take(MAX_EVENTS).map(|(name, _)| name.to_owned()));
    names
}

/// Units are kept as 16 hex characters of a hash; any other text is hashed.
fn key(unit: &str) -> u64 {
    let number = (unit.len() == 16).then(|| u64::from_str_radix(unit, 16).ok()).flatten();
    number.unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        unit.hash(&mut hasher);
        hasher.finish()
    })
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
