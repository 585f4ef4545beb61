//! P9: a new revision never gets traffic before its gates passed.

use serde_json::Value;

use super::{Then, is_primary};
use crate::apiserver::store::{Change, Key};
use crate::cluster::text;

/// A revision with traffic that no gate let through.
pub fn broken(then: &Then, change: &Change) -> Option<String> {
    let after = change.after.as_ref().filter(|_| is_primary(&change.key))?;
    let gates = gates(after);
    if gates.is_empty() {
        return None;
    }
    let before = change.before.as_deref().map(serving).unwrap_or_default();
    let new = serving(after).into_iter().find(|revision| !before.contains(revision))?;
    let excused = |state: &Value| {
        // A person may let it through, and what served before there was a gate serves on.
        let request = text(state, "/metadata/annotations/llmops.dev~1rollout-request");
        let approved = [text(state, "/spec/rollout/approve"), text(state, "/spec/generations/promote")];
        request == format!("promote {new}")
            || request.starts_with(&format!("promote {new} "))
            || approved.contains(&new)
            || (self::gates(state).is_empty() && serving(state).contains(&new))
    };
    if then.ever(&change.key).any(excused) {
        return None;
    }
    let missing = gates.into_iter().find(|gate| {
        let key = Key {
            resource: format!("evaluations.{}", llmops::api::GROUP),
            namespace: change.key.namespace.clone(),
            name: (*gate).to_owned(),
        };
        !then.ever(&key).any(|evaluation| passed(evaluation, new))
    })?;
    Some(format!("P9: {} gives traffic to {new}, which {missing} has not passed", change.key))
}

fn gates(object: &Value) -> Vec<&str> {
    let lists = [&object["spec"]["rollout"]["gates"], &object["spec"]["gates"]["evaluations"]];
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.map(|gate| text(gate, "/evaluationRef/name")).collect()
}

/// Revisions that users meet.
fn serving(object: &Value) -> Vec<&str> {
    let arms = object["status"]["traffic"].as_array().into_iter().flatten();
    let arms = arms.filter(|arm| arm["weight"].as_i64() != Some(0)).map(|arm| text(arm, "/revision"));
    arms.chain(object["status"]["active"]["name"].as_str()).collect()
}

fn passed(evaluation: &Value, revision: &str) -> bool {
    let runs = evaluation["status"]["runs"].as_array();
    runs.into_iter().flatten().any(|run| {
        let of = run["revisions"].as_array().into_iter().flatten();
        let about = of.into_iter().any(|one| one["revision"] == revision) || run["revision"] == revision;
        run["verdict"] == "Passed" && about
    })
}
