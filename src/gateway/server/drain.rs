//! The life of the process: starting, serving, draining, gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Whether requests should come, and whether the process is about to end.
#[derive(Debug)]
pub struct Lifecycle {
    open: watch::Receiver<bool>,
    draining: AtomicBool,
}

impl Lifecycle {
    /// Not ready until `open` is true: the first lists are here, and requests are listened for.
    pub fn new(open: watch::Receiver<bool>) -> Self {
        Self { open, draining: AtomicBool::new(false) }
    }

    /// Whether this replica should get requests. Once it has opened, this stays true until it drains, whether or not
    /// the API server can be reached.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Relaxed) {
            Err("draining")
        } else if !*self.open.borrow() {
            Err("waiting for the first lists from the Kubernetes API server")
        } else {
            Ok(())
        }
    }

    /// Readiness goes off; whoever balances the load stops sending.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// How long the listener stays open after readiness went off: load balancers need a moment to notice.
pub fn linger(timeout: Duration) -> Duration {
    (timeout / 6).min(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_synced_until_draining() {
        let (synced, is_synced) = watch::channel(false);
        let lifecycle = Lifecycle::new(is_synced);
        assert!(lifecycle.ready().is_err());
        synced.send_replace(true);
        drop(synced);
        assert_eq!(lifecycle.ready(), Ok(()), "the watches may be gone, what they said stays");
        lifecycle.drain();
        assert_eq!(lifecycle.ready(), Err("draining"));
    }

    #[test]
    fn the_listener_closes_well_before_the_drain_ends() {
        assert_eq!(linger(Duration::from_secs(30)), Duration::from_secs(5));
        assert_eq!(linger(Duration::from_secs(6)), Duration::from_secs(1));
    }
}
