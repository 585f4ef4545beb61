//! Questions that are asked once: who asks again under the same key is given the answer that was given before, and no
//! model or index is asked.
//!
//! An evaluation's Job that was killed asks its questions again; a question that was answered must not be paid for twice, and a
//! run must not mix two answers to one question. The answer and the record of its request are one transaction, so either both
//! are there when a process is killed, or neither.
//!
//! Only pinned requests may bring a key: without pins the same question may rightly get another answer.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;
use super::server::{Asked, Gateway, PIN, headers_of, milliseconds_now};
use super::store::GivenAnswer;

/// Header of a request: its key, 1 to 200 visible ASCII characters.
pub const KEY: &str = "llmops-once";
/// Header of an answer that was given before: how long it took then, in milliseconds.
pub const TOOK: &str = "llmops-took-ms";
/// Longest key.
const MAX_KEY: usize = 200;
/// How long answers are given again, in milliseconds: longer than the longest Job may take.
const KEPT_MS: i64 = 48 * 3600 * 1000;

/// A request's key, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    principal: String,
    key: String,
}

/// What is to be done about a request.
pub enum Question {
    /// It was asked before: this was the answer.
    Answered(Response),
    /// It is to be answered; with a key, the answer is to be kept.
    New(Option<Once>),
}

impl Once {
    /// Looks whether a request has a key, and whether it was answered before.
    ///
    /// # Errors
    /// 400 when the key cannot be used: with a stream, or without pins; 503 when the store cannot tell.
    pub async fn begin(
        gateway: &Gateway,
        asked: &Asked,
        headers: &HeaderMap,
        stream: bool,
    ) -> Result<Question, ApiError> {
        let Some(once) = Self::of(asked, headers, stream)? else { return Ok(Question::New(None)) };
        Ok(match once.given(gateway).await? {
            Some(answer) => Question::Answered(answer),
            None => Question::New(Some(once)),
        })
    }

    fn of(asked: &Asked, headers: &HeaderMap, stream: bool) -> Result<Option<Self>, ApiError> {
        let Some(key) = headers.get(KEY) else { return Ok(None) };
        let refused = |message: &str| Err(ApiError::invalid(KEY, message));
        let key = key.to_str().unwrap_or_default();
        if key.is_empty() || key.len() > MAX_KEY {
            return refused("the header llmops-once must have 1 to 200 visible ASCII characters");
        }
        if stream {
            return refused("the header llmops-once does not go with a stream; leave out one of them");
        }
        if !headers.contains_key(PIN) {
            return refused(
                "the header llmops-once needs the header llmops-pin: other questions may get other answers",
            );
        }
        Ok(Some(Self { principal: asked.principal.name().to_owned(), key: key.to_owned() }))
    }

    async fn given(&self, gateway: &Gateway) -> Result<Option<Response>, ApiError> {
        let given = gateway.store.given(&self.principal, &self.key).await.map_err(|error| {
            tracing::error!(%error, "the store cannot tell whether a question was answered");
            ApiError::unavailable("store_unavailable", "earlier answers cannot be read; ask again", 5)
        })?;
        Ok(given.map(|given| {
            let revision = Some(given.revision.as_str()).filter(|revision| !revision.is_empty());
            let mut headers = headers_of(&given.request, revision, None);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(HeaderName::from_static(TOOK), given.took_ms.into());
            (headers, given.body).into_response()
        }))
    }

    /// What is kept of an answer.
    pub fn keep(&self, request: &str, revision: &str, took_ms: u64, body: Vec<u8>) -> GivenAnswer {
        GivenAnswer {
            principal: self.principal.clone(),
            key: self.key.clone(),
            request: request.to_owned(),
            expires_ms: milliseconds_now().saturating_add(KEPT_MS),
            revision: revision.to_owned(),
            took_ms,
            body,
        }
    }
}
