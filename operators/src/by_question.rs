//! Values of questions, read from tables of predictions.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Schema},
};
use futures::TryStreamExt;
use ingrain_engine::{failure::Failure, run::TaskContext};

use crate::columns::{column, text};

/// A value for each question, by its id.
pub(crate) type Values = BTreeMap<String, f64>;

/// Sum and number of each question's values.
#[derive(Debug, Default)]
pub(crate) struct Sums(BTreeMap<String, (f64, u32)>);

impl Sums {
    /// Adds a batch's values of a column; nulls are left out.
    ///
    /// # Errors
    /// A bug, if there is no such column of booleans or numbers.
    pub(crate) fn add(&mut self, batch: &RecordBatch, name: &str) -> Result<(), Failure> {
        let ids = text(batch, "question_id")?;
        let numbers = arrow::compute::cast(column(batch, name)?, &DataType::Float64)?;
        let numbers = numbers.as_primitive::<Float64Type>();
        for row in (0..batch.num_rows()).filter(|row| ids.is_valid(*row) && numbers.is_valid(*row)) {
            let (sum, count) = self.0.entry(ids.value(row).to_owned()).or_default();
            *sum += numbers.value(row);
            *count += 1;
        }
        Ok(())
    }

    /// The average of each question's values.
    pub(crate) fn averages(self) -> Values {
        self.0.into_iter().map(|(id, (sum, count))| (id, sum / f64::from(count))).collect()
    }
}

/// The values of some columns in every table at a port, by table and column.
///
/// # Errors
/// When a table can't be read.
pub(crate) async fn read(context: &TaskContext, port: &str, columns: &[&str]) -> Result<Vec<BTreeMap<String, Values>>, Failure> {
    let mut tables = Vec::new();
    for table in context.tables(port) {
        let mut sums: BTreeMap<&str, Sums> = columns.iter().map(|name| (*name, Sums::default())).collect();
        let mut batches = table.stream().await?;
        while let Some(batch) = batches.try_next().await? {
            for (name, sums) in &mut sums {
                sums.add(&batch, name)?;
            }
        }
        tables.push(sums.into_iter().map(|(name, sums)| (name.to_owned(), sums.averages())).collect());
    }
    Ok(tables)
}

/// Tables as one: the average of each question over those that have a value of it.
pub(crate) fn pooled<'a>(tables: impl IntoIterator<Item = &'a Values>) -> Values {
    let mut sums = Sums::default();
    for (id, value) in tables.into_iter().flatten() {
        let (sum, count) = sums.0.entry(id.clone()).or_default();
        *sum += value;
        *count += 1;
    }
    sums.averages()
}

/// The standard deviation of the figures of pooled cells, with n - 1; `None` for fewer than two.
pub(crate) fn spread(figures: &[f64]) -> Option<f64> {
    let n = figures.len() as f64;
    let middle = figures.iter().sum::<f64>() / n;
    let squares: f64 = figures.iter().map(|figure| (figure - middle).powi(2)).sum();
    (figures.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

/// Whether a column is there and holds booleans or numbers.
pub(crate) fn comparable(schema: &Schema, name: &str) -> bool {
    let field = schema.field_with_name(name);
    field.is_ok_and(|field| field.data_type() == &DataType::Boolean || field.data_type().is_numeric())
}

/// The names of all columns of booleans or numbers.
pub(crate) fn comparables(schema: &Schema) -> Vec<&str> {
    schema.fields().iter().map(|field| field.name().as_str()).filter(|name| comparable(schema, name)).collect()
}

/// The name that `evaluate` gives to the mean of a column.
pub(crate) fn metric(column: &str) -> &str {
    match column {
        "correct" => "accuracy",
        "correct_raw" => "accuracy_raw",
        "correct_normalised" => "accuracy_normalised",
        "correct_blind" => "blind",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooled_values_are_averages_of_those_that_are_there() {
        let values = |some: &[(&str, f64)]| some.iter().map(|(id, value)| ((*id).to_owned(), *value)).collect::<Values>();
        let (one, two) = (values(&[("a", 1.0), ("b", 0.5)]), values(&[("a", 0.0), ("c", 1.0)]));
        assert_eq!(pooled([&one, &two]), values(&[("a", 0.5), ("b", 0.5), ("c", 1.0)]));
        assert_eq!(pooled([&one]), one);
    }

    #[test]
    fn a_spread_needs_two() {
        assert_eq!((spread(&[]), spread(&[1.0])), (None, None));
        assert_eq!(spread(&[1.0, 3.0]), Some(2f64.sqrt()));
        assert_eq!(spread(&[2.0, 4.0, 6.0]), Some(2.0));
    }
}
