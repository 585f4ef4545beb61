//! Prometheus metrics. Labels are bounded: namespaces and names are those of existing objects, never what a client sends.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::endpoints::{Target, TargetKind};

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    duration: Histograms,
    first_token: Histograms,
    tokens: Family<Labels, Counter>,
    attempts: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    ejections: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    feedback: Family<Labels, Counter>,
    measured: Family<Labels, Counter>,
    shadows: Family<Labels, Counter>,
    dropped: Counter,
    watch_errors: Family<Labels, Counter>,
    problems: Gauge,
    connections: Gauge,
}

/// What a served request was about.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// `flow`, `model`, `embedding`, `rerank` or `index`.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Variant of a flow; empty otherwise.
    pub variant: &'a str,
    /// `ok`, `error` or `cancelled`.
    pub outcome: &'static str,
}

impl Served<'_> {
    fn object(&self) -> Labels {
        vec![("kind", self.kind.into()), ("namespace", self.namespace.to_owned()), ("name", self.name.to_owned())]
    }
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("llmops_gateway");
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_token: Family::new_with_constructor(seconds),
            tokens: Family::default(),
            attempts: Family::default(),
            retries: Family::default(),
            ejections: Family::default(),
            refused: Family::default(),
            feedback: Family::default(),
            measured: Family::default(),
            shadows: Family::default(),
            dropped: Counter::default(),
            watch_errors: Family::default(),
            problems: Gauge::default(),
            connections: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests served, by object, variant and outcome", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from a request to the end of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "Time from a request to the first token of its answer",
            Unit::Seconds,
            metrics.first_token.clone(),
        );
        registry.register("tokens", "Tokens read (input) and written (output) by models", metrics.tokens.clone());
        registry.register("attempts", "Calls of pods and providers, by outcome", metrics.attempts.clone());
        registry.register("retries", "Calls tried again, or refused by the budget", metrics.retries.clone());
        registry.register("ejections", "Times an endpoint was left out", metrics.ejections.clone());
        registry.register("refused", "Requests refused before they were served, by code", metrics.refused.clone());
        registry.register("feedback", "Feedback kept", metrics.feedback.clone());
        registry.register("shadow_copies", "Copies of requests for candidates, by outcome", metrics.shadows.clone());
        registry.register("measurements", "Requests for measurements, by outcome", metrics.measured.clone());
        registry.register(
            "interactions_dropped",
            "Interactions that were not kept, or not within two seconds",
            metrics.dropped.clone(),
        );
        registry.register("watch_errors", "Failures of watches, by resource", metrics.watch_errors.clone());
        registry.register("unreadable_objects", "Objects that cannot be read at the moment", metrics.problems.clone());
        registry.register("connections", "Open client connections", metrics.connections.clone());
        Self { registry, ..metrics }
    }
}

fn of(target: &Target) -> Labels {
    let kind = match target.kind {
        TargetKind::Model => "model",
        TargetKind::Index => "index",
    };
    vec![("kind", kind.into()), ("namespace", target.namespace.clone()), ("name", target.name.clone())]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

impl Metrics {
    /// The metrics as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Counts a request that was served, with its times in milliseconds.
    pub fn served(&self, served: &Served<'_>, latency_ms: u64, first_token_ms: Option<u64>, tokens: (u64, u64)) {
        let object = served.object();
        let all = with(with(object.clone(), "variant", served.variant), "outcome", served.outcome);
        self.requests.get_or_create(&all).inc();
        self.duration.get_or_create(&object).observe(Duration::from_millis(latency_ms).as_secs_f64());
        if let Some(first) = first_token_ms {
            self.first_token.get_or_create(&object).observe(Duration::from_millis(first).as_secs_f64());
        }
        self.tokens(served, tokens);
    }

    /// Counts tokens that were read and written, also by shadow copies.
    pub fn tokens(&self, served: &Served<'_>, tokens: (u64, u64)) {
        for (direction, count) in [("input", tokens.0), ("output", tokens.1)] {
            if count > 0 {
                self.tokens.get_or_create(&with(served.object(), "direction", direction)).inc_by(count);
            }
        }
    }

    /// Counts a shadow copy: `ok`, `error`, `dropped` for want of room, or `skipped` because the candidate cannot be copied.
    pub fn shadow(&self, namespace: &str, name: &str, outcome: &'static str) {
        let labels = vec![("namespace", namespace.into()), ("name", name.into()), ("outcome", outcome.into())];
        self.shadows.get_or_create(&labels).inc();
    }

    /// Counts a request that was refused, by the code of the error.
    pub fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&vec![("code", code.into())]).inc();
    }

    /// Counts a call of an endpoint.
    pub fn attempt(&self, target: &Target, outcome: &'static str) {
        self.attempts.get_or_create(&with(of(target), "outcome", outcome)).inc();
    }

    /// Counts a retry, granted or refused by the budget.
    pub fn retry(&self, target: &Target, granted: bool) {
        let outcome = if granted { "granted" } else { "refused" };
        self.retries.get_or_create(&with(of(target), "outcome", outcome)).inc();
    }

    /// Counts an endpoint left out.
    pub fn ejection(&self, target: &Target) {
        self.ejections.get_or_create(&of(target)).inc();
    }

    /// Counts feedback.
    pub fn feedback(&self, namespace: &str, name: &str) {
        self.feedback.get_or_create(&vec![("namespace", namespace.into()), ("name", name.into())]).inc();
    }

    /// Counts a request for measurements that was let in: `ok`, `invalid` or `error`.
    pub fn measured(&self, outcome: &'static str) {
        self.measured.get_or_create(&vec![("outcome", outcome.into())]).inc();
    }

    /// Counts an interaction that could not be kept.
    pub fn dropped(&self) {
        self.dropped.inc();
    }

    /// Counts a failure of a watch.
    pub fn watch_error(&self, resource: &'static str) {
        self.watch_errors.get_or_create(&vec![("resource", resource.into())]).inc();
    }

    /// Sets how many objects cannot be read.
    pub fn unreadable(&self, count: usize) {
        self.problems.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an open connection, or one less.
    pub fn connection(&self, opened: bool) {
        if opened {
            self.connections.inc()
        } else {
            self.connections.dec()
        };
    }
}
