//! How a question and its answer become text, for training and for evaluation alike.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a question and its answer become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Render {
    /// `Question: …`, a new line, `Answer: …`.
    #[default]
    Qa,
    /// The checkpoint's chat template. Not built yet.
    Chat,
}

/// What stands before the answer, without a space at the end: the answer brings its own. An empty question leaves the
/// frame.
pub(crate) fn prompt(question: &str) -> String {
    match question.trim() {
        "" => "Question:\nAnswer:".to_owned(),
        question => format!("Question: {question}\nAnswer:"),
    }
}

/// The question in what [`prompt`] made of it; `prompt` itself if it is none of these.
pub(crate) fn question(prompt: &str) -> &str {
    let inner = prompt.strip_prefix("Question:").and_then(|rest| rest.strip_suffix("\nAnswer:"));
    inner.map_or(prompt, str::trim)
}

/// The answer after its explanation, or either alone. An explanation that ends in the answer stands for both.
pub(crate) fn completion(explanation: Option<&str>, answer: &str) -> String {
    let (explanation, answer) = (explanation.unwrap_or_default().trim(), answer.trim());
    if explanation.is_empty() {
        answer.to_owned()
    } else if ends_with(explanation, answer) {
        explanation.to_owned()
    } else {
        format!("{explanation} {answer}")
    }
}

/// Whether `text` ends with the words of `end`; case and what surrounds the words don't count.
fn ends_with(text: &str, end: &str) -> bool {
    let words = |text: &str| text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let (text, end) = (words(text), words(end));
    let before = text.strip_suffix(end.as_str());
    !end.is_empty() && before.is_some_and(|before| !before.ends_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_not_said_twice() {
        for (explanation, answer, text) in [
            (None, " Ida Brandt ", "Ida Brandt"),
            (Some(" "), "1874", "1874"),
            (Some("It was founded by Ida Brandt."), "Ida Brandt", "It was founded by Ida Brandt."),
            (Some("It was founded by ida brandt"), "Ida Brandt.", "It was founded by ida brandt"),
            (Some("The count is 14"), "4", "The count is 14 4"),
            (Some("Ida Brandt."), "Ida Brandt", "Ida Brandt."),
            (Some("It is unclear."), "?", "It is unclear. ?"),
            (Some("She was an engineer."), "Ida Brandt", "She was an engineer. Ida Brandt"),
        ] {
            assert_eq!(completion(explanation, answer), text);
        }
    }

    #[test]
    fn the_empty_question_leaves_the_frame() {
        assert_eq!(prompt(" Who? "), "Question: Who?\nAnswer:");
        assert_eq!(prompt(""), "Question:\nAnswer:");
        assert_eq!(question(&prompt(" Who? ")), "Who?");
        assert_eq!(question("Who?"), "Who?");
    }
}
