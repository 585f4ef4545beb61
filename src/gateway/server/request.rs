//! What handlers have in common: reading bodies, identifying who asks, pins, and the headers of answers.

use axum::body::{Body, to_bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::Gateway;
use crate::gateway::auth::{Action, Principal};
use crate::gateway::error::ApiError;
use crate::gateway::flow::Pins;

/// Longest request body, in bytes.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Header that pins revisions.
pub const PIN: &str = "llmops-pin";

/// A request whose sender is known.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Request id, given back in `llmops-request-id`.
    pub id: String,
    /// Who asks.
    pub principal: Principal,
    /// When it came, in milliseconds since 1970.
    pub time_ms: i64,
}

/// Milliseconds since 1970.
pub fn milliseconds_now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Checks the credential and gives the request its id.
///
/// # Errors
/// 401, or 503 when a token cannot be reviewed.
pub async fn identify(gateway: &Gateway, headers: &HeaderMap) -> Result<Asked, ApiError> {
    let principal = gateway.auth.authenticate(headers).await?;
    Ok(Asked { id: Uuid::now_v7().simple().to_string(), principal, time_ms: milliseconds_now() })
}

/// Reads a JSON body.
///
/// # Errors
/// 413 when it is too long, 400 that names the field when it is not as expected.
pub async fn json_body<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = read_body(body, MAX_BODY).await?;
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = format!("the body is not as expected: {}", error.inner());
        if path == "." {
            ApiError::invalid("body", message)
        } else {
            ApiError::invalid(&path, format!("{path}: {message}"))
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::invalid("body", format!("the body has more than one JSON value: {error}")))?;
    Ok(value)
}

/// Reads a body of at most so many bytes.
///
/// # Errors
/// 413 when it is longer, 400 when it breaks off.
pub async fn read_body(body: Body, limit: usize) -> Result<bytes::Bytes, ApiError> {
    to_bytes(body, limit).await.map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                return ApiError::new(
                    http::StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    format!("the body is longer than {limit} bytes"),
                );
            }
            cause = error.source();
        }
        ApiError::invalid("body", format!("the body broke off: {error}"))
    })
}

/// Pinned revisions of a request, after the permission to pin was checked.
///
/// # Errors
/// 400 when the header cannot be read, 403 without the permission.
pub async fn pins_of(gateway: &Gateway, asked: &Asked, headers: &HeaderMap, namespace: &str) -> Result<Pins, ApiError> {
    let Some(header) = headers.get(PIN) else { return Ok(Pins::default()) };
    let text = header.to_str().map_err(|_| ApiError::invalid(PIN, "the header llmops-pin is not text"))?;
    let pins = Pins::parse(text)?;
    if !pins.is_empty() {
        gateway.auth.authorize(&asked.principal, Action::Pin, namespace, None).await?;
    }
    Ok(pins)
}

/// The headers that name request, revision and variant.
pub fn headers_of(id: &str, revision: Option<&str>, variant: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("llmops-request-id", id);
    if let Some(revision) = revision {
        set("llmops-revision", revision);
    }
    if let Some(variant) = variant {
        set("llmops-variant", variant);
    }
    headers
}

/// A header's text, if it has one.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty())
}
