//! The thread that writes.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::history::{self, ExperimentPoint};
use super::models::{self, ModelCall};
use super::record::{Assigned, Feedback, GivenAnswer, Interaction, Report};

/// Most commands in one transaction.
const BATCH: usize = 500;
/// Most rows deleted at once, so that writes do not wait long.
const EXPIRY_BATCH: u32 = 2_000;
/// Runs whose reports are kept, an evaluation.
const KEPT_RUNS: u32 = 100;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is told.
pub(super) enum Command {
    Interaction(Box<Interaction>),
    Answered { interaction: Option<Box<Interaction>>, given: Option<Box<GivenAnswer>>, reply: Reply<()> },
    Lookup { request: String, reply: Reply<Option<(String, String)>> },
    Feedback { feedback: Box<Feedback>, reply: Reply<()> },
    Report { report: Box<Report>, reply: Reply<()> },
    Points { points: Vec<ExperimentPoint>, reply: Reply<()> },
    ModelCall(Box<ModelCall>),
    Flush { reply: Reply<()> },
    Expire { now_ms: i64 },
    Stop,
}

/// Told once the transaction has ended.
enum Promise {
    Done(Reply<()>),
    Found(Reply<Option<(String, String)>>, Option<(String, String)>),
}

/// Writes what comes, until told to stop or all senders are gone.
pub(super) fn run(mut connection: Connection, mut inbox: mpsc::Receiver<Command>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        if inbox.blocking_recv_many(&mut batch, BATCH) == 0 {
            return;
        }
        let stop = batch.iter().any(|command| matches!(command, Command::Stop));
        let now_ms = batch.iter().find_map(|command| match command {
            Command::Expire { now_ms } => Some(*now_ms),
            _ => None,
        });
        write(&mut connection, &mut batch);
        if let Some(now_ms) = now_ms
            && let Err(error) = expire(&connection, now_ms)
        {
            tracing::warn!(%error, "old interactions cannot be deleted");
        }
        if stop {
            // Commands that came in the meantime are written, too.
            while let Ok(command) = inbox.try_recv() {
                batch.push(command);
            }
            write(&mut connection, &mut batch);
            return;
        }
    }
}

/// Writes a batch as one transaction. When it fails, each command is tried by itself, so that one bad row spoils no other.
fn write(connection: &mut Connection, batch: &mut Vec<Command>) {
    let commands = std::mem::take(batch);
    if commands.is_empty() {
        return;
    }
    match transact(connection, &commands) {
        Ok(found) => answer(commands, found),
        Err(error) if commands.len() == 1 => refuse(commands, &error),
        Err(_) => {
            for command in commands {
                let single = vec![command];
                match transact(connection, &single) {
                    Ok(found) => answer(single, found),
                    Err(error) => refuse(single, &error),
                }
            }
        }
    }
}

type Found = Vec<Option<(String, String)>>;

fn transact(connection: &mut Connection, commands: &[Command]) -> rusqlite::Result<Found> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut found = Vec::new();
    for command in commands {
        match command {
            Command::Interaction(interaction) => insert(&transaction, interaction)?,
            // Together or not at all: an answer that is counted is also given again.
            Command::Answered { interaction, given, .. } => {
                interaction.iter().try_for_each(|interaction| insert(&transaction, interaction))?;
                given.iter().try_for_each(|given| keep_answer(&transaction, given))?;
            }
            Command::Lookup { request, .. } => found.push(
                transaction
                    .prepare_cached("SELECT namespace, name FROM interactions WHERE request = ?1")?
                    .query_row([request], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?,
            ),
            Command::Feedback { feedback, .. } => keep_feedback(&transaction, feedback)?,
            Command::Report { report, .. } => keep_report(&transaction, report)?,
            Command::Points { points, .. } => history::keep(&transaction, points)?,
            Command::ModelCall(call) => models::keep(&transaction, call)?,
            Command::Flush { .. } | Command::Expire { .. } | Command::Stop => {}
        }
    }
    transaction.commit()?;
    Ok(found)
}

fn answer(commands: Vec<Command>, found: Found) {
    let mut found = found.into_iter();
    for command in commands {
        let promise = match command {
            Command::Answered { reply, .. }
            | Command::Feedback { reply, .. }
            | Command::Report { reply, .. }
            | Command::Points { reply, .. }
            | Command::Flush { reply } => Promise::Done(reply),
            Command::Lookup { reply, .. } => Promise::Found(reply, found.next().flatten()),
            Command::Interaction(_) | Command::ModelCall(_) | Command::Expire { .. } | Command::Stop => continue,
        };
        // Whoever asked may have left.
        match promise {
            Promise::Done(reply) => drop(reply.send(Ok(()))),
            Promise::Found(reply, found) => drop(reply.send(Ok(found))),
        }
    }
}

fn refuse(commands: Vec<Command>, error: &rusqlite::Error) {
    tracing::error!(%error, "the store cannot write");
    // A dropped reply tells whoever asked that nothing was kept.
    drop(commands);
}

/// The arm's number, which is given at its first request.
fn arm(transaction: &Transaction<'_>, row: &Interaction) -> rusqlite::Result<Option<i64>> {
    let Some(Assigned { stratum, weight }) = &row.assigned else { return Ok(None) };
    let known: Option<(i64, i32)> = transaction
        .prepare_cached(
            "SELECT id, weight FROM arms WHERE namespace = ?1 AND name = ?2 AND stratum = ?3 AND variant = ?4
                AND revision = ?5 AND shadow = ?6",
        )?
        .query_row(params![row.namespace, row.name, stratum, row.variant, row.revision, row.shadow], |found| {
            Ok((found.get(0)?, found.get(1)?))
        })
        .optional()?;
    match known {
        Some((id, known)) if known == *weight => Ok(Some(id)),
        Some((id, _)) => {
            // Only copies: a routing table's name says its weights.
            transaction.prepare_cached("UPDATE arms SET weight = ?2 WHERE id = ?1")?.execute(params![id, weight])?;
            Ok(Some(id))
        }
        None => {
            transaction
                .prepare_cached(
                    "INSERT INTO arms (namespace, name, stratum, variant, revision, shadow, weight)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![row.namespace, row.name, stratum, row.variant, row.revision, row.shadow, weight])?;
            Ok(Some(transaction.last_insert_rowid()))
        }
    }
}

fn insert(transaction: &Transaction<'_>, row: &Interaction) -> rusqlite::Result<()> {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let arm = arm(transaction, row)?;
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO interactions (request, time_ms, expires_ms, kind, namespace, name, revision, variant,
                unit, principal, status, error, input_tokens, output_tokens, cost, currency, latency_ms, first_token_ms,
                stream, pinned, fallbacks, nodes, dependencies, inputs, answer, arm, shadow)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
                ?22, ?23, ?24, ?25, ?26, ?27)",
        )?
        .execute(params![
            row.request,
            row.time_ms,
            row.expires_ms,
            row.kind,
            row.namespace,
            row.name,
            row.revision,
            row.variant,
            row.unit,
            row.principal,
            row.status.name(),
            row.error,
            count(row.input_tokens),
            count(row.output_tokens),
            row.cost,
            row.currency,
            count(row.latency_ms),
            row.first_token_ms.map(count),
            row.stream,
            row.pinned,
            row.fallbacks,
            row.nodes,
            row.dependencies,
            row.inputs,
            row.answer,
            arm,
            row.shadow,
        ])
        .map(drop)
}

/// The first answer stays: whoever asked twice at once is given that one from then on.
fn keep_answer(transaction: &Transaction<'_>, row: &GivenAnswer) -> rusqlite::Result<()> {
    let took_ms = i64::try_from(row.took_ms).unwrap_or(i64::MAX);
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO answers (principal, key, request, expires_ms, revision, took_ms, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![row.principal, row.key, row.request, row.expires_ms, row.revision, took_ms, row.body])
        .map(drop)
}

fn keep_feedback(transaction: &Transaction<'_>, row: &Feedback) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO feedback (request, time_ms, score, comment, event, principal, thumbs, judge_score, arm, unit,
                asked_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                (SELECT arm FROM interactions WHERE request = ?1),
                (SELECT unit FROM interactions WHERE request = ?1),
                (SELECT time_ms FROM interactions WHERE request = ?1))",
        )?
        .execute(params![
            row.request,
            row.time_ms,
            row.score,
            row.comment,
            row.event,
            row.principal,
            row.thumbs,
            row.judge_score
        ])
        .map(drop)
}

fn keep_report(transaction: &Transaction<'_>, row: &Report) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO reports (namespace, evaluation, run, format, time_ms, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![row.namespace, row.evaluation, row.run, row.format.name(), row.time_ms, row.body])?;
    transaction
        .prepare_cached(
            "DELETE FROM reports WHERE namespace = ?1 AND evaluation = ?2 AND run NOT IN (
                SELECT run FROM reports WHERE namespace = ?1 AND evaluation = ?2
                GROUP BY run ORDER BY max(time_ms) DESC, run DESC LIMIT ?3)",
        )?
        .execute(params![row.namespace, row.evaluation, KEPT_RUNS])
        .map(drop)
}

/// Deletes answers and interactions whose time is over, their feedback, and arms and experiments of which nothing is left.
fn expire(connection: &Connection, now_ms: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM answers WHERE expires_ms < ?1", [now_ms])?;
    loop {
        let deleted = connection.execute(
            "DELETE FROM interactions WHERE request IN
                (SELECT request FROM interactions WHERE expires_ms < ?1 LIMIT ?2)",
            params![now_ms, EXPIRY_BATCH],
        )?;
        if deleted < usize::try_from(EXPIRY_BATCH).unwrap_or(usize::MAX) {
            break;
        }
    }
    connection.execute("DELETE FROM arms WHERE NOT EXISTS (SELECT 1 FROM interactions WHERE arm = arms.id)", [])?;
    history::expire(connection, now_ms)?;
    models::expire(connection, now_ms)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
