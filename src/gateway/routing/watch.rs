//! Fills the routes from watches. A watch that fails is tried again, ever more slowly; what it held stays in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch as signal};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::build::{Objects, build};
use super::{Routes, Snapshot};
use crate::api::names::{COMPONENT_FLOW, LABEL_API_KEY, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use crate::gateway::metrics::Metrics;

/// Changes within this time make one snapshot.
const SETTLE: Duration = Duration::from_millis(10);
/// First and longest pause after a failure of a watch.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What a watch holds.
#[derive(Debug)]
struct Held<K> {
    objects: BTreeMap<(String, String), Arc<K>>,
    undecodable: BTreeMap<(String, String), String>,
    synced: bool,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), undecodable: BTreeMap::new(), synced: false }
    }
}

type Shared<K> = Arc<Mutex<Held<K>>>;

struct Watches {
    client: Client,
    changed: Arc<Notify>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

/// Watches everything and keeps the routes up to date, until dropped. `synced` turns true once all watches have listed.
pub async fn watch(
    client: Client,
    own_namespace: String,
    routes: Arc<Routes>,
    metrics: Arc<Metrics>,
    synced: signal::Sender<bool>,
) {
    let changed = Arc::new(Notify::new());
    let watches = Watches { client, changed: Arc::clone(&changed), metrics, tasks: TaskTracker::new() };
    let labelled = |selector: &str| watcher::Config::default().labels(selector);
    let ours = labelled(&format!("{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_COMPONENT}"));
    let (flows, _flows) = watches.start::<PromptFlow>("promptflows", watcher::Config::default());
    let (models, _models) = watches.start::<ModelDeployment>("modeldeployments", watcher::Config::default());
    let (indexes, _indexes) = watches.start::<RagIndex>("ragindexes", watcher::Config::default());
    let (evaluations, _evaluations) = watches.start::<Evaluation>("evaluations", watcher::Config::default());
    let (revisions, _revisions) = watches.start::<ControllerRevision>(
        "controllerrevisions",
        labelled(&format!("{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_COMPONENT}={COMPONENT_FLOW}")),
    );
    let (pods, _pods) = watches.start::<Pod>("pods", ours);
    let (keys, _keys) = watches.start::<Secret>("secrets", labelled(LABEL_API_KEY));
    // Only Secrets that a provider names are held, one watch each: the gateway has no use for any other.
    let mut credentials: BTreeMap<(String, String), (Shared<Secret>, AbortOnDropHandle<()>)> = BTreeMap::new();
    let mut known_problems = BTreeMap::new();
    loop {
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        let mut objects = Objects::default();
        let mut complete = true;
        take(&flows, "PromptFlow", &mut objects.flows, &mut objects.undecodable, &mut complete);
        take(&models, "ModelDeployment", &mut objects.models, &mut objects.undecodable, &mut complete);
        take(&indexes, "RagIndex", &mut objects.indexes, &mut objects.undecodable, &mut complete);
        // Evaluations are only shown: serving does not wait for them.
        take(&evaluations, "Evaluation", &mut objects.evaluations, &mut objects.undecodable, &mut true);
        take(&revisions, "ControllerRevision", &mut objects.revisions, &mut objects.undecodable, &mut complete);
        take(&pods, "Pod", &mut objects.pods, &mut objects.undecodable, &mut complete);
        take(&keys, "Secret", &mut objects.keys, &mut objects.undecodable, &mut complete);
        let wanted = credential_names(&objects.models);
        credentials.retain(|secret, _| wanted.contains(secret));
        for (namespace, name) in wanted {
            let at = (namespace.clone(), name.clone());
            credentials.entry(at).or_insert_with(|| watches.start_one(&namespace, &name));
        }
        for (secret, _) in credentials.values() {
            take(secret, "Secret", &mut objects.credentials, &mut objects.undecodable, &mut complete);
        }
        // Until everything was listed once, a snapshot would show gaps that are none. Later a watch that starts anew
        // keeps what it held until it has listed again.
        if !complete && !*synced.borrow() {
            continue;
        }
        let snapshot = build(&objects, &own_namespace, &routes.load());
        report(&snapshot, &mut known_problems, &watches.metrics);
        routes.store(snapshot);
        if !synced.send_replace(true) {
            tracing::info!(
                flows = objects.flows.len(),
                models = objects.models.len(),
                indexes = objects.indexes.len(),
                "synced"
            );
        }
    }
}

/// Logs problems once, when they appear or change.
fn report(snapshot: &Snapshot, known: &mut BTreeMap<String, String>, metrics: &Metrics) {
    metrics.unreadable(snapshot.problems.len());
    for (object, cause) in &snapshot.problems {
        if known.get(object) != Some(cause) {
            tracing::warn!(%object, %cause, "object cannot be read; others are served");
        }
    }
    known.clone_from(&snapshot.problems);
}

fn credential_names(models: &[Arc<ModelDeployment>]) -> BTreeSet<(String, String)> {
    let named = models.iter().filter_map(|model| {
        let secret = model.spec.external.as_ref()?.credentials_ref.as_ref()?;
        Some((model.namespace()?, secret.name.clone()))
    });
    named.collect()
}

fn take<K>(
    held: &Shared<K>,
    kind: &str,
    objects: &mut Vec<Arc<K>>,
    undecodable: &mut BTreeMap<String, String>,
    complete: &mut bool,
) {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
    *complete &= held.synced;
    objects.extend(held.objects.values().map(Arc::clone));
    for ((namespace, name), cause) in &held.undecodable {
        undecodable.insert(format!("{kind} {namespace}/{name}"), cause.clone());
    }
}

impl Watches {
    fn start<K>(&self, resource: &'static str, config: watcher::Config) -> (Shared<K>, AbortOnDropHandle<()>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.follow(resource, Api::all(self.client.clone()), config)
    }

    fn start_one(&self, namespace: &str, name: &str) -> (Shared<Secret>, AbortOnDropHandle<()>) {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.follow("secrets", api, watcher::Config::default().fields(&format!("metadata.name={name}")))
    }

    fn follow<K>(
        &self,
        resource: &'static str,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
    ) -> (Shared<K>, AbortOnDropHandle<()>)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let held = Shared::<K>::default();
        let (changed, metrics) = (Arc::clone(&self.changed), Arc::clone(&self.metrics));
        let task = {
            let held = Arc::clone(&held);
            self.tasks.spawn(async move {
                let mut stream = pin!(watcher(api, config));
                let mut pause = PAUSE;
                let mut listing = Held::default();
                while let Some(event) = stream.next().await {
                    match event {
                        Ok(event) => {
                            pause = PAUSE;
                            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                            if apply(event, &mut held, &mut listing) {
                                changed.notify_one();
                            }
                        }
                        Err(error) => {
                            metrics.watch_error(resource);
                            tracing::warn!(resource, %error, "watch failed; what it held stays in use");
                            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                            pause = (pause * 2).min(LONGEST_PAUSE);
                        }
                    }
                }
            })
        };
        (held, AbortOnDropHandle::new(task))
    }
}

/// Applies an event; true when what is held has changed.
fn apply<K: Resource<DynamicType = ()>>(
    event: Event<DeserializeGuard<K>>,
    held: &mut Held<K>,
    listing: &mut Held<K>,
) -> bool {
    match event {
        Event::Init => {
            *listing = Held::default();
            false
        }
        Event::InitApply(object) => {
            put(object, listing);
            false
        }
        Event::InitDone => {
            *held = std::mem::take(listing);
            held.synced = true;
            true
        }
        Event::Apply(object) => {
            put(object, held);
            true
        }
        Event::Delete(object) => {
            let at = identity(meta(&object));
            held.undecodable.remove(&at);
            held.objects.remove(&at);
            true
        }
    }
}

/// Keeps an object. One that cannot be decoded any more leaves the last good version in use.
fn put<K: Resource<DynamicType = ()>>(object: DeserializeGuard<K>, held: &mut Held<K>) {
    let at = identity(meta(&object));
    match object.0 {
        Ok(object) => {
            held.undecodable.remove(&at);
            held.objects.insert(at, Arc::new(object));
        }
        Err(error) => {
            held.undecodable.insert(at, error.error);
        }
    }
}

fn meta<K: Resource<DynamicType = ()>>(object: &DeserializeGuard<K>) -> &ObjectMeta {
    match &object.0 {
        Ok(object) => object.meta(),
        Err(invalid) => &invalid.metadata,
    }
}

fn identity(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(name: &str, broken: bool) -> DeserializeGuard<Secret> {
        let data = if broken { json!(7) } else { json!({}) };
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": name}, "data": data})).unwrap()
    }

    fn names(held: &Held<Secret>) -> Vec<&str> {
        held.objects.keys().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn a_watch_that_starts_anew_keeps_what_it_held_until_it_has_listed() {
        let (mut held, mut listing) = (Held::default(), Held::default());
        let mut feed = |event| apply(event, &mut held, &mut listing).then(|| names(&held).join(","));
        assert_eq!(feed(Event::Init), None);
        assert_eq!(feed(Event::InitApply(secret("one", false))), None);
        assert_eq!(feed(Event::InitDone).as_deref(), Some("one"));
        assert_eq!(feed(Event::Apply(secret("two", false))).as_deref(), Some("one,two"));
        assert_eq!(feed(Event::Init), None);
        assert_eq!(feed(Event::InitApply(secret("three", false))), None);
        assert_eq!(feed(Event::InitDone).as_deref(), Some("three"));
        assert_eq!(feed(Event::Delete(secret("three", false))).as_deref(), Some(""));
        assert!(held.synced);
    }

    #[test]
    fn an_object_that_cannot_be_decoded_leaves_its_last_version_and_all_others_in_use() {
        let (mut held, mut listing) = (Held::default(), Held::default());
        for object in [secret("one", false), secret("two", false), secret("one", true)] {
            apply(Event::Apply(object), &mut held, &mut listing);
        }
        assert_eq!(names(&held), ["one", "two"]);
        assert_eq!(held.undecodable.len(), 1);
        apply(Event::Apply(secret("one", false)), &mut held, &mut listing);
        assert!(held.undecodable.is_empty());
    }
}
