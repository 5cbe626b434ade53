//! Parts and source files that aren't what they claim.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder},
    datatypes::SchemaRef,
};
use datafusion::execution::SendableRecordBatchStream;
use futures::{FutureExt, TryStreamExt};
use ingrain_mutation::{Strategy, bytes, holds, mutated, mutated_text, sample::select, strategy};
use object_store::path::Path;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde_json::json;

use super::{Environment, Settings, Table, footer, node, query, session};
use crate::{
    failure::Failure,
    operator::{Registry, Source},
    store::{Buckets, Part, Store, TableManifest, part_name},
};

struct Place {
    _folder: tempfile::TempDir,
    environment: Arc<Environment>,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let location = folder.path().join("store");
        let store = runtime.block_on(Store::open(location.to_str().expect("UTF-8"), &Buckets::default())).expect("made");
        let settings = Settings {
            store,
            pipeline: "fuzz".into(),
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
        let environment = Arc::new(runtime.block_on(async { Environment::new(settings) }).expect("an environment"));
        Self { _folder: folder, environment, runtime }
    }
}

fn rows() -> RecordBatch {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for n in 0..40 {
        lists.append_value((0..n % 3).map(|item| Some(format!("item {item}"))));
    }
    let texts: Vec<Option<String>> = (0..40).map(|n| (n % 7 != 0).then(|| format!("text {n} {}", "word ".repeat(n)))).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("row_id", Arc::new(StringArray::from_iter_values((0..40).map(|n| format!("{n:032x}")))) as ArrayRef, false),
        ("text", Arc::new(StringArray::from(texts)), true),
        ("n", Arc::new(Int64Array::from_iter((0..40).map(|n| (n % 5 != 0).then_some(n)))), true),
        ("m", Arc::new(Int32Array::from_iter_values((0..40).map(|n| n % 4))), false),
        ("x", Arc::new(Float64Array::from_iter_values((0..40).map(|n| f64::from(n) / 3.0))), false),
        ("is", Arc::new(BooleanArray::from_iter((0..40).map(|n| Some(n % 2 == 0)))), true),
        ("list", Arc::new(lists.finish()), true),
    ])
    .expect("a batch")
}

fn files() -> Vec<Vec<u8>> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    [(zstd, 1024, true), (Compression::UNCOMPRESSED, 9, false)]
        .map(|(compression, rows_at_once, dictionary)| {
            let properties = WriterProperties::builder()
                .set_compression(compression)
                .set_max_row_group_row_count(Some(rows_at_once))
                .set_dictionary_enabled(dictionary)
                .build();
            let mut file = Vec::new();
            let mut writer = ArrowWriter::try_new(&mut file, rows().schema(), Some(properties)).expect("a writer");
            writer.write(&rows()).expect("written");
            writer.close().expect("closed");
            file
        })
        .to_vec()
}

/// Changed files, half of them changed in the footer, where what everything else goes by stands.
fn parquet() -> impl Strategy<Value = Vec<u8>> {
    let footer = files().into_iter().map(|file| {
        let length = u32::from_le_bytes(std::array::from_fn(|at| file[file.len() - 8 + at])) as usize + 8;
        file.split_at(file.len() - length).1.to_vec()
    });
    let footer: Vec<Vec<u8>> = footer.collect();
    let heads: Vec<Vec<u8>> =
        files().into_iter().zip(&footer).map(|(file, footer)| file[..file.len() - footer.len()].to_vec()).collect();
    let sized = |(head, mut footer): (Vec<u8>, Vec<u8>)| {
        // A footer whose length is right is read further.
        if let Some(length) = footer.len().checked_sub(8) {
            footer.truncate(length);
            footer.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
            footer.extend(b"PAR1");
        }
        [head, footer].concat()
    };
    strategy::Union::new([
        mutated(files(), &[]).boxed(),
        (select(heads), mutated(footer, &["text", "row_id"])).prop_map(sized).boxed(),
        bytes(64).prop_map(|bytes| [b"PAR1", bytes.as_slice(), b"PAR1"].concat()).boxed(),
    ])
}

async fn all(rows: Result<SendableRecordBatchStream, Failure>) -> Result<Vec<RecordBatch>, Failure> {
    Ok(rows?.try_collect().await?)
}

#[test]
fn any_part_is_read_or_is_an_error() {
    let place = Place::new();
    let (environment, schema): (_, SchemaRef) = (&place.environment, rows().schema());
    let queries = [
        "select * from t",
        "select row_id, text from t where n > 10 and text like '%word%' order by row_id",
        "select m, count(*), sum(x), max(text) from t group by m",
    ];
    holds(48, &(parquet(), 0..queries.len()), |(content, query_of)| {
        let path = part_name("parts/s/r/a-default-", 0, &content);
        let bytes = content.len() as u64;
        let part = Part { path: path.clone(), bytes, rows: 40, content_bytes: 9000, digest: format!("{:032x}-40", 7) };
        let table = Table::new(environment, schema.clone(), TableManifest::new(&schema, vec![part], Vec::new()));
        place.runtime.block_on(async {
            environment.store.write(&Path::from(path.as_str()), content.into()).await.expect("written");
            if let Ok(batches) = all(table.stream().await).await {
                assert!(batches.iter().all(|batch| batch.schema() == schema));
            }
            let inputs = BTreeMap::from([("t".to_owned(), vec![table.clone()])]);
            // The engine's scan may panic, which its stage reports; it never ends the run.
            let read = async { drop(all(query(environment, &inputs, queries[query_of]).await).await) };
            drop(AssertUnwindSafe(read).catch_unwind().await);
            environment.store.delete(vec![Path::from(path)]).await.expect("deleted");
        });
    });
}

#[test]
fn any_footer_has_columns_or_a_mistake() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let source = Source { paths: vec!["a.parquet".into()], names: &[], exclude: vec![], columns_in_files: true };
    holds(96, &parquet(), |content| {
        std::fs::write(folder.path().join("a.parquet"), content).expect("written");
        let found = runtime.block_on(footer::columns(&source, folder.path(), folder.path(), &Buckets::default()));
        if let Err(failure) = found {
            assert!(failure.message.contains("`a.parquet`") && failure.hint.is_some(), "{failure}");
        }
    });
}

#[test]
fn a_record_of_a_partition_names_files_that_are_there() {
    let place = Place::new();
    let store = &place.environment.store;
    let file = "parts/s/r/a-default-0000.parquet";
    place.runtime.block_on(store.write(&Path::from(file), "content".into())).expect("written");
    let part = json!({ "path": file, "bytes": 7, "rows": 1, "content_bytes": 7, "digest": format!("{:032x}-1", 1) });
    let record = json!({ "attempt": "a", "outputs": { "default": [part], "rejects": [] }, "units": 1 });
    let words: &'static [&'static str] =
        &["../../x", "parts/other/r/a-default-0000.parquet", "[]", "null", "18446744073709551615", "-1"];
    holds(96, &mutated_text(&[record.to_string()], words), |content| {
        let path = Path::from("parts/s/r.json");
        place.runtime.block_on(async {
            store.write(&path, content.into()).await.expect("written");
            let found = node::committed(&place.environment, &path).await.expect("read");
            let listed = store.list(&Path::from("parts/s/r")).await.expect("listed");
            for part in found.iter().flat_map(|record| record.outputs.values().flatten()) {
                assert!(listed.iter().any(|meta| meta.location == Path::from(part.path.as_str()) && meta.size == part.bytes));
            }
            // Nothing but a broken record itself is removed.
            assert_eq!(listed.len(), 1);
            assert_eq!(store.read(&path).await.expect("read").is_some(), found.is_some());
        });
    });
}

#[test]
fn any_size_of_a_table_is_cut_into_some_partitions() {
    let place = Place::new();
    let sizes = strategy::Union::new([(0..u64::MAX).boxed(), (u64::MAX - 9..u64::MAX).boxed(), (0..9_u64).boxed()]);
    holds(192, &(sizes, 0..u64::MAX), |(bytes, rows)| {
        assert!((1..=256).contains(&session::partitions(&place.environment, bytes)));
        assert!((1..=8192).contains(&session::batch_rows(bytes, rows)));
    });
}
