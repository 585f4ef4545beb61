//! The state of a cluster, without what differs between two runs that came to the same end.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::cluster::text;
use crate::faults::strike::neighbours;

/// Objects by kind, namespace and name.
pub type Snapshot = BTreeMap<String, Value>;

static TIMES: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"));
static ADDRESSES: LazyLock<Regex> = LazyLock::new(|| pattern(r"127\.90\.\d+\.\d+"));
static UIDS: LazyLock<Regex> = LazyLock::new(|| pattern(r"00000000-0000-4000-8000-[0-9a-f]{12}"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

/// The state now. Events and Leases tell of the way, not of the end, and are left out.
pub fn take(server: &ApiServer) -> Snapshot {
    let objects: Vec<Value> = {
        let inner = server.lock();
        let relevant = inner
            .store
            .all()
            .filter(|(key, _)| !key.resource.starts_with("events.") && !key.resource.starts_with("leases."))
            .filter(|(key, _)| !neighbours::owns(&key.name));
        relevant.map(|(_, object)| object.as_ref().clone()).collect()
    };
    let mut replace: Vec<(String, String)> = Vec::new();
    for object in objects.iter().filter(|object| object["kind"] != "Pod") {
        let name = format!("{}/{}", text(object, "/kind"), text(object, "/metadata/name"));
        replace.push((text(object, "/metadata/uid").to_owned(), format!("uid of {name}")));
    }
    // Names and addresses of pods are made up: they count by owner.
    let mut by_owner: BTreeMap<String, usize> = BTreeMap::new();
    let mut pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "Pod").collect();
    // In the order in which they were made.
    pods.sort_by_key(|pod| text(pod, "/metadata/uid").to_owned());
    for pod in pods {
        let prefix = text(pod, "/metadata/generateName").to_owned();
        let number = by_owner.entry(prefix.clone()).or_default();
        *number += 1;
        replace.push((text(pod, "/metadata/uid").to_owned(), format!("uid of Pod/{prefix}{number}")));
        replace.push((text(pod, "/metadata/name").to_owned(), format!("{prefix}{number}")));
    }
    // Longer ones first, so that none is replaced inside of another.
    replace.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    let mut snapshot = Snapshot::new();
    for object in objects {
        let mut object = object;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("resourceVersion");
        }
        // How often a ReplicaSet was scaled on the way.
        if object["kind"] == "ReplicaSet" {
            object["metadata"]["generation"] = Value::Null;
            object["status"]["observedGeneration"] = Value::Null;
        }
        // Covers the owner's uid, which is another one when a person's object comes a write later; what it hashes is compared itself.
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.shift_remove("llmops.dev/applied-hash");
        }
        if object["kind"] == "Service" {
            object["spec"]["clusterIP"] = json!("ADDRESS");
            object["spec"]["clusterIPs"] = json!(["ADDRESS"]);
        }
        if let Some(entries) = object["metadata"]["managedFields"].as_array_mut() {
            entries.sort_by_key(|entry| {
                (
                    text(entry, "/manager").to_owned(),
                    text(entry, "/operation").to_owned(),
                    text(entry, "/subresource").to_owned(),
                )
            });
        }
        let mut json = object.to_string();
        for (from, to) in &replace {
            json = json.replace(from, to);
        }
        let json = TIMES.replace_all(&json, "TIME");
        let json = ADDRESSES.replace_all(&json, "ADDRESS");
        let json = UIDS.replace_all(&json, "uid of nothing");
        let object: Value = serde_json::from_str(&json).expect("replacing names leaves JSON");
        let key = format!(
            "{} {}/{}",
            text(&object, "/kind"),
            text(&object, "/metadata/namespace"),
            text(&object, "/metadata/name")
        );
        snapshot.insert(key, object);
    }
    snapshot
}

/// What counts of the end when something left traces on the way: what the objects of ours say and serve, and their
/// children as they are wanted.
pub fn essence(snapshot: &Snapshot) -> Snapshot {
    let left_out = ["Pod", "ReplicaSet", "Job", "ControllerRevision"];
    let kept = snapshot.iter().filter(|(_, object)| !left_out.contains(&text(object, "/kind")));
    kept.map(|(key, object)| (key.clone(), essential(object))).collect()
}

fn essential(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let owners: Vec<&Value> = owners.map(|owner| &owner["name"]).collect();
    let status = &object["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut conditions: Vec<Value> = conditions.map(|one| json!([one["type"], one["status"], one["reason"]])).collect();
    conditions.sort_by_key(Value::to_string);
    let ours = text(object, "/apiVersion").starts_with(llmops::api::GROUP);
    let latest = &status["runs"][0];
    json!({
        "labels": metadata["labels"], "owners": owners, "spec": object["spec"], "data": object["data"],
        "subjects": object["subjects"], "roleRef": object["roleRef"],
        "status": if ours { json!({
            "conditions": conditions, "phase": status["phase"], "traffic": status["traffic"],
            "stableRevision": status["stableRevision"], "targetRevision": status["targetRevision"],
            "active": status["active"]["name"],
            "verdict": latest["verdict"], "judged": latest["revisions"],
        }) } else { Value::Null },
    })
}

/// How two states differ, one line each.
pub fn differences(wanted: &Snapshot, found: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for key in wanted.keys().chain(found.keys().filter(|key| !wanted.contains_key(*key))) {
        match (wanted.get(key), found.get(key)) {
            (Some(a), Some(b)) => compare(key, a, b, &mut lines),
            (Some(_), None) => lines.push(format!("{key} is missing")),
            (None, _) => lines.push(format!("{key} should not be there")),
        }
    }
    lines
}

fn compare(path: &str, wanted: &Value, found: &Value, lines: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                compare(&format!("{path}.{key}"), &wanted[key], &found[key], lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        _ if wanted != found => lines.push(format!("{path}: {wanted} without the fault, {found} with it")),
        _ => {}
    }
}
