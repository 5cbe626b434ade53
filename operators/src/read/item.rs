//! What a file gives, on its way from the thread that reads it to the stage's outputs.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int32Builder, RecordBatch, StringBuilder},
    compute::{cast, filter_record_batch},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{
    failure::Failure,
    key::row_id,
    operator::{DEFAULT_OUTPUT, Output, REJECTS_OUTPUT},
    run::OutputRows,
};
use tokio::sync::mpsc::Sender;

use super::{
    document::{self, Document, Documents, Pages},
    format::Format,
    question::{self, Question, Questions},
};
use crate::rejects::{Reject, Rejects};

const DOCUMENTS: &str = "documents";
const QUESTIONS: &str = "questions";
const EVIDENCE: &str = "evidence";
const PAGES: &str = "pages";

/// A batch is given on when it holds this many bytes of text, or this many rows.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_ROWS: usize = 1024;
/// What is handed over at a time.
const GROUP_BYTES: usize = 1 << 20;
const GROUP_ITEMS: usize = 256;

/// What a file gives, in its order.
#[derive(Debug)]
pub(super) enum Item {
    Document(Document),
    Question {
        question_id: String,
        question: Box<Question>,
        evidence: Vec<Evidence>,
    },
    Reject {
        row_id: String,
        reject: Reject,
    },
    /// Rows of a table.
    Rows(RecordBatch),
}

/// A page that shows a question's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) doc_id: String,
    /// From 1.
    pub(super) page: u32,
    pub(super) text: String,
}

/// Why reading a file ends early.
#[derive(Debug)]
pub(super) enum Halt {
    /// Nobody wants the rest.
    Gone,
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where a file's items go. It waits while too many are on their way.
pub(super) struct Sink {
    path: String,
    source: String,
    sender: Sender<Vec<Item>>,
    waiting: Vec<Item>,
    bytes: usize,
    /// `doc_id`s of which nothing is taken.
    forgotten: Vec<String>,
}

impl Sink {
    /// For the items of the file at `path` below the glob's fixed part, called `source` to people.
    pub(super) fn new(path: &str, source: &str, sender: Sender<Vec<Item>>) -> Self {
        Self { path: path.to_owned(), source: source.to_owned(), sender, waiting: Vec::new(), bytes: 0, forgotten: Vec::new() }
    }

    /// The same, which takes nothing of these documents.
    ///
    /// Their questions go with them, and pages of them that show the answer to another question. Which document a line is of
    /// that can't be read nobody knows: where any is forgotten, rejects are told without what the file says.
    pub(super) fn without(self, forgotten: Vec<String>) -> Self {
        Self { forgotten, ..self }
    }

    pub(super) fn is_forgotten(&self, doc_id: &str) -> bool {
        self.forgotten.iter().any(|forgotten| forgotten == doc_id)
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The id of what has none of its own: the file's path and the number of the line or row.
    pub(super) fn place(&self, number: u64) -> String {
        format!("{}#{number}", self.path)
    }

    pub(super) fn document(&mut self, document: Document) -> Result<(), Halt> {
        if self.is_forgotten(&document.doc_id) {
            return Ok(());
        }
        self.bytes += document.text.len() + document.metadata.as_ref().map_or(0, String::len);
        self.push(Item::Document(document))
    }

    pub(super) fn question(&mut self, question_id: String, question: Question, mut evidence: Vec<Evidence>) -> Result<(), Halt> {
        if question.doc_id.as_deref().is_some_and(|doc_id| self.is_forgotten(doc_id)) {
            return Ok(());
        }
        evidence.retain(|page| !self.is_forgotten(&page.doc_id));
        self.bytes += question.question.len() + question.answer.len();
        self.push(Item::Question { question_id, question: Box::new(question), evidence })
    }

    pub(super) fn rows(&mut self, rows: RecordBatch) -> Result<(), Halt> {
        let rows = self.remembered(rows)?;
        self.bytes += rows.get_array_memory_size();
        self.push(Item::Rows(rows))
    }

    /// A reject of the line, row or page `number`; 0 is the file itself.
    pub(super) fn reject(&mut self, number: u64, mut reject: Reject) -> Result<(), Halt> {
        if !self.forgotten.is_empty() {
            reject.raw = None;
        }
        self.bytes += reject.detail.len() + reject.raw.as_ref().map_or(0, String::len);
        let row_id = row_id("read.reject", 0, &[&self.source], 0, number);
        self.push(Item::Reject { row_id, reject })
    }

    /// The rows whose `doc_id`, if there is such a column, isn't forgotten.
    fn remembered(&self, rows: RecordBatch) -> Result<RecordBatch, Failure> {
        let Some(ids) = rows.column_by_name("doc_id").filter(|_| !self.forgotten.is_empty()) else { return Ok(rows) };
        let ids = cast(ids, &DataType::Utf8)?;
        let ids = ids.as_string::<i32>();
        let kept: BooleanArray = (0..ids.len()).map(|row| Some(ids.is_null(row) || !self.is_forgotten(ids.value(row)))).collect();
        Ok(filter_record_batch(&rows, &kept)?)
    }

    fn push(&mut self, item: Item) -> Result<(), Halt> {
        self.waiting.push(item);
        if self.bytes >= GROUP_BYTES || self.waiting.len() >= GROUP_ITEMS { self.flush() } else { Ok(()) }
    }

    /// Hands over what waits.
    pub(super) fn flush(&mut self) -> Result<(), Halt> {
        self.bytes = 0;
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(std::mem::take(&mut self.waiting)).map_err(|_| Halt::Gone)
    }
}

/// The outputs of a stage of this format.
pub(super) fn outputs(format: Format) -> Vec<Output> {
    let documents = |name: &str| Output::new(name, document::fields());
    let questions = |name: &str| Output::new(name, question::fields());
    match format {
        Format::Pdf => vec![documents(DEFAULT_OUTPUT), Output::new(PAGES, document::page_fields())],
        Format::Financebench => vec![
            documents(DOCUMENTS),
            questions(QUESTIONS),
            Output::new(EVIDENCE, evidence_fields()),
            Output::new(PAGES, document::page_fields()),
        ],
        _ if format.benchmark() => vec![documents(DOCUMENTS), questions(QUESTIONS)],
        _ if format.exam() => vec![questions(DEFAULT_OUTPUT)],
        _ => vec![documents(DEFAULT_OUTPUT)],
    }
}

fn evidence_fields() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    vec![
        text("row_id"),
        text("parent_id"),
        text("question_id"),
        text("doc_id"),
        Field::new("page", DataType::Int32, false),
        text("text"),
    ]
}

/// Turns items into batches of the outputs. Where a batch ends follows from the items alone.
pub(super) struct Batches {
    documents: Documents,
    questions: Questions,
    evidence: EvidenceRows,
    rejects: Rejects,
    pages: Pages,
    tables: Vec<RecordBatch>,
    /// Units of work that wait: rows, and for a document with pages its pages, so that one page which can't be read is a small
    /// part of its document.
    units: usize,
    schemas: Vec<(&'static str, SchemaRef)>,
    document_output: &'static str,
    question_output: &'static str,
}

impl Batches {
    pub(super) fn new(format: Format, schema: impl Fn(&str) -> Result<SchemaRef, Failure>) -> Result<Self, Failure> {
        let mut schemas = Vec::new();
        for name in [DEFAULT_OUTPUT, DOCUMENTS, QUESTIONS, EVIDENCE, PAGES] {
            if outputs(format).iter().any(|output| output.name == name) {
                schemas.push((name, schema(name)?));
            }
        }
        let (document_output, question_output) =
            if format.benchmark() { (DOCUMENTS, QUESTIONS) } else { (DEFAULT_OUTPUT, DEFAULT_OUTPUT) };
        Ok(Self {
            documents: Documents::default(),
            questions: Questions::default(),
            evidence: EvidenceRows::default(),
            rejects: Rejects::default(),
            pages: Pages::default(),
            tables: Vec::new(),
            units: 0,
            schemas,
            document_output,
            question_output,
        })
    }

    pub(super) fn push(&mut self, source: &str, item: Item) -> Result<(), Failure> {
        match item {
            Item::Document(document) => {
                self.units += document.pages.len().max(1);
                let id = self.documents.push(source, &document);
                if self.has(PAGES) { self.pages.push(&id, &document) } else { Ok(()) }
            }
            Item::Question { question_id, question, evidence } => {
                self.units += 1;
                let id = self.questions.push(&question_id, &question)?;
                self.evidence.push(&id, &question_id, &evidence)
            }
            Item::Reject { row_id, reject } => {
                self.units += 1;
                self.rejects.push(&row_id, None, &reject, 1);
                Ok(())
            }
            Item::Rows(rows) => {
                self.units += rows.num_rows();
                self.tables.push(rows);
                Ok(())
            }
        }
    }

    fn has(&self, output: &str) -> bool {
        self.schemas.iter().any(|(name, _)| *name == output)
    }

    pub(super) fn full(&self) -> bool {
        !self.tables.is_empty()
            || self.rows() >= BATCH_ROWS
            || self.documents.bytes + self.questions.bytes + self.rejects.bytes() >= BATCH_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows() == 0 && self.tables.is_empty()
    }

    fn rows(&self) -> usize {
        self.documents.rows + self.questions.rows + self.rejects.len()
    }

    /// The rows that wait, and how many units of work they are.
    pub(super) fn take(&mut self) -> Result<(Vec<OutputRows>, u64), Failure> {
        let units = std::mem::take(&mut self.units) as u64;
        let schema = |name: &str| {
            let found = self.schemas.iter().find(|(output, _)| *output == name);
            found.map(|(_, schema)| schema).ok_or_else(|| Failure::bug(format!("no output `{name}` was bound")))
        };
        let mut outputs = Vec::new();
        let mut give = |output: &'static str, rows: RecordBatch| outputs.push(OutputRows { output, rows });
        for rows in self.tables.drain(..) {
            give(DEFAULT_OUTPUT, rows);
        }
        if self.documents.rows > 0 {
            give(self.document_output, self.documents.take(schema(self.document_output)?)?);
        }
        if self.pages.rows > 0 {
            give(PAGES, self.pages.take(schema(PAGES)?)?);
        }
        if self.questions.rows > 0 {
            give(self.question_output, self.questions.take(schema(self.question_output)?)?);
        }
        if self.evidence.rows > 0 {
            give(EVIDENCE, self.evidence.take(schema(EVIDENCE)?)?);
        }
        if self.rejects.len() > 0 {
            give(REJECTS_OUTPUT, self.rejects.take()?);
        }
        Ok((outputs, units))
    }
}

#[derive(Debug, Default)]
struct EvidenceRows {
    rows: usize,
    row_id: StringBuilder,
    parent_id: StringBuilder,
    question_id: StringBuilder,
    doc_id: StringBuilder,
    page: Int32Builder,
    text: StringBuilder,
}

impl EvidenceRows {
    fn push(&mut self, parent: &str, question_id: &str, evidence: &[Evidence]) -> Result<(), Failure> {
        for (ordinal, found) in evidence.iter().enumerate() {
            let page = i32::try_from(found.page).map_err(|error| Failure::bug(error.to_string()))?;
            self.rows += 1;
            self.row_id.append_value(row_id("read.evidence", 0, &[parent], 0, ordinal as u64));
            self.parent_id.append_value(parent);
            self.question_id.append_value(question_id);
            self.doc_id.append_value(&found.doc_id);
            self.page.append_value(page);
            self.text.append_value(&found.text);
        }
        Ok(())
    }

    fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.question_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.page.finish()),
            Arc::new(self.text.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}
