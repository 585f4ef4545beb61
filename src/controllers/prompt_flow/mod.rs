//! The PromptFlow controller: compiles a spec into immutable revisions and programs the routing table in the status,
//! which the gateway reads. A spec that is refused, or whose references are missing, never stops what served.
//!
//! `validate` compiles; `build` asks [`crate::rollout`] what to do with the release that the spec asks for, and creates
//! its revisions; `status` writes the decision: routing table, rollout and remembered rejections in one write.

pub mod build;
pub mod compile;
pub mod rollout;
pub mod split;
pub mod status;
mod summary;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt;

use self::compile::{Compiled, ConfigMaps, config_map_refs};
use self::rollout::Outcome;
use super::error::Error;
use super::kinds::{Kind, Reference};
use super::measure::{Measure, Measured, Of};
use super::pipeline::{Controller, Plan, Scope, Verdict, View};
use crate::api::model_deployment::Task;
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex, conditions};
use crate::rollout::is_under_way;

/// The PromptFlow controller.
#[derive(Clone)]
pub struct PromptFlows {
    /// Address of the gateway inside the cluster, without a slash at its end.
    gateway_url: String,
    /// What users' requests have shown.
    measure: Arc<dyn Measure>,
}

impl PromptFlows {
    /// The controller of flows that this gateway serves and measures.
    pub fn new(gateway_url: &str, measure: Arc<dyn Measure>) -> Self {
        Self { gateway_url: gateway_url.trim_end_matches('/').to_owned(), measure }
    }
}

/// A flow after its checks.
#[derive(Debug, Clone, Default)]
pub struct Valid {
    /// The variants; empty when a rollout is under way and its spec cannot be compiled now.
    pub compiled: Vec<Compiled>,
    /// Why the spec could not begin a rollout. Only while one is under way: that is held where it is, and its harm
    /// still seen.
    pub problem: Option<Error>,
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
    /// The Evaluations of the gates that exist, by name.
    pub evaluations: BTreeMap<String, Evaluation>,
    /// What users' requests have shown, where that decides something.
    pub measured: Measured,
    /// The revisions that exist.
    pub revisions: Vec<ControllerRevision>,
}

impl Controller for PromptFlows {
    type Object = PromptFlow;
    type Fetched = Fetched;
    type Validated = Valid;
    type Notes = Outcome;

    const NAME: &'static str = "promptflow";
    const FIELD_MANAGER: &'static str = "llmops-promptflow";

    fn references(object: &PromptFlow) -> Vec<Reference> {
        let spec = &object.spec;
        let models = spec.models.values().map(|b| Reference::new(Kind::ModelDeployment, &b.model_deployment_ref.name));
        let indexes = spec.indexes.values().map(|b| Reference::new(Kind::RagIndex, &b.rag_index_ref.name));
        let config_maps = config_map_refs(spec).into_iter().map(|r| Reference::new(Kind::ConfigMap, &r.name));
        let gates = spec.rollout.gates.iter().map(|g| Reference::new(Kind::Evaluation, &g.evaluation_ref.name));
        models.chain(indexes).chain(config_maps).chain(gates).collect::<BTreeSet<_>>().into_iter().collect()
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
                Kind::Evaluation => {
                    if let Some(evaluation) = scope.get::<Evaluation>(&name)? {
                        fetched.evaluations.insert(name, evaluation);
                    }
                }
                _ => {
                    if let Some(map) = scope.config_map(&name).await? {
                        fetched.config_maps.insert(name, map.data.clone().unwrap_or_default());
                    }
                }
            }
        }
        if let Some(since) = rollout::measured_since(object) {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            fetched.measured = self.measure.measure(&namespace, Of::Flow(&name), since).await.into();
        }
        Ok(fetched)
    }

    fn validate(&self, object: &PromptFlow, fetched: &Fetched) -> Result<Valid, Error> {
        match build::resolve(&object.spec, fetched) {
            Ok(compiled) => Ok(Valid { compiled, problem: None }),
            Err(problem @ (Error::Waiting { .. } | Error::Stalled { .. })) if in_rollout(object) => {
                let compiled = compile::compile(&object.spec, &fetched.config_maps).unwrap_or_default();
                Ok(Valid { compiled, problem: Some(problem) })
            }
            Err(error) => Err(error),
        }
    }

    fn build(
        &self,
        object: &PromptFlow,
        fetched: &Fetched,
        validated: &Valid,
        now: jiff::Timestamp,
    ) -> Result<Plan<PromptFlow, Outcome>, Error> {
        let outcome = rollout::decide(object, fetched, validated, now);
        build::plan(object, fetched, &validated.compiled, outcome)
    }

    fn status(&self, view: &View<'_, Self>) -> Verdict<PromptFlow> {
        status::verdict(&self.gateway_url, view)
    }
}

fn in_rollout(object: &PromptFlow) -> bool {
    object.status.as_ref().and_then(|status| status.rollout.as_ref()).is_some_and(is_under_way)
}

fn model_facts(model: &ModelDeployment) -> Model {
    let servable = model
        .status
        .as_ref()
        .is_some_and(|status| status.stable_revision.is_some() || conditions::is_true(&status.conditions, "Ready"));
    Model { task: model.spec.task, servable }
}

#[cfg(test)]
mod rollout_tests;
#[cfg(test)]
mod tests;
