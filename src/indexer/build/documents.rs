//! From sources to chunks, and what changed since the active generation.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::error::BuildError;
use super::{Cancel, Paths};
use crate::api::rag_index::{DocumentCounts, DocumentFailure, OnParseError};
use crate::indexer::chunk::{Format, chunk};
use crate::indexer::embed::cache::Key;
use crate::indexer::gate::{self, Question};
use crate::indexer::job::{BuildPlan, golden_digest};
use crate::indexer::sources::{self, Content, Document, SourceError};
use crate::indexer::store::{ChunkRecord, DocumentRecord};

const MOUNT_PAUSE: Duration = Duration::from_secs(1);
const MAX_GOLDEN_BYTES: u64 = 64 << 20;

/// All documents of all sources.
#[derive(Debug)]
pub struct Corpus {
    /// Documents by their identity, with the position of their source.
    pub documents: Vec<(u16, Document)>,
    /// Files that could not be used.
    pub failures: Vec<DocumentFailure>,
    /// Files without text.
    pub empty: i64,
    /// Name and revision of each source, in the plan's order.
    pub revisions: Vec<(String, String)>,
}

impl Corpus {
    /// Counts, compared with the documents of the active generation.
    pub fn counts(&self, active: Option<&[DocumentRecord]>) -> DocumentCounts {
        let failed = self.failures.len() as i64;
        let mut counts = DocumentCounts {
            scanned: self.documents.len() as i64 + failed + self.empty,
            skipped: self.empty,
            failed,
            ..DocumentCounts::default()
        };
        let mut before: HashMap<[u8; 32], [u8; 32]> =
            active.unwrap_or(&[]).iter().map(|document| (document.id, document.digest)).collect();
        for (_, document) in &self.documents {
            match before.remove(&document.id()) {
                None => counts.added += 1,
                Some(digest) if digest == document.digest => counts.unchanged += 1,
                Some(_) => counts.modified += 1,
            }
        }
        counts.deleted = before.len() as i64;
        counts
    }
}

/// Reads all sources. Waits up to the timeout for a ConfigMap's mount to show what the plan expects.
pub fn read_corpus(plan: &BuildPlan, paths: &Paths, cancel: &Cancel) -> Result<Corpus, BuildError> {
    let deadline = Instant::now() + paths.mount_timeout;
    let limit = u64::try_from(plan.parse.max_file_bytes).unwrap_or(0);
    let mut corpus = Corpus { documents: Vec::new(), failures: Vec::new(), empty: 0, revisions: Vec::new() };
    for (position, source) in (0u16..).zip(&plan.sources) {
        let mount = paths.sources.join(&source.name);
        let content = loop {
            match sources::read(&mount, source, limit) {
                Err(error @ SourceError::Outdated { .. }) if Instant::now() < deadline => {
                    tracing::info!("waiting for the mount: {error}");
                    cancel.sleep(MOUNT_PAUSE)?;
                }
                other => break other?,
            }
        };
        let Content { documents, empty, failures, revision } = content;
        tracing::info!(
            source = source.name,
            documents = documents.len(),
            failed = failures.len(),
            empty,
            "source is read"
        );
        corpus.documents.extend(documents.into_iter().map(|document| (position, document)));
        corpus.failures.extend(failures);
        corpus.empty += empty;
        corpus.revisions.push((source.name.clone(), revision));
    }
    corpus.documents.sort_by_key(|(_, document)| document.id());
    match (plan.parse.on_error, corpus.failures.first()) {
        (OnParseError::Fail, Some(first)) => Err(BuildError::configuration(
            "TooManyFailures",
            format!("{}: {} (spec.parse.onError is Fail; Skip would leave the file out)", first.uri, first.message),
        )),
        _ => Ok(corpus),
    }
}

/// Reads the golden questions, when the plan has gates with some.
pub fn read_golden(plan: &BuildPlan, paths: &Paths, cancel: &Cancel) -> Result<Vec<Question>, BuildError> {
    let Some(golden) = plan.gates.as_ref().and_then(|gates| gates.golden.as_ref()) else { return Ok(Vec::new()) };
    let key = &golden.config_map_ref.key;
    if key.is_empty() || key.contains('/') || key.starts_with("..") {
        let message = format!("spec.gates.golden.configMapRef.key {key:?} is not a key of a ConfigMap");
        return Err(BuildError::configuration("InvalidSpec", message));
    }
    let path = paths.golden.join(key);
    let deadline = Instant::now() + paths.mount_timeout;
    loop {
        let text = read_text(&path)?;
        let found = golden_digest(&text);
        if plan.golden_digest.as_ref().is_none_or(|expected| *expected == found) {
            return Ok(gate::parse(&text)?);
        }
        if Instant::now() >= deadline {
            let message =
                format!("{}: the mount does not show the golden questions that the controller saw", path.display());
            return Err(BuildError::transient("SourceOutdated", message));
        }
        cancel.sleep(MOUNT_PAUSE)?;
    }
}

fn read_text(path: &Path) -> Result<String, BuildError> {
    let wrong = |message: String| {
        let message = format!("golden questions {}: {message}; check spec.gates.golden.configMapRef", path.display());
        BuildError::configuration("GoldenSetInvalid", message)
    };
    let length = path.metadata().map_err(|error| wrong(error.to_string()))?.len();
    if length > MAX_GOLDEN_BYTES {
        return Err(wrong(format!("{length} bytes are more than {MAX_GOLDEN_BYTES}")));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}

/// A chunk and the text to embed for it, with the prefix.
#[derive(Debug)]
pub struct Piece {
    /// Position of its document in the corpus.
    pub document: usize,
    /// Path of headings.
    pub heading: String,
    /// Headings put before the text.
    pub context: String,
    /// The text.
    pub text: String,
    /// Key of its vector.
    pub key: Key,
    /// What the model reads.
    pub embedded: String,
}

/// Cuts all documents. `key` gives the key of the vector of a text.
pub fn cut(
    plan: &BuildPlan,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    key: impl Fn(&str) -> Key,
    cancel: &Cancel,
) -> Result<Vec<Piece>, BuildError> {
    let mut pieces = Vec::new();
    for (position, (_, document)) in corpus.documents.iter().enumerate() {
        cancel.check()?;
        for chunk in chunk(&document.text, Format::of(&document.uri), &plan.chunking, tokenizer)? {
            let embedded = format!("{}{}", plan.document_prefix, chunk.contextual_text());
            pieces.push(Piece {
                document: position,
                key: key(&embedded),
                embedded,
                heading: chunk.heading,
                context: chunk.context,
                text: chunk.text,
            });
        }
    }
    Ok(pieces)
}

/// Records of the documents that are kept and of their chunks.
pub fn records(corpus: &Corpus, pieces: &[&Piece], kept: &[bool]) -> (Vec<DocumentRecord>, Vec<ChunkRecord>) {
    let mut documents = Vec::new();
    let mut positions: HashMap<usize, u32> = HashMap::new();
    for (position, (_, document)) in corpus.documents.iter().enumerate() {
        if kept.get(position).copied().unwrap_or(false) {
            positions.insert(position, u32::try_from(documents.len()).unwrap_or(u32::MAX));
            documents.push(DocumentRecord {
                id: document.id(),
                source: document.source.clone(),
                uri: document.uri.clone(),
                digest: document.digest,
            });
        }
    }
    let mut repeats: HashMap<[u8; 32], u64> = HashMap::new();
    let mut chunks = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (Some((source, document)), Some(position)) =
            (corpus.documents.get(piece.document), positions.get(&piece.document))
        else {
            continue;
        };
        let content = chunk_hash(&document.id(), &piece.heading, &piece.text);
        let repeat = repeats.entry(content).and_modify(|count| *count += 1).or_insert(0);
        chunks.push(ChunkRecord {
            id: Sha256::new().chain_update(content).chain_update(repeat.to_le_bytes()).finalize().into(),
            document: *position,
            source: *source,
            heading: piece.heading.clone(),
            context: piece.context.clone(),
            text: piece.text.clone(),
            vector_key: piece.key,
        });
    }
    (documents, chunks)
}

/// Content of a chunk without its place in the document: a chunk keeps its identity when text before it changes.
fn chunk_hash(document: &[u8; 32], heading: &str, text: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(document);
    for part in [heading, text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
