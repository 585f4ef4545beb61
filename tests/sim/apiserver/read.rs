//! Get, list and watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::ApiServer;
use super::error::ApiError;
use super::kinds::Kind;
use super::route::Query;
use super::selector::Selector;
use super::service::AnswerBody;
use super::session::Session;
use super::store::{Change, Key};

/// What is read.
#[derive(Clone)]
pub struct Read {
    /// The kind.
    pub kind: Arc<Kind>,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Which objects.
    pub selector: Selector,
    /// Only metadata.
    pub metadata_only: bool,
}

impl Read {
    fn shown(&self, object: &Value) -> Value {
        if self.metadata_only {
            json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"],
            })
        } else {
            object.clone()
        }
    }

    /// One object.
    pub fn get(&self, server: &ApiServer, name: &str) -> Result<Value, ApiError> {
        let key = Key { resource: self.kind.resource(), namespace: self.namespace.clone(), name: name.to_owned() };
        let inner = server.lock();
        let object = inner.store.get(&key).ok_or_else(|| ApiError::not_found(&self.kind.resource(), name))?;
        Ok(self.shown(object))
    }

    /// A page of objects; of a past version if the request allows it.
    pub fn list(&self, server: &ApiServer, query: &Query, past: Option<u64>) -> Result<Value, ApiError> {
        let inner = server.lock();
        let resource = self.kind.resource();
        let past = past.filter(|_| query.get("resourceVersion") == Some("0"));
        let version = past.unwrap_or_else(|| inner.store.version());
        let then = past.map(|past| inner.store.at(past));
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let after: Option<(String, String)> = query
            .get("continue")
            .map(|token| serde_json::from_str(token).map_err(|_| ApiError::bad_request("continue key is not valid")))
            .transpose()?;
        let objects: Box<dyn Iterator<Item = (&Key, &Arc<Value>)>> = match &then {
            Some(then) => Box::new(then.iter().filter(|(key, _)| {
                key.resource == resource && (self.namespace.is_empty() || key.namespace == self.namespace)
            })),
            None => Box::new(inner.store.list(&resource, &self.namespace)),
        };
        let mut selected = objects
            .filter(|(_, object)| self.selector.matches(object))
            .filter(|(key, _)| after.as_ref().is_none_or(|(ns, name)| (&key.namespace, &key.name) > (ns, name)));
        let mut items = Vec::new();
        let mut last = None;
        for (key, object) in selected.by_ref().take(limit) {
            let mut item = self.shown(object);
            // Items of built-in kinds come without their type, as in a real list.
            if !self.metadata_only
                && self.kind.group != llmops::api::GROUP
                && let Some(map) = item.as_object_mut()
            {
                map.shift_remove("apiVersion");
                map.shift_remove("kind");
            }
            items.push(item);
            last = Some((key.namespace.clone(), key.name.clone()));
        }
        let more = selected.next().is_some();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let (true, Some(last)) = (more, last) {
            metadata["continue"] = json!(json!(last).to_string());
        }
        let (api_version, kind) = if self.metadata_only {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
        } else {
            (self.kind.api_version(), format!("{}List", self.kind.kind))
        };
        Ok(json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "items": items}))
    }

    /// A stream of changes.
    pub fn watch(&self, server: &ApiServer, session: Arc<Session>, query: &Query) -> Result<AnswerBody, ApiError> {
        let version = query.get("resourceVersion").unwrap_or_default();
        let from: u64 = match version {
            "" => 0,
            text => text.parse().map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}")))?,
        };
        let initial = query.is("sendInitialEvents") || from == 0;
        let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(1800);
        let stream = Feed {
            read: self.clone(),
            server: server.clone(),
            session,
            end: Instant::now() + Duration::from_secs(seconds),
            bookmarks: query.is("allowWatchBookmarks"),
            mark_end: query.is("sendInitialEvents"),
        };
        let events = stream.events(from, initial);
        let frames = futures::StreamExt::map(events, |event| {
            let mut line = event.to_string();
            line.push('\n');
            Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(line)))
        });
        Ok(StreamBody::new(frames).boxed_unsync())
    }

    /// What a change means to a watch: it may enter or leave the selection.
    fn event(&self, change: &Change) -> Option<Value> {
        if change.key.resource != self.kind.resource() {
            return None;
        }
        if !self.namespace.is_empty() && change.key.namespace != self.namespace {
            return None;
        }
        let selected = |object: &Option<Arc<Value>>| object.clone().filter(|object| self.selector.matches(object));
        let (kind, object) = match (selected(&change.before), selected(&change.after)) {
            (None, Some(now)) => ("ADDED", now),
            (Some(_), Some(now)) => ("MODIFIED", now),
            // Left the selection, or gone: the last selected state, with the version of the change.
            (Some(was), None) => ("DELETED", was),
            (None, None) => return None,
        };
        let mut object = self.shown(&object);
        object["metadata"]["resourceVersion"] = json!(change.version.to_string());
        Some(json!({"type": kind, "object": object}))
    }
}

/// Events that a watch may show twice.
const LATEST: usize = 5;

struct Feed {
    read: Read,
    server: ApiServer,
    session: Arc<Session>,
    end: Instant,
    bookmarks: bool,
    mark_end: bool,
}

impl Feed {
    fn events(self, from: u64, initial: bool) -> impl Stream<Item = Value> + Send {
        async_stream::stream! {
            let network = self.session.network.clone();
            let resource = self.read.kind.resource();
            let mut due = false;
            let mut seen = network.signals();
            let mut latest: VecDeque<Value> = VecDeque::new();
            let mut version = from;
            if initial {
                let (events, newest) = self.initial();
                version = newest;
                for event in events {
                    yield event;
                }
            }
            let mut bookmark = Instant::now() + Duration::from_secs(60);
            loop {
                while let Some(until) = self.session.held() {
                    sleep_until(until).await;
                }
                let (mut changes, mut signals) = (self.server.changes_of(&resource), network.follow_signals());
                let signalled = network.signals();
                if signalled.drops != seen.drops {
                    return;
                }
                if signalled.repeats != seen.repeats {
                    seen = signalled;
                    for event in latest.clone() {
                        yield event;
                    }
                }
                let found = self.server.lock().store.since(version).map(<[Change]>::to_vec);
                let Some(found) = found else {
                    let error = ApiError::gone(format!("too old resource version: {version}"));
                    yield json!({"type": "ERROR", "object": error.body()});
                    return;
                };
                let mut late = false;
                for change in found {
                    version = change.version;
                    let Some(event) = self.read.event(&change) else { continue };
                    if !late {
                        // The watch lags behind the writes, so that caches are a little old.
                        let pause = self.server.lock().rng.u64(0..15);
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        late = true;
                    }
                    while let Some(until) = self.session.held() {
                        sleep_until(until).await;
                    }
                    if self.session.is_dead() {
                        std::future::pending::<()>().await;
                    }
                    latest.push_back(event.clone());
                    if latest.len() > LATEST {
                        latest.pop_front();
                    }
                    yield event;
                }
                let (newest, newer) = {
                    let inner = self.server.lock();
                    let newer = inner.store.since(version).is_none_or(|changes| {
                        changes.iter().any(|change| change.key.resource == resource)
                    });
                    (inner.store.version(), newer)
                };
                if newer {
                    continue;
                }
                // What came since then concerns others.
                version = newest;
                if std::mem::take(&mut due) {
                    if self.bookmarks {
                        yield self.bookmark(version, false);
                    }
                    if Instant::now() >= self.end {
                        return;
                    }
                    bookmark = Instant::now() + Duration::from_secs(60);
                }
                tokio::select! {
                    biased;
                    _ = changes.recv() => {}
                    _ = signals.recv() => {}
                    () = sleep_until(bookmark.min(self.end)) => due = true,
                }
            }
        }
    }

    fn initial(&self) -> (Vec<Value>, u64) {
        let inner = self.server.lock();
        let resource = self.read.kind.resource();
        let mut events: Vec<Value> = inner
            .store
            .list(&resource, &self.read.namespace)
            .filter(|(_, object)| self.read.selector.matches(object))
            .map(|(_, object)| json!({"type": "ADDED", "object": self.read.shown(object)}))
            .collect();
        let version = inner.store.version();
        if self.mark_end {
            events.push(self.bookmark(version, true));
        }
        (events, version)
    }

    fn bookmark(&self, version: u64, end_of_initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (api_version, kind) = if self.read.metadata_only {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata".to_owned())
        } else {
            (self.read.kind.api_version(), self.read.kind.kind.clone())
        };
        json!({"type": "BOOKMARK", "object": {"apiVersion": api_version, "kind": kind, "metadata": metadata}})
    }
}
