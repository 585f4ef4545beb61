//! What a container does, over virtual time.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// One run of a container.
#[derive(Clone, Debug)]
pub enum Run {
    /// Runs until it is stopped, ready after this time.
    Serves { ready_after: Duration },
    /// Runs until it is stopped and is never ready.
    Stuck,
    /// Ends by itself.
    Ends { after: Duration, code: i32, reason: &'static str, message: String },
    /// Cannot start: the image cannot be had.
    NoImage { message: String },
}

impl Run {
    /// Ends with success and this termination message.
    pub fn succeeds(message: impl Into<String>) -> Self {
        Self::Ends { after: Duration::from_secs(1), code: 0, reason: "Completed", message: message.into() }
    }
    /// Fails with this code and termination message.
    pub fn fails(code: i32, message: impl Into<String>) -> Self {
        Self::Ends { after: Duration::from_secs(1), code, reason: "Error", message: message.into() }
    }
}

/// A container and its present run.
pub struct Container {
    /// Name.
    pub name: String,
    /// Runs before this one.
    pub restarts: u32,
    run: Run,
    started: Option<Instant>,
    started_at: String,
    /// The end of the run before, as the status shows it.
    last: Option<Value>,
    /// The end of this run.
    end: Option<Value>,
    /// Not started again before.
    retry: Option<Instant>,
}

impl Container {
    /// A container that has not run.
    pub fn new(name: &str, run: Run) -> Self {
        Self {
            name: name.to_owned(),
            restarts: 0,
            run,
            started: None,
            started_at: String::new(),
            last: None,
            end: None,
            retry: None,
        }
    }

    /// The exit code, once the run has ended.
    pub fn exit_code(&self) -> Option<i64> {
        self.end.as_ref().and_then(|end| end["exitCode"].as_i64())
    }

    /// Whether requests are answered.
    pub fn is_ready(&self, now: Instant) -> bool {
        matches!((&self.run, self.started), (Run::Serves { ready_after }, Some(started)) if now >= started + *ready_after)
    }

    /// Starts it, if it can start and has not yet.
    pub fn start(&mut self, now: Instant, clock: &str) {
        if self.started.is_none() && self.end.is_none() && !matches!(self.run, Run::NoImage { .. }) {
            self.started = Some(now);
            clock.clone_into(&mut self.started_at);
        }
    }

    /// Ends the run if it is time. Gives when it will be.
    pub fn tick(&mut self, now: Instant, clock: &str) -> Option<Instant> {
        let started = self.started?;
        match &self.run {
            Run::Serves { ready_after } => Some(started + *ready_after).filter(|at| *at > now),
            Run::Ends { after, code, reason, message } if self.end.is_none() => {
                if now < started + *after {
                    return Some(started + *after);
                }
                self.end = Some(json!({
                    "exitCode": code, "reason": reason, "message": message,
                    "startedAt": self.started_at, "finishedAt": clock,
                }));
                None
            }
            _ => None,
        }
    }

    /// Starts a container again that has ended: after 10 s, then twice as long each time, up to 5 min.
    pub fn restart(&mut self, now: Instant, next: impl FnOnce(u32) -> Run) -> Option<Instant> {
        let end = self.end.clone()?;
        let wait = Duration::from_secs((10u64 << self.restarts.min(10)).min(300));
        let at = *self.retry.get_or_insert(now + wait);
        if now < at {
            return Some(at);
        }
        self.restarts += 1;
        self.run = next(self.restarts);
        (self.last, self.end, self.started, self.retry) = (Some(end), None, None, None);
        None
    }

    /// As in a pod's status.
    pub fn status(&self, image: &Value, now: Instant, init: bool) -> Value {
        let running = self.started.is_some() && self.end.is_none();
        let waits_to_restart = self.retry.is_some();
        let state = match &self.end {
            Some(_) if waits_to_restart => json!({"waiting": {
                "reason": "CrashLoopBackOff", "message": format!("back-off restarting failed container {}", self.name),
            }}),
            Some(end) => json!({"terminated": end}),
            None if running => json!({"running": {"startedAt": self.started_at}}),
            None => match &self.run {
                Run::NoImage { message } => json!({"waiting": {"reason": "ErrImagePull", "message": message}}),
                _ => json!({"waiting": {"reason": if init { "PodInitializing" } else { "ContainerCreating" }}}),
            },
        };
        let last = match (&self.end, &self.last) {
            (Some(end), _) if waits_to_restart => json!({"terminated": end}),
            (_, Some(last)) => json!({"terminated": last}),
            _ => json!({}),
        };
        let ready = if init { self.exit_code() == Some(0) } else { self.is_ready(now) };
        json!({
            "name": self.name, "image": image, "imageID": "", "restartCount": self.restarts, "ready": ready,
            "started": running, "state": state, "lastState": last,
        })
    }
}
