//! Reads Deployments and pods, pure: whether they are ready, and if not, why, in words that people can act on.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use kube::ResourceExt as _;

/// Counts of a Deployment, only as far as they describe its current spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wanted pods.
    pub desired: i32,
    /// Pods of the current template.
    pub updated: i32,
    /// Ready pods of the current template.
    pub ready: i32,
    /// Whether the counts are those of the current spec.
    pub observed: bool,
}

impl Counts {
    /// Reads a Deployment.
    pub fn of(deployment: &Deployment) -> Self {
        let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let generation = deployment.metadata.generation.unwrap_or_default();
        let Some(status) = &deployment.status else { return Self { desired, ..Self::default() } };
        let updated = status.updated_replicas.unwrap_or_default();
        Self {
            desired,
            updated,
            ready: status.available_replicas.unwrap_or_default().min(updated),
            observed: status.observed_generation.is_some_and(|observed| observed >= generation),
        }
    }

    /// Whether all wanted pods are of the current template and available.
    pub fn complete(self) -> bool {
        self.observed && self.updated >= self.desired && self.ready >= self.desired
    }
}

/// What keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The kind of trouble.
    pub cause: Cause,
    /// A sentence that names the pod and container.
    pub message: String,
    /// How often the container was restarted.
    pub restarts: i32,
}

/// Kinds of trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An init container failed with this termination message.
    InitFailed {
        /// Name of the container.
        container: String,
        /// Exit code.
        code: i32,
        /// Its last words.
        message: String,
    },
    /// A container was killed because it used more memory than its limit.
    OutOfMemory,
    /// A container ended although it should run.
    Crashed {
        /// Exit code.
        code: i32,
        /// Its last words.
        message: String,
    },
    /// An image cannot be had.
    ImagePull,
    /// A container cannot be created from the pod's spec (a key of a Secret or ConfigMap is missing, for example).
    CannotCreate,
    /// No node has room.
    Unschedulable {
        /// Whether an accelerator or another extended resource is what lacks.
        extended: bool,
    },
    /// The Deployment may not create pods (a quota, an admission policy).
    NotAdmitted,
}

/// The trouble of a pod, the most telling first.
pub fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    init_trouble(&name, status).or_else(|| container_trouble(&name, status)).or_else(|| scheduling(&name, status))
}

/// Whether all pods of the Deployment's template were available at some time, whatever became of them since.
pub fn was_available(deployment: &Deployment) -> bool {
    let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("NewReplicaSetAvailable"))
}

/// What keeps a Deployment from creating pods.
pub fn not_admitted(deployment: &Deployment) -> Option<Trouble> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    let message = failure.message.clone().unwrap_or_default();
    let message = format!("Deployment {:?} cannot create pods: {message}", deployment.name_any());
    Some(Trouble { cause: Cause::NotAdmitted, message, restarts: 0 })
}

fn init_trouble(pod: &str, status: &PodStatus) -> Option<Trouble> {
    status.init_container_statuses.iter().flatten().find_map(|container| {
        let ended = ended(container).filter(|ended| ended.exit_code != 0);
        match ended {
            Some(ended) => {
                let message = ended.message.clone().unwrap_or_default();
                let text = format!("init container {:?} of pod {pod:?} failed: {}", container.name, last_words(ended));
                let cause = Cause::InitFailed { container: container.name.clone(), code: ended.exit_code, message };
                Some(Trouble { cause, message: text, restarts: container.restart_count })
            }
            None => waiting(pod, container),
        }
    })
}

fn container_trouble(pod: &str, status: &PodStatus) -> Option<Trouble> {
    status.container_statuses.iter().flatten().find_map(|container| {
        // While it runs again and answers, what it died of before is history.
        if container.ready {
            return None;
        }
        if let Some(trouble) = waiting(pod, container) {
            return Some(trouble);
        }
        let ended = ended(container)?;
        let out_of_memory = ended.reason.as_deref() == Some("OOMKilled");
        let what = if out_of_memory {
            "was killed because it used more memory than its limit".to_owned()
        } else {
            format!("ended: {}", last_words(ended))
        };
        let message = ended.message.clone().unwrap_or_default();
        Some(Trouble {
            cause: if out_of_memory { Cause::OutOfMemory } else { Cause::Crashed { code: ended.exit_code, message } },
            message: format!("container {:?} of pod {pod:?} {what}", container.name),
            restarts: container.restart_count,
        })
    })
}

fn ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = || container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or_else(before)
}

fn last_words(ended: &ContainerStateTerminated) -> String {
    let said = ended.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let how = match (ended.signal, ended.exit_code) {
        (Some(signal), _) if signal != 0 => format!("signal {signal}"),
        (_, code) => format!("exit code {code}"),
    };
    match said {
        // The end of a log says most.
        Some(text) => format!("{how}; it said: {}", tail(text, 300)),
        None => how,
    }
}

fn tail(text: &str, chars: usize) -> String {
    let count = text.chars().count();
    if count <= chars {
        text.to_owned()
    } else {
        format!("…{}", text.chars().skip(count - chars).collect::<String>())
    }
}

fn waiting(pod: &str, container: &ContainerStatus) -> Option<Trouble> {
    let Some(ContainerState { waiting: Some(waiting), .. }) = &container.state else { return None };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let cause = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => Cause::ImagePull,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Cause::CannotCreate,
        _ => return None,
    };
    let said = waiting.message.as_deref().unwrap_or_default();
    Some(Trouble {
        cause,
        message: format!("container {:?} of pod {pod:?}: {reason}: {said}", container.name),
        restarts: container.restart_count,
    })
}

fn scheduling(pod: &str, status: &PodStatus) -> Option<Trouble> {
    let condition = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let said = condition.message.as_deref().unwrap_or_default();
    // Extended resources have a domain in their name; cpu, memory and pods have none.
    let lacks = said.split("Insufficient ").skip(1).filter_map(|rest| rest.split([',', ' ']).next());
    let extended = lacks.into_iter().any(|name| name.contains('/'));
    let message = format!("pod {pod:?} finds no node: {said}");
    Some(Trouble { cause: Cause::Unschedulable { extended }, message, restarts: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[test]
    fn counts_of_another_generation_do_not_count() {
        let deployment = |generation, observed| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"generation": generation}, "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": observed, "updatedReplicas": 2, "availableReplicas": 2}}))
            .unwrap()
        };
        assert!(Counts::of(&deployment(3, 3)).complete());
        assert!(!Counts::of(&deployment(4, 3)).complete());
    }

    #[test]
    fn names_the_trouble() {
        let crashed = pod(
            json!({"containerStatuses": [{"name": "engine", "ready": false, "restartCount": 4, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "error loading model"}}}]}),
        );
        let trouble_of = trouble(&crashed).unwrap();
        assert_eq!(trouble_of.cause, Cause::Crashed { code: 1, message: "error loading model".into() });
        assert_eq!(
            trouble_of.message,
            "container \"engine\" of pod \"p\" ended: exit code 1; it said: error loading model"
        );
        let killed = pod(
            json!({"containerStatuses": [{"name": "engine", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
        );
        assert_eq!(trouble(&killed).unwrap().cause, Cause::OutOfMemory);
        let recovered = pod(
            json!({"containerStatuses": [{"name": "engine", "ready": true, "restartCount": 1, "image": "", "imageID": "",
            "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
        );
        assert_eq!(trouble(&recovered), None);
        for (said, extended) in [
            ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", true),
            ("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.", false),
        ] {
            let pending = pod(json!({"conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}]}));
            assert_eq!(trouble(&pending).unwrap().cause, Cause::Unschedulable { extended });
        }
        let digest = pod(
            json!({"initContainerStatuses": [{"name": "fetch", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 42, "message": "{}"}}}]}),
        );
        assert!(matches!(trouble(&digest).unwrap().cause, Cause::InitFailed { code: 42, .. }));
    }
}
