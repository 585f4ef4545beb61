//! What decides about a ModelDeployment besides its spec. Reads the watch caches; the two requests that are not to
//! the API server are `outside.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;

use super::build::FETCH;
use super::outside::{Outside, Provider};
use super::revision::{self, Stored};
use crate::api::Evaluation;
use crate::api::model_deployment::{Download, ModelDeployment};
use crate::api::names;
use crate::api::revision::short;
use crate::controllers::error::Error;
use crate::controllers::kinds::Kind;
use crate::controllers::measure::Measured;
use crate::controllers::pipeline::Scope;

/// Port on which the download tells its progress.
pub const PROGRESS_PORT: u16 = 8081;

/// State of the Secret that `credentialsRef` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None is named.
    #[default]
    NotNeeded,
    /// There is no such Secret.
    Missing,
    /// It has no key `token`.
    NoToken,
    /// Hash of its token.
    Hash(String),
}

/// What decides about a ModelDeployment besides its spec.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Known revisions.
    pub revisions: BTreeMap<String, Stored>,
    /// Deployments, by revision.
    pub deployments: BTreeMap<String, Deployment>,
    /// Pods of all revisions.
    pub pods: Vec<Pod>,
    /// The Secret.
    pub credentials: Credentials,
    /// The Evaluations that `spec.rollout.gates` names, by name.
    pub evaluations: BTreeMap<String, Evaluation>,
    /// What users' requests have shown of the candidate, while it gets some.
    pub measured: Measured,
    /// Whether the volume that the source names exists.
    pub volume_exists: bool,
    /// Progress of a running download, as last heard.
    pub progress: Option<Download>,
    /// The provider outside, as last heard.
    pub provider: Provider,
}

impl Fetched {
    /// Pods of a revision that are not going.
    pub fn pods_of<'a>(&'a self, revision: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.labels().get(names::LABEL_REVISION).is_some_and(|label| label == revision)
        })
    }
}

fn token(secret: &Secret) -> Option<String> {
    let bytes = secret.data.as_ref()?.get("token")?;
    String::from_utf8(bytes.0.clone()).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Collects what decides.
///
/// # Errors
/// When a Secret cannot be read or a cached object does not fit its type.
pub async fn fetch(outside: &Outside, scope: &Scope<'_>, object: &ModelDeployment) -> Result<Fetched, Error> {
    let spec = &object.spec;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let reference = match (&spec.external, &spec.model) {
        (Some(external), _) => external.credentials_ref.as_ref(),
        (None, Some(model)) => model.credentials_ref.as_ref(),
        _ => None,
    };
    let secret = match reference {
        Some(reference) => scope.secret(&reference.name).await?,
        None => None,
    };
    let credentials = match (reference, &secret) {
        (None, _) => Credentials::NotNeeded,
        (Some(_), None) => Credentials::Missing,
        (Some(_), Some(secret)) => {
            token(secret).map_or(Credentials::NoToken, |token| Credentials::Hash(short(&token, 16)))
        }
    };
    let deployments = scope.children::<Deployment>()?.into_iter().filter_map(|deployment| {
        let revision = deployment.labels().get(names::LABEL_REVISION)?.clone();
        Some((revision, deployment))
    });
    let deployments = deployments.collect();
    if let Some(external) = &spec.external {
        let provider = match credentials {
            Credentials::Missing | Credentials::NoToken => Provider::Unknown,
            _ => outside.provider(&uid, &external.base_url, secret.as_deref().and_then(token)),
        };
        return Ok(Fetched { deployments, credentials, provider, ..Fetched::default() });
    }
    let mut evaluations = BTreeMap::new();
    for gate in &spec.rollout.gates {
        let name = &gate.evaluation_ref.name;
        if let Some(evaluation) = scope.get::<Evaluation>(name)? {
            evaluations.insert(name.clone(), evaluation);
        }
    }
    let pvc = spec.model.as_ref().and_then(|model| model.source.as_ref()).and_then(|source| source.pvc.as_ref());
    let pods = scope.children::<Pod>()?;
    let progress = match pods.iter().find_map(downloading) {
        Some(address) => outside.progress(&uid, &address),
        None => {
            outside.forget(&uid);
            None
        }
    };
    Ok(Fetched {
        measured: Measured::Nothing,
        revisions: revision::read(&scope.children::<ControllerRevision>()?),
        deployments,
        pods,
        credentials,
        evaluations,
        volume_exists: pvc.is_some_and(|pvc| scope.exists(Kind::PersistentVolumeClaim, &pvc.claim_name)),
        progress,
        provider: Provider::Unknown,
    })
}

/// Where a pod's running download tells its progress.
fn downloading(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let running = status.init_container_statuses.iter().flatten().any(|container| {
        container.name == FETCH && container.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    let address = status.pod_ip.as_deref().filter(|_| running)?;
    Some(if address.contains(':') {
        format!("[{address}]:{PROGRESS_PORT}")
    } else {
        format!("{address}:{PROGRESS_PORT}")
    })
}
