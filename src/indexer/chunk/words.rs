//! The words of a text with their cost in tokens.

use std::ops::Range;

use tokenizers::Tokenizer;

use super::ChunkError;

/// Longer words are cut, so that a chunk has a bound in bytes too: WordPiece sees one unknown token in any word above
/// 100 characters, however long.
const LONGEST_WORD_BYTES: usize = 1024;
/// Texts are tokenised in parts of about this size: a tokenizer needs some 50 bytes of memory for each byte.
const PART_BYTES: usize = 64 << 10;

/// Words in order. Cutting between two of them changes the tokens of neither.
pub struct Words {
    words: Vec<Word>,
    /// `costs[i]` is the cost of the words before word i.
    costs: Vec<usize>,
}

struct Word {
    start: usize,
}

impl Words {
    /// Tokenises a text. Words that cost more than `limit` are cut into smaller ones with an upper bound as cost.
    pub fn of(text: &str, tokenizer: &Tokenizer, limit: usize) -> Result<Self, ChunkError> {
        let mut found = Self { words: Vec::new(), costs: vec![0] };
        let mut from = 0;
        while from < text.len() {
            let part = part(text, from);
            let encoding = tokenizer.encode(part, false).map_err(|error| ChunkError(error.to_string()))?;
            let mut current: Option<(u32, Range<usize>, usize)> = None;
            for (id, (start, end)) in encoding.get_word_ids().iter().zip(encoding.get_offsets()) {
                let Some(id) = *id else { continue };
                match &mut current {
                    Some((word, range, cost)) if *word == id => {
                        range.end = range.end.max(*end);
                        *cost += 1;
                    }
                    _ => {
                        if let Some((_, range, cost)) = current.replace((id, *start..*end, 1)) {
                            found.push(text, from + range.start..from + range.end, cost, limit);
                        }
                    }
                }
            }
            if let Some((_, range, cost)) = current {
                found.push(text, from + range.start..from + range.end, cost, limit);
            }
            from += part.len();
        }
        Ok(found)
    }

    fn push(&mut self, text: &str, word: Range<usize>, cost: usize, limit: usize) {
        let mut add = |start, cost| {
            let before = self.costs.last().copied().unwrap_or(0);
            self.words.push(Word { start });
            self.costs.push(before + cost);
        };
        if cost > limit {
            // A part of a word may have other tokens than the word has there, but never more than bytes.
            for piece in pieces(text, &word, limit.clamp(1, 8)) {
                add(piece.start, piece.len());
            }
        } else if word.len() > LONGEST_WORD_BYTES {
            // Equal parts all stay above 100 characters, one unknown token each.
            let parts = word.len().div_ceil(LONGEST_WORD_BYTES);
            for piece in pieces(text, &word, word.len().div_ceil(parts)) {
                add(piece.start, cost.max(1));
            }
        } else {
            add(word.start, cost);
        }
    }

    /// Tokens of the words that start in a range.
    pub fn count(&self, range: &Range<usize>) -> usize {
        let cost = |at| self.costs.get(self.index(at)).copied().unwrap_or(0);
        cost(range.end).saturating_sub(cost(range.start))
    }

    /// Starts of the words in a range; the first is the range's own start.
    pub fn starts(&self, range: &Range<usize>) -> Vec<usize> {
        let words = self.words.get(self.index(range.start)..self.index(range.end)).unwrap_or(&[]);
        std::iter::once(range.start).chain(words.iter().skip(1).map(|word| word.start)).collect()
    }

    /// The start of the words before `at` that together cost at most `tokens`.
    pub fn back(&self, at: usize, tokens: usize) -> usize {
        let here = self.index(at);
        let cost = self.costs.get(here).copied().unwrap_or(0);
        let first = self.costs.partition_point(|before| *before + tokens < cost).min(here);
        if first == here { at } else { self.words.get(first).map_or(at, |word| word.start) }
    }

    fn index(&self, at: usize) -> usize {
        self.words.partition_point(|word| word.start < at)
    }
}

/// The next part: up to a line's end after about 64 KiB, because words do not cross lines.
fn part(text: &str, from: usize) -> &str {
    let rest = text.get(from..).unwrap_or("");
    let least = rest.floor_char_boundary(PART_BYTES.min(rest.len()));
    let end = rest.get(least..).and_then(|tail| tail.find('\n')).map_or(rest.len(), |at| least + at + 1);
    rest.get(..end).unwrap_or(rest)
}

/// Pieces of at least one character and otherwise at most `bytes` bytes.
fn pieces(text: &str, word: &Range<usize>, bytes: usize) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for (offset, character) in text.get(word.clone()).unwrap_or("").char_indices() {
        let (start, end) = (word.start + offset, word.start + offset + character.len_utf8());
        match pieces.last_mut() {
            Some(piece) if end - piece.start <= bytes => piece.end = end,
            _ => pieces.push(start..end),
        }
    }
    pieces
}
