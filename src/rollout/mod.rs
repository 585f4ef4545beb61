//! How a new revision comes to serve, pure: no client, no clock, no I/O. Used by all kinds that have revisions.
//!
//! A *release* is what a spec asks for: arms (variant, revision, weight) whose weights sum to 100; a model has one arm.
//! *Stable* is the release that was promoted last, the *candidate* one that brings an arm that stable has not.
//!
//! * [`states`]: the table of states, events and actions. It is the only place that says what follows what.
//! * [`machine`]: [`next`] sees which event is there, looks the action up in the table, and does it.
//! * [`table`]: routing tables between stable and candidate.
//! * [`request`]: what a person asks for by annotation. [`gates`]: what an Evaluation says of a candidate.
//!
//! A controller calls [`next`] in every reconcile with what it sees and writes [`Decision::state`], [`Decision::stable`]
//! and [`Decision::table`] into the status in one write. The same state and the same observation give the same decision,
//! so a crash between two writes resumes correctly, and nothing is written when nothing changes.

pub mod gates;
pub mod machine;
pub mod request;
pub mod states;
pub mod table;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use machine::next;

use crate::api::rollout::{
    ArmRevision, ExperimentVerdict, GateStatus, OnInconclusive, Promotion, RejectedRevision, RolloutPhase,
    RolloutStatus, RolloutStep, Shadow,
};

/// Reasons of rejections, all there are.
#[allow(missing_docs)]
pub mod reason {
    pub const EVALUATION_FAILED: &str = "EvaluationFailed";
    pub const METRIC_REGRESSION: &str = "MetricRegression";
    pub const ROLLED_BACK_BY_USER: &str = "RolledBackByUser";
    pub const UNDECIDED: &str = "Undecided";
    pub const CANDIDATE_FAILED: &str = "CandidateFailed";
}

/// What the spec says about the way of a candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Evaluations that must pass before anybody gets it.
    pub gates: Vec<String>,
    /// Copies of requests before anybody gets it.
    pub shadow: Option<Shadow>,
    /// The ramp.
    pub steps: Vec<RolloutStep>,
    /// What to do when the ramp is over and the goal is undecided.
    pub on_inconclusive: OnInconclusive,
    /// Who promotes.
    pub promotion: Promotion,
    /// The revision that Git approves.
    pub approve: Option<String>,
}

impl Plan {
    /// Whether a candidate is promoted as soon as it is ready.
    pub fn is_immediate(&self) -> bool {
        self.gates.is_empty() && self.shadow.is_none() && self.steps.is_empty() && self.promotion == Promotion::Auto
    }
}

/// Whether the candidate could serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It could.
    #[default]
    Ready,
    /// Not yet, or not any more: what it does or lacks, in a sentence.
    NotReady(String),
    /// It never will: it is rejected with this reason (CamelCase) and message.
    Failed {
        /// CamelCase reason for `rejectedRevisions`.
        reason: &'static str,
        /// What happened and what helps.
        message: String,
    },
}

/// What users' requests have shown of the candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reading {
    /// The kind measures nothing, or there is nothing to measure yet.
    #[default]
    None,
    /// It could not be measured, and why. No step is taken on it, and nothing is rolled back.
    Failed(String),
    /// What was measured.
    Taken(Evidence),
}

/// What was measured of the candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Units that met the candidate under the present routing table.
    pub units: u64,
    /// Copies that it answered in shadow.
    pub shadow_requests: u64,
    /// Why the split is not what was asked for; then nothing is decided.
    pub invalid: Option<String>,
    /// What the goal says; `None` when there is no goal.
    pub goal: Option<ExperimentVerdict>,
    /// What got worse beyond doubt: the goal, or a guardrail. Rolls back at once.
    pub harm: Option<String>,
    /// Why the goal is not decided, for people; may be empty.
    pub undecided: String,
}

/// What there is, besides the state.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// The release that the spec asks for.
    pub desired: &'a [ArmRevision],
    /// The release that was promoted last; empty when there was none.
    pub stable: &'a [ArmRevision],
    /// Whether the desired release could serve. It has no say about stable.
    pub ready: Readiness,
    /// A reference that the candidate needs and that is gone, in a sentence that names it.
    pub missing: Option<String>,
    /// The gates of the plan, seen from the desired release.
    pub gates: Vec<GateStatus>,
    /// What users' requests have shown.
    pub reading: Reading,
    /// Value of the annotation by which a person asks, unless it was handled already.
    pub request: Option<&'a str>,
    /// Whether the spec asks for a pause.
    pub suspended: bool,
}

/// A rejection to remember in `rejectedRevisions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The revisions that the candidate brought.
    pub revisions: Vec<String>,
    /// CamelCase reason.
    pub reason: String,
    /// What happened and what helps.
    pub message: String,
}

impl Rejection {
    /// Adds it to the list: newest first, one entry a revision, not more than `limit`.
    pub fn remember(&self, list: &mut Vec<RejectedRevision>, now: jiff::Timestamp, limit: usize) {
        list.retain(|old| !self.revisions.contains(&old.revision));
        let new = self.revisions.iter().map(|revision| RejectedRevision {
            revision: revision.clone(),
            reason: self.reason.clone(),
            message: self.message.clone(),
            time: Time(now),
        });
        list.splice(0..0, new);
        list.truncate(limit);
    }
}

/// Something to tell people: an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is bad news.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The new state; `None` when there is no rollout to speak of.
    pub state: Option<RolloutStatus>,
    /// The release that serves when no rollout is under way.
    pub stable: Vec<ArmRevision>,
    /// The routing table.
    pub table: Vec<ArmRevision>,
    /// Whether a rollout began just now.
    pub begun: bool,
    /// A candidate that was rejected just now.
    pub rejected: Option<Rejection>,
    /// A request that was acted upon or refused just now: remember it, it acts once.
    pub handled: Option<String>,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// Look again after this time: the next moment at which time alone decides something.
    pub again: Option<Duration>,
}

impl Decision {
    /// Keeps `rejectedRevisions`: what was rejected just now comes first, what is tried anew goes.
    pub fn update_rejected(&self, list: &mut Vec<RejectedRevision>, now: jiff::Timestamp, limit: usize) {
        if let Some(state) = self.state.as_ref().filter(|_| self.begun) {
            list.retain(|old| !table::news(&state.candidate, &state.stable).any(|arm| arm.revision == old.revision));
        }
        if let Some(rejected) = &self.rejected {
            rejected.remember(list, now, limit);
        }
    }
}

/// Whether a rollout is under way: begun, and neither promoted nor rolled back.
pub fn is_under_way(state: &RolloutStatus) -> bool {
    !matches!(state.phase, RolloutPhase::Promoted | RolloutPhase::RolledBack)
}

/// Whether the next decision needs a reading: the candidate answers users' requests, or copies of them.
pub fn needs_reading(state: &RolloutStatus) -> bool {
    state.phase == RolloutPhase::Shadowing || (is_under_way(state) && state.weight > 0)
}

/// The revision by which people name a candidate: that of the first arm that it brings.
pub fn identity<'a>(candidate: &'a [ArmRevision], stable: &'a [ArmRevision]) -> Option<&'a str> {
    table::news(candidate, stable).next().map(|arm| arm.revision.as_str())
}

/// Whether the copies of requests go to the candidate.
pub fn shadows(state: &RolloutStatus) -> bool {
    state.phase == RolloutPhase::Shadowing
}

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod properties;
