//! Divides rows into a training and a held-out part.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use datafusion::execution::SendableRecordBatchStream;
use ingrain_engine::{
    failure::Failure,
    operator::{Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{OutputStream, RowStream, StreamContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::{divide, input, no_column, per_batch};

const PORT: &str = "default";
const TRAIN: &str = "train";
const HELDOUT: &str = "heldout";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Split>("split", 1);

/// Divides rows in two by a hash of the stage's seed and one column. Rows that agree in the column go to the same side, and
/// a row's side doesn't depend on the other rows: what is added later moves nothing. The share that is held out is met on
/// average, over the column's values and not over rows.
///
/// # Ports
/// One, of any rows.
///
/// # Outputs
/// There is no default.
/// - `train`: the rows to train on.
/// - `heldout`: the others.
///
/// # Example
/// ```yaml
/// parts: { op: split, from: qa, heldout: 0.1, by: doc_id }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The share of the column's values that is held out, between 0 and 1. Default 0.1.
    #[serde(default = "tenth")]
    pub heldout: f64,
    /// The column whose values stay together: text, a number or a boolean. Where it is null, `row_id` counts in its place.
    /// Default `row_id`.
    #[serde(default = "row_id")]
    pub by: String,
}

fn tenth() -> f64 {
    0.1
}

fn row_id() -> String {
    "row_id".into()
}

impl Operator for Split {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PORT, &[("row_id", DataType::Utf8)])])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let rows = input(inputs, PORT)?;
        let mut mistakes = Vec::new();
        if !(self.heldout > 0.0 && self.heldout < 1.0) {
            mistakes.push(Invalid::new("/heldout", "must lie between 0 and 1").hint("`0.1` holds out a tenth"));
        }
        match rows.schema.field_with_name(&self.by) {
            Err(_) => mistakes.push(no_column("/by", &self.by, rows)),
            Ok(found) if found.data_type().is_nested() => mistakes.push(Invalid::new(
                "/by",
                format!("`{}` is {}; text, a number or a boolean is needed", self.by, found.data_type()),
            )),
            Ok(_) => {}
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let part = |name: &str| Output::of(name, rows.schema.clone(), PORT);
        Ok(vec![part(TRAIN), part(HELDOUT)])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Rows { query: None, stream: Some(Arc::new(Divide(self.clone()))) }
    }

    fn draws(&self) -> bool {
        true
    }
}

struct Divide(Split);

impl RowStream for Divide {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let split = self.0.clone();
        per_batch(rows, move |batch| {
            let heldout = heldout(&batch, &split, context.seed)?;
            divide(&batch, &heldout, HELDOUT, TRAIN)
        })
    }
}

/// Which rows are held out.
fn heldout(batch: &RecordBatch, split: &Split, seed: u64) -> Result<BooleanArray, Failure> {
    let (Some(by), Some(row_id)) = (batch.column_by_name(&split.by), batch.column_by_name("row_id")) else {
        return Err(Failure::bug(format!("no column `{}` or no `row_id`", split.by)));
    };
    let by: ArrayRef = if by.data_type() == &DataType::Utf8 { by.clone() } else { cast(by, &DataType::Utf8)? };
    let values = by.as_string::<i32>().iter().zip(row_id.as_string::<i32>());
    Ok(values.map(|(by, row_id)| Some(fraction(seed, by.or(row_id).unwrap_or_default()) < split.heldout)).collect())
}

/// A number in [0, 1) that depends on nothing but `seed` and `value`: the upper 53 bits of a hash.
fn fraction(seed: u64, value: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"split");
    hasher.update(&seed.to_le_bytes());
    hasher.update(value.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{Field, Schema},
    };

    use super::*;
    use crate::query::inputs;

    fn rows(groups: i64, per_group: i64) -> RecordBatch {
        let schema =
            Arc::new(Schema::new(vec![Field::new("row_id", DataType::Utf8, false), Field::new("doc", DataType::Int64, true)]));
        let ids = (0..groups * per_group).map(|n| Some(format!("{n:032x}")));
        let docs = (0..groups * per_group).map(|n| (n % 7 != 0).then_some(n / per_group));
        let columns: Vec<ArrayRef> = vec![Arc::new(ids.collect::<StringArray>()), Arc::new(docs.collect::<Int64Array>())];
        RecordBatch::try_new(schema, columns).unwrap()
    }

    #[test]
    fn groups_stay_together_and_the_share_is_met() {
        let split = Split { heldout: 0.2, by: "doc".into() };
        let batch = rows(2000, 5);
        let held = heldout(&batch, &split, 7).unwrap();
        let docs = batch.column(1).as_primitive::<arrow::datatypes::Int64Type>();
        let mut sides = std::collections::HashMap::new();
        for (doc, held) in docs.iter().zip(held.iter()).filter(|(doc, _)| doc.is_some()) {
            assert_eq!(*sides.entry(doc).or_insert(held), held);
        }
        let share = held.true_count() as f64 / held.len() as f64;
        assert!((0.18..0.22).contains(&share), "{share}");
        assert_ne!(held, heldout(&batch, &split, 8).unwrap());
        let front = heldout(&batch.slice(0, 100), &split, 7).unwrap();
        assert_eq!(front, held.slice(0, 100));
    }

    #[test]
    fn golden_fractions() {
        assert!((0.0..1.0).contains(&fraction(0, "")));
        assert_ne!(fraction(0, "a"), fraction(1, "a"));
    }

    #[test]
    fn shares_outside_0_and_1_are_refused() {
        for heldout in [0.0, 1.0, -0.1, f64::NAN] {
            let split = Split { heldout, by: "nothing".into() };
            let mistakes = split.bind(&inputs(&[(PORT, rows(1, 1).schema())])).unwrap_err();
            assert_eq!(mistakes.iter().map(|m| m.field.as_str()).collect::<Vec<_>>(), ["/heldout", "/by"]);
        }
    }
}
