//! What is kept: interactions, feedback and reports, in SQLite.
//!
//! One thread writes, in batches: whatever waits becomes one transaction. Answers, feedback and reports are acknowledged
//! only after their transaction has reached the disk, so a process that is killed loses nothing that anybody was told of.
//! An answer waits for that only [`PATIENCE`]: serving matters more, so when the disk cannot keep up it is given all the
//! same, and counted as dropped.
//!
//! Several processes on one machine may have the file open, each with a store of its own: SQLite's locks let one write
//! at a time, and all see what is committed.

mod history;
mod kept;
mod measure;
mod models;
mod read;
mod record;
mod schema;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

pub use history::ExperimentPoint;
pub use measure::MeasureQuery;
pub use models::ModelCall;
pub use read::{FeedbackSummary, FlowSplit, LatencySummary, RecentInteraction, ReportEntry, ShadowCount};
pub use record::{Assigned, Feedback, GivenAnswer, Interaction, Report, ReportFormat, Status, hash_of_unit};

use super::metrics::Metrics;
use crate::experiment::measurements::Measurements;
use kept::Kept;
use measure::Measurer;
use writer::Command;

/// Most interactions that wait to be written.
const QUEUE: usize = 10_000;
/// Longest time that an answer waits until it is kept.
const PATIENCE: Duration = Duration::from_secs(2);

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("the database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The file was written by a newer version.
    #[error("the database has format {found}, newer than {known}; upgrade the gateway or give it another --db")]
    Newer {
        /// Format of the file.
        found: i64,
        /// Format that this version knows.
        known: i64,
    },
    /// The writer has ended, or is overloaded.
    #[error("the store does not take anything at the moment")]
    Closed,
    /// The writer cannot be started.
    #[error("cannot start the store's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Splits by namespace and flow.
type KeptSplits = Kept<(String, String), Vec<FlowSplit>>;

/// The store.
#[derive(Debug)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    reader: Arc<Mutex<Connection>>,
    splits: Arc<Mutex<KeptSplits>>,
    /// Apart from the reader: pages must not wait for measurements. One at a time.
    measurer: Arc<Mutex<Measurer>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Opens the database, bringing it to the current format.
    ///
    /// # Errors
    /// When the file cannot be opened or is of a newer format.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        schema::prepare(&mut connection)?;
        let open = || -> Result<Connection, StoreError> {
            let connection = Connection::open(path)?;
            schema::configure(&connection)?;
            Ok(connection)
        };
        let (reader, measurer) = (open()?, open()?);
        let (commands, inbox) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new().name("store".into()).spawn(move || writer::run(connection, inbox))?;
        Ok(Self {
            commands,
            reader: Arc::new(Mutex::new(reader)),
            splits: Arc::default(),
            measurer: Arc::new(Mutex::new(Measurer::new(measurer))),
            writer: Mutex::new(Some(writer)),
            metrics,
        })
    }

    /// Keeps an answered request, and the answer itself if it is to be given again. When this returns, both have reached
    /// the disk, or are counted as dropped. They are kept also when the caller stops waiting.
    pub async fn answered(&self, interaction: Option<Interaction>, given: Option<GivenAnswer>) {
        if interaction.is_none() && given.is_none() {
            return;
        }
        let (reply, kept) = oneshot::channel();
        let (interaction, given) = (interaction.map(Box::new), given.map(Box::new));
        let sent = self.commands.try_send(Command::Answered { interaction, given, reply }).is_ok();
        let kept = sent && matches!(tokio::time::timeout(PATIENCE, kept).await, Ok(Ok(Ok(()))));
        if !kept {
            self.metrics.dropped();
        }
    }

    /// The answer that was given to this key, if it still is kept.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn given(&self, principal: &str, key: &str) -> Result<Option<GivenAnswer>, StoreError> {
        let (principal, key) = (principal.to_owned(), key.to_owned());
        self.read(move |connection| read::given(connection, &principal, &key)).await
    }

    /// Hands over a request that nobody waits for, or that has no answer, without waiting.
    pub fn record(&self, interaction: Interaction) {
        if self.commands.try_send(Command::Interaction(Box::new(interaction))).is_err() {
            self.metrics.dropped();
        }
    }

    /// Hands over a call of a model without waiting.
    pub fn called(&self, call: ModelCall) {
        if self.commands.try_send(Command::ModelCall(Box::new(call))).is_err() {
            self.metrics.dropped();
        }
    }

    /// What was measured of a model's revisions while its requests were split, of units that came at `since_ms` or later.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn model_measurements(
        &self,
        namespace: &str,
        name: &str,
        since_ms: i64,
    ) -> Result<Measurements, StoreError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.read(move |connection| models::measurements(connection, &namespace, &name, since_ms)).await
    }

    /// Namespace and name of the object that answered a request, if the request is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn answered_by(&self, request: &str) -> Result<Option<(String, String)>, StoreError> {
        // Asked of the writer, so that an interaction just handed over is found.
        let request = request.to_owned();
        self.ask(|reply| Command::Lookup { request, reply }).await
    }

    /// Keeps feedback. When this returns, it has reached the disk.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn feedback(&self, feedback: Feedback) -> Result<(), StoreError> {
        self.ask(|reply| Command::Feedback { feedback: Box::new(feedback), reply }).await
    }

    /// Keeps a report, replacing one of the same run and format. When this returns, it has reached the disk.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn report(&self, report: Report) -> Result<(), StoreError> {
        self.ask(|reply| Command::Report { report: Box::new(report), reply }).await
    }

    /// Waits until all that was handed over is written.
    ///
    /// # Errors
    /// When the writer has ended.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Flush { reply }).await
    }

    /// Deletes interactions whose time is over at `now_ms`, in milliseconds since 1970, and their feedback.
    pub fn expire(&self, now_ms: i64) {
        // A full queue means that the next minute will do.
        let _ = self.commands.try_send(Command::Expire { now_ms });
    }

    /// Writes what waits and ends the writer.
    pub async fn close(&self) {
        let _ = self.commands.send(Command::Stop).await;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    /// Keeps what an experiment showed; what is already known is left as it is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_points(&self, points: Vec<ExperimentPoint>) -> Result<(), StoreError> {
        self.ask(|reply| Command::Points { points, reply }).await
    }

    /// What a flow's experiments showed over time, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn points(&self, namespace: &str, flow: &str, uid: &str) -> Result<Vec<ExperimentPoint>, StoreError> {
        let (namespace, flow, uid) = (namespace.to_owned(), flow.to_owned(), uid.to_owned());
        self.read(move |connection| history::points(connection, &namespace, &flow, &uid)).await
    }

    /// What revisions of a flow answered in shadow.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn shadows(&self, namespace: &str, flow: &str) -> Result<Vec<ShadowCount>, StoreError> {
        let (namespace, flow) = (namespace.to_owned(), flow.to_owned());
        self.read(move |connection| read::shadows(connection, &namespace, &flow)).await
    }

    /// Reports of one evaluation, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reports_of(&self, namespace: &str, evaluation: &str) -> Result<Vec<ReportEntry>, StoreError> {
        let (namespace, evaluation) = (namespace.to_owned(), evaluation.to_owned());
        self.read(move |connection| read::reports_of(connection, &namespace, &evaluation)).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Arc::clone(&self.reader);
        let found = tokio::task::spawn_blocking(move || query(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        Ok(found.await.map_err(|_| StoreError::Closed)??)
    }

    /// The latest interactions with a flow, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn interactions(
        &self,
        namespace: &str,
        flow: &str,
        limit: u32,
    ) -> Result<Vec<RecentInteraction>, StoreError> {
        let (namespace, flow) = (namespace.to_owned(), flow.to_owned());
        self.read(move |connection| read::interactions(connection, &namespace, &flow, limit)).await
    }

    /// What was measured of a flow's arms, pinned requests left out. An answer that took long is given again for a
    /// while.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn measurements(&self, query: MeasureQuery) -> Result<Measurements, StoreError> {
        let measurer = Arc::clone(&self.measurer);
        let found =
            tokio::task::spawn_blocking(move || measurer.lock().unwrap_or_else(PoisonError::into_inner).answer(&query));
        Ok(found.await.map_err(|_| StoreError::Closed)??)
    }

    /// Figures of a flow's variants, pinned requests and shadow copies left out. An answer that took long is given again
    /// for a while.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn splits(&self, namespace: &str, flow: &str) -> Result<Vec<FlowSplit>, StoreError> {
        let (namespace, flow) = (namespace.to_owned(), flow.to_owned());
        let kept = Arc::clone(&self.splits);
        self.read(move |connection| {
            let question = (namespace, flow);
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let find = || read::splits(connection, &question.0, &question.1);
            kept.answer(&question, find, |found| {
                u64::try_from(found.iter().map(|split| split.requests).sum::<i64>()).unwrap_or(0)
            })
        })
        .await
    }

    /// A report.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_report(
        &self,
        namespace: &str,
        evaluation: &str,
        run: &str,
        format: ReportFormat,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let (namespace, evaluation, run) = (namespace.to_owned(), evaluation.to_owned(), run.to_owned());
        self.read(move |connection| read::report(connection, &namespace, &evaluation, &run, format)).await
    }

    /// Reports that are kept, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reports(&self, limit: u32) -> Result<Vec<ReportEntry>, StoreError> {
        self.read(move |connection| read::reports(connection, limit)).await
    }
}
