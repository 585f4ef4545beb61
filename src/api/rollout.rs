//! How a new revision comes to serve: gates, steps, decisions of people, and what the status tells of it. Shared by the
//! kinds that have revisions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Decimal;
use super::refs::LocalRef;

/// An Evaluation that a candidate must pass before it gets any traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateRef {
    /// The Evaluation. It runs against the candidate, pinned; its verdict must be `Passed`.
    pub evaluation_ref: LocalRef,
}

/// A step of the ramp.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStep {
    /// Percent of the units that get the candidate; grows from step to step.
    #[schemars(range(min = 1, max = 99))]
    pub weight: i32,
    /// Least time at this weight. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub min_duration: Option<Duration>,
    /// Units that must have met the candidate at this step before the next one. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub min_units: i32,
}

/// Copies of requests that the candidate answers without anybody seeing it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// Percent of the requests that are copied.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
    /// Least time in shadow before the first step. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$"))]
    pub min_duration: Option<Duration>,
    /// Copies that the candidate must have answered before the first step. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub min_requests: i32,
}

/// What to do when the ramp is over and the data do not decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnInconclusive {
    /// Stay at the last step until the data or a person decide.
    #[default]
    Hold,
    /// Promote: nothing speaks against the candidate.
    Promote,
    /// Roll back: nothing speaks for it.
    Rollback,
}

/// Who promotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Promotion {
    /// The operator, when the verdict allows it.
    #[default]
    Auto,
    /// A person: `rollout.approve` in Git, or `llmops promote`.
    Manual,
}

/// A revision that was refused; it is not tried again until the spec asks for another one in between, or a person asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedRevision {
    /// The revision.
    pub revision: String,
    /// CamelCase reason.
    pub reason: String,
    /// What happened and what helps.
    pub message: String,
    /// When it was rejected.
    pub time: Time,
}

/// A variant's revision; for a model its name and revision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArmRevision {
    /// The variant.
    pub variant: String,
    /// Its revision.
    pub revision: String,
    /// Its share when it serves alone, in percent; the arms of a release sum to 100.
    pub weight: i32,
}

/// How far a rollout is. `Promoted` and `RolledBack` are ends; all others go on by themselves or say what they wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutPhase {
    /// The candidate starts; nobody gets it.
    Preparing,
    /// Its gates run; nobody gets it.
    Gating,
    /// It answers copies of requests; nobody sees them.
    Shadowing,
    /// It serves the share of the present step.
    Progressing,
    /// The ramp is over and a person must approve.
    AwaitingApproval,
    /// A person holds it, or the data do not decide, or a gate gave no verdict; `message` says which.
    Holding,
    /// It serves everybody.
    Promoted,
    /// It serves nobody; `rejectedRevisions` says why.
    RolledBack,
}

/// Verdict of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateVerdict {
    /// Its run is not over.
    Pending,
    /// Every gate of the Evaluation passed.
    Passed,
    /// A gate of the Evaluation did not pass.
    Failed,
    /// The run gave no verdict; the gate stays shut.
    Inconclusive,
}

/// How a gate stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// Name of the Evaluation.
    pub evaluation: String,
    /// Its run against the candidate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What it says.
    pub verdict: GateVerdict,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The rollout under way, or the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// How far it is.
    pub phase: RolloutPhase,
    /// What served when it began, and serves again if it is rolled back. Empty for the first revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stable: Vec<ArmRevision>,
    /// What it brings.
    pub candidate: Vec<ArmRevision>,
    /// When it began.
    pub started: Time,
    /// Place of the present step in `spec.rollout.steps`, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// When the present phase or step began.
    pub since: Time,
    /// Percent of units that get the candidate.
    #[serde(default)]
    pub weight: i32,
    /// How the gates stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateStatus>,
    /// Whether a person holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What it does or waits for, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What a metric of an experiment or a ramp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExperimentVerdict {
    /// The treatment is better than the control by more than nothing.
    Better,
    /// The treatment is not worse than the control by more than the margin.
    NotWorse,
    /// The treatment is worse than the control.
    Worse,
    /// Not enough data to say.
    Inconclusive,
    /// The split is not what was asked for; nothing can be said.
    Invalid,
}

/// A metric that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MetricKind {
    /// Mean score of feedback, -1 to 1.
    FeedbackScore,
    /// Share of feedback with thumbs up, 0 to 1.
    Thumbs,
    /// Share of units with the event, 0 to 1.
    Event,
    /// Mean score that a judge gave, 0 to 1. A judge that failed gave no score.
    JudgeScore,
    /// Seconds to the end of the answer.
    Latency,
    /// Cost of an answer, in the models' currency.
    Cost,
    /// Share of requests that failed or were answered by a fallback model, 0 to 1.
    ErrorRate,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Direction {
    Increase,
    Decrease,
}

impl MetricKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::FeedbackScore, Self::Thumbs, Self::Event, Self::JudgeScore, Self::Latency, Self::Cost, Self::ErrorRate];

    /// Whether it is a share: a unit has it or not, and differences are told in percentage points. A judge's score is none, although it lies
    /// between 0 and 1: it grades each answer.
    pub fn is_share(self) -> bool {
        match self {
            Self::Thumbs | Self::Event | Self::ErrorRate => true,
            Self::FeedbackScore | Self::JudgeScore | Self::Latency | Self::Cost => false,
        }
    }

    /// What a metric of a status is, by its name: `ErrorRate`, or `Event/bought` with the event's name.
    pub fn named(name: &str) -> Option<(Self, Option<&str>)> {
        let (kind, event) = name.split_once('/').map_or((name, None), |(kind, event)| (kind, Some(event)));
        Self::ALL.into_iter().find(|known| format!("{known:?}") == kind).map(|kind| (kind, event))
    }

    /// Which way is better, unless the spec says otherwise.
    pub fn direction(self) -> Direction {
        match self {
            Self::FeedbackScore | Self::Thumbs | Self::Event | Self::JudgeScore => Direction::Increase,
            Self::Latency | Self::Cost | Self::ErrorRate => Direction::Decrease,
        }
    }
}

/// A metric between a treatment and its control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparisonStatus {
    /// The metric: `FeedbackScore`, `Event/bought`, …
    pub name: String,
    /// Whether it is the goal; otherwise a guardrail.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goal: bool,
    /// Variant, or `candidate` in a rollout, that is compared with the control.
    pub arm: String,
    /// Mean of the control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Decimal>,
    /// Mean of the treatment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub treatment: Option<Decimal>,
    /// Treatment minus control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Decimal>,
    /// Lower end of the confidence sequence for the difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower: Option<Decimal>,
    /// Upper end of the confidence sequence for the difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<Decimal>,
    /// Units of the control that the metric was seen on.
    #[serde(default)]
    pub control_units: i64,
    /// Units of the treatment that the metric was seen on.
    #[serde(default)]
    pub treatment_units: i64,
    /// What it says.
    pub verdict: ExperimentVerdict,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What the split has shown so far: of the rollout under way, else between the variants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExperimentStatus {
    /// Units that were seen.
    #[serde(default)]
    pub units: i64,
    /// p-value of the sample-ratio check (chi-square): below 0.001 the split is not what was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srm_p_value: Option<Decimal>,
    /// Place of the rollout's step, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// The metrics, the goal first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<ComparisonStatus>,
    /// When this was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Time>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_known_by_its_name() {
        for kind in MetricKind::ALL {
            assert_eq!(MetricKind::named(&format!("{kind:?}")), Some((kind, None)));
        }
        assert_eq!(MetricKind::named("Event/ThumbsUp"), Some((MetricKind::Event, Some("ThumbsUp"))));
        assert_eq!(MetricKind::named("ThumbsUp"), None);
        assert_eq!(
            MetricKind::ALL.map(MetricKind::is_share),
            [false, true, true, false, false, false, true],
            "a judge's score is told as it is, not in points"
        );
    }
}
