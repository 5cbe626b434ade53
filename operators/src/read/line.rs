//! Lines of JSON.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use super::{
    content::cut_off,
    document::without_mark,
    item::{Halt, Sink},
};
use crate::rejects::Reject;

/// Longer lines are refused.
pub(super) const LONGEST: usize = 64 << 20;
/// How much is kept of a line that is longer.
const KEPT: usize = 64 << 10;

/// The lines of a file, one after the other, numbered from 1.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0 }
    }

    /// Goes to the next line and gives its length in bytes, without its end unless it is too long; `None` behind the last one.
    ///
    /// # Errors
    /// When the content ends with an error; [`Lines::line`] is then what came of the line.
    pub(super) fn advance(&mut self) -> io::Result<Option<u64>> {
        self.line.clear();
        self.line.shrink_to(KEPT);
        self.number += 1;
        let most = LONGEST as u64 + 1;
        let mut length = Read::take(&mut self.reader, most).read_until(b'\n', &mut self.line)? as u64;
        if length == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            length -= 1;
        } else if length == most {
            self.line.truncate(KEPT);
            self.line.shrink_to(KEPT);
            length += self.reader.skip_until(b'\n')? as u64;
        }
        if self.number == 1 {
            let mark = self.line.len() - without_mark(&self.line).len();
            self.line.drain(..mark);
            length -= mark as u64;
        }
        Ok(Some(length))
    }

    /// The line; the beginning of it, if it is longer than [`LONGEST`].
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Its number.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// Hands every line's object on, to `take`; what `take` or the line itself refuses becomes a reject with the line's place and
/// text. Lines of whitespace are left out; a file of nothing else is a reject. If the content ends with an error, that is the
/// last reject.
///
/// # Errors
/// When reading has to stop.
pub(super) fn each_object<R: BufRead>(
    reader: R,
    sink: &mut Sink,
    mut take: impl FnMut(&mut Sink, u64, Map<String, Value>) -> Result<Result<(), Reject>, Halt>,
) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let mut lines = Lines::new(reader);
    let mut is_empty = true;
    loop {
        let length = match lines.advance() {
            Ok(Some(length)) => length,
            Ok(None) if is_empty => return sink.reject(0, Reject::new("empty", format!("`{source}` has no line"))),
            Ok(None) => return Ok(()),
            Err(error) => {
                let reject = cut_off(&format!("`{source}` line {}", lines.number()), &error);
                return sink.reject(lines.number(), reject.raw(&shown(lines.line())));
            }
        };
        let (number, line) = (lines.number(), lines.line());
        let found = match too_long(length) {
            Some(reject) => Err(reject),
            None if line.trim_ascii().is_empty() => continue,
            None => object(line),
        };
        is_empty = false;
        let taken = match found {
            Ok(object) => take(sink, number, object)?,
            Err(reject) => Err(reject),
        };
        if let Err(reject) = taken {
            let detail = format!("`{source}` line {number}: {}", reject.detail);
            sink.reject(number, Reject { detail, ..reject }.raw(&shown(lines.line())))?;
        }
    }
}

/// The reject for a line of `length` bytes, if that is too many.
pub(super) fn too_long(length: u64) -> Option<Reject> {
    (length > LONGEST as u64).then(|| Reject::new("too_large", format!("{length} bytes; a line has at most {LONGEST}")))
}

/// The beginning of a line, for a reject.
pub(super) fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(KEPT)]).into_owned()
}

/// The object that a line holds.
///
/// # Errors
/// The reject, if it isn't UTF-8, isn't JSON or isn't an object; its detail leaves the place to the caller.
fn object(line: &[u8]) -> Result<Map<String, Value>, Reject> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Reject::new("not_utf8", format!("byte {} of the line isn't UTF-8", error.valid_up_to())))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Reject::new("bad_json", format!("{}, not an object", named(&other)))),
        Err(error) => Err(Reject::new("bad_json", error.to_string())),
    }
}

/// A field that is text, null or not there.
pub(super) fn text_of(field: &str, value: Option<Value>) -> Result<Option<String>, Reject> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(field, "text", &other)),
    }
}

/// The reject for a field of another type.
pub(super) fn wrong_type(field: &str, wanted: &str, found: &Value) -> Reject {
    Reject::new("wrong_type", format!("`{field}` is {}, not {wanted}", named(found)))
}

/// What a value is, in words.
pub(super) fn named(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_as_in_an_editor() {
        let mut lines = Lines::new(&b"\xEF\xBB\xBF{}\r\n\n  \n{\"a\":1}"[..]);
        let mut found = Vec::new();
        while let Some(length) = lines.advance().unwrap() {
            found.push((lines.number(), length, lines.line().to_vec()));
        }
        let expected = [(1, 3, b"{}\r".to_vec()), (2, 0, vec![]), (3, 2, b"  ".to_vec()), (4, 7, b"{\"a\":1}".to_vec())];
        assert_eq!(found, expected);
        assert_eq!(Lines::new(&b""[..]).advance().unwrap(), None);
    }

    #[test]
    fn a_long_line_is_counted_and_not_held() {
        let long = io::repeat(b'x').take(3 * LONGEST as u64);
        let mut lines = Lines::new(io::BufReader::new(long.chain(&b"\nnext"[..])));
        let length = lines.advance().unwrap().unwrap();
        assert_eq!(length, 3 * LONGEST as u64 + 1);
        assert!(too_long(length).is_some() && lines.line().len() == KEPT && lines.line.capacity() <= 2 * KEPT);
        assert_eq!(lines.advance().unwrap(), Some(4));
        assert_eq!((lines.number(), lines.line()), (2, &b"next"[..]));
    }

    #[test]
    fn what_is_no_object_is_rejected() {
        let refused = |line: &[u8]| object(line).unwrap_err();
        assert_eq!(refused(b"{\"a\": }").reason, "bad_json");
        assert_eq!(refused(b"[1]").detail, "a list, not an object");
        assert_eq!(refused(b"{} {}").reason, "bad_json");
        assert_eq!(refused(b"{\"a\": \"\xFF\"}").detail, "byte 7 of the line isn't UTF-8");
        assert_eq!(refused("[".repeat(100_000).as_bytes()).reason, "bad_json");
    }
}
