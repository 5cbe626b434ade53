//! Which inputs are the points of which line.

use ingrain_engine::{
    diagnostic::quoted,
    operator::{Cell, Input, Invalid},
    spec::Size,
};

use super::Scaling;
use crate::cells::{self, Group, grouped, unknown_axis};

/// The lines of a scaling, and what they are compared with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Layout {
    /// The axes that tell lines apart: columns of the outputs.
    pub(crate) by: Vec<String>,
    pub(crate) lines: Vec<Series>,
    pub(crate) baselines: Vec<Flat>,
}

/// The points of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    /// The output with its cell, without x and pooled axes.
    pub(crate) name: String,
    /// The same in few words, as far as they tell the lines apart.
    pub(crate) short: String,
    /// The output without a cell.
    pub(crate) output: String,
    pub(crate) cell: Cell,
    /// In ascending order of x.
    pub(crate) points: Vec<Point>,
    pub(crate) baseline: Option<Baseline>,
}

/// What a line is followed to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Baseline {
    /// Another line, by its place.
    Line(usize),
    /// What doesn't depend on x, by its place.
    Flat(usize),
}

/// Inputs at an x.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) label: String,
    pub(crate) x: f64,
    /// Their places at the port; several where cells are pooled.
    pub(crate) inputs: Vec<usize>,
}

/// Inputs that have no x.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Flat {
    pub(crate) name: String,
    pub(crate) inputs: Vec<usize>,
}

impl Layout {
    /// Puts the inputs in lines.
    ///
    /// # Errors
    /// All that is wrong with the axes, the points of lines, and the baseline.
    pub(crate) fn of(config: &Scaling, inputs: &[Input]) -> Result<Self, Vec<Invalid>> {
        let axes = cells::axes(inputs.iter().map(|input| &input.cell));
        check_axes(config, &axes)?;
        let apart: Vec<&str> = config.pool.iter().chain([&config.x]).map(String::as_str).collect();
        let groups = grouped(inputs, &apart);
        let is_line = |group: &Group| group.inputs.iter().any(|(_, labels)| labels.label(&config.x).is_some());
        let selected = match &config.baseline {
            None => None,
            Some(baseline) => Some(baseline.select(inputs, &groups)?),
        };
        let is_baseline = |place: usize| selected.as_ref().is_some_and(|selected| selected.groups.contains(&place));

        let mut mistakes = Vec::new();
        let (mut layout, mut places) = (Self::default(), Vec::new());
        for (place, group) in groups.iter().enumerate() {
            if is_line(group) {
                match points(group, &config.x) {
                    Ok(points) => layout.lines.push(Series {
                        name: group.name.clone(),
                        short: group.name.clone(),
                        output: group.output.clone(),
                        cell: group.cell.clone(),
                        points,
                        baseline: None,
                    }),
                    Err(wrong) => mistakes.push(wrong),
                }
                places.push(Baseline::Line(layout.lines.len().saturating_sub(1)));
            } else if is_baseline(place) {
                places.push(Baseline::Flat(layout.baselines.len()));
                let inputs = group.inputs.iter().map(|(input, _)| *input).collect();
                layout.baselines.push(Flat { name: group.name.clone(), inputs });
            } else {
                mistakes.push(
                    Invalid::new("/from", format!("`{}` has no axis `{}`, so it is no point of a line", group.name, config.x))
                        .hint("name it as `baseline`, or leave it out"),
                );
                places.push(Baseline::Flat(0));
            }
        }
        let by = cells::axes(groups.iter().filter(|group| is_line(group)).map(|group| &group.cell));
        layout.by = config.by.as_ref().map_or(by, |by| by.names().to_vec());
        mistakes.extend(layout.collision());
        if let (Some(selected), true) = (&selected, mistakes.is_empty()) {
            for (place, group) in groups.iter().enumerate().filter(|(place, _)| !is_baseline(*place)) {
                let (Baseline::Line(line), of) = (places[place], selected.of(group, &groups)) else { continue };
                match of {
                    Ok(baseline) => layout.lines[line].baseline = Some(places[baseline]),
                    Err(wrong) => mistakes.push(wrong),
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        layout.shorten();
        Ok(layout)
    }

    /// Two lines that only an axis tells apart which isn't in `by`.
    fn collision(&self) -> Option<Invalid> {
        let same = |one: &Series, other: &Series| {
            one.output == other.output && self.by.iter().all(|axis| one.cell.label(axis) == other.cell.label(axis))
        };
        let (one, other) = self.lines.iter().enumerate().find_map(|(place, line)| {
            let other = self.lines[..place].iter().find(|other| same(other, line) && other.cell != line.cell)?;
            Some((other, line))
        })?;
        let differs = |axis: &&str| one.cell.label(axis) != other.cell.label(axis);
        let axes: Vec<&str> = one.cell.0.iter().map(|(axis, _)| axis.as_str()).filter(differs).collect();
        Some(
            Invalid::new("/by", format!("`{}` and `{}` would be the same line", one.name, other.name))
                .hint(format!("they differ on {}, which belongs in `by` or `pool`", quoted(axes))),
        )
    }

    /// Labels are enough of a name where all lines are of one output.
    fn shorten(&mut self) {
        let one = self.lines.windows(2).all(|pair| pair[0].output == pair[1].output);
        for line in self.lines.iter_mut().filter(|line| one && !line.cell.0.is_empty()) {
            let labels: Vec<&str> = self.by.iter().filter_map(|axis| line.cell.label(axis)).collect();
            line.short = labels.join(", ");
        }
    }
}

fn check_axes(config: &Scaling, axes: &[String]) -> Result<(), Vec<Invalid>> {
    let mut mistakes = cells::check_pool(&config.pool, axes);
    if !axes.contains(&config.x) {
        mistakes.push(unknown_axis("/x", &config.x, axes));
    }
    if let Some(place) = config.pool.iter().position(|axis| *axis == config.x) {
        let field = format!("/pool/{place}");
        mistakes.push(Invalid::new(&field, format!("`{}` is `x`, so its cells can't count as one", config.x)));
    }
    for axis in config.by.iter().flat_map(|by| by.names()) {
        if !axes.contains(axis) {
            mistakes.push(unknown_axis("/by", axis, axes));
        } else if *axis == config.x {
            mistakes.push(Invalid::new("/by", format!("`{axis}` is `x`, and can't tell lines apart")));
        } else if config.pool.contains(axis) {
            mistakes.push(Invalid::new("/by", format!("`{axis}` is pooled, so it can't tell lines apart")));
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// The points of a line, in ascending order of x.
fn points(group: &Group, axis: &str) -> Result<Vec<Point>, Invalid> {
    let mut points: Vec<Point> = Vec::new();
    for (input, labels) in &group.inputs {
        let label = labels.label(axis).unwrap_or_default();
        match points.iter_mut().find(|point| point.label == label) {
            Some(point) => point.inputs.push(*input),
            None => {
                let x = number(label).ok_or_else(|| {
                    Invalid::new("/x", format!("the label `{label}` on the axis `{axis}` is no number above 0"))
                        .hint("a label of x says how much it is: `600k`, `1.2M`, `0.5`; what has no x can be the `baseline`")
                })?;
                points.push(Point { label: label.to_owned(), x, inputs: vec![*input] });
            }
        }
    }
    points.sort_by(|one, other| one.x.total_cmp(&other.x));
    let (first, last) = (points.first(), points.last());
    if let (Some(first), true) = (first, first.map(|point| point.x) == last.map(|point| point.x)) {
        return Err(Invalid::new("/x", format!("the line of `{}` has one point only, at {axis}={}", group.name, first.label))
            .hint(format!("a line takes two different values of `{axis}` at least")));
    }
    Ok(points)
}

/// What a label says, if that is a size or a number, and above 0.
fn number(label: &str) -> Option<f64> {
    let size = label.parse::<Size>().ok().map(|size| size.0 as f64);
    let digits = label.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let number = size.or_else(|| label.parse::<f64>().ok().filter(|_| digits))?;
    (number.is_finite() && number > 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use serde_json::json;

    use super::*;

    const CELLS: [(&str, &str); 5] = [
        ("exam[].p", "arm=qa,tokens=1.2M"),
        ("exam[].p", "arm=qa,tokens=600k"),
        ("exam[].p", "arm=mixed,tokens=600k"),
        ("exam[].p", "arm=mixed,tokens=1.2M"),
        ("rag.p", ""),
    ];

    fn layout(config: serde_json::Value, cells: &[(&str, &str)]) -> Result<Layout, String> {
        let config: Scaling = serde_json::from_value(config).unwrap();
        let inputs = cells::inputs(cells, &Arc::new(Schema::empty()));
        let said = |wrong: Invalid| format!("{}: {} ({})", wrong.field, wrong.message, wrong.hint.unwrap_or_default());
        Layout::of(&config, &inputs).map_err(|mistakes| mistakes.into_iter().map(said).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn cells_become_points_of_lines() {
        let layout = layout(json!({ "x": "tokens", "baseline": "rag.p" }), &CELLS).unwrap();
        assert_eq!(layout.by, ["arm"]);
        let found: Vec<_> = layout.lines.iter().map(|line| (line.name.as_str(), line.short.as_str())).collect();
        assert_eq!(found, [("exam[arm=qa].p", "qa"), ("exam[arm=mixed].p", "mixed")]);
        let points: Vec<_> = layout.lines[0].points.iter().map(|point| (point.x, point.inputs.clone())).collect();
        assert_eq!(points, [(600_000.0, vec![1]), (1_200_000.0, vec![0])]);
        assert_eq!(layout.baselines, [Flat { name: "rag.p".into(), inputs: vec![4] }]);
        assert_eq!(layout.lines[1].baseline, Some(Baseline::Flat(0)));
    }

    #[test]
    fn a_line_can_be_the_baseline() {
        let layout = layout(json!({ "x": "tokens", "by": "arm", "baseline": { "arm": "qa" } }), &CELLS[..4]).unwrap();
        let baselines: Vec<_> = layout.lines.iter().map(|line| line.baseline).collect();
        assert_eq!((baselines, layout.baselines.len()), (vec![None, Some(Baseline::Line(0))], 0));
    }

    #[test]
    fn pooled_cells_are_one_point() {
        let cells = [
            ("a[].p", "n=1,seed=1"),
            ("a[].p", "n=1,seed=2"),
            ("a[].p", "n=2,seed=1"),
            ("a[].p", "n=2,seed=2"),
            ("b[].p", "n=1"),
            ("b[].p", "n=4"),
        ];
        let found = layout(json!({ "x": "n", "pool": ["seed"] }), &cells).unwrap();
        assert_eq!((found.lines[0].points[0].inputs.clone(), found.lines[0].name.as_str()), (vec![0, 1], "a.p"));
        assert_eq!((found.by.len(), found.lines[1].short.as_str()), (0, "b.p"));
        let without = layout(json!({ "x": "n", "by": [] }), &cells[..4]).unwrap_err();
        assert!(
            without.contains("/by: `a[seed=1].p` and `a[seed=2].p` would be the same line (they differ on `seed`"),
            "{without}"
        );
    }

    #[test]
    fn mistakes_name_axis_label_and_line() {
        let wrong = |config| layout(config, &CELLS).unwrap_err();
        assert_eq!(
            wrong(json!({ "x": "token" })),
            "/x: no input has an axis `token` (did you mean `tokens`? there are `arm`, `tokens`)"
        );
        assert!(wrong(json!({ "x": "tokens" })).starts_with("/from: `rag.p` has no axis `tokens`, so it is no point of a line"));
        assert!(
            wrong(json!({ "x": "arm", "baseline": "rag.p" })).starts_with("/x: the label `qa` on the axis `arm` is no number")
        );
        assert!(wrong(json!({ "x": "tokens", "pool": ["tokens"] })).starts_with("/pool/0: `tokens` is `x`"));
        assert!(wrong(json!({ "x": "tokens", "by": "tokens" })).starts_with("/by: `tokens` is `x`"));
        assert!(wrong(json!({ "x": "tokens", "by": ["size"] })).starts_with("/by: no input has an axis `size`"));
        assert!(wrong(json!({ "x": "tokens", "by": "arm", "pool": ["arm"] })).starts_with("/by: `arm` is pooled"));
        assert!(wrong(json!({ "x": "tokens", "baseline": "ragged" })).starts_with("/baseline: the baseline is none"));
        assert!(
            wrong(json!({ "x": "tokens", "baseline": { "arm": "docs" } })).starts_with("/baseline/arm: no input has the label")
        );
        let one = layout(json!({ "x": "tokens" }), &CELLS[1..4]).unwrap_err();
        assert_eq!(
            one,
            "/x: the line of `exam[arm=qa].p` has one point only, at tokens=600k (a line takes two different values of `tokens` \
             at least)"
        );
        let none = layout(json!({ "x": "tokens" }), &CELLS[4..]).unwrap_err();
        assert_eq!(none, "/x: no input has an axis `tokens` (none is a cell of a `matrix`)");
    }

    #[test]
    fn labels_are_sizes_and_numbers() {
        for (label, value) in [("600k", 6e5), ("1.2M", 1.2e6), ("32Ki", 32768.0), ("0.25", 0.25), ("1e-5", 1e-5), ("7", 7.0)] {
            assert_eq!(number(label), Some(value), "{label}");
        }
        for label in ["0", "-1", "small", "inf", "nan", "", "1e999", "0.0"] {
            assert_eq!(number(label), None, "{label}");
        }
    }
}
