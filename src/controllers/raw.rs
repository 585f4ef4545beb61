//! An object of any kind as the API server sends it. Never fails to decode, so that one object that does not fit
//! our types cannot stop a watch; its owner learns of it when it decodes it.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

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

/// Parts of the metadata that nothing here reads: they are skipped while reading, because managed fields alone are
/// often half of an object.
const SKIPPED: [&str; 2] = ["managedFields", "selfLink"];
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = deserializer.deserialize_map(Members { metadata: false })?;
        Ok(Self::new(Value::Object(members)))
    }
}

/// Reads an object, or the metadata in it.
struct Members {
    metadata: bool,
}

impl<'de> Visitor<'de> for Members {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = match key.as_str() {
                skipped if self.metadata && SKIPPED.contains(&skipped) => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
                "metadata" if !self.metadata => Value::Object(access.next_value_seed(Members { metadata: true })?),
                "annotations" if self.metadata => {
                    let mut value = access.next_value::<Value>()?;
                    if let Some(annotations) = value.as_object_mut() {
                        annotations.shift_remove(LAST_APPLIED);
                    }
                    value
                }
                _ => access.next_value()?,
            };
            members.insert(key, value);
        }
        Ok(members)
    }
}

impl<'de> DeserializeSeed<'de> for Members {
    type Value = Map<String, Value>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn skips_only_what_nobody_reads() {
        let text = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "p", "namespace": "n", "resourceVersion": "7", "managedFields": [{"manager": "x"}],
            "annotations": {LAST_APPLIED: "{}", "mine": "kept"}},
            "spec": {"metadata": {"managedFields": "not metadata"}}, "status": null});
        let raw: Raw = serde_json::from_value(text).unwrap();
        assert_eq!(raw.meta.resource_version.as_deref(), Some("7"));
        assert_eq!(
            raw.value,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": "p", "namespace": "n", "resourceVersion": "7", "annotations": {"mine": "kept"}},
                "spec": {"metadata": {"managedFields": "not metadata"}}, "status": null})
        );
    }
}
