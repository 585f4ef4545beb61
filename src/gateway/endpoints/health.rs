//! One endpoint: its load, its failures, and whether it is left out for a while.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pool::PoolState;

/// Failed answers in a row after which an endpoint is left out.
const FAILURES: u32 = 5;
/// First and longest time for which an endpoint is left out.
const FIRST_EJECTION: Duration = Duration::from_millis(250);
const LONGEST_EJECTION: Duration = Duration::from_secs(10);

/// Something that answers calls: a ready pod, or a provider.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What makes it the same endpoint across snapshots: the pod's UID, or the provider's address.
    pub id: String,
    /// Address up to and without the path, such as `http://10.0.0.7:8080`.
    pub base: String,
    /// Load and health, shared by all snapshots.
    pub state: Arc<EndpointState>,
}

/// Load and health of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    in_flight: AtomicUsize,
    failures: AtomicU32,
    ejection: Mutex<Ejection>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ejection {
    until: Option<Instant>,
    times: u32,
    unreachable: bool,
}

/// Why an endpoint may not be used at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejected {
    /// It could not be reached: there is no use in trying before this time.
    Unreachable(Instant),
    /// It failed repeatedly; it is better than nothing.
    Failing(Instant),
}

impl EndpointState {
    /// Calls that run now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it is left out at this time.
    pub fn ejected(&self, now: Instant) -> Option<Ejected> {
        let ejection = *self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        let until = ejection.until.filter(|until| *until > now)?;
        Some(if ejection.unreachable { Ejected::Unreachable(until) } else { Ejected::Failing(until) })
    }

    /// It answered.
    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        *ejection = Ejection::default();
    }

    /// It failed to answer a call that it had taken. True when this makes it left out.
    pub fn failed(&self, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < FAILURES {
            return false;
        }
        self.eject(now, false)
    }

    /// It could not be reached, or vanished in the middle of a call. True when this makes it left out.
    pub fn unreachable(&self, now: Instant) -> bool {
        self.eject(now, true)
    }

    fn eject(&self, now: Instant, unreachable: bool) -> bool {
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        // Many calls may notice the same failure: only the first of them starts and lengthens the ejection.
        if ejection.until.is_some_and(|until| until > now) {
            ejection.unreachable |= unreachable;
            return false;
        }
        let time = FIRST_EJECTION.saturating_mul(1 << ejection.times.min(8)).min(LONGEST_EJECTION);
        *ejection = Ejection { until: Some(now + time), times: ejection.times.saturating_add(1), unreachable };
        true
    }
}

/// The right to call an endpoint; counted as load until dropped.
#[derive(Debug)]
pub struct Lease {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its revision or generation.
    pub revision: String,
    pool: Arc<PoolState>,
}

impl Lease {
    /// `None` when the endpoint has so many calls already.
    pub(super) fn take(endpoint: &Endpoint, revision: &str, pool: &Arc<PoolState>, limit: usize) -> Option<Self> {
        let more = |load: usize| (load < limit).then_some(load + 1);
        endpoint.state.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { endpoint: endpoint.clone(), revision: revision.to_owned(), pool: Arc::clone(pool) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.pool.released();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_leave_an_endpoint_out_for_growing_times() {
        let state = EndpointState::default();
        let now = Instant::now();
        assert_eq!((1..FAILURES).filter(|_| state.failed(now)).count(), 0);
        assert!(state.failed(now));
        assert_eq!(state.ejected(now), Some(Ejected::Failing(now + FIRST_EJECTION)));
        let later = now + FIRST_EJECTION;
        assert_eq!(state.ejected(later), None);
        assert!(state.failed(later), "one failure after the ejection suffices");
        assert_eq!(state.ejected(later), Some(Ejected::Failing(later + 2 * FIRST_EJECTION)));
        state.succeeded();
        assert_eq!(state.ejected(later), None);
    }

    #[test]
    fn an_unreachable_endpoint_is_left_out_at_once_and_not_longer_for_many_witnesses() {
        let state = EndpointState::default();
        let now = Instant::now();
        assert!(state.unreachable(now));
        assert!(!state.unreachable(now));
        assert_eq!(state.ejected(now), Some(Ejected::Unreachable(now + FIRST_EJECTION)));
        for round in 0..50 {
            state.unreachable(now + LONGEST_EJECTION * round);
        }
        let last = now + LONGEST_EJECTION * 49;
        assert_eq!(state.ejected(last), Some(Ejected::Unreachable(last + LONGEST_EJECTION)));
    }
}
