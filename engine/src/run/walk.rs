//! Looking for files in a folder: only where a glob can match.

use std::{
    collections::{HashSet, VecDeque},
    io::ErrorKind,
    path::{Path as FilePath, PathBuf},
};

use globset::GlobMatcher;

use super::sources::matcher;
use crate::failure::Failure;

/// What is looked for in a folder and those below it.
pub(super) struct Wanted<'a> {
    glob: GlobMatcher,
    exclude: &'a [GlobMatcher],
    /// For each depth the path that a folder has to have, down to where any path will do.
    folders: Vec<GlobMatcher>,
    /// Whether folders below those may hold something, too.
    is_deeper: bool,
    /// The names of folders with a dot at their front that are looked into.
    dots: Vec<GlobMatcher>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(wild: &str, exclude: &'a [GlobMatcher]) -> Result<Self, Failure> {
        let parts = parts(wild);
        // A part with braces around a `/` is several.
        let plain = parts.iter().take_while(|part| !part.contains("**") && !part.contains('/')).count();
        let folders = plain.min(parts.len() - 1);
        let is_deeper = plain < parts.len();
        let folders = (1..=folders).map(|count| matcher(&parts[..count].join("/"))).collect::<Result<_, _>>()?;
        let names = wild.split(['/', '{', ',', '}']).filter(|name| name.starts_with('.'));
        let dots = names.filter_map(|name| matcher(name).ok()).collect();
        Ok(Self { glob: matcher(wild)?, exclude, folders, is_deeper, dots })
    }

    /// Whether the file at a path below the root is one of those.
    fn takes(&self, path: &str) -> bool {
        self.glob.is_match(path) && !self.exclude.iter().any(|glob| glob.is_match(path))
    }

    /// Whether the folder at a path below the root may hold something, when the one that it is in may.
    fn enters(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.starts_with('.') && !self.dots.iter().any(|dots| dots.is_match(name)) {
            return false;
        }
        self.folders.get(path.matches('/').count()).map_or(self.is_deeper, |folder| folder.is_match(path))
    }
}

/// The parts of a glob between `/`.
fn parts(glob: &str) -> Vec<&str> {
    let (mut parts, mut start, mut braces, mut is_escaped) = (Vec::new(), 0, 0_usize, false);
    for (at, byte) in glob.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'{' => braces += 1,
            b'}' => braces = braces.saturating_sub(1),
            b'/' if braces == 0 => {
                parts.push(&glob[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&glob[start..]);
    parts
}

/// The files below `root` that are wanted: their paths there, and where they are. Folders come before links to folders, near
/// ones before far ones, so that of the ways to a folder its own one counts.
pub(super) fn walk(root: &FilePath, wanted: &Wanted<'_>) -> Result<Vec<(String, PathBuf)>, Failure> {
    let (mut folders, mut links) = (VecDeque::from([root.to_owned()]), VecDeque::new());
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    while let Some(next) = folders.pop_front().or_else(|| links.pop_front()) {
        let unreadable = |error: std::io::Error| Failure::external(format!("`{}` can't be read: {error}", next.display()));
        let entries = match std::fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if next == root && error.kind() == ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(unreadable(error)),
        };
        // A link may lead back up.
        if !seen.insert(std::fs::canonicalize(&next).map_err(unreadable)?) {
            continue;
        }
        let entries = entries.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))));
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(unreadable)?;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in entries {
            let Ok(relative) = path.strip_prefix(root) else { continue };
            let lossy = relative.to_string_lossy();
            if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
                if wanted.enters(&lossy) {
                    let queue = if kind.is_dir() { &mut folders } else { &mut links };
                    queue.push_back(path);
                }
            } else if wanted.takes(&lossy) {
                let Some(relative) = relative.to_str() else {
                    return Err(Failure::data(format!("the file name `{lossy}` isn't UTF-8"))
                        .hint("rename it, or leave it out with `exclude`"));
                };
                found.push((relative.to_owned(), path));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(glob: &str) -> Wanted<'static> {
        Wanted::new(glob, &[]).expect("a glob")
    }

    #[test]
    fn folders_that_can_hold_nothing_are_passed_over() {
        let enters = |glob: &str, folders: &[&str]| -> Vec<String> {
            let wanted = wanted(glob);
            folders.iter().filter(|folder| wanted.enters(folder)).map(|folder| (*folder).to_owned()).collect()
        };
        let folders = ["a", "a/b", "a/b/c", "b", ".git", "a/.ingrain"];
        assert_eq!(enters("*.md", &folders), [""; 0]);
        assert_eq!(enters("*/*.md", &folders), ["a", "b"]);
        assert_eq!(enters("a*/{b,c}/x.md", &folders), ["a", "a/b"]);
        assert_eq!(enters("**/*.md", &folders), ["a", "a/b", "a/b/c", "b"]);
        assert_eq!(enters("a/**/x/*.md", &folders), ["a", "a/b", "a/b/c"]);
        assert_eq!(enters("{a/b,c}/*.md", &folders), ["a", "a/b", "a/b/c", "b"]);
        assert_eq!(enters("**/.git/**", &folders), ["a", "a/b", "a/b/c", "b", ".git"]);
        assert_eq!(enters("{a,.i}/*", &["a", "b", ".i", ".git"]), ["a", ".i"]);
        assert_eq!(enters(".*/*", &folders), [".git"]);
        assert_eq!(parts(r"a\/b/{c/d,e}/f"), [r"a\/b", "{c/d,e}", "f"]);
    }

    #[cfg(unix)]
    #[test]
    fn of_two_ways_to_a_folder_its_own_one_counts() {
        use std::os::unix::{ffi::OsStrExt, fs::symlink};
        let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let root = folder.path();
        std::fs::create_dir_all(root.join("z/real/inner")).expect("made");
        std::fs::create_dir_all(root.join(".hidden")).expect("made");
        for file in ["z/real/a.txt", "z/real/inner/b.txt", ".hidden/c.txt", "d.md"] {
            std::fs::write(root.join(file), "x").expect("written");
        }
        std::fs::write(other.path().join("far.txt"), "x").expect("written");
        symlink(root.join("z/real"), root.join("a")).expect("linked");
        symlink(root, root.join("z/up")).expect("linked");
        symlink(other.path(), root.join("n")).expect("linked");
        symlink(other.path(), root.join("m")).expect("linked");
        let found = |glob: &str| -> Vec<String> {
            let mut found: Vec<String> = walk(root, &wanted(glob)).expect("walked").into_iter().map(|(path, _)| path).collect();
            found.sort();
            found
        };
        assert_eq!(found("**/*.txt"), ["m/far.txt", "z/real/a.txt", "z/real/inner/b.txt"]);
        assert_eq!(found("a/*.txt"), ["a/a.txt"]);
        assert_eq!(found("**/.hid*/*.txt"), [".hidden/c.txt"]);

        let strange = root.join(std::ffi::OsStr::from_bytes(b"strange\xFF.log"));
        std::fs::write(strange, "x").expect("written");
        assert_eq!(found("*.md"), ["d.md"]);
        let failure = walk(root, &wanted("*")).expect_err("no UTF-8");
        assert!(failure.message.contains("strange") && failure.message.ends_with("isn't UTF-8"), "{failure}");
        let exclude = [matcher("*.log").expect("a glob")];
        let left = walk(root, &Wanted::new("*", &exclude).expect("a glob")).expect("walked");
        assert_eq!(left.len(), 1);
    }
}
