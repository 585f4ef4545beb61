//! all-MiniLM-L6-v2 (384 dimensions, 256 tokens) by rten, in this process.
//!
//! A vector is a function of its text alone: each worker runs its own single-threaded pool and one text a call, so
//! nothing is padded. That keeps re-runs of a killed build equal to the last bit, and with packed weights it costs
//! nothing: calls of 1 to 32 texts take the same time a text.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::{EmbedError, normalise};

/// Environment variable with the folder of `model.onnx` and `tokenizer.json`.
pub const DIR_ENV: &str = "LLMOPS_EMBEDDER_DIR";
/// Length of a vector.
pub const DIMENSIONS: usize = 384;
/// Tokens that the model reads, with its two marks `[CLS]` and `[SEP]`.
pub const MAX_TOKENS: usize = 256;

const DEFAULT_DIR: &str = "/models/all-minilm-l6-v2";

/// The folder of the built-in model: `LLMOPS_EMBEDDER_DIR`, or where the operator's image has it.
pub fn builtin_dir() -> PathBuf {
    std::env::var_os(DIR_ENV).map_or_else(|| PathBuf::from(DEFAULT_DIR), PathBuf::from)
}

/// The built-in embedder. Loading takes about 0.3 s and 100 MB; share one by `Arc`.
pub struct MiniLm {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    inputs: Inputs,
    output: NodeId,
    model_digest: String,
    tokenizer_digest: String,
    pools: Vec<Arc<ThreadPool>>,
    /// Spreads concurrent callers over the pools.
    next_pool: AtomicUsize,
}

struct Inputs {
    ids: NodeId,
    mask: NodeId,
    types: Option<NodeId>,
}

impl std::fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MiniLm").field("model_digest", &self.model_digest).finish_non_exhaustive()
    }
}

impl MiniLm {
    /// Loads `model.onnx` and `tokenizer.json` from a folder.
    ///
    /// # Errors
    /// When a file is missing or is not the expected model.
    pub fn load(dir: &Path) -> Result<Self, EmbedError> {
        let (model_path, tokenizer_path) = (dir.join("model.onnx"), dir.join("tokenizer.json"));
        let bytes = read(&model_path)?;
        let (tokenizer, tokenizer_digest) = load_tokenizer(&tokenizer_path)?;
        let model_digest = digest(&bytes);
        let broken = |message: String| EmbedError::Format { path: model_path.clone(), message };
        // Packing copies the weights once (40 MB), where every call would pack them anew: three times faster for a short text.
        let model = ModelOptions::with_all_ops()
            .prepack_weights(true)
            .load(bytes)
            .map_err(|error| broken(error.to_string()))?;
        let node = |name: &str| model.node_id(name).map_err(|_| broken(format!("it has no input `{name}`")));
        let inputs = Inputs {
            ids: node("input_ids")?,
            mask: node("attention_mask")?,
            types: model.find_node("token_type_ids").filter(|id| model.input_ids().contains(id)),
        };
        let output = match model.find_node("last_hidden_state") {
            Some(id) if model.output_ids().contains(&id) => id,
            _ => return Err(broken("it has no output `last_hidden_state`".into())),
        };
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let pools = (0..workers).map(|_| Arc::new(ThreadPool::with_num_threads(1))).collect();
        Ok(Self {
            model,
            tokenizer,
            inputs,
            output,
            model_digest,
            tokenizer_digest,
            pools,
            next_pool: AtomicUsize::new(0),
        })
    }

    /// The tokenizer, without truncation and padding; the unit of chunk sizes.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// `sha256:HEX` of the model's file.
    pub fn model_digest(&self) -> &str {
        &self.model_digest
    }

    /// `sha256:HEX` of the tokenizer's file.
    pub fn tokenizer_digest(&self) -> &str {
        &self.tokenizer_digest
    }

    /// Vectors of length 1, one a text, in order. Texts beyond 256 tokens are cut there. Blocks; uses every core.
    ///
    /// # Errors
    /// When the model fails, which no text should bring about.
    pub fn embed<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut encoded = Vec::with_capacity(texts.len());
        for text in texts {
            encoded.push(self.encode(text.as_ref())?);
        }
        let workers = self.pools.len().min(texts.len());
        if workers <= 1 {
            let pool = self.pools.get(self.next_pool.fetch_add(1, Ordering::Relaxed) % self.pools.len().max(1));
            return encoded.iter().map(|ids| self.run(ids, pool)).collect();
        }
        // Longest first, so that no worker is left alone with a long text at the end.
        let mut order: Vec<usize> = (0..encoded.len()).collect();
        order.sort_by_key(|text| std::cmp::Reverse(encoded.get(*text).map_or(0, Vec::len)));
        let next = AtomicUsize::new(0);
        let work = |pool: &Arc<ThreadPool>| -> Result<Vec<(usize, Vec<f32>)>, EmbedError> {
            let mut done = Vec::new();
            while let Some(text) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ids = encoded.get(*text).map_or(&[][..], Vec::as_slice);
                done.push((*text, self.run(ids, Some(pool))?));
            }
            Ok(done)
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = self.pools.iter().take(workers).map(|pool| scope.spawn(|| work(pool))).collect();
            let panicked = || Err(EmbedError::Inference("a worker panicked".into()));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect()
        });
        let mut vectors = vec![Vec::new(); texts.len()];
        for (text, vector) in parts.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
            if let Some(slot) = vectors.get_mut(text) {
                *slot = vector;
            }
        }
        Ok(vectors)
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>, EmbedError> {
        // What the model cannot read need not be tokenised either: a token has at least one byte, and a word beyond
        // 100 characters is one token, so this bound is far above what 256 tokens of prose span.
        let bound = text.floor_char_boundary(MAX_TOKENS * 128);
        let encoding = self
            .tokenizer
            .encode_fast(text.get(..bound).unwrap_or(text), true)
            .map_err(|error| EmbedError::Inference(format!("tokenizer: {error}")))?;
        let mut ids: Vec<i32> = encoding.get_ids().iter().map(|id| i32::try_from(*id).unwrap_or(0)).collect();
        if ids.len() > MAX_TOKENS {
            let end = ids.last().copied();
            ids.truncate(MAX_TOKENS - 1);
            ids.extend(end);
        }
        Ok(ids)
    }

    /// One call of the model.
    fn run(&self, ids: &[i32], pool: Option<&Arc<ThreadPool>>) -> Result<Vec<f32>, EmbedError> {
        let failed = |error: &dyn std::fmt::Display| EmbedError::Inference(error.to_string());
        let tokens = ids.len();
        let tensor = |data: Vec<i32>| -> ValueOrView<'static> { NdTensor::from_data([1, tokens], data).into() };
        let mut inputs = vec![(self.inputs.ids, tensor(ids.to_vec())), (self.inputs.mask, tensor(vec![1; tokens]))];
        if let Some(types) = self.inputs.types {
            inputs.push((types, tensor(vec![0; tokens])));
        }
        let mut options = RunOptions::default();
        options.thread_pool = pool.cloned();
        let outputs = self.model.run(inputs, &[self.output], Some(options)).map_err(|error| failed(&error))?;
        let hidden: NdTensor<f32, 3> = outputs
            .into_iter()
            .next()
            .ok_or_else(|| failed(&"no output"))?
            .try_into()
            .map_err(|_| failed(&"last_hidden_state is not a tensor of three dimensions"))?;
        if hidden.shape() != [1, tokens, DIMENSIONS] {
            return Err(failed(&format!("last_hidden_state has shape {:?}", hidden.shape())));
        }
        // The mean over tokens; its division is left to the normalisation.
        let mut vector = vec![0f32; DIMENSIONS];
        for state in hidden.to_vec().chunks(DIMENSIONS) {
            vector.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
        }
        if normalise(&mut vector) { Ok(vector) } else { Err(failed(&"a vector is zero or not finite")) }
    }
}

/// Reads a tokenizer and switches off the truncation and padding that its file sets, which would make every text look
/// 128 tokens long. Returns it with `sha256:HEX` of the file.
///
/// # Errors
/// When the file is missing or not a tokenizer.
pub fn load_tokenizer(path: &Path) -> Result<(Arc<Tokenizer>, String), EmbedError> {
    let bytes = read(path)?;
    let broken = |message: String| EmbedError::Format { path: path.to_owned(), message };
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| broken(error.to_string()))?;
    tokenizer.with_padding(None).with_truncation(None).map_err(|error| broken(error.to_string()))?;
    Ok((Arc::new(tokenizer), digest(&bytes)))
}

fn read(path: &Path) -> Result<Vec<u8>, EmbedError> {
    std::fs::read(path).map_err(|source| EmbedError::File { path: path.to_owned(), source })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::indexer::embed::cosine;

    fn model() -> MiniLm {
        let dir = std::env::var_os(DIR_ENV).expect(
            "set LLMOPS_EMBEDDER_DIR to the folder with model.onnx and tokenizer.json; `make test` prepares it",
        );
        MiniLm::load(Path::new(&dir)).unwrap()
    }

    #[test]
    fn similar_texts_are_near_and_a_vector_depends_on_its_text_alone() {
        let model = model();
        let long = "The quick brown fox jumps over the lazy dog near the river bank. ".repeat(40);
        let texts =
            ["How do I roll back a release?", "Undo a bad deployment.", "A recipe for apple cake.", long.as_str(), ""];
        let vectors = model.embed(&texts).unwrap();
        assert!(vectors.iter().all(|vector| vector.len() == DIMENSIONS));
        let (near, far) = (cosine(&vectors[0], &vectors[1]), cosine(&vectors[0], &vectors[2]));
        assert!(near > 0.4 && far < 0.2, "near {near}, far {far}");
        for (text, vector) in texts.iter().zip(&vectors) {
            assert_eq!(&model.embed(&[text]).unwrap()[0], vector, "{text:.20}");
        }
    }

    #[test]
    fn reference_values() {
        // From sentence-transformers: similarity of these two sentences with all-MiniLM-L6-v2.
        let vectors = model().embed(&["That is a happy person", "That is a very happy person"]).unwrap();
        let similarity = cosine(&vectors[0], &vectors[1]);
        assert!((similarity - 0.943).abs() < 0.01, "{similarity}");
    }

    #[test]
    fn the_tokenizer_neither_cuts_nor_pads() {
        let model = model();
        let count = |text: &str| model.tokenizer().encode_fast(text, false).unwrap().len();
        assert_eq!(count("hello"), 1);
        assert_eq!(count(&"hello ".repeat(1000)), 1000);
        assert_eq!(model.encode(&"hello ".repeat(1000)).unwrap().len(), MAX_TOKENS);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = MiniLm::load(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/model.onnx") && error.contains("LLMOPS_EMBEDDER_DIR"), "{error}");
    }
}
