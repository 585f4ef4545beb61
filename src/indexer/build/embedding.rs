//! Embeds what the cache does not know yet.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokenizers::Tokenizer;
use tokio::runtime::Handle;

use super::Cancel;
use super::error::BuildError;
use crate::indexer::embed::cache::{Cache, Key};
use crate::indexer::embed::{EmbedError, Embedder};
use crate::indexer::store::PROBES;

const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// More texts at once would lose more work when the builder is killed, and gain nothing in this process.
const MAX_AT_ONCE: usize = 64;

/// What was embedded.
#[derive(Debug, Default)]
pub struct Embedded {
    /// Tokens of the texts that went to the model.
    pub tokens: i64,
    /// Texts that the model refused, with its reason.
    pub refused: HashMap<Key, String>,
}

/// Embeds the texts that the cache lacks. Progress is logged, and kept in the cache.
pub fn embed_missing(
    wanted: &BTreeMap<Key, &str>,
    embedder: &Embedder,
    tokenizer: &Tokenizer,
    batch: usize,
    cache: &mut Cache,
    cancel: &Cancel,
    runtime: &Handle,
) -> Result<Embedded, BuildError> {
    let mut missing: Vec<(&Key, &str, usize)> = Vec::new();
    for (key, text) in wanted.iter().filter(|(key, _)| cache.get(key).is_none()) {
        let tokens = tokenizer.encode_fast(*text, false).map_err(|error| EmbedError::Inference(error.to_string()))?;
        missing.push((key, text, tokens.len()));
    }
    // Texts of like length together: a service that pads batches wastes least.
    missing.sort_by_key(|(key, _, tokens)| (std::cmp::Reverse(*tokens), **key));
    let all: usize = missing.iter().map(|(.., tokens)| tokens).sum();
    tracing::info!(texts = missing.len(), tokens = all, known = wanted.len() - missing.len(), "embedding");
    let mut embedded = Embedded::default();
    let (mut done, mut logged) = (0, Instant::now());
    for part in missing.chunks(batch.clamp(1, MAX_AT_ONCE)) {
        cancel.check()?;
        let texts = part.iter().map(|(_, text, _)| (*text).to_owned()).collect();
        let outcomes = runtime.block_on(embedder.embed(texts))?;
        for ((key, _, tokens), outcome) in part.iter().zip(outcomes) {
            match outcome {
                Ok(vector) => {
                    embedded.tokens += *tokens as i64;
                    cache.put(**key, vector)?;
                }
                Err(reason) => {
                    embedded.refused.insert(**key, reason);
                }
            }
        }
        done += part.len();
        if logged.elapsed() >= PROGRESS_EVERY {
            logged = Instant::now();
            tracing::info!(texts = done, of = missing.len(), tokens = embedded.tokens, of_tokens = all, "embedding");
        }
    }
    cache.sync()?;
    Ok(embedded)
}

/// Vectors of the probe texts, by way of the cache, so that an interrupted build finds the same ones again.
pub fn probes(
    key: impl Fn(&str) -> Key,
    embedder: &Embedder,
    tokenizer: &Tokenizer,
    cache: &mut Cache,
    cancel: &Cancel,
    runtime: &Handle,
) -> Result<Vec<Vec<f32>>, BuildError> {
    let wanted = PROBES.iter().map(|text| (key(text), *text)).collect();
    let embedded = embed_missing(&wanted, embedder, tokenizer, PROBES.len(), cache, cancel, runtime)?;
    if let Some(reason) = embedded.refused.values().next() {
        let message =
            format!("the model {} refuses even short texts: {reason}; check that its task is Embed", embedder.model());
        return Err(BuildError::configuration("ModelRefused", message));
    }
    Ok(PROBES.iter().filter_map(|text| cache.get(&key(text)).map(<[f32]>::to_vec)).collect())
}
