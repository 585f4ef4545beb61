//! What a flow revision is: the compiled content of one variant, kept in an immutable ControllerRevision and read by
//! the gateway. Its hash is the revision's name, so fields that do not decide behaviour have no place here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::prompt_flow::{Input, Parameters, Role};
use super::quantity::Decimal;

/// The compiled content of one variant of a flow; the `data` of a ControllerRevision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRevision {
    /// Format of this content; a gateway refuses a newer one than it knows.
    pub format: u32,
    /// Models by alias.
    pub models: BTreeMap<String, FlowModel>,
    /// Name of the RagIndex by alias.
    pub indexes: BTreeMap<String, String>,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Input>,
    /// Steps in an order in which each comes after those whose output it reads.
    pub nodes: Vec<FlowNode>,
    /// Template of the answer.
    pub output: String,
}

/// The format that this version writes.
pub const FLOW_FORMAT: u32 = 1;

/// A model that nodes call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowModel {
    /// Name of the ModelDeployment.
    pub deployment: String,
    /// Longest time for a whole answer, in milliseconds.
    pub timeout_ms: u64,
    /// How often a call that failed before its first byte is tried again.
    pub retries: u32,
    /// Aliases tried in turn when this model fails before its first byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowNode {
    /// Name; templates read the output as `nodes.NAME`.
    pub name: String,
    /// Names of the nodes whose output it reads; nodes without unfinished dependencies may run at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// What it does.
    #[serde(flatten)]
    pub step: Step,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Asks a model.
    Llm {
        /// Alias of the model.
        model: String,
        /// The conversation; contents are templates, ConfigMaps resolved.
        messages: Vec<FlowMessage>,
        /// Sampling.
        parameters: Parameters,
    },
    /// Searches an index.
    #[serde(rename_all = "camelCase")]
    Retrieve {
        /// Alias of the index.
        index: String,
        /// Template of the question.
        query: String,
        /// Chunks to return; absent: the index's own number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        top_k: Option<i32>,
        /// Least cosine similarity.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_score: Option<Decimal>,
        /// Tags that chunks must have; values are templates.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        filters: BTreeMap<String, String>,
    },
}

/// A message of the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowMessage {
    /// Who speaks.
    pub role: Role,
    /// Template of the text.
    pub content: String,
}
