//! The events of runs, which go with their records.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use object_store::{ObjectMeta, path::Path};

use super::Store;
use crate::failure::Failure;

impl Store {
    /// The events of runs that nobody keeps: of those whose records go, and, of runs that have none since they found everything as
    /// it was, of those before the oldest record that is kept, if they are old.
    pub(super) async fn old_events(
        &self,
        kept: &[ObjectMeta],
        gone: &[Path],
        is_old: impl Fn(&ObjectMeta) -> bool,
    ) -> Result<Vec<ObjectMeta>, Failure> {
        let gone: BTreeSet<(String, String)> = gone.iter().filter_map(run_of).collect();
        let mut records: BTreeSet<(String, String)> = BTreeSet::new();
        let mut oldest: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
        for meta in kept {
            let Some(run) = run_of(&meta.location) else { continue };
            let first = oldest.entry(run.0.clone()).or_insert(meta.last_modified);
            *first = meta.last_modified.min(*first);
            records.insert(run);
        }
        let is_unneeded = |meta: &ObjectMeta| {
            let Some(run) = run_of(&meta.location) else { return false };
            let is_before = oldest.get(&run.0).is_none_or(|first| meta.last_modified < *first);
            gone.contains(&run) || !records.contains(&run) && is_before && is_old(meta)
        };
        Ok(self.list(&Path::from("lineage")).await?.into_iter().filter(is_unneeded).collect())
    }
}

/// The pipeline and the run that an object is about: `runs/<pipeline>/<run>.json`, `lineage/<pipeline>/<run>.ndjson`.
fn run_of(path: &Path) -> Option<(String, String)> {
    let parts: Vec<_> = path.parts().collect();
    let [_, pipeline, file] = parts.as_slice() else { return None };
    let run = file.as_ref().strip_suffix(".json").or_else(|| file.as_ref().strip_suffix(".ndjson"))?;
    Some((pipeline.as_ref().to_owned(), run.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Buckets, Keep};

    #[tokio::test]
    async fn events_go_with_their_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        // 1 has a record that goes, 2 found all as it was, 3 and 4 stay, 5 as 2 but later. `q` has no records any more.
        let written = [
            "runs/p/1.json",
            "lineage/p/1.ndjson",
            "lineage/p/2.ndjson",
            "runs/p/3.json",
            "lineage/p/3.ndjson",
            "runs/p/4.json",
            "lineage/p/4.ndjson",
            "lineage/p/5.ndjson",
            "lineage/q/6.ndjson",
            "lineage/other",
        ];
        let began = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
        for (second, name) in written.iter().enumerate() {
            store.write(&Path::from(*name), "{}".into()).await.expect("written");
            let file = std::fs::File::options().write(true).open(folder.path().join(name)).expect("there");
            file.set_modified(began + std::time::Duration::from_secs(second as u64)).expect("another time");
        }
        let lineage = async || -> Vec<String> {
            let found = store.list(&Path::from("lineage")).await.expect("listed");
            let mut found: Vec<String> = found.into_iter().map(|meta| meta.location.to_string()).collect();
            found.sort();
            found
        };
        let keep = |seconds| Keep { runs: 2, grace: std::time::Duration::from_secs(seconds) };
        store.collect(keep(10_000), false).await.expect("collected");
        assert_eq!(lineage().await.len(), 7, "all is young");
        let counted = store.collect(keep(0), true).await.expect("counted");
        assert_eq!(lineage().await.len(), 7, "a dry run removes nothing");
        let collected = store.collect(keep(0), false).await.expect("collected");
        assert_eq!((counted.files, collected.files, collected.runs), (3, 3, 1), "those of 1, 2 and 6");
        assert_eq!(lineage().await, ["lineage/other", "lineage/p/3.ndjson", "lineage/p/4.ndjson", "lineage/p/5.ndjson"]);
    }
}
