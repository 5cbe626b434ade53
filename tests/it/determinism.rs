//! The same bytes from one thread and from several, with and without the way through the codec.

use std::collections::BTreeMap;

use crate::{
    cache::{document, walk},
    project::Project,
};

const PIPELINE: &str = r#"pipeline: bytes
seed: 3
models: { offline: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.md" }
  chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  unique: { op: dedup, from: chunks, column: text }
  near: { op: dedup, from: chunks, column: text, within: doc_id, similarity: 0.3 }
  long: { op: filter, from: unique, where: "length(text) > 20" }
  halves: { op: split, from: long, heldout: 0.25 }
  counts: { op: sql, from: { chunks: chunks }, query: "select doc_id, count(*) as n from chunks group by doc_id", key: [doc_id] }
  qa: { op: synthesize_qa, from: chunks, teacher: offline, pairs: 3 }
  rewrites: { op: rewrite, from: { documents: chunks, questions: qa }, teacher: offline, per_document: 2, min_words: 5 }
  words: { op: tokenizer, from: documents, vocabulary: 300 }
  mixture: { op: mix, from: { sources: [qa, rewrites], tokenizer: words }, weights: [1, 1], tokens: 4000 }
  found: { op: retrieve, from: { questions: qa, corpus: chunks }, top_k: 3 }
  rag: { op: evaluate, from: { questions: qa, contexts: found }, reader: offline }
  gold: { op: retrieve, from: { questions: qa, corpus: chunks }, method: gold }
  best: { op: evaluate, from: { questions: qa, contexts: gold }, reader: offline }
  gain: { op: compare, from: [rag.predictions, best.predictions] }
"#;

/// The Parquet files of a store by their bytes: their names hold the attempt that wrote them.
fn contents(project: &Project, store: &str) -> BTreeMap<Vec<u8>, usize> {
    let mut contents = BTreeMap::new();
    for path in walk(&project.path(store).join("parts")) {
        if path.ends_with(".parquet") {
            *contents.entry(std::fs::read(path).expect("read")).or_default() += 1;
        }
    }
    contents
}

#[test]
fn bytes_do_not_depend_on_threads_or_on_the_codec() {
    let project = Project::new();
    for n in 0..24 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    let runs: [(&str, &[&str]); 3] =
        [("one", &["--threads", "1"]), ("two", &["--threads", "2"]), ("codec", &["--threads", "2", "--round-trip"])];
    for (store, options) in runs {
        let all: Vec<&str> = ["--store", store, "--part-bytes", "1024"].iter().chain(options).copied().collect();
        let said = project.ran(&all);
        for stage in ["documents", "chunks", "unique", "long", "halves", "counts", "qa", "rewrites"] {
            let partitions = said.report(stage)["partitions"].as_u64().expect("a number");
            assert!(partitions >= 4, "`{stage}` has {partitions} partitions");
        }
    }
    let one = contents(&project, "one");
    assert!(one.len() > 20, "{} files", one.len());
    for store in ["two", "codec"] {
        assert_eq!(project.digests("one", "bytes"), project.digests(store, "bytes"));
        assert!(one == contents(&project, store), "the bytes of store `{store}` differ");
    }
}
