//! P6: at most one Job per (kind, spec hash), never two writers of one generation.

use serde_json::Value;

use super::Then;
use crate::apiserver::store::Change;
use crate::cluster::{controller, holds, text};

/// A second Job, or a second writer.
pub fn broken(then: &Then, change: &Change) -> Option<String> {
    let after = change.after.as_ref()?;
    match change.key.resource.as_str() {
        "jobs.batch" if change.before.is_none() => {
            let what = work(after)?;
            let other = then
                .of("jobs.batch")
                .filter(|other| other["metadata"]["uid"] != after["metadata"]["uid"])
                .find(|other| work(other) == Some(what) && controller(other) == controller(after) && is_open(other))?;
            Some(format!("P6: {} does the work of {}", change.key, text(other, "/metadata/name")))
        }
        "pods" if is_writing(after) && change.before.as_deref().is_none_or(|before| !is_writing(before)) => {
            let other = then
                .of("pods")
                .filter(|other| other["metadata"]["uid"] != after["metadata"]["uid"])
                .find(|other| is_writing(other) && store(other) == store(after))?;
            Some(format!("P6: {} writes what {} is writing", change.key, text(other, "/metadata/name")))
        }
        _ => None,
    }
}

/// What a Job of ours does: its kind of work, and the hash of it.
fn work(job: &Value) -> Option<(&str, &str)> {
    let labels = &job["metadata"]["labels"];
    Some((labels["llmops.dev/component"].as_str()?, labels["llmops.dev/revision"].as_str()?))
}

fn is_open(job: &Value) -> bool {
    !holds(job, "Complete") && !holds(job, "Failed")
}

/// Whether a builder runs in a pod.
fn is_writing(pod: &Value) -> bool {
    pod["metadata"]["labels"]["llmops.dev/component"] == "index-build" && text(pod, "/status/phase") == "Running"
}

/// The generation into whose store a builder writes.
fn store(pod: &Value) -> (&str, &Value, &Value) {
    let labels = &pod["metadata"]["labels"];
    (text(pod, "/metadata/namespace"), &labels["llmops.dev/owner"], &labels["llmops.dev/revision"])
}
