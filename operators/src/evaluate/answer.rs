//! What a model that writes has answered, and whether it is right.

use std::collections::HashMap;

/// The word that an answer stands behind.
const WORD: &str = "Answer";

/// The letter of option `index`: `A` to `Z`, then numbers from 27.
pub(crate) fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index @ 0..26) => char::from(b'A' + index).to_string(),
        _ => (index + 1).to_string(),
    }
}

/// What stands behind the last `Answer:`, up to the end of its line and stripped of markup: at the beginning of a line in
/// any case, elsewhere with a capital only, so that `no answer: …` in a sentence isn't one. `None` without one, or if it is
/// empty.
pub(crate) fn final_answer(text: &str) -> Option<&str> {
    let markup = |c: char| c.is_whitespace() || matches!(c, '*' | '_' | '`' | '#' | '>');
    let after = |rest: &'_ str| rest.trim_start_matches(['*', '_']).starts_with(':');
    let answer = text.lines().rev().find_map(|line| {
        let line = line.trim_start_matches(markup);
        let begins = line.get(..WORD.len()).is_some_and(|word| word.eq_ignore_ascii_case(WORD)).then_some(0);
        let place = [line.rfind(WORD), begins].into_iter().flatten().find(|place| after(&line[place + WORD.len()..]))?;
        line[place + WORD.len()..].split_once(':').map(|(_, answer)| answer)
    })?;
    Some(answer.trim_matches(markup)).filter(|answer| !answer.is_empty())
}

/// Which option an answer names: by its text, or by its letter alone or in front of its text.
pub(crate) fn choice(answer: &str, options: &[String]) -> Option<usize> {
    let plain = |text: &str| text.trim().trim_end_matches('.').to_lowercase();
    if let Some(index) = options.iter().position(|option| plain(option) == plain(answer)) {
        return Some(index);
    }
    let answer = answer.trim().trim_start_matches(['(', '[']);
    let end = answer.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(answer.len());
    let (name, rest) = answer.split_at(end);
    let index = (0..options.len()).find(|index| letter(*index).eq_ignore_ascii_case(name))?;
    // `A dog` is no letter with something behind it.
    (rest.is_empty() || rest.starts_with(['.', ')', ']', ':', ','])).then_some(index)
}

/// A text as SQuAD compares it: lower case, without punctuation and without the articles, words apart by one space.
fn normalised(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    kept.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_owned).collect()
}

/// As many last words of a text as `answer` has, to be compared with it; `None` where the text has none.
pub(crate) fn last_words(text: &str, answer: &str) -> Option<String> {
    let (text, answer) = (normalised(text), normalised(answer));
    let start = text.len().saturating_sub(answer.len().max(1));
    (!text.is_empty()).then(|| text[start..].join(" "))
}

/// The option that stands last in a text, as whole words; of several that end at one place the longest.
pub(crate) fn last_option(text: &str, options: &[String]) -> Option<usize> {
    let text = normalised(text);
    let ends = options.iter().enumerate().filter_map(|(index, option)| {
        let option = normalised(option);
        let places = text.windows(option.len().max(1)).rposition(|words| words == option.as_slice())?;
        Some((places + option.len(), option.len(), std::cmp::Reverse(index)))
    });
    ends.max().map(|(_, _, index)| index.0)
}

/// Whether two answers are the same words.
pub(crate) fn exact_match(prediction: &str, answer: &str) -> bool {
    normalised(prediction) == normalised(answer)
}

/// F1 of the words of an answer against those of the right one, as multisets. Where either has none, 1 if both have none,
/// else 0.
pub(crate) fn token_f1(prediction: &str, answer: &str) -> f64 {
    let (prediction, answer) = (normalised(prediction), normalised(answer));
    if prediction.is_empty() || answer.is_empty() {
        return f64::from(u8::from(prediction == answer));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &answer {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in &prediction {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    // 2PR / (P + R), with P and R the common words over those of either side.
    2.0 * f64::from(common) / (prediction.len() + answer.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squad_scores() {
        assert!(exact_match("The Gull.", "gull"));
        assert!(exact_match("an  apple-tree", "Appletree"));
        assert!(!exact_match("two gulls", "gull"));
        assert_eq!(token_f1("the Gull and the Tern", "Gull"), 2.0 / 4.0);
        assert_eq!(token_f1("nine pilots", "nine pilots"), 1.0);
        assert_eq!(token_f1("nine nine", "nine"), 2.0 / 3.0);
        assert_eq!(token_f1("ten", "nine"), 0.0);
        assert_eq!((token_f1("the", "a"), token_f1("the", "nine")), (1.0, 0.0));
    }

    #[test]
    fn the_end_of_a_text_is_compared() {
        let words = |text, answer| last_words(text, answer);
        assert_eq!(words("It was built in 1911 by Elsa Holm.", "Elsa Holm").as_deref(), Some("elsa holm"));
        assert_eq!(words("Holm", "Elsa Holm").as_deref(), Some("holm"));
        assert_eq!((words("The.", "x"), words("", "x")), (None, None));
        let options = ["blue", "dark blue", "9 pilots", "red"].map(str::to_owned);
        for (text, option) in [
            ("It is red. No, it was painted dark blue.", Some(1)),
            ("Blue it was, says Ida.", Some(0)),
            ("19 pilots", None),
            ("The 9 pilots chose the red one, not the green.", Some(3)),
            ("", None),
        ] {
            assert_eq!(last_option(text, &options), option, "{text}");
        }
    }

    #[test]
    fn the_last_answer_line_counts() {
        for (text, answer) in [
            ("It is.\nAnswer: B", Some("B")),
            ("Answer: A\nNo, wait.\n**Answer:** C", Some("C")),
            ("**answer: nine pilots**\n\nI hope that helps.", Some("nine pilots")),
            ("> ANSWER : no colon right after", None),
            ("It gives no answer: none", None),
            ("It was lit in 1874. Answer: 1874", Some("1874")),
            ("Answer: A or Answer: B", Some("B")),
            ("I give **Answer**: *B*", Some("B")),
            ("Answer:", None),
            ("", None),
            ("Größe", None),
        ] {
            assert_eq!(final_answer(text), answer, "{text}");
        }
    }

    #[test]
    fn options_are_named_by_text_or_letter() {
        let options = ["18 metres", "C", "A dog", "34 metres"].map(str::to_owned);
        for (answer, index) in [
            ("18 Metres.", Some(0)),
            ("d", Some(3)),
            ("(A)", Some(0)),
            ("D) 34 metres", Some(3)),
            ("B. C", Some(1)),
            ("C", Some(1)),
            ("A dog", Some(2)),
            ("A cat", None),
            ("E", None),
            ("19 metres", None),
            ("", None),
        ] {
            assert_eq!(choice(answer, &options), index, "{answer}");
        }
        assert_eq!((letter(0), letter(25), letter(26)), ("A".into(), "Z".into(), "27".into()));
    }
}
