//! Files of the hub, whole in its cache folder, or some bytes of one.

use std::{
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use hf_hub::api::tokio::{ApiError, Progress};
use reqwest::{StatusCode, header::RANGE};

use super::{Hub, Location, refusal::Refusal};
use crate::failure::Failure;

/// A download that gets nothing for so long has ended.
const SILENCE: Duration = Duration::from_secs(120);
/// How often a download that broke off is taken up where it was.
const TRIES: u32 = 4;
/// How long the download of another process is waited for, at 5 s a look.
const LOOKS: u32 = 720;

impl Hub {
    /// A file of a commit in the hub's cache folder; it is downloaded if it isn't there whole. A download that broke off goes on
    /// where it was. What the file holds isn't looked at.
    ///
    /// # Errors
    /// When it can't be had.
    pub(crate) async fn fetch(&self, location: &Location, size: u64) -> Result<PathBuf, Failure> {
        let pointer = self.pointer(location);
        let is_whole = || std::fs::metadata(&pointer).is_ok_and(|found| found.len() == size);
        let (mut broke_off, mut looked) = (0, 0);
        while !is_whole() {
            // A link to a blob that somebody removed would be in the way.
            if pointer.is_symlink() && !pointer.exists() {
                let _ = std::fs::remove_file(&pointer);
            }
            match self.download(location).await {
                Ok(()) if is_whole() => {}
                Ok(()) => {
                    return Err(Failure::external(format!("`{location}` came with another size than {size} bytes"))
                        .hint("does `HF_ENDPOINT` name a hub?"));
                }
                Err(Broken::Locked) if looked < LOOKS => looked += 1,
                Err(Broken::Locked) => {
                    return Err(Failure::external(format!("another process has been downloading `{location}` for long"))
                        .hint(format!("if there is none, remove the locks under `{}`", self.cache.path().display())));
                }
                Err(Broken::Refused(Refusal::Other { is_passing: true, .. })) if broke_off + 1 < TRIES => {
                    broke_off += 1;
                    tokio::time::sleep(Duration::from_millis(250 << broke_off)).await;
                }
                Err(Broken::Refused(Refusal::Other { failure, .. })) => return Err(failure),
                Err(Broken::Refused(Refusal::Revision)) => return Err(gone(location)),
            }
        }
        Ok(pointer)
    }

    /// Removes a file that doesn't hold what it should, so that the next one who asks downloads it.
    pub(crate) fn forget(&self, location: &Location) {
        let pointer = self.pointer(location);
        if let Ok(blob) = std::fs::canonicalize(&pointer) {
            let _ = std::fs::remove_file(blob);
        }
        let _ = std::fs::remove_file(pointer);
    }

    async fn download(&self, location: &Location) -> Result<(), Broken> {
        let heard = Heard::default();
        let repo = self.api.repo(location.repo());
        let downloaded = tokio::select! {
            downloaded = repo.download_with_progress(&location.path, heard.clone()) => downloaded,
            () = heard.silence() => {
                let failure = Failure::external(format!("nothing of `{location}` has come for {} s", SILENCE.as_secs()));
                let failure = failure.hint("run again: the download goes on where it was");
                return Err(Broken::Refused(Refusal::Other { failure, is_passing: true }));
            }
        };
        match downloaded {
            Ok(_) => Ok(()),
            Err(ApiError::LockAcquisition(_)) => Err(Broken::Locked),
            Err(error) => Err(Broken::Refused(self.failed(location, error))),
        }
    }

    /// Some bytes of a file of a commit that has `size` bytes: from the cache folder, if it is there.
    ///
    /// # Errors
    /// When they can't be had.
    pub(crate) async fn range(&self, location: &Location, size: u64, range: Range<u64>) -> Result<Bytes, Failure> {
        let pointer = self.pointer(location);
        let length = range.end - range.start;
        if std::fs::metadata(&pointer).is_ok_and(|found| found.len() == size) {
            let read = || -> std::io::Result<Vec<u8>> {
                let (mut file, mut bytes) = (std::fs::File::open(&pointer)?, Vec::new());
                file.seek(SeekFrom::Start(range.start))?;
                file.take(length).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            return Ok(read().map_err(|error| Failure::external(format!("`{}`: {error}", pointer.display())))?.into());
        }
        let asked = async {
            let url = self.api.repo(location.repo()).url(&location.path);
            // The last byte is named, not the one behind it.
            let bytes = format!("bytes={}-{}", range.start, range.end - 1);
            let response = self.api.client().get(url).header(RANGE, bytes).send().await;
            let response = response.map_err(|error| self.unreachable(error))?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {}
                status if status.is_success() => {
                    return Err(Failure::external(format!("{} gives files only whole", self.shown))
                        .hint("does `HF_ENDPOINT` name a hub?"));
                }
                _ => match self.refused(location, &response) {
                    Refusal::Other { failure, .. } => return Err(failure),
                    Refusal::Revision => return Err(gone(location)),
                },
            }
            let (mut content, mut pieces) = (Vec::new(), response.bytes_stream());
            while let Some(piece) = pieces.next().await {
                content.extend(piece.map_err(|error| self.unreachable(error))?);
                if content.len() as u64 > length {
                    break;
                }
            }
            if content.len() as u64 != length {
                return Err(Failure::external(format!("{} gives other bytes of `{location}` than it was asked for", self.shown)));
            }
            Ok(Bytes::from(content))
        };
        tokio::time::timeout(SILENCE, asked).await.unwrap_or_else(|_| {
            let silent = format!("nothing of `{location}` has come for {} s", SILENCE.as_secs());
            Err(Failure::external(silent).hint("run again later"))
        })
    }

    /// Where a file of a commit is in the cache folder, if it is there.
    fn pointer(&self, location: &Location) -> PathBuf {
        let repo = location.repo();
        let commit = repo.revision().to_owned();
        self.cache.repo(repo).pointer_path(&commit).join(&location.path)
    }
}

/// Why there is no download.
enum Broken {
    /// Another process is at it.
    Locked,
    Refused(Refusal),
}

fn gone(location: &Location) -> Failure {
    Failure::external(format!("`{location}` is gone from the hub")).hint("name a revision that is there")
}

/// When something of a download last came.
#[derive(Clone)]
struct Heard(Arc<Mutex<Instant>>);

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Heard {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nothing has come for long.
    async fn silence(&self) {
        loop {
            let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            match SILENCE.checked_sub(since) {
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                _ => return,
            }
        }
    }
}

impl Progress for Heard {
    async fn init(&mut self, _: usize, _: &str) {
        self.now();
    }

    async fn update(&mut self, _: usize) {
        self.now();
    }

    async fn finish(&mut self) {
        self.now();
    }
}
