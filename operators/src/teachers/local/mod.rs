//! The `local` teacher: a checkpoint that answers in this process.

mod folder;
mod runner;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use ingrain_engine::failure::Failure;
use ingrain_llm::{Answer, Finish, Key, LocalModel, Message, Outage, Reject, Request, Teacher, Usage, reasoning_apart};
use ingrain_student::{Asked, ChatError, ChatTemplate, Generation, Tokenizer, TokenizerError, Turn, checkpoint, end_ids};
use serde_json::{Value, json};

pub(crate) use self::runner::Runner;
use self::runner::Source;
use crate::render::turn;

/// Raised when prompts or draws change, so that what was answered before is asked for again.
const REVISION: u32 = 2;

/// What of a checkpoint enters keys: what its folder holds, wherever that lies. Digests of large files are kept under `cache`.
///
/// # Errors
/// When the folder can't be read.
pub(super) fn identity(model: &LocalModel, cache: &Path) -> Result<Value, Failure> {
    let mut identity = json!({
        "provider": "local",
        "checkpoint": folder::digest(&model.checkpoint, cache)?,
        "revision": REVISION.to_string(),
    });
    if !model.stop.is_empty() {
        identity["stop"] = json!(model.stop);
    }
    Ok(identity)
}

/// Whether a checkpoint lies in the folder; if not, what is missing.
pub(super) fn check(model: &LocalModel) -> Result<(), String> {
    folder::check(&model.checkpoint)
}

/// A checkpoint that answers on the run's device.
///
/// Messages are put into its chat template; without one they are joined by empty lines. Temperature 0 takes the likeliest
/// tokens; above, draws follow from the request, `draw` and `attempt`. An answer ends with a token that the checkpoint names as
/// an end, with that which its template puts behind an answer, or with one of the model's `stop`; else it is cut (`length`).
pub(crate) struct Local {
    source: Arc<Source>,
    identity: Value,
    stop: Vec<String>,
    runner: Arc<Runner>,
    front: OnceLock<Result<Front, String>>,
}

/// What makes prompts: the checkpoint less its weights.
struct Front {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    ends: Vec<u32>,
    /// The longest text that the model is made for, in tokens.
    limit: usize,
}

impl Front {
    fn read(folder: &Path) -> Result<Self, String> {
        let in_folder = |error: String| format!("the checkpoint in `{}`: {error}", folder.display());
        let architecture = folder::architecture(folder)?;
        let files = folder::small_files(folder)?;
        let json = files.get(folder::TOKENIZER).ok_or_else(|| in_folder("it has no `tokenizer.json`".to_owned()))?;
        let tokenizer = checkpoint::tokenizer(&architecture, json).map_err(|error| in_folder(error.to_string()))?;
        let mut ends = end_ids(&architecture, &files, &tokenizer).map_err(|error| in_folder(error.to_string()))?;
        let template = ChatTemplate::of(&files).map_err(|error| in_folder(error.to_string()))?;
        if let Some(template) = &template {
            ends.push(template.end_id(&tokenizer).map_err(|error| in_folder(error.to_string()))?);
        }
        Ok(Self { tokenizer, template, ends, limit: architecture.max_position_embeddings })
    }

    fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, ChatError> {
        match &self.template {
            Some(template) => {
                let turns: Vec<Turn<'_>> = messages.iter().map(turn).collect();
                template.encode(&self.tokenizer, &turns, true)
            }
            None => {
                let texts: Vec<&str> = messages.iter().map(|message| message.content.trim()).collect();
                let text: Result<_, TokenizerError> = self.tokenizer.encode(&(texts.join("\n\n") + "\n\n"));
                Ok(self.tokenizer.begin_id().into_iter().chain(text?).collect())
            }
        }
    }
}

impl Local {
    /// The teacher that an entry describes, on the device of `runner`. Digests the folder, and reads nothing else yet.
    ///
    /// # Errors
    /// As [`identity`].
    pub(super) fn new(model: &LocalModel, cache: &Path, runner: Arc<Runner>) -> Result<Self, Failure> {
        let identity = identity(model, cache)?;
        let source = Source {
            folder: model.checkpoint.clone(),
            digest: identity["checkpoint"].as_str().unwrap_or_default().to_owned(),
            cache: cache.to_owned(),
            stopped: AtomicBool::new(false),
        };
        Ok(Self { source: Arc::new(source), identity, stop: model.stop.clone(), runner, front: OnceLock::new() })
    }

    fn front(&self) -> &Result<Front, String> {
        self.front.get_or_init(|| Front::read(&self.source.folder))
    }

    /// What the answer's model is called.
    fn name(&self) -> String {
        format!("local {}", self.source.digest.get(..12).unwrap_or_default())
    }
}

#[async_trait]
impl Teacher for Local {
    fn identity(&self) -> Value {
        self.identity.clone()
    }

    fn unfit(&self, request: &Request) -> Option<Reject> {
        let front = self.front().as_ref().ok()?;
        let prompt = match front.prompt(&request.messages) {
            Ok(prompt) => prompt.len(),
            Err(error) => return Some(Reject::new("invalid_request", error.to_string())),
        };
        let (output, limit) = (request.decoding.max_output_tokens, front.limit);
        (prompt.saturating_add(output as usize) > limit).then(|| {
            Reject::new(
                "too_long",
                format!(
                    "{prompt} tokens and `max_output_tokens` ({output}) are more than the {limit} that the model is made for"
                ),
            )
        })
    }

    fn stop(&self) {
        self.source.stopped.store(true, Ordering::Release);
    }

    async fn answer(&self, request: &Request, draw: u32, attempt: u32) -> Result<Answer, Outage> {
        let front = self.front().as_ref().map_err(|error| Outage::teacher(error.clone()))?;
        let prompt = front.prompt(&request.messages).map_err(|error| Outage::teacher(error.to_string()))?;
        let input_tokens = prompt.len() as u64;
        let decoding = request.decoding;
        let key = Key::new(request, &self.identity, draw, None, attempt).request_id();
        let how = Generation {
            temperature: decoding.temperature,
            top_p: decoding.top_p,
            seed: u64::from_str_radix(key.get(..16).unwrap_or_default(), 16)
                .map_err(|error| Outage::teacher(format!("`{key}`: {error}")))?,
            ..Generation::greedy(decoding.max_output_tokens as usize, front.ends.clone())
        };
        let asked = Asked { prompt, how, stop_strings: self.stop.clone() };
        let written = self.runner.write(self.source.clone(), asked).await?;
        let (text, reasoning) = reasoning_apart(written.text);
        Ok(Answer {
            text,
            reasoning,
            finish: if written.stopped { Finish::Stop } else { Finish::Length },
            usage: Some(Usage { input_tokens, output_tokens: written.tokens as u64 }),
            model: self.name(),
            created_ms: 0,
        })
    }
}
