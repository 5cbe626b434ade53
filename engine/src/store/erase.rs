//! Removing artifacts at once, whatever their age: those that hold something of a forgotten document.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};
use object_store::{ObjectMeta, path::Path};
use serde::Serialize;
use serde_json::Value;

use super::{
    Store,
    collect::{Listed, age, step},
    lease,
};
use crate::failure::Failure;

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Artifacts.
    pub artifacts: usize,
    /// Their files, and those that belong to no artifact.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that belong to no artifact and are younger than the last tombstone: a run may be writing them.
    pub young_files: usize,
    /// Stages that somebody is at work on.
    pub at_work: usize,
    /// Content digests of blobs that only these artifacts had.
    #[serde(skip)]
    pub(crate) blobs: BTreeSet<String>,
}

impl Store {
    /// Removes artifacts, by stage key and generation, with all files that no other artifact has; or only counts them.
    ///
    /// Records and events of runs from before `since` go where they say why a stage failed: the message may quote a text.
    ///
    /// The actions go first, so that no run finds an artifact whose files go; then the records of partitions, so that none is
    /// found either; the files last. Interrupted, the rest belongs to no artifact, and goes with the next call: files of no
    /// artifact may hold anything, so those from before `since` go whatever their age, and younger ones when nothing of
    /// their stage has been written for `grace`. A run that is reading what goes, or that counts on partitions which it committed
    /// before `since`, fails and makes them anew when it is run again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn erase(
        &self,
        doomed: &BTreeSet<(String, u64)>,
        since: DateTime<Utc>,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Erased, Failure> {
        let listing = self.listing().await?;
        let (doomed, kept): (Vec<_>, Vec<_>) =
            listing.actions.iter().partition(|action| doomed.contains(&(action.key.clone(), action.generation.into())));
        let manifests =
            |actions: &[&Listed]| -> BTreeSet<String> { actions.iter().filter_map(|action| action.manifest.clone()).collect() };
        // Two actions may name one manifest, and two manifests one file.
        let kept_manifests = manifests(&kept);
        let gone_manifests: BTreeSet<String> = manifests(&doomed).difference(&kept_manifests).cloned().collect();
        let (needed, needed_blobs) = self.content(&kept_manifests).await?;
        let (gone, gone_blobs) = self.content(&gone_manifests).await?;
        let partitions =
            |files: &BTreeSet<String>| -> BTreeSet<String> { files.iter().map(|file| partition(file).to_owned()).collect() };
        let (needed_partitions, gone_partitions) = (partitions(&needed), partitions(&gone));
        let mut erased = Erased { artifacts: doomed.len(), ..Erased::default() };
        erased.blobs = gone_blobs.difference(&needed_blobs).cloned().collect();
        let at_work = |meta: &&ObjectMeta| age(listing.now, meta) < lease::EXPIRY;
        erased.at_work = self.list(&Path::from("leases")).await?.iter().filter(at_work).count();

        let mut youngest: HashMap<&str, DateTime<Utc>> = HashMap::new();
        for meta in &listing.parts {
            let last = youngest.entry(step(meta)).or_insert(meta.last_modified);
            *last = meta.last_modified.max(*last);
        }
        let settled = |meta: &ObjectMeta| {
            let last = youngest.get(step(meta)).copied().unwrap_or(meta.last_modified);
            meta.last_modified <= since || listing.now.signed_duration_since(last).to_std().unwrap_or_default() >= grace
        };
        let (mut records, mut files) = (Vec::new(), Vec::new());
        for meta in &listing.parts {
            let path = meta.location.as_ref();
            // parts/<step>/<record>.json goes with the folder of that name.
            let record = path.strip_suffix(".json").filter(|_| meta.location.parts().count() == 3);
            let (is_needed, is_gone) = match record {
                Some(record) => (needed_partitions.contains(record), gone_partitions.contains(record)),
                None => (needed.contains(path), gone.contains(path)),
            };
            match is_needed {
                true => {}
                false if !is_gone && !settled(meta) => erased.young_files += 1,
                false if record.is_some() => records.push(meta),
                false => files.push(meta),
            }
        }
        let unused = |meta: &&ObjectMeta| {
            let path = meta.location.as_ref();
            gone_manifests.contains(path) || !kept_manifests.contains(path) && meta.last_modified <= since
        };
        let manifests: Vec<&ObjectMeta> = listing.manifests.iter().filter(unused).collect();
        let failed = self.failed_runs(since).await?;
        erased.files = records.len() + files.len() + manifests.len() + failed.len();
        let bytes = |metas: &[&ObjectMeta]| metas.iter().map(|meta| meta.size).sum::<u64>();
        erased.bytes = bytes(&records) + bytes(&files) + bytes(&manifests) + failed.iter().map(|meta| meta.size).sum::<u64>();
        if dry_run {
            return Ok(erased);
        }
        let paths = |metas: &[&ObjectMeta]| metas.iter().map(|meta| meta.location.clone()).collect::<Vec<_>>();
        self.delete(doomed.iter().map(|action| action.meta.location.clone()).collect()).await?;
        self.delete(doomed.iter().map(|action| Self::damage(&action.key, action.generation.into())).collect()).await?;
        self.delete(paths(&records)).await?;
        self.delete(paths(&manifests)).await?;
        self.delete(paths(&files)).await?;
        self.delete(failed.into_iter().map(|meta| meta.location).collect()).await?;
        Ok(erased)
    }

    /// Records and events of runs from before `since` that say why a stage failed: such a message may quote what it choked on.
    async fn failed_runs(&self, since: DateTime<Utc>) -> Result<Vec<ObjectMeta>, Failure> {
        let mut found = Vec::new();
        for folder in ["runs", "lineage"] {
            for meta in self.list(&Path::from(folder)).await?.into_iter().filter(|meta| meta.last_modified <= since) {
                let Some(content) = self.read(&meta.location).await? else { continue };
                let says = |line: &[u8]| serde_json::from_slice::<Value>(line).map_or(true, |line| says_why(&line));
                let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                if lines.any(says) {
                    found.push(meta);
                }
            }
        }
        Ok(found)
    }

    /// Paths of all files that some manifests name, and digests of the blobs among them.
    async fn content(&self, manifests: &BTreeSet<String>) -> Result<(BTreeSet<String>, BTreeSet<String>), Failure> {
        let (mut files, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for path in manifests {
            if let Some(manifest) = self.manifest(path).await? {
                files.extend(manifest.files().map(|(file, _)| file.to_owned()));
                let of = manifest.outputs.values().flat_map(|table| &table.blobs);
                blobs.extend(of.map(|blob| blob.digest.clone()));
            }
        }
        Ok((files, blobs))
    }
}

/// Whether a run's record, or one of its events, has the message of a failure.
fn says_why(line: &Value) -> bool {
    let has_failed = line["failures"].as_object().is_some_and(|failures| !failures.is_empty());
    has_failed || !line["run"]["facets"]["errorMessage"].is_null()
}

/// `parts/<step>/<record>`: the partition that a file is of.
fn partition(file: &str) -> &str {
    file.match_indices('/').nth(2).map_or(file, |(end, _)| &file[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::collect::tests::{commit, key, paths, store};

    #[tokio::test]
    async fn an_artifact_goes_at_once_but_for_what_others_share() {
        let (_folder, store) = store().await;
        for letter in ['a', 'b', 'c'] {
            commit(&store, &key(letter), "r").await;
        }
        let action = store.latest_action(&key('b')).await.expect("read").and_then(|found| found.action).expect("an action");
        let manifest = store.manifest(&action.manifest).await.expect("read").expect("a manifest");
        store.commit(&key('d'), 0, manifest, action).await.expect("committed");
        let left_behind = format!("parts/{}/r9/x-default-0000.parquet", key('e'));
        store.write(&Path::from(left_behind.as_str()), "text".into()).await.expect("written");
        let doomed: BTreeSet<(String, u64)> = [(key('a'), 0), (key('b'), 0)].into();
        let (long_ago, day) = (DateTime::<Utc>::UNIX_EPOCH, Duration::from_secs(86_400));
        let before = paths(&store).await;
        let counted = store.erase(&doomed, long_ago, day, true).await.expect("counted");
        assert_eq!(paths(&store).await, before, "a dry run removes nothing");
        let erased = store.erase(&doomed, long_ago, day, false).await.expect("erased");
        assert_eq!(erased, counted);
        assert_eq!((erased.artifacts, erased.files, erased.young_files), (2, 4, 1), "manifest, record, part and blob of `a`");
        let left = paths(&store).await;
        let of_a = format!("/{}/", key('a'));
        assert!(left.iter().all(|path| !path.contains(&of_a)), "{left:?}");
        assert!(left.contains(&left_behind));
        assert!(store.latest_action(&key('b')).await.expect("read").is_none());
        for letter in ['c', 'd'] {
            let action = store.latest_action(&key(letter)).await.expect("read").and_then(|found| found.action);
            let manifest = store.manifest(&action.expect("an action").manifest).await.expect("read").expect("a manifest");
            assert_eq!(store.missing_file(&manifest).await.expect("listed"), None);
        }
        for (run, failures) in [("well", serde_json::json!({})), ("ill", serde_json::json!({ "a": { "message": "a text" } }))] {
            let record = serde_json::json!({ "run": run, "stages": {}, "failures": failures }).to_string();
            store.write(&Path::from(format!("runs/p/{run}.json")), record.into()).await.expect("written");
        }
        let event = serde_json::json!({ "run": { "facets": { "errorMessage": { "message": "a text" } } } });
        store.write(&Path::from("lineage/p/ill.ndjson"), format!("{{}}\n{event}\n").into()).await.expect("written");
        store.write(&Path::from("lineage/p/well.ndjson"), "{\"run\":{}}\n".into()).await.expect("written");
        let later = Utc::now() + chrono::Duration::seconds(60);
        let erased = store.erase(&BTreeSet::new(), later, day, false).await.expect("erased");
        assert_eq!((erased.artifacts, erased.files, erased.young_files), (0, 3, 0), "what no artifact has goes, young as it is");
        let runs = store.list(&Path::from("runs")).await.expect("listed");
        assert_eq!(runs.len(), 1, "{runs:?}");
        assert!(store.read(&Path::from("lineage/p/ill.ndjson")).await.expect("read").is_none());
        assert!(store.read(&Path::from("lineage/p/well.ndjson")).await.expect("read").is_some());
    }
}
