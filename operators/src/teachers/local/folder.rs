//! The folder of a local checkpoint: whether it is one, and what it holds, by digest.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use ingrain_engine::{failure::Failure, run::content_digest};
use ingrain_student::{Architecture, checkpoint::FILES};

const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "safetensors";

/// No small file is larger, in bytes.
const LARGEST: u64 = 256 << 20;

/// Whether the folder has what a checkpoint needs, by the names of its files and its `config.json`. Reads no weights.
///
/// # Errors
/// What is missing.
pub(super) fn check(folder: &Path) -> Result<(), String> {
    let name = folder.display();
    if !folder.is_dir() {
        let what = if folder.exists() { "isn't a folder" } else { "isn't there" };
        return Err(format!("`{name}` {what}: `checkpoint` names a folder with a Hugging Face checkpoint"));
    }
    let missing = |file: &str| format!("`{name}` isn't a Hugging Face checkpoint: it has no `{file}`");
    for file in [CONFIG, TOKENIZER] {
        if !folder.join(file).is_file() {
            return Err(missing(file));
        }
    }
    let has_weights = files(folder).map_err(|error| format!("`{name}`: {error}"))?.iter().any(|file| is_weights(file));
    if !has_weights {
        return Err(missing("model.safetensors"));
    }
    architecture(folder).map(|_| ())
}

/// The folder's `config.json`.
pub(super) fn architecture(folder: &Path) -> Result<Architecture, String> {
    let path = folder.join(CONFIG);
    let json = read(&path)?;
    Architecture::from_json(&json).map_err(|error| format!("`{}`: {error}", path.display()))
}

/// The folder's small files, by name.
pub(super) fn small_files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let there = FILES.into_iter().map(|name| (name, folder.join(name))).filter(|(_, path)| path.is_file());
    there.map(|(name, path)| Ok((name.to_owned(), read(&path)?))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("`{}`: {error}", path.display());
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > LARGEST {
        return Err(format!("`{}` has {size} bytes, where at most {LARGEST} are expected", path.display()));
    }
    fs::read(path).map_err(unreadable)
}

fn is_weights(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == WEIGHTS)
}

/// The files that decide an answer, by name.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let small = path.file_name().is_some_and(|name| FILES.iter().chain([&CONFIG, &INDEX]).any(|small| name == *small));
        if (small || is_weights(&path)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A digest of the files that decide an answer, their names included. What is known of a file under `cache` is taken from there.
///
/// # Errors
/// When a file can't be read.
pub(super) fn digest(folder: &Path, cache: &Path) -> Result<String, Failure> {
    let unreadable = |path: &Path, error: io::Error| Failure::data(format!("`{}` can't be read: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"checkpoint");
    for path in files(folder).map_err(|error| unreadable(folder, error))? {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let digest = content_digest(&path, cache).map_err(|error| unreadable(&path, error))?;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(digest.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}
