//! Merging: server-side apply's merge and pruning, JSON merge patch, strategic merge patch and JSON patch.

use serde_json::{Map, Value};

use super::fields::FieldSet;
use super::shape::{ListKind, Shape, item_key};

/// The live object with the applied configuration merged in.
pub fn apply(live: &Value, config: &Value, shape: Shape<'_>) -> Value {
    match (live, config) {
        (Value::Object(before), Value::Object(after)) if !shape.map_is_atomic() => {
            let mut merged = before.clone();
            for (name, inner) in after {
                let value = apply(before.get(name).unwrap_or(&Value::Null), inner, shape.field(name));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(before), Value::Array(after)) if shape.list() != ListKind::Atomic => {
            Value::Array(merge_items(before, after, &shape.list(), shape.item()))
        }
        _ => config.clone(),
    }
}

/// The applied items in their order; items of others stay where they are between those that both have.
fn merge_items(live: &[Value], config: &[Value], kind: &ListKind, item: Shape<'_>) -> Vec<Value> {
    let find = |list: &[Value], wanted: &Value| {
        let key = item_key(kind, wanted);
        list.iter().position(|other| item_key(kind, other) == key)
    };
    let merged_with = |live: Option<&Value>, wanted: &Value| match live {
        Some(live) if wanted.is_object() => apply(live, wanted, item),
        _ => wanted.clone(),
    };
    let (mut at_live, mut at_config) = (0, 0);
    let mut merged = Vec::new();
    loop {
        match (live.get(at_live), config.get(at_config)) {
            (Some(ours), _) if find(config, ours).is_none() => {
                merged.push(ours.clone());
                at_live += 1;
            }
            (Some(ours), Some(wanted)) if item_key(kind, ours) == item_key(kind, wanted) => {
                merged.push(merged_with(Some(ours), wanted));
                at_live += 1;
                at_config += 1;
            }
            // Both have it, but not in this place: the configuration's place counts.
            (Some(_), Some(wanted)) if find(live, wanted).is_some() => at_live += 1,
            (_, Some(wanted)) => {
                merged.push(merged_with(find(live, wanted).and_then(|at| live.get(at)), wanted));
                at_config += 1;
            }
            (Some(_), None) => at_live += 1,
            (None, None) => return merged,
        }
    }
}

/// Removes the paths of `gone` that nobody in `kept` owns. A structure of which nobody owns anything any more goes as a
/// whole, with its defaults.
pub fn prune(value: &mut Value, gone: &FieldSet, kept: &FieldSet, shape: Shape<'_>) {
    let nothing = FieldSet::default();
    for (step, node) in &gone.0 {
        let keeper = kept.0.get(step);
        let wanted = keeper.is_some_and(|keeper| keeper.own || !keeper.below.is_empty());
        let below = keeper.map_or(&nothing, |keeper| &keeper.below);
        match value {
            Value::Object(map) => {
                let Some(name) = step.strip_prefix("f:") else { continue };
                if !wanted {
                    map.shift_remove(name);
                } else if let Some(inner) = map.get_mut(name) {
                    prune(inner, &node.below, below, shape.field(name));
                    if inner.as_object().is_some_and(Map::is_empty) || inner.as_array().is_some_and(Vec::is_empty) {
                        map.shift_remove(name);
                    }
                }
            }
            Value::Array(items) => {
                let kind = shape.list();
                let Some(at) = items.iter().position(|item| item_key(&kind, item).as_deref() == Some(step)) else {
                    continue;
                };
                if node.own && !wanted {
                    items.remove(at);
                } else {
                    prune(&mut items[at], &node.below, below, shape.item());
                }
            }
            _ => {}
        }
    }
}

/// JSON merge patch (RFC 7386).
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (name, inner) in patch {
        if inner.is_null() {
            map.shift_remove(name);
        } else {
            merge_patch(map.entry(name.clone()).or_insert(Value::Null), inner);
        }
    }
}

/// Strategic merge patch: as a merge patch, but lists with keys merge by key. Of the directives, `$patch: delete` in a
/// list item is known.
pub fn strategic_patch(target: &mut Value, patch: &Value, shape: Shape<'_>) {
    match (target, patch) {
        (Value::Object(map), Value::Object(patch)) => {
            for (name, inner) in patch {
                if inner.is_null() {
                    map.shift_remove(name);
                } else if let Some(value) = map.get_mut(name) {
                    strategic_patch(value, inner, shape.field(name));
                } else {
                    map.insert(name.clone(), inner.clone());
                }
            }
        }
        (Value::Array(items), Value::Array(patch)) if matches!(shape.list(), ListKind::Map(_)) => {
            let kind = shape.list();
            for wanted in patch {
                let key = item_key(&kind, wanted);
                let at = items.iter().position(|item| item_key(&kind, item) == key);
                match (at, wanted.get("$patch").and_then(Value::as_str)) {
                    (Some(at), Some("delete")) => {
                        items.remove(at);
                    }
                    (Some(at), _) => strategic_patch(&mut items[at], wanted, shape.item()),
                    (None, Some(_)) => {}
                    (None, None) => items.push(wanted.clone()),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// JSON patch (RFC 6902): `add`, `remove`, `replace` and `test`.
pub fn json_patch(target: &mut Value, operations: &Value) -> Result<(), String> {
    for operation in operations.as_array().ok_or("a JSON patch is a list")? {
        let op = operation["op"].as_str().ok_or("op is missing")?;
        let path = operation["path"].as_str().ok_or("path is missing")?;
        let value = operation.get("value").cloned().unwrap_or(Value::Null);
        let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("path {path:?} is not a pointer"))?;
        let last = last.replace("~1", "/").replace("~0", "~");
        if op == "test" {
            if target.pointer(path) != Some(&value) {
                return Err(format!("testing value {path} failed"));
            }
            continue;
        }
        let parent = target.pointer_mut(parent).ok_or_else(|| format!("path {path} does not exist"))?;
        match (op, parent) {
            ("add", Value::Array(items)) if last == "-" => items.push(value),
            ("add", Value::Array(items)) => {
                let at = last.parse().ok().filter(|at| *at <= items.len());
                items.insert(at.ok_or_else(|| format!("index {last} is out of range"))?, value);
            }
            ("add", Value::Object(map)) => {
                map.insert(last, value);
            }
            ("replace", parent) => {
                let slot = match parent {
                    Value::Object(map) => map.get_mut(&last),
                    Value::Array(items) => last.parse().ok().and_then(|at: usize| items.get_mut(at)),
                    _ => None,
                };
                *slot.ok_or_else(|| format!("path {path} does not exist"))? = value;
            }
            ("remove", Value::Object(map)) => {
                map.shift_remove(&last).ok_or_else(|| format!("path {path} does not exist"))?;
            }
            ("remove", Value::Array(items)) => {
                let at = last.parse().ok().filter(|at| *at < items.len());
                items.remove(at.ok_or_else(|| format!("index {last} is out of range"))?);
            }
            (op, _) => return Err(format!("operation {op} is not supported at {path}")),
        }
    }
    Ok(())
}
