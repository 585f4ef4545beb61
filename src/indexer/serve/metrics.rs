//! Prometheus metrics of a retrieval server.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::api::rag_index::RetrievalMode;
use crate::indexer::store::Manifest;

type Labels = Vec<(&'static str, String)>;

const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The metrics.
pub struct Metrics {
    registry: Registry,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    errors: Family<Labels, Counter>,
    info: Family<Labels, Gauge>,
    documents: Gauge<i64>,
    chunks: Gauge<i64>,
    bytes: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub fn new() -> Self {
        let new_histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            registry: Registry::default(),
            seconds: Family::new_with_constructor(new_histogram),
            errors: Family::default(),
            info: Family::default(),
            documents: Gauge::default(),
            chunks: Gauge::default(),
            bytes: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("llmops_ragindex");
        registry.register_with_unit("query", "Time of searches", Unit::Seconds, metrics.seconds.clone());
        registry.register("query_errors", "Searches that failed, by status", metrics.errors.clone());
        registry.register("generation_info", "The generation that is served", metrics.info.clone());
        registry.register("documents", "Documents of the generation", metrics.documents.clone());
        registry.register("chunks", "Chunks of the generation", metrics.chunks.clone());
        registry.register_with_unit("size", "Size of the generation", Unit::Bytes, metrics.bytes.clone());
        Self { registry, ..metrics }
    }

    /// Records the generation that is served from now on.
    pub fn loaded(&self, manifest: &Manifest) {
        let labels =
            vec![("generation", manifest.head.generation.clone()), ("model", manifest.head.model.name.clone())];
        self.info.get_or_create(&labels).set(1);
        self.documents.set(manifest.documents as i64);
        self.chunks.set(manifest.chunks as i64);
        self.bytes.set(manifest.bytes() as f64);
    }

    /// Records a search.
    pub fn query(&self, mode: RetrievalMode, status: StatusCode, time: Duration) {
        if status.is_success() {
            self.seconds.get_or_create(&vec![("mode", format!("{mode:?}"))]).observe(time.as_secs_f64());
        } else {
            self.errors.get_or_create(&vec![("status", status.as_u16().to_string())]).inc();
        }
    }

    /// As OpenMetrics text.
    pub fn render(&self) -> Response {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}
