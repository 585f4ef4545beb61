//! What can be said of a flow's spec alone: names, references between its parts, ranges. Pure; `llmops validate` runs
//! the same checks. Templates are checked by [`super::compile`], once they are complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::api::prompt_flow::{
    Input, InputType, Message, Node, NodeOverride, Parameters, PromptFlowSpec, RetrieveNode, RetrieveOverride, Unit,
};
use crate::api::quantity::Decimal;
use crate::gateway::flow::templates::suggestion;

/// A mistake in a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `spec.nodes[1].llm.messages[0].content`.
    pub field: String,
    /// Line inside the field, for templates.
    pub line: Option<usize>,
    /// What is wrong and what helps.
    pub message: String,
}

impl Problem {
    /// A mistake in a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), line: None, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.field, self.message),
            None => write!(f, "{}: {}", self.field, self.message),
        }
    }
}

/// The problems in one message: the first few in full, the number of the others.
pub fn summary(problems: &[Problem]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = problems.iter().take(SHOWN).map(Problem::to_string).collect();
    match problems.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// Checks a spec without looking into templates.
pub fn check(spec: &PromptFlowSpec) -> Vec<Problem> {
    let mut found = Vec::new();
    models(spec, &mut found);
    inputs(spec, &mut found);
    nodes(spec, &mut found);
    variants(spec, &mut found);
    if spec.assignment.unit == Unit::Header && spec.assignment.header.as_deref().unwrap_or_default().is_empty() {
        found.push(Problem::new(
            "spec.assignment.header",
            "is required with unit Header: name the header whose value is the unit",
        ));
    }
    if let Err(error) = crate::experiment::Plan::new(spec.experiment.as_ref(), true, 1) {
        found.push(Problem::new("spec.experiment", error.to_string()));
    }
    if std::time::Duration::from(spec.telemetry.retention).is_zero() {
        found.push(Problem::new("spec.telemetry.retention", "must be above zero, such as 720h"));
    }
    found
}

fn models(spec: &PromptFlowSpec, found: &mut Vec<Problem>) {
    for (alias, binding) in &spec.models {
        let field = format!("spec.models.{alias}");
        let zero = std::time::Duration::ZERO;
        if binding.timeout <= zero {
            found.push(Problem::new(format!("{field}.timeout"), "must be above zero, such as 60s"));
        }
        if !(0..=10).contains(&binding.retries) {
            found.push(Problem::new(format!("{field}.retries"), format!("is {}; use 0 to 10", binding.retries)));
        }
        for (index, fallback) in binding.fallback.iter().enumerate() {
            if !spec.models.contains_key(fallback) {
                let hint = suggestion(fallback, spec.models.keys().map(String::as_str));
                found.push(Problem::new(
                    format!("{field}.fallback[{index}]"),
                    format!("no model has the alias `{fallback}`{hint}"),
                ));
            }
        }
        if let Some(cycle) = fallback_cycle(spec, alias) {
            found.push(Problem::new(
                format!("{field}.fallback"),
                format!("the fallbacks go in a circle: {}; remove one of them", cycle.join(" → ")),
            ));
        }
    }
}

/// The circle of fallbacks that begins and ends at `start`, found from its smallest member only.
fn fallback_cycle(spec: &PromptFlowSpec, start: &str) -> Option<Vec<String>> {
    fn walk<'a>(
        spec: &'a PromptFlowSpec,
        start: &str,
        at: &'a str,
        path: &mut Vec<&'a str>,
        seen: &mut BTreeSet<&'a str>,
    ) -> bool {
        for next in spec.models.get(at).into_iter().flat_map(|binding| &binding.fallback) {
            if next == start {
                return true;
            }
            // Circles with a smaller member are reported there.
            if next.as_str() > start && seen.insert(next) {
                path.push(next);
                if walk(spec, start, next, path, seen) {
                    return true;
                }
                path.pop();
            }
        }
        false
    }
    let mut path = Vec::new();
    walk(spec, start, start, &mut path, &mut BTreeSet::new()).then(|| {
        let middle = path.into_iter().map(str::to_owned);
        std::iter::once(start.to_owned()).chain(middle).chain(std::iter::once(start.to_owned())).collect()
    })
}

fn inputs(spec: &PromptFlowSpec, found: &mut Vec<Problem>) {
    for (name, input) in &spec.inputs {
        let field = format!("spec.inputs.{name}");
        if !is_identifier(name) {
            found.push(Problem::new(
                &field,
                "templates could not read this name as `inputs.NAME`; use letters, digits and _, and begin with a letter",
            ));
        }
        if input.max_length.is_some() && input.r#type != InputType::String {
            found.push(Problem::new(
                format!("{field}.maxLength"),
                format!("only a String has a length; this input is {:?}", input.r#type),
            ));
        }
        if input.required == Some(true) && input.default.is_some() {
            found.push(Problem::new(
                format!("{field}.required"),
                "an input with a default is never missing; remove one of the two",
            ));
        }
        if let Some(message) = default_problem(input) {
            found.push(Problem::new(format!("{field}.default"), message));
        }
    }
}

fn default_problem(input: &Input) -> Option<String> {
    let default = input.default.as_ref()?;
    let fits = match input.r#type {
        InputType::String => default.is_string(),
        InputType::Integer => default.is_i64() || default.is_u64(),
        InputType::Number => default.is_number(),
        InputType::Boolean => default.is_boolean(),
    };
    if !fits {
        return Some(format!("{default} is no {:?}; change the default or spec.inputs' type", input.r#type));
    }
    let longest = usize::try_from(input.max_length.unwrap_or(super::compile::DEFAULT_MAX_LENGTH)).unwrap_or(0);
    match default.as_str() {
        Some(text) if text.chars().count() > longest => {
            Some(format!("has more than {longest} characters, the maxLength"))
        }
        _ => None,
    }
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|next| next.is_ascii_alphanumeric() || next == '_')
}

fn nodes(spec: &PromptFlowSpec, found: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    if spec.nodes.is_empty() {
        found.push(Problem::new("spec.nodes", "a flow has at least one node"));
    }
    for (index, node) in spec.nodes.iter().enumerate() {
        let field = format!("spec.nodes[{index}]");
        if !is_identifier(&node.name) {
            found.push(Problem::new(
                format!("{field}.name"),
                format!(
                    "templates could not read `nodes.{}`; use letters, digits and _, and begin with a letter",
                    node.name
                ),
            ));
        }
        if !names.insert(node.name.as_str()) {
            found.push(Problem::new(format!("{field}.name"), format!("another node is named `{}` already", node.name)));
        }
        match (&node.llm, &node.retrieve) {
            (Some(llm), None) => {
                alias("model", &llm.model, &spec.models, format!("{field}.llm.model"), found);
                messages(&llm.messages, &format!("{field}.llm.messages"), found);
                parameters(&llm.parameters, &format!("{field}.llm.parameters"), found);
            }
            (None, Some(retrieve)) => self::retrieve(spec, retrieve, &format!("{field}.retrieve"), found),
            _ => found.push(Problem::new(&field, "a node has exactly one of llm and retrieve")),
        }
    }
}

fn alias<T>(kind: &str, alias: &str, known: &BTreeMap<String, T>, field: String, found: &mut Vec<Problem>) {
    if !known.contains_key(alias) {
        let hint = if known.is_empty() {
            format!("; declare it in spec.{}", if kind == "model" { "models" } else { "indexes" })
        } else {
            suggestion(alias, known.keys().map(String::as_str))
        };
        found.push(Problem::new(field, format!("no {kind} has the alias `{alias}`{hint}")));
    }
}

fn messages(messages: &[Message], field: &str, found: &mut Vec<Problem>) {
    if messages.is_empty() {
        found.push(Problem::new(field, "a conversation has at least one message"));
    }
    for (index, message) in messages.iter().enumerate() {
        if message.content.is_some() == message.content_from.is_some() {
            found.push(Problem::new(format!("{field}[{index}]"), "set exactly one of content and contentFrom"));
        }
    }
}

fn parameters(parameters: &Parameters, field: &str, found: &mut Vec<Problem>) {
    range(parameters.temperature.as_ref(), 0.0, 2.0, format!("{field}.temperature"), found);
    range(parameters.top_p.as_ref(), 0.0, 1.0, format!("{field}.topP"), found);
    if parameters.max_tokens.is_some_and(|tokens| tokens < 1) {
        found.push(Problem::new(format!("{field}.maxTokens"), "must be at least 1"));
    }
}

fn retrieve(spec: &PromptFlowSpec, retrieve: &RetrieveNode, field: &str, found: &mut Vec<Problem>) {
    alias("index", &retrieve.index, &spec.indexes, format!("{field}.index"), found);
    top_k(retrieve.top_k, field, found);
    range(retrieve.min_score.as_ref(), -1.0, 1.0, format!("{field}.minScore"), found);
}

fn top_k(top_k: Option<i32>, field: &str, found: &mut Vec<Problem>) {
    if let Some(top_k) = top_k.filter(|top_k| !(1..=100).contains(top_k)) {
        found.push(Problem::new(format!("{field}.topK"), format!("is {top_k}; use 1 to 100")));
    }
}

fn range(decimal: Option<&Decimal>, min: f64, max: f64, field: String, found: &mut Vec<Problem>) {
    let Some(decimal) = decimal else { return };
    match decimal.value() {
        Some(value) if (min..=max).contains(&value) => {}
        Some(_) => found.push(Problem::new(field, format!("is {decimal}; use {min} to {max}"))),
        None => found.push(Problem::new(field, format!("`{decimal}` is no decimal number; write it as \"0.7\""))),
    }
}

fn variants(spec: &PromptFlowSpec, found: &mut Vec<Problem>) {
    if spec.variants.is_empty() {
        return;
    }
    let mut names = BTreeSet::new();
    let mut sum = 0_i64;
    for (index, variant) in spec.variants.iter().enumerate() {
        if !names.insert(variant.name.as_str()) {
            found.push(Problem::new(
                format!("spec.variants[{index}].name"),
                format!("another variant is named `{}` already", variant.name),
            ));
        }
        let field = format!("spec.variants[{}]", variant.name);
        if !(0..=100).contains(&variant.weight) {
            found.push(Problem::new(format!("{field}.weight"), format!("is {}; use 0 to 100", variant.weight)));
        }
        sum += i64::from(variant.weight);
        for (name, change) in &variant.overrides {
            let field = format!("{field}.overrides.{name}");
            match spec.nodes.iter().find(|node| node.name == *name) {
                Some(node) => override_of(spec, node, change, &field, found),
                None => {
                    let hint = suggestion(name, spec.nodes.iter().map(|node| node.name.as_str()));
                    found.push(Problem::new(field, format!("there is no node `{name}`{hint}")));
                }
            }
        }
    }
    if sum != 100 {
        found.push(Problem::new("spec.variants", format!("the weights sum to {sum}; they must sum to 100")));
    }
}

fn override_of(spec: &PromptFlowSpec, node: &Node, change: &NodeOverride, field: &str, found: &mut Vec<Problem>) {
    if change.llm.is_some() && node.llm.is_none() {
        found.push(Problem::new(
            format!("{field}.llm"),
            format!("node `{}` is a retrieve node; override `retrieve`", node.name),
        ));
    } else if let Some(llm) = &change.llm {
        if let Some(model) = &llm.model {
            alias("model", model, &spec.models, format!("{field}.llm.model"), found);
        }
        if let Some(replaced) = &llm.messages {
            messages(replaced, &format!("{field}.llm.messages"), found);
        }
        if let Some(replaced) = &llm.parameters {
            parameters(replaced, &format!("{field}.llm.parameters"), found);
        }
    }
    if change.retrieve.is_some() && node.retrieve.is_none() {
        found.push(Problem::new(
            format!("{field}.retrieve"),
            format!("node `{}` is an llm node; override `llm`", node.name),
        ));
    } else if let Some(RetrieveOverride { index, top_k: k, min_score, .. }) = &change.retrieve {
        if let Some(index) = index {
            alias("index", index, &spec.indexes, format!("{field}.retrieve.index"), found);
        }
        top_k(*k, &format!("{field}.retrieve"), found);
        range(min_score.as_ref(), -1.0, 1.0, format!("{field}.retrieve.minScore"), found);
    }
}
