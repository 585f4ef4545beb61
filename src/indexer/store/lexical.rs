//! The word index (BM25) by tantivy.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::collector::{FilterCollector, TopDocs};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::indexer::NoMergePolicy;
use tantivy::query::{BooleanQuery, Occur, Query, TermQuery};
use tantivy::schema::{FAST, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, TextAnalyzer,
};
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, TantivyError, Term};

use super::{ChunkRecord, StoreError};

const ANALYZER: &str = "words";
const TEXT: &str = "text";
const POSITION: &str = "position";
const SOURCE: &str = "source";
const WRITER_BYTES: usize = 128 << 20;
const LONGEST_WORD: usize = 80;
/// Further different words of a question are left out.
const MAX_TERMS: usize = 256;

fn schema() -> Schema {
    let mut schema = Schema::builder();
    let indexing = TextFieldIndexing::default().set_tokenizer(ANALYZER).set_index_option(IndexRecordOption::WithFreqs);
    schema.add_text_field(TEXT, TextOptions::default().set_indexing_options(indexing));
    schema.add_u64_field(POSITION, FAST);
    schema.add_u64_field(SOURCE, FAST);
    schema.build()
}

fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST_WORD))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .filter(Stemmer::new(Language::English))
        .build()
}

pub(super) fn write(folder: &Path, path: &Path, chunks: &[ChunkRecord]) -> Result<(), StoreError> {
    std::fs::create_dir_all(path).map_err(StoreError::io(path))?;
    let write = || -> tantivy::Result<()> {
        let schema = schema();
        let fields = (schema.get_field(TEXT)?, schema.get_field(POSITION)?, schema.get_field(SOURCE)?);
        let index = Index::create(MmapDirectory::open(path)?, schema, tantivy::IndexSettings::default())?;
        index.tokenizers().register(ANALYZER, analyzer());
        // One thread and one segment: chunks keep their order, and with it the order of equal scores.
        let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
        writer.set_merge_policy(Box::new(NoMergePolicy));
        for (position, chunk) in (0u64..).zip(chunks) {
            let mut document = TantivyDocument::new();
            document.add_text(fields.0, format!("{}\n{}", chunk.context, chunk.text));
            document.add_u64(fields.1, position);
            document.add_u64(fields.2, u64::from(chunk.source));
            writer.add_document(document)?;
        }
        writer.commit()?;
        let segments = index.searchable_segment_ids()?;
        if segments.len() > 1 {
            writer.merge(&segments).wait()?;
        }
        writer.garbage_collect_files().wait()?;
        writer.wait_merging_threads()
    };
    write().map_err(|cause| StoreError::Lexical { path: folder.to_owned(), cause })?;
    for entry in std::fs::read_dir(path).map_err(StoreError::io(path))? {
        let entry = entry.map_err(StoreError::io(path))?.path();
        if entry.extension().is_some_and(|ending| ending == "lock") {
            std::fs::remove_file(&entry).map_err(StoreError::io(&entry))?;
        }
    }
    Ok(())
}

/// The word index of a generation.
pub struct Lexical {
    folder: PathBuf,
    reader: IndexReader,
    text: tantivy::schema::Field,
}

impl std::fmt::Debug for Lexical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lexical").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Lexical {
    pub(super) fn open(folder: &Path, path: &Path) -> Result<Self, StoreError> {
        let open = || -> tantivy::Result<_> {
            let index = Index::open(Sealed(MmapDirectory::open(path)?))?;
            index.tokenizers().register(ANALYZER, analyzer());
            let text = index.schema().get_field(TEXT)?;
            Ok((index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?, text))
        };
        let (reader, text) = open().map_err(|cause| StoreError::Lexical { path: folder.to_owned(), cause })?;
        Ok(Self { folder: folder.to_owned(), reader, text })
    }

    /// Positions and BM25 scores of the chunks that share words with a question, the best first, the earlier one first
    /// when they are equal. `allowed` takes a source's position in the manifest.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn best(
        &self,
        question: &str,
        count: usize,
        allowed: impl Fn(u16) -> bool + Clone + Send + Sync + 'static,
    ) -> Result<Vec<(u32, f32)>, StoreError> {
        self.search(question, count, allowed).map_err(|cause| StoreError::Lexical { path: self.folder.clone(), cause })
    }

    fn search(
        &self,
        question: &str,
        count: usize,
        allowed: impl Fn(u16) -> bool + Clone + Send + Sync + 'static,
    ) -> Result<Vec<(u32, f32)>, TantivyError> {
        // Words of a question are taken as they are: a query language would give errors on quotes and colons.
        let mut words = Vec::new();
        let mut analyzer = analyzer();
        let mut stream = analyzer.token_stream(question);
        while let Some(token) = stream.next() {
            if words.len() < MAX_TERMS && !words.contains(&token.text) {
                words.push(token.text.clone());
            }
        }
        drop(stream);
        if words.is_empty() || count == 0 {
            return Ok(Vec::new());
        }
        let terms = words.iter().map(|word| {
            let term = Term::from_field_text(self.text, word);
            let query: Box<dyn Query> = Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
            (Occur::Should, query)
        });
        let query = BooleanQuery::new(terms.collect());
        let searcher = self.reader.searcher();
        let allowed = move |source: u64| u16::try_from(source).is_ok_and(&allowed);
        let top = TopDocs::with_limit(count).order_by_score();
        let found = searcher.search(&query, &FilterCollector::new(SOURCE.to_owned(), allowed, top))?;
        let mut best = Vec::with_capacity(found.len());
        for (score, address) in found {
            let positions = searcher.segment_reader(address.segment_ord).fast_fields().u64(POSITION)?;
            if let Some(position) = positions.first(address.doc_id) {
                best.push((u32::try_from(position).unwrap_or(u32::MAX), score));
            }
        }
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(best)
    }
}

/// A directory that nobody writes any more. tantivy's own lock is a file, which a volume mounted read-only refuses.
#[derive(Clone, Debug)]
struct Sealed(MmapDirectory);

fn sealed() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a generation is never written to")
}

impl Directory for Sealed {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.0.get_file_handle(path)
    }
    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        Err(DeleteError::IoError { io_error: Arc::new(sealed()), filepath: path.to_owned() })
    }
    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.0.exists(path)
    }
    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        Err(OpenWriteError::IoError { io_error: Arc::new(sealed()), filepath: path.to_owned() })
    }
    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.0.atomic_read(path)
    }
    fn atomic_write(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Err(sealed())
    }
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        Ok(DirectoryLock::from(Box::new(())))
    }
    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}
