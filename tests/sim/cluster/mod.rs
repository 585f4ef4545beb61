//! The rest of the cluster: what Kubernetes' own controllers and the nodes make of the stored objects.
//!
//! Each part looks at everything that is stored and writes what follows, again and again; it is thin where nothing
//! of ours can tell. All act through the API server's store, as themselves, so that the log shows who did what.

pub mod collector;
pub mod containers;
pub mod deployments;
pub mod jobs;

pub mod pods;
pub mod volumes;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::apiserver::ApiServer;
use pods::{Behaviour, Pods};

/// The cluster's own controllers.
pub struct Cluster {
    server: ApiServer,
    pods: Pods,
    deployments: deployments::Memory,
    /// What the Deployment controller last saw, and when something is due by itself.
    rolled: (u64, usize, Option<Instant>),
    jobs: jobs::Memory,
    /// What the garbage collector last saw.
    collected: Option<u64>,
}

impl Cluster {
    /// Starts the cluster's controllers.
    pub fn start(server: &ApiServer, behaviour: Arc<Mutex<Behaviour>>) {
        let cluster = Self {
            server: server.clone(),
            pods: Pods::new(behaviour),
            deployments: deployments::Memory::default(),
            rolled: (0, 0, None),
            jobs: jobs::Memory::default(),
            collected: None,
        };
        tokio::spawn(cluster.run());
    }

    async fn run(mut self) {
        loop {
            let mut changes = self.server.changes();
            let next = self.step();
            tokio::select! {
                biased;
                // Late or not, something is new.
                _ = changes.recv() => {}
                () = wait(next) => {}
            }
            let pause = self.server.lock().rng.u64(1..12);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Does what is due. Gives the time at which something will be due by itself.
    fn step(&mut self) -> Option<Instant> {
        let structure = self.server.lock().store.structure();
        if self.collected != Some(structure) {
            collector::step(&self.server);
            self.collected = Some(structure);
        }
        volumes::step(&self.server);
        let (version, count) = self.workloads();
        let (seen, known, due) = self.rolled;
        if (seen, known) != (version, count) || due.is_some_and(|due| Instant::now() >= due) {
            self.rolled = (version, count, deployments::step(&self.server, &mut self.deployments));
        }
        let deployments = self.rolled.2;
        let jobs = jobs::step(&self.server, &mut self.jobs);
        let pods = self.pods.step(&self.server);
        [deployments, jobs, pods].into_iter().flatten().min()
    }
}

impl Cluster {
    /// Newest version and number of the objects on which the Deployment controller works.
    fn workloads(&self) -> (u64, usize) {
        let inner = self.server.lock();
        let all =
            ["deployments.apps", "replicasets.apps", "pods"].into_iter().flat_map(|kind| inner.store.list(kind, ""));
        let versions = all.map(|(_, object)| text(object, "/metadata/resourceVersion").parse().unwrap_or(0));
        versions.fold((0, 0), |(newest, count), version: u64| (newest.max(version), count + 1))
    }
}

async fn wait(next: Option<Instant>) {
    match next {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Text at a path; empty when there is none.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Number at a path; 0 when there is none.
pub fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or_default()
}

/// Whether the object is being deleted.
pub fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// Objects of a kind that this object controls.
pub fn controlled(server: &ApiServer, kind: &str, owner: &Value) -> Vec<Arc<Value>> {
    let uid = owner["metadata"]["uid"].as_str();
    let mut all = server.list(kind);
    all.retain(|object| uid.is_some() && controller(object) == uid);
    all
}

/// The uid of an object's controller.
pub fn controller(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}

/// The owner reference of what this object controls.
pub fn owned_by(owner: &Value) -> Value {
    json!([{
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// A pod from a template.
pub fn pod_of(owner: &Value, name: &str, template: &Value) -> Value {
    let mut metadata = template["metadata"].clone();
    metadata["name"] = json!(name);
    metadata["namespace"] = owner["metadata"]["namespace"].clone();
    metadata["generateName"] = json!(format!("{}-", text(owner, "/metadata/name")));
    metadata["ownerReferences"] = owned_by(owner);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// A suffix of a generated name.
pub fn suffix(server: &ApiServer) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut inner = server.lock();
    (0..5).map(|_| char::from(LETTERS[inner.rng.usize(..LETTERS.len())])).collect()
}

/// Sets a condition in a status; its transition time moves with its status.
pub fn condition(status: &mut Value, kind: &str, value: bool, reason: &str, message: &str, now: &str) {
    let value = if value { "True" } else { "False" };
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(all) = status["conditions"].as_array_mut() else { return };
    let since = all
        .iter()
        .find(|old| old["type"] == kind && old["status"] == value)
        .map_or_else(|| json!(now), |old| old["lastTransitionTime"].clone());
    let new = json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since});
    match all.iter_mut().find(|old| old["type"] == kind) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

/// Whether a condition is `True`.
pub fn holds(object: &Value, kind: &str) -> bool {
    let all = object.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == "True")
}
