//! The pod template of a revision. Rendered once a revision and then kept: see [`super::super::revision::Stored`].

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle,
    LifecycleHandler, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretKeySelector, SecurityContext, SleepAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::super::engines::{Input, ModelPath, Rendered, custom, llama_cpp};
use super::super::fetch::PROGRESS_PORT;
use super::super::reasons::INVALID_SPEC;
use super::super::revision::labels;
use super::{ENGINE, FETCH, patch};
use crate::api::model_deployment::{Engine, EngineType, HttpSource, ModelDeployment};
use crate::api::names;
use crate::api::refs::PvcPath;
use crate::controllers::error::Error;
use crate::controllers::pods::{claim, mount, pod_ip};

const SOURCE_MOUNT: &str = "/models/source";
const CACHE_MOUNT: &str = "/models/cache";
/// Time beside the drain for the engine's own end.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// User and group of the pods: nobody in the usual distroless images.
const USER: i64 = 65532;

/// Renders the pod template of a revision.
///
/// # Errors
/// [`Error::Stalled`] when `podTemplatePatch` does not fit.
pub fn render(object: &ModelDeployment, revision: &str, image: &str) -> Result<PodTemplateSpec, Error> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let Some(engine) = &object.spec.engine else {
        return Err(Error::stalled(INVALID_SPEC, "spec.engine is missing"));
    };
    let model = ModelVolume::of(object, name, image);
    let path = model.as_ref().map(|model| model.path.clone());
    let served = object.spec.model.as_ref().and_then(|model| model.name.as_deref()).unwrap_or(name);
    let input = Input { engine, task: object.spec.task, model_name: served, model_path: path.as_ref() };
    let rendered = match engine.r#type {
        EngineType::LlamaCpp => Some(llama_cpp::render(&input)),
        EngineType::Custom => custom::render(&input),
    };
    let rendered = rendered.ok_or_else(|| {
        Error::stalled(INVALID_SPEC, "engine type Custom needs spec.engine.image and spec.engine.custom")
    })?;
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(name, Some(revision))), ..ObjectMeta::default() }),
        spec: Some(pod(object, engine, &rendered, model)),
    };
    match &object.spec.pod_template_patch {
        Some(changes) => {
            patch::apply(&template, changes).map_err(|error| Error::stalled(INVALID_SPEC, error.to_string()))
        }
        None => Ok(template),
    }
}

fn pod(object: &ModelDeployment, engine: &Engine, rendered: &Rendered, model: Option<ModelVolume>) -> PodSpec {
    let drain = Duration::from(object.spec.rollout.drain);
    let scheduling = object.spec.scheduling.clone().unwrap_or_default();
    let mut volumes: Vec<Volume> = model.iter().map(|model| model.volume.clone()).collect();
    let mut mounts: Vec<VolumeMount> = model.iter().map(|model| model.mount.clone()).collect();
    if rendered.read_only_root {
        volumes.push(Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
        mounts.push(VolumeMount { name: "tmp".to_owned(), mount_path: "/tmp".to_owned(), ..VolumeMount::default() });
    }
    let mut env = rendered.env.clone();
    env.extend(engine.env.iter().cloned());
    PodSpec {
        init_containers: model.and_then(|model| model.fetch).map(|fetch| vec![fetch]),
        containers: vec![Container {
            name: ENGINE.to_owned(),
            image: Some(rendered.image.clone()),
            command: rendered.command.clone(),
            args: (!rendered.args.is_empty()).then(|| rendered.args.clone()),
            env: Some(env),
            ports: Some(vec![ContainerPort {
                name: Some(names::PORT_NAME.to_owned()),
                container_port: rendered.port,
                ..ContainerPort::default()
            }]),
            resources: object.spec.resources.clone(),
            volume_mounts: (!mounts.is_empty()).then_some(mounts),
            lifecycle: stop_after(drain),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            security_context: Some(confined(rendered.read_only_root)),
            ..probed(object, &rendered.health_path)
        }],
        volumes: (!volumes.is_empty()).then_some(volumes),
        termination_grace_period_seconds: Some(seconds(drain + STOP_MARGIN)),
        enable_service_links: Some(false),
        automount_service_account_token: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!scheduling.node_selector.is_empty()).then_some(scheduling.node_selector),
        tolerations: (!scheduling.tolerations.is_empty()).then_some(scheduling.tolerations),
        priority_class_name: scheduling.priority_class_name,
        topology_spread_constraints: (!scheduling.topology_spread_constraints.is_empty())
            .then_some(scheduling.topology_spread_constraints),
        ..PodSpec::default()
    }
}

/// A stopping pod answers what it has begun: the gateway stops choosing it as soon as it is being deleted, and the
/// engine, which would cut its streams on SIGTERM, gets the signal only after the drain.
fn stop_after(drain: Duration) -> Option<Lifecycle> {
    let seconds = seconds(drain);
    (seconds > 0).then(|| Lifecycle {
        pre_stop: Some(LifecycleHandler { sleep: Some(SleepAction { seconds }), ..LifecycleHandler::default() }),
        ..Lifecycle::default()
    })
}

fn probed(object: &ModelDeployment, path: &str) -> Container {
    let probe = |period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(names::PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    const START_PERIOD: i32 = 2;
    let load = i32::try_from(Duration::from(object.spec.startup.load_timeout).as_secs()).unwrap_or(i32::MAX);
    Container {
        // Nothing else probes until the model is loaded, so that loading for long is not taken for hanging.
        startup_probe: Some(probe(START_PERIOD, (load / START_PERIOD).max(1))),
        readiness_probe: Some(probe(5, 2)),
        liveness_probe: Some(probe(10, 6)),
        ..Container::default()
    }
}

fn confined(read_only_root: bool) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: read_only_root.then_some(true),
        ..SecurityContext::default()
    }
}

/// The model's volume, and the download into it.
struct ModelVolume {
    volume: Volume,
    mount: VolumeMount,
    path: ModelPath,
    fetch: Option<Container>,
}

impl ModelVolume {
    fn of(object: &ModelDeployment, name: &str, image: &str) -> Option<Self> {
        let source = object.spec.model.as_ref()?.source.as_ref()?;
        if let Some(pvc) = &source.pvc {
            return Some(Self::mounted(pvc));
        }
        source.http.as_ref().map(|http| Self::downloaded(object, name, http, image))
    }

    fn mounted(pvc: &PvcPath) -> Self {
        Self {
            volume: claim("model", &pvc.claim_name, true),
            mount: mount("model", SOURCE_MOUNT, true),
            path: ModelPath::below(SOURCE_MOUNT, &pvc.path),
            fetch: None,
        }
    }

    fn downloaded(object: &ModelDeployment, name: &str, http: &HttpSource, image: &str) -> Self {
        let path = ModelPath::below(CACHE_MOUNT, &format!("{}/{}", http.sha256, file_name(&http.url)));
        let stall = Duration::from(object.spec.startup.download_timeout).as_secs();
        let args = [
            "fetch",
            "--url",
            &http.url,
            "--sha256",
            &http.sha256,
            "--out",
            &path.0,
            "--progress-listen",
            &format!("$(POD_IP):{PROGRESS_PORT}"),
            "--stall-timeout",
            &format!("{stall}s"),
        ];
        let mut env = vec![pod_ip()];
        if let Some(secret) = object.spec.model.as_ref().and_then(|model| model.credentials_ref.as_ref()) {
            env.push(token(&secret.name));
        }
        let quantity = |text: &str| Quantity(text.to_owned());
        let fetch = Container {
            name: FETCH.to_owned(),
            image: Some(image.to_owned()),
            args: Some(args.into_iter().map(escaped).collect()),
            env: Some(env),
            volume_mounts: Some(vec![mount("cache", CACHE_MOUNT, false)]),
            resources: Some(ResourceRequirements {
                requests: Some([("cpu".to_owned(), quantity("100m")), ("memory".to_owned(), quantity("64Mi"))].into()),
                limits: Some([("memory".to_owned(), quantity("256Mi"))].into()),
                ..ResourceRequirements::default()
            }),
            security_context: Some(confined(true)),
            ..Container::default()
        };
        Self {
            volume: claim("cache", &names::model_cache(name), false),
            mount: mount("cache", CACHE_MOUNT, true),
            path,
            fetch: Some(fetch),
        }
    }
}

/// The address and file name come from the spec: what Kubernetes would replace in them must reach the program as it is.
fn escaped(arg: &str) -> String {
    if arg.starts_with("$(POD_IP)") { arg.to_owned() } else { arg.replace("$(", "$$(") }
}

fn token(secret: &str) -> EnvVar {
    EnvVar {
        name: "LLMOPS_FETCH_TOKEN".to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: "token".to_owned(),
                ..SecretKeySelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// File name of a download: the last part of the address's path, as far as it is a plain name.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let last = path.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let last = last.rsplit('/').next().unwrap_or_default();
    let plain: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    if plain.trim_matches('.').is_empty() { "model.gguf".to_owned() } else { plain }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_keeps_its_plain_name() {
        for (url, name) in [
            ("https://example.com/a/SmolLM2.Q4_1.gguf?download=true", "SmolLM2.Q4_1.gguf"),
            ("https://example.com", "model.gguf"),
            ("https://example.com/", "model.gguf"),
            ("https://example.com/..", "model.gguf"),
            ("http://h/%2e%2e$(X)", "2e2eX"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
