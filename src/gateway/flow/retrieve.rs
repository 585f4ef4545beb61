//! A retrieve node: searches an index.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::engine::{Run, queue_timeout};
use super::trace::Sourced;
use crate::gateway::endpoints::{Attempts, CallError, Target, TargetKind, Upstream};
use crate::indexer::job::{SearchRequest, SearchResponse};

/// Longest time for a search.
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 2;
/// Longest answer of a search, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

pub(super) async fn search(
    index: &str,
    alias: &str,
    request: &SearchRequest,
    run: Run<'_>,
) -> Result<Value, CallError> {
    let target = Target {
        kind: TargetKind::Index,
        namespace: run.namespace.to_owned(),
        name: index.to_owned(),
        pin: run.pins.indexes.get(index).cloned(),
        unit: run.unit.to_owned(),
        background: run.background,
        counts: false,
    };
    let found = query(run.upstream, &target, request).await?;
    run.trace.note(|done| {
        done.dependencies.indexes.insert(alias.to_owned(), found.generation.clone());
        for hit in &found.results {
            let source = Sourced {
                uri: hit.uri.clone(),
                heading: hit.heading.clone(),
                source: hit.source.clone(),
                score: hit.score,
            };
            let known = |known: &Sourced| {
                (&known.source, &known.uri, &known.heading) == (&source.source, &source.uri, &source.heading)
            };
            if !done.sources.iter().any(known) {
                done.sources.push(source);
            }
        }
    });
    let chunks: Vec<Value> = found
        .results
        .iter()
        .map(|hit| {
            json!({"text": hit.text, "uri": hit.uri, "heading": hit.heading, "score": hit.score, "source": hit.source})
        })
        .collect();
    Ok(json!({"chunks": chunks}))
}

/// Searches an index, trying again what fails.
///
/// # Errors
/// The last failure.
pub(in crate::gateway) async fn query(
    upstream: &Upstream,
    target: &Target,
    request: &SearchRequest,
) -> Result<SearchResponse, CallError> {
    let unreadable = |cause: String| CallError::Unreadable { target: target.to_string(), cause };
    let body = Bytes::from(serde_json::to_vec(request).map_err(|error| unreadable(error.to_string()))?);
    let mut attempts = Attempts::new(RETRIES, TIMEOUT, queue_timeout(upstream, false));
    loop {
        let answer = upstream.send(target, "/search", &body, &mut attempts).await?;
        let mut response = answer.response;
        let read = async {
            let mut text = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| super::llm::broken(target, &error))? {
                if text.len() + chunk.len() > MAX_ANSWER {
                    return Err(unreadable(format!("it is longer than {MAX_ANSWER} bytes")));
                }
                text.extend_from_slice(&chunk);
            }
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))
        };
        let error = match tokio::time::timeout_at(attempts.deadline(), read).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => return Err(attempts.timeout(target)),
        };
        if matches!(error, CallError::Broken { .. }) {
            upstream.broke_off(target, &answer.lease);
        }
        drop(answer.lease);
        if !upstream.again(target, &error, &mut attempts).await {
            return Err(error);
        }
    }
}
