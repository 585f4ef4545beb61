//! Revisions of a model: what content makes one, and how it is kept.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::model_deployment::ModelDeploymentSpec;
use crate::api::names;
use crate::api::revision::revision_of;
use crate::controllers::error::Error;

/// What decides a revision: everything that ends up in the pods. Replicas, labels, cost, pauses, the cache's size and
/// the rollout's order make no new revision.
///
/// # Errors
/// When the spec cannot be written as JSON.
pub fn content(spec: &ModelDeploymentSpec, name: &str, credentials: Option<&str>) -> Result<Value, serde_json::Error> {
    let model = spec.model.as_ref();
    let content = json!({
        "task": serde_json::to_value(spec.task)?,
        "name": model.and_then(|model| model.name.as_deref()).unwrap_or(name),
        "source": serde_json::to_value(model.and_then(|model| model.source.as_ref()))?,
        "credentials": credentials,
        "engine": serde_json::to_value(&spec.engine)?,
        "external": serde_json::to_value(&spec.external)?,
        "resources": serde_json::to_value(&spec.resources)?,
        "scheduling": serde_json::to_value(&spec.scheduling)?,
        "podTemplatePatch": spec.pod_template_patch,
        "startup": serde_json::to_value(&spec.startup)?,
        "drain": serde_json::to_value(spec.rollout.drain)?,
    });
    Ok(content)
}

/// Name of a content's revision.
///
/// # Errors
/// When the content cannot be written as JSON.
pub fn name_of(content: &Value) -> Result<String, serde_json::Error> {
    revision_of(content)
}

/// A revision as its ControllerRevision keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// What decides the revision.
    pub content: Value,
    /// The pod template, rendered once. Later versions of the operator reuse it as it is, so that upgrading the
    /// operator restarts no pod.
    pub template: Value,
    /// Order of creation.
    #[serde(skip)]
    pub number: i64,
}

impl Stored {
    /// Whether the revision's model is downloaded.
    pub fn downloads(&self) -> bool {
        self.content.pointer("/source/http").is_some_and(|http| !http.is_null())
    }

    /// Digest of the model file, where the spec says it.
    pub fn digest(&self) -> Option<String> {
        let hex = self.content.pointer("/source/http/sha256")?.as_str()?;
        Some(format!("sha256:{hex}"))
    }
}

/// Reads the revisions of an object's ControllerRevisions; what cannot be read is as if it were not there.
pub fn read(objects: &[ControllerRevision]) -> BTreeMap<String, Stored> {
    objects
        .iter()
        .filter_map(|object| {
            let name = object.labels().get(names::LABEL_REVISION)?;
            let data = object.data.as_ref()?;
            let mut stored: Stored = serde_json::from_value(data.0.clone()).ok()?;
            stored.number = object.revision;
            Some((name.clone(), stored))
        })
        .collect()
}

/// The ControllerRevision of a revision.
///
/// # Errors
/// When the content cannot be written as JSON.
pub fn object(owner: &str, revision: &str, stored: &Stored) -> Result<ControllerRevision, Error> {
    let data = serde_json::to_value(stored)
        .map_err(|error| Error::stalled("Unrenderable", format!("revision {revision}: {error}")))?;
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(names::model_revision(owner, revision)),
            labels: Some(labels(owner, Some(revision))),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: stored.number,
    })
}

/// Labels of an owned object.
pub fn labels(owner: &str, revision: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::MANAGED_BY.to_owned()),
        (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_MODEL.to_owned()),
        (names::LABEL_OWNER.to_owned(), owner.to_owned()),
    ]);
    if let Some(revision) = revision {
        labels.insert(names::LABEL_REVISION.to_owned(), revision.to_owned());
    }
    labels
}
