//! Turns text into vectors: the built-in model in this process, or an OpenAI-compatible service.

mod builtin;
pub mod cache;
mod openai;

use std::path::PathBuf;
use std::sync::Arc;

pub use builtin::{DIMENSIONS, DIR_ENV, MAX_TOKENS, MiniLm, builtin_dir, load_tokenizer};
pub use openai::OpenAi;

use crate::indexer::job;

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A file of the built-in model cannot be read.
    #[error(
        "cannot read {path} of the built-in embedder: {source}; set LLMOPS_EMBEDDER_DIR to the folder that holds model.onnx and tokenizer.json"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of the built-in model is not what it should be.
    #[error(
        "{path} is not a usable file of the built-in embedder: {message}; replace it by the one of the operator's image"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The model failed on an input.
    #[error("the built-in embedder failed: {0}")]
    Inference(String),
    /// The service cannot be used as it is configured; a retry does not help.
    #[error("{url} refused to embed: {message}")]
    Refused {
        /// Address called.
        url: String,
        /// What it said.
        message: String,
    },
    /// The service does not answer; a retry may help.
    #[error("{url} did not embed after {attempts} attempts: {message}; check that the ModelDeployment is Ready")]
    Unavailable {
        /// Address called.
        url: String,
        /// How often it was called.
        attempts: u32,
        /// The last cause.
        message: String,
    },
    /// Vectors of different lengths.
    #[error(
        "the model {model} gave a vector of {got} dimensions where {expected} were expected; an index holds vectors of one model only"
    )]
    Dimensions {
        /// Name of the model.
        model: String,
        /// Length expected.
        expected: usize,
        /// Length received.
        got: usize,
    },
}

impl EmbedError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A vector, or why this one text has none.
pub type Outcome = Result<Vec<f32>, String>;

/// What turns text into vectors. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Embedder {
    /// all-MiniLM-L6-v2 in this process.
    Builtin(Arc<MiniLm>),
    /// An OpenAI-compatible service.
    OpenAi(Arc<OpenAi>),
}

impl Embedder {
    /// Opens the embedder that a plan or manifest names.
    ///
    /// # Errors
    /// When the built-in model's files cannot be used, or the service's address is not one.
    pub fn open(spec: &job::Embedder, batch: usize) -> Result<Self, EmbedError> {
        Ok(match spec {
            job::Embedder::AllMiniLmL6V2 => Self::Builtin(Arc::new(MiniLm::load(&builtin_dir())?)),
            job::Embedder::OpenAi { base_url, model, revision } => {
                Self::OpenAi(Arc::new(OpenAi::new(base_url, model, revision, batch)?))
            }
        })
    }

    /// Name of the model.
    pub fn model(&self) -> &str {
        match self {
            Self::Builtin(_) => "all-MiniLM-L6-v2",
            Self::OpenAi(client) => client.model(),
        }
    }

    /// Identity of the model: `sha256:HEX` of its file, or the revision of its ModelDeployment.
    pub fn model_digest(&self) -> &str {
        match self {
            Self::Builtin(model) => model.model_digest(),
            Self::OpenAi(client) => client.revision(),
        }
    }

    /// Longest input in tokens, where this process cuts it itself.
    pub fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Builtin(_) => Some(MAX_TOKENS),
            Self::OpenAi(_) => None,
        }
    }

    /// One outcome a text, in order; vectors have length 1.
    ///
    /// # Errors
    /// When no text could be embedded for a common reason; a single bad text is an `Err` in the list instead.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Outcome>, EmbedError> {
        match self {
            Self::Builtin(model) => {
                let model = model.clone();
                let work = tokio::task::spawn_blocking(move || model.embed(&texts));
                let vectors = work.await.map_err(|error| EmbedError::Inference(error.to_string()))??;
                Ok(vectors.into_iter().map(Ok).collect())
            }
            Self::OpenAi(client) => client.embed(&texts).await,
        }
    }
}

/// Cosine similarity, -1 to 1; 0 when a vector is zero or their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return 0.0;
    }
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

/// Sum of products, in eight independent sums so that it vectorises.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// Scales a vector to length 1. False when it has none (zero, or not finite).
pub fn normalise(vector: &mut [f32]) -> bool {
    let length = dot(vector, vector).sqrt();
    if !length.is_finite() || length <= f32::MIN_POSITIVE {
        return false;
    }
    vector.iter_mut().for_each(|x| *x /= length);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_is_a_cosine() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), 0.0);
        let long: Vec<f32> = (0..387).map(|i| i as f32).collect();
        assert!((cosine(&long, &long) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_vector_without_direction_is_not_normalised() {
        assert!(!normalise(&mut [0.0, 0.0]));
        assert!(!normalise(&mut [f32::NAN, 1.0]));
        let mut vector = [3.0, 4.0];
        assert!(normalise(&mut vector));
        assert_eq!(vector, [0.6, 0.8]);
    }
}
