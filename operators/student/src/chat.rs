//! Chat templates: how a conversation becomes the text that a checkpoint was tuned on.
//!
//! A template is Jinja that came with a checkpoint, so nobody here wrote it. It has no loader, sees nothing but the
//! conversation, and pays fuel for every instruction and every byte that it makes.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use chrono::{DateTime, NaiveDate};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// The file that holds nothing but a template; where it is, the template of [`CONFIG`] isn't looked at.
pub const FILE: &str = "chat_template.jinja";
/// The file with the names of special tokens and, in older checkpoints, the template.
pub const CONFIG: &str = "tokenizer_config.json";

/// The name of the one template.
const NAME: &str = "chat";
/// The template of a list that is meant for plain conversations.
const DEFAULT: &str = "default";
/// Fuel for a rendering: instructions, or 64 bytes each. A byte of the conversation brings as much as an instruction.
const FUEL: u64 = 1_000_000;
/// No template is larger, in bytes.
const LARGEST: usize = 1 << 20;
/// No string that a template makes by `replace` or `join`, and no rendering, is larger, in bytes.
const LARGEST_TEXT: usize = 64 << 20;
/// The tokens that a template may name, as variables.
const TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What can be wrong with a template, or with a conversation in it.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The file that should hold a template holds none, or no usable one.
    #[error("`{file}`: {reason}")]
    File {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The template is no Jinja, or fails on this conversation, which it may do by itself (`raise_exception`).
    #[error("the chat template in `{file}`{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Template {
        /// The file.
        file: &'static str,
        /// The line of the template.
        line: Option<usize>,
        /// What is wrong, in the template's or the library's words.
        reason: String,
    },
    /// The rendered text can't be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Turn<'a> {
    /// `system`, `user` or `assistant`. Templates build names of special tokens from it, so it never comes from data.
    pub role: &'a str,
    /// What is said. Text only: no name of a special token in it becomes that token.
    pub content: &'a str,
}

/// The chat template of a checkpoint; clones share it, and any thread may use it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<&'static str, String>,
    file: &'static str,
}

impl ChatTemplate {
    /// The template among a checkpoint's small files: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`, which is a template or a list of named ones, of which `default` is meant. `None` for a
    /// checkpoint without, which was tuned on no conversations.
    ///
    /// # Errors
    /// When a file isn't what it should be, or the template has a mistake in its syntax.
    pub fn of(files: &BTreeMap<String, Vec<u8>>) -> Result<Option<Self>, ChatError> {
        let config = match files.get(CONFIG) {
            None => serde_json::Value::Null,
            Some(json) => serde_json::from_slice(json)
                .map_err(|error| ChatError::File { file: CONFIG, reason: format!("not JSON: {error}") })?,
        };
        let (file, source) = match files.get(FILE) {
            Some(source) => match std::str::from_utf8(source) {
                Ok(source) => (FILE, source),
                Err(error) => return Err(ChatError::File { file: FILE, reason: format!("not UTF-8: {error}") }),
            },
            None => match written(&config["chat_template"])? {
                Some(source) => (CONFIG, source),
                None => return Ok(None),
            },
        };
        if source.len() > LARGEST {
            let reason = format!("the chat template has {} bytes, and at most {LARGEST} are expected", source.len());
            return Err(ChatError::File { file, reason });
        }
        let mut environment = environment();
        environment.add_template_owned(NAME, without_tracking(source)).map_err(|error| described(file, &error))?;
        let tokens = TOKENS.into_iter().filter_map(|name| Some((name, token(&config[name])?.to_owned()))).collect();
        Ok(Some(Self { environment, tokens, file }))
    }

    /// The text of a conversation, as `apply_chat_template(…, tokenize=False)` of `transformers` gives it; with
    /// `answer_next`, up to where the assistant's next answer begins (`add_generation_prompt`). `strftime_now` tells the
    /// same day always, 26 July 2024: a text is a function of the conversation.
    ///
    /// # Errors
    /// When the template fails on the conversation, or makes too much of it.
    pub fn render(&self, turns: &[Turn<'_>], answer_next: bool) -> Result<String, ChatError> {
        let mut environment = self.environment.clone();
        let said: usize = turns.iter().map(|turn| turn.content.len()).sum();
        environment.set_fuel(Some(FUEL.saturating_add(said as u64)));
        let none = Value::from(());
        let conversation = context! {
            messages => Value::from(Serde(turns)),
            add_generation_prompt => answer_next,
            tools => none.clone(),
            documents => none,
            ..Value::from(Serde(&self.tokens))
        };
        let template = environment.get_template(NAME).map_err(|error| described(self.file, &error))?;
        let text = template.render(conversation).map_err(|error| described(self.file, &error))?;
        if text.len() > LARGEST_TEXT {
            let reason = format!("it makes {} bytes of the conversation, and at most {LARGEST_TEXT} are taken", text.len());
            return Err(ChatError::Template { file: self.file, line: None, reason });
        }
        Ok(text)
    }

    /// The ids of a conversation: special tokens where the template names them, and text where the conversation does
    /// ([`Tokenizer::guarded`]). Begin and end tokens are the template's: none are added.
    ///
    /// # Errors
    /// As [`Self::render`], and when the text has no tokens in a foreign tokenizer.
    pub fn encode(&self, tokenizer: &Tokenizer, turns: &[Turn<'_>], answer_next: bool) -> Result<Vec<u32>, ChatError> {
        let guarded: Vec<_> = turns.iter().map(|turn| tokenizer.guarded(turn.content)).collect();
        let turns: Vec<_> = turns.iter().zip(&guarded).map(|(turn, content)| Turn { role: turn.role, content }).collect();
        Ok(tokenizer.encode_guarded(&self.render(&turns, answer_next)?)?)
    }
}

/// A conversation that ends with an answer, as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// All of it, with what ends the answer.
    pub ids: Vec<u32>,
    /// How many of them are what a model is asked with: what `answer_next` gives, as far as the answered conversation begins so.
    pub prompt: usize,
    /// Where the answer's own tokens lie: behind what the template puts in front of every answer (no thoughts, say), and before
    /// what ends it.
    pub answer: Range<usize>,
}

impl ChatTemplate {
    /// A conversation whose last turn is the answer that a model is to learn. Where the template puts no special token behind an
    /// answer, the tokenizer's end token does: nothing else would tell a model to stop.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn example(&self, tokenizer: &Tokenizer, turns: &[Turn<'_>]) -> Result<Example, ChatError> {
        let mut ids = self.encode(tokenizer, turns, false)?;
        let Some((last, before)) = turns.split_last() else {
            return Ok(Example { prompt: ids.len(), answer: ids.len()..ids.len(), ids });
        };
        let prompt = common(&ids, &self.encode(tokenizer, before, true)?);
        let nothing: Vec<Turn<'_>> = before.iter().copied().chain([Turn { content: "", ..*last }]).collect();
        let begin = prompt.max(common(&ids, &self.encode(tokenizer, &nothing, false)?));
        let ends = |id: &u32| tokenizer.is_special(*id) || *id == tokenizer.end_id();
        // What an answer says is text, so the first such token behind its beginning is the template's.
        let end = ids[begin..].iter().position(ends).map(|length| begin + length);
        let answer = begin..end.unwrap_or(ids.len());
        if end.is_none() {
            ids.push(tokenizer.end_id());
        }
        Ok(Example { ids, prompt, answer })
    }

    /// The token that ends an answer: a model that was tuned on the template says it when it is done, whatever end the
    /// checkpoint names.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn end_id(&self, tokenizer: &Tokenizer) -> Result<u32, ChatError> {
        let turns = [Turn { role: "user", content: "a" }, Turn { role: "assistant", content: "a" }];
        let Example { ids, answer, .. } = self.example(tokenizer, &turns)?;
        Ok(ids.get(answer.end).copied().unwrap_or(tokenizer.end_id()))
    }
}

/// How many tokens two texts begin with alike.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// `chat_template` in `tokenizer_config.json`.
fn written(value: &serde_json::Value) -> Result<Option<&str>, ChatError> {
    let malformed = |reason: &str| ChatError::File { file: CONFIG, reason: reason.to_owned() };
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some(source)),
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == DEFAULT)
            .and_then(|entry| entry["template"].as_str())
            .map(Some)
            .ok_or_else(|| malformed("none of the templates in `chat_template` is called `default`")),
        _ => Err(malformed("`chat_template` is neither a text nor a list of named ones")),
    }
}

/// The name of a special token: older files wrap it up with its settings.
fn token(value: &serde_json::Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn described(file: &'static str, error: &minijinja::Error) -> ChatError {
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too long, or makes too much text".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    ChatError::Template { file, line: error.line(), reason }
}

/// The template with plain blocks for `{% generation %}`, by which `transformers` finds what the assistant said.
fn without_tracking(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        plain.push_str(before);
        rest = tag;
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("endgeneration", "endwith"), ("generation", "with")].into_iter().find_map(|(name, block)| {
            let after = word.strip_prefix(name)?;
            let closing = after.trim_start().trim_start_matches(['-', '+']);
            closing.starts_with("%}").then_some((after, block))
        });
        if let Some((after, block)) = replaced {
            plain.push_str(&tag[..tag.len() - word.len()]);
            plain.push_str(block);
            rest = after;
        }
    }
    plain.push_str(rest);
    plain
}

/// What `transformers` gives templates, less what reads anything.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, minijinja::Error> {
        let day = NaiveDate::from_ymd_opt(2024, 7, 26).and_then(|day| day.and_hms_opt(0, 0, 0));
        let day = day.unwrap_or(DateTime::UNIX_EPOCH.naive_utc());
        let mut text = String::new();
        match write!(text, "{}", day.format(format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("`{format}` formats no time"))),
        }
    });
    environment
}

/// Methods of Python's strings, maps and lists. Those that multiply lengths are measured before they are called.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, minijinja::Error> {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let made = match (name, value.as_str(), arguments) {
        ("replace", Some(text), [old, new, ..]) => {
            text.matches(old.as_str().unwrap_or_default()).count().saturating_mul(length(new))
        }
        ("join", Some(text), [values]) => values.len().unwrap_or(0).saturating_mul(text.len()),
        _ => 0,
    };
    if made > LARGEST_TEXT {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("`{name}` makes {made} bytes")));
    }
    unknown_method_callback(state, value, name, arguments)
}

/// As Python's `json.dumps` with `ensure_ascii=False`: a space behind colons and commas.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "`tojson` with `ensure_ascii` isn't known"));
    }
    let mut json = Vec::new();
    let wrong = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)).map_err(wrong)?,
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter)).map_err(wrong)?;
        }
    }
    String::from_utf8(json).map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        CompactFormatter.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}
