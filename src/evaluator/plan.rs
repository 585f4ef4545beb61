//! The contract between the Evaluation controller and the Job of a run.
//!
//! The controller renders an [`EvaluationPlan`] as JSON into the environment variable [`PLAN_ENV`]; the Job reads the dataset below
//! [`DATASET_MOUNT`], asks the gateway with the token [`TOKEN_FILE`], and leaves a [`RunSummary`] as its termination message.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::evaluation::{
    Budget, Columns, Dependency, EvaluatedRevision, Gate, Metric, MetricResult, ReportFormat, Verdict,
};
use crate::api::model_deployment::Cost;
use crate::api::prompt_flow::Input;
use crate::api::quantity::Decimal;
use crate::api::revision::revision_of;
use crate::termination::{LIMIT, shorten};

/// Environment variable of the Job that holds the [`EvaluationPlan`] as JSON.
pub const PLAN_ENV: &str = "LLMOPS_EVALUATION_PLAN";
/// Environment variable of the Job that holds its own UID: its attempts share their answers.
pub const JOB_ENV: &str = "LLMOPS_EVALUATION_JOB";
/// Where the dataset's ConfigMap is mounted; the file is named like the key.
pub const DATASET_MOUNT: &str = "/var/run/llmops/dataset";
/// Folder of the projected ServiceAccount token.
pub const TOKEN_MOUNT: &str = "/var/run/secrets/llmops";
/// File of the projected ServiceAccount token.
pub const TOKEN_FILE: &str = "/var/run/secrets/llmops/token";
/// Audience of the token.
pub const TOKEN_AUDIENCE: &str = "llmops-gateway";
/// Exit code for a mistake that a retry cannot mend.
pub const EXIT_CONFIGURATION: u8 = 42;
/// What the Job's deadline adds to the budget's timeout: room to start, and to write the reports of what was asked in time.
pub const DEADLINE_MARGIN: Duration = Duration::from_secs(60);

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationPlan {
    /// Address of the gateway. Not part of the run's identity.
    pub gateway_url: String,
    /// Name of the run, as [`EvaluationPlan::run_name`] computes it. Not part of itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// Namespace of Evaluation and target.
    pub namespace: String,
    /// Name of the Evaluation.
    pub evaluation: String,
    /// What is asked.
    pub target: PlannedTarget,
    /// The revisions that are asked, pinned; the first is the baseline.
    pub revisions: Vec<EvaluatedRevision>,
    /// Revisions of the models and generations of the indexes that the flow uses, pinned with every question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// The cases.
    pub dataset: PlannedDataset,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// What must be shown.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// How often each case is asked.
    pub repeats: u32,
    /// Requests under way at once.
    pub concurrency: u32,
    /// Limits of the run.
    pub budget: Budget,
    /// Reports to write.
    pub report: Vec<ReportFormat>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PlannedTarget {
    /// A PromptFlow.
    #[serde(rename_all = "camelCase")]
    Flow {
        /// Its name.
        name: String,
        /// Its inputs; a column of a case that is named like one is sent as it.
        inputs: BTreeMap<String, Input>,
    },
    /// A ModelDeployment.
    #[serde(rename_all = "camelCase")]
    Model {
        /// Its name.
        name: String,
        /// What its tokens cost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost: Option<Cost>,
    },
    /// A RagIndex; the answer is the text of the chunks found, the best first.
    #[serde(rename_all = "camelCase")]
    Index {
        /// Its name.
        name: String,
        /// Tags that every search must filter on; the columns of a case that are named like them are sent as their values.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        filters: Vec<String>,
    },
}

impl PlannedTarget {
    /// Name of the object.
    pub fn name(&self) -> &str {
        match self {
            Self::Flow { name, .. } | Self::Model { name, .. } | Self::Index { name, .. } => name,
        }
    }
    /// Kind of the object.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flow { .. } => "PromptFlow",
            Self::Model { .. } => "ModelDeployment",
            Self::Index { .. } => "RagIndex",
        }
    }
}

/// Kind of a [`Dependency`] on a model.
pub const MODEL: &str = "ModelDeployment";
/// Kind of a [`Dependency`] on an index.
pub const INDEX: &str = "RagIndex";

/// The cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDataset {
    /// Name of the ConfigMap.
    pub config_map: String,
    /// Its key, and the file's name below [`DATASET_MOUNT`].
    pub key: String,
    /// Digest of the text, `sha256:HEX`. The Job asks nothing until the mounted file has it.
    pub digest: String,
    /// Which columns mean what.
    pub columns: Columns,
    /// Takes only the first cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl EvaluationPlan {
    /// Name of the run: the hash of what decides it. Without `on_revision` the target's revisions, their inputs and what they depend on do
    /// not count, so that a new revision starts no new run.
    ///
    /// # Errors
    /// Never for plans that were read from JSON or built from an Evaluation.
    pub fn run_name(&self, on_revision: bool) -> Result<String, serde_json::Error> {
        let mut identity = self.clone();
        identity.gateway_url.clear();
        identity.run.clear();
        if !on_revision {
            identity.revisions.iter_mut().for_each(|revision| revision.revision.clear());
            identity.dependencies.clear();
            if let PlannedTarget::Flow { inputs, .. } = &mut identity.target {
                inputs.clear();
            }
        }
        revision_of(&identity)
    }

    /// The header `llmops-pin` of a question to a revision.
    pub fn pin(&self, revision: &EvaluatedRevision) -> String {
        let own = match &self.target {
            PlannedTarget::Flow { .. } => format!("flow={}", revision.revision),
            PlannedTarget::Model { name, .. } => format!("model/{name}={}", revision.revision),
            PlannedTarget::Index { name, .. } => format!("index/{name}={}", revision.revision),
        };
        let mut pins = vec![own];
        pins.extend(self.dependencies.iter().map(|used| {
            let kind = if used.kind == INDEX { "index" } else { "model" };
            format!("{kind}/{}={}", used.name, used.revision)
        }));
        pins.join(";")
    }

    /// Address of the run's reports at the gateway.
    pub fn report_url(&self) -> String {
        let base = self.gateway_url.trim_end_matches('/');
        format!("{base}/v1/reports/{}/{}/{}", self.namespace, self.evaluation, self.run)
    }
}

/// What the Job says at its end: at most 4096 bytes of JSON, the length of a termination message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// What the gates say; absent when the run could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why, in a sentence.
    #[serde(default)]
    pub message: String,
    /// Cases of the dataset.
    #[serde(default)]
    pub cases: i32,
    /// Answers that could not be had.
    #[serde(default)]
    pub errors: i32,
    /// Cost of the run, where the models have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Decimal>,
    /// Results by metric and variant; those with gates first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricResult>,
    /// Results that did not fit and are only in the report.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: i32,
    /// Whether the reports are at the gateway.
    #[serde(default)]
    pub reported: bool,
}

impl RunSummary {
    /// The summary of a run that could not be done.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Shortens the message and leaves out the last results until the JSON fits into a termination message.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        self.message = shorten(&self.message, 1024);
        while serde_json::to_string(&self).map_or(0, |text| text.len()) > LIMIT && self.metrics.pop().is_some() {
            self.omitted += 1;
        }
        self
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_always_fits() {
        let metric = |index: usize| MetricResult {
            name: format!("metric-{index}"),
            variant: "a-rather-long-variant-name".into(),
            value: Decimal::from("0.5000"),
            lower: Some(Decimal::from("0.4000")),
            upper: Some(Decimal::from("0.6000")),
            passed: Some(false),
        };
        let summary =
            RunSummary { metrics: (0..256).map(metric).collect(), ..RunSummary::failure("\"ä\n".repeat(3000)) };
        let fitted = summary.fitted();
        assert!(serde_json::to_string(&fitted).unwrap().len() <= LIMIT);
        assert_eq!(fitted.metrics.len() + fitted.omitted as usize, 256);
        assert_eq!(fitted.metrics[0].name, "metric-0");
    }
}
