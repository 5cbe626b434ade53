//! A file's content as a reader that blocks: piece by piece from wherever it lies, decompressed, with bounded memory.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use futures::{StreamExt, stream::BoxStream};
use ingrain_engine::failure::Failure;
use tokio::{runtime::Handle, sync::mpsc::Sender};

use super::{format::Compression, item::Item};
use crate::rejects::Reject;

/// Content as it comes from a disk or a bucket.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, Failure>>;

/// Bytes that are decompressed at a time.
const BUFFER: usize = 256 << 10;
/// What grows by more than this is no honest compression of text.
const RATIO: u64 = 1000;

/// Reads the pieces of a file on a thread that may block. It hands on no failure of its own kind: whoever reads sees an
/// error like that of a broken file, and [`Content::finish`] tells the two apart.
pub(super) struct Content {
    pieces: Pieces,
    piece: Bytes,
    ended: bool,
    /// Whether nobody wants the rest.
    left: bool,
    failure: Option<Failure>,
    taken: Rc<Cell<u64>>,
    runtime: Handle,
    wanted: Sender<Vec<Item>>,
}

impl Content {
    /// `wanted`: once nobody receives any more, reading ends.
    pub(super) fn new(pieces: Pieces, runtime: Handle, wanted: Sender<Vec<Item>>) -> Self {
        Self { pieces, piece: Bytes::new(), ended: false, left: false, failure: None, taken: Rc::default(), runtime, wanted }
    }

    /// The content, decompressed. `bomb` is the size up to which any growth is believed.
    ///
    /// The reader ends with an error of the kind [`io::ErrorKind::FileTooLarge`] where the content grows like a decompression
    /// bomb, and with another where it is cut off or broken.
    ///
    /// # Errors
    /// When no decompressor can be had.
    pub(super) fn decoded(&mut self, compression: Compression, bomb: u64) -> io::Result<Box<dyn BufRead + '_>> {
        let taken = self.taken.clone();
        let decoder: Box<dyn Read + '_> = match compression {
            Compression::None => return Ok(Box::new(self)),
            Compression::Gzip => Box::new(MultiGzDecoder::new(self)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(self)?),
        };
        Ok(Box::new(BufReader::with_capacity(BUFFER, Bounded { decoder, given: 0, taken, bomb })))
    }

    /// Gives up what is left of a file on a server: its first piece comes with its state, and shows as well as the whole file
    /// that it is what was listed.
    pub(super) fn leave(&mut self) {
        self.left = true;
    }

    /// Reads what nobody asked for, so that the whole file is known to be what was listed.
    ///
    /// # Errors
    /// When it isn't, or the file could not be read: then nothing that came of it counts.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        while !self.ended && self.failure.is_none() {
            self.piece.clear();
            // An error is kept in `failure`.
            let _ = self.fill();
            if self.left {
                break;
            }
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// What went wrong where the file lies, so far.
    pub(super) fn failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    fn fill(&mut self) -> io::Result<()> {
        while self.piece.is_empty() && !self.ended {
            let (pieces, wanted) = (&mut self.pieces, &self.wanted);
            let next = if self.failure.is_some() {
                None
            } else {
                self.runtime.block_on(async {
                    tokio::select! {
                        biased;
                        () = wanted.closed() => Some(Err(Failure::external("reading was given up"))),
                        piece = pieces.next() => piece,
                    }
                })
            };
            match next {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(failure)) => self.failure = Some(failure),
                None => self.ended = self.failure.is_none(),
            }
            if self.failure.is_some() {
                return Err(io::Error::other("the file can't be read"));
            }
        }
        Ok(())
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Content {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        self.piece.advance(count);
        self.taken.set(self.taken.get() + count as u64);
    }
}

/// Stops a decoder that gives far more than it takes.
struct Bounded<'a> {
    decoder: Box<dyn Read + 'a>,
    given: u64,
    taken: Rc<Cell<u64>>,
    bomb: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.given += count as u64;
        if self.given > self.bomb && self.given / RATIO > self.taken.get() {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{} bytes became more than {}", self.taken.get(), self.given),
            ));
        }
        Ok(count)
    }
}

/// The reject for content that ends with `error`; `place` says where.
pub(super) fn cut_off(place: &str, error: &io::Error) -> Reject {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Reject::new("too_large", format!("{place} grows too much: {error}")),
        io::ErrorKind::UnexpectedEof => Reject::new("truncated", format!("{place} is cut off")),
        _ => Reject::new("truncated", format!("{place} is cut off or broken: {error}")),
    }
}
