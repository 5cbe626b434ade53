//! Near duplicates: a task that reads the table twice, to index it and to write it.

use std::{path::Path, sync::Arc};

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray};
use async_trait::async_trait;
use futures::StreamExt;
use ingrain_engine::{
    failure::Failure,
    operator::DEFAULT_OUTPUT,
    run::{OutputRows, Table, Task, TaskContext},
};
use tokio::sync::mpsc;

use super::{
    PORT, REMOVED, Schemas,
    index::{Compared, Index},
    minhash::Bands,
    ngrams::Ngram,
    search::{Removal, removals},
};
use crate::columns::blocking;

/// Rows with fewer words than this on average are compared by characters.
const FEW_WORDS: u64 = 50;
/// About how many bytes a word and the space behind it have.
const BYTES_OF_A_WORD: u64 = 6;

/// The work of a `dedup` with a `similarity`.
#[derive(Debug)]
pub(super) struct Near {
    pub(super) column: String,
    pub(super) within: Option<String>,
    pub(super) similarity: f64,
    pub(super) ngram: Option<Ngram>,
}

#[async_trait]
impl Task for Near {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let table = context.table(PORT)?.clone();
        let schemas = Schemas { kept: context.schema(DEFAULT_OUTPUT)?, removed: context.schema(REMOVED)? };
        fits(table.rows(), Bands::of(self.similarity), context.environment.memory)?;
        context.counters.say("hashing rows");
        let path = context.scratch().join("texts");
        let index = match self.ngram {
            Some(ngram) => self.index(&table, &path, ngram).await?,
            None => {
                // A guess from the size of whole rows is nearly always right, and spares a pass over the table.
                let guess = by_length(table.manifest().content_bytes() / BYTES_OF_A_WORD, table.rows());
                let index = self.index(&table, &path, guess).await?;
                let ngram = by_length(index.words(), index.entries.len() as u64);
                if ngram == guess {
                    index
                } else {
                    drop(index);
                    self.index(&table, &path, ngram).await?
                }
            }
        };
        context.counters.say("comparing rows");
        let similarity = self.similarity;
        let (index, removals) = blocking(move || {
            let mut index = index;
            let removals = removals(&mut index, similarity)?;
            Ok::<_, Failure>((index, removals))
        })
        .await??;
        context.counters.say("writing rows");
        let mut verdict = Verdict { index, removals, written: 0, removed: 0 };
        let mut batches = ahead(&table);
        while let Some(batch) = batches.recv().await {
            for output in verdict.divide(&batch?, &schemas)? {
                context.write(output.output, output.rows).await?;
            }
        }
        all_read(&table, verdict.written as u64)
    }
}

/// Checks that an index of that many rows fits into the memory that a run may use.
pub(super) fn fits(rows: u64, bands: Bands, memory: usize) -> Result<(), Failure> {
    let need = rows.saturating_mul(4 * bands.count as u64 + 130);
    if need <= memory as u64 {
        return Ok(());
    }
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Failure::data(format!(
        "finding near duplicates among {rows} rows takes {} MiB, and `--memory` allows {}",
        mebibytes(need),
        mebibytes(memory as u64)
    ))
    .hint("raise `--memory`, or divide the table before"))
}

/// Words for rows that are long on average, characters for short ones.
fn by_length(words: u64, rows: u64) -> Ngram {
    if words >= FEW_WORDS * rows { Ngram::Words(5) } else { Ngram::Characters(5) }
}

impl Near {
    async fn index(&self, table: &Table, path: &Path, ngram: Ngram) -> Result<Index, Failure> {
        let compared =
            Compared { column: self.column.clone(), within: self.within.clone(), ngram, bands: Bands::of(self.similarity) };
        let rows = usize::try_from(table.rows()).map_err(|error| Failure::bug(error.to_string()))?;
        let mut index = Index::create(path, compared, rows)?;
        let (mut batches, table) = (ahead(table), table.clone());
        blocking(move || {
            while let Some(batch) = batches.blocking_recv() {
                index.add(&batch?)?;
            }
            all_read(&table, u64::from(index.rows()))?;
            Ok(index)
        })
        .await?
    }
}

/// The rows of a table in their order, decoded ahead of their use.
fn ahead(table: &Table) -> mpsc::Receiver<Result<RecordBatch, Failure>> {
    let (sender, receiver) = mpsc::channel(2);
    let table = table.clone();
    tokio::spawn(async move {
        match table.stream().await {
            Ok(mut batches) => {
                while let Some(batch) = batches.next().await {
                    if sender.send(batch.map_err(Failure::from)).await.is_err() {
                        return;
                    }
                }
            }
            // A receiver that is gone wants no failure either.
            Err(failure) => drop(sender.send(Err(failure)).await),
        }
    });
    receiver
}

/// Rows are known by their place: one too few would be another's.
fn all_read(table: &Table, rows: u64) -> Result<(), Failure> {
    match rows == table.rows() {
        true => Ok(()),
        false => Err(Failure::bug(format!("{rows} of {} rows were read", table.rows()))),
    }
}

/// What becomes of the table's rows, batch after batch.
#[derive(Debug)]
struct Verdict {
    index: Index,
    /// By position.
    removals: Vec<Removal>,
    /// Rows of the batches so far.
    written: usize,
    /// Rows of these that go.
    removed: usize,
}

impl Verdict {
    fn divide(&mut self, batch: &RecordBatch, schemas: &Schemas) -> Result<Vec<OutputRows>, Failure> {
        let start = self.written;
        self.written += batch.num_rows();
        let left = &self.removals[self.removed..];
        let here = &left[..left.partition_point(|removal| (removal.position as usize) < self.written)];
        self.removed += here.len();
        let mut stays = vec![true; batch.num_rows()];
        for removal in here {
            stays[removal.position as usize - start] = false;
        }
        let kept_ids: ArrayRef = Arc::new(StringArray::from_iter_values(here.iter().map(|removal| self.index.id(removal.kept))));
        let similarities: ArrayRef = Arc::new(Float64Array::from_iter_values(here.iter().map(|removal| removal.similarity)));
        schemas.divide(batch, &BooleanArray::from(stays), kept_ids, similarities)
    }
}
