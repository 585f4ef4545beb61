//! Whether a live object already says everything that we want it to say.

use serde_json::Value;

/// Whether everything in `wanted` is in `live`. Maps may have more members in `live` (defaults, other managers'
/// fields); lists must have the same length, because a longer list means something else. Quantities and
/// integers written differently (`"1000m"` and `"1"`, `1` and `1.0`) count as equal, as do absent and empty.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| contains(live.get(key).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (Value::Number(live), Value::Number(wanted)) => live.as_f64() == wanted.as_f64(),
        (Value::String(live), Value::String(wanted)) => live == wanted || same_quantity(live, wanted),
        (Value::Null, wanted) => is_empty(wanted),
        (live, wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

fn same_quantity(a: &str, b: &str) -> bool {
    match (quantity(a), quantity(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= f64::EPSILON * a.abs(),
        _ => false,
    }
}

/// A Kubernetes quantity as a number; `None` for text of any other form.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return None;
    }
    let scale = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn defaults_may_be_added_and_nothing_taken() {
        let live = json!({"a": 1, "b": {"c": [1, {"x": 1, "default": true}]}, "cpu": "1", "status": {}});
        assert!(contains(&live, &json!({"a": 1.0, "b": {"c": [1, {"x": 1}]}, "cpu": "1000m"})));
        assert!(contains(&live, &json!({"none": [], "b": {"empty": {}}})));
        assert!(!contains(&live, &json!({"b": {"c": [1]}})));
        assert!(!contains(&live, &json!({"a": 2})));
        assert!(!contains(&live, &json!({"d": 1})));
        assert!(!contains(&live, &json!({"cpu": "1001m"})));
        assert!(!contains(&json!({"name": "1a"}), &json!({"name": "1b"})));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z0-9.]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_contains_itself_and_a_superset_contains_it(value in any_json(), extra in any_json()) {
            prop_assert!(contains(&value, &value));
            if let Value::Object(members) = &value {
                let mut larger = members.clone();
                larger.insert("added".to_owned(), extra);
                prop_assert!(contains(&Value::Object(larger), &value));
            }
        }
    }
}
