//! `llmops index build`: from a plan to a generation, its verdict and a report.
//!
//! The build may be killed at any point. What it embedded is in the cache; a generation appears by one rename when it
//! is whole and durable; a second run with the same inputs comes to the same digest.

mod documents;
mod embedding;
mod error;
mod plan;
pub mod report;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokenizers::Tokenizer;
use tokio::runtime::Handle;

pub use error::BuildError;
pub use plan::parse as parse_plan;

use super::embed::cache::{Cache, Key, vector_key};
use super::embed::{EmbedError, Embedder, builtin_dir, load_tokenizer};
use super::gate::{self, Question, Rejection};
use super::job::{BuildPlan, BuildReport, GENERATIONS};
use super::store::{self, Draft, FORMAT_VERSION, Generation, Head, Lock, Manifest, Model, Settings, SourceRecord};
use crate::api::rag_index::{DocumentCounts, DocumentFailure, EmbeddingStatus, Guards, Quality};
use documents::Corpus;

const CACHE: &str = "embeddings";
const LOCK_PAUSE: Duration = Duration::from_secs(1);
const LOCK_LOG_EVERY: Duration = Duration::from_secs(30);
/// Failures in a report; the termination message may hold fewer.
const MAX_FAILURES: usize = 20;

/// Where a build reads and writes.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The store volume.
    pub store: PathBuf,
    /// Folder with a folder for each source.
    pub sources: PathBuf,
    /// Folder with the golden file.
    pub golden: PathBuf,
    /// How long mounts may take to show what the plan expects.
    pub mount_timeout: Duration,
}

/// Tells a build to stop at the next good point.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the build to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.0.load(Ordering::Relaxed) { Err(BuildError::interrupted()) } else { Ok(()) }
    }

    fn sleep(&self, time: Duration) -> Result<(), BuildError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(Duration::from_millis(50).min(time));
        }
        self.check()
    }
}

/// Builds and judges the generation of a plan. Blocks; calls of a remote model run on the given runtime. Must not be
/// called on one of the runtime's own threads.
///
/// # Errors
/// When no verdict could be reached.
pub fn run(plan: &BuildPlan, paths: &Paths, cancel: &Cancel, runtime: &Handle) -> Result<BuildReport, BuildError> {
    let generations = paths.store.join(GENERATIONS);
    std::fs::create_dir_all(&generations).map_err(|error| {
        let message =
            format!("{}: {error}; check that the store volume is mounted and writable", generations.display());
        BuildError::transient("StoreUnavailable", message)
    })?;
    let lock = take_lock(&paths.store, cancel)?;
    if lock.is_some() {
        warn_on_error("remove what killed builds left", store::remove_stale(&generations));
    }
    let embedder = Embedder::open(&plan.embedder, plan.batch as usize)?;
    let (tokenizer, tokenizer_digest) = tokenizer(&embedder)?;
    plan::check_lengths(plan, &embedder, &tokenizer)?;
    let questions = documents::read_golden(plan, paths, cancel)?;
    let corpus = documents::read_corpus(plan, paths, cancel)?;

    let active = plan.active.as_ref().map(|name| generations.join(name));
    let active_documents = active.as_ref().and_then(|folder| match store::peek(folder) {
        Ok((documents, _)) => Some(documents),
        Err(error) => {
            tracing::warn!("the active generation is not compared: {error}");
            None
        }
    });
    let counts = corpus.counts(active_documents.as_deref());
    let guards = plan.gates.as_ref().map_or_else(Guards::default, |gates| gates.guards.clone());
    let serving = active_documents.as_ref().map(|documents| documents.len() as i64);
    let mut report = BuildReport {
        generation: None,
        digest: None,
        passed: false,
        reason: None,
        message: String::new(),
        documents: counts.clone(),
        failures: corpus.failures.iter().take(MAX_FAILURES).cloned().collect(),
        chunks: 0,
        bytes: 0,
        embedding: None,
        quality: Vec::new(),
    };
    // Before anything is embedded or written: an empty listing costs nothing and empties nothing.
    if let Some(rejection) = gate::guard(&guards, &counts, serving) {
        return Ok(rejected(report, rejection));
    }

    let builder = Builder { plan, embedder: &embedder, tokenizer: &tokenizer, cancel, runtime };
    let name = plan::generation_name(plan, &corpus.revisions, embedder.model_digest(), &tokenizer_digest)?;
    let folder = generations.join(&name);
    let mut cache = Cache::open(&paths.store.join(CACHE), lock.is_some())?;
    let (generation, tokens, reused) = match existing(&folder, lock.is_some())? {
        Some(generation) => {
            tracing::info!(generation = name, "the generation exists already");
            let chunks = generation.manifest.chunks as i64;
            (generation, 0, chunks)
        }
        None => builder.build(&corpus, &name, &tokenizer_digest, &folder, &mut cache)?,
    };
    let manifest = &generation.manifest;
    let refused = &manifest.rejected;
    report.documents.failed += refused.len() as i64;
    report.failures.extend(refused.iter().take(MAX_FAILURES.saturating_sub(report.failures.len())).cloned());
    report.generation = Some(name.clone());
    report.digest = Some(manifest.digest.clone());
    report.chunks = manifest.chunks as i64;
    report.bytes = manifest.bytes() as i64;
    report.embedding = Some(EmbeddingStatus {
        model: embedder.model().to_owned(),
        model_digest: embedder.model_digest().to_owned(),
        dimensions: i32::try_from(manifest.head.model.dimensions).unwrap_or(i32::MAX),
        tokens_last_run: tokens,
        reused_chunks: reused,
    });
    // Once more, now with the documents that the model refused.
    let guarded = if refused.is_empty() { None } else { gate::guard(&guards, &report.documents, serving) };
    let (quality, judged) = builder.judge(&generation, &questions, active.as_deref())?;
    report.quality = quality;
    if lock.is_some() {
        let probes = store::PROBES.iter().map(|text| builder.key(text)).collect();
        warn_on_error("clean up the store", clean_up(plan, &generations, &name, probes, &mut cache));
    }
    match guarded.or(judged) {
        Some(rejection) => Ok(rejected(report, rejection)),
        None => {
            report.passed = true;
            report.message = format!(
                "{name} has {} chunks of {} documents; {tokens} tokens were embedded, {reused} chunks reused",
                manifest.chunks, manifest.documents
            );
            Ok(report)
        }
    }
}

fn rejected(mut report: BuildReport, rejection: Rejection) -> BuildReport {
    report.passed = false;
    report.reason = Some(rejection.reason.to_owned());
    report.message = rejection.message;
    report
}

/// A report of a build that came to no verdict.
pub fn failed(error: &BuildError) -> BuildReport {
    BuildReport {
        generation: None,
        digest: None,
        passed: false,
        reason: Some(error.reason().to_owned()),
        message: error.to_string(),
        documents: DocumentCounts::default(),
        failures: Vec::new(),
        chunks: 0,
        bytes: 0,
        embedding: None,
        quality: Vec::new(),
    }
}

fn warn_on_error<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!("cannot {what}: {error}");
    }
}

/// Waits for the store's lock. `None` on a volume that knows no locks: then nothing that another builder might use is
/// removed or repaired.
fn take_lock(store: &Path, cancel: &Cancel) -> Result<Option<Lock>, BuildError> {
    let mut logged: Option<Instant> = None;
    loop {
        match Lock::try_take(store) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) => {
                if logged.is_none_or(|at| at.elapsed() >= LOCK_LOG_EVERY) {
                    tracing::info!("another builder works on this store; waiting for it to end");
                    logged = Some(Instant::now());
                }
                cancel.sleep(LOCK_PAUSE)?;
            }
            Err(error) => {
                tracing::warn!(%error, "the store volume has no locks; nothing is cleaned up");
                return Ok(None);
            }
        }
    }
}

/// The tokenizer that measures chunks: the built-in model's own, also for services, which keep theirs to themselves.
fn tokenizer(embedder: &Embedder) -> Result<(Arc<Tokenizer>, String), EmbedError> {
    match embedder {
        Embedder::Builtin(model) => Ok((model.tokenizer().clone(), model.tokenizer_digest().to_owned())),
        Embedder::OpenAi(_) => load_tokenizer(&builtin_dir().join("tokenizer.json")),
    }
}

/// Opens a generation that was built before. A damaged one is put aside by the holder of the lock.
fn existing(folder: &Path, locked: bool) -> Result<Option<Generation>, BuildError> {
    if !folder.exists() {
        return Ok(None);
    }
    match Generation::open(folder, None) {
        Ok(generation) => Ok(Some(generation)),
        Err(error) if locked => {
            tracing::warn!("built anew: {error}");
            let parent = folder.parent().unwrap_or(folder);
            // Pods that serve it have its files open and keep them.
            let aside = store::unique(parent, "damaged");
            let moved = std::fs::rename(folder, &aside).and_then(|()| std::fs::remove_dir_all(&aside));
            moved
                .map_err(|cause| BuildError::transient("StoreUnavailable", format!("{}: {cause}", folder.display())))?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

struct Builder<'a> {
    plan: &'a BuildPlan,
    embedder: &'a Embedder,
    tokenizer: &'a Tokenizer,
    cancel: &'a Cancel,
    runtime: &'a Handle,
}

impl Builder<'_> {
    fn key(&self, text: &str) -> Key {
        vector_key(self.embedder.model_digest(), self.embedder.max_tokens(), text)
    }

    /// Gives the generation, the tokens embedded and the chunks whose vectors were known.
    fn build(
        &self,
        corpus: &Corpus,
        name: &str,
        tokenizer_digest: &str,
        folder: &Path,
        cache: &mut Cache,
    ) -> Result<(Generation, i64, i64), BuildError> {
        let Self { plan, embedder, tokenizer, cancel, runtime } = self;
        let pieces = documents::cut(plan, corpus, tokenizer, |text| self.key(text), cancel)?;
        tracing::info!(
            generation = name,
            documents = corpus.documents.len(),
            chunks = pieces.len(),
            "documents are cut"
        );
        let probes = embedding::probes(|text| self.key(text), embedder, tokenizer, cache, cancel, runtime)?;
        let dimensions = probes.first().map_or(0, Vec::len);
        let reused = pieces.iter().filter(|piece| cache.get(&piece.key).is_some()).count() as i64;
        let wanted: BTreeMap<Key, &str> = pieces.iter().map(|piece| (piece.key, piece.embedded.as_str())).collect();
        let embedded =
            embedding::embed_missing(&wanted, embedder, tokenizer, plan.batch as usize, cache, cancel, runtime)?;
        cancel.check()?;

        // A document with a chunk that the model refuses is left out whole: half a document misleads.
        let mut kept = vec![true; corpus.documents.len()];
        let mut rejected = Vec::new();
        for piece in &pieces {
            let (Some(reason), Some(kept)) = (embedded.refused.get(&piece.key), kept.get_mut(piece.document)) else {
                continue;
            };
            if std::mem::replace(kept, false) {
                let uri = corpus.documents.get(piece.document).map(|(_, document)| document.uri.clone());
                rejected.push(DocumentFailure {
                    uri: uri.unwrap_or_default(),
                    reason: "EmbeddingRefused".into(),
                    message: format!("the model refused a chunk: {reason}; lower spec.chunking.maxTokens"),
                });
            }
        }
        let pieces: Vec<_> = pieces.iter().filter(|piece| kept.get(piece.document).copied().unwrap_or(false)).collect();
        let (documents, chunks) = documents::records(corpus, &pieces, &kept);
        let vectors: Vec<&[f32]> = pieces.iter().filter_map(|piece| cache.get(&piece.key)).collect();
        if vectors.len() != chunks.len() || vectors.iter().any(|vector| vector.len() != dimensions) {
            let message = format!(
                "the model {} gave vectors of another length than before; a new revision of its ModelDeployment makes a fresh start",
                embedder.model()
            );
            return Err(BuildError::configuration("DimensionMismatch", message));
        }
        let sources = plan.sources.iter().zip(&corpus.revisions).map(|(source, (_, revision))| SourceRecord {
            name: source.name.clone(),
            revision: revision.clone(),
            tags: source.tags.clone(),
        });
        let head = Head {
            format_version: FORMAT_VERSION,
            index: plan.index.clone(),
            generation: name.to_owned(),
            settings: Settings {
                chunking: plan.chunking.clone(),
                embedder: plan.embedder.clone(),
                query_prefix: plan.query_prefix.clone(),
                document_prefix: plan.document_prefix.clone(),
                retrieval: plan.retrieval.clone(),
            },
            model: Model {
                name: embedder.model().to_owned(),
                digest: embedder.model_digest().to_owned(),
                tokenizer_digest: tokenizer_digest.to_owned(),
                dimensions,
                probes,
            },
            sources: sources.collect(),
        };
        let manifest = publish(folder, &Draft { head, documents, chunks, vectors, rejected })?;
        tracing::info!(
            generation = name,
            digest = manifest.digest,
            chunks = manifest.chunks,
            "the generation is written"
        );
        Ok((Generation::open(folder, None)?, embedded.tokens, reused))
    }

    fn judge(
        &self,
        candidate: &Generation,
        questions: &[Question],
        active: Option<&Path>,
    ) -> Result<(Vec<Quality>, Option<Rejection>), BuildError> {
        let Some(gates) = self.plan.gates.as_ref().filter(|gates| !gates.metrics.is_empty()) else {
            return Ok((Vec::new(), None));
        };
        tracing::info!(questions = questions.len(), "judging");
        let answers = self.answers(candidate, self.embedder.clone(), questions)?;
        let before = active.and_then(|folder| match self.answers_of_active(folder, questions) {
            Ok(answers) => Some(answers),
            Err(error) => {
                // It must not keep its own replacement out.
                tracing::warn!("only minimums are judged, the active generation cannot answer: {error}");
                None
            }
        });
        self.cancel.check()?;
        let mut uris = BTreeSet::new();
        candidate.records.visit(|record| {
            if let store::Record::Document(document) = record {
                uris.insert(document.uri);
            }
        })?;
        Ok(gate::judge(gates, questions, &answers, before.as_ref(), &uris))
    }

    fn answers_of_active(&self, folder: &Path, questions: &[Question]) -> Result<gate::Answers, BuildError> {
        let generation = Generation::open(folder, None)?;
        let spec = &generation.manifest.head.settings.embedder;
        let embedder = if *spec == self.plan.embedder {
            self.embedder.clone()
        } else {
            Embedder::open(spec, self.plan.batch as usize)?
        };
        self.answers(&generation, embedder, questions)
    }

    fn answers(
        &self,
        generation: &Generation,
        embedder: Embedder,
        questions: &[Question],
    ) -> Result<gate::Answers, BuildError> {
        let Some(gates) = &self.plan.gates else { return Ok(gate::Answers::default()) };
        let searches = gate::searches(generation, gates, questions)?;
        let texts: Vec<String> = searches.iter().filter_map(|search| search.text_to_embed(generation)).collect();
        let mut vectors = vec![None; searches.len()];
        if !texts.is_empty() {
            for ((slot, outcome), question) in
                vectors.iter_mut().zip(self.runtime.block_on(embedder.embed(texts))?).zip(questions)
            {
                let vector = outcome.map_err(|reason| gate::GoldenError {
                    line: question.line,
                    message: format!("the model refused the question: {reason}"),
                })?;
                *slot = Some(vector);
            }
        }
        Ok(gate::answers(generation, &searches, &vectors)?)
    }
}

/// Writes a generation beside its place and moves it there when it is whole and durable.
fn publish(folder: &Path, draft: &Draft) -> Result<Manifest, BuildError> {
    let parent = folder.parent().unwrap_or(folder);
    let temporary = store::unique(parent, &draft.head.generation);
    let manifest = store::write(&temporary, draft)?;
    match std::fs::rename(&temporary, folder).and_then(|()| store::fsync_dir(parent)) {
        Ok(()) => Ok(manifest),
        // Another builder, on a volume without locks, was faster with the same content.
        Err(_) if folder.exists() => {
            warn_on_error("remove a second copy", std::fs::remove_dir_all(&temporary));
            Ok(Manifest::read(folder)?)
        }
        Err(error) => Err(BuildError::transient("StoreUnavailable", format!("{}: {error}", folder.display()))),
    }
}

/// Removes generations beyond those to keep, then vectors that no kept one uses.
fn clean_up(
    plan: &BuildPlan,
    generations: &Path,
    new: &str,
    mut used: HashSet<Key>,
    cache: &mut Cache,
) -> Result<(), BuildError> {
    let io = |error: std::io::Error| BuildError::transient("StoreUnavailable", error.to_string());
    let named: HashSet<&str> =
        plan.keep.iter().map(String::as_str).chain(plan.active.as_deref()).chain([new]).collect();
    let mut spare = plan.history;
    for name in store::list_generations(generations).map_err(io)? {
        let folder = generations.join(&name);
        let keep = named.contains(name.as_str()) || {
            let kept = spare > 0;
            spare = spare.saturating_sub(1);
            kept
        };
        if keep {
            match store::peek(&folder) {
                Ok((_, keys)) => used.extend(keys),
                Err(error) => tracing::warn!("its vectors may be dropped from the cache: {error}"),
            }
            continue;
        }
        // First out of sight, so that a kill leaves no half generation under its name.
        let aside = store::unique(generations, "old");
        std::fs::rename(&folder, &aside).and_then(|()| std::fs::remove_dir_all(&aside)).map_err(io)?;
        tracing::info!(generation = name, "removed, beyond spec.generations.history");
    }
    cache.collect(&used)?;
    Ok(())
}
