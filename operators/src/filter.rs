//! Keeps the rows that meet a condition.

use std::sync::Arc;

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{DataType, SchemaRef},
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
    query::{predicate, quoted},
    route::{divide, failed, input, per_batch},
};

const PORT: &str = "default";
const REMOVED: &str = "removed";
const KEEP: &str = "__keep";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Filter>("filter", 1);

/// Keeps the rows for which a condition is true. Where it is false or null, the row is removed.
///
/// # Ports
/// One, of any rows.
///
/// # Outputs
/// - default: the rows that stay, unchanged, ids included.
/// - `removed`: the other rows, unchanged, too.
///
/// # Example
/// ```yaml
/// long: { op: filter, from: documents, where: "length(text) > 500 and title is not null" }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The condition: an SQL expression (DataFusion's dialect) over the columns of one row. No subqueries, aggregates or
    /// window functions, and nothing that gives another value each time, such as `random()` or `now()`.
    #[serde(rename = "where")]
    pub condition: String,
}

impl Operator for Filter {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PORT, &[("row_id", DataType::Utf8)])])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let rows = input(inputs, PORT)?;
        match predicate(&self.condition, PORT, &rows.schema) {
            Ok(_) => {
                Ok(vec![Output::of(DEFAULT_OUTPUT, rows.schema.clone(), PORT), Output::of(REMOVED, rows.schema.clone(), PORT)])
            }
            Err(mistake) => Err(vec![Invalid { field: "/where".into(), message: mistake.message, hint: mistake.hint }]),
        }
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let condition = inputs.first(PORT).and_then(|rows| predicate(&self.condition, PORT, &rows.schema).ok());
        let sql = sql(&condition.unwrap_or_else(|| self.condition.clone()));
        Lowering::Rows { query: Some(Query { sql, unique: false }), stream: Some(Arc::new(Route)) }
    }
}

fn sql(condition: &str) -> String {
    format!("select *, coalesce(({condition}), false) as \"{KEEP}\" from {}", quoted(PORT))
}

/// Sends each row where its last column says, without that column.
#[derive(Debug)]
struct Route;

impl RowStream for Route {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        match context.schema(DEFAULT_OUTPUT) {
            Ok(schema) => per_batch(rows, move |batch| route(&batch, &schema)),
            Err(failure) => failed(failure),
        }
    }
}

fn route(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<OutputRows>, Failure> {
    let keep = batch.column_by_name(KEEP).and_then(|column| column.as_boolean_opt());
    let keep = keep.ok_or_else(|| Failure::bug("the query of `filter` gave no condition"))?;
    let columns = batch.columns()[..schema.fields().len()].to_vec();
    divide(&RecordBatch::try_new(schema.clone(), columns)?, keep, DEFAULT_OUTPUT, REMOVED)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int32Array, StringArray},
        datatypes::{Field, Schema},
    };
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::query::inputs;

    fn rows() -> RecordBatch {
        let schema =
            Arc::new(Schema::new(vec![Field::new("row_id", DataType::Utf8, false), Field::new("n", DataType::Int32, true)]));
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec!["a", "b", "c"])), Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]))];
        RecordBatch::try_new(schema, columns).unwrap()
    }

    #[tokio::test]
    async fn null_is_not_true() {
        let batch = rows();
        let filter = Filter { condition: "n > 1 -- or so".into() };
        let bound = inputs(&[(PORT, batch.schema())]);
        assert_eq!(filter.bind(&bound).unwrap().len(), 2);
        let Lowering::Rows { query: Some(query), .. } = filter.lower(&bound) else { panic!("no query") };
        let context = SessionContext::new();
        context.register_batch(PORT, batch.clone()).unwrap();
        let selected = context.sql(&query.sql).await.unwrap().collect().await.unwrap();
        let outputs = route(&selected[0], &batch.schema()).unwrap();
        let ids = |n: usize| outputs[n].rows.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>();
        assert_eq!((outputs[0].output, ids(0)), (DEFAULT_OUTPUT, vec!["c"]));
        assert_eq!((outputs[1].output, ids(1)), (REMOVED, vec!["a", "b"]));
        assert_eq!(outputs[0].rows.schema(), batch.schema());
    }

    #[test]
    fn mistakes_point_at_the_condition() {
        let filter = Filter { condition: "m > 1".into() };
        let mistakes = filter.bind(&inputs(&[(PORT, rows().schema())])).unwrap_err();
        assert_eq!(mistakes[0].field, "/where");
        assert_eq!(mistakes[0].message, "no column `m`");
        assert_eq!(mistakes[0].hint.as_deref(), Some("there are `row_id`, `n`"));
    }
}
