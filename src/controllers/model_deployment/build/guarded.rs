//! A new revision that must pass gates, ramp or be approved: it runs beside the one that serves, and gets what the
//! rollout's machine gives it. Pure.
//!
//! Nothing that serves is stopped for a candidate: without room for both, the candidate waits and says so. Pods whose
//! revision lost its traffic stay for [`SHIFT_GRACE`], so the new table is in the status before they go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::api::evaluation::Dependency;
use crate::api::model_deployment::ModelRollout;
use crate::api::rollout::{ArmRevision, GateStatus, RejectedRevision, RolloutPhase, RolloutStatus};
use crate::controllers::measure::Measured;
use crate::evaluator::plan::MODEL;
use crate::experiment::{self, measurements::stratum};
use crate::rollout::{self, Decision, Evidence, Observed, Readiness, Reading, gates::gate_of_part};

/// Value of the revision label that no pod has: the Service selects nobody until a revision may serve.
const NOBODY: &str = "unreleased";
/// Given-up revisions that are remembered.
const REMEMBERED: usize = 10;

/// What the machine decided, for the status.
#[derive(Debug)]
pub struct Rollout {
    /// The decision.
    pub decision: Decision,
    /// `status.rejectedRevisions` after it.
    pub rejected: Vec<RejectedRevision>,
}

impl Rollout {
    /// The state, while a candidate is on its way.
    pub fn under_way(&self) -> Option<&RolloutStatus> {
        self.decision.state.as_ref().filter(|state| rollout::is_under_way(state))
    }
}

/// Time between two looks at measurements.
const POLL: Duration = Duration::from_secs(5);

/// Since when measurements count, while a candidate gets requests.
pub fn measured_since(object: &ModelDeployment) -> Option<jiff::Timestamp> {
    let state = object.status.as_ref()?.rollout.as_ref()?;
    rollout::needs_reading(state).then_some(state.started.0)
}

/// The way of a candidate, as the spec says it.
pub fn plan(spec: &ModelRollout) -> rollout::Plan {
    rollout::Plan {
        gates: spec.gates.iter().map(|gate| gate.evaluation_ref.name.clone()).collect(),
        steps: spec.steps.clone(),
        promotion: spec.decision.promotion,
        approve: spec.decision.approve.clone(),
        ..rollout::Plan::default()
    }
}

/// Why a rejected revision is not tried. What helps is in the rejection's own words.
fn refused(rejected: &RejectedRevision) -> Error {
    let reason = troubles::known_reason(&rejected.reason);
    Error::stalled(reason, format!("revision {} is rejected: {}", rejected.revision, rejected.message))
}

impl Engine<'_> {
    /// Whether the machine decides: the spec asks for it, or a rollout that began so is not over.
    pub(super) fn is_guarded(&self) -> bool {
        let before = self.status().and_then(|status| status.rollout.as_ref());
        !plan(&self.object.spec.rollout).is_immediate()
            || before.is_some_and(|state| state.phase != RolloutPhase::Promoted)
    }

    pub(super) fn guarded(&self, target: &Result<Target, Error>) -> Result<Plan<ModelDeployment, Notes>, Error> {
        let stable = self.stable();
        let mut notes = Notes::default();
        let mut stored = BTreeMap::new();
        let desired = match target {
            Ok(target) => {
                let known = self.fetched.revisions.get(&target.revision).cloned();
                stored.insert(target.revision.clone(), known.map_or_else(|| self.store(target), Ok)?);
                notes.target = Some(target.revision.clone());
                self.arms(Some(&target.revision))
            }
            // What serves, and a candidate on its way, are kept up although the spec asks for what cannot be.
            Err(error) if stable.is_some() => {
                notes.fault = Some(error.clone());
                Vec::new()
            }
            Err(error) => return Err(error.clone()),
        };
        let ready = notes.target.clone().map_or(Readiness::Ready, |target| self.readiness(&target, &mut notes));
        let rollout = self.decide(&desired, ready, notes.fault.is_some());
        let kept: BTreeSet<String> = rollout
            .decision
            .stable
            .iter()
            .chain(rollout.under_way().into_iter().flat_map(|state| &state.candidate))
            .map(|arm| arm.revision.clone())
            .collect();
        for revision in &kept {
            if let Some(known) = self.fetched.revisions.get(revision) {
                stored.entry(revision.clone()).or_insert_with(|| known.clone());
            }
        }
        notes.serving = rollout.decision.stable.first().map(|arm| arm.revision.clone());
        notes.routed.clone_from(&notes.serving);
        let shown = notes.target.as_ref().or(notes.serving.as_ref()).and_then(|revision| stored.get(revision));
        notes.downloads = shown.is_some_and(Stored::downloads);
        notes.digest = shown.and_then(Stored::digest);
        if let Some(target) = &notes.target
            && rollout.decision.state.as_ref().is_some_and(|state| state.phase == RolloutPhase::RolledBack)
        {
            notes.fault = rollout.rejected.iter().find(|rejected| rejected.revision == *target).map(refused);
        }
        let selected = notes.serving.as_deref().unwrap_or(NOBODY);
        let mut desired = vec![Desired::new(&self.service(selected))?];
        for (revision, stored) in &stored {
            desired.push(Desired::once(&revision::object(self.name(), revision, stored)?)?);
        }
        if stored.values().any(Stored::downloads) {
            desired.push(Desired::new(&self.cache())?);
        }
        for revision in &kept {
            if let Some(stored) = stored.get(revision) {
                desired.push(self.deployment(revision, stored)?);
            }
        }
        let polls = rollout.under_way().is_some_and(rollout::needs_reading).then_some(POLL);
        notes.again = [rollout.decision.again, polls].into_iter().flatten().min();
        let mut removals = self.emptied(&kept, &rollout, &mut notes);
        let keep: BTreeSet<&str> = stored.keys().map(String::as_str).collect();
        removals.extend(self.surplus(&keep));
        notes.rollout = Some(rollout);
        Ok(Plan { record: None, desired, removals, notes })
    }

    fn arms(&self, revision: Option<&str>) -> Vec<ArmRevision> {
        let arm = |revision: &str| ArmRevision {
            variant: self.name().to_owned(),
            revision: revision.to_owned(),
            weight: 100,
        };
        revision.map(arm).into_iter().collect()
    }

    /// Whether the target's pods could answer, and what keeps them from it.
    fn readiness(&self, target: &str, notes: &mut Notes) -> Readiness {
        let stable = self.stable();
        let trouble = troubles::of(self.fetched, target);
        if stable == Some(target) || self.is_proven(target) {
            notes.trouble = trouble;
            return Readiness::Ready;
        }
        let Some(mut trouble) = trouble else {
            return Readiness::NotReady(format!("the pods of revision {target} start"));
        };
        if trouble.is_final(stable.is_some()) {
            return Readiness::Failed { reason: trouble.reason, message: trouble.message };
        }
        if let Some(stable) = stable
            && [reasons::UNSCHEDULABLE, reasons::INSUFFICIENT_ACCELERATORS].contains(&trouble.reason)
        {
            trouble.message = format!(
                "revision {target} must run beside revision {stable}, which serves on and is not stopped for it: {}",
                trouble.message
            );
        }
        let message = trouble.message.clone();
        notes.trouble = Some(trouble);
        Readiness::NotReady(message)
    }

    fn decide(&self, desired: &[ArmRevision], ready: Readiness, frozen: bool) -> Rollout {
        let none = ModelDeploymentStatus::default();
        let status = self.status().unwrap_or(&none);
        let mut rejected = self.rejected();
        // A time in the annotation that is later than the rejection asks for another try.
        let asked_anew = |state: &&RolloutStatus| {
            state.phase == RolloutPhase::RolledBack
                && !state.candidate.iter().any(|arm| rejected.iter().any(|known| known.revision == arm.revision))
        };
        let state = status.rollout.as_ref().filter(|state| frozen || !asked_anew(state));
        let stable = self.arms(self.stable());
        let annotations = self.object.metadata.annotations.as_ref();
        let request = annotations.and_then(|annotations| annotations.get(names::ANNOTATION_ROLLOUT));
        let observed = Observed {
            desired,
            stable: &stable,
            ready,
            missing: None,
            gates: self.gates(desired, stable.is_empty()),
            reading: self.reading(state, &stable),
            request: request
                .filter(|request| status.last_handled_rollout_request.as_ref() != Some(*request))
                .map(String::as_str),
            suspended: frozen,
        };
        let decision = rollout::next(&plan(&self.object.spec.rollout), state, &observed, self.now);
        decision.update_rejected(&mut rejected, self.now, REMEMBERED);
        Rollout { decision, rejected }
    }

    /// What users' requests have shown of the candidate: how many units met it under the table that holds now, and whether more of its calls
    /// fail than of those of what serves. What users think of a model's answers is a matter of the flows that use it.
    fn reading(&self, state: Option<&RolloutStatus>, stable: &[ArmRevision]) -> Reading {
        let Some(state) = state else { return Reading::None };
        let measured = match &self.fetched.measured {
            Measured::Nothing => return Reading::None,
            Measured::Failed(why) => return Reading::Failed(format!("it cannot be measured: {why}")),
            Measured::Taken(measured) => measured,
        };
        let plan = match experiment::Plan::new(None, true, 1) {
            Ok(plan) => plan,
            Err(error) => return Reading::Failed(error.to_string()),
        };
        let traffic = self.status().map(|status| status.traffic.as_slice()).unwrap_or_default();
        let now = stratum(traffic.iter().map(|arm| (self.name(), arm.revision.as_str(), arm.weight)));
        let is_candidate = |revision: &str| state.candidate.iter().any(|arm| arm.revision == revision);
        let met = measured.arms.iter().filter(|arm| arm.stratum == now && is_candidate(&arm.revision));
        let read = experiment::read(&plan, measured, experiment::plan::CANDIDATE, stable, &state.candidate);
        Reading::Taken(Evidence {
            units: met.map(|arm| arm.units).sum(),
            harm: read.harm.map(|harm| harm.message),
            // A unit whose revision has no ready pod is served by the other: the shares may well differ from those asked for.
            invalid: None,
            ..Evidence::default()
        })
    }

    fn gates(&self, desired: &[ArmRevision], is_first: bool) -> Vec<GateStatus> {
        let Some(arm) = desired.first() else { return Vec::new() };
        let part = Dependency { kind: MODEL.to_owned(), name: arm.variant.clone(), revision: arm.revision.clone() };
        let names = self.object.spec.rollout.gates.iter().map(|gate| &gate.evaluation_ref.name);
        names.map(|name| gate_of_part(name, self.fetched.evaluations.get(name), &part, is_first)).collect()
    }

    /// Deployments of revisions that serve nobody any more and are not on their way.
    fn emptied(&self, kept: &BTreeSet<String>, rollout: &Rollout, notes: &mut Notes) -> Vec<Removal> {
        let traffic = self.status().map(|status| status.traffic.as_slice()).unwrap_or_default();
        let mut removals = Vec::new();
        for revision in self.fetched.deployments.keys().filter(|revision| !kept.contains(*revision)) {
            let served_until_now = traffic.iter().any(|arm| arm.revision == *revision);
            let grace = if served_until_now { SHIFT_GRACE } else { self.rest_of_grace(rollout) };
            if grace.is_zero() {
                removals.push(Removal::new(Kind::Deployment, names::model_revision(self.name(), revision)));
            } else {
                notes.again = Some(notes.again.map_or(grace, |again| again.min(grace)));
            }
        }
        removals
    }

    fn rest_of_grace(&self, rollout: &Rollout) -> Duration {
        let Some(state) = &rollout.decision.state else { return self.grace(false) };
        let moved = if rollout::is_under_way(state) { &state.started } else { &state.since };
        let passed = Duration::try_from(self.now.duration_since(moved.0)).unwrap_or_default();
        SHIFT_GRACE.saturating_sub(passed)
    }
}
