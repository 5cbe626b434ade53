//! Answers of teachers, and entries of `models:`, that nobody meant.

use std::time::Duration;

use ingrain_mutation::{Strategy, holds, mutated_text, strategy, text, within, worded};
use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::headers::Headers;
use crate::parse::pairs;
use crate::secret::Secret;

const WORDS: [&str; 22] = [
    "{\"question\":",
    "\"answer\":",
    "\"explanation\":",
    "{\"pairs\": [",
    "\"Who?\"",
    "\"a\"",
    "1912",
    "null",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"",
    "\\",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\ud83d",
    "\\u12",
    "```json\n",
    "```",
    "\n",
];

fn answers() -> impl Strategy<Value = String> {
    let list = r#"[{"question":"A?","explanation":"It is a.","answer":"a"},{"question":"B \u00e9\n?","answer":19.5}]"#;
    let seeds = [
        list.to_owned(),
        format!("Sure! [Here] are {{some}}:\n```json\n{{\"pairs\": {list}}}\n```\nEnjoy."),
        list.replace("},{", "}\n{"),
        list[..list.len() - 9].to_owned(),
        "{\"a\":[".repeat(70),
    ];
    strategy::Union::new([mutated_text(&seeds, &WORDS).boxed(), worded(&WORDS, 200).boxed(), text(600).boxed()])
}

#[test]
fn pairs_hold_nothing_but_what_was_said() {
    holds(192, &answers(), |answer| {
        let Ok(found) = within(Duration::from_secs(1), || pairs(&answer)) else { return };
        assert!(!found.whole.is_empty());
        let mut said = 0;
        for pair in &found.whole {
            for text in [&pair.question, &pair.answer, &pair.explanation] {
                assert!(answer.contains('\\') || answer.contains(text.as_str()), "{text:?}");
                assert_eq!(text.trim(), text);
                said += text.len();
            }
            assert!(!pair.question.is_empty() && !pair.answer.is_empty());
        }
        // No escape makes a text longer than it is written, and nothing is said twice.
        assert!(said <= answer.len(), "{said} of {} bytes", answer.len());
    });
}

#[test]
fn long_answers_take_no_longer_than_their_length() {
    let long = worded(&WORDS, 40).prop_map(|piece| piece.repeat((64 << 10) / piece.len().max(1)));
    holds(64, &long, |answer| drop(within(Duration::from_secs(1), || pairs(&answer))));
}

#[test]
fn any_model_is_one_or_a_mistake() {
    let models = [
        json!({ "offline": {}, "max_in_flight": 4, "price": { "input": 0.5, "output": 1.5 } }),
        json!({
            "openai": {
                "base_url": ["http://a:8000/v1", "https://b/v1"], "model": "m", "revision": "r", "api_key": "${secret:KEY}",
                "headers": { "x-team": "blue", "api-key": "${secret:KEY}" }, "context": "32Ki", "timeout": 60,
                "extra_body": { "top_k": 40, "max_tokens": null },
            },
        }),
    ];
    let seeds: Vec<String> = models.iter().map(Value::to_string).collect();
    let words = [
        "1e400GB",
        "3Ki",
        "${secret:}",
        "${secret:a b}",
        "http://",
        "file:///etc/passwd",
        "[]",
        "{}",
        "-1",
        "18446744073709551615",
    ];
    let words: &'static [&'static str] = Box::leak(Box::new(words));
    holds(192, &mutated_text(&seeds, words), |text| {
        let Ok(value) = serde_json::from_str::<Value>(&text) else { return };
        let Ok(model) = serde_json::from_value::<ModelConfig>(value) else { return };
        let written = serde_json::to_value(&model).expect("JSON");
        assert_eq!(serde_json::from_value::<ModelConfig>(written).expect("read again"), model);
    });
}

#[test]
fn only_references_are_secrets() {
    let any =
        strategy::Union::new([mutated_text(&["${secret:TEACHER_KEY}"], &["${secret:", "}", "_", "A"]).boxed(), text(60).boxed()]);
    holds(192, &any, |text| {
        if let Some(secret) = Secret::parse(&text) {
            assert_eq!(secret.to_string(), text.trim());
            assert!(!secret.name().contains(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        }
        // A header's mistakes never repeat its value.
        let value = format!("sk-123{text}");
        if let Err(wrong) = serde_json::from_value::<Headers>(json!({ "authorization": value })) {
            assert!(!wrong.to_string().contains("sk-123"), "{wrong}");
        }
    });
}
