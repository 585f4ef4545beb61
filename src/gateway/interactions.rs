//! `GET /v1/interactions/{namespace}/{flow}` and `GET /v1/splits/{namespace}/{flow}`: what was recorded of a flow.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::Action;
use super::error::ApiError;
use super::server::{Gateway, identify};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 1000;

/// Query of the interactions.
#[derive(Debug, Deserialize)]
pub struct Page {
    limit: Option<String>,
}

/// The latest interactions, the newest first.
///
/// # Errors
/// 400, 401, 403, or 500 when the database fails.
pub async fn recent(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, flow)): Path<(String, String)>,
    Query(page): Query<Page>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::ReadInteractions, &namespace, Some(&flow)).await?;
    let limit = match page.limit.as_deref().map(str::parse::<u32>) {
        None => DEFAULT_LIMIT,
        Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
        Some(_) => return Err(ApiError::invalid("limit", format!("limit must be a number from 1 to {MAX_LIMIT}"))),
    };
    gateway.store.flush().await.map_err(|error| ApiError::internal(&error))?;
    let found =
        gateway.store.interactions(&namespace, &flow, limit).await.map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({"interactions": found})))
}

/// Figures of each variant and revision, pinned requests left out.
///
/// # Errors
/// 401, 403, or 500 when the database fails.
pub async fn splits(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, flow)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::ReadSplit, &namespace, Some(&flow)).await?;
    gateway.store.flush().await.map_err(|error| ApiError::internal(&error))?;
    let found = gateway.store.splits(&namespace, &flow).await.map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({"variants": found})))
}
