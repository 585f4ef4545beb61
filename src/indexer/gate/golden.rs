//! Golden questions: one JSON object a line.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

const MAX_GRADE: u32 = 10;

/// A golden file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("golden questions, line {line}: {message}")]
pub struct GoldenError {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// A question and the documents that answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The question.
    pub query: String,
    /// Tags that chunks must have.
    pub filters: BTreeMap<String, String>,
    /// Documents that answer it, each once.
    pub relevant: Vec<RelevantDocument>,
}

/// A document that answers a question.
#[derive(Clone, Debug, PartialEq)]
pub struct RelevantDocument {
    /// Path in its source.
    pub uri: String,
    /// How well it answers, from 1.
    pub grade: u32,
    /// A chunk of it counts when it has one of these, compared without regard to case and space; none: any chunk.
    pub quotes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: Option<String>,
    query: String,
    #[serde(default)]
    filters: BTreeMap<String, String>,
    relevant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    uri: String,
    #[serde(default)]
    grade: Option<u32>,
    #[serde(default)]
    quote: Option<String>,
}

/// Reads golden questions. Empty lines are left out.
///
/// # Errors
/// When a line is not a question; the error names it.
pub fn parse(text: &str) -> Result<Vec<Question>, GoldenError> {
    let mut questions = Vec::new();
    let mut lines_of_ids: HashMap<String, usize> = HashMap::new();
    for (number, text) in text.lines().enumerate() {
        let line = number + 1;
        let wrong = |message: String| GoldenError { line, message };
        if text.trim().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_str(text).map_err(|error| {
            wrong(format!("{error}; each line is {{\"id\", \"query\", \"relevant\": [{{\"uri\"}}]}}"))
        })?;
        if parsed.query.trim().is_empty() {
            return Err(wrong("query is empty".into()));
        }
        if parsed.relevant.is_empty() {
            return Err(wrong("relevant is empty; name at least one document".into()));
        }
        if let Some(id) = parsed.id
            && let Some(other) = lines_of_ids.insert(id.clone(), line)
        {
            return Err(wrong(format!("id {id:?} is also on line {other}; ids must differ")));
        }
        let mut relevant: Vec<RelevantDocument> = Vec::new();
        for Entry { uri, grade, quote } in parsed.relevant {
            let grade = grade.unwrap_or(1);
            if !(1..=MAX_GRADE).contains(&grade) {
                return Err(wrong(format!("grade {grade} of {uri} is not between 1 and {MAX_GRADE}")));
            }
            let quote = quote.map(|quote| comparable(&quote));
            if quote.as_ref().is_some_and(String::is_empty) {
                return Err(wrong(format!("quote of {uri} is empty; leave it out to accept any chunk")));
            }
            match relevant.iter_mut().find(|known| known.uri == uri) {
                Some(known) => {
                    known.grade = known.grade.max(grade);
                    // Without a quote any chunk counts, whatever the other entries say.
                    match quote {
                        Some(quote) if !known.quotes.is_empty() => known.quotes.push(quote),
                        _ => known.quotes.clear(),
                    }
                }
                None => relevant.push(RelevantDocument { uri, grade, quotes: quote.into_iter().collect() }),
            }
        }
        questions.push(Question { line, query: parsed.query, filters: parsed.filters, relevant });
    }
    Ok(questions)
}

/// Lower case, with single spaces: line breaks of a document must not hide a quote.
pub fn comparable(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
