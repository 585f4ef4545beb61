//! `POST /v1/indexes/{namespace}/{name}/search`: searches an index's generation in use.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;

use super::auth::Action;
use super::endpoints::{CallError, Target, TargetKind};
use super::error::ApiError;
use super::flow::query_index;
use super::flow_api::call_error;
use super::once::{Once, Question};
use super::server::{Gateway, headers_of, identify, json_body, pins_of};
use crate::indexer::job::SearchRequest;

/// Handles the request.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn search(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::SearchIndex, &namespace, Some(&name)).await?;
    let request: SearchRequest = json_body(body).await?;
    let once = match Once::begin(&gateway, &asked, &headers, false).await? {
        Question::Answered(given) => return Ok(given),
        Question::New(once) => once,
    };
    let started = Instant::now();
    let pins = pins_of(&gateway, &asked, &headers, &namespace).await?;
    if gateway.routes.load().index(&namespace, &name).is_none() {
        let message = format!("there is no RagIndex {namespace}/{name}; check the name and the namespace");
        return Err(ApiError::not_found(message));
    }
    let target = Target {
        kind: TargetKind::Index,
        pin: pins.indexes.get(&name).cloned(),
        namespace,
        name,
        unit: asked.id.clone(),
        background: false,
        counts: false,
    };
    let found = query_index(&gateway.upstream, &target, &request).await.map_err(|error| match &error {
        // What the index says of a wrong request, such as a missing filter, is for the client.
        CallError::Status { status, .. } if status.is_client_error() => {
            ApiError { status: *status, ..ApiError::invalid("body", error.to_string()) }
        }
        _ => call_error(&error),
    })?;
    if let Some(once) = once {
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let body = serde_json::to_vec(&found).map_err(|error| ApiError::internal(&error))?;
        gateway.store.answered(None, Some(once.keep(&asked.id, &found.generation, took_ms, body))).await;
    }
    Ok((headers_of(&asked.id, Some(&found.generation), None), Json(found)).into_response())
}
