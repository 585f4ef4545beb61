//! `GET /v1/measurements/{namespace}/{flow}` and `GET /v1/measurements/{namespace}/models/{name}`: what was measured of the arms of a flow, or
//! of a model in its ramp, by which the controller decides rollouts and experiments.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::HeaderMap;
use serde::Deserialize;

use super::auth::Action;
use super::error::ApiError;
use super::routing::{Arm, weight_of};
use super::server::{Gateway, identify};
use super::store::MeasureQuery;
use crate::experiment::measurements::{ArmMeasurements, Measurements};

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

/// Measurements of a model's revisions while its requests are split between them.
///
/// # Errors
/// 400, 401, 403, or 500 when the database fails.
pub async fn read_model(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<Since>,
    headers: HeaderMap,
) -> Result<Json<Measurements>, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::ReadModelMeasurements, &namespace, Some(&name)).await?;
    let since_ms = since_ms(query.since.as_deref())?;
    let internal = |error| ApiError::internal(&error);
    gateway.store.flush().await.map_err(internal)?;
    gateway.store.model_measurements(&namespace, &name, since_ms).await.map(Json).map_err(internal)
}

fn since_ms(since: Option<&str>) -> Result<i64, ApiError> {
    let Some(text) = since else { return Ok(i64::MIN) };
    let time: jiff::Timestamp = text.parse().map_err(|error| {
        ApiError::invalid("since", format!("since is no time of RFC 3339, such as 2026-11-24T12:00:00Z: {error}"))
    })?;
    Ok(time.as_millisecond())
}

async fn measure(
    gateway: &Gateway,
    namespace: String,
    flow: String,
    since: Option<&str>,
) -> Result<Measurements, ApiError> {
    let since_ms = since_ms(since)?;
    // Requests that have ended count: without this, a verdict could miss the last ones.
    gateway.store.flush().await.map_err(|error| ApiError::internal(&error))?;
    let snapshot = gateway.routes.load();
    let route = snapshot.flow(&namespace, &flow).cloned();
    let events = route.as_ref().map(|route| route.events.clone()).unwrap_or_default();
    let query = MeasureQuery { namespace, flow, since_ms, events };
    let mut found = gateway.store.measurements(query).await.map_err(|error| ApiError::internal(&error))?;
    if let Some(route) = route {
        let (table, stratum) = route.table(gateway.clock.now_ms());
        add_silent_arms(&mut found, table, stratum);
    }
    Ok(found)
}

/// Adds the arms of the present table that nobody has met yet, once others of them were met: an arm that never comes up
/// must not be overlooked by the check of the sample ratio.
fn add_silent_arms(found: &mut Measurements, table: &[Arm], stratum: &str) {
    if !found.arms.iter().any(|arm| arm.stratum == stratum) {
        return;
    }
    for arm in table.iter().filter(|arm| arm.weight > 0) {
        let is_this = |known: &ArmMeasurements| {
            (known.stratum.as_str(), &known.variant, &known.revision) == (stratum, &arm.variant, &arm.revision)
        };
        if !found.arms.iter().any(is_this) {
            found.arms.push(ArmMeasurements {
                stratum: stratum.to_owned(),
                variant: arm.variant.clone(),
                revision: arm.revision.clone(),
                weight: weight_of(table, arm),
                shadow: false,
                units: 0,
                requests: 0,
                metrics: Vec::new(),
            });
        }
    }
}
