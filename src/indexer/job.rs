//! The contract between the RagIndex controller and the pods that build and serve a generation.
//!
//! The controller renders a [`BuildPlan`] as JSON into the build Job's environment variable [`PLAN_ENV`]. The Job
//! writes the generation below [`GENERATIONS`] on the store volume and a [`BuildReport`] as its termination message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::rag_index::{
    Chunking, DocumentCounts, DocumentFailure, EmbeddingStatus, Gates, Parse, Quality, Retrieval,
};
use crate::api::revision;

/// What a retrieval server says, with 503, until its generation is loaded: nothing was done with the request.
pub const LOADING: &str = "the generation is still being loaded";
/// Environment variable of the build Job that holds the [`BuildPlan`] as JSON.
pub const PLAN_ENV: &str = "LLMOPS_INDEX_PLAN";
/// Where the store volume is mounted, in builder and server.
pub const STORE_MOUNT: &str = "/var/lib/llmops/index";
/// Folder of generations on the store volume; each is `GENERATIONS/NAME/`.
pub const GENERATIONS: &str = "generations";
/// Where sources are mounted in the builder: `SOURCES_MOUNT/SOURCE-NAME/`.
pub const SOURCES_MOUNT: &str = "/var/run/llmops/sources";
/// Where the golden questions are mounted in the builder: this folder, file = ConfigMap key.
pub const GOLDEN_MOUNT: &str = "/var/run/llmops/golden";
/// Exit code for a mistake that a retry cannot mend (a wrong plan, a dimension mismatch, a broken golden file).
pub const EXIT_CONFIGURATION: u8 = 42;

/// Everything that decides a generation's content, and what it is judged against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildPlan {
    /// Name of the RagIndex; generations are named `INDEX-HEX`.
    pub index: String,
    /// Sources, mounted below [`SOURCES_MOUNT`].
    pub sources: Vec<PlannedSource>,
    /// How files are read.
    pub parse: Parse,
    /// How documents are cut.
    pub chunking: Chunking,
    /// What embeds.
    pub embedder: Embedder,
    /// Put before each question.
    #[serde(default)]
    pub query_prefix: String,
    /// Put before each chunk.
    #[serde(default)]
    pub document_prefix: String,
    /// Texts per call of the model.
    pub batch: u32,
    /// How questions are answered; kept in the generation's manifest and used by gate and server alike.
    pub retrieval: Retrieval,
    /// What the generation must show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// [`golden_digest`] of the golden file's content, when there are gates with questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_digest: Option<String>,
    /// The generation that serves now, for comparison. Not part of the content's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// Generations that must be kept on the volume; others beyond `keep` may be removed after a successful build.
    #[serde(default)]
    pub keep: Vec<String>,
    /// How many generations to keep besides those named.
    pub history: u32,
}

impl BuildPlan {
    /// Hash of what decides the generation: the plan without what only steers the run. It names the build Job.
    /// `requested` is the value of the reconcile annotation when a source's content cannot be seen by the controller
    /// (a volume): a new value then asks for a new look.
    ///
    /// # Errors
    /// When the plan cannot be written as JSON.
    pub fn inputs(&self, requested: Option<&str>) -> Result<String, serde_json::Error> {
        let mut identity = serde_json::to_value(self)?;
        if let Some(members) = identity.as_object_mut() {
            for steering in ["active", "keep", "history"] {
                members.remove(steering);
            }
            if let Some(requested) = requested {
                members.insert("requested".into(), requested.into());
            }
        }
        revision::revision_of(&identity)
    }
}

/// Digest of a ConfigMap source: hex SHA-256 over the canonical JSON of key → text.
///
/// # Errors
/// When the data cannot be written as JSON.
pub fn content_digest(data: &BTreeMap<String, String>) -> Result<String, serde_json::Error> {
    Ok(revision::short(&revision::canonical(data)?, 64))
}

/// Digest of a golden file: hex SHA-256 of its text.
pub fn golden_digest(text: &str) -> String {
    revision::short(text, 64)
}

/// A source as the builder sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedSource {
    /// Name; also the folder below [`SOURCES_MOUNT`].
    pub name: String,
    /// Path inside the mounted folder where documents start; empty for the root.
    #[serde(default)]
    pub path: String,
    /// [`content_digest`] of the ConfigMap's data as the controller saw it; absent for volumes.
    /// A builder that finds other content waits for the mount to catch up, then fails transiently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
    /// Glob patterns of files to take.
    pub include: Vec<String>,
    /// Glob patterns of files to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Stamped on each chunk.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What turns text into vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Embedder {
    /// all-MiniLM-L6-v2 in the builder's and server's own process; files in the folder `LLMOPS_EMBEDDER_DIR`.
    #[serde(rename = "allMiniLmL6V2")]
    AllMiniLmL6V2,
    /// An OpenAI-compatible `/v1/embeddings`.
    #[serde(rename_all = "camelCase")]
    OpenAi {
        /// Address without `/embeddings`, such as `http://mdep-minilm.team-a.svc:8080/v1`.
        base_url: String,
        /// Name of the model in requests.
        model: String,
        /// Revision of the ModelDeployment: identity of the model, whatever its name.
        revision: String,
    },
}

/// What the build Job says at its end; JSON of at most 4096 bytes, the length of a termination message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildReport {
    /// Name of the generation, when one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// Digest of the artifact, `sha256:HEX`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether guards and gates are passed.
    pub passed: bool,
    /// CamelCase reason when not passed or not built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence that names the object and the next step.
    #[serde(default)]
    pub message: String,
    /// Counts of documents.
    #[serde(default)]
    pub documents: DocumentCounts,
    /// Failures, as many as fit.
    #[serde(default)]
    pub failures: Vec<DocumentFailure>,
    /// Number of chunks.
    #[serde(default)]
    pub chunks: i64,
    /// Size of the generation in bytes.
    #[serde(default)]
    pub bytes: i64,
    /// The model and what it embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<EmbeddingStatus>,
    /// Results on the golden questions.
    #[serde(default)]
    pub quality: Vec<Quality>,
}

/// `POST /search` of the retrieval server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SearchRequest {
    /// The question.
    pub query: String,
    /// Chunks to return; absent: the index's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i32>,
    /// Least cosine similarity between question and chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// Tags that chunks must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filters: BTreeMap<String, String>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SearchResponse {
    /// The generation that answered.
    pub generation: String,
    /// The best chunks first.
    pub results: Vec<SearchHit>,
}

/// A chunk found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SearchHit {
    /// Identity of the chunk.
    pub chunk_id: String,
    /// Name of the source.
    pub source: String,
    /// The document: path in its source, such as `concepts/rollouts.md`.
    pub uri: String,
    /// Path of headings, joined by ` > `.
    pub heading: String,
    /// The text.
    pub text: String,
    /// Fused score that ranks the results.
    pub score: f64,
    /// Cosine similarity, where the mode computes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// Tags of the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}
