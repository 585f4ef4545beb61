//! One reconcile: `fetch → validate → build → apply → status`, the same for every kind.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::core::object::HasStatus as _;

use super::apply::{Applied, Desired, Parent, Removal, apply};
use super::cache::{Caches, Entry, decode};
use super::clock::Clock;
use super::contents::Contents;
use super::error::Error;
use super::events::{Note, transitions};
use super::kinds::{Key, Kind, Primary, Reference, Watched};
use super::status::{difference, is_empty_difference};
use super::writer::Writer;

/// A controller of one kind, as its stages. `validate`, `build` and `status` are pure: no client, no clock, no I/O.
pub trait Controller: Send + Sync + Sized + 'static {
    /// The kind that it reconciles.
    type Object: Primary;
    /// What `fetch` found: everything outside the object that decides what to do.
    type Fetched: Send + Sync;
    /// The object after its checks. Later stages take this and check nothing again.
    type Validated: Send + Sync;
    /// What `build` tells `status` besides the children.
    type Notes: Send + Sync;

    /// Name in logs and metrics, such as `modeldeployment`.
    const NAME: &'static str;
    /// Field manager of all writes, such as `llmops-modeldeployment`.
    const FIELD_MANAGER: &'static str;

    /// Reasons with which `Ready` is lost in the ordinary course of things: their event is no warning.
    const ORDINARY: &'static [&'static str] = &[];

    /// Objects of the namespace that the spec refers to. Their changes reconcile this object. What only `fetch` can find is read by
    /// [`Scope::follow`].
    fn references(object: &Self::Object) -> Vec<Reference>;

    /// Collects what decides: owned objects, referenced objects. Reads caches; no request in the ordinary case.
    fn fetch(
        &self,
        scope: &Scope<'_>,
        object: &Self::Object,
    ) -> impl Future<Output = Result<Self::Fetched, Error>> + Send;

    /// Checks the object, pure.
    ///
    /// # Errors
    /// [`Error::Stalled`] for the spec's own faults, [`Error::Waiting`] for references.
    fn validate(&self, object: &Self::Object, fetched: &Self::Fetched) -> Result<Self::Validated, Error>;

    /// Decides what should be, pure.
    ///
    /// # Errors
    /// As [`Self::validate`].
    fn build(
        &self,
        object: &Self::Object,
        fetched: &Self::Fetched,
        validated: &Self::Validated,
        now: jiff::Timestamp,
    ) -> Result<Plan<Self::Object, Self::Notes>, Error>;

    /// Says how the object stands, pure. Start from `view.previous` and change what is known: a field left alone
    /// stays. The result is written only when it differs.
    fn status(&self, view: &View<'_, Self>) -> Verdict<Self::Object>;
}

/// What a build wants done.
#[derive(Debug)]
pub struct Plan<K: Primary, N> {
    /// A status to be written before anything else, when a crash between two writes must find what was about to be
    /// done: set it before anything that serves is taken down.
    pub record: Option<K::State>,
    /// Owned objects, in the order in which they are applied.
    pub desired: Vec<Desired>,
    /// Owned objects to delete after that. What is neither desired nor named here is left alone.
    pub removals: Vec<Removal>,
    /// What `status` needs to know.
    pub notes: N,
}

/// How far a reconcile came.
pub enum Stage<'a, C: Controller> {
    /// The spec asks for a pause: nothing was looked at.
    Suspended,
    /// A stage failed. What came before it is there.
    Failed {
        /// Present when `fetch` succeeded.
        fetched: Option<&'a C::Fetched>,
        /// Present when `validate` succeeded.
        validated: Option<&'a C::Validated>,
        /// Why.
        error: &'a Error,
    },
    /// Everything is applied.
    Done {
        /// From `fetch`.
        fetched: &'a C::Fetched,
        /// From `validate`.
        validated: &'a C::Validated,
        /// From `build`.
        plan: &'a Plan<C::Object, C::Notes>,
        /// The children as they are now.
        applied: &'a Applied,
    },
}

/// What `status` sees.
pub struct View<'a, C: Controller> {
    /// The object.
    pub object: &'a C::Object,
    /// Its status before this reconcile, or after `plan.record`.
    pub previous: &'a <C::Object as Primary>::State,
    /// How far it came.
    pub stage: Stage<'a, C>,
    /// The time now.
    pub now: jiff::Timestamp,
}

/// What `status` says.
#[derive(Debug)]
pub struct Verdict<K: Primary> {
    /// The whole new status.
    pub status: K::State,
    /// Look again after this time, when only time brings the next change (a timeout, a poll). Changes of watched
    /// objects need no such look. The safety resync comes anyway.
    pub again: Option<Duration>,
    /// Events besides those that the conditions' transitions make: a new revision serves, a revision is rejected.
    pub events: Vec<Note>,
}

impl<K: Primary> Verdict<K> {
    /// This status, and nothing else.
    pub fn new(status: K::State) -> Self {
        Self { status, again: None, events: Vec::new() }
    }
}

/// What every controller of the process shares.
pub struct Shared {
    /// Client of the API server.
    pub client: Client,
    /// The watch caches.
    pub caches: Arc<Caches>,
    /// Contents of referenced ConfigMaps and Secrets.
    pub contents: Contents,
    /// The way to write.
    pub writer: Writer,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Name of this process in events and the Lease.
    pub instance: String,
}

/// What `fetch` reads from: caches, seen from one object.
pub struct Scope<'a> {
    shared: &'a Shared,
    parent: &'a Parent,
    followed: Mutex<Vec<Followed>>,
}

/// An object that was looked up, and the version that was seen.
pub(crate) type Followed = (Reference, Option<String>);

impl<'a> Scope<'a> {
    /// The time now.
    pub fn now(&self) -> jiff::Timestamp {
        self.shared.clock.now()
    }

    /// An object of the namespace.
    ///
    /// # Errors
    /// When it does not fit its type.
    pub fn get<K: Watched>(&self, name: &str) -> Result<Option<K>, Error> {
        self.shared.caches.get(&self.key(name))
    }

    /// An object that decides without being named by the spec, such as what a referenced object refers to: until the next reconcile, its
    /// changes reconcile this object too.
    ///
    /// # Errors
    /// When it does not fit its type.
    pub fn follow<K: Watched>(&self, name: &str) -> Result<Option<K>, Error> {
        let key = self.key(name);
        let entry = self.shared.caches.of(K::KIND).get(&key);
        let version = entry.as_ref().map(|entry| entry.resource_version.clone());
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).push((Reference::new(K::KIND, name), version));
        entry.map(|entry| decode(&entry, K::KIND, &key)).transpose()
    }

    /// Whether the namespace has an object of this kind and name (for owned kinds: one with our label).
    pub fn exists(&self, kind: Kind, name: &str) -> bool {
        self.shared.caches.of(kind).get(&self.key(name)).is_some()
    }

    /// Owned objects of a kind, by name; pods are those whose labels name this object.
    ///
    /// # Errors
    /// When one does not fit its type.
    pub fn children<K: Watched>(&self) -> Result<Vec<K>, Error> {
        let owned = self.shared.caches.of(K::KIND).owned(self.parent.kind, &self.parent.key);
        owned
            .iter()
            .filter(|(_, entry)| self.is_ours(entry))
            .map(|(name, entry)| decode(entry, K::KIND, &self.key(name)))
            .collect()
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        let uid = entry.owner.as_ref().and_then(|owner| owner.uid.as_deref());
        uid.is_none_or(|uid| uid == self.parent.uid)
    }

    /// A ConfigMap of the namespace with its content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.shared.contents.config_map(&self.shared.client, &self.shared.caches, &self.key(name)).await
    }

    /// A Secret of the namespace with its content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, Error> {
        self.shared.contents.secret(&self.shared.client, &self.shared.caches, &self.key(name)).await
    }

    fn key(&self, name: &str) -> Key {
        Key::new(self.parent.key.namespace.as_str(), name)
    }
}

/// When to look again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Next {
    /// After this time, by the status stage's wish.
    pub(crate) again: Option<Duration>,
    /// An object that the reconcile waits for besides the spec's references.
    pub(crate) waiting_on: Option<Reference>,
    /// What decided without being named by the spec.
    pub(crate) followed: Vec<Followed>,
}

/// Failures in a row after which a transient error shows in the status.
const SHOW_TRANSIENT_AFTER: u32 = 4;

/// Runs the pipeline on an object. `failures` counts the failures in a row before this run.
///
/// # Errors
/// What the stages or the writes fail with; the status then says it already, unless it may go away by itself.
pub(crate) async fn reconcile<C: Controller>(
    controller: &C,
    shared: &Shared,
    key: &Key,
    failures: u32,
) -> (Next, Result<(), Error>) {
    let kind = C::Object::KIND;
    let Some(entry) = shared.caches.of(kind).get(key) else { return (Next::default(), Ok(())) };
    if entry.deleting {
        // Owned objects go by their owner references.
        return (Next::default(), Ok(()));
    }
    let object: C::Object = match decode(&entry, kind, key) {
        Ok(object) => object,
        Err(error) => return (Next::default(), Err(error)),
    };
    let parent = Parent {
        kind,
        key: key.clone(),
        uid: entry.uid.clone(),
        manager: C::FIELD_MANAGER,
        is_known: object.status().is_some(),
    };
    let mut run = Run { controller, shared, parent: &parent, entry, previous: object.status().cloned() };
    if object.suspended() {
        let written = run.conclude(&object, Stage::Suspended).await;
        return match written {
            Ok(again) => (Next { again, ..Next::default() }, Ok(())),
            Err(error) => (Next::default(), Err(error)),
        };
    }
    let scope = Scope { shared, parent: &parent, followed: Mutex::default() };
    let (next, result) = run.stages(&scope, &object, failures).await;
    let followed = scope.followed.into_inner().unwrap_or_else(PoisonError::into_inner);
    (Next { followed, ..next }, result)
}

struct Run<'a, C: Controller> {
    controller: &'a C,
    shared: &'a Shared,
    parent: &'a Parent,
    entry: Arc<Entry>,
    previous: Option<<C::Object as Primary>::State>,
}

impl<C: Controller> Run<'_, C> {
    async fn stages(&mut self, scope: &Scope<'_>, object: &C::Object, failures: u32) -> (Next, Result<(), Error>) {
        let fetched = match self.controller.fetch(scope, object).await {
            Ok(fetched) => fetched,
            Err(error) => return self.fail(object, None, None, error, failures).await,
        };
        let validated = match self.controller.validate(object, &fetched) {
            Ok(validated) => validated,
            Err(error) => return self.fail(object, Some(&fetched), None, error, failures).await,
        };
        let now = self.shared.clock.now();
        let plan = match self.controller.build(object, &fetched, &validated, now) {
            Ok(plan) => plan,
            Err(error) => return self.fail(object, Some(&fetched), Some(&validated), error, failures).await,
        };
        if let Some(record) = &plan.record
            && let Err(error) = self.write_status(record).await
        {
            return (Next::default(), Err(error));
        }
        let applied = apply(&self.shared.writer, &self.shared.caches, self.parent, &plan.desired, &plan.removals).await;
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => return self.fail(object, Some(&fetched), Some(&validated), error, failures).await,
        };
        for (kind, name) in &applied.written {
            tracing::info!(kind = %self.parent.kind, namespace = %self.parent.key.namespace, name = %self.parent.key.name, child = %kind, child_name = %name, "applied");
        }
        for (kind, name) in &applied.removed {
            tracing::info!(kind = %self.parent.kind, namespace = %self.parent.key.namespace, name = %self.parent.key.name, child = %kind, child_name = %name, "deleted");
        }
        let stage = Stage::Done { fetched: &fetched, validated: &validated, plan: &plan, applied: &applied };
        match self.conclude(object, stage).await {
            Ok(again) => (Next { again, ..Next::default() }, Ok(())),
            Err(error) => (Next::default(), Err(error)),
        }
    }

    async fn fail(
        &mut self,
        object: &C::Object,
        fetched: Option<&C::Fetched>,
        validated: Option<&C::Validated>,
        error: Error,
        failures: u32,
    ) -> (Next, Result<(), Error>) {
        let shown = match &error {
            Error::Waiting { .. } | Error::Stalled { .. } => true,
            Error::Transient { .. } => failures + 1 >= SHOW_TRANSIENT_AFTER,
            Error::Conflict(_) | Error::NotLeader => false,
        };
        let mut next = Next::default();
        if let Error::Waiting { on, .. } = &error {
            next.waiting_on = Some(on.clone());
        }
        if shown {
            match self.conclude(object, Stage::Failed { fetched, validated, error: &error }).await {
                Ok(again) => next.again = again,
                // The status could not be written: that comes first, the rest is found again.
                Err(write_error) => return (next, Err(write_error)),
            }
        }
        (next, Err(error))
    }

    /// The status stage: computed purely, written only when it differs.
    async fn conclude(&mut self, object: &C::Object, stage: Stage<'_, C>) -> Result<Option<Duration>, Error> {
        let previous = self.previous.clone().unwrap_or_default();
        let now = self.shared.clock.now();
        let verdict = self.controller.status(&View { object, previous: &previous, stage, now });
        let mut notes =
            transitions(C::Object::conditions(&previous), C::Object::conditions(&verdict.status), C::ORDINARY);
        notes.extend(verdict.events);
        if self.write_status(&verdict.status).await? {
            for note in &notes {
                self.shared.writer.event(self.parent, note, now, &self.shared.instance).await;
            }
        }
        Ok(verdict.again)
    }

    async fn write_status(&mut self, status: &<C::Object as Primary>::State) -> Result<bool, Error> {
        let difference = difference(self.previous.as_ref(), status)
            .map_err(|error| Error::stalled("Unrenderable", format!("the status cannot be written: {error}")))?;
        if is_empty_difference(&difference) {
            return Ok(false);
        }
        self.entry = self
            .shared
            .writer
            .status(self.parent.kind, &self.parent.key, C::FIELD_MANAGER, &self.entry.resource_version, &difference)
            .await?;
        self.previous = Some(status.clone());
        Ok(true)
    }
}
