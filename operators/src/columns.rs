//! Columns of tables that arrive at tasks.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Schema},
};
use ingrain_engine::failure::Failure;

/// Whether there is a text column of that name.
pub(crate) fn is_text(schema: &Schema, name: &str) -> bool {
    schema.field_with_name(name).is_ok_and(|field| field.data_type() == &DataType::Utf8)
}

/// Whether there is a column of lists of texts of that name.
pub(crate) fn is_texts(schema: &Schema, name: &str) -> bool {
    let field = schema.field_with_name(name);
    field.is_ok_and(|field| matches!(field.data_type(), DataType::List(item) if item.data_type() == &DataType::Utf8))
}

/// A column that was checked before.
///
/// # Errors
/// A bug, if it isn't there.
pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, Failure> {
    batch.column_by_name(name).ok_or_else(|| Failure::bug(format!("no column `{name}`")))
}

/// A text column that was checked before.
///
/// # Errors
/// A bug, if it isn't there or isn't text.
pub(crate) fn text<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, Failure> {
    column(batch, name)?.as_string_opt().ok_or_else(|| Failure::bug(format!("`{name}` isn't text")))
}

/// The cell of a text column; `None` where it is null or there is no such column.
///
/// # Errors
/// A bug, if the column isn't text.
pub(crate) fn optional_text<'a>(batch: &'a RecordBatch, name: &str, row: usize) -> Result<Option<&'a str>, Failure> {
    match batch.column_by_name(name) {
        None => Ok(None),
        Some(_) => text(batch, name).map(|texts| texts.is_valid(row).then(|| texts.value(row))),
    }
}

/// The cell of a column of lists of texts, nulls in the list left out; empty where it is null or there is no such column.
///
/// # Errors
/// A bug, if the column isn't one of lists of texts.
pub(crate) fn texts(batch: &RecordBatch, name: &str, row: usize) -> Result<Vec<String>, Failure> {
    let Some(column) = batch.column_by_name(name) else { return Ok(Vec::new()) };
    let wrong = || Failure::bug(format!("`{name}` isn't a list of texts"));
    let lists = column.as_list_opt::<i32>().ok_or_else(wrong)?;
    if lists.is_null(row) {
        return Ok(Vec::new());
    }
    let items = lists.value(row);
    let items = items.as_string_opt::<i32>().ok_or_else(wrong)?;
    Ok(items.iter().flatten().map(str::to_owned).collect())
}

/// Runs work that computes for long, or waits for the disk, where it holds up nobody.
///
/// # Errors
/// A bug, if it panics.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::bug(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListBuilder, StringBuilder};

    use super::*;

    #[test]
    fn nulls_and_columns_that_are_not_there_are_empty() {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a"), None, Some("b")]);
        lists.append_null();
        let batch = RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(vec![Some("x"), None])) as ArrayRef),
            ("options", Arc::new(lists.finish()) as ArrayRef),
        ])
        .unwrap();
        assert!(is_text(&batch.schema(), "name") && !is_text(&batch.schema(), "options"));
        assert!(is_texts(&batch.schema(), "options") && !is_texts(&batch.schema(), "name"));
        assert_eq!(optional_text(&batch, "name", 0).unwrap(), Some("x"));
        assert_eq!(optional_text(&batch, "name", 1).unwrap(), None);
        assert_eq!(optional_text(&batch, "title", 0).unwrap(), None);
        assert_eq!(texts(&batch, "options", 0).unwrap(), ["a", "b"]);
        assert!(texts(&batch, "options", 1).unwrap().is_empty());
        assert!(texts(&batch, "answers", 1).unwrap().is_empty());
        assert!(texts(&batch, "name", 0).is_err());
    }
}
