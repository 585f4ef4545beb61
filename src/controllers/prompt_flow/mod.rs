//! The PromptFlow controller: compiles a spec into immutable revisions and programs the routing table in the status,
//! which the gateway reads. A spec that is refused, or whose references are missing, never stops what served.

pub mod build;
pub mod compile;
pub mod status;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::ControllerRevision;

use self::compile::{Compiled, ConfigMaps, config_map_refs};
use super::error::Error;
use super::kinds::{Kind, Reference};
use super::pipeline::{Controller, Plan, Scope, Verdict, View};
use crate::api::model_deployment::Task;
use crate::api::{ModelDeployment, PromptFlow, RagIndex, conditions};

/// The PromptFlow controller.
#[derive(Debug, Clone)]
pub struct PromptFlows {
    /// Address of the gateway inside the cluster, without a slash at its end.
    gateway_url: String,
}

impl PromptFlows {
    /// The controller of flows that this gateway serves.
    pub fn new(gateway_url: &str) -> Self {
        Self { gateway_url: gateway_url.trim_end_matches('/').to_owned() }
    }
}

/// A ModelDeployment as a flow sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// What it is for.
    pub task: Task,
    /// Whether it has a revision that serves. A pod that is down for a moment does not change this.
    pub servable: bool,
}

/// What a flow depends on.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Contents of the ConfigMaps that exist.
    pub config_maps: ConfigMaps,
    /// The referenced ModelDeployments that exist, by name.
    pub models: BTreeMap<String, Model>,
    /// The referenced RagIndexes that exist, by name, each with whether a generation serves.
    pub indexes: BTreeMap<String, bool>,
    /// The revisions that exist.
    pub revisions: Vec<ControllerRevision>,
}

impl Controller for PromptFlows {
    type Object = PromptFlow;
    type Fetched = Fetched;
    type Validated = Vec<Compiled>;
    type Notes = ();

    const NAME: &'static str = "promptflow";
    const FIELD_MANAGER: &'static str = "llmops-promptflow";

    fn references(object: &PromptFlow) -> Vec<Reference> {
        let spec = &object.spec;
        let models = spec.models.values().map(|b| Reference::new(Kind::ModelDeployment, &b.model_deployment_ref.name));
        let indexes = spec.indexes.values().map(|b| Reference::new(Kind::RagIndex, &b.rag_index_ref.name));
        let config_maps = config_map_refs(spec).into_iter().map(|r| Reference::new(Kind::ConfigMap, &r.name));
        models.chain(indexes).chain(config_maps).collect::<BTreeSet<_>>().into_iter().collect()
    }

    async fn fetch(&self, scope: &Scope<'_>, object: &PromptFlow) -> Result<Fetched, Error> {
        let mut fetched = Fetched { revisions: scope.children()?, ..Fetched::default() };
        for Reference { kind, name } in Self::references(object) {
            match kind {
                Kind::ModelDeployment => {
                    if let Some(model) = scope.get::<ModelDeployment>(&name)? {
                        fetched.models.insert(name, model_facts(&model));
                    }
                }
                Kind::RagIndex => {
                    if let Some(index) = scope.get::<RagIndex>(&name)? {
                        fetched.indexes.insert(name, index.status.is_some_and(|status| status.active.is_some()));
                    }
                }
                _ => {
                    if let Some(map) = scope.config_map(&name).await? {
                        fetched.config_maps.insert(name, map.data.clone().unwrap_or_default());
                    }
                }
            }
        }
        Ok(fetched)
    }

    fn validate(&self, object: &PromptFlow, fetched: &Fetched) -> Result<Vec<Compiled>, Error> {
        build::resolve(&object.spec, fetched)
    }

    fn build(
        &self,
        object: &PromptFlow,
        fetched: &Fetched,
        validated: &Vec<Compiled>,
        _now: jiff::Timestamp,
    ) -> Result<Plan<PromptFlow, ()>, Error> {
        build::plan(object, fetched, validated)
    }

    fn status(&self, view: &View<'_, Self>) -> Verdict<PromptFlow> {
        status::verdict(&self.gateway_url, view)
    }
}

fn model_facts(model: &ModelDeployment) -> Model {
    let servable = model
        .status
        .as_ref()
        .is_some_and(|status| status.stable_revision.is_some() || conditions::is_true(&status.conditions, "Ready"));
    Model { task: model.spec.task, servable }
}

#[cfg(test)]
mod tests;
