//! What decides a run, from the caches.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};

use crate::api::{Evaluation, ModelDeployment, PromptFlow};
use crate::controllers::error::Error;
use crate::controllers::pipeline::Scope;

/// What was found around an Evaluation.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// The target, when it is a flow that exists.
    pub flow: Option<PromptFlow>,
    /// The target, when it is a model that exists.
    pub model: Option<ModelDeployment>,
    /// The ConfigMap of the dataset.
    pub dataset: Option<Arc<ConfigMap>>,
    /// Jobs of runs.
    pub jobs: Vec<Job>,
    /// Pods of the Jobs.
    pub pods: Vec<Pod>,
}

/// Reads the target, the dataset and what the Evaluation owns.
///
/// # Errors
/// When something cannot be read or does not fit its type.
pub async fn fetch(scope: &Scope<'_>, object: &Evaluation) -> Result<Fetched, Error> {
    let target = &object.spec.target;
    Ok(Fetched {
        flow: target.prompt_flow_ref.as_ref().map(|flow| scope.get(&flow.name)).transpose()?.flatten(),
        model: target.model_deployment_ref.as_ref().map(|model| scope.get(&model.name)).transpose()?.flatten(),
        dataset: scope.config_map(&object.spec.dataset.config_map_ref.name).await?,
        jobs: scope.children()?,
        pods: scope.children()?,
    })
}
