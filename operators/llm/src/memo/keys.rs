//! Keys of segments in files on the local disk, so that they are fetched from the store once.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file that no segment known here belongs to is deleted when it is older: another process may have met a segment that this
/// one hasn't.
const GRACE: Duration = Duration::from_secs(3600);
const HASH: usize = 32;

/// The files. Whatever is wrong with one, it counts as missing: the store has the keys.
#[derive(Clone)]
pub(super) struct KeyFiles {
    folder: PathBuf,
    /// Whether files are written and deleted.
    writes: bool,
}

impl KeyFiles {
    pub(super) fn new(local: &Path, writes: bool) -> Self {
        Self { folder: local.join("keys"), writes }
    }

    /// The keys of a segment, one after the other.
    pub(super) fn read(&self, segment: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(segment)).ok()?;
        let keys = bytes.len().checked_sub(HASH).filter(|length| length % 32 == 0)?;
        if blake3::hash(&bytes[..keys]).as_bytes() != &bytes[keys..] {
            return None;
        }
        bytes.truncate(keys);
        Some(bytes)
    }

    /// Keeps the keys of a segment, if the disk takes them.
    pub(super) fn write(&self, segment: &str, keys: &[u8]) {
        if self.writes
            && let Err(error) = self.try_write(segment, keys)
        {
            tracing::debug!(%error, segment, "the keys of a segment aren't kept");
        }
    }

    fn try_write(&self, segment: &str, keys: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(keys)?;
        file.write_all(blake3::hash(keys).as_bytes())?;
        file.persist(self.path(segment))?;
        Ok(())
    }

    /// Deletes files of segments that are gone, and what ended processes left half-written.
    pub(super) fn tidy(&self, segments: &HashSet<&str>) {
        let Some(listing) = self.writes.then(|| fs::read_dir(&self.folder).ok()).flatten() else { return };
        let old = SystemTime::now().checked_sub(GRACE);
        for file in listing.flatten() {
            let name = file.file_name();
            let known = name.to_str().and_then(|name| name.strip_suffix(".keys")).is_some_and(|name| segments.contains(name));
            let is_old = || file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|time| Some(time) < old);
            if !known && is_old() {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn path(&self, segment: &str) -> PathBuf {
        self.folder.join(format!("{segment}.keys"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::tests::Folder;
    use super::*;

    #[test]
    fn keys_come_back_and_what_is_wrong_is_missing() {
        let folder = Folder::new();
        let files = KeyFiles::new(folder.path(), true);
        assert_eq!(files.read("a"), None);
        files.write("a", &[7; 96]);
        assert_eq!(files.read("a"), Some(vec![7; 96]));
        let mut bytes = fs::read(files.path("a")).expect("a file");
        bytes[40] ^= 1;
        for wrong in [&bytes[..], &bytes[..64], &bytes[..10], &[]] {
            fs::write(files.path("a"), wrong).expect("writes");
            assert_eq!(files.read("a"), None);
        }
        KeyFiles::new(folder.path(), false).write("b", &[7; 32]);
        assert_eq!(files.read("b"), None);
    }

    #[test]
    fn files_of_segments_that_are_gone_go_after_a_while() {
        let folder = Folder::new();
        let files = KeyFiles::new(folder.path(), true);
        for segment in ["old", "new", "known"] {
            files.write(segment, &[7; 32]);
        }
        let earlier = SystemTime::now() - 2 * GRACE;
        for segment in ["old", "known"] {
            let file = File::options().write(true).open(files.path(segment)).expect("a file");
            file.set_modified(earlier).expect("sets its time");
        }
        files.tidy(&HashSet::from(["known"]));
        assert_eq!(["old", "new", "known"].map(|segment| files.read(segment).is_some()), [false, true, true]);
    }
}
