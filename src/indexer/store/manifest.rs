//! What a generation is: its manifest, and the digest over its content.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::records::{ChunkRecord, DocumentRecord};
use super::{StoreError, fsync_dir};
use crate::api::rag_index::{Chunking, DocumentFailure, Retrieval};
use crate::api::revision::canonical;
use crate::indexer::job::Embedder;

/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";
/// Version of the folder's format and of the builder's way to cut text; a change makes new generations.
pub const FORMAT_VERSION: u32 = 1;
/// Texts whose vectors tell whether a model is the one that built the generation.
pub const PROBES: [&str; 8] = [
    "How do I roll back a release that went wrong?",
    "The default limit is 240 tokens.",
    "kubectl get pods --namespace team-a",
    "Payment is due within thirty days of the invoice.",
    "Ein kurzer Satz auf Deutsch.",
    "for i in range(10): print(i * i)",
    "Error: connection refused by 127.0.0.1:8080",
    "The river froze in January and thawed in March.",
];

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Name, settings and model.
    #[serde(flatten)]
    pub head: Head,
    /// Digest over the content, `sha256:HEX`.
    pub digest: String,
    /// Number of documents.
    pub documents: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Documents that the model refused, and that are not in the generation. Not part of the digest.
    #[serde(default)]
    pub rejected: Vec<DocumentFailure>,
    /// Hashes of the files, to find damage.
    pub files: BTreeMap<String, FileRecord>,
}

/// Name, settings and model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// [`FORMAT_VERSION`] of the builder.
    pub format_version: u32,
    /// Name of the RagIndex.
    pub index: String,
    /// Name of the generation.
    pub generation: String,
    /// Settings.
    pub settings: Settings,
    /// What embedded.
    pub model: Model,
    /// Sources.
    pub sources: Vec<SourceRecord>,
}

/// How the generation was built and is searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// How documents were cut.
    pub chunking: Chunking,
    /// What embeds questions.
    pub embedder: Embedder,
    /// Put before each question.
    pub query_prefix: String,
    /// Put before each chunk.
    pub document_prefix: String,
    /// How questions are answered.
    pub retrieval: Retrieval,
}

/// Identity of the embedding model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Digest of its file, or revision of its ModelDeployment.
    pub digest: String,
    /// Digest of the tokenizer that measured chunks.
    pub tokenizer_digest: String,
    /// Length of a vector.
    pub dimensions: usize,
    /// Vectors of [`PROBES`].
    pub probes: Vec<Vec<f32>>,
}

/// A source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRecord {
    /// Its name.
    pub name: String,
    /// Hash over its paths and contents.
    pub revision: String,
    /// Tags of its chunks.
    pub tags: BTreeMap<String, String>,
}

/// A file of the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its size.
    pub bytes: u64,
    /// Hex SHA-256 of its bytes.
    pub sha256: String,
}

impl Manifest {
    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(self).map_err(|error| StoreError::corrupt(folder, error.to_string()))?;
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            fsync_dir(folder)
        };
        write().map_err(StoreError::io(&path))
    }

    /// Reads the manifest of a generation's folder.
    ///
    /// # Errors
    /// When there is none, it is damaged, or of another format.
    pub fn read(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(StoreError::io(&path))?;
        let corrupt = |message: String| StoreError::corrupt(folder, message);
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let version: Version =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("{MANIFEST}: {error}")))?;
        if version.format_version != FORMAT_VERSION {
            let message = format!("it has format {}, this version reads {FORMAT_VERSION}", version.format_version);
            return Err(corrupt(message));
        }
        serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("{MANIFEST}: {error}")))
    }
}

/// SHA-256 over the logical content, in its order: the head, documents, chunks, vectors.
pub struct ContentDigest(Sha256);

impl ContentDigest {
    pub fn new(head: &Head) -> Self {
        let mut digest = Self(Sha256::new());
        digest.line(head);
        digest
    }

    fn line<T: Serialize>(&mut self, value: &T) {
        // Neither floats that are not finite nor keys that are not text occur in these types.
        self.0.update(canonical(value).unwrap_or_default());
        self.0.update(b"\n");
    }

    pub fn document(&mut self, document: &DocumentRecord) {
        let DocumentRecord { id, source, uri, digest } = document;
        self.line(&(hex::encode(id), source, uri, hex::encode(digest)));
    }

    pub fn chunk(&mut self, chunk: &ChunkRecord) {
        let ChunkRecord { id, document, source, heading, context, text, vector_key } = chunk;
        self.line(&(hex::encode(id), document, source, heading, context, text, hex::encode(vector_key)));
    }

    pub fn vector(&mut self, vector: &[f32]) {
        vector.iter().for_each(|x| self.0.update(x.to_le_bytes()));
    }

    pub fn finish(self) -> String {
        format!("sha256:{}", hex::encode(self.0.finalize()))
    }
}
