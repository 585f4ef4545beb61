//! A flow revision made ready to run: templates compiled, references checked. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::output::{self, Output};
use super::templates::Template;
use crate::api::flow_revision::{FlowModel, FlowRevision, Step};
use crate::api::prompt_flow::{Input, Parameters, Role};
use crate::api::quantity::Decimal;

/// A flow revision that can run.
#[derive(Debug)]
pub struct Program {
    /// Inputs by name.
    pub inputs: BTreeMap<String, Input>,
    /// Models by alias.
    pub models: BTreeMap<String, FlowModel>,
    /// Name of the RagIndex by alias.
    pub indexes: BTreeMap<String, String>,
    pub(super) nodes: Vec<Node>,
    pub(super) output: Output,
}

#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub after: Vec<String>,
    pub step: CompiledStep,
}

#[derive(Debug)]
pub(super) enum CompiledStep {
    Llm {
        /// Aliases to try, in turn.
        models: Vec<String>,
        messages: Vec<(Role, Template)>,
        /// Members of the request body that are always the same.
        parameters: Map<String, Value>,
    },
    Retrieve {
        /// Name of the RagIndex.
        index: String,
        alias: String,
        query: Box<Template>,
        top_k: Option<i32>,
        min_score: Option<f64>,
        filters: BTreeMap<String, Template>,
    },
}

/// A revision that cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// A template is none.
    #[error("{field}: {cause}")]
    Template {
        /// The field.
        field: String,
        /// Cause.
        cause: String,
    },
    /// An alias is not defined.
    #[error("node {node} names the {kind} {alias:?}, which the revision does not define")]
    Alias {
        /// The node.
        node: String,
        /// `model` or `index`.
        kind: &'static str,
        /// The alias.
        alias: String,
    },
    /// The graph has no order.
    #[error("node {node} comes after {after:?}, which is no earlier node")]
    Order {
        /// The node.
        node: String,
        /// What it wants to come after.
        after: String,
    },
}

impl CompiledStep {
    /// Whether running it changes something outside: such a step must not run in a shadow copy. Every new kind of step has
    /// to answer this.
    fn has_side_effects(&self) -> bool {
        match self {
            // Asking a model and searching an index only read.
            Self::Llm { .. } | Self::Retrieve { .. } => false,
        }
    }
}

impl Program {
    /// Compiles a revision.
    ///
    /// # Errors
    /// When a template does not compile, an alias is not defined, or a node comes after one that does not precede it.
    pub fn compile(revision: FlowRevision) -> Result<Self, ProgramError> {
        let FlowRevision { models, indexes, inputs, nodes, output, .. } = revision;
        let mut seen = BTreeSet::new();
        let mut compiled = Vec::with_capacity(nodes.len());
        for node in nodes {
            if let Some(after) = node.after.iter().find(|after| !seen.contains(*after)) {
                return Err(ProgramError::Order { node: node.name, after: after.clone() });
            }
            let alias =
                |kind, alias: &str| ProgramError::Alias { node: node.name.clone(), kind, alias: alias.to_owned() };
            let field = |rest: &str| format!("node {}: {rest}", node.name);
            let step = match &node.step {
                Step::Llm { model, messages, parameters } => {
                    let first = models.get(model).ok_or_else(|| alias("model", model))?;
                    let mut tried = vec![model.clone()];
                    for fallback in &first.fallback {
                        models.get(fallback).ok_or_else(|| alias("model", fallback))?;
                        if !tried.contains(fallback) {
                            tried.push(fallback.clone());
                        }
                    }
                    let messages = messages.iter().enumerate().map(|(place, message)| {
                        let template = template(&message.content, || field(&format!("messages[{place}].content")))?;
                        Ok((message.role, template))
                    });
                    CompiledStep::Llm {
                        models: tried,
                        messages: messages.collect::<Result<_, ProgramError>>()?,
                        parameters: body(parameters),
                    }
                }
                Step::Retrieve { index, query, top_k, min_score, filters } => CompiledStep::Retrieve {
                    alias: index.clone(),
                    index: indexes.get(index).ok_or_else(|| alias("index", index))?.clone(),
                    query: Box::new(template(query, || field("query"))?),
                    top_k: *top_k,
                    min_score: min_score.as_ref().and_then(Decimal::value),
                    filters: filters
                        .iter()
                        .map(|(tag, value)| Ok((tag.clone(), template(value, || field(&format!("filters.{tag}")))?)))
                        .collect::<Result<_, ProgramError>>()?,
                },
            };
            seen.insert(node.name.clone());
            compiled.push(Node { name: node.name, after: node.after, step });
        }
        let is_llm =
            |name: &str| compiled.iter().any(|node| node.name == name && matches!(node.step, CompiledStep::Llm { .. }));
        let output = output::compile(&output, is_llm)
            .map_err(|cause| ProgramError::Template { field: "output".into(), cause })?;
        Ok(Self { inputs, models, indexes, nodes: compiled, output })
    }

    /// Whether any of its steps changes something outside.
    pub fn has_side_effects(&self) -> bool {
        self.nodes.iter().any(|node| node.step.has_side_effects())
    }

    /// Names of the ModelDeployments that it may call.
    pub fn deployments(&self) -> impl Iterator<Item = &str> {
        self.models.values().map(|model| model.deployment.as_str())
    }
}

fn template(source: &str, field: impl FnOnce() -> String) -> Result<Template, ProgramError> {
    Template::compile(source).map_err(|error| ProgramError::Template { field: field(), cause: error.to_string() })
}

/// The parameters as members of an OpenAI request.
fn body(parameters: &Parameters) -> Map<String, Value> {
    let number = |decimal: &Option<Decimal>| decimal.as_ref().and_then(Decimal::value).map(Value::from);
    let members = [
        ("temperature", number(&parameters.temperature)),
        ("top_p", number(&parameters.top_p)),
        ("max_tokens", parameters.max_tokens.map(Value::from)),
        ("seed", parameters.seed.map(Value::from)),
        ("stop", (!parameters.stop.is_empty()).then(|| json!(parameters.stop))),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(nodes: Value) -> FlowRevision {
        serde_json::from_value(json!({
            "format": 1,
            "models": {
                "writer": {"deployment": "smollm2", "timeoutMs": 1000, "retries": 2, "fallback": ["spare"]},
                "spare": {"deployment": "spare", "timeoutMs": 1000, "retries": 0},
            },
            "indexes": {"handbook": "docs"},
            "inputs": {},
            "nodes": nodes,
            "output": "{{ nodes.answer.text }}",
        }))
        .unwrap()
    }

    #[test]
    fn parameters_become_numbers_of_the_request() {
        let node = json!([{"name": "answer", "llm": {"model": "writer", "messages": [{"role": "user", "content": "hi"}],
            "parameters": {"temperature": "0.20", "maxTokens": 48, "stop": ["\n"]}}}]);
        let program = Program::compile(revision(node)).unwrap();
        let CompiledStep::Llm { models, parameters, .. } = &program.nodes[0].step else { panic!("an llm node") };
        assert_eq!(models, &["writer", "spare"]);
        assert_eq!(Value::Object(parameters.clone()), json!({"temperature": 0.2, "max_tokens": 48, "stop": ["\n"]}));
    }

    #[test]
    fn mistakes_name_the_node() {
        let unknown = json!([{"name": "answer", "llm": {"model": "riter", "messages": [], "parameters": {}}}]);
        let order = json!([{"name": "answer", "after": ["later"],
                            "llm": {"model": "writer", "messages": [], "parameters": {}}}]);
        let broken = json!([{"name": "search", "retrieve": {"index": "handbook", "query": "{{ inputs."}}]);
        let error = |nodes| Program::compile(revision(nodes)).unwrap_err().to_string();
        assert!(error(unknown).contains(r#"node answer names the model "riter""#));
        assert!(error(order).contains(r#"node answer comes after "later""#));
        assert!(error(broken).starts_with("node search: query: line 1"));
    }
}
