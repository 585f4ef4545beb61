//! What the operator observed and decided of a RagIndex.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::quantity::Decimal;

/// What the operator observed and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RagIndexStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The index generation that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveGeneration>,
    /// The index generation on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateGeneration>,
    /// Documents of the active generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<DocumentCounts>,
    /// Documents that could not be read, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<DocumentFailure>,
    /// Chunks of the active generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<i64>,
    /// Size of the active generation, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// The model of the active generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<EmbeddingStatus>,
    /// What the last judged generation showed on the golden questions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quality: Vec<Quality>,
    /// Generations that did not pass; they are not built again until content or spec changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_generations: Vec<RejectedGeneration>,
    /// Address inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Value of the annotation `llmops.dev/reconcile-requested-at` that was last acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// Value of the annotation `llmops.dev/rollout-request` that was last acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_rollout_request: Option<String>,
    /// Conditions: Ready, Reconciling, Stalled, Accepted, SourcesReady, EmbedderCompatible, Built, QualityPassed, GatesPassed.
    /// Ready says that an active generation is servable, and stays True while a candidate fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The index generation that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveGeneration {
    /// Name of the generation, from its content.
    pub name: String,
    /// Digest of its artifact, `sha256:HEX`.
    pub digest: String,
    /// Hash of the inputs (spec, documents, model) it was built from.
    pub inputs: String,
    /// When it began to serve.
    pub since: Time,
}

/// The index generation on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CandidateGeneration {
    /// Hash of the inputs (spec, documents, model); names the build Job.
    pub inputs: String,
    /// Name of the generation, once built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of its artifact, once built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How far it is.
    pub phase: CandidatePhase,
    /// Number of the build Job for these inputs: a failed build is tried again with a new Job, later and later.
    #[serde(default = "super::one")]
    pub attempt: i32,
    /// Whether a person holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// How far a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CandidatePhase {
    /// The Job builds and judges it.
    Building,
    /// It passed its golden questions, its retrieval pods start.
    Starting,
    /// Its retrieval pods are ready, and the Evaluations of `gates.evaluations` ask it; nobody else does.
    Gating,
    /// It passed everything, and a person must approve it.
    AwaitingApproval,
    /// It did not pass, or could not be built.
    Failed,
}

/// Counts of documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentCounts {
    /// Documents seen in the sources.
    pub scanned: i64,
    /// New against the generation before.
    pub added: i64,
    /// Changed against the generation before.
    pub modified: i64,
    /// Gone against the generation before.
    pub deleted: i64,
    /// The same as in the generation before.
    pub unchanged: i64,
    /// Empty documents.
    pub skipped: i64,
    /// Could not be read.
    pub failed: i64,
}

/// A document that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentFailure {
    /// The document.
    pub uri: String,
    /// CamelCase reason.
    pub reason: String,
    /// What happened and what helps.
    pub message: String,
}

/// The model of a generation and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingStatus {
    /// Name of the model.
    pub model: String,
    /// Digest of the model, `sha256:HEX`, or the revision of its ModelDeployment.
    pub model_digest: String,
    /// Length of a vector.
    pub dimensions: i32,
    /// Tokens embedded by the last build.
    pub tokens_last_run: i64,
    /// Chunks whose vectors were taken from the cache by the last build.
    pub reused_chunks: i64,
}

/// A metric over the golden questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quality {
    /// `recall` or `ndcg`.
    pub metric: String,
    /// Number of chunks looked at.
    pub k: i32,
    /// Mean of the judged generation, 0 to 1.
    pub candidate: Decimal,
    /// Mean of the generation that was active then, on the same questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<Decimal>,
    /// 95 % lower bound of candidate minus active (paired bootstrap), or of the candidate's mean when there was no active one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower95: Option<Decimal>,
    /// Number of questions.
    pub queries: i32,
    /// Whether the gate is passed.
    pub passed: bool,
}

/// A generation that did not pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedGeneration {
    /// Hash of the inputs it was built from.
    pub inputs: String,
    /// Name of the generation, if it was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// CamelCase reason.
    pub reason: String,
    /// What happened and what helps.
    pub message: String,
}
