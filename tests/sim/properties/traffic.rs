//! P4: weights sum to 100, no share to a revision that is not ready, a last good revision always serves.

use std::time::Duration;

use serde_json::Value;

use super::{Then, is_primary};
use crate::apiserver::store::{Change, Key};
use crate::cluster::{controller, is_going, number, text};

/// What the operator has seen may be so old: as long as the longest lag, cut or outage of a fault, and its answer.
const SEEN_WITHIN: Duration = Duration::from_secs(150);

/// A wrong share.
pub fn broken(then: &Then, change: &Change) -> Option<String> {
    let fault = if is_primary(&change.key) { routed(then, change) } else { taken_down(then, change) };
    fault.map(|fault| format!("P4: {fault}"))
}

fn routed(then: &Then, change: &Change) -> Option<String> {
    let after = change.after.as_ref()?;
    let (arms, old) = (arms(after), change.before.as_deref().map(arms).unwrap_or_default());
    if arms == old {
        return None;
    }
    let sum: i64 = arms.iter().map(|(_, weight)| weight).sum();
    if !arms.is_empty() && sum != 100 {
        return Some(format!("{}: weights sum to {sum}: {arms:?}", change.key));
    }
    // Where the spec says that the old one goes first, nothing serves in between.
    let recreates = text(after, "/spec/rollout/strategy") == "Recreate";
    if arms.is_empty() && !old.is_empty() && !is_going(after) && !recreates {
        return Some(format!("{}: nothing serves any more; before: {old:?}", change.key));
    }
    let new = arms.iter().filter(|(revision, _)| !old.iter().any(|(had, _)| had == revision));
    let unready = new.map(|(revision, _)| revision).find(|revision| !was_ready(then, change, after, revision))?;
    Some(format!("{}: {unready} gets a share and was not ready in the last {SEEN_WITHIN:?}", change.key))
}

/// Revisions and their shares; the active generation of an index has all.
fn arms(object: &Value) -> Vec<(&str, i64)> {
    let arms = object["status"]["traffic"].as_array().into_iter().flatten();
    let arms: Vec<(&str, i64)> = arms.map(|arm| (text(arm, "/revision"), number(arm, "/weight"))).collect();
    let active = object["status"]["active"]["name"].as_str().map(|name| (name, 100));
    arms.into_iter().chain(active).filter(|(_, weight)| *weight != 0).collect()
}

/// Whether what a revision needs to serve was there lately.
fn was_ready(then: &Then, change: &Change, object: &Value, revision: &str) -> bool {
    let key = |resource: &str, name: String| Key {
        resource: resource.to_owned(),
        namespace: change.key.namespace.clone(),
        name,
    };
    let lately = |key: &Key, holds: &dyn Fn(&Value) -> bool| then.lately(key, change.at, SEEN_WITHIN).any(holds);
    let name = &change.key.name;
    let available = |deployment: &Value| number(deployment, "/status/availableReplicas") > 0;
    match text(object, "/kind") {
        "ModelDeployment" => lately(&key("deployments.apps", format!("mdep-{name}-{revision}")), &available),
        "RagIndex" => lately(&key("deployments.apps", format!("rag-{revision}")), &available),
        "PromptFlow" => {
            let models = object["spec"]["models"].as_object().into_iter().flat_map(serde_json::Map::values);
            let models = models.map(|model| text(model, "/modelDeploymentRef/name"));
            let serves = |model: &Value| model["status"]["traffic"].as_array().is_some_and(|arms| !arms.is_empty());
            lately(&key("controllerrevisions.apps", format!("pf-{name}-{revision}")), &|_| true)
                && models
                    .filter(|model| !model.is_empty())
                    .all(|model| lately(&key("modeldeployments.llmops.dev", model.to_owned()), &serves))
        }
        _ => true,
    }
}

/// What serves by its owner's status is not taken down.
fn taken_down(then: &Then, change: &Change) -> Option<String> {
    if !then.is_ours(change) {
        return None;
    }
    let serves = matches!(change.key.resource.as_str(), "deployments.apps" | "controllerrevisions.apps");
    let gone = change.before.as_ref().filter(|_| serves)?;
    let is_end = change.after.is_none() || (change.after.as_deref().is_some_and(is_going) && !is_going(gone));
    if !is_end || is_going(gone) && change.after.is_none() {
        return None;
    }
    let owner = controller(gone)?;
    let revision = text(gone, "/metadata/labels/llmops.dev~1revision");
    let owner = then.objects.iter().find(|(key, object)| is_primary(key) && object["metadata"]["uid"] == owner)?;
    let served = arms(owner.1).iter().any(|(serving, _)| *serving == revision) && !is_going(owner.1);
    served.then(|| format!("{} was taken down while the status of {} sends it traffic", change.key, owner.0))
}
