//! A query over what arrives.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit},
};
use datafusion::execution::SendableRecordBatchStream;
use ingrain_engine::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Ports, Query},
    run::{OutputRows, OutputStream, RowStream, StreamContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    query::{Checked, quoted, select},
    route::{failed, per_batch},
};

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Sql>("sql", 1);

/// Runs one SQL query (DataFusion's dialect). Its tables are the ports, under the names that `from` gives them.
///
/// Only one `select` is allowed, `with` in front of it included. Because a result is kept and reused, it may depend on
/// nothing but the rows: no `random()` or `now()`, no `limit` without `order by`, no `first_value` or `array_agg` without
/// an order. An `order by` decides only what a `limit` keeps, since tables are sets of rows; make it different in every
/// row, by ending it with `row_id`. Sums of floating-point numbers may differ in their last digits between machines; use
/// whole numbers or decimals where that matters.
///
/// Rows need a `row_id`, unique in the result. Either the query selects one, or `key` names the columns that it is made
/// of. With the `row_id` of an input, or with a `parent_id`, rows can be traced back through this stage; else their
/// lineage begins here.
///
/// # Ports
/// Any names, one table each.
///
/// # Outputs
/// - default: what the query gives.
///
/// # Example
/// ```yaml
/// counts:
///   op: sql
///   from: { qa: qa_unique }
///   query: select doc_id, count(*) as pairs from qa group by doc_id
///   key: [doc_id]
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// The query.
    pub query: String,
    /// Columns of the result that are different in every row: `row_id` is made of their values. Text, whole numbers,
    /// booleans, dates or times. Left out: the query selects a `row_id`.
    #[serde(default)]
    pub key: Vec<String>,
}

impl Operator for Sql {
    fn ports(&self) -> Ports {
        Ports::Any
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let checked = self.checked(inputs)?;
        let schema = self.columns(&checked)?;
        let rows_of = if self.key.is_empty() { checked.ids_of.into_iter().collect() } else { Vec::new() };
        Ok(vec![Output { name: DEFAULT_OUTPUT.into(), schema, rows_of }])
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let sql = self.checked(inputs).map_or_else(|_| self.query.clone(), |checked| self.keyed(&checked));
        Lowering::Rows { query: Some(Query { sql, unique: true }), stream: Some(Arc::new(Conform)) }
    }
}

impl Sql {
    fn checked(&self, inputs: &Inputs) -> Result<Checked, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let mut tables = Vec::new();
        for (port, arriving) in &inputs.ports {
            match arriving.as_slice() {
                [one] => tables.push((port.as_str(), one.schema.clone())),
                _ => mistakes.push(
                    Invalid::new(&format!("/from/{port}"), format!("`{port}` takes one table, not {}", arriving.len()))
                        .hint("give each table a port of its own and `union all` them"),
                ),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        select(&self.query, &tables).map_err(|found| {
            let invalid =
                |found: crate::query::Mistake| Invalid { field: "/query".into(), message: found.message, hint: found.hint };
            found.into_iter().map(invalid).collect()
        })
    }

    /// The query, with a `row_id` made of the key in front: half of a hash over the values as text, each behind its
    /// length, so that no two lists of values look alike.
    fn keyed(&self, checked: &Checked) -> String {
        if self.key.is_empty() {
            return checked.sql.clone();
        }
        let part = |column: &String| {
            let text = format!("cast({} as varchar)", quoted(column));
            format!("case when {text} is null then 'n' else concat('t', cast(octet_length({text}) as varchar), ':', {text}) end")
        };
        let parts: Vec<_> = self.key.iter().map(part).collect();
        format!(
            "select substr(encode(digest(concat('sql;', {}), 'blake3'), 'hex'), 1, 32) as \"row_id\", made.* from ({}) as made",
            parts.join(", "),
            checked.sql
        )
    }

    /// The columns of the output: in types that every reader knows, `row_id` in front if it is made here.
    fn columns(&self, checked: &Checked) -> Result<SchemaRef, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let mut seen = BTreeSet::new();
        let mut fields: Vec<FieldRef> = Vec::new();
        for field in checked.schema.fields() {
            if !seen.insert(field.name().as_str()) {
                mistakes.push(
                    Invalid::new("/query", format!("the query gives two columns `{}`", field.name()))
                        .hint("name one of them otherwise with `as`"),
                );
            }
            match plain(field.data_type()) {
                Some(data_type) => {
                    let id = field.name() == "row_id" || field.name() == "parent_id";
                    fields.push(Arc::new(Field::new(field.name(), data_type, !id)));
                }
                None => mistakes.push(
                    Invalid::new("/query", format!("column `{}` is {}, which can't be stored", field.name(), field.data_type()))
                        .hint("cast it to text or to a number"),
                ),
            }
        }
        for id in fields.iter().filter(|field| !field.is_nullable() && field.data_type() != &DataType::Utf8) {
            mistakes.push(Invalid::new("/query", format!("`{}` is {}, not text", id.name(), id.data_type())));
        }
        let has = |name: &str| fields.iter().any(|field| field.name() == name);
        let there = || fields.iter().map(|field| format!("`{}`", field.name())).collect::<Vec<_>>().join(", ");
        if self.key.is_empty() && !has("row_id") {
            mistakes.push(
                Invalid::new("/query", format!("the query gives no `row_id`, only {}", there()))
                    .hint("select the `row_id` of a table, or name the columns that are different in every row in `key`"),
            );
        }
        if !self.key.is_empty() && has("row_id") {
            mistakes.push(Invalid::new("/key", "the query gives a `row_id` already").hint("leave one of the two out"));
        }
        for (n, column) in self.key.iter().enumerate() {
            let place = format!("/key/{n}");
            match fields.iter().find(|field| field.name() == column) {
                None => mistakes.push(
                    Invalid::new(&place, format!("the query gives no column `{column}`")).hint(format!("there are {}", there())),
                ),
                Some(field) if !identifying(field.data_type()) => mistakes.push(Invalid::new(
                    &place,
                    format!("`{column}` is {}; text, a whole number, a boolean, a date or a time is needed", field.data_type()),
                )),
                Some(_) => {}
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        if !self.key.is_empty() {
            fields.insert(0, Arc::new(Field::new("row_id", DataType::Utf8, false)));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

/// Whether values of a type have one text each.
fn identifying(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Utf8
                | DataType::Boolean
                | DataType::Date32
                | DataType::Date64
                | DataType::Time64(_)
                | DataType::Timestamp(..)
                | DataType::Decimal128(..)
        )
}

/// The type in which values are stored: no views, dictionaries or large offsets. `None` for what Parquet can't hold.
fn plain(data_type: &DataType) -> Option<DataType> {
    let item = |field: &FieldRef| Some(Arc::new(Field::new(field.name(), plain(field.data_type())?, field.is_nullable())));
    Some(match data_type {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Float16 => DataType::Float32,
        DataType::Time32(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => DataType::Decimal128(*precision, *scale),
        DataType::Dictionary(_, values) => plain(values)?,
        DataType::RunEndEncoded(_, values) => plain(values.data_type())?,
        DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::List(field)
        | DataType::FixedSizeList(field, _) => DataType::List(item(field)?),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect::<Option<Vec<_>>>()?.into()),
        DataType::Interval(_) | DataType::Duration(_) | DataType::Union(..) | DataType::Map(..) | DataType::Decimal256(..) => {
            return None;
        }
        other => other.clone(),
    })
}

/// Gives the query's rows the types of the output.
#[derive(Debug)]
struct Conform;

impl RowStream for Conform {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        match context.schema(DEFAULT_OUTPUT) {
            Ok(schema) => {
                per_batch(rows, move |batch| Ok(vec![OutputRows { output: DEFAULT_OUTPUT, rows: conform(&batch, &schema)? }]))
            }
            Err(failure) => failed(failure),
        }
    }
}

fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (column, field) in batch.columns().iter().zip(schema.fields()) {
        let column = if column.data_type() == field.data_type() { column.clone() } else { cast(column, field.data_type())? };
        if !field.is_nullable() && column.logical_null_count() > 0 {
            return Err(Failure::data(format!("the query gives rows whose `{}` is null", field.name()))
                .hint(format!("add `where {} is not null`, or select it from a table that always has it", field.name())));
        }
        columns.push(column);
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int32Array, StringArray};
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::query::inputs;

    fn rows() -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("row_id", DataType::Utf8, false),
            Field::new("doc", DataType::Utf8, true),
            Field::new("n", DataType::Int32, false),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["a", "b", "c"])),
            Arc::new(StringArray::from(vec![Some("1:x"), Some("1"), None])),
            Arc::new(Int32Array::from(vec![1, 2, 3])),
        ];
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn sql(query: &str, key: &[&str]) -> Sql {
        Sql { query: query.into(), key: key.iter().map(|column| (*column).to_owned()).collect() }
    }

    async fn run(operator: &Sql) -> RecordBatch {
        let bound = inputs(&[("qa", rows().schema())]);
        let schema = operator.bind(&bound).unwrap().remove(0).schema;
        let Lowering::Rows { query: Some(query), .. } = operator.lower(&bound) else { panic!("no query") };
        assert!(query.unique);
        let context = SessionContext::new();
        context.register_batch("qa", rows()).unwrap();
        let batches = context.sql(&query.sql).await.unwrap().collect().await.unwrap();
        let batches: Vec<_> = batches.iter().map(|batch| conform(batch, &schema).unwrap()).collect();
        arrow::compute::concat_batches(&schema, &batches).unwrap()
    }

    #[tokio::test]
    async fn a_key_makes_ids_of_values() {
        let operator = sql("select doc, sum(n) as total from qa group by doc", &["doc"]);
        let batch = run(&operator).await;
        assert_eq!(batch.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["row_id", "doc", "total"]);
        let ids: BTreeSet<_> = batch.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
        let again = run(&operator).await;
        assert_eq!(ids, again.column(0).as_string::<i32>().iter().flatten().collect());
    }

    #[tokio::test]
    async fn views_and_dictionaries_become_plain() {
        let query =
            "select row_id, arrow_cast(doc, 'Utf8View') as v, arrow_cast(doc, 'Dictionary(Int32, Utf8)') as d, null as x from qa";
        let batch = run(&sql(query, &[])).await;
        assert!(batch.schema().fields().iter().all(|field| field.data_type() == &DataType::Utf8));
        assert_eq!(batch.column(1).as_string::<i32>(), rows().column(1).as_string::<i32>());
        assert_eq!(batch.column(2).as_string::<i32>(), rows().column(1).as_string::<i32>());
    }

    #[test]
    fn ids_are_needed_exactly_once() {
        let bound = inputs(&[("qa", rows().schema())]);
        let places = |operator: &Sql| {
            let mistakes = operator.bind(&bound).unwrap_err();
            mistakes.into_iter().map(|mistake| (mistake.field, mistake.message)).collect::<Vec<_>>()
        };
        let found = places(&sql("select doc from qa", &[]));
        assert_eq!(found, [("/query".to_owned(), "the query gives no `row_id`, only `doc`".to_owned())]);
        assert_eq!(places(&sql("select row_id from qa", &["row_id"]))[0].0, "/key");
        assert_eq!(places(&sql("select doc from qa", &["n"]))[0].0, "/key/0");
        assert_eq!(places(&sql("select n * 0.5 as half from qa", &["half"]))[0].0, "/key/0");
        assert_eq!(places(&sql("select n as row_id from qa", &[]))[0].1, "`row_id` is Int32, not text");
        assert!(places(&sql("select a.*, b.* from qa as a, qa as b", &[]))[0].1.contains("two columns"));
        assert_eq!(places(&sql("select missing from qa", &[]))[0].0, "/query");
    }

    #[test]
    fn a_null_id_stops_the_stage() {
        let schema = Arc::new(Schema::new(vec![Field::new("row_id", DataType::Utf8, false)]));
        let loose = Arc::new(Schema::new(vec![Field::new("row_id", DataType::Utf8, true)]));
        let column: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let failure = conform(&RecordBatch::try_new(loose, vec![column]).unwrap(), &schema).unwrap_err();
        assert_eq!(failure.message, "the query gives rows whose `row_id` is null");
    }
}
