//! ModelDeployment: a model served by an engine in the cluster, or a provider outside.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Decimal;
use super::refs::{LocalRef, PvcPath};
use super::rollout::{GateRef, Promotion, RejectedRevision, RolloutStatus, RolloutStep};

/// A model served by an inference engine in the cluster, or a registered provider outside it.
///
/// Exactly one of `engine` and `external` is set.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmops.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    shortname = "mdep",
    category = "llmops",
    doc = "A language, embedding or reranking model: an inference engine that the operator runs, or a provider outside the cluster.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must have at most 40 characters, only a-z, 0-9 and '-'; names of the objects made for it are built from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Task", type_ = "string", json_path = ".spec.task"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.stableRevision"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas.ready"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("has(self.engine) != has(self.external)").message("set exactly one of spec.engine (a model that the operator runs) and spec.external (a provider outside)"))]
#[x_kube(validation = Rule::new("!has(self.engine) || self.engine.type == 'Custom' || (has(self.model) && has(self.model.source))").message("spec.model.source is required for this engine: it says where the model file comes from"))]
#[x_kube(validation = Rule::new("!has(self.external) || !has(self.model) || !has(self.model.source)").message("spec.model.source has no use beside spec.external; the provider has the model"))]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentSpec {
    /// What the model is for: `Chat` answers messages, `Embed` turns text into vectors, `Rerank` scores documents for a query.
    pub task: Task,
    /// The model and where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The inference engine that serves the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// A provider outside the cluster that speaks the OpenAI API, instead of `engine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// CPU, memory and accelerators (as extended resources) of the engine's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Where the engine's pods may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
    /// Strategic merge patch on the pod template, for what no field covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schemaless")]
    pub pod_template_patch: Option<serde_json::Value>,
    /// Number of engine pods. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// How long a start may take.
    #[serde(default)]
    pub startup: Startup,
    /// How a changed spec replaces the running engine.
    #[serde(default)]
    pub rollout: ModelRollout,
    /// What use of the model costs, for reports and budgets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Stops reconciling this object; what runs goes on running. Default false.
    #[serde(default)]
    pub suspend: bool,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Task {
    Chat,
    Embed,
    Rerank,
}

/// The model and where it comes from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Name under which the engine serves the model. Default: the name of the ModelDeployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Where the model file comes from; exactly one member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<ModelSource>,
    /// Secret with the key `token`, sent as a bearer token when the model is downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalRef>,
    /// Volume that keeps downloaded models across pods. Only for sources that are downloaded.
    #[serde(default)]
    pub cache: ModelCache,
}

/// Where a model file comes from; exactly one member is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.pvc) != has(self.http)").message("set exactly one of pvc and http"))]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A file or folder of a PersistentVolumeClaim, mounted read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc: Option<PvcPath>,
    /// A file downloaded over HTTP(S) into the cache volume, resumed after an interruption and checked against its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
}

/// A file downloaded over HTTP(S).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Address of the file.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://.+"))]
    pub url: String,
    /// SHA-256 of the file, 64 hex characters. The model is not started when the downloaded file has another one.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// Volume that keeps downloaded models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelCache {
    /// Size of the volume, as a Kubernetes quantity. Default `10Gi`.
    #[serde(default = "ten_gi")]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub size: String,
    /// StorageClass of the volume. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
}

impl Default for ModelCache {
    fn default() -> Self {
        Self { size: ten_gi(), storage_class_name: None }
    }
}

/// The inference engine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.type != 'Custom' || (has(self.custom) && has(self.image))").message("engine type Custom needs engine.image and engine.custom (port and healthPath)"))]
#[x_kube(validation = Rule::new("self.type == 'Custom' || !has(self.custom)").message("engine.custom is only for type Custom"))]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// `LlamaCpp` runs llama.cpp's server on a GGUF file; `Custom` runs any server that speaks the OpenAI API.
    pub r#type: EngineType,
    /// Container image. Default for `LlamaCpp`: `ghcr.io/ggml-org/llama.cpp:server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Further arguments, after those that the operator sets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// Environment of the engine's container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// What the operator must know of a `Custom` engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomEngine>,
}

/// The engines that the operator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum EngineType {
    LlamaCpp,
    Custom,
}

/// What the operator must know of an engine that it has no knowledge of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomEngine {
    /// Command instead of the image's own. `$(MODEL_PATH)`, `$(MODEL_NAME)`, `$(POD_IP)` and `$(PORT)` are replaced, here and in `args`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub command: Vec<String>,
    /// Port on which the engine answers. Default 8080.
    #[serde(default = "port_8080")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Path that answers 200 once the model is loaded. Default `/health`.
    #[serde(default = "health_path")]
    #[schemars(length(max = 256), regex(pattern = r"^/"))]
    pub health_path: String,
}

/// A provider outside the cluster that speaks the OpenAI API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct External {
    /// Address up to and without `/chat/completions`, such as `https://api.example.com/v1`.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://.+"))]
    pub base_url: String,
    /// The model's name at the provider.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// Secret with the key `token`, sent as a bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalRef>,
}

/// Where pods may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// How pods spread over nodes and zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
}

/// How long a start may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Startup {
    /// Longest time without a downloaded byte before the download counts as stalled. Default `5m`.
    #[serde(default = "five_minutes")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub download_timeout: Duration,
    /// Longest time from the engine's start until its health check answers; then it is restarted. Default `10m`.
    #[serde(default = "ten_minutes")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub load_timeout: Duration,
}

impl Default for Startup {
    fn default() -> Self {
        Self { download_timeout: five_minutes(), load_timeout: ten_minutes() }
    }
}

/// How a changed spec replaces the running engine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.steps) || (self.steps.map(s, s.weight).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight)))").message("the weights of spec.rollout.steps must grow from step to step"))]
#[x_kube(validation = Rule::new("!has(self.steps) || self.steps.size() == 0 || self.strategy == 'Canary'").message("spec.rollout.steps need strategy Canary"))]
#[serde(rename_all = "camelCase")]
pub struct ModelRollout {
    /// `RollingUpdate` makes the new revision ready before the old one goes (needs room for both); `Recreate` stops the old one first, unless
    /// `gates` are set: they need both; `Canary` moves requests by `steps`.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// How long an engine may finish running requests after it left the rotation. Default `60s`.
    #[serde(default = "one_minute")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub drain: Duration,
    /// Evaluations that a new revision must pass before it gets a request; it runs beside the old one meanwhile. They ask this model, or a
    /// flow that uses it, with the new revision pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub gates: Vec<GateRef>,
    /// The ramp of a new revision, with strategy `Canary`; after the last step it gets every request. Users of a model are
    /// not measured: only `minDuration` counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub steps: Vec<RolloutStep>,
    /// Who promotes a revision whose gates passed and whose ramp is over.
    #[serde(default)]
    pub decision: Decision,
    /// Old revisions kept for a way back (their specification only, no pods). Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: i32,
}

impl Default for ModelRollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            drain: one_minute(),
            gates: Vec::new(),
            steps: Vec::new(),
            decision: Decision::default(),
            history_limit: five(),
        }
    }
}

/// Who promotes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `Auto`, or `Manual`: a person approves, by `approve` in Git or by `llmops promote`. Default `Auto`.
    #[serde(default)]
    pub promotion: Promotion,
    /// The revision that is approved, with `Manual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[0-9a-f]+$"))]
    pub approve: Option<String>,
}

/// Order in which revisions replace each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum RolloutStrategy {
    #[default]
    RollingUpdate,
    Recreate,
    Canary,
}

/// What use of the model costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Cost of one million input tokens, in `currency`. Default `"0"`.
    #[serde(default = "zero")]
    pub input_per_million: Decimal,
    /// Cost of one million output tokens, in `currency`. Default `"0"`.
    #[serde(default = "zero")]
    pub output_per_million: Decimal,
    /// ISO 4217 code. Default `USD`.
    #[serde(default = "usd")]
    #[schemars(regex(pattern = r"^[A-Z]{3}$"))]
    pub currency: String,
}

/// What the operator observed and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Revision that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// Revision that the spec asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<String>,
    /// Revisions that failed and are not tried again until the spec changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_revisions: Vec<RejectedRevision>,
    /// Share of requests per revision; the weights sum to 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<ModelTraffic>,
    /// The rollout under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// Value of the annotation `llmops.dev/rollout-request` that was last acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_rollout_request: Option<String>,
    /// Which model bytes serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_model: Option<ResolvedModel>,
    /// Progress of a running download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
    /// Pods of the revision that the spec asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
    /// Address inside the cluster, or of the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Conditions: Ready, Reconciling, Stalled, Accepted, ModelCached, Available, UpToDate, GatesPassed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Share of requests of one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelTraffic {
    /// The revision.
    pub revision: String,
    /// Percent of requests.
    pub weight: i32,
}

/// The model bytes that serve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedModel {
    /// Digest as `sha256:HEX`, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size in bytes, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// Progress of a download.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Download {
    /// Bytes on disk.
    pub bytes: i64,
    /// Size of the file in bytes, where the server says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
}

/// Pods of a revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replicas {
    /// Wanted.
    pub desired: i32,
    /// Ready to serve.
    pub ready: i32,
    /// Made from the current revision.
    pub updated: i32,
}

fn schemaless(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
fn one() -> i32 {
    1
}
fn five() -> i32 {
    5
}
fn port_8080() -> i32 {
    8080
}
fn health_path() -> String {
    "/health".into()
}
fn ten_gi() -> String {
    "10Gi".into()
}
fn zero() -> Decimal {
    Decimal::from("0")
}
fn usd() -> String {
    "USD".into()
}
fn one_minute() -> Duration {
    std::time::Duration::from_secs(60).into()
}
fn five_minutes() -> Duration {
    std::time::Duration::from_secs(300).into()
}
fn ten_minutes() -> Duration {
    std::time::Duration::from_secs(600).into()
}
