//! `${...}` in the values of a file.

use std::collections::HashSet;

use super::{
    credential,
    matrix::Coordinates,
    scalar::plain,
    schema::Parts,
    tree::{Entry, Kind, MAX_ADDED, MAX_DEPTH, Node},
};
use crate::diagnostic::{Diagnostic, Source, Span, nearest, quoted};

/// What is known of the place that a value stands at.
#[derive(Debug, Clone)]
pub(super) enum Field<'s> {
    /// No secret belongs here.
    Plain,
    /// The schema says.
    Schema(Parts<'s>),
    /// A key that is refused anyway, or a stage whose operator isn't known: nothing is said about secrets.
    Unknown,
}

impl<'s> Field<'s> {
    /// What is known of the value under `key`.
    pub(super) fn below(&self, key: &str) -> Field<'s> {
        match self {
            Field::Schema(parts) => parts.below(key).map_or(Field::Unknown, Field::Schema),
            other => other.clone(),
        }
    }
}

/// What `${matrix.x}` stands for.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// Nothing: this is no stage.
    Nowhere,
    /// It isn't known, which has been reported.
    Broken,
    /// The value on the axis of this cell.
    Cell(Coordinates),
}

/// Puts values in for `${vars.x}`, `${matrix.x}` and `${env:NAME}`.
pub(super) struct Values<'a> {
    source: &'a Source,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// The values of the axes of the cell whose values are put in.
    pub(super) matrix: Matrix,
    /// What is wrong.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Places whose value could not be found out.
    pub(super) broken: HashSet<Span>,
    vars: Vec<Entry>,
    /// Names of all variables, also of those that come further below.
    names: Vec<String>,
    added: usize,
}

impl<'a> Values<'a> {
    pub(super) fn new(source: &'a Source, env: &'a dyn Fn(&str) -> Option<String>, broken: HashSet<Span>) -> Self {
        let (diagnostics, vars, names) = (Vec::new(), Vec::new(), Vec::new());
        Self { source, env, matrix: Matrix::Nowhere, diagnostics, broken, vars, names, added: 0 }
    }

    /// Reads `vars`, with `overrides` (`vars.NAME`, value as YAML would read it) in place of what the file says. A
    /// variable may use those above it. Gives the variables as they are used.
    pub(super) fn set_vars(&mut self, vars: Option<&Entry>, overrides: &[(String, String)]) -> Option<Entry> {
        let mut entries: Vec<Entry> = vars.map(|vars| vars.value.entries().to_vec()).unwrap_or_default();
        self.names = entries.iter().map(|entry| entry.key.clone()).collect();
        for (name, text) in overrides {
            self.replace_var(&mut entries, name, text);
        }
        for entry in entries {
            let mut value = self.substitute(entry.value, &Field::Plain);
            if value.depth() > MAX_DEPTH {
                self.refuse(Diagnostic::at(value.span, format!("nested more than {MAX_DEPTH} levels deep")), value.span);
                value.kind = Kind::Null;
            }
            self.vars.push(Entry { value, ..entry });
        }
        let vars = vars?;
        let is_mapping = matches!(vars.value.kind, Kind::Mapping(_));
        let kind = if is_mapping { Kind::Mapping(self.vars.clone()) } else { vars.value.kind.clone() };
        Some(Entry { value: Node { span: vars.value.span, kind }, ..vars.clone() })
    }

    fn replace_var(&mut self, entries: &mut [Entry], name: &str, text: &str) {
        let Some(var) = name.strip_prefix("vars.") else {
            let diagnostic = Diagnostic::anywhere(format!("`--set {name}` sets no variable"));
            return self.diagnostics.push(diagnostic.help("only variables can be set: `--set vars.NAME=VALUE`"));
        };
        let Some(entry) = entries.iter_mut().find(|entry| entry.key == var) else {
            let mut message = format!("`--set {name}`: the pipeline has no variable `{var}`");
            if let Some(near) = nearest(var, self.names.iter().map(String::as_str)) {
                message.push_str(&format!("; did you mean `vars.{near}`?"));
            }
            return self.diagnostics.push(Diagnostic::anywhere(message).help(self.known_vars()));
        };
        match plain(text) {
            Ok(kind) => {
                entry.value.kind = kind;
                self.broken.remove(&entry.value.span);
            }
            Err(message) => {
                self.diagnostics.push(Diagnostic::anywhere(format!("`--set {name}`: {message}")));
                self.broken.insert(entry.value.span);
            }
        }
    }

    fn known_vars(&self) -> String {
        if self.names.is_empty() {
            return "the pipeline has no `vars`".into();
        }
        format!("variables: {}", quoted(self.names.iter().map(String::as_str)))
    }

    /// The node with everything put in. What could not be put in is null, and its place is in `broken`.
    pub(super) fn substitute(&mut self, node: Node, field: &Field<'_>) -> Node {
        if self.broken.contains(&node.span) {
            return node;
        }
        let span = node.span;
        if let Field::Schema(parts) = field
            && parts.takes_secret()
            && let Some(kind) = self.secret(&node, parts)
        {
            return Node { span, kind };
        }
        let kind = match node.kind {
            Kind::String(text) => return self.text(text, span, field),
            Kind::Sequence(items) => {
                let place = |(i, item): (usize, Node)| self.substitute(item, &field.below(&i.to_string()));
                Kind::Sequence(items.into_iter().enumerate().map(place).collect())
            }
            Kind::Mapping(entries) => {
                let place = |entry: Entry| {
                    let value = self.substitute(entry.value, &field.below(&entry.key));
                    Entry { value, ..entry }
                };
                Kind::Mapping(entries.into_iter().map(place).collect())
            }
            other => other,
        };
        Node { span, kind }
    }

    /// The value of a field for secrets, checked; `None` where it is something else that the field takes as well.
    fn secret(&mut self, node: &Node, parts: &Parts<'_>) -> Option<Kind> {
        match &node.kind {
            Kind::String(text) if is_secret_reference(text) => return Some(node.kind.clone()),
            Kind::Null => return Some(Kind::Null),
            Kind::Sequence(_) | Kind::Mapping(_) => return None,
            _ if !parts.is_secret() => return None,
            _ => {}
        }
        let diagnostic = Diagnostic::at(node.span, "a secret must not stand in a pipeline file")
            .help("write `${secret:NAME}`, and give the value in the environment variable `NAME`")
            .hide(node.span);
        self.refuse(diagnostic, node.span);
        Some(Kind::Null)
    }

    fn text(&mut self, text: String, span: Span, field: &Field<'_>) -> Node {
        let node = |kind: Kind| Node { span, kind };
        if let Some(found) = credential::in_url(&without_references(&text)) {
            self.refuse(found.diagnostic(span).hide(span), span);
            return node(Kind::Null);
        }
        if !text.contains("${") {
            return node(Kind::String(text));
        }
        let mut cursor = Cursor { source: self.source, span, from: span.start };
        let mut out = String::new();
        let mut rest = text.as_str();
        let mut whole = true;
        while let Some(at) = rest.find("${") {
            let escaped = rest[..at].ends_with('$');
            out.push_str(&rest[..at - usize::from(escaped)]);
            if escaped {
                out.push_str("${");
                rest = &rest[at + 2..];
                whole = false;
                continue;
            }
            let Some(length) = rest[at..].find('}') else {
                let place = cursor.place(&rest[at..]);
                let diagnostic = Diagnostic::at(place, "`${` without `}`").help("for the characters themselves: `$${`");
                self.refuse(diagnostic, span);
                return node(Kind::Null);
            };
            let reference = &rest[at..=at + length];
            let place = cursor.place(reference);
            let only = whole && out.is_empty() && reference.len() == text.len();
            rest = &rest[at + length + 1..];
            whole = false;
            let Some(value) = self.look_up(&reference[2..reference.len() - 1], place, span, field) else { continue };
            if only {
                return self.inserted(value, reference, span);
            }
            match scalar_text(&value.kind) {
                Some(value) => out.push_str(&value),
                None => {
                    let diagnostic = Diagnostic::at(place, format!("`{reference}` is no text that can stand inside another"));
                    self.refuse(diagnostic.help("a list or a mapping can only be a whole value"), span);
                }
            }
            if !self.has_room(out.len(), place) {
                self.broken.insert(span);
                return node(Kind::Null);
            }
        }
        out.push_str(rest);
        if self.broken.contains(&span) {
            return node(Kind::Null);
        }
        if let Some(found) = credential::in_url(&out) {
            self.refuse(found.diagnostic(span), span);
            return node(Kind::Null);
        }
        node(Kind::String(out))
    }

    /// The value of `reference`, which takes the place of a whole scalar at `span`. That of an axis keeps its own place: what is
    /// wrong with it is wrong there.
    fn inserted(&mut self, mut value: Node, reference: &str, span: Span) -> Node {
        if !self.has_room(value.bytes(), span) {
            self.broken.insert(span);
            return Node { span, kind: Kind::Null };
        }
        if let Some(found) = value.as_str().and_then(credential::in_url) {
            self.refuse(found.diagnostic(span), span);
            return Node { span, kind: Kind::Null };
        }
        if !reference.starts_with("${matrix.") {
            move_to(&mut value, span);
        }
        value
    }

    /// What stands for `${name}` at `place`, inside the scalar at `span`. `None` if there is nothing, in which case the
    /// scalar is broken and the reason reported.
    fn look_up(&mut self, name: &str, place: Span, span: Span, field: &Field<'_>) -> Option<Node> {
        if let Some(var) = name.strip_prefix("vars.") {
            if let Some(entry) = self.vars.iter().find(|entry| entry.key == var) {
                let value = entry.value.clone();
                if value.touches(&self.broken) {
                    self.broken.insert(span);
                    return None;
                }
                return Some(value);
            }
            let known = self.names.iter().any(|name| name == var);
            let diagnostic = if known {
                Diagnostic::at(place, format!("variable `{var}` is used above its own value"))
                    .help("a variable may use those that stand above it")
            } else {
                let diagnostic = Diagnostic::at(place, format!("unknown variable `{var}`")).help(self.known_vars());
                match nearest(var, self.names.iter().map(String::as_str)) {
                    Some(near) => diagnostic.label(format!("did you mean `{near}`?")),
                    None => diagnostic,
                }
            };
            self.refuse(diagnostic, span);
            return None;
        }
        let diagnostic = if let Some(variable) = name.strip_prefix("env:").filter(|name| is_name(name)) {
            match (self.env)(variable) {
                Some(text) => return Some(Node { span: place, kind: Kind::String(text) }),
                None => Diagnostic::at(place, format!("environment variable `{variable}` is not set"))
                    .help(format!("set it: `export {variable}=...`; `vars` with `--set` need no environment")),
            }
        } else if name.strip_prefix("secret:").is_some_and(is_name) {
            if matches!(field, Field::Unknown) {
                self.broken.insert(span);
                return None;
            }
            Diagnostic::at(place, "a secret can't stand here")
                .help("`${secret:NAME}` is read only by fields for secrets, such as a model's `api_key`")
        } else if let Some(axis) = name.strip_prefix("matrix.") {
            match &self.matrix {
                Matrix::Broken => {
                    self.broken.insert(span);
                    return None;
                }
                Matrix::Nowhere => Diagnostic::at(place, format!("`${{{name}}}` can't stand here: only stages have a matrix")),
                Matrix::Cell(cell) => {
                    if let Some(at) = cell.iter().find(|at| at.axis == axis) {
                        return Some(at.value.clone());
                    }
                    let axes = || cell.iter().map(|at| at.axis.as_str());
                    let diagnostic = Diagnostic::at(place, format!("the stage has no axis `{axis}`"));
                    match nearest(axis, axes()) {
                        Some(near) => diagnostic.help(format!("did you mean `${{matrix.{near}}}`?")),
                        None if cell.is_empty() => {
                            diagnostic.help(format!("give it one (`matrix: {{ {axis}: [...] }}`), or read a stage that has one"))
                        }
                        None => diagnostic.help(format!("its axes are {}", quoted(axes()))),
                    }
                }
            }
        } else {
            let known = ["vars.", "env:", "secret:", "matrix."].into_iter().find(|kind| name.starts_with(kind));
            let message = match known {
                Some(kind) => format!("`${{{name}}}` names nothing: `{kind}` needs a name of letters, digits and `_`"),
                None => format!("`${{{name}}}` means nothing"),
            };
            Diagnostic::at(place, message).help(
                "write `${vars.NAME}`, `${matrix.AXIS}`, `${env:NAME}` or `${secret:NAME}`; for the characters themselves `$${`",
            )
        };
        self.refuse(diagnostic, span);
        None
    }

    fn refuse(&mut self, diagnostic: Diagnostic, span: Span) {
        self.diagnostics.push(diagnostic);
        self.broken.insert(span);
    }

    /// Counts what is put in, and reports once that it is too much.
    fn has_room(&mut self, bytes: usize, place: Span) -> bool {
        let had = self.added <= MAX_ADDED;
        self.added = self.added.saturating_add(bytes);
        let has = self.added <= MAX_ADDED;
        if had && !has {
            self.diagnostics.push(
                Diagnostic::at(place, "variables make the file too large")
                    .help(format!("written out, they would take more than {} MiB", MAX_ADDED >> 20)),
            );
        }
        has
    }
}

/// Finds the places of references inside a scalar, one after the other.
struct Cursor<'a> {
    source: &'a Source,
    span: Span,
    from: usize,
}

impl Cursor<'_> {
    /// The place of `text`; of the whole scalar where it is written in another way, with escapes or over several lines.
    fn place(&mut self, text: &str) -> Span {
        let rest = self.source.slice(Span::new(self.from, self.span.end));
        match rest.find(text) {
            Some(at) => {
                let start = self.from + at;
                self.from = start + text.len();
                Span::new(start, self.from)
            }
            None => self.span,
        }
    }
}

/// Whether `text` is `${secret:NAME}` and nothing else.
fn is_secret_reference(text: &str) -> bool {
    text.strip_prefix("${secret:").and_then(|rest| rest.strip_suffix('}')).is_some_and(is_name)
}

/// `text` with a letter in place of each `${...}`, so that what is in them isn't taken for a part of a URL.
fn without_references(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let Some(length) = rest[at..].find('}') else { break };
        out.push_str(&rest[..at]);
        out.push('x');
        rest = &rest[at + length + 1..];
    }
    out.push_str(rest);
    out
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A scalar as text; `None` for lists and mappings.
pub(super) fn scalar_text(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Null => Some(String::new()),
        Kind::Bool(value) => Some(value.to_string()),
        Kind::Int(value) => Some(value.to_string()),
        Kind::Float(value) => Some(serde_json::Value::from(*value).to_string()),
        Kind::String(text) => Some(text.clone()),
        Kind::Sequence(_) | Kind::Mapping(_) => None,
    }
}

/// Gives the node, and everything below it, the place where it is used.
fn move_to(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.kind {
        Kind::Sequence(items) => items.iter_mut().for_each(|item| move_to(item, span)),
        Kind::Mapping(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_span = span;
            move_to(&mut entry.value, span);
        }),
        _ => {}
    }
}
