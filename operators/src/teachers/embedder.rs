//! Embedders for the stages of a run: one per model, with a memo of their own.
//!
//! Vectors don't lie among a teacher's answers: a memo's keys are read when it is opened, and a run that only asks for answers has
//! no use for theirs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use ingrain_engine::{
    failure::Failure,
    run::{Counters, Environment, Service},
};
use ingrain_llm::{Budget, Counts, Embedded, Embedder, Embeddings, Key, Memo, Outage, Reject, Vector};
use object_store::path::Path;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{
    PATIENCE, Teachers, Unasked, budget_failure, close, config, estimate::Estimates, identity, local_folder, memo_failure,
    open_budget, outage,
};

/// Where on the store the vectors lie.
pub(super) const EMBEDDINGS: &str = "embeddings";

/// The embedder of the model called `model`, made on first use and shared by all stages of the run. In a rehearsal it gives
/// what is remembered, and sends nothing.
///
/// # Errors
/// When the model isn't described, and when the memo can't be opened.
pub(crate) async fn embedder(environment: &Environment, model: &str) -> Result<Embeddings, Failure> {
    let embedders = environment.service(Embedders::default);
    let mut models = embedders.models.lock().await;
    if let Some(made) = models.get(model) {
        return Ok(made.clone());
    }
    let config = config(environment, model)?;
    let teachers = environment.service(Teachers::default);
    let memo = embedders.memo.get_or_try_init(|| open(environment, teachers.unasked.is_some())).await?.clone();
    let embedder: Arc<dyn Embedder> = match &teachers.unasked {
        Some(unasked) => {
            let estimates = match unasked {
                Unasked::Preview(_) => None,
                Unasked::Estimates(estimates) => Some(estimates.clone()),
            };
            Arc::new(Counter { identity: identity(&config, &environment.cache)?, estimates })
        }
        None => {
            let budget = match environment.budget {
                Some(usd) => Some(teachers.budget.get_or_try_init(|| open_budget(environment, usd)).await?.clone()),
                None => None,
            };
            if let Some(budget) = &budget {
                // All models of a run spend from the same one.
                let _ = embedders.budget.set(budget.clone());
            }
            config.embedder(budget).ok_or_else(|| {
                Failure::data(format!("`{model}` is a local checkpoint, which gives no vectors"))
                    .hint("name a model with `openai` as the embedder")
            })?
        }
    };
    let made = Embeddings::new(embedder, memo, config.max_in_flight);
    models.insert(model.to_owned(), made.clone());
    Ok(made)
}

/// The vectors of texts, as [`Embeddings::embed`] gives them. Counts calls, tokens and remembered vectors for the stage, and says
/// how far it is.
///
/// # Errors
/// When the embedder or the memo is out.
pub(crate) async fn embed(
    embeddings: &Embeddings,
    counters: &Counters,
    texts: &[String],
    refresh: Option<&str>,
) -> Result<Vec<Result<Vector, Reject>>, Failure> {
    let requests = AtomicU64::new(0);
    let count = |done: Counts| {
        let requests = requests.fetch_add(done.calls, Ordering::Relaxed) + done.calls;
        Counters::add(&counters.calls, done.calls);
        Counters::add(&counters.memo_hits, done.memo_hits);
        Counters::add(&counters.input_tokens, done.input_tokens);
        Counters::add(&counters.output_tokens, done.output_tokens);
        counters.say(format!("embedding {} texts, {requests} requests answered", texts.len()));
    };
    embeddings.embed(texts, refresh, &count).await.map_err(outage)
}

/// The memo of the run's vectors; in a rehearsal what stands in it, to look at.
async fn open(environment: &Environment, look: bool) -> Result<Memo, Failure> {
    let (objects, folder) = (environment.store.objects().clone(), local_folder(environment, EMBEDDINGS));
    let prefix = Path::from(EMBEDDINGS);
    let memo = match look {
        true => Memo::look(objects, prefix, &folder).await,
        false => Memo::open(objects, prefix, &folder).await,
    };
    memo.map_err(memo_failure)
}

/// What a run's stages share.
#[derive(Default)]
struct Embedders {
    memo: OnceCell<Memo>,
    budget: OnceCell<Arc<Budget>>,
    models: tokio::sync::Mutex<BTreeMap<String, Embeddings>>,
}

#[async_trait]
impl Service for Embedders {
    async fn sync(&self) -> Result<(), Failure> {
        match self.memo.get() {
            Some(memo) => memo.sync().await.map_err(memo_failure),
            None => Ok(()),
        }
    }

    async fn refresh(&self) -> Result<(), Failure> {
        match self.memo.get() {
            Some(memo) => memo.refresh().await.map_err(memo_failure),
            None => Ok(()),
        }
    }

    async fn close(&self) -> Result<(), Failure> {
        let models: Vec<Embeddings> = self.models.lock().await.values().cloned().collect();
        // What was sent is paid for.
        futures::future::join_all(models.iter().map(|embeddings| embeddings.settle(PATIENCE))).await;
        let uploaded = match self.budget.get() {
            Some(budget) => budget.settle().await.map_err(budget_failure),
            None => Ok(()),
        };
        match self.memo.get() {
            Some(memo) => close(memo).await.and(uploaded),
            None => uploaded,
        }
    }
}

/// An embedder that counts what it is asked.
struct Counter {
    identity: Value,
    estimates: Option<Arc<Estimates>>,
}

#[async_trait]
impl Embedder for Counter {
    fn identity(&self) -> Value {
        self.identity.clone()
    }

    async fn embed(&self, texts: &[&str]) -> Result<Embedded, Outage> {
        if let (Some(estimates), Some(first)) = (&self.estimates, texts.first()) {
            let bytes = texts.iter().map(|text| text.len() as u64).sum();
            estimates.count(Key::vectors(&self.identity, None)(first), bytes);
        }
        Err(Outage::Unasked)
    }
}
