//! Reads files as documents, exam questions or benchmarks.

mod content;
mod csv;
mod document;
mod financebench;
mod format;
mod html;
mod item;
mod line;
mod longhealth;
mod markdown;
mod parquet;
mod pdf;
mod quality;
mod question;
mod quiet;
mod reading;
mod table;
mod text;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use ingrain_engine::operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Ports, Source};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::format::{Columns, Format};
use self::{reading::Reading, table::Table};

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Read>("read", 2).unkeyed(&[
    ("path", "the files that it finds are in the key, by path, size and state"),
    ("exclude", "the files that are left are in the key"),
]);

/// Reads files as documents, as the questions of an exam, as a benchmark, or as tables.
///
/// Formats of documents:
/// - `text`: a file is a document. A short first line that doesn't end like a sentence, with an empty line behind it, is
///   the title and no part of the text.
/// - `markdown`: a file is a document; marks go, their text stays. Front matter is metadata: lists and mappings as YAML has
///   them, all else as text. The title is the front matter's, else the first heading, which is no part of the text where it
///   opens the document.
/// - `html`: a file is a document: its readable content, without navigation and other boilerplate.
/// - `pdf`: a file is a document: the text of its pages, an empty line between them; the metadata's `pages` lists each page
///   with its span in the text, as `[page, byte_start, byte_end]`, pages counted from 1. Rows of a table stay lines, their
///   cells set apart by tabs. Output `pages` has the same spans as rows, so that a query can say which pages a chunk is from.
/// - `jsonl`: a line is a document: an object with `text`, and perhaps `title` and `doc_id`; `columns` maps other names.
///   What else it holds is metadata.
/// - `csv`: a row is a document likewise. The first line names the columns; fields are set apart by commas, in a file called
///   `.tsv` by tabs, and quoted as RFC 4180 says; a quote inside an unquoted field stays as it is. Empty lines are left out.
/// - `parquet`: a row is a document likewise; columns of every kind of text will do, for `doc_id` integers, too.
/// - `auto`: by file name: `.txt`, `.md`, `.markdown`, `.html`, `.htm`, `.pdf`, `.jsonl`, `.csv`, `.tsv`, `.parquet`. Any other
///   stops the stage.
///
/// Formats of exams, a line of JSON each:
/// - `multiple_choice`: `question`, `options`, `answer` (the text of an option), and perhaps `question_id`, `doc_id`, `hard`.
/// - `open_ended`: `question`, `answer`, and perhaps `answers` (other accepted forms), `question_id`, `doc_id`, `hard`.
///
/// Formats of benchmarks, as published:
/// - `quality`: QuALITY's `htmlstripped` files. A document is an article (`doc_id` its `article_id`), though it stands in two
///   lines; questions that are `difficult` are `hard`.
/// - `longhealth`: `benchmark_v5.json`. A document is a patient, the letters joined; metadata has `name`, `birthday` and
///   `diagnosis`, the questions' too, and where each letter stands.
/// - `financebench`: `financebench_open_source.jsonl`. A document is a filing (`doc_id` its `doc_name`): the whole pages that its
///   questions' evidence is from, with spans as in a PDF.
///
/// And `table`: the rows of Parquet files with all their columns, whatever they are. The first file, by path, decides which
/// these are; every other one must have the same. All kinds of text become text, all kinds of list lists, and so on; `columns`
/// gives them other names, such as those that an operator asks for. A column `row_id` has to be 32 hex digits, as in tables that
/// `export` writes; without one, an id is made from file and row. A file that can't be read whole fails the stage.
///
/// A file whose name ends in `.gz` or `.zst` is decompressed, whatever the format. Only a table isn't compressed as a whole:
/// Parquet compresses its columns itself.
///
/// A document's `doc_id` is its file's path below the fixed part of the glob; in JSONL, CSV and Parquet its own, or else
/// `path#line` (Parquet: `path#row`). The same one twice is an error, and so is a CSV or Parquet file that lacks `text` or a
/// column that `columns` names, or has a Parquet column of another type there. Text must be UTF-8.
///
/// What can't be read is a reject and stops nothing: `not_utf8`, `empty` (no text; a file without a line or row), `bad_json`,
/// `bad_csv` (a quote that isn't closed, or another number of fields than the header has), `bad_parquet`, `wrong_type`,
/// `bad_question`, `bad_document` (a QuALITY article with two texts), `too_large` (a line or CSV row over 64 MiB, a file of
/// Markdown or HTML over 64 MiB, of text or PDF over 256 MiB, a page of HTML nested over 4,096 deep, a PDF over 10,000 pages, a
/// compressed file that grows more than a thousandfold), `truncated` (a compressed file that is cut off or broken: rows that
/// came whole before it stay), `encrypted` (a PDF with a password), `bad_pdf`,
/// `bad_page` (a page of a PDF), `no_text` (a page without text, such as a scan), `unreadable` (a decoder gave up). For
/// `min_yield`, each page of a PDF counts as one.
///
/// # Ports
/// None.
///
/// # Outputs
/// - default, documents: `doc_id`, `title` (nullable), `text`, `source` (the file, relative to the pipeline file or the
///   bucket), `metadata` (JSON text, nullable).
/// - default, tables: `row_id` and the files' columns.
/// - default, exams: `question_id`, `doc_id` (nullable), `question`, `options` (list, nullable), `answer`, `answers` (list),
///   `hard` (nullable), `metadata` (JSON text of all other fields, nullable).
/// - `documents` and `questions`, benchmarks, which have no default: columns as above.
/// - `pages` (`pdf`, `financebench`): `doc_id`, `page` (from 1), `byte_start` and `byte_end` (where it stands in the document's
///   `text`).
/// - `evidence` (`financebench`): `question_id`, `doc_id`, `page` (from 1; the file counts from 0), `text`.
///
/// # Example
/// ```yaml
/// documents: { op: read, path: "handbook/**/*.{md,html,txt,pdf}", exclude: "drafts/**" }
/// articles:  { op: read, path: "articles/*.csv.gz", columns: { text: body, title: headline } }
/// exam:      { op: read, path: exam.jsonl, format: multiple_choice }
/// filings:   { op: read, path: "filings/*.pdf", format: pdf }
/// judged:    { op: read, path: "judged/*.parquet", format: table, columns: { question: prompt, answer: reply } }
/// bench:     { op: read, path: financebench_open_source.jsonl, format: financebench }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// The files: a path or several, local, `s3://` or `hf://datasets/owner/name@revision/`, with `*`, `**`, `?`, `[...]` and
    /// `{a,b}`. Relative to the pipeline file. Local folders whose names begin with a dot, such as `.ingrain` and `.git`, are
    /// passed over, unless a part of the path that begins with a dot matches them.
    #[serde(deserialize_with = "one_or_several")]
    #[schemars(schema_with = "texts")]
    pub path: Vec<String>,
    /// Files to leave out: a glob or several, relative to the fixed part of `path`. Default none.
    #[serde(default, deserialize_with = "one_or_several")]
    #[schemars(schema_with = "texts")]
    pub exclude: Vec<String>,
    /// What the files hold. Default `auto`.
    #[serde(default)]
    pub format: Format,
    /// For JSONL, CSV and Parquet: our column (`text`, `title`, `doc_id`) to the field that it comes from; for tables, any name
    /// to a column of the files. Default: the same names.
    #[serde(default)]
    pub columns: Columns,
}

/// Accepts a text where a list of texts is meant, so that both ways of writing it are one config.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;
    impl<'de> serde::de::Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = items.next_element()? {
                texts.push(text);
            }
            Ok(texts)
        }
    }
    deserializer.deserialize_any(Texts)
}

fn texts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
    })
}

impl Operator for Read {
    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        if self.path.is_empty() {
            mistakes.push(Invalid::new("/path", "names no file").hint("`path: \"docs/**/*.md\"`"));
        }
        if !self.columns.0.is_empty() && !self.format.has_columns() {
            mistakes.push(
                Invalid::new("/columns", "only tables, and documents in JSONL, CSV and Parquet, have columns to map")
                    .hint("leave `columns` out"),
            );
        }
        let free = self.format == Format::Table;
        for ours in self.columns.0.keys().filter(|ours| !free && !matches!(ours.as_str(), "text" | "title" | "doc_id")) {
            mistakes.push(
                Invalid::new(&format!("/columns/{ours}"), format!("documents have no column `{ours}`"))
                    .hint("our columns are `text`, `title` and `doc_id`; all other fields go into `metadata`"),
            );
        }
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        for (ours, theirs) in &self.columns.0 {
            if let Some(other) = taken.insert(theirs, ours) {
                mistakes.push(Invalid::new(&format!("/columns/{ours}"), format!("`{theirs}` is `{other}` already")));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(match self.table(inputs)? {
            Some(table) => vec![Output::new(DEFAULT_OUTPUT, table.fields())],
            None => item::outputs(self.format),
        })
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        // Where it can't be had, binding has said so, and no file is read.
        let table = self.table(inputs).unwrap_or_default();
        Lowering::Rows { query: None, stream: Some(Arc::new(Reading { settings: self.clone(), table })) }
    }

    fn source(&self) -> Option<Source> {
        let columns_in_files = self.format == Format::Table;
        Some(Source { paths: self.path.clone(), names: &[], exclude: self.exclude.clone(), columns_in_files })
    }
}

impl Read {
    /// What rows are made of, where the files are tables.
    fn table(&self, inputs: &Inputs) -> Result<Option<Table>, Vec<Invalid>> {
        if self.format != Format::Table {
            return Ok(None);
        }
        let first = inputs.source.as_ref().ok_or_else(|| vec![Invalid::new("/path", "nobody looked at the files' columns")])?;
        Table::of(first, &self.columns).map(Some)
    }
}
