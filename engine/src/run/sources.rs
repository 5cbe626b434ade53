//! The files that a source reads: listed before anything is read, then opened in the state in which they were listed.

use std::{
    collections::HashSet,
    io::ErrorKind,
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use globset::{GlobBuilder, GlobMatcher};
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    known::{Algorithm, KnownFiles},
    walk::{Wanted, walk},
};
use crate::{
    failure::Failure,
    hub::{self, Location},
    operator::Source,
    store::{Buckets, Tombstone, key_path, pieces, split_url},
};

/// A file of a source, as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Where it is: a local path, an `s3://` URL, or an `hf://` URL with the commit.
    pub url: String,
    /// Its path under the fixed part of the glob that found it, or in the folder that was named.
    pub path: String,
    /// Its path relative to the pipeline file's folder, or within the bucket; on the hub that of its repository with its path
    /// there.
    pub source: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its state: an etag (where a server gives none, the time of its last change), or on a local disk and the hub the digest of
    /// its content.
    pub version: String,
}

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Disk,
    Bucket,
    Hub,
}

/// Bytes of a local file that are read at once.
const LOCAL_PIECE: usize = 1 << 20;

/// Before the time of an object's last change, where its server gives no etag.
const MODIFIED: &str = "modified ";

impl SourceFile {
    /// The files in a batch of a file table.
    ///
    /// # Errors
    /// A bug, if the batch isn't of a file table.
    pub fn of_rows(rows: &RecordBatch) -> Result<Vec<Self>, Failure> {
        let text = |name: &str| {
            let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            column.ok_or_else(|| Failure::bug(format!("no column `{name}` in a table of files")))
        };
        let (url, path, source, version) = (text("url")?, text("path")?, text("source")?, text("version")?);
        let size = rows.column_by_name("size").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let size = size.ok_or_else(|| Failure::bug("no column `size` in a table of files"))?;
        Ok((0..rows.num_rows())
            .map(|row| Self {
                url: url.value(row).to_owned(),
                path: path.value(row).to_owned(),
                source: source.value(row).to_owned(),
                size: size.value(row),
                version: version.value(row).to_owned(),
            })
            .collect())
    }

    /// Its content.
    ///
    /// # Errors
    /// When it isn't any more what was listed, or can't be read.
    pub async fn read(&self, buckets: &Buckets) -> Result<Bytes, Failure> {
        if self.place() == Place::Bucket {
            let pieces: Vec<Bytes> = self.stream(buckets).try_collect().await?;
            return Ok(match <[Bytes; 1]>::try_from(pieces) {
                Ok([whole]) => whole,
                Err(pieces) => pieces.concat().into(),
            });
        }
        let content = tokio::fs::read(self.on_disk(buckets).await?).await.map_err(|error| self.unreadable(&error))?;
        let holds = match Algorithm::of(&self.version) {
            Some(algorithm) => algorithm.digest(content.as_slice())? == self.version,
            None => content.len() as u64 == self.size,
        };
        if holds { Ok(content.into()) } else { Err(self.changed()) }
    }

    /// Some bytes of it: for looking at a file that is large. That they are those of the state that was listed is checked only
    /// where a server says so.
    ///
    /// # Errors
    /// When it isn't any more what was listed, ends before, or can't be read.
    pub async fn range(&self, range: Range<u64>, buckets: &Buckets) -> Result<Bytes, Failure> {
        if range.start > range.end || range.end > self.size {
            return Err(Failure::bug(format!("bytes {range:?} of `{}`, which has {}", self.source, self.size)));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self.place() {
            Place::Bucket => {
                let (bucket, key) = split_url(&self.url)?;
                let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
                match buckets.open(bucket)?.get_opts(&key_path(key)?, options).await {
                    Ok(found) if found.meta.size == self.size && self.is_at(&found.meta) => Ok(found.bytes().await?),
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => Err(self.changed()),
                    Err(error) => Err(error.into()),
                }
            }
            Place::Hub => buckets.hub()?.range(&Location::parse(&self.url)?, self.size, range).await,
            Place::Disk => {
                let read = async {
                    let mut file = tokio::fs::File::open(&self.url).await?;
                    file.seek(std::io::SeekFrom::Start(range.start)).await?;
                    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
                    file.read_exact(&mut bytes).await?;
                    Ok::<_, std::io::Error>(bytes)
                };
                Ok(read.await.map_err(|error| self.unreadable(&error))?.into())
            }
        }
    }

    /// Its content in pieces of some MiB, for files that needn't be in memory whole.
    ///
    /// An error ends the stream: the file isn't any more what was listed, or can't be read. That a local file has changed may
    /// show only after its last piece, so what was made of the pieces counts only when the stream has ended well.
    pub fn stream(&self, buckets: &Buckets) -> BoxStream<'static, Result<Bytes, Failure>> {
        if self.place() == Place::Bucket {
            return self.stream_object(buckets);
        }
        let (file, buckets) = (self.clone(), buckets.clone());
        futures::stream::once(async move {
            let path = file.on_disk(&buckets).await?;
            Ok::<_, Failure>(file.stream_local(path))
        })
        .try_flatten()
        .boxed()
    }

    /// A local file with its content, which comes from the hub first if it is there. Only its size was looked at.
    pub(super) async fn on_disk(&self, buckets: &Buckets) -> Result<PathBuf, Failure> {
        match self.place() {
            Place::Hub => buckets.hub()?.fetch(&Location::parse(&self.url)?, self.size).await,
            Place::Disk => Ok(PathBuf::from(&self.url)),
            Place::Bucket => Err(Failure::bug(format!("`{}` is on no disk", self.url))),
        }
    }

    fn stream_object(&self, buckets: &Buckets) -> BoxStream<'static, Result<Bytes, Failure>> {
        // What is empty may be the mark of a folder, which can't be read.
        if self.size == 0 {
            return futures::stream::empty().boxed();
        }
        let opened = split_url(&self.url).and_then(|(bucket, key)| Ok((buckets.open(bucket)?, key_path(key)?)));
        let (objects, path) = match opened {
            Ok(opened) => opened,
            Err(failure) => return futures::stream::once(async move { Err(failure) }).boxed(),
        };
        let file = self.clone();
        pieces(objects, path, self.size)
            .map(move |piece| match piece {
                Ok((_, meta)) if meta.size != file.size || !file.is_at(&meta) => Err(file.changed()),
                Ok((piece, _)) => Ok(piece),
                Err(object_store::Error::NotFound { .. }) => Err(file.changed()),
                Err(error) => Err(error.into()),
            })
            .boxed()
    }

    fn stream_local(&self, path: PathBuf) -> BoxStream<'static, Result<Bytes, Failure>> {
        let hasher = Algorithm::of(&self.version).map(Algorithm::hasher);
        let state = (self.clone(), path, None::<tokio::fs::File>, hasher);
        futures::stream::try_unfold(state, |(file, path, open, mut hasher)| async move {
            let mut open = match open {
                Some(open) => open,
                None => tokio::fs::File::open(&path).await.map_err(|error| file.unreadable(&error))?,
            };
            let mut piece = Vec::with_capacity(LOCAL_PIECE);
            (&mut open).take(LOCAL_PIECE as u64).read_to_end(&mut piece).await.map_err(|error| file.unreadable(&error))?;
            if piece.is_empty() {
                let holds = hasher.is_none_or(|hasher| hasher.version() == file.version);
                return if holds { Ok(None) } else { Err(file.changed()) };
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece);
            }
            Ok(Some((Bytes::from(piece), (file, path, Some(open), hasher))))
        })
        .boxed()
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        match self.url.split_once("://") {
            None => Place::Disk,
            Some(("hf", _)) => Place::Hub,
            Some(_) => Place::Bucket,
        }
    }

    /// Whether an object is in the state in which it was listed.
    fn is_at(&self, meta: &ObjectMeta) -> bool {
        match self.version.strip_prefix(MODIFIED) {
            // A header has no fraction of the second.
            Some(listed) => chrono::DateTime::parse_from_rfc3339(listed)
                .is_ok_and(|listed| listed.timestamp() == meta.last_modified.timestamp()),
            None => meta.e_tag.as_deref().is_some_and(|etag| etag.trim_matches('"') == self.version.trim_matches('"')),
        }
    }

    fn changed(&self) -> Failure {
        Failure::external(format!("`{}` changed while it was being read", self.source))
            .hint("run again once nobody writes to it any more")
    }

    fn unreadable(&self, error: &std::io::Error) -> Failure {
        Failure::external(format!("`{}` can't be read: {error}", self.source))
    }

    /// What of it enters a key.
    pub(crate) fn identity(&self) -> Value {
        json!([self.path, self.source, self.size, self.version])
    }
}

/// Lists the files of a source, sorted by path. `folder` is where the pipeline file is; under `cache` stands what local files
/// were found to hold.
///
/// # Errors
/// When a path matches nothing, the same relative path comes from two places, or a place can't be listed.
pub(crate) async fn list(
    source: &Source,
    folder: &FilePath,
    cache: &FilePath,
    buckets: &Buckets,
) -> Result<Vec<SourceFile>, Failure> {
    let exclude: Vec<GlobMatcher> = source.exclude.iter().map(|glob| matcher(glob)).collect::<Result<_, _>>()?;
    let mut files: Vec<SourceFile> = Vec::new();
    for written in &source.paths {
        let sought = Sought { written: written.clone(), names: source.names };
        let found = match written.split_once("://") {
            Some(("hf", _)) => list_hub(&sought, cache, buckets).await?,
            Some(_) => list_bucket(&sought, buckets).await?,
            None => list_local_apart(sought.clone(), folder, cache, exclude.clone()).await?,
        };
        let before = files.len();
        files.extend(found.into_iter().filter(|file| !exclude.iter().any(|glob| glob.is_match(&file.path))));
        if files.len() == before {
            return Err(sought.not_found());
        }
    }
    files.sort_by(|a, b| (&a.path, &a.url).cmp(&(&b.path, &b.url)));
    files.dedup();
    if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(Failure::data(format!("`{}` and `{}` would both be `{}`", pair[0].source, pair[1].source, pair[0].path))
            .hint("read them in two stages, or move the glob's first wildcard up to the folder that tells them apart"));
    }
    Ok(files)
}

/// Checks the place in a path or URL of a source, as far as that shows without looking there.
///
/// # Errors
/// When nothing leads there: what it should look like.
pub fn check_place(written: &str) -> Result<(), Failure> {
    match written.split_once("://") {
        None => Ok(()),
        Some(("hf", _)) => Location::parse(written).map(|_| ()),
        Some(_) => split_url(written).map(|_| ()),
    }
}

pub(super) fn matcher(glob: &str) -> Result<GlobMatcher, Failure> {
    let glob = GlobBuilder::new(glob).literal_separator(true).build();
    Ok(glob.map_err(|error| Failure::data(format!("a glob that can't be read: {error}")))?.compile_matcher())
}

/// What is looked for.
#[derive(Clone)]
struct Sought {
    /// The path as the pipeline file has it.
    written: String,
    /// See [`Source::names`].
    names: &'static [&'static str],
}

impl Sought {
    /// Splits a path, which is that of `written` within its file system, bucket or repository, into the folder to look in and
    /// the glob of what is meant below it.
    fn split(&self, path: &str) -> (String, String) {
        if self.names.is_empty() {
            let (fixed, wild) = fixed_part(path);
            return (fixed.to_owned(), wild.to_owned());
        }
        let folder = if path.is_empty() { String::new() } else { format!("{}/", path.trim_end_matches('/')) };
        (folder, format!("{{{}}}", self.names.join(",")))
    }

    fn not_found(&self) -> Failure {
        let relative = "paths are relative to the pipeline file";
        if self.names.is_empty() {
            return Failure::data(format!("`{}` matches no file", self.written))
                .hint(format!("{relative}; `**` matches folders, `*` names, `{{a,b}}` either"));
        }
        let names = self.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Failure::data(format!("no file directly in `{}` is one of {names}", self.written))
            .hint(format!("is it the right folder? {relative}"))
    }
}

/// Splits a path into the part without wildcards and the glob below it.
fn fixed_part(path: &str) -> (&str, &str) {
    let wildcard = path.find(['*', '?', '[', '{']).unwrap_or(path.len());
    let wild = if wildcard == path.len() {
        path.rfind('/').map_or(0, |at| at + 1)
    } else {
        path[..wildcard].rfind('/').map_or(0, |at| at + 1)
    };
    path.split_at(wild)
}

/// Those of a source's listed files that are under `written`, one of its paths.
pub(super) fn under<'a>(files: &'a [SourceFile], source: &Source, written: &str, folder: &FilePath) -> Vec<&'a SourceFile> {
    let sought = Sought { written: written.to_owned(), names: source.names };
    let Ok((root, wild)) = root(&sought, folder) else { return Vec::new() };
    let glob = if is_exact(&wild) { None } else { matcher(&wild).ok() };
    let is_under = |file: &&SourceFile| {
        let is_there = match Location::parse(&file.url) {
            // The commit that a revision stood for isn't written.
            Ok(location) => location.source() == format!("{root}{}", file.path),
            Err(_) => file.url.strip_prefix(&root) == Some(&file.path),
        };
        is_there && glob.as_ref().map_or(file.path == wild, |glob| glob.is_match(&file.path))
    };
    files.iter().filter(is_under).collect()
}

/// What stands before the path of each file that is found, and the glob of those paths.
fn root(sought: &Sought, folder: &FilePath) -> Result<(String, String), Failure> {
    match sought.written.split_once("://") {
        Some(("hf", _)) => {
            let location = Location::parse(&sought.written)?;
            let (fixed, wild) = sought.split(&location.path);
            Ok((format!("{}/{fixed}", location.repository()), wild))
        }
        Some(_) => Ok(sought.split(&sought.written)),
        None => {
            let (fixed, wild) = sought.split(&sought.written);
            let root = folder.join(fixed);
            let root = std::path::absolute(&root).unwrap_or(root).to_string_lossy().into_owned();
            Ok((format!("{}/", root.trim_end_matches('/')), wild))
        }
    }
}

/// Whether the part of a path behind [`fixed_part`] is a file's name and no glob.
fn is_exact(wild: &str) -> bool {
    !wild.contains(['*', '?', '[', '{', '\\'])
}

/// Walks a folder on a thread of its own: a large one, or one on a slow disk, must not hold up the run.
async fn list_local_apart(
    sought: Sought,
    folder: &FilePath,
    cache: &FilePath,
    exclude: Vec<GlobMatcher>,
) -> Result<Vec<SourceFile>, Failure> {
    let (folder, cache) = (folder.to_owned(), cache.to_owned());
    let walk = tokio::task::spawn_blocking(move || list_local(&sought, &folder, &cache, &exclude));
    walk.await.map_err(|error| Failure::bug(format!("listing files ended: {error}")))?
}

fn list_local(sought: &Sought, folder: &FilePath, cache: &FilePath, exclude: &[GlobMatcher]) -> Result<Vec<SourceFile>, Failure> {
    let (fixed, wild) = sought.split(&sought.written);
    let root = folder.join(&fixed);
    let root = std::path::absolute(&root).unwrap_or(root);
    if !sought.names.is_empty() && !root.is_dir() {
        let what = if root.exists() { "is no folder" } else { "isn't there" };
        return Err(Failure::data(format!("`{}` {what}", sought.written)).hint("paths are relative to the pipeline file"));
    }
    let mut known = KnownFiles::load(cache, &root);
    let unreadable =
        |relative: &str, error: &std::io::Error| Failure::external(format!("`{fixed}{relative}` can't be read: {error}"));
    let found = if is_exact(&wild) {
        match std::fs::metadata(root.join(&wild)) {
            Ok(metadata) if metadata.is_dir() => return Err(is_a_folder(&sought.written)),
            Ok(_) => vec![(wild.clone(), root.join(&wild))],
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
            Err(error) => return Err(unreadable(&wild, &error)),
        }
    } else {
        walk(&root, &Wanted::new(&wild, exclude)?)?
    };
    let mut files = Vec::new();
    for (relative, path) in found {
        let metadata = std::fs::metadata(&path).map_err(|error| unreadable(&relative, &error))?;
        if !metadata.is_file() {
            return Err(Failure::data(format!("`{fixed}{relative}` is no file")).hint("leave it out with `exclude`"));
        }
        let version = known.version(&path, &metadata, Algorithm::Blake3).map_err(|error| unreadable(&relative, &error))?;
        files.push(SourceFile {
            url: path.to_string_lossy().into_owned(),
            source: format!("{fixed}{relative}"),
            path: relative,
            size: metadata.len(),
            version,
        });
    }
    known.save();
    Ok(files)
}

fn is_a_folder(written: &str) -> Failure {
    let name = written.trim_end_matches('/');
    let name = if name.is_empty() { "." } else { name };
    Failure::data(format!("`{name}` is a folder")).hint(format!("write `{name}/**/*` for all files in it"))
}

/// Lists a repository of the hub at the revision that is written; the files that are given name its commit.
async fn list_hub(sought: &Sought, cache: &FilePath, buckets: &Buckets) -> Result<Vec<SourceFile>, Failure> {
    let location = Location::parse(&sought.written)?;
    let (fixed, wild) = sought.split(&location.path);
    let glob = if is_exact(&wild) { None } else { Some(matcher(&wild)?) };
    let listing = buckets.hub()?.list(&location, cache).await?;
    let mut files = Vec::new();
    for hub::File { path, size, version } in listing.files {
        let Some(relative) = path.strip_prefix(&fixed) else { continue };
        if glob.as_ref().map_or(relative == wild, |glob| glob.is_match(relative)) {
            let relative = relative.to_owned();
            let at = location.with(Some(listing.commit.clone()), path);
            files.push(SourceFile { url: at.to_string(), path: relative, source: at.source(), size, version });
        }
    }
    Ok(files)
}

async fn list_bucket(sought: &Sought, buckets: &Buckets) -> Result<Vec<SourceFile>, Failure> {
    let written = &sought.written;
    let (bucket, key) = split_url(written)?;
    let (fixed, wild) = sought.split(key);
    let no_file = || {
        let name = written.trim_end_matches('/');
        Failure::data(format!("`{written}` matches no file")).hint(format!("write `{name}/**/*` for all files below it"))
    };
    if wild.is_empty() {
        return Err(no_file());
    }
    let objects = buckets.open(bucket)?;
    let prefix = key_path(&fixed)?;
    let found: Vec<ObjectMeta> = if is_exact(&wild) {
        let key = key_path(key)?;
        match objects.head(&key).await {
            Ok(meta) => vec![meta],
            // No answer to this question says what is wrong, such as a bucket that isn't there; one to a listing does.
            Err(error) => match (objects.list(Some(&key)).try_next().await?, error) {
                (Some(_), object_store::Error::NotFound { .. }) => return Err(no_file()),
                (None, object_store::Error::NotFound { .. }) => Vec::new(),
                (_, error) => return Err(error.into()),
            },
        }
    } else if wild.contains('/') || wild.contains("**") {
        objects.list(Some(&prefix)).try_collect().await?
    } else {
        objects.list_with_delimiter(Some(&prefix)).await?.objects
    };
    let glob = if is_exact(&wild) { None } else { Some(matcher(&wild)?) };
    // Some programs mark a folder by an empty object of its name.
    let folders: HashSet<&str> = found
        .iter()
        .flat_map(|meta| meta.location.as_ref().match_indices('/').map(|(at, _)| &meta.location.as_ref()[..at]))
        .collect();
    let mut files = Vec::new();
    for meta in &found {
        let key = meta.location.as_ref();
        let Some(relative) = meta.location.prefix_match(&prefix) else { continue };
        let relative = relative.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        let is_mark = meta.size == 0 && folders.contains(key);
        if glob.as_ref().is_none_or(|glob| glob.is_match(&relative)) && !is_mark {
            files.push(SourceFile {
                url: format!("s3://{bucket}/{key}"),
                path: relative,
                source: key.to_owned(),
                size: meta.size,
                version: meta.e_tag.clone().unwrap_or_else(|| format!("{MODIFIED}{}", meta.last_modified.to_rfc3339())),
            });
        }
    }
    Ok(files)
}

/// A table of files in groups, one partition each, with a digest of each group.
pub(crate) struct FileGroups {
    pub schema: SchemaRef,
    pub partitions: Vec<Vec<RecordBatch>>,
    pub digests: Vec<String>,
}

/// Puts files into groups by a hash of their relative path. The number of groups is a power of two by their total size, so
/// that a new file changes one group, and so does a forgotten document.
pub(crate) fn group(files: &[SourceFile], forgotten: &[Tombstone], group_bytes: u64) -> Result<FileGroups, Failure> {
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let count = bytes.div_ceil(group_bytes).max(1).next_power_of_two().min(4096);
    let mut groups: Vec<Vec<&SourceFile>> = vec![Vec::new(); usize::try_from(count).unwrap_or(1)];
    for file in files {
        let hash = blake3::hash(file.path.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        let group = usize::try_from(u64::from_le_bytes(first) % count).unwrap_or(0);
        groups[group].push(file);
    }
    groups.retain(|group| !group.is_empty());
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let schema = Arc::new(Schema::new(vec![
        text("url"),
        text("path"),
        text("source"),
        Field::new("size", DataType::UInt64, false),
        text("version"),
    ]));
    let mut partitions = Vec::new();
    let mut digests = Vec::new();
    for group in groups {
        let column = |of: fn(&SourceFile) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(group.iter().map(|file| of(file))))
        };
        let sizes: ArrayRef = Arc::new(UInt64Array::from_iter_values(group.iter().map(|file| file.size)));
        let columns = vec![
            column(|file| &file.url),
            column(|file| &file.path),
            column(|file| &file.source),
            sizes,
            column(|file| &file.version),
        ];
        partitions.push(vec![RecordBatch::try_new(schema.clone(), columns)?]);
        let mut identity: Vec<Value> = group.iter().map(|file| file.identity()).collect();
        let is_here = |tombstone: &&Tombstone| group.iter().any(|file| tombstone.is_in(&file.source));
        let gone: Vec<Value> = forgotten.iter().filter(is_here).map(Tombstone::identity).collect();
        if !gone.is_empty() {
            identity.push(json!({ "forgotten": gone }));
        }
        digests.push(crate::key::key("files", &identity.into()));
    }
    Ok(FileGroups { schema, partitions, digests })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        time::{Duration, SystemTime},
    };

    use super::*;

    #[test]
    fn the_fixed_part_ends_before_the_first_wildcard() {
        assert_eq!(fixed_part("docs/**/*.md"), ("docs/", "**/*.md"));
        assert_eq!(fixed_part("docs/a/exam.jsonl"), ("docs/a/", "exam.jsonl"));
        assert_eq!(fixed_part("*.md"), ("", "*.md"));
        assert_eq!(fixed_part("docs/{a,b}/x"), ("docs/", "{a,b}/x"));
    }

    #[test]
    fn a_new_file_changes_one_group() {
        let file = |n: usize| SourceFile {
            url: format!("/x/{n}"),
            path: format!("{n}"),
            source: format!("x/{n}"),
            size: 100,
            version: "1".into(),
        };
        let files: Vec<_> = (0..100).map(file).collect();
        let more: Vec<_> = (0..101).map(file).collect();
        let (before, after) = (group(&files, &[], 1000).expect("groups"), group(&more, &[], 1000).expect("groups"));
        let kept = after.digests.iter().filter(|digest| before.digests.contains(digest)).count();
        assert_eq!(kept + 1, after.digests.len());
        let forgotten = [Tombstone::new("7", "../x/7"), Tombstone::new("7", "y/7")];
        let without = group(&files, &forgotten, 1000).expect("groups");
        let kept = without.digests.iter().filter(|digest| before.digests.contains(digest)).count();
        assert_eq!(kept + 1, without.digests.len(), "one file's document is forgotten");
    }

    #[tokio::test]
    async fn a_file_of_the_same_size_and_time_is_another_one() {
        let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("a.txt");
        let source = Source { paths: vec!["*.txt".into()], names: &[], exclude: vec![], columns_in_files: false };
        let buckets = Buckets::default();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let mut versions = Vec::new();
        for content in ["one", "two"] {
            std::fs::write(&file, content).expect("written");
            std::fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(long_ago)).expect("set");
            versions.push(list(&source, folder.path(), cache.path(), &buckets).await.expect("listed")[0].version.clone());
        }
        assert_ne!(versions[0], versions[1]);
    }

    #[tokio::test]
    async fn a_changed_file_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.txt");
        std::fs::write(&file, "one").expect("written");
        let source = Source { paths: vec!["*.txt".into()], names: &[], exclude: vec![], columns_in_files: false };
        let buckets = Buckets::default();
        let files = list(&source, folder.path(), cache.path(), &buckets).await.expect("listed");
        assert_eq!(files[0].read(&buckets).await.expect("unchanged"), "one");
        assert_eq!(files[0].stream(&buckets).try_collect::<Vec<_>>().await.expect("unchanged"), ["one"]);
        std::fs::write(&file, "two").expect("written");
        assert!(files[0].read(&buckets).await.expect_err("changed").message.contains("changed while"));
        let streamed = files[0].stream(&buckets).try_collect::<Vec<_>>().await;
        assert!(streamed.expect_err("changed").message.contains("changed while"));
        let none = Source { paths: vec!["*.md".into()], names: &[], exclude: vec![], columns_in_files: false };
        let failure = list(&none, folder.path(), cache.path(), &buckets).await.expect_err("nothing there");
        assert!(failure.message.contains("matches no file"));
    }

    #[tokio::test]
    async fn a_path_without_wildcards_is_looked_at_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("docs/.in")).expect("made");
        std::fs::write(folder.path().join("docs/.in/a}.md"), "x").expect("written");
        let buckets = Buckets::default();
        let listed = async |path: &str, exclude: &str| {
            let source = Source { paths: vec![path.into()], names: &[], exclude: vec![exclude.into()], columns_in_files: false };
            list(&source, folder.path(), folder.path(), &buckets).await
        };
        let files = listed("docs/.in/a}.md", "*.txt").await.expect("listed");
        assert_eq!((files[0].path.as_str(), files[0].source.as_str()), ("a}.md", "docs/.in/a}.md"));
        for path in ["docs", "docs/"] {
            let failure = listed(path, "*.txt").await.expect_err("a folder");
            assert_eq!(failure.message, "`docs` is a folder");
            assert_eq!(failure.hint.as_deref(), Some("write `docs/**/*` for all files in it"));
        }
        for (path, exclude) in [("docs/b.md", ""), ("docs/.in/a}.md/b", ""), ("docs/.in/a}.md", "*.md")] {
            let failure = listed(path, exclude).await.expect_err("nothing");
            assert_eq!(failure.message, format!("`{path}` matches no file"));
        }
    }

    /// A server that answers every request with this status, and with this code of an error where an answer has a body.
    async fn refusing(status: &'static str, code: &'static str) -> Buckets {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && socket.read_buf(&mut request).await.is_ok_and(|count| count > 0) {}
                let body = format!("<Error><Code>{code}</Code></Error>");
                let body = if request.starts_with(b"HEAD") { String::new() } else { body };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let entry = serde_json::json!({ "endpoint": endpoint, "anonymous": true });
        Buckets::new(BTreeMap::from([("corpora".to_owned(), entry)])).expect("an entry")
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_bucket_is_asked_for_once_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let source =
            Source { paths: vec!["s3://corpora/exam.jsonl".into()], names: &[], exclude: vec![], columns_in_files: false };
        for (status, code, said) in [
            ("404 Not Found", "NoSuchBucket", "doesn't exist"),
            ("400 Bad Request", "ExpiredToken", "the credentials have expired"),
            ("403 Forbidden", "InvalidAccessKeyId", "doesn't know the id of the access key"),
        ] {
            let buckets = refusing(status, code).await;
            let failure = list(&source, folder.path(), folder.path(), &buckets).await.expect_err("refused");
            assert!(failure.message.contains(said), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_large_file_streams_in_pieces() {
        let folder = tempfile::tempdir().expect("a folder");
        let content: Vec<u8> = (0..2 * LOCAL_PIECE + 5).map(|n| (n % 253) as u8).collect();
        std::fs::write(folder.path().join("a.bin"), &content).expect("written");
        let source = Source { paths: vec!["a.bin".into()], names: &[], exclude: vec![], columns_in_files: false };
        let buckets = Buckets::default();
        let files = list(&source, folder.path(), folder.path(), &buckets).await.expect("listed");
        let pieces: Vec<Bytes> = files[0].stream(&buckets).try_collect().await.expect("streamed");
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [LOCAL_PIECE, LOCAL_PIECE, 5]);
        assert!(pieces.concat() == content);
    }

    #[test]
    fn an_object_is_compared_by_its_etag_or_its_time() {
        let at = |version: &str| SourceFile {
            url: "s3://b/a".into(),
            path: "a".into(),
            source: "a".into(),
            size: 1,
            version: version.into(),
        };
        let listed = chrono::DateTime::parse_from_rfc3339("2026-01-02T03:04:05.678Z").expect("a time").to_utc();
        let meta = |etag: Option<&str>, later: i64| ObjectMeta {
            location: object_store::path::Path::from("a"),
            last_modified: chrono::DateTime::from_timestamp(listed.timestamp() + later, 0).expect("a time"),
            size: 1,
            e_tag: etag.map(str::to_owned),
            version: None,
        };
        assert!(at("\"x\"").is_at(&meta(Some("\"x\""), 0)));
        assert!(!at("\"x\"").is_at(&meta(Some("\"y\""), 0)));
        assert!(!at("\"x\"").is_at(&meta(None, 0)));
        let by_time = format!("{MODIFIED}{}", listed.to_rfc3339());
        assert!(at(&by_time).is_at(&meta(None, 0)));
        assert!(!at(&by_time).is_at(&meta(None, 1)));
    }
}
