//! The stages together, on a pretended cluster: what is built is taken as applied, and the test says what pods do.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::build::{Notes, template};
use super::fetch::{Credentials, Fetched};
use super::outside::OverHttp;
use super::revision::{self, Stored};
use super::validate::{Validated, check, validate};
use super::*;
use crate::api::conditions::find;
use crate::api::model_deployment::ModelDeploymentStatus;
use crate::api::names;
use crate::controllers::apply::{Applied, Desired, Parent, finish};
use crate::controllers::kinds::Key;
use crate::controllers::measure::NoMeasurements;
use crate::controllers::pipeline::Stage;
use crate::experiment::measurements::Measurements;

mod guarded;

fn model(spec: &str) -> ModelDeployment {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "smol", "namespace": "team", "uid": "owner", "generation": 1}, "spec": spec,
    }))
    .unwrap()
}

const PVC: &str = "
task: Chat
model: {source: {pvc: {claimName: models, path: smol.gguf}}}
engine: {type: LlamaCpp}
";

const HTTP: &str = "
task: Embed
model:
  name: served
  source:
    http:
      url: https://example.com/files/smol.Q4.gguf?download=true
      sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  credentialsRef: {name: token}
engine: {type: LlamaCpp, args: [--ctx-size, '2048'], env: [{name: A, value: b}]}
resources: {limits: {memory: 1Gi, nvidia.com/gpu: '1'}}
scheduling:
  nodeSelector: {disk: ssd}
  tolerations: [{key: gpu, operator: Exists}]
podTemplatePatch:
  metadata: {annotations: {team: red}}
  spec: {containers: [{name: engine, env: [{name: C, value: d}]}]}
startup: {downloadTimeout: 2m, loadTimeout: 1m}
rollout: {drain: 30s}
";

const CUSTOM: &str = "
task: Rerank
engine:
  type: Custom
  image: example.com/server:1
  args: ['--name=$(MODEL_NAME)']
  custom: {command: [serve], port: 9000, healthPath: /up}
";

struct World {
    object: ModelDeployment,
    fetched: Fetched,
    controller: ModelDeployments,
    second: i64,
    notes: Notes,
}

impl World {
    fn new(spec: &str) -> Self {
        Self {
            object: model(spec),
            fetched: Fetched { volume_exists: true, ..Fetched::default() },
            controller: ModelDeployments {
                image: "llmops:test".to_owned(),
                outside: Outside::new(Arc::new(OverHttp::default())),
                measure: Arc::new(NoMeasurements),
            },
            second: 1000,
            notes: Notes::default(),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut ModelDeployment)) {
        change(&mut self.object);
        *self.object.metadata.generation.get_or_insert(0) += 1;
    }

    /// One reconcile. Returns whether it changed anything.
    fn reconcile(&mut self) -> bool {
        let before = (self.object.status.clone(), self.fetched.deployments.clone());
        let now = jiff::Timestamp::from_second(self.second).unwrap();
        let built = self.controller.validate(&self.object, &self.fetched).and_then(|validated| {
            Ok((self.controller.build(&self.object, &self.fetched, &validated, now)?, validated))
        });
        let previous = self.object.status.clone().unwrap_or_default();
        let verdict = match &built {
            Err(error) => {
                let stage = Stage::Failed { fetched: Some(&self.fetched), validated: None, error };
                self.controller.status(&View { object: &self.object, previous: &previous, stage, now })
            }
            Ok((plan, validated)) => {
                let previous = plan.record.clone().unwrap_or(previous);
                let applied = self.apply(&plan.desired);
                for removal in &plan.removals {
                    let of = |revision: &str| names::model_revision("smol", revision) == removal.name;
                    match removal.kind {
                        Kind::Deployment => self.fetched.deployments.retain(|revision, _| !of(revision)),
                        Kind::ControllerRevision => self.fetched.revisions.retain(|revision, _| !of(revision)),
                        _ => {}
                    }
                }
                let stage = Stage::Done { fetched: &self.fetched, validated, plan, applied: &applied };
                self.controller.status(&View { object: &self.object, previous: &previous, stage, now })
            }
        };
        if let Ok((plan, _)) = built {
            self.notes = plan.notes;
        }
        self.object.status = Some(verdict.status);
        before != (self.object.status.clone(), self.fetched.deployments.clone())
    }

    fn apply(&mut self, desired: &[Desired]) -> Applied {
        let parent = Parent {
            kind: Kind::ModelDeployment,
            key: Key::new("team", "smol"),
            uid: "owner".to_owned(),
            manager: "test",
            is_known: false,
        };
        let mut live = Vec::new();
        for child in desired {
            let mut object = finish(&parent, child);
            let revision = object["metadata"]["labels"][names::LABEL_REVISION].as_str().unwrap_or_default().to_owned();
            match child.kind {
                Kind::Deployment => {
                    let old = self.fetched.deployments.get(&revision);
                    object["metadata"]["generation"] = json!(1);
                    object["status"] = serde_json::to_value(old.and_then(|old| old.status.clone())).unwrap();
                    self.fetched.deployments.insert(revision, serde_json::from_value(object.clone()).unwrap());
                }
                Kind::ControllerRevision => {
                    let mut stored: Stored = serde_json::from_value(object["data"].clone()).unwrap();
                    stored.number = object["revision"].as_i64().unwrap();
                    self.fetched.revisions.entry(revision).or_insert(stored);
                }
                _ => {}
            }
            object["metadata"]["resourceVersion"] = json!("1");
            live.push((child.kind, object));
        }
        Applied::of("team", &live)
    }

    fn settle(&mut self) {
        for _ in 0..10 {
            if !self.reconcile() {
                return;
            }
        }
        panic!("does not settle");
    }

    fn target(&self) -> String {
        self.status().target_revision.clone().unwrap()
    }

    fn status(&self) -> &ModelDeploymentStatus {
        self.object.status.as_ref().unwrap()
    }

    fn ready(&mut self, revision: &str) {
        let replicas = self.object.spec.replicas;
        let deployment = self.fetched.deployments.get_mut(revision).unwrap();
        deployment.status = serde_json::from_value(json!({
            "observedGeneration": 1, "updatedReplicas": replicas, "availableReplicas": replicas}))
        .unwrap();
    }

    fn pod(&mut self, revision: &str, status: Value) {
        let pod = json!({"metadata": {"name": format!("pod-{revision}"), "labels": {names::LABEL_REVISION: revision}}, "status": status});
        self.fetched.pods.push(serde_json::from_value(pod).unwrap());
    }

    fn condition(&self, kind: &str) -> String {
        find(&self.status().conditions, kind).map(|c| format!("{}/{}", c.status, c.reason)).unwrap_or_default()
    }

    fn runs(&self) -> Vec<&str> {
        self.fetched.deployments.keys().map(String::as_str).collect()
    }
}

fn crashed(restarts: i32) -> Value {
    json!({"containerStatuses": [{"name": "engine", "ready": false, "restartCount": restarts, "image": "", "imageID": "",
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1, "message": "bad file"}}}]})
}

#[test]
fn pod_templates_are_as_documented() {
    for (name, spec) in [("llama_pvc", PVC), ("llama_http", HTTP), ("custom", CUSTOM)] {
        let object = model(spec);
        check(&object).unwrap();
        insta::assert_yaml_snapshot!(name, template::render(&object, "0123456789", "llmops:test").unwrap());
    }
}

#[test]
fn children_are_as_documented() {
    let mut world = World::new(HTTP);
    world.fetched.credentials = Credentials::Hash("c0ffee".to_owned());
    let validated = world.controller.validate(&world.object, &world.fetched).unwrap();
    let plan = world.controller.build(&world.object, &world.fetched, &validated, jiff::Timestamp::UNIX_EPOCH).unwrap();
    let mut objects: Vec<Value> = plan.desired.iter().map(|child| child.object.clone()).collect();
    for object in &mut objects {
        // The template has a snapshot of its own.
        if let Some(template) = object.pointer_mut("/spec/template").or(None) {
            *template = json!("…");
        }
        if let Some(template) = object.pointer_mut("/data/template") {
            *template = json!("…");
        }
    }
    insta::assert_yaml_snapshot!("children", objects);
    world.apply(&plan.desired);
}

#[test]
fn becomes_ready_in_two_statuses() {
    let mut world = World::new(PVC);
    assert!(world.reconcile());
    let revision = world.target();
    assert_eq!(world.condition("Ready"), "False/Loading");
    assert_eq!(world.condition("Reconciling"), "True/Loading");
    assert_eq!(world.status().stable_revision, None);
    // Deployment and pod exist and start: no news.
    world.fetched.deployments.get_mut(&revision).unwrap().status =
        serde_json::from_value(json!({"observedGeneration": 1, "updatedReplicas": 1})).unwrap();
    world.pod(&revision, json!({"phase": "Pending"}));
    assert!(!world.reconcile());
    world.ready(&revision);
    assert!(world.reconcile());
    assert_eq!(world.condition("Ready"), "True/Serving");
    assert_eq!(world.condition("Available"), "True/Serving");
    assert_eq!(world.condition("UpToDate"), "True/UpToDate");
    assert_eq!(world.status().stable_revision.as_deref(), Some(revision.as_str()));
    assert_eq!(world.status().traffic[0].weight, 100);
    assert_eq!(world.status().url.as_deref(), Some("http://mdep-smol.team.svc:8080/v1"));
    world.second += 1000;
    assert!(!world.reconcile(), "time alone changes nothing");
}

/// A world whose first revision serves and whose spec then changed.
fn changed(strategy: &str) -> (World, String) {
    let mut world = World::new(PVC);
    world.reconcile();
    let old = world.target();
    world.ready(&old);
    world.settle();
    world.second += 60;
    world.change(|object| {
        object.spec.engine.as_mut().unwrap().args = vec!["--ctx-size=512".to_owned()];
        object.spec.rollout.strategy = serde_json::from_value(json!(strategy)).unwrap();
    });
    (world, old)
}

#[test]
fn a_new_revision_serves_only_when_proven_and_the_old_one_stops_after() {
    let (mut world, old) = changed("RollingUpdate");
    world.settle();
    let new = world.target();
    assert_ne!(new, old);
    assert_eq!(world.runs().len(), 2);
    assert_eq!(world.status().traffic[0].revision, old);
    assert_eq!(world.condition("Ready"), "False/Loading");
    assert_eq!(world.condition("Available"), "True/Serving");
    world.ready(&new);
    world.reconcile();
    assert_eq!(world.status().traffic[0].revision, new);
    assert_eq!(world.condition("Ready"), "True/Serving");
    assert_eq!(world.runs().len(), 2, "gateways need a moment to hear of it");
    assert!(world.notes.again.is_some());
    world.second += 6;
    world.settle();
    assert_eq!(world.runs(), [new.as_str()]);
    assert_eq!(world.fetched.revisions.len(), 2, "the way back is kept");
}

#[test]
fn recreate_stops_the_old_revision_first_and_says_so_before() {
    let (mut world, old) = changed("Recreate");
    world.pod(&old, json!({"phase": "Running"}));
    world.settle();
    let new = world.target();
    assert!(world.runs().is_empty());
    assert_eq!(world.condition("Ready"), "False/StoppingPrevious");
    assert!(world.status().traffic.is_empty());
    world.fetched.pods.clear();
    world.settle();
    assert_eq!(world.runs(), [new.as_str()]);
    world.ready(&new);
    world.settle();
    assert_eq!(world.status().traffic[0].revision, new);
    assert_eq!(world.condition("Ready"), "True/Serving");
}

#[test]
fn engines_that_were_killed_after_all_were_available_do_not_give_the_revision_up() {
    let (mut world, _) = changed("RollingUpdate");
    world.settle();
    let new = world.target();
    // The controller was away when all pods were ready; now they are dead for the third time.
    world.pod(&new, crashed(3));
    world.fetched.deployments.get_mut(&new).unwrap().status = serde_json::from_value(json!({
        "observedGeneration": 1, "updatedReplicas": 1,
        "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]}))
    .unwrap();
    world.settle();
    assert_eq!(world.condition("Stalled"), "False/Fine");
    assert!(world.status().rejected_revisions.is_empty());
    world.fetched.pods.clear();
    world.ready(&new);
    world.settle();
    assert_eq!(world.status().traffic[0].revision, new);
}

#[test]
fn a_failing_revision_is_given_up_and_the_old_one_serves_on() {
    let (mut world, old) = changed("RollingUpdate");
    world.settle();
    let new = world.target();
    world.pod(&new, crashed(1));
    world.settle();
    assert_eq!(world.condition("Ready"), "False/ModelLoadFailed");
    assert_eq!(world.condition("Stalled"), "False/Fine", "a first stumble is retried");
    world.fetched.pods.clear();
    world.pod(&new, crashed(3));
    world.settle();
    assert_eq!(world.status().rejected_revisions[0].revision, new);
    assert_eq!(world.condition("Stalled"), "True/ModelLoadFailed");
    assert_eq!(world.condition("Available"), "True/Serving");
    assert_eq!(world.condition("UpToDate"), "False/RolledBack");
    assert_eq!(world.status().traffic[0].revision, old);
    assert_eq!(world.runs(), [old.as_str()]);
    assert_eq!(world.target(), new, "the status says what Git asks for");
    // Asked for again.
    world.fetched.pods.clear();
    world.second += 60;
    let asked = jiff::Timestamp::from_second(world.second).unwrap().to_string();
    world.object.metadata.annotations = Some([(names::ANNOTATION_RECONCILE.to_owned(), asked)].into());
    world.settle();
    assert!(world.status().rejected_revisions.is_empty());
    assert_eq!(world.runs().len(), 2);
    // And the spec goes back.
    world.change(|object| object.spec.engine.as_mut().unwrap().args.clear());
    world.second += 60;
    world.settle();
    assert_eq!(world.target(), old);
    assert_eq!(world.condition("Ready"), "True/Serving");
    assert_eq!(world.runs(), [old.as_str()]);
}

#[test]
fn a_wrong_digest_is_given_up_at_once() {
    let mut world = World::new(HTTP);
    world.fetched.credentials = Credentials::Hash("c0ffee".to_owned());
    world.settle();
    let revision = world.target();
    assert_eq!(world.condition("Ready"), "False/Downloading");
    assert_eq!(world.condition("ModelCached"), "False/Downloading");
    let message = json!({"reason": "DigestMismatch", "message": "the file has digest b, the spec says a"}).to_string();
    world.pod(&revision, json!({"initContainerStatuses": [{"name": "fetch", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": {"exitCode": 42, "message": message}}}]}));
    world.settle();
    assert_eq!(world.condition("Ready"), "False/DigestMismatch");
    assert_eq!(world.condition("Stalled"), "True/DigestMismatch");
    assert_eq!(world.condition("ModelCached"), "False/DigestMismatch");
    assert_eq!(world.condition("Accepted"), "True/Accepted");
    assert!(find(&world.status().conditions, "Ready").unwrap().message.contains("the file has digest b"));
    assert!(world.runs().is_empty(), "it would download for ever");
}

#[test]
fn a_missing_secret_waits_and_keeps_up_what_serves() {
    let mut world = World::new(HTTP);
    world.fetched.credentials = Credentials::Missing;
    world.settle();
    assert_eq!(world.condition("Ready"), "False/SecretNotFound");
    assert_eq!(world.condition("Reconciling"), "True/SecretNotFound");
    assert!(world.runs().is_empty());
    world.fetched.credentials = Credentials::Hash("c0ffee".to_owned());
    world.settle();
    let revision = world.target();
    world.ready(&revision);
    world.settle();
    world.fetched.credentials = Credentials::Missing;
    world.fetched.deployments.clear();
    world.settle();
    assert_eq!(world.runs(), [revision.as_str()], "healed although the Secret is gone");
    assert_eq!(world.condition("Ready"), "False/SecretNotFound");
}

#[test]
fn invalid_specs_name_the_field() {
    for (change, field) in [
        (json!({"podTemplatePatch": {"spec": {"container": []}}}), "podTemplatePatch"),
        (json!({"model": {"source": {"pvc": {"claimName": "m", "path": "../x"}}}}), "spec.model.source.pvc.path"),
        (json!({"model": {"source": {"pvc": {"claimName": "m", "path": ""}}}}), "spec.model.source.pvc.path"),
        (json!({"model": {"source": {"http": {"url": "https://x/y", "sha256": "zz"}}}}), "sha256"),
        (json!({"engine": {"type": "Custom"}}), "spec.engine.custom"),
        (json!({"rollout": {"drain": "48h"}}), "spec.rollout.drain"),
        (json!({"cost": {"inputPerMillion": "-1"}}), "spec.cost.inputPerMillion"),
    ] {
        let mut world = World::new(PVC);
        let mut spec = serde_json::to_value(&world.object.spec).unwrap();
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        world.object.spec = serde_json::from_value(spec).unwrap();
        world.settle();
        let ready = find(&world.status().conditions, "Ready").unwrap();
        assert_eq!(ready.reason, "InvalidSpec", "{change}");
        assert!(ready.message.contains(field), "{}", ready.message);
        assert_eq!(world.condition("Stalled"), "True/InvalidSpec");
    }
}

#[test]
fn suspension_changes_nothing_but_says_so() {
    let (mut world, _) = changed("RollingUpdate");
    let previous = world.status().clone();
    let stage = Stage::Suspended;
    let now = jiff::Timestamp::from_second(5000).unwrap();
    let verdict = world.controller.status(&View { object: &world.object, previous: &previous, stage, now });
    world.object.status = Some(verdict.status);
    assert_eq!(world.condition("Reconciling"), "False/Suspended");
    assert_eq!(world.condition("Ready"), "True/Serving");
}

#[test]
fn a_stored_template_outlives_the_operator_that_rendered_it() {
    let mut world = World::new(HTTP);
    world.fetched.credentials = Credentials::Hash("c0ffee".to_owned());
    world.settle();
    let revision = world.target();
    world.ready(&revision);
    world.settle();
    let before = world.fetched.deployments.clone();
    world.controller.image = "llmops:next".to_owned();
    assert!(!world.reconcile());
    assert_eq!(before, world.fetched.deployments);
}

#[test]
fn history_is_bounded() {
    let mut world = World::new(PVC);
    world.object.spec.rollout.history_limit = 2;
    for round in 0..6 {
        world.change(|object| object.spec.engine.as_mut().unwrap().args = vec![format!("--seed={round}")]);
        world.second += 60;
        world.settle();
        let target = world.target();
        world.ready(&target);
        world.settle();
    }
    world.second += 60;
    world.settle();
    assert_eq!(world.fetched.revisions.len(), 3);
    assert_eq!(world.runs().len(), 1);
}

fn revision_of(object: &ModelDeployment) -> String {
    let fetched = Fetched { volume_exists: true, ..Fetched::default() };
    match validate(object, &fetched).unwrap() {
        Validated::Engine { target } => target.unwrap().revision,
        Validated::External { revision } => revision,
    }
}

proptest! {
    #[test]
    fn revisions_ignore_what_does_not_reach_the_pods(
        replicas in 0i32..100, label in "[a-z]{1,8}", suspend: bool, cost in 0u32..1000, history in 1i32..50, size in 1u32..100,
    ) {
        let mut object = model(PVC);
        let revision = revision_of(&object);
        object.spec.replicas = replicas;
        object.spec.suspend = suspend;
        object.spec.rollout.history_limit = history;
        object.spec.cost = serde_json::from_value(json!({"inputPerMillion": cost.to_string()})).unwrap();
        object.metadata.labels = Some([(label.clone(), label)].into());
        object.spec.model.as_mut().unwrap().cache.size = format!("{size}Gi");
        prop_assert_eq!(&revision, &revision_of(&object));
        object.spec.engine.as_mut().unwrap().args.push("--more".to_owned());
        prop_assert_ne!(&revision, &revision_of(&object));
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_order_of_events_leaves_nothing_serving(events in prop::collection::vec(0u8..6, 1..24)) {
        let mut world = World::new(PVC);
        world.settle();
        let first = world.target();
        world.ready(&first);
        world.settle();
        for (index, event) in events.into_iter().enumerate() {
            world.second += 3;
            match event {
                0 => world.change(|object| object.spec.engine.as_mut().unwrap().args = vec![format!("--seed={}", index % 3)]),
                1 => {
                    let target = world.target();
                    if world.fetched.deployments.contains_key(&target) {
                        world.ready(&target);
                    }
                }
                2 => {
                    let target = world.target();
                    world.fetched.pods.clear();
                    if world.status().stable_revision.as_ref() != Some(&target) {
                        world.pod(&target, crashed(3));
                    }
                }
                3 => world.fetched.volume_exists = !world.fetched.volume_exists,
                4 => world.second += 60,
                _ => world.fetched.pods.clear(),
            }
            world.settle();
            let traffic = &world.status().traffic;
            prop_assert_eq!(traffic.iter().map(|share| share.weight).sum::<i32>(), 100);
            let serving = traffic[0].revision.as_str();
            let deployment = world.fetched.deployments.get(serving).expect("what gets requests runs");
            prop_assert_eq!(deployment.status.as_ref().and_then(|status| status.available_replicas), Some(1));
        }
    }
}

#[test]
fn revisions_that_cannot_be_read_are_as_if_they_were_not_there() {
    assert!(revision::read(&[k8s_openapi::api::apps::v1::ControllerRevision::default()]).is_empty());
}
