//! Removes rows whose text was already there.

mod exact;
mod index;
mod minhash;
mod near;
pub(crate) mod ngrams;
mod search;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use ingrain_engine::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Input, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Query},
    run::OutputRows,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::near::Near;
pub use self::ngrams::Ngram;
use crate::route::{input, no_column};

const PORT: &str = "default";
const REMOVED: &str = "removed";
const KEPT: &str = "kept_id";
const SIMILARITY: &str = "similarity";

/// The smallest similarity that can be asked for. Under it nearly every pair would have to be compared.
const LEAST_SIMILARITY: f64 = 0.1;
/// The longest n-gram.
const LONGEST_NGRAM: u32 = 64;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Dedup>("dedup", 1);

/// Removes rows whose `column` equals that of another row, byte for byte, or with `similarity`, is nearly the same. Rows
/// whose `column` is null all stay. What is removed depends on the rows alone, never on their order.
///
/// **Exact** (without `similarity`): of equal rows the one with the smallest `row_id` stays.
///
/// **Near** (with `similarity`): rows are taken in the order of their `row_id`, and one is removed if it is similar enough
/// to one that stays; of several of these, the smallest `row_id` is its `kept_id`. So `kept_id` always names a row that
/// stays, and a row that is similar to removed rows only stays too. Similar is the Jaccard similarity of the two sets of
/// n-grams: how many are in both, as a share of those in either. Letters count in lower case, and a run of white space as
/// one space; a text shorter than an n-gram is one by itself. Candidates come from MinHash signatures in bands, and each is
/// verified on its texts. So no row is removed for one that is less similar, and a pair at the threshold is missed with a
/// probability of 3 %, a more similar one with a smaller one.
///
/// # Ports
/// One, of rows with the named columns.
///
/// # Outputs
/// - default: the rows that stay, unchanged, ids included.
/// - `removed`: the other rows, with `kept_id`, the `row_id` of the row that stayed, and `similarity`, 1.0 if exact.
///
/// # Memory
/// Exact: a sort, which spills. Near: 230 bytes a row at a `similarity` of 0.8 (194 at 0.9, 350 at 0.5) and the different
/// values of `within`. That doesn't spill: a table that needs more than `--memory` is refused. The texts of `column` lie in
/// a temporary file.
///
/// # Example
/// ```yaml
/// qa_unique: { op: dedup, from: qa, column: question, within: doc_id }
/// qa_apart:  { op: dedup, from: qa_unique, column: question, within: doc_id, similarity: 0.8 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// The column to compare: text, a whole number or a boolean; with `similarity`, text.
    pub column: String,
    /// Compare only rows that agree in this column. Left out: all rows.
    #[serde(default)]
    pub within: Option<String>,
    /// From which similarity on, 0.1 to 1, rows count as near duplicates. Left out: only equal ones.
    #[serde(default)]
    #[schemars(range(min = 0.1, max = 1.0))]
    pub similarity: Option<f64>,
    /// What near duplicates are compared by: `{ words: 5 }` or `{ characters: 5 }`, up to 64. Left out: 5 words, or 5
    /// characters if the rows have fewer than 50 words on average.
    #[serde(default)]
    pub ngram: Option<Ngram>,
}

impl Operator for Dedup {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PORT, &[("row_id", DataType::Utf8)])])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let rows = input(inputs, PORT)?;
        let mut mistakes = self.near_mistakes();
        let named = [("/column", Some(&self.column)), ("/within", self.within.as_ref())];
        for (field, column) in named.into_iter().filter_map(|(field, column)| Some((field, column?))) {
            mistakes.extend(self.column_mistake(field, column, rows));
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
        match self.similarity {
            None => Lowering::Rows {
                query: Some(Query { sql: exact::sql(&self.column, self.within.as_deref()), unique: false }),
                stream: Some(Arc::new(exact::Route)),
            },
            Some(similarity) => Lowering::Task(Arc::new(Near {
                column: self.column.clone(),
                within: self.within.clone(),
                similarity,
                ngram: self.ngram,
            })),
        }
    }
}

impl Dedup {
    fn near_mistakes(&self) -> Vec<Invalid> {
        let mut mistakes = Vec::new();
        if self.similarity.is_some_and(|similarity| !(LEAST_SIMILARITY..=1.0).contains(&similarity)) {
            mistakes.push(
                Invalid::new("/similarity", format!("must lie between {LEAST_SIMILARITY} and 1"))
                    .hint("`0.8` removes what is nearly the same; leave it out for exact equality"),
            );
        }
        if let Some(ngram) = self.ngram {
            let (unit, n) = ngram.parts();
            if self.similarity.is_none() {
                mistakes.push(
                    Invalid::new("/ngram", "is for near duplicates, and without `similarity` rows are compared as a whole")
                        .hint("give a `similarity` (`0.8`), or leave `ngram` out"),
                );
            } else if !(1..=LONGEST_NGRAM).contains(&n) {
                mistakes.push(
                    Invalid::new(&format!("/ngram/{unit}"), format!("an n-gram has 1 to {LONGEST_NGRAM} {unit}, not {n}"))
                        .hint("leave `ngram` out for 5"),
                );
            }
        }
        mistakes
    }

    fn column_mistake(&self, field: &str, column: &str, rows: &Input) -> Option<Invalid> {
        let needs_text = field == "/column" && self.similarity.is_some();
        match rows.schema.field_with_name(column) {
            Err(_) => Some(no_column(field, column, rows)),
            Ok(found) if found.data_type() == &DataType::Utf8 => None,
            Ok(found) if needs_text => Some(
                Invalid::new(field, format!("`{column}` is {}; near duplicates are of text", found.data_type()))
                    .hint("leave `similarity` out for exact equality"),
            ),
            Ok(found) if found.data_type().is_integer() || found.data_type() == &DataType::Boolean => None,
            Ok(found) => Some(Invalid::new(
                field,
                format!("`{column}` is {}; text, a whole number or a boolean is needed", found.data_type()),
            )),
        }
    }
}

fn removed_schema(rows: &Schema) -> SchemaRef {
    let mut fields: Vec<_> = rows.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(KEPT, DataType::Utf8, false)));
    fields.push(Arc::new(Field::new(SIMILARITY, DataType::Float64, false)));
    Arc::new(Schema::new(fields))
}

/// The schemas of both outputs.
#[derive(Debug, Clone)]
struct Schemas {
    kept: SchemaRef,
    removed: SchemaRef,
}

impl Schemas {
    /// Sends the rows where `stays` is true to the default output, and the others, with what is known of each of them, to
    /// `removed`. Empty outputs are left out.
    fn divide(
        &self,
        rows: &RecordBatch,
        stays: &BooleanArray,
        kept_ids: ArrayRef,
        similarities: ArrayRef,
    ) -> Result<Vec<OutputRows>, Failure> {
        let mut outputs = Vec::new();
        if stays.true_count() > 0 {
            let rows = RecordBatch::try_new(self.kept.clone(), filter_record_batch(rows, stays)?.columns().to_vec())?;
            outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows });
        }
        if !kept_ids.is_empty() {
            let mut columns = filter_record_batch(rows, &arrow::compute::not(stays)?)?.columns().to_vec();
            columns.extend([kept_ids, similarities]);
            outputs.push(OutputRows { output: REMOVED, rows: RecordBatch::try_new(self.removed.clone(), columns)? });
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests;
