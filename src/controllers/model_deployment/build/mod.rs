//! From the checked spec and what exists to what should exist: pure.

pub mod guarded;
pub mod patch;
pub mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Service, ServicePort, ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::fetch::Fetched;
use super::reasons;
use super::revision::{self, Stored, labels};
use super::troubles::{self, Verdict};
use super::validate::{Target, Validated, stops_first};
use crate::api::conditions::find;
use crate::api::model_deployment::{ModelDeployment, ModelDeploymentStatus, ModelTraffic};
use crate::api::names;
use crate::api::rollout::RejectedRevision;
use crate::controllers::apply::{Desired, Removal};
use crate::controllers::error::Error;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::Plan;
use crate::controllers::workload::Counts;

/// Name of the engine's container.
pub const ENGINE: &str = "engine";
/// Name of the download's init container.
pub const FETCH: &str = "fetch";
/// After traffic moved, gateways need a moment to hear of it before the old revision's pods begin to stop.
pub const SHIFT_GRACE: Duration = Duration::from_secs(5);

/// What a build tells the status.
#[derive(Debug, Default)]
pub struct Notes {
    /// Revision that serves after this reconcile.
    pub serving: Option<String>,
    /// Revision that gets all requests; absent while nothing may get any.
    pub routed: Option<String>,
    /// Revision that the spec asks for; absent when the spec is faulty.
    pub target: Option<String>,
    /// A revision that this reconcile gives up.
    pub rejected: Option<RejectedRevision>,
    /// Revisions given up earlier that still count.
    pub still_rejected: Vec<RejectedRevision>,
    /// The target's trouble, if it is not given up for it.
    pub trouble: Option<Verdict>,
    /// Why the spec was not taken, when something else is kept up meanwhile.
    pub fault: Option<Error>,
    /// The old revision's pods must be gone before the new one starts.
    pub stopping_previous: bool,
    /// What the rollout's machine decided, where gates, a ramp or an approval stand before a new revision.
    pub rollout: Option<guarded::Rollout>,
    /// When the next thing is due by time alone.
    pub again: Option<Duration>,
    /// Whether the target downloads its model.
    pub downloads: bool,
    /// Digest of the target's model, where known.
    pub digest: Option<String>,
}

/// Decides what should exist.
///
/// # Errors
/// The spec's fault, when there is nothing that serves and must be kept up.
pub fn build(
    object: &ModelDeployment,
    fetched: &Fetched,
    validated: &Validated,
    image: &str,
    now: jiff::Timestamp,
) -> Result<Plan<ModelDeployment, Notes>, Error> {
    match validated {
        Validated::External { revision } => Ok(external(object, fetched, revision)),
        Validated::Engine { target } => {
            let asked = target.as_ref().ok().map(|target| target.revision.as_str());
            Engine { object, fetched, image, now, asked }.build(target)
        }
    }
}

fn external(object: &ModelDeployment, fetched: &Fetched, revision: &str) -> Plan<ModelDeployment, Notes> {
    // What an engine of this name left when the spec turned to a provider.
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut removals: Vec<Removal> = fetched
        .deployments
        .keys()
        .map(|revision| Removal::new(Kind::Deployment, names::model_revision(name, revision)))
        .collect();
    removals.push(Removal::new(Kind::Service, names::model_service(name)));
    let serving = Some(revision.to_owned());
    let notes = Notes { serving: serving.clone(), routed: serving.clone(), target: serving, ..Notes::default() };
    Plan { record: None, desired: Vec::new(), removals, notes }
}

struct Engine<'a> {
    object: &'a ModelDeployment,
    fetched: &'a Fetched,
    image: &'a str,
    now: jiff::Timestamp,
    /// The revision that the spec asks for.
    asked: Option<&'a str>,
}

impl Engine<'_> {
    fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    fn status(&self) -> Option<&ModelDeploymentStatus> {
        self.object.status.as_ref()
    }

    /// The revision that serves: recorded in the status, and still known. What the spec asks for is known also when
    /// somebody deleted its ControllerRevision: the content is the same.
    fn stable(&self) -> Option<&str> {
        let stable = self.status()?.stable_revision.as_deref()?;
        (self.fetched.revisions.contains_key(stable) || self.asked == Some(stable)).then_some(stable)
    }

    /// Revisions given up and not asked for anew since.
    fn rejected(&self) -> Vec<RejectedRevision> {
        let annotations = self.object.metadata.annotations.as_ref();
        let asked = annotations
            .and_then(|annotations| annotations.get(names::ANNOTATION_RECONCILE))
            .and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let rejected = self.status().map(|status| status.rejected_revisions.clone()).unwrap_or_default();
        rejected.into_iter().filter(|one| asked.is_none_or(|asked| one.time.0 >= asked)).collect()
    }

    fn build(&self, target: &Result<Target, Error>) -> Result<Plan<ModelDeployment, Notes>, Error> {
        if self.is_guarded() {
            return self.guarded(target);
        }
        let stable = self.stable();
        let mut notes = Notes { still_rejected: self.rejected(), ..Notes::default() };
        let (wanted, stored) = match self.wanted(target, &mut notes) {
            Ok(wanted) => wanted,
            // What serves is kept up, healed and scaled although the spec asks for what cannot be.
            Err(error) => {
                match stable.and_then(|stable| Some((stable.to_owned(), self.fetched.revisions.get(stable)?.clone()))) {
                    Some(kept) => {
                        notes.fault = Some(error);
                        kept
                    }
                    None if notes.target.is_some() => return Ok(self.nothing_left(error, notes)),
                    None => return Err(error),
                }
            }
        };
        notes.downloads = stored.downloads();
        notes.digest = stored.digest();
        let proven = self.is_proven(&wanted);
        let shift = proven && stable != Some(wanted.as_str());
        notes.serving = if proven { Some(wanted.clone()) } else { stable.map(str::to_owned) };
        let mut revisions = BTreeMap::from([(wanted.clone(), stored)]);
        if let Some(stable) = stable
            && let Some(stored) = self.fetched.revisions.get(stable)
        {
            revisions.insert(stable.to_owned(), stored.clone());
        }
        let stop_first = stops_first(&self.object.spec) && !proven && stable.is_some_and(|stable| stable != wanted);
        let mut record = None;
        if stop_first {
            // The old pods hold what the new ones need (an accelerator, a volume): they go first.
            notes.stopping_previous = self.fetched.deployments.keys().any(|revision| *revision != wanted)
                || self.fetched.pods.iter().any(|pod| !is_of(pod, &wanted));
            record = Some(self.record(&wanted, None));
        } else if shift && stable.is_some() {
            record = Some(self.record(&wanted, Some(&wanted)));
        }
        notes.routed = if stop_first { None } else { notes.serving.clone() };
        if let Some(rejected) = &notes.rejected {
            let mut status = record.unwrap_or_else(|| self.status().cloned().unwrap_or_default());
            status.rejected_revisions.push(rejected.clone());
            record = Some(status);
        }
        // The Service first: its name is the one that another object may have, which must show before anything runs.
        let selected = notes.serving.as_deref().unwrap_or(&wanted);
        let mut desired = vec![Desired::new(&self.service(selected))?];
        let runs: Vec<&String> = revisions
            .keys()
            .filter(|revision| {
                let is_wanted = **revision == wanted;
                let drained = !is_wanted && (shift || stop_first);
                !(drained || is_wanted && notes.stopping_previous)
            })
            .collect();
        for (revision, stored) in &revisions {
            desired.push(Desired::once(&revision::object(self.name(), revision, stored)?)?);
        }
        if revisions.values().any(Stored::downloads) {
            desired.push(Desired::new(&self.cache())?);
        }
        for revision in &runs {
            if let Some(stored) = revisions.get(*revision) {
                desired.push(self.deployment(revision, stored)?);
            }
        }
        let removals = self.removals(&wanted, stable, shift, stop_first, &mut notes);
        Ok(Plan { record, desired, removals, notes })
    }

    /// The only revision was given up: its pods would try for ever.
    fn nothing_left(&self, error: Error, mut notes: Notes) -> Plan<ModelDeployment, Notes> {
        let deployments = self.fetched.deployments.keys();
        let removals = deployments
            .map(|revision| Removal::new(Kind::Deployment, names::model_revision(self.name(), revision)))
            .collect();
        let record = notes.rejected.as_ref().map(|rejected| {
            let mut status = self.status().cloned().unwrap_or_default();
            status.rejected_revisions.push(rejected.clone());
            status
        });
        notes.fault = Some(error);
        Plan { record, desired: Vec::new(), removals, notes }
    }

    /// The revision to bring up, after what its pods tell.
    fn wanted(&self, target: &Result<Target, Error>, notes: &mut Notes) -> Result<(String, Stored), Error> {
        let target = target.as_ref().map_err(Clone::clone)?;
        let revision = target.revision.as_str();
        let stored = match self.fetched.revisions.get(revision) {
            Some(stored) => stored.clone(),
            None => self.store(target)?,
        };
        notes.target = Some(revision.to_owned());
        if let Some(known) = notes.still_rejected.iter().find(|rejected| rejected.revision == revision) {
            return Err(given_up(known));
        }
        let stable = self.stable();
        if stable == Some(revision) || self.is_proven(revision) {
            notes.trouble = troubles::of(self.fetched, revision);
            return Ok((revision.to_owned(), stored));
        }
        let Some(trouble) = troubles::of(self.fetched, revision) else { return Ok((revision.to_owned(), stored)) };
        if trouble.is_final(stable.is_some()) {
            let rejected = RejectedRevision {
                revision: revision.to_owned(),
                reason: trouble.reason.to_owned(),
                message: trouble.message.clone(),
                time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
            };
            let error = given_up(&rejected);
            notes.rejected = Some(rejected);
            return Err(error);
        }
        notes.trouble = Some(trouble);
        Ok((revision.to_owned(), stored))
    }

    fn store(&self, target: &Target) -> Result<Stored, Error> {
        let template = template::render(self.object, &target.revision, self.image)?;
        let template = serde_json::to_value(template)
            .map_err(|error| Error::stalled(reasons::INVALID_SPEC, format!("the pod template: {error}")))?;
        let number = self.fetched.revisions.values().map(|stored| stored.number).max().unwrap_or_default() + 1;
        Ok(Stored { content: target.content.clone(), template, number })
    }

    /// Whether all replicas of a revision answer their health check, by the Deployment's word on its current spec.
    fn is_proven(&self, revision: &str) -> bool {
        self.fetched.deployments.get(revision).is_some_and(|deployment| {
            let counts = Counts::of(deployment);
            counts.complete() && counts.desired == self.object.spec.replicas
        })
    }

    /// What must be known before anything that serves is taken down.
    fn record(&self, target: &str, serving: Option<&str>) -> ModelDeploymentStatus {
        let mut status = self.status().cloned().unwrap_or_default();
        status.target_revision = Some(target.to_owned());
        status.traffic =
            serving.into_iter().map(|revision| ModelTraffic { revision: revision.to_owned(), weight: 100 }).collect();
        if let Some(serving) = serving {
            status.stable_revision = Some(serving.to_owned());
        }
        status
    }

    fn deployment(&self, revision: &str, stored: &Stored) -> Result<Desired, Error> {
        let deployment = Deployment {
            metadata: ObjectMeta {
                name: Some(names::model_revision(self.name(), revision)),
                labels: Some(labels(self.name(), Some(revision))),
                ..ObjectMeta::default()
            },
            spec: Some(DeploymentSpec {
                replicas: Some(self.object.spec.replicas),
                selector: LabelSelector {
                    match_labels: Some(labels(self.name(), Some(revision))),
                    ..LabelSelector::default()
                },
                revision_history_limit: Some(1),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        let mut desired = Desired::new(&deployment)?;
        desired.object["spec"]["template"] = stored.template.clone();
        Ok(desired)
    }

    fn service(&self, revision: &str) -> Service {
        Service {
            metadata: ObjectMeta {
                name: Some(names::model_service(self.name())),
                labels: Some(labels(self.name(), None)),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                ports: Some(vec![ServicePort {
                    name: Some(names::PORT_NAME.to_owned()),
                    port: 8080,
                    target_port: Some(IntOrString::String(names::PORT_NAME.to_owned())),
                    protocol: Some("TCP".to_owned()),
                    ..ServicePort::default()
                }]),
                selector: Some(labels(self.name(), Some(revision))),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }

    fn cache(&self) -> PersistentVolumeClaim {
        let cache = self.object.spec.model.as_ref().map(|model| model.cache.clone()).unwrap_or_default();
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(names::model_cache(self.name())),
                labels: Some(labels(self.name(), None)),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    requests: Some([("storage".to_owned(), Quantity(cache.size))].into()),
                    ..VolumeResourceRequirements::default()
                }),
                storage_class_name: cache.storage_class_name,
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        }
    }

    fn removals(
        &self,
        wanted: &str,
        stable: Option<&str>,
        shift: bool,
        stop_first: bool,
        notes: &mut Notes,
    ) -> Vec<Removal> {
        let serving = if shift { Some(wanted) } else { stable };
        let rejected = notes.rejected.as_ref().map(|rejected| rejected.revision.as_str());
        let grace = self.grace(shift);
        let mut removals = Vec::new();
        for revision in self.fetched.deployments.keys().map(String::as_str) {
            let stops_now = stop_first && revision != wanted;
            if !stops_now && (revision == wanted || Some(revision) == serving) {
                continue;
            }
            // A revision that never served has nobody to wait for.
            if !stops_now && Some(revision) != rejected && !grace.is_zero() {
                notes.again = Some(notes.again.map_or(grace, |again| again.min(grace)));
                continue;
            }
            removals.push(Removal::new(Kind::Deployment, names::model_revision(self.name(), revision)));
        }
        let keep: BTreeSet<&str> = [Some(wanted), stable, notes.target.as_deref()].into_iter().flatten().collect();
        removals.extend(self.surplus(&keep));
        removals
    }

    /// ControllerRevisions beyond `spec.rollout.historyLimit`, the oldest.
    fn surplus(&self, keep: &BTreeSet<&str>) -> Vec<Removal> {
        let known = self.fetched.revisions.iter().filter(|(revision, _)| !keep.contains(revision.as_str()));
        let mut old: Vec<(i64, &str)> = known.map(|(revision, stored)| (stored.number, revision.as_str())).collect();
        old.sort_unstable();
        let limit = usize::try_from(self.object.spec.rollout.history_limit).unwrap_or_default();
        let surplus = old.len().saturating_sub(limit);
        let name = |revision: &str| names::model_revision(self.name(), revision);
        old.into_iter()
            .take(surplus)
            .map(|(_, revision)| Removal::new(Kind::ControllerRevision, name(revision)))
            .collect()
    }

    /// Time until the last move of traffic is old enough for the old pods to stop.
    fn grace(&self, shift: bool) -> Duration {
        if shift {
            return SHIFT_GRACE;
        }
        let conditions = self.status().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let Some(moved) = find(conditions, "UpToDate") else { return Duration::ZERO };
        let since = self.now.duration_since(moved.last_transition_time.0);
        SHIFT_GRACE.saturating_sub(Duration::try_from(since).unwrap_or_default())
    }
}

fn is_of(pod: &k8s_openapi::api::core::v1::Pod, revision: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(names::LABEL_REVISION)).is_some_and(|label| label == revision)
}

fn given_up(rejected: &RejectedRevision) -> Error {
    // The reasons are ours: the list is closed.
    let reason = troubles::known_reason(&rejected.reason);
    Error::stalled(
        reason,
        format!(
            "revision {} was given up: {}; change the spec, or set the annotation {} to the time now to try again",
            rejected.revision,
            rejected.message,
            names::ANNOTATION_RECONCILE,
        ),
    )
}
