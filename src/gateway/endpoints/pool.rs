//! The endpoints of one model or index, and the queue before them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::budget::Budget;
use super::health::{Endpoint, Lease};
use super::pick::{Candidate, Choice, pick};

/// The endpoints of one model or index.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Ready endpoints by revision or generation.
    pub endpoints: BTreeMap<String, Vec<Endpoint>>,
    /// What outlives a snapshot.
    pub state: Arc<PoolState>,
}

/// What outlives a snapshot: the queue and the budget of retries.
#[derive(Debug, Default)]
pub struct PoolState {
    waiting: AtomicUsize,
    free: Notify,
    budget: Mutex<Budget>,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A model or an index.
    pub kind: TargetKind,
    /// Namespace.
    pub namespace: String,
    /// Name of the ModelDeployment or RagIndex.
    pub name: String,
    /// Exactly this revision or generation, whatever the routing table says.
    pub pin: Option<String>,
    /// Unit by which a revision is chosen among those with weight.
    pub unit: String,
    /// Whether the call is for a shadow copy: it stands back behind others, and its failures say nothing of the endpoint.
    pub background: bool,
    /// Whether a user asked a model: nothing is pinned, and this is no copy. Only such calls are measured.
    pub counts: bool,
}

/// What kind of thing is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TargetKind {
    Model,
    Index,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, revision) = match self.kind {
            TargetKind::Model => ("ModelDeployment", "revision"),
            TargetKind::Index => ("RagIndex", "generation"),
        };
        write!(f, "{kind} {}/{}", self.namespace, self.name)?;
        self.pin.iter().try_for_each(|pin| write!(f, " at the pinned {revision} {pin}"))
    }
}

/// Why there is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no such object.
    #[error("{0} does not exist; check the name and the namespace")]
    Unknown(String),
    /// Too many calls wait already.
    #[error("{0} is overloaded: {1} calls wait already; try again later or raise its replicas")]
    QueueFull(String, usize),
    /// None became free in time.
    #[error("{0} has no ready endpoint; look at its conditions with kubectl describe")]
    NoneReady(String),
    /// The endpoints are all at work.
    #[error("{0} is overloaded: no endpoint became free in time; try again later or raise its replicas")]
    Busy(String),
}

impl PoolState {
    /// Calls that wait for an endpoint.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A call ended: one of those that wait may go on.
    pub(super) fn released(&self) {
        // Also when nobody waits yet: one who found all endpoints full a moment ago may be about to.
        self.free.notify_one();
    }

    pub(super) fn free(&self) -> &Notify {
        &self.free
    }

    pub(super) fn earn(&self) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).earn();
    }

    pub(super) fn spend(&self, now: Instant) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).spend(now)
    }

    /// Joins the queue; `None` when it is full.
    pub(super) fn queue(self: &Arc<Self>, limit: usize) -> Option<Waiting> {
        let joined = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| (waiting < limit).then_some(waiting + 1));
        joined.ok().map(|_| Waiting(Arc::clone(self)))
    }
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Waiting(Arc<PoolState>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// Takes an endpoint of this revision, or says what to wait for.
    pub(super) fn take(&self, revision: &str, limit: usize, now: Instant) -> Result<Lease, Choice> {
        let endpoints = self.endpoints.get(revision).map_or(&[][..], Vec::as_slice);
        loop {
            let candidates: Vec<Candidate> = endpoints
                .iter()
                .map(|endpoint| Candidate {
                    in_flight: endpoint.state.in_flight(),
                    ejected: endpoint.state.ejected(now),
                })
                .collect();
            let place = match pick(&candidates, limit, |below| fastrand::usize(..below)) {
                Choice::Take(place) => place,
                wait => return Err(wait),
            };
            let Some(endpoint) = endpoints.get(place) else { return Err(Choice::Empty) };
            // Another call may have taken the last place since the look at the load.
            if let Some(lease) = Lease::take(endpoint, revision, &self.state, limit) {
                return Ok(lease);
            }
        }
    }
}
