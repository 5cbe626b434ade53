//! HTML as readable plain text.

use dom_smoothie::{Article, Config, Readability, TextMode};
use serde_json::{Map, Value};

use super::document::Parsed;

/// Pages with more elements, or deeper nesting, are read without looking for the article: the search takes time that
/// grows faster than the page.
const MOST_ELEMENTS: usize = 200_000;
const DEEPEST: usize = 512;

/// No page nests its elements this deep; a parser takes time that grows with the square of it.
const TOO_DEEP: usize = 4096;

/// Elements that hold nothing or that end where the next one begins.
const NOT_NESTING: [&str; 30] = [
    "area", "base", "br", "col", "colgroup", "dd", "dt", "embed", "hr", "img", "input", "li", "link", "meta", "optgroup",
    "option", "p", "param", "rb", "rp", "rt", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr",
];

/// What is no text, wherever it stands.
const HIDDEN: &str = "script, style, noscript, template, head, svg, iframe, object";

/// Reads a page: its main content as text, without navigation and other boilerplate (Mozilla's Readability rules). If
/// there is nothing that looks like an article, all text of the body. The title is that of the article, or the first
/// heading. Metadata that the page gives about itself is kept: author, published, modified, language, site.
pub(super) fn parse(source: &str) -> Parsed {
    let config = Config { text_mode: TextMode::Formatted, ..Config::default() };
    let found = match Readability::new(source, None, Some(config)) {
        Ok(mut page) if moderate(&page) => {
            let heading = page.doc.select_single("h1").text();
            let heading = one_line(&heading);
            page.parse().ok().map(|article| (article, heading))
        }
        _ => None,
    };
    match found {
        Some((article, heading)) if !article.text_content.trim().is_empty() => {
            let title =
                Some(one_line(&article.title)).filter(|title| !title.is_empty()).or((!heading.is_empty()).then_some(heading));
            Parsed { title, text: tidy(&article.text_content), metadata: metadata(&article) }
        }
        _ => whole(source),
    }
}

/// The text of a piece of HTML, without looking for an article. Nothing, if it is nested too deep.
pub(super) fn plain(source: &str) -> String {
    if too_deep(source) { String::new() } else { whole(source).text }
}

/// Whether elements are nested so deep that the page is not for reading. Counts tags, without parsing.
pub(super) fn too_deep(source: &str) -> bool {
    let mut depth = 0_usize;
    for tag in source.split('<').skip(1) {
        let closes = tag.starts_with('/');
        let name = tag.trim_start_matches('/');
        let name = &name[..name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len())];
        if name.is_empty() || NOT_NESTING.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            continue;
        }
        depth = if closes { depth.saturating_sub(1) } else { depth + 1 };
        if depth > TOO_DEEP {
            return true;
        }
    }
    false
}

fn whole(source: &str) -> Parsed {
    let page = Readability::from(source);
    let first = |name: &str| Some(one_line(&page.doc.select_single(name).text())).filter(|text| !text.is_empty());
    let title = first("title").or_else(|| first("h1"));
    page.doc.select(HIDDEN).remove();
    let text = page.doc.body().map(|body| tidy(&body.formatted_text())).unwrap_or_default();
    Parsed { title, text, metadata: None }
}

/// Whether a page is small and flat enough to be searched.
fn moderate(page: &Readability) -> bool {
    let mut node = page.doc.root();
    let (mut nodes, mut depth) = (0, 0);
    loop {
        nodes += 1;
        if nodes > MOST_ELEMENTS || depth > DEEPEST {
            return false;
        }
        if let Some(child) = node.first_child() {
            node = child;
            depth += 1;
            continue;
        }
        loop {
            if let Some(sibling) = node.next_sibling() {
                node = sibling;
                break;
            }
            match node.parent() {
                Some(parent) => node = parent,
                None => return true,
            }
            depth -= 1;
        }
    }
}

fn metadata(article: &Article) -> Option<Map<String, Value>> {
    let fields = [
        ("author", &article.byline),
        ("published", &article.published_time),
        ("modified", &article.modified_time),
        ("language", &article.lang),
        ("site", &article.site_name),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| {
        let value = value.as_deref().map(str::trim).filter(|value| !value.is_empty())?;
        Some((name.to_owned(), Value::String(value.to_owned())))
    });
    Some(given.collect::<Map<_, _>>()).filter(|metadata| !metadata.is_empty())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// No space at the end of a line, at most one empty line in a row.
fn tidy(text: &str) -> String {
    let mut tidied = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.lines().map(str::trim_end) {
        if line.trim().is_empty() {
            empty += 1;
            continue;
        }
        if !tidied.is_empty() {
            tidied.push_str(if empty > 0 { "\n\n" } else { "\n" });
        }
        empty = 0;
        tidied.push_str(line);
    }
    tidied.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_article_stays_and_boilerplate_goes() {
        let paragraph = "The harbour office opened in 1871, and its clock, painted green, still runs four minutes late. ";
        let source = format!(
            "<html lang=en><head><title>The harbour office</title><meta name=author content='A. Clerk'>\
             <style>p {{ color: red }}</style><script>track()</script></head><body>\
             <nav><ul><li><a href=/>Home</a></li><li><a href=/about>About us</a></li></ul></nav>\
             <article><h1>The harbour office</h1><p>{p}</p><p>{p}</p><p>Tom &amp; Ann &lt;3.</p><ul><li>one</li><li>two</li></ul></article>\
             <footer>Cookie settings</footer></body></html>",
            p = paragraph.repeat(4)
        );
        let parsed = parse(&source);
        assert_eq!(parsed.title.as_deref(), Some("The harbour office"));
        assert!(parsed.text.contains("painted green, still runs"));
        assert!(parsed.text.contains("Tom & Ann <3."));
        for gone in ["track()", "color", "About us", "Cookie"] {
            assert!(!parsed.text.contains(gone), "{gone}: {}", parsed.text);
        }
        assert!(!parsed.text.contains("\n\n\n"));
        let metadata = parsed.metadata.unwrap();
        assert_eq!(metadata["author"], "A. Clerk");
        assert_eq!(metadata["language"], "en");
    }

    #[test]
    fn a_page_without_an_article_gives_its_body() {
        let parsed = parse("<h1>Hours</h1><table><tr><td>Mon</td><td>9</td></tr></table><script>x()</script>");
        assert!(parsed.text.contains("Mon"), "{}", parsed.text);
        assert!(!parsed.text.contains("x()"));
        assert_eq!(parsed.title.as_deref(), Some("Hours"));
        assert_eq!(parse("").text, "");
        assert_eq!(parse("<html><body></body></html>").text, "");
        assert_eq!(plain("a <b>bold</b> word<!-- no --><br>next"), "a bold word\nnext");
    }

    #[test]
    fn deep_nesting_is_survived() {
        let nested = |n: usize| format!("{}deep text{}", "<div>".repeat(n), "</div>".repeat(n));
        assert!(!moderate(&Readability::from(nested(4000).as_str())));
        assert_eq!(parse(&nested(4000)).text, "deep text");
        assert!(!too_deep(&nested(4000)) && too_deep(&nested(5000)));
        assert!(!too_deep(&"<p>word<br><b>x</b>".repeat(10_000)));
        assert!(too_deep(&"<b id=1>".repeat(5000)));
        assert_eq!(plain(&nested(5000)), "");
        let wide = "<p>word</p>".repeat(MOST_ELEMENTS / 2 + 10);
        assert!(!moderate(&Readability::from(wide.as_str())));
        assert!(moderate(&Readability::from("<p>word</p>")));
    }
}
