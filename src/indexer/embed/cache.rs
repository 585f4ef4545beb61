//! Vectors that were computed once: append-only segments, shared by all builds of a store.
//!
//! A segment is a magic number and frames `{length: u32, crc32: u32, key: 32 bytes, numbers: f32…}`, little-endian.
//! Each process writes segments of its own, so two builders cannot spoil each other's; the same vector twice does no
//! harm, because its key is the hash of all that decides it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::indexer::store::fsync_dir;

/// Hash of all that decides a vector.
pub type Key = [u8; 32];

const MAGIC: &[u8; 8] = b"llmvecs1";
const ENDING: &str = "seg";
const MAX_FRAME_BYTES: u32 = 32 + 4 * 65_536;
const SYNC_FRAMES: usize = 256;
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Segments beyond this number are joined at the end of a build.
const MAX_SEGMENTS: usize = 8;

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
#[error("embedding cache {path}: {cause}")]
pub struct CacheError {
    path: PathBuf,
    cause: io::Error,
}

impl CacheError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self { path: path.to_owned(), cause }
    }
}

/// The key of a text's vector; the text is what the model reads, with any prefix.
pub fn vector_key(model_digest: &str, max_tokens: Option<usize>, text: &str) -> Key {
    // Pooling and normalisation follow from the model here; their names keep keys apart should that change.
    let limit = max_tokens.map(|limit| limit.to_string()).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [model_digest, "mean", "l2", &limit, text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The cache of a store, in memory.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    vectors: HashMap<Key, Vec<f32>>,
    segments: Vec<PathBuf>,
    /// Frames in all segments, with repeated and unused ones.
    frames: usize,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    unsynced: usize,
    synced: Instant,
}

impl Cache {
    /// Reads all segments below a folder, each up to its first bad frame. With `repair`, which only the holder of the
    /// store's lock may ask for, they are cut there.
    ///
    /// # Errors
    /// When a file cannot be read or cut.
    pub fn open(folder: &Path, repair: bool) -> Result<Self, CacheError> {
        std::fs::create_dir_all(folder).map_err(CacheError::at(folder))?;
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(CacheError::at(folder))? {
            let path = entry.map_err(CacheError::at(folder))?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) {
                segments.push(path);
            } else if repair && path.extension().is_some_and(|ending| ending == "tmp") {
                std::fs::remove_file(&path).map_err(CacheError::at(&path))?;
            }
        }
        segments.sort();
        let mut vectors = HashMap::new();
        let mut frames = 0;
        for path in &segments {
            let good = read_segment(path, |key, vector| {
                frames += 1;
                vectors.insert(key, vector);
            });
            let good = good.map_err(CacheError::at(path))?;
            let length = path.metadata().map_err(CacheError::at(path))?.len();
            if good < length {
                tracing::warn!(segment = %path.display(), good, length, "embedding cache ends in a bad frame; the rest is left out");
                if repair {
                    let file = File::options().write(true).open(path).map_err(CacheError::at(path))?;
                    file.set_len(good).and_then(|()| file.sync_all()).map_err(CacheError::at(path))?;
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), vectors, segments, frames, writer: None })
    }

    /// A vector, if it is known.
    pub fn get(&self, key: &Key) -> Option<&[f32]> {
        self.vectors.get(key).map(Vec::as_slice)
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Adds a vector; it is durable after 256 others, 5 s with another one, or [`Self::sync`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&mut self, key: Key, vector: Vec<f32>) -> Result<(), CacheError> {
        if self.vectors.contains_key(&key) {
            return Ok(());
        }
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let path = self.folder.join(format!("{}.{ENDING}", uuid::Uuid::now_v7().simple()));
                let out = create(&path).map_err(CacheError::at(&path))?;
                self.segments.push(path.clone());
                Writer { path, out, unsynced: 0, synced: Instant::now() }
            }
        };
        write_frame(&mut writer.out, &key, &vector).map_err(CacheError::at(&writer.path))?;
        writer.unsynced += 1;
        self.frames += 1;
        self.vectors.insert(key, vector);
        let due = writer.unsynced >= SYNC_FRAMES || writer.synced.elapsed() >= SYNC_AFTER;
        self.writer = Some(writer);
        if due { self.sync() } else { Ok(()) }
    }

    /// Makes all vectors durable.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn sync(&mut self) -> Result<(), CacheError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.out.flush().and_then(|()| writer.out.get_ref().sync_data()).map_err(CacheError::at(&writer.path))?;
        (writer.unsynced, writer.synced) = (0, Instant::now());
        Ok(())
    }

    /// Rewrites the cache with the keys in use only, when that is worth it. Only for the holder of the store's lock.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn collect(&mut self, used: &HashSet<Key>) -> Result<(), CacheError> {
        self.sync()?;
        let kept: Vec<&Key> = {
            let mut kept: Vec<&Key> = self.vectors.keys().filter(|key| used.contains(*key)).collect();
            kept.sort();
            kept
        };
        // A quarter of waste is tolerated: what a rejected generation embedded may soon be wanted again.
        if self.frames <= kept.len() + kept.len() / 4 && self.segments.len() <= MAX_SEGMENTS {
            return Ok(());
        }
        let path = self.folder.join(format!("{}.{ENDING}", uuid::Uuid::now_v7().simple()));
        let temporary = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut out = create(&temporary)?;
            for key in &kept {
                write_frame(&mut out, key, self.vectors.get(*key).map_or(&[], Vec::as_slice))?;
            }
            out.flush()?;
            out.get_ref().sync_all()?;
            std::fs::rename(&temporary, &path)?;
            fsync_dir(&self.folder)
        };
        write().map_err(CacheError::at(&path))?;
        let frames = kept.len();
        self.writer = None;
        for old in std::mem::replace(&mut self.segments, vec![path]) {
            std::fs::remove_file(&old).map_err(CacheError::at(&old))?;
        }
        self.vectors.retain(|key, _| used.contains(key));
        self.frames = frames;
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<BufWriter<File>> {
    let mut out = BufWriter::new(File::options().create_new(true).write(true).open(path)?);
    out.write_all(MAGIC)?;
    Ok(out)
}

fn write_frame(out: &mut impl Write, key: &Key, vector: &[f32]) -> io::Result<()> {
    let mut payload = Vec::with_capacity(key.len() + vector.len() * 4);
    payload.extend_from_slice(key);
    payload.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
    let length = u32::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    // One call a frame: the buffer never holds a part of one for longer than it must.
    out.write_all(&frame)
}

/// Shows each good frame; gives the number of bytes up to the first bad one.
fn read_segment(path: &Path, mut show: impl FnMut(Key, Vec<f32>)) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut magic = [0; 8];
    if !fill(&mut reader, &mut magic)? || &magic != MAGIC {
        return Ok(0);
    }
    let mut good = magic.len() as u64;
    loop {
        let mut head = [0; 8];
        if !fill(&mut reader, &mut head)? {
            return Ok(good);
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let (length, checksum) = (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([c0, c1, c2, c3]));
        if !(36..=MAX_FRAME_BYTES).contains(&length) || length % 4 != 0 {
            return Ok(good);
        }
        let mut payload = vec![0; length as usize];
        if !fill(&mut reader, &mut payload)? || crc32fast::hash(&payload) != checksum {
            return Ok(good);
        }
        let Some((key, numbers)) = payload.split_first_chunk::<32>() else { return Ok(good) };
        show(*key, numbers.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect());
        good += 8 + u64::from(length);
    }
}

/// Fills the buffer; false when the file ends first.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Key {
        [n; 32]
    }

    fn filled(folder: &Path, keys: std::ops::Range<u8>) {
        let mut cache = Cache::open(folder, true).unwrap();
        for n in keys {
            cache.put(key(n), vec![f32::from(n); 5]).unwrap();
        }
        cache.sync().unwrap();
    }

    fn segments(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn vectors_survive_and_known_ones_are_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 0..10);
        filled(folder.path(), 0..10);
        assert_eq!(segments(folder.path()).len(), 1);
        filled(folder.path(), 5..15);
        let cache = Cache::open(folder.path(), true).unwrap();
        assert_eq!((cache.len(), cache.frames), (15, 15));
        assert_eq!(cache.get(&key(14)), Some(&[14.0; 5][..]));
        assert_eq!(cache.get(&key(15)), None);
    }

    #[test]
    fn unused_vectors_go_when_they_are_many() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 0..100);
        let mut cache = Cache::open(folder.path(), true).unwrap();
        cache.collect(&(0..90).map(key).collect()).unwrap();
        assert_eq!(cache.len(), 100, "a little waste stays");
        cache.collect(&(0..50).map(key).collect()).unwrap();
        assert_eq!(segments(folder.path()).len(), 1);
        cache.put(key(200), vec![1.0; 5]).unwrap();
        cache.sync().unwrap();
        let cache = Cache::open(folder.path(), true).unwrap();
        assert_eq!(cache.len(), 51);
        assert_eq!(cache.get(&key(49)), Some(&[49.0; 5][..]));
    }

    #[test]
    fn what_decides_a_vector_decides_its_key() {
        let keys: HashSet<Key> = [
            vector_key("m", None, "text"),
            vector_key("n", None, "text"),
            vector_key("m", None, "other"),
            vector_key("m", Some(256), "text"),
            vector_key("m", Some(25), "6text"),
        ]
        .into();
        assert_eq!(keys.len(), 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_segment_loses_only_what_follows_the_damage(at in 0usize..1300, flip in 1u8.., cut in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            filled(folder.path(), 0..20);
            let path = segments(folder.path()).pop().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let frame = 8 + 32 + 20;
            prop_assert_eq!(bytes.len(), 8 + 20 * frame);
            let at = at.min(bytes.len() - 1);
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            std::fs::write(&path, &bytes).unwrap();
            let cache = Cache::open(folder.path(), true).unwrap();
            let whole = at.saturating_sub(8) / frame;
            prop_assert_eq!(cache.len(), if at < 8 { 0 } else { whole });
            for n in 0..cache.len() as u8 {
                prop_assert_eq!(cache.get(&key(n)), Some(&[f32::from(n); 5][..]));
            }
            // After the repair, a second start finds nothing bad, and what is added later is found.
            filled(folder.path(), 0..20);
            prop_assert_eq!(Cache::open(folder.path(), false).unwrap().len(), 20);
        }
    }
}
