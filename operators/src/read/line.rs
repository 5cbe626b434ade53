//! Lines of JSON.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::rejects::Reject;

/// Longer lines are refused.
const LONGEST: usize = 64 << 20;

/// The lines of a file, one after the other, numbered from 1. Lines of whitespace are left out.
#[derive(Debug)]
pub(super) struct Lines {
    bytes: Bytes,
    at: usize,
    number: u64,
}

impl Lines {
    pub(super) fn new(bytes: Bytes) -> Self {
        let at = bytes.len() - super::document::without_mark(&bytes).len();
        Self { bytes, at, number: 0 }
    }
}

impl Iterator for Lines {
    type Item = (u64, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.bytes.len() {
            let rest = &self.bytes[self.at..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let line = self.bytes.slice(self.at..self.at + end.unwrap_or(rest.len()));
            self.at += end.map_or(rest.len(), |end| end + 1);
            self.number += 1;
            if !line.trim_ascii().is_empty() {
                return Some((self.number, line));
            }
        }
        None
    }
}

/// The object that a line holds.
///
/// # Errors
/// The reject, if it is too long, isn't UTF-8, isn't JSON or isn't an object; its detail leaves the place to the caller.
pub(super) fn object(line: &[u8]) -> Result<Map<String, Value>, Reject> {
    if line.len() > LONGEST {
        return Err(Reject::new("too_large", format!("{} bytes; a line has at most {LONGEST}", line.len())));
    }
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

fn named(value: &Value) -> &'static str {
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
        let lines = Lines::new(Bytes::from_static(b"\xEF\xBB\xBF{}\r\n\n  \n{\"a\":1}"));
        let found: Vec<_> = lines.map(|(number, line)| (number, object(&line).unwrap().len())).collect();
        assert_eq!(found, [(1, 0), (4, 1)]);
        assert_eq!(Lines::new(Bytes::new()).count(), 0);
    }

    #[test]
    fn what_is_no_object_is_rejected() {
        let refused = |line: &[u8]| object(line).unwrap_err();
        assert_eq!(refused(b"{\"a\": }").reason, "bad_json");
        assert_eq!(refused(b"[1]").detail, "a list, not an object");
        assert_eq!(refused(b"{} {}").reason, "bad_json");
        assert_eq!(refused(b"{\"a\": \"\xFF\"}").detail, "byte 7 of the line isn't UTF-8");
        assert_eq!(refused("[".repeat(100_000).as_bytes()).reason, "bad_json");
        assert_eq!(refused(&vec![b' '; LONGEST + 1]).reason, "too_large");
    }
}
