//! Models, as a pipeline file writes them.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use url::Url;

use crate::budget::Budget;
use crate::headers::Headers;
use crate::offline::Offline;
use crate::openai::OpenAi;
use crate::request::Teacher;
use crate::secret::Secret;

/// The names by which servers know the bound on an answer's tokens.
pub(crate) const BOUNDS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// A model that answers, as an entry under `models:`. Stages name it as teacher, judge or reader.
///
/// Exactly one of `offline`, `openai` and `local` says where the answers come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Entry", into = "Entry")]
pub struct ModelConfig {
    /// Where the answers come from.
    pub provider: Provider,
    /// At most so many requests are in flight at once, over all stages that use this model.
    pub max_in_flight: usize,
    /// What a call costs. Needed where a pipeline has a budget.
    pub price: Option<Price>,
}

/// Where answers come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Provider {
    /// Rules, in this process.
    Offline(OfflineModel),
    /// A server.
    OpenAi(Box<OpenAiModel>),
    /// A checkpoint, in this process.
    Local(LocalModel),
}

/// A model that answers. Exactly one of `offline`, `openai` and `local` says where the answers come from.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Model")]
struct Entry {
    /// Deterministic, extractive answers without network or weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    offline: Option<OfflineModel>,
    /// A server that speaks the OpenAI chat protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    openai: Option<OpenAiModel>,
    /// A checkpoint that answers in this process, on the run's device.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<LocalModel>,
    /// At most so many requests are in flight at once, over all stages that use this model.
    #[serde(default = "default_in_flight")]
    #[schemars(range(min = 1))]
    max_in_flight: usize,
    /// What a call costs. Needed where a pipeline has a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Price>,
}

/// The offline teacher: no network, no weights, the same answer every time. It is a stand-in to try pipelines out and to
/// test them, not a source of training data. It has no settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfflineModel {}

/// A model behind one or several servers that speak the OpenAI chat protocol (vLLM, SGLang, llama.cpp, a provider).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenAiModel {
    /// The server's address up to and with `/v1`, or a list of servers of the same model. Not part of the model's
    /// identity.
    pub base_url: Servers,
    /// The model's name, as the server knows it.
    pub model: String,
    /// Which weights stand behind the name. Change it when the server was given others: answers made before are then
    /// asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The key that the server asks for, as `${secret:NAME}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// The model's context length in tokens, for instance `32Ki`: a request that surely doesn't fit (a token for each word, or
    /// for eight letters where that is more, and `max_output_tokens`) is rejected without a call. What only the server finds
    /// too long is rejected with its words. A server that cuts such a request instead of refusing it doesn't say so: prose has
    /// a third more tokens than words, so chunk documents to fit. It is part of a stage's key, since it decides what is
    /// rejected, and not of what answers are remembered by: after a change nothing is asked twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Tokens>,
    /// Fields added to every request's body, for instance `{ top_k: 40 }`. They are part of the request. One that the client
    /// sends, too, takes its place (`temperature: 0`), and removes it as `null` (`top_p: null`). A bound on the answer, as
    /// `max_tokens` or as `max_completion_tokens`, takes the place of `max_output_tokens`, in a budget, too; there is always
    /// one.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra_body: Map<String, Value>,
    /// Headers added to every request, as `${secret:NAME}` where they carry a credential. Not part of the model's
    /// identity.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// A request without a whole answer after so many seconds is given up, and tried again twice. Default 600.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1))]
    pub timeout: u64,
}

/// A checkpoint that answers in this process, on the run's device, as many requests at a time as wait and fit. A stage that asks
/// it has the device for itself. Requests are put into the checkpoint's chat template; a checkpoint without one goes on from the
/// messages, with an empty line between them. The same request gets the same answer, at any temperature. `response_format` isn't
/// enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalModel {
    /// A folder with a Hugging Face checkpoint, relative to the pipeline file, such as `export` writes. The model's identity is
    /// what the folder holds.
    pub checkpoint: PathBuf,
    /// An answer ends in front of the first of these strings, beside where the model ends it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// What a model costs, in dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For tokens of requests.
    #[schemars(range(min = 0.0))]
    pub input: f64,
    /// For tokens of answers.
    #[schemars(range(min = 0.0))]
    pub output: f64,
}

/// A number of tokens: an integer, or one with `K`, `M` (powers of ten) or `Ki`, `Mi` (powers of two).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tokens(pub u64);

/// One or several addresses of servers of the same model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers(Vec<Url>);

fn default_in_flight() -> usize {
    64
}

fn default_timeout() -> u64 {
    600
}

impl ModelConfig {
    /// What enters keys: provider, model, revision, and the `extra_body` that goes into every request. Servers, headers,
    /// timeout, price and the number in flight don't change what is answered and stay out. `None` for `local`, whose identity
    /// is that of its files.
    pub fn identity(&self) -> Option<Value> {
        self.connect(None).map(|teacher| teacher.identity())
    }

    /// The teacher itself. Does no I/O: servers are reached, and secrets are read, when it is first asked. What has a
    /// `price` spends from `budget`. `None` for `local`: this crate runs no models.
    pub fn connect(&self, budget: Option<Arc<Budget>>) -> Option<Arc<dyn Teacher>> {
        match &self.provider {
            Provider::Offline(_) => Some(Arc::new(Offline)),
            Provider::OpenAi(openai) => Some(Arc::new(OpenAi::new((**openai).clone(), budget.zip(self.price)))),
            Provider::Local(_) => None,
        }
    }
}

impl From<ModelConfig> for Entry {
    fn from(model: ModelConfig) -> Self {
        let (offline, openai, local) = match model.provider {
            Provider::Offline(offline) => (Some(offline), None, None),
            Provider::OpenAi(openai) => (None, Some(*openai), None),
            Provider::Local(local) => (None, None, Some(local)),
        };
        Self { offline, openai, local, max_in_flight: model.max_in_flight, price: model.price }
    }
}

impl TryFrom<Entry> for ModelConfig {
    type Error = &'static str;

    fn try_from(entry: Entry) -> Result<Self, Self::Error> {
        let provider = match (entry.offline, entry.openai, entry.local) {
            (Some(offline), None, None) => Provider::Offline(offline),
            (None, Some(openai), None) => Provider::OpenAi(Box::new(openai)),
            (None, None, Some(local)) => Provider::Local(local),
            (None, None, None) => return Err("a model needs `offline`, `openai` or `local`"),
            _ => return Err("a model has one of `offline`, `openai` and `local`"),
        };
        if entry.max_in_flight == 0 {
            return Err("`max_in_flight` is at least 1");
        }
        if let Provider::OpenAi(openai) = &provider {
            if openai.timeout == 0 {
                return Err("`timeout` is at least 1 second");
            }
            if openai.extra_body.contains_key("messages") {
                return Err("`extra_body` can't hold `messages`: those are the stage's prompt");
            }
            let extra_body = &openai.extra_body;
            let bounds = || BOUNDS.into_iter().filter_map(move |name| extra_body.get(name));
            if bounds().any(|bound| !bound.is_null() && bound.as_u64().is_none_or(|tokens| tokens == 0)) {
                return Err("`max_tokens` and `max_completion_tokens` in `extra_body` are whole numbers of tokens, 1 at least");
            }
            if bounds().next().is_some() && bounds().all(Value::is_null) {
                return Err(
                    "`extra_body` can't remove the bound on an answer: give `max_tokens` or `max_completion_tokens` a number",
                );
            }
            if ["stream", "n"].iter().any(|field| openai.extra_body.contains_key(*field)) {
                return Err("`extra_body` can't hold `stream` or `n`: an answer is read whole, and one per request");
            }
        }
        Ok(Self { provider, max_in_flight: entry.max_in_flight, price: entry.price })
    }
}

impl Servers {
    /// Checks addresses: at least one, each `http` or `https`, none with a user or password in it. The error repeats no
    /// address that holds a credential.
    pub fn new(addresses: &[impl AsRef<str>]) -> Result<Self, String> {
        if addresses.is_empty() {
            return Err("`base_url` needs at least one address".to_owned());
        }
        addresses.iter().map(|address| server(address.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// The addresses, as written and parsed.
    pub fn addresses(&self) -> &[Url] {
        &self.0
    }
}

fn server(address: &str) -> Result<Url, String> {
    let url = Url::parse(address).map_err(|error| format!("`base_url` isn't an address: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("`base_url` holds a credential: put it into `api_key` as `${secret:NAME}`".to_owned());
    }
    if url.query().is_some() {
        return Err(
            "`base_url` has a query: put a key into `api_key` as `${secret:NAME}`, other values into `headers`".to_owned()
        );
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`base_url` has the scheme `{}`: `http` or `https` is needed", url.scheme()));
    }
    Ok(url)
}

impl Serialize for Servers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Url::as_str))
    }
}

impl<'de> Deserialize<'de> for Servers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Servers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a list of addresses")
            }

            fn visit_str<E: de::Error>(self, address: &str) -> Result<Servers, E> {
                Servers::new(&[address]).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Servers, A::Error> {
                let mut addresses = Vec::<String>::new();
                while let Some(address) = seq.next_element()? {
                    addresses.push(address);
                }
                Servers::new(&addresses).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Servers {
    fn schema_name() -> Cow<'static, str> {
        "Servers".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" }, "minItems": 1 })
    }
}

impl Tokens {
    /// Parses `8192`, `8Ki`, `32K`, `1M`, `1Mi`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "" => 1,
            "K" => 1_000,
            "M" => 1_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            _ => return None,
        };
        digits.trim().parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens like `8192` or `32Ki`")
            }

            fn visit_u64<E: de::Error>(self, tokens: u64) -> Result<Tokens, E> {
                Ok(Tokens(tokens))
            }

            fn visit_i64<E: de::Error>(self, tokens: i64) -> Result<Tokens, E> {
                u64::try_from(tokens).map(Tokens).map_err(|_| E::invalid_value(de::Unexpected::Signed(tokens), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Tokens, E> {
                Tokens::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Tokens {
    fn schema_name() -> Cow<'static, str> {
        "Tokens".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]+(K|M|Ki|Mi)?$" })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(value: Value) -> Result<ModelConfig, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    fn openai() -> Value {
        json!({ "openai": { "base_url": "http://gpu1:8000/v1", "model": "m", "revision": "r1" } })
    }

    #[test]
    fn exactly_one_provider() {
        assert!(model(json!({ "offline": {} })).is_ok());
        assert!(model(json!({})).expect_err("none").contains("needs `offline`, `openai` or `local`"));
        let mut both = openai();
        both["offline"] = json!({});
        assert!(model(both).expect_err("both").contains("has one of `offline`, `openai` and `local`"));
        assert!(model(json!({ "offline": { "x": 1 } })).expect_err("unknown").contains("unknown field `x`"));
        assert!(model(json!({ "offline": {}, "in_flight": 1 })).expect_err("unknown").contains("unknown field `in_flight`"));
    }

    #[test]
    fn identity_is_what_changes_answers() {
        let base = model(openai()).expect("valid");
        let mut elsewhere = openai();
        elsewhere["openai"]["base_url"] = json!(["http://a/v1", "http://b/v1"]);
        elsewhere["openai"]["headers"] = json!({ "x-team": "blue" });
        elsewhere["openai"]["timeout"] = json!(5);
        elsewhere["max_in_flight"] = json!(3);
        assert_eq!(model(elsewhere).expect("valid").identity(), base.identity());
        for (field, value) in [("model", json!("n")), ("revision", json!("r2")), ("extra_body", json!({ "top_k": 40 }))] {
            let mut changed = openai();
            changed["openai"][field] = value;
            assert_ne!(model(changed).expect("valid").identity(), base.identity(), "{field}");
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let mut full = openai();
        full["openai"]["api_key"] = json!("${secret:TEACHER_KEY}");
        full["price"] = json!({ "input": 0.5, "output": 1.5 });
        let config = model(full).expect("valid");
        let written = serde_json::to_value(&config).expect("json");
        assert_eq!(written["openai"]["api_key"], json!("${secret:TEACHER_KEY}"));
        assert_eq!(model(written).expect("valid"), config);
        let local = json!({ "local": { "checkpoint": "../student", "stop": ["\n\n"] }, "max_in_flight": 64 });
        assert_eq!(serde_json::to_value(model(local.clone()).expect("valid")).expect("json"), local);
    }

    #[test]
    fn credentials_in_an_address_are_refused_unrepeated() {
        for address in ["http://me:sk-1@h/v1", "http://h/v1?key=sk-1"] {
            let mut wrong = openai();
            wrong["openai"]["base_url"] = json!(address);
            let message = model(wrong).expect_err("a credential");
            assert!(message.contains("`api_key`") && !message.contains("sk-1"), "{message}");
        }
    }

    #[test]
    fn sizes() {
        let mut sized = openai();
        sized["openai"]["context"] = json!("32Ki");
        match model(sized).expect("valid").provider {
            Provider::OpenAi(openai) => assert_eq!(openai.context, Some(Tokens(32_768))),
            Provider::Offline(_) | Provider::Local(_) => panic!("a server"),
        }
        assert_eq!(Tokens::parse("2M"), Some(Tokens(2_000_000)));
        assert_eq!(Tokens::parse("2G"), None);
    }

    #[test]
    fn connecting_reads_no_secret() {
        let mut locked = openai();
        locked["openai"]["api_key"] = json!("${secret:INGRAIN_TEST_NO_SUCH_VARIABLE}");
        let identity = json!({ "provider": "openai", "model": "m", "revision": "r1" });
        assert_eq!(model(locked).expect("valid").identity(), Some(identity));
        assert_eq!(model(json!({ "offline": {} })).expect("valid").identity(), Some(Offline.identity()));
        assert_eq!(model(json!({ "local": { "checkpoint": "folder" } })).expect("valid").identity(), None);
    }

    #[test]
    fn fields_that_would_break_a_request_are_refused() {
        for (field, value) in
            [("extra_body", json!({ "stream": true })), ("extra_body", json!({ "messages": [] })), ("timeout", json!(0))]
        {
            let mut wrong = openai();
            wrong["openai"][field] = value;
            assert!(model(wrong).expect_err("refused").contains(&format!("`{field}`")));
        }
    }

    #[test]
    fn an_answer_has_a_bound() {
        let with = |extra_body: Value| {
            let mut bound = openai();
            bound["openai"]["extra_body"] = extra_body;
            model(bound).map(|_| ())
        };
        for removed in [json!({ "max_tokens": null }), json!({ "max_tokens": null, "max_completion_tokens": null })] {
            assert!(with(removed).expect_err("refused").contains("can't remove the bound on an answer"));
        }
        for wrong in [json!("32Ki"), json!(0), json!(-1), json!(0.5)] {
            assert!(with(json!({ "max_tokens": wrong })).expect_err("refused").contains("whole numbers of tokens"));
        }
        assert_eq!(with(json!({ "max_tokens": 32_000 })), Ok(()));
        assert_eq!(with(json!({ "max_tokens": null, "max_completion_tokens": 500 })), Ok(()));
    }

    #[test]
    fn the_schema_describes_the_entry() {
        let schema = schemars::schema_for!(ModelConfig).to_value();
        let properties = schema["properties"].as_object().expect("an object");
        let names: Vec<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(names, ["offline", "openai", "local", "max_in_flight", "price"]);
        assert_eq!(schema["additionalProperties"], json!(false));
        assert!(schema.to_string().contains("\"format\":\"secret\""));
    }
}
