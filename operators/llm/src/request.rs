//! What a teacher is asked, and what it answers.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::BudgetError;
use crate::client::Reject;
use crate::memo::MemoError;

/// Who speaks in a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions above the conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word of the chat protocol: `system`, `user` or `assistant`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A turn of the conversation that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text, as sent.
    pub content: String,
}

/// How the model draws its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// The share of probability that is drawn from.
    pub top_p: f64,
    /// The answer is cut after so many tokens.
    pub max_output_tokens: u32,
}

/// One request, rendered. Messages, decoding and response format are what a server sees and what the memo's key is made
/// of; `task` and `variables` are for a teacher that doesn't read prompts (`offline`), which brings them into the key by
/// [`Teacher::asked`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// How the answer is drawn.
    pub decoding: Decoding,
    /// The protocol's `response_format`, for instance a JSON schema.
    pub response_format: Option<Value>,
    /// What is asked for, as a word: `synthesize_qa`, `rewrite`, `answer`.
    pub task: String,
    /// What the prompt was rendered from.
    pub variables: Value,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model was done.
    Stop,
    /// It reached `max_output_tokens`.
    Length,
    /// It refused, or what it said was held back by a filter.
    Refusal,
    /// The server refused the request itself (400, 413, 422) and will refuse it again; the text is its words.
    Invalid,
    /// It was larger than a client takes; the text is its beginning.
    TooLarge,
}

/// Tokens that a call was charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Of the request.
    pub input_tokens: u64,
    /// Of the answer.
    pub output_tokens: u64,
}

/// What a teacher said. This is what the memo keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text, unparsed, without the reasoning.
    pub text: String,
    /// What the model thought before it answered, where it shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// How it ended.
    pub finish: Finish,
    /// What it cost, if the server said so.
    pub usage: Option<Usage>,
    /// The model's name as the server reports it.
    pub model: String,
    /// When it came, in milliseconds since 1970 (UTC); 0 for a teacher whose answers have no time.
    pub created_ms: u64,
}

/// Divides `<think>…</think>` at the start from what follows it. Where the opening tag stands in the model's chat
/// template, the answer begins without it. Reasoning that doesn't end has no answer behind it.
pub fn reasoning_apart(content: String) -> (String, Option<String>) {
    const OPEN: &str = "<think>";
    const CLOSE: &str = "</think>";
    let (reasoning, rest) = match (content.trim_start().strip_prefix(OPEN), content.split_once(CLOSE)) {
        (Some(begun), _) => begun.split_once(CLOSE).unwrap_or((begun, "")),
        (None, Some((before, after))) if !before.contains(OPEN) => (before, after),
        (None, _) => return (content, None),
    };
    let reasoning = reasoning.trim();
    (rest.trim_start().to_owned(), (!reasoning.is_empty()).then(|| reasoning.to_owned()))
}

/// No answer, for a reason that isn't the request's: the stage fails uncommitted, and what was answered so far stays in
/// the memo.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Outage {
    /// The teacher can't be asked.
    #[error("{message}")]
    Teacher {
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The answer can't be kept, so asking on would only lose money.
    #[error(transparent)]
    Memo(#[from] MemoError),
    /// Nobody is to be asked: the teacher only sees what would be.
    #[error("the request wasn't sent")]
    Unasked,
    /// The call might cost more than the budget has left, or what it costs can't be written down.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl Outage {
    /// An outage of the teacher without a hint.
    pub fn teacher(message: impl Into<String>) -> Self {
        Self::Teacher { message: message.into(), hint: None }
    }
}

/// Something that answers requests.
#[async_trait]
pub trait Teacher: Send + Sync {
    /// What enters keys: provider, model and revision. Equal for two servers of one model.
    fn identity(&self) -> Value;

    /// What of this teacher, and of the request beyond its rendered part, decides the answer: it takes the identity's
    /// place in the memo's key. Only a teacher that reads `task` and `variables` gives more than [`Self::identity`].
    fn asked(&self, _request: &Request) -> Value {
        self.identity()
    }

    /// Why a request can't be sent at all, for instance because it doesn't fit into the model's context. Nothing is asked
    /// or remembered then.
    fn unfit(&self, _request: &Request) -> Option<Reject> {
        None
    }

    /// Whether another attempt at the same request can give another answer.
    fn varies(&self) -> bool {
        true
    }

    /// Sends nothing any more: requests that wait, for their turn or to be tried again, end in an outage.
    fn stop(&self) {}

    /// Answers. `draw` tells independent draws of one request apart, `attempt` tries of one draw; neither is sent to a
    /// server that samples. Dropping the future gives the call up.
    async fn answer(&self, request: &Request, draw: u32, attempt: u32) -> Result<Answer, Outage>;
}
