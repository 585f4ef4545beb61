//! The build Job.

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EnvVar, KeyToPath, PodSpec, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{confined, job_name, labels, pod_security, temporary};
use crate::api::rag_index::RagIndexStatus;
use crate::api::{RagIndex, names};
use crate::controllers::error::Error;
use crate::controllers::pods::{claim, mount};
use crate::controllers::rag_index::status::reason;
use crate::controllers::rag_index::validate::{Inputs, Mount};
use crate::indexer::job::{EXIT_CONFIGURATION, GOLDEN_MOUNT, PLAN_ENV, SOURCES_MOUNT, STORE_MOUNT};

const CONTAINER: &str = "builder";

/// Renders the Job that builds these inputs.
///
/// # Errors
/// When the plan cannot be written as JSON.
pub fn render(
    image: &str,
    object: &RagIndex,
    inputs: &Inputs,
    status: &RagIndexStatus,
    attempt: i32,
) -> Result<Job, Error> {
    let name = object.name_any();
    let mut plan = inputs.plan.clone();
    plan.active = status.active.as_ref().map(|active| active.name.clone());
    plan.keep = plan.active.iter().cloned().collect();
    let plan = serde_json::to_string(&plan)
        .map_err(|error| Error::stalled(reason::INVALID_SPEC, format!("the build plan: {error}")))?;
    let (volume, tmp) = temporary();
    let mut volumes = vec![claim("store", &names::index_store(&name), false), volume];
    let mut mounts = vec![mount("store", STORE_MOUNT, false), tmp];
    for (index, (source, from)) in inputs.plan.sources.iter().zip(&inputs.mounts).enumerate() {
        let volume = format!("source-{index}");
        mounts.push(mount(&volume, &format!("{SOURCES_MOUNT}/{}", source.name), true));
        volumes.push(match from {
            Mount::Claim(name) => claim(&volume, name, true),
            Mount::ConfigMap(name) => config_map(&volume, name, None),
        });
    }
    if let Some(golden) = &inputs.golden {
        mounts.push(mount("golden", GOLDEN_MOUNT, true));
        volumes.push(config_map("golden", &golden.name, Some(&golden.key)));
    }
    let labels = labels(names::COMPONENT_INDEX_BUILD, &name, Some(&inputs.hash));
    let job = &object.spec.job;
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(job_name(&name, &inputs.hash, attempt)),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(job.backoff_limit),
            active_deadline_seconds: Some(job.active_deadline_seconds),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    restart_policy: Some("Never".to_owned()),
                    containers: vec![Container {
                        name: CONTAINER.to_owned(),
                        image: Some(image.to_owned()),
                        args: Some(vec!["index".to_owned(), "build".to_owned()]),
                        // Kubernetes expands $(NAME) and $$ in values of variables. JSON can do without dollars.
                        env: Some(vec![EnvVar {
                            name: PLAN_ENV.to_owned(),
                            value: Some(plan.replace('$', "\\u0024")),
                            ..EnvVar::default()
                        }]),
                        resources: job.resources.clone(),
                        volume_mounts: Some(mounts),
                        security_context: Some(confined()),
                        ..Container::default()
                    }],
                    volumes: Some(volumes),
                    termination_grace_period_seconds: Some(30),
                    enable_service_links: Some(false),
                    automount_service_account_token: Some(false),
                    security_context: Some(pod_security()),
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

/// A drained node costs no try; a mistake that no retry mends ends the Job at once.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".to_owned(),
                    status: "True".to_owned(),
                }]),
                ..PodFailurePolicyRule::default()
            },
            PodFailurePolicyRule {
                action: "FailJob".to_owned(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(CONTAINER.to_owned()),
                    operator: "In".to_owned(),
                    values: vec![i32::from(EXIT_CONFIGURATION)],
                }),
                ..PodFailurePolicyRule::default()
            },
        ],
    }
}

fn config_map(volume: &str, name: &str, key: Option<&str>) -> Volume {
    let item = |key: &str| KeyToPath { key: key.to_owned(), path: key.to_owned(), ..KeyToPath::default() };
    Volume {
        name: volume.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: name.to_owned(),
            items: key.map(|key| vec![item(key)]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
