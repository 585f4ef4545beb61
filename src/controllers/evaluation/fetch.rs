//! What decides a run, from the caches.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};

use super::subject;
use crate::api::flow_revision::FlowRevision;
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex, names};
use crate::controllers::error::Error;
use crate::controllers::pipeline::Scope;

/// What was found around an Evaluation.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// The target, when it is a flow that exists.
    pub flow: Option<PromptFlow>,
    /// Contents of the flow's revisions that may be asked, by revision.
    pub revisions: BTreeMap<String, FlowRevision>,
    /// The target, or the models that the flow's revisions use, by name.
    pub models: BTreeMap<String, ModelDeployment>,
    /// The target, or the indexes that the flow's revisions use, by name.
    pub indexes: BTreeMap<String, RagIndex>,
    /// The ConfigMap of the dataset.
    pub dataset: Option<Arc<ConfigMap>>,
    /// Jobs of runs.
    pub jobs: Vec<Job>,
    /// Pods of the Jobs.
    pub pods: Vec<Pod>,
}

/// Reads the target, what it uses, the dataset and what the Evaluation owns.
///
/// # Errors
/// When something cannot be read or does not fit its type.
pub async fn fetch(scope: &Scope<'_>, object: &Evaluation) -> Result<Fetched, Error> {
    let target = &object.spec.target;
    let mut fetched = Fetched {
        flow: target.prompt_flow_ref.as_ref().map(|flow| scope.get(&flow.name)).transpose()?.flatten(),
        dataset: scope.config_map(&object.spec.dataset.config_map_ref.name).await?,
        jobs: scope.children()?,
        pods: scope.children()?,
        ..Fetched::default()
    };
    let mut models: Vec<String> = target.model_deployment_ref.iter().map(|model| model.name.clone()).collect();
    let mut indexes: Vec<String> = target.rag_index_ref.iter().map(|index| index.name.clone()).collect();
    if let (Some(flow), Some(reference)) = (&fetched.flow, &target.prompt_flow_ref) {
        for arm in subject::arms(flow).into_iter().flatten() {
            if fetched.revisions.contains_key(&arm.revision) {
                continue;
            }
            let kept: Option<ControllerRevision> =
                scope.follow(&names::flow_revision(&reference.name, &arm.revision))?;
            // Contents that this version cannot read are as if they were not there: the flow's controller makes them anew.
            let content: Option<FlowRevision> =
                kept.and_then(|kept| kept.data).and_then(|data| serde_json::from_value(data.0).ok());
            let Some(content) = content else { continue };
            models.extend(content.models.values().map(|model| model.deployment.clone()));
            indexes.extend(content.indexes.values().cloned());
            fetched.revisions.insert(arm.revision, content);
        }
    }
    models.sort();
    models.dedup();
    for name in models {
        if let Some(model) = scope.follow(&name)? {
            fetched.models.insert(name, model);
        }
    }
    indexes.sort();
    indexes.dedup();
    for name in indexes {
        if let Some(index) = scope.follow(&name)? {
            fetched.indexes.insert(name, index);
        }
    }
    Ok(fetched)
}
