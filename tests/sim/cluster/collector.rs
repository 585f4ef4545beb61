//! Garbage collection: what has lost all its owners goes, and an owner deleted in the foreground waits for what it owns.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{is_going, text};
use crate::apiserver::ApiServer;

const ACTOR: &str = "garbage-collector";

/// Collects once.
pub fn step(server: &ApiServer) {
    let all: Vec<Arc<Value>> = server.lock().store.all().map(|(_, object)| object.clone()).collect();
    let alive: HashSet<(&str, &str)> =
        all.iter().map(|object| (text(object, "/metadata/uid"), text(object, "/metadata/namespace"))).collect();
    let foreground: HashSet<&str> = all
        .iter()
        .filter(|object| is_going(object) && has_finalizer(object, "foregroundDeletion"))
        .map(|object| text(object, "/metadata/uid"))
        .collect();
    for object in &all {
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        if owners.is_empty() || is_going(object) {
            continue;
        }
        let namespace = text(object, "/metadata/namespace");
        let lost = owners.iter().all(|owner| !alive.contains(&(text(owner, "/uid"), namespace)));
        let waited_for = owners.iter().any(|owner| foreground.contains(text(owner, "/uid")));
        if lost || waited_for {
            let policy = if waited_for { "Foreground" } else { "Background" };
            let options = json!({"propagationPolicy": policy, "preconditions": {"uid": object["metadata"]["uid"]}});
            server.delete(ACTOR, object, &options);
        }
    }
    for object in all.iter().filter(|object| is_going(object)) {
        let uid = &object["metadata"]["uid"];
        let blocks = |other: &Arc<Value>| {
            let owners = other["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|owner| owner["uid"] == *uid && owner["blockOwnerDeletion"] == true)
        };
        if has_finalizer(object, "foregroundDeletion") && !all.iter().any(blocks) {
            drop_finalizer(server, object, "foregroundDeletion");
        }
        if has_finalizer(object, "orphan") {
            for other in all.iter().filter(|other| blocks(other)) {
                server.change(ACTOR, other, None, |other| {
                    if let Some(owners) = other["metadata"]["ownerReferences"].as_array_mut() {
                        owners.retain(|owner| owner["uid"] != *uid);
                    }
                });
            }
            drop_finalizer(server, object, "orphan");
        }
    }
}

/// Whether the object has this finalizer.
pub fn has_finalizer(object: &Value, name: &str) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|one| one == name))
}

/// Takes a finalizer away.
pub fn drop_finalizer(server: &ApiServer, object: &Value, name: &str) {
    server.change(ACTOR, object, None, |object| {
        if let Some(all) = object["metadata"]["finalizers"].as_array_mut() {
            all.retain(|one| one != name);
        }
    });
}
