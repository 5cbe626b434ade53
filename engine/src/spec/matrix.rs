//! Stages that are made once for each cell of a matrix.
//!
//! A stage has its own axes (`matrix`), and those of the stages that it reads: it is a natural join of their cells, which meet
//! on the axes that they share and cross on the others. A stage that gathers reads all cells and has its own axes only.

use std::collections::BTreeMap;

use super::{
    from::Reference,
    tree::{Kind, Node},
    value::scalar_text,
};
use crate::{
    diagnostic::{Diagnostic, Span, nearest, quoted},
    operator::Cell,
};

/// The most cells that a stage may have.
const MOST_CELLS: usize = 4096;
/// The longest name of an axis and label of a value, in characters.
const LONGEST: usize = 64;

/// A value of a cell on one axis.
#[derive(Debug, Clone)]
pub(super) struct Coordinate {
    pub(super) axis: String,
    pub(super) label: String,
    /// The place of the value on its axis: as in a list, by name in a mapping, whose order means nothing.
    pub(super) rank: usize,
    /// What stands for `${matrix.AXIS}`, at its place in the file.
    pub(super) value: Node,
    /// Where the axis is named.
    place: Span,
}

/// A cell with the values of its axes.
pub(super) type Coordinates = Vec<Coordinate>;

/// Puts cells and their axes into the one order that follows from names and values: by axis name, then by rank.
pub(super) fn sort(cells: &mut [Coordinates]) {
    for cell in cells.iter_mut() {
        cell.sort_by(|a, b| a.axis.cmp(&b.axis));
    }
    let by = |cell: &Coordinates| cell.iter().map(|at| (at.axis.clone(), at.rank)).collect::<Vec<_>>();
    cells.sort_by_cached_key(by);
}

/// The name of a cell.
pub(super) fn cell(coordinates: &[Coordinate]) -> Cell {
    Cell(coordinates.iter().map(|at| (at.axis.clone(), at.label.clone())).collect())
}

/// The cells of a `matrix`, whose values have been put in: the product of its axes. Nothing is said
/// about what `is_broken`. `None` if something is wrong with it, which has been reported.
pub(super) fn own_cells(
    matrix: &Node,
    key_span: Span,
    is_broken: &dyn Fn(&Node) -> bool,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Vec<Coordinates>> {
    if is_broken(matrix) {
        return None;
    }
    let Kind::Mapping(axes) = &matrix.kind else {
        diagnostics.push(
            Diagnostic::at(matrix.span, "`matrix` is a mapping of axes to their values")
                .help("write `matrix: { tokens: [1M, 4M] }`, and `\"${matrix.tokens}\"` where the value goes"),
        );
        return None;
    };
    if axes.is_empty() {
        diagnostics.push(Diagnostic::at(key_span, "`matrix` has no axis").help("write `matrix: { tokens: [1M, 4M] }`"));
        return None;
    }
    let before = diagnostics.len();
    let mut cells = vec![Coordinates::new()];
    for axis in axes {
        if !is_word(&axis.key) {
            diagnostics.push(
                Diagnostic::at(axis.key_span, format!("`{}` is no name for an axis", axis.key))
                    .help("letters, digits, `_` and `-`, at most 64 of them"),
            );
        }
        let values = values(&axis.key, axis.key_span, &axis.value, diagnostics);
        if cells.len().saturating_mul(values.len()) > MOST_CELLS {
            diagnostics.push(
                Diagnostic::at(key_span, "the matrix has too many cells")
                    .help(format!("at most {MOST_CELLS} of them: take values out, or make several stages")),
            );
            break;
        }
        let longer = |cell: &Coordinates| -> Vec<Coordinates> {
            values.iter().map(|value| cell.iter().chain([value]).cloned().collect()).collect()
        };
        cells = cells.iter().flat_map(longer).collect();
    }
    (diagnostics.len() == before).then_some(cells)
}

fn values(axis: &str, place: Span, node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Vec<Coordinate> {
    let before = diagnostics.len();
    let mut found: Vec<Coordinate> = Vec::new();
    let mut add = |label: String, span: Span, value: &Node, diagnostics: &mut Vec<Diagnostic>| {
        if !is_label(&label) {
            let message = format!("axis `{axis}`: {label:?} can't stand in the name of a cell");
            let help = "give the value a name without spaces, quotes and any of `[ ] , =`: `{ name: value }`";
            diagnostics.push(Diagnostic::at(span, message).help(help));
        } else if found.iter().any(|other| other.label == label) {
            diagnostics.push(Diagnostic::at(span, format!("axis `{axis}` has `{label}` twice")));
        } else {
            found.push(Coordinate { axis: axis.to_owned(), label, rank: found.len(), value: value.clone(), place });
        }
    };
    match &node.kind {
        Kind::Sequence(items) => {
            for item in items {
                match label(&item.kind) {
                    Some(label) => add(label, item.span, item, diagnostics),
                    None => diagnostics.push(
                        Diagnostic::at(item.span, format!("axis `{axis}`: a value that is a list or a mapping needs a name"))
                            .help(format!("write `{axis}: {{ name: value, other: value }}`")),
                    ),
                }
            }
        }
        Kind::Mapping(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by(|a, b| a.key.cmp(&b.key));
            for entry in entries {
                add(entry.key.clone(), entry.key_span, &entry.value, diagnostics);
            }
        }
        _ => diagnostics.push(
            Diagnostic::at(node.span, format!("axis `{axis}` needs a list of values, or a mapping of names to values"))
                .help(format!("write `{axis}: [1M, 4M]` or `{axis}: {{ small: 1M, large: 4M }}`")),
        ),
    }
    if found.is_empty() && diagnostics.len() == before {
        diagnostics
            .push(Diagnostic::at(place, format!("axis `{axis}` has no values")).help("a stage without cells makes nothing"));
    }
    found
}

/// A scalar as it names a cell: `2.0` is `2`.
pub(super) fn label(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Float(_) => Some(Node { span: Span::default(), kind: kind.clone() }.to_json().to_string()),
        kind => scalar_text(kind),
    }
}

fn is_word(text: &str) -> bool {
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn is_label(text: &str) -> bool {
    let is_apart = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '[' | ']' | ',' | '=' | '"' | '\'' | '`');
    !text.is_empty() && text.chars().count() <= LONGEST && !text.contains(is_apart)
}

/// The cells that a reference chooses among those of the stage that it names. `None` for a mistake, which has been reported.
pub(super) fn chosen<'c>(
    reference: &Reference,
    cells: &'c [Coordinates],
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Vec<&'c Coordinates>> {
    let stage = &reference.stage;
    let mut kept: Vec<&Coordinates> = cells.iter().collect();
    for (axis, label) in &reference.cell.0 {
        let axes: Vec<&str> = cells.first().into_iter().flatten().map(|at| at.axis.as_str()).collect();
        if !axes.contains(&axis.as_str()) {
            let diagnostic = Diagnostic::at(reference.span, format!("`{stage}` has no axis `{axis}`"));
            let help = match nearest(axis, axes.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if axes.is_empty() => format!("`{stage}` has no matrix: write `{stage}`"),
                None => format!("its axes are {}", quoted(axes)),
            };
            diagnostics.push(diagnostic.label("unknown axis").help(help));
            return None;
        }
        let labels = labels(axis, cells);
        if !labels.contains(&label.as_str()) {
            let diagnostic = Diagnostic::at(reference.span, format!("`{stage}` has no cell with {axis}={label}"));
            let help = match nearest(label, labels.iter().copied()) {
                Some(near) => format!("did you mean `{axis}={near}`?"),
                None => format!("`{axis}` is one of {}", quoted(labels)),
            };
            diagnostics.push(diagnostic.label("unknown cell").help(help));
            return None;
        }
        kept.retain(|cell| cell.iter().any(|at| at.axis == *axis && at.label == *label));
    }
    Some(kept)
}

/// The labels on an axis, in the order of the file.
fn labels<'c>(axis: &str, cells: &'c [Coordinates]) -> Vec<&'c str> {
    let mut labels: Vec<&str> = Vec::new();
    for at in cells.iter().flatten().filter(|at| at.axis == axis) {
        if !labels.contains(&at.label.as_str()) {
            labels.push(&at.label);
        }
    }
    labels
}

/// What a reference brings to the stage that reads it: the chosen cells, without the axes on which it chose one.
pub(super) fn brought(reference: &Reference, chosen: &[&Coordinates]) -> Vec<Coordinates> {
    let stays = |at: &&Coordinate| reference.cell.label(&at.axis).is_none();
    chosen.iter().map(|cell| cell.iter().filter(stays).cloned().collect()).collect()
}

/// Whether the axes that cells share have the same values on both sides. `of` names who brings `more`, in messages at `span`.
pub(super) fn meet(
    cells: &[Coordinates],
    more: &[Coordinates],
    (of, span): (&str, Span),
    diagnostics: &mut Vec<Diagnostic>,
) -> bool {
    let (Some(left), Some(right)) = (cells.first(), more.first()) else { return true };
    for Coordinate { axis, .. } in left.iter().filter(|at| right.iter().any(|other| other.axis == at.axis)) {
        let values = |cells: &[Coordinates]| -> BTreeMap<String, String> {
            let at = cells.iter().flatten().filter(|at| at.axis == *axis);
            at.map(|at| (at.label.clone(), at.value.to_json().to_string())).collect()
        };
        if values(cells) == values(more) {
            continue;
        }
        let (one, other) = (labels(axis, cells), labels(axis, more));
        let mut diagnostic = Diagnostic::at(span, format!("axis `{axis}` meets other values of itself in {of}"));
        diagnostic = match one == other {
            true => diagnostic.help("the names are the same and stand for other values: give one of the axes another name"),
            false => diagnostic.help(format!(
                "{} and {}: cells meet where an axis has the same values; choose one (`stage[{axis}={}]`), or give one of the \
                 axes another name",
                quoted(one),
                quoted(other.iter().copied()),
                other.first().unwrap_or(&"")
            )),
        };
        let place = |cells: &[Coordinates]| cells.iter().flatten().find(|at| at.axis == *axis).map(|at| at.place);
        for place in [place(cells), place(more)].into_iter().flatten() {
            diagnostic = diagnostic.also(place, "this axis");
        }
        diagnostics.push(diagnostic);
        return false;
    }
    true
}

/// Joins cells on the axes that both have, and crosses them on the others. `None` if that makes too many.
pub(super) fn joined(cells: &[Coordinates], more: &[Coordinates]) -> Option<Vec<Coordinates>> {
    let agree = |one: &Coordinates, other: &Coordinates| {
        one.iter().all(|at| other.iter().all(|there| there.axis != at.axis || there.label == at.label))
    };
    let mut out = Vec::new();
    for cell in cells {
        for other in more.iter().filter(|other| agree(cell, other)) {
            if out.len() == MOST_CELLS {
                return None;
            }
            let new = other.iter().filter(|at| cell.iter().all(|there| there.axis != at.axis));
            out.push(cell.iter().chain(new).cloned().collect());
        }
    }
    Some(out)
}

/// What is said where [`joined`] gives up.
pub(super) fn too_many(span: Span) -> Diagnostic {
    Diagnostic::at(span, "the cells of what the stage reads are too many together").help(format!("at most {MOST_CELLS}"))
}

/// The name of the cell of the stage that `reference` names which belongs to a cell of its reader.
pub(super) fn counterpart(reference: &Reference, chosen: &[&Coordinates], reader: &[Coordinate]) -> Option<Cell> {
    let agrees = |there: &&&Coordinates| {
        let fits = |at: &Coordinate| {
            reference.cell.label(&at.axis).is_some() || reader.iter().any(|here| here.axis == at.axis && here.label == at.label)
        };
        there.iter().all(fits)
    };
    chosen.iter().find(agrees).map(|there| cell(there))
}
