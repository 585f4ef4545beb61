//! `POST /v1/chat/completions`: the model is `NAMESPACE/NAME` of a PromptFlow or a ModelDeployment. Where both exist, the
//! flow answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde_json::{Map, Value};

use super::{flow_chat, passthrough};
use crate::gateway::auth::Action;
use crate::gateway::error::ApiError;
use crate::gateway::server::{Gateway, identify, json_body};

/// Handles the request.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn completions(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    let body: Map<String, Value> = json_body(body).await?;
    let (namespace, name) = model_of(&body)?;
    let is_flow = gateway.routes.load().flow(&namespace, &name).is_some();
    let action = if is_flow { Action::InvokeFlow } else { Action::InvokeModel };
    gateway.auth.authorize(&asked.principal, action, &namespace, Some(&name)).await?;
    if is_flow {
        flow_chat::answer(gateway, asked, &headers, &namespace, &name, &body).await
    } else {
        passthrough::chat(gateway, asked, &headers, &namespace, &name, body).await
    }
}

/// Namespace and name of the model of a request.
pub(super) fn model_of(body: &Map<String, Value>) -> Result<(String, String), ApiError> {
    let model = body.get("model").and_then(Value::as_str).ok_or_else(|| {
        ApiError::invalid("model", "model is missing: write NAMESPACE/NAME; GET /v1/models lists what there is")
    })?;
    match model.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(ApiError::invalid(
            "model",
            format!("cannot read the model {model:?}: write NAMESPACE/NAME; GET /v1/models lists what there is"),
        )),
    }
}

/// Whether a request asks for a stream.
pub(super) fn wants_stream(body: &Map<String, Value>) -> bool {
    body.get("stream").and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a request asks for the usage at the end of the stream.
pub(super) fn wants_usage(body: &Map<String, Value>) -> bool {
    body.get("stream_options")
        .and_then(|options| options.get("include_usage"))
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// The user that a request names.
pub(super) fn user_of(body: &Map<String, Value>) -> Option<String> {
    body.get("user").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn models_are_named_by_namespace_and_name() {
        let of = |model: Value| {
            let Value::Object(body) = json!({"model": model}) else { panic!("an object") };
            model_of(&body)
        };
        assert_eq!(of(json!("team-a/docs")).unwrap(), ("team-a".into(), "docs".into()));
        for wrong in [json!("docs"), json!("/docs"), json!("a/"), json!("a/b/c"), json!(1), Value::Null] {
            assert_eq!(of(wrong.clone()).unwrap_err().param.as_deref(), Some("model"), "{wrong}");
        }
    }
}
