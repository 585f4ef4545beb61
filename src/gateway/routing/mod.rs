//! Routing: what is served, by whom, and who may ask. Watches fill an immutable [`Snapshot`]; a request takes one and
//! keeps it, so it never sees a mix, and goes on being served from memory when the API server is away.

mod build;
mod keys;
mod table;
mod watch;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch as signal;

pub use build::{Objects, build};
pub use keys::{ApiKey, KeyTable, Scope};
pub(in crate::gateway) use table::weight_of;
pub use table::{Arm, ByName, External, FlowRoute, IndexRoute, ModelRoute, Price, Resources, Routed, Snapshot, Switch};
pub use watch::watch;

/// The current snapshot, swapped without locks.
#[derive(Debug)]
pub struct Routes {
    snapshot: ArcSwap<Snapshot>,
    changed: signal::Sender<u64>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { snapshot: ArcSwap::default(), changed: signal::channel(0).0 }
    }
}

impl Routes {
    /// The snapshot of this moment.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Makes a snapshot the current one and wakes those who wait for an endpoint.
    pub fn store(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Tells of every later snapshot.
    pub fn changes(&self) -> signal::Receiver<u64> {
        self.changed.subscribe()
    }
}
