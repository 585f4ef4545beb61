//! Errors of a reconcile. The variant picks what happens next, so no caller decides about retries.

use super::kinds::Reference;

/// Why a reconcile could not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another object is missing or not ready. It is watched: its next change reconciles this one at once, and
    /// there are no retries besides.
    #[error("{message}")]
    Waiting {
        /// The object.
        on: Reference,
        /// CamelCase reason for the conditions, from the kind's closed list.
        reason: &'static str,
        /// A sentence that names the object and what it needs.
        message: String,
    },
    /// Only a change of the spec helps. No retries.
    #[error("{message}")]
    Stalled {
        /// CamelCase reason for the conditions, from the kind's closed list.
        reason: &'static str,
        /// A sentence that names the field and the fix.
        message: String,
    },
    /// May go away by itself: retried with back-off. The status says it only after several failures in a row.
    #[error("{message}")]
    Transient {
        /// CamelCase reason for the conditions.
        reason: &'static str,
        /// What failed.
        message: String,
    },
    /// A cache was behind a write. Retried within a second, never shown.
    #[error("{0} changed meanwhile")]
    Conflict(String),
    /// Another replica leads, or this one lost contact. Nothing was written.
    #[error("not the leader (any more)")]
    NotLeader,
}

/// Reason of [`Error::Transient`] when the API server or a network fails.
pub const REASON_API_ERROR: &str = "ApiError";
/// Reason of [`Error::Stalled`] when an object of another owner has the name of one of ours.
pub const REASON_NAME_CONFLICT: &str = "NameConflict";
/// Reason of [`Error::Stalled`] when the API server refuses an object that we render.
pub const REASON_REFUSED: &str = "RefusedByApiServer";

impl Error {
    /// Waiting for another object of the namespace.
    pub fn waiting(on: Reference, reason: &'static str, message: impl Into<String>) -> Self {
        Self::Waiting { on, reason, message: message.into() }
    }

    /// Only a change of the spec helps.
    pub fn stalled(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Stalled { reason, message: message.into() }
    }

    /// May go away by itself.
    pub fn transient(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Transient { reason, message: message.into() }
    }

    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Waiting { reason, .. } | Self::Stalled { reason, .. } | Self::Transient { reason, .. } => reason,
            Self::Conflict(_) => "Conflict",
            Self::NotLeader => "NotLeader",
        }
    }

    /// Classifies a failed call: what the API server refuses for its content is stalled, a lost race is a conflict,
    /// everything else may go away.
    pub fn from_api(doing: &str, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::transient(REASON_API_ERROR, format!("{doing}: {error}"));
        };
        match status.code {
            409 => Self::Conflict(doing.to_owned()),
            400 | 422 => Self::stalled(
                REASON_REFUSED,
                format!("{doing}: the API server refuses it: {}; change the spec accordingly", status.message),
            ),
            _ => Self::transient(REASON_API_ERROR, format!("{doing}: {}", status.message)),
        }
    }
}
