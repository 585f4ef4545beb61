//! Searches a generation: words, vectors, or both fused by reciprocal rank.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::job::{SearchHit, SearchRequest};
use super::store::{Generation, StoreError};
use crate::api::rag_index::RetrievalMode;

/// Longest question, in characters.
pub const MAX_QUERY_CHARS: usize = 8192;
/// Most chunks in an answer.
pub const MAX_TOP_K: i32 = 100;

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The request must change.
    #[error("{field}: {message}")]
    Invalid {
        /// Field of the request.
        field: String,
        /// What is wrong and what helps.
        message: String,
    },
    /// The generation cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A request that passed every check.
#[derive(Clone, Debug)]
pub struct Search {
    question: String,
    top_k: usize,
    min_score: Option<f32>,
    /// By position of the source in the manifest.
    allowed: Arc<[bool]>,
    mode: RetrievalMode,
}

impl Search {
    /// Checks a request against a generation's settings.
    ///
    /// # Errors
    /// When a field is out of its bounds, or a required filter is missing.
    pub fn new(generation: &Generation, request: &SearchRequest) -> Result<Self, SearchError> {
        let invalid = |field: &str, message: String| SearchError::Invalid { field: field.to_owned(), message };
        let retrieval = &generation.manifest.head.settings.retrieval;
        if request.query.trim().is_empty() {
            return Err(invalid("query", "it is empty; send a question".into()));
        }
        let length = request.query.chars().count();
        if length > MAX_QUERY_CHARS {
            return Err(invalid("query", format!("it has {length} characters, more than {MAX_QUERY_CHARS}")));
        }
        let top_k = request.top_k.unwrap_or(retrieval.top_k);
        if !(1..=MAX_TOP_K).contains(&top_k) {
            return Err(invalid("topK", format!("{top_k} is not between 1 and {MAX_TOP_K}")));
        }
        if let Some(score) = request.min_score.filter(|score| !(-1.0..=1.0).contains(score)) {
            return Err(invalid("minScore", format!("{score} is no cosine similarity; use -1 to 1")));
        }
        if let Some(tag) = retrieval.require_filters.iter().find(|tag| !request.filters.contains_key(*tag)) {
            let message = format!("this index answers only with a value for it (spec.retrieval.requireFilters: {tag})");
            return Err(invalid(&format!("filters.{tag}"), message));
        }
        let matches = |tags: &BTreeMap<String, String>| request.filters.iter().all(|(k, v)| tags.get(k) == Some(v));
        let allowed = generation.manifest.head.sources.iter().map(|source| matches(&source.tags)).collect();
        Ok(Self {
            question: request.query.clone(),
            top_k: top_k.unsigned_abs() as usize,
            min_score: request.min_score.map(|score| score as f32),
            allowed,
            mode: retrieval.mode,
        })
    }

    /// What to embed for the search, with the index's prefix; `None` when it needs no vector.
    pub fn text_to_embed(&self, generation: &Generation) -> Option<String> {
        let needed = self.mode != RetrievalMode::Lexical || self.min_score.is_some();
        needed.then(|| format!("{}{}", generation.manifest.head.settings.query_prefix, self.question))
    }

    /// The best chunks first. Equal scores keep the order of chunks in the generation.
    ///
    /// # Errors
    /// When a vector is needed and missing or of another length, or the generation cannot be read.
    pub fn run(&self, generation: &Generation, vector: Option<&[f32]>) -> Result<Vec<SearchHit>, SearchError> {
        let dimensions = generation.vectors.dimensions();
        let wrong = |got: usize| SearchError::Invalid {
            field: "query".into(),
            message: format!("its vector has {got} dimensions, the index {dimensions}; the embedding model changed"),
        };
        let vector = match (vector, self.text_to_embed(generation)) {
            (Some(vector), _) if vector.len() != dimensions => return Err(wrong(vector.len())),
            (None, Some(_)) => return Err(wrong(0)),
            (vector, _) => vector,
        };
        let retrieval = &generation.manifest.head.settings.retrieval;
        let candidates = (retrieval.candidates.unsigned_abs() as usize).max(self.top_k);
        let sources = generation.records.sources();
        let source_allowed = |source: u16| self.allowed.get(usize::from(source)).copied().unwrap_or(false);
        let chunk_allowed = |chunk: u32| sources.get(chunk as usize).copied().is_some_and(source_allowed);
        let dense = match (self.mode, vector) {
            (RetrievalMode::Hybrid | RetrievalMode::Dense, Some(vector)) => {
                generation.vectors.nearest(vector, candidates, chunk_allowed)?
            }
            _ => Vec::new(),
        };
        let lexical = match self.mode {
            RetrievalMode::Hybrid | RetrievalMode::Lexical => {
                let allowed = self.allowed.clone();
                let allowed = move |source: u16| allowed.get(usize::from(source)).copied().unwrap_or(false);
                generation.lexical.best(&self.question, candidates, allowed)?
            }
            RetrievalMode::Dense => Vec::new(),
        };
        let mut similarities: HashMap<u32, f32> = dense.iter().copied().collect();
        let ranked = match self.mode {
            RetrievalMode::Dense => widen(&dense),
            RetrievalMode::Lexical => widen(&lexical),
            RetrievalMode::Hybrid => {
                let rrf = &retrieval.fusion.rrf;
                let weight = |weight: &crate::api::quantity::Decimal| weight.value().unwrap_or(1.0).max(0.0);
                let lists = [(&dense, weight(&rrf.weights.dense)), (&lexical, weight(&rrf.weights.bm25))];
                fuse(&lists, f64::from(rrf.k.max(1)))
            }
        };
        let mut hits = Vec::with_capacity(self.top_k);
        for (position, score) in ranked {
            if hits.len() >= self.top_k {
                break;
            }
            let similarity = match (similarities.remove(&position), vector) {
                (Some(known), _) => Some(known),
                (None, Some(vector)) => Some(generation.vectors.similarity(position, vector)?),
                (None, None) => None,
            };
            if self.min_score.is_some_and(|least| similarity.is_none_or(|similarity| similarity < least)) {
                continue;
            }
            let (chunk, uri) = generation.records.chunk(position)?;
            let source = generation.manifest.head.sources.get(usize::from(chunk.source));
            hits.push(SearchHit {
                chunk_id: hex::encode(chunk.id),
                source: source.map(|source| source.name.clone()).unwrap_or_default(),
                uri,
                heading: chunk.heading,
                text: chunk.text,
                score,
                similarity: similarity.map(f64::from),
                tags: source.map(|source| source.tags.clone()).unwrap_or_default(),
            });
        }
        Ok(hits)
    }
}

fn widen(ranked: &[(u32, f32)]) -> Vec<(u32, f64)> {
    ranked.iter().map(|(position, score)| (*position, f64::from(*score))).collect()
}

/// Reciprocal rank fusion: the sum of weight / (k + rank) over the lists, ranks from 1.
fn fuse(lists: &[(&Vec<(u32, f32)>, f64)], k: f64) -> Vec<(u32, f64)> {
    let mut scores: HashMap<u32, f64> = HashMap::new();
    for (ranked, weight) in lists.iter().filter(|(_, weight)| *weight > 0.0) {
        for (rank, (position, _)) in ranked.iter().enumerate() {
            *scores.entry(*position).or_default() += weight / (k + (rank + 1) as f64);
        }
    }
    let mut fused: Vec<(u32, f64)> = scores.into_iter().collect();
    fused.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::quantity::Decimal;
    use crate::api::rag_index::Retrieval;
    use crate::indexer::store::fixture;

    const TEXTS: [(&str, &str, [f32; 3]); 4] = [
        ("a", "apples and pears", [1.0, 0.0, 0.0]),
        ("a", "pears only", [0.6, 0.8, 0.0]),
        ("b", "apples again", [0.0, 1.0, 0.0]),
        ("b", "nothing of it", [0.0, 0.0, 1.0]),
    ];

    fn found(retrieval: Retrieval, request: SearchRequest) -> Result<Vec<(String, f64)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let generation = fixture(folder.path(), &TEXTS, retrieval);
        let search = Search::new(&generation, &request).map_err(|error| error.to_string())?;
        let vector = search.text_to_embed(&generation).map(|_| [1.0f32, 0.0, 0.0]);
        let hits = search.run(&generation, vector.as_ref().map(|v| v.as_slice())).map_err(|error| error.to_string())?;
        Ok(hits.into_iter().map(|hit| (hit.text, hit.score)).collect())
    }

    fn texts(retrieval: Retrieval, request: SearchRequest) -> Vec<String> {
        found(retrieval, request).unwrap().into_iter().map(|(text, _)| text).collect()
    }

    fn ask(query: &str) -> SearchRequest {
        SearchRequest { query: query.into(), ..SearchRequest::default() }
    }

    fn mode(mode: RetrievalMode) -> Retrieval {
        Retrieval { mode, ..Retrieval::default() }
    }

    #[test]
    fn each_mode_ranks_its_way() {
        assert_eq!(texts(mode(RetrievalMode::Dense), ask("x"))[..2], ["apples and pears", "pears only"]);
        assert_eq!(texts(mode(RetrievalMode::Lexical), ask("apple again")), ["apples again", "apples and pears"]);
        let hybrid = found(mode(RetrievalMode::Hybrid), ask("pears")).unwrap();
        // Both lists have "pears only": second by vector, first by words.
        assert_eq!(hybrid[0].0, "apples and pears");
        assert!((hybrid[0].1 - (1.0 / 61.0 + 1.0 / 62.0)).abs() < 1e-12);
        assert_eq!(hybrid[1].0, "pears only");
        assert_eq!(hybrid.len(), 4, "each chunk once");
    }

    #[test]
    fn weights_and_candidates_count() {
        let mut only_words = mode(RetrievalMode::Hybrid);
        only_words.fusion.rrf.weights.dense = Decimal::from("0");
        assert_eq!(texts(only_words, ask("again")), ["apples again"]);
        let few = Retrieval { candidates: 1, top_k: 1, ..mode(RetrievalMode::Dense) };
        assert_eq!(texts(few, SearchRequest { top_k: Some(3), ..ask("x") }).len(), 3, "topK raises candidates");
    }

    #[test]
    fn filters_are_exact_and_required_ones_are_demanded() {
        let filter = |value: &str| SearchRequest { filters: [("team".into(), value.into())].into(), ..ask("apples") };
        for m in [RetrievalMode::Dense, RetrievalMode::Lexical, RetrievalMode::Hybrid] {
            let seen = texts(mode(m), filter("b"));
            assert!(
                seen.contains(&"apples again".to_owned()) && seen.iter().all(|text| !text.contains("pears")),
                "{seen:?}"
            );
            assert!(texts(mode(m), filter("")).is_empty());
        }
        let strict = Retrieval { require_filters: vec!["team".into()], ..Retrieval::default() };
        let error = found(strict.clone(), ask("apples")).unwrap_err();
        assert!(error.starts_with("filters.team:"), "{error}");
        assert_eq!(found(strict, filter("a")).unwrap().len(), 2);
    }

    #[test]
    fn least_similarity_holds_in_every_mode() {
        for m in [RetrievalMode::Dense, RetrievalMode::Lexical, RetrievalMode::Hybrid] {
            let seen = texts(mode(m), SearchRequest { min_score: Some(0.5), ..ask("apples pears") });
            assert_eq!(seen, ["apples and pears", "pears only"], "{m:?}");
        }
    }

    #[test]
    fn bad_requests_name_their_field() {
        let error = |request| found(Retrieval::default(), request).unwrap_err();
        assert!(error(ask("  ")).starts_with("query:"));
        assert!(error(ask(&"x".repeat(9000))).starts_with("query:"));
        for top_k in [0, -1, 101] {
            assert!(error(SearchRequest { top_k: Some(top_k), ..ask("x") }).starts_with("topK:"));
        }
        for score in [1.5, f64::NAN] {
            assert!(error(SearchRequest { min_score: Some(score), ..ask("x") }).starts_with("minScore:"));
        }
    }

    #[test]
    fn a_vector_of_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let generation = fixture(folder.path(), &TEXTS, Retrieval::default());
        let search = Search::new(&generation, &ask("x")).unwrap();
        for vector in [None, Some(&[1.0f32, 0.0][..])] {
            let error = search.run(&generation, vector).unwrap_err().to_string();
            assert!(error.contains("dimensions"), "{error}");
        }
    }
}
