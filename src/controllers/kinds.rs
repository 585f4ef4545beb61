//! The kinds that the controllers watch, and references to their objects.

use std::fmt;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::core::{ApiResource, NamespaceResourceScope, object::HasStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    Evaluation, EvaluationStatus, ModelDeployment, ModelDeploymentStatus, PromptFlow, PromptFlowStatus, RagIndex,
    RagIndexStatus, names,
};

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    ModelDeployment,
    RagIndex,
    PromptFlow,
    Evaluation,
    Deployment,
    Service,
    Job,
    Pod,
    ControllerRevision,
    PersistentVolumeClaim,
    ServiceAccount,
    RoleBinding,
    ConfigMap,
    Secret,
}

/// What a cache keeps of the objects of a kind: memory is bounded by what is ours, not by what the cluster holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Every object, whole.
    All,
    /// Objects that carry our managed-by label, whole; the watch asks for no others.
    Managed,
    /// Objects that carry our managed-by label, without their spec.
    ManagedStatus,
    /// Every object, but the content only of those with our managed-by label.
    AllNamesManagedContent,
    /// Every object, metadata only; contents are loaded when a reconcile asks for them.
    Metadata,
}

impl Kind {
    /// Every kind, in the order of the watches.
    pub const ALL: [Self; 14] = [
        Self::ModelDeployment,
        Self::RagIndex,
        Self::PromptFlow,
        Self::Evaluation,
        Self::Deployment,
        Self::Service,
        Self::Job,
        Self::Pod,
        Self::ControllerRevision,
        Self::PersistentVolumeClaim,
        Self::ServiceAccount,
        Self::RoleBinding,
        Self::ConfigMap,
        Self::Secret,
    ];

    /// Group, version and names of the kind at the API server.
    pub fn resource(self) -> ApiResource {
        fn of<K: Resource<DynamicType = ()>>() -> ApiResource {
            ApiResource::erase::<K>(&())
        }
        match self {
            Self::ModelDeployment => of::<ModelDeployment>(),
            Self::RagIndex => of::<RagIndex>(),
            Self::PromptFlow => of::<PromptFlow>(),
            Self::Evaluation => of::<Evaluation>(),
            Self::Deployment => of::<Deployment>(),
            Self::Service => of::<Service>(),
            Self::Job => of::<Job>(),
            Self::Pod => of::<Pod>(),
            Self::ControllerRevision => of::<ControllerRevision>(),
            Self::PersistentVolumeClaim => of::<PersistentVolumeClaim>(),
            Self::ServiceAccount => of::<ServiceAccount>(),
            Self::RoleBinding => of::<RoleBinding>(),
            Self::ConfigMap => of::<ConfigMap>(),
            Self::Secret => of::<Secret>(),
        }
    }

    /// Name of the kind, as in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::ModelDeployment => "ModelDeployment",
            Self::RagIndex => "RagIndex",
            Self::PromptFlow => "PromptFlow",
            Self::Evaluation => "Evaluation",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::Job => "Job",
            Self::Pod => "Pod",
            Self::ControllerRevision => "ControllerRevision",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::ServiceAccount => "ServiceAccount",
            Self::RoleBinding => "RoleBinding",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// Whether a controller of ours reconciles the kind.
    pub fn is_primary(self) -> bool {
        matches!(self, Self::ModelDeployment | Self::RagIndex | Self::PromptFlow | Self::Evaluation)
    }

    /// The primary kind of this name, as an owner reference gives it.
    pub(crate) fn primary(name: &str) -> Option<Self> {
        [Self::ModelDeployment, Self::RagIndex, Self::PromptFlow, Self::Evaluation]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// The primary kind whose objects own those with this value of the component label.
    pub(crate) fn of_component(component: &str) -> Option<Self> {
        match component {
            names::COMPONENT_MODEL => Some(Self::ModelDeployment),
            names::COMPONENT_INDEX | names::COMPONENT_INDEX_BUILD => Some(Self::RagIndex),
            names::COMPONENT_FLOW => Some(Self::PromptFlow),
            names::COMPONENT_EVALUATION => Some(Self::Evaluation),
            _ => None,
        }
    }

    pub(crate) fn keep(self) -> Keep {
        match self {
            Self::ModelDeployment | Self::RagIndex | Self::PromptFlow | Self::Evaluation => Keep::All,
            Self::Pod => Keep::ManagedStatus,
            Self::PersistentVolumeClaim => Keep::AllNamesManagedContent,
            Self::ConfigMap | Self::Secret => Keep::Metadata,
            _ => Keep::Managed,
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The object of this name in this namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A reference to an object in the namespace of the object that refers to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Kind of the object.
    pub kind: Kind,
    /// Name of the object.
    pub name: String,
}

impl Reference {
    /// The object of this kind and name, in the referrer's namespace.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// A type whose objects the caches hold.
pub trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
    /// Its kind.
    const KIND: Kind;
}

macro_rules! watched {
    ($($name:ident),*) => { $(impl Watched for $name { const KIND: Kind = Kind::$name; })* };
}
watched!(
    ModelDeployment,
    RagIndex,
    PromptFlow,
    Evaluation,
    Deployment,
    Service,
    Job,
    Pod,
    ControllerRevision,
    PersistentVolumeClaim,
    ServiceAccount,
    RoleBinding
);

/// A kind that a controller of ours reconciles.
pub trait Primary: Watched + HasStatus<Status = Self::State> {
    /// Its status.
    type State: Serialize + DeserializeOwned + Default + Clone + PartialEq + Send + Sync + 'static;
    /// The conditions in a status.
    fn conditions(status: &Self::State) -> &[Condition];
    /// Whether the spec asks for a pause.
    fn suspended(&self) -> bool;
}

macro_rules! primary {
    ($($name:ident: $status:ident),*) => { $(impl Primary for $name {
        type State = $status;
        fn conditions(status: &Self::State) -> &[Condition] {
            &status.conditions
        }
        fn suspended(&self) -> bool {
            self.spec.suspend
        }
    })* };
}
primary!(
    ModelDeployment: ModelDeploymentStatus,
    RagIndex: RagIndexStatus,
    PromptFlow: PromptFlowStatus,
    Evaluation: EvaluationStatus
);
