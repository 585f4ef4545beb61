//! Retrieval pods of a generation, and the Service of the one in use.

use k8s_openapi::api::apps::v1::{
    ControllerRevision, Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, Lifecycle, LifecycleHandler, PodSpec, PodTemplateSpec, Probe, Service,
    ServicePort, ServiceSpec, SleepAction,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{confined, labels, pod_security, temporary};
use crate::api::revision::{canonical, short};
use crate::api::{RagIndex, names};
use crate::controllers::apply::Desired;
use crate::controllers::error::Error;
use crate::controllers::pods::{claim, mount, pod_ip};
use crate::controllers::rag_index::Fetched;
use crate::controllers::rag_index::status::reason;
use crate::indexer::job::{GENERATIONS, STORE_MOUNT};

const PORT: i32 = 8080;

/// A generation's Deployment and the template that it keeps.
pub struct Rendered {
    /// Name of the ControllerRevision that holds the template.
    pub template_name: String,
    /// It.
    pub template: Desired,
    /// The Deployment.
    pub deployment: Desired,
}

/// Renders a generation's retrieval. The pod template is stored when it is first rendered and reused as it is until
/// the spec's part in it changes, so that another version of the operator restarts nothing.
///
/// # Errors
/// When an object cannot be written as JSON.
pub fn render(
    image: &str,
    object: &RagIndex,
    fetched: &Fetched,
    generation: &str,
    digest: &str,
) -> Result<Rendered, Error> {
    let failed = |error: serde_json::Error| Error::stalled(reason::INVALID_SPEC, format!("the pod template: {error}"));
    let owner = object.name_any();
    let labels = labels(names::COMPONENT_INDEX, &owner, Some(generation));
    let decides = json!({"digest": digest, "resources": object.spec.resources});
    let hash = short(&canonical(&decides).map_err(failed)?, 6);
    let template_name = format!("{}-{hash}", names::index_generation(generation));
    let stored = fetched.templates.iter().find(|stored| stored.name_any() == template_name);
    let template: Value = match stored.and_then(|stored| stored.data.as_ref()?.0.get("template").cloned()) {
        Some(template) => template,
        None => serde_json::to_value(template(image, object, &owner, generation, digest)).map_err(failed)?,
    };
    let meta =
        |name: &str| ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.clone()), ..ObjectMeta::default() };
    let revision = ControllerRevision {
        metadata: meta(&template_name),
        data: Some(RawExtension(json!({"template": template}))),
        revision: 1,
    };
    let deployment = Deployment {
        metadata: meta(&names::index_generation(generation)),
        spec: Some(DeploymentSpec {
            replicas: Some(object.spec.replicas),
            revision_history_limit: Some(1),
            progress_deadline_seconds: Some(600),
            selector: LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    };
    let mut desired = Desired::new(&deployment)?;
    desired.object["spec"]["template"] = template;
    Ok(Rendered { template: Desired::once(&revision)?, template_name, deployment: desired })
}

fn template(image: &str, object: &RagIndex, owner: &str, generation: &str, digest: &str) -> PodTemplateSpec {
    let (volume, tmp) = temporary();
    let probe = |path: &str, period: i32, failures: i32| Probe {
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
    let args = [
        "index".to_owned(),
        "serve".to_owned(),
        "--dir".to_owned(),
        format!("{STORE_MOUNT}/{GENERATIONS}/{generation}"),
        "--digest".to_owned(),
        digest.to_owned(),
        "--listen".to_owned(),
        format!("$(POD_IP):{PORT}"),
    ];
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(names::COMPONENT_INDEX, owner, Some(generation))),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "index".to_owned(),
                image: Some(image.to_owned()),
                args: Some(args.to_vec()),
                env: Some(vec![pod_ip()]),
                ports: Some(vec![ContainerPort {
                    name: Some(names::PORT_NAME.to_owned()),
                    container_port: PORT,
                    ..ContainerPort::default()
                }]),
                resources: object.spec.resources.clone(),
                // Loading and warming a large generation may take minutes; nothing else probes before that.
                startup_probe: Some(probe("/readyz", 1, 600)),
                readiness_probe: Some(probe("/readyz", 5, 2)),
                liveness_probe: Some(probe("/livez", 10, 6)),
                // Whoever still has the address goes on being answered while the news spreads.
                lifecycle: Some(Lifecycle {
                    pre_stop: Some(LifecycleHandler {
                        sleep: Some(SleepAction { seconds: 5 }),
                        ..LifecycleHandler::default()
                    }),
                    ..Lifecycle::default()
                }),
                termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
                volume_mounts: Some(vec![mount("store", STORE_MOUNT, true), tmp]),
                security_context: Some(confined()),
                ..Container::default()
            }],
            volumes: Some(vec![claim("store", &names::index_store(owner), false), volume]),
            termination_grace_period_seconds: Some(60),
            enable_service_links: Some(false),
            automount_service_account_token: Some(false),
            security_context: Some(pod_security()),
            ..PodSpec::default()
        }),
    }
}

/// The Service of the generation in use.
pub fn service(index: &str, generation: &str) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some(names::index_service(index)),
            labels: Some(labels(names::COMPONENT_INDEX, index, None)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(labels(names::COMPONENT_INDEX, index, Some(generation))),
            ports: Some(vec![ServicePort {
                name: Some(names::PORT_NAME.to_owned()),
                port: PORT,
                target_port: Some(IntOrString::String(names::PORT_NAME.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
