//! Metrics of one question. Chunks are judged by their document, so labels survive another way of cutting.

use super::golden::{Question, RelevantDocument, comparable};
use crate::indexer::job::SearchHit;

/// Share of the relevant documents that the chunks show.
pub fn recall(question: &Question, hits: &[SearchHit]) -> f64 {
    let found = first_ranks(question, hits).into_iter().flatten().count();
    found as f64 / question.relevant.len().max(1) as f64
}

/// Normalised discounted cumulative gain: each relevant document counts where it shows up first, with gain
/// 2^grade − 1 (Burges et al., ICML 2005), against the best order of all relevant ones.
pub fn ndcg(question: &Question, hits: &[SearchHit]) -> f64 {
    let gain = |document: &RelevantDocument| f64::from(document.grade).exp2() - 1.0;
    let discount = |rank: usize| 1.0 / ((rank + 2) as f64).log2();
    let gained: f64 = first_ranks(question, hits)
        .into_iter()
        .zip(&question.relevant)
        .filter_map(|(rank, document)| Some(gain(document) * discount(rank?)))
        .sum();
    let mut best: Vec<f64> = question.relevant.iter().map(gain).collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal: f64 = best.iter().take(hits.len().max(1)).enumerate().map(|(rank, gain)| gain * discount(rank)).sum();
    if ideal > 0.0 { gained / ideal } else { 0.0 }
}

/// The first rank, from 0, at which each relevant document shows up.
fn first_ranks(question: &Question, hits: &[SearchHit]) -> Vec<Option<usize>> {
    let shows = |document: &RelevantDocument, hit: &SearchHit| {
        hit.uri == document.uri
            && (document.quotes.is_empty() || {
                let text = comparable(&hit.text);
                document.quotes.iter().any(|quote| text.contains(quote))
            })
    };
    question.relevant.iter().map(|document| hits.iter().position(|hit| shows(document, hit))).collect()
}
