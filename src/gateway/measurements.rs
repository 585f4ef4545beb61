//! `GET /v1/measurements/{namespace}/{flow}`: what was measured of the arms of a flow, by which the controller decides
//! rollouts and experiments.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::HeaderMap;
use serde::Deserialize;

use super::auth::Action;
use super::error::ApiError;
use super::server::{Gateway, identify};
use super::store::MeasureQuery;
use crate::experiment::measurements::Measurements;

/// Query of the measurements.
#[derive(Debug, Deserialize)]
pub struct Since {
    since: Option<String>,
}

/// Measurements of all that began at `since` or later; without it, of all that is kept.
///
/// # Errors
/// 400, 401, 403, or 500 when the database fails.
pub async fn read(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, flow)): Path<(String, String)>,
    Query(query): Query<Since>,
    headers: HeaderMap,
) -> Result<Json<Measurements>, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::ReadMeasurements, &namespace, Some(&flow)).await?;
    let found = measure(&gateway, namespace, flow, query.since.as_deref()).await;
    gateway.metrics.measured(match &found {
        Ok(_) => "ok",
        Err(error) if error.status.is_client_error() => "invalid",
        Err(_) => "error",
    });
    found.map(Json)
}

async fn measure(
    gateway: &Gateway,
    namespace: String,
    flow: String,
    since: Option<&str>,
) -> Result<Measurements, ApiError> {
    let since_ms = match since {
        None => i64::MIN,
        Some(text) => {
            let time: jiff::Timestamp = text.parse().map_err(|error| {
                ApiError::invalid(
                    "since",
                    format!("since is no time of RFC 3339, such as 2026-11-24T12:00:00Z: {error}"),
                )
            })?;
            time.as_millisecond()
        }
    };
    // Requests that have ended count: without this, a verdict could miss the last ones.
    gateway.store.flush().await.map_err(|error| ApiError::internal(&error))?;
    let query = MeasureQuery { namespace, flow, since_ms, events: BTreeSet::new() };
    gateway.store.measurements(query).await.map_err(|error| ApiError::internal(&error))
}
