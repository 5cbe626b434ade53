//! Headers of a pipeline file: values in plain text, or secrets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use reqwest::header::{HeaderName, HeaderValue};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Headers that carry credentials with most servers: their values are secrets, never plain text.
const CREDENTIALS: [&str; 7] =
    ["authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "x-auth-token", "cookie"];

/// Headers that are added to every request, by name. A header that carries a credential is a secret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "BTreeMap<String, HeaderText>", into = "BTreeMap<String, HeaderText>")]
pub struct Headers(BTreeMap<String, HeaderText>);

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum HeaderText {
    /// As `${secret:NAME}`.
    Secret(Secret),
    /// As written.
    Plain(String),
}

impl Headers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The headers, sorted by name as it is written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderText)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text))
    }
}

impl TryFrom<BTreeMap<String, HeaderText>> for Headers {
    type Error = String;

    /// The error repeats no value.
    fn try_from(headers: BTreeMap<String, HeaderText>) -> Result<Self, String> {
        for (name, text) in &headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err(format!("`headers`: `{name}` isn't the name of a header"));
            }
            let HeaderText::Plain(text) = text else { continue };
            if CREDENTIALS.iter().any(|credential| name.eq_ignore_ascii_case(credential)) {
                return Err(format!(
                    "`headers`: `{name}` carries a credential: write it as `${{secret:NAME}}`, with the value in the environment \
                     variable `NAME`, or use `api_key`"
                ));
            }
            if text.contains("${secret:") {
                return Err(format!("`headers`: in `{name}`, a secret is the whole value: `${{secret:NAME}}`"));
            }
            if HeaderValue::from_str(text).is_err() {
                return Err(format!("`headers`: the value of `{name}` isn't printable ASCII on one line"));
            }
        }
        Ok(Self(headers))
    }
}

impl From<Headers> for BTreeMap<String, HeaderText> {
    fn from(headers: Headers) -> Self {
        headers.0
    }
}

impl From<String> for HeaderText {
    fn from(text: String) -> Self {
        match Secret::parse(&text) {
            Some(secret) => Self::Secret(secret),
            None => Self::Plain(text),
        }
    }
}

impl From<HeaderText> for String {
    fn from(text: HeaderText) -> Self {
        match text {
            HeaderText::Secret(secret) => secret.to_string(),
            HeaderText::Plain(text) => text,
        }
    }
}

impl JsonSchema for HeaderText {
    fn schema_name() -> Cow<'static, str> {
        "HeaderText".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string", "format": "secret" }, { "type": "string" }] })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn headers(value: Value) -> Result<Headers, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_text_and_secrets() {
        let written = json!({ "api-key": "${secret:TEACHER_KEY}", "x-team": "blue" });
        let read = headers(written.clone()).expect("valid");
        let kinds: Vec<bool> = read.iter().map(|(_, text)| matches!(text, HeaderText::Secret(_))).collect();
        assert_eq!(kinds, [true, false]);
        assert_eq!(serde_json::to_value(read).expect("json"), written);
    }

    #[test]
    fn mistakes_are_named_and_values_are_not_repeated() {
        for (wrong, told) in [
            (json!({ "Authorization": "Bearer sk-123" }), "`Authorization` carries a credential"),
            (json!({ "x team": "sk-123" }), "`x team` isn't the name of a header"),
            (json!({ "x-team": "sk-123\nx" }), "the value of `x-team`"),
            (json!({ "x-team": "sk-123 ${secret:KEY}" }), "a secret is the whole value"),
        ] {
            let message = headers(wrong).expect_err(told);
            assert!(message.contains(told) && !message.contains("sk-123"), "{message}");
        }
    }
}
