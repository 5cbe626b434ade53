//! Removing what no recent run needs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};
use object_store::{ObjectMeta, ObjectStoreExt, path::Path};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Action, Store, lease, manifest::is_stage_key};
use crate::failure::Failure;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The last so many runs of each pipeline.
    pub runs: usize,
    /// All that is younger, and data for so long after the action that named it is gone: a run that found the action before
    /// may still be reading.
    pub grace: Duration,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Artifacts that no kept run used: nothing finds them any more.
    pub artifacts: usize,
    /// Records of runs that aren't kept.
    pub runs: usize,
    /// Files whose artifacts are gone, those that killed runs left behind, and events of runs that aren't kept.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of files whose artifacts are gone, and which follow when the grace time is over.
    pub later_bytes: u64,
}

/// When artifacts were taken out of use, by the path of their manifest.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Retired {
    manifests: BTreeMap<String, DateTime<Utc>>,
}

const RETIRED: &str = "gc/retired.json";

/// The store as it was listed.
pub(super) struct Listing {
    pub(super) now: DateTime<Utc>,
    pub(super) actions: Vec<Listed>,
    pub(super) manifests: Vec<ObjectMeta>,
    pub(super) parts: Vec<ObjectMeta>,
}

/// An action with what it commits.
pub(super) struct Listed {
    pub(super) meta: ObjectMeta,
    pub(super) key: String,
    pub(super) generation: u32,
    pub(super) manifest: Option<String>,
}

impl Store {
    /// Removes what no kept run needs, or only counts it. Answers of teachers and what was spent stay.
    ///
    /// An artifact is kept if one of the last runs of a pipeline used it, or if it is younger than the grace time. Of another one
    /// the action goes first, so that no run finds it any more, and its files when the grace time has passed since; so a run that
    /// is reading them goes on. Files that belong to no artifact go when nothing of their stage has been written for that long.
    /// Times are the store's own. Two collections at once remove the same things.
    ///
    /// # Errors
    /// When the store fails. What was removed until then was not needed.
    pub async fn collect(&self, keep: Keep, dry_run: bool) -> Result<Collected, Failure> {
        let grace = chrono::Duration::from_std(keep.grace).unwrap_or(chrono::Duration::MAX);
        let listing = self.listing().await?;
        let is_old = |meta: &ObjectMeta| listing.now.signed_duration_since(meta.last_modified) >= grace;
        let mut collected = Collected::default();

        let (kept_keys, mut kept_runs, old_runs) = self.runs(keep.runs).await?;
        let (old_runs, young_runs): (Vec<ObjectMeta>, Vec<ObjectMeta>) = old_runs.into_iter().partition(is_old);
        kept_runs.extend(young_runs);
        let old_runs: Vec<Path> = old_runs.into_iter().map(|meta| meta.location).collect();
        collected.runs = old_runs.len();
        let events = self.old_events(&kept_runs, &old_runs, is_old).await?;
        // Who lives writes them anew all the time.
        let is_expired = |meta: &ObjectMeta| is_old(meta) && age(listing.now, meta) >= lease::EXPIRY;
        let leases = self.list(&Path::from("leases")).await?.into_iter().filter(is_expired).map(|meta| meta.location).collect();

        let highest = |key: &str| listing.actions.iter().filter(|action| action.key == key).map(|action| action.generation).max();
        let is_kept = |action: &Listed| {
            !is_old(&action.meta) || kept_keys.contains(&action.key) && highest(&action.key) == Some(action.generation)
        };
        let (kept, retiring): (Vec<&Listed>, Vec<&Listed>) = listing.actions.iter().partition(|action| is_kept(action));
        collected.artifacts = retiring.len();

        // Two actions may name one manifest.
        let kept_manifests: BTreeSet<&str> = kept.iter().filter_map(|action| action.manifest.as_deref()).collect();
        let mut retired = self.retired().await?;
        for manifest in retiring.iter().filter_map(|action| action.manifest.as_ref()) {
            retired.manifests.entry(manifest.clone()).or_insert(listing.now);
        }
        retired.manifests.retain(|manifest, _| !kept_manifests.contains(manifest.as_str()));
        let is_reading = |since: &DateTime<Utc>| listing.now.signed_duration_since(*since) < grace;
        let held: Vec<&str> =
            retired.manifests.iter().filter(|(_, since)| is_reading(since)).map(|(manifest, _)| manifest.as_str()).collect();

        let needed = self.files(kept_manifests.iter().copied()).await?;
        let later = self.files(held.iter().copied()).await?;
        let mut youngest: HashMap<&str, DateTime<Utc>> = HashMap::new();
        for meta in &listing.parts {
            let last = youngest.entry(step(meta)).or_insert(meta.last_modified);
            *last = meta.last_modified.max(*last);
        }
        let folders =
            |files: &BTreeSet<String>| -> BTreeSet<String> { files.iter().map(|file| folder(file).to_owned()).collect() };
        let (needed_folders, later_folders) = (folders(&needed), folders(&later));
        let (mut records, mut files) = (Vec::new(), Vec::new());
        for meta in &listing.parts {
            let path = meta.location.as_ref();
            // parts/<step>/<record>.json goes with the folder of that name.
            let record = path.strip_suffix(".json").filter(|_| meta.location.parts().count() == 3);
            let in_use = match record {
                Some(record) => needed_folders.contains(record),
                None => needed.contains(path),
            };
            let settled = listing.now.signed_duration_since(youngest[step(meta)]) >= grace;
            if in_use || !settled {
                continue;
            }
            match record {
                // A record that is found brings its files back into use: it goes with the action.
                Some(_) => records.push(meta),
                None if later.contains(path) || later_folders.contains(folder(path)) => collected.later_bytes += meta.size,
                None => files.push(meta),
            }
        }
        let unused = |meta: &&ObjectMeta| {
            let path = meta.location.as_ref();
            is_old(meta) && !kept_manifests.contains(path) && !held.contains(&path)
        };
        let manifests: Vec<&ObjectMeta> = listing.manifests.iter().filter(unused).collect();
        collected.files = records.len() + files.len() + manifests.len() + events.len();
        collected.bytes = records.iter().chain(&files).chain(&manifests).copied().chain(&events).map(|meta| meta.size).sum();
        if dry_run {
            return Ok(collected);
        }

        retired.manifests.retain(|_, since| is_reading(since));
        let content = serde_json::to_vec(&retired).map_err(|error| Failure::bug(error.to_string()))?;
        self.write(&Path::from(RETIRED), content.into()).await?;
        let paths = |metas: &[&ObjectMeta]| metas.iter().map(|meta| meta.location.clone()).collect::<Vec<_>>();
        self.delete(events.into_iter().map(|meta| meta.location).collect()).await?;
        self.delete(old_runs).await?;
        self.delete(leases).await?;
        self.delete(retiring.iter().map(|action| action.meta.location.clone()).collect()).await?;
        self.delete(retiring.iter().map(|action| Self::damage(&action.key, action.generation.into())).collect()).await?;
        self.delete(paths(&records)).await?;
        self.delete(paths(&manifests)).await?;
        self.delete(paths(&files)).await?;
        Ok(collected)
    }

    /// Every commit that can be read: stage key, generation, action.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn commits(&self) -> Result<Vec<(String, u32, Action)>, Failure> {
        let mut found = Vec::new();
        for meta in self.list(&Path::from("actions")).await? {
            let Some((key, generation)) = committed(&meta) else { continue };
            let content = self.read(&meta.location).await?;
            if let Some(action) = content.and_then(|content| serde_json::from_slice(&content).ok()) {
                found.push((key, generation, action));
            }
        }
        found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        Ok(found)
    }

    pub(super) async fn listing(&self) -> Result<Listing, Failure> {
        // The clock that the ages of objects go by.
        let probe = Path::from(format!("gc/{}", uuid::Uuid::now_v7()));
        self.write(&probe, "now".into()).await?;
        let now = self.objects.head(&probe).await?.last_modified;
        self.delete(vec![probe]).await?;
        // Parts first: what is committed meanwhile has its files in no listing, and stays.
        let parts = self.list(&Path::from("parts")).await?;
        let manifests = self.list(&Path::from("manifests")).await?;
        let mut actions = Vec::new();
        for meta in self.list(&Path::from("actions")).await? {
            let Some((key, generation)) = committed(&meta) else { continue };
            let action = self.read(&meta.location).await?.and_then(|content| serde_json::from_slice::<Action>(&content).ok());
            actions.push(Listed { key, generation, manifest: action.map(|action| action.manifest), meta });
        }
        Ok(Listing { now, actions, manifests, parts })
    }

    /// The stage keys of the last runs of each pipeline, their records, and those of all other runs.
    async fn runs(&self, keep: usize) -> Result<(BTreeSet<String>, Vec<ObjectMeta>, Vec<ObjectMeta>), Failure> {
        let mut pipelines: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
        let found = self.list(&Path::from("runs")).await?;
        for meta in found.into_iter().filter(|meta| meta.location.as_ref().ends_with(".json")) {
            let pipeline = folder(meta.location.as_ref()).to_owned();
            pipelines.entry(pipeline).or_default().push(meta);
        }
        let (mut keys, mut kept, mut old) = (BTreeSet::new(), Vec::new(), Vec::new());
        for mut runs in pipelines.into_values() {
            runs.sort_by(|a, b| (b.last_modified, &b.location).cmp(&(a.last_modified, &a.location)));
            old.extend(runs.split_off(keep.min(runs.len())));
            for run in runs {
                let record = self.read(&run.location).await?.and_then(|content| serde_json::from_slice::<Value>(&content).ok());
                let stages = record.as_ref().and_then(|record| record["stages"].as_object());
                keys.extend(
                    stages
                        .into_iter()
                        .flat_map(|stages| stages.values())
                        .filter_map(|stage| stage["key"].as_str().map(str::to_owned)),
                );
                kept.push(run);
            }
        }
        Ok((keys, kept, old))
    }

    async fn retired(&self) -> Result<Retired, Failure> {
        let found = self.read(&Path::from(RETIRED)).await?;
        Ok(found.and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default())
    }

    /// Every file that these manifests name.
    async fn files(&self, manifests: impl Iterator<Item = &str>) -> Result<BTreeSet<String>, Failure> {
        let mut files = BTreeSet::new();
        for path in manifests {
            if let Some(manifest) = self.manifest(path).await? {
                files.extend(manifest.files().map(|(file, _)| file.to_owned()));
            }
        }
        Ok(files)
    }
}

/// The stage key and the generation that an object commits, if its name is that of an action.
fn committed(meta: &ObjectMeta) -> Option<(String, u32)> {
    let names: Vec<String> = meta.location.parts().map(|part| part.as_ref().to_owned()).collect();
    let [_, _, key, file] = names.as_slice() else { return None };
    let generation = file.strip_suffix(".json")?.parse().ok()?;
    is_stage_key(key).then(|| (key.clone(), generation))
}

/// The folder of a path.
fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// How long ago an object was written.
pub(super) fn age(now: DateTime<Utc>, meta: &ObjectMeta) -> Duration {
    now.signed_duration_since(meta.last_modified).to_std().unwrap_or_default()
}

/// `parts/<step>`: what stages of one kind and config share.
pub(super) fn step(meta: &ObjectMeta) -> &str {
    let path = meta.location.as_ref();
    path.match_indices('/').nth(1).map_or(path, |(end, _)| &path[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::{Blob, Buckets, Manifest, Part, TableManifest};

    const NOW: Keep = Keep { runs: 1, grace: Duration::ZERO };

    pub(crate) async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        (folder, store)
    }

    pub(crate) fn key(letter: char) -> String {
        letter.to_string().repeat(64)
    }

    /// Commits an artifact of one part and one blob under a key, with a record as a partition has it.
    pub(crate) async fn commit(store: &Store, key: &str, record: &str) {
        let part = format!("parts/{key}/{record}/a-default-0000.parquet");
        let blob = format!("parts/{key}/{record}/a-default/tokenizer/tokenizer.json");
        for file in [&part, &blob] {
            store.write(&Path::from(file.as_str()), "content".into()).await.expect("written");
        }
        let content = serde_json::to_vec(&serde_json::json!({ "attempt": "a", "outputs": {}, "units": 1 })).expect("JSON");
        store.write(&Path::from(format!("parts/{key}/{record}.json")), content.into()).await.expect("written");
        let part = Part { path: part, bytes: 7, rows: 0, content_bytes: 0, digest: "0-0".into() };
        let blob = Blob { name: "tokenizer/tokenizer.json".into(), path: blob, bytes: 7, digest: String::new() };
        let table = TableManifest::new(&arrow::datatypes::Schema::empty(), vec![part], vec![blob]);
        let manifest = Manifest::new([("default".to_owned(), table)].into(), 1);
        let action =
            Action { format: 1, manifest: String::new(), preimage: Value::Null, filled_by: Value::Null, usage: Value::Null };
        store.commit(key, 0, manifest, action).await.expect("committed");
    }

    async fn run(store: &Store, pipeline: &str, number: u32, keys: &[String]) {
        let stages: BTreeMap<String, Value> =
            keys.iter().map(|key| (key[..1].to_owned(), serde_json::json!({ "key": key }))).collect();
        let record = serde_json::json!({ "stages": stages }).to_string();
        store.write(&Path::from(format!("runs/{pipeline}/{number:03}.json")), record.into()).await.expect("written");
    }

    pub(crate) async fn paths(store: &Store) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        for folder in ["runs", "actions", "manifests", "parts"] {
            paths
                .extend(store.list(&Path::from(folder)).await.expect("listed").into_iter().map(|meta| meta.location.to_string()));
        }
        paths.sort();
        paths
    }

    #[tokio::test]
    async fn what_the_last_run_of_each_pipeline_used_stays() {
        let (_folder, store) = store().await;
        for letter in ['a', 'b', 'c', 'd'] {
            commit(&store, &key(letter), "r").await;
        }
        run(&store, "one", 1, &[key('a'), key('b')]).await;
        run(&store, "one", 2, &[key('b')]).await;
        run(&store, "two", 1, &[key('c')]).await;
        let before = paths(&store).await;
        let counted = store.collect(NOW, true).await.expect("counted");
        assert_eq!(paths(&store).await, before, "a dry run removes nothing");
        let collected = store.collect(NOW, false).await.expect("collected");
        assert_eq!(counted, collected);
        assert_eq!((collected.artifacts, collected.runs), (2, 1), "those of `a` and `d`, and the first run");
        let left = paths(&store).await;
        let gone = |letter: char| left.iter().all(|path| !path.contains(&key(letter)));
        assert!(gone('a') && gone('d') && !gone('b') && !gone('c'), "{left:?}");
        assert!(store.latest_action(&key('b')).await.expect("read").is_some());
        assert_eq!(store.collect(NOW, false).await.expect("collected"), Collected::default(), "nothing is left to do");
    }

    #[tokio::test]
    async fn what_has_no_stage_key_for_a_name_is_no_action_and_stays() {
        let (_folder, store) = store().await;
        for name in ["actions/ab/x/000001.json", "actions/\u{e4}/\u{e4}/000001.json"] {
            store.write(&Path::from(name), "{}".into()).await.expect("written");
        }
        assert_eq!(store.collect(NOW, false).await.expect("collected"), Collected::default());
        assert_eq!(paths(&store).await.len(), 2);
    }

    #[tokio::test]
    async fn files_wait_for_the_grace_time_after_their_action_is_gone() {
        let (_folder, store) = store().await;
        commit(&store, &key('a'), "r").await;
        run(&store, "one", 1, &[]).await;
        let hour = Keep { runs: 1, grace: Duration::from_secs(3600) };
        assert_eq!(store.collect(hour, false).await.expect("collected"), Collected::default(), "all is young");
        // As if the action had gone just now, and everything else were old.
        let manifest =
            store.latest_action(&key('a')).await.expect("read").and_then(|found| found.action).expect("an action").manifest;
        let retired = |ago: i64| {
            let since = Utc::now() - chrono::Duration::seconds(ago);
            serde_json::to_vec(&Retired { manifests: [(manifest.clone(), since)].into() }).expect("JSON")
        };
        store.delete(vec![Store::action(&key('a'), 0)]).await.expect("deleted");
        store.write(&Path::from(RETIRED), retired(-60).into()).await.expect("written");
        let collected = store.collect(NOW, false).await.expect("collected");
        assert_eq!((collected.files, collected.later_bytes), (1, 14), "the partition's record; part and blob follow");
        store.write(&Path::from(RETIRED), retired(60).into()).await.expect("written");
        let collected = store.collect(NOW, false).await.expect("collected");
        assert_eq!((collected.files, collected.later_bytes), (3, 0), "manifest, part, blob");
        assert!(paths(&store).await.iter().all(|path| path.starts_with("runs/")));
    }

    #[tokio::test]
    async fn a_part_that_two_artifacts_share_stays_with_one_of_them() {
        let (_folder, store) = store().await;
        commit(&store, &key('a'), "r").await;
        let action = store.latest_action(&key('a')).await.expect("read").and_then(|found| found.action).expect("an action");
        let manifest = store.manifest(&action.manifest).await.expect("read").expect("a manifest");
        store.commit(&key('b'), 0, manifest, action).await.expect("committed");
        run(&store, "one", 1, &[key('b')]).await;
        let collected = store.collect(NOW, false).await.expect("collected");
        assert_eq!((collected.artifacts, collected.files), (1, 0));
        assert_eq!(paths(&store).await.iter().filter(|path| path.starts_with("parts/")).count(), 3);
    }
}
