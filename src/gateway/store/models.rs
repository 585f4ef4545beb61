//! What units met of a model whose requests are split between revisions: counts a unit, not a row a call.

use std::collections::BTreeMap;

use rusqlite::{Connection, Transaction, params};

use super::measure::Moments;
use crate::api::rollout::MetricKind;
use crate::experiment::measurements::{ArmMeasurements, Measurements};

/// Units that did not come back for so long are forgotten: longer than any ramp.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

/// A call of a model, or what became known of it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCall {
    /// Namespace of the ModelDeployment.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the routing table, see [`stratum`](crate::experiment::measurements::stratum).
    pub stratum: String,
    /// Revision that was called.
    pub revision: String,
    /// Percent of the units that it has in the table.
    pub weight: i32,
    /// Hash of the unit; the unit itself may name a person.
    pub unit: String,
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// 1 for a call that ended, 0 for news of one that was counted.
    pub calls: u32,
    /// 1 if it failed: an error of the engine, no answer in time, or an answer that broke off.
    pub failed: u32,
}

pub(super) fn keep(transaction: &Transaction<'_>, call: &ModelCall) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO model_units (namespace, name, stratum, revision, weight, unit, calls, failed, last_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, failed = failed + excluded.failed,
                last_ms = max(last_ms, excluded.last_ms)",
        )?
        .execute(params![
            call.namespace,
            call.name,
            call.stratum,
            call.revision,
            call.weight,
            call.unit,
            call.calls,
            call.failed,
            call.time_ms,
        ])
        .map(drop)
}

/// Revisions of a model by routing table, with the units that came at `since_ms` or later. A routing table names its revisions and weights,
/// so it is hardly ever used by two rollouts; a unit that met it in both counts with all its calls.
pub(super) fn measurements(
    connection: &Connection,
    namespace: &str,
    name: &str,
    since_ms: i64,
) -> rusqlite::Result<Measurements> {
    let mut statement = connection.prepare_cached(
        "SELECT stratum, revision, weight, calls, failed FROM model_units
         WHERE namespace = ?1 AND name = ?2 AND last_ms >= ?3",
    )?;
    let mut rows = statement.query(params![namespace, name, since_ms])?;
    let mut arms: BTreeMap<(String, String), (i32, u64, Moments)> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (calls, failed): (u32, u32) = (row.get(3)?, row.get(4)?);
        let arm = arms.entry((row.get(0)?, row.get(1)?)).or_insert((row.get(2)?, 0, Moments::default()));
        arm.1 += u64::from(calls);
        arm.2.add(f64::from(failed.min(calls)), calls);
    }
    let told = arms.into_iter().map(|((stratum, revision), (weight, requests, errors))| ArmMeasurements {
        stratum,
        variant: name.to_owned(),
        revision,
        weight,
        shadow: false,
        units: errors.units,
        requests,
        metrics: vec![errors.metric(MetricKind::ErrorRate, None)],
    });
    Ok(Measurements { arms: told.collect() })
}

pub(super) fn expire(connection: &Connection, now_ms: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM model_units WHERE last_ms < ?1", [now_ms.saturating_sub(KEPT_MS)]).map(drop)
}
