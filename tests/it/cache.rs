//! What runs again and what doesn't.

use std::collections::BTreeSet;

use crate::project::Project;

const PIPELINE: &str = r#"pipeline: notes
seed: 3
stages:
  documents: { op: read, path: "docs/*.md" }
  chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  unique: { op: dedup, from: chunks, column: text }
  long: { op: filter, from: unique, where: "length(text) > 20" }
  halves: { op: split, from: long, heldout: 0.25 }
  counts: { op: sql, from: { chunks: chunks }, query: "select doc_id, count(*) as n from chunks group by doc_id", key: [doc_id] }
"#;

/// A document about one thing, of about 900 characters, unlike those of other numbers.
pub(crate) fn document(n: usize) -> String {
    let name = ["Harrow", "Tansy", "Corbel", "Merrow", "Quill", "Osier", "Brindle", "Fallow"][n % 8];
    format!(
        "# {name} Lantern {n}\n\n\
         {name} Lantern {n} was built in {} by the tinsmith Ida Brandt. It weighs {} grams and hangs in the hall of Port {name}. \
         The keeper of {name} Lantern {n} is Lotte Amsel. She fills it with {} litres of rapeseed oil on every Monday.\n\n\
         The glass of {name} Lantern {n} is amber. Its frame was painted green in {}, after a fire at the mill. \
         A brass bell named Old Nan {n} hangs below it. The bell rings {} times when a boat comes in.\n\n\
         {name} Lantern {n} can be seen from {} miles away. Emil Rooke bought the first wick for {} crowns. \
         In winter the lantern burns from 4:{:02} in the afternoon. A heron called Duke {n} sleeps beside it.\n",
        1801 + n,
        300 + 31 * n,
        n + 2,
        1902 + n,
        n + 3,
        n + 5,
        20 + 7 * n,
        n % 60,
    )
}

fn project() -> Project {
    let project = Project::new();
    for n in 0..12 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    project
}

#[test]
fn a_second_run_executes_nothing_and_plan_says_so_before() {
    let project = project();
    assert_eq!(project.ran(&[]).executed(), ["chunks", "counts", "documents", "halves", "long", "unique"]);
    let plan = project.call(&["plan", "pipeline.yaml"]);
    assert!(String::from_utf8_lossy(&plan.stderr).contains("a run would execute nothing"));
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
}

#[test]
fn comments_order_and_names_run_nothing() {
    let project = project();
    project.ran(&[]);
    let renamed = PIPELINE
        .replace(
            "chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }",
            "# a comment\n  pieces: { overlap_characters: 20, max_characters: 200, from: documents, op: chunk }",
        )
        .replace("from: chunks", "from: pieces")
        .replace("{ chunks: chunks }", "{ chunks: pieces }");
    project.write("pipeline.yaml", renamed);
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
}

#[test]
fn a_changed_field_runs_its_stage_and_what_depends_on_it() {
    let project = project();
    project.ran(&[]);
    project.write("pipeline.yaml", PIPELINE.replace("overlap_characters: 20", "overlap_characters: 60"));
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    assert!(
        String::from_utf8_lossy(&why.stdout).contains("`overlap_characters`: 20 -> 60"),
        "{}",
        String::from_utf8_lossy(&why.stdout)
    );
    assert_eq!(project.ran(&[]).executed(), ["chunks", "counts", "halves", "long", "unique"]);
    project.write("pipeline.yaml", PIPELINE);
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new(), "the first artifacts are still there");
    // What a stage is compared with is the last run, also where that found everything.
    project.write("pipeline.yaml", PIPELINE.replace("overlap_characters: 20", "overlap_characters: 30"));
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("`overlap_characters`: 20 -> 30"));
}

const TAUGHT: &str = r#"pipeline: taught
models: { offline: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.md" }
  passages: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  qa: { op: synthesize_qa, from: passages, teacher: offline, pairs: 3, draws: 2 }
  unique: { op: dedup, from: qa, column: question }
  units: { op: chunk, from: documents, max_characters: 4000 }
  whole: { op: synthesize_qa, from: units, teacher: offline, pairs: 3 }
"#;

#[test]
fn another_overlap_asks_the_teacher_nothing_that_it_was_asked_before() {
    let project = project();
    project.write("pipeline.yaml", TAUGHT);
    let texts = || -> BTreeSet<String> { project.rows("passages", &[]).iter().map(|row| row["text"].to_string()).collect() };
    let first = project.ran(&[]);
    let before = texts();
    assert_eq!(first.report("qa")["calls"], 2 * before.len(), "a call for each draw of each passage");
    project.write("pipeline.yaml", TAUGHT.replace("overlap_characters: 20", "overlap_characters: 60"));
    let second = project.ran(&[]);
    assert_eq!(second.executed(), ["passages", "qa", "unique"]);
    let after = texts();
    let (new, known) = (after.difference(&before).count(), after.intersection(&before).count());
    assert!(new > 0 && known > 0, "{new} new passages, {known} known ones");
    assert_eq!(second.report("qa")["calls"], 2 * new);
    assert_eq!(second.report("qa")["memo_hits"], 2 * known);
}

#[test]
fn a_new_document_is_asked_about_and_no_other() {
    let project = project();
    project.write("pipeline.yaml", TAUGHT);
    project.ran(&[]);
    project.write("docs/new.md", document(99));
    let said = project.ran(&[]);
    assert_eq!(said.report("whole")["calls"], 1);
    assert_eq!(said.report("whole")["memo_hits"], 12);
}

#[test]
fn an_equal_output_stops_the_cascade() {
    let project = project();
    project.ran(&[]);
    project.write("pipeline.yaml", PIPELINE.replace("length(text) > 20", "length(text) >= 21"));
    assert_eq!(project.ran(&[]).executed(), ["long"]);
}

#[test]
fn a_new_document_runs_few_partitions_and_gives_the_tables_of_an_empty_store() {
    let project = project();
    // 12 and 13 documents make the same number of groups at this size; where the corpus passes a power of two, the number
    // doubles and every partition is another one.
    let small = ["--part-bytes", "3000", "--until", "chunks"];
    let records = |store: &str| walk(&project.path(store).join("parts")).iter().filter(|path| path.ends_with(".json")).count();
    project.ran(&small);
    let before = records(".ingrain");
    project.write("docs/new.md", document(99));
    let said = project.ran(&small);
    let partitions = said.report("chunks")["partitions"].as_u64().expect("a number");
    assert!(partitions >= 4, "{partitions} partitions");
    // One group of files and the parts made of it; every other partition's record is found.
    let ran = records(".ingrain") - before;
    assert!((2..=4).contains(&ran), "{ran} partitions of `documents` and `chunks` ran");
    project.ran(&["--part-bytes", "3000", "--until", "chunks", "--store", "fresh"]);
    assert!(records("fresh") > 2 * ran, "{} partitions in all", records("fresh"));
    assert_eq!(project.digests(".ingrain", "notes"), project.digests("fresh", "notes"));
}

#[test]
fn a_missing_part_is_a_miss_and_is_made_again() {
    let project = project();
    project.ran(&[]);
    let before = project.digests(".ingrain", "notes");
    let parts = walk(&project.path(".ingrain/parts"));
    for part in parts.iter().filter(|path| path.ends_with(".parquet")) {
        std::fs::remove_file(part).expect("removed");
    }
    let why = project.call(&["why", "pipeline.yaml", "documents"]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("is missing"), "{}", String::from_utf8_lossy(&why.stdout));
    let said = project.ran(&[]);
    assert!(said.executed().contains(&"documents"));
    assert_eq!(project.digests(".ingrain", "notes"), before);
}

#[test]
fn force_runs_a_stage_and_nothing_after_it() {
    let project = project();
    project.ran(&[]);
    assert_eq!(project.ran(&["--force", "chunks"]).executed(), ["chunks"]);
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
}

/// Runs `before`, then `after` on the same store, and compares with `after` on a store of its own.
fn agrees_with_a_fresh_store(before: &str, after: &str) {
    let project = project();
    project.write("pipeline.yaml", before);
    project.ran(&["--part-bytes", "2048"]);
    project.write("pipeline.yaml", after);
    project.ran(&["--part-bytes", "2048"]);
    project.ran(&["--part-bytes", "2048", "--store", "fresh"]);
    assert_eq!(project.digests(".ingrain", "notes"), project.digests("fresh", "notes"));
}

#[test]
fn a_partition_follows_from_the_other_ports_too() {
    let pipeline = |vocabulary: u32| {
        format!(
            "pipeline: notes\nstages:\n  documents: {{ op: read, path: \"docs/*.md\" }}\n  \
             words: {{ op: tokenizer, from: documents, vocabulary: {vocabulary} }}\n  \
             chunks: {{ op: chunk, from: {{ documents: documents, tokenizer: words }}, max_tokens: 40 }}\n"
        )
    };
    agrees_with_a_fresh_store(&pipeline(400), &pipeline(270));
}

#[test]
fn a_partition_follows_from_the_names_of_columns_too() {
    let pipeline = |columns: &str| {
        format!(
            "pipeline: notes\nstages:\n  documents: {{ op: read, path: \"docs/*.md\" }}\n  \
             named: {{ op: sql, from: {{ d: documents }}, query: \"select row_id, {columns} from d\" }}\n  \
             halves: {{ op: split, from: named, heldout: 0.5 }}\n"
        )
    };
    agrees_with_a_fresh_store(&pipeline("'left' as a, 'right' as b"), &pipeline("'left' as b, 'right' as a"));
}

#[test]
fn a_query_that_lost_one_record_gives_the_same_rows() {
    let project = project();
    project.write(
        "pipeline.yaml",
        "pipeline: notes\nstages:\n  documents: { op: read, path: \"docs/*.md\" }\n  \
         unmatched: { op: sql, from: { a: documents, b: documents }, \
         query: \"select a.row_id, b.doc_id as longer from a left join b on length(b.text) > length(a.text) + 1000\" }\n",
    );
    project.ran(&["--part-bytes", "1024"]);
    let before = project.digests(".ingrain", "notes");
    let records: Vec<String> = walk(&project.path(".ingrain/parts")).into_iter().filter(|path| path.ends_with(".json")).collect();
    for record in records {
        // What a kill before this record and before the commit leaves.
        for action in walk(&project.path(".ingrain/actions")) {
            std::fs::remove_file(action).expect("removed");
        }
        std::fs::remove_file(record).expect("removed");
        project.ran(&["--part-bytes", "1024"]);
        assert_eq!(project.digests(".ingrain", "notes"), before);
    }
}

#[test]
fn gc_keeps_what_the_last_runs_need_and_frees_the_rest() {
    let project = project();
    project.ran(&[]);
    let first = project.digests(".ingrain", "notes");
    project.write("pipeline.yaml", PIPELINE.replace("overlap_characters: 20", "overlap_characters: 60"));
    project.ran(&[]);
    let files = || walk(&project.path(".ingrain")).len();
    let before = files();
    let gc = |words: &[&str]| {
        let words: Vec<&str> = ["gc", "pipeline.yaml", "--keep", "1"].iter().chain(words).copied().collect();
        let output = project.call(&words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(gc(&[]).starts_with("removed 0 artifacts"), "all is younger than the grace time");
    assert!(gc(&["--grace", "0s", "--dry-run"]).starts_with("would remove 5 artifacts, 1 records of runs"));
    assert_eq!(files(), before + 1, "but for the note of what gc retired");
    gc(&["--grace", "0s"]);
    assert!(files() < before, "{} files of {before}", files());
    assert_eq!(project.ran(&["--verify"]).executed(), Vec::<&str>::new(), "the last run's artifacts are whole");
    project.write("pipeline.yaml", PIPELINE);
    assert_eq!(project.ran(&[]).executed(), ["chunks", "counts", "halves", "long", "unique"]);
    assert_eq!(project.digests(".ingrain", "notes"), first);
}

/// Every file below a folder.
pub(crate) fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { found.push(path.to_string_lossy().into_owned()) }
        }
    }
    found.sort();
    found
}
