//! Stores that somebody else wrote to: records of any content, objects of any name.

use std::{collections::BTreeSet, path::Path as FilePath, time::Duration};

use futures::{FutureExt, StreamExt};
use ingrain_mutation::{Strategy, holds, mutated, mutated_text, strategy, text};
use object_store::{ObjectStoreExt, path::Path};
use serde_json::{Value, json};

use super::{Action, Blob, Buckets, Keep, Manifest, Part, Store, TableManifest, key_path, split_url};

const NOW: Keep = Keep { runs: 1, grace: Duration::ZERO };
/// What lies beside the store's folder, and its content.
const OUTSIDE: &str = "outside.parquet";
const SECRET: &[u8] = b"nobody's business";
const RECORD: &str = "parts/step/record";

const WORDS: [&str; 20] = [
    "../outside.parquet",
    "../../outside.parquet",
    "parts/../../outside.parquet",
    "/outside.parquet",
    "..",
    ".",
    "parts//x",
    "%2e%2e/outside.parquet",
    "..\\\\outside.parquet",
    "parts/step/record/a-default-0000.parquet",
    "format.json",
    "gc/retired.json",
    "actions",
    "\\u0000",
    "17",
    "-1",
    "18446744073709551615",
    "\"parts\":[],",
    "\"format\":4294967296,",
    "\"blobs\":null,",
];

/// A store with one artifact in a folder that holds something else, too.
struct Place {
    folder: tempfile::TempDir,
    store: Store,
    runtime: tokio::runtime::Runtime,
}

fn key() -> String {
    "ab".repeat(32)
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(OUTSIDE), SECRET).expect("written");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let place = folder.path().join("store");
        let store = runtime.block_on(Store::open(place.to_str().expect("UTF-8"), &Buckets::default())).expect("made");
        let place = Self { folder, store, runtime };
        for (file, content) in [("a-default-0000.parquet", "content"), ("a-default/tokenizer/tokenizer.json", "content")] {
            place.put(&format!("{RECORD}/{file}"), content.as_bytes());
        }
        place
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    fn put(&self, path: &str, content: &[u8]) {
        self.runtime.block_on(self.store.write(&Path::from(path), content.to_vec().into())).expect("written");
    }

    /// The only file outside the store is as it was, and no other has come.
    fn outside_is_untouched(&self) {
        let names: Vec<_> =
            std::fs::read_dir(self.folder.path()).expect("read").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(std::fs::read(self.folder.path().join(OUTSIDE)).expect("there"), SECRET);
    }
}

fn manifest() -> Manifest {
    let part = Part {
        path: format!("{RECORD}/a-default-0000.parquet"),
        bytes: 7,
        rows: 1,
        content_bytes: 7,
        digest: format!("{:032x}-1", 1),
    };
    let blob = Blob {
        name: "tokenizer/tokenizer.json".into(),
        path: format!("{RECORD}/a-default/tokenizer/tokenizer.json"),
        bytes: 7,
        digest: blake3::hash(b"content").to_hex().to_string(),
    };
    let table = TableManifest::new(&arrow::datatypes::Schema::empty(), vec![part], vec![blob]);
    Manifest::new([("default".to_owned(), table)].into(), 1)
}

fn manifests() -> impl Strategy<Value = String> {
    let written = serde_json::to_string(&manifest()).expect("JSON");
    let pretty = serde_json::to_string_pretty(&manifest()).expect("JSON");
    // Paths are where the harm is.
    let outside = [
        written.replace(RECORD, ".."),
        written.replace("parts/step/record/a-default-0000.parquet", "../outside.parquet").replace("\"bytes\":7", "\"bytes\":17"),
    ];
    mutated_text(&[vec![written, pretty], outside.to_vec()].concat(), &WORDS)
}

#[test]
fn no_manifest_reaches_out_of_its_store() {
    let place = Place::new();
    let store = &place.store;
    holds(96, &manifests(), |content| {
        let path = format!("manifests/{}.json", blake3::hash(content.as_bytes()).to_hex());
        place.put(&path, content.as_bytes());
        let action = json!({ "format": 1, "manifest": path, "preimage": {}, "filled_by": {}, "usage": {} });
        place.put(&format!("actions/ab/{}/000000.json", key()), action.to_string().as_bytes());
        place.runtime.block_on(async {
            let found = store.manifest(&path).await.expect("read");
            if let Some(manifest) = found {
                manifest.outputs.values().for_each(|table| {
                    assert!(table.content_bytes() >= table.parts.iter().map(|part| part.content_bytes).max().unwrap_or(0))
                });
                let there: BTreeSet<Path> =
                    store.list(&Path::from("parts")).await.expect("listed").into_iter().map(|meta| meta.location).collect();
                if store.missing_file(&manifest).await.expect("looked").is_none() {
                    let files: Vec<Path> = manifest.files().map(|(file, _)| Path::from(file)).collect();
                    let beside = |file: &Path| !file.as_ref().starts_with("parts/");
                    assert!(files.iter().all(|file| there.contains(file) || beside(file)), "{files:?}");
                }
                for (file, _) in manifest.files() {
                    let local = store.local_path(&Path::from(file)).expect("a local store");
                    assert!(local.starts_with(place.root().canonicalize().expect("there")), "{local:?}");
                    assert!(!local.components().any(|part| part == std::path::Component::ParentDir), "{local:?}");
                    let content = store.read(&Path::from(file)).await;
                    assert!(!content.is_ok_and(|content| content.is_some_and(|content| content == SECRET)), "{file}");
                }
                drop(store.damaged_file(&manifest).await);
            }
            drop(store.latest_action(&key()).await.expect("read"));
            store.collect(NOW, true).await.expect("counted");
        });
        place.runtime.block_on(store.delete(vec![Path::from(path)])).expect("deleted");
        place.outside_is_untouched();
    });
}

#[test]
fn records_of_any_content_are_passed_over() {
    let place = Place::new();
    let store = &place.store;
    let written = serde_json::to_vec(&manifest()).expect("JSON");
    let path = format!("manifests/{}.json", blake3::hash(&written).to_hex());
    place.put(&path, &written);
    let action =
        json!({ "format": 1, "manifest": path, "preimage": { "a": [1] }, "filled_by": { "run": "x" }, "usage": { "calls": 0 } });
    let run = json!({ "stages": { "a": { "key": key() }, "b": { "key": "../../x" } } });
    let retired = json!({ "manifests": { "manifests/x.json": "2026-01-01T00:00:00Z" } });
    let partition = json!({ "attempt": "a", "outputs": { "default": [] }, "units": 1 });
    let seeds = [action, run, retired, partition].map(|record| record.to_string().into_bytes());
    let places = [
        format!("actions/ab/{}/000000.json", key()),
        "runs/pipeline/001.json".to_owned(),
        "gc/retired.json".to_owned(),
        format!("{RECORD}.json"),
    ];
    holds(96, &(0..places.len(), mutated(seeds.to_vec(), &WORDS)), |(at, content)| {
        place.put(&places[at], &content);
        place.runtime.block_on(async {
            let found = store.latest_action(&key()).await.expect("read");
            if let Some(Action { manifest, .. }) = found.and_then(|found| found.action) {
                drop(store.manifest(&manifest).await);
            }
            store.collect(Keep { runs: 1, grace: Duration::from_secs(3600) }, false).await.expect("collected");
            store.collect(NOW, true).await.expect("counted");
        });
        place.outside_is_untouched();
    });
}

#[test]
fn objects_of_any_name_are_no_artifacts() {
    let names = [
        "actions/ab/x/000001.json",
        "actions/ab/1/+7.json",
        "actions/ä/ä/000001.damaged",
        "runs/p/a.json",
        "parts/a.json",
        "gc/x/y",
    ];
    let words: &'static [&'static str] = &[
        "actions",
        "runs",
        "parts",
        "manifests",
        "000001.json",
        "4294967295.json",
        ".damaged",
        "ä",
        "\u{1F600}",
        "/",
        "..",
        "a",
    ];
    let names = strategy::Union::new([mutated_text(&names, words).boxed(), text(40).boxed()]);
    let place = Place::new();
    holds(96, &(names, 0_u8..2), |(name, dry)| {
        let path = Path::from(name.as_str());
        // Some names are those of folders.
        let put = place.runtime.block_on(place.store.write(&path, "{}".into()));
        place.runtime.block_on(async {
            let format = Path::from("format.json");
            place.store.write(&format, r#"{"format":1}"#.into()).await.expect("written");
            // A file in the place of a folder is an error.
            drop(place.store.collect(NOW, dry == 0).await);
            if put.is_ok() {
                drop(place.store.delete(vec![path]).await);
            }
        });
        place.outside_is_untouched();
    });
}

#[test]
fn a_store_of_any_format_is_one_or_refused() {
    let place = Place::new();
    let location = place.root().to_str().expect("UTF-8").to_owned();
    let seeds = vec![br#"{"format":1}"#.to_vec(), br#"{"format": 99, "x": []}"#.to_vec()];
    holds(96, &mutated(seeds, &WORDS), |content| {
        std::fs::write(place.root().join("format.json"), &content).expect("written");
        let opened = place.runtime.block_on(Store::existing(&location, &Buckets::default()));
        let format = serde_json::from_slice::<Value>(&content).ok().and_then(|format| format["format"].as_u64());
        assert_eq!(opened.is_ok(), format.is_some_and(|format| format <= 1));
    });
}

#[test]
fn urls_of_buckets_come_apart_and_together() {
    let urls = ["s3://bucket/prefix/a b#c?d%20", "s3://bucket", "s3:///x", "hf://a/b@c", "s3://k:s@b/x", "S3://b/x"];
    let words: &'static [&'static str] = &["s3://", "://", "//", "/", "@", ":", "..", "%2F", "#", "?", "ä", "\u{0}"];
    holds(192, &strategy::Union::new([mutated_text(&urls, words).boxed(), text(60).boxed()]), |url| {
        if let Ok((bucket, key)) = split_url(&url) {
            assert!(!bucket.is_empty());
            let joined = if key.is_empty() {
                url.trim_end_matches('/') == format!("s3://{bucket}")
            } else {
                url == format!("s3://{bucket}/{key}")
            };
            assert!(joined, "{bucket:?} {key:?}");
            if let Ok(path) = key_path(key) {
                assert_eq!(path.as_ref(), key.trim_matches('/'));
                assert!(path.parts().all(|part| !matches!(part.as_ref(), "" | "." | "..")));
            }
        }
        // Where no client is needed, a place is one or is refused.
        let scheme = url.split_once("://").map(|(scheme, _)| scheme.to_owned());
        if scheme.is_some_and(|scheme| scheme != "s3") {
            let opened = Store::existing(&url, &Buckets::default()).now_or_never();
            assert!(opened.is_some_and(|opened| opened.is_err()));
        }
    });
}

#[test]
fn entries_of_buckets_are_read_or_refused() {
    let entry = json!({ "corpora": { "endpoint": "http://minio:9000", "region": "eu", "key_id": "${secret:UNSET_A}", "key": "${secret:UNSET_B}" } });
    let words: &'static [&'static str] =
        &["\"anonymous\":true,", "\"path_style\":1,", "null", "http://", "ftp://x", "[]", "\"region\":\"\","];
    holds(96, &mutated_text(&[entry.to_string()], words), |text| {
        let Ok(Value::Object(written)) = serde_json::from_str(&text) else { return };
        let names: Vec<String> = written.keys().cloned().collect();
        let Ok(buckets) = Buckets::new(written.into_iter().collect()) else { return };
        for name in names {
            drop(buckets.open(&name));
        }
    });
}

#[test]
fn a_listing_is_below_its_root() {
    // What the other properties rest on: no path of a record means a file outside.
    let place = Place::new();
    let found = place.runtime.block_on(place.store.objects().list(None).collect::<Vec<_>>());
    assert!(!found.is_empty() && FilePath::new(&place.root()).is_dir());
    let read = place.runtime.block_on(place.store.objects().get(&Path::from("../outside.parquet")));
    assert!(read.is_err());
}
