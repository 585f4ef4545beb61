//! An object of any kind as the API server sends it. Never fails to decode, so that one object that does not fit
//! our types cannot stop a watch; its owner learns of it when it decodes it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// An object of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// The whole object.
    pub(crate) value: Value,
    /// The part of its metadata that the watch client asks for.
    meta: ObjectMeta,
}

impl Raw {
    pub(crate) fn new(value: Value) -> Self {
        let meta = value.get("metadata").map_or_else(ObjectMeta::default, |meta| ObjectMeta {
            name: text(meta, "name"),
            namespace: text(meta, "namespace"),
            resource_version: text(meta, "resourceVersion"),
            uid: text(meta, "uid"),
            ..ObjectMeta::default()
        });
        Self { value, meta }
    }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;
    fn kind(dt: &ApiResource) -> Cow<'_, str> {
        dt.kind.as_str().into()
    }
    fn group(dt: &ApiResource) -> Cow<'_, str> {
        dt.group.as_str().into()
    }
    fn version(dt: &ApiResource) -> Cow<'_, str> {
        dt.version.as_str().into()
    }
    fn api_version(dt: &ApiResource) -> Cow<'_, str> {
        dt.api_version.as_str().into()
    }
    fn plural(dt: &ApiResource) -> Cow<'_, str> {
        dt.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
