//! Who may write. Every write asks the guard first, so that a replica that lost the Lease stops at once, also in the
//! middle of a reconcile.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::Error;

/// Whether this process leads, and until when that is certain without another renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Another process leads, or nobody does yet.
    Follower,
    /// This process leads until the instant.
    Leader(Instant),
    /// This process leads, with no Lease (tests, single runs).
    Always,
}

/// The guard that every write asks.
#[derive(Clone, Debug)]
pub struct Leadership {
    standing: Arc<watch::Sender<Standing>>,
}

impl Leadership {
    /// A guard that starts as follower.
    pub fn follower() -> Self {
        Self { standing: Arc::new(watch::Sender::new(Standing::Follower)) }
    }

    /// A guard that always leads.
    pub fn always() -> Self {
        Self { standing: Arc::new(watch::Sender::new(Standing::Always)) }
    }

    pub(crate) fn set(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// Whether this process leads now.
    pub fn leads(&self) -> bool {
        match *self.standing.borrow() {
            Standing::Follower => false,
            Standing::Leader(until) => Instant::now() < until,
            Standing::Always => true,
        }
    }

    /// # Errors
    /// [`Error::NotLeader`] unless this process leads now.
    pub fn check(&self) -> Result<(), Error> {
        if self.leads() { Ok(()) } else { Err(Error::NotLeader) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }
}
