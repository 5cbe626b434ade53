//! What a stage would ask, counted instead of sent.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ingrain_engine::{
    failure::Failure,
    run::{Counters, Environment},
};
use ingrain_llm::{Answer, Client, Key, Memo, Outage, Reject, Request, Teacher};
use object_store::path::Path;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{MEMO, Teachers, Unasked, local_folder, memo_failure};

/// Bytes of English text in a token of most vocabularies.
const TOKEN_BYTES: u64 = 4;

/// What the stages of a rehearsal would ask.
#[derive(Default)]
pub struct Estimates {
    memo: OnceCell<Memo>,
    calls: Arc<Mutex<Calls>>,
}

/// Requests of the stage at hand that the memo has no answer to.
#[derive(Debug, Default)]
struct Calls {
    seen: HashSet<Key>,
    input_bytes: u64,
    most_output_tokens: u64,
}

impl Calls {
    /// Counts a request, unless it was counted before.
    fn count(&mut self, key: Key, input_bytes: u64, most_output_tokens: u64) {
        if self.seen.insert(key) {
            self.input_bytes += input_bytes;
            self.most_output_tokens += most_output_tokens;
        }
    }
}

/// What a stage would ask. Answers that are refused would be asked for again, which isn't counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Requests without an answer in the memo.
    pub calls: u64,
    /// Answers in the memo.
    pub memo_hits: u64,
    /// Tokens of the calls' requests, a token for four bytes.
    pub input_tokens: u64,
    /// Tokens of their answers: as many as the remembered ones of this stage have on average or, without any, as many as
    /// they may have at most.
    pub output_tokens: u64,
    /// Whether `output_tokens` is a bound.
    pub at_most: bool,
}

/// Makes all clients of `environment`, a rehearsal, count what they are asked instead of asking. Must come before the first of
/// them is made.
pub fn estimates(environment: &Environment) -> Arc<Estimates> {
    let estimates = Arc::new(Estimates::default());
    let kept = estimates.clone();
    environment.service(|| Teachers { unasked: Some(Unasked::Estimates(kept)), ..Teachers::default() });
    estimates
}

impl Estimates {
    /// What the stage that was rehearsed since the last call would ask; `counters` are what the rehearsal counted.
    pub fn take(&self, counters: &Counters) -> Estimate {
        let Calls { seen, input_bytes, most_output_tokens } = std::mem::take(&mut *locked(&self.calls));
        let (mut answers, mut output_tokens) = (0, 0);
        for spent in counters.spent().values() {
            answers += spent.requests;
            output_tokens += spent.output_tokens;
        }
        let calls = seen.len() as u64;
        let at_most = output_tokens == 0 && most_output_tokens > 0;
        let each = || u128::from(calls) * u128::from(output_tokens) / u128::from(answers.max(1));
        Estimate {
            calls,
            memo_hits: counters.memo_hits.load(std::sync::atomic::Ordering::Relaxed),
            input_tokens: input_bytes.div_ceil(TOKEN_BYTES),
            output_tokens: if at_most { most_output_tokens } else { u64::try_from(each()).unwrap_or(u64::MAX) },
            at_most,
        }
    }

    /// Counts a request for vectors, which have no tokens.
    pub(super) fn count(&self, key: Key, input_bytes: u64) {
        locked(&self.calls).count(key, input_bytes, 0);
    }

    /// A client that answers from the memo, and counts what isn't there.
    pub(super) async fn client(
        &self,
        environment: &Environment,
        teacher: Arc<dyn Teacher>,
        max_in_flight: usize,
    ) -> Result<Client, Failure> {
        let (objects, folder) = (environment.store.objects().clone(), local_folder(environment, MEMO));
        let look = || Memo::look(objects, Path::from(MEMO), &folder);
        let memo = self.memo.get_or_try_init(look).await.map_err(memo_failure)?.clone();
        let counter = Counter { teacher, calls: self.calls.clone() };
        Ok(Client::new(Arc::new(counter), memo, max_in_flight))
    }
}

fn locked(calls: &Mutex<Calls>) -> std::sync::MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A teacher that counts what it is asked.
struct Counter {
    teacher: Arc<dyn Teacher>,
    calls: Arc<Mutex<Calls>>,
}

#[async_trait]
impl Teacher for Counter {
    fn identity(&self) -> Value {
        self.teacher.identity()
    }

    fn asked(&self, request: &Request) -> Value {
        self.teacher.asked(request)
    }

    fn unfit(&self, request: &Request) -> Option<Reject> {
        self.teacher.unfit(request)
    }

    fn varies(&self) -> bool {
        self.teacher.varies()
    }

    async fn answer(&self, request: &Request, draw: u32, attempt: u32) -> Result<Answer, Outage> {
        let key = Key::new(request, &self.asked(request), draw, None, attempt);
        let input_bytes = request.messages.iter().map(|message| message.content.len() as u64).sum();
        locked(&self.calls).count(key, input_bytes, request.decoding.max_output_tokens.into());
        Err(Outage::Unasked)
    }
}
