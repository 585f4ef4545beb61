//! What a real API server answered (`traces/semantics.json`), asked of the simulated one.

use std::collections::BTreeMap;

use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Map, Value, json};

use crate::apiserver::ApiServer;
use crate::apiserver::session::Session;

const STEPS: &str = include_str!("traces/semantics.yaml");
const ANSWERS: &str = include_str!("traces/semantics.json");

#[tokio::test(start_paused = true)]
async fn answers_as_a_real_server_does() {
    let server = ApiServer::new(1);
    let client = server.client(Session::plain("recorder"));
    let steps: Vec<Value> = serde_yaml::from_str(STEPS).unwrap();
    let real: Vec<Value> = serde_json::from_str(ANSWERS).unwrap();
    assert_eq!(steps.len(), real.len(), "record the answers again");
    let mut known: BTreeMap<String, (Value, Value)> = BTreeMap::new();
    let mut real_known = BTreeMap::new();
    let mut failures = Vec::new();
    for (step, real) in steps.iter().zip(&real) {
        let name = step["name"].as_str().unwrap();
        assert_eq!(name, real["name"], "record the answers again");
        let path = step["path"].as_str().unwrap();
        let base = path.trim_end_matches("/status").to_owned();
        let mut body = step.get("body").map(Value::to_string).unwrap_or_default();
        if let Some((uid, version)) = known.get(&base) {
            body = body.replace("\"$uid\"", &uid.to_string()).replace("\"$rv\"", &version.to_string());
        }
        let kind = match step["type"].as_str() {
            Some("apply") => "application/apply-patch+yaml",
            Some("merge") => "application/merge-patch+json",
            Some("strategic") => "application/strategic-merge-patch+json",
            Some("json") => "application/json-patch+json",
            _ => "application/json",
        };
        let query = step["query"].as_str().map(|query| format!("?{query}")).unwrap_or_default();
        let request = Request::builder()
            .method(step["method"].as_str().unwrap())
            .uri(format!("{path}{query}"))
            .header("content-type", kind)
            .body(Body::from(body.into_bytes()))
            .unwrap();
        let reply = client.send(request).await.unwrap();
        let code = reply.status().as_u16();
        let answer: Value = serde_json::from_slice(&reply.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let ours = comparable(code, &answer, &base, &mut known);
        let theirs = comparable(real["code"].as_u64().unwrap() as u16, &real["answer"], &base, &mut real_known);
        if ours != theirs {
            let mut lines = vec![format!("{name}: {}", answer["message"])];
            difference("", &theirs, &ours, &mut lines);
            failures.push(lines.join("\n    "));
        }
    }
    assert!(failures.is_empty(), "real (-) and simulated (+) answers differ:\n{}", failures.join("\n"));
}

/// An answer without what differs from run to run: of the version remains whether it moved.
fn comparable(code: u16, answer: &Value, path: &str, known: &mut BTreeMap<String, (Value, Value)>) -> Value {
    if answer["kind"] == "Status" {
        return json!({"code": code, "reason": answer["reason"]});
    }
    let mut object = answer.clone();
    if let Some(uid) = answer["metadata"].get("uid") {
        let version = answer["metadata"]["resourceVersion"].clone();
        let before = known.insert(path.to_owned(), (uid.clone(), version.clone()));
        object["metadata"]["resourceVersion"] = match before {
            Some((_, before)) if before == version => json!("as before"),
            _ => json!("new"),
        };
        let uid = uid.to_string();
        object = serde_json::from_str(&object.to_string().replace(&uid, "\"UID\"")).unwrap();
    } else {
        object["metadata"] = Value::Null;
    }
    for field in ["creationTimestamp", "deletionTimestamp"] {
        if object["metadata"].get(field).is_some() {
            object["metadata"][field] = json!("TIME");
        }
    }
    if let Some(entries) = object["metadata"]["managedFields"].as_array_mut() {
        for entry in entries.iter_mut() {
            entry["time"] = Value::Null;
            without_dots(&mut entry["fieldsV1"]);
        }
        entries.sort_by_key(|entry| (entry["manager"].to_string(), entry["operation"].to_string()));
    }
    if object["kind"] == "Pod" {
        // Added by admission plugins, for which the simulation has no use.
        for field in ["serviceAccountName", "serviceAccount", "tolerations", "priority", "preemptionPolicy"] {
            object["spec"][field] = Value::Null;
        }
        object["status"]["qosClass"] = Value::Null;
    }
    if object["spec"].get("clusterIP").is_some() {
        object["spec"]["clusterIP"] = json!("IP");
        object["spec"]["clusterIPs"] = json!("IP");
    }
    without_empty(&mut object);
    json!({"code": code, "object": object})
}

/// Ownership of a map or list itself is not simulated for updates.
fn without_dots(fields: &mut Value) {
    if let Some(map) = fields.as_object_mut() {
        map.shift_remove(".");
        map.values_mut().for_each(without_dots);
        // A leaf stays a leaf.
        map.iter_mut().for_each(|(_, value)| {
            if value.as_object().is_some_and(Map::is_empty) {
                *value = json!("leaf");
            }
        });
    }
}

fn without_empty(value: &mut Value) {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_empty);
            map.retain(|_, value| !is_empty(value));
        }
        Value::Array(items) => items.iter_mut().for_each(without_empty),
        _ => {}
    }
}

fn difference(path: &str, real: &Value, ours: &Value, lines: &mut Vec<String>) {
    match (real, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                difference(&format!("{path}.{key}"), &real[key], &ours[key], lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                difference(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        _ if real != ours => lines.push(format!("{path}: - {real}  + {ours}")),
        _ => {}
    }
}
