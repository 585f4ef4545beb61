//! The Evaluation controller: a Job for each combination of spec, dataset, target revisions and what these depend on, and the verdicts
//! that the Jobs leave.
//!
//! The Job's termination message carries the verdict; the status keeps it. When the message is lost before the status
//! has it (the pod was collected meanwhile), the Job is deleted and made again: asking anew is safe.

pub mod build;
pub mod fetch;
pub mod runs;
pub mod status;
pub mod subject;
pub mod validate;

use super::error::Error;
use super::kinds::{Kind, Reference};
use super::pipeline::{Controller, Plan, Scope, Verdict, View};
use crate::api::Evaluation;

pub use fetch::Fetched;
pub use validate::ValidatedEvaluation;

/// The controller's settings.
#[derive(Clone, Debug)]
pub struct Evaluations {
    /// Image of this binary, run by the Jobs.
    pub image: String,
    /// Address of the gateway inside the cluster.
    pub gateway_url: String,
}

/// Reasons of this kind's conditions.
pub mod reason {
    /// A field of the spec is wrong.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The ConfigMap of the dataset, or its key, is not there.
    pub const DATASET_NOT_FOUND: &str = "DatasetNotFound";
    /// A line of the dataset is wrong.
    pub const INVALID_DATASET: &str = "InvalidDataset";
    /// The target is not there.
    pub const TARGET_NOT_FOUND: &str = "TargetNotFound";
    /// The target, or something that it uses, has no revision that answers yet.
    pub const TARGET_NOT_READY: &str = "TargetNotReady";
    /// The flow has no variant of that name.
    pub const UNKNOWN_VARIANT: &str = "UnknownVariant";
    /// Everything that the run needs is there and fits.
    pub const VALID: &str = "Valid";
    /// A Job asks.
    pub const RUN_IN_PROGRESS: &str = "RunInProgress";
    /// The run of the present state has a report.
    pub const RUN_COMPLETE: &str = "RunComplete";
    /// The Job failed.
    pub const RUN_FAILED: &str = "RunFailed";
    /// Every gate passed.
    pub const GATES_PASSED: &str = "GatesPassed";
    /// A gate did not pass.
    pub const GATES_NOT_PASSED: &str = "GatesNotPassed";
    /// Too few answers, or a limit was reached.
    pub const INCONCLUSIVE: &str = "Inconclusive";
    /// No run of the present state is complete.
    pub const NO_VERDICT: &str = "NoVerdict";
    /// The newest verdict is about revisions that are not the present ones.
    pub const REVISIONS_CHANGED: &str = "RevisionsChanged";
    /// The newest run is about the present state.
    pub const UP_TO_DATE: &str = "UpToDate";
    /// `spec.suspend` is set.
    pub const SUSPENDED: &str = "Suspended";
    /// Nothing is wrong.
    pub const OK: &str = "AsExpected";
}

impl Controller for Evaluations {
    type Object = Evaluation;
    type Fetched = Fetched;
    type Validated = ValidatedEvaluation;
    type Notes = ();

    const NAME: &'static str = "evaluation";
    const FIELD_MANAGER: &'static str = "llmops-evaluation";
    const ORDINARY: &'static [&'static str] = &[reason::RUN_IN_PROGRESS];

    fn references(object: &Evaluation) -> Vec<Reference> {
        let target = &object.spec.target;
        let mut references = vec![Reference::new(Kind::ConfigMap, &object.spec.dataset.config_map_ref.name)];
        references.extend(target.prompt_flow_ref.iter().map(|flow| Reference::new(Kind::PromptFlow, &flow.name)));
        references
            .extend(target.model_deployment_ref.iter().map(|model| Reference::new(Kind::ModelDeployment, &model.name)));
        references.extend(target.rag_index_ref.iter().map(|index| Reference::new(Kind::RagIndex, &index.name)));
        // The models and indexes of a flow are known only once its revisions are read: `fetch` follows them.
        references
    }

    async fn fetch(&self, scope: &Scope<'_>, object: &Evaluation) -> Result<Fetched, Error> {
        fetch::fetch(scope, object).await
    }

    fn validate(&self, object: &Evaluation, fetched: &Fetched) -> Result<ValidatedEvaluation, Error> {
        validate::validate(object, fetched, &self.gateway_url)
    }

    fn build(
        &self,
        object: &Evaluation,
        fetched: &Fetched,
        validated: &ValidatedEvaluation,
        _now: jiff::Timestamp,
    ) -> Result<Plan<Evaluation, ()>, Error> {
        build::build(object, fetched, validated, &self.image)
    }

    fn status(&self, view: &View<'_, Self>) -> Verdict<Evaluation> {
        status::status(view, &self.gateway_url)
    }
}

#[cfg(test)]
mod tests;
