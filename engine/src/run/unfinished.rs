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
        match remove(&stage, grace, dry_run) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                removed.stages += 1;
                removed.bytes += bytes;
            }
            // The stage has just been finished.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}

/// Removes the folder of a stage, and gives its bytes; none if it stays.
fn remove(stage: &Path, grace: Duration, dry_run: bool) -> io::Result<Option<u64>> {
    let mut found = Found { bytes: 0, last: SystemTime::UNIX_EPOCH, files: Vec::new() };
    found.look(stage)?;
    // A time to come is that of another clock.
    if found.last.elapsed().map_or(true, |age| age < grace) {
        return Ok(None);
    }
    // They are held until the folder is gone, so that no task goes on with what is being removed.
    for file in &found.files {
        if file.try_lock().is_err() {
            return Ok(None);
        }
    }
    if !dry_run {
        fs::remove_dir_all(stage)?;
    }
    Ok(Some(found.bytes))
}

struct Found {
    bytes: u64,
    /// When something was written last.
    last: SystemTime,
    files: Vec<File>,
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
        self.files.push(File::open(path)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_young_or_held_stays() {
        let folder = tempfile::tempdir().unwrap();
        let stage = folder.path().join("stage");
        fs::create_dir_all(stage.join("000000/000000000020")).unwrap();
        fs::write(stage.join("000000/000000000020/state"), [0; 100]).unwrap();
        let lock = File::create(stage.join("000000/lock")).unwrap();
        let gone = |grace: u64, dry_run| remove(&stage, Duration::from_secs(grace), dry_run).unwrap();
        assert_eq!(gone(3600, false), None, "it is young");
        lock.lock().unwrap();
        assert_eq!(gone(0, false), None, "somebody is at it");
        lock.unlock().unwrap();
        assert_eq!((gone(0, true), stage.exists()), (Some(100), true));
        lock.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        assert_eq!(gone(0, false), None, "another clock wrote it");
        lock.set_modified(SystemTime::now()).unwrap();
        assert_eq!((gone(0, false), stage.exists()), (Some(100), false));
        assert!(remove(&stage, Duration::ZERO, false).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }
}
