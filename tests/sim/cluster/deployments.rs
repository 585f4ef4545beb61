//! Deployments and ReplicaSets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use llmops::api::revision;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{condition, controlled, holds, is_going, number, owned_by, pod_of, suffix, text};
use crate::apiserver::ApiServer;

const ACTOR: &str = "deployment-controller";
const HASH: &str = "pod-template-hash";

/// What is remembered of Deployments, by uid and generation.
#[derive(Default)]
pub struct Memory {
    /// When a roll-out last came forward, and how far it was.
    progress: HashMap<(String, i64), (i64, Instant)>,
    /// Hashes of pod templates.
    hashes: HashMap<(String, i64), String>,
}

/// Rolls Deployments and ReplicaSets forward.
pub fn step(server: &ApiServer, memory: &mut Memory) -> Option<Instant> {
    let mut next = None;
    for deployment in server.list("Deployment").iter().filter(|deployment| !is_going(deployment)) {
        let due = deploy(server, deployment, memory);
        next = [next, due].into_iter().flatten().min();
    }
    for set in server.list("ReplicaSet").iter().filter(|set| !is_going(set)) {
        replicate(server, set);
    }
    next
}

fn deploy(server: &ApiServer, deployment: &Value, memory: &mut Memory) -> Option<Instant> {
    let template = &deployment["spec"]["template"];
    let generation = number(deployment, "/metadata/generation");
    let at = (text(deployment, "/metadata/uid").to_owned(), generation);
    let name = || revision::short(&revision::canonical(template).unwrap_or_default(), 10);
    let hash = memory.hashes.entry(at.clone()).or_insert_with(name).clone();
    let wanted = number(deployment, "/spec/replicas");
    let sets = controlled(server, "ReplicaSet", deployment);
    let (current, old): (Vec<_>, Vec<_>) = sets.iter().partition(|set| set["metadata"]["labels"][HASH] == hash);
    let Some(current) = current.first() else {
        let first = sets.is_empty() && text(deployment, "/spec/strategy/type") != "Recreate";
        create_set(server, deployment, &hash, if first { wanted } else { 0 });
        return None;
    };
    roll(server, deployment, current, &old, wanted);

    let sum = |path: &str| sets.iter().map(|set| number(set, path)).sum::<i64>();
    let updated = number(current, "/status/replicas");
    let ready = sum("/status/readyReplicas");
    let available = sum("/status/availableReplicas");
    let complete = updated == wanted && sum("/status/replicas") == wanted && available == wanted;
    let score = number(current, "/status/availableReplicas") + updated - sum("/status/replicas");
    let mark = memory.progress.entry(at).or_insert((score, Instant::now()));
    if mark.0 != score {
        *mark = (score, Instant::now());
    }
    let deadline = mark.1 + Duration::from_secs(number(deployment, "/spec/progressDeadlineSeconds").unsigned_abs());
    let late = !complete && Instant::now() >= deadline;
    let now = server.lock().clock.now();
    server.change(ACTOR, deployment, Some("status"), |deployment| {
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!(sets.len().to_string());
        let status = &mut deployment["status"];
        let mut new = json!({"observedGeneration": generation, "conditions": status["conditions"]});
        for (field, value) in [
            ("replicas", sum("/status/replicas")),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", available),
            ("unavailableReplicas", (wanted - available).max(0)),
        ] {
            if value != 0 {
                new[field] = json!(value);
            }
        }
        let enough =
            available >= wanted - limit(deployment_limit(&deployment["spec"], "maxUnavailable"), wanted, false);
        let (reason, message) = if enough {
            ("MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        condition(&mut new, "Available", enough, reason, message, &now);
        let name = text(current, "/metadata/name");
        let (value, reason, message) = if complete {
            (true, "NewReplicaSetAvailable", format!("ReplicaSet {name:?} has successfully progressed."))
        } else if late {
            (false, "ProgressDeadlineExceeded", format!("ReplicaSet {name:?} has timed out progressing."))
        } else {
            (true, "ReplicaSetUpdated", format!("ReplicaSet {name:?} is progressing."))
        };
        condition(&mut new, "Progressing", value, reason, &message, &now);
        deployment["status"] = new;
    });
    // The history is cut.
    let keep = number(deployment, "/spec/revisionHistoryLimit").max(0) as usize;
    let mut idle: Vec<_> =
        old.iter().filter(|set| number(set, "/spec/replicas") == 0 && number(set, "/status/replicas") == 0).collect();
    idle.sort_by_key(|set| text(set, "/metadata/uid").to_owned());
    for set in idle.iter().take(idle.len().saturating_sub(keep)) {
        server.delete(ACTOR, set, &json!({}));
    }
    (!complete && !late).then_some(deadline)
}

fn deployment_limit<'a>(spec: &'a Value, name: &str) -> &'a Value {
    &spec["strategy"]["rollingUpdate"][name]
}

/// A number, or a percentage of the wanted pods.
fn limit(value: &Value, wanted: i64, up: bool) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            if up { (wanted * percent + 99) / 100 } else { wanted * percent / 100 }
        }
        value => value.as_i64().unwrap_or(0),
    }
}

fn create_set(server: &ApiServer, deployment: &Value, hash: &str, replicas: i64) {
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", text(deployment, "/metadata/name")),
            "namespace": deployment["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": owned_by(deployment),
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    });
    server.create(ACTOR, &set).unwrap_or_else(|error| panic!("a ReplicaSet: {}", error.message));
}

fn roll(server: &ApiServer, deployment: &Value, current: &Value, old: &[&Arc<Value>], wanted: i64) {
    let scale = |set: &Value, replicas: i64| {
        if number(set, "/spec/replicas") != replicas {
            server.change(ACTOR, set, None, |set| set["spec"]["replicas"] = json!(replicas));
        }
    };
    let old_pods: i64 = old.iter().map(|set| number(set, "/status/replicas").max(number(set, "/spec/replicas"))).sum();
    if text(deployment, "/spec/strategy/type") == "Recreate" {
        old.iter().for_each(|set| scale(set, 0));
        let gone = old.iter().all(|set| controlled(server, "Pod", set).is_empty());
        if gone {
            scale(current, wanted);
        }
        return;
    }
    let surge = limit(deployment_limit(&deployment["spec"], "maxSurge"), wanted, true);
    let missing = limit(deployment_limit(&deployment["spec"], "maxUnavailable"), wanted, false);
    let have = number(current, "/spec/replicas");
    scale(current, if have > wanted { wanted } else { (wanted + surge - old_pods).clamp(have, wanted) });
    // A set that was just told to shrink still counts its pods: what it is told counts.
    let serving = |set: &Value| number(set, "/status/availableReplicas").min(number(set, "/spec/replicas"));
    let available = serving(current) + old.iter().map(|set| serving(set)).sum::<i64>();
    let mut spare = available - (wanted - missing);
    for set in old {
        let have = number(set, "/spec/replicas");
        // Pods that are not available may always go.
        let broken = have - serving(set);
        let down = have.min(broken + spare.max(0));
        spare -= (down - broken).max(0);
        scale(set, have - down);
    }
}

fn replicate(server: &ApiServer, set: &Value) {
    let mut pods = controlled(server, "Pod", set);
    pods.retain(|pod| !is_going(pod) && !matches!(text(pod, "/status/phase"), "Failed" | "Succeeded"));
    let wanted = number(set, "/spec/replicas").max(0) as usize;
    for _ in pods.len()..wanted {
        let name = format!("{}-{}", text(set, "/metadata/name"), suffix(server));
        let pod = pod_of(set, &name, &set["spec"]["template"]);
        server.create("replicaset-controller", &pod).unwrap_or_else(|error| panic!("a pod: {}", error.message));
    }
    pods.sort_by_key(|pod| (holds(pod, "Ready"), text(pod, "/metadata/uid").to_owned()));
    for pod in pods.iter().take(pods.len().saturating_sub(wanted)) {
        server.delete("replicaset-controller", pod, &json!({}));
    }
    let ready = pods.iter().filter(|pod| holds(pod, "Ready")).count();
    let count = pods.len();
    let generation = number(set, "/metadata/generation");
    server.change("replicaset-controller", set, Some("status"), |set| {
        let mut status = json!({"replicas": count, "observedGeneration": generation});
        if ready > 0 {
            status["readyReplicas"] = json!(ready);
            status["availableReplicas"] = json!(ready);
        }
        set["status"] = status;
    });
}
