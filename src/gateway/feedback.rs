//! `POST /v1/feedback`: what people think of an answer. Acknowledged only once it has reached the disk.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::auth::Action;
use super::error::ApiError;
use super::server::{Gateway, identify, json_body};
use super::store::{Feedback, StoreError};

/// Longest comment, in characters.
const MAX_COMMENT: usize = 4096;
/// Longest event, in characters.
const MAX_EVENT: usize = 128;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FeedbackRequest {
    request_id: String,
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    thumbs: Option<Thumbs>,
    #[serde(default)]
    judge_score: Option<f64>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    event: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Thumbs {
    Up,
    Down,
}

/// Handles the request.
///
/// # Errors
/// See `docs/reference/gateway-api.md`.
pub async fn give(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Body) -> Result<StatusCode, ApiError> {
    let asked = identify(&gateway, &headers).await?;
    let request: FeedbackRequest = json_body(body).await?;
    let score = check(&request)?;
    let unknown = || {
        let message = format!(
            "no answer with the request id {:?} is kept; it is in the header llmops-request-id, and nothing is kept with telemetry.capture: None",
            request.request_id.chars().take(64).collect::<String>()
        );
        ApiError::not_found(message).with_param("requestId")
    };
    let (namespace, name) =
        gateway.store.answered_by(&request.request_id).await.map_err(failed)?.ok_or_else(unknown)?;
    // Whoever may not ask is told the same as for an id that does not exist: ids of others stay unknown.
    if let Err(error) = gateway.auth.authorize(&asked.principal, Action::GiveFeedback, &namespace, Some(&name)).await {
        return Err(if error.status == StatusCode::FORBIDDEN { unknown() } else { error });
    }
    let feedback = Feedback {
        request: request.request_id.clone(),
        time_ms: asked.time_ms,
        score,
        thumbs: request.thumbs.map(|thumbs| matches!(thumbs, Thumbs::Up)),
        judge_score: request.judge_score,
        comment: request.comment.clone(),
        event: request.event.clone(),
        principal: asked.principal.name().to_owned(),
    };
    gateway.store.feedback(feedback).await.map_err(failed)?;
    gateway.metrics.feedback(&namespace, &name);
    Ok(StatusCode::ACCEPTED)
}

fn failed(error: StoreError) -> ApiError {
    tracing::error!(%error, "feedback was not kept");
    ApiError::unavailable("store_unavailable", "the feedback could not be kept; send it again", 5)
}

/// The score that a request gives.
fn check(request: &FeedbackRequest) -> Result<Option<f64>, ApiError> {
    if let Some(score) = request.score
        && !(-1.0..=1.0).contains(&score)
    {
        return Err(ApiError::invalid("score", format!("score is {score}; it must lie between -1 (bad) and 1 (good)")));
    }
    if let Some(score) = request.judge_score
        && !(0.0..=1.0).contains(&score)
    {
        let message = format!(
            "judgeScore is {score}; it must lie between 0 (bad) and 1 (good), and a judge that failed gives none"
        );
        return Err(ApiError::invalid("judgeScore", message));
    }
    let length = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
    for (name, length, longest) in
        [("comment", length(&request.comment), MAX_COMMENT), ("event", length(&request.event), MAX_EVENT)]
    {
        if length > longest {
            return Err(ApiError::invalid(
                name,
                format!("{name} has {length} characters; at most {longest} are allowed"),
            ));
        }
    }
    let thumbs = request.thumbs.map(|thumbs| match thumbs {
        Thumbs::Up => 1.0,
        Thumbs::Down => -1.0,
    });
    if request.score.is_some() && thumbs.is_some() {
        return Err(ApiError::invalid("thumbs", "give either score or thumbs, not both"));
    }
    let score = request.score.or(thumbs);
    let said = score.is_some() || request.judge_score.is_some();
    if !said && length(&request.comment) == 0 && length(&request.event) == 0 {
        return Err(ApiError::invalid(
            "score",
            "there is no feedback: give score, thumbs, judgeScore, comment or event",
        ));
    }
    Ok(score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scores_and_thumbs() {
        let of = |body: serde_json::Value| {
            check(&serde_json::from_value(body).unwrap()).map_err(|error| error.param.unwrap())
        };
        assert_eq!(of(json!({"requestId": "a", "thumbs": "down"})), Ok(Some(-1.0)));
        assert_eq!(of(json!({"requestId": "a", "score": 0.5})), Ok(Some(0.5)));
        assert_eq!(of(json!({"requestId": "a", "event": "copied"})), Ok(None));
        assert_eq!(of(json!({"requestId": "a", "score": 1.5})), Err("score".into()));
        assert_eq!(of(json!({"requestId": "a"})), Err("score".into()));
        assert_eq!(of(json!({"requestId": "a", "judgeScore": 0})), Ok(None));
        assert_eq!(of(json!({"requestId": "a", "judgeScore": -0.1})), Err("judgeScore".into()));
        assert_eq!(of(json!({"requestId": "a", "comment": "x".repeat(5000)})), Err("comment".into()));
        assert_eq!(of(json!({"requestId": "a", "score": 1, "thumbs": "up"})), Err("thumbs".into()));
    }
}
