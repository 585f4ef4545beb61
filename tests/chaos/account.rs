//! What the gateways' file says of what was acknowledged, read as it lies on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use llmops::evaluator::report::Report;
use rusqlite::Connection;

use crate::objects::{CASES, EVALUATION, NAMESPACE, REPEATS};
use crate::traffic::{End, Opinions, Request};

/// What must be zero, with what is not, and how many of each there are.
pub struct Account {
    pub acknowledged: usize,
    pub lost_interactions: Vec<String>,
    pub opinions: usize,
    pub lost_feedback: Vec<String>,
    /// Questions of all runs that were answered.
    pub questions: i64,
    pub asked_twice: Vec<String>,
}

/// The database of the gateways.
pub fn database(folder: &Path) -> Result<PathBuf> {
    let found = walkdir::WalkDir::new(folder).into_iter().flatten().find(|entry| entry.file_name() == "gateway.sqlite");
    Ok(found.context("there is no gateway.sqlite in the cluster's folder")?.into_path())
}

/// Compares the file with what the users were told.
pub fn compare(file: &Path, requests: &[Request], opinions: &Opinions) -> Result<Account> {
    let connection = Connection::open(file)?;
    let kept = pairs(&connection, "SELECT request, status FROM interactions")?;
    let acknowledged: Vec<&String> = requests
        .iter()
        .filter_map(|request| match &request.end {
            End::Acknowledged(Some(id)) => Some(id),
            _ => None,
        })
        .collect();
    let lost = acknowledged.iter().filter(|id| kept.get(id.as_str()).is_none_or(|status| status != "ok"));
    let lost_interactions = lost.map(|id| (*id).clone()).collect();

    let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut statement = connection.prepare("SELECT comment, request FROM feedback WHERE comment IS NOT NULL")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
        let (comment, request) = row?;
        given.entry(comment).or_default().push(request);
    }
    let lost = opinions.iter().filter(|(comment, request)| given.get(*comment) != Some(&vec![(*request).clone()]));
    let lost_feedback = lost.map(|(comment, request)| format!("{comment} on {request}")).collect();

    let (questions, asked_twice) = questions(&connection)?;
    Ok(Account {
        acknowledged: acknowledged.len(),
        lost_interactions,
        opinions: opinions.len(),
        lost_feedback,
        questions,
        asked_twice,
    })
}

fn pairs(connection: &Connection, query: &str) -> Result<BTreeMap<String, String>> {
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Every question of every Job was answered once: the answers of evaluations are as many as the keys they were asked under,
/// each key's answer is one that was recorded, and a report shows no answer twice.
fn questions(connection: &Connection) -> Result<(i64, Vec<String>)> {
    let account = format!("system:serviceaccount:{NAMESPACE}:%");
    let mut wrong = Vec::new();
    let count = |query: &str| connection.query_row(query, [&account], |row| row.get::<_, i64>(0));
    let answered = count("SELECT count(*) FROM interactions WHERE pinned AND status = 'ok' AND principal LIKE ?1")?;
    let keys = count("SELECT count(*) FROM answers WHERE principal LIKE ?1")?;
    if answered != keys {
        wrong.push(format!("{answered} answers to {keys} questions"));
    }
    let strangers = count(
        "SELECT count(*) FROM answers WHERE principal LIKE ?1 AND request NOT IN (SELECT request FROM interactions WHERE status = 'ok')",
    )?;
    if strangers > 0 {
        wrong.push(format!("{strangers} answers are kept of requests that were not recorded"));
    }
    let mut statement =
        connection.prepare("SELECT run, body FROM reports WHERE evaluation = ?1 AND format = 'json'")?;
    let reports = statement.query_map([EVALUATION], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut runs = 0;
    for row in reports {
        let (run, body) = row?;
        let report: Report = serde_json::from_slice(&body)?;
        let answers: Vec<_> = report.cases.iter().flat_map(|case| &case.answers).collect();
        let ids: BTreeSet<&String> = answers.iter().map(|answer| &answer.request_id).collect();
        if answers.len() != CASES * REPEATS || ids.len() != answers.len() {
            wrong.push(format!("the report of run {run} shows {} answers from {} requests", answers.len(), ids.len()));
        }
        runs += 1;
    }
    ensure!(runs > 0, "no run of the evaluation came to its end");
    Ok((keys, wrong))
}
