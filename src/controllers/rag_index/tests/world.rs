//! A small world for the pure stages: objects as JSON, a clock, and a node that does what a test says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::super::{Fetched, RagIndexes};
use crate::api::rag_index::RagIndexStatus;
use crate::api::{RagIndex, conditions, names};
use crate::controllers::apply::Applied;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::{Controller, Stage, View};

pub(super) struct World {
    pub(super) spec: Value,
    pub(super) requested: Option<String>,
    /// What a person asks for by `llmops promote` and the like.
    pub(super) asked: Option<String>,
    pub(super) evaluations: BTreeMap<String, Value>,
    pub(super) status: Option<RagIndexStatus>,
    pub(super) generation: i64,
    pub(super) config_maps: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) model: Option<Value>,
    pub(super) objects: BTreeMap<(Kind, String), Value>,
    pub(super) pods: Vec<Value>,
    pub(super) now: i64,
    pub(super) writes: Vec<String>,
    /// Writes until the controller dies.
    pub(super) fuse: Option<usize>,
    pub(super) image: String,
}

impl World {
    pub(super) fn new() -> Self {
        let docs = BTreeMap::from([("a.md".to_owned(), "# A\ntext".to_owned())]);
        let golden = BTreeMap::from([("q.jsonl".to_owned(), "{}".to_owned())]);
        Self {
            spec: json!({
                "sources": [{"name": "docs", "configMap": {"name": "docs"}, "tags": {"team": "a"}}],
                "gates": {
                    "golden": {"configMapRef": {"name": "golden", "key": "q.jsonl"}},
                    "metrics": [{"name": "recall", "k": 5, "min": "0.8"}],
                },
            }),
            requested: None,
            asked: None,
            evaluations: BTreeMap::new(),
            status: None,
            generation: 1,
            config_maps: BTreeMap::from([("docs".to_owned(), docs), ("golden".to_owned(), golden)]),
            model: None,
            objects: BTreeMap::new(),
            pods: Vec::new(),
            now: 1_000,
            writes: Vec::new(),
            fuse: None,
            image: "llmops:dev".to_owned(),
        }
    }

    pub(super) fn object(&self) -> RagIndex {
        let annotations =
            [(names::ANNOTATION_RECONCILE, self.requested.as_ref()), (names::ANNOTATION_ROLLOUT, self.asked.as_ref())];
        let annotations: BTreeMap<&str, &String> =
            annotations.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        serde_json::from_value(json!({
            "apiVersion": "llmops.dev/v1alpha1", "kind": "RagIndex",
            "metadata": {"name": "handbook", "namespace": "team-a", "uid": "u", "generation": self.generation, "annotations": annotations},
            "spec": self.spec, "status": self.status,
        }))
        .unwrap()
    }

    pub(super) fn of<K: serde::de::DeserializeOwned>(&self, kind: Kind) -> Vec<K> {
        let found = self.objects.iter().filter(|((of, _), _)| *of == kind);
        found.map(|(_, value)| serde_json::from_value(value.clone()).unwrap()).collect()
    }

    pub(super) fn fetched(&self) -> Fetched {
        let config_map =
            |data: &BTreeMap<String, String>| Arc::new(ConfigMap { data: Some(data.clone()), ..ConfigMap::default() });
        Fetched {
            config_maps: self.config_maps.iter().map(|(name, data)| (name.clone(), config_map(data))).collect(),
            claims: BTreeSet::from(["files".to_owned()]),
            model: self.model.clone().map(|model| serde_json::from_value(model).unwrap()),
            evaluations: self
                .evaluations
                .iter()
                .map(|(name, value)| (name.clone(), serde_json::from_value(value.clone()).unwrap()))
                .collect(),
            store: self.of(Kind::PersistentVolumeClaim).pop(),
            jobs: self.of(Kind::Job),
            pods: self.pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect(),
            deployments: self.of(Kind::Deployment),
            templates: self.of(Kind::ControllerRevision),
        }
    }

    pub(super) fn time(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.now).unwrap()
    }

    /// Counts a write; `false` when the controller died before it.
    pub(super) fn write(&mut self, what: String) -> bool {
        if self.fuse == Some(0) {
            return false;
        }
        self.fuse = self.fuse.map(|left| left - 1);
        self.writes.push(what);
        true
    }

    pub(super) fn write_status(&mut self, status: &RagIndexStatus, what: &str) -> bool {
        if self.status.as_ref() == Some(status) {
            return true;
        }
        if !self.write(what.to_owned()) {
            return false;
        }
        self.status = Some(status.clone());
        true
    }

    /// One reconcile; `None` when the controller died in it.
    pub(super) fn reconcile(&mut self) -> Option<Option<std::time::Duration>> {
        let controller = RagIndexes::new(&self.image);
        let object = self.object();
        let fetched = self.fetched();
        let validated = controller.validate(&object, &fetched).unwrap();
        let plan = controller.build(&object, &fetched, &validated, self.time()).unwrap();
        if let Some(record) = &plan.record
            && !self.write_status(record, "record")
        {
            return None;
        }
        for desired in &plan.desired {
            let key = (desired.kind, desired.name.clone());
            let live = self.objects.get(&key);
            let same = live.is_some_and(|live| {
                desired.create_only || crate::controllers::subset::contains(live, &without_nulls(&desired.object))
            });
            if same {
                continue;
            }
            if !self.write(format!("{} {}", desired.kind, desired.name)) {
                return None;
            }
            let live = self.objects.get(&key);
            let generation = live.and_then(|live| live["metadata"]["generation"].as_i64()).unwrap_or(0) + 1;
            let status = live.map_or(Value::Null, |live| live["status"].clone());
            let mut object = without_nulls(&desired.object);
            object["metadata"]["uid"] = json!(format!("uid-{}", desired.name));
            object["metadata"]["generation"] = json!(generation);
            object["metadata"]["creationTimestamp"] = json!(self.time().to_string());
            object["status"] = status;
            self.objects.insert(key, without_nulls(&object));
        }
        for removal in &plan.removals {
            let key = (removal.kind, removal.name.clone());
            if plan.desired.iter().any(|desired| (desired.kind, desired.name.clone()) == key) {
                continue;
            }
            if self.objects.contains_key(&key) {
                if !self.write(format!("delete {} {}", removal.kind, removal.name)) {
                    return None;
                }
                self.objects.remove(&key);
            }
        }
        let previous = self.status.clone().unwrap_or_default();
        let applied = Applied::of_live("team-a", self.objects.clone());
        let stage = Stage::Done { fetched: &fetched, validated: &validated, plan: &plan, applied: &applied };
        let verdict = controller.status(&View { object: &object, previous: &previous, stage, now: self.time() });
        if !self.write_status(&verdict.status, "status") {
            return None;
        }
        Some(verdict.again)
    }

    /// Reconciles until nothing is written any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            let before = self.writes.len();
            self.reconcile();
            if self.writes.len() == before {
                return;
            }
        }
        panic!("does not settle: {:?}", self.writes);
    }

    pub(super) fn jobs(&self) -> Vec<String> {
        self.names(Kind::Job)
    }

    pub(super) fn names(&self, kind: Kind) -> Vec<String> {
        self.objects.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }

    /// The running Job ends.
    pub(super) fn end_job(&mut self, condition: &str, reason: &str, code: i32, message: &Value) {
        let at = self.time().to_string();
        let running = self
            .objects
            .iter_mut()
            .find(|((kind, _), job)| *kind == Kind::Job && job["status"]["conditions"].is_null())
            .unwrap_or_else(|| panic!("no Job runs"));
        let name = running.0.1.clone();
        running.1["status"] = json!({"conditions": [
            {"type": condition, "status": "True", "reason": reason, "message": "m", "lastTransitionTime": at}
        ]});
        let text = if message.is_null() { Value::Null } else { json!(message.to_string()) };
        let terminated = json!({"exitCode": code, "message": text, "finishedAt": at, "reason": "Completed"});
        self.pods.push(json!({
            "metadata": {"name": format!("{name}-pod"), "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": format!("uid-{name}"), "controller": true}
            ]},
            "status": {"containerStatuses": [{
                "name": "builder", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": terminated},
            }]},
        }));
    }

    pub(super) fn pass(&mut self, generation: &str) {
        self.end_job("Complete", "", 0, &report(generation, true));
    }

    /// All retrieval pods become ready.
    pub(super) fn serve(&mut self) {
        for ((kind, _), object) in &mut self.objects {
            if *kind == Kind::Deployment {
                object["status"] = json!({
                    "observedGeneration": object["metadata"]["generation"], "replicas": object["spec"]["replicas"],
                    "updatedReplicas": object["spec"]["replicas"], "availableReplicas": object["spec"]["replicas"],
                    "readyReplicas": object["spec"]["replicas"],
                });
            }
        }
    }

    pub(super) fn edit_document(&mut self, text: &str) {
        self.config_maps.get_mut("docs").unwrap().insert("a.md".into(), text.into());
    }

    pub(super) fn state(&self) -> &RagIndexStatus {
        self.status.as_ref().unwrap()
    }

    pub(super) fn condition(&self, kind: &str) -> (String, String, String) {
        let condition = conditions::find(&self.state().conditions, kind).unwrap_or_else(|| panic!("{kind}"));
        (condition.status.clone(), condition.reason.clone(), condition.message.clone())
    }

    pub(super) fn is(&self, kind: &str, status: &str, reason: &str) {
        let (found, why, message) = self.condition(kind);
        assert_eq!((found.as_str(), why.as_str()), (status, reason), "{kind}: {message}");
    }

    pub(super) fn active(&self) -> Option<&str> {
        self.state().active.as_ref().map(|active| active.name.as_str())
    }

    pub(super) fn serving(&self) -> Option<String> {
        let service = self.objects.get(&(Kind::Service, "rag-handbook".to_owned()))?;
        Some(service["spec"]["selector"][names::LABEL_REVISION].as_str()?.to_owned())
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

pub(super) fn report(generation: &str, passed: bool) -> Value {
    json!({
        "generation": generation, "digest": format!("sha256:{generation}"), "passed": passed,
        "reason": if passed { Value::Null } else { json!("QualityBelowMinimum") },
        "message": if passed { "" } else { "recall@5 is 0.41, below spec.gates.metrics[0].min 0.8" },
        "documents": {"scanned": 3, "added": 3, "modified": 0, "deleted": 0, "unchanged": 0, "skipped": 0, "failed": 0},
        "chunks": 12, "bytes": 4096,
        "quality": [{"metric": "recall", "k": 5, "candidate": "0.9000", "queries": 40, "passed": passed}],
    })
}

/// A world in which a first generation serves.
pub(super) fn serving() -> World {
    let mut world = World::new();
    world.settle();
    world.pass("handbook-aaaaaa");
    world.settle();
    world.serve();
    world.settle();
    world
}
