//! What is between the operator's processes and the API server: planned faults, outages, watches that lag or end.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Fault, OnWrite, Outage};

/// The network of the operator.
pub struct Network {
    state: Mutex<State>,
    told: broadcast::Sender<()>,
}

#[derive(Default)]
struct State {
    planned: Vec<(usize, OnWrite)>,
    requests: usize,
    outage: Option<(Outage, Instant)>,
    lag: Option<Instant>,
    absent: Option<(String, Instant)>,
    /// Lists that need not be the newest show the state of this version.
    past: Option<u64>,
    signals: Signals,
}

/// How often something happened to all watches.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// They ended.
    pub drops: u64,
    /// They showed their latest events again.
    pub repeats: u64,
}

impl Network {
    /// With the faults that are planned at requests.
    pub fn new(faults: &[Fault]) -> Self {
        let planned = faults.iter().filter_map(|fault| match fault {
            Fault::Write(at, what) => Some((*at, *what)),
            Fault::Moment(..) => None,
        });
        let state = State { planned: planned.collect(), ..State::default() };
        Self { state: Mutex::new(state), told: broadcast::Sender::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic with the lock held")
    }

    /// Counts a request that can change something. Gives what goes wrong with it.
    pub fn count(&self) -> Option<OnWrite> {
        let mut state = self.lock();
        state.requests += 1;
        let at = state.requests;
        let found = state.planned.iter().position(|(planned, _)| *planned == at)?;
        Some(state.planned.remove(found).1)
    }

    /// Number of requests so far that can change something.
    pub fn requests(&self) -> usize {
        self.lock().requests
    }

    /// Whether a fault that was planned at a request has not happened.
    pub fn is_fault_pending(&self) -> bool {
        !self.lock().planned.is_empty()
    }

    /// The API server is away from now on for so long.
    pub fn fail(&self, outage: Outage, time: Duration) {
        self.lock().outage = Some((outage, Instant::now() + time));
    }

    /// How the API server is away, and until when.
    pub fn outage(&self) -> Option<(Outage, Instant)> {
        self.lock().outage.filter(|(_, until)| *until > Instant::now())
    }

    /// Watches show nothing from now on for so long.
    pub fn lag(&self, time: Duration) {
        self.lock().lag = Some(Instant::now() + time);
    }

    /// Until when watches show nothing.
    pub fn lagging(&self) -> Option<Instant> {
        self.lock().lag.filter(|until| *until > Instant::now())
    }

    /// This resource does not exist for so long.
    pub fn hide(&self, resource: &str, time: Duration) {
        self.lock().absent = Some((resource.to_owned(), Instant::now() + time));
    }

    /// Whether a resource does not exist.
    pub fn hides(&self, resource: &str) -> bool {
        self.lock().absent.as_ref().is_some_and(|(hidden, until)| hidden == resource && *until > Instant::now())
    }

    /// Lists that need not be the newest show the state of a version from now on.
    pub fn show_past(&self, version: Option<u64>) {
        self.lock().past = version;
    }

    /// The version that lists show that need not be the newest.
    pub fn past(&self) -> Option<u64> {
        self.lock().past
    }

    /// Ends all watches.
    pub fn drop_watches(&self) {
        self.lock().signals.drops += 1;
        let _ = self.told.send(());
    }

    /// Lets all watches show their latest events again.
    pub fn repeat(&self) {
        self.lock().signals.repeats += 1;
        let _ = self.told.send(());
    }

    /// What happened to watches.
    pub fn signals(&self) -> Signals {
        self.lock().signals
    }

    /// Tells when something happens to watches.
    pub fn follow_signals(&self) -> broadcast::Receiver<()> {
        self.told.subscribe()
    }

    /// When the last of the faults that take time is over.
    pub fn calm_at(&self) -> Option<Instant> {
        let state = self.lock();
        let ends = [state.outage.map(|(_, until)| until), state.lag, state.absent.as_ref().map(|(_, until)| *until)];
        ends.into_iter().flatten().max()
    }
}
