//! Waiting for conditions, by watching and never by sleeping.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Conditions of our kinds, and the generation that the status describes.
pub trait Observed {
    fn observed(&self) -> (Option<i64>, &[Condition]);
}

macro_rules! observed {
    ($($kind:ty),*) => {$(
        impl Observed for $kind {
            fn observed(&self) -> (Option<i64>, &[Condition]) {
                self.status.as_ref().map_or((None, &[]), |status| (status.observed_generation, &status.conditions))
            }
        }
    )*};
}
observed!(ModelDeployment, RagIndex, PromptFlow, Evaluation);

/// Waits until the object satisfies the predicate, and gives it back. An absent object satisfies nothing.
pub async fn until<K, F>(
    client: &Client,
    namespace: &str,
    name: &str,
    limit: Duration,
    what: &str,
    holds: F,
) -> Result<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + 'static,
    F: Fn(&K) -> bool,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut last = None;
    let search = async {
        let mut events = std::pin::pin!(
            watcher(api, watcher::Config::default().fields(&format!("metadata.name={name}")))
                .default_backoff()
                .applied_objects()
        );
        loop {
            match events.try_next().await {
                Ok(Some(object)) if holds(&object) => return Some(object),
                Ok(Some(object)) => last = Some(object),
                Ok(None) => return None,
                // The watcher backs off and resumes: an API server that is away is waited for.
                Err(_) => {}
            }
        }
    };
    let found = tokio::time::timeout(limit, search).await;
    match found {
        Ok(Some(object)) => Ok(object),
        _ => {
            let status =
                last.map(|object| serde_json::to_value(object).map(|value| value["status"].clone())).transpose()?;
            let seen = serde_json::to_string_pretty(&status)?;
            bail!("{} {namespace}/{name}: not {what} within {limit:?}; last seen: {seen}", K::kind(&()))
        }
    }
}

/// Waits until a condition has the status and reason for the object's current generation.
pub async fn condition<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    kind: &str,
    status: &str,
    reason: Option<&str>,
) -> Result<K>
where
    K: Observed
        + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + 'static,
{
    let what = format!("{kind}={status} {}", reason.unwrap_or_default());
    until(client, namespace, name, Duration::from_secs(120), &what, |object: &K| {
        let (generation, conditions) = object.observed();
        generation == object.meta().generation
            && conditions
                .iter()
                .any(|c| c.type_ == kind && c.status == status && reason.is_none_or(|reason| c.reason == reason))
    })
    .await
}

/// Waits until `Ready` is `True` for the object's current generation.
pub async fn ready<K>(client: &Client, namespace: &str, name: &str) -> Result<K>
where
    K: Observed
        + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + 'static,
{
    condition(client, namespace, name, "Ready", "True", None).await
}

/// Polls an outside observation (a file, an HTTP answer) that offers nothing to wait on, until it holds.
pub async fn eventually<T, F>(limit: Duration, what: &str, mut observe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let mut last = None;
    let polled = tokio::time::timeout(limit, async {
        loop {
            match observe().await {
                Ok(Some(value)) => return value,
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    polled.with_context(|| format!("{what}: not within {limit:?}; last error: {last:?}"))
}
