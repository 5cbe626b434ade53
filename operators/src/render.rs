//! How a question and its answer become text, for training and for evaluation alike.

use std::collections::BTreeMap;

use ingrain_engine::failure::Failure;
use ingrain_llm::{Message, Role};
use ingrain_student::{ChatError, ChatTemplate, Example, Tokenizer, Turn};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a question and its answer become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Render {
    /// `Question: …`, a new line, `Answer: …`.
    #[default]
    Qa,
    /// The checkpoint's chat template: the question is the user's turn, the answer the assistant's.
    Chat,
}

impl Render {
    /// As it is written in a pipeline file.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Qa => "qa",
            Self::Chat => "chat",
        }
    }

    /// The one that is written so.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Qa, Self::Chat].into_iter().find(|render| render.as_str() == name)
    }
}

/// A message as a turn of a chat template.
pub(crate) fn turn(message: &Message) -> Turn<'_> {
    Turn { role: message.role.as_str(), content: &message.content }
}

/// A tokenizer with a chat template.
#[derive(Debug, Clone)]
pub(crate) struct Chat {
    template: ChatTemplate,
    tokenizer: Tokenizer,
}

/// A question with its answer in a chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// The turns, as JSON.
    pub(crate) messages: String,
    /// The whole text.
    pub(crate) text: String,
    /// The bytes of it that stand before the answer.
    pub(crate) prompt: usize,
    /// Its tokens.
    pub(crate) tokens: usize,
}

impl Chat {
    /// The template among a checkpoint's or a tokenizer's small files.
    ///
    /// # Errors
    /// When there is none, or it can't be used.
    pub(crate) fn of(files: &BTreeMap<String, Vec<u8>>, tokenizer: Tokenizer) -> Result<Self, Failure> {
        let template = ChatTemplate::of(files).map_err(|error| Failure::data(error.to_string()))?;
        let template = template.ok_or_else(|| {
            Failure::data("there is no chat template beside the tokenizer")
                .hint("take a checkpoint that has one, or give `tokenizer` a `chat_template`")
        })?;
        Ok(Self { template, tokenizer })
    }

    /// The token that ends an answer.
    ///
    /// # Errors
    /// When the template fails.
    pub(crate) fn end_id(&self) -> Result<u32, ChatError> {
        self.template.end_id(&self.tokenizer)
    }

    /// The tokens that a question is asked with.
    ///
    /// # Errors
    /// When the template fails on the question.
    pub(crate) fn asked(&self, question: &str) -> Result<Vec<u32>, ChatError> {
        self.template.encode(&self.tokenizer, &[Turn { role: "user", content: question }], true)
    }

    /// The tokens in front of an answer, and the answer's own, without what ends it.
    ///
    /// # Errors
    /// When the template fails on them.
    pub(crate) fn answered(&self, question: &str, answer: &str) -> Result<(Vec<u32>, Vec<u32>), ChatError> {
        let turns = [Turn { role: "user", content: question }, Turn { role: "assistant", content: answer }];
        let Example { ids, answer, .. } = self.template.example(&self.tokenizer, &turns)?;
        Ok((ids[..answer.start].to_vec(), ids[answer].to_vec()))
    }

    /// A question with its answer.
    ///
    /// # Errors
    /// When the template fails on them.
    pub(crate) fn exchange(&self, question: &str, answer: &str) -> Result<Exchange, ChatError> {
        let messages =
            [Message { role: Role::User, content: question.into() }, Message { role: Role::Assistant, content: answer.into() }];
        let turns = messages.each_ref().map(turn);
        let text = self.template.render(&turns, false)?;
        let asked = self.template.render(&turns[..1], true)?;
        let alike = text.char_indices().zip(asked.chars()).find(|((_, one), other)| one != other);
        let prompt = alike.map_or(asked.len().min(text.len()), |((place, _), _)| place);
        let tokens = self.template.example(&self.tokenizer, &turns)?.ids.len();
        // Texts have a JSON form always.
        let messages = serde_json::to_string(&messages).unwrap_or_default();
        Ok(Exchange { messages, text, prompt, tokens })
    }

    /// The tokens of a conversation that is kept as [`Exchange::messages`], with those of its prompt.
    ///
    /// # Errors
    /// When it is no conversation, or the template fails on it.
    pub(crate) fn example(&self, messages: &str) -> Result<Example, Failure> {
        let messages: Vec<Message> = serde_json::from_str(messages)
            .map_err(|error| Failure::data(format!("`messages` holds no conversation: {error}")))?;
        let turns: Vec<Turn<'_>> = messages.iter().map(turn).collect();
        self.template.example(&self.tokenizer, &turns).map_err(|error| Failure::data(error.to_string()))
    }
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
    fn a_conversation_is_the_same_for_training_and_for_an_exam() {
        let texts = ["Who keeps the light? Lotte Amsel keeps the light.", "<think>user</think>assistant"];
        let json = ingrain_student::tokenizer::train(texts.iter().cycle().take(4), 270).unwrap().json;
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        let template = "{% for m in messages %}<|begin|>{{ m.role }}: {% if m.role == 'assistant' %}<think></think>{% endif %}\
                        {{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|begin|>assistant: {% endif %}";
        let files = |template: &str| BTreeMap::from([("chat_template.jinja".to_owned(), template.as_bytes().to_vec())]);
        let chat = Chat::of(&files(template), tokenizer.clone()).unwrap();
        let whole = chat.exchange("Who <|end|>?", "Lotte.").unwrap();
        assert_eq!(whole.text, "<|begin|>user: Who <|end|>?<|end|>\n<|begin|>assistant: <think></think>Lotte.<|end|>\n");
        assert_eq!(&whole.text[..whole.prompt], "<|begin|>user: Who <|end|>?<|end|>\n<|begin|>assistant: ");
        let learnt = chat.example(&whole.messages).unwrap();
        assert_eq!((learnt.ids.len(), &learnt.ids[..learnt.prompt]), (whole.tokens, &chat.asked("Who <|end|>?").unwrap()[..]));
        assert_eq!(learnt.ids.iter().filter(|id| tokenizer.is_special(**id)).count(), 4);
        let (before, answer) = chat.answered("Who <|end|>?", "Lotte.").unwrap();
        assert_eq!(tokenizer.decode(&answer).unwrap(), "Lotte.");
        assert_eq!([before, answer].concat(), learnt.ids[..learnt.ids.len() - 2]);
        assert_eq!(chat.end_id().unwrap(), tokenizer.end_id());

        assert!(Chat::of(&BTreeMap::new(), tokenizer).unwrap_err().message.contains("no chat template"));
        let wrong = |messages: &str| chat.example(messages).unwrap_err().message;
        assert!(wrong("[{\"role\":\"end|>\",\"content\":\"\"}]").contains("`messages` holds no conversation"));
    }

    #[test]
    fn the_empty_question_leaves_the_frame() {
        assert_eq!(prompt(" Who? "), "Question: Who?\nAnswer:");
        assert_eq!(prompt(""), "Question:\nAnswer:");
        assert_eq!(question(&prompt(" Who? ")), "Who?");
        assert_eq!(question("Who?"), "Who?");
    }
}
