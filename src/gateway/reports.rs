//! `/v1/reports/{namespace}/{evaluation}/{run}`: reports of evaluations. Jobs put them, people read them in a browser.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, StatusCode};

use super::auth::Action;
use super::error::ApiError;
use super::server::{Gateway, identify, milliseconds_now, read_body};
use super::store::{Report, ReportFormat};

/// Longest report, in bytes.
const MAX_REPORT: usize = 32 * 1024 * 1024;
/// A report shows what models wrote: it may bring its own styles, and nothing that runs or is fetched. The dashboard
/// shows it in a frame.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// Keeps a report.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn keep(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, evaluation, run, format)): Path<(String, String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    gateway.auth.authorize(&asked.principal, Action::WriteReport, &namespace, Some(&evaluation)).await?;
    let format = ReportFormat::parse(&format).ok_or_else(|| {
        ApiError::invalid("format", format!("there is no report format {format:?}; use json, junit or html"))
    })?;
    let body = read_body(body, MAX_REPORT).await?.to_vec();
    let report = Report { namespace, evaluation, run, format, time_ms: milliseconds_now(), body };
    gateway.store.report(report).await.map_err(|error| {
        tracing::error!(%error, "a report was not kept");
        ApiError::unavailable("store_unavailable", "the report could not be kept; send it again", 5)
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows a report: HTML, or with the suffix `.json` or `.xml` another format.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn show(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, evaluation, run)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asked = identify(&gateway, &headers).await.map_err(ApiError::asking_browser)?;
    gateway.auth.authorize(&asked.principal, Action::ReadReport, &namespace, Some(&evaluation)).await?;
    let (run, format) = split(&run);
    let body = gateway.store.find_report(&namespace, &evaluation, run, format).await;
    let body = body.map_err(|error| ApiError::internal(&error))?.ok_or_else(|| {
        ApiError::not_found(format!(
            "no {} report of run {run} of Evaluation {namespace}/{evaluation} is kept; old runs are removed",
            format.name()
        ))
    })?;
    let headers =
        [(CONTENT_TYPE, format.media_type()), (CONTENT_SECURITY_POLICY, POLICY), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, body).into_response())
}

fn split(run: &str) -> (&str, ReportFormat) {
    if let Some(run) = run.strip_suffix(".json") {
        (run, ReportFormat::Json)
    } else if let Some(run) = run.strip_suffix(".xml") {
        (run, ReportFormat::Junit)
    } else {
        (run.strip_suffix(".html").unwrap_or(run), ReportFormat::Html)
    }
}
