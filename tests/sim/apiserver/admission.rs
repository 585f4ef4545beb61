//! What a body must be before it is stored.

use kube::core::cel::Validator;
use serde_json::Value;

use super::defaults;
use super::error::ApiError;
use super::kinds::{Body, Kind};
use super::schema;

thread_local! {
    /// To register all functions of CEL takes longer than to check an object.
    static VALIDATOR: Validator = Validator::new();
}

/// Defaults and checks a new version of an object. Gives the paths of fields that were dropped because nothing knows them.
pub fn admit(kind: &Kind, old: Option<&Value>, new: &mut Value, fresh: u64) -> Result<Vec<String>, ApiError> {
    let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |errors: &[String]| ApiError::invalid(&kind.kind, &name, errors);
    match &kind.body {
        Body::Custom { schema, rules } => {
            let sent = new.clone();
            schema::prune_and_default(new, schema);
            let errors = schema::validate(new, schema);
            if !errors.is_empty() {
                return Err(invalid(&errors));
            }
            if let Err(errors) = VALIDATOR.with(|validator| validator.validate_compiled(rules, new, old)) {
                let errors: Vec<String> =
                    errors.into_vec().iter().map(|error| format!("{}: {}", error.field_path, error.message)).collect();
                return Err(invalid(&errors));
            }
            let mut dropped = Vec::new();
            difference(&sent, new, "", &mut dropped);
            Ok(dropped)
        }
        Body::Builtin(round_trip) => {
            let (typed, unknown) =
                round_trip(new.take()).map_err(|error| ApiError::bad_request(format!("{}: {error}", kind.kind)))?;
            *new = typed;
            defaults::fill(&kind.kind, new, fresh);
            let errors = builtin_rules(&kind.kind, old, new);
            if errors.is_empty() { Ok(unknown) } else { Err(invalid(&errors)) }
        }
    }
}

/// The paths that were sent and not kept, other than nulls.
fn difference(sent: &Value, kept: &Value, path: &str, dropped: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (name, value) in sent.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{name}");
                match kept.get(name) {
                    Some(kept) => difference(value, kept, &path, dropped),
                    None => dropped.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            for (index, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                difference(sent, kept, &format!("{path}[{index}]"), dropped);
            }
        }
        _ => {}
    }
}

fn builtin_rules(kind: &str, old: Option<&Value>, new: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let template = match kind {
        "Pod" => Some(new),
        "Deployment" | "ReplicaSet" | "Job" => Some(&spec["template"]),
        _ => None,
    };
    if let Some(template) = template {
        pod_rules(template, &mut errors);
    }
    match kind {
        "Deployment" | "ReplicaSet" => {
            let labels = &template.unwrap_or(&Value::Null)["metadata"]["labels"];
            for (name, value) in spec["selector"]["matchLabels"].as_object().into_iter().flatten() {
                if labels.get(name) != Some(value) {
                    errors.push(format!(
                        "spec.template.metadata.labels: Invalid value: {labels}: `selector` does not match template `labels`"
                    ));
                }
            }
        }
        "Job" if !matches!(spec["template"]["spec"]["restartPolicy"].as_str(), Some("Never" | "OnFailure")) => {
            errors.push(
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"".to_owned(),
            );
        }
        _ => {}
    }
    if let Some(old) = old {
        let immutable: &[&str] = match kind {
            "Deployment" | "ReplicaSet" => &["/spec/selector"],
            "Job" => &["/spec/selector", "/spec/template", "/spec/completionMode", "/spec/podFailurePolicy"],
            "PersistentVolumeClaim" => &["/spec/accessModes", "/spec/storageClassName", "/spec/volumeMode"],
            "ControllerRevision" => &["/data"],
            "Service" => &["/spec/clusterIP"],
            "RoleBinding" => &["/roleRef"],
            "Secret" => &["/type"],
            _ => &[],
        };
        for path in immutable {
            if old.pointer(path) != new.pointer(path) {
                let path = path.trim_start_matches('/').replace('/', ".");
                errors.push(format!("{path}: Invalid value: field is immutable"));
            }
        }
    }
    errors
}

fn pod_rules(template: &Value, errors: &mut Vec<String>) {
    let spec = &template["spec"];
    let list = |name: &str| spec[name].as_array().cloned().unwrap_or_default();
    if list("containers").is_empty() {
        errors.push("spec.containers: Required value".to_owned());
    }
    let volumes: Vec<Value> = list("volumes").iter().map(|volume| volume["name"].clone()).collect();
    let mut names = Vec::new();
    for container in list("initContainers").iter().chain(&list("containers")) {
        let name = container["name"].clone();
        if names.contains(&name) {
            errors.push(format!("spec.containers.name: Duplicate value: {name}"));
        }
        names.push(name);
        if container["image"].as_str().is_none_or(str::is_empty) {
            errors.push("spec.containers.image: Required value".to_owned());
        }
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            if !volumes.contains(&mount["name"]) {
                errors.push(format!("spec.containers.volumeMounts.name: Not found: {}", mount["name"]));
            }
        }
    }
}
