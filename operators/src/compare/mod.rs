//! Compares predictions, question by question.

mod sign_flip;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use async_trait::async_trait;
use ingrain_engine::{
    diagnostic::quoted,
    failure::Failure,
    key,
    operator::{Cell, DEFAULT_OUTPUT, Input, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{Task, TaskContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::sign_flip::p_value;
use crate::{
    baseline::Baseline,
    bootstrap::{Figure, mean},
    by_question::{Values, comparable, comparables, metric, pooled, read, spread},
    cells::{self, Group, grouped},
};

const PREDICTIONS: &str = "predictions";

/// What is compared where no column is named, as far as it is there.
const COMPARED: [&str; 3] = ["correct", "exact_match", "token_f1"];

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Compare>("compare", 2).gathers().reported();

/// Compares predictions on the same questions, with 95 % intervals and p-values of the differences.
///
/// A difference is taken for each question that both tables have (by `question_id`) with a value in the compared column,
/// and averaged; the interval is a percentile bootstrap over questions. So it is narrower than the intervals of the two
/// averages suggest, and one that doesn't hold 0 is a difference. Where a table has several rows for a question, their
/// average is taken.
///
/// `p` is that of a two-sided sign-flip test (Fisher's randomisation test for pairs): how often the mean difference would be
/// as large if for each question it were left to chance which of the two is which. Up to 16 differences other than 0 it is
/// exact; beyond that it is counted over `resamples` random patterns and the one that was observed, so that it is never under
/// 1 / (`resamples` + 1). It isn't corrected for the number of comparisons.
///
/// Of a stage with a `matrix` all cells are inputs, and what is compared with what follows from `baseline`. Cells that differ
/// only on the axes of `pool` (seeds of a training) count as one: the values of a question are averaged over those that have
/// one, before differences are taken. Interval and p-value are then still over questions alone: they say how sure the
/// difference is for these very students, on more questions like these. How much another seed would change it is what
/// `spread` shows.
///
/// With `against`, two columns of the same table are compared instead, for every table by itself: `correct` against
/// `correct_blind` says how much better a model is than the options alone allow.
///
/// # Ports
/// - `predictions`: `predictions` of several `evaluate` stages or of one with a matrix, or tables with `question_id` and the
///   compared columns. With `against`, one is enough.
///
/// # Outputs
/// - default: a column for each axis of a matrix that an input has, pooled ones left out (the label of the compared input, null
///   where it has no such axis), `comparison` (`a - b`, by the names of the inputs; with `against`, `a: column - against`),
///   `metric`, `value` (the mean difference), `low`, `high`, `p`, with `pool` `spread` (the standard deviation of the mean
///   difference over the pooled cells, each against the baseline's cell of the same labels where there is one; null for a
///   single cell), `n` (questions counted).
///
/// # Memory
/// The ids of all questions with a number each, for every table and column.
///
/// # Example
/// ```yaml
/// gain:   { op: compare, from: { predictions: [rag.predictions, closed.predictions, mixed.predictions] } }
/// beyond: { op: compare, from: closed.predictions, column: correct, against: correct_blind }
/// arms:   { op: compare, from: exam.predictions, baseline: { arm: mixed }, pool: [seed] }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The input that is subtracted from every other: its place among the inputs from 0, each cell of a matrix counted, or its
    /// name as written in the list (`rag.predictions`, or with a cell `exam[arm=mixed].predictions`). Or a mapping of axes to
    /// labels, `{ arm: mixed }`: from every cell the one is subtracted that has these labels and agrees with it on all other
    /// axes; a baseline that hasn't an axis serves all labels on it. Default: the first.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Axes of a matrix, such as `[seed]`: cells that differ only on these count as one. Default: none.
    #[serde(default)]
    pub pool: Vec<String>,
    /// The column to compare, of booleans (true is 1) or numbers. Default: `correct`, `exact_match` and `token_f1`, as far
    /// as there are values; with `against`, `correct`.
    #[serde(default)]
    pub column: Option<String>,
    /// A column of the same table that is subtracted from `column`, instead of that of a baseline. Default: none.
    #[serde(default)]
    pub against: Option<String>,
    /// How many resamples an interval is made of, and a p-value. Default: 1,000.
    #[serde(default = "default_resamples")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub resamples: u32,
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
        if self.resamples == 0 {
            mistakes.push(Invalid::new("/resamples", "an interval needs resamples").hint("leave it out for 1,000"));
        }
        let all_axes = cells::axes(tables.iter().map(|table| &table.cell));
        let unpooled = cells::check_pool(&self.pool, &all_axes);
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
        } else if !unpooled.is_empty() {
            mistakes.extend(unpooled);
        } else if let Err(wrong) = self.pairs(tables) {
            mistakes.extend(wrong);
        }
        for (field, name) in [("/column", &self.column), ("/against", &self.against)] {
            let Some(name) = name else { continue };
            for table in tables.iter().filter(|table| !comparable(&table.schema, name)) {
                mistakes.push(
                    Invalid::new(field, format!("`{}` has no column `{name}` of booleans or numbers", cells::output_name(table)))
                        .hint(format!("it has {}", quoted(comparables(&table.schema)))),
                );
            }
        }
        if self.column.is_none() && !tables.is_empty() && self.columns(inputs).is_empty() {
            mistakes.push(
                Invalid::new("/from", "no column that is compared by default is in every table")
                    .hint("these are `correct`, `exact_match` and `token_f1`; name another as `column`"),
            );
        }
        let axes = self.axes(tables);
        mistakes.extend(cells::check_columns(&axes, &self.fields(&[])));
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, self.fields(&axes))]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let tables = inputs.all(PREDICTIONS);
        Lowering::Task(Arc::new(Comparing {
            config: self.clone(),
            axes: self.axes(tables),
            groups: self.groups(tables),
            pairs: self.pairs(tables).unwrap_or_default(),
            columns: self.columns(inputs),
        }))
    }

    fn draws(&self) -> bool {
        true
    }
}

/// A group and the one that is subtracted from it: itself, with `against`.
type Pair = (usize, usize);

impl Compare {
    fn groups(&self, tables: &[Input]) -> Vec<Group> {
        grouped(tables, &self.pool.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The axes that are columns of the output.
    fn axes(&self, tables: &[Input]) -> Vec<String> {
        cells::axes(self.groups(tables).iter().map(|group| &group.cell))
    }

    /// What is compared with what.
    fn pairs(&self, tables: &[Input]) -> Result<Vec<Pair>, Vec<Invalid>> {
        let groups = self.groups(tables);
        if self.against.is_some() {
            return Ok((0..groups.len()).map(|group| (group, group)).collect());
        }
        if groups.len() < 2 {
            return Err(vec![
                Invalid::new("/pool", "with these axes pooled all inputs are one, and have nothing to be compared with")
                    .hint("pool fewer axes, or name a column of the same table as `against`"),
            ]);
        }
        let selected = self.baseline.as_ref().unwrap_or(&Baseline::Place(0)).select(tables, &groups)?;
        let (mut pairs, mut mistakes) = (Vec::new(), Vec::new());
        for (place, group) in groups.iter().enumerate().filter(|(place, _)| !selected.groups.contains(place)) {
            match selected.of(group, &groups) {
                Ok(baseline) => pairs.push((place, baseline)),
                Err(wrong) => mistakes.push(wrong),
            }
        }
        if pairs.is_empty() && mistakes.is_empty() {
            mistakes.push(Invalid::new("/baseline", "every input is a baseline, so nothing is compared with it"));
        }
        if mistakes.is_empty() { Ok(pairs) } else { Err(mistakes) }
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

    fn fields(&self, axes: &[String]) -> Vec<Field> {
        let number = |name: &str, nullable: bool| Field::new(name, DataType::Float64, nullable);
        let mut fields = vec![Field::new("row_id", DataType::Utf8, false)];
        fields.extend(cells::fields(axes));
        fields.extend(["comparison", "metric"].map(|name| Field::new(name, DataType::Utf8, false)));
        fields.extend(["value", "low", "high", "p"].map(|name| number(name, false)));
        if !self.pool.is_empty() {
            fields.push(number("spread", true));
        }
        fields.push(Field::new("n", DataType::Int64, false));
        fields
    }
}

#[derive(Debug)]
struct Comparing {
    config: Compare,
    axes: Vec<String>,
    groups: Vec<Group>,
    pairs: Vec<Pair>,
    columns: Vec<String>,
}

/// Values by column.
type Columns = BTreeMap<String, Values>;

/// A line of the result.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    comparison: String,
    metric: String,
    figure: Figure,
    p: f64,
    spread: Option<f64>,
    /// The place of the group.
    group: usize,
}

#[async_trait]
impl Task for Comparing {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let names: Vec<&str> = self.columns.iter().chain(&self.config.against).map(String::as_str).collect();
        let tables = read(context, PREDICTIONS, &names).await?;
        let lines = self.lines(&tables, context.seed)?;
        let values = |value: fn(&Line) -> f64| Arc::new(Float64Array::from_iter_values(lines.iter().map(value))) as ArrayRef;
        let id = |line: &Line| key::row_id("compare", 0, &[&line.comparison, &line.metric], 0, line.group as u64);
        let cells: Vec<&Cell> = lines.iter().map(|line| &self.groups[line.group].cell).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values(lines.iter().map(id)))];
        columns.extend(cells::columns(&self.axes, &cells));
        columns.push(Arc::new(StringArray::from_iter_values(lines.iter().map(|line| &line.comparison))));
        columns.push(Arc::new(StringArray::from_iter_values(lines.iter().map(|line| &line.metric))));
        columns.push(values(|line| line.figure.value));
        columns.push(values(|line| line.figure.low));
        columns.push(values(|line| line.figure.high));
        columns.push(values(|line| line.p));
        if !self.config.pool.is_empty() {
            columns.push(Arc::new(lines.iter().map(|line| line.spread).collect::<Float64Array>()));
        }
        columns.push(Arc::new(Int64Array::from_iter_values(lines.iter().map(|line| line.figure.n as i64))));
        let rows = RecordBatch::try_new(context.schema(DEFAULT_OUTPUT)?, columns)?;
        context.write(DEFAULT_OUTPUT, rows).await
    }
}

impl Comparing {
    /// All comparisons. One without a single common question is left out if its column was not asked for.
    fn lines(&self, tables: &[Columns], seed: u64) -> Result<Vec<Line>, Failure> {
        let resamples = self.config.resamples;
        let mut lines = Vec::new();
        for &(place, baseline) in &self.pairs {
            let (group, other) = (&self.groups[place], &self.groups[baseline]);
            let before = lines.len();
            for name in &self.columns {
                let comparison = match &self.config.against {
                    Some(against) => format!("{}: {name} - {against}", group.name),
                    None => format!("{} - {}", group.name, other.name),
                };
                let compared = self.compared(tables, (group, other), name)?;
                if let Some(figure) = mean(&compared.differences, resamples, seed) {
                    let p = p_value(&compared.differences, resamples, seed);
                    let spread = spread(&compared.cells);
                    lines.push(Line { comparison, metric: metric(name).to_owned(), figure, p, spread, group: place });
                }
            }
            if lines.len() == before {
                let columns = quoted(self.columns.iter().map(String::as_str));
                let message = match &self.config.against {
                    Some(against) => format!("no question of `{}` has both {columns} and `{against}`", group.name),
                    None => format!("`{}` and `{}` have no question in common with a value of {columns}", group.name, other.name),
                };
                return Err(Failure::data(message).hint("predictions are compared on the same `questions`, by `question_id`"));
            }
        }
        Ok(lines)
    }

    /// The differences of a column between a group and its baseline.
    fn compared(&self, tables: &[Columns], (group, baseline): (&Group, &Group), name: &str) -> Result<Compared, Failure> {
        let subtracted = self.config.against.as_deref().unwrap_or(name);
        let values = |input: usize, name: &str| {
            let table: Option<&Columns> = tables.get(input);
            table.and_then(|table| table.get(name)).ok_or_else(|| Failure::bug(format!("column `{name}` wasn't read")))
        };
        let all = |group: &Group, name: &str| {
            let tables: Result<Vec<&Values>, Failure> = group.inputs.iter().map(|(input, _)| values(*input, name)).collect();
            Ok::<_, Failure>(pooled(tables?))
        };
        let (whole, other) = (all(group, name)?, all(baseline, subtracted)?);
        // Cells of the same seed belong together, if each has one.
        let twin = |labels: &Cell| baseline.inputs.iter().find(|(_, own)| own == labels).map(|(input, _)| *input);
        let paired = baseline.inputs.len() > 1 && group.inputs.iter().all(|(_, labels)| twin(labels).is_some());
        let mut cells = Vec::new();
        if group.inputs.len() > 1 {
            for (input, labels) in &group.inputs {
                let own = values(*input, name)?;
                let twin = if self.config.against.is_some() { Some(*input) } else { twin(labels).filter(|_| paired) };
                cells.push(match twin {
                    Some(twin) => differences(own, values(twin, subtracted)?),
                    None => differences(own, &other),
                });
            }
        } else if baseline.inputs.len() > 1 {
            for (input, _) in &baseline.inputs {
                cells.push(differences(&whole, values(*input, subtracted)?));
            }
        }
        let mean = |differences: &Vec<f64>| differences.iter().sum::<f64>() / differences.len() as f64;
        let cells = cells.iter().filter(|differences| !differences.is_empty()).map(mean).collect();
        Ok(Compared { differences: differences(&whole, &other), cells })
    }
}

/// What a comparison is made of.
struct Compared {
    /// By question.
    differences: Vec<f64>,
    /// The mean difference of each of the pooled cells, if there are several.
    cells: Vec<f64>,
}

/// The differences of the questions that both have, in the order of their ids.
fn differences(values: &Values, subtracted: &Values) -> Vec<f64> {
    values.iter().filter_map(|(id, value)| Some(value - subtracted.get(id)?)).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::BooleanArray;
    use serde_json::json;

    use super::*;
    use crate::by_question::Sums;

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
        cells_compared(config, &names.iter().map(|name| (*name, "")).collect::<Vec<_>>(), tables)
    }

    fn cells_compared(config: serde_json::Value, names: &[(&str, &str)], tables: &[RecordBatch]) -> Result<Vec<Line>, String> {
        let compare: Compare = serde_json::from_value(config).unwrap();
        let ports = BTreeMap::from([(PREDICTIONS.to_owned(), cells::inputs(names, &tables[0].schema()))]);
        let inputs = Inputs { ports, ..Inputs::default() };
        compare.bind(&inputs).map_err(|mistakes| format!("{}: {}", mistakes[0].field, mistakes[0].message))?;
        let comparing = Comparing {
            axes: compare.axes(inputs.all(PREDICTIONS)),
            groups: compare.groups(inputs.all(PREDICTIONS)),
            pairs: compare.pairs(inputs.all(PREDICTIONS)).unwrap(),
            columns: compare.columns(&inputs),
            config: compare,
        };
        let read = |table: &RecordBatch| {
            let column = |name: &String| {
                let mut sums = Sums::default();
                sums.add(table, name).unwrap();
                (name.clone(), sums.averages())
            };
            comparing.columns.iter().chain(&comparing.config.against).map(column).collect()
        };
        comparing.lines(&tables.iter().map(read).collect::<Vec<_>>(), 7).map_err(|failure| failure.message)
    }

    /// A table in which these of the questions 1, 2, 3, 4 are correct.
    fn correct(which: &[usize]) -> RecordBatch {
        let rows: Vec<_> =
            ["1", "2", "3", "4"].iter().enumerate().map(|(n, id)| (*id, Some(which.contains(&(n + 1))), None)).collect();
        table(&rows)
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

    const CELLS: [(&str, &str); 5] = [
        ("exam[].p", "arm=qa,seed=1"),
        ("exam[].p", "arm=qa,seed=2"),
        ("exam[].p", "arm=mixed,seed=1"),
        ("exam[].p", "arm=mixed,seed=2"),
        ("rag.p", ""),
    ];

    fn cells_of_two_seeds() -> [RecordBatch; 5] {
        [correct(&[1]), correct(&[1, 2, 3]), correct(&[1, 2]), correct(&[1, 2, 3, 4]), correct(&[2])]
    }

    #[test]
    fn a_cell_is_compared_with_the_one_that_agrees_on_the_rest() {
        let (names, tables) = (&CELLS[..4], &cells_of_two_seeds()[..4]);
        let lines = cells_compared(json!({ "baseline": { "arm": "mixed" } }), names, tables).unwrap();
        let found: Vec<_> = lines.iter().map(|line| (line.comparison.as_str(), line.figure.value, line.p)).collect();
        // One question of four differs: both of its signs are as far from 0.
        let expected = [
            ("exam[arm=qa,seed=1].p - exam[arm=mixed,seed=1].p", -0.25, 1.0),
            ("exam[arm=qa,seed=2].p - exam[arm=mixed,seed=2].p", -0.25, 1.0),
        ];
        assert_eq!(found, expected);
        let wrong = cells_compared(json!({ "baseline": { "arm": "mixed" } }), &CELLS, &cells_of_two_seeds()).unwrap_err();
        assert_eq!(wrong, "/baseline: `rag.p` finds several baselines");
        let lines = cells_compared(json!({ "baseline": "rag.p" }), &CELLS, &cells_of_two_seeds()).unwrap();
        assert_eq!((lines.len(), lines[3].figure.value), (4, 0.75));
        // Three differences of 1: two of eight patterns.
        assert_eq!(lines[3].p, 0.25);
    }

    #[test]
    fn pooled_cells_count_as_one() {
        let config = json!({ "baseline": { "arm": "qa" }, "pool": ["seed"] });
        let lines = cells_compared(config, &CELLS, &cells_of_two_seeds()).unwrap();
        assert_eq!(lines[0].comparison, "exam[arm=mixed].p - exam[arm=qa].p");
        // Averages of mixed 1, 1, 0.5, 0.5; of qa 1, 0.5, 0.5, 0.
        assert_eq!((lines[0].figure.value, lines[0].figure.n), (0.25, 4));
        // 0.25 with either seed.
        assert_eq!(lines[0].spread, Some(0.0));
        // rag has one cell, so the spread is that of the baseline's: 0 with seed 1, -0.5 with seed 2.
        assert_eq!((lines[1].comparison.as_str(), lines[1].figure.value), ("rag.p - exam[arm=qa].p", -0.25));
        assert_eq!(lines[1].spread, Some(0.125f64.sqrt()));
        let lines = cells_compared(json!({ "baseline": "rag.p", "pool": ["seed", "arm"] }), &CELLS, &cells_of_two_seeds());
        assert_eq!(lines.unwrap()[0].comparison, "exam.p - rag.p");
        let against = json!({ "against": "correct_blind", "column": "correct", "pool": ["seed"] });
        let (yes, no) = (Some(true), Some(false));
        let tables = [table(&[("1", yes, no), ("2", no, no)]), table(&[("1", no, no), ("2", no, no)])];
        let lines = cells_compared(against, &CELLS[..2], &tables).unwrap();
        assert_eq!(lines[0].comparison, "exam[arm=qa].p: correct - correct_blind");
        assert_eq!((lines[0].figure.value, lines[0].spread), (0.25, Some(0.125f64.sqrt())));
    }

    #[test]
    fn mistakes_with_cells_are_named() {
        let wrong = |config| cells_compared(config, &CELLS, &cells_of_two_seeds()).unwrap_err();
        assert_eq!(wrong(json!({ "pool": ["sede"] })), "/pool/0: no input has an axis `sede`");
        assert_eq!(wrong(json!({ "baseline": { "amr": "qa" } })), "/baseline/amr: no input has an axis `amr`");
        assert_eq!(
            wrong(json!({ "baseline": { "arm": "docs" } })),
            "/baseline/arm: no input has the label `docs` on the axis `arm`"
        );
        let all_one = cells_compared(json!({ "pool": ["seed"] }), &CELLS[..2], &cells_of_two_seeds()[..2]).unwrap_err();
        assert!(all_one.starts_with("/pool: with these axes pooled all inputs are one"), "{all_one}");
        let every = cells_compared(json!({ "baseline": { "arm": "qa" } }), &CELLS[..2], &cells_of_two_seeds()[..2]).unwrap_err();
        assert!(every.starts_with("/baseline: every input is a baseline"), "{every}");
        let taken = [("exam[].p", "p=1"), ("exam[].p", "p=2")];
        let taken = cells_compared(json!({}), &taken, &cells_of_two_seeds()[..2]).unwrap_err();
        assert_eq!(taken, "/from: the axis `p` has the name of another column of the output");
    }

    #[test]
    fn axes_are_columns() {
        let compare: Compare = serde_json::from_value(json!({ "pool": ["seed"] })).unwrap();
        let ports = BTreeMap::from([(PREDICTIONS.to_owned(), cells::inputs(&CELLS, &correct(&[]).schema()))]);
        let outputs = compare.bind(&Inputs { ports, ..Inputs::default() }).unwrap();
        let names: Vec<_> = outputs[0].schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["row_id", "arm", "comparison", "metric", "value", "low", "high", "p", "spread", "n"]);
        assert!(outputs[0].schema.field(1).is_nullable());
    }
}
