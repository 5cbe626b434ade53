//! The rows of a table while near duplicates are searched: a few numbers each in memory, their texts in a file.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use ingrain_engine::failure::Failure;
use rayon::{
    iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use super::{
    minhash::{Bands, Sketch},
    ngrams::{Grams, Ngram, hash, word_count},
};
use crate::columns::{column, text};

/// A row whose column isn't null.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Its place in the table.
    pub(super) position: u32,
    /// Rows are compared if this is equal.
    pub(super) group: u32,
    /// Where its text begins in the file.
    start: u64,
}

/// What rows are compared by.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub(super) column: String,
    pub(super) within: Option<String>,
    pub(super) ngram: Ngram,
    pub(super) bands: Bands,
}

/// The rows read so far. Numbers of entries count from 0 in the order of the table, nulls left out.
#[derive(Debug)]
pub(super) struct Index {
    compared: Compared,
    /// Rows read, with nulls.
    rows: u32,
    words: u64,
    pub(super) entries: Vec<Entry>,
    /// A hash for each band, entry after entry.
    pub(super) hashes: Vec<u32>,
    /// The `row_id` of each entry: one text, and where each ends in it.
    ids: String,
    id_ends: Vec<usize>,
    /// Numbers of the values of `within`, from 1; null is 0.
    groups: HashMap<String, u32>,
    path: PathBuf,
    texts: BufWriter<File>,
    end: u64,
}

impl Index {
    /// An index for up to `rows` rows, which keeps texts in the file at `path`, made anew.
    ///
    /// # Errors
    /// When the file can't be made.
    pub(super) fn create(path: &Path, compared: Compared, rows: usize) -> Result<Self, Failure> {
        let texts = BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(Self {
            entries: Vec::with_capacity(rows),
            hashes: Vec::with_capacity(rows * compared.bands.count),
            id_ends: Vec::with_capacity(rows),
            ids: String::with_capacity(rows * 32),
            compared,
            rows: 0,
            words: 0,
            groups: HashMap::new(),
            path: path.to_owned(),
            texts,
            end: 0,
        })
    }

    /// Adds the next rows of the table.
    ///
    /// # Errors
    /// When there are more than 2^32 - 2 rows, or the file can't be written.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let (ids, texts) = (text(batch, "row_id")?, text(batch, &self.compared.column)?);
        let within = self.compared.within.as_ref().map(|within| as_text(column(batch, within)?)).transpose()?;
        let within = within.as_ref().map(|within| within.as_string::<i32>());
        let mut salted = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let position = self.rows;
            self.rows = position.checked_add(1).filter(|rows| *rows < u32::MAX).ok_or_else(|| {
                Failure::data("near duplicates are found in up to 4,294,967,294 rows").hint("divide the table before")
            })?;
            if texts.is_null(row) {
                continue;
            }
            let value = within.filter(|within| within.is_valid(row)).map(|within| within.value(row));
            let (group, salt) = self.group(value)?;
            self.entries.push(Entry { position, group, start: self.end });
            self.ids.push_str(ids.value(row));
            self.id_ends.push(self.ids.len());
            self.texts.write_all(texts.value(row).as_bytes())?;
            self.end += texts.value(row).len() as u64;
            salted.push((row, salt));
        }
        let Compared { ngram, bands, .. } = self.compared;
        let before = self.hashes.len();
        self.hashes.resize(before + salted.len() * bands.count, 0);
        let rows = self.hashes[before..].par_chunks_exact_mut(bands.count).zip(salted.par_iter()).with_min_len(32);
        let words = rows.map_init(
            || (Grams::new(ngram), Sketch::new(bands), Vec::new()),
            |(grams, sketch, elements), (hashes, (row, salt))| {
                grams.fill(texts.value(*row), elements);
                sketch.bands(elements, *salt, hashes);
                word_count(texts.value(*row))
            },
        );
        self.words += words.sum::<u64>();
        Ok(())
    }

    /// The number of a value of `within`, and what its rows' bands are salted with: the value itself decides, so that which
    /// rows meet by chance doesn't depend on the order of the rows either.
    fn group(&mut self, value: Option<&str>) -> Result<(u32, u64), Failure> {
        let Some(value) = value else { return Ok((0, 0)) };
        let number = match self.groups.get(value) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.groups.len() + 1).map_err(|error| Failure::bug(error.to_string()))?;
                self.groups.insert(value.to_owned(), number);
                number
            }
        };
        Ok((number, hash(value.as_bytes())))
    }

    /// How many rows were added, with nulls.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// How many words the entries have.
    pub(super) fn words(&self) -> u64 {
        self.words
    }

    /// Bands an entry has.
    pub(super) fn bands(&self) -> usize {
        self.compared.bands.count
    }

    /// The `row_id` of an entry.
    pub(super) fn id(&self, entry: u32) -> &str {
        let entry = entry as usize;
        let start = if entry == 0 { 0 } else { self.id_ends[entry - 1] };
        &self.ids[start..self.id_ends[entry]]
    }

    /// Makes what was written so far readable by [`Self::reader`].
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.texts.flush()?)
    }

    /// A reader of the texts.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub(super) fn reader(&self) -> Result<TextReader, Failure> {
        Ok(TextReader { file: File::open(&self.path)?, buffer: Vec::new(), grams: Grams::new(self.compared.ngram) })
    }

    /// The different n-grams of an entry's text, sorted.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(super) fn grams(&self, entry: u32, reader: &mut TextReader) -> Result<Vec<u64>, Failure> {
        let start = self.entries[entry as usize].start;
        let end = self.entries.get(entry as usize + 1).map_or(self.end, |next| next.start);
        let bytes = usize::try_from(end - start).map_err(|error| Failure::bug(error.to_string()))?;
        reader.buffer.resize(bytes, 0);
        reader.file.seek(SeekFrom::Start(start))?;
        reader.file.read_exact(&mut reader.buffer)?;
        let text = std::str::from_utf8(&reader.buffer).map_err(|error| Failure::bug(error.to_string()))?;
        Ok(reader.grams.set(text))
    }
}

/// Reads texts back; each thread has its own, since it has a place in the file.
#[derive(Debug)]
pub(super) struct TextReader {
    file: File,
    buffer: Vec<u8>,
    grams: Grams,
}

fn as_text(column: &ArrayRef) -> Result<ArrayRef, Failure> {
    if column.data_type() == &DataType::Utf8 { Ok(column.clone()) } else { Ok(cast(column, &DataType::Utf8)?) }
}
