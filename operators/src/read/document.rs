//! Documents: what a file or a line becomes, and batches of them.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int32Builder, Int64Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{failure::Failure, key::row_id};
use serde_json::{Map, Value};

use super::{
    format::{Columns, Format},
    html,
    line::text_of,
    markdown, text,
};
use crate::rejects::Reject;

/// The content of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parsed {
    pub(super) title: Option<String>,
    pub(super) text: String,
    pub(super) metadata: Option<Map<String, Value>>,
}

/// Columns of the documents that `read` gives.
pub(super) fn fields() -> Vec<Field> {
    let field = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    vec![
        field("row_id", false),
        field("doc_id", false),
        field("title", true),
        field("text", false),
        field("source", false),
        field("metadata", true),
    ]
}

/// Reads a file that is one document.
///
/// # Errors
/// The reject, if it isn't UTF-8 or has no text.
pub(super) fn of_file(format: Format, source: &str, bytes: &[u8]) -> Result<Parsed, Reject> {
    let bytes = without_mark(bytes);
    let content = std::str::from_utf8(bytes)
        .map_err(|error| Reject::new("not_utf8", format!("`{source}`: byte {} isn't UTF-8", error.valid_up_to())))?;
    if format == Format::Html && html::too_deep(content) {
        return Err(Reject::new("too_large", format!("the elements of `{source}` are nested too deep")));
    }
    let parsed = match format {
        Format::Markdown => markdown::parse(content),
        Format::Html => html::parse(content),
        _ => text::parse(content),
    };
    if parsed.text.is_empty() {
        return Err(Reject::new("empty", format!("`{source}` has no text")).raw(content));
    }
    Ok(parsed)
}

/// Reads a line that is one document: its `doc_id`, if it has one, and its content. Fields that no column takes are
/// metadata.
///
/// # Errors
/// The reject, if a field has the wrong type or there is no text; its detail leaves the place to the caller.
pub(super) fn of_object(mut object: Map<String, Value>, columns: &Columns) -> Result<(Option<String>, Parsed), Reject> {
    let doc_id = match object.shift_remove(columns.theirs("doc_id")) {
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        other => text_of(columns.theirs("doc_id"), other)?.filter(|id| !id.is_empty()),
    };
    let title = text_of(columns.theirs("title"), object.shift_remove(columns.theirs("title")))?;
    let text = text_of(columns.theirs("text"), object.shift_remove(columns.theirs("text")))?;
    let text = text.filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(|| Reject::new("empty", format!("no text in `{}`", columns.theirs("text"))))?;
    let title = title.map(|title| title.trim().to_owned()).filter(|title| !title.is_empty());
    let metadata = (!object.is_empty()).then_some(object);
    Ok((doc_id, Parsed { title, text, metadata }))
}

/// `bytes` without a byte order mark.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

/// A document on its way into a batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    pub(super) doc_id: String,
    pub(super) title: Option<String>,
    pub(super) text: String,
    /// A JSON object.
    pub(super) metadata: Option<String>,
    /// Where its pages stand in its text, if it has any.
    pub(super) pages: Vec<Span>,
}

/// Where a page stands in a document's text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// From 1.
    pub(super) page: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Document {
    /// A document without pages.
    ///
    /// # Errors
    /// A bug, if its metadata can't be written.
    pub(super) fn new(doc_id: String, parsed: Parsed) -> Result<Self, Failure> {
        let metadata = parsed.metadata.as_ref().map(serde_json::to_string).transpose();
        let metadata = metadata.map_err(|error| Failure::bug(error.to_string()))?;
        Ok(Self { doc_id, title: parsed.title, text: parsed.text, metadata, pages: Vec::new() })
    }
}

/// Joins pages to a text, an empty line between them, and says where each stands in it.
pub(super) fn joined<'a>(pages: impl IntoIterator<Item = (u32, &'a str)>) -> (String, Vec<Span>) {
    let (mut text, mut spans) = (String::new(), Vec::new());
    for (page, content) in pages {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        spans.push(Span { page, start: text.len(), end: text.len() + content.len() });
        text.push_str(content);
    }
    (text, spans)
}

/// Spans as the JSON that stands in metadata: lists of page, start and end.
pub(super) fn spans_json(pages: &[Span]) -> Value {
    pages.iter().map(|span| Value::from(vec![Value::from(span.page), span.start.into(), span.end.into()])).collect()
}

/// Columns of the table of pages.
pub(super) fn page_fields() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    vec![
        text("row_id"),
        text("parent_id"),
        text("doc_id"),
        Field::new("page", DataType::Int32, false),
        Field::new("byte_start", DataType::Int64, false),
        Field::new("byte_end", DataType::Int64, false),
    ]
}

/// Documents of the next batch.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    row_id: StringBuilder,
    doc_id: StringBuilder,
    title: StringBuilder,
    text: StringBuilder,
    source: StringBuilder,
    metadata: StringBuilder,
}

impl Documents {
    /// Adds a document and gives its row's id.
    pub(super) fn push(&mut self, source: &str, document: &Document) -> String {
        let id = row_id("read", 0, &[&document.doc_id], 0, 0);
        self.rows += 1;
        self.bytes += document.text.len() + document.metadata.as_ref().map_or(0, String::len);
        self.row_id.append_value(&id);
        self.doc_id.append_value(&document.doc_id);
        self.title.append_option(document.title.as_deref());
        self.text.append_value(&document.text);
        self.source.append_value(source);
        self.metadata.append_option(document.metadata.as_deref());
        id
    }

    pub(super) fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        (self.rows, self.bytes) = (0, 0);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.title.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.metadata.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

/// Pages of the documents of the next batch.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) rows: usize,
    row_id: StringBuilder,
    parent_id: StringBuilder,
    doc_id: StringBuilder,
    page: Int32Builder,
    byte_start: Int64Builder,
    byte_end: Int64Builder,
}

impl Pages {
    /// Adds the pages of a document whose row is `parent`.
    pub(super) fn push(&mut self, parent: &str, document: &Document) -> Result<(), Failure> {
        let number = |number: usize| i64::try_from(number).map_err(|error| Failure::bug(error.to_string()));
        for span in &document.pages {
            let page = i32::try_from(span.page).map_err(|error| Failure::bug(error.to_string()))?;
            self.rows += 1;
            self.row_id.append_value(row_id("read.page", 0, &[parent], 0, u64::from(span.page)));
            self.parent_id.append_value(parent);
            self.doc_id.append_value(&document.doc_id);
            self.page.append_value(page);
            self.byte_start.append_value(number(span.start)?);
            self.byte_end.append_value(number(span.end)?);
        }
        Ok(())
    }

    pub(super) fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.page.finish()),
            Arc::new(self.byte_start.finish()),
            Arc::new(self.byte_end.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_that_hold_no_text_are_rejected() {
        let reject = of_file(Format::Text, "a.txt", b"ab\xFFcd").unwrap_err();
        assert_eq!((reject.reason, reject.detail.as_str()), ("not_utf8", "`a.txt`: byte 2 isn't UTF-8"));
        assert_eq!(of_file(Format::Text, "a.txt", b"").unwrap_err().reason, "empty");
        assert_eq!(of_file(Format::Html, "a.html", b"<p> </p>").unwrap_err().reason, "empty");
        assert_eq!(of_file(Format::Text, "a.txt", b"\xEF\xBB\xBFword").unwrap().text, "word");
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn columns_are_mapped_and_the_rest_is_metadata() {
        let columns = Columns::from([("text".to_owned(), "body".to_owned())]);
        let row = object(json!({"z": 1, "body": "Text", "doc_id": 7, "title": " T ", "text": "not this", "a": null}));
        let (doc_id, parsed) = of_object(row, &columns).unwrap();
        assert_eq!(doc_id.as_deref(), Some("7"));
        assert_eq!((parsed.title.as_deref(), parsed.text.as_str()), (Some("T"), "Text"));
        assert_eq!(serde_json::to_string(&parsed.metadata).unwrap(), r#"{"z":1,"text":"not this","a":null}"#);
        let (doc_id, parsed) = of_object(object(json!({"text": "x", "title": null})), &Columns::default()).unwrap();
        assert_eq!((doc_id, parsed.title, parsed.metadata), (None, None, None));
    }

    #[test]
    fn wrong_types_and_empty_texts_are_rejected() {
        let reason = |value| of_object(object(value), &Columns::default()).unwrap_err().reason;
        assert_eq!(reason(json!({"text": 3})), "wrong_type");
        assert_eq!(reason(json!({"text": "a", "title": ["b"]})), "wrong_type");
        assert_eq!(reason(json!({"text": "a", "doc_id": 1.5})), "wrong_type");
        assert_eq!(reason(json!({"text": " \n"})), "empty");
        assert_eq!(reason(json!({"body": "a"})), "empty");
    }
}
