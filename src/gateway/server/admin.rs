//! The admin port: health and metrics, without credentials, for the cluster only.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::Lifecycle;
use crate::gateway::metrics::Metrics;

/// `/livez`, `/readyz` and `/metrics`.
pub fn router(lifecycle: Arc<Lifecycle>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(lifecycle))
        .route("/metrics", get(text).with_state(metrics))
}

async fn ready(State(lifecycle): State<Arc<Lifecycle>>) -> Response {
    match lifecycle.ready() {
        Ok(()) => "ok".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn text(State(metrics): State<Arc<Metrics>>) -> Response {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.text()).into_response()
}
