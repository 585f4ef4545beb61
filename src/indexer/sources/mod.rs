//! Reads documents from mounted ConfigMaps and volumes.

mod text;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use sha2::{Digest, Sha256};

use super::job::{PlannedSource, content_digest};
use crate::api::rag_index::DocumentFailure;
use crate::api::revision::canonical;

/// More text than this needs more than one builder, in bytes.
pub const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// More than a ConfigMap can hold, which is 1 MiB.
const CONFIG_MAP_BYTES: u64 = 4 << 20;
const MAX_FILES: usize = 1_000_000;
const MAX_DEPTH: usize = 32;

/// Why a source cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A pattern of the plan is not one.
    #[error("source {source_name}: pattern {pattern:?} in spec.sources[].{field}: {message}")]
    Pattern {
        /// Name of the source.
        source_name: String,
        /// `include` or `exclude`.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// The path leads out of the mounted folder.
    #[error(
        "source {source_name}: path {path:?} leads out of the volume; use a path relative to its root, without `..`"
    )]
    Outside {
        /// Name of the source.
        source_name: String,
        /// The path.
        path: String,
    },
    /// The folder is not there.
    #[error(
        "source {source_name}: cannot read {path}: {cause}; check that the ConfigMap, or the PersistentVolumeClaim and its path, exist"
    )]
    Unreachable {
        /// Name of the source.
        source_name: String,
        /// The folder.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// Too much to read.
    #[error("source {source_name} has more than {limit}; narrow spec.sources[].include")]
    TooLarge {
        /// Name of the source.
        source_name: String,
        /// The limit.
        limit: String,
    },
    /// The mount does not (yet) show what the controller saw.
    #[error(
        "source {source_name}: the mounted ConfigMap has digest {found} and not {expected}; the kubelet has not updated the mount, or the ConfigMap changed again"
    )]
    Outdated {
        /// Name of the source.
        source_name: String,
        /// Digest in the plan.
        expected: String,
        /// Digest of the files.
        found: String,
    },
}

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Name of its source.
    pub source: String,
    /// Path in the source, with `/`.
    pub uri: String,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Its text, with `\n` as line ends.
    pub text: String,
}

impl Document {
    /// Identity of the document, whatever its content.
    pub fn id(&self) -> [u8; 32] {
        document_id(&self.source, &self.uri)
    }
}

/// Identity of a document, whatever its content.
pub fn document_id(source: &str, uri: &str) -> [u8; 32] {
    Sha256::new().chain_update(source).chain_update([0]).chain_update(uri).finalize().into()
}

/// What a source holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Documents by path.
    pub documents: Vec<Document>,
    /// Files without text.
    pub empty: i64,
    /// Files that could not be read, by path.
    pub failures: Vec<DocumentFailure>,
    /// Hash over paths and contents, including those of files that could not be used.
    pub revision: String,
}

/// A file as read.
struct Entry {
    uri: String,
    bytes: Result<Vec<u8>, DocumentFailure>,
}

/// Reads a source below its mounted folder.
///
/// # Errors
/// When the source as a whole cannot be read, or shows other content than the plan expects. A single bad file is a
/// failure in the content instead.
pub fn read(mount: &Path, source: &PlannedSource, max_file_bytes: u64) -> Result<Content, SourceError> {
    let include = globs(source, "include", &source.include)?;
    let exclude = globs(source, "exclude", &source.exclude)?;
    let is_config_map = source.content_digest.is_some();
    let root = root(mount, source)?;
    let wanted = |uri: &str| {
        // A ConfigMap's digest covers all of its keys.
        is_config_map || (include.is_match(uri) && !exclude.is_match(uri))
    };
    // The digest needs every key whole, also one above the limit for documents.
    let read_limit = if is_config_map { max_file_bytes.max(CONFIG_MAP_BYTES) } else { max_file_bytes };
    let entries = walk(&root, source, read_limit, &wanted)?;
    if let Some(expected) = &source.content_digest {
        let found = config_map_digest(&entries);
        if found != expected.trim_start_matches("sha256:") {
            return Err(SourceError::Outdated { source_name: source.name.clone(), expected: expected.clone(), found });
        }
    }
    let mut content = Content::default();
    let mut revision = Sha256::new();
    for entry in entries {
        if !include.is_match(&entry.uri) || exclude.is_match(&entry.uri) {
            continue;
        }
        let decoded = entry.bytes.and_then(|bytes| {
            if bytes.len() as u64 > max_file_bytes {
                return Err(too_large(&entry.uri, bytes.len() as u64, max_file_bytes));
            }
            let digest: [u8; 32] = Sha256::digest(&bytes).into();
            revision.update(canonical(&(&entry.uri, hex::encode(digest))).unwrap_or_default());
            let text = text::decode(bytes).map_err(|error| failure(&entry.uri, error.reason(), error.to_string()))?;
            Ok((digest, text))
        });
        match decoded {
            Ok((_, text)) if text.trim().is_empty() => content.empty += 1,
            Ok((digest, text)) => {
                content.documents.push(Document { source: source.name.clone(), uri: entry.uri, digest, text });
            }
            Err(failure) => {
                revision.update(canonical(&(&failure.uri, &failure.reason)).unwrap_or_default());
                content.failures.push(failure);
            }
        }
    }
    content.revision = hex::encode(revision.finalize());
    Ok(content)
}

/// Digest of a ConfigMap's data as its controller takes it: over the canonical JSON of key → text. Keys of its
/// `binaryData` are mounted too, and left out: they are not text.
fn config_map_digest(entries: &[Entry]) -> String {
    let text = |entry: &Entry| Some((entry.uri.clone(), String::from_utf8(entry.bytes.as_ref().ok()?.clone()).ok()?));
    let data: BTreeMap<String, String> = entries.iter().filter_map(text).collect();
    content_digest(&data).unwrap_or_default()
}

fn root(mount: &Path, source: &PlannedSource) -> Result<PathBuf, SourceError> {
    let outside = || SourceError::Outside { source_name: source.name.clone(), path: source.path.clone() };
    let relative = Path::new(source.path.trim_start_matches('/'));
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    let unreachable = |path: &Path, cause| SourceError::Unreachable {
        source_name: source.name.clone(),
        path: path.to_owned(),
        cause,
    };
    let mount = mount.canonicalize().map_err(|cause| unreachable(mount, cause))?;
    let wanted = mount.join(relative);
    let root = wanted.canonicalize().map_err(|cause| unreachable(&wanted, cause))?;
    if root.starts_with(&mount) { Ok(root) } else { Err(outside()) }
}

fn walk(
    root: &Path,
    source: &PlannedSource,
    max_file_bytes: u64,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Entry>, SourceError> {
    let too_large = |limit: String| SourceError::TooLarge { source_name: source.name.clone(), limit };
    let mut entries = Vec::new();
    let mut total = 0u64;
    let visible = |entry: &walkdir::DirEntry| {
        // `..data` and `..2026_…` are how the kubelet swaps a ConfigMap's files.
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with("..")
    };
    let files = walkdir::WalkDir::new(root).follow_links(false).max_depth(MAX_DEPTH).sort_by_file_name();
    for found in files.into_iter().filter_entry(visible) {
        let found = match found {
            Ok(found) => found,
            Err(error) if error.depth() == 0 => {
                return Err(SourceError::Unreachable {
                    source_name: source.name.clone(),
                    path: root.to_owned(),
                    cause: error.into(),
                });
            }
            Err(error) => {
                let uri = error.path().map(|path| relative(root, path)).unwrap_or_default();
                let failure = failure(&uri, "Unreadable", error.to_string());
                entries.push(Entry { uri, bytes: Err(failure) });
                continue;
            }
        };
        let uri = relative(root, found.path());
        if found.file_type().is_dir() || !wanted(&uri) {
            continue;
        }
        if entries.len() >= MAX_FILES {
            return Err(too_large(format!("{MAX_FILES} files")));
        }
        let bytes = read_file(root, found.path(), &uri, max_file_bytes);
        total += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if total > MAX_TOTAL_BYTES {
            return Err(too_large(format!("{MAX_TOTAL_BYTES} bytes")));
        }
        entries.push(Entry { uri, bytes });
    }
    entries.sort_by(|a, b| a.uri.cmp(&b.uri));
    Ok(entries)
}

fn read_file(root: &Path, path: &Path, uri: &str, max_file_bytes: u64) -> Result<Vec<u8>, DocumentFailure> {
    let unreadable =
        |error: std::io::Error| failure(uri, "Unreadable", format!("{error}; check the file's permissions"));
    // A link may lead to another file of the source, and nowhere else.
    let target = path.canonicalize().map_err(unreadable)?;
    if !target.starts_with(root) {
        return Err(failure(
            uri,
            "LinkLeavesSource",
            "the link leads out of the source; put the file itself there".into(),
        ));
    }
    let file = File::open(&target).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(failure(uri, "NotAFile", "it is not a regular file, nor a link to one".into()));
    }
    if metadata.len() > max_file_bytes {
        return Err(too_large(uri, metadata.len(), max_file_bytes));
    }
    let mut bytes = Vec::new();
    file.take(max_file_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    let length = bytes.len() as u64;
    if length > max_file_bytes { Err(too_large(uri, length, max_file_bytes)) } else { Ok(bytes) }
}

fn too_large(uri: &str, size: u64, limit: u64) -> DocumentFailure {
    let message = format!("{size} bytes are above spec.parse.maxFileBytes {limit}; raise it, or exclude the file");
    failure(uri, "TooLarge", message)
}

fn relative(root: &Path, path: &Path) -> String {
    let parts: Vec<_> =
        path.strip_prefix(root).unwrap_or(path).components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

fn failure(uri: &str, reason: &str, message: String) -> DocumentFailure {
    DocumentFailure { uri: uri.to_owned(), reason: reason.to_owned(), message }
}

fn globs(source: &PlannedSource, field: &'static str, patterns: &[String]) -> Result<GlobSet, SourceError> {
    let error = |pattern: &str, error: globset::Error| SourceError::Pattern {
        source_name: source.name.clone(),
        field,
        pattern: pattern.to_owned(),
        message: error.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|cause| error(pattern, cause))?);
    }
    set.build().map_err(|cause| error("", cause))
}

#[cfg(test)]
mod tests;
