//! How a metric grows with a quantity: lines over the cells of a matrix.

mod layout;
mod line;
mod plot;
mod report;
mod saturation;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use async_trait::async_trait;
use ingrain_engine::{
    diagnostic::quoted,
    digest::undigested,
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{Task, TaskContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{layout::Layout, report::Scaled};
use crate::{
    baseline::Baseline,
    by_question::{comparable, comparables, read},
    cells,
    columns::blocking,
};

const PREDICTIONS: &str = "predictions";
const POINTS: &str = "points";
const PLOT: &str = "plot";
/// The one file in the folder `plot`.
const FILE: &str = "scaling.svg";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Scaling>("scaling", 1).gathers().reported();

/// Fits a metric against the logarithm of a quantity, a line for each arm of a study, and draws it.
///
/// It reads the predictions of all cells of a `matrix`. One axis is the quantity (`x`: tokens, usually), the others tell
/// lines apart. Each line is the least-squares line through the mean values at log2(x): `slope` is what a doubling of x
/// adds. Intervals are 95 % percentile bootstraps over questions: questions are drawn with replacement, the same for all
/// points, and the line is fitted anew; so they say how sure a slope is for these very students on more questions like
/// these, not how much another training would change it. A line is over the questions that all its points have a value of.
/// Where a table has several rows for a question, their average is taken.
///
/// Beside the line stands a curve that levels off, `limit - scale * x^-exponent`, for lines with four different x at least
/// that bend. It has three parameters: over so few points it fits well nearly always, and `limit` is worth no more than
/// its interval; one above all that the metric can reach says that no levelling off is seen. None is given where the points
/// bend no more than a line does, since any limit far away fits as well.
///
/// With a `baseline`, `crossing` is the x at which a line meets it: the tokens after which a student is as good as RAG. It
/// lies outside of the points where a line has to be followed there, and is null where that is more than 1,024 times, or
/// where they never meet. Its ends are null where they lie there.
///
/// # Ports
/// - `predictions`: `predictions` of an `evaluate` stage with a matrix, or tables with `question_id` and the column `y`; and
///   those of a baseline. (Tables of scores without questions, as `evaluate` gives by default, are not read yet.)
///
/// # Outputs
/// - default: a row per line: a column for each axis of `by`, `line` (the output with its cell), `slope`, `low`, `high` (of the
///   slope), `intercept` (the line's value at x = 1), `r2` (the share of the variance of the mean values that the line explains;
///   null if they are all equal), `points`, `n` (questions), `baseline` (its name), `crossing`, `crossing_low`, `crossing_high`
///   (units of x), `limit`, `limit_low`, `limit_high`, `limit_r2`, `scale`, `exponent` (of the curve; null without one).
/// - `points`: a row per point: a column for each axis of `by`, `line`, a column for the axis `x` with its label, `x` (its
///   number), `value` (the mean), `low`, `high`, with `pool` `spread` (the standard deviation of the mean over the pooled cells;
///   null for a single one), `n`.
/// - `plot`: one row: `uri` (of the file, relative to the artifact), `digest` (BLAKE3 of the file). The file, an SVG, lies beside
///   it as `plot/scaling.svg`.
///
/// # Memory
/// The ids of all questions with a number each, for every table.
///
/// # Example
/// ```yaml
/// curve:
///   op: scaling
///   from: { predictions: [closed.predictions, rag.predictions] }
///   x: tokens
///   pool: [seed]
///   baseline: rag.predictions
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// The axis that is the quantity. Its labels are numbers above 0, or sizes such as `600k`.
    pub x: String,
    /// The column whose mean is fitted, of booleans (true is 1) or numbers. Default: `correct`.
    #[serde(default = "default_y")]
    pub y: String,
    /// The axis, or axes, that tell lines apart. Default: all but `x` and `pool`.
    #[serde(default)]
    pub by: Option<Axes>,
    /// Axes, such as `[seed]`: cells that differ only on these are one point; the values of a question are averaged over them.
    /// Default: none.
    #[serde(default)]
    pub pool: Vec<String>,
    /// What lines are followed to: an input that hasn't the axis `x`, by its name as written in the list (`rag.predictions`) or
    /// its place among the inputs from 0; or a mapping of axes to labels, `{ arm: qa }`, for the line that has these. Of several,
    /// a line takes the one that agrees with it on all other axes. Default: none.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// How many resamples an interval is made of. Default: 1,000.
    #[serde(default = "default_resamples")]
    #[schemars(range(min = 1, max = 100_000))]
    pub resamples: u32,
}

/// One axis or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Axes {
    /// One.
    One(String),
    /// A list.
    Several(Vec<String>),
}

impl Axes {
    fn names(&self) -> &[String] {
        match self {
            Self::One(axis) => std::slice::from_ref(axis),
            Self::Several(axes) => axes,
        }
    }
}

fn default_y() -> String {
    "correct".to_owned()
}

fn default_resamples() -> u32 {
    1000
}

impl Operator for Scaling {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PREDICTIONS, &[("question_id", DataType::Utf8)]).many()])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let tables = inputs.all(PREDICTIONS);
        let mut mistakes = Vec::new();
        if self.resamples == 0 {
            mistakes.push(Invalid::new("/resamples", "an interval needs resamples").hint("leave it out for 1,000"));
        }
        for table in tables.iter().filter(|table| !comparable(&table.schema, &self.y)) {
            mistakes.push(
                Invalid::new("/y", format!("`{}` has no column `{}` of booleans or numbers", cells::output_name(table), self.y))
                    .hint(format!("it has {}", quoted(comparables(&table.schema)))),
            );
        }
        let layout = Layout::of(self, tables).unwrap_or_else(|wrong| {
            mistakes.extend(wrong);
            Layout::default()
        });
        let x = [self.x.clone()];
        mistakes.extend(cells::check_columns(&layout.by, &[self.line_fields(&[]), self.point_fields(&[], &[])].concat()));
        mistakes.extend(cells::check_columns(&x, &self.point_fields(&[], &[])));
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(vec![
            Output::new(DEFAULT_OUTPUT, self.line_fields(&layout.by)),
            Output::new(POINTS, self.point_fields(&layout.by, &x)),
            Output::new(PLOT, plot_fields()),
        ])
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let layout = Layout::of(self, inputs.all(PREDICTIONS)).unwrap_or_default();
        Lowering::Task(Arc::new(Fit { config: self.clone(), layout }))
    }

    fn draws(&self) -> bool {
        true
    }
}

impl Scaling {
    fn line_fields(&self, by: &[String]) -> Vec<Field> {
        let number = |name: &str, nullable: bool| Field::new(name, DataType::Float64, nullable);
        let count = |name: &str| Field::new(name, DataType::Int64, false);
        let mut fields = vec![Field::new("row_id", DataType::Utf8, false)];
        fields.extend(cells::fields(by));
        fields.push(Field::new("line", DataType::Utf8, false));
        fields.extend(["slope", "low", "high", "intercept"].map(|name| number(name, false)));
        fields.push(number("r2", true));
        fields.extend(["points", "n"].map(count));
        fields.push(Field::new("baseline", DataType::Utf8, true));
        fields.extend(["crossing", "crossing_low", "crossing_high"].map(|name| number(name, true)));
        fields.extend(["limit", "limit_low", "limit_high", "limit_r2", "scale", "exponent"].map(|name| number(name, true)));
        fields
    }

    fn point_fields(&self, by: &[String], x: &[String]) -> Vec<Field> {
        let number = |name: &str, nullable: bool| Field::new(name, DataType::Float64, nullable);
        let mut fields = vec![Field::new("row_id", DataType::Utf8, false)];
        fields.extend(cells::fields(by));
        fields.push(Field::new("line", DataType::Utf8, false));
        fields.extend(x.iter().map(|axis| Field::new(axis, DataType::Utf8, false)));
        fields.extend(["x", "value", "low", "high"].map(|name| number(name, false)));
        if !self.pool.is_empty() {
            fields.push(number("spread", true));
        }
        fields.push(Field::new("n", DataType::Int64, false));
        fields
    }
}

fn plot_fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        undigested(Field::new("uri", DataType::Utf8, false)),
        Field::new("digest", DataType::Utf8, false),
    ]
}

#[derive(Debug)]
struct Fit {
    config: Scaling,
    layout: Layout,
}

#[async_trait]
impl Task for Fit {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let mut tables = read(context, PREDICTIONS, &[&self.config.y]).await?;
        let values = tables.iter_mut().map(|columns| columns.remove(&self.config.y).unwrap_or_default()).collect::<Vec<_>>();
        let (config, layout, seed) = (self.config.clone(), self.layout.clone(), context.seed);
        let scaled = blocking(move || Scaled::new(&config, &layout, &values, seed)).await??;
        let by = &self.layout.by;
        context.write(DEFAULT_OUTPUT, scaled.fits(context.schema(DEFAULT_OUTPUT)?, by)?).await?;
        context.write(POINTS, scaled.points(context.schema(POINTS)?, by, !self.config.pool.is_empty())?).await?;
        let svg = scaled
            .plot(&self.config.x, &self.config.y)
            .svg()
            .map_err(|error| Failure::bug(format!("the plot can't be drawn: {error}")))?;
        let folder = context.scratch().join(PLOT);
        tokio::fs::create_dir_all(&folder).await?;
        tokio::fs::write(folder.join(FILE), &svg).await?;
        context.put_folder(PLOT, PLOT, &folder).await?;
        context.write(PLOT, report::plot_row(context.schema(PLOT)?, &svg)?).await
    }
}
