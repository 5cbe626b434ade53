//! Files that nobody meant: every format, from bytes to batches.

use std::{io::Write as _, sync::Arc};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use ingrain_engine::{
    failure::{Failure, Fault},
    operator::{DEFAULT_OUTPUT, Inputs, REJECTS_OUTPUT},
};
use ingrain_mutation::{Strategy, bytes, holds, mutated, mutated_text, strategy, text, worded};
use serde_json::{Value, json};

use super::{
    Read, markdown,
    tests::{Outputs, gzip, in_pieces, parquet_file, pdf, run, run_bound, settings, stream_of},
};

const MARKS: [&str; 44] = [
    "---\n",
    "title: x\n",
    "tags: [a, *b]\n",
    "a: &a [*a, *a]\n",
    "<<: *a\n",
    "about: |\n  x\n",
    "...\n",
    "# ",
    "## H\n",
    "- ",
    "1. ",
    "> ",
    "```",
    "~~~\n",
    "| a | b |\n",
    "|---|---|\n",
    "[x](y \"z\")",
    "![",
    "](",
    "[^1]",
    "[^1]: ",
    "<div>",
    "</div>",
    "<p>",
    "<table><tr><td>",
    "<script>",
    "</script>",
    "<!--",
    "-->",
    "<![CDATA[",
    "<svg>",
    "<title>",
    "<template>",
    "<article>",
    "<h1>",
    "<br",
    "&amp;",
    "&#x110000;",
    "&#0;",
    "**",
    "_",
    "\\",
    "\n\n",
    "    code\n",
];

const FIELDS: [&str; 30] = [
    "\"text\":",
    "\"title\":",
    "\"doc_id\":",
    "\"question\":",
    "\"options\":",
    "\"answer\":",
    "\"answers\":[1],",
    "\"hard\":3,",
    "\"question_id\":7,",
    "null",
    "[]",
    "{}",
    "\"\"",
    "\" \"",
    "-1",
    "1e400",
    "true",
    "\n",
    "\"evidence_page_num\":-1",
    "\"evidence_page_num\":2147483647",
    "\"evidence_page_num\":9223372036854775807",
    "\"gold_label\":0",
    "\"gold_label\":-1",
    "\"gold_label\":18446744073709551615",
    "\"correct\":3",
    "\"texts\":3",
    "\"questions\":{}",
    "\"No\":[]",
    "\"evidence\":null",
    "\"doc_name\":1",
];

const PARTS_OF_PDF: [&str; 52] = [
    "0 R",
    "1 0 R",
    "2 0 R",
    "3 0 R",
    "99 0 R",
    "-1",
    "2147483648",
    "99999999999999999999",
    "0.0000001",
    "1e9",
    "null",
    "true",
    "<<",
    ">>",
    "[",
    "]",
    "()",
    "(\\377)",
    "<>",
    "<0",
    "/Kids [2 0 R]",
    "/Parent 4 0 R",
    "/Count -1",
    "/Count 99999999",
    "/Resources null",
    "/Contents [5 0 R 5 0 R]",
    "/Length 99999999",
    "/Length -1",
    "/Filter /FlateDecode",
    "/Filter /ASCII85Decode",
    "/Filter /LZWDecode",
    "/Filter [/FlateDecode /FlateDecode]",
    "/DecodeParms << /Predictor 15 /Columns -1 >>",
    "/Subtype /Type0",
    "/Subtype /Type3",
    "/Encoding << /Differences [999 /a] >>",
    "/ToUnicode 5 0 R",
    "/DescendantFonts []",
    "/FirstChar -5",
    "/LastChar 99999",
    "/Widths [1]",
    "/Matrix [0 0 0 0 0 0]",
    "/MediaBox [0 0 0 0]",
    "/Rotate 45",
    "BT",
    "ET",
    "q",
    "Q",
    "cm",
    "Tf",
    "TJ",
    "Do",
];

fn table_of(file: &[u8]) -> Inputs {
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(file));
    Inputs { source: Some(reader.unwrap().schema().clone()), ..Inputs::default() }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// What came of a file must be whole: no mistake of ours, and rows that are what their columns promise.
fn sound(found: Result<Outputs, Failure>) {
    match found {
        Err(failure) => assert!(failure.fault != Fault::Bug, "{failure}"),
        Ok(outputs) => {
            assert!(!outputs.is_empty(), "no file goes without a word");
            let batches = |output: &str| outputs.get(output).cloned().unwrap_or_default();
            batches(REJECTS_OUTPUT)
                .iter()
                .for_each(|batch| assert!(texts(batch, "reason").iter().all(|reason| !reason.is_empty())));
            for batch in [batches(DEFAULT_OUTPUT), batches("documents")].concat() {
                if batch.column_by_name("metadata").is_some() && batch.column_by_name("doc_id").is_some() {
                    documents(&batch);
                }
            }
        }
    }
}

/// The texts of a column, without nulls.
fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = batch.column_by_name(name).unwrap().as_string::<i32>();
    column.iter().flatten().map(str::to_owned).collect()
}

fn documents(batch: &RecordBatch) {
    for name in ["text", "question"].into_iter().filter(|name| batch.column_by_name(name).is_some()) {
        assert!(texts(batch, name).iter().all(|text| !text.trim().is_empty()), "a row without `{name}`");
    }
    for metadata in texts(batch, "metadata") {
        assert!(serde_json::from_str::<Value>(&metadata).is_ok_and(|value| value.is_object()), "{metadata}");
    }
}

fn reads(read: &Read, name: &str, content: &[u8]) {
    sound(run(read, &[(name, content)]));
}

fn read_any() -> Read {
    settings(json!({"path": "docs/*"}))
}

#[test]
fn any_text_becomes_documents_or_rejects() {
    let read = read_any();
    let page = "<html lang=en><head><title>T</title><meta name=author content=A></head><body><nav><a href=/>Home</a></nav><article><h1>T</h1>\
                <p>The harbour office opened in 1871, and its clock still runs four minutes late.</p><ul><li>one</ul></article></body></html>";
    let page =
        page.replace("</p>", &format!("{}</p>", " It is painted green, and nobody minds, as far as one can tell.".repeat(8)));
    let seeds = [
        "---\ntitle: Leave\ntags:\n- a\n- 2\nof: {team: HR, since: 2019}\nabout: >\n  Two\n  lines\n---\n# Leave\n\nYou get **25 days**[^1].\n\n[^1]: A note.\n".to_owned(),
        "# A\n\n- first\n  - nested\n\n| who | days |\n|-----|-----:|\n| new | 25 |\n\n```python\nx\n```\n\n<div>some <b>html</b></div>\n".to_owned(),
        "Title\n\nText of a file.\r\n".to_owned(),
        page,
        "<div>".repeat(600),
    ];
    let any = strategy::Union::new([mutated_text(&seeds, &MARKS).boxed(), worded(&MARKS, 80).boxed(), text(600).boxed()]);
    let names = ["a.txt", "a.md", "a.html", "a.md.gz", "a.html.zst"];
    holds(96, &(any, 0..names.len()), |(text, name)| {
        let content = match name {
            3 => gzip(text.as_bytes()),
            4 => zstd(text.as_bytes()),
            _ => text.into_bytes(),
        };
        reads(&read, names[name], &content);
    });
}

#[test]
fn long_markdown_takes_no_longer_than_its_length() {
    let long = worded(&MARKS, 12).prop_map(|piece| piece.repeat((32 << 10) / piece.len().max(1)));
    holds(32, &long, |text| {
        ingrain_mutation::within(std::time::Duration::from_secs(5), || markdown::parse(&text));
    });
}

#[test]
fn any_bytes_become_rows_or_rejects() {
    let lines = b"{\"doc_id\": \"a\", \"title\": \"T\", \"text\": \"one\", \"year\": 1874}\n\n{\"text\": \"two\"}\nnot json\n";
    let table = "\u{FEFF}id,title,text,year\r\n7,A title,\"First, \"\"quoted\"\"\nand long.\",1874\r\n,,Second.,\n9,Too,few\n8,,\"open,1\n";
    let formats: [(&str, &str, Vec<u8>); 7] = [
        ("auto", "a.jsonl", lines.to_vec()),
        ("auto", "a.csv", table.into()),
        ("auto", "a.tsv", table.replace(',', "\t").into()),
        ("auto", "a.jsonl.gz", gzip(lines)),
        ("auto", "a.jsonl.zst", zstd(lines)),
        ("auto", "a.csv.gz", [gzip(table.as_bytes()), gzip(b"1,2,3,4\n")].concat()),
        ("auto", "a.txt.zst", zstd(&[b'x'; 3000])),
    ];
    for (format, name, seed) in formats {
        let read = settings(json!({"path": "docs/*", "format": format}));
        let any = strategy::Union::new([mutated(vec![seed], &FIELDS).boxed(), bytes(200).boxed()]);
        holds(24, &any, |content| reads(&read, name, &content));
    }
}

#[test]
fn any_exam_or_benchmark_becomes_rows_or_rejects() {
    let question = json!({"question": "Which?", "options": ["a", "b"], "gold_label": 2, "difficult": 1});
    let article = json!({"article_id": "52845", "set_unique_id": "52845_A", "title": "T", "author": "L", "article": "Text.", "questions": [question]});
    let patients = json!({"patient_01": {
        "name": "Anna", "birthday": "1970-01-01", "diagnosis": "D", "texts": {"text_0": "First.", "text_1": "Second."},
        "questions": [{"No": 0, "question": "Which?", "answer_a": "x", "answer_b": "y", "correct": "y"}],
    }});
    let evidence = json!({"evidence_text": "part", "doc_name": "A_10K", "evidence_page_num": 3, "evidence_text_full_page": "A part of a page."});
    let asked = json!({"financebench_id": "id_1", "company": "Acme", "doc_name": "A_10K", "question": "How?", "answer": "$1", "evidence": [evidence]});
    let exam = json!({"question_id": "1", "question": "Which?", "options": ["a", "b"], "answer": "b", "doc_id": "d", "hard": true, "x": [1]});
    let formats = [
        ("quality", article),
        ("longhealth", patients),
        ("financebench", asked),
        ("multiple_choice", exam.clone()),
        ("open_ended", exam),
    ];
    for (format, seed) in formats {
        let read = settings(json!({"path": "docs/*", "format": format}));
        holds(24, &mutated_text(&[format!("{seed}\n"), format!("{seed}\n{seed}\n")], &FIELDS), |text| {
            reads(&read, "a.json", text.as_bytes())
        });
    }
}

#[test]
fn any_parquet_becomes_rows_or_a_mistake() {
    let texts = Arc::new(StringArray::from(vec![Some("One."), None, Some("Three.")])) as ArrayRef;
    let years = Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef;
    let file = parquet_file(vec![("text", texts), ("year", years)]);
    let (documents, table) = (read_any(), settings(json!({"path": "docs/*", "format": "table"})));
    let inputs = table_of(&file);
    let tail = file.len() - u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize - 8;
    let (head, footer) = (file[..tail].to_vec(), file[tail..].to_vec());
    let in_footer = mutated(vec![footer], &["text", "year"]).prop_map(move |footer| [head.as_slice(), &footer].concat());
    let any = strategy::Union::new([mutated(vec![file.clone(), gzip(&file)], &[]).boxed(), in_footer.boxed()]);
    holds(64, &any, |content| {
        reads(&documents, "a.parquet", &content);
        reads(&documents, "a.parquet.gz", &content);
        match run_bound(&table, &inputs, vec![in_pieces("a.parquet", &content)]) {
            Ok(outputs) => assert!(outputs.values().flatten().all(|batch| batch.num_columns() > 0)),
            Err(failure) => assert!(failure.fault != Fault::Bug, "{failure}"),
        }
    });
}

#[test]
fn any_pdf_becomes_text_or_rejects() {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(b"BT /F 12 Tf 72 700 Td (Packed) Tj ET").unwrap();
    let packed = encoder.finish().unwrap();
    let first = "/Nothing gs 1 0 0 RG BT /F 12 Tf 72 700 Td (Leave) Tj 300 0 Td [(25) -300 (days)] TJ -300 -14 Td (Sick) ' ET";
    let form = stream_of("/Type /XObject /Subtype /Form /Matrix [1 0 0 1 72 0]", "BT /F 12 Tf 0 698 Td (in a form) Tj ET q");
    let font = pdf(&[first], "null").windows(1).count();
    let seeds = vec![pdf(&[first, "q /X Do Q"], &form), pdf(&[first], &"[".repeat(300)), {
        let mut file = pdf(&[first], "null");
        let stream = [b"<< /Filter /FlateDecode /Length 44 >>\nstream\n".as_slice(), &packed, b"\nendstream\n"].concat();
        file.splice(font / 2..font / 2, stream);
        file
    }];
    let read = settings(json!({"path": "docs/*", "format": "pdf"}));
    let any = strategy::Union::new([
        mutated(seeds, &PARTS_OF_PDF).boxed(),
        worded(&PARTS_OF_PDF, 60).prop_map(|text| format!("%PDF-1.4\n{text}").into_bytes()).boxed(),
    ]);
    holds(48, &any, |content| reads(&read, "a.pdf", &content));
}
