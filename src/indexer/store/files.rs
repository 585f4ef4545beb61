//! Folders and files of the store volume.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{FileRecord, MANIFEST, StoreError};

/// Start of the names of folders that are being written or removed.
const TEMPORARY: &str = ".tmp-";

/// Makes a folder's entries durable.
///
/// # Errors
/// When the folder cannot be synchronised.
pub fn fsync_dir(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A new path beside the generations, unlike that of any other process.
pub fn unique(parent: &Path, name: &str) -> PathBuf {
    parent.join(format!("{TEMPORARY}{name}-{}", uuid::Uuid::new_v4().simple()))
}

/// Names of the generations below a folder that have a manifest, the newest first.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list_generations(parent: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in entries(parent)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let (false, Ok(manifest)) = (name.starts_with('.'), entry.path().join(MANIFEST).metadata()) {
            found.push((manifest.modified()?, name));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// Removes what killed builders left behind. Only for the one that holds the store's lock.
///
/// # Errors
/// When a folder cannot be removed.
pub fn remove_stale(parent: &Path) -> io::Result<()> {
    for entry in entries(parent)? {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn entries(parent: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(parent) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Hashes all files of a generation and makes them durable.
pub(super) fn hash_all(folder: &Path) -> Result<BTreeMap<String, FileRecord>, StoreError> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(folder).contents_first(true) {
        let entry = entry.map_err(|error| StoreError::Io { path: folder.to_owned(), cause: error.into() })?;
        let path = entry.path();
        if entry.file_type().is_dir() {
            fsync_dir(path).map_err(StoreError::io(path))?;
            continue;
        }
        let record = hash(path).map_err(StoreError::io(path))?;
        File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::io(path))?;
        let name = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
        files.insert(name, record);
    }
    Ok(files)
}

/// Compares all files of a generation with their records.
pub(super) fn verify(folder: &Path, files: &BTreeMap<String, FileRecord>) -> Result<(), StoreError> {
    for (name, expected) in files {
        if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(StoreError::corrupt(folder, format!("its manifest names a file {name:?} outside of it")));
        }
        let path = folder.join(name);
        let found = match hash(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::corrupt(folder, format!("{name} is missing")));
            }
            Err(error) => return Err(StoreError::io(&path)(error)),
        };
        if found != *expected {
            let message = format!(
                "{name} has {} bytes with SHA-256 {}, its manifest says {} bytes with {}",
                found.bytes, found.sha256, expected.bytes, expected.sha256
            );
            return Err(StoreError::corrupt(folder, message));
        }
    }
    Ok(())
}

fn hash(path: &Path) -> io::Result<FileRecord> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0u64;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(buffer.get(..read).unwrap_or(&[]));
        bytes += read as u64;
    }
    Ok(FileRecord { bytes, sha256: hex::encode(digest.finalize()) })
}

/// Keeps a second builder of the same store out. The kernel frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or gives `None` while another process has it.
    ///
    /// # Errors
    /// When the file cannot be made, or the volume knows no locks.
    pub fn try_take(store: &Path) -> io::Result<Option<Self>> {
        let file = File::options().create(true).truncate(false).write(true).open(store.join("build.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}
