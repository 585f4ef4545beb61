//! What the API server last said, kept small: each object is its trimmed JSON text and the few fields by which it is
//! found, decoded when a reconcile asks for it. A typed pod costs ten times as much memory as its text.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;
use tokio::sync::watch;

use super::error::Error;
use super::kinds::{Keep, Key, Kind, Watched};
use crate::api::names;

/// Who an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Kind of the owner: one of ours.
    pub kind: Kind,
    /// Name of the owner, in the same namespace.
    pub name: String,
    /// UID of the owner; `None` for pods, which Deployments and Jobs own and whose labels name our object.
    pub uid: Option<String>,
}

/// A cached object.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// UID.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Generation of the spec; 0 for kinds without one.
    pub generation: i64,
    /// Whether deletion was asked for.
    pub deleting: bool,
    /// Who it belongs to, when that is one of ours.
    pub owner: Option<Owner>,
    /// Value of the annotation [`names::ANNOTATION_RECONCILE`].
    pub reconcile_requested: Option<String>,
    /// The trimmed object; `None` where only the name is kept.
    json: Option<Box<[u8]>>,
}

impl Entry {
    /// The object as JSON.
    ///
    /// # Errors
    /// When only the object's name is kept.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        match &self.json {
            Some(json) => serde_json::from_slice(json),
            None => Err(serde::de::Error::custom("only the name of this object is kept")),
        }
    }

    /// The object, typed.
    ///
    /// # Errors
    /// When the object does not fit the type, or only its name is kept.
    pub fn decode<K: Watched>(&self) -> Result<K, serde_json::Error> {
        match &self.json {
            Some(json) => serde_json::from_slice(json),
            None => Err(serde::de::Error::custom("only the name of this object is kept")),
        }
    }
}

/// A change of a cached object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) old: Option<Arc<Entry>>,
    pub(crate) new: Option<Arc<Entry>>,
    /// Whether it came from a watch; otherwise it is the answer to a write of ours.
    pub(crate) watched: bool,
}

#[derive(Default)]
struct State {
    /// In order, so that a start looks at the objects in the same order each time.
    objects: BTreeMap<Key, Arc<Entry>>,
    /// Keys by owner: kind is in each entry's owner, so namespace and owner's name suffice.
    owned: HashMap<(Kind, Key), BTreeSet<String>>,
    /// While a list runs: what it gave so far, and what was written meanwhile.
    listing: Option<HashSet<Key>>,
    /// Newest version that the watch has shown of any object: up to it, it has shown everything.
    shown: u64,
}

/// The objects of one kind.
pub struct Cache {
    kind: Kind,
    state: RwLock<State>,
    synced: watch::Sender<bool>,
}

impl Cache {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, state: RwLock::default(), synced: watch::Sender::new(false) }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(crate) async fn wait_synced(&self) {
        // The sender lives as long as self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The object of this name, as last seen.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.read().objects.get(key).cloned()
    }

    /// Keys of all objects.
    pub fn keys(&self) -> Vec<Key> {
        self.read().objects.keys().cloned().collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names and entries of the objects that belong to one of ours.
    pub fn owned(&self, kind: Kind, owner: &Key) -> Vec<(String, Arc<Entry>)> {
        let state = self.read();
        let Some(names) = state.owned.get(&(kind, owner.clone())) else { return Vec::new() };
        names
            .iter()
            .filter_map(|name| {
                let entry = state.objects.get(&Key::new(owner.namespace.as_str(), name.as_str()))?;
                Some((name.clone(), Arc::clone(entry)))
            })
            .collect()
    }

    pub(crate) fn list_begins(&self) {
        self.write().listing = Some(HashSet::new());
    }

    /// Ends a list: what it did not give is gone, except for what was written while it ran.
    pub(crate) fn list_ends(&self) -> Vec<Change> {
        let mut state = self.write();
        let seen = state.listing.take().unwrap_or_default();
        let gone: Vec<Key> = state.objects.keys().filter(|key| !seen.contains(key)).cloned().collect();
        let changes = gone.into_iter().filter_map(|key| self.take(&mut state, key, true)).collect();
        drop(state);
        self.synced.send_replace(true);
        changes
    }

    /// Takes an object from a watch or from the answer to a write. Older versions than the cached one are ignored, and
    /// answers that the watch is past: an object that was deleted before its answer came would stay for ever.
    pub(crate) fn put(&self, object: &Value, watched: bool) -> Option<Change> {
        let (key, entry) = entry(self.kind, object)?;
        let mut state = self.write();
        let version = entry.resource_version.parse::<u64>();
        if watched {
            state.shown = state.shown.max(version.unwrap_or_default());
        } else if version.is_ok_and(|version| version <= state.shown) {
            return None;
        }
        if let Some(listing) = &mut state.listing {
            listing.insert(key.clone());
        }
        let old = state.objects.get(&key).cloned();
        if let Some(old) = &old
            && !is_newer(&entry.resource_version, &old.resource_version)
        {
            return None;
        }
        if let Some(old) = &old {
            unlink(&mut state.owned, old, &key);
        }
        if let Some(owner) = &entry.owner {
            let owner = (owner.kind, Key::new(key.namespace.as_str(), owner.name.as_str()));
            state.owned.entry(owner).or_default().insert(key.name.clone());
        }
        let new = Arc::new(entry);
        state.objects.insert(key.clone(), Arc::clone(&new));
        // Only the version moved (leases, managed fields, trimmed parts): nobody needs to look.
        let same = old.as_ref().is_some_and(|old| same_content(old, &new));
        (!same).then_some(Change { kind: self.kind, key, old, new: Some(new), watched })
    }

    /// Removes an object that a watch or the answer to a delete says is gone.
    pub(crate) fn remove(&self, key: &Key, resource_version: Option<&str>, watched: bool) -> Option<Change> {
        let mut state = self.write();
        if watched {
            let shown = resource_version.and_then(|version| version.parse().ok()).unwrap_or_default();
            state.shown = state.shown.max(shown);
        }
        let cached = state.objects.get(key)?;
        // A new object of the same name may be cached already.
        if resource_version
            .is_some_and(|version| version != cached.resource_version && !is_newer(version, &cached.resource_version))
        {
            return None;
        }
        self.take(&mut state, key.clone(), watched)
    }

    fn take(&self, state: &mut State, key: Key, watched: bool) -> Option<Change> {
        let old = state.objects.remove(&key)?;
        unlink(&mut state.owned, &old, &key);
        Some(Change { kind: self.kind, key, old: Some(old), new: None, watched })
    }
}

fn unlink(owned: &mut HashMap<(Kind, Key), BTreeSet<String>>, entry: &Entry, key: &Key) {
    let Some(owner) = &entry.owner else { return };
    let owner = (owner.kind, Key::new(key.namespace.as_str(), owner.name.as_str()));
    if let Some(names) = owned.get_mut(&owner) {
        names.remove(&key.name);
        if names.is_empty() {
            owned.remove(&owner);
        }
    }
}

fn same_content(a: &Entry, b: &Entry) -> bool {
    a.uid == b.uid
        && a.deleting == b.deleting
        && a.owner == b.owner
        && a.reconcile_requested == b.reconcile_requested
        && match (&a.json, &b.json) {
            (Some(a), Some(b)) => a == b,
            // Content that is not kept: the version is all we know of it.
            (None, None) => a.resource_version == b.resource_version,
            _ => false,
        }
}

/// Resource versions of one kind are comparable as numbers; of text that is no number, a different one is newer.
fn is_newer(candidate: &str, cached: &str) -> bool {
    match (candidate.parse::<u64>(), cached.parse::<u64>()) {
        (Ok(candidate), Ok(cached)) => candidate > cached,
        _ => candidate != cached,
    }
}

/// Reads and trims an object; `None` when it has no name or namespace.
fn entry(kind: Kind, object: &Value) -> Option<(Key, Entry)> {
    let meta = object.get("metadata")?;
    let text = |key: &str| meta.get(key).and_then(Value::as_str);
    let key = Key::new(text("namespace")?, text("name")?);
    let label = |name: &str| meta.get("labels").and_then(|labels| labels.get(name)).and_then(Value::as_str);
    let managed = label(names::LABEL_MANAGED_BY) == Some(names::MANAGED_BY);
    let controller = meta
        .get("ownerReferences")
        .and_then(Value::as_array)
        .and_then(|owners| owners.iter().find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true)));
    let owner = match controller {
        Some(owner) if is_ours(owner) => Some(Owner {
            kind: Kind::primary(owner.get("kind")?.as_str()?)?,
            name: owner.get("name")?.as_str()?.to_owned(),
            uid: owner.get("uid").and_then(Value::as_str).map(str::to_owned),
        }),
        _ if kind == Kind::Pod && managed => {
            match (label(names::LABEL_COMPONENT).and_then(Kind::of_component), label(names::LABEL_OWNER)) {
                (Some(kind), Some(name)) => Some(Owner { kind, name: name.to_owned(), uid: None }),
                _ => None,
            }
        }
        _ => None,
    };
    let keep = match kind.keep() {
        Keep::All | Keep::Managed | Keep::ManagedStatus => true,
        Keep::AllNamesManagedContent => managed,
        Keep::Metadata => false,
    };
    let json = keep.then(|| trimmed(kind, object)).flatten();
    let entry = Entry {
        uid: text("uid").unwrap_or_default().to_owned(),
        resource_version: text("resourceVersion").unwrap_or_default().to_owned(),
        generation: meta.get("generation").and_then(Value::as_i64).unwrap_or_default(),
        deleting: text("deletionTimestamp").is_some(),
        owner,
        reconcile_requested: meta
            .get("annotations")
            .and_then(|annotations| annotations.get(names::ANNOTATION_RECONCILE))
            .and_then(Value::as_str)
            .map(str::to_owned),
        json,
    };
    Some((key, entry))
}

fn is_ours(owner: &Value) -> bool {
    owner
        .get("apiVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| version.split('/').next() == Some(crate::api::GROUP))
}

/// The object's text without what no reconcile reads: the version, which is kept beside, and the spec where only the
/// status matters.
fn trimmed(kind: Kind, object: &Value) -> Option<Box<[u8]>> {
    let without: &[&str] = if kind.keep() == Keep::ManagedStatus { &["spec"] } else { &[] };
    let object = Without { members: object.as_object()?, without, inside: "metadata" };
    serde_json::to_vec(&object).ok().map(Vec::into_boxed_slice)
}

/// Writes an object without some members, and its metadata without versions and managed fields.
struct Without<'a> {
    members: &'a serde_json::Map<String, Value>,
    without: &'a [&'a str],
    inside: &'a str,
}

impl Serialize for Without<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.members.iter().filter(|(key, _)| !self.without.contains(&key.as_str())) {
            match value {
                Value::Object(members) if key == self.inside => {
                    let without = &["managedFields", "resourceVersion"];
                    map.serialize_entry(key, &Without { members, without, inside: "" })?;
                }
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

/// The caches of all kinds.
pub struct Caches {
    caches: Vec<Cache>,
}

impl Default for Caches {
    fn default() -> Self {
        Self { caches: Kind::ALL.into_iter().map(Cache::new).collect() }
    }
}

impl Caches {
    /// The cache of a kind.
    pub fn of(&self, kind: Kind) -> &Cache {
        // One cache a kind, in the order of the enum.
        &self.caches[kind.index()]
    }

    /// Kinds whose first list is not complete.
    pub fn unsynced(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.of(*kind).is_synced()).collect()
    }

    pub(crate) async fn wait_synced(&self) {
        for kind in Kind::ALL {
            self.of(kind).wait_synced().await;
        }
    }

    /// An object, typed.
    ///
    /// # Errors
    /// [`Error::Stalled`] when the cached object does not fit the type.
    pub fn get<K: Watched>(&self, key: &Key) -> Result<Option<K>, Error> {
        self.of(K::KIND).get(key).map(|entry| decode(&entry, K::KIND, key)).transpose()
    }
}

/// Decodes a cached object and puts the resource version back.
pub(crate) fn decode<K: Watched>(entry: &Entry, kind: Kind, key: &Key) -> Result<K, Error> {
    let mut object: K = entry.decode().map_err(|error| {
        Error::stalled("Undecodable", format!("{kind} {key} does not fit the type this version knows: {error}"))
    })?;
    object.meta_mut().resource_version = Some(entry.resource_version.clone());
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(version: &str, port: i32) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": version, "managedFields": [{"manager": "x"}],
            "labels": {"app.kubernetes.io/managed-by": "llmops"},
            "ownerReferences": [{"apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment", "name": "m", "uid": "o", "controller": true}],
        }, "spec": {"ports": [{"port": port}]}})
    }

    #[test]
    fn keeps_the_newest_version_and_reports_only_changes_of_content() {
        let cache = Cache::new(Kind::Service);
        let key = Key::new("n", "a");
        assert!(cache.put(&service("5", 1), false).is_some_and(|change| change.old.is_none()));
        assert!(cache.put(&service("4", 9), true).is_none(), "older");
        assert!(cache.put(&service("5", 1), true).is_none(), "echo of a write");
        assert!(cache.put(&service("6", 1), true).is_none(), "only the version moved");
        assert!(cache.put(&service("7", 2), true).is_some());
        assert_eq!(cache.owned(Kind::ModelDeployment, &Key::new("n", "m")).len(), 1);
        assert!(cache.remove(&key, Some("3"), true).is_none(), "a delete of an earlier object of that name");
        assert!(cache.remove(&key, Some("8"), true).is_some_and(|change| change.new.is_none()));
        assert!(cache.owned(Kind::ModelDeployment, &Key::new("n", "m")).is_empty());
    }

    #[test]
    fn an_answer_that_comes_after_the_end_of_its_object_leaves_nothing() {
        let cache = Cache::new(Kind::Service);
        let key = Key::new("n", "a");
        // Created by us as version 5 and deleted by somebody as version 6, before the answer to our write is here.
        cache.put(&service("5", 1), true);
        cache.remove(&key, Some("6"), true);
        assert!(cache.put(&service("5", 1), false).is_none());
        assert!(cache.get(&key).is_none());
        // Also when the watch showed nothing of it, because it began after the end.
        let mut other = service("9", 1);
        other["metadata"]["name"] = json!("b");
        cache.put(&other, true);
        assert!(cache.put(&service("8", 1), false).is_none());
        assert!(cache.put(&service("10", 1), false).is_some(), "what the watch has not reached counts");
    }

    #[test]
    fn a_list_removes_what_it_does_not_name_but_not_what_was_written_meanwhile() {
        let cache = Cache::new(Kind::Service);
        cache.put(&service("5", 1), true);
        cache.list_begins();
        let mut other = service("9", 1);
        other["metadata"]["name"] = json!("b");
        cache.put(&other, false);
        let gone = cache.list_ends();
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].key.name, "a");
        assert!(cache.get(&Key::new("n", "b")).is_some());
        assert!(cache.is_synced());
    }

    #[test]
    fn pods_belong_by_label_and_lose_their_spec() {
        let cache = Cache::new(Kind::Pod);
        cache.put(
            &json!({"metadata": {"name": "p", "namespace": "n", "resourceVersion": "1", "labels": {
                "app.kubernetes.io/managed-by": "llmops", "llmops.dev/component": "model", "llmops.dev/owner": "m"}},
                "spec": {"containers": []}, "status": {"phase": "Running"}}),
            true,
        );
        let owned = cache.owned(Kind::ModelDeployment, &Key::new("n", "m"));
        let value = owned[0].1.value().unwrap();
        assert_eq!(value["status"]["phase"], "Running");
        assert!(value.get("spec").is_none());
    }
}
