//! Runs one controller: turns changes into turns, gives objects their turn, and schedules what comes after.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::cache::{Change, Entry};
use super::error::{Error, REASON_NAME_CONFLICT};
use super::kinds::{Key, Kind, Reference, Watched};
use super::leadership::Leadership;
use super::metrics::{ByController, ByResult, Metrics};
use super::pipeline::{Controller, Next, Shared, reconcile};
use super::references::References;
use super::schedule::Schedule;

/// Reconciles of one controller at the same time.
const CONCURRENT: usize = 8;
/// Longest run of one reconcile.
const DEADLINE: Duration = Duration::from_secs(30);
/// Objects of others are not watched, so one that has a name of ours is looked for again after this time, then after
/// twice as long, and so on up to the resync.
const FOREIGN_RETRY: Duration = Duration::from_secs(30);
/// Child events come in bursts (created, scheduled, started, ready); they are answered together.
const CHILD_DEBOUNCE: Duration = Duration::from_millis(200);
/// Changes of referenced objects are answered at once, but a batch of them together.
const REFERENCE_DEBOUNCE: Duration = Duration::from_millis(20);

/// Takes notice of changes in the caches.
pub(crate) trait Observer: Send + Sync {
    fn changed(&self, change: &Change);

    /// This process became the leader, or is it no more.
    fn standing_changed(&self);
}

/// One controller's turns.
pub(crate) struct Worker<C: Controller> {
    controller: C,
    shared: Arc<Shared>,
    metrics: Metrics,
    schedule: Mutex<Schedule>,
    references: Mutex<References>,
    failures: Mutex<HashMap<Key, u32>>,
    wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Controller> Worker<C> {
    pub(crate) fn new(controller: C, shared: Arc<Shared>, metrics: Metrics) -> Self {
        Self {
            controller,
            shared,
            metrics,
            schedule: Mutex::default(),
            references: Mutex::default(),
            failures: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn kind() -> Kind {
        C::Object::KIND
    }

    fn wish(&self, key: &Key, delay: Duration) {
        lock(&self.schedule).wish(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Gives turns until the shutdown; then lets running reconciles finish.
    pub(crate) async fn run(self: Arc<Self>, leadership: Leadership, shutdown: CancellationToken) {
        let mut running: JoinSet<()> = JoinSet::new();
        let mut led = false;
        loop {
            let leads = leadership.leads();
            if leads && !led {
                // What happened while another replica led is unknown: look at everything once.
                for key in self.shared.caches.of(Self::kind()).keys() {
                    lock(&self.schedule).wish(&key, Instant::now());
                }
            }
            led = leads;
            while led && running.len() < CONCURRENT {
                let Some(key) = lock(&self.schedule).take(Instant::now()) else { break };
                running.spawn(Arc::clone(&self).turn(key));
            }
            let queued = i64::try_from(lock(&self.schedule).len()).unwrap_or(i64::MAX);
            self.metrics.queued.get_or_create(&ByController { controller: C::NAME }).set(queued);
            let next = if led && running.len() < CONCURRENT { lock(&self.schedule).next() } else { None };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.wake.notified() => {}
                Some(ended) = running.join_next() => report_panic(C::NAME, ended),
                () = sleep_until(next) => {}
            }
        }
        while let Some(ended) = running.join_next().await {
            report_panic(C::NAME, ended);
        }
    }

    async fn turn(self: Arc<Self>, key: Key) {
        // A panic must not keep the object's turn for ever.
        let mut end = End { worker: &self, key: &key, next: Some(Instant::now() + Duration::from_secs(60)) };
        let failures = lock(&self.failures).get(&key).copied().unwrap_or_default();
        let started = Instant::now();
        let outcome = tokio::time::timeout(DEADLINE, reconcile(&self.controller, &self.shared, &key, failures)).await;
        self.metrics
            .duration
            .get_or_create(&ByController { controller: C::NAME })
            .observe(started.elapsed().as_secs_f64());
        let (next, result) = outcome.unwrap_or_else(|_| {
            let message = format!("not finished within {} s", DEADLINE.as_secs());
            (Next::default(), Err(Error::transient("DeadlineExceeded", message)))
        });
        end.next = self.after(&key, &next, &result, failures);
        drop(end);
        self.wake.notify_one();
    }

    fn after(&self, key: &Key, next: &Next, result: &Result<(), Error>, failures: u32) -> Option<Instant> {
        let cached = self.shared.caches.of(Self::kind()).get(key);
        self.log(key, cached.as_deref(), result, failures);
        let label = match result {
            Ok(()) => "ok",
            Err(Error::Waiting { .. }) => "waiting",
            Err(Error::Stalled { .. }) => "stalled",
            Err(Error::Transient { .. }) => "transient",
            Err(Error::Conflict(_)) => "conflict",
            Err(Error::NotLeader) => "not_leader",
        };
        self.metrics.reconciles.get_or_create(&ByResult { controller: C::NAME, result: label }).inc();
        if cached.is_none() {
            lock(&self.failures).remove(key);
            lock(&self.references).forget(key);
            return None;
        }
        let followed = next.followed.iter().map(|(reference, _)| reference);
        lock(&self.references).meet(key, next.waiting_on.iter().chain(followed).cloned());
        let delay = match result {
            Err(Error::NotLeader) => return None,
            Err(Error::Transient { .. } | Error::Conflict(_)) => {
                lock(&self.failures).insert(key.clone(), failures.saturating_add(1));
                backoff::after_failures(failures.saturating_add(1), fastrand::f64())
            }
            Err(error) if error.reason() == REASON_NAME_CONFLICT => {
                lock(&self.failures).insert(key.clone(), failures.saturating_add(1));
                let retry = FOREIGN_RETRY.saturating_mul(1 << failures.min(5));
                retry.min(backoff::resync(fastrand::f64()))
            }
            Ok(()) | Err(Error::Waiting { .. } | Error::Stalled { .. }) => {
                lock(&self.failures).remove(key);
                let resync = backoff::resync(fastrand::f64());
                let again = next.again.map_or(resync, |again| again.min(resync));
                if self.missed_a_change(key, next) { Duration::ZERO } else { again }
            }
        };
        Some(Instant::now() + delay)
    }

    /// Whether something changed between the reconcile's look at it and the moment from which its changes are answered.
    fn missed_a_change(&self, key: &Key, next: &Next) -> bool {
        next.followed.iter().any(|(reference, seen)| {
            let at = Key::new(key.namespace.as_str(), reference.name.as_str());
            let now = self.shared.caches.of(reference.kind).get(&at);
            now.as_ref().map(|entry| &entry.resource_version) != seen.as_ref()
        })
    }

    fn log(&self, key: &Key, cached: Option<&Entry>, result: &Result<(), Error>, failures: u32) {
        let (uid, generation) = cached.map_or(("", 0), |entry| (entry.uid.as_str(), entry.generation));
        let (kind, namespace, name) = (Self::kind(), key.namespace.as_str(), key.name.as_str());
        match result {
            Ok(()) => tracing::debug!(%kind, namespace, name, uid, generation, "reconciled"),
            Err(Error::Conflict(what)) => {
                tracing::debug!(%kind, namespace, name, uid, generation, what, "cache was behind");
            }
            Err(Error::NotLeader) => tracing::info!(%kind, namespace, name, uid, generation, "stopped: not the leader"),
            Err(error @ Error::Transient { reason, .. }) => {
                tracing::warn!(%kind, namespace, name, uid, generation, reason, failures = failures + 1, %error, "failed, trying again");
            }
            Err(error) => {
                tracing::info!(%kind, namespace, name, uid, generation, reason = error.reason(), %error, "not done");
            }
        }
    }

    /// Notes what the object refers to, and whether an old failure still counts.
    fn noticed(&self, key: &Key, old: Option<&Entry>, new: &Entry) {
        let respecified = old.is_none_or(|old| {
            old.generation != new.generation || old.uid != new.uid || old.reconcile_requested != new.reconcile_requested
        });
        if !respecified {
            return;
        }
        lock(&self.failures).remove(key);
        let references: Vec<Reference> =
            new.decode::<C::Object>().map(|object| C::references(&object)).unwrap_or_default();
        lock(&self.references).declare(key, references);
    }
}

impl<C: Controller> Observer for Worker<C> {
    fn standing_changed(&self) {
        self.wake.notify_one();
    }

    fn changed(&self, change: &Change) {
        if change.kind == Self::kind() {
            match &change.new {
                Some(new) => self.noticed(&change.key, change.old.as_deref(), new),
                None => lock(&self.references).forget(&change.key),
            }
            if change.watched && change.new.is_some() {
                self.wish(&change.key, Duration::ZERO);
            }
        }
        if change.watched {
            let owners = [&change.old, &change.new].into_iter().flatten().filter_map(|entry| entry.owner.as_ref());
            for owner in owners.filter(|owner| owner.kind == Self::kind()) {
                let key = Key::new(change.key.namespace.as_str(), owner.name.as_str());
                if self.shared.caches.of(Self::kind()).get(&key).is_some() {
                    // A child that is gone comes alone, and something is missing until it is back.
                    let delay = if change.new.is_some() { CHILD_DEBOUNCE } else { REFERENCE_DEBOUNCE };
                    self.wish(&key, delay);
                }
            }
        }
        let referrers = lock(&self.references).referrers(change.kind, &change.key);
        for referrer in referrers {
            self.wish(&referrer, REFERENCE_DEBOUNCE);
        }
    }
}

struct End<'a, C: Controller> {
    worker: &'a Worker<C>,
    key: &'a Key,
    next: Option<Instant>,
}

impl<C: Controller> Drop for End<'_, C> {
    fn drop(&mut self) {
        lock(&self.worker.schedule).done(self.key, self.next);
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn report_panic(controller: &'static str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(controller, %error, "a reconcile panicked; the object is looked at again in a minute");
    }
}
