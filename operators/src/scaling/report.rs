//! What a scaling gives: fits, points and what the plot shows.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use ingrain_engine::{failure::Failure, key, operator::Cell};

use super::{
    FILE, PLOT, Scaling,
    layout::{Baseline, Layout, Point, Series},
    line::{Crossing, Line, Observed, average, r2},
    plot::{self, Mark, Plot},
    saturation::Saturation,
};
use crate::{
    bootstrap::{Figure, mean},
    by_question::{Values, metric, pooled, spread},
    cells,
};

/// All lines with their figures.
#[derive(Debug, Clone)]
pub(crate) struct Scaled {
    lines: Vec<Fitted>,
    /// Names and means of what has no x.
    baselines: Vec<(String, f64)>,
}

/// A line with its figures.
#[derive(Debug, Clone)]
struct Fitted {
    name: String,
    short: String,
    cell: Cell,
    line: Line,
    slope: Figure,
    r2: Option<f64>,
    points: Vec<Measured>,
    baseline: Option<String>,
    crossing: Option<Crossing>,
    saturation: Option<Saturation>,
}

/// A point with its figure.
#[derive(Debug, Clone)]
struct Measured {
    label: String,
    x: f64,
    figure: Figure,
    spread: Option<f64>,
}

/// Values of the inputs at a port, in its order.
struct Tables<'a> {
    values: &'a [Values],
    column: &'a str,
    resamples: u32,
    seed: u64,
}

impl Scaled {
    /// Fits the lines of `layout` to the values of the inputs, in the order of the port.
    ///
    /// # Errors
    /// When the points of a line, or a line and its baseline, have no question in common.
    pub(crate) fn new(config: &Scaling, layout: &Layout, values: &[Values], seed: u64) -> Result<Self, Failure> {
        let tables = Tables { values, column: &config.y, resamples: config.resamples, seed };
        let lines: Result<Vec<_>, Failure> = layout.lines.iter().map(|line| tables.fitted(line, layout)).collect();
        let baselines = layout.baselines.iter().map(|flat| {
            let values: Vec<f64> = tables.of(&flat.inputs).into_values().collect();
            (flat.name.clone(), average(&values))
        });
        Ok(Self { lines: lines?, baselines: baselines.filter(|(_, value)| value.is_finite()).collect() })
    }

    /// The rows of the default output.
    ///
    /// # Errors
    /// A bug, if the schema is another.
    pub(crate) fn fits(&self, schema: SchemaRef, by: &[String]) -> Result<RecordBatch, Failure> {
        let lines = || self.lines.iter();
        let numbers = |number: fn(&Fitted) -> Option<f64>| Arc::new(lines().map(number).collect::<Float64Array>()) as ArrayRef;
        let counts = |count: fn(&Fitted) -> usize| {
            Arc::new(Int64Array::from_iter_values(lines().map(|line| count(line) as i64))) as ArrayRef
        };
        let ids = lines().enumerate().map(|(place, line)| key::row_id("scaling", 0, &[&line.name], 0, place as u64));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values(ids))];
        columns.extend(cells::columns(by, &lines().map(|line| &line.cell).collect::<Vec<_>>()));
        columns.push(Arc::new(StringArray::from_iter_values(lines().map(|line| &line.name))));
        columns.extend([
            numbers(|line| Some(line.slope.value)),
            numbers(|line| Some(line.slope.low)),
            numbers(|line| Some(line.slope.high)),
            numbers(|line| Some(line.line.intercept)),
            numbers(|line| line.r2),
            counts(|line| line.points.len()),
            counts(|line| line.slope.n),
        ]);
        columns.push(Arc::new(lines().map(|line| line.baseline.as_deref()).collect::<StringArray>()));
        columns.extend([
            numbers(|line| line.crossing.map(|crossing| crossing.x)),
            numbers(|line| line.crossing.and_then(|crossing| crossing.low)),
            numbers(|line| line.crossing.and_then(|crossing| crossing.high)),
            numbers(|line| line.saturation.map(|saturation| saturation.curve.limit)),
            numbers(|line| line.saturation.and_then(|saturation| saturation.low)),
            numbers(|line| line.saturation.and_then(|saturation| saturation.high)),
            numbers(|line| line.saturation.map(|saturation| saturation.r2)),
            numbers(|line| line.saturation.map(|saturation| saturation.curve.scale)),
            numbers(|line| line.saturation.map(|saturation| saturation.curve.exponent)),
        ]);
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    /// The rows of `points`; `pooled` says whether they have a spread.
    ///
    /// # Errors
    /// A bug, if the schema is another.
    pub(crate) fn points(&self, schema: SchemaRef, by: &[String], pooled: bool) -> Result<RecordBatch, Failure> {
        let points: Vec<(usize, &Fitted, &Measured)> = self
            .lines
            .iter()
            .enumerate()
            .flat_map(|(place, line)| line.points.iter().map(move |point| (place, line, point)))
            .collect();
        let numbers = |number: fn(&Measured) -> f64| {
            Arc::new(Float64Array::from_iter_values(points.iter().map(|(_, _, point)| number(point)))) as ArrayRef
        };
        let id = |(place, line, point): &(usize, &Fitted, &Measured)| {
            key::row_id("scaling", 0, &[&line.name, &point.label], 0, *place as u64)
        };
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values(points.iter().map(id)))];
        columns.extend(cells::columns(by, &points.iter().map(|(_, line, _)| &line.cell).collect::<Vec<_>>()));
        columns.push(Arc::new(StringArray::from_iter_values(points.iter().map(|(_, line, _)| &line.name))));
        columns.push(Arc::new(StringArray::from_iter_values(points.iter().map(|(_, _, point)| &point.label))));
        columns.push(numbers(|point| point.x));
        columns.extend([
            numbers(|point| point.figure.value),
            numbers(|point| point.figure.low),
            numbers(|point| point.figure.high),
        ]);
        if pooled {
            columns.push(Arc::new(points.iter().map(|(_, _, point)| point.spread).collect::<Float64Array>()));
        }
        columns.push(Arc::new(Int64Array::from_iter_values(points.iter().map(|(_, _, point)| point.figure.n as i64))));
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    /// The plot of the mean of a column over the axis `x`.
    pub(crate) fn plot(&self, x: &str, column: &str) -> Plot {
        let mark = |point: &Measured| Mark {
            place: point.x.log2(),
            label: point.label.clone(),
            value: point.figure.value,
            low: point.figure.low,
            high: point.figure.high,
        };
        let series = |line: &Fitted| plot::Series {
            name: line.short.clone(),
            points: line.points.iter().map(mark).collect(),
            line: line.line,
            curve: line.saturation.map(|saturation| saturation.curve),
        };
        Plot {
            x: x.to_owned(),
            y: metric(column).to_owned(),
            series: self.lines.iter().map(series).collect(),
            baselines: self.baselines.clone(),
        }
    }
}

impl Tables<'_> {
    /// Some inputs as one.
    fn of(&self, inputs: &[usize]) -> Values {
        pooled(inputs.iter().filter_map(|input| self.values.get(*input)))
    }

    fn points(&self, line: &Series) -> Vec<Values> {
        line.points.iter().map(|point| self.of(&point.inputs)).collect()
    }

    fn fitted(&self, line: &Series, layout: &Layout) -> Result<Fitted, Failure> {
        let points = self.points(line);
        let ids = common(&points.iter().collect::<Vec<_>>());
        let observed = Observed { places: places(line), values: points.iter().map(|table| values(table, &ids)).collect() };
        let (Some(fit), Some(slope)) = (observed.line(), observed.slope(self.resamples, self.seed)) else {
            return Err(self.apart(&format!("the points of `{}`", line.name)));
        };
        let measured = |(point, values): (&Point, &Vec<f64>)| {
            let figure = mean(values, self.resamples, self.seed)?;
            Some(Measured { label: point.label.clone(), x: point.x, figure, spread: self.spread(point, &ids) })
        };
        let (baseline, crossing) = match line.baseline {
            None => (None, None),
            Some(Baseline::Line(place)) => {
                let other = &layout.lines[place];
                let crossing = self.crossing(line, &points, &other.name, places(other), &self.points(other))?;
                (Some(other.name.clone()), crossing)
            }
            Some(Baseline::Flat(place)) => {
                let flat = &layout.baselines[place];
                let crossing = self.crossing(line, &points, &flat.name, vec![0.0], &[self.of(&flat.inputs)])?;
                (Some(flat.name.clone()), crossing)
            }
        };
        Ok(Fitted {
            name: line.name.clone(),
            short: line.short.clone(),
            cell: line.cell.clone(),
            line: fit,
            slope,
            r2: r2(&observed.places, &observed.means(), |place| fit.at(place)),
            points: line.points.iter().zip(&observed.values).filter_map(measured).collect(),
            baseline,
            crossing,
            saturation: observed.saturation(self.resamples, self.seed),
        })
    }

    /// Where a line meets another, both fitted on the questions that all of their points have.
    fn crossing(
        &self,
        line: &Series,
        points: &[Values],
        other: &str,
        other_places: Vec<f64>,
        others: &[Values],
    ) -> Result<Option<Crossing>, Failure> {
        let ids = common(&points.iter().chain(others).collect::<Vec<_>>());
        if ids.is_empty() {
            return Err(self.apart(&format!("`{}` and `{other}`", line.name)));
        }
        let of = |tables: &[Values]| tables.iter().map(|table| values(table, &ids)).collect();
        let (own, other) =
            (Observed { places: places(line), values: of(points) }, Observed { places: other_places, values: of(others) });
        Ok(own.crossing(&other, self.resamples, self.seed))
    }

    /// The standard deviation of a point's mean over its inputs.
    fn spread(&self, point: &Point, ids: &[&str]) -> Option<f64> {
        let mean = |input: &usize| {
            let table = self.values.get(*input)?;
            let own: Vec<f64> = ids.iter().filter_map(|id| table.get(*id).copied()).collect();
            (!own.is_empty()).then(|| average(&own))
        };
        spread(&point.inputs.iter().filter_map(mean).collect::<Vec<_>>())
    }

    fn apart(&self, what: &str) -> Failure {
        Failure::data(format!("{what} have no question in common with a value of `{}`", self.column))
            .hint("points are compared on the same `questions`, by `question_id`")
    }
}

fn places(line: &Series) -> Vec<f64> {
    line.points.iter().map(|point| point.x.log2()).collect()
}

/// The questions that all tables have, in the order of their ids.
fn common<'a>(tables: &[&'a Values]) -> Vec<&'a str> {
    let Some((first, rest)) = tables.split_first() else { return Vec::new() };
    first.keys().filter(|id| rest.iter().all(|table| table.contains_key(*id))).map(String::as_str).collect()
}

/// The values of some questions, which the table has.
fn values(table: &Values, ids: &[&str]) -> Vec<f64> {
    ids.iter().filter_map(|id| table.get(*id).copied()).collect()
}

/// The row that points to a plot: the same wherever the plot is the same.
///
/// # Errors
/// A bug, if the schema is another.
pub(crate) fn plot_row(schema: SchemaRef, svg: &str) -> Result<RecordBatch, Failure> {
    let digest = blake3::hash(svg.as_bytes()).to_hex().to_string();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![key::row_id("scaling", 0, &[&digest], 0, 0)])),
        Arc::new(StringArray::from(vec![format!("{PLOT}/{FILE}")])),
        Arc::new(StringArray::from(vec![digest])),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, AsArray},
        datatypes::{Float64Type, Schema},
    };
    use ingrain_engine::operator::{Inputs, Operator};
    use serde_json::json;

    use super::*;

    /// Of ten questions the first `right` are correct.
    fn answers(right: usize) -> Values {
        (0..10).map(|n| (format!("q{n}"), f64::from(u8::from(n < right)))).collect()
    }

    const CELLS: [(&str, &str); 5] = [
        ("exam[].p", "arm=qa,tokens=100k"),
        ("exam[].p", "arm=qa,tokens=200k"),
        ("exam[].p", "arm=qa,tokens=400k"),
        ("exam[].p", "arm=qa,tokens=800k"),
        ("rag.p", ""),
    ];

    /// Binds and fits, and gives the rows of both tables and the plot.
    fn scaled(config: serde_json::Value, cells: &[(&str, &str)], values: &[Values]) -> Result<[RecordBatch; 2], String> {
        let config: Scaling = serde_json::from_value(config).unwrap();
        let columns =
            ["question_id", "correct"].into_iter().zip([arrow::datatypes::DataType::Utf8, arrow::datatypes::DataType::Boolean]);
        let fields: Vec<_> = columns.map(|(name, kind)| arrow::datatypes::Field::new(name, kind, true)).collect();
        let tables = cells::inputs(cells, &Arc::new(Schema::new(fields)));
        let layout = Layout::of(&config, &tables).map_err(|mistakes| mistakes[0].message.clone())?;
        let inputs = Inputs { ports: [(super::super::PREDICTIONS.to_owned(), tables)].into(), ..Inputs::default() };
        let outputs = config.bind(&inputs).map_err(|mistakes| mistakes[0].message.clone())?;
        let scaled = Scaled::new(&config, &layout, values, 7).map_err(|failure| failure.message)?;
        assert!(scaled.plot(&config.x, &config.y).svg().unwrap().contains("accuracy"));
        let fits = scaled.fits(outputs[0].schema.clone(), &layout.by).unwrap();
        Ok([fits, scaled.points(outputs[1].schema.clone(), &layout.by, !config.pool.is_empty()).unwrap()])
    }

    fn number(rows: &RecordBatch, column: &str, row: usize) -> Option<f64> {
        let column = rows.column_by_name(column).expect(column).as_primitive::<Float64Type>();
        column.is_valid(row).then(|| column.value(row))
    }

    fn text<'a>(rows: &'a RecordBatch, column: &str, row: usize) -> Option<&'a str> {
        let column = rows.column_by_name(column).expect(column).as_string::<i32>();
        column.is_valid(row).then(|| column.value(row))
    }

    #[test]
    fn a_line_with_its_points_and_where_it_meets_rag() {
        let values = [answers(2), answers(4), answers(6), answers(8), answers(7)];
        let [fits, points] = scaled(json!({ "x": "tokens", "baseline": "rag.p" }), &CELLS, &values).unwrap();
        assert_eq!((fits.num_rows(), points.num_rows()), (1, 4));
        assert_eq!((text(&fits, "arm", 0), text(&fits, "line", 0)), (Some("qa"), Some("exam[arm=qa].p")));
        let near = |column: &str, value: f64| {
            let found = number(&fits, column, 0).unwrap();
            assert!((found - value).abs() < 1e-9 * value.abs().max(1.0), "{column}: {found}");
        };
        near("slope", 0.2);
        near("r2", 1.0);
        // 0.7 lies half a doubling over 0.6, at 400k.
        near("crossing", 400_000.0 * 2f64.sqrt());
        assert_eq!((text(&fits, "baseline", 0), number(&fits, "limit", 0)), (Some("rag.p"), None));
        let (low, high) = (number(&fits, "low", 0).unwrap(), number(&fits, "high", 0).unwrap());
        assert!(low < 0.2 && high > 0.2, "{low} {high}");
        assert_eq!((text(&points, "tokens", 3), number(&points, "x", 3)), (Some("800k"), Some(800_000.0)));
        assert_eq!(number(&points, "value", 3), Some(0.8));
        assert!(points.column_by_name("spread").is_none());
    }

    #[test]
    fn seeds_are_pooled_and_their_spread_is_told() {
        let cells =
            [("e[].p", "size=1,seed=1"), ("e[].p", "size=1,seed=2"), ("e[].p", "size=2,seed=1"), ("e[].p", "size=2,seed=2")];
        let values = [answers(2), answers(4), answers(7), answers(7)];
        let [fits, points] = scaled(json!({ "x": "size", "pool": ["seed"] }), &cells, &values).unwrap();
        assert_eq!((fits.num_rows(), text(&fits, "line", 0), text(&fits, "baseline", 0)), (1, Some("e.p"), None));
        assert!((number(&fits, "slope", 0).unwrap() - 0.4).abs() < 1e-12);
        assert!((number(&points, "value", 0).unwrap() - 0.3).abs() < 1e-12);
        assert!((number(&points, "spread", 0).unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert_eq!(number(&points, "spread", 1), Some(0.0));
    }

    #[test]
    fn one_line_is_followed_to_another() {
        let cells = [("e[].p", "arm=a,size=1"), ("e[].p", "arm=a,size=2"), ("e[].p", "arm=b,size=1"), ("e[].p", "arm=b,size=2")];
        let values = [answers(5), answers(6), answers(3), answers(5)];
        let [fits, _] = scaled(json!({ "x": "size", "baseline": { "arm": "a" } }), &cells, &values).unwrap();
        // 0.5 + 0.1 z and 0.3 + 0.2 z meet after two doublings.
        assert_eq!((text(&fits, "baseline", 0), text(&fits, "baseline", 1)), (None, Some("e[arm=a].p")));
        assert!((number(&fits, "crossing", 1).unwrap() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn lines_are_over_the_questions_that_all_points_have() {
        let mut last = answers(8);
        last.remove("q0");
        let values = [answers(2), answers(4), answers(6), last, answers(7)];
        let [_, points] = scaled(json!({ "x": "tokens", "baseline": "rag.p" }), &CELLS, &values).unwrap();
        assert!((number(&points, "value", 0).unwrap() - 1.0 / 9.0).abs() < 1e-12);
        let none = [answers(2), Values::new(), answers(6), answers(8), answers(7)];
        assert_eq!(
            scaled(json!({ "x": "tokens", "baseline": "rag.p" }), &CELLS, &none).unwrap_err(),
            "the points of `exam[arm=qa].p` have no question in common with a value of `correct`"
        );
        let none = [answers(2), answers(4), answers(6), answers(8), Values::new()];
        assert_eq!(
            scaled(json!({ "x": "tokens", "baseline": "rag.p" }), &CELLS, &none).unwrap_err(),
            "`exam[arm=qa].p` and `rag.p` have no question in common with a value of `correct`"
        );
    }

    #[test]
    fn mistakes_of_the_config_are_named() {
        let values = [answers(2), answers(4), answers(6), answers(8), answers(7)];
        let wrong = |config| scaled(config, &CELLS, &values).unwrap_err();
        assert_eq!(
            wrong(json!({ "x": "tokens", "y": "score", "baseline": "rag.p" })),
            "`exam.p` has no column `score` of booleans or numbers"
        );
        let taken = scaled(json!({ "x": "x" }), &[("e[].p", "x=1"), ("e[].p", "x=2")], &values[..2]).unwrap_err();
        assert_eq!(taken, "the axis `x` has the name of another column of the output");
        let taken = [("e[].p", "slope=a,size=1"), ("e[].p", "slope=a,size=2")];
        assert_eq!(
            scaled(json!({ "x": "size" }), &taken, &values[..2]).unwrap_err(),
            "the axis `slope` has the name of another column of the output"
        );
        let taken = scaled(json!({ "x": "n" }), &[("e[].p", "n=1"), ("e[].p", "n=2")], &values[..2]).unwrap_err();
        assert_eq!(taken, "the axis `n` has the name of another column of the output");
    }
}
