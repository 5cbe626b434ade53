//! The records on a store.
//!
//! ```text
//! parts/<step>/<record>/<attempt>-<output>-<n>-<digest>.parquet   rows of one partition; blobs lie beside them
//! parts/<step>/<record>.json                              that partition's record, put if absent
//! manifests/<digest>.json                                 an artifact
//! actions/<stage key>/<generation>.json                   the commit, put if absent
//! actions/<stage key>/<generation>.damaged                what of it was found not to hold what was written
//! ```

use std::collections::BTreeMap;

use arrow::datatypes::Schema;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, path::Path};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FORMAT, Store, pieces};
use crate::{digest::RowsDigest, failure::Failure};

/// A Parquet file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where it lies, from the store's root.
    pub path: String,
    /// Size of the file.
    pub bytes: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes that the rows hold, uncompressed: what partitions are sized by.
    pub content_bytes: u64,
    /// [`RowsDigest`] of its rows.
    pub digest: String,
}

/// A file of an artifact that isn't rows: weights, a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name in the artifact (`checkpoint/config.json`).
    pub name: String,
    /// Where it lies, from the store's root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// blake3 of its content, hex.
    pub digest: String,
}

/// A file of an artifact that isn't on the store: it stays where its owner keeps it, such as the weights of a checkpoint that was
/// made elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name in the artifact (`checkpoint/model.safetensors`).
    pub name: String,
    /// Where it is: a local path, an `s3://` URL, or an `hf://` URL with the commit.
    pub url: String,
    /// How its place is called to people: a local path relative to the pipeline file.
    pub source: String,
    /// Its size.
    pub bytes: u64,
    /// The state that is meant: the digest of its content (`blake3:`, `sha256:`), or an etag.
    pub version: String,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    pub r#type: String,
    /// Whether it may be null.
    pub nullable: bool,
}

/// What one partition of a stage wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// What it was computed on, where that may show in the last digits: `cpu`, `cuda:0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Unique to the writer, so that a put whose answer was lost is recognised.
    pub attempt: String,
    /// Parts by output.
    pub outputs: BTreeMap<String, Vec<Part>>,
    /// Blobs by output.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blobs: BTreeMap<String, Vec<Blob>>,
    /// References by output.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, Vec<Reference>>,
    /// Units of work done (requests, or input rows), for `min_yield`.
    pub units: u64,
}

/// A table of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Number of rows.
    pub rows: u64,
    /// Digest over rows and schema, independent of the files.
    pub digest: String,
    /// Its files, in order.
    pub parts: Vec<Part>,
    /// What its rows point to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Blob>,
    /// What its rows point to and the store doesn't have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

impl TableManifest {
    /// The table made of `parts`.
    pub fn new(schema: &Schema, parts: Vec<Part>, blobs: Vec<Blob>) -> Self {
        let mut digest = RowsDigest::default();
        for part in &parts {
            digest.merge(RowsDigest::parse(&part.digest).unwrap_or_default());
        }
        let columns = schema
            .fields()
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                r#type: field.data_type().to_string(),
                nullable: field.is_nullable(),
            })
            .collect();
        Self { columns, rows: digest.rows, digest: digest.of_table(schema), parts, blobs, references: Vec::new() }
    }

    /// Bytes that the rows hold, uncompressed.
    pub fn content_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.content_bytes))
    }
}

/// The record that names an artifact's files. Its name is its own digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Tables by output.
    pub outputs: BTreeMap<String, TableManifest>,
    /// Units of work done, for `min_yield`.
    pub units: u64,
}

/// The highest generation of a stage key that was committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Its number.
    pub generation: u64,
    /// Its action, if that can be read.
    pub action: Option<Action>,
    /// Whether something of it was found not to hold what was written.
    pub is_damaged: bool,
}

/// Files that are verified at once.
const READS: usize = 8;

/// The commit of a generation of a stage key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// [`FORMAT`].
    pub format: u32,
    /// The manifest's path.
    pub manifest: String,
    /// Everything that the stage key is the hash of.
    pub preimage: Value,
    /// The pipeline, stage and run that filled it.
    pub filled_by: Value,
    /// What it took: wall time, calls, tokens.
    pub usage: Value,
}

impl Manifest {
    /// A manifest in this program's format.
    pub fn new(outputs: BTreeMap<String, TableManifest>, units: u64) -> Self {
        Self { format: FORMAT, outputs, units }
    }

    /// Every file that the artifact needs, with its size.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.outputs.values().flat_map(|table| {
            let parts = table.parts.iter().map(|part| (part.path.as_str(), part.bytes));
            parts.chain(table.blobs.iter().map(|blob| (blob.path.as_str(), blob.bytes)))
        })
    }
}

impl Store {
    pub(super) fn damage(stage_key: &str, generation: u64) -> Path {
        Self::actions(stage_key).join(format!("{generation:06}.damaged"))
    }

    fn actions(stage_key: &str) -> Path {
        Path::from_iter(["actions", &stage_key[..2], stage_key])
    }

    pub(super) fn action(stage_key: &str, generation: u64) -> Path {
        Self::actions(stage_key).join(format!("{generation:06}.json"))
    }

    /// The highest generation of a stage key that was committed.
    ///
    /// # Errors
    /// When the store fails. A record that can't be read counts as not there.
    pub async fn latest_action(&self, stage_key: &str) -> Result<Option<Committed>, Failure> {
        // Keys come from records, too, and those from anybody.
        if !is_stage_key(stage_key) {
            return Ok(None);
        }
        let found = self.list(&Self::actions(stage_key)).await?;
        let generation = |meta: &ObjectMeta| meta.location.filename()?.strip_suffix(".json")?.parse::<u32>().ok();
        let Some(generation) = found.iter().filter_map(generation).max().map(u64::from) else { return Ok(None) };
        let is_damaged = found.iter().any(|meta| meta.location == Self::damage(stage_key, generation));
        let content = self.read(&Self::action(stage_key, generation)).await?;
        let action = content.and_then(|content| serde_json::from_slice(&content).ok());
        Ok(Some(Committed { generation, action, is_damaged }))
    }

    /// Says that an object of a generation doesn't hold what was written there: it is no hit any more.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn condemn(&self, stage_key: &str, generation: u64, object: &str) -> Result<(), Failure> {
        self.write(&Self::damage(stage_key, generation), object.to_owned().into()).await
    }

    /// The first file of `manifest` that doesn't hold what was written there. Reads all of them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn damaged_file(&self, manifest: &Manifest) -> Result<Option<String>, Failure> {
        let parts = manifest.outputs.values().flat_map(|table| &table.parts).map(|part| (part.path.clone(), part.bytes, None));
        let blobs = manifest.outputs.values().flat_map(|table| &table.blobs);
        let blobs = blobs.map(|blob| (blob.path.clone(), blob.bytes, Some(blob.digest.clone())));
        let files: Vec<_> = parts.chain(blobs).collect();
        let mut checks = futures::stream::iter(files.into_iter().map(|(path, bytes, digest)| self.is_whole(path, bytes, digest)))
            .buffered(READS);
        while let Some((path, is_whole)) = checks.try_next().await? {
            if !is_whole {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether a file has the digest given; the name of a part has its own, which every reading compares.
    async fn is_whole(&self, path: String, bytes: u64, digest: Option<String>) -> Result<(String, bool), Failure> {
        let mut hasher = blake3::Hasher::new();
        let mut pieces = pieces(self.objects().clone(), Path::from(path.as_str()), bytes);
        loop {
            match pieces.try_next().await {
                Ok(Some((piece, _))) => {
                    hasher.update(&piece);
                }
                Ok(None) => break,
                Err(error) => {
                    let failure = Failure::from(error);
                    return if failure.damaged.is_some() { Ok((path, false)) } else { Err(failure) };
                }
            }
        }
        let is_whole = digest.is_none_or(|digest| hasher.finalize().to_hex().as_str() == digest);
        Ok((path, is_whole))
    }

    /// The manifest at `path`; `None` if it isn't there or isn't what its name says.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn manifest(&self, path: &str) -> Result<Option<Manifest>, Failure> {
        let Some(content) = self.read(&Path::from(path)).await? else { return Ok(None) };
        let digest = blake3::hash(&content).to_hex();
        if !path.ends_with(&format!("{digest}.json")) {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&content).ok())
    }

    /// The first file of `manifest` that is missing or has another size, with what was found.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn missing_file(&self, manifest: &Manifest) -> Result<Option<String>, Failure> {
        let mut folders: BTreeMap<Path, Vec<(&str, u64)>> = BTreeMap::new();
        for (path, bytes) in manifest.files() {
            // parts/<step>/...: one listing a step, which the store cuts into a thousand files each.
            let step = Path::from_iter(Path::from(path).parts().take(2));
            folders.entry(step).or_default().push((path, bytes));
        }
        for (folder, files) in folders {
            if self.local_path(&folder).is_some() {
                for (path, bytes) in files {
                    let size =
                        self.local_path(&Path::from(path)).and_then(|file| std::fs::metadata(file).ok()).map(|meta| meta.len());
                    if size != Some(bytes) {
                        return Ok(Some(missing(path, bytes, size)));
                    }
                }
                continue;
            }
            let found: std::collections::HashMap<Path, u64> =
                self.list(&folder).await?.into_iter().map(|meta| (meta.location, meta.size)).collect();
            for (path, bytes) in files {
                let size = found.get(&Path::from(path)).copied();
                if size != Some(bytes) {
                    return Ok(Some(missing(path, bytes, size)));
                }
            }
        }
        Ok(None)
    }

    /// Commits an artifact as a generation of a stage key: manifest first, then the action. Gives the manifest that counts:
    /// the other one's if somebody else was first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn commit(
        &self,
        stage_key: &str,
        generation: u64,
        manifest: Manifest,
        action: Action,
    ) -> Result<Manifest, Failure> {
        let content = serde_json::to_vec(&manifest).map_err(|error| Failure::bug(error.to_string()))?;
        let path = format!("manifests/{}.json", blake3::hash(&content).to_hex());
        // Its name is its digest: whatever else lies there is broken.
        if self.create(&Path::from(path.as_str()), content.clone().into()).await?.is_some() {
            self.write(&Path::from(path.as_str()), content.into()).await?;
        }
        let action = Action { manifest: path, ..action };
        let content = serde_json::to_vec(&action).map_err(|error| Failure::bug(error.to_string()))?;
        let Some(winner) = self.create(&Self::action(stage_key, generation), content.into()).await? else {
            return Ok(manifest);
        };
        let winner: Option<Action> = serde_json::from_slice(&winner).ok();
        match winner {
            Some(winner) => self.manifest(&winner.manifest).await?.ok_or_else(|| {
                Failure::external(format!("another run committed `{stage_key}`, but its manifest can't be read"))
                    .hint("run again: the next generation is filled")
            }),
            None => Err(Failure::external(format!("the action record of `{stage_key}` can't be read"))
                .hint("run again: the next generation is filled")),
        }
    }
}

/// Whether a text is a stage key and nothing else.
pub(super) fn is_stage_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn missing(path: &str, bytes: u64, found: Option<u64>) -> String {
    match found {
        None => format!("`{path}` is missing"),
        Some(found) => format!("`{path}` has {found} bytes instead of {bytes}"),
    }
}
