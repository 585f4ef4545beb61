//! The HTTP servers: requests on one port, health and metrics on another, and how they end.

mod admin;
mod drain;
mod listen;
mod record;
mod request;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http::StatusCode;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub use admin::router as admin_router;
pub use drain::{Lifecycle, linger};
pub use listen::{open, serve};
pub use record::{Recorder, Subject};
pub use request::{Asked, PIN, headers_of, identify, json_body, milliseconds_now, pins_of, read_body, text};

use super::auth::Auth;
use super::clock::Clock;
use super::endpoints::Upstream;
use super::error::ApiError;
use super::metrics::Metrics;
use super::routing::Routes;
use super::store::Store;
use super::{feedback, flow_api, indexes, interactions, measurements, openai, reports};

/// Everything that handlers need.
#[derive(Debug)]
pub struct Gateway {
    /// What is served.
    pub routes: Arc<Routes>,
    /// Who may ask.
    pub auth: Auth,
    /// Calls pods and providers.
    pub upstream: Upstream,
    /// What is kept.
    pub store: Arc<Store>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Tells when a routing table changes over.
    pub clock: Clock,
    /// Room for shadow copies.
    pub shadows: Arc<Semaphore>,
    /// Longest time for a whole answer of a model that is called by its name.
    pub model_timeout: Duration,
}

/// The routes of the request port.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .merge(crate::dashboard::router())
        .route("/v1/flows/{namespace}/{name}", post(flow_api::invoke))
        .route("/v1/chat/completions", post(openai::completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/rerank", post(openai::rerank))
        .route("/v1/models", get(openai::list))
        .route("/v1/indexes/{namespace}/{name}/search", post(indexes::search))
        .route("/v1/feedback", post(feedback::give))
        .route("/v1/interactions/{namespace}/{flow}", get(interactions::recent))
        .route("/v1/splits/{namespace}/{flow}", get(interactions::splits))
        .route("/v1/measurements/{namespace}/{flow}", get(measurements::read))
        .route("/v1/measurements/{namespace}/models/{name}", get(measurements::read_model))
        .route("/v1/reports/{namespace}/{evaluation}/{run}", get(reports::show))
        .route("/v1/reports/{namespace}/{evaluation}/{run}/{format}", put(reports::keep))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::map_response_with_state(Arc::clone(&gateway), count_refused))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(gateway)
}

async fn no_such_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "there is no such path; docs/reference/gateway-api.md lists them",
    )
}

async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "this path does not answer this method")
}

/// A panic in a handler ends one request, not the process.
fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    ApiError::internal(&"a handler panicked").into_response()
}

async fn count_refused(
    axum::extract::State(gateway): axum::extract::State<Arc<Gateway>>,
    response: Response,
) -> Response {
    let code = match response.status().as_u16() {
        400 => "invalid",
        401 => "unauthenticated",
        403 => "forbidden",
        404 => "not_found",
        413 => "too_large",
        429 => "overloaded",
        503 => "unavailable",
        _ => return response,
    };
    gateway.metrics.refused(code);
    response
}
