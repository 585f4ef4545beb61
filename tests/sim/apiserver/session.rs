//! A connection of one client process, and the faults planned for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// What goes wrong, and at which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the request among those of the session that can change something, from 1.
    pub at: usize,
    /// What goes wrong.
    pub kind: FaultKind,
}

/// What goes wrong with a request that can change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It is done, and the process dies before it learns so.
    CrashAfter,
    /// It is done, and the connection breaks before the answer.
    ReplyLost,
    /// It is not done, and this code is answered.
    Refuse(u16),
    /// It is done after the client has long given up: the answer never comes.
    Hang,
}

/// A connection.
pub struct Session {
    /// Name of the client process, for the log.
    pub name: String,
    fault: Mutex<Option<Fault>>,
    requests: AtomicUsize,
    dead: AtomicBool,
    died: Notify,
}

impl Session {
    /// A connection with at most one fault.
    pub fn new(name: &str, fault: Option<Fault>) -> Self {
        Self {
            name: name.to_owned(),
            fault: Mutex::new(fault),
            requests: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        }
    }

    /// Counts a request that can change something. Gives what goes wrong with it.
    pub fn count(&self) -> Option<FaultKind> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mut fault = self.fault.lock().expect("no panic with the lock held");
        match *fault {
            Some(planned) if planned.at == number => {
                *fault = None;
                Some(planned.kind)
            }
            _ => None,
        }
    }

    /// Number of requests so far that can change something.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Whether the planned fault has not happened yet.
    pub fn is_fault_pending(&self) -> bool {
        self.fault.lock().expect("no panic with the lock held").is_some()
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
}
