//! Exact equality: one query, then a transform of its rows.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch},
    compute::{filter, not},
};
use datafusion::execution::SendableRecordBatchStream;
use ingrain_engine::{
    failure::Failure,
    operator::DEFAULT_OUTPUT,
    run::{OutputRows, OutputStream, RowStream, StreamContext},
};

use super::{KEPT, PORT, REMOVED, Schemas};
use crate::{
    query::quoted,
    route::{failed, per_batch},
};

/// Adds `kept_id` to every row: the smallest `row_id` among its equals. `first_value` over an ordered frame that ends at the
/// current row needs no more memory than the sort, which spills.
pub(super) fn sql(column: &str, within: Option<&str>) -> String {
    let column = quoted(column);
    let within = within.iter().map(|within| format!("{}, ", quoted(within))).collect::<String>();
    format!(
        "select *, case when {column} is null then \"row_id\" else first_value(\"row_id\") over \
         (partition by {within}{column} order by \"row_id\" rows between unbounded preceding and current row) \
         end as \"{KEPT}\" from \"{PORT}\""
    )
}

/// Sends rows that are their own `kept_id` to the default output, without that column.
#[derive(Debug)]
pub(super) struct Route;

impl RowStream for Route {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        match (context.schema(DEFAULT_OUTPUT), context.schema(REMOVED)) {
            (Ok(kept), Ok(removed)) => {
                let schemas = Schemas { kept, removed };
                per_batch(rows, move |batch| route(&batch, &schemas))
            }
            (Err(failure), _) | (_, Err(failure)) => failed(failure),
        }
    }
}

fn route(batch: &RecordBatch, schemas: &Schemas) -> Result<Vec<OutputRows>, Failure> {
    let (Some(row_id), Some(kept_id)) = (batch.column_by_name("row_id"), batch.column_by_name(KEPT)) else {
        return Err(Failure::bug("the query of `dedup` gave no `row_id` or no `kept_id`"));
    };
    let stays: BooleanArray =
        row_id.as_string::<i32>().iter().zip(kept_id.as_string::<i32>()).map(|(own, kept)| Some(own == kept)).collect();
    let kept_ids = filter(kept_id, &not(&stays)?)?;
    let similarities: ArrayRef = Arc::new(Float64Array::from(vec![1.0; kept_ids.len()]));
    let width: Vec<usize> = (0..schemas.kept.fields().len()).collect();
    schemas.divide(&batch.project(&width)?, &stays, kept_ids, similarities)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::StringArray,
        datatypes::{DataType, Field, Schema},
    };
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::dedup::removed_schema;

    async fn run(within: Option<&str>, rows: &[(&str, &str, Option<&str>)]) -> (Vec<String>, Vec<(String, String)>) {
        let kept = Arc::new(Schema::new(vec![
            Field::new("row_id", DataType::Utf8, false),
            Field::new("doc_id", DataType::Utf8, true),
            Field::new("question", DataType::Utf8, true),
        ]));
        let column = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
        let batch = RecordBatch::try_new(
            kept.clone(),
            vec![
                column(rows.iter().map(|row| Some(row.0)).collect()),
                column(rows.iter().map(|row| Some(row.1)).collect()),
                column(rows.iter().map(|row| row.2).collect()),
            ],
        )
        .unwrap();
        let schemas = Schemas { removed: removed_schema(&kept), kept };
        let context = SessionContext::new();
        context.register_batch("default", batch).unwrap();
        let batches = context.sql(&sql("question", within)).await.unwrap().collect().await.unwrap();
        let (mut stay, mut gone) = (Vec::new(), Vec::new());
        for batch in batches {
            for output in route(&batch, &schemas).unwrap() {
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
        let (stay, gone) = run(None, &rows).await;
        assert_eq!(stay, ["a", "d", "e"]);
        assert_eq!(gone, [("b".into(), "a".into()), ("c".into(), "a".into())]);
        let (stay, gone) = run(Some("doc_id"), &rows).await;
        assert_eq!(stay, ["a", "b", "d", "e"]);
        assert_eq!(gone, [("c".into(), "b".into())]);
    }
}
