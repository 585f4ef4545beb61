//! A connection of one client process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::network::Network;

/// A connection.
pub struct Session {
    /// Name of the client process, for the log.
    pub name: String,
    /// What is between it and the server.
    pub network: Arc<Network>,
    cut: Mutex<Option<Instant>>,
    dead: AtomicBool,
    died: Notify,
}

impl Session {
    /// A connection over this network.
    pub fn new(name: &str, network: Arc<Network>) -> Self {
        Self {
            name: name.to_owned(),
            network,
            cut: Mutex::new(None),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        }
    }

    /// A connection on which nothing goes wrong.
    pub fn plain(name: &str) -> Arc<Self> {
        Arc::new(Self::new(name, Arc::new(Network::new(&[]))))
    }

    /// The process is gone: none of its requests is handled any more.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
    }

    /// Whether the process is gone.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Waits until the process is gone.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// Nothing comes through for so long.
    pub fn cut_off(&self, time: Duration) {
        *self.cut.lock().expect("no panic with the lock held") = Some(Instant::now() + time);
    }

    /// Until when nothing comes through.
    pub fn is_cut_off(&self) -> Option<Instant> {
        self.cut.lock().expect("no panic with the lock held").filter(|until| *until > Instant::now())
    }

    /// Until when watches show nothing.
    pub fn held(&self) -> Option<Instant> {
        [self.is_cut_off(), self.network.lagging()].into_iter().flatten().max()
    }
}
