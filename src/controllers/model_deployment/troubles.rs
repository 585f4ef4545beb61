//! What keeps a revision's pods from serving, as a reason of our conditions: pure.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::build::FETCH;
use super::fetch::Fetched;
use super::reasons;
use crate::controllers::workload::{Cause, Trouble, not_admitted, trouble, was_available};

/// Restarts after which a new revision counts as failed when an old one serves.
const TRIES: i32 = 3;

/// A revision's trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Reason for the conditions.
    pub reason: &'static str,
    /// A sentence that names what is wrong and what helps.
    pub message: String,
    /// Whether trying again cannot help.
    hopeless: bool,
    /// How often it was tried again.
    restarts: i32,
    /// Whether only a change of the cluster or the image helps, which may come at any time.
    outside: bool,
    /// Whether all the revision's pods were available before: then its model loads, and pods that ended since, while nobody
    /// was there to let the revision serve, say nothing against it.
    proven: bool,
}

impl Verdict {
    /// Whether the revision is given up. With nothing else to serve, what may recover is tried on.
    pub fn is_final(&self, something_serves: bool) -> bool {
        self.hopeless || (something_serves && !self.outside && !self.proven && self.restarts >= TRIES)
    }

    /// Whether it is more than a first stumble.
    pub fn is_serious(&self) -> bool {
        self.hopeless || self.outside || self.restarts >= 1
    }
}

/// Termination message of a download.
#[derive(Deserialize)]
struct FetchReport {
    reason: String,
    message: String,
}

/// The trouble of a revision, the most telling of its pods.
pub fn of(fetched: &Fetched, revision: &str) -> Option<Verdict> {
    let proven = fetched.deployments.get(revision).is_some_and(was_available);
    let mut verdicts: Vec<Verdict> = fetched
        .pods_of(revision)
        .filter_map(trouble_of)
        .chain(fetched.deployments.get(revision).and_then(not_admitted).map(verdict))
        .map(|verdict| Verdict { proven, ..verdict })
        .collect();
    verdicts.sort_by_key(|verdict| (!verdict.hopeless, -verdict.restarts));
    verdicts.into_iter().next()
}

fn trouble_of(pod: &Pod) -> Option<Verdict> {
    trouble(pod).map(verdict)
}

fn verdict(trouble: Trouble) -> Verdict {
    let Trouble { cause, message, restarts } = trouble;
    let plain =
        |reason, message, outside| Verdict { reason, message, hopeless: false, restarts, outside, proven: false };
    match cause {
        Cause::InitFailed { container, code, message: said } if container == FETCH => {
            let report: Option<FetchReport> = serde_json::from_str(&said).ok();
            let message = report.as_ref().map_or(message, |report| report.message.clone());
            let hopeless =
                code == 42 || report.as_ref().is_some_and(|report| report.reason == reasons::DIGEST_MISMATCH);
            let reason = match report.as_ref().map(|report| report.reason.as_str()) {
                _ if hopeless => reasons::DIGEST_MISMATCH,
                Some(reasons::DOWNLOAD_STALLED) => reasons::DOWNLOAD_STALLED,
                _ => reasons::DOWNLOAD_FAILED,
            };
            // A server that is away may come back: the download goes on where it stopped.
            Verdict { reason, message, hopeless, restarts, outside: !hopeless, proven: false }
        }
        Cause::InitFailed { .. } => plain(reasons::MODEL_LOAD_FAILED, message, false),
        Cause::OutOfMemory => plain(
            reasons::OUT_OF_MEMORY,
            format!("{message}; raise spec.resources.limits.memory or choose a smaller model"),
            false,
        ),
        Cause::Crashed { .. } => {
            plain(reasons::MODEL_LOAD_FAILED, format!("{message}; see the pod's log and spec.engine"), false)
        }
        Cause::ImagePull => plain(reasons::IMAGE_PULL_FAILED, format!("{message}; check spec.engine.image"), true),
        Cause::CannotCreate => plain(reasons::MODEL_LOAD_FAILED, message, true),
        Cause::Unschedulable { extended: true } => plain(
            reasons::INSUFFICIENT_ACCELERATORS,
            format!("{message}; free or add accelerators, or change spec.resources"),
            true,
        ),
        Cause::Unschedulable { extended: false } => plain(
            reasons::UNSCHEDULABLE,
            format!("{message}; add room, or change spec.resources or spec.scheduling"),
            true,
        ),
        Cause::NotAdmitted => plain(reasons::POD_NOT_CREATED, message, true),
    }
}

/// The constant of a reason that was read back from a status.
pub fn known_reason(reason: &str) -> &'static str {
    [
        reasons::DIGEST_MISMATCH,
        reasons::OUT_OF_MEMORY,
        reasons::MODEL_LOAD_FAILED,
        reasons::DOWNLOAD_FAILED,
        reasons::EVALUATION_FAILED,
        reasons::METRIC_REGRESSION,
        reasons::ROLLED_BACK_BY_USER,
    ]
    .into_iter()
    .find(|known| *known == reason)
    .unwrap_or(reasons::ROLLED_BACK)
}
