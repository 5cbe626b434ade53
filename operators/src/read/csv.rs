//! Comma-separated values (RFC 4180), a document a row.

use std::{
    collections::VecDeque,
    io::{self, BufRead},
};

use ingrain_engine::failure::Failure;
use serde_json::{Map, Value};

use super::{
    Read,
    content::cut_off,
    document::{Document, Parsed},
    format::{Places, delimiter},
    item::{Halt, Sink},
    line::{LONGEST, Lines, shown, too_long},
};
use crate::rejects::Reject;

/// Reads a table of text whose first row names its columns.
///
/// # Errors
/// When the header can't be read or lacks a column, or reading has to stop.
pub(super) fn read<R: BufRead>(settings: &Read, reader: R, sink: &mut Sink) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let mut rows = Rows::new(reader, delimiter(sink.path()));
    let header = match rows.advance() {
        Ok(Some(row)) => header(&source, row)?,
        Ok(None) => return sink.reject(0, Reject::new("empty", format!("`{source}` has no header"))),
        Err(error) => return sink.reject(0, cut_off(&format!("`{source}`"), &error)),
    };
    let places = settings.columns.places(&source, &header)?;
    let names = metadata_names(&header);
    let mut is_empty = true;
    loop {
        let (number, raw, row) = match rows.advance() {
            Ok(Some(Row { number, raw, fields })) => (number, raw, fields),
            Ok(None) if is_empty => return sink.reject(0, Reject::new("empty", format!("`{source}` has no row"))),
            Ok(None) => return Ok(()),
            Err(error) => {
                let number = rows.lines.number();
                let reject = cut_off(&format!("`{source}` line {number}"), &error);
                return sink.reject(number, reject.raw(&shown(rows.lines.line())));
            }
        };
        is_empty = false;
        let document = row.and_then(|fields| {
            if fields.len() != header.len() {
                let wrong = format!("{} fields; the header has {}", fields.len(), header.len());
                return Err(Reject::new("bad_csv", wrong));
            }
            document(places, &names, fields)
        });
        match document {
            Ok((doc_id, parsed)) => {
                let doc_id = doc_id.unwrap_or_else(|| sink.place(number));
                sink.document(Document::new(doc_id, parsed)?)?;
            }
            Err(reject) => {
                let detail = format!("`{source}` line {number}: {}", reject.detail);
                sink.reject(number, Reject { detail, ..reject }.raw(&shown(&raw)))?;
            }
        }
    }
}

fn header(source: &str, row: Row) -> Result<Vec<String>, Failure> {
    let number = row.number;
    let wrong = |why: String| {
        Failure::data(format!("`{source}` line {number}: the header can't be read: {why}"))
            .hint("the first line names the columns, in UTF-8")
    };
    let fields = row.fields.map_err(|reject| wrong(reject.detail))?;
    let text = |field| String::from_utf8(field).map_err(|error| wrong(error.utf8_error().to_string()));
    fields.into_iter().map(text).collect()
}

/// Names of the columns in metadata: one that has no name, or that of a column before it, is named after its place.
fn metadata_names(header: &[String]) -> Vec<String> {
    let again = |place: usize, name: &String| name.is_empty() || header[..place].contains(name);
    let name = |(place, name): (usize, &String)| if again(place, name) { format!("{name}#{}", place + 1) } else { name.clone() };
    header.iter().enumerate().map(name).collect()
}

fn document(places: Places, names: &[String], fields: Vec<Vec<u8>>) -> Result<(Option<String>, Parsed), Reject> {
    let mut texts = Vec::with_capacity(fields.len());
    for (field, name) in fields.into_iter().zip(names) {
        texts.push(String::from_utf8(field).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Reject::new("not_utf8", format!("byte {at} of `{name}` isn't UTF-8"))
        })?);
    }
    let metadata: Map<String, Value> = (texts.iter().zip(names).enumerate())
        .filter(|(place, _)| !places.ours(*place))
        .map(|(_, (text, name))| (name.clone(), Value::String(text.clone())))
        .collect();
    let mut own = |place: Option<usize>| place.map(|place| std::mem::take(&mut texts[place]));
    let doc_id = own(places.doc_id).filter(|id| !id.is_empty());
    let title = own(places.title).map(|title| title.trim().to_owned()).filter(|title| !title.is_empty());
    let text = own(Some(places.text)).filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(|| Reject::new("empty", format!("no text in `{}`", names[places.text])))?;
    Ok((doc_id, Parsed { title, text, metadata: (!metadata.is_empty()).then_some(metadata) }))
}

/// A row of the file.
struct Row {
    /// The line that it begins at, from 1.
    number: u64,
    /// Its lines as they stand there.
    raw: Vec<u8>,
    fields: Result<Vec<Vec<u8>>, Reject>,
}

/// The rows of a file. Empty lines are left out.
///
/// A quoted field may hold line breaks, so a quote that is never closed would take the rest of the file with it. Then only
/// the line that it stands in is refused, and reading goes on with the next one.
struct Rows<R> {
    lines: Lines<R>,
    delimiter: u8,
    /// Lines that were read as part of a row that turned out not to be one.
    again: VecDeque<Line>,
    /// What ended the content behind them.
    error: Option<io::Error>,
}

/// A line without its `\n` and its number; the reject, if it is too long.
type Line = (u64, Result<Vec<u8>, Reject>);

impl<R: BufRead> Rows<R> {
    fn new(reader: R, delimiter: u8) -> Self {
        Self { lines: Lines::new(reader), delimiter, again: VecDeque::new(), error: None }
    }

    /// The next row; `None` behind the last one.
    fn advance(&mut self) -> io::Result<Option<Row>> {
        loop {
            return match self.line()? {
                None => Ok(None),
                Some((_, Ok(line))) if line.trim_ascii().is_empty() => continue,
                Some((number, Ok(line))) => Ok(Some(self.row(number, line))),
                Some((number, Err(reject))) => {
                    let raw = reject.raw.clone().unwrap_or_default().into_bytes();
                    Ok(Some(Row { number, raw, fields: Err(reject) }))
                }
            };
        }
    }

    /// The row that begins with the line `first`.
    fn row(&mut self, number: u64, first: Vec<u8>) -> Row {
        let mut raw = first.clone();
        let mut more: Vec<Line> = Vec::new();
        let mut fields = Fields::new(self.delimiter);
        let mut taken = fields.line(&first);
        let why = loop {
            match taken {
                Ok(true) => return Row { number, raw, fields: Ok(fields.done) },
                Ok(false) if raw.len() > LONGEST => break "a quoted field has no end within 64 MiB",
                Ok(false) => {}
                Err(why) => break why,
            }
            match self.line() {
                Ok(Some((number, Ok(line)))) => {
                    taken = fields.line(&line);
                    raw.push(b'\n');
                    raw.extend_from_slice(&line);
                    more.push((number, Ok(line)));
                }
                Ok(Some(long)) => {
                    more.push(long);
                    break "a quoted field has no end before a line that is too long";
                }
                Ok(None) => break "a quoted field has no end",
                Err(error) => {
                    self.error = Some(error);
                    break "a quoted field has no end";
                }
            }
        };
        for line in more.into_iter().rev() {
            self.again.push_front(line);
        }
        Row { number, raw: first, fields: Err(Reject::new("bad_csv", why)) }
    }

    fn line(&mut self) -> io::Result<Option<Line>> {
        if let Some(line) = self.again.pop_front() {
            return Ok(Some(line));
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some(length) = self.lines.advance()? else { return Ok(None) };
        let line = match too_long(length) {
            None => Ok(self.lines.line().to_vec()),
            Some(reject) => Err(reject.raw(&shown(self.lines.line()))),
        };
        Ok(Some((self.lines.number(), line)))
    }
}

/// The fields of a row, line by line.
struct Fields {
    delimiter: u8,
    done: Vec<Vec<u8>>,
    field: Vec<u8>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first of two.
    Quote,
}

impl Fields {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, done: Vec::new(), field: Vec::new(), place: Place::Start }
    }

    /// Takes a line; `false`: it ends inside a quoted field, and the row goes on in the next one.
    fn line(&mut self, line: &[u8]) -> Result<bool, &'static str> {
        let content = line.strip_suffix(b"\r").unwrap_or(line);
        for byte in content {
            match (self.place, *byte) {
                (Place::Start, b'"') => self.place = Place::Quoted,
                (Place::Quoted, b'"') => self.place = Place::Quote,
                (Place::Quoted, byte) => self.field.push(byte),
                (Place::Quote, b'"') => {
                    self.field.push(b'"');
                    self.place = Place::Quoted;
                }
                (_, byte) if byte == self.delimiter => self.end(),
                (Place::Quote, _) => return Err("there is more behind the end of a quoted field"),
                (Place::Start | Place::Plain, byte) => {
                    self.field.push(byte);
                    self.place = Place::Plain;
                }
            }
        }
        if self.place == Place::Quoted {
            self.field.extend_from_slice(&line[content.len()..]);
            self.field.push(b'\n');
            return Ok(false);
        }
        self.end();
        Ok(true)
    }

    fn end(&mut self) {
        self.done.push(std::mem::take(&mut self.field));
        self.place = Place::Start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of a file: line and fields, or why not.
    fn rows(text: &[u8]) -> Vec<(u64, Result<Vec<String>, String>)> {
        let mut rows = Rows::new(text, b',');
        let mut found = Vec::new();
        while let Some(row) = rows.advance().unwrap() {
            let texts = |fields: Vec<Vec<u8>>| fields.into_iter().map(|field| String::from_utf8(field).unwrap()).collect();
            found.push((row.number, row.fields.map(texts).map_err(|reject| reject.detail)));
        }
        found
    }

    fn good(number: u64, fields: &[&str]) -> (u64, Result<Vec<String>, String>) {
        (number, Ok(fields.iter().map(|field| (*field).to_owned()).collect()))
    }

    #[test]
    fn quotes_hold_delimiters_quotes_and_lines() {
        let text = b"\xEF\xBB\xBFa,b\r\n\"x, y\",\"he said \"\"so\"\"\"\r\n\n\"two\r\nlines\",\n5\" pipe,\"\"\nlast,one";
        assert_eq!(
            rows(text),
            [
                good(1, &["a", "b"]),
                good(2, &["x, y", "he said \"so\""]),
                good(4, &["two\r\nlines", ""]),
                good(6, &["5\" pipe", ""]),
                good(7, &["last", "one"]),
            ]
        );
        assert_eq!(rows(b""), []);
        assert_eq!(rows(b"a,\n,"), [good(1, &["a", ""]), good(2, &["", ""])]);
    }

    #[test]
    fn a_broken_quote_costs_one_line() {
        let bad = |number: u64, why: &str| (number, Err(why.to_owned()));
        let unclosed = "a quoted field has no end";
        assert_eq!(rows(b"1,\"open\n2,two\n3,three"), [bad(1, unclosed), good(2, &["2", "two"]), good(3, &["3", "three"])]);
        let more = "there is more behind the end of a quoted field";
        assert_eq!(rows(b"1,\"a\"b\n2,two"), [bad(1, more), good(2, &["2", "two"])]);
        assert_eq!(
            rows(b"1,\"open\n2,\"two\"\n3,\"open\n4,four"),
            [bad(1, more), good(2, &["2", "two"]), bad(3, unclosed), good(4, &["4", "four"])]
        );
        let many = "\"x\n".repeat(20_000);
        assert_eq!(rows(many.as_bytes()).len(), 20_000);
    }

    #[test]
    fn columns_without_a_name_of_their_own_are_named_after_their_place() {
        let header: Vec<String> = ["a", "", "a", "b"].map(str::to_owned).into();
        assert_eq!(metadata_names(&header), ["a", "#2", "a#3", "b"]);
    }
}
