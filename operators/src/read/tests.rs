//! Every format, from the bytes of files to batches.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
        StringViewArray,
    },
    datatypes::{Int32Type, Int64Type},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key::row_id,
    operator::{DEFAULT_OUTPUT, Inputs, Operator, REJECTS_OUTPUT, rejects_schema},
    run::SourceFile,
};
use serde_json::{Value, json};

use super::{Read, TYPE, content::Pieces, item::Batches, reading::items};

pub(super) fn settings(value: Value) -> Read {
    serde_json::from_value(value).unwrap()
}

pub(super) type Outputs = BTreeMap<&'static str, Vec<RecordBatch>>;

/// What comes of some files, each with its pieces.
fn run_pieces(read: &Read, files: Vec<(&str, u64, Pieces)>) -> Result<Outputs, Failure> {
    run_bound(read, &Inputs::default(), files)
}

pub(super) fn run_bound(read: &Read, inputs: &Inputs, files: Vec<(&str, u64, Pieces)>) -> Result<Outputs, Failure> {
    run_without(read, inputs, &[], files)
}

/// What comes of some files where these documents are forgotten.
fn run_without(read: &Read, inputs: &Inputs, forgotten: &[String], files: Vec<(&str, u64, Pieces)>) -> Result<Outputs, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let bound = read.bind(inputs).unwrap();
        let table = read.table(inputs).unwrap().map(Arc::new);
        let mut batches = Batches::new(read.format, |name| {
            let found = bound.iter().find(|output| output.name == name);
            Ok(found.map_or_else(rejects_schema, |output| output.schema.clone()))
        })?;
        let mut outputs = Outputs::new();
        let mut take = |batches: &mut Batches| {
            for given in batches.take().unwrap().0 {
                outputs.entry(given.output).or_default().push(given.rows);
            }
        };
        for (path, size, pieces) in files {
            let file = SourceFile {
                url: format!("memory://{path}"),
                path: path.to_owned(),
                source: format!("docs/{path}"),
                size,
                version: String::new(),
            };
            let mut items = items(Arc::new(read.clone()), table.clone(), file, forgotten.to_vec(), pieces);
            while let Some((source, items)) = items.try_next().await? {
                for item in items {
                    batches.push(&source, item)?;
                    if batches.full() {
                        take(&mut batches);
                    }
                }
            }
        }
        take(&mut batches);
        Ok(outputs)
    })
}

/// A file that arrives in small pieces.
pub(super) fn in_pieces<'a>(path: &'a str, bytes: &[u8]) -> (&'a str, u64, Pieces) {
    let size = 7.max(bytes.len() / 1000);
    let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    (path, bytes.len() as u64, stream::iter(pieces).boxed())
}

/// What comes of some files.
pub(super) fn run(read: &Read, files: &[(&str, &[u8])]) -> Result<Outputs, Failure> {
    run_pieces(read, files.iter().map(|(path, bytes)| in_pieces(path, bytes)).collect())
}

fn column(outputs: &Outputs, output: &str, name: &str) -> Vec<String> {
    let texts = outputs.get(output).into_iter().flatten().flat_map(|batch| {
        let column = batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        (0..column.len())
            .map(move |row| if column.is_null(row) { "null".to_owned() } else { column.value(row).to_owned() })
            .collect::<Vec<_>>()
    });
    texts.collect()
}

pub(super) fn documents(outputs: &Outputs, name: &str) -> Vec<String> {
    column(outputs, DEFAULT_OUTPUT, name)
}

pub(super) fn rejects(outputs: &Outputs, name: &str) -> Vec<String> {
    column(outputs, REJECTS_OUTPUT, name)
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn files_are_read_by_name() {
    let read = settings(json!({"path": "docs/*"}));
    let files: [(&str, &[u8]); 6] = [
        ("a.TXT", b"Title\n\nText."),
        ("b/c.md", b"# Head\n\nBody."),
        ("d.jsonl", b"{\"text\": \"one\", \"doc_id\": \"x\"}\n\n{\"text\": \"two\"}\nnot json\n"),
        ("e.htm", b"<h1>H</h1><p>para</p>"),
        ("f.txt", b"\xFF"),
        ("g.tsv", b"text\tyear\nthree\t1874\n"),
    ];
    let found = run(&read, &files).unwrap();
    assert_eq!(documents(&found, "doc_id"), ["a.TXT", "b/c.md", "x", "d.jsonl#3", "e.htm", "g.tsv#2"]);
    assert_eq!(documents(&found, "title")[..4], ["Title", "Head", "null", "null"]);
    assert_eq!(documents(&found, "source")[1], "docs/b/c.md");
    assert_eq!(documents(&found, "row_id")[2], row_id("read", 0, &["x"], 0, 0));
    assert_eq!(documents(&found, "metadata")[5], r#"{"year":"1874"}"#);
    assert_eq!(rejects(&found, "reason"), ["bad_json", "not_utf8"]);
    assert!(rejects(&found, "detail")[0].starts_with("`docs/d.jsonl` line 4: "));
    assert_eq!(rejects(&found, "raw"), ["not json", "null"]);
    assert_eq!(rejects(&found, "parent_id"), ["null", "null"]);
    let failure = run(&read, &[("x/archive.zip", b"")]).unwrap_err();
    assert!(failure.message.contains("`x/archive.zip`") && failure.hint.unwrap().contains(".jsonl"));
}

#[test]
fn exams_become_questions() {
    let read = settings(json!({"path": "exam.jsonl", "format": "multiple_choice"}));
    let lines = b"{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": \"a\"}\n{\"question\": \"q\", \"options\": [\"a\", \"b\"], \"answer\": \"A\"}\n";
    let found = run(&read, &[("exam.jsonl", lines)]).unwrap();
    assert_eq!(documents(&found, "question_id"), ["exam.jsonl#1"]);
    assert_eq!(rejects(&found, "reason"), ["bad_question"]);
    let open = settings(json!({"path": "exam.jsonl", "format": "open_ended"}));
    assert_eq!(run(&open, &[("exam.jsonl", lines)]).unwrap()[DEFAULT_OUTPUT][0].num_rows(), 2);
}

#[test]
fn long_files_come_in_batches() {
    let read = settings(json!({"path": ["a.jsonl"]}));
    let lines = "{\"text\": \"word\"}\n".repeat(3000);
    let found = run(&read, &[("a.jsonl", lines.as_bytes())]).unwrap();
    assert_eq!(found[DEFAULT_OUTPUT].iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1024, 1024, 952]);
    assert_eq!(documents(&found, "doc_id")[2999], "a.jsonl#3000");
}

#[test]
fn mistakes_are_found_before_anything_is_read() {
    let fields = |value| {
        let mistakes = settings(value).bind(&Inputs::default()).err().unwrap_or_default();
        mistakes.into_iter().map(|mistake| (mistake.field, mistake.message)).collect::<Vec<_>>()
    };
    for format in ["auto", "jsonl", "csv", "parquet"] {
        assert_eq!(fields(json!({"path": "a", "format": format, "columns": {"text": "body"}})), []);
    }
    assert_eq!(fields(json!({"path": []}))[0].0, "/path");
    assert_eq!(fields(json!({"path": "a", "columns": {"body": "text"}}))[0].0, "/columns/body");
    for format in ["text", "pdf", "quality"] {
        assert_eq!(fields(json!({"path": "a", "format": format, "columns": {"text": "body"}}))[0].0, "/columns");
    }
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

#[test]
fn compressed_files_give_what_plain_ones_give() {
    let read = settings(json!({"path": "docs/*"}));
    let lines: String = (0..3000).map(|n| format!("{{\"doc_id\": \"{n}\", \"text\": \"text {n}\"}}\n")).collect();
    let plain = run(&read, &[("a.jsonl", lines.as_bytes()), ("b.md", b"# Head\n\nBody.")]).unwrap();
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 3).unwrap();
    let halves = [gzip(&lines.as_bytes()[..9999]), gzip(&lines.as_bytes()[9999..])].concat();
    for (lines, head) in [
        (("a.jsonl.gz", gzip(lines.as_bytes())), ("b.md.gz", gzip(b"# Head\n\nBody."))),
        (("a.jsonl.gz", halves), ("b.md.zst", zstd(b"# Head\n\nBody."))),
        (("a.jsonl.zst", zstd(lines.as_bytes())), ("b.md.zst", zstd(b"# Head\n\nBody."))),
    ] {
        let found = run(&read, &[(lines.0, &lines.1), (head.0, &head.1)]).unwrap();
        assert_eq!(documents(&found, "text"), documents(&plain, "text"));
        assert_eq!(found[DEFAULT_OUTPUT].len(), plain[DEFAULT_OUTPUT].len());
        assert!(!found.contains_key(REJECTS_OUTPUT));
    }
}

#[test]
fn what_came_whole_before_a_cut_stays() {
    let read = settings(json!({"path": "docs/*"}));
    let lines: String =
        (0..2000).map(|n| format!("{{\"doc_id\": \"{n}\", \"text\": \"text {n} {}\"}}\n", n * n * 7919)).collect();
    for whole in [gzip(lines.as_bytes()), zstd::stream::encode_all(lines.as_bytes(), 3).unwrap()] {
        let name = if whole[0] == 0x1f { "a.jsonl.gz" } else { "a.jsonl.zst" };
        let found = run(&read, &[(name, &whole[..whole.len() - 9])]).unwrap();
        let kept = documents(&found, "doc_id").len();
        assert!(kept <= 2000 && (kept > 1000 || name.ends_with("zst")), "{kept}");
        assert_eq!(documents(&found, "doc_id"), (0..kept).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(rejects(&found, "reason"), ["truncated"]);
        assert!(rejects(&found, "detail")[0].contains(&format!("`docs/{name}` line {} is cut off", kept + 1)));
    }
    let found =
        run(&read, &[("a.jsonl.gz", b"no gzip at all"), ("b.txt.gz", &gzip(b"Some text.")[..20]), ("c.md.zst", b"")]).unwrap();
    assert_eq!(rejects(&found, "reason"), ["truncated", "truncated", "truncated"]);
    assert!(!found.contains_key(DEFAULT_OUTPUT));
}

#[test]
fn what_grows_without_bound_is_refused() {
    let read = settings(json!({"path": "docs/*"}));
    let zeros = |bytes: u64| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(b'x'), bytes), &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let found = run(&read, &[("a.txt.zst", &zeros(80 << 20)), ("b.jsonl.zst", &zeros(70 << 20))]).unwrap();
    assert_eq!(rejects(&found, "reason"), ["too_large", "too_large"]);
    assert!(rejects(&found, "detail")[0].contains("`docs/a.txt.zst` grows too much"));
    assert!(rejects(&found, "detail")[1].contains("line 1: 73400320 bytes; a line has at most"));
}

#[test]
fn a_bomb_in_gzip_is_refused_too() {
    let read = settings(json!({"path": "docs/*"}));
    let bomb = gzip(&vec![b'x'; 1 << 20]).repeat(70);
    let found = run(&read, &[("a.md.gz", &bomb), ("b.jsonl.gz", &bomb), ("c.txt", b"Fine.")]).unwrap();
    assert_eq!(rejects(&found, "reason"), ["too_large", "too_large"]);
    assert!(rejects(&found, "detail")[0].starts_with("`docs/a.md.gz` "));
    assert!(rejects(&found, "detail")[1].contains("line 1: 73400320 bytes; a line has at most"));
    assert_eq!(documents(&found, "text"), ["Fine."]);
}

#[test]
fn a_line_of_csv_that_is_too_long_costs_itself_alone() {
    let read = settings(json!({"path": "docs/*"}));
    let table = [b"text\n".as_slice(), &vec![b'x'; 70 << 20], b"\n\"short\"\n"].concat();
    let found = run(&read, &[("a.csv", &table)]).unwrap();
    assert_eq!((documents(&found, "doc_id"), documents(&found, "text")), (vec!["a.csv#3".to_owned()], vec!["short".to_owned()]));
    assert_eq!(rejects(&found, "reason"), ["too_large"]);
    assert_eq!(rejects(&found, "detail"), ["`docs/a.csv` line 2: 73400321 bytes; a line has at most 67108864"]);
}

#[test]
fn what_is_too_large_is_not_fetched() {
    let read = settings(json!({"path": "docs/*"}));
    let pieces = || stream::iter([Ok(Bytes::from_static(b"# A")), Err(Failure::external("fetched"))]).boxed();
    for (name, most) in [("a.md", 64 << 20), ("a.html", 64 << 20), ("a.txt", 256 << 20), ("a.pdf", 256 << 20)] {
        let found = run_pieces(&read, vec![(name, most + 1, pieces())]).unwrap();
        assert_eq!(rejects(&found, "reason"), ["too_large"], "{name}");
        let detail = format!("`docs/{name}` has {} bytes; a document of this format has at most {most}", most + 1);
        assert_eq!(rejects(&found, "detail"), [detail]);
        assert_eq!(run_pieces(&read, vec![(name, most, pieces())]).unwrap_err().message, "fetched");
    }
}

#[test]
fn files_that_give_nothing_are_rejects() {
    let none = parquet_file(vec![("text", Arc::new(StringArray::from(Vec::<&str>::new())) as ArrayRef)]);
    let cases: [(&str, &str, &[u8], &str); 9] = [
        ("auto", "a.jsonl", b"", "line"),
        ("auto", "a.jsonl.gz", &gzip(b"\n  \n"), "line"),
        ("auto", "a.csv", b"text,id\n", "row"),
        ("auto", "a.parquet", &none, "row"),
        ("multiple_choice", "a.jsonl", b"\n", "line"),
        ("open_ended", "a.jsonl", b"", "line"),
        ("quality", "a.dev", b"", "line"),
        ("financebench", "a.jsonl", b"", "line"),
        ("longhealth", "a.json", b"{}", "patient"),
    ];
    for (format, name, content, what) in cases {
        let found = run(&settings(json!({"path": "docs/*", "format": format})), &[(name, content)]).unwrap();
        assert_eq!(rejects(&found, "reason"), ["empty"], "{format} {name}");
        assert_eq!(rejects(&found, "detail"), [format!("`docs/{name}` has no {what}")]);
        assert_eq!(found.len(), 1);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure_and_no_reject() {
    let read = settings(json!({"path": "docs/*"}));
    for name in ["a.jsonl", "a.txt", "a.csv.gz", "a.parquet", "a.pdf"] {
        let pieces = [Ok(Bytes::from_static(b"text\n{}\n")), Err(Failure::external("the disk is gone"))];
        let failure = run_pieces(&read, vec![(name, 100, stream::iter(pieces).boxed())]).unwrap_err();
        assert_eq!(failure.message, "the disk is gone", "{name}");
    }
}

#[test]
fn rows_of_csv_become_documents() {
    let read = settings(json!({"path": "docs/*", "columns": {"text": "body", "doc_id": "id"}}));
    let table = "\u{FEFF}id,title,body,year\r\n7,A title,\"First, \"\"quoted\"\"\nand long.\",1874\r\n,,Second.,\n9,Too,few\n8,,\"open,1\n10,,Third.,2\n11,, ,3\n";
    let found = run(&read, &[("a.csv", table.as_bytes())]).unwrap();
    assert_eq!(documents(&found, "doc_id"), ["7", "a.csv#4", "10"]);
    assert_eq!(documents(&found, "title"), ["A title", "null", "null"]);
    assert_eq!(documents(&found, "text"), ["First, \"quoted\"\nand long.", "Second.", "Third."]);
    assert_eq!(documents(&found, "metadata"), [r#"{"year":"1874"}"#, r#"{"year":""}"#, r#"{"year":"2"}"#]);
    assert_eq!(rejects(&found, "reason"), ["bad_csv", "bad_csv", "empty"]);
    assert_eq!(rejects(&found, "detail")[0], "`docs/a.csv` line 5: 3 fields; the header has 4");
    assert_eq!(rejects(&found, "raw")[..2], ["9,Too,few", "8,,\"open,1"]);
    let failure = run(&read, &[("b.csv", b"text,id\nx,1\n")]).unwrap_err();
    assert_eq!(failure.message, "`docs/b.csv` has no column `body`");
    assert!(run(&read, &[("b.csv", b"\xFFbody\nx\n")]).unwrap_err().message.contains("the header can't be read"));
    let found = run(&read, &[("b.csv", b""), ("c.csv", b"body,id\n\xFF,1\n")]).unwrap();
    assert_eq!(rejects(&found, "reason"), ["empty", "not_utf8"]);
}

pub(super) fn parquet_file(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap();
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn rows_of_parquet_become_documents() {
    let read = settings(json!({"path": "docs/*", "columns": {"text": "body"}}));
    let texts = || Arc::new(StringArray::from(vec![Some("One."), None, Some("Three.")])) as ArrayRef;
    let mut tags = ListBuilder::new(StringBuilder::new());
    tags.append_value([Some("x"), None]);
    tags.append_null();
    tags.append_value([Some("y")]);
    let first = parquet_file(vec![
        ("body", Arc::new(StringViewArray::from(vec![Some("One."), None, Some("Three.")])) as ArrayRef),
        ("doc_id", Arc::new(Int64Array::from(vec![Some(1), Some(2), None]))),
        ("title", Arc::new([Some("A"), None, Some("A")].into_iter().collect::<DictionaryArray<Int32Type>>())),
        ("tags", Arc::new(tags.finish())),
    ]);
    let second = parquet_file(vec![("year", Arc::new(Int32Array::from(vec![1, 2, 3]))), ("body", texts())]);
    let found = run(&read, &[("a.parquet", &first), ("b.parquet", &second), ("c.parquet.gz", &gzip(&second))]).unwrap();
    let ids = ["1", "a.parquet#3", "b.parquet#1", "b.parquet#3", "c.parquet.gz#1", "c.parquet.gz#3"];
    assert_eq!(documents(&found, "doc_id"), ids);
    assert_eq!(documents(&found, "title")[..3], ["A", "A", "null"]);
    assert_eq!(documents(&found, "text")[..2], ["One.", "Three."]);
    assert_eq!(documents(&found, "metadata")[..3], [r#"{"tags":["x",null]}"#, r#"{"tags":["y"]}"#, r#"{"year":1}"#]);
    assert_eq!(rejects(&found, "detail")[0], "`docs/a.parquet` row 2: no text in `body`");

    let failure = |columns| run(&read, &[("x.parquet", &parquet_file(columns))]).unwrap_err();
    let found = failure(vec![("text", texts())]);
    assert_eq!(found.message, "`docs/x.parquet` has no column `body`");
    assert!(found.hint.unwrap().contains("it has `text`"));
    let found = failure(vec![("body", Arc::new(Int32Array::from(vec![1])) as ArrayRef)]);
    assert_eq!(found.message, "column `body` of `docs/x.parquet` is Int32, not text");
    let found = run(&read, &[("x.parquet", &first[..first.len() - 4]), ("y.parquet", b"")]).unwrap();
    assert_eq!(rejects(&found, "reason"), ["bad_parquet", "bad_parquet"]);
}

#[test]
fn files_of_a_table_have_its_columns() {
    let read = settings(json!({"path": "docs/*", "format": "table", "columns": {"text": "body"}}));
    let years = |years: Vec<i64>| Arc::new(Int64Array::from(years)) as ArrayRef;
    let first = vec![("body", Arc::new(StringArray::from(vec!["One.", "Two."])) as ArrayRef), ("year", years(vec![1, 2]))];
    let schema = RecordBatch::try_from_iter_with_nullable(first.iter().map(|(name, column)| (*name, column.clone(), true)));
    let inputs = Inputs { source: Some(schema.unwrap().schema()), ..Inputs::default() };
    let first = parquet_file(first);
    let second = vec![("year", years(vec![3])), ("body", Arc::new(StringViewArray::from(vec!["Three."])) as ArrayRef)];
    let second = parquet_file(second);
    let run = |files: &[(&'static str, &[u8])]| {
        run_bound(&read, &inputs, files.iter().map(|(path, bytes)| in_pieces(path, bytes)).collect())
    };
    let found = run(&[("a.parquet", &first), ("b.parquet", &second)]).unwrap();
    assert_eq!(documents(&found, "text"), ["One.", "Two.", "Three."]);
    let id = |path: &str, row| row_id("read.table", 0, &[path], 0, row);
    assert_eq!(documents(&found, "row_id"), [id("a.parquet", 0), id("a.parquet", 1), id("b.parquet", 0)]);
    assert!(!found.contains_key(REJECTS_OUTPUT));
    let other = parquet_file(vec![("year", years(vec![3]))]);
    let failure = run(&[("a.parquet", &first), ("c.parquet", &other)]).unwrap_err();
    assert_eq!(failure.message, "`docs/c.parquet` has other columns than the first file: `body` is missing");
    let failure = run(&[("a.parquet", &first[..first.len() - 4])]).unwrap_err();
    assert!(failure.message.starts_with("`docs/a.parquet` can't be read as Parquet behind row 0: "), "{}", failure.message);
}

#[test]
fn nothing_is_given_of_a_forgotten_document() {
    let forgotten = |value, files: &[(&'static str, &[u8])], ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let files = files.iter().map(|(path, bytes)| in_pieces(path, bytes)).collect();
        run_without(&settings(value), &Inputs::default(), &ids, files).unwrap()
    };
    let found =
        forgotten(json!({"path": "docs/*"}), &[("a.md", b"One."), ("b.md", b"Two."), ("c.md", b"\xff")], &["a.md", "c.md"]);
    assert_eq!(documents(&found, "doc_id"), ["b.md"]);
    assert!(!found.contains_key(REJECTS_OUTPUT), "not even as a reject");
    let lines = br#"{"doc_id": "x", "text": "One."}
{"doc_id": "y", "text": "Two."}
{"doc_id": "x", "text": 3, "more": "of it"}
{"text": "Four."}"#;
    let found = forgotten(json!({"path": "docs/*"}), &[("a.jsonl", lines)], &["x", "a.jsonl#4"]);
    assert_eq!(documents(&found, "doc_id"), ["y"]);
    assert_eq!(rejects(&found, "raw"), ["null"], "whose line it is nobody knows");
    let exam = br#"{"question": "Q?", "answer": "A", "doc_id": "x"}
{"question": "R?", "answer": "B", "doc_id": "y"}
{"question": "S?", "answer": "C"}"#;
    let found = forgotten(json!({"path": "docs/*", "format": "open_ended"}), &[("exam.jsonl", exam)], &["x"]);
    assert_eq!(column(&found, DEFAULT_OUTPUT, "question"), ["R?", "S?"]);
}

#[test]
fn rows_of_a_table_go_by_their_doc_id() {
    let read = settings(json!({"path": "docs/*", "format": "table", "columns": {"doc_id": "id"}}));
    let columns = vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), Some(2), None])) as ArrayRef),
        ("body", Arc::new(StringArray::from(vec!["One.", "Two.", "Three."]))),
    ];
    let schema = RecordBatch::try_from_iter_with_nullable(columns.iter().map(|(name, column)| (*name, column.clone(), true)));
    let inputs = Inputs { source: Some(schema.unwrap().schema()), ..Inputs::default() };
    let file = parquet_file(columns);
    let found = run_without(&read, &inputs, &["2".to_owned()], vec![in_pieces("a.parquet", &file)]).unwrap();
    assert_eq!(documents(&found, "body"), ["One.", "Three."]);
}

/// A PDF of these objects, numbered from 1, the first of which is its root.
pub(super) fn pdf_of(objects: &[String], trailer: &str) -> Vec<u8> {
    let mut file = "%PDF-1.4\n".to_owned();
    let mut places = String::new();
    for (number, object) in objects.iter().enumerate() {
        places.push_str(&format!("{:010} 00000 n \n", file.len()));
        file.push_str(&format!("{} 0 obj\n{object}\nendobj\n", number + 1));
    }
    let start = file.len();
    let size = objects.len() + 1;
    file.push_str(&format!("xref\n0 {size}\n0000000000 65535 f \n{places}trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n"));
    file.push_str(&format!("startxref\n{start}\n%%EOF\n"));
    file.into_bytes()
}

pub(super) fn stream_of(dictionary: &str, content: &str) -> String {
    format!("<< {dictionary} /Length {} >>\nstream\n{content}\nendstream", content.len())
}

/// A PDF with a page for each content; `/F` is Helvetica, `/X` the object behind the pages, which is `form`.
pub(super) fn pdf(contents: &[&str], form: &str) -> Vec<u8> {
    let count = contents.len();
    let form_number = 4 + 2 * count;
    let pages: Vec<String> = (0..count).map(|n| format!("{} 0 R", 4 + 2 * n)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!(
            "<< /Type /Pages /Count {count} /Kids [{}] /MediaBox [0 0 612 792] /Resources << /Font << /F 3 0 R >> /XObject << /X {form_number} 0 R >> >> >>",
            pages.join(" ")
        ),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    for (n, content) in contents.iter().enumerate() {
        objects.push(format!("<< /Type /Page /Parent 2 0 R /Contents {} 0 R >>", 5 + 2 * n));
        objects.push(stream_of("", content));
    }
    objects.push(form.to_owned());
    objects.push("<< /Title (Leave policy) /Author (A. Clerk) >>".to_owned());
    pdf_of(&objects, &format!("/Info {} 0 R", form_number + 1))
}

const IMAGE: &str = "/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8";

#[test]
fn pages_of_a_pdf_are_joined_and_kept_apart() {
    let read = settings(json!({"path": "docs/*", "format": "pdf"}));
    let first = "/Nothing gs 1 0 0 RG BT /F 12 Tf 72 700 Td (Leave) Tj 300 0 Td (25 days) Tj -300 -14 Td (Sick leave) Tj 300 0 Td (10 days) Tj ET";
    let third = "BT /F 12 Tf 72 700 Td 14 TL (Ask the office.) Tj (Or not.) ' ET";
    let form = stream_of(IMAGE, "x");
    let found = run(&read, &[("a.pdf", &pdf(&[first, "q /X Do Q", third, ""], &form))]).unwrap();
    let text = "Leave\t25 days\nSick leave\t10 days\n\nAsk the office.\nOr not.";
    assert_eq!(documents(&found, "text"), [text]);
    assert_eq!(documents(&found, "title"), ["Leave policy"]);
    let spans = format!("[[1,0,32],[3,34,{}]]", text.len());
    assert_eq!(documents(&found, "metadata"), [format!(r#"{{"author":"A. Clerk","pages":{spans}}}"#)]);
    assert_eq!(rejects(&found, "reason"), ["no_text", "no_text"]);
    assert_eq!(rejects(&found, "detail")[0], "page 2 of `docs/a.pdf` has images and no text: a scan?");
    let pages = &found["pages"][0];
    let number = |name: &str| pages.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(pages.column_by_name("page").unwrap().as_primitive::<Int32Type>().values(), &[1, 3]);
    assert_eq!((number("byte_start"), number("byte_end")), (vec![0, 34], vec![32, text.len() as i64]));
    assert_eq!(
        column(&found, "pages", "parent_id"),
        [documents(&found, "row_id")[0].clone(), documents(&found, "row_id")[0].clone()]
    );
}

#[test]
fn forms_stand_where_they_are_drawn() {
    let read = settings(json!({"path": "docs/*"}));
    let page = "BT /F 12 Tf 72 700 Td (Above) Tj ET q 1 0 0 1 0 -12 cm /X Do Q BT /F 12 Tf 72 660 Td (Below) Tj ET";
    let form = stream_of("/Type /XObject /Subtype /Form /Matrix [1 0 0 1 72 0]", "BT /F 12 Tf 0 698 Td (in a form) Tj ET q");
    let found = run(&read, &[("a.pdf", &pdf(&[page], &form))]).unwrap();
    assert_eq!(documents(&found, "text"), ["Above\nin a form\n\nBelow"]);
    assert!(!found.contains_key("pages"), "`auto` has no such output");
    let endless = stream_of("/Type /XObject /Subtype /Form", "/X Do");
    let found = run(&read, &[("a.pdf", &pdf(&["/X Do", "BT /F 12 Tf 72 700 Td (Fine) Tj ET"], &endless))]).unwrap();
    assert_eq!(documents(&found, "text"), ["Fine"]);
    assert_eq!(rejects(&found, "detail"), ["page 1 of `docs/a.pdf` can't be read: it draws itself"]);
}

#[test]
fn pdfs_that_cannot_be_read_are_rejects() {
    let read = settings(json!({"path": "docs/*"}));
    let page = "BT /F 12 Tf 72 700 Td (Secret) Tj ET";
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Count 1 /Kids [3 0 R] /MediaBox [0 0 612 792] >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>".to_owned(),
        stream_of("", page),
        // No such font: the extractor panics.
        "<< /Type /Font /Subtype /Type0 /BaseFont /None >>".to_owned(),
    ];
    let broken_font = pdf_of(&objects, "");
    objects.push(format!("<< /Filter /Standard /V 1 /R 2 /P -4 /O <{}> /U <{}> >>", "00".repeat(32), "11".repeat(32)));
    let encrypted = pdf_of(&objects, "/Encrypt 6 0 R /ID [<00> <00>]");
    let inline = pdf_of(&objects[..4], "/Encrypt << /Filter /Standard /V 1 >>");
    let cut = pdf(&[page], "null");
    let files: [(&str, &[u8]); 5] = [
        ("font.pdf", &broken_font),
        ("secret.pdf", &encrypted),
        ("inline.pdf", &inline),
        ("text.pdf", b"not a PDF"),
        ("cut.pdf", &cut[..400]),
    ];
    let found = run(&read, &files).unwrap();
    assert_eq!(rejects(&found, "reason"), ["bad_page", "encrypted", "encrypted", "bad_pdf", "bad_pdf"]);
    assert!(rejects(&found, "detail")[1].contains("`docs/secret.pdf` can't be opened without a password"));
    assert!(!found.contains_key(DEFAULT_OUTPUT));
}

#[test]
fn benchmarks_become_documents_and_questions() {
    let question = |label: Value| json!({"question": "Which?", "options": ["a", "b"], "gold_label": label, "difficult": 1});
    let line = |set: &str, text: &str, label: Value| json!({"article_id": "52845", "set_unique_id": set, "title": "T", "author": "Last, First", "article": text, "questions": [question(label)]});
    let lines = [line("52845_A", "Text.", json!(2)), line("52845_B", "Text.", json!(9)), line("52845_C", "Other.", json!(1))];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let quality = settings(json!({"path": "q", "format": "quality"}));
    let found = run(&quality, &[("QuALITY.v1.0.1.htmlstripped.dev", lines.as_bytes())]).unwrap();
    assert_eq!(column(&found, "documents", "doc_id"), ["52845"]);
    assert_eq!(column(&found, "documents", "metadata"), [r#"{"author":"Last, First"}"#]);
    assert_eq!(column(&found, "questions", "question_id"), ["52845_A_1"]);
    assert_eq!(column(&found, "questions", "answer"), ["b"]);
    assert_eq!(rejects(&found, "reason"), ["bad_question", "bad_document"]);

    let patients = json!({
        "patient_01": {
            "name": "Anna Sample", "birthday": "1970-01-01", "diagnosis": "DLBCL",
            "texts": {"text_0": "First letter.", "text_1": "Second letter."},
            "questions": [{"No": 0, "question": "Which?", "answer_a": "x", "answer_b": "y", "correct": "y"},
                          {"No": 1, "question": "Which?", "answer_a": "x", "answer_b": "y", "correct": "z"}],
        },
        "patient_02": 3,
    });
    let longhealth = settings(json!({"path": "l", "format": "longhealth"}));
    let found = run(&longhealth, &[("benchmark_v5.json", patients.to_string().as_bytes())]).unwrap();
    assert_eq!(column(&found, "documents", "text"), ["First letter.\n\nSecond letter."]);
    assert_eq!(column(&found, "documents", "title"), ["Anna Sample"]);
    assert_eq!(column(&found, "questions", "question_id"), ["patient_01_0"]);
    assert!(column(&found, "questions", "metadata")[0].contains("DLBCL"));
    assert_eq!(rejects(&found, "reason"), ["bad_question", "wrong_type"]);
    let cut = patients.to_string();
    let found = run(&longhealth, &[("benchmark_v5.json", &cut.as_bytes()[..cut.len() - 4])]).unwrap();
    assert_eq!((column(&found, "documents", "doc_id").len(), rejects(&found, "reason").len()), (1, 2));

    let evidence = |page: Value, text: &str| json!({"evidence_text": "part", "doc_name": "ACME_2022_10K", "evidence_page_num": page, "evidence_text_full_page": text});
    let asked = |id: &str, evidence: Vec<Value>| json!({"financebench_id": id, "company": "Acme", "doc_name": "ACME_2022_10K", "question": "How much?", "answer": "$1", "evidence": evidence});
    let lines = [
        asked("id_1", vec![evidence(json!("59"), "A later page, with a part.")]),
        asked("id_2", vec![evidence(json!(3), "A part of a page."), evidence(json!(59), "A later page, with a part.")]),
        json!({"doc_name": "ACME_2022_10K", "company": "Acme", "doc_type": "10k"}),
    ];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let financebench = settings(json!({"path": "f", "format": "financebench"}));
    let found = run(&financebench, &[("f.jsonl", lines.as_bytes())]).unwrap();
    assert_eq!(column(&found, "documents", "doc_id"), ["ACME_2022_10K"]);
    assert_eq!(column(&found, "documents", "text"), ["A part of a page.\n\nA later page, with a part."]);
    assert_eq!(column(&found, "documents", "metadata"), [r#"{"company":"Acme","pages":[[4,0,17],[60,19,45]]}"#]);
    assert_eq!(column(&found, "questions", "question_id"), ["id_1", "id_2"]);
    assert_eq!(column(&found, "questions", "doc_id"), ["ACME_2022_10K", "ACME_2022_10K"]);
    assert_eq!(column(&found, "questions", "metadata")[0], r#"{"company":"Acme"}"#);
    assert_eq!(column(&found, "evidence", "question_id"), ["id_1", "id_2", "id_2"]);
    let pages = found["evidence"][0].column_by_name("page").unwrap().as_primitive::<Int32Type>().values().to_vec();
    assert_eq!(pages, [60, 4, 60]);
    assert_eq!(rejects(&found, "reason"), ["bad_question"]);
}
