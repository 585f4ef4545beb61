//! Faults that happen at a moment.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Badness, Sudden};
use crate::cluster::{is_going, text};
use crate::world::World;

/// Objects that have nothing to do with any story.
pub mod neighbours {
    /// Name of the one that cannot be decoded.
    pub const UNDECODABLE: &str = "bad-undecodable";
    /// Name of the one whose children are refused.
    pub const REFUSED: &str = "bad-refused";
    /// Name of the one whose children get no answer.
    pub const HANGING: &str = "bad-hanging";

    /// Whether an object is one of these, or belongs to one.
    pub fn owns(name: &str) -> bool {
        [UNDECODABLE, REFUSED, HANGING].iter().any(|bad| name.contains(bad))
    }
}

/// What must still be done about a fault, and how long after it.
pub struct Afterwards(pub Duration, pub Undo);

/// How a fault ends.
pub enum Undo {
    /// This manifest is applied again.
    Apply(Value),
    /// The gateway answers.
    Gateway,
    /// The wall clock is right.
    Clock,
    /// Lists show the newest state.
    Past,
}

impl World {
    /// Does what happens at a moment. Gives what is to be done later.
    pub fn strike(&self, what: Sudden) -> Option<Afterwards> {
        let after = |ms: u64, undo: Undo| Some(Afterwards(Duration::from_millis(ms), undo));
        let network = &self.network;
        match what {
            Sudden::Kill => self.leader()?.kill(),
            Sudden::Stale(ms) => {
                let version = self.server.lock().store.version_before(Duration::from_millis(ms));
                network.show_past(Some(version));
                self.leader()?.kill();
                return after(5000, Undo::Past);
            }
            Sudden::Lag(ms) => network.lag(Duration::from_millis(ms)),
            Sudden::Drop => network.drop_watches(),
            Sudden::Repeat => network.repeat(),
            Sudden::Compact => {
                self.server.lock().store.compact();
                network.drop_watches();
            }
            Sudden::Outage(outage, ms) => {
                network.fail(outage, Duration::from_millis(ms));
                network.drop_watches();
            }
            Sudden::Gateway(ms) => {
                self.gateway.down(true);
                return after(ms, Undo::Gateway);
            }
            Sudden::CutOff(ms) => self.leader()?.cut_off(Duration::from_millis(ms)),
            Sudden::Clock(seconds, ms) => {
                self.wrong_clock(seconds);
                return after(ms, Undo::Clock);
            }
            Sudden::Absent(pick, ms) => {
                let kinds = ["modeldeployments", "promptflows", "ragindexes", "evaluations"];
                let resource = format!("{}.{}", kinds[usize::from(pick) % kinds.len()], llmops::api::GROUP);
                network.hide(&resource, Duration::from_millis(ms));
                network.drop_watches();
            }
            Sudden::Edit(pick) => self.edit(&self.pick_child(pick)?),
            Sudden::Delete(pick) => {
                let child = self.pick_child(pick)?;
                self.server.delete("stranger", &child, &json!({"propagationPolicy": "Background"}));
            }
            Sudden::Recreate(pick) => {
                let (object, manifest) = self.pick_made(pick, |manifest| {
                    text(manifest, "/apiVersion").starts_with(llmops::api::GROUP) && self.may_go(manifest)
                })?;
                self.server.delete("kubectl", &object, &json!({"propagationPolicy": "Background"}));
                self.again(&manifest);
            }
            Sudden::Vanish(pick, ms) => {
                // A volume in use goes only with its last pod, whatever is applied meanwhile.
                let may_go =
                    |manifest: &Value| self.may_go(manifest) && text(manifest, "/kind") != "PersistentVolumeClaim";
                let (object, manifest) = self.pick_made(pick, may_go)?;
                self.server.delete("kubectl", &object, &json!({"propagationPolicy": "Background"}));
                return after(ms, Undo::Apply(manifest));
            }
            Sudden::Waver(pick, ms) => {
                let has_data = |manifest: &Value| matches!(text(manifest, "/kind"), "ConfigMap" | "Secret");
                let (_, manifest) = self.pick_made(pick, has_data)?;
                let mut changed = manifest.clone();
                for value in changed["data"].as_object_mut()?.values_mut() {
                    let text = value.as_str().unwrap_or_default();
                    *value = if manifest["kind"] == "Secret" { json!("d2F2ZXI=") } else { json!(format!("{text} ")) };
                }
                self.again(&changed);
                return after(ms, Undo::Apply(manifest));
            }
            Sudden::Neighbour(badness) => self.bad_neighbour(badness),
        }
        None
    }

    /// Ends a fault.
    pub fn undo(&self, undo: &Undo) {
        match undo {
            Undo::Apply(manifest) => self.again(manifest),
            Undo::Gateway => self.gateway.down(false),
            Undo::Clock => self.wrong_clock(0),
            Undo::Past => self.network.show_past(None),
        }
    }

    /// Applies what a person has in Git, as Argo CD does.
    fn again(&self, manifest: &Value) {
        self.server.apply("kubectl", manifest).unwrap_or_else(|error| panic!("applied again: {}", error.message));
    }

    /// A child of the operator's.
    fn pick_child(&self, pick: u8) -> Option<Value> {
        let inner = self.server.lock();
        let ours = |object: &Value| {
            let owner = &object["metadata"]["ownerReferences"][0]["apiVersion"];
            // Where history decides what serves, an older revision that is deleted cannot be made again by anybody.
            let history = self.kept.is_some() && object["kind"] == "ControllerRevision";
            owner.as_str().is_some_and(|owner| owner.starts_with(llmops::api::GROUP)) && !is_going(object) && !history
        };
        let children: Vec<&Value> =
            inner.store.all().map(|(_, object)| object.as_ref()).filter(|object| ours(object)).collect();
        children.get(usize::from(pick) % children.len().max(1)).map(|child| (*child).clone())
    }

    fn may_go(&self, manifest: &Value) -> bool {
        self.kept != Some(text(manifest, "/kind"))
    }

    /// Something that a person made and that is there, with its manifest.
    fn pick_made(&self, pick: u8, of: impl Fn(&Value) -> bool) -> Option<(Value, Value)> {
        let made = self.made();
        let inner = self.server.lock();
        let there: Vec<(Value, Value)> = made
            .iter()
            .filter(|(_, manifest)| of(manifest))
            .filter_map(|(key, manifest)| Some((inner.store.get(key)?.as_ref().clone(), manifest.clone())))
            .filter(|(object, _)| !is_going(object))
            .collect();
        there.get(usize::from(pick) % there.len().max(1)).cloned()
    }

    /// Somebody who means well changes a child by hand.
    fn edit(&self, child: &Value) {
        self.server.change("stranger", child, None, |child| match text(child, "/kind") {
            "Deployment" => {
                child["spec"]["replicas"] = json!(5);
                child["spec"]["template"]["spec"]["containers"][0]["image"] = json!("stranger:1");
            }
            "Service" => child["spec"]["selector"] = json!({"app": "stranger"}),
            "RoleBinding" => child["subjects"] = json!([{"kind": "ServiceAccount", "name": "stranger"}]),
            // What cannot be changed in these kinds cannot be tried: an annotation can.
            _ => child["metadata"]["annotations"]["stranger"] = json!("was here"),
        });
    }

    fn bad_neighbour(&self, badness: Badness) {
        let name = match badness {
            Badness::Undecodable => neighbours::UNDECODABLE,
            Badness::Refused => neighbours::REFUSED,
            Badness::Hanging => neighbours::HANGING,
        };
        let object = json!({
            "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "task": "Chat", "engine": {"type": "LlamaCpp"},
                "model": {"source": {"http": {"url": "http://models.example/m.gguf", "sha256": "0".repeat(64)}}},
            },
        });
        self.server.apply("kubectl", &object).expect("a bad neighbour may come");
        if badness == Badness::Undecodable {
            let stored = self.get("ModelDeployment", name).expect("it is there");
            self.server.tamper(&stored, |stored| stored["spec"]["task"] = json!("Sing"));
        }
    }
}
