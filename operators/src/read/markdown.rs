//! Markdown as readable plain text.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use serde_json::{Map, Value};

use super::{document::Parsed, html, text::line_breaks};

/// Longer front matter is text.
const LONGEST_FRONT_MATTER: usize = 64 << 10;
/// How deep front matter may be nested, of how many values it may be made, and how often it may refer to one.
const DEEPEST: usize = 32;
const MOST_VALUES: usize = 10_000;
const MOST_ALIASES: usize = 100;

/// Reads Markdown (CommonMark with tables, task lists, strikethrough and footnotes).
///
/// Marks are dropped and their text is kept: blocks are apart by an empty line, a list item or a table row is a line, code
/// stays as it is, links and images leave their text. The title is the front matter's `title`, else the first heading; a
/// heading at the very front that is the title is no part of the text.
pub(super) fn parse(source: &str) -> Parsed {
    let source = line_breaks(source);
    let (mut metadata, body) = front_matter(&source);
    let given = match metadata.get("title") {
        Some(Value::String(_)) => metadata.shift_remove("title"),
        _ => None,
    };
    let given = given.as_ref().and_then(Value::as_str).map(|title| title.trim().to_owned());
    let mut writer = Writer { given, ..Writer::default() };
    let options = Options::ENABLE_TABLES | Options::ENABLE_TASKLISTS | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
    for event in Parser::new_ext(body, options) {
        writer.event(event);
    }
    let title = writer.given.or(writer.first);
    Parsed { title, text: writer.out.trim().to_owned(), metadata: (!metadata.is_empty()).then_some(metadata) }
}

/// What stands between `---` lines at the front as metadata, and the rest.
fn front_matter(source: &str) -> (Map<String, Value>, &str) {
    let none = (Map::new(), source);
    let Some(inner) = source.strip_prefix("---\n") else { return none };
    let mut end = 0;
    let mut close = None;
    for line in inner.split_inclusive('\n') {
        if matches!(line.trim_end(), "---" | "...") {
            close = Some(end + line.len());
            break;
        }
        end += line.len();
        if end > LONGEST_FRONT_MATTER {
            return none;
        }
    }
    let Some(close) = close else { return none };
    let (block, body) = (&inner[..end], &inner[close..]);
    let is_said = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let lines: Vec<&str> = block.lines().filter(is_said).collect();
    if lines.first().is_none_or(|line| key(line).is_none()) {
        // Two thematic breaks with text between them.
        return none;
    }
    (metadata(block, &lines), body)
}

/// Lines `key: value` are texts by key, as they are written; lists, mappings and long texts are what YAML says. Where it says
/// nothing, the block stays whole, as `front_matter`.
fn metadata(block: &str, lines: &[&str]) -> Map<String, Value> {
    let goes_on = |place: usize| lines.get(place + 1).is_some_and(|next| next.starts_with([' ', '\t']));
    let simple = lines.iter().enumerate().map(|(place, line)| pair(line).filter(|_| !goes_on(place)));
    let simple: Vec<Option<(&str, &str)>> = simple.collect();
    let mut metadata = Map::new();
    if simple.iter().any(Option::is_none) {
        match mapping(block) {
            Some(mapping) => metadata = mapping,
            None => return Map::from_iter([("front_matter".to_owned(), Value::String(block.trim().to_owned()))]),
        }
    }
    for (key, value) in simple.into_iter().flatten() {
        metadata.insert(key.to_owned(), Value::String(value.to_owned()));
    }
    metadata
}

/// The mapping that YAML is, if it is one of moderate size.
fn mapping(block: &str) -> Option<Map<String, Value>> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: DEEPEST,
            max_nodes: MOST_VALUES,
            max_aliases: MOST_ALIASES,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: MOST_VALUES,
        },
        with_snippet: false,
    };
    match serde_yaml::from_str_with_options(block, options) {
        Ok(Value::Object(mapping)) => Some(mapping),
        _ => None,
    }
}

/// The key at the front of a line, and what stands behind its colon.
fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let simple = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    (simple && (value.is_empty() || value.starts_with([' ', '\t']))).then(|| (key, value.trim()))
}

/// A simple `key: value`. Lists, mappings and blocks aren't.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = key(line)?;
    if value.is_empty() || value.starts_with(['[', '{', '|', '>', '&', '*', '!']) {
        return None;
    }
    let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    Some((key, unquoted.unwrap_or(value)))
}

/// Writes events as text.
#[derive(Default)]
struct Writer {
    out: String,
    /// Line breaks to write before more text comes.
    breaks: usize,
    /// The number of the next item, for each open list.
    lists: Vec<Option<u64>>,
    /// Whether an item has just begun, so that its text goes on in the same line.
    fresh_item: bool,
    /// Where the text of an open heading begins, and whether nothing stands before it.
    heading: Option<(usize, bool)>,
    /// The title that the front matter gives.
    given: Option<String>,
    /// The first heading.
    first: Option<String>,
    /// Whether the next cell is the first of its row.
    first_cell: bool,
    /// The text of an open HTML block.
    html: Option<String>,
    code: bool,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.code => self.verbatim(&text),
            Event::Text(text) | Event::Code(text) | Event::InlineMath(text) | Event::DisplayMath(text) => self.text(&text),
            Event::Html(text) => match &mut self.html {
                Some(block) => block.push_str(&text),
                None => self.text(&html::plain(&text)),
            },
            Event::InlineHtml(tag) => {
                let name = tag.trim_start_matches(['<', '/']).to_ascii_lowercase();
                if name.starts_with("br") {
                    self.apart(1);
                }
            }
            Event::FootnoteReference(label) => self.text(&format!("[{label}]")),
            Event::SoftBreak => self.text(" "),
            Event::HardBreak => self.apart(1),
            Event::Rule => self.apart(2),
            Event::TaskListMarker(done) => self.text(if done { "[x] " } else { "[ ] " }),
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Heading { .. } => {
                self.block();
                self.heading = Some((self.out.len(), self.out.is_empty()));
            }
            Tag::CodeBlock(kind) => {
                self.block();
                self.code = true;
                // The language of a fenced block says nothing about the subject.
                let (CodeBlockKind::Indented | CodeBlockKind::Fenced(_)) = kind;
            }
            Tag::HtmlBlock => {
                self.block();
                self.html = Some(String::new());
            }
            Tag::List(number) => {
                self.fresh_item = false;
                self.apart(if self.lists.is_empty() { 2 } else { 1 });
                self.lists.push(*number);
            }
            Tag::Item => {
                self.apart(1);
                let indent = "  ".repeat(self.lists.len().saturating_sub(1));
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "- ".to_owned(),
                };
                self.flush();
                self.out.push_str(&indent);
                self.out.push_str(&mark);
                self.fresh_item = true;
            }
            Tag::FootnoteDefinition(label) => {
                self.block();
                self.text(&format!("[{label}] "));
                self.fresh_item = true;
            }
            Tag::TableHead | Tag::TableRow => {
                self.apart(1);
                self.first_cell = true;
            }
            Tag::TableCell => {
                if !self.first_cell {
                    self.text(" | ");
                }
                self.first_cell = false;
            }
            Tag::Paragraph | Tag::BlockQuote(_) | Tag::Table(_) => self.block(),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(_) => {
                if let Some((start, front)) = self.heading.take() {
                    self.end_of_heading(start, front);
                }
                self.apart(2);
            }
            TagEnd::HtmlBlock => {
                let plain = html::plain(&self.html.take().unwrap_or_default());
                self.verbatim(&plain);
                self.apart(2);
            }
            TagEnd::CodeBlock => {
                self.code = false;
                self.out.truncate(self.out.trim_end_matches('\n').len());
                self.apart(2);
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.apart(if self.lists.is_empty() { 2 } else { 1 });
            }
            TagEnd::Item => {
                self.fresh_item = false;
                self.apart(1);
            }
            TagEnd::TableHead | TagEnd::TableRow => self.apart(1),
            TagEnd::Paragraph | TagEnd::BlockQuote(_) | TagEnd::Table | TagEnd::FootnoteDefinition => {
                self.apart(if self.lists.is_empty() { 2 } else { 1 });
            }
            _ => {}
        }
    }

    fn end_of_heading(&mut self, start: usize, front: bool) {
        // Breaks were written between the heading's place and its text.
        let heading = self.out[start..].trim().to_owned();
        let title = match &self.given {
            Some(given) => *given == heading,
            None => self.first.is_none(),
        };
        if self.first.is_none() && !heading.is_empty() {
            self.first = Some(heading);
        }
        if title && front {
            self.out.truncate(start);
            self.breaks = 0;
        }
    }

    /// Begins a block: apart from what stands before, unless it opens an item.
    fn block(&mut self) {
        if self.fresh_item {
            self.fresh_item = false;
        } else {
            self.apart(if self.lists.is_empty() { 2 } else { 1 });
        }
    }

    /// At least `breaks` line breaks come before the next text.
    fn apart(&mut self, breaks: usize) {
        self.breaks = self.breaks.max(breaks);
    }

    fn flush(&mut self) {
        let breaks = std::mem::take(&mut self.breaks);
        if breaks > 0 && !self.out.is_empty() {
            self.out.truncate(self.out.trim_end_matches(' ').len());
            self.out.extend(std::iter::repeat_n('\n', breaks));
        }
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.fresh_item = false;
        if self.breaks > 0 && text.trim().is_empty() {
            return;
        }
        self.flush();
        self.out.push_str(text);
    }

    fn verbatim(&mut self, text: &str) {
        if !text.is_empty() {
            self.flush();
            self.out.push_str(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_go_and_text_stays() {
        let source = "\
# Leave *policy*

You get **25 days**
a [year](https://example.com \"x\"), `max` 30.<br>Ask ![the desk](desk.png).

## Rules

- first
- second
  - nested

  more of second
1. one
2. two

| who | days |
|-----|-----:|
| new | 25 |
| old | 30 |

```python
def f():
    return 1
```

> quoted
> text

<div>some <b>html</b><script>evil()</script></div>
<!-- a comment -->

- [x] done

The end[^1].

[^1]: A note.
";
        let parsed = parse(source);
        assert_eq!(parsed.title.as_deref(), Some("Leave policy"));
        let expected = "\
You get 25 days a year, max 30.
Ask the desk.

Rules

- first
- second
  - nested
more of second

1. one
2. two

who | days
new | 25
old | 30

def f():
    return 1

quoted text

some html

- [x] done

The end[1].

[1] A note.";
        assert_eq!(parsed.text, expected);
        assert_eq!(parsed.metadata, None);
    }

    #[test]
    fn front_matter_is_metadata() {
        let parsed = parse("---\ntitle: \"Leave\"\nowner: HR team\n# a comment\nurl: https://x.org/a:b\n---\n# Leave\n\nText.\n");
        assert_eq!(parsed.title.as_deref(), Some("Leave"));
        assert_eq!(parsed.text, "Text.");
        let metadata = parsed.metadata.unwrap();
        assert_eq!(serde_json::to_string(&metadata).unwrap(), r#"{"owner":"HR team","url":"https://x.org/a:b"}"#);

        let json = |source: &str| serde_json::to_string(&parse(source).metadata).unwrap();
        assert_eq!(json("---\ntags:\n  - a\n---\nText.\n"), r#"{"tags":["a"]}"#);
        let source = "---\ntitle: Leave\ntags:\n- a\n- 2\nversion: 1.10\nof: {team: HR, since: 2019}\nabout: >\n  Two\n  lines\n---\nText.\n";
        assert_eq!((parse(source).title.as_deref(), parse(source).text.as_str()), (Some("Leave"), "Text."));
        assert_eq!(json(source), r#"{"tags":["a",2],"version":"1.10","of":{"team":"HR","since":2019},"about":"Two lines\n"}"#);
        assert_eq!(parse("---\ntitle: |\n  Long\n---\nText.").title.as_deref(), Some("Long"));
        assert_eq!(json("---\nowner: [HR\nof: x\n---\nText.\n"), r#"{"front_matter":"owner: [HR\nof: x"}"#);

        let parsed = parse("---\n\nJust text\n\n---\n\nmore");
        assert_eq!(parsed.metadata, None);
        assert!(parsed.text.contains("Just text") && parsed.text.contains("more"));
    }

    #[test]
    fn front_matter_that_grows_stays_as_it_is() {
        let deep = format!("---\na: {}{}\n---\nText.", "[".repeat(100), "]".repeat(100));
        let many = format!("---\na: [{}]\n---\nText.", "1,".repeat(MOST_VALUES + 1));
        let mut aliases = "---\na0: &a0 [x, x]\n".to_owned();
        for n in 1..30 {
            aliases.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
        }
        for source in [deep, many, aliases + "---\nText."] {
            let metadata = parse(&source).metadata.unwrap();
            assert!(metadata["front_matter"].is_string() && metadata.len() == 1);
        }
    }

    #[test]
    fn a_later_heading_is_title_and_text() {
        let parsed = parse("Intro.\n\n# Heading\n\nText.");
        assert_eq!(parsed.title.as_deref(), Some("Heading"));
        assert_eq!(parsed.text, "Intro.\n\nHeading\n\nText.");
        let parsed = parse("---\ntitle: Other\n---\n# Heading\n\nText.");
        assert_eq!(parsed.title.as_deref(), Some("Other"));
        assert_eq!(parsed.text, "Heading\n\nText.");
        assert_eq!(parse("").text, "");
    }
}
