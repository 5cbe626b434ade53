//! Files become rows: read ahead on threads that may block, given on in their order.

use std::{future::ready, io::Read as _, sync::Arc};

use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use ingrain_engine::{
    failure::Failure,
    run::{OutputStream, RowStream, SourceFile, StreamContext},
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{
    Read,
    content::{Content, Pieces, cut_off},
    csv,
    document::{self, Document},
    financebench,
    format::{Compression, Format},
    item::{Batches, Halt, Item, Sink},
    line, longhealth, parquet, pdf, quality, question,
    quiet::quietly,
    table::{self, Table},
};
use crate::{rejects::Reject, route::failed};

/// Files of a partition that are read at once, the first of them for the rows that come next.
const AHEAD: usize = 4;
/// Groups of items that wait of each.
const GROUPS: usize = 2;
/// The largest file that is held whole, and the largest that many times its size is built from.
pub(super) const LARGEST: u64 = 256 << 20;
const LARGEST_MARKUP: u64 = 64 << 20;
/// Up to here, any growth of a compressed file is believed: of one that is read line by line, and of one that is held.
const BOMB: u64 = 1 << 30;
const BOMB_HELD: u64 = 64 << 20;

/// `read` as a row transform.
pub(super) struct Reading {
    pub(super) settings: Read,
    /// What rows are made of, where the files are tables.
    pub(super) table: Option<Table>,
}

impl RowStream for Reading {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let batches = match Batches::new(self.settings.format, |output| context.schema(output)) {
            Ok(batches) => batches,
            Err(failure) => return failed(failure),
        };
        let settings = Arc::new(self.settings.clone());
        let table = self.table.clone().map(Arc::new);
        let opening = context.clone();
        let files = rows
            .map(|batch| SourceFile::of_rows(&batch?))
            .map_ok(|files| stream::iter(files.into_iter().map(Ok::<_, Failure>)))
            .try_flatten()
            .map_ok(move |file| {
                let (pieces, forgotten) = (opening.open_stream(&file), opening.forgotten(&file));
                ready(Ok::<_, Failure>(items(settings.clone(), table.clone(), file, forgotten, pieces)))
            })
            .try_buffered(AHEAD)
            .try_flatten()
            .boxed();
        let start = (batches, files, Vec::new().into_iter(), Arc::<str>::from(""));
        stream::try_unfold((start, context), |((mut batches, mut files, mut waiting, mut source), context)| async move {
            loop {
                for item in waiting.by_ref() {
                    batches.push(&source, item)?;
                    if batches.full() {
                        break;
                    }
                }
                if !batches.full() {
                    match files.next().await {
                        Some(given) => {
                            let (of, items) = given?;
                            (source, waiting) = (of, items.into_iter());
                            continue;
                        }
                        None if batches.is_empty() => return Ok::<_, Failure>(None),
                        None => {}
                    }
                }
                let (outputs, units) = batches.take()?;
                context.count_units(units);
                let next = ((batches, files, waiting, source), context);
                return Ok(Some((stream::iter(outputs.into_iter().map(Ok)), next)));
            }
        })
        .try_flatten()
        .boxed()
    }
}

/// Items of a file, with its name for people.
pub(super) type Items = BoxStream<'static, Result<(Arc<str>, Vec<Item>), Failure>>;

/// Starts reading a file and gives what comes of it, but for documents that are `forgotten`. Reading ends soon after the stream
/// was dropped.
pub(super) fn items(
    settings: Arc<Read>,
    table: Option<Arc<Table>>,
    file: SourceFile,
    forgotten: Vec<String>,
    pieces: Pieces,
) -> Items {
    let (sender, receiver) = mpsc::channel(GROUPS);
    let source: Arc<str> = file.source.as_str().into();
    let runtime = Handle::current();
    let worker = tokio::task::spawn_blocking(move || {
        let mut sink = Sink::new(&file.path, &file.source, sender.clone()).without(forgotten);
        read(&settings, table.as_deref(), &file, &mut Content::new(pieces, runtime, sender), &mut sink)
    });
    stream::try_unfold((receiver, worker, source), |(mut receiver, worker, source)| async move {
        match receiver.recv().await {
            Some(items) => Ok(Some(((source.clone(), items), (receiver, worker, source)))),
            None => match worker.await {
                Ok(read) => read.map(|()| None),
                Err(error) => Err(Failure::bug(format!("reading `{source}` ended: {error}"))),
            },
        }
    })
    .boxed()
}

/// Reads one file to its end. Rows that came before a failure don't count.
fn read(
    settings: &Read,
    table: Option<&Table>,
    file: &SourceFile,
    content: &mut Content,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let (format, compression) = settings.format.of_file(&file.path)?;
    if format.is_one_document() && sink.is_forgotten(&file.path) {
        content.leave();
        return content.finish();
    }
    let read = match table {
        Some(table) => quietly(|| table::read(table, compression, file, content, sink)).unwrap_or_else(|panic| {
            let wrong = Failure::data(format!("`{}` can't be read as Parquet: its decoder gave up: {panic}", file.source));
            Err(wrong.hint("mend the file, or leave it out with `exclude`").into())
        }),
        None => guarded(format, sink, |sink| of_format(settings, format, compression, file, content, sink)),
    };
    match read.and_then(|()| sink.flush()) {
        Ok(()) => content.finish(),
        // What looks like a broken file may be one that could not be read.
        Err(Halt::Failed(failure)) => Err(content.failure().unwrap_or(failure)),
        Err(Halt::Gone) => Ok(()),
    }
}

/// Does `work`; a decoder that panics makes the rest of the file a reject.
fn guarded(format: Format, sink: &mut Sink, work: impl FnOnce(&mut Sink) -> Result<(), Halt>) -> Result<(), Halt> {
    quietly(|| work(&mut *sink)).unwrap_or_else(|panic| {
        let reason = if format == Format::Parquet { "bad_parquet" } else { "unreadable" };
        let detail = format!("`{}`: its decoder gave up: {panic}", sink.source());
        sink.reject(0, Reject::new(reason, detail))
    })
}

fn of_format(
    settings: &Read,
    format: Format,
    compression: Compression,
    file: &SourceFile,
    content: &mut Content,
    sink: &mut Sink,
) -> Result<(), Halt> {
    match format {
        Format::Table => return Err(Failure::bug("a table whose columns nobody looked at").into()),
        Format::Parquet => return parquet::read(settings, compression, file, content, sink),
        Format::Pdf => {
            return match whole(file, compression, content, LARGEST) {
                Ok(bytes) => pdf::read(&bytes, sink),
                Err(reject) => sink.reject(0, reject),
            };
        }
        Format::Auto | Format::Text | Format::Markdown | Format::Html => {
            let largest = if matches!(format, Format::Html | Format::Markdown) { LARGEST_MARKUP } else { LARGEST };
            let bytes = whole(file, compression, content, largest);
            return match bytes.and_then(|bytes| document::of_file(format, &file.source, &bytes)) {
                Ok(parsed) => sink.document(Document::new(file.path.clone(), parsed)?),
                Err(reject) => sink.reject(0, reject),
            };
        }
        _ => {}
    }
    let reader = match content.decoded(compression, BOMB) {
        Ok(reader) => reader,
        Err(error) => return sink.reject(0, cut_off(&format!("`{}`", file.source), &error)),
    };
    match format {
        Format::Csv => csv::read(settings, reader, sink),
        Format::Quality => quality::read(reader, sink),
        Format::Longhealth => longhealth::read(reader, sink),
        Format::Financebench => financebench::read(reader, sink),
        Format::MultipleChoice | Format::OpenEnded => line::each_object(reader, sink, |sink, number, object| {
            Ok(match question::of_object(object, format == Format::MultipleChoice) {
                Ok(question) => {
                    let question_id = question.question_id.clone().unwrap_or_else(|| sink.place(number));
                    sink.question(question_id, question, Vec::new())?;
                    Ok(())
                }
                Err(reject) => Err(reject),
            })
        }),
        _ => line::each_object(reader, sink, |sink, number, object| {
            Ok(match document::of_object(object, &settings.columns) {
                Ok((doc_id, parsed)) => {
                    let doc_id = doc_id.unwrap_or_else(|| sink.place(number));
                    sink.document(Document::new(doc_id, parsed)?)?;
                    Ok(())
                }
                Err(reject) => Err(reject),
            })
        }),
    }
}

/// The whole content of a file that is one document, at most `largest` bytes.
fn whole(file: &SourceFile, compression: Compression, content: &mut Content, largest: u64) -> Result<Vec<u8>, Reject> {
    let source = &file.source;
    let found = if compression == Compression::None && file.size > largest {
        Err(format!("has {} bytes", file.size))
    } else {
        let cut_off = |error| cut_off(&format!("`{source}`"), &error);
        let mut bytes = Vec::new();
        let reader = content.decoded(compression, BOMB_HELD).map_err(cut_off)?;
        reader.take(largest + 1).read_to_end(&mut bytes).map_err(cut_off)?;
        if bytes.len() as u64 > largest { Err("has more bytes".to_owned()) } else { Ok(bytes) }
    };
    found.map_err(|has| {
        // What nobody reads isn't fetched.
        if file.url.contains("://") {
            content.leave();
        }
        Reject::new("too_large", format!("`{source}` {has}; a document of this format has at most {largest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_panics_costs_its_file() {
        let (sender, mut receiver) = mpsc::channel(GROUPS);
        let mut sink = Sink::new("a.parquet", "docs/a.parquet", sender);
        for format in [Format::Parquet, Format::Html] {
            guarded(format, &mut sink, |_| panic!("no such page")).unwrap();
        }
        guarded(Format::Html, &mut sink, |sink| sink.reject(1, Reject::new("empty", "nothing"))).unwrap();
        sink.flush().unwrap();
        let rejects: Vec<(&str, String)> = (receiver.try_recv().unwrap().into_iter())
            .map(|item| match item {
                Item::Reject { reject, .. } => (reject.reason, reject.detail),
                other => panic!("{other:?}"),
            })
            .collect();
        let gave_up = "`docs/a.parquet`: its decoder gave up: no such page".to_owned();
        assert_eq!(rejects, [("bad_parquet", gave_up.clone()), ("unreadable", gave_up), ("empty", "nothing".to_owned())]);
    }
}
