//! Create, update, patch and delete.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Inner;
use super::admission::admit;
use super::error::ApiError;
use super::kinds::{Generation, Kind};
use super::managed::{self, Applied, Writer};
use super::merge;
use super::store::Key;

/// How a new version of an object came about.
pub enum Origin {
    /// Server-side apply.
    Apply { merged: Applied, force: bool },
    /// Anything else.
    Update,
}

/// What is written and by whom.
pub struct Write<'a> {
    /// The kind.
    pub kind: &'a Kind,
    /// The object.
    pub key: &'a Key,
    /// `status`, if that is written.
    pub subresource: Option<&'a str>,
    /// Name of the field manager.
    pub manager: &'a str,
    /// Only say what would be.
    pub dry_run: bool,
    /// Written by the cluster's own controllers, whose statuses are not checked: that would take most of the time.
    pub trusted: bool,
}

/// The outcome of a write.
pub struct Outcome {
    /// The object as stored, or as it was when it is gone.
    pub object: Arc<Value>,
    /// Whether anything changed.
    pub changed: bool,
    /// Whether the object was created.
    pub created: bool,
    /// Whether the object is gone.
    pub removed: bool,
}

impl Outcome {
    fn same(object: &Arc<Value>) -> Self {
        Self { object: object.clone(), changed: false, created: false, removed: false }
    }
}

impl Inner {
    /// Creates an object.
    pub fn create(&mut self, write: &Write<'_>, body: Value) -> Result<Outcome, ApiError> {
        if self.store.get(write.key).is_some() {
            return Err(ApiError::exists(&write.kind.resource(), &write.key.name));
        }
        if body["metadata"].get("resourceVersion").is_some_and(|version| version != "") {
            return Err(ApiError::internal("resourceVersion should not be set on objects to be created"));
        }
        self.finish(write, None, body, Origin::Update)
    }

    /// Replaces an object or its status.
    pub fn update(&mut self, write: &Write<'_>, body: Value) -> Result<Outcome, ApiError> {
        let old = self.existing(write)?;
        if write.kind.group == llmops::api::GROUP
            && body["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty)
        {
            let errors = ["metadata.resourceVersion: Invalid value: 0: must be specified for an update".to_owned()];
            return Err(ApiError::invalid(&write.kind.kind, &write.key.name, &errors));
        }
        self.finish(write, Some(old), body, Origin::Update)
    }

    /// Patches an object or its status.
    pub fn patch(
        &mut self,
        write: &Write<'_>,
        content_type: &str,
        patch: Value,
        force: bool,
    ) -> Result<Outcome, ApiError> {
        if content_type.starts_with("application/apply-patch+yaml") {
            return self.apply(write, patch, force);
        }
        let old = self.existing(write)?;
        let mut body = old.as_ref().clone();
        match content_type.split(';').next().unwrap_or_default() {
            "application/merge-patch+json" => merge::merge_patch(&mut body, &patch),
            "application/strategic-merge-patch+json" if write.kind.group == llmops::api::GROUP => {
                let mut error = ApiError::bad_request("strategic merge patch is not supported for custom resources");
                (error.code, error.reason) = (415, "UnsupportedMediaType");
                return Err(error);
            }
            "application/strategic-merge-patch+json" => {
                merge::strategic_patch(&mut body, &patch, write.kind.shape());
            }
            "application/json-patch+json" => merge::json_patch(&mut body, &patch).map_err(ApiError::unprocessable)?,
            other => return Err(ApiError::bad_request(format!("unknown content type {other}"))),
        }
        // A version in the patch is a condition; without one the patch is applied to whatever is newest.
        self.finish(write, Some(old), body, Origin::Update)
    }

    fn apply(&mut self, write: &Write<'_>, config: Value, force: bool) -> Result<Outcome, ApiError> {
        let kind = write.kind;
        if write.manager.is_empty() {
            let errors = ["fieldManager: Required value: is required for apply patch".to_owned()];
            return Err(ApiError::invalid("PatchOptions.meta.k8s.io", "", &errors));
        }
        if config["apiVersion"] != json!(kind.api_version()) || config["kind"] != json!(kind.kind) {
            return Err(ApiError::bad_request(format!(
                "invalid object type: {} {}, expected {} {}",
                config["apiVersion"],
                config["kind"],
                kind.api_version(),
                kind.kind
            )));
        }
        if config["metadata"]
            .get("managedFields")
            .is_some_and(|fields| fields.as_array().is_none_or(|all| !all.is_empty()))
        {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let old = self.store.get(write.key).cloned();
        if old.is_none() {
            if write.subresource.is_some() {
                return Err(ApiError::not_found(&kind.resource(), &write.key.name));
            }
            // A version in the configuration does not hinder a creation, a uid does.
            if let Some(uid) = config["metadata"].get("uid") {
                return Err(ApiError::conflict(format!(
                    "Operation cannot be fulfilled on {} {:?}: uid mismatch: the provided object specified uid {uid}, and no existing object was found",
                    kind.resource(),
                    write.key.name
                )));
            }
        }
        let live = old.as_deref().cloned().unwrap_or_else(|| json!({}));
        let time = self.clock.now();
        let api_version = kind.api_version();
        let writer =
            Writer { manager: write.manager, subresource: write.subresource, api_version: &api_version, time: &time };
        let mut merged = managed::apply(&live, &config, kind.shape(), &writer, kind.status);
        let body = std::mem::take(&mut merged.object);
        self.finish(write, old, body, Origin::Apply { merged, force })
    }

    fn existing(&self, write: &Write<'_>) -> Result<Arc<Value>, ApiError> {
        let missing = || ApiError::not_found(&write.kind.resource(), &write.key.name);
        self.store.get(write.key).cloned().ok_or_else(missing)
    }

    /// Checks, defaults, records and stores a new version of an object.
    fn finish(
        &mut self,
        write: &Write<'_>,
        old: Option<Arc<Value>>,
        body: Value,
        origin: Origin,
    ) -> Result<Outcome, ApiError> {
        let kind = write.kind;
        if kind.namespaced && old.is_none() {
            let namespace =
                Key { resource: "namespaces".into(), namespace: String::new(), name: write.key.namespace.clone() };
            if self.store.get(&namespace).is_none() {
                return Err(ApiError::not_found("namespaces", &write.key.namespace));
            }
        }
        if let Some(old) = &old {
            let differs = |field: &str| {
                let wanted = body["metadata"].get(field).and_then(Value::as_str).filter(|wanted| !wanted.is_empty());
                wanted.is_some_and(|wanted| old["metadata"][field] != wanted)
            };
            if differs("resourceVersion") {
                return Err(ApiError::conflict(format!(
                    "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the latest version and try again",
                    kind.resource(),
                    write.key.name
                )));
            }
            if differs("uid") {
                let errors = ["metadata.uid: Invalid value: field is immutable".to_owned()];
                return Err(ApiError::invalid(&kind.kind, &write.key.name, &errors));
            }
        }
        let mut new = self.isolate(write, old.as_deref(), body);
        let fresh = self.store.fresh();
        let unchecked = write.trusted && write.subresource.is_some();
        let dropped = if unchecked { Vec::new() } else { admit(kind, old.as_deref(), &mut new, fresh)? };
        for path in dropped {
            self.warnings.push(format!("{}: {}: unknown field {path}", write.manager, write.key));
        }
        let nothing = json!({});
        let live = old.as_deref().unwrap_or(&nothing);
        bump_generation(kind, write.subresource, old.as_deref(), &mut new);
        let time = self.clock.now();
        let api_version = kind.api_version();
        let writer =
            Writer { manager: write.manager, subresource: write.subresource, api_version: &api_version, time: &time };
        match &origin {
            Origin::Apply { merged, force } => {
                managed::record_apply(live, merged, &mut new, kind.shape(), &writer, *force).map_err(conflicts)?;
            }
            // Who wrote a status of the cluster's own controllers decides nothing.
            Origin::Update if unchecked => {}
            Origin::Update => managed::record_update(live, &mut new, kind.shape(), &writer, kind.status),
        }
        if let Some(old) = &old
            && same_but_times(&new, old)
        {
            return Ok(Outcome::same(old));
        }
        let removed = is_released(&new);
        if write.dry_run {
            return Ok(Outcome { object: Arc::new(new), changed: false, created: old.is_none(), removed: false });
        }
        let object = if removed {
            let version = self.store.commit(write.key, None)["metadata"]["resourceVersion"].clone();
            new["metadata"]["resourceVersion"] = version;
            Arc::new(new)
        } else {
            self.store.commit(write.key, Some(new))
        };
        self.announce(&write.key.resource);
        Ok(Outcome { object, changed: true, created: old.is_none(), removed })
    }

    /// What a writer may not change is taken from the old object: identity, and spec or status by endpoint.
    fn isolate(&mut self, write: &Write<'_>, old: Option<&Value>, mut body: Value) -> Value {
        let kind = write.kind;
        let mut new = match (old, write.subresource) {
            (Some(old), Some("status")) => {
                let mut new = old.clone();
                set_or_remove(&mut new, "status", body.get("status").cloned());
                if kind.kind == "Deployment" {
                    // The one kind here whose status endpoint takes annotations: the roll-out's revision is one.
                    set_or_remove(&mut new["metadata"], "annotations", body["metadata"].get("annotations").cloned());
                }
                new
            }
            (Some(old), _) => {
                if kind.status {
                    set_or_remove(&mut body, "status", old.get("status").cloned());
                }
                body
            }
            (None, _) => {
                if kind.status && body.is_object() {
                    set_or_remove(&mut body, "status", None);
                }
                body
            }
        };
        new["apiVersion"] = json!(kind.api_version());
        new["kind"] = json!(kind.kind);
        if !new["metadata"].is_object() {
            new["metadata"] = Value::Object(Map::new());
        }
        let metadata = &mut new["metadata"];
        for field in ["selfLink", "resourceVersion"] {
            set_or_remove(metadata, field, None);
        }
        metadata["name"] = json!(write.key.name);
        if kind.namespaced {
            metadata["namespace"] = json!(write.key.namespace);
        }
        match old {
            Some(old) => {
                for field in [
                    "uid",
                    "creationTimestamp",
                    "deletionTimestamp",
                    "deletionGracePeriodSeconds",
                    "generation",
                    "managedFields",
                ] {
                    set_or_remove(metadata, field, old["metadata"].get(field).cloned());
                }
            }
            None => {
                for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields"] {
                    set_or_remove(metadata, field, None);
                }
                let number = self.store.fresh();
                metadata["uid"] = json!(format!("00000000-0000-4000-8000-{number:012x}"));
                metadata["creationTimestamp"] = json!(self.clock.now());
                match kind.kind.as_str() {
                    "Pod" | "PersistentVolumeClaim" => new["status"] = json!({"phase": "Pending"}),
                    "Namespace" => new["status"] = json!({"phase": "Active"}),
                    _ => {}
                }
                if kind.kind == "PersistentVolumeClaim" {
                    new["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
                }
            }
        }
        new
    }

    /// Deletes an object, or marks it as being deleted.
    pub fn delete(&mut self, write: &Write<'_>, options: &Value) -> Result<Outcome, ApiError> {
        let old = self.existing(write)?;
        for field in ["uid", "resourceVersion"] {
            let wanted = options["preconditions"].get(field).filter(|wanted| !wanted.is_null());
            if wanted.is_some_and(|wanted| old["metadata"][field] != *wanted) {
                return Err(ApiError::conflict(format!(
                    "Operation cannot be fulfilled on {} {:?}: Precondition failed: {field} in precondition does not match",
                    write.kind.resource(),
                    write.key.name
                )));
            }
        }
        let mut new = old.as_ref().clone();
        let mut finalizers = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let added = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some(json!("foregroundDeletion")),
            Some("Orphan") => Some(json!("orphan")),
            _ => None,
        };
        if let Some(added) = added.filter(|added| !finalizers.contains(added)) {
            finalizers.push(added);
            new["metadata"]["finalizers"] = Value::Array(finalizers.clone());
        }
        let scheduled = write.kind.kind == "Pod" && new["spec"].get("nodeName").is_some();
        let default_grace =
            if scheduled { new["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30) } else { 0 };
        let grace = options["gracePeriodSeconds"].as_i64().map_or(default_grace, |grace| grace.min(default_grace));
        if (grace > 0 || !finalizers.is_empty()) && new["metadata"].get("deletionTimestamp").is_none() {
            new["metadata"]["deletionTimestamp"] = json!(self.clock.after(grace));
            new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            if let Some(generation) = new["metadata"]["generation"].as_i64() {
                new["metadata"]["generation"] = json!(generation + 1);
            }
        } else if grace == 0 && new["metadata"].get("deletionTimestamp").is_some() {
            new["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        }
        let removed = finalizers.is_empty() && grace == 0;
        if removed && write.kind.kind == "Pod" && new["metadata"].get("deletionTimestamp").is_none() {
            // A pod that ends at once is given back as it would be while it ends.
            new["metadata"]["deletionTimestamp"] = json!(self.clock.now());
            new["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            new["metadata"]["generation"] = json!(new["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        if write.dry_run || (!removed && new == *old) {
            return Ok(Outcome::same(&old));
        }
        let stored = self.store.commit(write.key, (!removed).then(|| new.clone()));
        let object = if removed { Arc::new(new) } else { stored };
        self.announce(&write.key.resource);
        Ok(Outcome { object, changed: true, created: false, removed })
    }
}

/// Whether an object that is being deleted is held by nothing any more.
fn is_released(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let free = metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
    metadata.get("deletionTimestamp").is_some()
        && free
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

fn bump_generation(kind: &Kind, subresource: Option<&str>, old: Option<&Value>, new: &mut Value) {
    if kind.generation == Generation::Absent {
        return;
    }
    let Some(old) = old else {
        new["metadata"]["generation"] = json!(1);
        return;
    };
    let content = |object: &Value| match kind.group.as_str() {
        llmops::api::GROUP => {
            let mut content = object.clone();
            if let Some(map) = content.as_object_mut() {
                map.retain(|name, _| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
            }
            content
        }
        _ => object["spec"].clone(),
    };
    let annotations = |object: &Value| object["metadata"].get("annotations").cloned();
    let with_annotations = kind.generation == Generation::SpecAndAnnotations && subresource.is_none();
    if content(old) != content(new) || (with_annotations && annotations(old) != annotations(new)) {
        new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
}

fn set_or_remove(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object[field] = value,
        None => {
            if let Some(map) = object.as_object_mut() {
                map.shift_remove(field);
            }
        }
    }
}

/// Whether two objects differ in nothing but their versions and the times of their managed fields: such are not stored
/// again.
fn same_but_times(a: &Value, b: &Value) -> bool {
    let same_fields = |a: &Value, b: &Value| match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_without(a, b, &["time"]))
        }
        (a, b) => a == b,
    };
    equal_without(a, b, &["metadata"])
        && equal_without(&a["metadata"], &b["metadata"], &["resourceVersion", "managedFields"])
        && same_fields(&a["metadata"]["managedFields"], &b["metadata"]["managedFields"])
}

fn equal_without(a: &Value, b: &Value, left_out: &[&str]) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let counted = |map: &Map<String, Value>| map.keys().filter(|key| !left_out.contains(&key.as_str())).count();
    counted(a) == counted(b)
        && a.iter().filter(|(key, _)| !left_out.contains(&key.as_str())).all(|(key, value)| b.get(key) == Some(value))
}

fn conflicts(list: Vec<managed::Conflict>) -> ApiError {
    let causes: Vec<Value> = list
        .iter()
        .map(|conflict| {
            let how = if conflict.operation == managed::Operation::Apply { "" } else { " using Update" };
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {:?}{how}", conflict.manager),
                "field": conflict.field,
            })
        })
        .collect();
    let text: Vec<String> = list.iter().map(|conflict| format!("{:?}: {}", conflict.manager, conflict.field)).collect();
    let mut error =
        ApiError::conflict(format!("Apply failed with {} conflicts: conflicts with {}", list.len(), text.join(", ")));
    error.causes = causes;
    error
}
