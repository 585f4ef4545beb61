//! Runs a flow: nodes start as soon as those before them have ended, several at once where the graph allows. Dropping
//! the future stops everything, upstream calls included.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::pins::Pins;
use super::program::{CompiledStep, Node, Program};
use super::templates::{Context, RenderError};
use super::trace::{NodeTime, Trace, milliseconds};
use super::{llm, retrieve};
use crate::gateway::endpoints::{CallError, Upstream};

/// What a run needs besides the program.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Calls models and indexes.
    pub upstream: &'a Upstream,
    /// Namespace of the flow.
    pub namespace: &'a str,
    /// Checked inputs.
    pub inputs: &'a Map<String, Value>,
    /// Unit by which revisions of models are chosen.
    pub unit: &'a str,
    /// Pinned revisions.
    pub pins: &'a Pins,
    /// Filled while the flow runs.
    pub trace: &'a Trace,
    /// Takes the answer piece by piece. Once a piece was sent, its node is not tried again.
    pub deltas: Option<&'a mpsc::Sender<String>>,
    /// Whether this is a shadow copy, whose calls stand back behind those of users.
    pub background: bool,
}

/// Why a flow failed.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// A template could not be rendered.
    #[error("{place}: {cause}")]
    Template {
        /// Node or output.
        place: String,
        /// Cause.
        cause: RenderError,
    },
    /// A call failed.
    #[error("node {node}: {cause}")]
    Call {
        /// The node.
        node: String,
        /// Cause.
        cause: CallError,
    },
}

/// A node that has ended, the milliseconds it took, and its output.
type Ended<'a> = (&'a Node, u64, Value);

/// Runs the program and gives the answer.
///
/// # Errors
/// When a template or a call fails. Other nodes that run at the time are stopped.
pub async fn run(program: &Program, run: Run<'_>) -> Result<String, FlowError> {
    let mut outputs: BTreeMap<String, Value> = BTreeMap::new();
    let mut started: HashSet<&str> = HashSet::new();
    let mut running: FuturesUnordered<BoxFuture<'_, Result<Ended<'_>, FlowError>>> = FuturesUnordered::new();
    loop {
        for node in &program.nodes {
            if !started.contains(node.name.as_str()) && node.after.iter().all(|after| outputs.contains_key(after)) {
                started.insert(&node.name);
                let context = context(run, &outputs);
                running.push(Box::pin(async move {
                    let since = Instant::now();
                    let output = step(program, node, &context, run).await?;
                    Ok((node, milliseconds(since), output))
                }));
            }
        }
        let Some(ended) = running.next().await else { break };
        let (node, ms, output) = ended?;
        run.trace.note(|done| done.nodes.push(NodeTime { name: node.name.clone(), ms }));
        outputs.insert(node.name.clone(), output);
    }
    let answer = program
        .output
        .template
        .render(&context(run, &outputs))
        .map_err(|cause| FlowError::Template { place: "output".into(), cause })?;
    if program.output.passes_on.is_none() {
        run.trace.first_token();
        if let Some(deltas) = run.deltas {
            // A closed channel means that the client has left; then this future is about to be dropped, too.
            let _ = deltas.send(answer.clone()).await;
        }
    }
    Ok(answer)
}

fn context(run: Run<'_>, outputs: &BTreeMap<String, Value>) -> Context {
    Context::new(run.inputs, outputs.iter().map(|(name, output)| (name.as_str(), output)))
}

async fn step(program: &Program, node: &Node, context: &Context, run: Run<'_>) -> Result<Value, FlowError> {
    let render = |template: &super::templates::Template, field: String| {
        template
            .render(context)
            .map_err(|cause| FlowError::Template { place: format!("node {}: {field}", node.name), cause })
    };
    let called = |cause| FlowError::Call { node: node.name.clone(), cause };
    match &node.step {
        CompiledStep::Llm { models, messages, parameters } => {
            let mut rendered = Vec::with_capacity(messages.len());
            for (place, (role, template)) in messages.iter().enumerate() {
                rendered.push((*role, render(template, format!("messages[{place}].content"))?));
            }
            let is_answer = program.output.passes_on.as_deref() == Some(node.name.as_str());
            let question = llm::Question { models, messages: &rendered, parameters, is_answer };
            llm::ask(program, question, run).await.map_err(called)
        }
        CompiledStep::Retrieve { index, alias, query, top_k, min_score, filters } => {
            let mut request = crate::indexer::job::SearchRequest {
                query: render(query, "query".into())?,
                top_k: *top_k,
                min_score: *min_score,
                filters: BTreeMap::new(),
            };
            for (tag, value) in filters {
                request.filters.insert(tag.clone(), render(value, format!("filters.{tag}"))?);
            }
            retrieve::search(index, alias, &request, run).await.map_err(called)
        }
    }
}

/// Longest wait for an endpoint: short when another model can take over.
pub(super) fn queue_timeout(upstream: &Upstream, has_fallback: bool) -> Duration {
    let longest = upstream.limits().queue_timeout;
    if has_fallback { longest.min(Duration::from_secs(1)) } else { longest }
}
