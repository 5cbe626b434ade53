//! The folder of a local checkpoint: whether it is one, and what it holds, by digest.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use ingrain_engine::failure::Failure;
use ingrain_student::Architecture;
use serde::{Deserialize, Serialize};

/// Small files that decide an answer.
const SMALL: [&str; 6] = [
    CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    ingrain_student::chat::FILE,
];
const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "safetensors";

/// No small file is larger, in bytes.
const LARGEST: u64 = 256 << 20;
/// Digests of files that are smaller aren't kept.
const WORTH_KEEPING: u64 = 1 << 20;
/// A file that was changed so lately may change again at the same time of its clock.
const SETTLED: Duration = Duration::from_secs(2);
/// Where in the machine's folder the digests lie.
const DIGESTS: &str = "checkpoints";

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
    let there = SMALL.into_iter().map(|name| (name, folder.join(name))).filter(|(_, path)| path.is_file());
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
        let small = path.file_name().is_some_and(|name| SMALL.iter().chain([&INDEX]).any(|small| name == *small));
        if (small || is_weights(&path)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A digest of the files that decide an answer, their names included. That of a large file is kept under `cache` and taken from
/// there as long as the file's size and time are the same.
///
/// # Errors
/// When a file can't be read.
pub(super) fn digest(folder: &Path, cache: &Path) -> Result<String, Failure> {
    let unreadable = |path: &Path, error: io::Error| Failure::data(format!("`{}` can't be read: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"checkpoint");
    for path in files(folder).map_err(|error| unreadable(folder, error))? {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let digest = digest_of(&path, &cache.join(DIGESTS)).map_err(|error| unreadable(&path, error))?;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(digest.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// What is kept of a file.
#[derive(Serialize, Deserialize)]
struct Kept {
    bytes: u64,
    modified_ns: u64,
    digest: String,
}

fn digest_of(path: &Path, cache: &Path) -> io::Result<String> {
    let before = fs::metadata(path)?;
    let place = cache.join(format!("{}.json", blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex()));
    let is_kept = before.len() >= WORTH_KEEPING;
    if is_kept
        && let Ok(json) = fs::read(&place)
        && let Ok(kept) = serde_json::from_slice::<Kept>(&json)
        && (kept.bytes, kept.modified_ns) == (before.len(), modified_ns(&before))
    {
        return Ok(kept.digest);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    let digest = hasher.finalize().to_hex().to_string();
    let settled = before.modified()?.elapsed().is_ok_and(|age| age > SETTLED);
    let after = fs::metadata(path)?;
    if is_kept && settled && (after.len(), modified_ns(&after)) == (before.len(), modified_ns(&before)) {
        let kept = Kept { bytes: before.len(), modified_ns: modified_ns(&before), digest: digest.clone() };
        if let Err(error) = keep(&kept, &place, cache) {
            tracing::debug!(%error, "the digest of `{}` isn't kept", path.display());
        }
    }
    Ok(digest)
}

fn keep(kept: &Kept, place: &Path, cache: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    let file = tempfile::NamedTempFile::new_in(cache)?;
    serde_json::to_writer(&file, kept)?;
    file.persist(place)?;
    Ok(())
}

fn modified_ns(metadata: &Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
