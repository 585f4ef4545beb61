//! `GET /v1/models`: what whoever asks may call, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::gateway::auth::Action;
use crate::gateway::error::ApiError;
use crate::gateway::server::{Gateway, identify};

/// Handles the request.
///
/// # Errors
/// 401, or 503 when a token cannot be reviewed.
pub async fn list(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    let snapshot = gateway.routes.load();
    let mut data = Vec::new();
    let namespaces: BTreeSet<&String> = snapshot.flows.keys().chain(snapshot.models.keys()).collect();
    for namespace in namespaces {
        let flows = snapshot.flows.get(namespace).into_iter().flatten();
        let served: Vec<&String> = flows.filter(|(_, flow)| !flow.arms.is_empty()).map(|(name, _)| name).collect();
        if !served.is_empty() && gateway.auth.may(&asked.principal, Action::InvokeFlow, namespace).await {
            data.extend(served.iter().map(|name| entry(namespace, name, "promptflow")));
        }
        let models = snapshot.models.get(namespace).into_iter().flatten();
        let models: Vec<&String> = models.map(|(name, _)| name).filter(|name| !served.contains(name)).collect();
        if !models.is_empty() && gateway.auth.may(&asked.principal, Action::InvokeModel, namespace).await {
            data.extend(models.iter().map(|name| entry(namespace, name, "modeldeployment")));
        }
    }
    Ok(Json(json!({"object": "list", "data": data})))
}

fn entry(namespace: &str, name: &str, kind: &str) -> Value {
    json!({"id": format!("{namespace}/{name}"), "object": "model", "created": 0, "owned_by": namespace, "kind": kind})
}
