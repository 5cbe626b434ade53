//! Plain text.

use super::document::Parsed;

/// The longest first line that is taken for a title, in characters.
const LONGEST_TITLE: usize = 120;

/// Reads plain text. Its first line is the title if it is short, doesn't end like a sentence, and an empty line and more
/// text follow; the title is then no part of the text. Line breaks become `\n`.
pub(super) fn parse(text: &str) -> Parsed {
    let text = line_breaks(text);
    let text = text.trim();
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let first = first.trim();
    let apart = rest.lines().next().is_some_and(|line| line.trim().is_empty());
    let short = first.chars().count() <= LONGEST_TITLE && !first.ends_with(['.', '!', '?', ':', ';', ',', '…', '。']);
    if apart && short {
        return Parsed { title: Some(first.to_owned()), text: rest.trim().to_owned(), metadata: None };
    }
    Parsed { title: None, text: text.to_owned(), metadata: None }
}

/// `text` with `\n` as its only line break.
pub(super) fn line_breaks(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_first_line_apart_is_the_title() {
        let both = |text: &str| {
            let parsed = parse(text);
            (parsed.title, parsed.text)
        };
        assert_eq!(
            both("\n Leave policy \r\n\r\nYou get 25 days.\r\nMore."),
            (Some("Leave policy".into()), "You get 25 days.\nMore.".into())
        );
        assert_eq!(both("A sentence.\n\nAnother."), (None, "A sentence.\n\nAnother.".into()));
        assert_eq!(both("One line\nanother"), (None, "One line\nanother".into()));
        assert_eq!(both("Only a line"), (None, "Only a line".into()));
        assert_eq!(both("Only a line\n\n"), (None, "Only a line".into()));
        let long = "word ".repeat(40);
        assert_eq!(both(&format!("{long}\n\ntext")).0, None);
    }
}
