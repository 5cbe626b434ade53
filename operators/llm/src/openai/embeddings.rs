//! Vectors, from `…/embeddings` of the OpenAI protocol.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::pool::{Form, Server};
use super::reply::{Fault, Received, Reply, Sent};
use super::retry::{Kind, Tries};
use super::{OpenAi, body};
use crate::budget::Hold;
use crate::config::{OpenAiModel, Price};
use crate::embed::{Embedded, Embedder, unit};
use crate::request::{Outage, Teacher, Usage};

/// Asks with the same patience, credentials and budget as for chat completions. The gate and the state of the servers are
/// this value's own: a server may have the one endpoint and not the other.
///
/// Vectors are put into the order of their `index`. A reply with more or fewer of them than texts, or with one that has no
/// direction, is an outage at once: another try would give the same.
#[async_trait]
impl Embedder for OpenAi {
    fn identity(&self) -> Value {
        Teacher::identity(self)
    }

    async fn embed(&self, texts: &[&str]) -> Result<Embedded, Outage> {
        let link = self.link().await?;
        let _pass = self.gate.pass().await?;
        let body = request(&self.model, texts);
        let mut tries = Tries::default();
        loop {
            let hold = self.unless_stopped(self.hold_for(&body)).await??;
            let lease = self.unless_stopped(self.pool.lease(&self.limits)).await?;
            self.gate.check()?;
            let sent = Sent {
                model: &self.model,
                credentials: &link.credentials,
                server: &lease.server().name,
                form: Form::default(),
                response_format: false,
            };
            let heard = match self.post(link, address(lease.server()), body.clone()).await {
                Ok(received) => read(&sent, received, texts.len()),
                Err(fault) => Heard::Other(Reply::Fault(fault)),
            };
            if let Some((hold, price)) = hold {
                let cost = match &heard {
                    Heard::Vectors { usage, .. } => usage.map(|usage| price.of(usage)),
                    Heard::Other(reply) => reply.cost(price),
                };
                if let Some(cost) = cost {
                    hold.paid(cost);
                }
            }
            let embedded = match heard {
                Heard::Vectors { vectors, usage, model } => {
                    let created_ms = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default();
                    Embedded::Vectors { vectors, usage, model, created_ms }
                }
                Heard::Other(Reply::Answer(refusal)) => Embedded::Refused(refusal.text),
                Heard::Other(Reply::Fault(fault)) => {
                    let delay = self.after(&fault, &lease, &mut tries)?;
                    tracing::debug!(server = lease.server().name, what = fault.what, ?delay, "asked again");
                    drop(lease);
                    if !delay.is_zero() {
                        self.unless_stopped(tokio::time::sleep(delay)).await?;
                    }
                    continue;
                }
                Heard::Other(Reply::Outage(outage)) => {
                    self.gate.shut(&outage);
                    return Err(outage);
                }
                Heard::Other(Reply::Otherwise(_)) => {
                    let server = &lease.server().name;
                    return Err(Outage::teacher(format!("`{server}` took a request for vectors for one for a chat")));
                }
            };
            lease.answered(Form::default());
            self.answers.fetch_add(1, Ordering::Relaxed);
            self.gate.open();
            return Ok(embedded);
        }
    }

    fn stop(&self) {
        Teacher::stop(self);
    }
}

impl OpenAi {
    /// Waits until the budget has room for the worst that a request with this body may cost: a token for each of its bytes.
    async fn hold_for(&self, body: &Bytes) -> Result<Option<(Hold<'_>, Price)>, Outage> {
        let Some((budget, price)) = &self.spending else { return Ok(None) };
        let worst = Usage { input_tokens: body.len() as u64, output_tokens: 0 };
        Ok(Some((budget.hold(price.of(worst)).await?, *price)))
    }
}

/// Where a server has its vectors: beside its chat completions.
fn address(server: &Server) -> Url {
    let mut url = server.url.clone();
    let base = url.path().strip_suffix("/chat/completions").unwrap_or_default().to_owned();
    url.set_path(&format!("{base}/embeddings"));
    url
}

/// The body of a request. `extra_body` acts as in one for a chat.
fn request(model: &OpenAiModel, texts: &[&str]) -> Bytes {
    let mut body = Map::new();
    body.insert("model".to_owned(), model.model.as_str().into());
    body.insert("input".to_owned(), texts.into());
    body.insert("encoding_format".to_owned(), "float".into());
    for (name, value) in &model.extra_body {
        match value {
            Value::Null => drop(body.remove(name)),
            value => drop(body.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(body).to_string().into()
}

/// What came of a request.
enum Heard {
    /// A vector of length 1 for each text, in their order.
    Vectors { vectors: Vec<Vec<f32>>, usage: Option<Usage>, model: String },
    /// As for a chat.
    Other(Reply),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    data: Option<Vec<Item>>,
    #[serde(default)]
    usage: Option<Counted>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    index: Option<usize>,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    prompt_tokens: Option<u64>,
}

/// Reads a response to a request with so many texts.
fn read(sent: &Sent<'_>, received: Received, texts: usize) -> Heard {
    if !(200..300).contains(&received.status) {
        return Heard::Other(sent.read(received));
    }
    if received.cut {
        return mismatch(sent, "is larger than 16 MiB".to_owned());
    }
    let envelope = match serde_json::from_slice::<Envelope>(&received.body) {
        Ok(envelope) if envelope.error.as_ref().is_some_and(|error| !error.is_null()) => {
            return Heard::Other(sent.read(received));
        }
        Ok(envelope) => envelope,
        Err(error) => return broken(sent, format!("no vectors ({error})"), &received),
    };
    let Some(items) = envelope.data else {
        return broken(sent, "a JSON object without `data`".to_owned(), &received);
    };
    if items.len() != texts {
        return mismatch(sent, format!("holds {} vectors for {texts} texts", items.len()));
    }
    let mut vectors = vec![Vec::new(); texts];
    for (place, Item { index, embedding }) in items.into_iter().enumerate() {
        let index = index.unwrap_or(place);
        let Some(vector) = vectors.get_mut(index).filter(|vector| vector.is_empty()) else {
            return mismatch(sent, format!("has `index` {index} twice, or too large"));
        };
        match unit(&embedding) {
            Some(embedding) => *vector = embedding,
            None => return mismatch(sent, format!("has a vector without direction at `index` {index}")),
        }
    }
    let usage = envelope.usage.and_then(|usage| Some(Usage { input_tokens: usage.prompt_tokens?, output_tokens: 0 }));
    let model = envelope.model.filter(|name| !name.is_empty()).unwrap_or_else(|| sent.model.model.clone());
    Heard::Vectors { vectors, usage, model: sent.credentials.hide_in_answer(model) }
}

fn broken(sent: &Sent<'_>, why: String, received: &Received) -> Heard {
    // Secrets go before the rest is cut, so that no part of one is left.
    let hidden = |text: String| sent.credentials.hide(text);
    let what = match body::words(&hidden(String::from_utf8_lossy(&received.body).into_owned())) {
        said if said.is_empty() => "an empty body".to_owned(),
        said => format!("{why}: {said}"),
    };
    Heard::Other(Reply::Fault(Fault { kind: Kind::Broken, what: hidden(what), pause: None, free: false }))
}

/// The reply of a server that doesn't do what the protocol says.
fn mismatch(sent: &Sent<'_>, what: String) -> Heard {
    Heard::Other(Reply::Outage(Outage::Teacher {
        message: format!("a reply of `{}` {what}", sent.server),
        hint: Some(format!("see whether `{}` is a model that embeds, and what its server's log says", sent.model.model)),
    }))
}

/// The vectors that a response holds, if it is one of vectors.
#[cfg(test)]
pub(super) fn read_for_test(sent: &Sent<'_>, received: Received, texts: usize) -> Option<Vec<Vec<f32>>> {
    match read(sent, received, texts) {
        Heard::Vectors { vectors, .. } => Some(vectors),
        Heard::Other(_) => None,
    }
}
