//! Files that an artifact refers to: listed, never copied to the store.

use std::{io::ErrorKind, path::Path};

use super::{
    known,
    sources::{Place, SourceFile},
};
use crate::{
    failure::Failure,
    hub::Location,
    store::{BlobCache, Buckets, Manifest, Reference},
};

/// A file of a source, as an artifact refers to it under `name`.
pub(super) fn to(file: &SourceFile, name: &str) -> Reference {
    Reference {
        name: name.to_owned(),
        url: file.url.clone(),
        source: file.source.clone(),
        bytes: file.size,
        version: file.version.clone(),
    }
}

/// An artifact whose references lead to where the files were found just now. A file of equal content may have been somewhere else
/// when the artifact was made: in the same project on another machine, or at another commit.
pub(super) fn relocated(mut manifest: Manifest, files: &[SourceFile]) -> Manifest {
    for reference in manifest.outputs.values_mut().flat_map(|table| &mut table.references) {
        let is_it = |file: &&SourceFile| {
            (&file.source, file.size, &file.version) == (&reference.source, reference.bytes, &reference.version)
        };
        if let Some(file) = files.iter().find(is_it) {
            reference.url.clone_from(&file.url);
        }
    }
    manifest
}

/// Gives a file that is referred to the local name `place`, whose folder is there: as a link, to where it is or to where it is
/// kept under `cache`.
///
/// # Errors
/// When it is gone, isn't any more what is referred to, or can't be had.
pub(super) async fn put(
    reference: &Reference,
    place: &Path,
    blobs: &BlobCache,
    buckets: &Buckets,
    cache: &Path,
) -> Result<(), Failure> {
    let file = SourceFile {
        url: reference.url.clone(),
        path: String::new(),
        source: reference.source.clone(),
        size: reference.bytes,
        version: reference.version.clone(),
    };
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if file.place() == Place::Bucket {
        let name = crate::key::key("reference", &serde_json::json!([reference.url, reference.bytes, reference.version]));
        return blobs.place(&name, reference.bytes, &|| file.stream(buckets), place).await;
    }
    let path = file.on_disk(buckets).await?;
    // Weights take a while to read.
    let (bytes, version, looked_at, kept) = (file.size, file.version.clone(), path.clone(), cache.to_owned());
    let looked = tokio::task::spawn_blocking(move || known::is_at(&looked_at, bytes, &version, &kept)).await;
    match looked.map_err(|error| Failure::bug(format!("looking at a file ended: {error}")))? {
        Ok(true) => {}
        Ok(false) if file.place() == Place::Hub => {
            buckets.hub()?.forget(&Location::parse(&file.url)?);
            return Err(Failure::external(format!("`{}` didn't come as the hub lists it", file.url))
                .hint("run again: it is downloaded anew"));
        }
        Ok(false) => {
            return Err(Failure::external(format!("`{}` has changed since this was made of it", file.source))
                .hint("run again: what it holds now makes another artifact of it"));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::external(format!("`{}` is gone, and only its place was kept", file.source))
                .hint("put it back where it was: weights that one names stay where they are"));
        }
        Err(error) => return Err(Failure::external(format!("`{}` can't be read: {error}", file.source))),
    }
    let linked = match std::fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(std::path::absolute(&path)?, place),
    };
    match linked {
        // Somebody else needed it at the same time.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Failure::external(format!("`{}` can't be made: {error}", place.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::TableManifest;

    fn weights(folder: &Path) -> SourceFile {
        SourceFile {
            url: folder.join("model.safetensors").to_string_lossy().into_owned(),
            path: "model.safetensors".to_owned(),
            source: "models/model.safetensors".to_owned(),
            size: 3,
            version: format!("blake3:{}", blake3::hash(b"one").to_hex()),
        }
    }

    #[tokio::test]
    async fn a_file_that_is_gone_or_changed_is_refused_by_name() {
        let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let file = weights(folder.path());
        let (reference, place) = (to(&file, "checkpoint/model.safetensors"), cache.path().join("in-use/model.safetensors"));
        let blobs = BlobCache::new(cache.path().to_owned(), 1000);
        let buckets = Buckets::default();
        let linked = async || put(&reference, &place, &blobs, &buckets, cache.path()).await;
        std::fs::write(&file.url, "one").expect("written");
        for _ in 0..2 {
            linked().await.expect("linked");
            assert_eq!(std::fs::read(&place).expect("a link"), b"one");
        }
        for other in ["two", "longer"] {
            std::fs::write(&file.url, other).expect("written");
            let failure = linked().await.expect_err("changed");
            assert!(failure.message.starts_with("`models/model.safetensors` has changed since"), "{failure}");
        }
        std::fs::remove_file(&file.url).expect("removed");
        let failure = linked().await.expect_err("gone");
        assert!(failure.message.starts_with("`models/model.safetensors` is gone") && failure.hint.is_some(), "{failure}");
    }

    #[test]
    fn references_follow_the_files_of_a_listing() {
        let (before, after) = (weights(Path::new("/one")), weights(Path::new("/two")));
        let schema = arrow::datatypes::Schema::empty();
        let table = TableManifest::new(&schema, Vec::new(), Vec::new());
        let table = TableManifest { references: vec![to(&before, "checkpoint/model.safetensors")], ..table };
        let manifest = Manifest::new(BTreeMap::from([("default".to_owned(), table)]), 0);
        let url = |manifest: &Manifest| manifest.outputs["default"].references[0].url.clone();
        let other = SourceFile { version: "blake3:other".to_owned(), ..after.clone() };
        assert_eq!(url(&relocated(manifest.clone(), &[other])), before.url);
        assert_eq!(url(&relocated(manifest, std::slice::from_ref(&after))), after.url);
    }
}
