//! Evaluation: cases asked of a pinned revision, metrics over the answers, and a verdict.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Decimal;
use super::refs::{ConfigMapKeyRef, LocalRef};

/// Cases asked of a pinned revision, metrics over the answers, and a verdict.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llmops.dev",
    version = "v1alpha1",
    kind = "Evaluation",
    namespaced,
    status = "EvaluationStatus",
    derive = "PartialEq",
    shortname = "eval",
    category = "llmops",
    doc = "Cases asked of a pinned revision, metrics over the answers with their uncertainty, and a verdict that gates rollouts.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must have at most 40 characters, only a-z, 0-9 and '-'; names of the objects made for it are built from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.runs[0].verdict"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.runs[0].phase"),
    printcolumn(name = "Cases", type_ = "integer", json_path = ".status.runs[0].cases"),
    printcolumn(name = "Errors", type_ = "integer", json_path = ".status.runs[0].errors"),
    printcolumn(name = "Report", type_ = "string", json_path = ".status.runs[0].reportUrl", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("!has(self.gates) || self.gates.all(g, self.metrics.exists(m, m.name == g.metric))").message("every entry of spec.gates names a metric of spec.metrics"))]
#[serde(rename_all = "camelCase")]
pub struct EvaluationSpec {
    /// What is evaluated.
    pub target: Target,
    /// Variants of the flow to evaluate. Default: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub variants: Vec<String>,
    /// The cases.
    pub dataset: Dataset,
    /// What is measured of each answer.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Vec<Metric>,
    /// What the metrics must show; every gate must pass for every evaluated variant that it names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub gates: Vec<Gate>,
    /// How often each case is asked. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 20))]
    pub repeats: i32,
    /// Requests under way at once. Default 2.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: i32,
    /// Limits of a run; a run that reaches one is incomplete and passes no gate.
    #[serde(default)]
    pub budget: Budget,
    /// When runs start by themselves.
    #[serde(default)]
    pub trigger: Trigger,
    /// Formats of the report. Default: all.
    #[serde(default = "all_reports")]
    #[schemars(length(max = 3))]
    pub report: Vec<ReportFormat>,
    /// Runs kept in the status. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: i32,
    /// Stops reconciling this object. Default false.
    #[serde(default)]
    pub suspend: bool,
}

/// What is evaluated; exactly one member is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(has(self.promptFlowRef) ? 1 : 0) + (has(self.modelDeploymentRef) ? 1 : 0) + (has(self.ragIndexRef) ? 1 : 0) == 1").message("set exactly one of target.promptFlowRef, target.modelDeploymentRef and target.ragIndexRef"))]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// A PromptFlow; each column of a case that is named like an input is sent as that input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_flow_ref: Option<LocalRef>,
    /// A ModelDeployment; the column `dataset.columns.input` is sent as the user's message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_deployment_ref: Option<LocalRef>,
    /// A RagIndex; the column `dataset.columns.input` is searched for, and the answer is the text of the chunks found, best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rag_index_ref: Option<LocalRef>,
}

/// The cases: JSON Lines, one object a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// Where the cases are.
    pub config_map_ref: ConfigMapKeyRef,
    /// Format of the file. Default `Jsonl`.
    #[serde(default)]
    pub format: DatasetFormat,
    /// Which columns mean what.
    #[serde(default)]
    pub columns: Columns,
    /// Takes only the first cases. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i32>,
}

/// Format of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatasetFormat {
    /// One JSON object a line.
    #[default]
    Jsonl,
}

/// Which columns mean what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Columns {
    /// Column that identifies a case. Default `id`; without it the line number.
    #[serde(default = "id_column")]
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// Column with the question, for models. Default `question`.
    #[serde(default = "input_column")]
    #[schemars(length(min = 1, max = 63))]
    pub input: String,
    /// Column with what the answer is compared with, unless a metric names its own: a text or a list of texts. Default `expected`.
    #[serde(default = "expected_column")]
    #[schemars(length(min = 1, max = 63))]
    pub expected: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { id: id_column(), input: input_column(), expected: expected_column() }
    }
}

/// What is measured of each answer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.type != 'Regex' || has(self.pattern)").message("metric type Regex needs pattern"))]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Name of the metric; gates and reports use it.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z][a-z0-9_-]*$"))]
    pub name: String,
    /// How it is computed. `Contains`: 1 if the answer contains the expected text (or any text of a list), else 0.
    /// `Regex`: 1 if `pattern` matches. `ExactMatch`: 1 if the answer equals the expected text, spaces at the ends aside.
    /// `JsonValid`: 1 if the answer is one JSON value. `RougeL`: F-measure of the longest common subsequence of words (Lin 2004).
    /// `EmbeddingSimilarity`: cosine of the answer's and the expected text's vectors by the built-in embedder.
    /// `Latency`: seconds until the whole answer. `Cost`: cost of the answer by the models' `spec.cost`.
    pub r#type: MetricType,
    /// Column with what the answer is compared with. Default: `dataset.columns.expected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub column: Option<String>,
    /// Regular expression, for `Regex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub pattern: Option<String>,
    /// Compares without regard to case, for `Contains`, `Regex` and `ExactMatch`. Default false.
    #[serde(default)]
    pub ignore_case: bool,
}

/// How a metric is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum MetricType {
    Contains,
    Regex,
    ExactMatch,
    JsonValid,
    RougeL,
    EmbeddingSimilarity,
    Latency,
    Cost,
}

/// What a metric must show.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.min) != has(self.max)").message("a gate has exactly one of min and max"))]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Name of a metric.
    #[schemars(length(min = 1, max = 63))]
    pub metric: String,
    /// Least value that passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// Greatest value that passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Decimal>,
    /// What is compared: `LowerCI` takes the bound of the 95 % confidence interval that is worse for the gate (lower for `min`,
    /// upper for `max`), `Mean` the mean. Default `LowerCI`.
    #[serde(default)]
    pub bound: GateBound,
    /// Variants that must pass. Default: all evaluated ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub variants: Vec<String>,
}

/// What a gate compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum GateBound {
    #[default]
    LowerCI,
    Mean,
}

/// Limits of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Greatest cost of a run, in the models' currency. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Decimal>,
    /// Most tokens of a run, in and out. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<i64>,
    /// Longest time of a run. Default `30m`.
    #[serde(default = "half_an_hour")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub timeout: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { max_cost: None, max_tokens: None, timeout: half_an_hour() }
    }
}

/// When runs start by themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// Runs again when the target's revisions change. Default true; false runs once for each spec and dataset.
    #[serde(default = "yes")]
    pub on_revision: bool,
}

impl Default for Trigger {
    fn default() -> Self {
        Self { on_revision: true }
    }
}

/// Format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ReportFormat {
    Json,
    Junit,
    Html,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Runs, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
    /// Conditions: Ready, Reconciling, Stalled, Accepted, Complete, GatesPassed, Stale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Hash of spec, target revisions and dataset; names the Job.
    pub name: String,
    /// Revisions that were asked.
    pub revisions: Vec<EvaluatedRevision>,
    /// Revisions of the models and generations of the indexes that the answers came from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// Whether spec, dataset, or what the target consists of is another one now: the verdict is about the past.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// Digest of the dataset, `sha256:HEX`.
    pub dataset_digest: String,
    /// How far it is.
    pub phase: RunPhase,
    /// What the gates say, once complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When its Job started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When its Job ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// Cases of the dataset.
    #[serde(default)]
    pub cases: i32,
    /// Answers that could not be had. They count as failed cases in no metric, and an incomplete run passes no gate.
    #[serde(default)]
    pub errors: i32,
    /// Cost of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Decimal>,
    /// Results by metric and variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricResult>,
    /// Where the report is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_url: Option<String>,
}

/// A revision that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluatedRevision {
    /// The variant; for a model, its name.
    pub variant: String,
    /// Its revision.
    pub revision: String,
}

/// A revision of a model, or generation of an index, that answers came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// `ModelDeployment` or `RagIndex`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its revision or generation.
    pub revision: String,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum RunPhase {
    Running,
    Complete,
    Failed,
}

/// What the gates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Every gate passed.
    Passed,
    /// A gate did not pass.
    Failed,
    /// Too few answers, or a limit was reached: no verdict.
    Inconclusive,
}

/// Result of a metric for a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricResult {
    /// The metric.
    pub name: String,
    /// The variant.
    pub variant: String,
    /// Mean over the cases.
    pub value: Decimal,
    /// Lower bound of the 95 % confidence interval of the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower: Option<Decimal>,
    /// Upper bound of the 95 % confidence interval of the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<Decimal>,
    /// Whether its gates passed; absent without a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
}

fn one() -> i32 {
    1
}
fn two() -> i32 {
    2
}
fn five() -> i32 {
    5
}
fn yes() -> bool {
    true
}
fn id_column() -> String {
    "id".into()
}
fn input_column() -> String {
    "question".into()
}
fn expected_column() -> String {
    "expected".into()
}
fn half_an_hour() -> Duration {
    std::time::Duration::from_secs(1800).into()
}
fn all_reports() -> Vec<ReportFormat> {
    vec![ReportFormat::Json, ReportFormat::Junit, ReportFormat::Html]
}
