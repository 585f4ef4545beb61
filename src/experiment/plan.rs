//! What is compared and how surely: the plan of an experiment, from the spec.

use crate::api::prompt_flow::Experiment;
use crate::api::quantity::Decimal;
use crate::api::rollout::{Direction, MetricKind};

/// What statuses call the treatment of a ramp, whatever its revision.
pub const CANDIDATE: &str = "candidate";
/// Loss in the error rate that a ramp tolerates when its spec says nothing, as a share of requests.
pub const IMPLICIT_ERROR_RATE: f64 = 0.02;
const ALPHA: f64 = 0.05;
const MIN_UNITS: u64 = 100;

/// A metric, and which way is better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// What is measured.
    pub kind: MetricKind,
    /// Name of the event, with [`MetricKind::Event`].
    pub event: Option<String>,
    /// Which way is better.
    pub better: Direction,
}

impl Metric {
    /// Least and greatest value of a unit; `None` when there is no bound.
    pub fn range(&self) -> Option<(f64, f64)> {
        match self.kind {
            MetricKind::FeedbackScore => Some((-1.0, 1.0)),
            MetricKind::Thumbs | MetricKind::Event | MetricKind::JudgeScore | MetricKind::ErrorRate => Some((0.0, 1.0)),
            MetricKind::Latency | MetricKind::Cost => None,
        }
    }

    /// Name in status and events: `Thumbs`, `Event/bought`.
    pub fn name(&self) -> String {
        match &self.event {
            Some(event) => format!("{:?}/{event}", self.kind),
            None => format!("{:?}", self.kind),
        }
    }
}

/// A metric, and the loss that is tolerated in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The metric.
    pub metric: Metric,
    /// Loss against the control that is tolerated, at least 0, in the metric's unit.
    pub tolerated: f64,
}

/// What is compared, and how surely.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What should get better.
    pub goal: Option<Compared>,
    /// What must not get worse.
    pub guardrails: Vec<Compared>,
    /// Error probability of each metric of each comparison: the experiment's alpha, divided by their number.
    pub alpha: f64,
    /// Units of each arm before any verdict but a guardrail's harm.
    pub min_units: u64,
}

/// Why a spec makes no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Not a probability.
    #[error(
        "spec.experiment.alpha is {0}: give the tolerated probability of a wrong verdict, above 0 and at most 0.5, such as \"0.05\""
    )]
    Alpha(Decimal),
    /// A loss cannot be negative.
    #[error("{field} is {value}: give the loss that is tolerated in the metric's unit, 0 or more, such as \"0.05\"")]
    Tolerated {
        /// The field.
        field: String,
        /// What it says.
        value: Decimal,
    },
}

impl Plan {
    /// The plan of a spec. `ramp` says whether this is the ramp of a rollout: then there is always a guardrail on the error rate.
    /// `comparisons` is the number of treatments that are compared with the control (alpha is shared by them), at least 1.
    ///
    /// # Errors
    /// When alpha is no probability or a tolerated loss is negative.
    pub fn new(experiment: Option<&Experiment>, ramp: bool, comparisons: usize) -> Result<Self, PlanError> {
        let goal = experiment.and_then(|experiment| experiment.goal.as_ref()).map(|goal| {
            let better = goal.direction.unwrap_or_else(|| goal.metric.direction());
            let metric = metric(goal.metric, goal.event.as_ref(), better);
            Ok(Compared { metric, tolerated: tolerated("spec.experiment.goal.margin".into(), &goal.margin)? })
        });
        let listed = experiment.map(|experiment| experiment.guardrails.as_slice()).unwrap_or_default();
        let mut guardrails = listed
            .iter()
            .enumerate()
            .map(|(place, guardrail)| {
                let field = format!("spec.experiment.guardrails[{place}].maxRegression");
                let metric = metric(guardrail.metric, guardrail.event.as_ref(), guardrail.metric.direction());
                Ok(Compared { metric, tolerated: tolerated(field, &guardrail.max_regression)? })
            })
            .collect::<Result<Vec<_>, PlanError>>()?;
        if ramp && !guardrails.iter().any(|guardrail| guardrail.metric.kind == MetricKind::ErrorRate) {
            let metric = metric(MetricKind::ErrorRate, None, Direction::Decrease);
            guardrails.push(Compared { metric, tolerated: IMPLICIT_ERROR_RATE });
        }
        let goal = goal.transpose()?;
        let alpha = experiment.map_or(Ok(ALPHA), |experiment| {
            let alpha = experiment.alpha.value().filter(|alpha| *alpha > 0.0 && *alpha <= 0.5);
            alpha.ok_or_else(|| PlanError::Alpha(experiment.alpha.clone()))
        })?;
        let parts = (guardrails.len() + usize::from(goal.is_some())).max(1) * comparisons.max(1);
        let min_units =
            experiment.map_or(MIN_UNITS, |experiment| u64::try_from(experiment.min_units).unwrap_or(0).max(2));
        Ok(Self { goal, guardrails, alpha: alpha / parts as f64, min_units })
    }
}

fn metric(kind: MetricKind, event: Option<&String>, better: Direction) -> Metric {
    Metric { kind, event: event.filter(|_| kind == MetricKind::Event).cloned(), better }
}

fn tolerated(field: String, value: &Decimal) -> Result<f64, PlanError> {
    value.value().filter(|loss| *loss >= 0.0).ok_or_else(|| PlanError::Tolerated { field, value: value.clone() })
}
