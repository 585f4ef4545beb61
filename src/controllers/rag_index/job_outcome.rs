//! What a build Job has come to, read from the Job and its pods.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::ResourceExt;

use super::status::reason;
use crate::api::names;
use crate::indexer::job::{BuildReport, EXIT_CONFIGURATION};

/// How far a build is.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It runs; what keeps it from running, if anything does.
    Running(Option<String>),
    /// It ended well with this report.
    Reported(Box<BuildReport>),
    /// It ended well and no pod holds a report (any more).
    Unreported {
        /// When it ended.
        at: Timestamp,
    },
    /// It failed.
    Failed(Failure),
}

/// A failed build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What happened and what helps.
    pub message: String,
    /// Whether trying again is of no use until something changes.
    pub is_final: bool,
    /// When it failed.
    pub at: Timestamp,
}

/// Reads a Job and its pods.
pub fn outcome(job: &Job, pods: &[Pod]) -> Outcome {
    let pods: Vec<&Pod> = pods.iter().filter(|pod| is_of(pod, job)).collect();
    let conditions = job.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let ended = conditions
        .into_iter()
        .find(|condition| condition.status == "True" && (condition.type_ == "Complete" || condition.type_ == "Failed"));
    let Some(ended) = ended else { return Outcome::Running(pods.iter().find_map(|pod| trouble(pod))) };
    let at = ended.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let last = last_words(&pods);
    let report = last.and_then(|end| serde_json::from_str::<BuildReport>(end.message.as_deref()?).ok());
    if ended.type_ == "Complete" {
        return match report {
            Some(report) => Outcome::Reported(Box::new(report)),
            None => Outcome::Unreported { at },
        };
    }
    let name = job.name_any();
    if ended.reason.as_deref() == Some("DeadlineExceeded") {
        return Outcome::Failed(Failure {
            reason: reason::BUILD_DEADLINE_EXCEEDED,
            message: format!(
                "Job `{name}` took longer than spec.job.activeDeadlineSeconds; raise it (what was embedded is kept)"
            ),
            is_final: true,
            at,
        });
    }
    let configuration = last.is_some_and(|end| end.exit_code == i32::from(EXIT_CONFIGURATION))
        || ended.reason.as_deref() == Some("PodFailurePolicy");
    let (reason, message) = match (report, last) {
        (Some(report), _) => (reason::of_report(report.reason.as_deref()), report.message),
        (None, Some(end)) if end.reason.as_deref() == Some("OOMKilled") => (
            reason::BUILD_OUT_OF_MEMORY,
            format!("the builder of Job `{name}` was killed for memory; raise spec.job.resources.limits.memory"),
        ),
        (None, Some(end)) => (
            reason::BUILD_FAILED,
            format!(
                "the builder of Job `{name}` ended with code {}: {}; see `kubectl logs job/{name}`",
                end.exit_code,
                end.message.as_deref().or(end.reason.as_deref()).unwrap_or("it said nothing").trim()
            ),
        ),
        (None, None) => (
            reason::BUILD_FAILED,
            format!("Job `{name}` failed: {}", ended.message.as_deref().unwrap_or("no pod says why")),
        ),
    };
    Outcome::Failed(Failure { reason, message, is_final: configuration, at })
}

fn is_of(pod: &Pod, job: &Job) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let uid = job.metadata.uid.as_deref();
    owners.into_iter().any(|owner| owner.kind == "Job" && Some(owner.uid.as_str()) == uid)
}

/// A builder that still runs: before a Job is made, one of a Job that was deleted, of other inputs, or of an earlier
/// index of the name. Two builders of one store would write the same generation at the same time.
pub fn earlier_builder(pods: &[Pod]) -> Option<&Pod> {
    pods.iter().find(|pod| {
        let builds = pod.labels().get(names::LABEL_COMPONENT).is_some_and(|it| it == names::COMPONENT_INDEX_BUILD);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        builds && !matches!(phase, Some("Succeeded" | "Failed"))
    })
}

/// The end of the pod that ended last: earlier pods of the Job were replaced.
fn last_words<'a>(pods: &[&'a Pod]) -> Option<&'a ContainerStateTerminated> {
    let ends =
        pods.iter().flat_map(|pod| pod.status.iter()).flat_map(|status| status.container_statuses.iter().flatten());
    ends.filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .max_by_key(|end| end.finished_at.as_ref().map(|time| time.0))
}

/// What keeps a pod from running or being ready, in words.
pub fn trouble(pod: &Pod) -> Option<String> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    for container in status.container_statuses.iter().flatten() {
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
                continue;
            }
            let message = ended
                .and_then(|end| end.message.as_deref())
                .or(waiting.message.as_deref())
                .unwrap_or("see `kubectl logs`")
                .trim();
            return Some(format!("pod `{name}`: {reason}: {message}"));
        }
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    unscheduled.map(|condition| {
        format!("pod `{name}` has no node: {}", condition.message.as_deref().unwrap_or("no reason is given"))
    })
}
