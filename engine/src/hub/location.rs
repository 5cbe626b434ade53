//! `hf://` URLs.

use std::fmt;

use hf_hub::{Repo, RepoType};

use crate::failure::Failure;

/// `hf://owner/name@revision/path`, or `hf://datasets/owner/name@revision/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    is_dataset: bool,
    /// `owner/name`.
    name: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: Option<String>,
    /// Within the repository; may be empty, or a glob.
    pub(crate) path: String,
}

impl Location {
    /// Reads a URL. In a revision, `%2F` stands for `/`.
    ///
    /// # Errors
    /// When it isn't one: what it should look like.
    pub(crate) fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::data(format!("`{url}` names no repository of the hub"))
                .hint("write `hf://owner/name@revision`, or `hf://datasets/owner/name@revision`")
        };
        let rest = url.strip_prefix("hf://").ok_or_else(wrong)?;
        let (is_dataset, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (owner, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (repository, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, revision) = match repository.split_once('@') {
            Some((name, revision)) => (name, Some(revision.replace("%2F", "/").replace("%2f", "/"))),
            None => (repository, None),
        };
        // They become parts of URLs and of paths on this machine.
        let is_name = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !name.is_empty() && name.len() <= 96 && name.bytes().all(allowed) && !name.contains("..") && !name.starts_with('.')
        };
        let is_revision = |revision: &String| revision.split('/').all(is_name);
        if !is_name(owner) || !is_name(name) || !revision.as_ref().is_none_or(is_revision) {
            return Err(wrong());
        }
        Ok(Self { is_dataset, name: format!("{owner}/{name}"), revision, path: path.to_owned() })
    }

    /// A file of the same repository, at another revision; `None` is its main branch.
    pub(crate) fn with(&self, revision: Option<String>, path: String) -> Self {
        Self { is_dataset: self.is_dataset, name: self.name.clone(), revision, path }
    }

    /// The repository, as people write it: `owner/name`, `datasets/owner/name`.
    pub(crate) fn repository(&self) -> String {
        if self.is_dataset { format!("datasets/{}", self.name) } else { self.name.clone() }
    }

    /// The file, whatever the revision is.
    pub(crate) fn source(&self) -> String {
        format!("{}/{}", self.repository(), self.path)
    }

    /// The repository for the hub's client, at the revision, or at its main branch.
    pub(super) fn repo(&self) -> Repo {
        let kind = if self.is_dataset { RepoType::Dataset } else { RepoType::Model };
        let revision = self.revision.clone().unwrap_or_else(|| "main".to_owned());
        Repo::with_revision(self.name.clone(), kind, revision)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}", self.repository())?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", revision.replace('/', "%2F"))?;
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_written() {
        for (url, repository, revision, path) in [
            ("hf://meta-llama/Llama-3.1-8B@0e9e39f", "meta-llama/Llama-3.1-8B", Some("0e9e39f"), ""),
            ("hf://a/b", "a/b", None, ""),
            ("hf://a/b/c.json", "a/b", None, "c.json"),
            ("hf://datasets/a/b@v1.0/data/**/*.parquet", "datasets/a/b", Some("v1.0"), "data/**/*.parquet"),
            ("hf://a/b@refs%2Fpr%2F1/c@d", "a/b", Some("refs/pr/1"), "c@d"),
        ] {
            let location = Location::parse(url).expect(url);
            assert_eq!(location.repository(), repository, "{url}");
            assert_eq!((location.revision.as_deref(), location.path.as_str()), (revision, path), "{url}");
            assert_eq!(location.to_string(), url);
        }
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        for url in [
            "hf://",
            "hf://name@main",
            "hf://a/@main",
            "hf://a/b@",
            "hf://../b@main",
            "hf://a/..@main",
            "hf://a/b@..",
            "hf://a/b@refs%2F..%2F..",
            "hf://a b/c@main",
            "hf://a/b@x?y",
            "https://huggingface.co/a/b",
            "a/b",
        ] {
            let failure = Location::parse(url).expect_err(url);
            assert!(failure.hint.expect("a hint").contains("hf://owner/name@revision"));
        }
    }
}
