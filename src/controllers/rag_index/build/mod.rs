//! What an index owns, rendered: store claim, build Job, retrieval Deployments with their stored templates, Service.

mod job;
mod server;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Capabilities, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSecurityContext, SeccompProfile,
    SecurityContext, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::Fetched;
use super::advance::{Step, advance, generation_of, may_retire};
use super::job_outcome::{Outcome, earlier_builder, outcome};
use super::validate::Validated;
use crate::api::rag_index::{AccessMode, CandidateGeneration, CandidatePhase, RagIndexStatus};
use crate::api::revision::short;
use crate::api::{RagIndex, names};
use crate::controllers::apply::{Desired, Removal};
use crate::controllers::error::Error;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::Plan;
use crate::controllers::pods::mount;

/// User and group of our pods: nobody in the usual distroless images.
const USER: i64 = 65532;

/// Name of a build Job: by the inputs, and from the second attempt on by the attempt too.
pub fn job_name(index: &str, inputs: &str, attempt: i32) -> String {
    if attempt <= 1 {
        return names::index_build(index, inputs);
    }
    names::index_build(index, &short(&format!("{inputs}#{attempt}"), inputs.len()))
}

/// Decides the step and renders what it needs.
///
/// # Errors
/// When an object cannot be written as JSON.
pub fn plan(
    image: &str,
    object: &RagIndex,
    fetched: &Fetched,
    validated: &Validated,
    now: Timestamp,
) -> Result<Plan<RagIndex, Step>, Error> {
    let step = advance(object, fetched, validated, now);
    let name = object.name_any();
    let mut desired = vec![Desired::once(&store(object, &name))?];
    let mut generations: Vec<(&str, &str)> = Vec::new();
    if let Some(active) = &step.status.active {
        generations.push((&active.name, &active.digest));
    }
    let mut job = None;
    if let Some(candidate) = &step.status.candidate {
        match candidate.phase {
            CandidatePhase::Starting | CandidatePhase::Gating | CandidatePhase::AwaitingApproval => {
                let named = candidate.name.as_deref().zip(candidate.digest.as_deref());
                generations.extend(named.filter(|new| !generations.iter().any(|known| known.0 == new.0)));
            }
            CandidatePhase::Building => {
                job = Some(job_name(&name, &candidate.inputs, candidate.attempt));
                let made = fetched.jobs.iter().find(|made| Some(made.name_any()) == job);
                if let Ok(inputs) = &validated.inputs
                    && inputs.hash == candidate.inputs
                    && (made.is_some() || earlier_builder(&fetched.pods).is_none())
                {
                    let job = job::render(image, object, inputs, &step.status, candidate.attempt)?;
                    desired.push(Desired::once(&job)?);
                }
            }
            CandidatePhase::Failed => job = Some(job_name(&name, &candidate.inputs, candidate.attempt)),
        }
    }
    let mut templates = Vec::new();
    for (generation, digest) in &generations {
        let rendered = server::render(image, object, fetched, generation, digest)?;
        templates.push(rendered.template_name);
        desired.extend([rendered.template, rendered.deployment]);
    }
    if let Some(active) = &step.status.active {
        desired.push(Desired::new(&server::service(&name, &active.name))?);
    }
    if let Some(grown) = grown_store(object, fetched, &name)? {
        desired.push(grown);
    }
    let removals = removals(&name, fetched, &step, &generations, &templates, job.as_deref(), now);
    let record = needs_record(object.status.as_ref(), &step.status).then(|| step.status.clone());
    Ok(Plan { record, desired, removals, notes: step })
}

/// Whether the step decides something that later writes depend on.
fn needs_record(before: Option<&RagIndexStatus>, after: &RagIndexStatus) -> bool {
    let empty = RagIndexStatus::default();
    let before = before.unwrap_or(&empty);
    before.active != after.active
        || before.candidate != after.candidate
        || before.rejected_generations != after.rejected_generations
        || before.last_handled_rollout_request != after.last_handled_rollout_request
}

fn removals(
    name: &str,
    fetched: &Fetched,
    step: &Step,
    generations: &[(&str, &str)],
    templates: &[String],
    job: Option<&str>,
    now: Timestamp,
) -> Vec<Removal> {
    let mut removals = Vec::new();
    // At most one build at a time: the Job of other inputs goes. Of finished ones the last is kept, to be looked at.
    let newest = fetched
        .jobs
        .iter()
        .max_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0))
        .map(ResourceExt::name_any);
    let waits = |candidate: &&CandidateGeneration| {
        matches!(candidate.phase, CandidatePhase::Starting | CandidatePhase::Gating | CandidatePhase::AwaitingApproval)
    };
    let starting = step.status.candidate.as_ref().filter(waits);
    let keep = job
        .map(str::to_owned)
        .or_else(|| starting.map(|candidate| job_name(name, &candidate.inputs, candidate.attempt)))
        .or_else(|| newest.filter(|newest| is_finished(fetched, newest)));
    for job in &fetched.jobs {
        let name = job.name_any();
        if Some(&name) != keep.as_ref() {
            removals.push(Removal::new(Kind::Job, name));
        }
    }
    if may_retire(step.status.active.as_ref(), now) {
        for deployment in &fetched.deployments {
            let serves = generation_of(deployment).is_some_and(|name| generations.iter().any(|known| known.0 == name));
            if !serves {
                removals.push(Removal::new(Kind::Deployment, deployment.name_any()));
            }
        }
        for template in &fetched.templates {
            let name = template.name_any();
            if !templates.contains(&name) {
                removals.push(Removal::new(Kind::ControllerRevision, name));
            }
        }
    }
    removals
}

/// A Job that still runs without being the candidate's is superseded.
fn is_finished(fetched: &Fetched, name: &str) -> bool {
    let job = fetched.jobs.iter().find(|job| job.name_any() == name);
    job.is_some_and(|job| !matches!(outcome(job, &[]), Outcome::Running(_)))
}

fn store(object: &RagIndex, name: &str) -> PersistentVolumeClaim {
    let volume = &object.spec.store.embedded.volume;
    let mode = match volume.access_mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteMany => "ReadWriteMany",
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::index_store(name)),
            labels: Some(labels(names::COMPONENT_INDEX, name, None)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![mode.to_owned()]),
            storage_class_name: volume.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(volume.size.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The claim with a larger size, when the spec asks for one. It comes last: a class that does not grow refuses it,
/// and nothing else shall wait for that.
fn grown_store(object: &RagIndex, fetched: &Fetched, name: &str) -> Result<Option<Desired>, Error> {
    let live = fetched
        .store
        .as_ref()
        .and_then(|claim| claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let wanted = &object.spec.store.embedded.volume.size;
    let grows = live.and_then(|live| Some(bytes(wanted)? > bytes(&live.0)?)).unwrap_or(false);
    grows.then(|| Desired::new(&store(object, name))).transpose()
}

/// Bytes of a quantity of the form that the schema admits.
fn bytes(quantity: &str) -> Option<f64> {
    let digits = quantity.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match quantity.get(digits.len()..)? {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * scale)
}

pub(super) fn labels(component: &str, owner: &str, revision: Option<&str>) -> BTreeMap<String, String> {
    let fixed = [
        (names::LABEL_MANAGED_BY, names::MANAGED_BY),
        (names::LABEL_COMPONENT, component),
        (names::LABEL_OWNER, owner),
    ];
    let revision = revision.map(|revision| (names::LABEL_REVISION, revision));
    fixed.into_iter().chain(revision).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..PodSecurityContext::default()
    }
}

fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

fn temporary() -> (Volume, VolumeMount) {
    let volume = Volume { name: "tmp".to_owned(), empty_dir: Some(Default::default()), ..Volume::default() };
    (volume, mount("tmp", "/tmp", false))
}
