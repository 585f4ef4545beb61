//! Spec → revisions, pure: overrides merged, ConfigMaps resolved, templates checked, order found. The same behaviour
//! gives the same revision, whatever the order of nodes, the spelling of numbers, or the weights.

use std::collections::{BTreeMap, BTreeSet};

use super::validate::{Problem, check as check_spec};
use crate::api::flow_revision::{FLOW_FORMAT, FlowMessage, FlowModel, FlowNode, FlowRevision, Step};
use crate::api::prompt_flow::{Input, InputType, Message, Node, NodeOverride, Parameters, PromptFlowSpec, Variant};
use crate::api::quantity::Decimal;
use crate::api::refs::ConfigMapKeyRef;
use crate::api::revision::revision_of;
use crate::gateway::flow::templates::{self, Field, Shape};

/// Longest String input without `maxLength`, in characters.
pub const DEFAULT_MAX_LENGTH: i32 = 8192;
/// Name of the only variant of a flow without variants.
pub const CONTROL: &str = "control";

/// Contents of ConfigMaps by name; a ConfigMap that does not exist is absent.
pub type ConfigMaps = BTreeMap<String, BTreeMap<String, String>>;

/// A variant, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// Name of the variant.
    pub variant: String,
    /// Percent of units.
    pub weight: i32,
    /// Revision: hash of the content.
    pub revision: String,
    /// The content.
    pub content: FlowRevision,
}

/// Why a spec has no revisions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The spec itself is at fault.
    #[error("{}", super::validate::summary(.0))]
    Spec(Vec<Problem>),
    /// A template that comes from a ConfigMap is at fault.
    #[error("{}", super::validate::summary(.0))]
    Template(Vec<Problem>),
    /// ConfigMaps or keys that do not exist; the first is the one to wait for.
    #[error("{}", super::validate::summary(.problems))]
    Missing {
        /// The first missing ConfigMap.
        config_map: String,
        /// Whether the ConfigMap exists and only its key does not.
        key_only: bool,
        /// One for each missing content.
        problems: Vec<Problem>,
    },
}

/// Compiles every variant.
///
/// # Errors
/// All problems of one sort: of the spec first, then missing ConfigMaps, then faults of templates in ConfigMaps.
pub fn compile(spec: &PromptFlowSpec, config_maps: &ConfigMaps) -> Result<Vec<Compiled>, CompileError> {
    let problems = check_spec(spec);
    if !problems.is_empty() {
        return Err(CompileError::Spec(problems));
    }
    let context = context(spec);
    let mut faults = Faults::default();
    let control = [Variant { name: CONTROL.to_owned(), weight: 100, overrides: BTreeMap::new() }];
    let variants = if spec.variants.is_empty() { &control[..] } else { &spec.variants };
    // The flow without overrides is checked even when every variant overrides a template: it is what people read first.
    let base = Draft::of(spec, None, config_maps, &mut faults);
    base.order(spec, &context, &mut faults);
    let mut compiled = Vec::new();
    for variant in variants {
        let draft = Draft::of(spec, Some(variant), config_maps, &mut faults);
        if let Some(nodes) = draft.order(spec, &context, &mut faults) {
            let content = content(spec, nodes);
            match revision_of(&content) {
                Ok(revision) => {
                    compiled.push(Compiled { variant: variant.name.clone(), weight: variant.weight, revision, content })
                }
                Err(error) => faults.spec.push(Problem::new("spec", format!("cannot be written as JSON: {error}"))),
            }
        }
    }
    faults.into_result(compiled)
}

/// Checks a spec offline, where ConfigMaps are not known: their templates are taken for empty.
pub fn check(spec: &PromptFlowSpec) -> Vec<Problem> {
    let mut config_maps = ConfigMaps::new();
    for reference in config_map_refs(spec) {
        config_maps.entry(reference.name.clone()).or_default().insert(reference.key.clone(), String::new());
    }
    match compile(spec, &config_maps) {
        Ok(_) => Vec::new(),
        Err(
            CompileError::Spec(problems) | CompileError::Template(problems) | CompileError::Missing { problems, .. },
        ) => problems,
    }
}

/// ConfigMaps that the templates come from.
pub fn config_map_refs(spec: &PromptFlowSpec) -> BTreeSet<&ConfigMapKeyRef> {
    let base = spec.nodes.iter().filter_map(|node| node.llm.as_ref()).flat_map(|llm| &llm.messages);
    let overridden = spec
        .variants
        .iter()
        .flat_map(|variant| variant.overrides.values())
        .filter_map(|change| change.llm.as_ref()?.messages.as_ref())
        .flatten();
    base.chain(overridden).filter_map(|message| Some(&message.content_from.as_ref()?.config_map_key_ref)).collect()
}

#[derive(Default)]
struct Faults {
    spec: Vec<Problem>,
    templates: Vec<Problem>,
    missing: Vec<(String, bool, Problem)>,
}

impl Faults {
    fn into_result(self, compiled: Vec<Compiled>) -> Result<Vec<Compiled>, CompileError> {
        // A fault of the base shows in each variant that does not replace it: say it once.
        fn unique(problems: Vec<Problem>) -> Vec<Problem> {
            let mut seen = BTreeSet::new();
            problems.into_iter().filter(|problem| seen.insert(problem.to_string())).collect()
        }
        if !self.spec.is_empty() {
            return Err(CompileError::Spec(unique(self.spec)));
        }
        if let Some((config_map, key_only, _)) = self.missing.first() {
            return Err(CompileError::Missing {
                config_map: config_map.clone(),
                key_only: *key_only,
                problems: unique(self.missing.iter().map(|(_, _, problem)| problem.clone()).collect()),
            });
        }
        if !self.templates.is_empty() {
            return Err(CompileError::Template(unique(self.templates)));
        }
        Ok(compiled)
    }
}

/// A template and where it stands.
struct Source {
    field: String,
    text: String,
    from_config_map: bool,
}

/// A variant's nodes before their order is known.
struct Draft {
    nodes: Vec<(FlowNode, Vec<Source>)>,
    complete: bool,
}

impl Draft {
    fn of(spec: &PromptFlowSpec, variant: Option<&Variant>, config_maps: &ConfigMaps, faults: &mut Faults) -> Self {
        let mut draft = Self { nodes: Vec::new(), complete: true };
        for (index, node) in spec.nodes.iter().enumerate() {
            let field = format!("spec.nodes[{index}]");
            let change = variant.and_then(|variant| {
                let change = variant.overrides.get(&node.name)?;
                Some((format!("spec.variants[{}].overrides.{}", variant.name, node.name), change))
            });
            match draft.node(node, &field, change.as_ref(), config_maps, faults) {
                Some(node) => draft.nodes.push(node),
                None => draft.complete = false,
            }
        }
        draft
    }

    fn node(
        &self,
        node: &Node,
        field: &str,
        change: Option<&(String, &NodeOverride)>,
        config_maps: &ConfigMaps,
        faults: &mut Faults,
    ) -> Option<(FlowNode, Vec<Source>)> {
        let mut sources = Vec::new();
        let step = if let Some(llm) = &node.llm {
            let changed = change.and_then(|(field, change)| Some((field, change.llm.as_ref()?)));
            let (messages, field) = match changed.and_then(|(field, llm)| Some((llm.messages.as_ref()?, field))) {
                Some((messages, field)) => (messages, format!("{field}.llm.messages")),
                None => (&llm.messages, format!("{field}.llm.messages")),
            };
            let mut texts = Vec::new();
            let mut complete = true;
            for (index, message) in messages.iter().enumerate() {
                match resolve(message, &format!("{field}[{index}]"), config_maps, faults) {
                    Some(source) => {
                        texts.push(FlowMessage { role: message.role, content: source.text.clone() });
                        sources.push(source);
                    }
                    None => complete = false,
                }
            }
            if !complete {
                return None;
            }
            let changed = changed.map(|(_, llm)| llm);
            Step::Llm {
                model: changed.and_then(|llm| llm.model.as_ref()).unwrap_or(&llm.model).clone(),
                messages: texts,
                parameters: merged(&llm.parameters, changed.and_then(|llm| llm.parameters.as_ref())),
            }
        } else {
            let retrieve = node.retrieve.as_ref()?;
            let changed = change.and_then(|(field, change)| Some((field, change.retrieve.as_ref()?)));
            let (query, query_field) =
                match changed.and_then(|(field, retrieve)| Some((retrieve.query.as_ref()?, field))) {
                    Some((query, field)) => (query, format!("{field}.retrieve.query")),
                    None => (&retrieve.query, format!("{field}.retrieve.query")),
                };
            sources.push(Source { field: query_field, text: query.clone(), from_config_map: false });
            for (tag, text) in &retrieve.filters {
                let field = format!("{field}.retrieve.filters.{tag}");
                sources.push(Source { field, text: text.clone(), from_config_map: false });
            }
            let changed = changed.map(|(_, retrieve)| retrieve);
            let min_score = changed.and_then(|retrieve| retrieve.min_score.as_ref()).or(retrieve.min_score.as_ref());
            Step::Retrieve {
                index: changed.and_then(|retrieve| retrieve.index.as_ref()).unwrap_or(&retrieve.index).clone(),
                query: query.clone(),
                top_k: changed.and_then(|retrieve| retrieve.top_k).or(retrieve.top_k),
                min_score: min_score.map(normal),
                filters: retrieve.filters.clone(),
            }
        };
        Some((FlowNode { name: node.name.clone(), after: Vec::new(), step }, sources))
    }

    /// Checks the templates and brings the nodes into an order in which each comes after those that it reads. Among
    /// several such orders the one by name is taken, so that moving a node in the spec changes nothing.
    fn order(
        self,
        spec: &PromptFlowSpec,
        context: &BTreeMap<String, Field>,
        faults: &mut Faults,
    ) -> Option<Vec<FlowNode>> {
        let before = faults.spec.len() + faults.templates.len();
        let output = Source { field: "spec.output".to_owned(), text: spec.output.clone(), from_config_map: false };
        check_template(&output, context, faults);
        let mut waiting: BTreeMap<String, FlowNode> = BTreeMap::new();
        for (mut node, sources) in self.nodes {
            let mut after = BTreeSet::new();
            for source in &sources {
                after.extend(check_template(source, context, faults));
            }
            if after.contains(&node.name) {
                let field = sources.first().map_or("spec.nodes", |source| source.field.as_str());
                faults.spec.push(Problem::new(field, format!("node `{}` reads its own output", node.name)));
            }
            node.after = after.into_iter().collect();
            waiting.insert(node.name.clone(), node);
        }
        if !self.complete || faults.spec.len() + faults.templates.len() > before {
            return None;
        }
        let mut ordered: Vec<FlowNode> = Vec::new();
        let mut done: BTreeSet<String> = BTreeSet::new();
        while !waiting.is_empty() {
            let ready = waiting.values().find(|node| node.after.iter().all(|name| done.contains(name)));
            let Some(name) = ready.map(|node| node.name.clone()) else {
                let circle = circle(&waiting);
                faults.spec.push(Problem::new(
                    "spec.nodes",
                    format!("nodes read each other's output in a circle: {}; break it", circle.join(" → ")),
                ));
                return None;
            };
            ordered.extend(waiting.remove(&name));
            done.insert(name);
        }
        Some(ordered)
    }
}

/// A circle among nodes of which each waits for another.
fn circle(waiting: &BTreeMap<String, FlowNode>) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut at = waiting.keys().next().cloned();
    while let Some(name) = at {
        if let Some(start) = path.iter().position(|seen| *seen == name) {
            path.drain(..start);
            path.push(name);
            return path;
        }
        at = waiting.get(&name).and_then(|node| node.after.iter().find(|next| waiting.contains_key(*next)).cloned());
        path.push(name);
    }
    path
}

fn resolve(message: &Message, field: &str, config_maps: &ConfigMaps, faults: &mut Faults) -> Option<Source> {
    if let Some(content) = &message.content {
        return Some(Source { field: format!("{field}.content"), text: content.clone(), from_config_map: false });
    }
    let ConfigMapKeyRef { name, key } = &message.content_from.as_ref()?.config_map_key_ref;
    let field = format!("{field}.contentFrom.configMapKeyRef");
    let Some(data) = config_maps.get(name) else {
        let problem = Problem::new(field, format!("there is no ConfigMap `{name}` in the namespace; create it"));
        faults.missing.push((name.clone(), false, problem));
        return None;
    };
    let Some(text) = data.get(key) else {
        let hint = templates::suggestion(key, data.keys().map(String::as_str));
        let problem = Problem::new(field, format!("ConfigMap `{name}` has no key `{key}`{hint}"));
        faults.missing.push((name.clone(), true, problem));
        return None;
    };
    let field = format!("{field} (ConfigMap `{name}`, key `{key}`)");
    Some(Source { field, text: text.clone(), from_config_map: true })
}

/// Checks a template; names of the nodes that it reads.
fn check_template(source: &Source, context: &BTreeMap<String, Field>, faults: &mut Faults) -> BTreeSet<String> {
    match templates::check(&source.text, context) {
        Ok(checked) => checked.nodes().into_iter().map(str::to_owned).collect(),
        Err(problems) => {
            let into = if source.from_config_map { &mut faults.templates } else { &mut faults.spec };
            into.extend(problems.into_iter().map(|problem| Problem {
                field: source.field.clone(),
                line: Some(problem.line),
                message: problem.message,
            }));
            BTreeSet::new()
        }
    }
}

/// What templates of this flow may read.
fn context(spec: &PromptFlowSpec) -> BTreeMap<String, Field> {
    let inputs = spec.inputs.iter().map(|(name, input)| {
        let shape = match input.r#type {
            InputType::String => Shape::Text,
            InputType::Integer | InputType::Number => Shape::Number,
            InputType::Boolean => Shape::Boolean,
        };
        (name.clone(), Field { shape, optional: !is_required(input) && input.default.is_none() })
    });
    let nodes = spec.nodes.iter().map(|node| {
        let output = if node.llm.is_some() { templates::llm_output() } else { templates::retrieve_output() };
        (node.name.clone(), output)
    });
    BTreeMap::from([
        ("inputs".to_owned(), Shape::Object(inputs.collect()).into()),
        ("nodes".to_owned(), Shape::object(nodes).into()),
    ])
}

fn is_required(input: &Input) -> bool {
    input.required.unwrap_or(input.default.is_none())
}

/// The content of a revision: only what decides behaviour. Aliases that no node uses and descriptions are left out.
fn content(spec: &PromptFlowSpec, nodes: Vec<FlowNode>) -> FlowRevision {
    let mut models = BTreeMap::new();
    let mut indexes = BTreeMap::new();
    let mut pending: Vec<&str> = Vec::new();
    for node in &nodes {
        match &node.step {
            Step::Llm { model, .. } => pending.push(model),
            Step::Retrieve { index, .. } => {
                if let Some(binding) = spec.indexes.get(index) {
                    indexes.insert(index.clone(), binding.rag_index_ref.name.clone());
                }
            }
        }
    }
    while let Some(alias) = pending.pop() {
        let Some(binding) = spec.models.get(alias).filter(|_| !models.contains_key(alias)) else { continue };
        pending.extend(binding.fallback.iter().map(String::as_str));
        let timeout = std::time::Duration::from(binding.timeout).as_millis();
        models.insert(
            alias.to_owned(),
            FlowModel {
                deployment: binding.model_deployment_ref.name.clone(),
                timeout_ms: u64::try_from(timeout).unwrap_or(u64::MAX),
                retries: u32::try_from(binding.retries).unwrap_or(0),
                fallback: binding.fallback.clone(),
            },
        );
    }
    let inputs = spec.inputs.iter().map(|(name, input)| {
        let is_text = input.r#type == InputType::String;
        let normal = Input {
            r#type: input.r#type,
            required: Some(is_required(input)),
            default: input.default.clone(),
            max_length: is_text.then(|| input.max_length.unwrap_or(DEFAULT_MAX_LENGTH)),
            description: String::new(),
        };
        (name.clone(), normal)
    });
    FlowRevision { format: FLOW_FORMAT, models, indexes, inputs: inputs.collect(), nodes, output: spec.output.clone() }
}

fn merged(base: &Parameters, change: Option<&Parameters>) -> Parameters {
    let empty = Parameters::default();
    let change = change.unwrap_or(&empty);
    Parameters {
        temperature: change.temperature.as_ref().or(base.temperature.as_ref()).map(normal),
        top_p: change.top_p.as_ref().or(base.top_p.as_ref()).map(normal),
        max_tokens: change.max_tokens.or(base.max_tokens),
        seed: change.seed.or(base.seed),
        stop: if change.stop.is_empty() { base.stop.clone() } else { change.stop.clone() },
    }
}

/// One spelling for each number: `0.70`, `00.7` and `0.7` behave alike.
fn normal(decimal: &Decimal) -> Decimal {
    let text = decimal.0.as_str();
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    };
    let fraction = fraction.trim_end_matches('0');
    match (sign, whole, fraction) {
        (_, "0", "") => Decimal::from("0"),
        (sign, whole, "") => Decimal(format!("{sign}{whole}")),
        (sign, whole, fraction) => Decimal(format!("{sign}{whole}.{fraction}")),
    }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
