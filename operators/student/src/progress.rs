//! What a training has reached, kept in a local folder, so that one that was killed goes on where it was.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Precision};
use crate::checkpoint::{CheckpointError, Shards, whole, write_file, write_tensors};
use crate::engine::{Engine, EngineError};
use crate::pack::Row;
use crate::settings::Settings;
use crate::train::{Event, Seen};
use crate::weights::TensorError;

const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// Saving takes at most about this share of a training's time, unless steps say when.
const SHARE: u32 = 20;

/// How often the lock of a folder is tried, and the time between.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(50);

/// When what was reached is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// After so many steps.
    Steps(usize),
    /// After this time, or later where saving takes long.
    Time(Duration),
}

/// Where what was reached is saved, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// A folder for this training alone. What another training left there is ignored.
    pub folder: PathBuf,
    /// When.
    pub every: Every,
}

/// Where a training stands between two steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Reached {
    /// Of the job and of how it was saved: what differs is of another training.
    digest: String,
    pub(crate) steps: usize,
    pub(crate) tokens: u64,
    /// What was seen before the first step.
    pub(crate) before: Option<Seen>,
    /// Every step's event.
    pub(crate) events: Vec<Event>,
}

/// Saves as its schedule says.
pub(crate) struct Saver {
    progress: Progress,
    /// Held as long as this process trains: another that is at the same training keeps nothing.
    _lock: File,
    digest: String,
    last: Instant,
    took: Duration,
}

impl Saver {
    /// Takes the folder; none if another process has it.
    pub(crate) fn open(progress: Progress, digest: String) -> Result<Option<Self>, CheckpointError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CheckpointError::Io { path, source }
        };
        let path = progress.folder.join("lock");
        // Who cleans up holds it for a moment, and may take the folder away.
        for _ in 0..TRIES {
            fs::create_dir_all(&progress.folder).map_err(at(&progress.folder))?;
            let lock = File::create(&path).map_err(at(&path))?;
            match lock.try_lock() {
                Ok(()) if path.exists() => {
                    return Ok(Some(Self { progress, _lock: lock, digest, last: Instant::now(), took: Duration::ZERO }));
                }
                Ok(()) | Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN),
                Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
            }
        }
        Ok(None)
    }

    /// What the last process reached, and the state of its engine.
    pub(crate) fn resumed(&self) -> Option<(Reached, Shards)> {
        let mut steps: Vec<PathBuf> = fs::read_dir(&self.progress.folder).ok()?.flatten().map(|entry| entry.path()).collect();
        steps.sort();
        steps.into_iter().rev().find_map(|folder| {
            let reached: Reached = serde_json::from_slice(&fs::read(folder.join(STATE)).ok()?).ok()?;
            let state = Shards::of(&[folder.join(TENSORS)]).ok()?;
            (reached.digest == self.digest).then_some((reached, state))
        })
    }

    /// Whether it is time to save.
    pub(crate) fn is_due(&self, steps: usize) -> bool {
        match self.progress.every {
            Every::Steps(every) => steps.is_multiple_of(every.max(1)),
            Every::Time(time) => self.last.elapsed() >= time.max(self.took * SHARE),
        }
    }

    /// Saves, and removes what was saved before.
    pub(crate) fn save(&mut self, engine: &dyn Engine, reached: &Reached) -> Result<(), CheckpointError> {
        let start = Instant::now();
        let reached = Reached { digest: self.digest.clone(), ..reached.clone() };
        let folder = self.progress.folder.join(format!("{:012}", reached.steps));
        let state = serde_json::to_vec(&reached)
            .map_err(|error| CheckpointError::Malformed { path: folder.join(STATE), reason: error.to_string() })?;
        // Another training's: one of ours would have been gone on with.
        let _ = fs::remove_dir_all(&folder);
        whole(&folder, |partial| {
            let path = partial.join(STATE);
            write_file(&path, &state)?;
            let mut fetch = |name: &str| match engine.state_tensor(name) {
                Ok(tensor) => Ok(tensor),
                Err(EngineError::Tensor(error)) => Err(error),
                Err(error) => Err(TensorError { name: name.to_owned(), reason: error.to_string() }),
            };
            write_tensors(&partial.join(TENSORS), &path, engine.state(), Precision::F32, &mut fetch)
        })?;
        for old in fs::read_dir(&self.progress.folder).into_iter().flatten().flatten() {
            if old.path() != folder && old.path().is_dir() {
                // What is left over is found older than this one, and goes with the next.
                let _ = fs::remove_dir_all(old.path());
            }
        }
        (self.last, self.took) = (Instant::now(), start.elapsed());
        Ok(())
    }
}

/// Of everything that decides what a training gives, but the weights that it starts from.
pub(crate) fn digest(architecture: &Architecture, settings: &Settings, rows: &[Row], seed: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    let described = serde_json::to_vec(&(architecture, settings, seed)).unwrap_or_default();
    hasher.update(&described);
    for row in rows {
        hasher.update(&(row.ids.len() as u64).to_le_bytes()).update(&(row.loss_from as u64).to_le_bytes());
        for id in &row.ids {
            hasher.update(&id.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}
