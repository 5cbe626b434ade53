//! What a stage reads.

use std::collections::HashSet;

use super::tree::{Entry, Kind, Node};
use super::{matrix, scalar::plain};
use crate::{
    diagnostic::{Diagnostic, Span},
    operator::{Cell, DEFAULT_OUTPUT},
};

/// The longest name of a stage, in characters.
const LONGEST_NAME: usize = 64;
const HELP: &str = "write `stage`, `stage.output`, `stage[axis=value].output`, a list of these, or a map of ports to them";

/// A port as it stands under `from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name; `None` for the operator's first port (`from: stage`).
    pub port: Option<String>,
    /// Where the name stands; for the first port the word `from`.
    pub port_span: Span,
    /// Whether it is written as a list.
    pub list: bool,
    /// What arrives there; more than one only for a list.
    pub inputs: Vec<Reference>,
}

/// An output of a stage, as it is named by another one. Whether it exists is found out when the graph is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The stage, as it is named in the file.
    pub stage: String,
    /// The cell of its matrix; of one that reads a file, what it says of the cell.
    pub cell: Cell,
    /// The output: [`DEFAULT_OUTPUT`] where none is written.
    pub output: String,
    /// Where it stands.
    pub span: Span,
}

impl Reference {
    /// Reads `stage`, `stage.output` or `stage[axis=value,...].output`; `None` if `text` is something else. It stands nowhere.
    pub fn parse(text: &str) -> Option<Self> {
        let (stage, rest) = text.split_at(text.find(['[', '.']).unwrap_or(text.len()));
        let (cell, rest) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (inner, rest) = rest.split_once(']')?;
                let cell = inner.split(',').map(coordinate).collect::<Option<Vec<_>>>()?;
                let is_twice =
                    |(place, (axis, _)): (usize, &(String, String))| cell[..place].iter().any(|(other, _)| other == axis);
                if cell.iter().enumerate().any(is_twice) {
                    return None;
                }
                (cell, rest)
            }
            None => (Vec::new(), rest),
        };
        let output = if rest.is_empty() { DEFAULT_OUTPUT } else { rest.strip_prefix('.')? };
        let is_sound = is_name(stage) && is_name(output);
        is_sound.then(|| Self { stage: stage.to_owned(), cell: Cell(cell), output: output.to_owned(), span: Span::default() })
    }

    /// The name of the stage's cell.
    pub fn stage_name(&self) -> String {
        format!("{}{}", self.stage, self.cell)
    }
}

/// `axis=value`, the value as it names a cell.
fn coordinate(text: &str) -> Option<(String, String)> {
    let (axis, label) = text.split_once('=')?;
    let (axis, label) = (axis.trim(), label.trim());
    let label =
        plain(label).ok().and_then(|kind| matrix::label(&kind)).filter(|label| !label.is_empty()).unwrap_or(label.to_owned());
    (!axis.is_empty() && !label.is_empty()).then(|| (axis.to_owned(), label))
}

/// Whether `name` can name a stage or an output: `[a-z][a-z0-9_]*`, at most 64 characters.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Reads the value of `from`. Nothing is said about the places in `broken`.
pub(super) fn ports(from: &Entry, broken: &HashSet<Span>, diagnostics: &mut Vec<Diagnostic>) -> Vec<PortSpec> {
    let mut reader = Reader { broken, diagnostics };
    match &from.value.kind {
        Kind::Mapping(entries) => {
            entries.iter().map(|entry| reader.port(Some(&entry.key), entry.key_span, &entry.value)).collect()
        }
        _ => vec![reader.port(None, from.key_span, &from.value)],
    }
}

struct Reader<'a> {
    broken: &'a HashSet<Span>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn port(&mut self, name: Option<&str>, port_span: Span, value: &Node) -> PortSpec {
        let (list, inputs) = match &value.kind {
            Kind::Sequence(items) => {
                if items.is_empty() {
                    let subject = name.map_or("`from`".to_owned(), |name| format!("`from.{name}`"));
                    self.diagnostics.push(Diagnostic::at(value.span, format!("{subject} must not be empty")).help(HELP));
                }
                (true, items.iter().filter_map(|item| self.reference(item)).collect())
            }
            _ => (false, self.reference(value).into_iter().collect()),
        };
        PortSpec { port: name.map(str::to_owned), port_span, list, inputs }
    }

    fn reference(&mut self, node: &Node) -> Option<Reference> {
        if self.broken.contains(&node.span) {
            return None;
        }
        let Some(text) = node.as_str() else {
            let found = match node.kind {
                Kind::Null => "nothing",
                Kind::Bool(_) => "`true` or `false`",
                Kind::Sequence(_) => "a list",
                Kind::Mapping(_) => "a mapping",
                _ => "a number",
            };
            let message = format!("`from`: expected the name of a stage, found {found}");
            self.diagnostics.push(Diagnostic::at(node.span, message).help(HELP));
            return None;
        };
        if let Some(reference) = Reference::parse(text) {
            return Some(Reference { span: node.span, ..reference });
        }
        let shown: String = text.chars().take(LONGEST_NAME).collect();
        let diagnostic = Diagnostic::at(node.span, format!("`{shown}` names no output of a stage")).help(HELP);
        self.diagnostics.push(diagnostic);
        None
    }
}
