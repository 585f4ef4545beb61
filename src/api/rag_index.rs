//! RagIndex: documents, cut and embedded into generations, served for retrieval.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod status;

pub use status::{
    ActiveGeneration, CandidateGeneration, CandidatePhase, DocumentCounts, DocumentFailure, EmbeddingStatus, Quality,
    RagIndexStatus, RejectedGeneration,
};

use super::quantity::Decimal;
use super::refs::{ConfigMapKeyRef, LocalRef, PvcPath};
use super::rollout::GateRef;

/// Documents, cut and embedded into generations, served for retrieval.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmops.dev",
    version = "v1alpha1",
    kind = "RagIndex",
    plural = "ragindexes",
    namespaced,
    status = "RagIndexStatus",
    derive = "PartialEq",
    shortname = "rag",
    category = "llmops",
    doc = "A search index over documents: sources are cut into chunks, embedded, proven against a golden set and served; each content has its own immutable generation.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must have at most 40 characters, only a-z, 0-9 and '-'; names of the objects made for it are built from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Active", type_ = "string", json_path = ".status.active.name"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidate.phase"),
    printcolumn(name = "Docs", type_ = "integer", json_path = ".status.documents.scanned"),
    printcolumn(name = "Chunks", type_ = "integer", json_path = ".status.chunks"),
    printcolumn(name = "Quality", type_ = "string", json_path = ".status.quality[0].candidate"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("!has(self.retrieval) || !has(self.retrieval.candidates) || !has(self.retrieval.topK) || self.retrieval.candidates >= self.retrieval.topK").message("spec.retrieval.candidates must not be below spec.retrieval.topK"))]
#[serde(rename_all = "camelCase")]
pub struct RagIndexSpec {
    /// Where documents come from.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<Source>,
    /// How files are read.
    #[serde(default)]
    pub parse: Parse,
    /// How documents are cut.
    #[serde(default)]
    pub chunking: Chunking,
    /// What turns text into vectors.
    #[serde(default)]
    pub embedding: Embedding,
    /// Where generations are kept.
    #[serde(default)]
    pub store: Store,
    /// How questions are answered.
    #[serde(default)]
    pub retrieval: Retrieval,
    /// What a generation must show before it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// Which generations are kept.
    #[serde(default)]
    pub generations: Generations,
    /// Pods that build.
    #[serde(default)]
    pub job: BuildJob,
    /// Number of retrieval pods. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: i32,
    /// CPU and memory of the retrieval pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Stops reconciling this object; what serves goes on serving. Default false.
    #[serde(default)]
    pub suspend: bool,
}

/// A source of documents; exactly one of `configMap` and `pvc` is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.configMap) != has(self.pvc)").message("set exactly one of configMap and pvc"))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Name of the source; part of each document's identity.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Each key of this ConfigMap is a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<LocalRef>,
    /// Each file of this folder is a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc: Option<PvcPath>,
    /// Files to take, as glob patterns over the path. Default `**/*.md`, `**/*.markdown` and `**/*.txt`.
    #[serde(default = "text_files")]
    #[schemars(length(max = 32))]
    pub include: Vec<String>,
    /// Files to leave out, as glob patterns over the path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub exclude: Vec<String>,
    /// Stamped on every chunk of this source; searches can filter on them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub tags: BTreeMap<String, String>,
}

/// How files are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parse {
    /// Larger files count as failed, in bytes. Default 33554432 (32 MiB).
    #[serde(default = "max_file_bytes")]
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub max_file_bytes: i64,
    /// What a file that cannot be read does: `Skip` counts it as failed and goes on, `Fail` fails the build. Default `Skip`.
    #[serde(default)]
    pub on_error: OnParseError,
}

impl Default for Parse {
    fn default() -> Self {
        Self { max_file_bytes: max_file_bytes(), on_error: OnParseError::Skip }
    }
}

/// What a file that cannot be read does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum OnParseError {
    #[default]
    Skip,
    Fail,
}

/// How documents are cut into chunks.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.overlapTokens) || !has(self.maxTokens) || self.overlapTokens * 2 <= self.maxTokens").message("chunking.overlapTokens must not be above half of chunking.maxTokens"))]
#[serde(rename_all = "camelCase")]
pub struct Chunking {
    /// `Markdown` cuts at headings, then paragraphs, then sentences; `Fixed` cuts at token counts; `Whole` makes one chunk a document. Default `Markdown`.
    #[serde(default)]
    pub strategy: ChunkingStrategy,
    /// Longest chunk, in tokens of the embedding model's tokenizer. Default 240; the built-in model reads 256.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 16, max = 8192))]
    pub max_tokens: i32,
    /// Tokens that a chunk repeats from the one before it in the same section. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4096))]
    pub overlap_tokens: i32,
    /// Puts the path of headings before a chunk's text when it is embedded. Default true.
    #[serde(default = "yes")]
    pub context_headings: bool,
}

impl Default for Chunking {
    fn default() -> Self {
        Self {
            strategy: ChunkingStrategy::Markdown,
            max_tokens: max_tokens(),
            overlap_tokens: 0,
            context_headings: true,
        }
    }
}

/// Where documents are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ChunkingStrategy {
    #[default]
    Markdown,
    Fixed,
    Whole,
}

/// What turns text into vectors: `modelRef`, or the built-in model when neither is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.modelRef) && has(self.builtin))").message("set one of embedding.modelRef and embedding.builtin, not both"))]
#[serde(rename_all = "camelCase")]
pub struct Embedding {
    /// A ModelDeployment with `task: Embed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_ref: Option<LocalRef>,
    /// A model that comes with the operator's image and runs inside the builder and the retrieval server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin: Option<BuiltinEmbedder>,
    /// Put before each question (some models are trained with one). Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub query_prefix: String,
    /// Put before each document chunk. Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub document_prefix: String,
    /// Texts per call of the model. Default 32.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 1024))]
    pub batch: i32,
}

impl Default for Embedding {
    fn default() -> Self {
        Self {
            model_ref: None,
            builtin: None,
            query_prefix: String::new(),
            document_prefix: String::new(),
            batch: batch(),
        }
    }
}

/// Models that come with the operator's image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BuiltinEmbedder {
    /// all-MiniLM-L6-v2: 384 dimensions, 256 tokens, English.
    #[default]
    AllMiniLmL6V2,
}

/// Where generations are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// On a volume of the cluster, searched by the retrieval pods themselves.
    #[serde(default)]
    pub embedded: EmbeddedStore,
}

/// Generations on a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddedStore {
    /// The volume.
    #[serde(default)]
    pub volume: StoreVolume,
}

/// The volume of generations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreVolume {
    /// Size, as a Kubernetes quantity. Default `2Gi`. It cannot be changed once the volume exists, unless its class allows growing.
    #[serde(default = "two_gi")]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub size: String,
    /// StorageClass. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// `ReadWriteOnce` keeps builder and retrieval pods on one node, `ReadWriteMany` lets them spread. Default `ReadWriteOnce`.
    #[serde(default)]
    pub access_mode: AccessMode,
}

impl Default for StoreVolume {
    fn default() -> Self {
        Self { size: two_gi(), storage_class_name: None, access_mode: AccessMode::ReadWriteOnce }
    }
}

/// How many nodes mount the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum AccessMode {
    #[default]
    ReadWriteOnce,
    ReadWriteMany,
}

/// How questions are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retrieval {
    /// `Dense` compares vectors, `Lexical` words (BM25), `Hybrid` fuses both ranks. Default `Hybrid`.
    #[serde(default)]
    pub mode: RetrievalMode,
    /// Chunks returned. Default 8.
    #[serde(default = "top_k")]
    #[schemars(range(min = 1, max = 100))]
    pub top_k: i32,
    /// Chunks that each side of the fusion looks at. Default 100.
    #[serde(default = "candidates")]
    #[schemars(range(min = 1, max = 10_000))]
    pub candidates: i32,
    /// Reciprocal rank fusion.
    #[serde(default)]
    pub fusion: Fusion,
    /// Tags that every search must filter on; a search without them is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub require_filters: Vec<String>,
}

impl Default for Retrieval {
    fn default() -> Self {
        Self {
            mode: RetrievalMode::Hybrid,
            top_k: top_k(),
            candidates: candidates(),
            fusion: Fusion::default(),
            require_filters: Vec::new(),
        }
    }
}

/// How chunks are compared with a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum RetrievalMode {
    #[default]
    Hybrid,
    Dense,
    Lexical,
}

/// How the two rankings become one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fusion {
    /// Reciprocal rank fusion: score = sum of weight / (k + rank), Cormack et al., SIGIR 2009.
    #[serde(default)]
    pub rrf: Rrf,
}

/// Reciprocal rank fusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rrf {
    /// Rank constant. Default 60.
    #[serde(default = "rrf_k")]
    #[schemars(range(min = 1, max = 1000))]
    pub k: i32,
    /// Weights of the two rankings.
    #[serde(default)]
    pub weights: RrfWeights,
}

impl Default for Rrf {
    fn default() -> Self {
        Self { k: rrf_k(), weights: RrfWeights::default() }
    }
}

/// Weights of the two rankings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RrfWeights {
    /// Weight of the vector ranking. Default `"1"`.
    #[serde(default = "unit")]
    pub dense: Decimal,
    /// Weight of the word ranking. Default `"1"`.
    #[serde(default = "unit")]
    pub bm25: Decimal,
}

impl Default for RrfWeights {
    fn default() -> Self {
        Self { dense: unit(), bm25: unit() }
    }
}

/// What a generation must show before it serves.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.metrics) || self.metrics.size() == 0 || has(self.golden)").message("gates.metrics needs gates.golden: the questions with their relevant documents"))]
#[serde(rename_all = "camelCase")]
pub struct Gates {
    /// Questions with the documents that answer them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub golden: Option<Golden>,
    /// Metrics over the golden questions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub metrics: Vec<QualityMetric>,
    /// Checks that need no questions; they run first.
    #[serde(default)]
    pub guards: Guards,
    /// Evaluations that a new generation must pass before it is searched by anybody. They ask this index, or a flow that uses it, with the
    /// new generation pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub evaluations: Vec<GateRef>,
}

/// Questions with the documents that answer them, one JSON object a line:
/// `{"id", "query", "filters", "relevant": [{"uri", "grade", "quote"}]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Golden {
    /// Where the questions are.
    pub config_map_ref: ConfigMapKeyRef,
    /// Fewer questions than this give no verdict, and the generation does not serve. Default 30.
    #[serde(default = "min_queries")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_queries: i32,
}

/// A metric over the golden questions.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.min) || has(self.maxRegression)").message("set min, maxRegression or both"))]
#[serde(rename_all = "camelCase")]
pub struct QualityMetric {
    /// `Recall`: share of the relevant documents among the first k; `Ndcg`: the same, weighted by grade and rank.
    pub name: QualityMetricName,
    /// Number of chunks looked at. Default 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100))]
    pub k: i32,
    /// Least mean over the questions, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// Greatest loss against the active generation, 0 to 1 (95 % lower bound of a paired bootstrap).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_regression: Option<Decimal>,
}

/// Names of quality metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum QualityMetricName {
    #[serde(rename = "recall")]
    Recall,
    #[serde(rename = "ndcg")]
    Ndcg,
}

/// Checks that need no questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guards {
    /// Fewer documents never serve: an empty listing must not empty an index. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100_000_000))]
    pub min_documents: i32,
    /// Greatest loss of documents against the active generation, in percent. Default: not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_document_drop_percent: Option<i32>,
    /// Greatest share of documents that could not be read, in percent. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 100))]
    pub max_failed_document_percent: i32,
}

impl Default for Guards {
    fn default() -> Self {
        Self { min_documents: 1, max_document_drop_percent: None, max_failed_document_percent: 5 }
    }
}

/// Which generations are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Generations {
    /// Generations kept on the volume besides the active one. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 50))]
    pub history: i32,
    /// Who promotes a generation that passed its gates: `Automatic`, or `Manual`: a person, by `approve` in Git or by `llmops promote`.
    /// Default `Automatic`.
    #[serde(default)]
    pub promote: GenerationPromotion,
    /// Name of the generation that is approved, with `Manual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub approve: Option<String>,
}

/// Who promotes a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum GenerationPromotion {
    #[default]
    Automatic,
    Manual,
}

impl Default for Generations {
    fn default() -> Self {
        Self { history: three(), promote: GenerationPromotion::Automatic, approve: None }
    }
}

/// Pods that build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildJob {
    /// CPU and memory of the builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// A build that takes longer fails, in seconds. Default 7200.
    #[serde(default = "two_hours")]
    #[schemars(range(min = 1, max = 604_800))]
    pub active_deadline_seconds: i64,
    /// How often a failed build pod is replaced; what it embedded is kept. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 20))]
    pub backoff_limit: i32,
}

impl Default for BuildJob {
    fn default() -> Self {
        Self { resources: None, active_deadline_seconds: two_hours(), backoff_limit: 3 }
    }
}

fn one() -> i32 {
    1
}
fn three() -> i32 {
    3
}
fn five() -> i32 {
    5
}
fn ten() -> i32 {
    10
}
fn batch() -> i32 {
    32
}
fn yes() -> bool {
    true
}
fn max_tokens() -> i32 {
    240
}
fn top_k() -> i32 {
    8
}
fn candidates() -> i32 {
    100
}
fn rrf_k() -> i32 {
    60
}
fn min_queries() -> i32 {
    30
}
fn two_hours() -> i64 {
    7200
}
fn max_file_bytes() -> i64 {
    33_554_432
}
fn unit() -> Decimal {
    Decimal::from("1")
}
fn two_gi() -> String {
    "2Gi".into()
}
fn text_files() -> Vec<String> {
    vec!["**/*.md".into(), "**/*.markdown".into(), "**/*.txt".into()]
}
