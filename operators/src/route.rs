//! Row transforms that give every batch to one or more outputs, without state between batches.

use std::future::ready;

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    operator::{Input, Inputs, Invalid},
    run::{OutputRows, OutputStream},
};

/// Gives what `route` makes of each batch, in order.
pub(crate) fn per_batch(
    rows: SendableRecordBatchStream,
    mut route: impl FnMut(RecordBatch) -> Result<Vec<OutputRows>, Failure> + Send + 'static,
) -> OutputStream {
    rows.map(move |batch| batch.map_err(Failure::from).and_then(&mut route))
        .map_ok(|outputs| stream::iter(outputs.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

/// A stream that gives one failure.
pub(crate) fn failed(failure: Failure) -> OutputStream {
    stream::once(ready(Err(failure))).boxed()
}

/// The rows where `mask` is true go to `yes`, all others to `no`. Empty outputs are left out.
pub(crate) fn divide(
    rows: &RecordBatch,
    mask: &BooleanArray,
    yes: &'static str,
    no: &'static str,
) -> Result<Vec<OutputRows>, Failure> {
    let mask = BooleanArray::from(mask.iter().map(|keep| keep == Some(true)).collect::<Vec<_>>());
    let kept = mask.true_count();
    if kept == rows.num_rows() {
        return Ok(vec![OutputRows { output: yes, rows: rows.clone() }]);
    }
    if kept == 0 {
        return Ok(vec![OutputRows { output: no, rows: rows.clone() }]);
    }
    let rest = arrow::compute::not(&mask)?;
    Ok(vec![
        OutputRows { output: yes, rows: filter_record_batch(rows, &mask)? },
        OutputRows { output: no, rows: filter_record_batch(rows, &rest)? },
    ])
}

/// The table at `port`.
pub(crate) fn input<'a>(inputs: &'a Inputs, port: &str) -> Result<&'a Input, Vec<Invalid>> {
    inputs.first(port).ok_or_else(|| vec![Invalid::new("/from", format!("nothing arrives at port `{port}`"))])
}

/// The mistake of naming a column that isn't there.
pub(crate) fn no_column(field: &str, column: &str, input: &Input) -> Invalid {
    let there: Vec<_> = input.schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
    Invalid::new(field, format!("no column `{column}` in `{}`", input.name)).hint(format!("there are {}", there.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int32Array},
        datatypes::{DataType, Field, Schema},
    };

    use super::*;

    fn rows(values: &[i32]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int32Array::from(values.to_vec())) as ArrayRef]).unwrap()
    }

    #[test]
    fn every_row_goes_to_exactly_one_output() {
        let batch = rows(&[1, 2, 3, 4]);
        let mask = BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]);
        let outputs = divide(&batch, &mask, "default", "removed").unwrap();
        assert_eq!(outputs.len(), 2);
        assert_eq!((outputs[0].output, &outputs[0].rows), ("default", &rows(&[1, 4])));
        assert_eq!((outputs[1].output, &outputs[1].rows), ("removed", &rows(&[2, 3])));
        let all = divide(&batch, &BooleanArray::from(vec![true; 4]), "default", "removed").unwrap();
        assert_eq!((all.len(), all[0].output, &all[0].rows), (1, "default", &batch));
        let none = divide(&batch, &BooleanArray::from(vec![None; 4]), "default", "removed").unwrap();
        assert_eq!((none.len(), none[0].output, &none[0].rows), (1, "removed", &batch));
    }
}
