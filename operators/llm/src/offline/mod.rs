//! The offline teacher: answers without network or weights, the same every time.
//!
//! It is a stand-in to try pipelines out and to test them, not a source of training data: it takes English sentences
//! apart by rules and word lists and puts the parts together in other ways. Whatever it says stands in the text that it was given.
//!
//! From the text up: words and sentences ([`text`]), what it knows of English ([`lexicon`], [`grammar`]), clauses
//! ([`clause`], with [`lead`], [`aside`] and [`coordination`] for their parts), a document with its pronouns replaced
//! ([`document`], [`reference`]), what can be asked about ([`fact`], [`span`]), and then the tasks: questions
//! ([`wording`], [`question`]), rewrites ([`phrasing`], [`rewrite`], [`rephrase`]) and answers ([`reader`]). Vectors ([`embedding`]) need
//! words only.

mod aside;
mod clause;
mod coordination;
mod document;
mod embedding;
mod fact;
mod grammar;
mod lead;
mod lexicon;
mod phrasing;
mod question;
mod reader;
mod reference;
mod rephrase;
mod rewrite;
mod span;
mod text;
mod wording;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::request::{Answer, Finish, Outage, Request, Teacher, Usage};

/// Raised when any answer or vector changes: it is the model's revision, so that what was made before is asked for again.
const REVISION: u32 = 1;

/// The teacher behind `offline: {}`. It doesn't read prompts: it does `task` with `variables`.
///
/// | task | variables | answer |
/// |---|---|---|
/// | `synthesize_qa` | `title`, `text`, `pairs` | JSON: `{"pairs": [{"question", "explanation", "answer"}]}`; other draws give other pairs |
/// | `rewrite` | `title`, `text`, `question`, `answer` (or null), `max_words` (or null: three quarters of `max_output_tokens`) | the text, told around the question |
/// | `rephrase` | `title`, `text`, `style` (`easy`, `medium`, `hard`, `qa`), `max_words` (or null) | the text, told again in that style; other draws use other words |
/// | `answer` | `question`, `options` (or null), `contexts: [{title, text}]` | one line that ends in `Answer: …` |
///
/// Another task, or a variable that is missing, is an outage. Further variables are ignored. `usage` counts a token for
/// four bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offline;

#[derive(Deserialize)]
struct SynthesizeQa {
    #[serde(default)]
    title: Option<String>,
    text: String,
    pairs: u32,
}

#[derive(Deserialize)]
struct Rewrite {
    #[serde(default)]
    title: Option<String>,
    text: String,
    question: String,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    max_words: Option<usize>,
}

#[derive(Deserialize)]
struct Rephrase {
    #[serde(default)]
    title: Option<String>,
    text: String,
    style: String,
    #[serde(default)]
    max_words: Option<usize>,
}

#[derive(Deserialize)]
struct AnswerQuestion {
    question: String,
    #[serde(default)]
    options: Option<Vec<String>>,
    #[serde(default)]
    contexts: Vec<Context>,
}

#[derive(Deserialize)]
struct Context {
    #[serde(default)]
    title: Option<String>,
    text: String,
}

#[async_trait]
impl Teacher for Offline {
    fn identity(&self) -> Value {
        json!({ "provider": "offline", "model": "offline", "revision": REVISION.to_string() })
    }

    /// A prompt need not hold all that an answer follows from, so task and variables take its part.
    fn asked(&self, request: &Request) -> Value {
        let mut asked = self.identity();
        asked["task"] = request.task.clone().into();
        asked["variables"] = request.variables.clone();
        asked
    }

    fn varies(&self) -> bool {
        false
    }

    async fn answer(&self, request: &Request, draw: u32, _attempt: u32) -> Result<Answer, Outage> {
        let (request_bytes, request) =
            (request.messages.iter().map(|message| message.content.len()).sum::<usize>(), request.clone());
        // Taking a long text apart takes milliseconds: too long for a thread that others wait on.
        let work = tokio::task::spawn_blocking(move || perform(&request, draw));
        let text = work.await.map_err(|error| Outage::teacher(format!("`offline` gave up: {error}")))??;
        let usage = Usage { input_tokens: tokens(request_bytes), output_tokens: tokens(text.len()) };
        Ok(Answer { text, reasoning: None, finish: Finish::Stop, usage: Some(usage), model: "offline".to_owned(), created_ms: 0 })
    }
}

fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

fn perform(request: &Request, draw: u32) -> Result<String, Outage> {
    match request.task.as_str() {
        "synthesize_qa" => {
            let SynthesizeQa { title, text, pairs } = variables(request)?;
            Ok(synthesize_qa(&title.unwrap_or_default(), &text, pairs, draw))
        }
        "rewrite" => {
            let Rewrite { title, text, question, answer, max_words } = variables(request)?;
            let title = title.unwrap_or_default();
            let max_words = max_words.unwrap_or(request.decoding.max_output_tokens as usize * 3 / 4);
            let focus = rewrite::Focus { title: &title, text: &text, question: &question, answer: answer.as_deref(), max_words };
            Ok(rewrite::rewrite(&focus, draw))
        }
        "rephrase" => {
            let Rephrase { title, text, style, max_words } = variables(request)?;
            let max_words = max_words.unwrap_or(request.decoding.max_output_tokens as usize * 3 / 4);
            let known = rephrase::Style::named(&style).ok_or_else(|| {
                Outage::teacher(format!("`offline` knows no style `{style}`: `easy`, `medium`, `hard` and `qa`"))
            })?;
            Ok(rephrase::rephrase(&title.unwrap_or_default(), &text, (&style, known), max_words, draw))
        }
        "answer" => {
            let AnswerQuestion { question, options, contexts } = variables(request)?;
            let read = |Context { title, text }| reader::Context { title: title.unwrap_or_default(), text };
            let contexts: Vec<_> = contexts.into_iter().map(read).collect();
            Ok(reader::answer(&question, options.as_deref(), &contexts))
        }
        other => Err(Outage::Teacher {
            message: format!(
                "`offline` doesn't know the task `{other}`: it does `synthesize_qa`, `rewrite`, `rephrase` and `answer`"
            ),
            hint: Some("name a model with `openai` for this stage".to_owned()),
        }),
    }
}

fn variables<'a, T: Deserialize<'a>>(request: &'a Request) -> Result<T, Outage> {
    T::deserialize(&request.variables)
        .map_err(|error| Outage::teacher(format!("`offline` can't do `{}` with these variables: {error}", request.task)))
}

/// The pairs number `draw * pairs` and following of the document's questions, beginning again where they end.
fn synthesize_qa(title: &str, text: &str, pairs: u32, draw: u32) -> String {
    let all = question::questions(title, text);
    let first = u64::from(draw) * u64::from(pairs);
    let taken = (0..u64::from(pairs).min(all.len() as u64)).map(|n| &all[((first + n) % all.len() as u64) as usize]);
    let pairs: Vec<Value> = taken
        .map(|asked| json!({ "question": asked.question, "explanation": asked.explanation, "answer": asked.answer }))
        .collect();
    json!({ "pairs": pairs }).to_string()
}

#[cfg(test)]
mod tests;
