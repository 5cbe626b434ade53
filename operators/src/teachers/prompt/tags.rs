//! The tags of a template: where its words stand.

/// The inside of `{{ … }}` or `{% … %}`.
#[derive(Debug)]
pub(super) struct Tag<'a> {
    /// The line in which it begins, from 1.
    line: usize,
    is_statement: bool,
    inside: &'a str,
}

/// The tags of a template that compiles, without what stands in comments and raw blocks.
pub(super) fn tags(source: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    let (mut at, mut line, mut counted) = (0, 1, 0);
    while let Some(place) = source[at..].find('{') {
        let start = at + place;
        let (is_statement, close) = match source.as_bytes().get(start + 1) {
            Some(b'{') => (false, "}}"),
            Some(b'%') => (true, "%}"),
            Some(b'#') => {
                at = source[start + 2..].find("#}").map_or(source.len(), |end| start + 2 + end + 2);
                continue;
            }
            _ => {
                at = start + 1;
                continue;
            }
        };
        line += source[counted..start].matches('\n').count();
        counted = start;
        let inside = &source[start + 2..];
        let inside = &inside[..end(inside, close)];
        let tag = Tag { line, is_statement, inside };
        let after = (start + 2 + inside.len() + close.len()).min(source.len());
        at = match tag.statement() {
            Some("raw") => {
                let is_end = |(place, _): &(usize, &str)| first(&source[after + place + 2..]) == Some("endraw");
                source[after..].match_indices("{%").find(is_end).map_or(source.len(), |(place, _)| after + place)
            }
            _ => after,
        };
        tags.push(tag);
    }
    tags
}

impl<'a> Tag<'a> {
    /// The line in which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The word that says what a statement does; `None` for an expression.
    pub(super) fn statement(&self) -> Option<&'a str> {
        if self.is_statement { first(self.inside) } else { None }
    }

    /// Its words with their lines, without those in strings and those after a point.
    pub(super) fn words(&self) -> Vec<(usize, &'a str)> {
        let mut words = Vec::new();
        let (mut at, mut line, mut is_member) = (0, self.line, false);
        while let Some(c) = self.inside[at..].chars().next() {
            let rest = &self.inside[at..];
            let length = match c {
                '"' | '\'' => string(rest),
                c if is_word(c) => word(rest).len(),
                c => c.len_utf8(),
            };
            if is_word(c) && !is_member {
                words.push((line, &rest[..length]));
            }
            line += rest[..length].matches('\n').count();
            is_member = c == '.';
            at += length;
        }
        words
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The word at the start of `text`.
fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The first word inside a tag.
fn first(inside: &str) -> Option<&str> {
    Some(word(inside.trim_start_matches(['-', '+']).trim_start())).filter(|word| !word.is_empty())
}

/// How long the string is that `text` begins with.
fn string(text: &str) -> usize {
    let quote = text.chars().next();
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if Some(c) == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Where the inside of a tag ends.
fn end(inside: &str, close: &str) -> usize {
    let mut at = 0;
    while let Some(c) = inside[at..].chars().next() {
        at += match c {
            '"' | '\'' => string(&inside[at..]),
            _ if inside[at..].starts_with(close) => return at,
            c => c.len_utf8(),
        };
    }
    inside.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<(usize, &str)> {
        tags(source).iter().flat_map(Tag::words).collect()
    }

    #[test]
    fn words_stand_in_tags_with_their_lines() {
        assert_eq!(found("text {a}\n{{ a.b }}\n{%- if\n c -%} é {{ 'x }} d' ~ e }}"), [(2, "a"), (3, "if"), (4, "c"), (4, "e")]);
        assert_eq!(found("{# {{ a }}\n #}{{ b }}{"), [(2, "b")]);
        assert_eq!(found("{% raw %}{{ a }}\n{% include 'x' %}{%- endraw -%}{{ b }}"), [(1, "raw"), (2, "endraw"), (2, "b")]);
        assert!(found(r#"{{ "\"}}" }}{{ "open"#).is_empty());
    }

    #[test]
    fn statements_are_told_from_expressions() {
        let statements: Vec<_> = tags("{{ include }}{%+ include 'a' %}{% %}").iter().map(Tag::statement).collect();
        assert_eq!(statements, [None, Some("include"), None]);
    }
}
