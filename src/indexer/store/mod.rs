//! A generation on disk: an immutable folder of chunks (SQLite), a word index (tantivy) and vectors, with a manifest
//! that is written last.
//!
//! The digest of a generation covers its logical content: settings, documents, chunks and vectors in their order.
//! File bytes differ between equal builds (segment names, for example), so each file's own hash stands beside it.

mod files;
mod lexical;
mod manifest;
mod records;
mod vectors;

use std::path::{Path, PathBuf};

pub use files::{Lock, fsync_dir, list_generations, remove_stale, unique};
pub use lexical::Lexical;
pub use manifest::{FORMAT_VERSION, FileRecord, Head, MANIFEST, Manifest, Model, PROBES, Settings, SourceRecord};
pub use records::{ChunkRecord, DocumentRecord, Record, Records};
pub use vectors::Vectors;

use crate::api::rag_index::DocumentFailure;
use manifest::ContentDigest;

const RECORDS: &str = "chunks.sqlite";
const LEXICAL: &str = "words";
const VECTORS: &str = "vectors.f32";

/// Why a generation could not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The generation is damaged, or not the one asked for.
    #[error("generation {path} is not usable: {message}; delete the folder and let the index build again")]
    Corrupt {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// SQLite failed.
    #[error("chunks of {path}: {cause}")]
    Records {
        /// Folder of the generation.
        path: PathBuf,
        /// The cause.
        cause: rusqlite::Error,
    },
    /// The word index failed.
    #[error("word index of {path}: {cause}")]
    Lexical {
        /// Folder of the generation.
        path: PathBuf,
        /// The cause.
        cause: tantivy::TantivyError,
    },
}

impl StoreError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_owned(), cause }
    }
    fn corrupt(path: &Path, message: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), message: message.into() }
    }
}

/// Everything a generation holds, before it is written.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Name and settings.
    pub head: Head,
    /// Documents by their identity.
    pub documents: Vec<DocumentRecord>,
    /// Chunks in the order of documents, then in theirs.
    pub chunks: Vec<ChunkRecord>,
    /// One vector a chunk.
    pub vectors: Vec<&'a [f32]>,
    /// Documents that the model refused.
    pub rejected: Vec<DocumentFailure>,
}

/// Writes a generation into a new folder and gives its manifest. The folder is durable when this returns, and only
/// then has a manifest.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, draft: &Draft) -> Result<Manifest, StoreError> {
    std::fs::create_dir_all(folder).map_err(StoreError::io(folder))?;
    records::write(folder, &folder.join(RECORDS), &draft.documents, &draft.chunks)?;
    lexical::write(folder, &folder.join(LEXICAL), &draft.chunks)?;
    vectors::write(&folder.join(VECTORS), &draft.vectors)?;
    let mut digest = ContentDigest::new(&draft.head);
    draft.documents.iter().for_each(|document| digest.document(document));
    draft.chunks.iter().for_each(|chunk| digest.chunk(chunk));
    draft.vectors.iter().for_each(|vector| digest.vector(vector));
    let manifest = Manifest {
        head: draft.head.clone(),
        digest: digest.finish(),
        documents: draft.documents.len() as u64,
        chunks: draft.chunks.len() as u64,
        rejected: draft.rejected.clone(),
        files: files::hash_all(folder)?,
    };
    manifest.write(folder)?;
    Ok(manifest)
}

/// A generation, checked and ready for searches.
#[derive(Debug)]
pub struct Generation {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its documents and chunks.
    pub records: Records,
    /// Its word index.
    pub lexical: Lexical,
    /// Its vectors.
    pub vectors: Vectors,
}

impl Generation {
    /// Opens a generation after a check of every file, and of the digest over its content.
    ///
    /// # Errors
    /// When it is damaged, of another format, or not the one expected.
    pub fn open(folder: &Path, expected_digest: Option<&str>) -> Result<Self, StoreError> {
        let corrupt = |message: String| StoreError::corrupt(folder, message);
        let manifest = Manifest::read(folder)?;
        if let Some(expected) = expected_digest.filter(|expected| *expected != manifest.digest) {
            return Err(corrupt(format!("its digest is {}, and {expected} was asked for", manifest.digest)));
        }
        files::verify(folder, &manifest.files)?;
        let dimensions = manifest.head.model.dimensions;
        let records = Records::open(folder, &folder.join(RECORDS), &manifest)?;
        let mut digest = ContentDigest::new(&manifest.head);
        records.visit(|record| match record {
            Record::Document(document) => digest.document(&document),
            Record::Chunk(chunk) => digest.chunk(&chunk),
        })?;
        let vectors =
            Vectors::open(&folder.join(VECTORS), manifest.chunks, dimensions, |vector| digest.vector(vector))?;
        let found = digest.finish();
        if found != manifest.digest {
            return Err(corrupt(format!("its content has digest {found}, its manifest says {}", manifest.digest)));
        }
        let lexical = Lexical::open(folder, &folder.join(LEXICAL))?;
        Ok(Self { manifest, records, lexical, vectors })
    }
}

/// Keys of the vectors that a generation holds, and its documents with the digests of their content.
///
/// # Errors
/// When its chunks cannot be read.
pub fn peek(folder: &Path) -> Result<(Vec<DocumentRecord>, Vec<[u8; 32]>), StoreError> {
    let manifest = Manifest::read(folder)?;
    let records = Records::open(folder, &folder.join(RECORDS), &manifest)?;
    let (mut documents, mut keys) = (Vec::new(), Vec::new());
    records.visit(|record| match record {
        Record::Document(document) => documents.push(document),
        Record::Chunk(chunk) => keys.push(chunk.vector_key),
    })?;
    Ok((documents, keys))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub use tests::fixture;
