//! What a run has done so far. Filled while it runs, so that a run that fails or is cancelled is recorded with what it
//! used.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Tokens and cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Tokens that models read.
    pub input_tokens: u64,
    /// Tokens that models wrote.
    pub output_tokens: u64,
    /// Cost; absent when no model has a price, or the prices are of different currencies.
    pub cost: Option<f64>,
    /// Currency of the cost.
    pub currency: Option<String>,
    #[serde(skip)]
    mixed: bool,
}

impl Usage {
    /// Adds what a model used; `cost` is the amount and its currency.
    pub fn add(&mut self, input_tokens: u64, output_tokens: u64, cost: Option<(f64, &str)>) {
        self.input_tokens += input_tokens;
        self.output_tokens += output_tokens;
        let Some((cost, currency)) = cost else { return };
        if self.mixed || self.currency.as_deref().is_some_and(|known| known != currency) {
            // Amounts of different currencies have no sum.
            (self.cost, self.currency, self.mixed) = (None, None, true);
        } else {
            self.cost = Some(self.cost.unwrap_or(0.0) + cost);
            self.currency = Some(currency.to_owned());
        }
    }
}

/// Time that a node took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeTime {
    /// The node.
    pub name: String,
    /// Milliseconds.
    pub ms: u64,
}

/// A chunk that was given to the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sourced {
    /// The document.
    pub uri: String,
    /// Its headings.
    pub heading: String,
    /// Name of the source.
    pub source: String,
    /// Score that ranked it.
    pub score: f64,
}

/// Revisions that were used, by alias.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dependencies {
    /// Revisions of models.
    pub models: BTreeMap<String, String>,
    /// Generations of indexes.
    pub indexes: BTreeMap<String, String>,
}

/// What a run has done so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// Tokens and cost.
    pub usage: Usage,
    /// Nodes that have ended.
    pub nodes: Vec<NodeTime>,
    /// Chunks that were found, each once.
    pub sources: Vec<Sourced>,
    /// Revisions that were used.
    pub dependencies: Dependencies,
    /// Milliseconds until the first token of the answer.
    pub first_token_ms: Option<u64>,
    /// Calls that a fallback model answered.
    pub fallbacks: u32,
}

/// What a run has done so far, to be filled from several nodes at once.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    done: Mutex<Done>,
}

impl Trace {
    /// A run that starts now.
    pub fn start() -> Self {
        Self { started: Instant::now(), done: Mutex::default() }
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> u64 {
        milliseconds(self.started)
    }

    /// What was done so far.
    pub fn done(&self) -> Done {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes something.
    pub fn note(&self, change: impl FnOnce(&mut Done)) {
        change(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes the first token of the answer; later calls change nothing.
    pub fn first_token(&self) {
        let elapsed = self.elapsed_ms();
        self.note(|done| {
            done.first_token_ms.get_or_insert(elapsed);
        });
    }
}

/// Whole milliseconds since then.
pub(super) fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_only_in_one_currency() {
        let mut usage = Usage::default();
        usage.add(10, 2, Some((0.5, "EUR")));
        usage.add(1, 1, None);
        usage.add(10, 2, Some((0.25, "EUR")));
        assert_eq!((usage.cost, usage.currency.as_deref()), (Some(0.75), Some("EUR")));
        assert_eq!((usage.input_tokens, usage.output_tokens), (21, 5));
        usage.add(0, 0, Some((1.0, "USD")));
        usage.add(0, 0, Some((1.0, "USD")));
        assert_eq!((usage.cost, usage.currency), (None, None));
    }
}
