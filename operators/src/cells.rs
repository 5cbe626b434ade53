//! Cells of a matrix that are gathered at a port.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::{DataType, Field},
};
use ingrain_engine::{
    diagnostic::{nearest, quoted},
    operator::{Cell, Input, Invalid},
};

/// Names that a message lists at most.
const LISTED: usize = 8;

/// Inputs that count as one: a cell, or the cells of a stage that differ only on pooled axes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// The output with its cell, pooled axes left out: `exam[arm=mixed].predictions`.
    pub(crate) name: String,
    /// The output without its cell: `exam.predictions`.
    pub(crate) output: String,
    /// The labels on all axes but the pooled ones.
    pub(crate) cell: Cell,
    /// Each input's place at the port, and its labels on the pooled axes.
    pub(crate) inputs: Vec<(usize, Cell)>,
}

/// Puts inputs that differ only on the axes `pool` together, in the order of the first of each.
pub(crate) fn grouped(inputs: &[Input], pool: &[&str]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (place, input) in inputs.iter().enumerate() {
        let is_pooled = |(axis, _): &(String, String)| pool.contains(&axis.as_str());
        let (pooled, kept): (Vec<_>, Vec<_>) = input.cell.0.iter().cloned().partition(is_pooled);
        let (pooled, cell) = (Cell(pooled), Cell(kept));
        let output = output_name(input);
        let other = groups.iter_mut().filter(|_| !pooled.0.is_empty()).find(|group| group.output == output && group.cell == cell);
        match other {
            Some(group) => group.inputs.push((place, pooled)),
            None => groups.push(Group { name: renamed(input, &cell), output, cell, inputs: vec![(place, pooled)] }),
        }
    }
    groups
}

/// The name of an input without its cell.
pub(crate) fn output_name(input: &Input) -> String {
    renamed(input, &Cell::default())
}

fn renamed(input: &Input, cell: &Cell) -> String {
    match input.cell.0.is_empty() {
        true => input.name.clone(),
        false => input.name.replacen(&input.cell.to_string(), &cell.to_string(), 1),
    }
}

/// The axes that any of the cells has, in the order in which they appear.
pub(crate) fn axes<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<String> {
    let mut axes: Vec<String> = Vec::new();
    for (axis, _) in cells.into_iter().flat_map(|cell| &cell.0) {
        if !axes.contains(axis) {
            axes.push(axis.clone());
        }
    }
    axes
}

/// An axis that no input has.
pub(crate) fn unknown_axis(field: &str, axis: &str, axes: &[String]) -> Invalid {
    let mistake = Invalid::new(field, format!("no input has an axis `{axis}`"));
    match axes {
        [] => mistake.hint("none is a cell of a `matrix`"),
        axes => mistake.hint(choices(axis, axes)),
    }
}

/// The nearest spelling, and what there is.
pub(crate) fn choices(word: &str, there: &[String]) -> String {
    let near = nearest(word, there.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`? "));
    format!("{}there are {}", near.unwrap_or_default(), listed(there))
}

/// Names in backticks, not too many.
pub(crate) fn listed(names: &[String]) -> String {
    let first = quoted(names.iter().take(LISTED).map(String::as_str));
    match names.len().saturating_sub(LISTED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// What is wrong with the axes that are to be pooled.
pub(crate) fn check_pool(pool: &[String], axes: &[String]) -> Vec<Invalid> {
    let unknown = pool.iter().enumerate().filter(|(_, axis)| !axes.contains(axis));
    unknown.map(|(place, axis)| unknown_axis(&format!("/pool/{place}"), axis, axes)).collect()
}

/// What is wrong if an axis has the name of a column that the output has anyway.
pub(crate) fn check_columns(axes: &[String], columns: &[Field]) -> Vec<Invalid> {
    let taken = axes.iter().filter(|axis| columns.iter().any(|column| column.name() == *axis));
    let mistake = |axis: &String| {
        Invalid::new("/from", format!("the axis `{axis}` has the name of another column of the output"))
            .hint("call the axis something else")
    };
    taken.map(mistake).collect()
}

/// A column for each axis.
pub(crate) fn fields(axes: &[String]) -> impl Iterator<Item = Field> {
    axes.iter().map(|axis| Field::new(axis, DataType::Utf8, true))
}

/// The labels on each axis, null where a cell hasn't it.
pub(crate) fn columns(axes: &[String], cells: &[&Cell]) -> Vec<ArrayRef> {
    let column = |axis: &String| Arc::new(cells.iter().map(|cell| cell.label(axis)).collect::<StringArray>()) as ArrayRef;
    axes.iter().map(column).collect()
}

/// Inputs of one schema by hand, each as its output's name (with `[]` where its cell belongs) and its cell: `arm=qa,seed=1`.
#[cfg(test)]
pub(crate) fn inputs(names: &[(&str, &str)], schema: &arrow::datatypes::SchemaRef) -> Vec<Input> {
    let input = |(name, cell): &(&str, &str)| {
        let label = |label: &str| label.split_once('=').map(|(axis, label)| (axis.to_owned(), label.to_owned()));
        let cell = Cell(cell.split(',').filter_map(label).collect());
        Input { name: name.replace("[]", &cell.to_string()), cell, schema: schema.clone() }
    };
    names.iter().map(input).collect()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;

    use super::*;

    #[test]
    fn cells_that_differ_on_pooled_axes_count_as_one() {
        let schema = Arc::new(Schema::empty());
        let names = [
            ("exam[].predictions", "arm=qa,seed=1"),
            ("exam[].predictions", "arm=qa,seed=2"),
            ("rag.predictions", ""),
            ("rag.predictions", ""),
            ("exam[].predictions", "arm=docs,seed=1"),
            ("other[].predictions", "arm=docs,seed=1"),
        ];
        let inputs = inputs(&names, &schema);
        let pooled = grouped(&inputs, &["seed"]);
        let found: Vec<_> = pooled.iter().map(|group| (group.name.as_str(), group.inputs.len())).collect();
        let expected = [
            ("exam[arm=qa].predictions", 2),
            ("rag.predictions", 1),
            ("rag.predictions", 1),
            ("exam[arm=docs].predictions", 1),
            ("other[arm=docs].predictions", 1),
        ];
        assert_eq!(found, expected);
        assert_eq!(pooled[0].output, "exam.predictions");
        assert_eq!(pooled[0].inputs[1], (1, Cell(vec![("seed".into(), "2".into())])));
        assert_eq!(grouped(&inputs, &[]).len(), 6);
        assert_eq!(grouped(&inputs, &["seed", "arm"])[0].name, "exam.predictions");
        assert_eq!(axes(inputs.iter().map(|input| &input.cell)), ["arm", "seed"]);
        let none = unknown_axis("/x", "sead", &["arm".to_owned(), "seed".to_owned()]);
        assert_eq!(none.message, "no input has an axis `sead`");
        assert_eq!(none.hint.unwrap(), "did you mean `seed`? there are `arm`, `seed`");
    }
}
