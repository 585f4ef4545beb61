//! What is read back.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::Value;

use super::record::{GivenAnswer, ReportFormat};

/// An interaction, as people and programs see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct RecentInteraction {
    pub request_id: String,
    /// RFC 3339.
    pub time: String,
    pub revision: String,
    pub variant: String,
    pub unit: String,
    pub status: String,
    pub error: Option<String>,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cost: Option<f64>,
    pub currency: Option<String>,
    pub latency_ms: i64,
    pub time_to_first_token_ms: Option<i64>,
    pub stream: bool,
    pub pinned: bool,
    /// Whether it is a shadow copy that nobody saw.
    pub shadow: bool,
    /// Name of the routing table that assigned the unit.
    pub stratum: Option<String>,
    pub fallbacks: i64,
    pub nodes: Value,
    pub dependencies: Value,
    pub inputs: Option<Value>,
    pub answer: Option<String>,
}

/// Figures of one variant at one revision.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct FlowSplit {
    pub variant: String,
    pub revision: String,
    /// Different units.
    pub units: i64,
    pub requests: i64,
    /// Requests that ended with an error.
    pub errors: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Absent when nothing has a price, or prices are of different currencies.
    pub cost: Option<f64>,
    pub currency: Option<String>,
    pub latency: LatencySummary,
    pub feedback: FeedbackSummary,
}

/// What a revision answered without anybody seeing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ShadowCount {
    pub variant: String,
    pub revision: String,
    /// Copies of requests.
    pub copies: i64,
    /// Copies that ended with an error.
    pub errors: i64,
    /// Mean milliseconds to the end of an answer.
    pub mean_ms: Option<i64>,
}

/// Milliseconds to the end of the answer, of requests that ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct LatencySummary {
    pub p50: Option<i64>,
    pub p95: Option<i64>,
}

/// Feedback with a score.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct FeedbackSummary {
    pub count: i64,
    pub mean: Option<f64>,
}

/// A run that has reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ReportEntry {
    pub namespace: String,
    pub evaluation: String,
    pub run: String,
    /// RFC 3339.
    pub time: String,
    pub formats: Vec<String>,
}

fn rfc3339(time_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(time_ms).map(|time| time.to_string()).unwrap_or_default()
}

fn json(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

pub(super) fn interactions(
    connection: &Connection,
    namespace: &str,
    flow: &str,
    limit: u32,
) -> rusqlite::Result<Vec<RecentInteraction>> {
    let mut statement = connection.prepare_cached(
        "SELECT request, time_ms, revision, variant, unit, status, error, input_tokens, output_tokens, cost, currency,
            latency_ms, first_token_ms, stream, pinned, fallbacks, nodes, dependencies, inputs, answer, shadow,
            (SELECT stratum FROM arms WHERE arms.id = interactions.arm)
         FROM interactions WHERE namespace = ?1 AND name = ?2 AND kind = 'flow' ORDER BY time_ms DESC, request DESC LIMIT ?3",
    )?;
    let rows = statement.query_map(params![namespace, flow, limit], |row| {
        Ok(RecentInteraction {
            request_id: row.get(0)?,
            time: rfc3339(row.get(1)?),
            revision: row.get(2)?,
            variant: row.get(3)?,
            unit: row.get(4)?,
            status: row.get(5)?,
            error: row.get(6)?,
            input_tokens: row.get(7)?,
            output_tokens: row.get(8)?,
            cost: row.get(9)?,
            currency: row.get(10)?,
            latency_ms: row.get(11)?,
            time_to_first_token_ms: row.get(12)?,
            stream: row.get(13)?,
            pinned: row.get(14)?,
            fallbacks: row.get(15)?,
            nodes: json(row.get(16)?),
            dependencies: json(row.get(17)?),
            inputs: row.get::<_, Option<String>>(18)?.map(json),
            answer: row.get(19)?,
            shadow: row.get(20)?,
            stratum: row.get(21)?,
        })
    })?;
    rows.collect()
}

pub(super) fn splits(connection: &Connection, namespace: &str, flow: &str) -> rusqlite::Result<Vec<FlowSplit>> {
    let mut statement = connection.prepare_cached(
        "SELECT variant, revision, count(DISTINCT unit), count(*), sum(status = 'error'), sum(input_tokens),
            sum(output_tokens), sum(cost), min(currency), count(DISTINCT currency)
         FROM interactions WHERE namespace = ?1 AND name = ?2 AND kind = 'flow' AND pinned = 0 AND shadow = 0
         GROUP BY variant, revision ORDER BY max(time_ms) DESC",
    )?;
    let rows = statement.query_map([namespace, flow], |row| {
        let one_currency = row.get::<_, i64>(9)? == 1;
        Ok(FlowSplit {
            variant: row.get(0)?,
            revision: row.get(1)?,
            units: row.get(2)?,
            requests: row.get(3)?,
            errors: row.get(4)?,
            input_tokens: row.get(5)?,
            output_tokens: row.get(6)?,
            cost: row.get::<_, Option<f64>>(7)?.filter(|_| one_currency),
            currency: row.get::<_, Option<String>>(8)?.filter(|_| one_currency),
            latency: LatencySummary::default(),
            feedback: FeedbackSummary::default(),
        })
    })?;
    let mut splits: Vec<FlowSplit> = rows.collect::<rusqlite::Result<_>>()?;
    for split in &mut splits {
        split.latency = latency(connection, namespace, flow, split)?;
        split.feedback = feedback(connection, namespace, flow, split)?;
    }
    Ok(splits)
}

fn latency(connection: &Connection, namespace: &str, flow: &str, of: &FlowSplit) -> rusqlite::Result<LatencySummary> {
    let mut statement = connection.prepare_cached(
        "SELECT latency_ms FROM interactions
         WHERE namespace = ?1 AND name = ?2 AND kind = 'flow' AND pinned = 0 AND shadow = 0 AND variant = ?3 AND revision = ?4
            AND status = 'ok' ORDER BY latency_ms",
    )?;
    let rows = statement.query_map([namespace, flow, &of.variant, &of.revision], |row| row.get(0))?;
    let sorted: Vec<i64> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(LatencySummary { p50: quantile(&sorted, 50), p95: quantile(&sorted, 95) })
}

/// The smallest value that at least so many percent of the sorted values do not exceed.
fn quantile(sorted: &[i64], percent: usize) -> Option<i64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn feedback(connection: &Connection, namespace: &str, flow: &str, of: &FlowSplit) -> rusqlite::Result<FeedbackSummary> {
    connection
        .prepare_cached(
            "SELECT count(feedback.score), avg(feedback.score) FROM feedback
             JOIN interactions ON interactions.request = feedback.request
             WHERE namespace = ?1 AND name = ?2 AND kind = 'flow' AND pinned = 0 AND shadow = 0 AND variant = ?3 AND revision = ?4",
        )?
        .query_row([namespace, flow, &of.variant, &of.revision], |row| {
            Ok(FeedbackSummary { count: row.get(0)?, mean: row.get(1)? })
        })
}

pub(super) fn report(
    connection: &Connection,
    namespace: &str,
    evaluation: &str,
    run: &str,
    format: ReportFormat,
) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "SELECT body FROM reports WHERE namespace = ?1 AND evaluation = ?2 AND run = ?3 AND format = ?4",
        )?
        .query_row([namespace, evaluation, run, format.name()], |row| row.get(0))
        .optional()
}

pub(super) fn shadows(connection: &Connection, namespace: &str, flow: &str) -> rusqlite::Result<Vec<ShadowCount>> {
    let mut statement = connection.prepare_cached(
        "SELECT variant, revision, count(*), sum(status = 'error'),
            CAST(round(avg(latency_ms) FILTER (WHERE status = 'ok')) AS INTEGER)
         FROM interactions WHERE namespace = ?1 AND name = ?2 AND kind = 'flow' AND shadow = 1
         GROUP BY variant, revision ORDER BY max(time_ms) DESC",
    )?;
    let rows = statement.query_map([namespace, flow], |row| {
        Ok(ShadowCount {
            variant: row.get(0)?,
            revision: row.get(1)?,
            copies: row.get(2)?,
            errors: row.get(3)?,
            mean_ms: row.get(4)?,
        })
    })?;
    rows.collect()
}

pub(super) fn reports_of(
    connection: &Connection,
    namespace: &str,
    evaluation: &str,
) -> rusqlite::Result<Vec<ReportEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT namespace, evaluation, run, max(time_ms), group_concat(format) FROM reports
         WHERE namespace = ?1 AND evaluation = ?2 GROUP BY run ORDER BY max(time_ms) DESC",
    )?;
    statement.query_map([namespace, evaluation], entry)?.collect()
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<ReportEntry> {
    let mut formats: Vec<String> = row.get::<_, String>(4)?.split(',').map(str::to_owned).collect();
    formats.sort();
    Ok(ReportEntry {
        namespace: row.get(0)?,
        evaluation: row.get(1)?,
        run: row.get(2)?,
        time: rfc3339(row.get(3)?),
        formats,
    })
}

pub(super) fn reports(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<ReportEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT namespace, evaluation, run, max(time_ms), group_concat(format) FROM reports
         GROUP BY namespace, evaluation, run ORDER BY max(time_ms) DESC LIMIT ?1",
    )?;
    statement.query_map([limit], entry)?.collect()
}

pub(super) fn given(connection: &Connection, principal: &str, key: &str) -> rusqlite::Result<Option<GivenAnswer>> {
    connection
        .prepare_cached(
            "SELECT request, expires_ms, revision, took_ms, body FROM answers WHERE principal = ?1 AND key = ?2",
        )?
        .query_row([principal, key], |row| {
            Ok(GivenAnswer {
                principal: principal.to_owned(),
                key: key.to_owned(),
                request: row.get(0)?,
                expires_ms: row.get(1)?,
                revision: row.get(2)?,
                took_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
                body: row.get(4)?,
            })
        })
        .optional()
}
