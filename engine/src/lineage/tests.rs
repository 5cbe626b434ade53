use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use super::{Affected, Artifact, Edge, Ids, Lineage, Name, Parent};
use crate::{
    operator::Registry,
    run::{Environment, Settings},
    store::{Buckets, Manifest, Part, Store, TableManifest},
};

/// A store on which artifacts are made by hand.
struct Place {
    _folder: tempfile::TempDir,
    environment: Arc<Environment>,
    artifacts: Vec<Artifact>,
}

/// Column names, then rows of their cells.
type Rows<'a> = (&'a [&'a str], &'a [&'a [&'a str]]);

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("store");
        let store = Store::open(location.to_str().unwrap(), &Buckets::default()).await.unwrap();
        let settings = Settings {
            store,
            pipeline: "lineage".into(),
            budget: None,
            buckets: Buckets::default(),
            cache: folder.path().join("cache"),
            cache_limit: 1 << 30,
            registry: Registry::EMPTY,
            file: "pipeline.yaml".into(),
            models: BTreeMap::new(),
            device: "cpu".into(),
            memory: 64 << 20,
            threads: 1,
            retry_rejects: false,
            part_bytes: 64 << 10,
        };
        let environment = Arc::new(Environment::new(settings).unwrap());
        Self { _folder: folder, environment, artifacts: Vec::new() }
    }

    /// Adds an artifact with these outputs that reads those (artifact, output, whether it is a vocabulary).
    async fn add(&mut self, stage: &str, outputs: &[(&str, Rows<'_>)], reads: &[(usize, &str, bool)]) -> usize {
        let (mut tables, mut schemas) = (BTreeMap::new(), BTreeMap::new());
        for (output, (columns, rows)) in outputs {
            let fields: Vec<Field> = columns.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
            let schema = Arc::new(Schema::new(fields));
            let mut parts = Vec::new();
            // A part for every two rows.
            for (number, rows) in rows.chunks(2).enumerate() {
                let column =
                    |place: usize| Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[place]))) as ArrayRef;
                let batch = RecordBatch::try_new(schema.clone(), (0..columns.len()).map(column).collect()).unwrap();
                let mut file = Vec::new();
                let mut writer = ArrowWriter::try_new(&mut file, schema.clone(), None).unwrap();
                writer.write(&batch).unwrap();
                writer.close().unwrap();
                let path = format!("parts/{stage}/{output}/{number}.parquet");
                let (bytes, rows) = (file.len() as u64, rows.len() as u64);
                self.environment.store.write(&Path::from(path.as_str()), file.into()).await.unwrap();
                parts.push(Part { path, bytes, rows, content_bytes: bytes, digest: String::new() });
            }
            let table = TableManifest { rows: rows.len() as u64, ..TableManifest::new(&schema, parts, Vec::new()) };
            tables.insert((*output).to_owned(), table);
            schemas.insert((*output).to_owned(), schema);
        }
        let edge = |(position, (artifact, output, is_vocabulary)): (usize, &(usize, &str, bool))| Edge {
            port: "port".into(),
            position,
            artifact: *artifact,
            output: (*output).to_owned(),
            is_vocabulary: *is_vocabulary,
        };
        self.artifacts.push(Artifact {
            key: stage.into(),
            generation: 0,
            operator: "operator".into(),
            name: Name { pipeline: "lineage".into(), stage: stage.into(), run: None },
            preimage: Value::Null,
            manifest: Arc::new(Manifest::new(tables, 0)),
            schemas,
            reads: reads.iter().enumerate().map(edge).collect(),
        });
        self.artifacts.len() - 1
    }
}

fn ids(ids: &[&str]) -> Ids {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// documents -> questions, with a duplicate removed -> a count without lineage -> what reads the count; and a tokenizer beside.
async fn lineage() -> (Lineage, tempfile::TempDir) {
    let mut place = Place::new().await;
    let documents: Rows<'_> = (&["row_id", "doc_id"], &[&["d1", "x"], &["d2", "y"], &["d3", "x"]]);
    let documents = place.add("documents", &[("default", documents)], &[]).await;
    let qa: Rows<'_> = (
        &["row_id", "parent_id", "request_id"],
        &[&["q1", "d1", "d2"], &["q2", "d1", "-"], &["q3", "d2", "-"], &["q4", "d3", "-"], &["q5", "d2", "-"]],
    );
    let qa = place.add("qa", &[("default", qa)], &[(documents, "default", false)]).await;
    let kept: Rows<'_> = (&["row_id", "parent_id"], &[&["q1", "d1"], &["q3", "d2"], &["q4", "d3"]]);
    let removed: Rows<'_> = (&["row_id", "parent_id", "kept_id"], &[&["q2", "d1", "q1"], &["q5", "d2", "q4"]]);
    let unique = place.add("unique", &[("default", kept), ("removed", removed)], &[(qa, "default", false)]).await;
    let counts: Rows<'_> = (&["row_id", "n"], &[&["c1", "3"]]);
    let counts = place.add("counts", &[("default", counts)], &[(unique, "default", false)]).await;
    place.add("report", &[("default", (&["row_id"], &[&["r1"], &["r2"]]))], &[(counts, "default", false)]).await;
    place.add("empty", &[("default", (&["row_id"], &[]))], &[(counts, "default", false)]).await;
    let tokenized: Rows<'_> = (&["row_id"], &[&["t1"]]);
    place.add("tokenized", &[("default", tokenized)], &[(unique, "default", true)]).await;
    (Lineage::new(&place.environment, place.artifacts), place._folder)
}

#[tokio::test]
async fn rows_name_what_they_were_made_of() {
    let (lineage, _folder) = lineage().await;
    let (documents, qa, unique) = (0, 1, 2);
    let parent = |column: &str, artifact, found: &[&str]| Parent {
        column: column.into(),
        artifact,
        output: "default".into(),
        ids: ids(found),
    };
    let of_qa = lineage.parents(qa, "default", &ids(&["q1", "q3"])).await.unwrap();
    assert_eq!(of_qa, [parent("parent_id", documents, &["d1", "d2"])], "`request_id` names no rows");
    let of_removed = lineage.parents(unique, "removed", &ids(&["q5"])).await.unwrap();
    assert_eq!(of_removed, [parent("kept_id", unique, &["q4"]), parent("row_id", qa, &["q5"])]);
    assert!(lineage.parents(3, "default", &ids(&["c1"])).await.unwrap().is_empty());
    assert!(lineage.parents(qa, "no such output", &ids(&["q1"])).await.unwrap().is_empty());

    assert_eq!(lineage.present(qa, "default", &ids(&["q2", "d1"])).await.unwrap(), ids(&["q2"]));
    assert_eq!(lineage.rows_with(documents, "default", "doc_id", &ids(&["x"])).await.unwrap(), ids(&["d1", "d3"]));
    assert_eq!(lineage.beginning(qa, "default", "q", 3).await.unwrap(), ["q1", "q2", "q3"]);
    assert_eq!(lineage.beginning(qa, "default", "q4", 3).await.unwrap(), ["q4"]);
    assert!(
        lineage.beginning(qa, "default", "%", 3).await.unwrap().is_empty()
            && lineage.beginning(qa, "default", "'", 3).await.unwrap().is_empty()
    );
    let read: usize = lineage.read(qa, "default", &ids(&["q1", "q5"])).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(read, 2);
}

#[tokio::test]
async fn what_was_made_is_rows_as_long_as_they_say_so() {
    let (lineage, _folder) = lineage().await;
    let found = lineage.made_of(vec![(0, "default".into(), ids(&["d1"]))]).await.unwrap();
    let at = |artifact: usize, output: &str| found.get(&(artifact, output.to_owned()));
    let rows = |found: &[&str]| Affected::Rows(ids(found));
    assert_eq!(at(0, "default"), Some(&rows(&["d1"])));
    assert_eq!(at(1, "default"), Some(&rows(&["q1", "q2"])));
    assert_eq!(at(2, "default"), Some(&rows(&["q1"])));
    assert_eq!(at(2, "removed"), Some(&rows(&["q2"])));
    assert_eq!((at(3, "default"), at(4, "default")), (Some(&Affected::Whole), Some(&Affected::Whole)));
    assert_eq!((at(5, "default"), at(6, "default")), (None, None), "no rows, and a vocabulary");

    // The removed row names a row that was made of another document.
    let found = lineage.made_of(vec![(0, "default".into(), ids(&["d3"]))]).await.unwrap();
    assert_eq!(found.get(&(2, "removed".to_owned())), Some(&rows(&["q5"])));

    let within: HashSet<usize> = [0, 1].into();
    let found = lineage.made_of_within(vec![(0, "default".into(), ids(&["d2"]))], |place| within.contains(&place)).await.unwrap();
    assert_eq!(found.keys().map(|(artifact, _)| *artifact).collect::<Vec<_>>(), [0, 1]);
    assert!(lineage.made_of(vec![(0, "default".into(), Ids::new())]).await.unwrap().is_empty());
}

#[tokio::test]
async fn of_a_source_that_a_mixture_took_nothing_of_nothing_is_in_it() {
    let mut place = Place::new().await;
    let documents = place.add("documents", &[("default", (&["row_id"], &[&["d1"], &["d2"]]))], &[]).await;
    let columns: &[&str] = &["row_id", "parent_id"];
    let taken = place.add("taken", &[("default", (columns, &[&["a1", "d2"]]))], &[(documents, "default", false)]).await;
    let left = place.add("left", &[("default", (columns, &[&["b1", "d1"]]))], &[(documents, "default", false)]).await;
    let sources = [(taken, "default", false), (left, "default", false)];
    let mixture = place.add("mixture", &[("default", (columns, &[&["m1", "a1"]]))], &sources).await;
    let (lineage, _folder) = (Lineage::new(&place.environment, place.artifacts), place._folder);
    let found = lineage.made_of(vec![(documents, "default".into(), ids(&["d1"]))]).await.unwrap();
    assert_eq!(found.get(&(mixture, "default".to_owned())), None);
    assert!(found.contains_key(&(left, "default".to_owned())));
    let found = lineage.made_of(vec![(documents, "default".into(), ids(&["d1", "d2"]))]).await.unwrap();
    assert_eq!(found.get(&(mixture, "default".to_owned())), Some(&Affected::Rows(ids(&["m1"]))));
}
