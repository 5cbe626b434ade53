//! What long tasks had reached when they were killed, and nobody went on with.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{Environment, task::progress};
use crate::failure::Failure;

/// What was removed of the local cache, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// Stages that were left unfinished.
    pub stages: usize,
    /// Bytes of what they had reached.
    pub bytes: u64,
}

/// Removes what stages had reached that were left unfinished, where nothing was written for longer than `grace` and no process is
/// at it; with `dry_run`, only says what would go.
///
/// # Errors
/// When the cache folder can't be read, or something in it not removed.
pub fn remove_unfinished(environment: &Environment, grace: Duration, dry_run: bool) -> Result<Unfinished, Failure> {
    let mut removed = Unfinished::default();
    let stages = match fs::read_dir(progress(environment)) {
        Ok(stages) => stages,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error.into()),
    };
    for stage in stages {
        let stage = stage?.path();
        let mut found = Found { bytes: 0, last: SystemTime::UNIX_EPOCH, is_held: false };
        match found.look(&stage) {
            Ok(()) => {}
            // The stage has just been finished.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        }
        if found.is_held || found.last.elapsed().is_ok_and(|age| age < grace) {
            continue;
        }
        removed.stages += 1;
        removed.bytes += found.bytes;
        if !dry_run {
            fs::remove_dir_all(&stage)?;
        }
    }
    Ok(removed)
}

struct Found {
    bytes: u64,
    /// When something was written last.
    last: SystemTime,
    /// Whether a process has locked a file.
    is_held: bool,
}

impl Found {
    fn look(&mut self, path: &Path) -> io::Result<()> {
        let about = fs::symlink_metadata(path)?;
        self.last = self.last.max(about.modified()?);
        if about.is_dir() {
            for entry in fs::read_dir(path)? {
                self.look(&entry?.path())?;
            }
            return Ok(());
        }
        self.bytes += about.len();
        self.is_held |= File::open(path)?.try_lock().is_err();
        Ok(())
    }
}
