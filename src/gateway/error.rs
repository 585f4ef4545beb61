//! Errors as clients see them: the shape of the OpenAI API, `{"error": {"message", "type", "code", "param"}}`.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

/// An answer that is not the one asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Status of the response.
    pub status: StatusCode,
    /// Machine-readable reason, a closed list in `docs/reference/gateway-api.md`.
    pub code: &'static str,
    /// Field of the request at fault.
    pub param: Option<String>,
    /// What is wrong and what to do next.
    pub message: String,
    /// Seconds after which the client may try again.
    pub retry_after: Option<u64>,
    /// Whether a browser should ask for a name and password.
    pub ask_browser: bool,
}

impl ApiError {
    /// An error of this status, code and message.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None, ask_browser: false }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// 401: no credential, or one that opens nothing.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// 403: the credential does not open this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_denied", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 503, to be tried again after some seconds.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    /// 500: a fault of the gateway; the cause goes to the log, not to the client.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the gateway failed; its log has the cause")
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Makes browsers ask for a name and password.
    #[must_use]
    pub fn asking_browser(mut self) -> Self {
        self.ask_browser = true;
        self
    }

    /// The type that the OpenAI API gives errors of this status.
    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            502..=504 => "upstream_error",
            _ => "server_error",
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "code": self.code, "param": self.param}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(CONTENT_TYPE, "application/json")], self.body().to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = if self.ask_browser { r#"Basic realm="llmops", charset="UTF-8""# } else { "Bearer" };
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_shape_of_the_openai_api() {
        let error = ApiError::invalid("inputs.question", "inputs.question is missing");
        assert_eq!(
            error.body(),
            json!({"error": {"message": "inputs.question is missing", "type": "invalid_request_error",
                             "code": "invalid_value", "param": "inputs.question"}})
        );
        let response = ApiError::unavailable("no_ready_endpoint", "none", 3).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "3");
        assert_eq!(ApiError::unauthenticated("").into_response().headers()[WWW_AUTHENTICATE], "Bearer");
    }
}
