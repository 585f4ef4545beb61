//! A Kubernetes API server in memory, in virtual time.
//!
//! It answers what `kube` asks: create, get, list, watch, update, patch (server-side apply, merge, strategic, JSON),
//! delete and deletecollection, with status apart. Its behaviour was compared with a real API server; the facts are in
//! `real_facts.rs`. Known differences: managed fields of updates hold no entry for the maps and lists themselves; a
//! continued list reads the newest state; there is no authentication, no quota, no conversion between versions.

pub mod admission;
pub mod clock;
pub mod defaults;
pub mod error;
pub mod fields;
pub mod kinds;
pub mod managed;
pub mod merge;
pub mod read;
pub mod route;
pub mod schema;
pub mod selector;
pub mod service;
pub mod session;
pub mod shape;
pub mod store;
pub mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use clock::Clock;
use error::ApiError;
use kinds::Catalog;
use store::{Key, Store};
use write::{Outcome, Write};

/// What was asked and what came of it, for one request that could change something.
#[derive(Clone, Debug)]
pub struct WriteRecord {
    /// Virtual time since the start, in milliseconds.
    pub at: u128,
    /// Who wrote: the name of the session.
    pub session: String,
    /// `create`, `update`, `patch`, `apply`, `delete`.
    pub verb: &'static str,
    /// Which object.
    pub key: Key,
    /// `status`, if that was written.
    pub subresource: Option<String>,
    /// Whether the store changed.
    pub changed: bool,
    /// HTTP code of the answer.
    pub code: u16,
    /// What was sent.
    pub body: Value,
    /// Version of the store after it.
    pub version: u64,
}

impl std::fmt::Display for WriteRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = self.subresource.as_deref().map(|name| format!("/{name}")).unwrap_or_default();
        let effect = if self.changed { "" } else { " (no change)" };
        write!(f, "{:>9} ms  {}  {} {}{part} {}{effect}", self.at, self.session, self.verb, self.key, self.code)
    }
}

/// The state behind the lock.
pub struct Inner {
    /// The kinds.
    pub catalog: &'static Catalog,
    /// The objects.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// Every request that could change something.
    pub writes: Vec<WriteRecord>,
    /// Requests to write that failed by a fault, with their times in milliseconds.
    pub failed: Vec<(u128, String)>,
    /// What else happened, and when, for the timeline.
    pub notes: Vec<(u128, String)>,
    /// Requests that read, by verb: `get`, `list`, `watch`.
    pub reads: Vec<(String, &'static str, String)>,
    /// What a real server would warn about or this one cannot do. A test fails when there is something.
    pub warnings: Vec<String>,
    /// Random decisions: latencies, order.
    pub rng: fastrand::Rng,
    changes: Bells,
}

impl Inner {
    /// Tells watches that there is something new of a resource.
    pub fn announce(&self, resource: &str) {
        self.changes.ring(resource);
    }
}

/// Tells listeners of a resource that it changed, in the order in which they began to listen: a watch channel would wake
/// them in a random one.
#[derive(Clone, Default)]
struct Bells(Arc<Mutex<BTreeMap<String, broadcast::Sender<()>>>>);

/// The bell that rings for everything but Leases and events, which make nobody of the cluster do anything.
const WORK: &str = "";

impl Bells {
    fn of(&self, resource: &str) -> broadcast::Sender<()> {
        let mut bells = self.0.lock().expect("no panic with the lock held");
        bells.entry(resource.to_owned()).or_insert_with(|| broadcast::Sender::new(1)).clone()
    }

    fn ring(&self, resource: &str) {
        // Without a listener there is nobody to tell.
        let _ = self.of(resource).send(());
        if !resource.starts_with("leases.") && !resource.starts_with("events.") {
            let _ = self.of(WORK).send(());
        }
    }
}

/// The server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Mutex<Inner>>,
    changes: Bells,
}

impl ApiServer {
    /// A server with the namespace `default`.
    pub fn new(seed: u64) -> Self {
        let changes = Bells::default();
        let inner = Inner {
            catalog: Catalog::get(),
            store: Store::new(),
            clock: Clock::new(),
            writes: Vec::new(),
            failed: Vec::new(),
            notes: Vec::new(),
            reads: Vec::new(),
            warnings: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            changes: changes.clone(),
        };
        let server = Self { inner: Arc::new(Mutex::new(inner)), changes };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        server.create("cluster", &namespace).expect("the default namespace");
        server
    }

    /// The state.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics with the lock held")
    }

    /// Tells from now on that there is something new for the cluster's controllers.
    pub fn changes(&self) -> broadcast::Receiver<()> {
        self.changes_of(WORK)
    }

    /// Tells from now on that there is something new of a resource.
    pub fn changes_of(&self, resource: &str) -> broadcast::Receiver<()> {
        self.changes.of(resource).subscribe()
    }

    /// Virtual time since the start, in milliseconds.
    pub fn now_ms(&self) -> u128 {
        self.lock().clock.elapsed().as_millis()
    }

    /// An object, by kind and name.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let inner = self.lock();
        let resource = inner.catalog.by_name(kind)?.resource();
        inner.store.get(&Key { resource, namespace: namespace.to_owned(), name: name.to_owned() }).cloned()
    }

    /// Objects of a kind in all namespaces.
    pub fn list(&self, kind: &str) -> Vec<Arc<Value>> {
        let inner = self.lock();
        let Some(kind) = inner.catalog.by_name(kind) else { return Vec::new() };
        inner.store.list(&kind.resource(), "").map(|(_, object)| object.clone()).collect()
    }

    /// Creates an object, past the network.
    pub fn create(&self, actor: &'static str, object: &Value) -> Result<Outcome, ApiError> {
        self.direct(actor, "create", object, None, |inner, write, _| inner.create(write, object.clone()))
    }

    /// Applies an object as `kubectl apply --server-side` does, past the network.
    pub fn apply(&self, actor: &'static str, object: &Value) -> Result<Outcome, ApiError> {
        self.direct(actor, "apply", object, None, |inner, write, _| {
            inner.patch(write, "application/apply-patch+yaml", object.clone(), false)
        })
    }

    /// Changes the newest version of an object or its status, past the network. Does nothing when it is gone.
    pub fn change(
        &self,
        actor: &'static str,
        object: &Value,
        subresource: Option<&str>,
        change: impl FnOnce(&mut Value),
    ) {
        let changed = self.direct(actor, "update", object, subresource, |inner, write, key| {
            let old = inner.store.get(key).ok_or_else(|| ApiError::not_found("object", &key.name))?.clone();
            let mut new = old.as_ref().clone();
            change(&mut new);
            if new == *old {
                return Ok(Outcome { object: old, changed: false, created: false, removed: false });
            }
            inner.update(write, new)
        });
        if let Err(error) = changed
            && error.code != 404
        {
            panic!("{actor} cannot change {}: {}", object["metadata"]["name"], error.message);
        }
    }

    /// Stores what no admission would let in, as an older version of the schema did.
    pub fn tamper(&self, object: &Value, change: impl FnOnce(&mut Value)) {
        let mut inner = self.lock();
        let kind = inner.catalog.by_name(object["kind"].as_str().unwrap_or_default()).expect("a known kind");
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key { resource: kind.resource(), namespace: text("namespace"), name: text("name") };
        let mut new = object.clone();
        change(&mut new);
        inner.store.commit(&key, Some(new));
        inner.announce(&key.resource);
    }

    /// Deletes an object, past the network.
    pub fn delete(&self, actor: &'static str, object: &Value, options: &Value) {
        let _ = self.direct(actor, "delete", object, None, |inner, write, _| inner.delete(write, options));
    }

    fn direct(
        &self,
        actor: &'static str,
        verb: &'static str,
        object: &Value,
        subresource: Option<&str>,
        act: impl FnOnce(&mut Inner, &Write<'_>, &Key) -> Result<Outcome, ApiError>,
    ) -> Result<Outcome, ApiError> {
        let mut inner = self.lock();
        let name = object["kind"].as_str().unwrap_or_default();
        let kind = inner.catalog.by_name(name).unwrap_or_else(|| panic!("unknown kind {name}"));
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key { resource: kind.resource(), namespace: text("namespace"), name: text("name") };
        let write = Write { kind: &kind, key: &key, subresource, manager: actor, dry_run: false, trusted: true };
        let result = act(&mut inner, &write, &key);
        let (changed, code) = match &result {
            Ok(outcome) => (outcome.changed, 200),
            Err(error) => (false, error.code),
        };
        let record = WriteRecord {
            at: inner.clock.elapsed().as_millis(),
            session: actor.to_owned(),
            verb,
            key,
            subresource: subresource.map(str::to_owned),
            changed,
            code,
            body: Value::Null,
            version: inner.store.version(),
        };
        // The cluster's controllers look at everything each time: only what they change is worth a line.
        if changed || code >= 400 {
            inner.writes.push(record);
        }
        result
    }
}
