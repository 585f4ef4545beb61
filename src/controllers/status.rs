//! The difference between two statuses as a JSON merge patch, pure.

use serde::Serialize;
use serde_json::{Map, Value};

/// The merge patch that makes `new` of `old`: absent members become null, lists are replaced as a whole.
///
/// # Errors
/// When a status cannot be written as JSON.
pub fn difference<S: Serialize>(old: Option<&S>, new: &S) -> Result<Value, serde_json::Error> {
    let old = old.map(serde_json::to_value).transpose()?.unwrap_or(Value::Null);
    Ok(merge_patch(&old, &serde_json::to_value(new)?).unwrap_or_else(|| Value::Object(Map::new())))
}

/// Whether a patch changes nothing.
pub(crate) fn is_empty_difference(patch: &Value) -> bool {
    patch.as_object().is_some_and(Map::is_empty)
}

fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                if let Some(change) = merge_patch(old.get(key).unwrap_or(&Value::Null), value) {
                    patch.insert(key.clone(), change);
                }
            }
            for (key, value) in old {
                if !new.contains_key(key) && !value.is_null() {
                    patch.insert(key.clone(), Value::Null);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) if old == new => None,
        (_, new) => Some(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_only_what_differs() {
        let old = json!({"a": 1, "b": {"c": 2, "d": 3}, "list": [1, 2], "gone": true});
        let new = json!({"a": 1, "b": {"c": 4}, "list": [1]});
        assert_eq!(difference(Some(&old), &new).unwrap(), json!({"b": {"c": 4, "d": null}, "list": [1], "gone": null}));
        assert!(is_empty_difference(&difference(Some(&new), &new).unwrap()));
        assert_eq!(difference(None, &new).unwrap(), new);
    }
}
