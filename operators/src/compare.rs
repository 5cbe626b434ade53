//! Compares predictions, question by question.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float64Type, Schema},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{Task, TaskContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    bootstrap::{Figure, mean},
    columns::{column, text},
};

const PREDICTIONS: &str = "predictions";

/// What is compared where no column is named, as far as it is there.
const COMPARED: [&str; 3] = ["correct", "exact_match", "token_f1"];

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Compare>("compare", 1).gathers().reported();

/// Compares predictions on the same questions, with 95 % intervals of the differences.
///
/// A difference is taken for each question that both tables have (by `question_id`) with a value in the compared column,
/// and averaged; the interval is a percentile bootstrap over questions. So it is narrower than the intervals of the two
/// averages suggest, and one that doesn't hold 0 is a difference. Where a table has several rows for a question, their
/// average is taken.
///
/// With `against`, two columns of the same table are compared instead, for every table by itself: `correct` against
/// `correct_blind` says how much better a model is than the options alone allow.
///
/// # Ports
/// - `predictions`: `predictions` of several `evaluate` stages, or tables with `question_id` and the compared columns. With
///   `against`, one is enough.
///
/// # Outputs
/// - default: `comparison` (`a - b`, by the names of the inputs; with `against`, `a: column - against`), `metric`, `value`
///   (the mean difference), `low`, `high`, `n` (questions counted).
///
/// # Memory
/// The ids of all questions with a number each, for every table and column.
///
/// # Example
/// ```yaml
/// gain:   { op: compare, from: { predictions: [rag.predictions, closed.predictions, mixed.predictions] } }
/// beyond: { op: compare, from: closed.predictions, column: correct, against: correct_blind }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The input that is subtracted from every other: its place in the list from 0, or its name as written there
    /// (`rag.predictions`). Default: the first.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// The column to compare, of booleans (true is 1) or numbers. Default: `correct`, `exact_match` and `token_f1`, as far
    /// as there are values; with `against`, `correct`.
    #[serde(default)]
    pub column: Option<String>,
    /// A column of the same table that is subtracted from `column`, instead of that of a baseline. Default: none.
    #[serde(default)]
    pub against: Option<String>,
    /// How many resamples an interval is made of. Default: 1,000.
    #[serde(default = "default_resamples")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub resamples: u32,
}

/// Which input is the baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Baseline {
    /// By its place in the list, from 0.
    Place(usize),
    /// By its name, as written in the list.
    Name(String),
}

fn default_resamples() -> u32 {
    1000
}

impl Operator for Compare {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PREDICTIONS, &[("question_id", DataType::Utf8)]).many()])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let tables = inputs.all(PREDICTIONS);
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        if self.resamples == 0 {
            mistakes.push(Invalid::new("/resamples", "an interval needs resamples").hint("leave it out for 1,000"));
        }
        if self.against.is_some() && self.baseline.is_some() {
            mistakes.push(
                Invalid::new("/baseline", "`against` compares each table with itself, so no baseline is used")
                    .hint("leave one of the two out"),
            );
        } else if self.against.is_none() && tables.len() < 2 {
            mistakes.push(
                Invalid::new("/from", "one table has nothing to be compared with")
                    .hint("give two at least, or a column of the same table as `against`"),
            );
        } else if self.baseline_of(&names).is_none() {
            let there: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            mistakes.push(
                Invalid::new("/baseline", "the baseline is none of the inputs")
                    .hint(format!("there are {}, or their places from 0", there.join(", "))),
            );
        }
        for (field, name) in [("/column", &self.column), ("/against", &self.against)] {
            let Some(name) = name else { continue };
            for table in tables {
                if !comparable(&table.schema, name) {
                    mistakes.push(
                        Invalid::new(field, format!("`{}` has no column `{name}` of booleans or numbers", table.name))
                            .hint(format!("it has {}", comparables(&table.schema))),
                    );
                }
            }
        }
        if self.column.is_none() && !tables.is_empty() && self.columns(inputs).is_empty() {
            mistakes.push(
                Invalid::new("/from", "no column that is compared by default is in every table")
                    .hint("these are `correct`, `exact_match` and `token_f1`; name another as `column`"),
            );
        }
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, fields())]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let names = inputs.all(PREDICTIONS).iter().map(|table| table.name.clone()).collect();
        Lowering::Task(Arc::new(Comparing { config: self.clone(), names, columns: self.columns(inputs) }))
    }

    fn draws(&self) -> bool {
        true
    }
}

impl Compare {
    fn baseline_of(&self, names: &[&str]) -> Option<usize> {
        match &self.baseline {
            None => Some(0),
            Some(Baseline::Place(place)) => (*place < names.len()).then_some(*place),
            Some(Baseline::Name(name)) => names.iter().position(|there| there == name),
        }
    }

    /// The columns that are compared: the named one, or those by default that every table has.
    fn columns(&self, inputs: &Inputs) -> Vec<String> {
        let tables = inputs.all(PREDICTIONS);
        let default = if self.against.is_some() { &COMPARED[..1] } else { &COMPARED[..] };
        match &self.column {
            Some(column) => vec![column.clone()],
            None => {
                let there = |name: &&&str| tables.iter().all(|table| comparable(&table.schema, name));
                default.iter().filter(there).map(|&name| name.to_owned()).collect()
            }
        }
    }
}

fn comparable(schema: &Schema, name: &str) -> bool {
    let field = schema.field_with_name(name);
    field.is_ok_and(|field| field.data_type() == &DataType::Boolean || field.data_type().is_numeric())
}

fn comparables(schema: &Schema) -> String {
    let fields = schema.fields().iter().filter(|field| comparable(schema, field.name()));
    fields.map(|field| format!("`{}`", field.name())).collect::<Vec<_>>().join(", ")
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("comparison", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("low", DataType::Float64, false),
        Field::new("high", DataType::Float64, false),
        Field::new("n", DataType::Int64, false),
    ]
}

/// The name that `evaluate` gives to the mean of a column.
fn metric(column: &str) -> &str {
    match column {
        "correct" => "accuracy",
        "correct_raw" => "accuracy_raw",
        "correct_normalised" => "accuracy_normalised",
        "correct_blind" => "blind",
        other => other,
    }
}

#[derive(Debug)]
struct Comparing {
    config: Compare,
    names: Vec<String>,
    columns: Vec<String>,
}

/// Sum and number of a question's values.
type Values = BTreeMap<String, (f64, u32)>;

/// A line of the result.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    comparison: String,
    metric: String,
    figure: Figure,
    /// The place of the input.
    input: usize,
}

#[async_trait]
impl Task for Comparing {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let mut tables = Vec::new();
        for table in context.tables(PREDICTIONS) {
            let mut values: BTreeMap<String, Values> = BTreeMap::new();
            let mut batches = table.stream().await?;
            while let Some(batch) = batches.try_next().await? {
                for name in self.columns.iter().chain(&self.config.against) {
                    add(&batch, name, values.entry(name.clone()).or_default())?;
                }
            }
            tables.push(values);
        }
        let lines = self.lines(&tables, context.seed)?;
        let values = |value: fn(&Figure) -> f64| {
            Arc::new(Float64Array::from_iter_values(lines.iter().map(|line| value(&line.figure)))) as ArrayRef
        };
        let id = |line: &Line| key::row_id("compare", 0, &[&line.comparison, &line.metric], 0, line.input as u64);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(lines.iter().map(id))),
            Arc::new(StringArray::from_iter_values(lines.iter().map(|line| &line.comparison))),
            Arc::new(StringArray::from_iter_values(lines.iter().map(|line| &line.metric))),
            values(|figure| figure.value),
            values(|figure| figure.low),
            values(|figure| figure.high),
            Arc::new(Int64Array::from_iter_values(lines.iter().map(|line| line.figure.n as i64))),
        ];
        let rows = RecordBatch::try_new(context.schema(DEFAULT_OUTPUT)?, columns)?;
        context.write(DEFAULT_OUTPUT, rows).await
    }
}

impl Comparing {
    /// All comparisons. One without a single common question is left out if its column was not asked for.
    fn lines(&self, tables: &[BTreeMap<String, Values>], seed: u64) -> Result<Vec<Line>, Failure> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let baseline = self.config.baseline_of(&names).ok_or_else(|| Failure::bug("the baseline is none of the inputs"))?;
        let none = Values::new();
        let mut lines = Vec::new();
        for (input, table) in tables.iter().enumerate() {
            if self.config.against.is_none() && input == baseline {
                continue;
            }
            let before = lines.len();
            let (other, comparison) = match &self.config.against {
                Some(_) => (table, None),
                None => (&tables[baseline], Some(format!("{} - {}", names[input], names[baseline]))),
            };
            for name in &self.columns {
                let subtracted = self.config.against.as_ref().unwrap_or(name);
                let differences = differences(table.get(name).unwrap_or(&none), other.get(subtracted).unwrap_or(&none));
                let comparison = comparison.clone().unwrap_or_else(|| format!("{}: {name} - {subtracted}", names[input]));
                if let Some(figure) = mean(&differences, self.config.resamples, seed) {
                    lines.push(Line { comparison, metric: metric(name).to_owned(), figure, input });
                }
            }
            if lines.len() == before {
                let columns: Vec<_> = self.columns.iter().map(|name| format!("`{name}`")).collect();
                let message = match &self.config.against {
                    Some(against) => format!("no question of `{}` has both {} and `{against}`", names[input], columns.join(", ")),
                    None => format!(
                        "`{}` and `{}` have no question in common with a value of {}",
                        names[input],
                        names[baseline],
                        columns.join(", ")
                    ),
                };
                return Err(Failure::data(message).hint("predictions are compared on the same `questions`, by `question_id`"));
            }
        }
        Ok(lines)
    }
}

/// Adds a batch's values of a column; nulls are left out.
fn add(batch: &RecordBatch, name: &str, values: &mut Values) -> Result<(), Failure> {
    let ids = text(batch, "question_id")?;
    let numbers = arrow::compute::cast(column(batch, name)?, &DataType::Float64)?;
    let numbers = numbers.as_primitive::<Float64Type>();
    for row in (0..batch.num_rows()).filter(|row| ids.is_valid(*row) && numbers.is_valid(*row)) {
        let (sum, count) = values.entry(ids.value(row).to_owned()).or_default();
        *sum += numbers.value(row);
        *count += 1;
    }
    Ok(())
}

/// The differences of the questions that both have, in the order of their ids.
fn differences(values: &Values, subtracted: &Values) -> Vec<f64> {
    let average = |(sum, count): &(f64, u32)| sum / f64::from(*count);
    let difference = |(id, value)| Some(average(value) - average(subtracted.get(id)?));
    values.iter().filter_map(difference).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::BooleanArray;
    use ingrain_engine::operator::Input;
    use serde_json::json;

    use super::*;

    fn table(rows: &[(&str, Option<bool>, Option<bool>)]) -> RecordBatch {
        let ids: Vec<&str> = rows.iter().map(|row| row.0).collect();
        let correct: Vec<Option<bool>> = rows.iter().map(|row| row.1).collect();
        let blind: Vec<Option<bool>> = rows.iter().map(|row| row.2).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("question_id", Arc::new(StringArray::from(ids)) as ArrayRef, false),
            ("correct", Arc::new(BooleanArray::from(correct)) as ArrayRef, true),
            ("correct_blind", Arc::new(BooleanArray::from(blind)) as ArrayRef, true),
        ])
        .unwrap()
    }

    fn compare(config: serde_json::Value, names: &[&str], tables: &[RecordBatch]) -> Result<Vec<Line>, String> {
        let compare: Compare = serde_json::from_value(config).unwrap();
        let input = |(name, table): (&&str, &RecordBatch)| Input {
            name: (*name).to_owned(),
            cell: Default::default(),
            schema: table.schema(),
        };
        let inputs = names.iter().zip(tables).map(input).collect();
        let inputs = Inputs { ports: BTreeMap::from([(PREDICTIONS.to_owned(), inputs)]), ..Inputs::default() };
        compare.bind(&inputs).map_err(|mistakes| format!("{}: {}", mistakes[0].field, mistakes[0].message))?;
        let comparing = Comparing {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            columns: compare.columns(&inputs),
            config: compare,
        };
        let mut read = Vec::new();
        for table in tables {
            let mut values: BTreeMap<String, Values> = BTreeMap::new();
            for name in comparing.columns.iter().chain(&comparing.config.against) {
                add(table, name, values.entry(name.clone()).or_default()).unwrap();
            }
            read.push(values);
        }
        comparing.lines(&read, 7).map_err(|failure| failure.message)
    }

    fn predictions() -> [RecordBatch; 2] {
        let (yes, no) = (Some(true), Some(false));
        let a = table(&[("q1", yes, no), ("q2", no, no), ("q3", no, yes), ("q4", yes, None), ("only a", yes, no)]);
        let b = table(&[("q4", yes, no), ("q3", yes, no), ("q2", yes, no), ("q1", no, no), ("q5", None, no), ("only b", no, no)]);
        [a, b]
    }

    #[test]
    fn differences_are_paired_by_question() {
        let lines = compare(json!({}), &["a.predictions", "b.predictions"], &predictions()).unwrap();
        assert_eq!(lines.len(), 1);
        let Line { comparison, metric, figure, .. } = &lines[0];
        assert_eq!((comparison.as_str(), metric.as_str()), ("b.predictions - a.predictions", "accuracy"));
        // q1: -1, q2: 1, q3: 1, q4: 0.
        assert_eq!((figure.value, figure.n), (0.25, 4));
        assert!(figure.low < 0.25 && figure.low >= -1.0 && figure.high > 0.25 && figure.high <= 1.0, "{figure:?}");
        for baseline in [json!(1), json!("b.predictions")] {
            let lines = compare(json!({ "baseline": baseline }), &["a.predictions", "b.predictions"], &predictions()).unwrap();
            assert_eq!((lines[0].comparison.as_str(), lines[0].figure.value), ("a.predictions - b.predictions", -0.25));
        }
    }

    #[test]
    fn equal_differences_have_no_width() {
        let (yes, no) = (Some(true), Some(false));
        let rows = |correct| table(&(["1", "2", "3"].map(|id| (id, correct, no))));
        let lines = compare(json!({}), &["a", "b"], &[rows(no), rows(yes)]).unwrap();
        assert_eq!(lines[0].figure, Figure { value: 1.0, low: 1.0, high: 1.0, n: 3 });
    }

    #[test]
    fn a_table_is_compared_with_itself() {
        let [a, _] = predictions();
        let config = json!({ "column": "correct", "against": "correct_blind" });
        let lines = compare(config, &["a.predictions"], &[a]).unwrap();
        assert_eq!(lines[0].comparison, "a.predictions: correct - correct_blind");
        // q1: 1, q2: 0, q3: -1, only a: 1; q4 has no blind choice.
        assert_eq!((lines[0].figure.value, lines[0].figure.n), (0.25, 4));
    }

    #[test]
    fn repeated_rows_are_averaged() {
        let (yes, no) = (Some(true), Some(false));
        let draws = table(&[("q1", yes, no), ("q1", no, no), ("q1", yes, no), ("q1", yes, no)]);
        let lines = compare(json!({}), &["a", "b"], &[table(&[("q1", no, no)]), draws]).unwrap();
        assert_eq!((lines[0].figure.value, lines[0].figure.n), (0.75, 1));
    }

    #[test]
    fn mistakes_are_named() {
        let tables = predictions();
        let names = ["a", "b"];
        let wrong = |config| compare(config, &names, &tables).unwrap_err();
        assert_eq!(wrong(json!({ "baseline": "c" })), "/baseline: the baseline is none of the inputs");
        assert_eq!(wrong(json!({ "baseline": 2 })), "/baseline: the baseline is none of the inputs");
        assert_eq!(wrong(json!({ "column": "score" })), "/column: `a` has no column `score` of booleans or numbers");
        let one = compare(json!({}), &names[..1], &tables[..1]).unwrap_err();
        assert_eq!(one, "/from: one table has nothing to be compared with");
        let apart = [table(&[("q1", Some(true), None)]), table(&[("q2", Some(true), None)])];
        let message = compare(json!({}), &names, &apart).unwrap_err();
        assert_eq!(message, "`b` and `a` have no question in common with a value of `correct`");
    }
}
