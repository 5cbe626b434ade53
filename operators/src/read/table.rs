//! Tables: rows of Parquet files with their columns as they are.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::{can_cast_types, cast},
    datatypes::{DataType, Field, Fields, Schema, TimeUnit},
};
use ingrain_engine::{failure::Failure, key, operator::Invalid, run::SourceFile};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::{
    content::{Content, cut_off},
    format::{Columns, Compression},
    item::{Halt, Sink},
    parquet::{rows_at_once, seekable},
};

const ROW_ID: &str = "row_id";

/// What the rows of a table are made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq)]
struct Column {
    name: String,
    /// What the files call it.
    theirs: String,
    /// Its type in our table.
    kind: DataType,
}

impl Table {
    /// The table of files of which the first one has the schema `first`.
    ///
    /// # Errors
    /// All columns that can't be had under their names or with their types.
    pub(super) fn of(first: &Schema, names: &Columns) -> Result<Self, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let theirs = || first.fields().iter().map(|field| field.name());
        for (ours, wanted) in &names.0 {
            if !theirs().any(|name| name == wanted) {
                let there: Vec<String> = theirs().map(|name| format!("`{name}`")).collect();
                mistakes.push(
                    Invalid::new(&format!("/columns/{ours}"), format!("the files have no column `{wanted}`"))
                        .hint(format!("there are {}", there.join(", "))),
                );
            }
        }
        let mut columns: Vec<Column> = Vec::new();
        for field in first.fields() {
            let mapped = names.0.iter().find(|(_, theirs)| *theirs == field.name());
            let name = mapped.map_or(field.name(), |(ours, _)| ours).clone();
            let place = mapped.map_or("/path".to_owned(), |(ours, _)| format!("/columns/{ours}"));
            if columns.iter().any(|column| column.name == name) {
                mistakes.push(
                    Invalid::new(&place, format!("two columns would be called `{name}`"))
                        .hint(format!("give one another name: `columns: {{ other_name: {} }}`", field.name())),
                );
                continue;
            }
            match kind(field.data_type()) {
                Some(kind) if name == ROW_ID && kind != DataType::Utf8 => mistakes.push(
                    Invalid::new(&place, format!("the column `{ROW_ID}` is {}, not text", field.data_type()))
                        .hint(format!("ids are 32 hex digits; give it another name: `columns: {{ number: {} }}`", field.name())),
                ),
                Some(kind) => columns.push(Column { name, theirs: field.name().clone(), kind }),
                None => mistakes.push(
                    Invalid::new(&place, format!("the column `{name}` is {}, which tables here can't have", field.data_type()))
                        .hint("cast it to text, a number, a boolean, a date or a list of these where it is written"),
                ),
            }
        }
        if mistakes.is_empty() { Ok(Self { columns }) } else { Err(mistakes) }
    }

    /// Our columns: `row_id`, and theirs in their order.
    pub(super) fn fields(&self) -> Vec<Field> {
        let others = self.columns.iter().filter(|column| column.name != ROW_ID);
        let others = others.map(|column| Field::new(&column.name, column.kind.clone(), true));
        std::iter::once(Field::new(ROW_ID, DataType::Utf8, false)).chain(others).collect()
    }

    /// Where each of our columns stands in the file `source`.
    ///
    /// # Errors
    /// When its columns aren't those of the first file.
    fn places(&self, source: &str, schema: &Schema) -> Result<Vec<usize>, Failure> {
        let other = |what: String| {
            Failure::data(format!("`{source}` has other columns than the first file: {what}"))
                .hint("read files with different columns in stages of their own")
        };
        let known: BTreeSet<&str> = self.columns.iter().map(|column| column.theirs.as_str()).collect();
        if let Some(field) = schema.fields().iter().find(|field| !known.contains(field.name().as_str())) {
            return Err(other(format!("`{}` is new", field.name())));
        }
        let place = |column: &Column| match schema.column_with_name(&column.theirs) {
            None => Err(other(format!("`{}` is missing", column.theirs))),
            Some((place, field)) if kind(field.data_type()).as_ref() == Some(&column.kind) => Ok(place),
            Some((_, field)) => Err(other(format!("`{}` is {}, not {}", column.theirs, field.data_type(), column.kind))),
        };
        self.columns.iter().map(place).collect()
    }

    /// Our rows for rows of a file, before which it has `before`.
    fn rows(&self, batch: &RecordBatch, places: &[usize], before: u64, file: &SourceFile) -> Result<RecordBatch, Failure> {
        let mut ids: Option<ArrayRef> = None;
        let mut columns = Vec::with_capacity(self.columns.len() + 1);
        for (column, place) in self.columns.iter().zip(places) {
            let cells = cast(batch.column(*place), &column.kind)
                .map_err(|error| Failure::data(format!("`{}`, column `{}`: {error}", file.source, column.theirs)))?;
            if column.name == ROW_ID { ids = Some(cells) } else { columns.push(cells) }
        }
        let ids = match ids {
            Some(ids) => {
                check_ids(ids.as_string::<i32>(), before, file)?;
                ids
            }
            None => {
                let numbers = before..before + batch.num_rows() as u64;
                let ids = numbers.map(|number| key::row_id("read.table", 0, &[&file.path], 0, number));
                Arc::new(StringArray::from_iter_values(ids))
            }
        };
        columns.insert(0, ids);
        Ok(RecordBatch::try_new(Arc::new(Schema::new(self.fields())), columns)?)
    }
}

fn check_ids(ids: &StringArray, before: u64, file: &SourceFile) -> Result<(), Failure> {
    let is_id = |id: &str| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match (0..ids.len()).find(|row| ids.is_null(*row) || !is_id(ids.value(*row))) {
        None => Ok(()),
        Some(row) => {
            let found = if ids.is_null(row) { "null".to_owned() } else { format!("`{}`", ids.value(row)) };
            Err(Failure::data(format!("`{}` row {}: `row_id` is {found}", file.source, before + row as u64 + 1))
                .hint("ids are 32 hex digits in small letters; `columns` gives the column another name"))
        }
    }
}

/// The type that our tables have for a column of a Parquet file; `None` if they have none.
fn kind(theirs: &DataType) -> Option<DataType> {
    use DataType::*;
    let fields = |fields: &Fields| -> Option<Fields> {
        let ours = |field: &Arc<Field>| Some(Field::new(field.name(), kind(field.data_type())?, true));
        fields.iter().map(ours).collect::<Option<Vec<_>>>().map(Fields::from)
    };
    let ours = match theirs {
        Utf8 | LargeUtf8 | Utf8View | Null => Utf8,
        Dictionary(_, values) => kind(values)?,
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Binary,
        Float16 => Float32,
        Time32(_) => Time64(TimeUnit::Microsecond),
        Decimal32(precision, scale) | Decimal64(precision, scale) => Decimal128(*precision, *scale),
        List(item) | LargeList(item) | FixedSizeList(item, _) => {
            List(Arc::new(Field::new_list_field(kind(item.data_type())?, true)))
        }
        Struct(inner) => Struct(fields(inner)?),
        Boolean
        | Int8
        | Int16
        | Int32
        | Int64
        | UInt8
        | UInt16
        | UInt32
        | UInt64
        | Float32
        | Float64
        | Date32
        | Date64
        | Timestamp(_, _)
        | Time64(_)
        | Decimal128(_, _) => theirs.clone(),
        _ => return None,
    };
    can_cast_types(theirs, &ours).then_some(ours)
}

/// Reads a Parquet file as rows of `table`.
///
/// # Errors
/// When it can't be read whole, or isn't of the table.
pub(super) fn read(
    table: &Table,
    compression: Compression,
    file: &SourceFile,
    content: &mut Content,
    sink: &mut Sink,
) -> Result<(), Halt> {
    let bad = |row: u64, error: &dyn std::fmt::Display| {
        Failure::data(format!("`{}` can't be read as Parquet behind row {row}: {error}", file.source))
            .hint("a table is read whole or not at all: mend the file, or leave it out with `exclude`")
    };
    let opened = match seekable(compression, file, content)? {
        Ok(opened) => opened,
        Err(error) => return Err(bad(0, &cut_off("it", &error).detail).into()),
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(opened, ArrowReaderOptions::new());
    let builder = builder.map_err(|error| bad(0, &error))?;
    let places = table.places(&file.source, builder.schema())?;
    let at_once = rows_at_once(builder.metadata());
    let batches = builder.with_batch_size(at_once).build().map_err(|error| bad(0, &error))?;
    let mut before = 0;
    for batch in batches {
        let batch = batch.map_err(|error| bad(before, &error))?;
        sink.rows(table.rows(&batch, &places, before, file)?)?;
        before += batch.num_rows() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> Schema {
        Schema::new(fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>())
    }

    fn names(value: serde_json::Value) -> Columns {
        serde_json::from_value(value).unwrap()
    }

    fn file() -> SourceFile {
        SourceFile {
            url: "/t/a.parquet".into(),
            path: "a.parquet".into(),
            source: "t/a.parquet".into(),
            size: 1,
            version: "".into(),
        }
    }

    #[test]
    fn every_kind_of_text_binary_and_list_becomes_ours() {
        let item = |kind| Arc::new(Field::new("element", kind, false));
        let ours = |kind| DataType::List(Arc::new(Field::new_list_field(kind, true)));
        for (theirs, expected) in [
            (DataType::LargeUtf8, Some(DataType::Utf8)),
            (DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), Some(DataType::Utf8)),
            (DataType::FixedSizeBinary(16), Some(DataType::Binary)),
            (DataType::LargeList(item(DataType::Utf8View)), Some(ours(DataType::Utf8))),
            (DataType::Null, Some(DataType::Utf8)),
            (DataType::Duration(TimeUnit::Second), None),
            (DataType::List(item(DataType::Duration(TimeUnit::Second))), None),
        ] {
            assert_eq!(kind(&theirs), expected, "{theirs}");
        }
    }

    #[test]
    fn columns_keep_their_names_or_get_others_and_rows_get_ids() {
        let first = schema(&[("id", DataType::Int64), ("body", DataType::LargeUtf8)]);
        let table = Table::of(&first, &names(json!({ "text": "body" }))).unwrap();
        let fields = table.fields();
        assert_eq!(fields.iter().map(Field::name).collect::<Vec<_>>(), ["row_id", "id", "text"]);
        assert_eq!(fields[2].data_type(), &DataType::Utf8);
        let batch = |ids: Vec<i64>| {
            let bodies = vec!["x"; ids.len()];
            let columns: Vec<ArrayRef> =
                vec![Arc::new(arrow::array::Int64Array::from(ids)), Arc::new(arrow::array::LargeStringArray::from(bodies))];
            RecordBatch::try_new(Arc::new(first.clone()), columns).unwrap()
        };
        let whole = table.rows(&batch(vec![1, 2, 3]), &[0, 1], 0, &file()).unwrap();
        let end = table.rows(&batch(vec![3]), &[0, 1], 2, &file()).unwrap();
        assert_eq!(whole.slice(2, 1), end, "ids follow from the place in the file, not in the batch");
    }

    #[test]
    fn what_cannot_be_a_column_is_said_at_once() {
        let first = schema(&[("row_id", DataType::Int64), ("a", DataType::Utf8), ("d", DataType::Duration(TimeUnit::Second))]);
        let wrong = Table::of(&first, &names(json!({ "b": "c", "d": "a" }))).unwrap_err();
        let said: Vec<(&str, &str)> = wrong.iter().map(|wrong| (wrong.field.as_str(), wrong.message.as_str())).collect();
        assert_eq!(
            said,
            [
                ("/columns/b", "the files have no column `c`"),
                ("/path", "the column `row_id` is Int64, not text"),
                ("/path", "two columns would be called `d`"),
            ]
        );
    }

    #[test]
    fn a_file_with_other_columns_is_named() {
        let table = Table::of(&schema(&[("a", DataType::Utf8), ("n", DataType::Int64)]), &Columns::default()).unwrap();
        let said = |fields: &[(&str, DataType)]| table.places("t/b.parquet", &schema(fields)).unwrap_err().message;
        let begin = "`t/b.parquet` has other columns than the first file: ";
        assert_eq!(said(&[("a", DataType::Utf8)]), format!("{begin}`n` is missing"));
        assert_eq!(said(&[("a", DataType::Utf8), ("n", DataType::Int32)]), format!("{begin}`n` is Int32, not Int64"));
        assert_eq!(said(&[("a", DataType::Utf8), ("n", DataType::Int64), ("z", DataType::Utf8)]), format!("{begin}`z` is new"));
        assert_eq!(table.places("t/b.parquet", &schema(&[("n", DataType::Int64), ("a", DataType::Utf8View)])).unwrap(), [1, 0]);
    }

    #[test]
    fn ids_of_the_files_are_kept_and_checked() {
        let first = schema(&[("row_id", DataType::Utf8)]);
        let table = Table::of(&first, &Columns::default()).unwrap();
        let batch =
            |id: &str| RecordBatch::try_from_iter([("row_id", Arc::new(StringArray::from(vec![id])) as ArrayRef)]).unwrap();
        let id = "8eb7f09e1545bbeb9d8f724b007945e0";
        assert_eq!(table.rows(&batch(id), &[0], 0, &file()).unwrap().column(0).as_string::<i32>().value(0), id);
        let failure = table.rows(&batch("8EB7"), &[0], 4, &file()).unwrap_err();
        assert_eq!(failure.message, "`t/a.parquet` row 5: `row_id` is `8EB7`");
    }
}
