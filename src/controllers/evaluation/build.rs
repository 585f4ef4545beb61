//! The Job of a run, and what it needs to ask the gateway. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector,
    PodSecurityContext, PodSpec, PodTemplateSpec, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
    SecurityContext, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::core::ObjectMeta;

use super::fetch::Fetched;
use super::reason;
use super::runs::{self, JobState, history, is_lost, run_of};
use super::validate::ValidatedEvaluation;
use crate::api::evaluation::{Run, RunPhase};
use crate::api::{Evaluation, names};
use crate::controllers::apply::{Desired, Removal};
use crate::controllers::error::Error;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::Plan;
use crate::evaluator::plan::{
    DATASET_MOUNT, DEADLINE_MARGIN, EXIT_CONFIGURATION, EvaluationPlan, JOB_ENV, PLAN_ENV, TOKEN_AUDIENCE, TOKEN_MOUNT,
};

/// Name of the Job's container; the failure policy names it too.
const CONTAINER: &str = "evaluate";
/// ClusterRole of the chart that lets a run ask pinned revisions and store reports.
pub const EVALUATOR_ROLE: &str = "llmops-evaluator";
/// Attempts after the first; each asks what was not answered yet.
const BACKOFF_LIMIT: i32 = 2;

/// The run that the present state asks for, before its Job has said anything.
pub fn current_run(validated: &ValidatedEvaluation) -> Run {
    Run {
        name: validated.plan.run.clone(),
        revisions: validated.plan.revisions.clone(),
        dependencies: validated.plan.dependencies.clone(),
        stale: false,
        dataset_digest: validated.plan.dataset.digest.clone(),
        phase: RunPhase::Running,
        verdict: None,
        message: String::new(),
        started: None,
        finished: None,
        cases: i32::try_from(validated.cases).unwrap_or(i32::MAX),
        errors: 0,
        cost: None,
        metrics: Vec::new(),
        report_url: None,
    }
}

/// Decides which Job there should be, and which should go.
///
/// # Errors
/// When an object cannot be written as JSON.
pub fn build(
    object: &Evaluation,
    fetched: &Fetched,
    validated: &ValidatedEvaluation,
    image: &str,
) -> Result<Plan<Evaluation, ()>, Error> {
    let plan = &validated.plan;
    let previous = object.status.as_ref().map(|status| status.runs.as_slice()).unwrap_or_default();
    let limit = usize::try_from(object.spec.history_limit).unwrap_or(1);
    let runs = history(previous, Some(current_run(validated)), &fetched.jobs, &fetched.pods, limit, |_| String::new());
    let running = runs.first().is_some_and(|run| run.phase == RunPhase::Running);
    let own = fetched.jobs.iter().find(|job| run_of(job) == Some(plan.run.as_str()));
    // Its verdict is lost: the Job must be gone before one of the same name can be made.
    let lost = running && own.is_some_and(|job| is_lost(job, &fetched.pods));
    let mut desired = vec![Desired::new(&account(object))?, Desired::new(&binding(object))?];
    if running && !lost {
        desired.push(Desired::once(&job(object, plan, image)?)?);
    }
    let kept = |job: &Job| {
        let run = run_of(job).unwrap_or_default();
        let is_current = run == plan.run;
        if is_current {
            return !lost;
        }
        runs.iter().any(|kept| kept.name == run) && runs::state(job, &fetched.pods) != JobState::Running
    };
    let removals = fetched.jobs.iter().filter(|job| !kept(job)).map(|job| Removal::new(Kind::Job, job.name_any()));
    Ok(Plan { record: None, desired, removals: removals.collect(), notes: () })
}

fn labels(object: &Evaluation) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::MANAGED_BY.to_owned()),
        (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_EVALUATION.to_owned()),
        (names::LABEL_OWNER.to_owned(), object.name_any()),
    ])
}

fn meta(object: &Evaluation, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: object.namespace(), labels: Some(labels), ..ObjectMeta::default() }
}

fn account(object: &Evaluation) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(object, names::evaluation_account(&object.name_any()), labels(object)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn binding(object: &Evaluation) -> RoleBinding {
    let name = names::evaluation_account(&object.name_any());
    RoleBinding {
        metadata: meta(object, name.clone(), labels(object)),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: EVALUATOR_ROLE.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name,
            namespace: object.namespace(),
            ..Subject::default()
        }]),
    }
}

fn job(object: &Evaluation, plan: &EvaluationPlan, image: &str) -> Result<Job, Error> {
    let text = serde_json::to_string(plan).map_err(|error| {
        Error::stalled(reason::INVALID_SPEC, format!("spec: it cannot be written as JSON: {error}"))
    })?;
    // Kubernetes expands $(NAME) and $$ in values of variables; patterns are full of dollars. JSON can do without them.
    let text = text.replace('$', "\\u0024");
    let mut labels = labels(object);
    labels.insert(names::LABEL_REVISION.to_owned(), plan.run.clone());
    let deadline = Duration::from(plan.budget.timeout).saturating_add(DEADLINE_MARGIN);
    Ok(Job {
        metadata: meta(object, names::evaluation_run(&object.name_any(), &plan.run), labels.clone()),
        spec: Some(JobSpec {
            active_deadline_seconds: Some(i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX)),
            backoff_limit: Some(BACKOFF_LIMIT),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(object, plan, image, text)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

/// A mistake that a retry cannot mend ends the Job at once; a pod that was moved for the node's sake is no failure.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(CONTAINER.into()),
                    operator: "In".into(),
                    values: vec![i32::from(EXIT_CONFIGURATION)],
                }),
                ..PodFailurePolicyRule::default()
            },
            PodFailurePolicyRule {
                action: "Ignore".into(),
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".into(),
                    status: "True".into(),
                }]),
                ..PodFailurePolicyRule::default()
            },
        ],
    }
}

/// The UID of the Job, which the Job controller writes into its pods' labels: a Job that is made anew asks everything anew.
fn job_uid() -> EnvVar {
    let field_path = "metadata.labels['batch.kubernetes.io/controller-uid']".into();
    let field_ref = Some(ObjectFieldSelector { field_path, ..ObjectFieldSelector::default() });
    let value_from = Some(EnvVarSource { field_ref, ..EnvVarSource::default() });
    EnvVar { name: JOB_ENV.into(), value_from, ..EnvVar::default() }
}

fn pod(object: &Evaluation, plan: &EvaluationPlan, image: &str, text: String) -> PodSpec {
    let quantities = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    PodSpec {
        service_account_name: Some(names::evaluation_account(&object.name_any())),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".into()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(image.to_owned()),
            args: Some(vec!["evaluate".into()]),
            env: Some(vec![EnvVar { name: PLAN_ENV.into(), value: Some(text), ..EnvVar::default() }, job_uid()]),
            resources: Some(ResourceRequirements {
                requests: quantities("50m", "128Mi"),
                ..ResourceRequirements::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(vec![mount("dataset", DATASET_MOUNT), mount("token", TOKEN_MOUNT)]),
            ..Container::default()
        }],
        volumes: Some(vec![
            Volume {
                name: "dataset".into(),
                config_map: Some(ConfigMapVolumeSource {
                    name: plan.dataset.config_map.clone(),
                    items: Some(vec![KeyToPath {
                        key: plan.dataset.key.clone(),
                        path: plan.dataset.key.clone(),
                        ..KeyToPath::default()
                    }]),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            Volume {
                name: "token".into(),
                projected: Some(ProjectedVolumeSource {
                    sources: Some(vec![VolumeProjection {
                        service_account_token: Some(ServiceAccountTokenProjection {
                            audience: Some(TOKEN_AUDIENCE.into()),
                            expiration_seconds: Some(3600),
                            path: "token".into(),
                        }),
                        ..VolumeProjection::default()
                    }]),
                    ..ProjectedVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}
