//! The watches that fill the caches. Each kind has its own, so that one that fails stops no other.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use serde_json::Value;

use super::backoff;
use super::cache::{Cache, Caches, Change};
use super::kinds::{Keep, Key, Kind};
use super::metrics::{ByKind, Metrics};
use super::raw::Raw;
use super::writer::OnChange;
use crate::api::names;

/// Objects in one page of a list: bounds the memory that a list of everything takes at a start.
const PAGE: u32 = 50;

/// Watches one kind until dropped.
pub(crate) async fn run(
    kind: Kind,
    client: Client,
    namespace: Option<String>,
    caches: Arc<Caches>,
    metrics: Metrics,
    on_change: OnChange,
) {
    let config = match kind.keep() {
        Keep::Managed | Keep::ManagedStatus => {
            watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY))
        }
        _ => watcher::Config::default(),
    }
    .page_size(PAGE);
    let sink = Sink { kind, cache: caches.of(kind), metrics, on_change };
    match kind {
        Kind::ConfigMap => {
            let api: Api<PartialObjectMeta<ConfigMap>> = scoped(client, namespace.as_deref());
            sink.drain(watch(api, config), |object| serde_json::to_value(object).unwrap_or_default()).await;
        }
        Kind::Secret => {
            let api: Api<PartialObjectMeta<Secret>> = scoped(client, namespace.as_deref());
            sink.drain(watch(api, config), |object| serde_json::to_value(object).unwrap_or_default()).await;
        }
        _ => {
            let resource = kind.resource();
            let api: Api<Raw> = match &namespace {
                Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                None => Api::all_with(client, &resource),
            };
            sink.drain(watch(api, config), |object: Raw| object.value).await;
        }
    }
}

fn scoped<K>(client: Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

/// Delays between attempts of a failing watch: short, because a restarted API server is back within seconds.
#[derive(Default)]
struct Retry {
    failures: u32,
}

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        Some(backoff::after_failures(self.failures, fastrand::f64()).min(Duration::from_secs(5)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

struct Sink<'a> {
    kind: Kind,
    cache: &'a Cache,
    metrics: Metrics,
    on_change: OnChange,
}

impl Sink<'_> {
    async fn drain<K>(
        &self,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
        value: impl Fn(K) -> Value,
    ) {
        let mut events = std::pin::pin!(events.backoff(Retry::default()));
        let label = ByKind { kind: self.kind.name() };
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(watch = %self.kind, "watch works again");
                    }
                    self.take(event, &value);
                    let count = i64::try_from(self.cache.len()).unwrap_or(i64::MAX);
                    self.metrics.cached.get_or_create(&label).set(count);
                }
                Err(error) => {
                    // A kind that is not installed has no objects: the other kinds do not wait for it. What is known
                    // already stays, for an answer of a moment is no reason to forget it.
                    if is_absent(&error) && !self.cache.is_synced() {
                        self.cache.list_ends();
                    }
                    self.metrics.watch_errors.get_or_create(&label).inc();
                    // Said once: while the API server is away every attempt fails the same way.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(watch = %self.kind, %error, "watch failed; caches keep what they have, trying again");
                    }
                }
            }
        }
    }

    fn take<K>(&self, event: Event<K>, value: &impl Fn(K) -> Value) {
        match event {
            Event::Init => self.cache.list_begins(),
            Event::InitApply(object) | Event::Apply(object) => {
                if let Some(change) = self.cache.put(&value(object), true) {
                    (self.on_change)(&change);
                }
            }
            Event::InitDone => {
                for change in self.cache.list_ends() {
                    (self.on_change)(&change);
                }
            }
            Event::Delete(object) => {
                if let Some(change) = self.deleted(&value(object)) {
                    (self.on_change)(&change);
                }
            }
        }
    }

    fn deleted(&self, object: &Value) -> Option<Change> {
        let meta = object.get("metadata")?;
        let text = |key: &str| meta.get(key).and_then(Value::as_str);
        self.cache.remove(&Key::new(text("namespace")?, text("name")?), text("resourceVersion"), true)
    }
}
