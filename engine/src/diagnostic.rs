//! What is wrong with a pipeline file, and how that is shown.

use std::{fmt, sync::Arc};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use serde_json::{Value, json};

/// The widest piece of a line that is shown or underlined, in bytes.
const WIDEST: usize = 300;

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path as given by the user.
    pub name: String,
    /// What it holds.
    pub text: Arc<str>,
}

impl Source {
    /// The file `name`, which holds `text`.
    pub fn new(name: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// Line and column of a byte offset, both counted from 1, the column in characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let bytes = before.as_bytes();
        let breaks = |i: usize| bytes[i] == b'\n' || (bytes[i] == b'\r' && self.text.as_bytes().get(i + 1) != Some(&b'\n'));
        let line_start = (0..bytes.len()).rev().find(|&i| breaks(i)).map_or(0, |i| i + 1);
        let line = 1 + (0..bytes.len()).filter(|&i| breaks(i)).count();
        (line, 1 + before[line_start..].chars().count())
    }

    /// The text under `span`, cut to what the file holds.
    pub fn slice(&self, span: Span) -> &str {
        let end = self.text.floor_char_boundary(span.end);
        let start = self.text.floor_char_boundary(span.start).min(end);
        &self.text[start..end]
    }
}

/// A range of bytes in a [`Source`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

impl Span {
    /// The bytes from `start` up to `end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it is; `None` for what isn't in the file (the command line, the environment).
    pub span: Option<Span>,
    /// What is wrong: a lower-case fragment with names in backticks.
    pub message: String,
    /// A few words under the place.
    pub label: Option<String>,
    /// What would be right.
    pub help: Option<String>,
    /// Other places that belong to it, each with a few words.
    pub also: Vec<(Span, String)>,
    /// Parts of the file that are secrets: never shown, by no diagnostic of the same [`Diagnostics`].
    pub hidden: Vec<Span>,
}

impl Diagnostic {
    /// A mistake at `span`.
    pub fn at(span: Span, message: impl Into<String>) -> Self {
        Self { span: Some(span), ..Self::anywhere(message) }
    }

    /// A mistake that isn't in the file.
    pub fn anywhere(message: impl Into<String>) -> Self {
        Self { span: None, message: message.into(), label: None, help: None, also: Vec::new(), hidden: Vec::new() }
    }

    /// Puts a few words under the place.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says what would be right.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Names another place that belongs to the mistake.
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.also.push((span, label.into()));
        self
    }

    /// Keeps the text under `span` out of everything that is shown.
    pub fn hide(mut self, span: Span) -> Self {
        self.hidden.push(span);
        self
    }
}

/// All mistakes found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    /// The file.
    pub source: Source,
    /// The mistakes, by position; those that aren't in the file come first.
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Sorts `list` by position and drops what is said twice of the same place.
    pub fn new(source: Source, list: Vec<Diagnostic>) -> Self {
        Self { source, list: sorted(list) }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The mistakes as text for a terminal `width` columns wide: file, line and column, the line with the place
    /// underlined, and the hint apart. With `colour` it has ANSI codes and box-drawing characters, otherwise neither.
    /// Control characters of the file are replaced, secrets are starred out.
    pub fn render(&self, colour: bool, width: usize) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::none() };
        let handler =
            GraphicalReportHandler::new_themed(theme).with_width(width.max(40)).with_links(false).without_syntax_highlighting();
        let shown = Shown::new(&self.source, self.list.iter().flat_map(|diagnostic| &diagnostic.hidden));
        let mut out = String::new();
        for (i, diagnostic) in self.list.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            let mark = out.len();
            if handler.render_report(&mut out, &Report { diagnostic, shown: &shown }).is_err() {
                out.truncate(mark);
                let (line, column) = diagnostic.span.map_or((1, 1), |span| self.source.position(span.start));
                out.push_str(&format!("{}:{line}:{column}: {}\n", shown.name, printable(&diagnostic.message)));
            }
        }
        out
    }

    /// The mistakes as a JSON list of `{file, line, column, offset, length, message, label, help, also}`; positions are
    /// null for what isn't in the file. No text of the file but what the messages name.
    pub fn to_json(&self) -> Value {
        let place = |span: Span| {
            let (line, column) = self.source.position(span.start);
            json!({
                "line": line, "column": column, "offset": span.start, "length": span.end.saturating_sub(span.start),
            })
        };
        let one = |diagnostic: &Diagnostic| {
            let mut value = json!({
                "file": self.source.name, "line": null, "column": null, "offset": null, "length": null,
                "message": diagnostic.message, "label": diagnostic.label, "help": diagnostic.help,
            });
            if let (Some(span), Some(object)) = (diagnostic.span, value.as_object_mut())
                && let Value::Object(at) = place(span)
            {
                object.extend(at);
            }
            let also: Vec<Value> = diagnostic
                .also
                .iter()
                .map(|(span, label)| {
                    let mut at = place(*span);
                    at["label"] = json!(label);
                    at
                })
                .collect();
            value["also"] = json!(also);
            value
        };
        Value::Array(self.list.iter().map(one).collect())
    }
}

/// By position, without what is said twice of the same place.
pub(crate) fn sorted(mut list: Vec<Diagnostic>) -> Vec<Diagnostic> {
    list.sort_by(|a, b| (a.span, &a.message).cmp(&(b.span, &b.message)));
    list.dedup_by(|a, b| a.span == b.span && a.message == b.message);
    list
}

/// The candidate that `word` most likely was meant to be, if one is close.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let length = word.chars().count();
    let limit = if length <= 3 { 1 } else { (length / 3).max(2) };
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = plain(candidate);
            let distance = strsim::damerau_levenshtein(&word, &other);
            let inside = |long: &str, short: &str| short.len() >= 4 && long.split('_').any(|part| part == short);
            (distance <= limit || inside(&word, &other) || inside(&other, &word)).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Names in backticks, separated by commas.
pub fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Whether a terminal would act on the character, or show the text around it in another order.
fn acts_on_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` on one line, with everything escaped that a terminal would act on.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if acts_on_terminal(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// The file as it may be shown. Every character keeps its place: replacements have as many bytes.
#[derive(Debug)]
struct Shown {
    name: String,
    text: String,
}

impl Shown {
    fn new<'a>(source: &Source, hidden: impl Iterator<Item = &'a Span>) -> Self {
        let hidden: Vec<Span> = hidden.copied().collect();
        let mut text = String::with_capacity(source.text.len() + 1);
        let mut characters = source.text.char_indices().peekable();
        while let Some((i, c)) = characters.next() {
            match c {
                '\n' => text.push('\n'),
                '\r' if characters.peek().is_some_and(|(_, next)| *next == '\n') => text.push(' '),
                '\r' => text.push('\n'),
                _ if hidden.iter().any(|span| (span.start..span.end).contains(&i)) => {
                    text.extend(std::iter::repeat_n('*', c.len_utf8()));
                }
                '\t' => text.push('\t'),
                c if acts_on_terminal(c) => text.push_str(["?", "·", "\u{fffd}", "?\u{fffd}"][c.len_utf8() - 1]),
                c => text.push(c),
            }
        }
        // A place at the very end of the file needs a line that it can stand on.
        text.push('\n');
        Self { name: printable(&source.name), text }
    }

    /// The part of `span` that can be underlined: on one line, not wider than [`WIDEST`], and where there is text.
    fn underlined(&self, span: Span) -> SourceSpan {
        let visible = self.text.trim_end().len();
        let start = self.text.floor_char_boundary(span.start.min(visible));
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |i| start + i);
        let end = self.text.floor_char_boundary(span.end.min(line_end).min(start + WIDEST)).max(start);
        (start, end - start).into()
    }
}

impl SourceCode for Shown {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _lines_before: usize,
        _lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (start, end) = (span.offset(), span.offset() + span.len());
        let (Some(before), Some(after)) = (self.text.get(..start), self.text.get(end..)) else {
            return Err(MietteError::OutOfBounds);
        };
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line_end = after.find('\n').map_or(self.text.len(), |i| end + i + 1);
        let line = before.matches('\n').count();
        let column = self.text[line_start..start].chars().count();
        let mut lines = self.text[line_start..line_end].matches('\n').count();
        let (mut from, mut to) = (line_start, line_end);
        if to - from > 2 * WIDEST {
            from = self.text.floor_char_boundary(start.saturating_sub(WIDEST / 3).max(line_start));
            to = self.text.ceil_char_boundary((end + WIDEST / 3).min(line_end));
            lines = self.text[from..to].matches('\n').count().max(1);
        }
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &self.text.as_bytes()[from..to],
            (from, to - from).into(),
            line,
            column,
            lines,
        )))
    }
}

/// A diagnostic beside what miette needs to draw it.
#[derive(Debug)]
struct Report<'a> {
    diagnostic: &'a Diagnostic,
    shown: &'a Shown,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.diagnostic.message))
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(printable(help)) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.diagnostic.span.map(|_| self.shown as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = self.diagnostic.label.as_deref().map(printable);
        let main = LabeledSpan::new_primary_with_span(label, self.shown.underlined(self.diagnostic.span?));
        let also = self
            .diagnostic
            .also
            .iter()
            .map(|(span, label)| LabeledSpan::new_with_span(Some(printable(label)), self.shown.underlined(*span)));
        Some(Box::new(std::iter::once(main).chain(also)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_place_and_hint_without_ansi() {
        let source = Source::new("p.yaml", "pipeline: x\nstages:\n  größe: { op: chunks }\n");
        let start = source.text.find("chunks").unwrap();
        let diagnostic = Diagnostic::at(Span::new(start, start + 6), "unknown operator `chunks`")
            .label("did you mean `chunk`?")
            .help("operators: `chunk`, `read`");
        let shown = Diagnostics::new(source, vec![diagnostic]).render(false, 80);
        assert_eq!(
            shown,
            "  x unknown operator `chunks`\n   ,-[p.yaml:3:16]\n 3 |   größe: { op: chunks }\n   :                \
             ^^^|^^\n   :                   `-- did you mean `chunk`?\n   `----\n  help: operators: `chunk`, `read`\n"
        );
    }

    #[test]
    fn control_characters_and_secrets_are_not_shown() {
        let text = "a: \"\u{1b}[31mred\u{9b}\u{202e}\"\nkey: sk-12345\r\nlast: \u{e0001}x";
        let source = Source::new("p\u{1b}.yaml", text);
        let secret = text.find("sk-").unwrap();
        let list = vec![
            Diagnostic::at(Span::new(0, 1), "bad \u{1b}[2J key"),
            Diagnostic::at(Span::new(secret - 5, secret - 2), "no").hide(Span::new(secret, secret + 8)),
            Diagnostic::at(Span::new(text.len(), text.len()), "ends\nhere"),
        ];
        let diagnostics = Diagnostics::new(source, list);
        let shown = diagnostics.render(false, 80);
        assert!(!shown.contains(|c: char| c != '\n' && acts_on_terminal(c)), "{shown:?}");
        assert!(!shown.contains("sk-12345"));
        assert!(shown.contains("********"));
        assert!(shown.contains("p\\u{1b}.yaml:2:1"));
        assert!(!diagnostics.to_json().to_string().contains("sk-12345"));
        assert!(diagnostics.render(true, 80).contains("\u{1b}["));
    }

    #[test]
    fn places_at_the_end_in_empty_files_and_on_long_lines_are_drawn() {
        for (text, span) in [
            ("", Span::new(0, 0)),
            ("\n\n", Span::new(2, 2)),
            ("a: b", Span::new(4, 4)),
            ("a: b", Span::new(40, 90)),
            ("ä\r\rb: \"ä", Span::new(1, 9)),
        ] {
            let shown = Diagnostics::new(Source::new("f", text), vec![Diagnostic::at(span, "wrong")]).render(false, 80);
            assert!(shown.contains("x wrong") && shown.contains("[f:"), "{text:?}: {shown}");
        }
        let long = format!("a: [{}, here, {}]", "1, ".repeat(3000), "2, ".repeat(3000));
        let start = long.find("here").unwrap();
        let source = Source::new("f", long);
        let shown = Diagnostics::new(source, vec![Diagnostic::at(Span::new(start, start + 4), "wrong")]).render(false, 80);
        assert!(shown.len() < 800, "{}", shown.len());
        assert!(shown.contains(&format!("[f:1:{}]", start + 1)));
        assert!(shown.contains("here") && shown.contains("^^^^"));
    }

    #[test]
    fn sorted_by_position_and_said_once() {
        let at = |start, message: &str| Diagnostic::at(Span::new(start, start + 1), message);
        let list = vec![at(4, "b"), at(1, "a"), Diagnostic::anywhere("c"), at(4, "b"), at(4, "d")];
        let diagnostics = Diagnostics::new(Source::new("f", "0123456789"), list);
        let messages: Vec<&str> = diagnostics.list.iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, ["c", "a", "b", "d"]);
        let json = diagnostics.to_json();
        assert_eq!(json[1]["column"], 2);
        assert_eq!(json[0]["line"], Value::Null);
        assert_eq!(json[2]["length"], 1);
    }

    #[test]
    fn nearest_spelling() {
        let names = ["max_tokens", "overlap_tokens", "path", "op"];
        assert_eq!(nearest("max_token", names), Some("max_tokens"));
        assert_eq!(nearest("max-Tokens", names), Some("max_tokens"));
        assert_eq!(nearest("overlap", names), Some("overlap_tokens"));
        assert_eq!(nearest("pth", names), Some("path"));
        assert_eq!(nearest("colour", names), None);
        assert_eq!(nearest("xy", names), None);
    }
}
