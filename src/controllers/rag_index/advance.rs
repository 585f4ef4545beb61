//! Where an index goes from here, pure: the generation in use, the candidate, what was rejected, and what is due.
//!
//! Order: a candidate is recorded, then its Job is created; it passed, that is recorded, then its pods are; they are
//! ready, that is recorded while gates or a person (`gating`) stand before it; the switch is recorded, then the Service
//! follows; only after a grace do the old pods go. A crash between any two of these finds the record and goes on from
//! there.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::Fetched;
use super::build::job_name;
use super::gating;
use super::job_outcome::{Failure, Outcome, earlier_builder, outcome, trouble};
use super::status::reason;
use super::validate::{Inputs, Validated};
use crate::api::rag_index::{
    ActiveGeneration, CandidateGeneration, CandidatePhase, RagIndexStatus, RejectedGeneration,
};
use crate::api::rollout::GateStatus;
use crate::api::{RagIndex, names};
use crate::controllers::events::Note;
use crate::indexer::job::BuildReport;

/// How long the pods of a replaced generation stay: the gateway's view is a moment behind, and queries are short.
pub const RETIRE_AFTER: Duration = Duration::from_secs(15);
/// How long a report may be missing after its Job ended: the watch of pods may be behind that of Jobs.
const REPORT_GRACE: Duration = Duration::from_secs(30);
/// First pause before a failed build is tried again; doubled each time.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Longest pause before a failed build is tried again.
const RETRY_AT_MOST: Duration = Duration::from_secs(1800);
/// Rejected generations remembered.
const MAX_REJECTED: usize = 20;
/// Failures in a status.
const MAX_FAILURES: usize = 20;

/// One step of an index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// The status with what this step decides; conditions are not touched.
    pub status: RagIndexStatus,
    /// Why the candidate failed, or why nothing is built although the inputs differ.
    pub failure: Option<Failure>,
    /// What keeps the candidate from going on, in words; not a failure yet.
    pub trouble: Option<String>,
    /// How the Evaluations before the candidate stand, once they ask it.
    pub gates: Vec<GateStatus>,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// A generation that began to serve in this step.
    pub promoted: Option<String>,
    /// When only time brings the next change.
    pub again: Option<Duration>,
}

/// Decides the step.
pub fn advance(object: &RagIndex, fetched: &Fetched, validated: &Validated, now: Timestamp) -> Step {
    let mut run = Run {
        object,
        fetched,
        now,
        step: Step { status: object.status.clone().unwrap_or_default(), ..Step::default() },
    };
    let requested = validated.requested.as_ref();
    let forced = requested.is_some() && requested != run.step.status.last_handled_reconcile_at.as_ref();
    if forced {
        run.step.status.last_handled_reconcile_at = requested.cloned();
    }
    if let Ok(inputs) = &validated.inputs {
        run.aim(inputs, forced);
    }
    run.heed();
    // Each turn may lead to the next at once: a report is there, or the pods were ready before.
    for _ in 0..6 {
        let before = run.step.status.candidate.clone();
        run.candidate();
        if run.step.status.candidate == before {
            break;
        }
    }
    run.retire();
    run.step
}

pub(super) struct Run<'a> {
    pub(super) object: &'a RagIndex,
    pub(super) fetched: &'a Fetched,
    pub(super) now: Timestamp,
    pub(super) step: Step,
}

impl Run<'_> {
    fn name(&self) -> String {
        self.object.name_any()
    }

    fn after(&mut self, wait: Duration) {
        self.step.again = Some(self.step.again.map_or(wait, |again| again.min(wait)));
    }

    /// What is left of a pause that began at `since`; `None` when it is over.
    fn left(&self, since: Timestamp, pause: Duration) -> Option<Duration> {
        let passed = self.now.duration_since(since);
        let left = SignedDuration::try_from(pause).ok()?.checked_sub(passed)?;
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }

    /// Makes the inputs that the spec asks for the candidate, unless they serve, are on their way or were rejected.
    fn aim(&mut self, inputs: &Inputs, forced: bool) {
        let status = &mut self.step.status;
        let hash = &inputs.hash;
        if status.candidate.as_ref().is_some_and(|candidate| candidate.inputs != *hash) {
            status.candidate = None;
        }
        let serves = status.active.as_ref().is_some_and(|active| active.inputs == *hash);
        let failed = status.candidate.as_ref().is_some_and(|candidate| candidate.phase == CandidatePhase::Failed);
        if forced && (failed || status.candidate.is_none()) {
            status.rejected_generations.retain(|rejected| rejected.inputs != *hash);
        }
        if serves {
            status.candidate = None;
            return;
        }
        match &status.candidate {
            Some(candidate) if failed && forced => {
                let attempt = candidate.attempt.saturating_add(1);
                status.candidate = Some(building(hash, attempt));
            }
            Some(_) => {}
            None => {
                let rejected = status.rejected_generations.iter().find(|rejected| rejected.inputs == *hash);
                let rejected = rejected.map(|rejected| rejected.name.clone());
                // A Job of these inputs may be there from before: its name is taken.
                let free = (1..).find(|attempt| !self.has_finished_job(hash, *attempt)).unwrap_or(1);
                self.step.status.candidate = Some(match rejected {
                    Some(name) => CandidateGeneration {
                        name,
                        phase: CandidatePhase::Failed,
                        ..building(hash, free.saturating_sub(1).max(1))
                    },
                    None => building(hash, free),
                });
            }
        }
    }

    fn has_finished_job(&self, hash: &str, attempt: i32) -> bool {
        let name = job_name(&self.name(), hash, attempt);
        self.fetched
            .jobs
            .iter()
            .any(|job| job.name_any() == name && !matches!(outcome(job, &self.fetched.pods), Outcome::Running(_)))
    }

    fn candidate(&mut self) {
        let Some(candidate) = self.step.status.candidate.clone() else { return };
        self.step.failure = None;
        self.step.trouble = None;
        match candidate.phase {
            CandidatePhase::Building => self.building(candidate),
            CandidatePhase::Starting => self.starting(candidate),
            CandidatePhase::Gating | CandidatePhase::AwaitingApproval => self.gating(candidate),
            CandidatePhase::Failed => self.failed(candidate),
        }
    }

    fn outcome_of(&self, candidate: &CandidateGeneration) -> Option<Outcome> {
        let name = job_name(&self.name(), &candidate.inputs, candidate.attempt);
        let job = self.fetched.jobs.iter().find(|job| job.name_any() == name)?;
        Some(outcome(job, &self.fetched.pods))
    }

    fn building(&mut self, candidate: CandidateGeneration) {
        match self.outcome_of(&candidate) {
            None => {
                self.step.trouble = earlier_builder(&self.fetched.pods).map(|pod| {
                    format!("pod `{}` of an earlier build still ends; the next one starts then", pod.name_any())
                });
            }
            Some(Outcome::Running(trouble)) => self.step.trouble = trouble,
            Some(Outcome::Reported(report)) => self.reported(candidate, &report),
            Some(Outcome::Unreported { at }) => match self.left(at, REPORT_GRACE) {
                Some(left) => self.after(left),
                // The build is there, its words are lost: the next run finds the generation and reports again.
                None => {
                    self.step.status.candidate = Some(building(&candidate.inputs, candidate.attempt.saturating_add(1)))
                }
            },
            Some(Outcome::Failed(_)) => {
                self.step.status.candidate = Some(CandidateGeneration { phase: CandidatePhase::Failed, ..candidate });
            }
        }
    }

    fn reported(&mut self, candidate: CandidateGeneration, report: &BuildReport) {
        let status = &mut self.step.status;
        status.quality.clone_from(&report.quality);
        if !report.passed {
            let named =
                CandidateGeneration { name: report.generation.clone(), digest: report.digest.clone(), ..candidate };
            let why = report.reason.clone().unwrap_or_else(|| reason::BUILD_FAILED.to_owned());
            self.reject(named, why, report.message.clone());
            return;
        }
        if let Some(active) = status.active.as_mut().filter(|active| report.generation.as_ref() == Some(&active.name)) {
            // Other inputs, same content: what serves is it already.
            active.inputs = candidate.inputs;
            status.candidate = None;
            self.describe(report);
            return;
        }
        status.candidate = Some(CandidateGeneration {
            name: report.generation.clone(),
            digest: report.digest.clone(),
            phase: CandidatePhase::Starting,
            ..candidate
        });
    }

    fn starting(&mut self, candidate: CandidateGeneration) {
        let (Some(name), Some(digest)) = (candidate.name.clone(), candidate.digest.clone()) else {
            self.step.status.candidate = Some(building(&candidate.inputs, candidate.attempt.saturating_add(1)));
            return;
        };
        if self.answers(&name) {
            if gating::stand_before(&self.object.spec) {
                self.step.status.candidate = Some(CandidateGeneration { phase: CandidatePhase::Gating, ..candidate });
            } else {
                self.promote(candidate, name, digest);
            }
            return;
        }
        if deployment_of(self.fetched, &name).is_some_and(is_stuck) {
            self.step.status.candidate = Some(CandidateGeneration { phase: CandidatePhase::Failed, ..candidate });
            return;
        }
        self.step.trouble = trouble_of(self.fetched, &name);
    }

    /// The candidate serves from now on.
    pub(super) fn promote(&mut self, candidate: CandidateGeneration, name: String, digest: String) {
        let report = match self.outcome_of(&candidate) {
            Some(Outcome::Reported(report)) => Some(report),
            _ => None,
        };
        let status = &mut self.step.status;
        status.active =
            Some(ActiveGeneration { name: name.clone(), digest, inputs: candidate.inputs, since: Time(self.now) });
        status.candidate = None;
        match report {
            Some(report) => self.describe(&report),
            None => self.forget_description(),
        }
        self.step.promoted = Some(name);
    }

    /// The candidate is remembered as one that does not pass; it is not built again from these inputs.
    pub(super) fn reject(&mut self, candidate: CandidateGeneration, reason: String, message: String) {
        let status = &mut self.step.status;
        let rejected =
            RejectedGeneration { inputs: candidate.inputs.clone(), name: candidate.name.clone(), reason, message };
        status.rejected_generations.retain(|known| known.inputs != rejected.inputs);
        status.rejected_generations.push(rejected);
        let surplus = status.rejected_generations.len().saturating_sub(MAX_REJECTED);
        status.rejected_generations.drain(..surplus);
        status.candidate = Some(CandidateGeneration { phase: CandidatePhase::Failed, held: false, ..candidate });
    }

    /// Whether the retrieval pods of a generation are ready.
    pub(super) fn answers(&self, generation: &str) -> bool {
        let deployment = deployment_of(self.fetched, generation);
        deployment.is_some_and(|deployment| is_proven(deployment, self.object.spec.replicas))
    }

    fn failed(&mut self, candidate: CandidateGeneration) {
        let rejected = self.step.status.rejected_generations.iter().find(|known| known.inputs == candidate.inputs);
        if let Some(rejected) = rejected {
            self.step.failure = Some(Failure {
                reason: reason::of_report(Some(&rejected.reason)),
                message: rejected.message.clone(),
                is_final: true,
                at: self.now,
            });
            return;
        }
        match self.outcome_of(&candidate) {
            Some(Outcome::Failed(failure)) if failure.is_final => self.step.failure = Some(failure),
            Some(Outcome::Failed(failure)) => match self.left(failure.at, pause(candidate.attempt)) {
                Some(left) => {
                    self.after(left);
                    self.step.failure = Some(failure);
                }
                None => self.again(&candidate),
            },
            Some(Outcome::Reported(report)) if report.passed => {
                let name = candidate.name.unwrap_or_default();
                self.step.failure = Some(Failure {
                    reason: reason::SERVER_NOT_READY,
                    message: format!(
                        "generation {name} passed, but its retrieval pods did not become ready; check spec.resources and the store volume, then set the annotation {} to try again",
                        names::ANNOTATION_RECONCILE
                    ),
                    is_final: true,
                    at: self.now,
                });
            }
            Some(Outcome::Running(_)) => {}
            // Its Job is gone: somebody asks for another try.
            Some(Outcome::Reported(_) | Outcome::Unreported { .. }) | None => self.again(&candidate),
        }
    }

    fn again(&mut self, candidate: &CandidateGeneration) {
        self.step.status.candidate = Some(building(&candidate.inputs, candidate.attempt.saturating_add(1)));
    }

    fn describe(&mut self, report: &BuildReport) {
        let status = &mut self.step.status;
        status.documents = Some(report.documents.clone());
        status.failures = report.failures.iter().take(MAX_FAILURES).cloned().collect();
        status.chunks = Some(report.chunks);
        status.bytes = Some(report.bytes);
        status.embedding.clone_from(&report.embedding);
    }

    /// The build's words are lost: better nothing than what was true of another generation.
    fn forget_description(&mut self) {
        let status = &mut self.step.status;
        status.documents = None;
        status.failures = Vec::new();
        status.chunks = None;
        status.bytes = None;
        status.embedding = None;
    }

    /// Wakes up when the pods of a replaced generation may go.
    fn retire(&mut self) {
        let Some(active) = &self.step.status.active else { return };
        let (since, name) = (active.since.0, active.name.clone());
        let starting = self.step.status.candidate.as_ref().and_then(|candidate| candidate.name.clone());
        let replaced = self.fetched.deployments.iter().any(|deployment| {
            let generation = generation_of(deployment);
            generation != Some(&name) && (generation.is_none() || generation != starting.as_deref())
        });
        if let Some(left) = self.left(since, RETIRE_AFTER).filter(|_| replaced) {
            self.after(left);
        }
    }
}

fn building(inputs: &str, attempt: i32) -> CandidateGeneration {
    CandidateGeneration {
        inputs: inputs.to_owned(),
        name: None,
        digest: None,
        phase: CandidatePhase::Building,
        attempt,
        held: false,
    }
}

fn pause(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(0).min(10);
    RETRY_AFTER.saturating_mul(2_u32.saturating_pow(doublings)).min(RETRY_AT_MOST)
}

/// Whether the time since the switch is long enough for the pods of other generations to go.
pub fn may_retire(active: Option<&ActiveGeneration>, now: Timestamp) -> bool {
    let pause = SignedDuration::try_from(RETIRE_AFTER).unwrap_or(SignedDuration::ZERO);
    active.is_none_or(|active| now.duration_since(active.since.0) >= pause)
}

/// The index generation of a retrieval Deployment.
pub fn generation_of(deployment: &Deployment) -> Option<&str> {
    deployment.metadata.labels.as_ref()?.get(names::LABEL_REVISION).map(String::as_str)
}

fn deployment_of<'a>(fetched: &'a Fetched, generation: &str) -> Option<&'a Deployment> {
    fetched.deployments.iter().find(|deployment| generation_of(deployment) == Some(generation))
}

/// Whether all wanted pods, of the Deployment's current spec, are available.
pub fn is_proven(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.observed_generation >= deployment.metadata.generation
        && wanted == replicas
        && status.updated_replicas.unwrap_or(0) >= wanted
        && status.available_replicas.unwrap_or(0) >= wanted
}

/// Pods that can answer.
pub fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

fn is_stuck(deployment: &Deployment) -> bool {
    let conditions = deployment.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("ProgressDeadlineExceeded"))
}

/// What keeps the pods of a generation from being ready.
pub fn trouble_of(fetched: &Fetched, generation: &str) -> Option<String> {
    let of = |pod: &&k8s_openapi::api::core::v1::Pod| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_REVISION)).map(String::as_str)
            == Some(generation)
    };
    fetched.pods.iter().filter(of).find_map(trouble)
}
