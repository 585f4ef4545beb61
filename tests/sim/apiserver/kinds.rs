//! The kinds that the simulated API server knows.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::core::cel::{CompiledSchema, compile_schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::shape::Shape;

/// When a write increases `metadata.generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Never; the field is absent.
    Absent,
    /// When the spec changes.
    Spec,
    /// When the spec or the annotations change (Deployments).
    SpecAndAnnotations,
}

/// Reads a value as a type and writes it back, with the paths of the fields that the type does not know.
pub type RoundTrip = fn(Value) -> Result<(Value, Vec<String>), String>;

/// What bodies of a kind must look like.
pub enum Body {
    /// A built-in kind.
    Builtin(RoundTrip),
    /// A custom kind: its schema, and the same with its CEL rules compiled.
    Custom { schema: Value, rules: Box<CompiledSchema> },
}

/// A kind.
pub struct Kind {
    /// API group; empty for the core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Name in paths.
    pub plural: String,
    /// Name in objects.
    pub kind: String,
    /// Whether objects have a namespace.
    pub namespaced: bool,
    /// Whether `/status` is written apart.
    pub status: bool,
    /// When the generation increases.
    pub generation: Generation,
    /// Schema.
    pub body: Body,
}

impl Kind {
    /// `apiVersion` of objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural.group`, as messages name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// How objects merge.
    pub fn shape(&self) -> Shape<'_> {
        match &self.body {
            Body::Builtin(_) => Shape::Builtin { field: &self.kind, parent: "" },
            Body::Custom { schema, .. } => Shape::Custom(schema),
        }
    }
}

/// All kinds.
pub struct Catalog {
    kinds: BTreeMap<(String, String), Arc<Kind>>,
}

impl Catalog {
    /// The built-in kinds, and ours from their definitions.
    pub fn get() -> &'static Self {
        static CATALOG: OnceLock<Catalog> = OnceLock::new();
        CATALOG.get_or_init(Self::new)
    }

    fn new() -> Self {
        use Generation::{Absent, Spec, SpecAndAnnotations};
        let mut all = vec![
            builtin::<Pod>("pods", true, Spec),
            builtin::<Service>("services", true, Absent),
            builtin::<ConfigMap>("configmaps", false, Absent),
            builtin::<Secret>("secrets", false, Absent),
            builtin::<PersistentVolumeClaim>("persistentvolumeclaims", true, Absent),
            builtin::<ServiceAccount>("serviceaccounts", false, Absent),
            Kind { namespaced: false, ..builtin::<Namespace>("namespaces", true, Absent) },
            builtin::<Deployment>("deployments", true, SpecAndAnnotations),
            builtin::<ReplicaSet>("replicasets", true, Spec),
            builtin::<ControllerRevision>("controllerrevisions", false, Absent),
            builtin::<Job>("jobs", true, Spec),
            builtin::<Lease>("leases", false, Absent),
            builtin::<Event>("events", false, Absent),
            builtin::<Role>("roles", false, Absent),
            builtin::<RoleBinding>("rolebindings", false, Absent),
            builtin::<NetworkPolicy>("networkpolicies", false, Spec),
            builtin::<PodDisruptionBudget>("poddisruptionbudgets", true, Spec),
        ];
        for crd in llmops::cli::crds::all() {
            let version = crd.spec.versions.iter().find(|version| version.served).expect("a CRD serves a version");
            let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
            let schema = serde_json::to_value(schema.expect("a CRD has a schema")).expect("a schema is JSON");
            let rules = compile_schema(&schema);
            assert!(!rules.has_errors(), "{:?}: {:?}", crd.metadata.name, rules.compilation_errors());
            all.push(Kind {
                group: crd.spec.group.clone(),
                version: version.name.clone(),
                plural: crd.spec.names.plural.clone(),
                kind: crd.spec.names.kind.clone(),
                namespaced: crd.spec.scope == "Namespaced",
                status: version.subresources.as_ref().is_some_and(|all| all.status.is_some()),
                generation: Spec,
                body: Body::Custom { schema, rules: Box::new(rules) },
            });
        }
        Self {
            kinds: all.into_iter().map(|kind| ((kind.group.clone(), kind.plural.clone()), Arc::new(kind))).collect(),
        }
    }

    /// The kind at a path.
    pub fn by_path(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let kind = self.kinds.get(&(group.to_owned(), plural.to_owned()))?;
        (kind.version == version).then(|| kind.clone())
    }

    /// The kind of an object.
    pub fn by_name(&self, kind: &str) -> Option<Arc<Kind>> {
        self.kinds.values().find(|known| known.kind == kind).cloned()
    }
}

fn builtin<K>(plural: &str, status: bool, generation: Generation) -> Kind
where
    K: k8s_openapi::Resource + Serialize + DeserializeOwned,
{
    Kind {
        group: K::GROUP.to_owned(),
        version: K::VERSION.to_owned(),
        plural: plural.to_owned(),
        kind: K::KIND.to_owned(),
        namespaced: true,
        status,
        generation,
        body: Body::Builtin(round_trip::<K>),
    }
}

fn round_trip<K: Serialize + DeserializeOwned>(value: Value) -> Result<(Value, Vec<String>), String> {
    let mut unknown = Vec::new();
    let typed: K = serde_ignored::deserialize(value, |path| unknown.push(path.to_string().replace(".?", "")))
        .map_err(|error| error.to_string())?;
    let mut value = serde_json::to_value(typed).map_err(|error| error.to_string())?;
    omit_empty(&mut value);
    Ok((value, unknown))
}

/// Empty lists and maps of built-in kinds are not stored; empty structures are.
fn omit_empty(value: &mut Value) {
    let maps = ["labels", "annotations", "matchLabels", "nodeSelector", "data", "limits", "requests"];
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(omit_empty);
            map.retain(|name, value| match value {
                Value::Array(items) => !items.is_empty(),
                Value::Object(inner) => !inner.is_empty() || !maps.contains(&name.as_str()),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(omit_empty),
        _ => {}
    }
}
