//! Replies that nobody meant.

use ingrain_mutation::{Strategy, bytes, holds, mutated, mutated_text, strategy, text};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use super::body::{Completion, completion, words};
use super::credentials::Credentials;
use super::pool::Form;
use super::reply::{Received, Reply, Sent};
use super::retry::retry_after;
use super::{embeddings, reply};
use crate::config::{OpenAiModel, Price};
use crate::request::Outage;

const WORDS: [&str; 16] = [
    "\"error\":{}",
    "\"code\":65536",
    "\"code\":-1",
    "\"choices\":[]",
    "\"finish_reason\":\"error\"",
    "\"content\":[{\"text\":3}]",
    "</think>",
    "<think>",
    "\"usage\":{\"prompt_tokens\":-1}",
    "\"usage\":{\"prompt_tokens\":18446744073709551615}",
    "\"index\":18446744073709551615",
    "\"embedding\":[1e39]",
    "\"embedding\":[]",
    "insufficient_quota",
    "response_format",
    "<title",
];

fn replies() -> Vec<Vec<u8>> {
    let said = |content: &str, finish: &str| {
        json!({
            "id": "x", "object": "chat.completion", "model": "m", "usage": { "prompt_tokens": 10, "completion_tokens": 3 },
            "choices": [{ "index": 0, "finish_reason": finish, "message": { "role": "assistant", "content": content } }],
        })
    };
    let vector = |index: usize| json!({ "object": "embedding", "index": index, "embedding": [0.25, -0.5, 1e-3] });
    let texts = [
        said("[{\"question\": \"Who?\", \"answer\": \"Ida\"}]", "stop").to_string(),
        said("<think>let me\nsee</think>\n\nAnswer: B", "length").to_string(),
        said("", "content_filter").to_string(),
        json!({ "choices": [{ "message": { "content": [{ "type": "text", "text": "a" }], "refusal": null, "reasoning": "b" } }] }).to_string(),
        json!({ "error": { "message": "overloaded", "code": 503 } }).to_string(),
        json!({ "error": "no model", "message": "x" }).to_string(),
        json!({ "detail": [{ "loc": ["body", "max_tokens", 0], "msg": "too large" }] }).to_string(),
        json!({ "object": "list", "model": "e", "data": [vector(1), vector(0)], "usage": { "prompt_tokens": 3 } }).to_string(),
        "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>".to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

/// A model with a key, and what it must never show. The variable is set wherever a test runs.
fn model() -> (OpenAiModel, String) {
    let model = json!({ "base_url": "http://h/v1", "model": "m", "api_key": "${secret:PATH}" });
    (serde_json::from_value(model).expect("valid"), std::env::var("PATH").expect("set"))
}

fn received(status: u16, body: Vec<u8>, cut: bool) -> Received {
    Received { status, pause: None, location: Some("http://elsewhere/".to_owned()), body, cut }
}

/// What a reply says to people.
fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Answer(answer) => format!("{}{}{:?}", answer.text, answer.model, answer.reasoning),
        Reply::Otherwise(_) => String::new(),
        Reply::Fault(fault) => fault.what.clone(),
        Reply::Outage(Outage::Teacher { message, hint }) => format!("{message}{hint:?}"),
        Reply::Outage(other) => other.to_string(),
    }
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    strategy::Union::new([mutated(replies(), &WORDS).boxed(), bytes(512).boxed()])
}

#[test]
fn any_reply_means_something_and_shows_no_secret() {
    let (model, secret) = model();
    let credentials = Credentials::read(&model).expect("set");
    let price: Price = serde_json::from_value(json!({ "input": 1e6, "output": 1e9 })).expect("a price");
    let status = strategy::Union::new([(200_u16..201).boxed(), (100_u16..600).boxed(), (0..u16::MAX).boxed()]);
    holds(128, &(bodies(), status, 0_u8..8, 0_usize..3), |(mut body, status, draw, texts)| {
        if draw & 1 == 1 {
            body.extend_from_slice(secret.as_bytes());
        }
        let sent = Sent {
            model: &model,
            credentials: &credentials,
            server: "http://h/v1",
            form: Form::default(),
            response_format: draw & 2 == 2,
        };
        let reply = sent.read(received(status, body.clone(), draw & 4 == 4));
        assert!(!shown(&reply).contains(&secret));
        reply.cost(price);
        let vectors = embeddings::read_for_test(&sent, received(status, body, draw & 4 == 4), texts);
        for vector in vectors.into_iter().flatten() {
            let length: f64 = vector.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
            assert!((length - 1.0).abs() < 1e-3, "{vector:?}");
        }
    });
}

#[test]
fn what_a_completion_says_was_in_its_body() {
    holds(128, &bodies(), |body| match completion(&body, "m") {
        Completion::Answer(answer) => {
            // No escape makes text longer than it is written.
            let said = answer.text.len() + answer.reasoning.as_deref().map_or(0, str::len);
            assert!(said <= body.len(), "{answer:?}");
        }
        Completion::Error { status, .. } => assert!(status.is_none_or(|status| (400..600).contains(&status))),
        Completion::Aborted(why) | Completion::Unreadable(why) => assert!(!why.is_empty()),
    });
}

#[test]
fn a_server_is_quoted_on_one_short_line() {
    let texts: Vec<String> = replies().into_iter().map(|body| String::from_utf8(body).expect("UTF-8")).collect();
    let any = strategy::Union::new([mutated_text(&texts, &WORDS).boxed(), text(600).boxed()]);
    holds(128, &any, |body| {
        let line = words(&body);
        assert!(line.len() <= 503 && !line.contains(char::is_control), "{line:?}");
    });
}

#[test]
fn any_header_is_a_pause_or_none() {
    let headers = ["7", "0.5", "Sun, 01 Mar 2026 12:01:30 GMT", "1e300", "-1", "NaN"].map(|text| text.as_bytes().to_vec());
    let name = (0_u8..2).prop_map(|draw| if draw == 0 { "retry-after" } else { "retry-after-ms" });
    holds(
        128,
        &(name, mutated(headers.to_vec(), &["GMT", "+2500", "1e19", "Sun, 31 Feb 9999999 25:61:61 GMT"])),
        |(name, value)| {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return };
            let headers: HeaderMap = [(HeaderName::from_static(name), value)].into_iter().collect();
            let pause = retry_after(&headers, std::time::SystemTime::now());
            let fault = reply::Fault { kind: super::retry::Kind::RateLimit, what: "slow down".to_owned(), pause, free: true };
            fault.long_pause("h", pause.unwrap_or_default());
        },
    );
}
