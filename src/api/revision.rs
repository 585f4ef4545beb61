//! Content-addressed revisions: the hash of the canonical content that decides behaviour.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Length of a revision's name: 10 hex characters (40 bits).
pub const REVISION_LENGTH: usize = 10;

/// JSON with sorted object keys, no insignificant space and no null or absent members: the same content gives the
/// same text anywhere, whatever order or way of omission a client chose.
///
/// # Errors
/// When the value cannot be represented as JSON (a map with keys that are not strings).
pub fn canonical<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(&sorted(serde_json::to_value(content)?))
}

/// Revision of a content: the first [`REVISION_LENGTH`] hex characters of the SHA-256 of its canonical JSON.
///
/// # Errors
/// As [`canonical`].
pub fn revision_of<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    Ok(short(&canonical(content)?, REVISION_LENGTH))
}

/// The first `length` hex characters of a text's SHA-256.
pub fn short(text: &str, length: usize) -> String {
    let mut digest = hex::encode(Sha256::digest(text.as_bytes()));
    digest.truncate(length);
    digest
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().filter(|(_, value)| !value.is_null()).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn order_and_absence_do_not_matter() {
        let a = json!({"b": [1, {"y": null, "x": 2}], "a": "t"});
        let b = json!({"a": "t", "b": [1, {"x": 2}]});
        assert_eq!(canonical(&a).unwrap(), r#"{"a":"t","b":[1,{"x":2}]}"#);
        assert_eq!(revision_of(&a).unwrap(), revision_of(&b).unwrap());
        assert_eq!(revision_of(&a).unwrap().len(), REVISION_LENGTH);
        assert_ne!(revision_of(&a).unwrap(), revision_of(&json!({"a": "u"})).unwrap());
    }
}
