//! PDF: the text of its pages, joined.

mod font;
mod layout;
mod page;

use std::io::{self, Read as _};

use pdf_extract::{Dictionary, Document as Pdf, Error, Object, decode_text_string, output_doc_page};
use serde_json::{Map, Value};

use self::layout::Layout;
use super::{
    document::{Document, Parsed, joined, spans_json},
    item::{Halt, Sink},
    quiet::quietly,
};
use crate::rejects::Reject;

/// A PDF with more pages is refused.
const MOST_PAGES: usize = 10_000;
/// The most bytes that a stream of a PDF may grow to, and all of them together.
const LARGEST_STREAM: u64 = 512 << 20;
const LARGEST_STREAMS: u64 = 8 << 30;

/// Reads a PDF. Pages that can't be read, or have no text, become rejects; the others are the document.
///
/// # Errors
/// When reading has to stop.
pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let mut pdf = match open(bytes, &source) {
        Ok(pdf) => pdf,
        Err(reject) => return sink.reject(0, reject),
    };
    font::spell_out_widths(&mut pdf);
    let pages = quietly(|| pdf.get_pages()).unwrap_or_default();
    if pages.is_empty() {
        return sink.reject(0, Reject::new("empty", format!("`{source}` has no pages")));
    }
    if pages.len() > MOST_PAGES {
        let found = format!("`{source}` has {} pages; a document has at most {MOST_PAGES}", pages.len());
        return sink.reject(0, Reject::new("too_large", found));
    }
    let mut read = Vec::new();
    for (number, id) in pages {
        let flat = quietly(|| page::flatten(&mut pdf, id));
        let flat = flat.unwrap_or_else(|panic| Err(("bad_page", format!("can't be read: {panic}"))));
        let text = flat.and_then(|flat| {
            let text = text_of_page(&pdf, number);
            pdf.objects.remove(&flat.content);
            match text {
                Ok(text) if text.is_empty() && flat.images => Err(("no_text", "has images and no text: a scan?".to_owned())),
                Ok(text) if text.is_empty() => Err(("no_text", "has no text".to_owned())),
                Ok(text) => Ok(text),
                Err(why) => Err(("bad_page", format!("can't be read: {why}"))),
            }
        });
        match text {
            Ok(text) => read.push((number, text)),
            Err((reason, why)) => {
                sink.reject(number.into(), Reject::new(reason, format!("page {number} of `{source}` {why}")))?
            }
        }
    }
    if read.is_empty() {
        return Ok(());
    }
    let (text, spans) = joined(read.iter().map(|(page, text)| (*page, text.as_str())));
    let (title, mut metadata) = described(&pdf);
    metadata.insert("pages".to_owned(), spans_json(&spans));
    let doc_id = sink.path().to_owned();
    let document = Document::new(doc_id, Parsed { title, text, metadata: Some(metadata) })?;
    sink.document(Document { pages: spans, ..document })
}

fn open(bytes: &[u8], source: &str) -> Result<Pdf, Reject> {
    if grows(bytes, LARGEST_STREAM, LARGEST_STREAMS) {
        return Err(Reject::new(
            "too_large",
            format!("`{source}` holds more than is read of a PDF: {LARGEST_STREAM} bytes in a stream"),
        ));
    }
    let encrypted = || Reject::new("encrypted", format!("`{source}` can't be opened without a password"));
    match quietly(|| Pdf::load_mem(bytes)) {
        // The library overlooks one whose settings stand in the trailer itself.
        Ok(Ok(pdf)) if pdf.is_encrypted() || pdf.trailer.has(b"Encrypt") => Err(encrypted()),
        Ok(Ok(pdf)) => Ok(pdf),
        Ok(Err(Error::InvalidPassword | Error::Decryption(_) | Error::UnsupportedSecurityHandler(_))) => Err(encrypted()),
        Ok(Err(error)) => Err(Reject::new("bad_pdf", format!("`{source}` is no PDF that can be read: {error}"))),
        Err(panic) => Err(Reject::new("bad_pdf", format!("`{source}` is no PDF that can be read: {panic}"))),
    }
}

fn text_of_page(pdf: &Pdf, number: u32) -> Result<String, String> {
    let mut layout = Layout::default();
    quietly(|| output_doc_page(pdf, &mut layout, number))?.map_err(|error| error.to_string())?;
    Ok(layout.text())
}

/// The title, and what else the PDF says of itself.
fn described(pdf: &Pdf) -> (Option<String>, Map<String, Value>) {
    let info = pdf.trailer.get(b"Info").ok().and_then(|info| pdf.dereference(info).ok());
    let info: Option<&Dictionary> = info.and_then(|(_, info)| info.as_dict().ok());
    let text = |key: &[u8]| {
        let value: &Object = info?.get(key).ok().and_then(|value| pdf.dereference(value).ok())?.1;
        let text = quietly(|| decode_text_string(value)).ok()?.ok()?;
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let fields = [("author", &b"Author"[..]), ("subject", &b"Subject"[..]), ("keywords", &b"Keywords"[..])];
    let given = fields.into_iter().filter_map(|(name, key)| Some((name.to_owned(), Value::String(text(key)?))));
    (text(b"Title"), given.collect())
}

/// Whether a compressed stream grows over `most` bytes, or all of them over `all`, or one is compressed twice, which nobody
/// does who means well. Whatever follows the word `stream` and begins as zlib data counts, so that nothing has to be parsed
/// for it.
fn grows(bytes: &[u8], most: u64, all: u64) -> bool {
    const WORD: &[u8] = b"stream";
    const FILTER: &[u8] = b"FlateDecode";
    /// Bytes before the word in which its dictionary is looked for.
    const DICTIONARY: usize = 512;
    let mut total = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut rest = bytes;
    while let Some(at) = rest.windows(WORD.len()).position(|window| window == WORD) {
        let dictionary = &rest[at.saturating_sub(DICTIONARY)..at];
        let object = dictionary.windows(3).rposition(|window| window == b"obj").map_or(dictionary, |at| &dictionary[at..]);
        if object.windows(FILTER.len()).filter(|window| *window == FILTER).count() > 1 {
            return true;
        }
        rest = &rest[at + WORD.len()..];
        let data = rest.strip_prefix(b"\r").unwrap_or(rest);
        let data = data.strip_prefix(b"\n").unwrap_or(data);
        let zlib = |first: u8, second: u8| first & 0x0f == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31);
        let zlib = matches!(data, [first, second, ..] if zlib(*first, *second));
        if !zlib {
            continue;
        }
        let mut decoder = flate2::bufread::ZlibDecoder::new(data);
        let mut grown = 0;
        loop {
            match decoder.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(count) => grown += count as u64,
            }
            if grown > most || total + grown > all {
                return true;
            }
        }
        total += grown;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn streams_are_measured_before_they_are_held() {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&[0; 9000]).unwrap();
        let stream =
            [b"<< /Filter /FlateDecode >>\nstream\r\n".as_slice(), &encoder.finish().unwrap(), b"\nendstream\n"].concat();
        let file = [stream.as_slice(), &stream].concat();
        assert!(!grows(&file, 9000, 18_000));
        assert!(grows(&file, 8999, 18_000) && grows(&file, 9000, 17_999));
        assert!(!grows(b"a stream without compression", 0, 0));
        let twice = b"1 0 obj << /Filter [/FlateDecode /FlateDecode] >> stream";
        assert!(grows(twice, 9000, 9000) && !grows(&[b"/FlateDecode endobj ", &twice[..35], b">> stream"].concat(), 9000, 9000));
    }
}
