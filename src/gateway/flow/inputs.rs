//! Inputs of a request, checked against the flow's. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::templates::suggestion;
use crate::api::prompt_flow::{Input, InputType};
use crate::gateway::error::ApiError;

/// Longest string when the flow does not say, in characters.
const MAX_LENGTH: usize = 8192;
/// Names of a flow's input that a chat's last message may fill, when there are several.
const QUESTIONS: [&str; 5] = ["question", "query", "message", "input", "text"];

/// Checks the inputs of a request and adds defaults. Optional inputs that are not given stay absent.
///
/// # Errors
/// 400 that names the input, when one is unknown, missing, of another type, or too long.
pub fn read(declared: &BTreeMap<String, Input>, given: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    if let Some(unknown) = given.keys().find(|name| !declared.contains_key(*name)) {
        let hint = suggestion(unknown, declared.keys().map(String::as_str));
        return Err(ApiError::invalid(format!("inputs.{unknown}"), format!("the flow has no input {unknown:?}{hint}")));
    }
    let mut given = given;
    let mut inputs = Map::new();
    for (name, input) in declared {
        let param = format!("inputs.{name}");
        let value = match given.remove(name) {
            Some(value) => value,
            None => match (&input.default, input.required) {
                (Some(default), _) => default.clone(),
                (None, Some(false)) => continue,
                (None, _) => {
                    return Err(ApiError::invalid(&param, format!("{param} is missing: the flow requires it")));
                }
            },
        };
        check(&param, input, &value)?;
        inputs.insert(name.clone(), value);
    }
    Ok(inputs)
}

fn check(param: &str, input: &Input, value: &Value) -> Result<(), ApiError> {
    let (fits, wanted) = match input.r#type {
        InputType::String => (value.is_string(), "a string"),
        InputType::Integer => (value.is_i64() || value.is_u64(), "an integer"),
        InputType::Number => (value.is_number(), "a number"),
        InputType::Boolean => (value.is_boolean(), "true or false"),
    };
    if !fits {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        return Err(ApiError::invalid(param, format!("{param} must be {wanted}, not {found}")));
    }
    let longest = input.max_length.and_then(|length| usize::try_from(length).ok()).unwrap_or(MAX_LENGTH);
    match value.as_str().map(|text| text.chars().count()) {
        Some(length) if length > longest => {
            Err(ApiError::invalid(param, format!("{param} has {length} characters; at most {longest} are allowed")))
        }
        _ => Ok(()),
    }
}

/// The input that the text of a chat fills: the only required string, or one with a customary name.
///
/// # Errors
/// 400 when no input is the obvious one.
pub fn single_text(declared: &BTreeMap<String, Input>) -> Result<&str, ApiError> {
    let required = |input: &Input| input.required.unwrap_or(input.default.is_none());
    let texts = || declared.iter().filter(|(_, input)| input.r#type == InputType::String);
    let mut needed = declared.iter().filter(|(_, input)| required(input));
    if let (Some((name, input)), None) = (needed.next(), needed.next())
        && input.r#type == InputType::String
    {
        return Ok(name);
    }
    let customary = QUESTIONS.iter().find_map(|name| texts().find(|(declared, _)| declared == name));
    let only = match (texts().next(), texts().nth(1)) {
        (Some(only), None) => Some(only),
        _ => None,
    };
    customary.or(only).map(|(name, _)| name.as_str()).ok_or_else(|| {
        let names: Vec<_> = declared.keys().map(String::as_str).collect();
        ApiError::invalid(
            "model",
            format!(
                "a chat message fills one string input, and this flow has no obvious one among [{}]: name one `question`, or call /v1/flows/NAMESPACE/NAME",
                names.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declared() -> BTreeMap<String, Input> {
        serde_json::from_value(json!({
            "question": {"type": "String", "maxLength": 5},
            "count": {"type": "Integer", "default": 3},
            "exact": {"type": "Boolean", "required": false},
            "ratio": {"type": "Number", "required": false},
        }))
        .unwrap()
    }

    fn check(given: Value) -> Result<Value, (String, String)> {
        let Value::Object(given) = given else { panic!("an object") };
        read(&declared(), given).map(Value::Object).map_err(|error| (error.param.unwrap_or_default(), error.message))
    }

    #[test]
    fn defaults_are_added_and_optional_inputs_stay_absent() {
        assert_eq!(check(json!({"question": "äöüßé"})).unwrap(), json!({"count": 3, "question": "äöüßé"}));
        assert_eq!(
            check(json!({"question": "a", "ratio": 1, "exact": true, "count": 0})).unwrap(),
            json!({"count": 0, "exact": true, "question": "a", "ratio": 1})
        );
    }

    #[test]
    fn errors_name_the_input() {
        for (given, param, words) in [
            (json!({}), "inputs.question", "missing"),
            (json!({"question": "123456"}), "inputs.question", "has 6 characters; at most 5"),
            (json!({"question": 1}), "inputs.question", "must be a string, not a number"),
            (json!({"question": null}), "inputs.question", "not null"),
            (json!({"question": "a", "count": 1.5}), "inputs.count", "must be an integer"),
            (json!({"question": "a", "qestion": "b"}), "inputs.qestion", "no input \"qestion\""),
        ] {
            let (found, message) = check(given.clone()).unwrap_err();
            assert_eq!(found, param, "{given}");
            assert!(message.contains(words), "{given}: {message}");
        }
    }

    #[test]
    fn a_chat_fills_the_obvious_input() {
        let of = |inputs: Value| single_text(&serde_json::from_value(inputs).unwrap()).map(str::to_owned);
        assert_eq!(of(json!({"topic": {"type": "String"}, "n": {"type": "Integer", "default": 1}})).unwrap(), "topic");
        assert_eq!(of(json!({"question": {"type": "String"}, "lang": {"type": "String"}})).unwrap(), "question");
        assert_eq!(of(json!({"x": {"type": "String", "default": "a"}})).unwrap(), "x");
        assert!(of(json!({"a": {"type": "String"}, "b": {"type": "String"}})).is_err());
        assert!(of(json!({"n": {"type": "Integer"}})).is_err());
    }
}
