//! PromptFlow: a prompt, or a graph of retrieval and model calls, served by the gateway.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Decimal;
use super::refs::{ConfigMapKeyRef, LocalRef};
use super::rollout::{
    ArmRevision, Direction, ExperimentStatus, GateRef, MetricKind, OnInconclusive, Promotion, RejectedRevision,
    RolloutStatus, RolloutStep, Shadow,
};

/// A prompt, or a graph of retrieval and model calls, served by the gateway.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmops.dev",
    version = "v1alpha1",
    kind = "PromptFlow",
    namespaced,
    status = "PromptFlowStatus",
    derive = "PartialEq",
    shortname = "pf",
    category = "llmops",
    doc = "A prompt, or a graph of retrieval and model calls, with variants among which users are split; the gateway serves it.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must have at most 40 characters, only a-z, 0-9 and '-'; names of the objects made for it are built from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.stableRevision"),
    printcolumn(name = "Traffic", type_ = "string", json_path = ".status.trafficSummary"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("!has(self.variants) || self.variants.size() == 0 || self.variants.map(v, v.weight).sum() == 100").message("the weights of spec.variants must sum to 100"))]
#[x_kube(validation = Rule::new("!has(self.assignment) || self.assignment.unit != 'Header' || has(self.assignment.header)").message("spec.assignment.header is required with unit Header: it names the header whose value is the unit"))]
#[serde(rename_all = "camelCase")]
pub struct PromptFlowSpec {
    /// Models by alias; nodes name the alias.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub models: BTreeMap<String, ModelBinding>,
    /// Indexes by alias; nodes name the alias.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub indexes: BTreeMap<String, IndexBinding>,
    /// Inputs by name; templates read them as `inputs.NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub inputs: BTreeMap<String, Input>,
    /// Steps of the flow; their order follows from which node's output a template reads.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<Node>,
    /// Template of the answer, such as `{{ nodes.answer.text }}`.
    #[schemars(length(min = 1, max = 16_384))]
    pub output: String,
    /// Variants among which units are split. Absent: one variant, `control`, with all traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub variants: Vec<Variant>,
    /// What is assigned to a variant, and by which header.
    #[serde(default)]
    pub assignment: Assignment,
    /// What is kept of each interaction.
    #[serde(default)]
    pub telemetry: FlowTelemetry,
    /// What decides between variants, and between a new revision and the one that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<Experiment>,
    /// How a new revision comes to serve. Without gates and steps it does so at once.
    #[serde(default)]
    pub rollout: FlowRollout,
    /// Stops reconciling this object; what is served goes on being served. Default false.
    #[serde(default)]
    pub suspend: bool,
}

/// A model that nodes may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelBinding {
    /// A ModelDeployment with `task: Chat`.
    pub model_deployment_ref: LocalRef,
    /// Longest time for a whole answer. Default `60s`.
    #[serde(default = "one_minute")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub timeout: Duration,
    /// How often a call that failed before its first byte is tried again on another pod. Default 2.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
    /// Aliases tried in turn when this model fails before its first byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub fallback: Vec<String>,
}

/// An index that nodes may search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IndexBinding {
    /// A RagIndex.
    pub rag_index_ref: LocalRef,
}

/// An input of the flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Type of the value.
    pub r#type: InputType,
    /// Whether a request must give it. Default true, false when there is a default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Value when the request gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub default: Option<serde_json::Value>,
    /// Longest string, in characters. Default 8192.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_length: Option<i32>,
    /// What the input is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
}

/// Types of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum InputType {
    String,
    Integer,
    Number,
    Boolean,
}

/// A step of the flow; exactly one of `llm` and `retrieve` is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.llm) != has(self.retrieve)").message("a node has exactly one of llm and retrieve"))]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name; templates read the node's output as `nodes.NAME`.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// Asks a model. Output: `text`, `usage.inputTokens`, `usage.outputTokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<LlmNode>,
    /// Searches an index. Output: `chunks`, a list of `text`, `uri`, `heading`, `score`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieve: Option<RetrieveNode>,
}

/// Asks a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlmNode {
    /// Alias from `spec.models`.
    #[schemars(length(min = 1, max = 63))]
    pub model: String,
    /// The conversation that is sent.
    #[schemars(length(min = 1, max = 64))]
    pub messages: Vec<Message>,
    /// Sampling.
    #[serde(default)]
    pub parameters: Parameters,
}

/// A message of the conversation; exactly one of `content` and `contentFrom` is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.content) != has(self.contentFrom)").message("set exactly one of content and contentFrom"))]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Template of the text. An undefined variable is an error, never an empty string.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub content: Option<String>,
    /// Takes the template from a ConfigMap; a change there makes a new revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_from: Option<ContentFrom>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// A template kept elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContentFrom {
    /// The ConfigMap and key.
    pub config_map_key_ref: ConfigMapKeyRef,
}

/// Sampling parameters; what is absent is left to the engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// 0 always takes the likeliest token; up to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Decimal>,
    /// Share of probability mass that is sampled from, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<Decimal>,
    /// Longest answer, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: Option<i32>,
    /// Same seed and input, same answer, where the engine supports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts at which the answer ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub stop: Vec<String>,
}

/// Searches an index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetrieveNode {
    /// Alias from `spec.indexes`.
    #[schemars(length(min = 1, max = 63))]
    pub index: String,
    /// Template of the question.
    #[schemars(length(min = 1, max = 8192))]
    pub query: String,
    /// Chunks to return. Default: the index's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub top_k: Option<i32>,
    /// Chunks whose cosine similarity to the question is lower are left out, -1 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<Decimal>,
    /// Tags that chunks must have; values are templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub filters: BTreeMap<String, String>,
}

/// A variant: the flow with some fields replaced, and its share of units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Name of the variant.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Percent of the units that get it; the variants' weights sum to 100.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// What differs from the flow, by node name; only the named fields are replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub overrides: BTreeMap<String, NodeOverride>,
}

/// Fields of a node that a variant replaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeOverride {
    /// Fields of an `llm` node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<LlmOverride>,
    /// Fields of a `retrieve` node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieve: Option<RetrieveOverride>,
}

/// Fields of an `llm` node that a variant replaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlmOverride {
    /// Alias from `spec.models`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub model: Option<String>,
    /// The whole conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub messages: Option<Vec<Message>>,
    /// Sampling parameters; those that are absent stay as in the flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// Fields of a `retrieve` node that a variant replaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetrieveOverride {
    /// Alias from `spec.indexes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub index: Option<String>,
    /// Template of the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub query: Option<String>,
    /// Chunks to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub top_k: Option<i32>,
    /// Least cosine similarity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<Decimal>,
}

/// What is assigned to a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// `Header`: the value of `header`; `User`: the `user` of the request body, else the header `llmops-user`;
    /// `Session`: the header `llmops-session`; `Request`: each request by itself. Without a value, each request by itself. Default `User`.
    #[serde(default)]
    pub unit: Unit,
    /// Header whose value is the unit, with `unit: Header`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub header: Option<String>,
    /// Mixed into the hash; another salt splits the same units anew. Default: namespace and name of the flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub salt: Option<String>,
}

impl Default for Assignment {
    fn default() -> Self {
        Self { unit: Unit::User, header: None, salt: None }
    }
}

/// What is assigned to a variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Unit {
    Header,
    #[default]
    User,
    Session,
    Request,
}

/// What is kept of each interaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowTelemetry {
    /// `None` keeps nothing; `Metadata` keeps tokens, cost, times, revision and variant; `Full` also inputs and answer. Default `Metadata`.
    #[serde(default)]
    pub capture: Capture,
    /// How long interactions are kept. Default `720h`.
    #[serde(default = "thirty_days")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub retention: Duration,
}

impl Default for FlowTelemetry {
    fn default() -> Self {
        Self { capture: Capture::Metadata, retention: thirty_days() }
    }
}

/// What is kept of each interaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Capture {
    None,
    #[default]
    Metadata,
    Full,
}

/// What decides between variants, and between a new revision and the one that serves.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.guardrails) || self.guardrails.all(g, g.metric != 'Event' || has(g.event))").message("a guardrail with metric Event needs event: the name that feedback gives"))]
#[serde(rename_all = "camelCase")]
pub struct Experiment {
    /// What should get better. Absent: only the guardrails decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// What must not get worse; one whose harm is beyond doubt rolls back at once. A ramp without a guardrail on `ErrorRate`
    /// gets one with `maxRegression: "0.02"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub guardrails: Vec<Guardrail>,
    /// Probability, over all looks and metrics, of a wrong verdict when there is no difference. Default `"0.05"`.
    #[serde(default = "five_percent")]
    pub alpha: Decimal,
    /// Units of each arm before any verdict but harm. Default 100.
    #[serde(default = "hundred")]
    #[schemars(range(min = 2, max = 1_000_000_000))]
    pub min_units: i32,
    /// Who promotes what is better. Default `Auto`.
    #[serde(default)]
    pub promotion: Promotion,
}

/// What should get better.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.metric != 'Event' || has(self.event)").message("a goal with metric Event needs event: the name that feedback gives"))]
#[serde(rename_all = "camelCase")]
pub struct Goal {
    /// What is measured, by unit.
    pub metric: MetricKind,
    /// Name of the event, with metric `Event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub event: Option<String>,
    /// Which way is better. Default: more of scores, thumbs and events, less of latency, cost and errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Loss that is tolerated: `NotWorse` says that it is not exceeded. In the metric's unit. Default `"0"`.
    #[serde(default = "nothing")]
    pub margin: Decimal,
}

/// What must not get worse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guardrail {
    /// What is measured, by unit.
    pub metric: MetricKind,
    /// Name of the event, with metric `Event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub event: Option<String>,
    /// Loss against the control that is tolerated, in the metric's unit (seconds, share, cost). Default `"0"`.
    #[serde(default = "nothing")]
    pub max_regression: Decimal,
}

/// How a new revision comes to serve.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.steps) || (self.steps.map(s, s.weight).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight)))").message("the weights of spec.rollout.steps must grow from step to step"))]
#[serde(rename_all = "camelCase")]
pub struct FlowRollout {
    /// Copies of requests for the candidate before anybody gets it. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Evaluations that a candidate must pass before anybody gets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub gates: Vec<GateRef>,
    /// The ramp; after the last step the candidate gets everybody. Absent: at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub steps: Vec<RolloutStep>,
    /// What to do when the ramp is over and the goal is undecided. Default `Hold`.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// With `experiment.promotion: Manual`: the revision (of the first changed variant, as `status.candidateRevision` shows it) that is
    /// approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[0-9a-f]+$"))]
    pub approve: Option<String>,
    /// Revisions kept besides those that serve. Default 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100))]
    pub history_limit: i32,
}

impl Default for FlowRollout {
    fn default() -> Self {
        Self {
            shadow: None,
            gates: Vec::new(),
            steps: Vec::new(),
            on_inconclusive: OnInconclusive::Hold,
            approve: None,
            history_limit: ten(),
        }
    }
}

/// What the operator observed and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromptFlowStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Serving`, `Progressing` (a rollout is under way), `Holding` (it waits for data or a person), `Waiting` for a reference, `Degraded` (the
    /// spec or its revision is refused and the last good one serves), `Failed` (nothing serves) or `Suspended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<FlowPhase>,
    /// Revision of the first variant, the one that others are compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// Revision on its way: that of the first variant that a rollout changes. Absent when none is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate_revision: Option<String>,
    /// Revisions that were refused; the last good one serves while Git still asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_revisions: Vec<RejectedRevision>,
    /// What serves outside a rollout, in full: the last release that was promoted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stable: Vec<ArmRevision>,
    /// The rollout under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// What the split has shown so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<ExperimentStatus>,
    /// Rollout and verdict in a few words, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Value of the annotation `llmops.dev/rollout-request` that was last acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_rollout_request: Option<String>,
    /// The routing table of the gateway; the weights sum to 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<FlowTraffic>,
    /// The table before `traffic`, and until when it holds: all replicas of the gateway change over at that moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<FlowSwitch>,
    /// The routing table in one line, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_summary: Option<String>,
    /// Address at the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Conditions: Ready, Reconciling, Stalled, Accepted, RefsResolved, GatesPassed, TrafficProgrammed, SampleRatioOK.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum FlowPhase {
    Serving,
    Progressing,
    Holding,
    Waiting,
    Degraded,
    Failed,
    Suspended,
}

/// A change of the routing table at an agreed moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowSwitch {
    /// When `traffic` takes over.
    pub at: Time,
    /// The table until then.
    pub from: Vec<FlowTraffic>,
}

/// Share of units of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowTraffic {
    /// The variant.
    pub variant: String,
    /// Its revision; a ControllerRevision `pf-FLOW-REVISION` holds the content.
    pub revision: String,
    /// Percent of units.
    pub weight: i32,
}

fn five_percent() -> Decimal {
    Decimal::from("0.05")
}
fn nothing() -> Decimal {
    Decimal::from("0")
}
fn hundred() -> i32 {
    100
}
fn any_value(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}
fn two() -> i32 {
    2
}
fn ten() -> i32 {
    10
}
fn one_minute() -> Duration {
    std::time::Duration::from_secs(60).into()
}
fn thirty_days() -> Duration {
    std::time::Duration::from_secs(30 * 24 * 3600).into()
}
