//! YAML as a tree in which every node and key knows its place.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, StructureStyle, Tag};
use serde_json::{Map, Value};

use super::scalar::{plain, said};
use crate::diagnostic::{Diagnostic, Source, Span, nearest, quoted};

/// The deepest nesting that a file may have, counted after aliases and values have been put in.
pub(super) const MAX_DEPTH: usize = 64;
/// The largest file, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// How much aliases, and later values, may add to a file, in bytes of memory.
pub(super) const MAX_ADDED: usize = 32 << 20;
/// What a node takes beside its text, in bytes of memory, as far as [`MAX_ADDED`] is concerned.
const NODE_BYTES: usize = 96;

/// A value of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands. For an alias the place of the alias, for what is below it the place where that was written.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a [`Node`] is, by the core schema of YAML 1.2: `on`, `yes` and `no` are texts, `1e-5` is a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number with a point or an exponent.
    Float(f64),
    /// A text.
    String(String),
    /// A list.
    Sequence(Vec<Node>),
    /// A mapping; no key comes twice, and merge keys (`<<`) have been merged.
    Mapping(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

/// A node that was looked up, and the place of its key where it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its key; `None` at the root and in lists.
    pub key: Option<Span>,
}

impl Node {
    /// The node at a JSON pointer (`/stages/qa/pairs`, `/weights/1`), if it exists.
    pub fn at(&self, pointer: &str) -> Option<Place<'_>> {
        let mut place = Place { node: self, key: None };
        for segment in segments(pointer) {
            place = place.node.child(&segment)?;
        }
        Some(place)
    }

    /// The node at a JSON pointer, or as far on the way to it as there are nodes.
    pub fn closest(&self, pointer: &str) -> Place<'_> {
        let mut place = Place { node: self, key: None };
        for segment in segments(pointer) {
            match place.node.child(&segment) {
                Some(child) => place = child,
                None => break,
            }
        }
        place
    }

    fn child(&self, segment: &str) -> Option<Place<'_>> {
        match &self.kind {
            Kind::Sequence(items) => items.get(segment.parse::<usize>().ok()?).map(|node| Place { node, key: None }),
            Kind::Mapping(_) => self.get(segment).map(|entry| Place { node: &entry.value, key: Some(entry.key_span) }),
            _ => None,
        }
    }

    /// The entry of a mapping.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as JSON. A number without a fraction is a whole number, as JSON Schema has it: `1e6` is `1000000`.
    pub fn to_json(&self) -> Value {
        /// Up to here every whole number is a float of its own.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Int(value) => Value::from(*value),
            Kind::Float(value) if value.fract() == 0.0 && value.abs() <= EXACT => Value::from(*value as i64),
            Kind::Float(value) => Value::from(*value),
            Kind::String(text) => Value::String(text.clone()),
            Kind::Sequence(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Mapping(entries) => {
                Value::Object(entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// How many nodes stand above each other.
    pub(super) fn depth(&self) -> usize {
        1 + match &self.kind {
            Kind::Sequence(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Kind::Mapping(entries) => entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// About how much memory a copy takes.
    pub(super) fn bytes(&self) -> usize {
        NODE_BYTES
            + match &self.kind {
                Kind::String(text) => text.len(),
                Kind::Sequence(items) => items.iter().map(Self::bytes).sum(),
                Kind::Mapping(entries) => entries.iter().map(|entry| entry.key.len() + entry.value.bytes()).sum(),
                _ => 0,
            }
    }

    /// Whether the place of the node, or of one below it, is in `places`.
    pub(super) fn touches(&self, places: &HashSet<Span>) -> bool {
        places.contains(&self.span)
            || match &self.kind {
                Kind::Sequence(items) => items.iter().any(|item| item.touches(places)),
                Kind::Mapping(entries) => entries.iter().any(|entry| entry.value.touches(places)),
                _ => false,
            }
    }
}

/// The unescaped parts of a JSON pointer.
fn segments(pointer: &str) -> impl Iterator<Item = String> + '_ {
    pointer.split('/').skip(1).map(|segment| segment.replace("~1", "/").replace("~0", "~"))
}

/// What became of a file.
pub(super) struct Tree {
    /// The document, unless the syntax is broken.
    pub(super) root: Option<Node>,
    /// What is wrong with it as YAML.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Places of values that stand for something that could not be read, so that nothing more is said about them.
    pub(super) broken: HashSet<Span>,
}

/// Reads a file.
pub(super) fn parse(source: &Source) -> Tree {
    let mut tree = Tree { root: None, diagnostics: Vec::new(), broken: HashSet::new() };
    if source.text.len() > MAX_BYTES {
        tree.diagnostics.push(
            Diagnostic::anywhere(format!("`{}` is too large for a pipeline file", source.name))
                .help(format!("{} bytes; at most {MAX_BYTES} are read", source.text.len())),
        );
        return tree;
    }
    let mut options = granit_parser::options! { emit_unresolved_aliases: true, emit_anchor_events: true };
    options.set_emit_comments(false);
    let mut builder = Builder {
        source,
        parser: Parser::new_from_str_with_options(&source.text, options),
        anchors: HashMap::new(),
        names: Vec::new(),
        added: 0,
        tree,
    };
    match builder.document() {
        Ok(root) => builder.tree.root = Some(root),
        Err(stop) => builder.tree.diagnostics.push(*stop),
    }
    builder.tree
}

struct Builder<'a> {
    source: &'a Source,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchor>,
    names: Vec<String>,
    added: usize,
    tree: Tree,
}

struct Anchor {
    node: Node,
    bytes: usize,
    depth: usize,
}

/// The mistake after which a file can't be read on.
type Stop = Box<Diagnostic>;

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        loop {
            let (event, span) = match self.parser.next() {
                Some(Ok((event, span))) => (event, span),
                Some(Err(error)) => return Err(Box::new(self.syntax(&error))),
                None => {
                    let end = self.source.text.len();
                    return Ok((Event::StreamEnd, Span::new(end, end)));
                }
            };
            let range = span.byte_range().unwrap_or_default();
            match event {
                Event::Anchor(_, name) => self.names.push(name.into_owned()),
                event => return Ok((event, Span::new(range.start, range.end.max(range.start)))),
            }
        }
    }

    fn document(&mut self) -> Result<Node, Stop> {
        loop {
            match self.next()? {
                (Event::StreamStart, _) => {}
                (Event::DocumentStart(..), _) => break,
                _ => return Err(Box::new(Diagnostic::at(Span::default(), "the file is empty"))),
            }
        }
        let (event, span) = self.next()?;
        let root = self.node(event, span, 1)?;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::DocumentStart(..), span) => {
                    return Err(Box::new(
                        Diagnostic::at(span, "a second document starts here").help("a file holds one pipeline"),
                    ));
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Stop> {
        if depth > MAX_DEPTH {
            return Err(Box::new(Diagnostic::at(span, format!("nested more than {MAX_DEPTH} levels deep"))));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let kind = self.scalar(&text, style, tag.as_deref(), span);
                Ok(self.anchored(anchor, Node { span, kind }))
            }
            Event::SequenceStart(style, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", span);
                let mut items: Vec<Node> = Vec::new();
                let end = loop {
                    let (event, inner) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break inner.end;
                    }
                    items.push(self.node(event, inner, depth + 1)?);
                };
                let last = items.last().map_or(span.end, |item| item.span.end);
                let span = Span::new(span.start, if style == StructureStyle::Flow { end } else { last.max(span.end) });
                Ok(self.anchored(anchor, Node { span, kind: Kind::Sequence(items) }))
            }
            Event::MappingStart(style, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", span);
                let (entries, end) = self.mapping(depth)?;
                let last = entries.iter().map(|entry| entry.value.span.end.max(entry.key_span.end)).max();
                let last = last.unwrap_or(span.end).max(span.end);
                let span = Span::new(span.start, if style == StructureStyle::Flow { end } else { last });
                Ok(self.anchored(anchor, Node { span, kind: Kind::Mapping(entries) }))
            }
            Event::Alias(id) => self.alias(id, span, depth),
            Event::UnresolvedAlias(name) => {
                let mut diagnostic = Diagnostic::at(span, format!("unknown anchor `{name}`"));
                if let Some(near) = nearest(&name, self.names.iter().map(String::as_str)) {
                    diagnostic = diagnostic.label(format!("did you mean `{near}`?"));
                }
                if !self.names.is_empty() {
                    let names = quoted(self.names.iter().map(String::as_str));
                    diagnostic = diagnostic.help(format!("anchors above this place: {names}"));
                }
                Ok(self.broken(diagnostic, span))
            }
            _ => Err(Box::new(Diagnostic::at(span, "a value is missing here"))),
        }
    }

    /// Entries up to the end of the mapping, and where it ends.
    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry>, usize), Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut merged: Vec<Node> = Vec::new();
        let end = loop {
            let (event, key_span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break key_span.end;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.key(event, key_span, depth)?;
            let (event, span) = self.next()?;
            let mut value = self.node(event, span, depth + 1)?;
            if value.kind == Kind::Null && value.span.start == value.span.end {
                value.span = key_span;
            }
            let Some(key) = key else { continue };
            if is_merge {
                merged.push(value);
            } else if let Some(&first) = places.get(&key) {
                let diagnostic = Diagnostic::at(key_span, format!("duplicate key `{key}`"))
                    .label("given again")
                    .also(entries[first].key_span, "first given here");
                self.tree.diagnostics.push(diagnostic);
            } else {
                places.insert(key.clone(), entries.len());
                entries.push(Entry { key, key_span, value });
            }
        };
        for value in merged {
            self.merge(value, &mut entries, &mut places);
        }
        Ok((entries, end))
    }

    fn merge(&mut self, value: Node, entries: &mut Vec<Entry>, places: &mut HashMap<String, usize>) {
        match value.kind {
            Kind::Mapping(more) => {
                for entry in more {
                    if !places.contains_key(&entry.key) {
                        places.insert(entry.key.clone(), entries.len());
                        entries.push(entry);
                    }
                }
            }
            Kind::Sequence(items) if items.iter().all(|item| matches!(item.kind, Kind::Mapping(_))) => {
                for item in items {
                    self.merge(item, entries, places);
                }
            }
            _ if self.tree.broken.contains(&value.span) => {}
            _ => self
                .tree
                .diagnostics
                .push(Diagnostic::at(value.span, "`<<` merges mappings").help("give an alias of a mapping, or a list of them")),
        }
    }

    /// The key that `event` starts; `None` if it is no key, which has been reported then.
    fn key(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Option<String>, Stop> {
        if let Event::Scalar(text, style, ..) = &event
            && !(span.start == span.end && *style == ScalarStyle::Plain)
        {
            let text = text.to_string();
            if let Event::Scalar(_, _, anchor, _) = event {
                self.anchored(anchor, Node { span, kind: Kind::String(text.clone()) });
            }
            return Ok(Some(text));
        }
        let missing = matches!(event, Event::Scalar(..));
        let node = self.node(event, span, depth + 1)?;
        match node.kind {
            Kind::String(text) => return Ok(Some(text)),
            _ if self.tree.broken.contains(&node.span) => {}
            _ if missing => self.tree.diagnostics.push(Diagnostic::at(node.span, "a key is missing before `:`")),
            _ => self
                .tree
                .diagnostics
                .push(Diagnostic::at(node.span, "a key must be a text").help("put quotes around a value that holds `{` or `[`")),
        }
        Ok(None)
    }

    fn anchored(&mut self, anchor: usize, node: Node) -> Node {
        if anchor != 0 {
            let (bytes, depth) = (node.bytes(), node.depth());
            self.anchors.insert(anchor, Anchor { node: node.clone(), bytes, depth });
        }
        node
    }

    fn alias(&mut self, id: usize, span: Span, depth: usize) -> Result<Node, Stop> {
        let Some(anchor) = self.anchors.get(&id) else {
            return Ok(self.broken(Diagnostic::at(span, "an alias inside its own anchor"), span));
        };
        self.added += anchor.bytes;
        if self.added > MAX_ADDED {
            return Err(Box::new(
                Diagnostic::at(span, "aliases make the file too large")
                    .help(format!("written out, they would take more than {} MiB", MAX_ADDED >> 20)),
            ));
        }
        if depth + anchor.depth > MAX_DEPTH {
            return Err(Box::new(Diagnostic::at(span, format!("nested more than {MAX_DEPTH} levels deep"))));
        }
        Ok(Node { span, kind: anchor.node.kind.clone() })
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Kind {
        let by_look = |text: &str| if style == ScalarStyle::Plain { plain(text) } else { Ok(Kind::String(text.into())) };
        let kind = match tag {
            None => by_look(text),
            Some(tag) => match tag.core_suffix() {
                Some("str") => Ok(Kind::String(text.into())),
                Some(wanted) => plain(text).and_then(|kind| match (wanted, kind) {
                    ("float", Kind::Int(value)) => Ok(Kind::Float(value as f64)),
                    ("float", kind @ Kind::Float(_))
                    | ("int", kind @ Kind::Int(_))
                    | ("bool", kind @ Kind::Bool(_))
                    | ("null", kind @ Kind::Null) => Ok(kind),
                    _ => Err(format!("`{text}` is not what its tag `!!{wanted}` says")),
                }),
                None if tag.original() == "!" => Ok(Kind::String(text.into())),
                None => Err(format!("the tag `{}` means nothing in a pipeline file", tag.original())),
            },
        };
        kind.unwrap_or_else(|message| self.broken(Diagnostic::at(span, message), span).kind)
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, expected: &str, span: Span) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(expected)
        {
            let message = format!("the tag `{}` means nothing here", tag.original());
            self.tree.diagnostics.push(Diagnostic::at(Span::new(span.start, span.start), message));
        }
    }

    /// Reports a value that can't be read, and gives a stand-in for it.
    fn broken(&mut self, diagnostic: Diagnostic, span: Span) -> Node {
        self.tree.diagnostics.push(diagnostic);
        self.tree.broken.insert(span);
        Node { span, kind: Kind::Null }
    }

    fn syntax(&self, error: &ScanError) -> Diagnostic {
        let text = &self.source.text;
        let start = text.floor_char_boundary(error.marker().byte_offset().unwrap_or(0));
        let end = text[start..].chars().next().filter(|c| *c != '\n').map_or(start, |c| start + c.len_utf8());
        let (message, help) = said(error.kind());
        let diagnostic = Diagnostic::at(Span::new(start, end), message);
        match help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> (Node, Vec<String>) {
        let tree = parse(&Source::new("f", text));
        let messages = tree.diagnostics.into_iter().map(|diagnostic| diagnostic.message).collect();
        (tree.root.unwrap_or(Node { span: Span::default(), kind: Kind::Null }), messages)
    }

    fn value(text: &str) -> Value {
        let (node, messages) = read(text);
        assert_eq!(messages, Vec::<String>::new(), "{text}");
        node.to_json()
    }

    #[track_caller]
    fn mistakes(text: &str, expected: &[(&str, &str)]) {
        let source = Source::new("f", text);
        let found: Vec<(String, String)> = parse(&source)
            .diagnostics
            .iter()
            .map(|d| (d.message.clone(), d.span.map_or("-", |span| source.slice(span)).to_owned()))
            .collect();
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn scalars_of_the_core_schema() {
        for (text, expected) in [
            ("on", json!("on")),
            ("yes", json!("yes")),
            ("No", json!("No")),
            ("1e-5", json!(1e-5)),
            ("1.0e-5", json!(1e-5)),
            ("-.5", json!(-0.5)),
            ("1.", json!(1)),
            ("1e6", json!(1_000_000)),
            ("+12", json!(12)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("007", json!(7)),
            ("0o17", json!(15)),
            ("0xFf", json!(255)),
            ("0x", json!("0x")),
            ("1_000", json!("1_000")),
            ("12:30", json!("12:30")),
            ("1e", json!("1e")),
            (".", json!(".")),
            ("2M", json!("2M")),
            ("1.2.3", json!("1.2.3")),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("TRUE", json!(true)),
            ("tRUE", json!("tRUE")),
            ("'true'", json!("true")),
            ("\"1\"", json!("1")),
            ("!!str 1", json!("1")),
            ("!!float 1", json!(1)),
            ("! 1", json!("1")),
            ("|\n  a\n  b\n", json!("a\nb\n")),
            ("2026-01-01", json!("2026-01-01")),
        ] {
            assert_eq!(value(&format!("k: {text}"))["k"], expected, "{text}");
        }
        assert!(matches!(read("1e-5").0.kind, Kind::Float(value) if value == 1e-5));
        mistakes(
            "a: 9223372036854775808\nb: .inf\nc: 1e999\nd: !!int x\ne: !own 3\n",
            &[
                ("`9223372036854775808` is too large for a whole number: at most 9223372036854775807", "9223372036854775808"),
                ("`.inf` is not accepted as a number", ".inf"),
                ("`1e999` is too large for a number", "1e999"),
                ("`x` is not what its tag `!!int` says", "x"),
                ("the tag `!own` means nothing in a pipeline file", "3"),
            ],
        );
    }

    #[test]
    fn places() {
        let text = "größe: { a: [1, 'zwei'], \"b c\": |\n    x\n  }\nlast:\n  - k: v\n    l:\n  - ~\nnone:\n";
        let text = text.replace("|\n    x\n  }", "x }");
        let source = Source::new("f", text.as_str());
        let root = parse(&source).root.unwrap();
        let at = |pointer: &str| {
            let place = root.at(pointer)?;
            Some((source.slice(place.node.span), place.key.map(|span| source.slice(span))))
        };
        assert_eq!(at("/größe"), Some(("{ a: [1, 'zwei'], \"b c\": x }", Some("größe"))));
        assert_eq!(at("/größe/a"), Some(("[1, 'zwei']", Some("a"))));
        assert_eq!(at("/größe/a/1"), Some(("'zwei'", None)));
        assert_eq!(at("/größe/b c"), Some(("x", Some("\"b c\""))));
        assert_eq!(at("/last/0"), Some(("k: v\n    l", None)));
        assert_eq!(at("/last/0/l"), Some(("l", Some("l"))));
        assert_eq!(at("/none"), Some(("none", Some("none"))));
        assert_eq!(at("/last/7"), None);
        assert_eq!(root.closest("/last/0/zzz/1").node, root.at("/last/0").unwrap().node);
        let escaped = parse(&Source::new("f", "a/b: { c~d: 1 }")).root.unwrap();
        assert_eq!(escaped.at("/a~1b/c~0d").unwrap().node.kind, Kind::Int(1));
    }

    #[test]
    fn anchors_aliases_and_merge_keys() {
        assert_eq!(
            value("a: &x { k: 1, l: [2] }\nb: *x\nc: { <<: *x, k: 3 }\nd: { <<: [{ k: 5 }, *x] }\ne: { '<<': 1 }\n"),
            json!({
                "a": { "k": 1, "l": [2] }, "b": { "k": 1, "l": [2] }, "c": { "k": 3, "l": [2] },
                "d": { "k": 5, "l": [2] }, "e": { "<<": 1 },
            })
        );
        assert_eq!(value("&k a: 1\nb: *k\n"), json!({ "a": 1, "b": "a" }));
        mistakes(
            "a: &first 1\nb: *frist\nc: &c [*c]\nd: { <<: 3 }\n",
            &[("unknown anchor `frist`", "*frist"), ("an alias inside its own anchor", "*c"), ("`<<` merges mappings", "3")],
        );
    }

    #[test]
    fn bombs_hit_a_limit() {
        let mut text = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert_eq!(read(&text).1, ["aliases make the file too large"]);
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 1000].join(", "));
        assert_eq!(read(&long).1, ["aliases make the file too large"]);
        let mut chain = "a0: &a0 [1]\n".to_owned();
        for i in 1..100 {
            chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
        }
        assert_eq!(read(&chain).1, ["nested more than 64 levels deep"]);
        assert_eq!(read(&format!("a: {}1{}", "[".repeat(70), "]".repeat(70))).1, ["nested more than 64 levels deep"]);
        assert_eq!(read(&"[".repeat(100_000)).1.len(), 1);
        assert_eq!(read(&"a".repeat(MAX_BYTES + 1)).1, ["`f` is too large for a pipeline file"]);
    }

    #[test]
    fn syntax_errors_have_a_place() {
        mistakes("a: 1\nb: { c: 2\n", &[("`{` is never closed", "{")]);
        mistakes("a: [1, 2}\n", &[("`[` is closed by `}`", "[")]);
        mistakes("a: 'x\n", &[("a quoted text is never closed", "'")]);
        mistakes("a: b: c\n", &[("`:` can't stand here", ":")]);
        mistakes("a: 1\n---\nb: 2\n", &[("a second document starts here", "---")]);
        mistakes("a: 1\n b: 2\n", &[("`:` can't stand here", ":")]);
        mistakes("a: 1\na: 2\nb: 1\na: 3\n", &[("duplicate key `a`", "a"), ("duplicate key `a`", "a")]);
        mistakes("[x]: 1\n: 2\n", &[("a key must be a text", "[x]"), ("a key is missing before `:`", "")]);
        let duplicate = parse(&Source::new("f", "k: 1\nk: 2\n")).diagnostics.remove(0);
        assert_eq!((duplicate.span, duplicate.also), (Some(Span::new(5, 6)), vec![(Span::new(0, 1), "first given here".into())]));
    }
}
