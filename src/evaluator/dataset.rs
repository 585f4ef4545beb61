//! Datasets: JSON Lines, one case a line. Pure; the controller checks with the same code that the Job reads with.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::plan::PlannedTarget;
use crate::api::evaluation::{Columns, Metric, MetricType};
use crate::api::prompt_flow::{Input, InputType};

/// A case: a line of the dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its identity: the id column, else the line's number.
    pub id: String,
    /// Number of its line, from 1.
    pub line: usize,
    /// Its columns.
    pub columns: Map<String, Value>,
}

/// What is wrong with a dataset, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatasetError {
    /// No line has a case.
    #[error("it has no cases; write one JSON object a line")]
    Empty,
    /// A line is not a JSON object.
    #[error("line {line}: {problem}; write one JSON object a line")]
    Syntax {
        /// Number of the line, from 1.
        line: usize,
        /// What the parser met.
        problem: String,
    },
    /// A column is missing or wrong.
    #[error("line {line}: column {column:?} {problem}")]
    Column {
        /// Number of the line, from 1.
        line: usize,
        /// The column.
        column: String,
        /// What is wrong and who needs it.
        problem: String,
    },
}

/// Digest of a dataset's text, `sha256:HEX`.
pub fn digest(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes())))
}

/// Reads the cases, at most `limit` of them; lines behind the last are not read.
///
/// # Errors
/// The first line that is not a JSON object, an id that is no text or number or occurs twice, or that there are no cases.
pub fn parse(text: &str, columns: &Columns, limit: Option<usize>) -> Result<Vec<Case>, DatasetError> {
    let mut cases = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, content) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if content.trim().is_empty() {
            continue;
        }
        if limit.is_some_and(|limit| cases.len() >= limit) {
            break;
        }
        let line = index + 1;
        let fields = match serde_json::from_str(content) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return Err(DatasetError::Syntax { line, problem: format!("it is {}", kind(&other)) }),
            Err(error) => return Err(DatasetError::Syntax { line, problem: syntax(&error) }),
        };
        let id = match fields.get(&columns.id) {
            None | Some(Value::Null) => line.to_string(),
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(other) => {
                return Err(wrong(line, &columns.id, format!("is {}; an id is a text or a number", kind(other))));
            }
        };
        if let Some(first) = seen.insert(id.clone(), line) {
            return Err(wrong(line, &columns.id, format!("repeats the id {id:?} of line {first}; ids must be unique")));
        }
        cases.push(Case { id, line, columns: fields });
    }
    if cases.is_empty() { Err(DatasetError::Empty) } else { Ok(cases) }
}

/// Checks that every case has what the target and the metrics need.
///
/// # Errors
/// The first missing or wrong column.
pub fn check(
    cases: &[Case],
    target: &PlannedTarget,
    metrics: &[Metric],
    columns: &Columns,
) -> Result<(), DatasetError> {
    for case in cases {
        match target {
            PlannedTarget::Model { .. } => {
                case.question(columns)?;
            }
            PlannedTarget::Flow { inputs, .. } => {
                case.inputs(inputs)?;
            }
            PlannedTarget::Index { filters, .. } => {
                case.question(columns)?;
                case.filters(filters)?;
            }
        }
        for metric in metrics {
            case.expected(metric, columns)?;
        }
    }
    Ok(())
}

/// Whether a metric compares the answer with a column.
pub fn compares(kind: MetricType) -> bool {
    matches!(kind, MetricType::Contains | MetricType::ExactMatch | MetricType::RougeL | MetricType::EmbeddingSimilarity)
}

impl Case {
    /// Values of the tags that an index is filtered on: the columns that are named like them.
    ///
    /// # Errors
    /// When a column is missing or no text.
    pub fn filters(&self, names: &[String]) -> Result<BTreeMap<String, String>, DatasetError> {
        let value = |name: &String| match self.columns.get(name) {
            Some(Value::String(text)) => Ok((name.clone(), text.clone())),
            other => Err(self.needs(name, other, &format!("the index's required filter {name:?}"), "a text")),
        };
        names.iter().map(value).collect()
    }

    /// The user's message, for models, and the question, for indexes.
    ///
    /// # Errors
    /// When the column is missing or no text.
    pub fn question(&self, columns: &Columns) -> Result<&str, DatasetError> {
        match self.columns.get(&columns.input) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
            other => Err(self.needs(&columns.input, other, "the question", "a text")),
        }
    }

    /// The inputs of a flow: the columns that are named like one.
    ///
    /// # Errors
    /// When a required input has no column, or a column has another type than its input.
    pub fn inputs(&self, inputs: &BTreeMap<String, Input>) -> Result<Map<String, Value>, DatasetError> {
        let mut found = Map::new();
        for (name, input) in inputs {
            match self.columns.get(name).filter(|value| !value.is_null()) {
                Some(value) => {
                    let (fits, wanted) = match input.r#type {
                        InputType::String => (value.is_string(), "a text"),
                        InputType::Integer => (value.is_i64(), "a whole number"),
                        InputType::Number => (value.is_number(), "a number"),
                        InputType::Boolean => (value.is_boolean(), "true or false"),
                    };
                    if !fits {
                        return Err(self.needs(name, Some(value), &format!("the flow's input {name:?}"), wanted));
                    }
                    found.insert(name.clone(), value.clone());
                }
                None if input.default.is_none() && input.required.unwrap_or(true) => {
                    return Err(self.needs(name, None, &format!("the flow's input {name:?}"), "a value"));
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// The texts with which a metric compares the answer; none for metrics that compare with nothing.
    ///
    /// # Errors
    /// When the column is missing, or is neither a text nor a list of texts.
    pub fn expected(&self, metric: &Metric, columns: &Columns) -> Result<Vec<&str>, DatasetError> {
        if !compares(metric.r#type) {
            return Ok(Vec::new());
        }
        let column = metric.column.as_ref().unwrap_or(&columns.expected);
        let value = self.columns.get(column);
        let texts: Option<Vec<&str>> = match value {
            Some(Value::String(text)) => Some(vec![text]),
            Some(Value::Array(texts)) if !texts.is_empty() => texts.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let purpose = format!("metric {:?}", metric.name);
        let texts = texts.ok_or_else(|| self.needs(column, value, &purpose, "a text or a list of texts"))?;
        // Every answer contains the empty text, and an empty text has neither words nor direction.
        if metric.r#type != MetricType::ExactMatch && texts.iter().any(|text| text.trim().is_empty()) {
            return Err(wrong(self.line, column, format!("has an empty text, but {purpose} compares with it")));
        }
        Ok(texts)
    }

    fn needs(&self, column: &str, value: Option<&Value>, purpose: &str, wanted: &str) -> DatasetError {
        let problem = match value {
            None => format!("is missing; it is needed for {purpose}, as {wanted}"),
            Some(value) => format!("is {}, but {purpose} needs {wanted}", kind(value)),
        };
        wrong(self.line, column, problem)
    }
}

fn wrong(line: usize, column: &str, problem: String) -> DatasetError {
    DatasetError::Column { line, column: column.to_owned(), problem }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(text) if text.trim().is_empty() => "an empty text",
        Value::String(_) => "a text",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list with something else than texts",
        Value::Object(_) => "an object",
    }
}

/// The parser's message with the position inside the line; its own line number is always 1 and would mislead.
fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let problem = text.split(" at line ").next().unwrap_or_default();
    format!("not valid JSON at character {}: {problem}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn metric(kind: &str, column: Option<&str>) -> Metric {
        serde_json::from_value(json!({"name": "grounded", "type": kind, "column": column})).unwrap()
    }

    fn flow() -> PlannedTarget {
        serde_json::from_value(json!({"flow": {"name": "ask", "inputs": {
            "question": {"type": "String"}, "limit": {"type": "Integer", "default": 3}}}}))
        .unwrap()
    }

    fn problem(text: &str, kind: &str) -> String {
        let columns = Columns::default();
        match parse(text, &columns, None).and_then(|cases| check(&cases, &flow(), &[metric(kind, None)], &columns)) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_cases() {
        let text = "\u{feff}{\"id\":\"a\",\"question\":\"x\",\"expected\":[\"1\",\"2\"]}\r\n\n{\"question\":\"y\",\"expected\":\"3\"}\n";
        let columns = Columns::default();
        let cases = parse(text, &columns, None).unwrap();
        assert_eq!(cases.iter().map(|case| (case.id.as_str(), case.line)).collect::<Vec<_>>(), [("a", 1), ("3", 3)]);
        check(&cases, &flow(), &[metric("Contains", None), metric("Latency", None)], &columns).unwrap();
        assert_eq!(cases[0].expected(&metric("Contains", None), &columns).unwrap(), ["1", "2"]);
        assert_eq!(parse(text, &columns, Some(1)).unwrap().len(), 1);
        assert_eq!(
            Value::from(
                cases[0]
                    .inputs(&match flow() {
                        PlannedTarget::Flow { inputs, .. } => inputs,
                        PlannedTarget::Model { .. } | PlannedTarget::Index { .. } => unreachable!(),
                    })
                    .unwrap()
            ),
            json!({"question": "x"})
        );
    }

    #[test]
    fn errors_name_line_and_column() {
        let good = "{\"question\":\"x\",\"expected\":\"1\"}\n";
        for (line, kind, message) in [
            ("", "Contains", "fine"),
            (
                "{\"question\": ",
                "Contains",
                "line 2: not valid JSON at character 13: EOF while parsing a value; write one JSON object a line",
            ),
            ("[1]", "Contains", "line 2: it is a list with something else than texts; write one JSON object a line"),
            (
                "{\"question\":\"x\"}",
                "Contains",
                "line 2: column \"expected\" is missing; it is needed for metric \"grounded\", as a text or a list of texts",
            ),
            (
                "{\"question\":\"x\",\"expected\":5}",
                "RougeL",
                "line 2: column \"expected\" is a number, but metric \"grounded\" needs a text or a list of texts",
            ),
            (
                "{\"question\":\"x\",\"expected\":[]}",
                "RougeL",
                "line 2: column \"expected\" is an empty list, but metric \"grounded\" needs a text or a list of texts",
            ),
            (
                "{\"question\":\"x\",\"expected\":[\" \"]}",
                "Contains",
                "line 2: column \"expected\" has an empty text, but metric \"grounded\" compares with it",
            ),
            ("{\"question\":\"x\",\"expected\":\"\"}", "ExactMatch", "fine"),
            ("{\"question\":\"x\"}", "JsonValid", "fine"),
            (
                "{\"expected\":\"1\"}",
                "Contains",
                "line 2: column \"question\" is missing; it is needed for the flow's input \"question\", as a value",
            ),
            (
                "{\"question\":\"x\",\"limit\":\"3\"}",
                "Cost",
                "line 2: column \"limit\" is a text, but the flow's input \"limit\" needs a whole number",
            ),
            (
                "{\"id\":\"1\",\"question\":\"x\"}",
                "Cost",
                "line 2: column \"id\" repeats the id \"1\" of line 1; ids must be unique",
            ),
            (
                "{\"id\":true,\"question\":\"x\"}",
                "Cost",
                "line 2: column \"id\" is true or false; an id is a text or a number",
            ),
        ] {
            assert_eq!(problem(&format!("{good}{line}"), kind), message);
        }
        assert_eq!(problem("\n  \n", "Cost"), "it has no cases; write one JSON object a line");
    }

    #[test]
    fn a_models_question_is_a_text() {
        let columns = Columns { input: "ask".into(), ..Columns::default() };
        let model = PlannedTarget::Model { name: "m".into(), cost: None };
        let cases = parse("{\"ask\":\" \"}", &columns, None).unwrap();
        assert_eq!(
            check(&cases, &model, &[], &columns).unwrap_err().to_string(),
            "line 1: column \"ask\" is an empty text, but the question needs a text"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\PC|\n){0,200}") {
            let _ = parse(&text, &Columns::default(), None);
        }
        #[test]
        fn every_line_is_a_case(count in 1usize..50) {
            let text: String = (0..count).map(|index| format!("{{\"question\":\"q{index}\"}}\n")).collect();
            prop_assert_eq!(parse(&text, &Columns::default(), None).unwrap().len(), count);
        }
    }
}
