//! Documents that are to be forgotten.
//!
//! ```text
//! forgotten/<digest>.json    a tombstone: which document, since when; put if absent, never removed
//! ```

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Store;
use crate::failure::Failure;

const FORGOTTEN: &str = "forgotten";
/// Tombstones that are read at once.
const READS: usize = 16;

/// A document that no `read` gives any more: one `doc_id` of one source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tombstone {
    /// The document's `doc_id`.
    pub doc_id: String,
    /// The file that it is in, as [`crate::run::SourceFile::source`] has it, without `.` and `..`.
    pub source: String,
}

/// A tombstone as it lies on the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Which document.
    pub tombstone: Tombstone,
    /// Since when, by the store's clock.
    pub since: DateTime<Utc>,
}

/// Whether two source paths may be the same file, seen from two folders: the names of one are the last of the other's, `.` and
/// `..` aside.
///
/// Too much may be alike (`a.md` of two folders, where a pipeline file lies in one of them): to forget a document of the same
/// `doc_id` too many does less harm than to leave one.
pub fn same_source(one: &str, other: &str) -> bool {
    let (one, other): (Vec<&str>, Vec<&str>) = (names(one).collect(), names(other).collect());
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    !short.is_empty() && long.ends_with(&short)
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "." | ".."))
}

impl Tombstone {
    /// The tombstone of a document.
    pub fn new(doc_id: &str, source: &str) -> Self {
        Self { doc_id: doc_id.to_owned(), source: names(source).collect::<Vec<_>>().join("/") }
    }

    /// Whether the document may be in the file with this source path.
    pub fn is_in(&self, source: &str) -> bool {
        same_source(&self.source, source)
    }

    /// What of it enters a key.
    pub(crate) fn identity(&self) -> Value {
        json!([self.doc_id, self.source])
    }

    fn path(&self) -> Path {
        let digest = crate::key::key("forgotten", &self.identity());
        Path::from(format!("{FORGOTTEN}/{digest}.json"))
    }
}

impl Store {
    /// Every tombstone, sorted. Where there is none, this is one listing.
    ///
    /// # Errors
    /// When the store fails, and when a tombstone can't be read: what it names must not come back.
    pub async fn forgotten(&self) -> Result<Vec<Forgotten>, Failure> {
        let listed = self.list(&Path::from(FORGOTTEN)).await?;
        let read = futures::stream::iter(listed)
            .map(|meta| async move {
                let Some(content) = self.read(&meta.location).await? else { return Ok(None) };
                let tombstone = serde_json::from_slice(&content).map_err(|error| {
                    Failure::external(format!("the tombstone `{}` can't be read: {error}", meta.location))
                        .hint("it says which document is forgotten: delete it and forget the document again")
                })?;
                Ok::<_, Failure>(Some(Forgotten { tombstone, since: meta.last_modified }))
            })
            .buffer_unordered(READS);
        let mut found: Vec<Forgotten> = read.try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await?;
        found.sort_by(|a, b| a.tombstone.cmp(&b.tombstone));
        Ok(found)
    }

    /// Writes a tombstone, durably. Gives whether it is new.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget(&self, tombstone: &Tombstone) -> Result<bool, Failure> {
        let content = json!({ "doc_id": tombstone.doc_id, "source": tombstone.source, "since": Utc::now() }).to_string();
        Ok(self.create(&tombstone.path(), content.into()).await?.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Buckets;

    #[test]
    fn a_file_has_another_path_from_another_folder() {
        for (one, other) in [
            ("docs/a.md", "docs/a.md"),
            ("docs/a.md", "../docs/a.md"),
            ("docs/a.md", "./docs//a.md"),
            ("a.md", "handbook/docs/a.md"),
            ("/data/docs/a.md", "docs/a.md"),
        ] {
            assert!(same_source(one, other) && same_source(other, one), "{one} {other}");
        }
        for (one, other) in
            [("docs/a.md", "docs/b.md"), ("docs/a.md", "notes/a.md"), ("ca.md", "a.md"), ("", "a.md"), ("..", ".")]
        {
            assert!(!same_source(one, other) && !same_source(other, one), "{one} {other}");
        }
    }

    #[tokio::test]
    async fn a_document_is_forgotten_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        assert!(store.forgotten().await.expect("listed").is_empty());
        let (a, b) = (Tombstone::new("a.md", "../docs/a.md"), Tombstone::new("a.md", "notes/a.md"));
        assert!(store.forget(&a).await.expect("written"));
        assert!(!store.forget(&Tombstone::new("a.md", "./docs/a.md")).await.expect("there"), "the same document");
        assert!(store.forget(&b).await.expect("written"));
        let found: Vec<Tombstone> =
            store.forgotten().await.expect("listed").into_iter().map(|forgotten| forgotten.tombstone).collect();
        assert_eq!(found, [a, b]);
        store.write(&Path::from("forgotten/x.json"), "no JSON".into()).await.expect("written");
        let failure = store.forgotten().await.expect_err("which document is it?");
        assert!(failure.message.contains("forgotten/x.json"), "{failure}");
    }
}
