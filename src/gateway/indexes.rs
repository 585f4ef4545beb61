//! `POST /v1/indexes/{namespace}/{name}/search`: searches an index's generation in use.

use std::sync::Arc;

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
        counts: pins.is_empty(),
    };
    let found = query_index(&gateway.upstream, &target, &request).await.map_err(|error| match &error {
        // What the index says of a wrong request, such as a missing filter, is for the client.
        CallError::Status { status, .. } if status.is_client_error() => {
            ApiError { status: *status, ..ApiError::invalid("body", error.to_string()) }
        }
        _ => call_error(&error),
    })?;
    Ok((headers_of(&asked.id, Some(&found.generation), None), Json(found)).into_response())
}
