//! How a ModelDeployment stands, from what was fetched, decided and applied: pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::ModelDeployments;
use super::build::guarded::Rollout;
use super::build::{FETCH, Notes};
use super::fetch::Fetched;
use super::outside::{PROGRESS_PERIOD, Provider};
use super::reasons;
use crate::api::conditions::{self, Observation};
use crate::api::model_deployment::{ModelDeployment, ModelDeploymentStatus, ModelTraffic, Replicas, ResolvedModel};
use crate::api::names;
use crate::api::rollout::{ArmRevision, GateVerdict, RejectedRevision, RolloutPhase};
use crate::controllers::apply::Applied;
use crate::controllers::error::Error;
use crate::controllers::events::Note;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::{Stage, Verdict, View};
use crate::controllers::workload::Counts;
use crate::rollout::{self, gates};

/// Conditions in the order in which they are shown.
const ORDER: [&str; 8] =
    ["Ready", "Reconciling", "Stalled", "Accepted", "ModelCached", "Available", "UpToDate", "GatesPassed"];
const NOT_STUCK: &str = "nothing needs a change of the spec";
/// Given-up revisions that are remembered.
const REMEMBERED: usize = 10;

/// Computes the status.
pub fn status(view: &View<'_, ModelDeployments>) -> Verdict<ModelDeployment> {
    let mut status = view.previous.clone();
    status.observed_generation = view.object.metadata.generation;
    match &view.stage {
        Stage::Suspended => {
            let message = "spec.suspend is true: nothing is changed until it is false";
            let mut observed = vec![Observation::no("Reconciling", reasons::SUSPENDED, message)];
            if conditions::find(&status.conditions, "Ready").is_none() {
                observed.push(Observation::no("Ready", reasons::SUSPENDED, message));
            }
            conclude(view, &mut status, &observed, true);
            Verdict::new(status)
        }
        Stage::Failed { error, .. } => {
            let observed = failed(error);
            conclude(view, &mut status, &observed, true);
            Verdict::new(status)
        }
        Stage::Done { fetched, plan, applied, .. } => {
            let facts = Facts { object: view.object, fetched, notes: &plan.notes, applied };
            if view.object.spec.external.is_some() { facts.external(view, status) } else { facts.engine(view, status) }
        }
    }
}

/// Merges observations; conditions not observed stay (`keep`) or go.
fn conclude(
    view: &View<'_, ModelDeployments>,
    status: &mut ModelDeploymentStatus,
    observed: &[Observation],
    keep: bool,
) {
    let generation = view.object.metadata.generation.unwrap_or_default();
    let previous = &view.previous.conditions;
    let mut merged: Vec<Condition> = conditions::merge(previous, observed, generation, view.now);
    if keep {
        let others = previous.iter().filter(|old| observed.iter().all(|new| new.kind != old.type_));
        merged.extend(others.cloned());
    }
    merged.sort_by_key(|condition| ORDER.iter().position(|kind| *kind == condition.type_));
    status.conditions = merged;
}

fn failed(error: &Error) -> Vec<Observation> {
    let (reason, message) = (error.reason(), error.to_string());
    match error {
        Error::Stalled { .. } => vec![
            Observation::no("Ready", reason, message.as_str()),
            Observation::no("Reconciling", reason, "waiting for a change of the spec"),
            Observation::yes("Stalled", reason, message.as_str()),
            Observation::no("Accepted", reason, message.as_str()),
        ],
        Error::Waiting { .. } => vec![
            Observation::no("Ready", reason, message.as_str()),
            Observation::yes("Reconciling", reason, message.as_str()),
            Observation::no("Stalled", reasons::FINE, NOT_STUCK),
            Observation::no("Accepted", reason, message.as_str()),
        ],
        // What serves goes on serving; only the operator cannot work on it.
        Error::Transient { .. } | Error::Conflict(_) | Error::NotLeader => {
            vec![Observation::yes("Reconciling", reason, message)]
        }
    }
}

struct Facts<'a> {
    object: &'a ModelDeployment,
    fetched: &'a Fetched,
    notes: &'a Notes,
    applied: &'a Applied,
}

impl Facts<'_> {
    fn external(
        &self,
        view: &View<'_, ModelDeployments>,
        mut status: ModelDeploymentStatus,
    ) -> Verdict<ModelDeployment> {
        status.url = self.object.spec.external.as_ref().map(|external| external.base_url.clone());
        self.revisions(&mut status);
        (status.replicas, status.download, status.resolved_model) = (None, None, None);
        let fine = Observation::no("Stalled", reasons::FINE, NOT_STUCK);
        let accepted =
            Observation::yes("Accepted", reasons::ACCEPTED, "the spec is valid and what it refers to exists");
        let up_to_date = Observation::yes("UpToDate", reasons::EXTERNAL, "the provider runs the model");
        let (observed, again) = match &self.fetched.provider {
            Provider::Unknown => {
                // The answer comes within seconds; until then nothing new is known.
                let message = "asking the provider";
                let mut observed = vec![fine, accepted, up_to_date];
                if conditions::find(&view.previous.conditions, "Ready").is_none() {
                    observed.push(Observation::unknown("Ready", reasons::CHECKING_PROVIDER, message));
                    observed.push(Observation::yes("Reconciling", reasons::CHECKING_PROVIDER, message));
                }
                (observed, Duration::from_secs(1))
            }
            Provider::Reachable => (
                vec![
                    Observation::yes("Ready", reasons::SERVING, "the provider answers"),
                    Observation::no("Reconciling", reasons::DONE, "nothing is left to do"),
                    fine,
                    accepted,
                    Observation::yes("Available", reasons::SERVING, "the provider answers"),
                    up_to_date,
                ],
                Duration::from_secs(300),
            ),
            Provider::Refuses(message) | Provider::Unreachable(message) => {
                let (reason, advice) = match &self.fetched.provider {
                    Provider::Refuses(_) => {
                        (reasons::PROVIDER_REFUSES, "check the token in the Secret of spec.external.credentialsRef")
                    }
                    _ => (reasons::PROVIDER_UNREACHABLE, "check spec.external.baseUrl and the way there"),
                };
                let message = format!("{message}; {advice}");
                (
                    vec![
                        Observation::no("Ready", reason, message.as_str()),
                        Observation::yes("Reconciling", reason, message.as_str()),
                        fine,
                        accepted,
                        Observation::no("Available", reason, message.as_str()),
                        up_to_date,
                    ],
                    Duration::from_secs(30),
                )
            }
        };
        conclude(view, &mut status, &observed, self.fetched.provider == Provider::Unknown);
        Verdict { status, again: Some(again), events: Vec::new() }
    }

    fn engine(&self, view: &View<'_, ModelDeployments>, mut status: ModelDeploymentStatus) -> Verdict<ModelDeployment> {
        let name = self.object.metadata.name.as_deref().unwrap_or_default();
        let namespace = self.object.metadata.namespace.as_deref().unwrap_or_default();
        status.url = Some(format!("http://{}.{namespace}.svc:8080/v1", names::model_service(name)));
        self.revisions(&mut status);
        let target = self.counts(self.notes.target.as_deref());
        let serving = self.counts(self.notes.serving.as_deref());
        let cached = self.cached();
        self.replicas(&mut status, target.or(serving));
        self.model(view.previous, &mut status, cached);
        let observed = self.conditions(target, serving, cached);
        conclude(view, &mut status, &observed, false);
        let downloading = !cached && self.notes.downloads && self.fetched.progress.is_some();
        let polls = self.is_downloading().then_some(PROGRESS_PERIOD);
        if !downloading && !self.is_downloading() {
            status.download = None;
        }
        let again = [polls, self.notes.again].into_iter().flatten().min();
        Verdict { status, again, events: self.events(view.previous) }
    }

    fn revisions(&self, status: &mut ModelDeploymentStatus) {
        if self.notes.target.is_some() {
            status.target_revision.clone_from(&self.notes.target);
        }
        status.stable_revision.clone_from(&self.notes.serving);
        if let Some(rollout) = &self.notes.rollout {
            let decision = &rollout.decision;
            status.rollout.clone_from(&decision.state);
            let of = |arm: &ArmRevision| ModelTraffic { revision: arm.revision.clone(), weight: arm.weight };
            status.traffic = decision.table.iter().map(of).collect();
            status.rejected_revisions.clone_from(&rollout.rejected);
            if decision.handled.is_some() {
                status.last_handled_rollout_request.clone_from(&decision.handled);
            }
            return;
        }
        // One that was not over would still decide.
        status.rollout = None;
        let traffic = self.notes.routed.iter().map(|revision| ModelTraffic { revision: revision.clone(), weight: 100 });
        status.traffic = traffic.collect();
        let rejected: Vec<RejectedRevision> =
            self.notes.still_rejected.iter().chain(&self.notes.rejected).cloned().collect();
        let forgotten = rejected.len().saturating_sub(REMEMBERED);
        status.rejected_revisions = rejected.into_iter().skip(forgotten).collect();
    }

    /// Counts of a revision as the build saw them, so that both say the same; what was changed since counts as new.
    fn counts(&self, revision: Option<&str>) -> Option<Counts> {
        let name = names::model_revision(self.object.metadata.name.as_deref().unwrap_or_default(), revision?);
        let written = self.applied.written.iter().any(|(kind, child)| *kind == Kind::Deployment && *child == name);
        match self.fetched.deployments.get(revision?) {
            Some(seen) if !written => Some(Counts::of(seen)),
            _ => {
                let live: Option<Deployment> = self.applied.live(&name).ok()?;
                live.as_ref().map(Counts::of)
            }
        }
    }

    fn replicas(&self, status: &mut ModelDeploymentStatus, counts: Option<Counts>) {
        let counts = counts.unwrap_or_default();
        let new = Replicas { desired: self.object.spec.replicas, ready: counts.ready, updated: counts.updated };
        // Pods that exist but do not answer yet are no news.
        let news = status.replicas.as_ref().is_none_or(|old| old.ready != new.ready || old.desired != new.desired);
        if news {
            status.replicas = Some(new);
        }
    }

    /// The revision whose pods tell about the model.
    fn shown(&self) -> Option<&str> {
        self.notes.target.as_deref().filter(|_| self.notes.fault.is_none()).or(self.notes.serving.as_deref())
    }

    fn fetch_state(&self, wanted: impl Fn(&k8s_openapi::api::core::v1::ContainerState) -> bool) -> bool {
        let Some(revision) = self.shown() else { return false };
        self.fetched.pods_of(revision).any(|pod| {
            let containers = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
            containers.into_iter().flatten().any(|c| c.name == FETCH && c.state.as_ref().is_some_and(&wanted))
        })
    }

    fn is_downloading(&self) -> bool {
        self.fetch_state(|state| state.running.is_some())
    }

    /// Whether the shown revision's model is where the engine can read it.
    fn cached(&self) -> bool {
        let ready = self.counts(self.shown()).is_some_and(|counts| counts.ready > 0);
        !self.notes.downloads
            || ready
            || self.fetch_state(|state| state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0))
    }

    fn model(&self, previous: &ModelDeploymentStatus, status: &mut ModelDeploymentStatus, cached: bool) {
        if self.fetched.progress.is_some() {
            status.download.clone_from(&self.fetched.progress);
        }
        if !cached {
            return;
        }
        let digest = self.notes.digest.clone();
        let known = previous.resolved_model.as_ref().filter(|model| model.digest == digest && digest.is_some());
        let bytes = previous.download.as_ref().and_then(|download| download.total_bytes);
        status.resolved_model = match (known, digest) {
            (Some(known), _) => Some(known.clone()),
            (None, Some(digest)) => Some(ResolvedModel { digest: Some(digest), bytes }),
            (None, None) => None,
        };
    }

    fn conditions(&self, target: Option<Counts>, serving: Option<Counts>, cached: bool) -> Vec<Observation> {
        let revision = self.notes.target.as_deref().unwrap_or_default();
        let is_current =
            self.notes.fault.is_none() && self.notes.serving.is_some() && self.notes.serving == self.notes.target;
        let complete = is_current && target.is_some_and(Counts::complete);
        let ready = complete && self.object.spec.replicas > 0;
        let (reason, message) = if ready {
            (reasons::SERVING, format!("revision {revision} answers its health check"))
        } else {
            self.why_not(target, cached, is_current)
        };
        let stalled = matches!(self.notes.fault, Some(Error::Stalled { .. }))
            || self.notes.trouble.as_ref().is_some_and(|trouble| !ready && trouble.is_final(true));
        let zero = complete && self.object.spec.replicas == 0;
        let mut observed = vec![
            Observation { kind: "Ready", status: Some(ready), reason, message: message.clone() },
            if ready || stalled || zero {
                Observation::no(
                    "Reconciling",
                    if stalled { reason } else { reasons::DONE },
                    if stalled { "waiting for a change of the spec" } else { "nothing is left to do" },
                )
            } else {
                Observation::yes("Reconciling", reason, message.as_str())
            },
            if stalled {
                Observation::yes("Stalled", reason, message.as_str())
            } else {
                Observation::no("Stalled", reasons::FINE, NOT_STUCK)
            },
        ];
        observed.push(match &self.notes.fault {
            // A revision that was given up was accepted first.
            Some(error) if self.notes.target.is_none() => {
                Observation::no("Accepted", error.reason(), error.to_string())
            }
            _ => Observation::yes("Accepted", reasons::ACCEPTED, "the spec is valid and what it refers to exists"),
        });
        if self.object.spec.model.as_ref().is_some_and(|model| model.source.is_some()) {
            let given_up = self.notes.fault.as_ref().filter(|fault| reasons::OF_DOWNLOADS.contains(&fault.reason()));
            observed.push(if let Some(fault) = given_up {
                Observation::no("ModelCached", fault.reason(), fault.to_string())
            } else if !cached {
                let reason = self.notes.trouble.as_ref().map_or(reasons::DOWNLOADING, |trouble| trouble.reason);
                Observation::no("ModelCached", reason, "the model file is not complete in the cache volume")
            } else if self.notes.downloads {
                Observation::yes("ModelCached", reasons::CACHED, "the model file is in the cache volume")
            } else {
                Observation::yes("ModelCached", reasons::MOUNTED, "the volume with the model is mounted")
            });
        }
        observed.push(if self.notes.routed.is_some() && serving.is_some_and(|counts| counts.ready > 0) {
            let revision = self.notes.serving.as_deref().unwrap_or_default();
            Observation::yes("Available", reasons::SERVING, format!("revision {revision} serves"))
        } else {
            Observation::no("Available", reasons::NOT_SERVING, "no replica answers")
        });
        observed.push(if is_current {
            Observation::yes("UpToDate", reasons::UP_TO_DATE, format!("revision {revision} is what the spec asks for"))
        } else if self.notes.fault.is_some() || self.notes.rejected.is_some() {
            Observation::no(
                "UpToDate",
                reasons::ROLLED_BACK,
                "the revision that the spec asks for does not serve; see Ready",
            )
        } else {
            Observation::no("UpToDate", reasons::ROLLING_OUT, format!("revision {revision} is on its way"))
        });
        observed.extend(self.gates());
        observed
    }

    /// Whether the candidate, or the revision that serves, passed its gates.
    fn gates(&self) -> Option<Observation> {
        let state = self.notes.rollout.as_ref()?.decision.state.as_ref()?;
        if self.object.spec.rollout.gates.is_empty() || state.gates.is_empty() {
            return None;
        }
        let revision = state.candidate.first().map(|arm| arm.revision.as_str()).unwrap_or_default();
        if let Some(refusal) = gates::refusal(&state.gates) {
            return Some(Observation::no("GatesPassed", reasons::EVALUATION_FAILED, refusal));
        }
        let open = state.gates.iter().filter(|gate| gate.verdict != GateVerdict::Passed);
        let open: Vec<&str> = open.map(|gate| gate.message.as_str()).collect();
        Some(if open.is_empty() {
            let message = format!("revision {revision} passed every gate");
            Observation::yes("GatesPassed", reasons::GATES_PASSED, message)
        } else {
            Observation::unknown("GatesPassed", reasons::GATING, open.join("; "))
        })
    }

    fn why_not(&self, target: Option<Counts>, cached: bool, is_current: bool) -> (&'static str, String) {
        let revision = self.notes.target.as_deref().unwrap_or_default();
        if let Some(error) = &self.notes.fault {
            return (error.reason(), error.to_string());
        }
        if let Some(state) = self.notes.rollout.as_ref().and_then(Rollout::under_way)
            && let Some(reason) = rollout_reason(state.phase)
        {
            return (reason, format!("revision {revision}: {}", state.message));
        }
        if let Some(trouble) = self.notes.trouble.as_ref().filter(|trouble| trouble.is_serious()) {
            return (trouble.reason, trouble.message.clone());
        }
        if self.notes.stopping_previous {
            let message = format!("the pods of the previous revision must end before revision {revision} starts");
            return (reasons::STOPPING_PREVIOUS, message);
        }
        if self.object.spec.replicas == 0 {
            return (reasons::SCALED_TO_ZERO, "spec.replicas is 0: nothing serves".to_owned());
        }
        if is_current && let Some(counts) = target {
            let message =
                format!("{} of {} replicas answer their health check", counts.ready, self.object.spec.replicas);
            return (reasons::REPLICAS_NOT_READY, message);
        }
        if !cached {
            return (
                reasons::DOWNLOADING,
                format!("the model of revision {revision} is being downloaded; see status.download"),
            );
        }
        (reasons::LOADING, format!("the engine of revision {revision} does not answer its health check yet"))
    }

    fn events(&self, previous: &ModelDeploymentStatus) -> Vec<Note> {
        if let Some(rollout) = &self.notes.rollout {
            let of = |note: &rollout::Note| Note {
                warning: note.warning,
                reason: note.reason.to_owned(),
                message: note.message.clone(),
            };
            return rollout.decision.notes.iter().map(of).collect();
        }
        // The first revision to serve is told by Ready.
        match (&previous.stable_revision, &self.notes.serving) {
            (Some(old), Some(new)) if old != new => {
                vec![Note::normal(reasons::UP_TO_DATE, format!("revision {new} serves now, after revision {old}"))]
            }
            _ => Vec::new(),
        }
    }
}

/// What a rollout waits for; none while the candidate's pods start, which tell it better.
fn rollout_reason(phase: RolloutPhase) -> Option<&'static str> {
    match phase {
        RolloutPhase::Gating => Some(reasons::GATING),
        RolloutPhase::Shadowing | RolloutPhase::Progressing => Some(reasons::CANARY_PROGRESSING),
        RolloutPhase::AwaitingApproval => Some(reasons::AWAITING_APPROVAL),
        RolloutPhase::Holding => Some(reasons::HOLDING),
        RolloutPhase::Preparing | RolloutPhase::Promoted | RolloutPhase::RolledBack => None,
    }
}
