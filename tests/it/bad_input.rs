//! What people feed it by mistake.

use crate::project::Project;

fn reading(files: &[(&str, &[u8])], stage: &str) -> Project {
    let project = Project::new();
    for (name, content) in files {
        project.write(name, content);
    }
    project.write("pipeline.yaml", format!("pipeline: bad\nstages:\n  documents: {stage}\n"));
    project
}

#[test]
fn files_that_are_no_documents_become_rejects_by_name() {
    let project = reading(
        &[
            ("docs/empty.md", b""),
            ("docs/latin.txt", b"caf\xe9"),
            ("docs/good.md", b"# Good\n\nA text.\n"),
            ("docs/also.txt", b"Fine as it is.\n"),
        ],
        "{ op: read, path: \"docs/*\" }",
    );
    project.ran(&[]);
    let rejects = project.rows("documents.rejects", &[]);
    let mut reasons: Vec<&str> = rejects.iter().map(|row| row["reason"].as_str().expect("a reason")).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["empty", "not_utf8"]);
    assert_eq!(project.rows("documents", &[]).len(), 2);
}

#[test]
fn a_corpus_of_nothing_but_rejects_stops_the_run() {
    let project = reading(&[("docs/empty.md", b"")], "{ op: read, path: \"docs/*\" }");
    let said = project.run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("`min_yield`"), "{}", said.stderr);
}

#[test]
fn a_glob_without_a_match_says_so() {
    let said = reading(&[], "{ op: read, path: \"docs/*.md\" }").run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("`docs/*.md` matches no file"), "{}", said.stderr);
}

#[test]
fn the_same_document_twice_names_both() {
    let line = br#"{"doc_id": "a", "text": "one"}"#;
    let project = reading(&[("docs/x.jsonl", line), ("docs/y.jsonl", line)], "{ op: read, path: \"docs/*.jsonl\" }");
    let said = project.run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("docs/x.jsonl") && said.stderr.contains("docs/y.jsonl"), "{}", said.stderr);
    assert_eq!(project.run(&[]).code, 1, "nothing half-written is taken for whole");
}

#[test]
fn a_large_document_goes_through() {
    let sentence = "The quarry gave another cart of blue slate before noon. ";
    let text = sentence.repeat(50 * 1024 * 1024 / sentence.len());
    let project = Project::new();
    project.write("docs/large.txt", text);
    project.write(
        "pipeline.yaml",
        "pipeline: large\nstages:\n  documents: { op: read, path: \"docs/*\" }\n  chunks: { op: chunk, from: documents, max_characters: 4000, overlap_characters: 100 }\n",
    );
    let said = project.ran(&[]);
    assert!(said.report("chunks")["rows"].as_u64().expect("a number") > 10_000);
}

#[test]
fn stores_that_cannot_be_used_are_named() {
    let project = reading(&[("docs/a.txt", b"Text."), ("file", b"not a folder")], "{ op: read, path: \"docs/*\" }");
    let said = project.run(&["--store", "file"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("the store `file` is a file"), "{}", said.stderr);
    let said = project.run(&["--store", "/proc/nothing"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("can't be written"), "{}", said.stderr);
    project.write("newer/format.json", r#"{"format": 99}"#);
    let said = project.run(&["--store", "newer"]);
    assert!(said.stderr.contains("format 99"), "{}", said.stderr);
}

#[test]
fn a_missing_environment_variable_is_named() {
    let project = Project::new();
    project.write(
        "pipeline.yaml",
        "pipeline: env\nstages:\n  documents: { op: read, path: \"${env:INGRAIN_TEST_NOT_SET}/*.md\" }\n",
    );
    let said = project.run(&[]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("INGRAIN_TEST_NOT_SET"), "{}", said.stderr);
}

#[test]
fn an_exam_whose_answer_is_no_option_is_a_reject() {
    let exam = concat!(
        r#"{"question_id": "1", "question": "Which?", "options": ["a", "b"], "answer": "b"}"#,
        "\n",
        r#"{"question_id": "2", "question": "Which?", "options": ["a", "b"], "answer": "c"}"#,
        "\n"
    );
    let project = reading(&[("exam.jsonl", exam.as_bytes())], "{ op: read, path: exam.jsonl, format: multiple_choice }");
    project.ran(&[]);
    assert_eq!(project.rows("documents", &[]).len(), 1);
    assert_eq!(project.rows("documents.rejects", &[])[0]["reason"], "bad_question");
}

#[test]
fn a_condition_is_checked_before_rows_are_read() {
    let project = reading(&[("docs/a.txt", b"Text of a."), ("docs/b.txt", b"Other.")], "{ op: read, path: \"docs/*\" }");
    project.ran(&[]);
    let rows = project.rows("documents", &["--where", "text like 'Other%'"]);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["doc_id"], "b.txt");
    for (condition, said) in
        [("txt = 'a'", "no column `txt`"), ("length(text)", "must be true or false"), ("text = ", "`text = `")]
    {
        let output = project.call(&["show", "pipeline.yaml", "documents", "--where", condition]);
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(said) && !stderr.contains("DataFusion"), "{stderr}");
    }
}

#[test]
fn a_stage_that_pays_for_rejects_ends_early() {
    let project = Project::new();
    // No fact stands in a text of one word: the offline teacher finds nothing to ask.
    let lines: String = (0..300).map(|n| format!("{{\"doc_id\": \"{n}\", \"text\": \"hm\"}}\n")).collect();
    project.write("docs.jsonl", lines);
    project.write(
        "pipeline.yaml",
        "pipeline: poor\nmodels: { offline: { offline: {} } }\nstages:\n  documents: { op: read, path: docs.jsonl }\n  \
         qa: { op: synthesize_qa, from: documents, teacher: offline }\n",
    );
    let said = project.run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("units of work were rejected, and `min_yield` demands 50 % accepted"), "{}", said.stderr);
    assert!(said.stderr.contains("every answer is kept"), "{}", said.stderr);
}

#[test]
fn a_file_without_a_line_is_no_corpus() {
    for (name, stage) in [
        ("exam.jsonl", "{ op: read, path: exam.jsonl, format: multiple_choice }"),
        ("docs.jsonl", "{ op: read, path: \"*.jsonl\" }"),
    ] {
        let said = reading(&[(name, b"\n")], stage).run(&[]);
        assert_eq!(said.code, 1, "{name}");
        assert!(said.stderr.contains("`min_yield`"), "{name}: {}", said.stderr);
    }
}

#[test]
fn a_file_by_its_name_needs_no_look_around() {
    let exam = br#"{"question_id": "1", "question": "Which?", "options": ["a", "b"], "answer": "b"}"#;
    let project = reading(&[("exam.jsonl", exam)], "{ op: read, path: exam.jsonl, format: multiple_choice }");
    // Nobody can read this one: a link that leads to itself.
    std::os::unix::fs::symlink("loop", project.path("loop")).expect("linked");
    project.ran(&[]);
    project.ran(&[]);
    project.write("pipeline.yaml", "pipeline: bad\nstages:\n  documents: { op: read, path: \"**/*.md\" }\n");
    project.write("a.md", "Text.");
    project.write(".git/b.md", "No document.");
    project.ran(&[]);
    assert_eq!(project.rows("documents", &[]).len(), 1);
}

/// A Parquet file of texts, and of numbers beside them.
fn parquet_file(column: &str, texts: &[&str]) -> Vec<u8> {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let numbers: Vec<i64> = (0_i64..).take(texts.len()).collect();
    let columns: [(&str, ArrayRef); 2] = [
        (column, std::sync::Arc::new(StringArray::from(texts.to_vec()))),
        ("number", std::sync::Arc::new(Int64Array::from(numbers))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");
    file
}

/// A file as Zstandard has it, without compressing anything.
fn zstd_file(content: &[u8]) -> Vec<u8> {
    let mut file = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x58];
    // One block, the last one, of so many bytes as they are.
    file.extend_from_slice(&(1 | ((content.len() as u32) << 3)).to_le_bytes()[..3]);
    file.extend_from_slice(content);
    file
}

#[test]
fn a_copy_without_a_place_is_no_reject() {
    let packed = zstd_file(&parquet_file("text", &["One.", "Two."]));
    let project = reading(&[("docs/a.parquet.zst", &packed)], "{ op: read, path: \"docs/*\" }");
    let nowhere = project.path("nowhere");
    let mut command = project.command(&["run", "pipeline.yaml"]);
    let output = command.env("TMPDIR", &nowhere).output().expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("a copy of `docs/a.parquet.zst` can't be written to"), "{stderr}");
    assert!(stderr.contains(&*nowhere.to_string_lossy()) && stderr.contains("`TMPDIR`"), "{stderr}");
    project.ran(&[]);
    assert_eq!(project.rows("documents", &[]).len(), 2);
}

#[test]
fn a_table_is_of_files_that_are_alike() {
    let (first, second) = (parquet_file("prompt", &["One.", "Two."]), parquet_file("prompt", &["Three."]));
    let stage = "{ op: read, path: \"t/*\", format: table, columns: { question: prompt } }";
    let project = reading(&[("t/a.parquet", &first), ("t/b.parquet", &second)], stage);
    project.ran(&[]);
    let mut rows: Vec<(String, i64)> = (project.rows("documents", &[]).iter())
        .map(|row| (row["question"].as_str().expect("a text").to_owned(), row["number"].as_i64().expect("a number")))
        .collect();
    rows.sort();
    assert_eq!(rows, [("One.".to_owned(), 0), ("Three.".to_owned(), 0), ("Two.".to_owned(), 1)]);

    project.write("t/c.parquet", parquet_file("other", &["Four."]));
    let said = project.run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("`t/c.parquet` has other columns than the first file"), "{}", said.stderr);
    project.write("t/c.parquet", &second[..second.len() - 4]);
    let said = project.run(&[]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("`t/c.parquet` can't be read as Parquet"), "{}", said.stderr);

    project.write("t/0.parquet", "");
    let checked = |said: &str| {
        let output = project.call(&["check", "pipeline.yaml"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    };
    checked("`t/0.parquet` can't be read as Parquet: it is empty");
    project.write("t/0.parquet.gz", "");
    checked("`t/0.parquet.gz`: a table isn't compressed as a whole");
}

#[test]
fn a_file_in_a_bucket_that_is_not_there_says_so() {
    let server = crate::s3_server::Server::start("Store", &["team"]);
    server.put("team", "docs/a.md", "Text.");
    let project = Project::new();
    let run = |bucket: &str, key: &str| {
        let entry = format!("endpoint: \"{}\", key_id: \"${{secret:TEAM_ID}}\", key: \"${{secret:TEAM_KEY}}\"", server.endpoint);
        project.write(
            "pipeline.yaml",
            format!("pipeline: bad\ns3: {{ {bucket}: {{ {entry} }} }}\nstages:\n  documents: {{ op: read, path: \"s3://{bucket}/{key}\" }}\n"),
        );
        let mut command = project.command(&["run", "pipeline.yaml"]);
        let command = command.env("TEAM_ID", &server.key_id).env("TEAM_KEY", &server.key).env("NO_PROXY", "*");
        let output = command.output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = run("nowhere", "exam.jsonl");
    assert!(missing.contains("the bucket `nowhere`") && missing.contains("doesn't exist"), "{missing}");
    let folder = run("team", "docs");
    assert!(folder.contains("`s3://team/docs` matches no file") && folder.contains("`s3://team/docs/**/*`"), "{folder}");
    let absent = run("team", "docs/b.md");
    assert!(absent.contains("`s3://team/docs/b.md` matches no file"), "{absent}");
}
