//! Removes rows whose text was already there.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::execution::SendableRecordBatchStream;
use ingrain_engine::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Query},
    run::{OutputRows, OutputStream, RowStream, StreamContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    query::quoted,
    route::{failed, input, no_column, per_batch},
};

const PORT: &str = "default";
const REMOVED: &str = "removed";
const KEPT: &str = "kept_id";
const SIMILARITY: &str = "similarity";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Dedup>("dedup", 1);

/// Removes rows whose `column` equals that of another row, byte for byte. Of equal rows the one with the smallest
/// `row_id` stays, so the choice doesn't depend on order or on other rows. Rows whose `column` is null all stay.
///
/// # Ports
/// One, of rows with the named columns.
///
/// # Outputs
/// - default: the rows that stay, unchanged, ids included.
/// - `removed`: the other rows, with `kept_id`, the `row_id` of the row that stayed, and `similarity`, 1.0.
///
/// # Example
/// ```yaml
/// qa_unique: { op: dedup, from: qa, column: question, within: doc_id }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// The column to compare: text, a whole number or a boolean.
    pub column: String,
    /// Compare only rows that agree in this column. Left out: all rows.
    #[serde(default)]
    pub within: Option<String>,
    /// From which similarity on, 0 to 1, rows count as near duplicates. Not built yet; leave it out for exact equality.
    #[serde(default)]
    pub similarity: Option<f64>,
}

impl Operator for Dedup {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PORT, &[("row_id", DataType::Utf8)])])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let rows = input(inputs, PORT)?;
        let mut mistakes = Vec::new();
        if self.similarity.is_some() {
            mistakes.push(
                Invalid::new("/similarity", "near duplicates are not built yet")
                    .hint("leave `similarity` out to remove exact duplicates"),
            );
        }
        let named = [("/column", Some(&self.column)), ("/within", self.within.as_ref())];
        for (field, column) in named.into_iter().filter_map(|(field, column)| Some((field, column?))) {
            match rows.schema.field_with_name(column) {
                Err(_) => mistakes.push(no_column(field, column, rows)),
                Ok(found) if comparable(found.data_type()) => {}
                Ok(found) => mistakes.push(Invalid::new(
                    field,
                    format!("`{column}` is {}; text, a whole number or a boolean is needed", found.data_type()),
                )),
            }
        }
        for made in [KEPT, SIMILARITY] {
            if rows.schema.field_with_name(made).is_ok() {
                mistakes.push(
                    Invalid::new("/from", format!("`{}` already has a column `{made}`", rows.name))
                        .hint("rename or drop it with a `sql` stage before"),
                );
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(vec![Output::of(DEFAULT_OUTPUT, rows.schema.clone(), PORT), Output::of(REMOVED, removed_schema(&rows.schema), PORT)])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Rows { query: Some(Query { sql: self.sql(), unique: false }), stream: Some(Arc::new(Route)) }
    }
}

impl Dedup {
    /// Adds `kept_id` to every row: the smallest `row_id` among its equals. `first_value` over an ordered frame that ends
    /// at the current row needs no more memory than the sort, which spills.
    fn sql(&self) -> String {
        let column = quoted(&self.column);
        let within = self.within.iter().map(|within| format!("{}, ", quoted(within))).collect::<String>();
        format!(
            "select *, case when {column} is null then \"row_id\" else first_value(\"row_id\") over \
             (partition by {within}{column} order by \"row_id\" rows between unbounded preceding and current row) \
             end as \"{KEPT}\" from \"{PORT}\""
        )
    }
}

fn comparable(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Utf8 | DataType::Boolean)
}

fn removed_schema(rows: &Schema) -> SchemaRef {
    let mut fields: Vec<_> = rows.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(KEPT, DataType::Utf8, false)));
    fields.push(Arc::new(Field::new(SIMILARITY, DataType::Float64, false)));
    Arc::new(Schema::new(fields))
}

/// Sends rows that are their own `kept_id` to the default output, without that column.
#[derive(Debug)]
struct Route;

impl RowStream for Route {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        match (context.schema(DEFAULT_OUTPUT), context.schema(REMOVED)) {
            (Ok(kept), Ok(removed)) => per_batch(rows, move |batch| route(&batch, &kept, &removed)),
            (Err(failure), _) | (_, Err(failure)) => failed(failure),
        }
    }
}

fn route(batch: &RecordBatch, kept: &SchemaRef, removed: &SchemaRef) -> Result<Vec<OutputRows>, Failure> {
    let (Some(row_id), Some(kept_id)) = (batch.column_by_name("row_id"), batch.column_by_name(KEPT)) else {
        return Err(Failure::bug("the query of `dedup` gave no `row_id` or no `kept_id`"));
    };
    let stays: BooleanArray =
        row_id.as_string::<i32>().iter().zip(kept_id.as_string::<i32>()).map(|(own, kept)| Some(own == kept)).collect();
    let goes = arrow::compute::not(&stays)?;
    let width = kept.fields().len();
    let mut outputs = Vec::new();
    if stays.true_count() > 0 {
        let rows = arrow::compute::filter_record_batch(batch, &stays)?;
        let rows = RecordBatch::try_new(kept.clone(), rows.columns()[..width].to_vec())?;
        outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows });
    }
    if goes.true_count() > 0 {
        let rows = arrow::compute::filter_record_batch(batch, &goes)?;
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(Float64Array::from(vec![1.0; rows.num_rows()])) as ArrayRef);
        outputs.push(OutputRows { output: REMOVED, rows: RecordBatch::try_new(removed.clone(), columns)? });
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::query::inputs;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("row_id", DataType::Utf8, false),
            Field::new("doc_id", DataType::Utf8, true),
            Field::new("question", DataType::Utf8, true),
        ]))
    }

    fn dedup(within: Option<&str>) -> Dedup {
        Dedup { column: "question".into(), within: within.map(Into::into), similarity: None }
    }

    async fn run(operator: &Dedup, rows: &[(&str, &str, Option<&str>)]) -> (Vec<String>, Vec<(String, String)>) {
        let column = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                column(rows.iter().map(|row| Some(row.0)).collect()),
                column(rows.iter().map(|row| Some(row.1)).collect()),
                column(rows.iter().map(|row| row.2).collect()),
            ],
        )
        .unwrap();
        let bound = operator.bind(&inputs(&[(PORT, schema())])).unwrap();
        let context = SessionContext::new();
        context.register_batch("default", batch).unwrap();
        let batches = context.sql(&operator.sql()).await.unwrap().collect().await.unwrap();
        let (mut stay, mut gone) = (Vec::new(), Vec::new());
        for batch in batches {
            for output in route(&batch, &bound[0].schema, &bound[1].schema).unwrap() {
                let ids = output.rows.column(0).as_string::<i32>();
                if output.output == DEFAULT_OUTPUT {
                    stay.extend(ids.iter().flatten().map(String::from));
                } else {
                    let kept = output.rows.column_by_name(KEPT).unwrap().as_string::<i32>();
                    gone.extend(ids.iter().flatten().zip(kept.iter().flatten()).map(|(a, b)| (a.into(), b.into())));
                }
            }
        }
        stay.sort();
        gone.sort();
        (stay, gone)
    }

    #[tokio::test]
    async fn the_smallest_id_stays_and_nulls_all_stay() {
        let rows = [("c", "1", Some("q")), ("a", "2", Some("q")), ("b", "1", Some("q")), ("d", "1", None), ("e", "1", None)];
        let (stay, gone) = run(&dedup(None), &rows).await;
        assert_eq!(stay, ["a", "d", "e"]);
        assert_eq!(gone, [("b".into(), "a".into()), ("c".into(), "a".into())]);
        let (stay, gone) = run(&dedup(Some("doc_id")), &rows).await;
        assert_eq!(stay, ["a", "b", "d", "e"]);
        assert_eq!(gone, [("c".into(), "b".into())]);
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let operator = Dedup { column: "text".into(), within: Some("doc".into()), similarity: Some(0.8) };
        let mistakes = operator.bind(&inputs(&[(PORT, schema())])).unwrap_err();
        let fields: Vec<_> = mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
        assert_eq!(fields, ["/similarity", "/column", "/within"]);
        assert_eq!(mistakes[1].hint.as_deref(), Some("there are `row_id`, `doc_id`, `question`"));
    }
}
