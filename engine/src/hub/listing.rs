//! What a repository holds at a revision.

use std::{path::Path, time::Duration};

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::{Hub, Location, refusal::Refusal};
use crate::failure::Failure;

/// An answer about a repository takes a second, and one of a hundred thousand files several.
const WITHIN: Duration = Duration::from_secs(60);
/// About 200 bytes a file.
const LARGEST: usize = 64 << 20;
/// The digits of a whole commit.
const COMMIT: usize = 40;
/// Fewer digits than this could as well be a branch.
const SHORTEST_COMMIT: usize = 7;

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// 40 hex digits.
    pub(crate) commit: String,
    pub(crate) files: Vec<File>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// `sha256:` with the digest of a large file's content, or `git:` with a small one's hash in Git.
    pub(crate) version: String,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Hub {
    /// The files of the repository at the revision. Of a commit they never change: under `cache` stands what it was found to hold.
    ///
    /// # Errors
    /// When no revision is written (the current commit is said), and when the hub has no such thing or can't be asked.
    pub(crate) async fn list(&self, location: &Location, cache: &Path) -> Result<Listing, Failure> {
        let Some(revision) = &location.revision else {
            let commit = self.current(location).await?;
            return Err(Failure::data(format!("`{location}` names no revision")).hint(format!(
                "write `hf://{}@{commit}`: that is \
                its current commit, and what it holds never changes",
                location.repository()
            )));
        };
        let name = crate::key::key("hub listing", &serde_json::json!([self.shown, location.repository(), revision]));
        let place = cache.join("hub").join(format!("{name}.json"));
        let is_this = |listing: &Listing| is_commit(revision) && listing.commit.starts_with(revision.as_str());
        let kept = std::fs::read(&place).ok().and_then(|content| serde_json::from_slice::<Listing>(&content).ok());
        if let Some(listing) = kept.filter(is_this) {
            return Ok(listing);
        }
        let listing = match self.info(location).await {
            Ok(info) => self.listing(location, info)?,
            Err(Refusal::Other { failure, .. }) => return Err(failure),
            Err(Refusal::Revision) => return Err(self.no_revision(location, revision).await),
        };
        if is_this(&listing)
            && let Err(error) = keep(&place, &listing)
        {
            tracing::debug!(%error, "what a commit holds isn't remembered");
        }
        Ok(listing)
    }

    async fn info(&self, location: &Location) -> Result<Info, Refusal> {
        let passing = |failure| Refusal::Other { failure, is_passing: true };
        let asked = async {
            let request = self.api.repo(location.repo()).info_request().query(&[("blobs", "true")]);
            let response = request.send().await.map_err(|error| passing(self.unreachable(error)))?;
            if !response.status().is_success() {
                return Err(self.refused(location, &response));
            }
            let (mut content, mut pieces) = (Vec::new(), response.bytes_stream());
            while let Some(piece) = pieces.next().await {
                content.extend(piece.map_err(|error| passing(self.unreachable(error)))?);
                if content.len() > LARGEST {
                    return Err(passing(Failure::external(format!("{} says too much about `{location}`", self.shown))));
                }
            }
            serde_json::from_slice(&content).map_err(|error| {
                let failure = Failure::external(format!("what {} says about `{location}` can't be read: {error}", self.shown));
                passing(failure.hint("does `HF_ENDPOINT` name a hub?"))
            })
        };
        tokio::time::timeout(WITHIN, asked).await.unwrap_or_else(|_| {
            let failure = format!("{} says nothing about `{location}` for {} s", self.shown, WITHIN.as_secs());
            Err(passing(Failure::external(failure).hint("run again later")))
        })
    }

    /// The commit of the main branch.
    async fn current(&self, location: &Location) -> Result<String, Failure> {
        match self.info(&location.with(None, location.path.clone())).await {
            Ok(info) => Ok(info.sha),
            Err(Refusal::Other { failure, .. }) => Err(failure),
            Err(Refusal::Revision) => Err(Failure::data(format!("`hf://{}` has no branch `main`", location.repository()))
                .hint("name a revision: `hf://owner/name@revision`")),
        }
    }

    async fn no_revision(&self, location: &Location, revision: &str) -> Failure {
        let failure = Failure::data(format!("`hf://{}` has no revision `{revision}`", location.repository()));
        let digits = if is_commit(revision) && revision.len() < COMMIT { "; write all 40 digits of a commit" } else { "" };
        match self.current(location).await {
            Ok(commit) => failure.hint(format!("its current commit is `{commit}`{digits}")),
            Err(_) => failure.hint(format!("a revision is a commit, a tag or a branch{digits}")),
        }
    }

    /// What is listed of an answer: whatever is wrong with it, its names end up in paths.
    fn listing(&self, location: &Location, info: Info) -> Result<Listing, Failure> {
        let wrong = |what: String| {
            Failure::external(format!("{} {what}", self.shown)).hint("does `HF_ENDPOINT` name a hub that answers `?blobs=true`?")
        };
        if info.sha.len() != COMMIT || !is_commit(&info.sha) {
            return Err(wrong(format!("names no commit of `{location}`")));
        }
        let mut files = Vec::new();
        for Sibling { rfilename: path, size, blob_id, lfs } in info.siblings {
            if !path.split('/').all(|part| !matches!(part, "" | "." | "..")) || path.contains(['\\', '\0']) {
                continue;
            }
            let version = match (lfs, blob_id) {
                (Some(lfs), _) => Some(format!("sha256:{}", lfs.sha256.to_ascii_lowercase())),
                (None, blob) => blob.map(|blob| format!("git:{blob}")),
            };
            let (Some(size), Some(version)) = (size, version) else {
                return Err(wrong(format!("says neither size nor hash of `{path}` in `{location}`")));
            };
            files.push(File { path, size, version });
        }
        Ok(Listing { commit: info.sha, files })
    }
}

/// Whether a revision is a commit, whole or its first digits.
fn is_commit(revision: &str) -> bool {
    (SHORTEST_COMMIT..=COMMIT).contains(&revision.len())
        && revision.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn keep(place: &Path, listing: &Listing) -> std::io::Result<()> {
    let folder = place.parent().unwrap_or(place);
    std::fs::create_dir_all(folder)?;
    let staging = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&staging, listing)?;
    staging.persist(place)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_told_from_branches() {
        for revision in ["0e9e39f", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(is_commit(revision), "{revision}");
        }
        for revision in ["main", "v1.0", "abc", "0E9E39F", "0123456789abcdef0123456789abcdef012345678"] {
            assert!(!is_commit(revision), "{revision}");
        }
    }
}
