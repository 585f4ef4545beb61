//! The tables, and how older files become newer ones.

use std::time::Duration;

use rusqlite::Connection;

use super::StoreError;

/// Each entry brings a file from the format of its place to the next. Entries are never changed, only added.
const MIGRATIONS: [&str; 5] = [FIRST, MEASURED, COURSE, MODELS, ANSWERS];

pub(super) const FIRST: &str = "
    CREATE TABLE interactions (
        request TEXT PRIMARY KEY,
        time_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        revision TEXT NOT NULL,
        variant TEXT NOT NULL,
        unit TEXT NOT NULL,
        principal TEXT NOT NULL,
        status TEXT NOT NULL,
        error TEXT,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cost REAL,
        currency TEXT,
        latency_ms INTEGER NOT NULL,
        first_token_ms INTEGER,
        stream INTEGER NOT NULL,
        pinned INTEGER NOT NULL,
        fallbacks INTEGER NOT NULL,
        nodes TEXT NOT NULL,
        dependencies TEXT NOT NULL,
        inputs TEXT,
        answer TEXT
    ) WITHOUT ROWID;
    CREATE INDEX interactions_by_object ON interactions (namespace, name, kind, time_ms);
    CREATE INDEX interactions_by_expiry ON interactions (expires_ms);
    CREATE TABLE feedback (
        id INTEGER PRIMARY KEY,
        request TEXT NOT NULL REFERENCES interactions (request) ON DELETE CASCADE,
        time_ms INTEGER NOT NULL,
        score REAL,
        comment TEXT,
        event TEXT,
        principal TEXT NOT NULL
    );
    CREATE INDEX feedback_by_request ON feedback (request);
    CREATE TABLE reports (
        namespace TEXT NOT NULL,
        evaluation TEXT NOT NULL,
        run TEXT NOT NULL,
        format TEXT NOT NULL,
        time_ms INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (namespace, evaluation, run, format)
    );
";

/// What is measured of arms. The two indexes hold all that measurements read, so that these never touch the wide rows.
const MEASURED: &str = "
    CREATE TABLE arms (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        stratum TEXT NOT NULL,
        variant TEXT NOT NULL,
        revision TEXT NOT NULL,
        shadow INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        UNIQUE (namespace, name, stratum, variant, revision, shadow)
    );
    ALTER TABLE interactions ADD COLUMN arm INTEGER;
    ALTER TABLE interactions ADD COLUMN shadow INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX interactions_by_arm ON interactions
        (arm, time_ms, unit, status, fallbacks, latency_ms, cost, currency) WHERE arm IS NOT NULL;
    ALTER TABLE feedback ADD COLUMN thumbs INTEGER;
    ALTER TABLE feedback ADD COLUMN judge_score REAL;
    ALTER TABLE feedback ADD COLUMN arm INTEGER;
    ALTER TABLE feedback ADD COLUMN unit TEXT;
    ALTER TABLE feedback ADD COLUMN asked_ms INTEGER;
    CREATE INDEX feedback_by_arm ON feedback
        (arm, asked_ms, unit, request, score, thumbs, judge_score, event) WHERE arm IS NOT NULL;
";

/// What experiments showed over time.
const COURSE: &str = "
    CREATE TABLE experiment_points (
        namespace TEXT NOT NULL,
        flow TEXT NOT NULL,
        uid TEXT NOT NULL,
        measured_ms INTEGER NOT NULL,
        arm TEXT NOT NULL,
        metric TEXT NOT NULL,
        goal INTEGER NOT NULL,
        started_ms INTEGER,
        step INTEGER,
        weight INTEGER,
        units INTEGER NOT NULL,
        difference REAL,
        lower REAL,
        upper REAL,
        verdict TEXT NOT NULL,
        PRIMARY KEY (namespace, flow, uid, measured_ms, arm, metric, goal)
    ) WITHOUT ROWID;
";

/// Units of models whose requests are split between revisions.
const MODELS: &str = "
    CREATE TABLE model_units (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        stratum TEXT NOT NULL,
        revision TEXT NOT NULL,
        weight INTEGER NOT NULL,
        unit TEXT NOT NULL,
        calls INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        PRIMARY KEY (namespace, name, stratum, revision, unit)
    ) WITHOUT ROWID;
";

/// Answers that are given again to who asks again under the same key.
const ANSWERS: &str = "
    CREATE TABLE answers (
        principal TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        expires_ms INTEGER NOT NULL,
        revision TEXT NOT NULL,
        took_ms INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (principal, key)
    ) WITHOUT ROWID;
    CREATE INDEX answers_by_expiry ON answers (expires_ms);
";

/// Brings the file to the current format.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    configure(connection)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

/// Settings of every connection. A full sync at each commit is what makes acknowledged answers and feedback durable.
pub(super) fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // The container's root is read-only and has no /tmp: large sorts must not look for a place on disk.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}
