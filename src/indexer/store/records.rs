//! Documents and chunks in SQLite.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, params};

use super::{Manifest, StoreError};

/// A document of the generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentRecord {
    /// Identity, whatever the content.
    pub id: [u8; 32],
    /// Name of the source.
    pub source: String,
    /// Path in the source.
    pub uri: String,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

/// A chunk of the generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Identity.
    pub id: [u8; 32],
    /// Position of its document.
    pub document: u32,
    /// Position of its source in the manifest.
    pub source: u16,
    /// Path of headings.
    pub heading: String,
    /// Headings that stand before the text for the models.
    pub context: String,
    /// The text.
    pub text: String,
    /// Key of its vector in the cache.
    pub vector_key: [u8; 32],
}

/// What [`Records::visit`] shows.
#[derive(Debug)]
pub enum Record {
    /// A document.
    Document(DocumentRecord),
    /// A chunk.
    Chunk(ChunkRecord),
}

/// Documents and chunks, open for reading from many threads.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Source of each chunk, by position in the manifest.
    sources: Vec<u16>,
}

pub(super) fn write(
    folder: &Path,
    path: &Path,
    documents: &[DocumentRecord],
    chunks: &[ChunkRecord],
) -> Result<(), StoreError> {
    let write = || -> rusqlite::Result<()> {
        let mut connection = Connection::open(path)?;
        // A folder without a manifest is thrown away, so SQLite's own journal would protect nothing.
        connection.pragma_update(None, "journal_mode", "OFF")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE documents (position INTEGER PRIMARY KEY, id BLOB NOT NULL, source TEXT NOT NULL, uri TEXT NOT NULL, digest BLOB NOT NULL);
             CREATE TABLE chunks (position INTEGER PRIMARY KEY, id BLOB NOT NULL, document INTEGER NOT NULL, source INTEGER NOT NULL,
                                  heading TEXT NOT NULL, context TEXT NOT NULL, text TEXT NOT NULL, vector_key BLOB NOT NULL);",
        )?;
        {
            let mut insert = transaction.prepare("INSERT INTO documents VALUES (?, ?, ?, ?, ?)")?;
            for (position, d) in documents.iter().enumerate() {
                insert.execute(params![position as i64, d.id, d.source, d.uri, d.digest])?;
            }
            let mut insert = transaction.prepare("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
            for (position, c) in chunks.iter().enumerate() {
                let row =
                    params![position as i64, c.id, c.document, c.source, c.heading, c.context, c.text, c.vector_key];
                insert.execute(row)?;
            }
        }
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)
    };
    write().map_err(|cause| StoreError::Records { path: folder.to_owned(), cause })
}

impl Records {
    pub(super) fn open(folder: &Path, path: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let records =
            Self { folder: folder.to_owned(), path: path.to_owned(), idle: Mutex::default(), sources: Vec::new() };
        let sources: Vec<u16> = records.with(|connection| {
            let mut select = connection.prepare("SELECT source FROM chunks ORDER BY position")?;
            let rows = select.query_map([], |row| row.get(0))?;
            rows.collect()
        })?;
        let known = manifest.head.sources.len();
        if sources.len() as u64 != manifest.chunks || sources.iter().any(|source| usize::from(*source) >= known) {
            return Err(StoreError::corrupt(folder, "its chunks are not those of its manifest"));
        }
        Ok(Self { sources, ..records })
    }

    /// Position in the manifest of each chunk's source.
    pub fn sources(&self) -> &[u16] {
        &self.sources
    }

    /// A chunk and the path of its document.
    ///
    /// # Errors
    /// When the chunk cannot be read.
    pub fn chunk(&self, position: u32) -> Result<(ChunkRecord, String), StoreError> {
        self.with(|connection| {
            let sql = "SELECT c.id, c.document, c.source, c.heading, c.context, c.text, c.vector_key, d.uri
                       FROM chunks c JOIN documents d ON d.position = c.document WHERE c.position = ?";
            connection.prepare_cached(sql)?.query_row([position], |row| Ok((chunk_of(row)?, row.get(7)?)))
        })
    }

    /// Shows every document, then every chunk, in their order.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn visit(&self, mut show: impl FnMut(Record)) -> Result<(), StoreError> {
        self.with(|connection| {
            let mut select = connection.prepare("SELECT id, source, uri, digest FROM documents ORDER BY position")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (id, source, uri, digest) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                show(Record::Document(DocumentRecord { id, source, uri, digest }));
            }
            let sql = "SELECT id, document, source, heading, context, text, vector_key FROM chunks ORDER BY position";
            let mut select = connection.prepare(sql)?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                show(Record::Chunk(chunk_of(row)?));
            }
            Ok(())
        })
    }

    /// Runs a query on an idle connection, or on a new one.
    fn with<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let run = || -> rusqlite::Result<T> {
            let connection = match idle {
                Some(connection) => connection,
                None => open(&self.path)?,
            };
            let result = query(&connection);
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        };
        run().map_err(|cause| StoreError::Records { path: self.folder.clone(), cause })
    }
}

fn chunk_of(row: &rusqlite::Row) -> rusqlite::Result<ChunkRecord> {
    Ok(ChunkRecord {
        id: row.get(0)?,
        document: row.get(1)?,
        source: row.get(2)?,
        heading: row.get(3)?,
        context: row.get(4)?,
        text: row.get(5)?,
        vector_key: row.get(6)?,
    })
}

/// Opens a file that nobody writes any more: without locks, which also works on a volume mounted read-only.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}
