//! Words, sentences and the spans between them.

/// A word or a mark, with its place in the text it was cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    /// Whether a space stands before it.
    pub(super) spaced: bool,
}

impl Token {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), spaced: true }
    }

    pub(super) fn lower(&self) -> String {
        self.text.to_lowercase()
    }

    pub(super) fn is_word(&self) -> bool {
        self.text.chars().any(char::is_alphanumeric)
    }

    pub(super) fn is_capital(&self) -> bool {
        self.text.chars().next().is_some_and(char::is_uppercase)
    }

    pub(super) fn is_number(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_digit())
    }
}

const ABBREVIATIONS: &str = " mr mrs ms dr st no vs c ca cf e.g i.e prof rev gen col capt lt sgt jr sr inc ltd co corp dept \
    est approx fig al jan feb mar apr jun jul aug sep sept oct nov dec vol pp p u.s u.k a.m p.m ";

/// Whether `c` goes on inside a word when letters or digits stand on both sides.
fn joins(c: char) -> bool {
    matches!(c, '-' | '\'' | '’' | '.' | ',' | ':' | '/' | '–' | '&' | '%' | '°')
}

/// Cuts a text into words and marks. `1,200`, `22:15`, `24–10`, `U.S.`, `Levi's` and `well-known` are one word.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut spaced = true;
    let mut i = 0;
    while i < chars.len() {
        if chars[i].is_whitespace() {
            spaced = true;
            i += 1;
            continue;
        }
        let start = i;
        if chars[i].is_alphanumeric() || is_currency(chars[i]) && next_is(&chars, i, |c| c.is_ascii_digit()) {
            i += 1;
            while i < chars.len() {
                let c = chars[i];
                let inner = joins(c) && next_is(&chars, i, char::is_alphanumeric) && word_mark(&chars, start, i);
                if c.is_alphanumeric() || inner || c == '%' || c == '°' || is_mark_above(c) {
                    i += 1;
                } else {
                    break;
                }
            }
            let word: String = chars[start..i].iter().collect();
            if i < chars.len() && chars[i] == '.' && is_abbreviation(&word) {
                i += 1;
            }
        } else {
            i += 1;
        }
        out.push(Token { text: chars[start..i].iter().collect(), spaced });
        spaced = false;
    }
    out
}

/// A colon or comma belongs to a word only between digits; a stop between digits or single letters.
fn word_mark(chars: &[char], start: usize, at: usize) -> bool {
    let (before, after) = (chars[at - 1], chars[at + 1]);
    match chars[at] {
        ',' | ':' => before.is_ascii_digit() && after.is_ascii_digit(),
        '.' => {
            let lone = at - start == 1 || chars[at - 2] == '.';
            before.is_ascii_digit() && after.is_ascii_digit() || lone && before.is_alphabetic() && after.is_alphabetic()
        }
        '–' => before.is_ascii_digit() && after.is_ascii_digit() || before.is_alphabetic() && after.is_alphabetic(),
        _ => true,
    }
}

fn is_currency(c: char) -> bool {
    matches!(c, '$' | '£' | '€' | '¥')
}

fn is_mark_above(c: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&c)
}

fn next_is(chars: &[char], at: usize, test: impl Fn(char) -> bool) -> bool {
    chars.get(at + 1).copied().is_some_and(test)
}

fn is_abbreviation(word: &str) -> bool {
    let lone_capital = word.chars().count() == 1 && word.chars().all(char::is_uppercase) && word != "I";
    let dotted = word.contains('.') && word.chars().all(|c| c.is_alphabetic() || c == '.');
    lone_capital || dotted || ABBREVIATIONS.contains(&format!(" {} ", word.to_lowercase()))
}

/// The sentences of a text, each trimmed. Paragraph ends (an empty line) end sentences, too.
pub(super) fn sentences(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for paragraph in paragraphs(text) {
        let mut start = 0;
        for (at, c) in paragraph.char_indices() {
            if at >= start && matches!(c, '.' | '!' | '?') && ends_sentence(paragraph, start, at) {
                let end = at + closing(&paragraph[at..]);
                push_sentence(&mut out, &paragraph[start..end]);
                start = end;
            }
        }
        push_sentence(&mut out, &paragraph[start..]);
    }
    out
}

fn push_sentence<'a>(out: &mut Vec<&'a str>, sentence: &'a str) {
    let sentence = sentence.trim();
    if sentence.chars().any(char::is_alphanumeric) {
        out.push(sentence);
    }
}

/// Whether a line is an item of a list or a heading of its own.
fn starts_item(line: &str) -> bool {
    ["- ", "* ", "• ", "# ", "## ", "### "].iter().any(|mark| line.starts_with(mark))
}

/// The paragraphs of a text: cut at lines that hold nothing but space, and before the items of a list.
pub(super) fn paragraphs(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            out.push(text[start..at].trim());
            start = at + line.len();
        } else if starts_item(line.trim_start()) {
            out.push(text[start..at].trim());
            start = at;
        }
        at += line.len();
    }
    out.push(text[start..].trim());
    for paragraph in &mut out {
        if starts_item(paragraph) {
            *paragraph = paragraph.trim_start_matches(['-', '*', '•', '#', ' ']);
        }
    }
    out.retain(|paragraph| !paragraph.is_empty());
    out
}

/// The length of a sentence's end: its marks and the quotes and brackets that close with it.
fn closing(rest: &str) -> usize {
    let is_end = |c: char| matches!(c, '.' | '!' | '?' | '"' | '”' | '’' | '\'' | ')' | ']');
    rest.find(|c: char| !is_end(c)).unwrap_or(rest.len())
}

fn ends_sentence(text: &str, start: usize, at: usize) -> bool {
    let after = &text[at + closing(&text[at..])..];
    if after.is_empty() {
        return true;
    }
    let next = after.trim_start();
    if next.len() == after.len() || !next.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit() || "\"“‘'([".contains(c))
    {
        return false;
    }
    let before = &text[start..at];
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or(before);
    !(text[at..].starts_with('.') && is_abbreviation(word) && !matches!(word, "a.m" | "p.m" | "U.S" | "U.K"))
}

/// The text of tokens, spaced as they were.
pub(super) fn join(tokens: &[Token]) -> String {
    let mut out = String::new();
    for (i, token) in tokens.iter().enumerate() {
        if i > 0 && token.spaced {
            out.push(' ');
        }
        out.push_str(&token.text);
    }
    out
}

/// `text` with a capital first letter.
pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Words in lower case, letters and digits only: what two texts are compared by.
pub(super) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether the words of `part` stand in `whole`, in a row.
pub(super) fn contains_words(whole: &str, part: &str) -> bool {
    let (whole, part) = (words(whole), words(part));
    !part.is_empty() && whole.windows(part.len()).any(|window| window == part)
}

/// A number that follows from texts and nothing else; texts are kept apart.
pub(super) fn seed(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mixed(hash)
}

/// Spreads a number over all bits (the finisher of splitmix64).
pub(super) fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// An element chosen by a number.
pub(super) fn pick<T>(items: &[T], seed: u64) -> Option<&T> {
    let n = items.len() as u64;
    (n > 0).then(|| &items[(seed % n) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_marks() {
        let cut = |text: &str| tokens(text).into_iter().map(|token| token.text).collect::<Vec<_>>();
        assert_eq!(cut("At 22:15, Levi's well-known 1,200 m."), ["At", "22:15", ",", "Levi's", "well-known", "1,200", "m", "."]);
        assert_eq!(
            cut("(24–10) in the U.S. for $1.2 or 45%"),
            ["(", "24–10", ")", "in", "the", "U.S.", "for", "$1.2", "or", "45%"]
        );
        let text = "He said: \"No, not 'that' one!\" (Dr. E. Fenn)";
        assert_eq!(join(&tokens(text)), text);
    }

    #[test]
    fn sentences_end_where_they_should() {
        let text =
            "Dr. E. Fenn came at 3.5 km. \"Why?\" she asked. It was 4 p.m. Then she left.\nA line\n\nA heading\n\nNo. 5 is here!";
        let expected = [
            "Dr. E. Fenn came at 3.5 km.",
            "\"Why?\" she asked.",
            "It was 4 p.m.",
            "Then she left.",
            "A line",
            "A heading",
            "No. 5 is here!",
        ];
        assert_eq!(sentences(text), expected);
    }

    #[test]
    fn items_of_a_list_are_sentences_of_their_own() {
        assert_eq!(
            sentences("# Hours\nOpen:\n- The door at 6.\n- the gate at 7"),
            ["Hours\nOpen:", "The door at 6.", "the gate at 7"]
        );
    }

    #[test]
    fn words_in_a_row() {
        assert!(contains_words("Built in 1912, by Ada", "1912 by"));
        assert!(!contains_words("Built in 1912", "191"));
        assert!(!contains_words("anything", "?"));
    }
}
