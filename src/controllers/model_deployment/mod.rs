//! ModelDeployment: a Deployment for each revision, a Service that selects the one that serves, and the order in which
//! they replace each other.
//!
//! With gates, steps or an approval (`build/guarded.rs`) the machine of [`crate::rollout`] decides what serves, in a ramp by what the gateway has
//! measured.
//!
//! `fetch → validate → build → apply → status`; only `fetch` does I/O. The engines' knowledge is in `engines/`.

pub mod build;
pub mod engines;
pub mod fetch;
pub mod outside;
pub(crate) mod reasons;
pub mod revision;
mod status;
pub mod troubles;
pub mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use kube::ResourceExt as _;

use crate::api::ModelDeployment;
use crate::controllers::Config;
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};
use crate::controllers::measure::{Measure, Of};
use crate::controllers::pipeline::{Controller, Plan, Scope, Verdict, View};

use build::Notes;
use fetch::Fetched;
use outside::Outside;
use validate::Validated;

/// The controller of ModelDeployments.
pub struct ModelDeployments {
    /// Image of this binary, for downloads.
    image: String,
    outside: Outside,
    /// What users' requests have shown.
    measure: Arc<dyn Measure>,
}

impl ModelDeployments {
    /// A controller with these settings.
    pub fn new(config: &Config) -> Self {
        Self {
            image: config.image.clone(),
            outside: Outside::new(Arc::clone(&config.outside)),
            measure: Arc::clone(&config.measure),
        }
    }
}

impl Controller for ModelDeployments {
    type Object = ModelDeployment;
    type Fetched = Fetched;
    type Validated = Validated;
    type Notes = Notes;

    const NAME: &'static str = "modeldeployment";
    const FIELD_MANAGER: &'static str = "llmops-modeldeployment";

    fn references(object: &ModelDeployment) -> Vec<Reference> {
        let spec = &object.spec;
        let model = spec.model.as_ref();
        let secrets = [
            model.and_then(|model| model.credentials_ref.as_ref()),
            spec.external.as_ref().and_then(|external| external.credentials_ref.as_ref()),
        ];
        let volume = model.and_then(|model| model.source.as_ref()).and_then(|source| source.pvc.as_ref());
        secrets
            .into_iter()
            .flatten()
            .map(|secret| Reference::new(Kind::Secret, secret.name.as_str()))
            .chain(volume.map(|volume| Reference::new(Kind::PersistentVolumeClaim, volume.claim_name.as_str())))
            .chain(spec.rollout.gates.iter().map(|gate| Reference::new(Kind::Evaluation, &gate.evaluation_ref.name)))
            .collect()
    }

    async fn fetch(&self, scope: &Scope<'_>, object: &ModelDeployment) -> Result<Fetched, Error> {
        let mut fetched = fetch::fetch(&self.outside, scope, object).await?;
        if let Some(since) = build::guarded::measured_since(object) {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            fetched.measured = self.measure.measure(&namespace, Of::Model(&name), since).await.into();
        }
        Ok(fetched)
    }

    fn validate(&self, object: &ModelDeployment, fetched: &Fetched) -> Result<Validated, Error> {
        validate::validate(object, fetched)
    }

    fn build(
        &self,
        object: &ModelDeployment,
        fetched: &Fetched,
        validated: &Validated,
        now: jiff::Timestamp,
    ) -> Result<Plan<ModelDeployment, Notes>, Error> {
        build::build(object, fetched, validated, &self.image, now)
    }

    fn status(&self, view: &View<'_, Self>) -> Verdict<ModelDeployment> {
        status::status(view)
    }
}
