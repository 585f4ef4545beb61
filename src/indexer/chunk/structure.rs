//! The structure of a document: sections below headings, and the places where their blocks may be cut.

use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::Format;
use super::words::Words;

/// Longer headings are cut in paths; their text stays whole in the chunk.
const MAX_HEADING_CHARS: usize = 160;

/// Text below a heading, up to the next one.
#[derive(Debug)]
pub struct Section {
    /// Headings from the outermost to its own.
    pub path: Vec<String>,
    /// How many headings of the path stand before the section; the others are in its text.
    pub ancestors: usize,
    /// Its blocks; each begins where the one before ends.
    pub blocks: Vec<Block>,
}

/// A paragraph, list, table, piece of code or heading.
#[derive(Debug)]
pub struct Block {
    /// Where it is.
    pub range: Range<usize>,
    kind: Kind,
    /// Starts of items and paragraphs inside, with their depth.
    inner: Vec<(usize, usize)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Heading(HeadingLevel, String),
    /// Cut at sentences.
    Prose,
    /// Cut at lines.
    Lines,
}

impl Block {
    /// Appends the starts of pieces of at most `budget` tokens: the block itself, else its items and paragraphs, else
    /// its sentences or lines, else words.
    pub fn split(&self, text: &str, budget: usize, words: &Words, starts: &mut Vec<usize>) {
        let deepest = self.inner.iter().map(|(depth, _)| *depth).max().unwrap_or(0);
        let mut levels: Vec<Vec<usize>> = (0..=deepest)
            .map(|level| self.inner.iter().filter(|(depth, _)| *depth <= level).map(|(_, at)| *at).collect())
            .collect();
        levels.push(match self.kind {
            Kind::Lines => line_starts(text, &self.range),
            _ => sentence_starts(text, &self.range),
        });
        divide(self.range.clone(), &levels, budget, words, starts);
    }
}

fn divide(range: Range<usize>, levels: &[Vec<usize>], budget: usize, words: &Words, starts: &mut Vec<usize>) {
    if words.count(&range) <= budget {
        starts.push(range.start);
        return;
    }
    let Some((level, deeper)) = levels.split_first() else {
        starts.extend(words.starts(&range));
        return;
    };
    let mut start = range.start;
    let cuts = level.iter().copied().filter(|at| *at > range.start && *at < range.end);
    for end in cuts.chain([range.end]) {
        if end > start {
            divide(start..end, deeper, budget, words, starts);
            start = end;
        }
    }
}

/// The sections of a document, in order, without gaps.
pub fn sections(text: &str, format: Format) -> Vec<Section> {
    let mut blocks = match format {
        Format::Markdown => markdown_blocks(text),
        Format::Text => paragraphs(text),
    };
    // What belongs to no block (empty lines, link definitions) goes with the block before it.
    let starts: Vec<usize> = blocks.iter().map(|block| block.range.start).skip(1).chain([text.len()]).collect();
    for (block, end) in blocks.iter_mut().zip(starts) {
        block.range.end = end;
    }
    match blocks.first_mut() {
        Some(first) => first.range.start = 0,
        None => blocks.push(Block { range: 0..text.len(), kind: Kind::Prose, inner: Vec::new() }),
    }
    let mut sections: Vec<Section> = Vec::new();
    let mut path: Vec<(HeadingLevel, String)> = Vec::new();
    for block in blocks {
        if let Kind::Heading(level, title) = &block.kind {
            // A heading directly below a higher one shares a section with it: alone it would be a chunk of no use.
            let only_headings = |section: &Section| section.blocks.iter().all(|b| matches!(b.kind, Kind::Heading(..)));
            let below = path.last().is_some_and(|(above, _)| above < level);
            path.retain(|(above, _)| above < level);
            let ancestors = path.len();
            path.push((*level, title.clone()));
            let titles: Vec<String> = path.iter().map(|(_, title)| title.clone()).collect();
            match sections.last_mut() {
                Some(section) if below && only_headings(section) => {
                    section.path = titles;
                    section.blocks.push(block);
                }
                _ => sections.push(Section { path: titles, ancestors, blocks: vec![block] }),
            }
        } else if let Some(section) = sections.last_mut() {
            section.blocks.push(block);
        } else {
            sections.push(Section { path: Vec::new(), ancestors: 0, blocks: vec![block] });
        }
    }
    sections
}

fn markdown_blocks(text: &str) -> Vec<Block> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut blocks: Vec<Block> = Vec::new();
    let mut depth = 0usize;
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        match event {
            Event::Start(tag) => {
                if depth == 0 {
                    let kind = match &tag {
                        Tag::Heading { level, .. } => Kind::Heading(*level, String::new()),
                        Tag::CodeBlock(_) | Tag::Table(_) | Tag::HtmlBlock | Tag::MetadataBlock(_) => Kind::Lines,
                        _ => Kind::Prose,
                    };
                    blocks.push(Block { range, kind, inner: Vec::new() });
                } else if let (Tag::Item | Tag::Paragraph | Tag::CodeBlock(_) | Tag::Table(_), Some(block)) =
                    (&tag, blocks.last_mut())
                {
                    block.inner.push((depth, range.start));
                }
                depth += 1;
            }
            Event::End(end) => {
                depth = depth.saturating_sub(1);
                if let (TagEnd::Heading(_), Some(Block { kind: Kind::Heading(_, title), .. })) =
                    (end, blocks.last_mut())
                {
                    *title = title.trim().chars().take(MAX_HEADING_CHARS).collect();
                }
            }
            Event::Text(part) | Event::Code(part) => match blocks.last_mut() {
                Some(Block { kind: Kind::Heading(_, title), .. }) if depth > 0 => title.push_str(&part),
                _ => {}
            },
            Event::SoftBreak | Event::HardBreak => match blocks.last_mut() {
                Some(Block { kind: Kind::Heading(_, title), .. }) if depth > 0 => title.push(' '),
                _ => {}
            },
            Event::Rule if depth == 0 => blocks.push(Block { range, kind: Kind::Prose, inner: Vec::new() }),
            _ => {}
        }
    }
    blocks
}

fn paragraphs(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut at, mut after_gap) = (0, true);
    for line in text.split_inclusive('\n') {
        let empty = line.trim().is_empty();
        if !empty && after_gap {
            blocks.push(Block { range: at..at, kind: Kind::Prose, inner: Vec::new() });
        }
        after_gap = empty;
        at += line.len();
    }
    blocks
}

fn line_starts(text: &str, range: &Range<usize>) -> Vec<usize> {
    let slice = text.get(range.clone()).unwrap_or("");
    slice.match_indices('\n').map(|(at, _)| range.start + at + 1).collect()
}

/// Where sentences begin: after `.`, `!` or `?`, closing marks and space.
fn sentence_starts(text: &str, range: &Range<usize>) -> Vec<usize> {
    #[derive(PartialEq)]
    enum Seen {
        Nothing,
        End,
        EndAndSpace,
    }
    let mut starts = Vec::new();
    let mut seen = Seen::Nothing;
    for (at, character) in text.get(range.clone()).unwrap_or("").char_indices() {
        seen = match character {
            '.' | '!' | '?' => Seen::End,
            // These scripts put no space between sentences.
            '。' | '！' | '？' => Seen::EndAndSpace,
            ')' | ']' | '"' | '\'' | '”' | '’' | '*' | '_' | '`' if seen == Seen::End => Seen::End,
            space if space.is_whitespace() => match seen {
                Seen::Nothing => Seen::Nothing,
                _ => Seen::EndAndSpace,
            },
            _ => {
                if seen == Seen::EndAndSpace {
                    starts.push(range.start + at);
                }
                Seen::Nothing
            }
        };
    }
    starts
}
