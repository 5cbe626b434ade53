//! Reads files as documents or exam questions.

mod document;
mod html;
mod line;
mod markdown;
mod question;
mod text;

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key::row_id,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Ports, REJECTS_OUTPUT, Source},
    run::{OutputRows, OutputStream, RowStream, SourceFile, StreamContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use self::{document::Documents, line::Lines, question::Questions};
use crate::{
    rejects::{Reject, Rejects},
    route::failed,
};

/// A batch is given on when it holds this many bytes of text, or this many rows.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_ROWS: usize = 1024;
/// Files that are opened ahead, so that a bucket's latency isn't paid for each.
const AHEAD: usize = 4;
/// The largest file that is one document.
const LARGEST: u64 = 1 << 30;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Read>("read", 1).unkeyed(&[
    ("path", "the files that it finds are in the key, by path, size and state"),
    ("exclude", "the files that are left are in the key"),
]);

/// Reads files as documents, or as the questions of an exam.
///
/// Formats of documents:
/// - `text`: a file is a document. A short first line that doesn't end like a sentence, with an empty line behind it, is
///   the title and no part of the text.
/// - `markdown`: a file is a document; marks go, their text stays. Front matter is metadata. The title is the front
///   matter's, else the first heading, which is no part of the text where it opens the document.
/// - `html`: a file is a document: its readable content, without navigation and other boilerplate.
/// - `jsonl`: a line is a document: an object with `text`, and perhaps `title` and `doc_id`; `columns` maps other names.
///   What else it holds is metadata.
/// - `auto`: by file name: `.txt`, `.md`, `.markdown`, `.html`, `.htm`, `.jsonl`. Any other stops the stage.
///
/// Formats of exams, a line of JSON each:
/// - `multiple_choice`: `question`, `options`, `answer` (the text of an option), and perhaps `question_id`, `doc_id`, `hard`.
/// - `open_ended`: `question`, `answer`, and perhaps `answers` (other accepted forms), `question_id`, `doc_id`, `hard`.
///
/// A document's `doc_id` is its file's path below the fixed part of the glob; in JSONL its own, or else `path#line`. The
/// same one twice is an error. Text must be UTF-8. A file or line that can't be read is a reject and stops nothing:
/// `not_utf8`, `empty`, `bad_json`, `wrong_type`, `bad_question`, `too_large` (a line over 64 MiB, a document over 1 GiB, a
/// page nested over 4,096 deep).
///
/// # Ports
/// None.
///
/// # Outputs
/// - default, documents: `doc_id`, `title` (nullable), `text`, `source` (the file, relative to the pipeline file or the
///   bucket), `metadata` (JSON text, nullable).
/// - default, exams: `question_id`, `doc_id` (nullable), `question`, `options` (list, nullable), `answer`, `answers` (list),
///   `hard` (nullable), `metadata` (JSON text of all other fields, nullable).
///
/// # Example
/// ```yaml
/// documents: { op: read, path: "handbook/**/*.{md,html,txt}", exclude: "drafts/**" }
/// articles:  { op: read, path: articles.jsonl, columns: { text: body, title: headline } }
/// exam:      { op: read, path: exam.jsonl, format: multiple_choice }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// The files: a path or several, local or `s3://`, with `*`, `**`, `?`, `[...]` and `{a,b}`. Relative to the pipeline
    /// file.
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
    /// For JSONL: our column (`text`, `title`, `doc_id`) to the field that it comes from. Default: the same names.
    #[serde(default)]
    pub columns: Columns,
}

/// What files hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Documents, by file name.
    #[default]
    Auto,
    /// Plain text, a document a file.
    Text,
    /// Markdown, a document a file.
    Markdown,
    /// HTML, a document a file.
    Html,
    /// Not built yet.
    Pdf,
    /// JSON objects, a document a line.
    Jsonl,
    /// Not built yet.
    Csv,
    /// Not built yet.
    Parquet,
    /// Not built yet.
    Table,
    /// Questions with options, one a line.
    MultipleChoice,
    /// Questions with a free answer, one a line.
    OpenEnded,
    /// Not built yet.
    Quality,
    /// Not built yet.
    Longhealth,
    /// Not built yet.
    Financebench,
}

/// Our column to the field that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Columns(BTreeMap<String, String>);

impl<const N: usize> From<[(String, String); N]> for Columns {
    fn from(columns: [(String, String); N]) -> Self {
        Self(columns.into())
    }
}

impl Columns {
    /// The field that our column `ours` comes from.
    fn theirs<'a>(&'a self, ours: &'a str) -> &'a str {
        self.0.get(ours).map_or(ours, String::as_str)
    }
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

impl Format {
    /// The name in a pipeline file of a format that isn't built yet.
    fn planned(self) -> Option<&'static str> {
        match self {
            Self::Pdf => Some("pdf"),
            Self::Csv => Some("csv"),
            Self::Parquet => Some("parquet"),
            Self::Table => Some("table"),
            Self::Quality => Some("quality"),
            Self::Longhealth => Some("longhealth"),
            Self::Financebench => Some("financebench"),
            _ => None,
        }
    }

    fn exam(self) -> bool {
        matches!(self, Self::MultipleChoice | Self::OpenEnded)
    }

    /// The format of the file at `path`, in a stage of this format.
    fn of_file(self, path: &str) -> Result<Self, Failure> {
        if self != Self::Auto {
            return Ok(self);
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some("txt") => Ok(Self::Text),
            Some("md" | "markdown") => Ok(Self::Markdown),
            Some("html" | "htm") => Ok(Self::Html),
            Some("jsonl") => Ok(Self::Jsonl),
            _ => Err(Failure::data(format!("the format of `{path}` can't be told from its name")).hint(
                "known names end in `.txt`, `.md`, `.markdown`, `.html`, `.htm`, `.jsonl`; set `format`, narrow `path`, or \
                 `exclude` the file",
            )),
        }
    }
}

impl Operator for Read {
    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn bind(&self, _: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        if self.path.is_empty() {
            mistakes.push(Invalid::new("/path", "names no file").hint("`path: \"docs/**/*.md\"`"));
        }
        if let Some(name) = self.format.planned() {
            mistakes.push(
                Invalid::new("/format", format!("reading `{name}` is not built yet"))
                    .hint("`auto`, `text`, `markdown`, `html`, `jsonl`, `multiple_choice` and `open_ended` are"),
            );
        } else if !self.columns.0.is_empty() && !matches!(self.format, Format::Auto | Format::Jsonl) {
            mistakes.push(Invalid::new("/columns", "only JSONL documents have columns to map").hint("leave `columns` out"));
        }
        for ours in self.columns.0.keys().filter(|ours| !matches!(ours.as_str(), "text" | "title" | "doc_id")) {
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
        let fields = if self.format.exam() { question::fields() } else { document::fields() };
        Ok(vec![Output::new(DEFAULT_OUTPUT, fields)])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Rows { query: None, stream: Some(Arc::new(Reading(self.clone()))) }
    }

    fn source(&self) -> Option<Source> {
        Some(Source { paths: self.path.clone(), exclude: self.exclude.clone() })
    }
}

struct Reading(Read);

impl RowStream for Reading {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let schema = match context.schema(DEFAULT_OUTPUT) {
            Ok(schema) => schema,
            Err(failure) => return failed(failure),
        };
        let opening = context.clone();
        let files = rows
            .map(|batch| SourceFile::of_rows(&batch?))
            .map_ok(|files| stream::iter(files.into_iter().map(Ok::<_, Failure>)))
            .try_flatten()
            .map_ok(move |file| {
                let context = opening.clone();
                async move {
                    let bytes = context.open(&file).await?;
                    Ok((file.path, file.source, bytes))
                }
            })
            .try_buffered(AHEAD)
            .boxed();
        let reader = Reader::new(self.0.clone(), schema);
        stream::try_unfold((reader, files, context), |(mut reader, mut files, context)| async move {
            loop {
                if !reader.read()? {
                    match files.next().await {
                        Some(file) => {
                            let (path, source, bytes) = file?;
                            reader.open(&path, &source, bytes)?;
                            continue;
                        }
                        None if reader.is_empty() => return Ok::<_, Failure>(None),
                        None => {}
                    }
                }
                context.count_units(reader.units());
                let outputs = reader.take()?;
                return Ok(Some((stream::iter(outputs.into_iter().map(Ok)), (reader, files, context))));
            }
        })
        .try_flatten()
        .boxed()
    }
}

/// Turns files into batches, one file after the other.
struct Reader {
    settings: Read,
    schema: SchemaRef,
    file: Option<Open>,
    documents: Documents,
    questions: Questions,
    rejects: Rejects,
}

/// The file that is being read.
struct Open {
    path: String,
    source: String,
    format: Format,
    content: Content,
}

enum Content {
    Whole(Bytes),
    Lines(Lines),
}

impl Reader {
    fn new(settings: Read, schema: SchemaRef) -> Self {
        Self {
            settings,
            schema,
            file: None,
            documents: Documents::default(),
            questions: Questions::default(),
            rejects: Rejects::default(),
        }
    }

    fn open(&mut self, path: &str, source: &str, bytes: Bytes) -> Result<(), Failure> {
        let format = self.settings.format.of_file(path)?;
        let content = match format {
            Format::Jsonl | Format::MultipleChoice | Format::OpenEnded => Content::Lines(Lines::new(bytes)),
            _ => Content::Whole(bytes),
        };
        self.file = Some(Open { path: path.to_owned(), source: source.to_owned(), format, content });
        Ok(())
    }

    /// Reads until a batch is full, which is `true`, or the file is at its end.
    fn read(&mut self) -> Result<bool, Failure> {
        let Some(mut file) = self.file.take() else { return Ok(false) };
        match &mut file.content {
            Content::Whole(bytes) => {
                let too_large = bytes.len() as u64 > LARGEST;
                let parsed = if too_large {
                    Err(Reject::new(
                        "too_large",
                        format!("`{}` has {} bytes; a document has at most {LARGEST}", file.source, bytes.len()),
                    ))
                } else {
                    document::of_file(file.format, &file.source, bytes)
                };
                match parsed {
                    Ok(parsed) => self.documents.push(&file.path, &file.source, &parsed)?,
                    Err(reject) => self.reject(&file.source, 0, &reject),
                }
                Ok(self.full())
            }
            Content::Lines(lines) => {
                for (number, line) in lines.by_ref() {
                    if let Err(reject) = self.line(&file.path, &file.source, file.format, number, &line)? {
                        let detail = format!("`{}` line {number}: {}", file.source, reject.detail);
                        let reject = Reject { detail, ..reject }.raw(&String::from_utf8_lossy(&line[..line.len().min(1 << 16)]));
                        self.reject(&file.source, number, &reject);
                    }
                    if self.full() {
                        self.file = Some(file);
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    fn line(
        &mut self,
        path: &str,
        source: &str,
        format: Format,
        number: u64,
        line: &[u8],
    ) -> Result<Result<(), Reject>, Failure> {
        let object = match line::object(line) {
            Ok(object) => object,
            Err(reject) => return Ok(Err(reject)),
        };
        let place = || format!("{path}#{number}");
        if format.exam() {
            match question::of_object(object, format == Format::MultipleChoice) {
                Ok(question) => self.questions.push(&question.question_id.clone().unwrap_or_else(place), &question)?,
                Err(reject) => return Ok(Err(reject)),
            }
        } else {
            match document::of_object(object, &self.settings.columns) {
                Ok((doc_id, parsed)) => self.documents.push(&doc_id.unwrap_or_else(place), source, &parsed)?,
                Err(reject) => return Ok(Err(reject)),
            }
        }
        Ok(Ok(()))
    }

    fn reject(&mut self, source: &str, line: u64, reject: &Reject) {
        self.rejects.push(&row_id("read.reject", 0, &[source], 0, line), None, reject, 1);
    }

    fn full(&self) -> bool {
        self.units() >= BATCH_ROWS as u64 || self.documents.bytes + self.questions.bytes + self.rejects.bytes() >= BATCH_BYTES
    }

    fn is_empty(&self) -> bool {
        self.units() == 0
    }

    /// How many documents, questions and rejects wait.
    fn units(&self) -> u64 {
        (self.documents.rows + self.questions.rows + self.rejects.len()) as u64
    }

    fn take(&mut self) -> Result<Vec<OutputRows>, Failure> {
        let mut outputs = Vec::new();
        if self.documents.rows > 0 {
            outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows: self.documents.take(&self.schema)? });
        }
        if self.questions.rows > 0 {
            outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows: self.questions.take(&self.schema)? });
        }
        if self.rejects.len() > 0 {
            outputs.push(OutputRows { output: REJECTS_OUTPUT, rows: self.rejects.take()? });
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, RecordBatch};
    use serde_json::json;

    use super::*;

    fn settings(value: serde_json::Value) -> Read {
        serde_json::from_value(value).unwrap()
    }

    /// Documents or questions, and rejects, of some files.
    fn run(read: &Read, files: &[(&str, &[u8])]) -> Result<(Vec<RecordBatch>, Vec<RecordBatch>), Failure> {
        let schema = read.bind(&Inputs::default()).unwrap().remove(0).schema;
        let mut reader = Reader::new(read.clone(), schema);
        let (mut rows, mut rejects) = (Vec::new(), Vec::new());
        let mut take = |reader: &mut Reader| {
            for output in reader.take().unwrap() {
                if output.output == DEFAULT_OUTPUT { rows.push(output.rows) } else { rejects.push(output.rows) }
            }
        };
        for (path, bytes) in files {
            reader.open(path, &format!("docs/{path}"), Bytes::copy_from_slice(bytes))?;
            while reader.read()? {
                take(&mut reader);
            }
        }
        take(&mut reader);
        Ok((rows, rejects))
    }

    fn column(batches: &[RecordBatch], name: &str) -> Vec<String> {
        let texts = batches.iter().flat_map(|batch| {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>().clone();
            (0..column.len())
                .map(move |row| if column.is_null(row) { "null".to_owned() } else { column.value(row).to_owned() })
                .collect::<Vec<_>>()
        });
        texts.collect()
    }

    #[test]
    fn files_are_read_by_name() {
        let read = settings(json!({"path": "docs/*"}));
        let files: [(&str, &[u8]); 5] = [
            ("a.TXT", b"Title\n\nText."),
            ("b/c.md", b"# Head\n\nBody."),
            ("d.jsonl", b"{\"text\": \"one\", \"doc_id\": \"x\"}\n\n{\"text\": \"two\"}\nnot json\n"),
            ("e.htm", b"<h1>H</h1><p>para</p>"),
            ("f.txt", b"\xFF"),
        ];
        let (rows, rejects) = run(&read, &files).unwrap();
        assert_eq!(column(&rows, "doc_id"), ["a.TXT", "b/c.md", "x", "d.jsonl#3", "e.htm"]);
        assert_eq!(column(&rows, "title")[..4], ["Title", "Head", "null", "null"]);
        assert_eq!(column(&rows, "source")[1], "docs/b/c.md");
        assert_eq!(column(&rows, "row_id")[2], row_id("read", 0, &["x"], 0, 0));
        assert_eq!(column(&rejects, "reason"), ["bad_json", "not_utf8"]);
        assert!(column(&rejects, "detail")[0].starts_with("`docs/d.jsonl` line 4: "));
        assert_eq!(column(&rejects, "raw"), ["not json", "null"]);
        assert_eq!(column(&rejects, "parent_id"), ["null", "null"]);
        let failure = run(&read, &[("x/archive.zip", b"")]).unwrap_err();
        assert!(failure.message.contains("`x/archive.zip`") && failure.hint.unwrap().contains(".jsonl"));
        assert!(run(&read, &[(".txt/README", b"")]).is_err());
    }

    #[test]
    fn exams_become_questions() {
        let read = settings(json!({"path": "exam.jsonl", "format": "multiple_choice"}));
        let lines = b"{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": \"a\"}\n{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": \"A\"}\n";
        let (rows, rejects) = run(&read, &[("exam.jsonl", lines)]).unwrap();
        assert_eq!(column(&rows, "question_id"), ["exam.jsonl#1"]);
        assert_eq!(column(&rejects, "reason"), ["bad_question"]);
        let open = settings(json!({"path": "exam.jsonl", "format": "open_ended"}));
        assert_eq!(run(&open, &[("exam.jsonl", lines)]).unwrap().0[0].num_rows(), 2);
    }

    #[test]
    fn long_files_come_in_batches() {
        let read = settings(json!({"path": ["a.jsonl"]}));
        let lines = "{\"text\": \"word\"}\n".repeat(3000);
        let (rows, _) = run(&read, &[("a.jsonl", lines.as_bytes())]).unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1024, 1024, 952]);
        assert_eq!(column(&rows, "doc_id")[2999], "a.jsonl#3000");
    }

    #[test]
    fn mistakes_are_found_before_anything_is_read() {
        let fields = |value| {
            let mistakes = settings(value).bind(&Inputs::default()).err().unwrap_or_default();
            mistakes.into_iter().map(|mistake| (mistake.field, mistake.message)).collect::<Vec<_>>()
        };
        assert_eq!(fields(json!({"path": "a.jsonl", "columns": {"text": "body"}})), []);
        assert_eq!(fields(json!({"path": []}))[0].0, "/path");
        let planned = ["pdf", "csv", "parquet", "table", "quality", "longhealth", "financebench"];
        for format in planned {
            let found = fields(json!({"path": "a", "format": format}));
            assert_eq!(found, [("/format".to_owned(), format!("reading `{format}` is not built yet"))]);
        }
        assert_eq!(fields(json!({"path": "a", "columns": {"body": "text"}}))[0].0, "/columns/body");
        assert_eq!(fields(json!({"path": "a", "format": "text", "columns": {"text": "body"}}))[0].0, "/columns");
        assert_eq!(fields(json!({"path": "a", "columns": {"text": "body", "title": "body"}}))[0].0, "/columns/title");
        assert!(serde_json::from_value::<Read>(json!({"path": 3})).is_err());
        assert!(serde_json::from_value::<Read>(json!({"path": "a", "format": "word"})).is_err());
    }

    #[test]
    fn one_path_and_a_list_of_one_are_the_same() {
        let one = TYPE.parse(json!({"path": "a"})).unwrap().1;
        let list = TYPE.parse(json!({"path": ["a"], "exclude": []})).unwrap().1;
        assert_eq!(one, list);
    }
}
