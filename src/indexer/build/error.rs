//! Why a build failed, and whether a retry may help.

use crate::indexer::chunk::ChunkError;
use crate::indexer::embed::EmbedError;
use crate::indexer::embed::cache::CacheError;
use crate::indexer::gate::GoldenError;
use crate::indexer::search::SearchError;
use crate::indexer::sources::SourceError;
use crate::indexer::store::StoreError;

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Only a changed plan or other content helps.
    #[error("{message}")]
    Configuration {
        /// CamelCase reason.
        reason: &'static str,
        /// What happened and what helps.
        message: String,
    },
    /// Another try may succeed.
    #[error("{message}")]
    Transient {
        /// CamelCase reason.
        reason: &'static str,
        /// What happened and what helps.
        message: String,
    },
}

impl BuildError {
    /// A mistake that a retry cannot mend.
    pub fn configuration(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Configuration { reason, message: message.into() }
    }

    /// A failure that a retry may mend.
    pub fn transient(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Transient { reason, message: message.into() }
    }

    /// The end by SIGTERM. What was embedded is kept.
    pub fn interrupted() -> Self {
        Self::transient("Interrupted", "the build was told to stop; what it embedded is kept for the next one")
    }

    /// CamelCase reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Configuration { reason, .. } | Self::Transient { reason, .. } => reason,
        }
    }
}

impl From<SourceError> for BuildError {
    fn from(error: SourceError) -> Self {
        let message = error.to_string();
        match error {
            SourceError::Pattern { .. } | SourceError::Outside { .. } => Self::configuration("InvalidSpec", message),
            SourceError::Unreachable { .. } => Self::configuration("SourceUnreachable", message),
            SourceError::TooLarge { .. } => Self::configuration("SourceTooLarge", message),
            SourceError::Outdated { .. } => Self::transient("SourceOutdated", message),
        }
    }
}

impl From<EmbedError> for BuildError {
    fn from(error: EmbedError) -> Self {
        let message = error.to_string();
        match error {
            EmbedError::Dimensions { .. } => Self::configuration("DimensionMismatch", message),
            EmbedError::Unavailable { .. } => Self::transient("ModelNotReady", message),
            EmbedError::Refused { .. } => Self::configuration("ModelRefused", message),
            EmbedError::File { .. } | EmbedError::Format { .. } | EmbedError::Inference(_) => {
                Self::configuration("ModelUnusable", message)
            }
        }
    }
}

impl From<GoldenError> for BuildError {
    fn from(error: GoldenError) -> Self {
        Self::configuration("GoldenSetInvalid", error.to_string())
    }
}

impl From<ChunkError> for BuildError {
    fn from(error: ChunkError) -> Self {
        Self::configuration("ModelUnusable", error.to_string())
    }
}

impl From<StoreError> for BuildError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Corrupt { .. } => Self::transient("ArtifactCorrupt", message),
            _ => Self::transient("StoreUnavailable", message),
        }
    }
}

impl From<CacheError> for BuildError {
    fn from(error: CacheError) -> Self {
        Self::transient("StoreUnavailable", error.to_string())
    }
}

impl From<SearchError> for BuildError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Store(error) => error.into(),
            invalid => Self::configuration("InvalidSpec", invalid.to_string()),
        }
    }
}
