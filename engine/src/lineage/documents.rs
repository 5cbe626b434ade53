//! Documents on a store, everything made of them, and removing that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use object_store::path::Path;

use super::{
    graph::{Artifact, Lineage},
    ids::{Ids, rows},
    walk::Affected,
};
use crate::{
    failure::Failure,
    run::last_run,
    store::{Erased, Forgotten, Tombstone, same_source},
};

/// Everything that was made of some documents.
#[derive(Debug, Clone, Default)]
pub struct Dependents {
    /// By the artifact's place and the output. The outputs that the documents are in are among them.
    pub outputs: BTreeMap<(usize, String), Affected>,
    /// Answers of teachers that affected rows were made of, by `request_id`.
    pub answers: BTreeSet<String>,
    /// Answers that rows which aren't affected were made of, though these have the `doc_id` of one of the documents: of another
    /// source.
    pub of_others: BTreeSet<String>,
    /// Ids of the affected rows.
    pub rows: Ids,
}

impl Dependents {
    /// The artifacts, by place.
    pub fn artifacts(&self) -> BTreeSet<usize> {
        self.outputs.keys().map(|(artifact, _)| *artifact).collect()
    }
}

/// The last run of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastUse {
    /// Its name.
    pub pipeline: String,
    /// Its file, on the machine that it ran on.
    pub file: Option<PathBuf>,
}

impl Lineage {
    /// The sources that have a document of this `doc_id`, without those that are the same file seen from another folder. For a
    /// table without a column `source`, all files that it is of.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn sources_of(&self, doc_id: &str) -> Result<Vec<String>, Failure> {
        let wanted = Ids::from([doc_id.to_owned()]);
        let (mut exact, mut vague) = (BTreeSet::new(), BTreeSet::new());
        for (place, artifact) in self.artifacts().iter().enumerate().filter(|(_, artifact)| is_source(artifact)) {
            let mut found = BTreeSet::new();
            let mut is_there = false;
            for output in artifact.manifest.outputs.keys() {
                match self.has(place, output, "source") {
                    true => {
                        let sources = self.column_of(place, output, "source", &wanted).await?;
                        found.extend(sources.into_iter().map(|source| Tombstone::new(doc_id, &source).source));
                    }
                    false => is_there |= !self.rows_with(place, output, "doc_id", &wanted).await?.is_empty(),
                }
            }
            if found.is_empty() && is_there {
                vague.extend(files(artifact).map(|source| Tombstone::new(doc_id, source).source));
            }
            exact.append(&mut found);
        }
        let all = if exact.is_empty() { vague } else { exact };
        let is_part = |one: &String| all.iter().any(|other| other.len() > one.len() && same_source(one, other));
        Ok(all.iter().filter(|source| !is_part(source)).cloned().collect())
    }

    /// Every `doc_id` that a source gave.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn doc_ids(&self) -> Result<BTreeSet<String>, Failure> {
        let mut found = BTreeSet::new();
        for (place, artifact) in self.artifacts().iter().enumerate().filter(|(_, artifact)| is_source(artifact)) {
            for output in artifact.manifest.outputs.keys().filter(|output| self.has(place, output, "doc_id")) {
                let Some(table) = self.table(place, output) else { continue };
                rows(&self.environment, &table, &["doc_id"], (&[], None), |cells| {
                    found.extend(cells[0].map(str::to_owned));
                    true
                })
                .await?;
            }
        }
        Ok(found)
    }

    /// Everything that was made of these documents. An artifact of a source that was made without them isn't, though it may
    /// have documents that look like them.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn dependents(&self, documents: &[Tombstone]) -> Result<Dependents, Failure> {
        let mut start = Vec::new();
        for document in documents {
            let wanted = Ids::from([document.doc_id.clone()]);
            for (place, artifact) in self.artifacts().iter().enumerate() {
                let has_file = files(artifact).any(|source| document.is_in(source));
                let is_without =
                    artifact.preimage["forgotten"].as_array().is_some_and(|gone| gone.contains(&document.identity()));
                if !has_file || is_without {
                    continue;
                }
                let mut sources = BTreeSet::new();
                for output in artifact.manifest.outputs.keys().filter(|output| self.has(place, output, "source")) {
                    sources.extend(self.column_of(place, output, "source", &wanted).await?);
                }
                // The document of that id in this artifact may be of another of its files.
                if !sources.is_empty() && !sources.iter().any(|source| document.is_in(source)) {
                    continue;
                }
                for output in artifact.manifest.outputs.keys() {
                    start.push((place, output.clone(), self.rows_with(place, output, "doc_id", &wanted).await?));
                }
            }
        }
        let outputs = self.made_of(start).await?;
        let mut found = Dependents { outputs, ..Dependents::default() };
        for ((artifact, output), affected) in &found.outputs {
            if let Affected::Rows(ids) = affected {
                found.answers.extend(self.column(*artifact, output, "request_id", ("row_id", ids)).await?);
                found.rows.extend(ids.iter().cloned());
            }
        }
        let doc_ids: Ids = documents.iter().map(|document| document.doc_id.clone()).collect();
        for (place, artifact) in self.artifacts().iter().enumerate() {
            for output in artifact.manifest.outputs.keys() {
                let affected = found.outputs.get(&(place, output.clone()));
                if matches!(affected, Some(Affected::Whole)) || !self.has(place, output, "request_id") {
                    continue;
                }
                let mut others = self.rows_with(place, output, "doc_id", &doc_ids).await?;
                if let Some(Affected::Rows(ids)) = affected {
                    others.retain(|id| !ids.contains(id));
                }
                found.of_others.extend(self.column(place, output, "request_id", ("row_id", &others)).await?);
            }
        }
        found.of_others.retain(|answer| !found.answers.contains(answer));
        Ok(found)
    }

    /// The pipelines whose last run used one of these artifacts.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn last_used_by(&self, artifacts: &BTreeSet<usize>) -> Result<Vec<LastUse>, Failure> {
        let keys: BTreeSet<&str> = artifacts.iter().map(|place| self.artifacts()[*place].key.as_str()).collect();
        let records = self.environment.store.list(&Path::from("runs")).await?;
        let pipelines: BTreeSet<String> =
            records.iter().filter_map(|meta| meta.location.parts().nth(1).map(|name| name.as_ref().to_owned())).collect();
        let mut found = Vec::new();
        for pipeline in pipelines {
            let last = last_run(&self.environment, &pipeline).await?;
            if last.keys.values().any(|key| keys.contains(key.as_str())) {
                found.push(LastUse { pipeline, file: last.file });
            }
        }
        Ok(found)
    }

    /// Removes the artifacts of `dependents`, and what this machine keeps of their blobs, as [`crate::store::Store::erase`]
    /// does.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn erase(
        &self,
        dependents: &Dependents,
        documents: &[Forgotten],
        grace: Duration,
        dry_run: bool,
    ) -> Result<Erased, Failure> {
        let doomed = dependents.artifacts().into_iter().map(|place| &self.artifacts()[place]);
        let doomed = doomed.map(|artifact| (artifact.key.clone(), artifact.generation)).collect();
        let since = documents.iter().map(|document| document.since).max().unwrap_or_default();
        let erased = self.environment.store.erase(&doomed, since, grace, dry_run).await?;
        if !dry_run {
            self.environment.blobs.remove(&erased.blobs);
        }
        Ok(erased)
    }

    fn has(&self, artifact: usize, output: &str, column: &str) -> bool {
        let schema = self.artifacts()[artifact].schemas.get(output);
        schema.is_some_and(|schema| schema.column_with_name(column).is_some())
    }

    /// What rows of a document have in a column.
    async fn column_of(&self, artifact: usize, output: &str, column: &str, doc_ids: &Ids) -> Result<BTreeSet<String>, Failure> {
        self.column(artifact, output, column, ("doc_id", doc_ids)).await
    }

    /// What the rows that have one of `wanted` in the column `by` have in another one.
    async fn column(
        &self,
        artifact: usize,
        output: &str,
        column: &str,
        (by, wanted): (&str, &Ids),
    ) -> Result<BTreeSet<String>, Failure> {
        let mut found = BTreeSet::new();
        let Some(table) = self.table(artifact, output) else { return Ok(found) };
        if self.has(artifact, output, column) && self.has(artifact, output, by) {
            rows(&self.environment, &table, &[column], (&[by], Some(wanted)), |cells| {
                found.extend(cells[0].map(str::to_owned));
                true
            })
            .await?;
        }
        Ok(found)
    }
}

/// Whether an artifact was read from files.
fn is_source(artifact: &Artifact) -> bool {
    files(artifact).next().is_some()
}

/// The source paths of the files that an artifact was read from.
fn files(artifact: &Artifact) -> impl Iterator<Item = &str> {
    let files = artifact.preimage["source"].as_array();
    files.into_iter().flatten().filter_map(|file| file[1].as_str())
}
