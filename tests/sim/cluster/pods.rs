//! Scheduler and node: pods are placed, their containers run as planned, and end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::containers::{Container, Run};
use super::{condition, is_going, number, text};
use crate::apiserver::ApiServer;

/// Says how a run of a container goes: by pod, container name and number of earlier runs. The first that answers counts.
pub type Plan = Box<dyn Fn(&Value, &str, u32) -> Option<Run> + Send>;

/// What pods do.
#[derive(Default)]
pub struct Behaviour {
    plans: Vec<Plan>,
}

impl Behaviour {
    /// Adds a plan that comes before the present ones.
    pub fn first(&mut self, plan: Plan) {
        self.plans.insert(0, plan);
    }

    /// Without a plan init containers and Jobs' containers succeed, others serve after two seconds.
    fn run(&self, pod: &Value, container: &str, restarts: u32) -> Run {
        let planned = self.plans.iter().find_map(|plan| plan(pod, container, restarts));
        planned.unwrap_or_else(|| {
            let inits = pod["spec"]["initContainers"].as_array();
            let init = inits.into_iter().flatten().any(|one| one["name"] == container);
            if init || pod["spec"]["restartPolicy"] != "Always" {
                Run::succeeds("")
            } else {
                Run::Serves { ready_after: Duration::from_secs(2) }
            }
        })
    }
}

struct Pod {
    inits: Vec<Container>,
    mains: Vec<Container>,
    address: String,
    started_at: String,
    stop: Option<Instant>,
    /// Version of the pod when it was last looked at, and when it moves by itself.
    seen: (Value, Option<Instant>),
}

/// The node.
pub struct Pods {
    behaviour: Arc<Mutex<Behaviour>>,
    running: HashMap<String, Pod>,
    seen: HashMap<String, Instant>,
    addresses: u32,
}

impl Pods {
    /// A node on which pods behave like this.
    pub fn new(behaviour: Arc<Mutex<Behaviour>>) -> Self {
        Self { behaviour, running: HashMap::new(), seen: HashMap::new(), addresses: 0 }
    }

    /// Moves all pods forward. Gives the time at which one moves by itself.
    pub fn step(&mut self, server: &ApiServer) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut due = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        for pod in server.list("Pod") {
            let uid = text(&pod, "/metadata/uid").to_owned();
            if pod["spec"].get("nodeName").is_none() {
                let seen = *self.seen.entry(uid).or_insert(now);
                let scheduled_at = seen + Duration::from_millis(50);
                if now >= scheduled_at { schedule(server, &pod) } else { due(Some(scheduled_at)) }
            } else {
                due(self.run(server, &pod, &uid, now));
            }
        }
        next
    }

    fn run(&mut self, server: &ApiServer, pod: &Value, uid: &str, now: Instant) -> Option<Instant> {
        let clock = server.lock().clock.now();
        if !self.running.contains_key(uid) {
            if let Some(missing) = missing_volume(server, pod) {
                waiting(server, pod, &missing, &clock);
                return None;
            }
            self.addresses += 1;
            let behaviour = self.behaviour.lock().expect("no plan panics");
            let containers = |list: &str| -> Vec<Container> {
                let all = pod["spec"][list].as_array().cloned().unwrap_or_default();
                all.iter()
                    .map(|one| text(one, "/name").to_owned())
                    .map(|name| Container::new(&name, behaviour.run(pod, &name, 0)))
                    .collect()
            };
            let new = Pod {
                inits: containers("initContainers"),
                mains: containers("containers"),
                // An address on which nothing listens, so that what the operator asks of pods fails at once.
                address: format!("127.90.{}.{}", self.addresses / 250, self.addresses % 250 + 1),
                started_at: clock.clone(),
                stop: None,
                seen: (Value::Null, None),
            };
            self.running.insert(uid.to_owned(), new);
        }
        let state = self.running.get_mut(uid)?;
        let version = &pod["metadata"]["resourceVersion"];
        if state.seen.0 == *version && state.seen.1.is_none_or(|due| now < due) {
            return state.seen.1;
        }
        if is_going(pod) {
            let at = *state.stop.get_or_insert(now + Duration::from_secs(1));
            if now < at {
                return Some(at);
            }
            self.running.remove(uid);
            server.delete("kubelet", pod, &json!({"gracePeriodSeconds": 0}));
            return None;
        }
        let behaviour = self.behaviour.lock().expect("no plan panics");
        let next = advance(state, pod, &behaviour, now, &clock);
        drop(behaviour);
        let status = status(state, pod, now, &clock);
        state.seen = (version.clone(), next);
        server.change("kubelet", pod, Some("status"), |pod| pod["status"] = status);
        next
    }
}

fn schedule(server: &ApiServer, pod: &Value) {
    let now = server.lock().clock.now();
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let claim = text(volume, "/persistentVolumeClaim/claimName");
        if claim.is_empty() {
            continue;
        }
        let bound = server.get("PersistentVolumeClaim", text(pod, "/metadata/namespace"), claim);
        let message = match bound.as_deref() {
            None => format!("0/1 nodes are available: persistentvolumeclaim {claim:?} not found."),
            Some(claim) if claim["status"]["phase"] != "Bound" => {
                "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.".to_owned()
            }
            Some(_) => continue,
        };
        server.change("scheduler", pod, Some("status"), |pod| {
            condition(&mut pod["status"], "PodScheduled", false, "Unschedulable", &message, &now);
        });
        return;
    }
    server.change("scheduler", pod, None, |pod| pod["spec"]["nodeName"] = json!("node"));
}

/// The ConfigMap or Secret without which no container starts.
fn missing_volume(server: &ApiServer, pod: &Value) -> Option<String> {
    let namespace = text(pod, "/metadata/namespace");
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let in_volumes = volumes.filter_map(|volume| {
        let map = &volume["configMap"];
        let secret = &volume["secret"];
        if map.is_object() && map["optional"] != true {
            Some(("ConfigMap", text(map, "/name").to_owned()))
        } else if secret.is_object() && secret["optional"] != true {
            Some(("Secret", text(secret, "/secretName").to_owned()))
        } else {
            None
        }
    });
    let containers = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    let in_env =
        containers.flat_map(|container| container["env"].as_array().into_iter().flatten()).filter_map(|variable| {
            let refer = |field: &str, kind: &'static str| {
                let reference = &variable["valueFrom"][field];
                (reference.is_object() && reference["optional"] != true)
                    .then(|| (kind, text(reference, "/name").to_owned()))
            };
            refer("configMapKeyRef", "ConfigMap").or_else(|| refer("secretKeyRef", "Secret"))
        });
    let mut all = in_volumes.chain(in_env);
    let (kind, name) = all.find(|(kind, name)| server.get(kind, namespace, name).is_none())?;
    Some(format!("{} {name:?} not found", kind.to_lowercase()))
}

fn waiting(server: &ApiServer, pod: &Value, message: &str, now: &str) {
    server.change("kubelet", pod, Some("status"), |pod| {
        let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let list: Vec<Value> = containers
            .iter()
            .map(|one| {
                json!({
                    "name": one["name"], "image": one["image"], "imageID": "", "restartCount": 0, "ready": false,
                    "state": {"waiting": {"reason": "CreateContainerConfigError", "message": message}}, "lastState": {},
                })
            })
            .collect();
        pod["status"]["containerStatuses"] = json!(list);
        condition(&mut pod["status"], "PodScheduled", true, "", "", now);
        condition(&mut pod["status"], "Ready", false, "ContainersNotReady", message, now);
    });
}

fn advance(state: &mut Pod, pod: &Value, behaviour: &Behaviour, now: Instant, clock: &str) -> Option<Instant> {
    let mut next: Option<Instant> = None;
    let policy = text(pod, "/spec/restartPolicy");
    for init in &mut state.inits {
        if init.exit_code() == Some(0) {
            continue;
        }
        init.start(now, clock);
        next = init.tick(now, clock);
        if init.exit_code() == Some(0) {
            continue;
        }
        if init.exit_code().is_some() && policy != "Never" {
            let name = init.name.clone();
            next = init.restart(now, |restarts| behaviour.run(pod, &name, restarts));
            next = next.or(Some(now));
        }
        return next;
    }
    for main in &mut state.mains {
        main.start(now, clock);
        let mut due = main.tick(now, clock);
        let again = match main.exit_code() {
            Some(0) => policy == "Always",
            Some(_) => policy != "Never",
            None => false,
        };
        if again {
            let name = main.name.clone();
            due = main.restart(now, |restarts| behaviour.run(pod, &name, restarts)).or(Some(now));
        }
        next = [next, due].into_iter().flatten().min();
    }
    next
}

fn status(state: &Pod, pod: &Value, now: Instant, clock: &str) -> Value {
    let mut status = pod["status"].clone();
    let image = |list: &str, name: &str| {
        let all = pod["spec"][list].as_array();
        all.into_iter().flatten().find(|one| one["name"] == name).map(|one| one["image"].clone()).unwrap_or_default()
    };
    let list = |containers: &[Container], field: &str, init: bool| -> Vec<Value> {
        containers.iter().map(|one| one.status(&image(field, &one.name), now, init)).collect()
    };
    if !state.inits.is_empty() {
        status["initContainerStatuses"] = json!(list(&state.inits, "initContainers", true));
    }
    status["containerStatuses"] = json!(list(&state.mains, "containers", false));
    status["podIP"] = json!(state.address);
    status["podIPs"] = json!([{"ip": state.address}]);
    status["hostIP"] = json!("127.0.0.1");
    status["startTime"] = json!(state.started_at);
    let never = text(pod, "/spec/restartPolicy") == "Never";
    let initialized = state.inits.iter().all(|one| one.exit_code() == Some(0));
    let failed_init = never && state.inits.iter().any(|one| one.exit_code().is_some_and(|code| code != 0));
    let ended = state.mains.iter().all(|one| one.exit_code().is_some());
    let all_well = state.mains.iter().all(|one| one.exit_code() == Some(0));
    let restarts = text(pod, "/spec/restartPolicy") == "Always";
    let phase = if failed_init || (ended && never && !all_well) {
        "Failed"
    } else if ended && all_well && !restarts && initialized {
        "Succeeded"
    } else if initialized {
        "Running"
    } else {
        "Pending"
    };
    status["phase"] = json!(phase);
    let ready = initialized && state.mains.iter().all(|one| one.is_ready(now));
    let reason = if ready { "" } else { "ContainersNotReady" };
    condition(&mut status, "PodScheduled", true, "", "", clock);
    condition(
        &mut status,
        "Initialized",
        initialized,
        if initialized { "" } else { "ContainersNotInitialized" },
        "",
        clock,
    );
    condition(&mut status, "ContainersReady", ready, reason, "", clock);
    condition(&mut status, "Ready", ready, reason, "", clock);
    status["observedGeneration"] = json!(number(pod, "/metadata/generation"));
    status
}
