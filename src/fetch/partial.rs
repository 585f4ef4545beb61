//! The unfinished file beside the target: who may write it, and which version of the server's file it holds.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::progress::Progress;

/// How often a fetcher that waits for another one looks again.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Files beside the target: the unfinished download, its validator and the lock.
#[derive(Debug)]
pub struct Partial {
    /// The target.
    pub out: PathBuf,
    /// The unfinished download.
    pub data: PathBuf,
    /// Which version of the server's file the unfinished download holds.
    validator: PathBuf,
    _lock: Option<File>,
}

/// Identifies a version of the server's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// Address, so that another source of the same file starts anew.
    pub url: String,
    /// Strong entity tag.
    pub etag: String,
}

impl Partial {
    /// Takes the right to write the unfinished file of `out`, waiting while another process has it. The lock ends with the process
    /// that holds it, however that ends. On a volume without locks each process writes a file of its own.
    ///
    /// # Errors
    /// When the folder or the lock file cannot be made.
    pub async fn lock(out: &Path, progress: &Progress) -> io::Result<Self> {
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        tokio::fs::create_dir_all(folder).await?;
        let name = out.file_name().ok_or_else(|| io::Error::other("it does not name a file"))?.to_string_lossy();
        let beside = |suffix: &str| folder.join(format!(".{name}.{suffix}"));
        let data = beside("partial");
        let lock = File::options().create(true).truncate(false).write(true).open(beside("lock"))?;
        let mut told = false;
        // A blocking lock would keep the process from ending while it waits, so the lock is asked for again and again.
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self { out: out.into(), data, validator: beside("validator"), _lock: Some(lock) });
                }
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        tracing::info!("another process downloads {}; waiting for it", out.display());
                        told = true;
                    }
                    if let Ok(metadata) = tokio::fs::metadata(&data).await {
                        progress.set_bytes(metadata.len());
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    let own = uuid::Uuid::new_v4().simple().to_string();
                    return Ok(Self {
                        out: out.into(),
                        data: beside(&format!("{own}.partial")),
                        validator: beside(&format!("{own}.validator")),
                        _lock: None,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The validator of the unfinished file, if it is known.
    pub async fn validator(&self) -> Option<Validator> {
        serde_json::from_slice(&tokio::fs::read(&self.validator).await.ok()?).ok()
    }

    /// Records which version the unfinished file holds; `None` forgets it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn set_validator(&self, validator: Option<&Validator>) -> io::Result<()> {
        match validator {
            Some(validator) => tokio::fs::write(&self.validator, serde_json::to_vec(validator)?).await,
            None => absent(tokio::fs::remove_file(&self.validator).await),
        }
    }

    /// Removes the unfinished file.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub async fn discard(&self) -> io::Result<()> {
        absent(tokio::fs::remove_file(&self.data).await)?;
        self.set_validator(None).await
    }

    /// Makes the checked file the target, for readers all at once and also after a power failure.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub async fn finish(&self) -> io::Result<()> {
        tokio::fs::rename(&self.data, &self.out).await?;
        if let Some(folder) = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            tokio::fs::File::open(folder).await?.sync_all().await?;
        }
        self.set_validator(None).await
    }
}

/// Digest state and length of a file; a file that is not there has length 0.
///
/// # Errors
/// When the file cannot be read.
pub async fn hash(path: &Path) -> io::Result<(Sha256, u64)> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((hasher, 0)),
            Err(error) => return Err(error),
        };
        let mut buffer = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            let read = file.read(&mut buffer)?;
            let Some(block) = buffer.get(..read).filter(|block| !block.is_empty()) else { return Ok((hasher, length)) };
            hasher.update(block);
            length += read as u64;
        }
    })
    .await
    .map_err(io::Error::other)?
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
