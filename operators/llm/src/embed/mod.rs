//! Turns texts into vectors, and remembers them.

mod coding;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::budget::Budget;
use crate::client::{Counts, Reject};
use crate::config::{ModelConfig, Provider};
use crate::memo::{Key, Memo};
use crate::offline::Offline;
use crate::openai::OpenAi;
use crate::request::{Answer, Finish, Outage, Usage};
use crate::trial::Trial;

/// Texts of a request. Some servers take no more unless told to (text-embeddings-inference).
const TEXTS: usize = 32;
/// Bytes of a request's texts, unless one text alone has more.
const BYTES: usize = 256 << 10;

/// Remembered vectors that are read at once.
const LOOK_UPS: usize = 64;

/// A text's vector, of length 1: the product of two is their cosine.
pub type Vector = Arc<[f32]>;

/// Something that turns texts into vectors.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// What enters keys, as [`crate::Teacher::identity`] does.
    fn identity(&self) -> Value;

    /// Embeds texts in one request. Dropping the future gives it up.
    async fn embed(&self, texts: &[&str]) -> Result<Embedded, Outage>;

    /// Sends nothing any more, as [`crate::Teacher::stop`].
    fn stop(&self) {}
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedded {
    /// The texts' vectors.
    Vectors {
        /// One for each text, in their order, all of length 1.
        vectors: Vec<Vec<f32>>,
        /// What they cost together, if the server said so.
        usage: Option<Usage>,
        /// The model's name as the server reports it.
        model: String,
        /// When they came, in milliseconds since 1970 (UTC); 0 for an embedder whose vectors have no time.
        created_ms: u64,
    },
    /// The server refused the request (400, 413, 422) with these words: for one of the texts, or for all of them together.
    Refused(String),
}

impl ModelConfig {
    /// The embedder itself, as [`Self::connect`] gives the teacher. Only the price of requests counts. `None` for `local`,
    /// which gives no vectors.
    pub fn embedder(&self, budget: Option<Arc<Budget>>) -> Option<Arc<dyn Embedder>> {
        match &self.provider {
            Provider::Offline(_) => Some(Arc::new(Offline)),
            Provider::OpenAi(openai) => Some(Arc::new(OpenAi::new((**openai).clone(), budget.zip(self.price)))),
            Provider::Local(_) => None,
        }
    }
}

/// An embedder with its memo. All who ask one model share one of these (cloning is cheap and shares): the bound on requests in
/// flight, and the rule that no text is asked for twice, hold for all clones.
#[derive(Clone)]
pub struct Embeddings {
    inner: Arc<Inner>,
}

struct Inner {
    embedder: Arc<dyn Embedder>,
    memo: Memo,
    max_in_flight: usize,
    trial: Arc<Trial>,
    stopped: AtomicBool,
    /// Held by a call until its last request has ended, even where nobody waits for it any more.
    turn: Arc<Mutex<()>>,
}

/// A text with the key of its vector.
type Text = (Key, String);
/// What a text came to.
type Found = Result<Vector, Reject>;

impl Embeddings {
    /// Keeps at most `max_in_flight` (at least 1) requests in flight. The memo is best one of its own: vectors are larger than
    /// most answers, and who looks for one of these reads few of those.
    pub fn new(embedder: Arc<dyn Embedder>, memo: Memo, max_in_flight: usize) -> Self {
        let max_in_flight = max_in_flight.max(1);
        let (trial, stopped, turn) = (Arc::default(), AtomicBool::new(false), Arc::default());
        Self { inner: Arc::new(Inner { embedder, memo, max_in_flight, trial, stopped, turn }) }
    }

    /// The memo behind it.
    pub fn memo(&self) -> &Memo {
        &self.inner.memo
    }

    /// The vector of each text, in their order, all with as many numbers; for a text that can't be embedded, why. `refresh`
    /// keeps vectors apart that were asked for at different wishes. `count` is told what is done, as it is done: a call is a
    /// request with up to 32 texts, a memo hit a text.
    ///
    /// Equal texts are asked for once, remembered ones not at all. Calls of this function go one after the other, each
    /// with as many requests in flight as there may be: give it all texts at once. A request that the server refuses is
    /// divided until it is known which texts are at fault; those are rejects, remembered unless nothing was embedded yet. If
    /// the first 20 are all refused, it is an outage. Where nobody is to be asked ([`Outage::Unasked`]), texts without a
    /// remembered vector are rejects.
    ///
    /// Dropping the future gives up what wasn't sent yet; vectors of requests in flight are kept.
    pub async fn embed(
        &self,
        texts: &[String],
        refresh: Option<&str>,
        count: &(dyn Fn(Counts) + Send + Sync),
    ) -> Result<Vec<Result<Vector, Reject>>, Outage> {
        let turn = Arc::new(self.inner.turn.clone().lock_owned().await);
        let key = Key::vectors(&self.inner.embedder.identity(), refresh);
        let keys: Vec<Key> = texts.iter().map(|text| key(text)).collect();
        let (mut found, unknown, memo_hits) = self.inner.look_up(&keys, texts).await?;
        count(Counts { memo_hits, ..Counts::default() });
        let requests = batches(unknown).into_iter().map(|batch| self.clone().exchange(batch, turn.clone()));
        let mut answered = stream::iter(requests).buffer_unordered(self.inner.max_in_flight);
        while let Some((some, counts)) = answered.try_next().await? {
            count(counts);
            found.extend(some);
        }
        let lengths: BTreeSet<usize> = found.values().flatten().map(|vector| vector.len()).collect();
        if let (Some(fewest), Some(most)) = (lengths.first(), lengths.last())
            && fewest != most
        {
            return Err(Outage::Teacher {
                message: format!("the embedder gave vectors of {fewest} numbers and of {most}"),
                hint: Some("other weights stand behind the model's name: give it another `revision`".to_owned()),
            });
        }
        let unasked = || Err(Reject::new("unasked", "nobody was asked"));
        Ok(keys.iter().map(|key| found.get(key).cloned().unwrap_or_else(unasked)).collect())
    }

    /// Sends nothing any more, and waits until the requests in flight have brought their vectors, or for `patience`.
    pub async fn settle(&self, patience: Duration) {
        self.inner.stopped.store(true, Ordering::Release);
        self.inner.embedder.stop();
        let _ = tokio::time::timeout(patience, self.inner.turn.lock()).await;
    }

    /// Asks for the vectors of a batch, and keeps them whoever still wants them.
    async fn exchange(self, batch: Vec<Text>, turn: Arc<OwnedMutexGuard<()>>) -> Result<(Vec<(Key, Found)>, Counts), Outage> {
        let exchange = tokio::spawn(async move {
            let answered = self.inner.ask(batch).await;
            drop(turn);
            answered
        });
        match exchange.await {
            Ok(answered) => answered,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(Outage::teacher(error.to_string())),
        }
    }
}

impl Inner {
    /// What is known of texts, those that aren't, each once, and how many were remembered.
    async fn look_up(&self, keys: &[Key], texts: &[String]) -> Result<(HashMap<Key, Found>, Vec<Text>, u64), Outage> {
        let (mut found, mut unknown, mut remembered) = (HashMap::new(), Vec::new(), 0);
        let mut seen = HashSet::new();
        let distinct: Vec<usize> = (0..keys.len().min(texts.len())).filter(|n| seen.insert(keys[*n])).collect();
        let looked_up = distinct.into_iter().map(|n| async move {
            let known = match texts[n].trim().is_empty() {
                true => Some(Err(Reject::new("empty", "there is no text to embed"))),
                false => self.remembered(keys[n]).await?,
            };
            Ok::<_, Outage>((n, known))
        });
        let mut looked_up = stream::iter(looked_up).buffered(LOOK_UPS);
        while let Some((n, known)) = looked_up.try_next().await? {
            match known {
                Some(known) => {
                    remembered += u64::from(!texts[n].trim().is_empty());
                    found.insert(keys[n], known);
                }
                None => unknown.push((keys[n], texts[n].clone())),
            }
        }
        Ok((found, unknown, remembered))
    }

    async fn remembered(&self, key: Key) -> Result<Option<Found>, Outage> {
        let Some(answer) = self.memo.answer(&key).await? else { return Ok(None) };
        Ok(match answer.whole() {
            Ok(text) => coding::decode(text).map(|vector| Ok(vector.into())),
            Err(reject) => Some(Err(reject)),
        })
    }

    async fn ask(&self, batch: Vec<Text>) -> Result<(Vec<(Key, Found)>, Counts), Outage> {
        let mut answered: Vec<(Key, Found)> = Vec::with_capacity(batch.len());
        let mut counts = Counts::default();
        let mut waiting = vec![batch];
        while let Some(mut some) = waiting.pop() {
            let call = self.trial.begin()?;
            if self.stopped.load(Ordering::Acquire) {
                return Err(Outage::teacher("the run is being stopped"));
            }
            let embedded = {
                let texts: Vec<&str> = some.iter().map(|(_, text)| text.as_str()).collect();
                self.embedder.embed(&texts).await
            };
            counts.calls += u64::from(embedded.is_ok());
            match embedded {
                Ok(Embedded::Vectors { vectors, usage, model, created_ms }) => {
                    call.answered();
                    let usage = usage.unwrap_or_default();
                    counts.input_tokens += usage.input_tokens;
                    counts.output_tokens += usage.output_tokens;
                    let keys: Vec<Key> = some.iter().map(|(key, _)| *key).collect();
                    let texts = vectors.iter().map(|vector| coding::encode(vector));
                    let answers: Vec<Answer> = texts.map(|text| Answer::of(text, Finish::Stop, &model, created_ms)).collect();
                    self.record(&keys, &answers).await?;
                    answered.extend(keys.into_iter().zip(vectors.into_iter().map(|vector| Found::Ok(vector.into()))));
                }
                Ok(Embedded::Refused(_)) if some.len() > 1 => {
                    let rest = some.split_off(some.len() / 2);
                    waiting.extend([rest, some]);
                }
                Ok(Embedded::Refused(words)) => {
                    let refusal = Answer::of(words, Finish::Invalid, "", 0);
                    let kept = call.refused(&refusal.text).await?;
                    for (key, _) in some {
                        if kept {
                            self.record(&[key], std::slice::from_ref(&refusal)).await?;
                        }
                        answered.extend(refusal.whole().err().map(|reject| (key, Found::Err(reject))));
                    }
                }
                Err(Outage::Unasked) => {
                    let reject = Reject::new("unasked", "the text was counted and not sent");
                    answered.extend(some.into_iter().map(|(key, _)| (key, Found::Err(reject.clone()))));
                }
                Err(outage) => return Err(outage),
            }
        }
        Ok((answered, counts))
    }

    /// Keeps answers, with one write for all of them.
    async fn record(&self, keys: &[Key], answers: &[Answer]) -> Result<(), Outage> {
        let each = (0..keys.len().min(answers.len())).map(|n| self.memo.record(keys[n], &answers[n]));
        try_join_all(each).await?;
        Ok(())
    }
}

impl Answer {
    fn of(text: String, finish: Finish, model: &str, created_ms: u64) -> Self {
        Self { text, reasoning: None, finish, usage: None, model: model.to_owned(), created_ms }
    }
}

/// Cuts texts into requests.
fn batches(texts: Vec<Text>) -> Vec<Vec<Text>> {
    let mut batches: Vec<Vec<Text>> = Vec::new();
    let mut bytes = 0;
    for text in texts {
        let more = text.1.len();
        match batches.last_mut() {
            Some(batch) if batch.len() < TEXTS && bytes + more <= BYTES => batch.push(text),
            _ => {
                bytes = 0;
                batches.push(vec![text]);
            }
        }
        bytes += more;
    }
    batches
}

/// A vector of length 1 in the direction of this one; `None` if it has none.
pub(crate) fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let squares: f64 = vector.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
    let length = squares.sqrt();
    (length > 0.0 && length.is_finite()).then(|| vector.iter().map(|number| (f64::from(*number) / length) as f32).collect())
}

#[cfg(test)]
mod tests;
