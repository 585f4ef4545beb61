//! What experiments showed over time: one row for each metric and arm whenever the controller measured anew.

use rusqlite::{Connection, Transaction, params};

/// Most rows of a flow. A status is written when the units have grown by a tenth, so a step of a million units makes
/// about 150 rows for each metric and arm.
const KEPT: u32 = 4_000;
/// How long the rows of a flow that is gone are kept after its last one, in milliseconds.
const GONE_AFTER: i64 = 180 * 24 * 3600 * 1000;

/// What a metric of an experiment showed at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ExperimentPoint {
    /// Namespace of the flow.
    pub namespace: String,
    /// Name of the flow.
    pub flow: String,
    /// UID of the flow: another flow of the same name has a history of its own.
    pub uid: String,
    /// When it was measured, in milliseconds since 1970.
    pub measured_ms: i64,
    /// Variant, or `candidate`, that is compared with the control.
    pub arm: String,
    /// The metric, such as `ErrorRate` or `Event/bought`.
    pub metric: String,
    /// Whether it is the goal.
    pub goal: bool,
    /// When the rollout of that moment began, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// Place of the rollout's step, from 0.
    pub step: Option<i32>,
    /// Percent of the units that got the candidate.
    pub weight: Option<i32>,
    /// Units that were seen.
    pub units: i64,
    /// Treatment minus control, in the metric's unit.
    pub difference: Option<f64>,
    /// Lower end of its confidence sequence.
    pub lower: Option<f64>,
    /// Upper end of its confidence sequence.
    pub upper: Option<f64>,
    /// The verdict's name.
    pub verdict: String,
}

/// Keeps points of one flow.
pub(super) fn keep(transaction: &Transaction<'_>, points: &[ExperimentPoint]) -> rusqlite::Result<()> {
    for point in points {
        transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO experiment_points (namespace, flow, uid, measured_ms, arm, metric, goal,
                    started_ms, step, weight, units, difference, lower, upper, verdict)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                point.namespace,
                point.flow,
                point.uid,
                point.measured_ms,
                point.arm,
                point.metric,
                point.goal,
                point.started_ms,
                point.step,
                point.weight,
                point.units,
                point.difference,
                point.lower,
                point.upper,
                point.verdict,
            ])?;
    }
    if let Some(point) = points.first() {
        // Whole moments go, so that no metric loses a point that its neighbours keep.
        transaction
            .prepare_cached(
                "DELETE FROM experiment_points WHERE namespace = ?1 AND flow = ?2 AND measured_ms <= (
                    SELECT measured_ms FROM experiment_points WHERE namespace = ?1 AND flow = ?2
                    ORDER BY measured_ms DESC LIMIT 1 OFFSET ?3)",
            )?
            .execute(params![point.namespace, point.flow, KEPT])?;
    }
    Ok(())
}

pub(super) fn points(
    connection: &Connection,
    namespace: &str,
    flow: &str,
    uid: &str,
) -> rusqlite::Result<Vec<ExperimentPoint>> {
    let mut statement = connection.prepare_cached(
        "SELECT measured_ms, arm, metric, goal, started_ms, step, weight, units, difference, lower, upper, verdict
         FROM experiment_points WHERE namespace = ?1 AND flow = ?2 AND uid = ?3 ORDER BY measured_ms, arm, metric",
    )?;
    let rows = statement.query_map([namespace, flow, uid], |row| {
        Ok(ExperimentPoint {
            namespace: namespace.to_owned(),
            flow: flow.to_owned(),
            uid: uid.to_owned(),
            measured_ms: row.get(0)?,
            arm: row.get(1)?,
            metric: row.get(2)?,
            goal: row.get(3)?,
            started_ms: row.get(4)?,
            step: row.get(5)?,
            weight: row.get(6)?,
            units: row.get(7)?,
            difference: row.get(8)?,
            lower: row.get(9)?,
            upper: row.get(10)?,
            verdict: row.get(11)?,
        })
    })?;
    rows.collect()
}

/// Deletes the histories that have not grown for long.
pub(super) fn expire(connection: &Connection, now_ms: i64) -> rusqlite::Result<()> {
    connection
        .execute(
            "DELETE FROM experiment_points WHERE (namespace, flow, uid) IN (
                SELECT namespace, flow, uid FROM experiment_points
                GROUP BY namespace, flow, uid HAVING max(measured_ms) < ?1)",
            [now_ms.saturating_sub(GONE_AFTER)],
        )
        .map(drop)
}
