//! Every write to the API server goes through here: leadership is asked first, the answer goes into the caches, and
//! it is counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::{DeleteParams, Patch, PatchParams, PropagationPolicy};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::apply::{Parent, name_conflict};
use super::cache::{Caches, Change, Entry};
use super::error::Error;
use super::events::Note;
use super::kinds::{Key, Kind};
use super::leadership::Leadership;
use super::metrics::{ByWrite, Metrics};
use super::raw::Raw;
use crate::api::revision::short;

/// A version that no stored object has: an apply with it creates, and fails where something exists.
const NO_VERSION: &str = "1";

/// Called with every change that a write made to a cache.
pub(crate) type OnChange = Arc<dyn Fn(&Change) + Send + Sync>;

/// Writes to the API server.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    caches: Arc<Caches>,
    leadership: Leadership,
    metrics: Metrics,
    on_change: OnChange,
    altered: Arc<Mutex<HashMap<(Kind, Key), String>>>,
}

impl Writer {
    pub(crate) fn new(
        client: Client,
        caches: Arc<Caches>,
        leadership: Leadership,
        metrics: Metrics,
        on_change: OnChange,
    ) -> Self {
        Self { client, caches, leadership, metrics, on_change, altered: Arc::default() }
    }

    fn api(&self, kind: Kind, key: &Key) -> Api<Raw> {
        let resource: ApiResource = kind.resource();
        Api::namespaced_with(self.client.clone(), &key.namespace, &resource)
    }

    /// Remembers that an object came back from an apply otherwise than it was sent: an admission webhook changed it,
    /// or a field is unknown to this API server. Applying it again would change nothing, for ever.
    pub(crate) fn note_altered(&self, kind: Kind, key: &Key, entry: &Entry) {
        let content = content(entry);
        let mut altered = self.altered.lock().unwrap_or_else(PoisonError::into_inner);
        if altered.insert((kind, key.clone()), content).is_none() {
            tracing::warn!(child = %kind, namespace = %key.namespace, child_name = %key.name, "the cluster changes what is applied (an admission webhook?); it is left so");
        }
    }

    /// Whether the object is still as an apply left it, though not as it was sent.
    pub(crate) fn is_altered(&self, kind: Kind, key: &Key, entry: &Entry) -> bool {
        let altered = self.altered.lock().unwrap_or_else(PoisonError::into_inner);
        altered.get(&(kind, key.clone())).is_some_and(|known| *known == content(entry))
    }

    fn count<T>(&self, kind: &'static str, verb: &'static str, result: &Result<T, kube::Error>) {
        let result = if result.is_ok() { "ok" } else { "error" };
        self.metrics.writes.get_or_create(&ByWrite { kind, verb, result }).inc();
    }

    fn remember(&self, kind: Kind, key: &Key, object: &Raw) -> Result<Arc<Entry>, Error> {
        if let Some(change) = self.caches.of(kind).put(&object.value, false) {
            (self.on_change)(&change);
        }
        self.caches
            .of(kind)
            .get(key)
            .ok_or_else(|| Error::Conflict(format!("{kind} {key}, which was written and deleted at once,")))
    }

    /// Asks the API server whether an object is still the one that the cache has.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is gone, going, or another one of its name: the cache will show that soon.
    pub(crate) async fn check_parent(&self, parent: &Parent) -> Result<(), Error> {
        let found = self
            .api(parent.kind, &parent.key)
            .get_metadata_opt(&parent.key.name)
            .await
            .map_err(|error| Error::from_api(&format!("reading {} {}", parent.kind, parent.key), &error))?;
        let same = found.is_some_and(|found| {
            found.metadata.uid.as_deref() == Some(parent.uid.as_str()) && found.metadata.deletion_timestamp.is_none()
        });
        if same { Ok(()) } else { Err(Error::Conflict(format!("{} {}", parent.kind, parent.key))) }
    }

    /// Creates an owned object that the cache does not have.
    ///
    /// # Errors
    /// [`Error::Stalled`] with `NameConflict` when an object of another owner has the name.
    pub(crate) async fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: &Parent,
        mut object: Value,
    ) -> Result<Arc<Entry>, Error> {
        self.leadership.check()?;
        object["metadata"]["resourceVersion"] = json!(NO_VERSION);
        let api = self.api(kind, key);
        let params = PatchParams::apply(parent.manager).force();
        let created = api.patch(&key.name, &params, &Patch::Apply(&object)).await;
        self.count(kind.name(), "create", &created);
        match created {
            Ok(object) => self.remember(kind, key, &object),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // Something has the name that the watch did not show: ours of a moment ago, or somebody else's.
                let existing = api
                    .get_opt(&key.name)
                    .await
                    .map_err(|error| Error::from_api(&format!("reading {kind} {key}"), &error))?;
                let ours = existing.as_ref().is_none_or(|object| controller_uid(&object.value) == Some(&parent.uid));
                if ours {
                    Err(Error::Conflict(format!("{kind} {key}")))
                } else {
                    Err(name_conflict(kind, &key.name, parent))
                }
            }
            Err(error) => Err(Error::from_api(&format!("creating {kind} {key}"), &error)),
        }
    }

    /// Changes an owned object: exactly the one that the cache has.
    pub(crate) async fn change(
        &self,
        kind: Kind,
        key: &Key,
        parent: &Parent,
        mut object: Value,
        uid: &str,
    ) -> Result<Arc<Entry>, Error> {
        self.leadership.check()?;
        object["metadata"]["uid"] = json!(uid);
        let params = PatchParams::apply(parent.manager).force();
        let changed = self.api(kind, key).patch(&key.name, &params, &Patch::Apply(&object)).await;
        self.count(kind.name(), "apply", &changed);
        let object = changed.map_err(|error| Error::from_api(&format!("changing {kind} {key}"), &error))?;
        self.remember(kind, key, &object)
    }

    /// Deletes exactly the object that the cache has; its pods go with it.
    pub(crate) async fn delete(&self, kind: Kind, key: &Key, uid: &str) -> Result<(), Error> {
        self.leadership.check()?;
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = self.api(kind, key).delete(&key.name, &params).await;
        self.count(kind.name(), "delete", &deleted);
        match deleted {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::from_api(&format!("deleting {kind} {key}"), &error)),
        }
        if let Some(change) = self.caches.of(kind).remove(key, None, false) {
            (self.on_change)(&change);
        }
        Ok(())
    }

    /// Writes a status by a merge patch that holds only what differs, on exactly the version that the cache has.
    pub(crate) async fn status(
        &self,
        kind: Kind,
        key: &Key,
        manager: &'static str,
        resource_version: &str,
        difference: &Value,
    ) -> Result<Arc<Entry>, Error> {
        self.leadership.check()?;
        let patch = json!({"metadata": {"resourceVersion": resource_version}, "status": difference});
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        let written = self.api(kind, key).patch_status(&key.name, &params, &Patch::Merge(&patch)).await;
        self.count(kind.name(), "status", &written);
        let object =
            written.map_err(|error| Error::from_api(&format!("writing the status of {kind} {key}"), &error))?;
        self.remember(kind, key, &object)
    }

    /// Publishes an event. Events are for people: failing to write one fails nothing else.
    pub(crate) async fn event(&self, parent: &Parent, note: &Note, now: jiff::Timestamp, instance: &str) {
        if self.leadership.check().is_err() {
            return;
        }
        let api = Api::namespaced(self.client.clone(), &parent.key.namespace);
        let event = note.event(parent, now, instance);
        let created = api.create(&kube::api::PostParams::default(), &event).await;
        self.count("Event", "event", &created);
        if let Err(error) = created {
            tracing::warn!(kind = %parent.kind, namespace = %parent.key.namespace, name = %parent.key.name, %error, "event not written");
        }
    }
}

/// What of an object an apply decides: everything but its status and the counters in its metadata.
fn content(entry: &Entry) -> String {
    let mut value = entry.value().unwrap_or_default();
    let meta = value.get("metadata").map(|meta| json!([meta.get("uid"), meta.get("labels"), meta.get("annotations")]));
    if let Some(members) = value.as_object_mut() {
        members.remove("status");
        members.insert("metadata".to_owned(), meta.unwrap_or_default());
    }
    short(&value.to_string(), 16)
}

fn controller_uid(object: &Value) -> Option<&str> {
    let owners = object.get("metadata")?.get("ownerReferences")?.as_array()?;
    owners.iter().find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?.get("uid")?.as_str()
}
