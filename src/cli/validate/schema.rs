//! Checks a value against a structural schema, as the API server does: types, unknown fields, limits, patterns.

use std::fmt::Write;

use serde_json::Value;

/// A step of a path to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Member of a mapping.
    Key(String),
    /// Item of a list, from 0.
    Index(usize),
}

/// The path as people write it: `spec.nodes[1].llm`.
pub fn path_text(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Index(index) => {
                let _ = write!(text, "[{index}]");
            }
            Segment::Key(key) if key.contains(['.', '/', '[']) => {
                let _ = write!(text, "[\"{key}\"]");
            }
            Segment::Key(key) => {
                let _ = write!(text, "{}{key}", if text.is_empty() { "" } else { "." });
            }
        }
    }
    text
}

/// Reads a path written as `spec.nodes[1].llm`.
pub(super) fn parse_path(text: &str) -> Vec<Segment> {
    text.split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| match part.strip_suffix(']').map(|index| (index, index.parse())) {
            Some((_, Ok(index))) => Segment::Index(index),
            Some((key, Err(_))) => Segment::Key(key.trim_matches('"').to_owned()),
            None => Segment::Key(part.to_owned()),
        })
        .collect()
}

/// `; did you mean ...?` when a candidate is near, else nothing.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean `{candidate}`?"))
}

/// Number of single-character edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let edit = (diagonal + usize::from(ca != *cb)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, edit);
            left = edit;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

type Found = Vec<(Vec<Segment>, String)>;

/// Everything that the schema refuses, in the order of the value.
pub(super) fn check(schema: &Value, object: &Value) -> Found {
    let mut walk = Walk { path: Vec::new(), found: Vec::new() };
    walk.metadata(object);
    walk.value(schema, object, true);
    walk.found
}

struct Walk {
    path: Vec<Segment>,
    found: Found,
}

impl Walk {
    fn report(&mut self, message: impl Into<String>) {
        self.found.push((self.path.clone(), message.into()));
    }

    fn at(&mut self, segment: Segment, check: impl FnOnce(&mut Self)) {
        self.path.push(segment);
        check(self);
        self.path.pop();
    }

    /// What the API server asks of `metadata`, which a CRD's schema does not describe.
    fn metadata(&mut self, object: &Value) {
        self.at(Segment::Key("metadata".into()), |walk| {
            let metadata = object.get("metadata");
            let named = |field| metadata.and_then(|meta| meta.get(field)).is_some_and(Value::is_string);
            if !named("name") && !named("generateName") {
                walk.at(Segment::Key("name".into()), |walk| walk.report("is required, as a text"));
            }
            for field in ["labels", "annotations"] {
                let Some(entries) = metadata.and_then(|meta| meta.get(field)).and_then(Value::as_object) else {
                    continue;
                };
                for (key, value) in entries.iter().filter(|(_, value)| !value.is_string()) {
                    walk.at(Segment::Key(field.into()), |walk| {
                        walk.at(Segment::Key(key.clone()), |walk| {
                            walk.report(format!("must be a text, not {}; quote it", describe(value)));
                        });
                    });
                }
            }
        });
    }

    fn value(&mut self, schema: &Value, value: &Value, root: bool) {
        if value.is_null() {
            // The API server drops a null where a default stands, and keeps it where the field is nullable.
            if schema["nullable"] != true && schema.get("default").is_none() {
                self.report("must not be null; remove the field or give it a value");
            }
            return;
        }
        if schema["x-kubernetes-int-or-string"] == true {
            if !value.is_string() && !value.is_i64() {
                self.report(format!("must be an integer or a text, not {}", describe(value)));
            }
            return;
        }
        let wanted = schema["type"].as_str().unwrap_or_default();
        let (fits, name) = match wanted {
            "object" => (value.is_object(), "a mapping"),
            "array" => (value.is_array(), "a list"),
            "string" => (value.is_string(), "a text"),
            "integer" => (value.is_i64(), "an integer"),
            "number" => (value.is_number(), "a number"),
            "boolean" => (value.is_boolean(), "true or false"),
            _ => (true, ""),
        };
        if !fits {
            let quote = if wanted == "string" { "; quote it" } else { "" };
            self.report(format!("must be {name}, not {}{quote}", describe(value)));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            let hint = value.as_str().map(|text| did_you_mean(text, allowed.iter().copied())).unwrap_or_default();
            self.report(format!("{value} is not one of {}{hint}", allowed.join(", ")));
            return;
        }
        match value {
            Value::Object(members) => self.object(schema, members, root),
            Value::Array(items) => self.array(schema, items),
            Value::String(text) => self.string(schema, text),
            Value::Number(number) => self.number(schema, number),
            _ => {}
        }
    }

    fn object(&mut self, schema: &Value, members: &serde_json::Map<String, Value>, root: bool) {
        let properties = schema["properties"].as_object();
        self.count(schema, "Properties", "entries", members.len());
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !members.contains_key(name) && schema["properties"][name].get("default").is_none() {
                self.at(Segment::Key(name.into()), |walk| walk.report("is required"));
            }
        }
        for (key, member) in members {
            if root && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let known = properties.and_then(|known| known.get(key)).or_else(|| schema.get("additionalProperties"));
            self.at(Segment::Key(key.clone()), |walk| match known {
                Some(known) => walk.value(known, member, false),
                None if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
                None => {
                    let names = properties.into_iter().flatten().map(|(name, _)| name.as_str());
                    walk.report(format!("unknown field{}", did_you_mean(key, names)));
                }
            });
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value]) {
        self.count(schema, "Items", "items", items.len());
        for (index, item) in items.iter().enumerate() {
            self.at(Segment::Index(index), |walk| walk.value(&schema["items"], item, false));
        }
        let keys: Vec<&str> =
            schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if schema["x-kubernetes-list-type"] == "map" {
            let identity = |item: &Value| keys.iter().map(|key| item[*key].clone()).collect::<Vec<_>>();
            for (index, item) in items.iter().enumerate() {
                if let Some(first) = items.iter().take(index).position(|other| identity(other) == identity(item)) {
                    let message = format!("has the same {} as item {first}; it must be unique", keys.join(" and "));
                    self.at(Segment::Index(index), |walk| walk.report(message));
                }
            }
        }
    }

    fn string(&mut self, schema: &Value, text: &str) {
        self.count(schema, "Length", "characters", text.chars().count());
        if let Some(pattern) = schema["pattern"].as_str()
            && !regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
        {
            self.report(format!("\"{text}\" does not match {pattern}"));
        }
    }

    fn number(&mut self, schema: &Value, number: &serde_json::Number) {
        let value = number.as_f64().unwrap_or(f64::NAN);
        let limits =
            if schema["format"] == "int32" { (f64::from(i32::MIN), f64::from(i32::MAX)) } else { (f64::MIN, f64::MAX) };
        let least = schema["minimum"].as_f64().unwrap_or(limits.0);
        let most = schema["maximum"].as_f64().unwrap_or(limits.1);
        if value < least {
            self.report(format!("must be at least {least}, is {number}"));
        } else if value > most {
            self.report(format!("must be at most {most}, is {number}"));
        }
    }

    fn count(&mut self, schema: &Value, what: &str, unit: &str, count: usize) {
        let limit = |prefix: &str| schema[format!("{prefix}{what}").as_str()].as_u64();
        if let Some(least) = limit("min").filter(|least| (count as u64) < *least) {
            self.report(format!("must have at least {least} {unit}, has {count}"));
        }
        if let Some(most) = limit("max").filter(|most| (count as u64) > *most) {
            self.report(format!("must have at most {most} {unit}, has {count}"));
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the text \"{value}\""),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(schema: Value, value: Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "x"}, "spec": value});
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        check(&schema, &object).into_iter().map(|(path, message)| format!("{} {message}", path_text(&path))).collect()
    }

    #[test]
    fn each_rule_of_a_structural_schema() {
        for (schema, good, bad, message) in [
            (json!({"type": "integer"}), json!(1), json!("1"), "spec must be an integer, not the text \"1\""),
            (json!({"type": "string"}), json!("a"), json!(1.5), "spec must be a text, not the number 1.5; quote it"),
            (json!({"type": "boolean"}), json!(true), json!("yes"), "spec must be true or false, not the text \"yes\""),
            (
                json!({"type": "integer", "minimum": 1, "maximum": 3}),
                json!(3),
                json!(4),
                "spec must be at most 3, is 4",
            ),
            (
                json!({"type": "integer", "format": "int32"}),
                json!(3),
                json!(3_000_000_000_i64),
                "spec must be at most 2147483647, is 3000000000",
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("äö"),
                json!("äöü"),
                "spec must have at most 2 characters, has 3",
            ),
            (json!({"type": "string", "pattern": "^a+$"}), json!("aa"), json!("ab"), "spec \"ab\" does not match ^a+$"),
            (
                json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
                json!(["a"]),
                json!([]),
                "spec must have at least 1 items, has 0",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}),
                json!({"a": "x"}),
                json!({}),
                "spec.a is required",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"k": "x"}),
                json!({"k": true}),
                "spec.k must be a text, not the boolean true; quote it",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(5),
                json!(false),
                "spec must be an integer or a text, not the boolean false",
            ),
            (
                json!({"type": "string", "nullable": true}),
                json!(null),
                json!(1),
                "spec must be a text, not the number 1; quote it",
            ),
            (
                json!({"type": "string"}),
                json!("x"),
                json!(null),
                "spec must not be null; remove the field or give it a value",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object", "properties": {"n": {"type": "string"}}}}),
                json!([{"n": "a"}, {"n": "b"}]),
                json!([{"n": "a"}, {"n": "a"}]),
                "spec[1] has the same n as item 0; it must be unique",
            ),
        ] {
            assert_eq!(messages(schema.clone(), good), Vec::<String>::new(), "{schema}");
            assert_eq!(messages(schema.clone(), bad), [message], "{schema}");
        }
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(messages(open, json!({"any": {"thing": 1}})), Vec::<String>::new());
    }

    #[test]
    fn metadata_needs_a_name_and_texts() {
        let schema = json!({"type": "object"});
        let found = check(&schema, &json!({"metadata": {"labels": {"a": 1}}}));
        let texts: Vec<_> = found.iter().map(|(path, message)| format!("{}: {message}", path_text(path))).collect();
        assert_eq!(
            texts,
            ["metadata.name: is required, as a text", "metadata.labels.a: must be a text, not the number 1; quote it"]
        );
    }

    #[test]
    fn paths_read_as_they_are_written() {
        for text in ["spec.nodes[1].llm", "a", "spec.tags[\"a.b/c\"]"] {
            let path = parse_path(text);
            if !text.contains('"') {
                assert_eq!(path_text(&path), text);
            }
        }
        assert_eq!(path_text(&[Segment::Key("a".into()), Segment::Key("b.c".into())]), "a[\"b.c\"]");
    }
}
