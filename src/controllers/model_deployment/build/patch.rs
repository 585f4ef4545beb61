//! `spec.podTemplatePatch`: the subset of a strategic merge patch that the operator applies.
//!
//! - Maps are merged; a member that is null is removed.
//! - The lists `containers`, `initContainers`, `volumes` and `env` are merged by `name`: an item of a known name is
//!   merged, one of a new name is added at the end. The engine's container is named `engine`, the download's `fetch`.
//! - Every other list is replaced as a whole.
//! - `$patch` and other directives are refused, as are unknown fields and changes of the labels by which the pods are
//!   found.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value};

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// A directive.
    #[error("spec.podTemplatePatch{0}: directives such as $patch are not supported; set a member to null to remove it")]
    Directive(String),
    /// A list that is merged by name has an item without one.
    #[error("spec.podTemplatePatch{0}: every item needs a name, by which it is merged")]
    Unnamed(String),
    /// The result is no pod template.
    #[error("spec.podTemplatePatch: the patched pod template is not valid: {0}")]
    Invalid(String),
    /// A field that pods do not have.
    #[error("spec.podTemplatePatch: there is no field {0} in a pod template; check the spelling")]
    Unknown(String),
    /// A label by which pods are found.
    #[error("spec.podTemplatePatch.metadata.labels: {0} is set by the operator and cannot be changed")]
    Label(String),
}

const MERGED_BY_NAME: [&str; 4] = ["containers", "initContainers", "volumes", "env"];

/// Applies a patch to a pod template.
///
/// # Errors
/// When the patch uses what is not supported, or the result is no pod template.
pub fn apply(template: &PodTemplateSpec, patch: &Value) -> Result<PodTemplateSpec, PatchError> {
    let mut value = serde_json::to_value(template).map_err(|error| PatchError::Invalid(error.to_string()))?;
    merge(&mut value, patch, "")?;
    let mut unknown = None;
    let patched: PodTemplateSpec = serde_ignored::deserialize(value, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    })
    .map_err(|error| PatchError::Invalid(error.to_string()))?;
    if let Some(field) = unknown {
        return Err(PatchError::Unknown(field));
    }
    let labels = |template: &PodTemplateSpec| {
        template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default()
    };
    let kept = labels(&patched);
    match labels(template).into_iter().find(|(key, value)| kept.get(key) != Some(value)) {
        Some((label, _)) => Err(PatchError::Label(label)),
        None => Ok(patched),
    }
}

fn merge(value: &mut Value, patch: &Value, path: &str) -> Result<(), PatchError> {
    let Value::Object(changes) = patch else {
        *value = patch.clone();
        return Ok(());
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(members) = value else { return Ok(()) };
    for (key, change) in changes {
        let path = format!("{path}.{key}");
        if key.starts_with('$') {
            return Err(PatchError::Directive(path));
        }
        match change {
            Value::Null => {
                members.remove(key);
            }
            Value::Array(items) if MERGED_BY_NAME.contains(&key.as_str()) => {
                let list = members.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(list, items, &path)?;
            }
            Value::Object(_) => merge(members.entry(key.clone()).or_insert(Value::Null), change, &path)?,
            _ => {
                members.insert(key.clone(), change.clone());
            }
        }
    }
    Ok(())
}

fn merge_list(list: &mut Value, changes: &[Value], path: &str) -> Result<(), PatchError> {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Value::Array(items) = list else { return Ok(()) };
    for (index, change) in changes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(name) = change.get("name").and_then(Value::as_str) else { return Err(PatchError::Unnamed(path)) };
        match items.iter_mut().find(|item| item.get("name").and_then(Value::as_str) == Some(name)) {
            Some(item) => merge(item, change, &path)?,
            None => {
                let mut item = Value::Null;
                merge(&mut item, change, &path)?;
                items.push(item);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template() -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"llmops.dev/owner": "m"}},
            "spec": {"containers": [
                {"name": "engine", "image": "i", "args": ["a", "b"], "env": [{"name": "A", "value": "1"}]}],
                "nodeSelector": {"zone": "x"}},
        }))
        .unwrap()
    }

    #[test]
    fn maps_and_named_lists_merge_and_others_are_replaced() {
        let patch = json!({"metadata": {"annotations": {"x": "y"}}, "spec": {
            "nodeSelector": {"zone": null, "disk": "ssd"},
            "containers": [
                {"name": "engine", "args": ["c"], "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                {"name": "sidecar", "image": "s"}],
        }});
        let patched = serde_json::to_value(apply(&template(), &patch).unwrap()).unwrap();
        assert_eq!(
            patched,
            json!({
                "metadata": {"annotations": {"x": "y"}, "labels": {"llmops.dev/owner": "m"}},
                "spec": {"containers": [
                    {"name": "engine", "image": "i", "args": ["c"],
                     "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]},
                    {"name": "sidecar", "image": "s"}],
                    "nodeSelector": {"disk": "ssd"}},
            })
        );
    }

    #[test]
    fn refuses_what_it_would_get_wrong() {
        let error = |patch: Value| apply(&template(), &patch).unwrap_err().to_string();
        assert!(error(json!({"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}})).contains("$patch"));
        assert!(error(json!({"spec": {"containers": [{"image": "x"}]}})).contains("containers[0]"));
        assert!(error(json!({"spec": {"contaners": []}})).contains("contaners"));
        assert!(error(json!({"spec": {"nodeSelector": 3}})).contains("not valid"));
        assert!(error(json!({"metadata": {"labels": {"llmops.dev/owner": "other"}}})).contains("llmops.dev/owner"));
    }
}
