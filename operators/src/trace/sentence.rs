//! Sentences of a text that hold an answer.

use std::collections::HashSet;

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

/// A sentence of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sentence {
    /// Where it begins, in bytes of the text.
    pub byte_start: usize,
    /// Where it ends.
    pub byte_end: usize,
    /// The sentence, spaces and line ends made one space.
    pub text: String,
}

/// The sentences of a text in which `answer` stands as whole words, case and spaces aside: those first that share the most words
/// with `question`.
pub(super) fn holding(text: &str, answer: &str, question: &str, limit: usize) -> Vec<Sentence> {
    let answer = plain(answer);
    let answer = answer.trim_matches(|c: char| !c.is_alphanumeric());
    if answer.is_empty() {
        return Vec::new();
    }
    let question = plain(question);
    let asked: HashSet<&str> = question.unicode_words().collect();
    let mut found: Vec<(usize, Sentence)> = sentences(text)
        .filter_map(|(start, sentence)| {
            let plain = plain(sentence);
            let shared = || plain.unicode_words().collect::<HashSet<_>>().intersection(&asked).count();
            stands_in(&plain, answer).then(|| {
                let text = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
                let (before, after) = (sentence.len() - sentence.trim_start().len(), sentence.trim_end().len());
                (shared(), Sentence { byte_start: start + before, byte_end: start + after, text })
            })
        })
        .collect();
    found.sort_by_key(|(shared, sentence)| (std::cmp::Reverse(*shared), sentence.byte_start));
    found.into_iter().take(limit).map(|(_, sentence)| sentence).collect()
}

/// Whether `words` stand in a text as whole words, case and spaces aside.
pub(super) fn holds(text: &str, words: &str) -> bool {
    let words = plain(words);
    let words = words.trim_matches(|c: char| !c.is_alphanumeric());
    !words.is_empty() && stands_in(&plain(text), words)
}

/// Lower case, with one space between words.
fn plain(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `words` stands in a text with no letter or digit beside it.
fn stands_in(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(start, _)| {
        let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !is_word(text[..start].chars().next_back()) && !is_word(text[start + words.len()..].chars().next())
    })
}

/// The sentences of a text, each with where it begins. A line end within a paragraph ends none.
fn sentences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut lines = text.as_bytes().to_vec();
    for place in 0..lines.len() {
        let next = lines.get(place + 1).copied().unwrap_or(b'\n');
        let ends = place == 0 || lines[place - 1] == b'\n' || next.is_ascii_whitespace() || b"-*+#|>`~=".contains(&next);
        if lines[place] == b'\n' && !ends {
            lines[place] = b' ';
        }
    }
    // One byte stands for another: every boundary is one of the text's, too.
    let lines = String::from_utf8(lines).unwrap_or_default();
    let bounds: Vec<(usize, usize)> =
        lines.split_sentence_bound_indices().map(|(start, sentence)| (start, start + sentence.len())).collect();
    bounds.into_iter().map(move |(start, end)| (start, &text[start..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# Northwind\n\nThe Aurora carries 120\npassengers. She was built in 1987.\n\n- Fare: 7 crowns\n- Dogs: free\n";

    fn found(answer: &str, question: &str) -> Vec<String> {
        let found = holding(TEXT, answer, question, 3);
        for sentence in &found {
            let there = &TEXT[sentence.byte_start..sentence.byte_end];
            assert_eq!(there.split_whitespace().collect::<Vec<_>>().join(" "), sentence.text);
        }
        found.into_iter().map(|sentence| sentence.text).collect()
    }

    #[test]
    fn an_answer_stands_as_whole_words_over_line_ends() {
        assert_eq!(found("120 Passengers.", ""), ["The Aurora carries 120 passengers."]);
        assert_eq!(found("7", "What is the fare?"), ["- Fare: 7 crowns"]);
        assert_eq!(found("1987", ""), ["She was built in 1987."]);
        assert!(found("987", "").is_empty() && found("", "").is_empty() && found("!", "").is_empty());
    }

    #[test]
    fn the_sentence_that_the_question_is_about_comes_first() {
        let text = "Ida runs the office. Ida Brandt founded the company. Ida sings.";
        let found = holding(text, "Ida", "Who founded the company?", 2);
        assert_eq!(found[0].text, "Ida Brandt founded the company.");
        assert_eq!(found.len(), 2);
    }
}
