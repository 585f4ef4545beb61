//! The RagIndex controller: a build Job for each content, proof against the golden set, retrieval pods for the
//! generation in use. The old generation serves until the new one is proven to, has passed its gates and is approved.

pub mod advance;
pub mod build;
mod gating;
pub mod job_outcome;
pub mod status;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};

use self::advance::Step;
use self::validate::Validated;
use super::error::Error;
use super::kinds::{Kind, Reference};
use super::pipeline::{Controller, Plan, Scope, Verdict, View};
use crate::api::{Evaluation, ModelDeployment, RagIndex, names};

/// The RagIndex controller.
#[derive(Debug, Clone)]
pub struct RagIndexes {
    /// Image of this binary: builder and retrieval server.
    image: String,
}

impl RagIndexes {
    /// The controller that runs builder and server from this image.
    pub fn new(image: &str) -> Self {
        Self { image: image.to_owned() }
    }
}

/// What an index depends on and owns.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The referenced ConfigMaps that exist, by name.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// The referenced volume claims that exist.
    pub claims: BTreeSet<String>,
    /// The referenced embedding model, if it exists.
    pub model: Option<ModelDeployment>,
    /// The Evaluations of `spec.gates.evaluations` that exist, by name.
    pub evaluations: BTreeMap<String, Evaluation>,
    /// The claim of the store, if it exists.
    pub store: Option<PersistentVolumeClaim>,
    /// Build Jobs.
    pub jobs: Vec<Job>,
    /// Pods of builds and of retrieval.
    pub pods: Vec<Pod>,
    /// Retrieval Deployments.
    pub deployments: Vec<Deployment>,
    /// Stored pod templates of retrieval Deployments.
    pub templates: Vec<ControllerRevision>,
}

impl Controller for RagIndexes {
    type Object = RagIndex;
    type Fetched = Fetched;
    type Validated = Validated;
    type Notes = Step;

    const NAME: &'static str = "ragindex";
    const FIELD_MANAGER: &'static str = "llmops-ragindex";

    fn references(object: &RagIndex) -> Vec<Reference> {
        let spec = &object.spec;
        let maps = spec.sources.iter().filter_map(|source| source.config_map.as_ref()).map(|map| map.name.as_str());
        let golden = spec.gates.iter().filter_map(|gates| gates.golden.as_ref());
        let maps = maps.chain(golden.map(|golden| golden.config_map_ref.name.as_str()));
        let claims = spec.sources.iter().filter_map(|source| source.pvc.as_ref());
        let model = spec.embedding.model_ref.iter().map(|model| Reference::new(Kind::ModelDeployment, &model.name));
        maps.map(|name| Reference::new(Kind::ConfigMap, name))
            .chain(claims.map(|claim| Reference::new(Kind::PersistentVolumeClaim, &claim.claim_name)))
            .chain(model)
            .chain(gating::names(spec).map(|name| Reference::new(Kind::Evaluation, name)))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    async fn fetch(&self, scope: &Scope<'_>, object: &RagIndex) -> Result<Fetched, Error> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut fetched = Fetched {
            jobs: scope.children()?,
            pods: scope.children()?,
            deployments: scope.children()?,
            templates: scope.children()?,
            store: scope.get(&names::index_store(name))?,
            ..Fetched::default()
        };
        for Reference { kind, name } in Self::references(object) {
            match kind {
                Kind::ConfigMap => {
                    if let Some(map) = scope.config_map(&name).await? {
                        fetched.config_maps.insert(name, map);
                    }
                }
                Kind::ModelDeployment => fetched.model = scope.get(&name)?,
                Kind::Evaluation => {
                    if let Some(evaluation) = scope.get(&name)? {
                        fetched.evaluations.insert(name, evaluation);
                    }
                }
                kind => {
                    if scope.exists(kind, &name) {
                        fetched.claims.insert(name);
                    }
                }
            }
        }
        Ok(fetched)
    }

    fn validate(&self, object: &RagIndex, fetched: &Fetched) -> Result<Validated, Error> {
        Ok(validate::validate(object, fetched))
    }

    fn build(
        &self,
        object: &RagIndex,
        fetched: &Fetched,
        validated: &Validated,
        now: jiff::Timestamp,
    ) -> Result<Plan<RagIndex, Step>, Error> {
        build::plan(&self.image, object, fetched, validated, now)
    }

    fn status(&self, view: &View<'_, Self>) -> Verdict<RagIndex> {
        status::verdict(view)
    }
}

#[cfg(test)]
mod tests;
