//! Reads files and folders and splits YAML into documents, keeping where each begins.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// Larger files are refused, in bytes: a manifest is never that large, etcd would not take it.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A file or folder that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A file is too large for a manifest.
    #[error(
        "{path} has {bytes} bytes, more than the {MAX_FILE} that a manifest may have; name the manifest files themselves"
    )]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A folder without manifests.
    #[error("{0} holds no *.yaml, *.yml or *.json file; check the path")]
    Empty(PathBuf),
}

/// One document of a YAML file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Number of its first line in the file, from 1.
    pub first_line: usize,
    /// Its text.
    pub text: &'a str,
}

/// Splits at lines that are `---`, alone or followed by space and more.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = at + line.len();
        let bare = line.trim_end();
        // Content may follow the marker on the same line; it belongs to the new document.
        if bare == "---" || bare.starts_with("--- ") {
            documents.push(Document { first_line, text: &text[start..at] });
            start = if bare == "---" { end } else { at };
            first_line = if bare == "---" { index + 2 } else { index + 1 };
        }
        at = end;
    }
    documents.push(Document { first_line, text: &text[start..] });
    documents.retain(|document| !document.text.trim().is_empty());
    documents
}

/// The document as JSON; `None` when it holds only comments. An error comes with its line in the file.
pub(super) fn parse(document: &Document<'_>) -> Result<Option<Value>, (usize, String)> {
    let fail = |line: usize, message: String| (document.first_line + line.saturating_sub(1), message);
    let yaml = serde_yaml::Deserializer::from_str(document.text);
    let mut value = serde_yaml::Value::deserialize(yaml)
        .map_err(|error| fail(error.location().map_or(1, |at| at.line()), format!("not valid YAML: {error}")))?;
    value.apply_merge().map_err(|error| fail(1, format!("not valid YAML: {error}")))?;
    if value.is_null() {
        return Ok(None);
    }
    let json = serde_json::to_value(value)
        .map_err(|error| fail(1, format!("cannot be written as JSON, which Kubernetes needs: {error}")))?;
    if json.is_object() {
        Ok(Some(json))
    } else {
        Err(fail(1, "a manifest is a mapping with apiVersion and kind".into()))
    }
}

/// Name and text of every file that the arguments name, folders in order of names.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .take(MAX_FILE)
                .read_to_string(&mut text)
                .map_err(|source| Error::Read { path: path.clone(), source })?;
            files.push(("-".to_owned(), text));
        } else if path.is_dir() {
            let before = files.len();
            for entry in walkdir::WalkDir::new(path).follow_links(true).sort_by_file_name() {
                let entry = entry.map_err(|error| Error::Read { path: path.clone(), source: error.into() })?;
                let name = entry.path();
                let manifest = name.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
                if manifest && entry.file_type().is_file() {
                    files.push(file(name)?);
                }
            }
            if files.len() == before {
                return Err(Error::Empty(path.clone()));
            }
        } else {
            files.push(file(path)?);
        }
    }
    Ok(files)
}

fn file(path: &Path) -> Result<(String, String), Error> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > MAX_FILE {
        return Err(Error::TooLarge { path: path.to_owned(), bytes });
    }
    Ok((path.display().to_string(), std::fs::read_to_string(path).map_err(fail)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_line() {
        let found = split("---\na: 1\n--- # second\nb: 2\n---\n\n---\nc: |\n  x\n  --- y\n");
        let lines: Vec<_> = found.iter().map(|document| document.first_line).collect();
        assert_eq!(lines, [2, 3, 8]);
        assert_eq!(parse(&found[1]).unwrap().unwrap()["b"], 2);
        assert_eq!(parse(&found[2]).unwrap().unwrap()["c"], "x\n--- y\n");
    }

    #[test]
    fn errors_name_the_line_of_the_file() {
        let text = "a: 1\n---\nb: 1\nb: 2\n";
        let found = split(text);
        let (line, message) = parse(&found[1]).unwrap_err();
        assert!((3..=4).contains(&line), "{line}");
        assert!(message.contains("duplicate"), "{message}");
        assert_eq!(parse(&split("a: [1\n")[0]).unwrap_err().0, 2);
        assert!(parse(&split("- a\n")[0]).unwrap_err().1.contains("mapping"));
    }
}
