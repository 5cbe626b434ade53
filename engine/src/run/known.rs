//! What local files held when they were last looked at.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io::{Read, Result},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file that changed less than this ago may change again within one tick of the file system's clock.
const YOUNG: Duration = Duration::from_secs(2);

/// Which digest says what a file holds; in front of its hex digits stands its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// `blake3:`, by which local files are listed.
    Blake3,
    /// `sha256:`, by which the hub lists large files.
    Sha256,
}

impl Algorithm {
    /// The algorithm of a version; `None` for one that is no digest of the content.
    pub(super) fn of(version: &str) -> Option<Self> {
        match version.split_once(':')?.0 {
            "blake3" => Some(Self::Blake3),
            "sha256" => Some(Self::Sha256),
            _ => None,
        }
    }

    /// What a reader gives, as a version. Reads it to its end, in pieces.
    pub(super) fn digest(self, mut content: impl Read) -> Result<String> {
        let (mut hasher, mut piece) = (self.hasher(), vec![0; 1 << 20]);
        loop {
            match content.read(&mut piece) {
                Ok(0) => return Ok(hasher.version()),
                Ok(count) => hasher.update(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// For content that comes in pieces.
    pub(super) fn hasher(self) -> Hasher {
        match self {
            Self::Blake3 => Hasher::Blake3(Box::default()),
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
        }
    }
}

/// What was seen of a content so far.
pub(super) enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
}

impl Hasher {
    pub(super) fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(piece);
            }
            Self::Sha256(hasher) => hasher.update(piece),
        }
    }

    /// The version that says what was seen.
    pub(super) fn version(self) -> String {
        match self {
            Self::Blake3(hasher) => format!("blake3:{}", hasher.finalize().to_hex()),
            Self::Sha256(hasher) => format!("sha256:{}", crate::key::hex(&hasher.finalize())),
        }
    }
}

/// What the files of a folder held when they were last looked at, so that a file is read once for its key as long as nobody
/// writes to it. It can be deleted at any time.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct KnownFiles {
    /// By absolute path; behind that of another digest than blake3 stands its name.
    files: BTreeMap<String, (Stamp, String)>,
    #[serde(skip)]
    place: PathBuf,
    #[serde(skip)]
    changed: bool,
}

/// What shows that a file was written to: copying tools set sizes and modification times as they were, but nobody sets the time
/// at which an inode changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    inode: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long ago it changed.
    fn age(&self) -> Duration {
        let (seconds, nanoseconds) = self.modified.max(self.changed);
        let since = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0));
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since).unwrap_or_default()
    }
}

impl KnownFiles {
    /// What is known of files below `root`; it is kept under `cache`.
    pub(super) fn load(cache: &Path, root: &Path) -> Self {
        let name = root.to_string_lossy();
        let name = blake3::hash(name.trim_end_matches('/').as_bytes()).to_hex();
        let place = cache.join("sources").join(format!("{name}.json"));
        let known: Self =
            std::fs::read(&place).ok().and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default();
        Self { place, ..known }
    }

    /// Keeps what is known. Failing to costs a second look and nothing else.
    pub(super) fn save(&self) {
        let Some(folder) = self.place.parent() else { return };
        let write = || -> Result<()> {
            std::fs::create_dir_all(folder)?;
            let staging = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&staging, self)?;
            staging.persist(&self.place)?;
            Ok(())
        };
        if self.changed
            && let Err(error) = write()
        {
            tracing::debug!(%error, "what the source files hold isn't remembered");
        }
    }

    /// The digest of a file's content.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn version(&mut self, path: &Path, metadata: &Metadata, algorithm: Algorithm) -> Result<String> {
        let mut name = path.to_string_lossy().into_owned();
        if algorithm == Algorithm::Sha256 {
            name.push_str("\0sha256");
        }
        let stamp = Stamp::of(metadata);
        if let Some((then, version)) = self.files.get(&name)
            && *then == stamp
        {
            return Ok(version.clone());
        }
        let version = algorithm.digest(File::open(path)?)?;
        if stamp.age() >= YOUNG {
            self.files.insert(name, (stamp, version.clone()));
            self.changed = true;
        }
        Ok(version)
    }
}

/// Whether a local file is in a state in which it was listed, as far as that tells: by its digest, or else by its size.
///
/// # Errors
/// When it can't be read.
pub(super) fn is_at(path: &Path, bytes: u64, version: &str, cache: &Path) -> Result<bool> {
    let metadata = std::fs::metadata(path)?;
    if metadata.len() != bytes {
        return Ok(false);
    }
    let Some(algorithm) = Algorithm::of(version) else { return Ok(true) };
    Ok(known(path, &metadata, algorithm, cache)? == version)
}

/// The digest of a local file's content, as `blake3:` and hex digits. What is known of it under `cache` is taken from there as long
/// as nobody writes to the file.
///
/// # Errors
/// When it can't be read.
pub fn content_digest(path: &Path, cache: &Path) -> Result<String> {
    known(path, &std::fs::metadata(path)?, Algorithm::Blake3, cache)
}

fn known(path: &Path, metadata: &Metadata, algorithm: Algorithm, cache: &Path) -> Result<String> {
    let mut known = KnownFiles::load(cache, path.parent().unwrap_or(path));
    let version = known.version(path, metadata, algorithm)?;
    known.save();
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_either_digest_until_it_changes() {
        let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("a");
        std::fs::write(&file, "abc").expect("written");
        let sha256 = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let blake3 = format!("blake3:{}", blake3::hash(b"abc").to_hex());
        for version in [sha256, blake3.as_str(), "git:of anything"] {
            assert!(is_at(&file, 3, version, cache.path()).expect("read"), "{version}");
            assert!(!is_at(&file, 4, version, cache.path()).expect("read"), "{version}");
        }
        std::fs::write(&file, "abd").expect("written");
        for version in [sha256, blake3.as_str()] {
            assert!(!is_at(&file, 3, version, cache.path()).expect("read"), "{version}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert!(is_at(&file, 3, sha256, cache.path()).is_err());
    }
}
