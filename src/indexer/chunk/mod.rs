//! Cuts documents into chunks that an embedding model can read whole.
//!
//! A document is tokenised once and cut at byte offsets, so a chunk's text is a slice of the document, verbatim.

mod structure;
mod words;

use std::ops::Range;

use tokenizers::Tokenizer;

use crate::api::rag_index::{Chunking, ChunkingStrategy};
use structure::Section;
use words::Words;

/// Between headings in a path.
pub const HEADING_SEPARATOR: &str = " > ";

/// Why a document could not be cut.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct ChunkError(String);

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Path of the headings above and in it, joined by ` > `.
    pub heading: String,
    /// The part of the path that the text does not show itself; put before it for the models when
    /// `contextHeadings` is set, empty otherwise.
    pub context: String,
    /// Where it is in the document, in bytes.
    pub range: Range<usize>,
    /// The text, without space at its ends.
    pub text: String,
}

impl Chunk {
    /// What the models read: the context, then the text.
    pub fn contextual_text(&self) -> String {
        if self.context.is_empty() { self.text.clone() } else { format!("{}\n\n{}", self.context, self.text) }
    }
}

/// How a document's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Headings, lists, tables and code are recognised.
    Markdown,
    /// Paragraphs between empty lines.
    Text,
}

impl Format {
    /// By the ending of a file's name.
    pub fn of(uri: &str) -> Self {
        let ending = uri.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        match ending.as_deref() {
            Some("md" | "markdown" | "mdx") => Self::Markdown,
            _ => Self::Text,
        }
    }
}

/// Chunks of a document in its order. Together they hold all its text. Each has at most `maxTokens` tokens with its
/// context, unless the strategy is `Whole`.
///
/// # Errors
/// When the tokenizer fails.
pub fn chunk(text: &str, format: Format, how: &Chunking, tokenizer: &Tokenizer) -> Result<Vec<Chunk>, ChunkError> {
    let limit = usize::try_from(how.max_tokens).unwrap_or(1).max(1);
    let overlap = usize::try_from(how.overlap_tokens).unwrap_or(0).min(limit / 2);
    let whole = |heading: String| {
        let range = trim(text, 0..text.len());
        let chunk = Chunk { heading, context: String::new(), text: text.get(range.clone())?.to_owned(), range };
        (!chunk.text.is_empty()).then_some(chunk)
    };
    match how.strategy {
        ChunkingStrategy::Whole => {
            let title = structure::sections(text, format).first().and_then(|section| section.path.first().cloned());
            Ok(whole(title.unwrap_or_default()).into_iter().collect())
        }
        ChunkingStrategy::Fixed => {
            let words = Words::of(text, tokenizer, limit)?;
            let pieces = words.starts(&(0..text.len()));
            let mut chunks = Vec::new();
            for range in pack(&pieces, text.len(), limit, overlap, &words) {
                push(&mut chunks, text, range, String::new(), String::new());
            }
            Ok(chunks)
        }
        ChunkingStrategy::Markdown => {
            // A quarter of a chunk at most goes to its context, so no budget is below the other three.
            let words = Words::of(text, tokenizer, limit - limit / 4)?;
            let mut chunks = Vec::new();
            for section in structure::sections(text, format) {
                cut_section(text, &section, how.context_headings, (limit, overlap), &words, tokenizer, &mut chunks)?;
            }
            Ok(chunks)
        }
    }
}

fn cut_section(
    text: &str,
    section: &Section,
    context_headings: bool,
    (limit, overlap): (usize, usize),
    words: &Words,
    tokenizer: &Tokenizer,
    chunks: &mut Vec<Chunk>,
) -> Result<(), ChunkError> {
    let heading = section.path.join(HEADING_SEPARATOR);
    let (mut first, mut later) = (String::new(), String::new());
    let mut budget = limit;
    if context_headings {
        let ancestors = section.path.get(..section.ancestors).unwrap_or(&[]);
        let (first_context, first_cost) = context(ancestors, limit / 4, tokenizer)?;
        let (later_context, later_cost) = context(&section.path, limit / 4, tokenizer)?;
        budget = limit - first_cost.max(later_cost);
        (first, later) = (first_context, later_context);
    }
    let end = section.blocks.last().map_or(0, |block| block.range.end);
    let start = section.blocks.first().map_or(0, |block| block.range.start);
    let overlap = if words.count(&(start..end)) > budget { overlap.min(budget / 2) } else { 0 };
    let mut pieces = Vec::new();
    for block in &section.blocks {
        block.split(text, budget - overlap, words, &mut pieces);
    }
    for (number, range) in pack(&pieces, end, budget, overlap, words).into_iter().enumerate() {
        let context = if number == 0 { &first } else { &later };
        push(chunks, text, range, heading.clone(), context.clone());
    }
    Ok(())
}

/// The innermost headings that fit, joined, and their number of tokens.
fn context(path: &[String], limit: usize, tokenizer: &Tokenizer) -> Result<(String, usize), ChunkError> {
    for from in 0..path.len() {
        let joined = path.get(from..).unwrap_or(&[]).join(HEADING_SEPARATOR);
        let cost = tokenizer.encode_fast(joined.as_str(), false).map_err(|error| ChunkError(error.to_string()))?.len();
        if cost <= limit {
            return Ok((joined, cost));
        }
    }
    Ok((String::new(), 0))
}

/// Joins pieces, given by their starts, into ranges of at most `budget` tokens; each repeats up to `overlap` tokens
/// of the one before.
fn pack(starts: &[usize], end: usize, budget: usize, overlap: usize, words: &Words) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let ends = starts.iter().skip(1).copied().chain([end]);
    for (&start, end) in starts.iter().zip(ends) {
        match ranges.last_mut() {
            Some(last) if words.count(&(last.start..end)) <= budget => last.end = end,
            Some(last) => {
                let spare = budget.saturating_sub(words.count(&(start..end))).min(overlap);
                let from = words.back(start, spare).max(last.start);
                ranges.push(from..end);
            }
            None => ranges.push(start..end),
        }
    }
    ranges
}

fn push(chunks: &mut Vec<Chunk>, text: &str, range: Range<usize>, heading: String, context: String) {
    let range = trim(text, range);
    if let Some(slice) = text.get(range.clone()).filter(|slice| !slice.is_empty()) {
        chunks.push(Chunk { heading, context, text: slice.to_owned(), range });
    }
}

fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let slice = text.get(range.clone()).unwrap_or("");
    let start = range.start + (slice.len() - slice.trim_start().len());
    start..start + slice.trim().len()
}

#[cfg(test)]
mod tests;
