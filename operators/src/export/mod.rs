//! Takes tables and checkpoints out of a store, in the formats that other tools read.

mod axolotl;
mod chat;
mod croissant;

use std::{
    ffi::OsString,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    json::{WriterBuilder, writer::LineDelimited},
};
use futures::TryStreamExt;
use ingrain_engine::{failure::Failure, run::Table};
use ingrain_student::checkpoint::ADAPTER_CONFIG as ADAPTER;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::columns::text;

/// A row group of Parquet ends at so many bytes: it is held in memory whole, here and by many readers.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One Parquet file, zstd.
    Parquet,
    /// A JSON object a line, every column in it, nulls written out.
    Jsonl,
    /// A line of `messages` for each row, as trainers read them; see [`export`].
    Chat,
    /// The files that a row points to: a checkpoint or a tokenizer as a Hugging Face folder.
    Folder,
    /// A folder that Axolotl trains from: the mixture and a configuration; see [`export`].
    Axolotl,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "parquet" => Ok(Self::Parquet),
            "jsonl" => Ok(Self::Jsonl),
            "chat" => Ok(Self::Chat),
            "folder" => Ok(Self::Folder),
            "axolotl" => Ok(Self::Axolotl),
            other => Err(format!("no format is called `{other}`: there are `parquet`, `jsonl`, `chat`, `folder` and `axolotl`")),
        }
    }
}

/// An output of a stage, to be taken out.
#[derive(Debug)]
pub struct Exported<'a> {
    /// Its table.
    pub table: &'a Table,
    /// The pipeline and the output, as `pipeline/stage.output`.
    pub name: &'a str,
    /// What the pipeline file says the stage is for.
    pub description: Option<&'a str>,
    /// How the pipeline trains on it, if it does.
    pub recipe: Option<Recipe<'a>>,
    /// Where the checkpoint lies that it was made from, outside the store: a path on this machine, or `hf://repository@revision`.
    pub base: Option<&'a str>,
}

/// How a stage of the pipeline trains on a table.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// The stage, one of the operator `train`.
    pub stage: &'a str,
    /// Its config, with every default written out.
    pub config: &'a Value,
    /// Its seed.
    pub seed: u64,
    /// What it starts from.
    pub base: Base<'a>,
}

/// The checkpoint that a training starts from.
#[derive(Debug)]
pub struct Base<'a> {
    /// The stage that gives it.
    pub stage: &'a str,
    /// Whether its weights are random.
    pub random: bool,
    /// The checkpoint's folder outside the store: a path on this machine, or `hf://repository@revision`.
    pub path: Option<&'a str>,
    /// Its row, where the stage has run.
    pub table: Option<Table>,
}

/// A checkpoint, as other tools name it.
#[derive(Debug, PartialEq)]
struct Model {
    /// A folder, or a repository of the Hugging Face hub.
    name: String,
    revision: Option<String>,
}

impl Model {
    /// What `hf://repository@revision` or a path means.
    fn of(path: &str) -> Self {
        let Some(repository) = path.strip_prefix("hf://") else {
            return Self { name: path.to_owned(), revision: None };
        };
        match repository.split_once('@') {
            Some((name, revision)) => Self { name: name.to_owned(), revision: Some(revision.to_owned()) },
            None => Self { name: repository.to_owned(), revision: None },
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Rows, or files of a folder.
    pub count: u64,
    /// The files, those beside the destination included.
    pub files: Vec<PathBuf>,
    /// What is to be known or done before they are used.
    pub notes: Vec<String>,
}

/// The format that `destination` asks for by its name: `.parquet`, `.jsonl`, and a folder for what points to files.
///
/// # Errors
/// When the name doesn't tell.
pub fn format_of(destination: &Path, table: &Table) -> Result<Format, Failure> {
    let points = points_to_files(table);
    match destination.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => Ok(Format::Parquet),
        Some("jsonl") => Ok(Format::Jsonl),
        _ if points => Ok(Format::Folder),
        _ => Err(Failure::data(format!("`{}` doesn't say what to write", destination.display()))
            .hint("end it in `.parquet` or `.jsonl`, or give `--format parquet|jsonl|chat|axolotl`")),
    }
}

/// Writes an output to `destination`, which must not exist; it is there whole or not at all. Rows come by `position` where
/// there is one, else in the order of the store.
///
/// - `parquet`, `jsonl`, `chat`: a file, and beside it a description of it in Croissant 1.0 (`FILE.croissant.json`). Parquet
///   has row groups of about 128 MiB at most.
/// - `chat`: `{"row_id": …, "messages": [{"role": "user", …}, {"role": "assistant", …}]}`. A question is the user's, its
///   explanation and answer the assistant's. A row of a mixture without a prompt, which is a document, is one message of the
///   assistant's: trainers that mask what the user says train on all of it.
/// - `folder`: the files of the row that is `final`, or of the only row. An adapter's configuration names its base.
/// - `axolotl`: a folder with `mixture.jsonl`, `heldout.jsonl` where the recipe holds rows out, a Croissant description of each,
///   `config.yaml`, and `base/`, the checkpoint to start from, where it lies in the store.
///
/// # Errors
/// When the destination exists or can't be written, when the format doesn't suit the columns, and when the store fails.
pub async fn export(output: &Exported<'_>, format: Format, destination: &Path) -> Result<Written, Failure> {
    if destination.exists() {
        return Err(Failure::data(format!("`{}` is there already", destination.display()))
            .hint("nothing was written: choose another name, or move it away"));
    }
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unwritable = |error: std::io::Error| {
        Failure::external(format!("`{}` can't be written: {error}", destination.display())).hint("choose another place")
    };
    std::fs::create_dir_all(parent).map_err(unwritable)?;
    match format {
        Format::Folder => return folder(output, destination, parent).await,
        Format::Axolotl => return axolotl::folder(output, destination, parent).await,
        Format::Parquet | Format::Jsonl | Format::Chat => {}
    }
    // A temporary file is for its owner alone, and this one is to be read by others: the process's mask decides.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let staging = tempfile::Builder::new().prefix(".export").permissions(everybody).tempfile_in(parent).map_err(unwritable)?;
    let (count, digest) = rows(output.table, format, staging.as_file()).await?;
    let bytes = staging.as_file().metadata()?.len();
    let described = croissant::describe(output, format, destination, (count, bytes, &digest));
    let mut description = destination.as_os_str().to_owned();
    description.push(".croissant.json");
    let description = PathBuf::from(description);
    std::fs::write(&description, format!("{described:#}\n")).map_err(unwritable)?;
    staging.persist_noclobber(destination).map_err(|error| unwritable(error.error))?;
    Ok(Written { count, files: vec![destination.to_owned(), description], notes: Vec::new() })
}

fn points_to_files(table: &Table) -> bool {
    !table.manifest().blobs.is_empty() && table.schema().field_with_name("uri").is_ok()
}

/// A file that is hashed as it is written.
struct Hashed<W> {
    file: W,
    hash: Sha256,
}

impl<W: Write> Hashed<W> {
    fn new(file: W) -> Self {
        Self { file, hash: Sha256::new() }
    }

    /// The SHA-256 of what was written, in hexadecimal digits.
    fn digest(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes rows; gives their number and the file's SHA-256.
async fn rows(table: &Table, format: Format, file: &File) -> Result<(u64, String), Failure> {
    let mut batches = table.stream().await?;
    let mut out = Hashed::new(BufWriter::new(file));
    let mut count = 0;
    match format {
        Format::Parquet => {
            let properties = properties(ROW_GROUP_BYTES)?;
            let mut writer = ArrowWriter::try_new(&mut out, table.schema().clone(), Some(properties))?;
            while let Some(batch) = batches.try_next().await? {
                count += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
            writer.close()?;
        }
        Format::Chat => {
            let conversation = chat::Conversation::of(table.schema())?;
            while let Some(batch) = batches.try_next().await? {
                count += batch.num_rows() as u64;
                for row in 0..batch.num_rows() {
                    writeln!(out, "{}", conversation.line(&batch, row)?)?;
                }
            }
        }
        Format::Jsonl | Format::Folder | Format::Axolotl => {
            let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut out);
            while let Some(batch) = batches.try_next().await? {
                count += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
            writer.finish()?;
        }
    }
    out.flush()?;
    file.sync_all()?;
    Ok((count, out.digest()))
}

/// How Parquet is written: a row group ends at about so many encoded bytes, or at the default number of rows.
fn properties(row_group_bytes: usize) -> Result<WriterProperties, Failure> {
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("ingrain".to_owned())
        .set_max_row_group_bytes(Some(row_group_bytes))
        .build())
}

async fn folder(output: &Exported<'_>, destination: &Path, parent: &Path) -> Result<Written, Failure> {
    if !points_to_files(output.table) {
        return Err(Failure::data("the rows of this output point to no files")
            .hint("end the destination in `.parquet` or `.jsonl` to write its rows"));
    }
    let staging = staged_folder(parent)?;
    let copied = copy_files(output.table, staging.path()).await?;
    let mut files: Vec<PathBuf> = copied.iter().map(|name| destination.join(name)).collect();
    files.sort();
    let adapter = staging.path().join(ADAPTER);
    let notes = if adapter.is_file() { name_base(&adapter, output.base)? } else { Vec::new() };
    std::fs::rename(staging.path(), destination)?;
    Ok(Written { count: files.len() as u64, files, notes })
}

/// Says in an adapter's configuration where its base is: in the store it has its row's id alone, so that where a base lies changes
/// nothing there.
fn name_base(config: &Path, base: Option<&str>) -> Result<Vec<String>, Failure> {
    let Some(base) = base else {
        return Ok(vec![format!(
            "the base is no folder here and not on the hub: export it, too, and name that folder as `base_model_name_or_path` in `{ADAPTER}`"
        )]);
    };
    let malformed = |error: serde_json::Error| Failure::data(format!("`{ADAPTER}`: {error}"));
    let mut value: Value = serde_json::from_slice(&std::fs::read(config)?).map_err(malformed)?;
    let Model { name, revision } = Model::of(base);
    value["base_model_name_or_path"] = name.into();
    value["revision"] = revision.into();
    std::fs::write(config, serde_json::to_vec_pretty(&value).map_err(malformed)?)?;
    Ok(Vec::new())
}

/// A folder that is renamed when it is complete, for whom the process's mask allows.
fn staged_folder(parent: &Path) -> Result<tempfile::TempDir, Failure> {
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    Ok(tempfile::Builder::new().prefix(".export").permissions(everybody).tempdir_in(parent)?)
}

/// Copies the files that the row which counts points to into a folder; gives their names.
async fn copy_files(table: &Table, folder: &Path) -> Result<Vec<OsString>, Failure> {
    let uri = final_uri(&table.collect().await?)?;
    let source = table.folder(uri.split('/').next().unwrap_or(&uri)).await?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&source)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
        names.push(entry.file_name());
    }
    Ok(names)
}

/// Where the row that counts points to.
fn final_uri(batches: &[RecordBatch]) -> Result<String, Failure> {
    let mut only = None;
    for batch in batches {
        let uris = text(batch, "uri")?;
        let last = batch.column_by_name("final").and_then(|column| column.as_boolean_opt());
        for row in 0..batch.num_rows() {
            if last.is_none_or(|last| last.is_valid(row) && last.value(row)) {
                only = Some(uris.value(row).to_owned());
            }
        }
    }
    only.ok_or_else(|| Failure::data("no row of this output is `final`"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_path_on_this_machine_has_no_revision() {
        let model = |name: &str, revision: Option<&str>| Model { name: name.into(), revision: revision.map(str::to_owned) };
        assert_eq!(Model::of("/models/a@b"), model("/models/a@b", None));
        assert_eq!(Model::of("hf://a/b"), model("a/b", None));
        assert_eq!(Model::of("hf://a/b@c"), model("a/b", Some("c")));
    }

    use std::sync::Arc;

    use arrow::array::{ArrayRef, BooleanArray, StringArray};

    use super::*;

    #[test]
    fn the_final_checkpoint_is_taken() {
        let uris: ArrayRef = Arc::new(StringArray::from(vec!["step-1", "step-2"]));
        let last: ArrayRef = Arc::new(BooleanArray::from(vec![false, true]));
        let batch = RecordBatch::try_from_iter([("uri", uris.clone()), ("final", last)]).unwrap();
        assert_eq!(final_uri(&[batch]).unwrap(), "step-2");
        let none: ArrayRef = Arc::new(BooleanArray::from(vec![false, false]));
        let batch = RecordBatch::try_from_iter([("uri", uris), ("final", none)]).unwrap();
        assert!(final_uri(&[batch]).is_err());
    }

    #[test]
    fn row_groups_end_by_bytes() {
        // Hashes: no two are alike.
        let texts: Vec<String> = (0..4000_u32).map(|n| blake3::hash(&n.to_le_bytes()).to_hex().to_string()).collect();
        let texts: ArrayRef = Arc::new(StringArray::from(texts));
        let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties(64 << 10).unwrap())).unwrap();
        for start in (0..4000).step_by(250) {
            writer.write(&batch.slice(start, 250)).unwrap();
        }
        let metadata = writer.close().unwrap();
        assert!(metadata.num_row_groups() > 2, "{}", metadata.num_row_groups());
        assert_eq!(metadata.row_groups().iter().map(|group| group.num_rows()).sum::<i64>(), 4000);
        let largest = metadata.row_groups().iter().map(|group| group.total_byte_size()).max().unwrap();
        assert!(largest < 128 << 10, "{largest}");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("chat".parse(), Ok(Format::Chat));
        assert!("xml".parse::<Format>().unwrap_err().contains("`jsonl`"));
    }
}
