//! Objects of any size, in bounded memory.

use std::{path::Path as FilePath, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, Result, path::Path};
use tokio::{io::AsyncReadExt, task::JoinSet};

use crate::failure::Failure;

/// Bytes that one request carries: enough to hide its latency, and sent again in seconds where a connection breaks.
pub(super) const PIECE: usize = 8 << 20;
/// Up to here an object is put by one request.
const ONE_PUT: usize = 2 * PIECE;
/// Pieces of an upload that are under way at once.
const UPLOADS: usize = 4;
/// Pieces of a download that are under way at once.
const DOWNLOADS: usize = 2;
/// Servers take 10,000 pieces an object.
const MOST_PIECES: u64 = 9_000;

/// Puts an object that lies in memory.
pub(super) async fn put(objects: &Arc<dyn ObjectStore>, path: &Path, content: Bytes) -> Result<(), Failure> {
    if content.len() <= ONE_PUT {
        objects.put(path, content.into()).await?;
        return Ok(());
    }
    let pieces = (0..content.len()).step_by(PIECE).map(move |at| Ok(content.slice(at..content.len().min(at + PIECE))));
    put_pieces(objects, path, futures::stream::iter(pieces).boxed()).await
}

/// Puts a local file; gives its size and the blake3 of its content, hex.
pub(super) async fn upload(objects: &Arc<dyn ObjectStore>, path: &Path, file: &FilePath) -> Result<(u64, String), Failure> {
    let unreadable = |error: std::io::Error| Failure::external(format!("`{}` can't be read: {error}", file.display()));
    let size = tokio::fs::metadata(file).await.map_err(unreadable)?.len();
    if size <= ONE_PUT as u64 {
        let content = Bytes::from(tokio::fs::read(file).await.map_err(unreadable)?);
        let sent = (content.len() as u64, blake3::hash(&content).to_hex().to_string());
        objects.put(path, content.into()).await?;
        return Ok(sent);
    }
    let piece = usize::try_from(size.div_ceil(MOST_PIECES)).unwrap_or(PIECE).max(PIECE);
    let mut open = tokio::fs::File::open(file).await.map_err(unreadable)?;
    let mut hasher = blake3::Hasher::new();
    let mut sent = 0;
    let pieces = async_pieces(&mut open, piece, |content| {
        hasher.update(content);
        sent += content.len() as u64;
    });
    put_pieces(objects, path, pieces.map_err(unreadable).boxed()).await?;
    Ok((sent, hasher.finalize().to_hex().to_string()))
}

/// A file in pieces of exactly `size` bytes but for the last one; `see` looks at each.
fn async_pieces<'a>(
    file: &'a mut tokio::fs::File,
    size: usize,
    see: impl FnMut(&[u8]) + Send + 'a,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'a {
    futures::stream::try_unfold((file, see), move |(file, mut see)| async move {
        let mut piece = Vec::with_capacity(size);
        (&mut *file).take(size as u64).read_to_end(&mut piece).await?;
        see(&piece);
        Ok::<_, std::io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), (file, see))))
    })
}

/// Puts an object in several requests. One that fails leaves nothing behind: what was sent is taken back.
async fn put_pieces(
    objects: &Arc<dyn ObjectStore>,
    path: &Path,
    pieces: BoxStream<'_, Result<Bytes, Failure>>,
) -> Result<(), Failure> {
    let mut upload = objects.put_multipart(path).await?;
    let sent = send(&mut *upload, pieces).await;
    if sent.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::warn!(%error, %path, "pieces of a failed upload stay on the store");
    }
    sent
}

async fn send(upload: &mut dyn MultipartUpload, mut pieces: BoxStream<'_, Result<Bytes, Failure>>) -> Result<(), Failure> {
    let mut under_way = JoinSet::new();
    let ended = |ended: Result<Result<()>, tokio::task::JoinError>| -> Result<(), Failure> {
        ended.map_err(|error| Failure::bug(format!("an upload's thread ended: {error}")))??;
        Ok(())
    };
    while let Some(piece) = pieces.next().await {
        while under_way.len() >= UPLOADS
            && let Some(one) = under_way.join_next().await
        {
            ended(one)?;
        }
        under_way.spawn(upload.put_part(piece?.into()));
    }
    while let Some(one) = under_way.join_next().await {
        ended(one)?;
    }
    upload.complete().await?;
    Ok(())
}

/// An object's content of `size` bytes in pieces, each by a request of its own, so that a slow reader holds no connection open
/// and a broken one costs a piece. With each comes the state that the object was in.
pub(crate) fn pieces(objects: Arc<dyn ObjectStore>, path: Path, size: u64) -> BoxStream<'static, Result<(Bytes, ObjectMeta)>> {
    // One after the other: a size that a record claims costs nothing until there are bytes.
    let range = move |at: u64| (size > PIECE as u64).then(|| at..size.min(at.saturating_add(PIECE as u64)));
    let ranges = (0..size.max(1)).step_by(PIECE).map(range);
    futures::stream::iter(ranges)
        .map(move |range| {
            let (objects, path) = (objects.clone(), path.clone());
            async move {
                let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
                let found = objects.get_opts(&path, options).await?;
                let meta = found.meta.clone();
                Ok::<_, object_store::Error>((found.bytes().await?, meta))
            }
        })
        .buffered(DOWNLOADS)
        .boxed()
}
