//! Wall-clock time of the simulation: a fixed start plus virtual time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The clock.
#[derive(Clone, Copy)]
pub struct Clock {
    started: Instant,
    origin: Timestamp,
}

impl Clock {
    /// A clock that starts now, in virtual time, at noon of 2026-01-01.
    pub fn new() -> Self {
        let origin = "2026-01-01T12:00:00Z".parse().expect("a fixed timestamp");
        Self { started: Instant::now(), origin }
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Now, in full.
    pub fn timestamp(&self) -> Timestamp {
        let since = SignedDuration::try_from(self.elapsed()).expect("virtual time is short");
        self.origin + since
    }

    /// Now, to the second, as Kubernetes writes it.
    pub fn now(&self) -> String {
        self.after(0)
    }

    /// Some seconds from now.
    pub fn after(&self, seconds: i64) -> String {
        let since = SignedDuration::from_secs(self.elapsed().as_secs() as i64 + seconds);
        (self.origin + since).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}
