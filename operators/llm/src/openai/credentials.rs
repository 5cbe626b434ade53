//! What a request carries to be let in, and how it is kept out of everything else.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::config::OpenAiModel;
use crate::headers::HeaderText;
use crate::request::Outage;
use crate::secret::Secret;

/// Shorter values (`EMPTY`, `none`) are placeholders and no secrets: what a model says may hold them by chance.
const SHORTEST: usize = 6;

/// The headers of every request, and the secrets in them.
pub(super) struct Credentials {
    pub(super) headers: HeaderMap,
    /// Value and reference.
    secrets: Vec<(String, String)>,
}

impl Credentials {
    /// Reads the secrets that a model names.
    ///
    /// # Errors
    /// When one isn't set, or can't stand in a header. The error holds no value.
    pub(super) fn read(model: &OpenAiModel) -> Result<Self, Outage> {
        let mut credentials = Self { headers: HeaderMap::new(), secrets: Vec::new() };
        if let Some(secret) = &model.api_key {
            let value = credentials.secret(secret, "Bearer ")?;
            credentials.headers.insert(AUTHORIZATION, value);
        }
        for (name, text) in model.headers.iter() {
            let value = match text {
                HeaderText::Secret(secret) => credentials.secret(secret, "")?,
                HeaderText::Plain(text) => HeaderValue::from_str(text).map_err(|_| unfit(&format!("the header `{name}`")))?,
            };
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit(&format!("the header `{name}`")))?;
            credentials.headers.insert(name, value);
        }
        // The longest first, so that no secret leaves the rest of another behind.
        credentials.secrets.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        Ok(credentials)
    }

    fn secret(&mut self, secret: &Secret, scheme: &str) -> Result<HeaderValue, Outage> {
        let value = secret.read().map_err(|missing| Outage::Teacher {
            message: missing.to_string(),
            hint: Some(format!("set `{}` in the environment of this command", missing.name)),
        })?;
        // A line break at the end comes with many a file that a variable is read from.
        let value = value.trim();
        let mut header = HeaderValue::from_str(&format!("{scheme}{value}")).map_err(|_| unfit(&format!("`{secret}`")))?;
        header.set_sensitive(true);
        self.secrets.push((value.to_owned(), secret.to_string()));
        Ok(header)
    }

    /// A text of the server's for a message, with the reference in the place of each secret.
    pub(super) fn hide(&self, text: String) -> String {
        self.without(text, 1)
    }

    /// A text of the model's, which keeps what is too short for a secret.
    pub(super) fn hide_in_answer(&self, text: String) -> String {
        self.without(text, SHORTEST)
    }

    fn without(&self, text: String, shortest: usize) -> String {
        self.secrets.iter().filter(|(value, _)| value.len() >= shortest).fold(text, |text, (value, reference)| {
            if text.contains(value.as_str()) { text.replace(value.as_str(), reference) } else { text }
        })
    }
}

fn unfit(what: &str) -> Outage {
    Outage::Teacher {
        message: format!("the value of {what} can't be sent: it isn't printable ASCII on one line"),
        hint: Some("see that the environment variable holds the key and nothing else".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn model(extra: Value) -> OpenAiModel {
        let mut model = json!({ "base_url": "http://h/v1", "model": "m" });
        model.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        serde_json::from_value(model).expect("valid")
    }

    #[test]
    fn secrets_are_hidden_by_their_reference() {
        let path = std::env::var("PATH").expect("set");
        let credentials =
            Credentials::read(&model(json!({ "api_key": "${secret:PATH}", "headers": { "x-team": "blue" } }))).expect("read");
        assert_eq!(credentials.headers[AUTHORIZATION], format!("Bearer {path}"));
        assert_eq!(credentials.headers["x-team"], "blue");
        let shown = credentials.hide(format!("invalid key {path}, team blue"));
        assert_eq!(shown, "invalid key ${secret:PATH}, team blue");
        assert!(!format!("{:?}", credentials.headers).contains(&path), "a sensitive header isn't shown");
    }

    #[test]
    fn placeholders_stay_in_answers() {
        let credentials = Credentials { headers: HeaderMap::new(), secrets: vec![("EMPTY".into(), "${secret:KEY}".into())] };
        assert_eq!(credentials.hide_in_answer("EMPTY".into()), "EMPTY");
        assert_eq!(credentials.hide("EMPTY".into()), "${secret:KEY}");
    }

    #[test]
    fn a_missing_variable_is_named() {
        let missing = Credentials::read(&model(json!({ "headers": { "api-key": "${secret:INGRAIN_TEST_NO_SUCH_VARIABLE}" } })));
        let outage = missing.err().expect("not set");
        assert!(outage.to_string().contains("`INGRAIN_TEST_NO_SUCH_VARIABLE`"), "{outage}");
    }
}
