//! Rows as conversations.

use arrow::{array::RecordBatch, datatypes::Schema};
use ingrain_engine::failure::Failure;
use serde_json::{Value, json};

use crate::{
    columns::{optional_text, text},
    render,
};

/// How a table's rows become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conversation {
    /// `question`, `answer` and perhaps `explanation`.
    Questions,
    /// `messages`, or `text` that begins with `prompt`, or is all the assistant's where that is null.
    Mixture,
    /// `text` alone.
    Texts,
}

impl Conversation {
    /// What the columns allow.
    ///
    /// # Errors
    /// When they hold neither a question with its answer nor a text.
    pub(super) fn of(schema: &Schema) -> Result<Self, Failure> {
        let has = |name: &str| schema.field_with_name(name).is_ok();
        if has("question") && has("answer") {
            Ok(Self::Questions)
        } else if has("prompt") && has("text") {
            Ok(Self::Mixture)
        } else if has("text") {
            Ok(Self::Texts)
        } else {
            let names: Vec<_> = schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
            Err(Failure::data(format!("the columns {} make no conversation", names.join(", ")))
                .hint("`chat` needs `question` and `answer`, or `text`; `jsonl` takes any columns"))
        }
    }

    /// One line of the file, without its end.
    pub(super) fn line(self, batch: &RecordBatch, row: usize) -> Result<Value, Failure> {
        let message = |role: &str, content: &str| json!({ "role": role, "content": content });
        let messages = match self {
            Self::Questions => {
                let answer = optional_text(batch, "answer", row)?.unwrap_or_default();
                let said = render::completion(optional_text(batch, "explanation", row)?, answer);
                vec![message("user", optional_text(batch, "question", row)?.unwrap_or_default()), message("assistant", &said)]
            }
            Self::Mixture => {
                if let Some(turns) = optional_text(batch, "messages", row)? {
                    let messages: Value = serde_json::from_str(turns)
                        .map_err(|error| Failure::data(format!("`messages` holds no conversation: {error}")))?;
                    return Ok(json!({ "row_id": text(batch, "row_id")?.value(row), "messages": messages }));
                }
                let text = optional_text(batch, "text", row)?.unwrap_or_default();
                match optional_text(batch, "prompt", row)? {
                    Some(prompt) => {
                        let said = text.strip_prefix(prompt).unwrap_or(text).trim_start();
                        vec![message("user", render::question(prompt)), message("assistant", said)]
                    }
                    None => vec![message("assistant", text)],
                }
            }
            Self::Texts => vec![message("assistant", optional_text(batch, "text", row)?.unwrap_or_default())],
        };
        Ok(json!({ "row_id": text(batch, "row_id")?.value(row), "messages": messages }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn batch(columns: &[(&str, Option<&str>)]) -> RecordBatch {
        let id = [("row_id", Some("a"))];
        let columns = id.iter().chain(columns);
        RecordBatch::try_from_iter_with_nullable(
            columns.map(|(name, value)| (*name, Arc::new(StringArray::from(vec![*value])) as ArrayRef, true)),
        )
        .unwrap()
    }

    fn messages(columns: &[(&str, Option<&str>)]) -> Value {
        let batch = batch(columns);
        Conversation::of(&batch.schema()).unwrap().line(&batch, 0).unwrap()["messages"].take()
    }

    #[test]
    fn a_question_is_the_users() {
        let pair = [("question", Some("Who?")), ("answer", Some("Ida Brandt")), ("explanation", Some("She founded it."))];
        let said =
            json!([{ "role": "user", "content": "Who?" }, { "role": "assistant", "content": "She founded it. Ida Brandt" }]);
        assert_eq!(messages(&pair), said);
        let prompt = render::prompt("Who?");
        let text = format!("{prompt} She founded it. Ida Brandt");
        assert_eq!(messages(&[("prompt", Some(&prompt)), ("text", Some(&text))]), said);
    }

    #[test]
    fn turns_stay_what_they_were() {
        let turns = json!([{ "role": "user", "content": "Who?" }, { "role": "assistant", "content": "Ida" }]);
        let kept = turns.to_string();
        assert_eq!(messages(&[("prompt", Some("<u>Who?")), ("text", Some("<u>Who?<a>Ida")), ("messages", Some(&kept))]), turns);
        let document = [("prompt", None), ("text", Some("A text.")), ("messages", None)];
        assert_eq!(messages(&document), json!([{ "role": "assistant", "content": "A text." }]));
    }

    #[test]
    fn a_document_is_the_assistants() {
        let said = json!([{ "role": "assistant", "content": "A text." }]);
        assert_eq!(messages(&[("prompt", None), ("text", Some("A text."))]), said);
        assert_eq!(messages(&[("text", Some("A text."))]), said);
        assert!(Conversation::of(&batch(&[("score", None)]).schema()).is_err());
    }
}
