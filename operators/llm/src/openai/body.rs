//! Bodies of the chat protocol: requests, completions, errors.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pool::Form;
use crate::config::{BOUNDS, OpenAiModel};
use crate::request::{Answer, Finish, Request, Usage, reasoning_apart};

/// How many bytes of a server's words are shown.
const WORDS: usize = 500;

/// The body of a request. A field of `extra_body` takes the place of one of ours, and removes it if it is null.
pub(super) fn request(model: &OpenAiModel, request: &Request, form: Form) -> Bytes {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    put("model", model.model.as_str().into());
    put("messages", json!(request.messages));
    put("temperature", request.decoding.temperature.into());
    put("top_p", request.decoding.top_p.into());
    if given_bounds(model).next().is_none() {
        let max_tokens = if form.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
        put(max_tokens, request.decoding.max_output_tokens.into());
    }
    if let Some(format) = request.response_format.as_ref().filter(|_| !form.no_response_format) {
        put("response_format", format.clone());
    }
    for (name, value) in &model.extra_body {
        match value {
            Value::Null => drop(body.remove(name)),
            value => drop(body.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(body).to_string().into()
}

/// The bounds on an answer's tokens that `extra_body` gives, in the place of ours.
fn given_bounds(model: &OpenAiModel) -> impl Iterator<Item = u64> {
    BOUNDS.into_iter().filter_map(move |name| model.extra_body.get(name)?.as_u64())
}

/// The least and the most tokens that an answer is cut after: they differ where a request is sent with two bounds, of which a
/// server keeps to one.
pub(super) fn bounds(model: &OpenAiModel, request: &Request) -> (u64, u64) {
    let own = u64::from(request.decoding.max_output_tokens);
    (given_bounds(model).min().unwrap_or(own), given_bounds(model).max().unwrap_or(own))
}

/// What a body with status 200 holds.
#[derive(Debug, PartialEq)]
pub(super) enum Completion {
    /// What the model said.
    Answer(Answer),
    /// An error after all, with the status that it names.
    Error { status: Option<u16>, body: Value },
    /// The server gave up in the middle.
    Aborted(String),
    /// Something else: why it isn't a completion.
    Unreadable(String),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Counted>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    reasoning_content: Option<Value>,
    #[serde(default)]
    reasoning: Option<Value>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

/// Reads a body with status 200. `model` stands in where the server doesn't name its model.
pub(super) fn completion(body: &[u8], model: &str) -> Completion {
    let envelope: Envelope = match serde_json::from_slice(body) {
        Ok(envelope) => envelope,
        Err(error) => return Completion::Unreadable(format!("no chat completion ({error})")),
    };
    if let Some(error) = envelope.error.filter(|error| !error.is_null()) {
        let status = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        return Completion::Error {
            status: status.filter(|status| (400..600).contains(status)),
            body: json!({ "error": error }),
        };
    }
    let choice = envelope.choices.and_then(|choices| choices.into_iter().next());
    let Some((said, finish)) = choice.and_then(|choice| Some((choice.message?, choice.finish_reason))) else {
        return Completion::Unreadable("a JSON object without `choices[0].message`".to_owned());
    };
    let finish = finish.unwrap_or_default();
    if matches!(finish.as_str(), "abort" | "error") {
        return Completion::Aborted(format!("the server ended the answer with `{finish}`"));
    }
    let refusal = said.refusal.filter(|refusal| !refusal.is_empty());
    let refused = refusal.is_some() || finish == "content_filter";
    let content = refusal.unwrap_or_else(|| said.content.map(text).unwrap_or_default());
    let reasoning = [said.reasoning_content, said.reasoning].into_iter().flatten().map(text).find(|text| !text.is_empty());
    let (text, reasoning) = match reasoning {
        Some(reasoning) => (content, Some(reasoning)),
        None => reasoning_apart(content),
    };
    let usage = envelope.usage.and_then(|usage| {
        Some(Usage { input_tokens: usage.prompt_tokens?, output_tokens: usage.completion_tokens.unwrap_or_default() })
    });
    Completion::Answer(Answer {
        text,
        reasoning,
        finish: match finish.as_str() {
            _ if refused => Finish::Refusal,
            "length" => Finish::Length,
            _ => Finish::Stop,
        },
        usage,
        model: envelope.model.filter(|name| !name.is_empty()).unwrap_or_else(|| model.to_owned()),
        created_ms: now_ms(),
    })
}

/// An answer that isn't a completion: what a client says about a request.
pub(super) fn remark(text: String, finish: Finish, model: &str) -> Answer {
    Answer { text, reasoning: None, finish, usage: None, model: model.to_owned(), created_ms: now_ms() }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The text of a message: a text, or a list of parts with texts.
fn text(content: Value) -> String {
    match content {
        Value::String(text) => text,
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => String::new(),
    }
}

/// What a server says in the body of an error, on one line, cut after 500 bytes. Empty for an empty body.
pub(super) fn words(body: &str) -> String {
    let json = serde_json::from_str::<Value>(body).ok();
    let said = json.as_ref().and_then(message).unwrap_or_else(|| page(body));
    let mut line = String::new();
    for word in said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > WORDS {
            line.truncate(line.floor_char_boundary(WORDS));
            line.push('…');
            break;
        }
    }
    line
}

/// The message of an error in its usual places.
fn message(body: &Value) -> Option<String> {
    match body {
        Value::String(text) => Some(text.clone()),
        Value::Object(members) => {
            let member = |name: &str| members.get(name).filter(|value| !value.is_null());
            if let Some(error) = member("error") {
                return message(error);
            }
            // FastAPI's `detail` is a text, or a list with the place and message of each mistake.
            let said = member("message").or_else(|| member("detail")).or_else(|| member("msg"))?;
            let said = message(said)?;
            let place = members.get("loc").and_then(Value::as_array).map(|place| {
                place
                    .iter()
                    .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                    .collect::<Vec<_>>()
                    .join(".")
            });
            Some(place.map_or_else(|| said.clone(), |place| format!("{place}: {said}")))
        }
        Value::Array(items) => {
            let messages: Vec<String> = items.iter().filter_map(message).collect();
            (!messages.is_empty()).then(|| messages.join("; "))
        }
        _ => None,
    }
}

/// A body that isn't JSON; of an HTML page its title.
fn page(body: &str) -> String {
    if !body.trim_start().starts_with('<') {
        return body.to_owned();
    }
    let lower = body.to_ascii_lowercase();
    let title = lower.find("<title").and_then(|at| {
        let from = at + lower[at..].find('>')? + 1;
        Some(&body[from..from + lower[from..].find('<')?])
    });
    title.map_or_else(|| "an HTML page".to_owned(), |title| format!("an HTML page, `{}`", title.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Decoding, Message, Role};

    fn model(extra_body: Value) -> OpenAiModel {
        serde_json::from_value(json!({ "base_url": "http://h/v1", "model": "m", "extra_body": extra_body })).expect("valid")
    }

    fn asked() -> Request {
        Request {
            messages: vec![Message { role: Role::User, content: "q".to_owned() }],
            decoding: Decoding { temperature: 0.5, top_p: 1.0, max_output_tokens: 64 },
            response_format: Some(json!({ "type": "json_object" })),
            task: "synthesize_qa".to_owned(),
            variables: json!({ "text": "not sent" }),
        }
    }

    fn sent(extra_body: Value, form: Form) -> Value {
        serde_json::from_slice(&request(&model(extra_body), &asked(), form)).expect("json")
    }

    fn said(message: Value, finish: &str) -> Answer {
        let body = json!({ "model": "m-2", "choices": [{ "message": message, "finish_reason": finish }],
            "usage": { "prompt_tokens": 7, "completion_tokens": 3 } });
        match completion(body.to_string().as_bytes(), "m") {
            Completion::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_what_was_rendered_and_extra_fields() {
        let plain = json!({ "model": "m", "messages": [{ "role": "user", "content": "q" }], "temperature": 0.5, "top_p": 1.0,
            "max_tokens": 64, "response_format": { "type": "json_object" } });
        assert_eq!(sent(json!({}), Form::default()), plain);
        let mut other = plain.clone();
        other["top_k"] = json!(40);
        other["temperature"] = json!(0);
        other.as_object_mut().expect("an object").remove("top_p");
        assert_eq!(sent(json!({ "top_k": 40, "temperature": 0, "top_p": null }), Form::default()), other);
        let form = Form { no_response_format: true, max_completion_tokens: true };
        let adapted = sent(json!({}), form);
        assert_eq!((&adapted["response_format"], &adapted["max_tokens"]), (&Value::Null, &Value::Null));
        assert_eq!(adapted["max_completion_tokens"], 64);
    }

    #[test]
    fn the_bound_on_an_answer_is_that_of_what_is_sent() {
        let other = Form { max_completion_tokens: true, ..Form::default() };
        for (extra_body, expected) in [
            (json!({}), (64, 64)),
            (json!({ "max_tokens": 32_000 }), (32_000, 32_000)),
            (json!({ "max_completion_tokens": 500 }), (500, 500)),
            (json!({ "max_tokens": null, "max_completion_tokens": 500 }), (500, 500)),
            (json!({ "max_tokens": 10, "max_completion_tokens": 500 }), (10, 500)),
        ] {
            assert_eq!(bounds(&model(extra_body.clone()), &asked()), expected, "{extra_body}");
            for form in [Form::default(), other] {
                let sent = sent(extra_body.clone(), form);
                let sent: Vec<u64> = BOUNDS.iter().filter_map(|name| sent[*name].as_u64()).collect();
                assert_eq!((sent.iter().min(), sent.iter().max()), (Some(&expected.0), Some(&expected.1)), "{extra_body}");
            }
        }
    }

    #[test]
    fn answers_with_their_end_and_usage() {
        let answer = said(json!({ "role": "assistant", "content": " text" }), "stop");
        assert_eq!((answer.text.as_str(), answer.finish, answer.model.as_str()), (" text", Finish::Stop, "m-2"));
        assert_eq!((answer.usage, answer.reasoning), (Some(Usage { input_tokens: 7, output_tokens: 3 }), None));
        assert!(answer.created_ms > 1_700_000_000_000);
        assert_eq!(said(json!({ "content": "cut" }), "length").finish, Finish::Length);
        let refused = said(json!({ "content": null, "refusal": "I can't." }), "stop");
        assert_eq!((refused.finish, refused.text.as_str()), (Finish::Refusal, "I can't."));
        assert_eq!(said(json!({ "content": "" }), "content_filter").finish, Finish::Refusal);
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "image" }, { "type": "text", "text": "b" }]);
        assert_eq!(said(json!({ "content": parts }), "stop").text, "ab");
    }

    #[test]
    fn reasoning_is_set_apart() {
        let apart = |message: Value| {
            let answer = said(message, "stop");
            (answer.text, answer.reasoning)
        };
        let both = ("yes".to_owned(), Some("hm".to_owned()));
        assert_eq!(apart(json!({ "content": "yes", "reasoning_content": "hm" })), both);
        assert_eq!(apart(json!({ "content": "yes", "reasoning": "hm" })), both);
        assert_eq!(apart(json!({ "content": "\n<think>\nhm\n</think>\n\nyes" })), both);
        assert_eq!(apart(json!({ "content": "hm\n</think>\n\nyes" })), both);
        assert_eq!(apart(json!({ "content": "<think>\n\n</think>\n\nyes" })), ("yes".to_owned(), None));
        assert_eq!(apart(json!({ "content": "<think>hm" })), (String::new(), Some("hm".to_owned())));
        let inside = "a tag <think>x</think> in a text".to_owned();
        assert_eq!(apart(json!({ "content": inside })), (inside, None));
    }

    #[test]
    fn what_is_no_completion() {
        let read = |body: &str| completion(body.as_bytes(), "m");
        assert!(matches!(read("{\"choices\": [{\"mess"), Completion::Unreadable(_)));
        assert!(matches!(read(""), Completion::Unreadable(_)));
        assert!(matches!(read("{\"detail\": \"x\"}"), Completion::Unreadable(_)));
        assert!(matches!(read("{\"choices\": []}"), Completion::Unreadable(_)));
        assert!(matches!(read("<html><title>502 Bad Gateway</title></html>"), Completion::Unreadable(_)));
        let body = json!({ "error": { "message": "too many", "code": 429 } });
        assert_eq!(read(&body.to_string()), Completion::Error { status: Some(429), body });
        let aborted = json!({ "choices": [{ "message": { "content": "a" }, "finish_reason": "abort" }] });
        assert!(matches!(read(&aborted.to_string()), Completion::Aborted(_)));
        let odd = json!({ "choices": [{ "message": { "content": "a" }, "finish_reason": null }], "usage": null, "error": null });
        let Completion::Answer(answer) = read(&odd.to_string()) else { panic!("an answer") };
        assert_eq!((answer.finish, answer.usage, answer.model.as_str()), (Finish::Stop, None, "m"));
    }

    #[test]
    fn the_words_of_servers() {
        for (body, said) in [
            (r#"{"error": {"message": "too long", "code": 400}}"#, "too long"),
            (r#"{"object": "error", "message": "too long", "code": 400}"#, "too long"),
            (r#"{"error": "too long"}"#, "too long"),
            (r#"{"detail": "too long"}"#, "too long"),
            (r#"{"detail": [{"loc": ["body", "top_k"], "msg": "too long"}]}"#, "body.top_k: too long"),
            (" too\n\tlong\u{1b} ", "too long"),
            ("", ""),
            ("<html><body>no title</body></html>", "an HTML page"),
            ("<!DOCTYPE html><head><TITLE>502 Bad\nGateway</TITLE>", "an HTML page, `502 Bad Gateway`"),
        ] {
            assert_eq!(words(body), said, "{body}");
        }
        assert!(words(&"wörter ".repeat(500)).len() < 510);
    }
}
