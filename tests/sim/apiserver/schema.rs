//! Structural schemas of custom kinds: pruning, defaults, validation.

use regex::Regex;
use serde_json::{Map, Value};

/// Removes fields that the schema does not know, and nulls that it does not allow, then fills in defaults.
pub fn prune_and_default(value: &mut Value, schema: &Value) {
    walk(value, schema, true);
}

fn walk(value: &mut Value, schema: &Value, root: bool) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let extra = schema.get("additionalProperties").filter(|extra| extra.is_object());
            let keep = flag(schema, "x-kubernetes-preserve-unknown-fields");
            if properties.is_none() && extra.is_none() {
                if !keep && schema.get("type").is_some_and(|kind| kind == "object") && !root {
                    map.clear();
                }
                return;
            }
            map.retain(|name, inner| {
                let known = properties.and_then(|all| all.get(name)).or(extra);
                let system = root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                match known {
                    Some(schema) => !inner.is_null() || flag(schema, "nullable"),
                    None => keep || system,
                }
            });
            for (name, schema) in properties.into_iter().flatten() {
                if let (false, Some(default)) = (map.contains_key(name), schema.get("default")) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, inner) in map.iter_mut() {
                if root && name == "metadata" {
                    continue;
                }
                if let Some(schema) = properties.and_then(|all| all.get(name)).or(extra) {
                    walk(inner, schema, false);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| walk(item, schema, false));
            }
        }
        _ => {}
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// What is wrong with a value, each with its path.
pub fn validate(value: &Value, schema: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check(value, schema, "", &mut errors);
    errors
}

fn check(value: &Value, schema: &Value, path: &str, errors: &mut Vec<String>) {
    let at = path.trim_start_matches('.');
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    let fits = match schema.get("type").and_then(Value::as_str) {
        _ if flag(schema, "x-kubernetes-int-or-string") => value.is_string() || value.is_i64() || value.is_u64(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !fits {
        let wanted = schema["type"].as_str().unwrap_or("int-or-string");
        errors.push(format!("{at}: Invalid value: {value}: {at} in body must be of type {wanted}"));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        errors.push(format!("{at}: Unsupported value: {value}: supported values: {}", list.join(", ")));
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    let mut bound = |size: f64, low: &str, high: &str, what: &str| {
        if limit(low).is_some_and(|low| size < low) || limit(high).is_some_and(|high| size > high) {
            let list = (limit(low), limit(high));
            errors.push(format!("{at}: Invalid value: {what} {size} is outside of {list:?}"));
        }
    };
    match value {
        Value::Number(number) => {
            bound(number.as_f64().unwrap_or_default(), "minimum", "maximum", "value");
        }
        Value::String(text) => {
            bound(text.chars().count() as f64, "minLength", "maxLength", "length");
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
                && !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
            {
                errors.push(format!("{at}: Invalid value: {value}: {at} in body should match '{pattern}'"));
            }
            if schema.get("format").is_some_and(|format| format == "date-time")
                && text.parse::<jiff::Timestamp>().is_err()
            {
                errors.push(format!("{at}: Invalid value: {value}: {at} in body must be of type date-time"));
            }
        }
        Value::Array(items) => {
            bound(items.len() as f64, "minItems", "maxItems", "number of items");
            duplicates(items, schema, at, errors);
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(item, schema, &format!("{path}[{index}]"), errors);
                }
            }
        }
        Value::Object(map) => {
            bound(map.len() as f64, "minProperties", "maxProperties", "number of properties");
            members(map, schema, path, errors);
        }
        _ => {}
    }
}

fn members(map: &Map<String, Value>, schema: &Value, path: &str, errors: &mut Vec<String>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            errors.push(format!("{}: Required value", format!("{path}.{name}").trim_start_matches('.')));
        }
    }
    for (name, inner) in map {
        let known = schema.get("properties").and_then(|all| all.get(name));
        let schema = known.or_else(|| schema.get("additionalProperties").filter(|extra| extra.is_object()));
        if let Some(schema) = schema {
            check(inner, schema, &format!("{path}.{name}"), errors);
        }
    }
}

fn duplicates(items: &[Value], schema: &Value, at: &str, errors: &mut Vec<String>) {
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    let Some(keys) = keys else { return };
    let key =
        |item: &Value| -> Vec<Value> { keys.iter().map(|key| item[key.as_str().unwrap_or("")].clone()).collect() };
    for (index, item) in items.iter().enumerate() {
        if items[..index].iter().any(|other| key(other) == key(item)) {
            errors.push(format!("{at}[{index}]: Duplicate value: {:?}", key(item)));
        }
    }
}
