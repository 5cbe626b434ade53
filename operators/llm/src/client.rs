//! Asks a teacher what the memo doesn't know yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::memo::{Key, Memo};
use crate::request::{Answer, Finish, Outage, Request, Teacher};
use crate::trial::{Call, Trial};

/// Why an answer isn't taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// One word for the table of rejects: `refusal`, `length`, `too_large`, `invalid_request`, `too_long`, `unparsable`, or a
    /// check's own.
    pub reason: &'static str,
    /// What exactly is wrong, as a fragment.
    pub detail: String,
}

impl Reject {
    /// A reject.
    pub fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl Answer {
    /// The text of an answer that ended by itself. Any other is a reject.
    pub fn whole(&self) -> Result<&str, Reject> {
        match self.finish {
            Finish::Stop => Ok(&self.text),
            Finish::Length if self.text.is_empty() && self.reasoning.is_some() => {
                Err(Reject::new("length", "the reasoning alone reached `max_output_tokens`"))
            }
            Finish::Length => Err(Reject::new("length", "the answer reached `max_output_tokens`")),
            Finish::Refusal => Err(Reject::new("refusal", "the teacher refused")),
            Finish::Invalid => Err(Reject::new("invalid_request", format!("the server refused the request: {}", self.text))),
            Finish::TooLarge => Err(Reject::new("too_large", "the answer is larger than 16 MiB")),
        }
    }
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// An answer was taken.
    Accepted {
        /// What the caller made of it.
        value: T,
        /// Which request it answers: [`Key::request_id`].
        request_id: String,
        /// Whether it cost nothing: it was in the memo, or an identical request in flight brought it.
        from_memo: bool,
    },
    /// None of the attempts was.
    Rejected {
        /// Why the last one wasn't.
        reject: Reject,
        /// Its text.
        raw: String,
        /// How many there are by now; 0 when the request can't be sent at all.
        attempts: u32,
    },
}

/// What a client did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests sent that were answered.
    pub calls: u64,
    /// Answers that were taken out of the memo.
    pub memo_hits: u64,
    /// Tokens of those requests, as far as the teacher said.
    pub input_tokens: u64,
    /// Tokens of those answers, as far as the teacher said.
    pub output_tokens: u64,
}

/// A teacher with its memo. All who ask one model share one client (cloning is cheap and shares): the bound on requests
/// in flight holds per client. Identical requests in flight are asked once by all clients of a memo.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    retries: bool,
    /// Ids of what is asked about.
    about: Arc<[String]>,
}

struct Inner {
    teacher: Arc<dyn Teacher>,
    memo: Memo,
    permits: Arc<Semaphore>,
    /// A place for each exchange until its answer is kept.
    exchanges: Arc<Semaphore>,
    admissions: Semaphore,
    stopped: AtomicBool,
    trial: Arc<Trial>,
    calls: AtomicU64,
    memo_hits: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
}

/// More than can be under way: those in flight, and those whose answers are being written down.
const EXCHANGES: u32 = 1 << 24;

/// The right to have a rendered request: [`Client::admit`].
pub struct Admission<'a> {
    _permit: SemaphorePermit<'a>,
}

impl Client {
    /// A client that keeps at most `max_in_flight` (at least 1) requests in flight.
    pub fn new(teacher: Arc<dyn Teacher>, memo: Memo, max_in_flight: usize) -> Self {
        let max_in_flight = max_in_flight.clamp(1, Semaphore::MAX_PERMITS / 4);
        let inner = Inner {
            teacher,
            memo,
            permits: Arc::new(Semaphore::new(max_in_flight)),
            exchanges: Arc::new(Semaphore::new(EXCHANGES as usize)),
            admissions: Semaphore::new(2 * max_in_flight + 16),
            stopped: AtomicBool::new(false),
            trial: Arc::default(),
            calls: AtomicU64::default(),
            memo_hits: AtomicU64::default(),
            input_tokens: AtomicU64::default(),
            output_tokens: AtomicU64::default(),
        };
        Self { inner: Arc::new(inner), retries: false, about: Arc::default() }
    }

    /// The same client; where all remembered attempts at a request were refused, it goes on with the next numbers.
    pub fn retrying(self, retries: bool) -> Self {
        Self { retries, ..self }
    }

    /// The same client, which keeps with its answers what they were asked about: ids of documents and rows
    /// ([`Memo::record_about`]).
    pub fn about<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Self {
        Self { about: ids.into_iter().map(str::to_owned).collect(), ..self.clone() }
    }

    /// How many attempts at a request are remembered, of those that [`Self::ask`] looks at.
    pub fn remembered(&self, key: impl Fn(u32) -> Key, attempts: u32) -> usize {
        let memo = &self.inner.memo;
        let more = (attempts..).take_while(|attempt| memo.contains(&key(*attempt))).count();
        (0..attempts).filter(|attempt| memo.contains(&key(*attempt))).count() + more
    }

    /// The teacher behind it.
    pub fn teacher(&self) -> &Arc<dyn Teacher> {
        &self.inner.teacher
    }

    /// The memo behind it.
    pub fn memo(&self) -> &Memo {
        &self.inner.memo
    }

    /// What was done so far, by all clones.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            calls: read(&self.inner.calls),
            memo_hits: read(&self.inner.memo_hits),
            input_tokens: read(&self.inner.input_tokens),
            output_tokens: read(&self.inner.output_tokens),
        }
    }

    /// Waits for a place to render a request in, so that a stage may have many rows under way, in order and from many
    /// partitions, and few of their prompts in memory. There are twice as many places as requests may be in flight, and some:
    /// whenever an answer comes, the next request is ready. Hold it until [`Self::ask`] is over, and hold one only.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub async fn admit(&self) -> Result<Admission<'_>, Outage> {
        let permit = self.inner.admissions.acquire().await;
        permit.map(|permit| Admission { _permit: permit }).map_err(|error| Outage::teacher(error.to_string()))
    }

    /// The first acceptable answer to draw `draw` of `request`. Remembered attempts, however many there are, are tried in order
    /// before a new one is asked for, and at most `attempts` (at least 1) are made in all; [`Self::retrying`], so many more than
    /// are remembered. A teacher that doesn't vary has one. `refresh`
    /// keeps answers apart that were asked for at different wishes.
    ///
    /// A request that the server finds wrong ([`Finish::Invalid`]) isn't asked again with other attempt numbers: those are
    /// for what is drawn anew. Such an answer is remembered like any other, unless nothing that this client asked has been
    /// answered yet: then the fault may be the server's. If the first 20 calls all end so, it is an outage.
    ///
    /// `accept` sees every answer once and must not depend on anything but the answer. Dropping the future gives up what
    /// wasn't sent yet; a call in flight goes on, and its answer is kept ([`Self::settle`] waits for that).
    pub async fn ask<T>(
        &self,
        request: &Request,
        draw: u32,
        refresh: Option<&str>,
        attempts: u32,
        accept: impl Fn(&Answer) -> Result<T, Reject>,
    ) -> Result<Outcome<T>, Outage> {
        let Inner { teacher, memo, memo_hits, .. } = &*self.inner;
        let attempts = if teacher.varies() { attempts.max(1) } else { 1 };
        let key = Key::attempts(request, &teacher.asked(request), draw, refresh);
        let mut tries = Tries::default();
        let mut unknown = Vec::new();
        for attempt in 0.. {
            match memo.answer(&key(attempt)).await? {
                None if attempt >= attempts => {
                    if self.retries && teacher.varies() {
                        tries.hopeless = false;
                        unknown.extend(attempt..attempt.saturating_add(attempts - unknown.len() as u32));
                    }
                    break;
                }
                None => unknown.push(attempt),
                Some(answer) => {
                    memo_hits.fetch_add(1, Ordering::Relaxed);
                    if let Some(value) = tries.judge(answer, &accept) {
                        return Ok(Outcome::Accepted { value, request_id: key(attempt).request_id(), from_memo: true });
                    }
                }
            }
        }
        if !unknown.is_empty()
            && !tries.hopeless
            && let Some(reject) = teacher.unfit(request)
        {
            tries.hopeless = true;
            tries.last.get_or_insert((reject, String::new()));
        }
        for attempt in unknown {
            if tries.hopeless {
                break;
            }
            let (answer, from_memo) = self.fetch(key(attempt), request, draw, attempt).await?;
            if from_memo {
                memo_hits.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(value) = tries.judge(answer, &accept) {
                return Ok(Outcome::Accepted { value, request_id: key(attempt).request_id(), from_memo });
            }
        }
        // Where nothing was accepted, something was refused or there was nothing to ask.
        let (reject, raw) = tries.last.unwrap_or_else(|| (Reject::new("unasked", "no attempt was made"), String::new()));
        Ok(Outcome::Rejected { reject, raw, attempts: tries.made })
    }

    /// Sends nothing any more, and waits until the calls in flight have brought their answers, or for `patience`.
    pub async fn settle(&self, patience: Duration) {
        let inner = &*self.inner;
        inner.stopped.store(true, Ordering::Release);
        inner.teacher.stop();
        // All places are free when no exchange is under way.
        let _ = tokio::time::timeout(patience, inner.exchanges.acquire_many(EXCHANGES)).await;
    }

    /// Asks, unless an identical request in flight brings the answer. The second value says whether it did.
    async fn fetch(&self, key: Key, request: &Request, draw: u32, attempt: u32) -> Result<(Answer, bool), Outage> {
        let inner = &self.inner;
        let turn = inner.memo.turn(key).await;
        if let Some(answer) = inner.memo.answer(&key).await? {
            return Ok((answer, true));
        }
        let call = inner.trial.begin()?;
        let permit = inner.permits.clone().acquire_owned().await.map_err(|error| Outage::teacher(error.to_string()))?;
        call.check()?;
        let place = inner.exchanges.clone().acquire_owned().await.map_err(|error| Outage::teacher(error.to_string()))?;
        if inner.stopped.load(Ordering::Acquire) {
            return Err(Outage::teacher("the run is being stopped"));
        }
        // From here on it may be paid for: the answer is kept, whoever still wants it.
        let (client, request) = (self.clone(), request.clone());
        let exchange = tokio::spawn(async move {
            let answer = client.exchange(call, permit, key, &request, draw, attempt).await;
            drop((turn, place));
            answer
        });
        match exchange.await {
            Ok(answer) => Ok((answer?, false)),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(Outage::teacher(error.to_string())),
        }
    }

    /// Sends a request and keeps its answer.
    async fn exchange(
        &self,
        call: Call,
        permit: OwnedSemaphorePermit,
        key: Key,
        request: &Request,
        draw: u32,
        attempt: u32,
    ) -> Result<Answer, Outage> {
        let inner = &*self.inner;
        let answer = inner.teacher.answer(request, draw, attempt).await?;
        // The next request is on its way while this answer is kept.
        drop(permit);
        inner.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(usage) = answer.usage {
            inner.input_tokens.fetch_add(usage.input_tokens, Ordering::Relaxed);
            inner.output_tokens.fetch_add(usage.output_tokens, Ordering::Relaxed);
        }
        let kept = match answer.finish {
            Finish::Invalid => call.refused(&answer.text).await?,
            Finish::Stop | Finish::Length | Finish::Refusal | Finish::TooLarge => {
                call.answered();
                true
            }
        };
        if kept {
            inner.memo.record_about(key, &answer, &self.about).await?;
        }
        Ok(answer)
    }
}

/// The attempts at one draw so far.
#[derive(Default)]
struct Tries {
    /// Why the last one wasn't taken, and its text.
    last: Option<(Reject, String)>,
    made: u32,
    /// Whether another attempt would end the same way.
    hopeless: bool,
}

impl Tries {
    fn judge<T>(&mut self, answer: Answer, accept: &impl Fn(&Answer) -> Result<T, Reject>) -> Option<T> {
        self.made += 1;
        self.hopeless |= answer.finish == Finish::Invalid;
        match accept(&answer) {
            Ok(value) => Some(value),
            Err(reject) => {
                self.last = Some((reject, answer.text));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use futures::future::join_all;
    use object_store::memory::InMemory;
    use serde_json::{Value, json};

    use super::*;
    use crate::memo::Folder;
    use crate::request::{Decoding, Message, Role, Usage};

    /// Answers with draw and attempt, after giving others a chance to come in between. Fails where told to.
    #[derive(Default)]
    struct Recorder {
        asked: Mutex<Vec<(u32, u32)>>,
        now: AtomicU64,
        most: AtomicU64,
        down: bool,
        constant: bool,
    }

    #[async_trait]
    impl Teacher for Recorder {
        fn identity(&self) -> Value {
            json!({ "provider": "test" })
        }

        fn varies(&self) -> bool {
            !self.constant
        }

        fn unfit(&self, request: &Request) -> Option<Reject> {
            (request.messages[0].content.len() > 100).then(|| Reject::new("too_long", "more than 100 bytes"))
        }

        async fn answer(&self, request: &Request, draw: u32, attempt: u32) -> Result<Answer, Outage> {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            self.now.fetch_sub(1, Ordering::SeqCst);
            if self.down {
                return Err(Outage::teacher("down"));
            }
            self.asked.lock().expect("not poisoned").push((draw, attempt));
            Ok(Answer {
                text: format!("{draw}/{attempt}"),
                reasoning: None,
                finish: if request.messages[0].content.starts_with("wrong") { Finish::Invalid } else { Finish::Stop },
                usage: Some(Usage { input_tokens: 10, output_tokens: 2 }),
                model: "test".to_owned(),
                created_ms: 1,
            })
        }
    }

    fn request(content: &str) -> Request {
        Request {
            messages: vec![Message { role: Role::User, content: content.to_owned() }],
            decoding: Decoding { temperature: 1.0, top_p: 1.0, max_output_tokens: 100 },
            response_format: None,
            task: String::new(),
            variables: Value::Null,
        }
    }

    async fn client(teacher: &Arc<Recorder>, folder: &Folder, max_in_flight: usize) -> Client {
        let memo = Memo::open(Arc::new(InMemory::new()), "memo".into(), folder.path()).await.expect("opens");
        Client::new(Arc::clone(teacher) as Arc<dyn Teacher>, memo, max_in_flight)
    }

    /// Takes attempt `n` only.
    fn only(n: u32) -> impl Fn(&Answer) -> Result<String, Reject> {
        move |answer| match answer.text.ends_with(&format!("/{n}")) {
            true => Ok(answer.text.clone()),
            false => Err(Reject::new("unparsable", "not it")),
        }
    }

    #[tokio::test]
    async fn remembered_attempts_come_first_and_the_next_number_is_asked_for() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 4).await;
        let request = request("q");
        let rejected = client.ask(&request, 0, None, 2, only(2)).await.expect("no outage");
        let reject = Reject::new("unparsable", "not it");
        assert_eq!(rejected, Outcome::Rejected { reject, raw: "0/1".to_owned(), attempts: 2 });
        let asked = |client: &Client| (client.counts().calls, client.counts().memo_hits);
        assert_eq!(asked(&client), (2, 0));

        let Outcome::Accepted { value, request_id, from_memo } =
            client.ask(&request, 0, None, 5, only(2)).await.expect("no outage")
        else {
            panic!("attempt 2 is taken")
        };
        assert_eq!((value.as_str(), from_memo), ("0/2", false));
        assert_eq!(request_id, Key::new(&request, &teacher.identity(), 0, None, 2).request_id());
        assert_eq!(asked(&client), (3, 2));

        let again = client.ask(&request, 0, None, 5, only(2)).await.expect("no outage");
        assert!(matches!(again, Outcome::Accepted { from_memo: true, .. }));
        assert_eq!(asked(&client), (3, 5));
        assert_eq!(*teacher.asked.lock().expect("not poisoned"), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!((client.counts().input_tokens, client.counts().output_tokens), (30, 6));
    }

    #[tokio::test]
    async fn a_retry_goes_on_with_the_next_numbers_and_what_it_brought_stays() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 4).await;
        let request = request("q");
        let rejected = |outcome| matches!(outcome, Ok(Outcome::Rejected { attempts: 2, .. }));
        assert!(rejected(client.ask(&request, 0, None, 2, only(3)).await));
        let retrying = client.clone().retrying(true);
        assert!(matches!(retrying.ask(&request, 0, None, 2, only(3)).await, Ok(Outcome::Accepted { .. })));
        assert_eq!(*teacher.asked.lock().expect("not poisoned"), [(0, 0), (0, 1), (0, 2), (0, 3)]);
        let again = client.ask(&request, 0, None, 2, only(3)).await;
        assert!(matches!(again, Ok(Outcome::Accepted { from_memo: true, .. })), "found beyond the number of attempts");
        assert_eq!(client.counts().calls, 4);
    }

    #[tokio::test]
    async fn draws_and_refreshes_are_asked_for_apart() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 4).await;
        for (draw, refresh) in [(0, None), (1, None), (0, Some("2")), (0, None)] {
            client.ask(&request("q"), draw, refresh, 1, only(0)).await.expect("no outage");
        }
        assert_eq!((client.counts().calls, client.counts().memo_hits), (3, 1));
    }

    #[tokio::test]
    async fn identical_requests_in_flight_are_asked_once() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 64).await;
        let other = Client::new(Arc::clone(&teacher) as Arc<dyn Teacher>, client.memo().clone(), 64);
        let request = request("q");
        let ask = |n: u32| if n.is_multiple_of(2) { &client } else { &other }.ask(&request, 0, None, 1, only(0));
        let outcomes = join_all((0..50).map(ask)).await;
        let paid =
            outcomes.into_iter().filter(|outcome| matches!(outcome, Ok(Outcome::Accepted { from_memo: false, .. }))).count();
        assert_eq!((paid, client.counts().calls + other.counts().calls), (1, 1));
        assert!(client.memo().is_nobody_asking());
    }

    #[tokio::test]
    async fn no_more_than_the_bound_are_in_flight() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 3).await;
        let requests: Vec<_> = (0..40).map(|n| request(&n.to_string())).collect();
        join_all(requests.iter().map(|request| client.ask(request, 0, None, 1, only(0)))).await;
        assert_eq!(client.counts().calls, 40);
        assert_eq!(teacher.most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_call_in_flight_is_kept_though_nobody_waits_for_it() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 1).await;
        let (first, second) = (request("first"), request("second"));
        let asked = join_all([&first, &second].map(|request| client.ask(request, 0, None, 1, only(0))));
        tokio::select! {
            biased;
            _ = asked => panic!("nobody was to wait so long"),
            () = tokio::task::yield_now() => {}
        }
        client.settle(Duration::from_secs(60)).await;
        assert_eq!(client.counts().calls, 1, "the second one wasn't sent");
        assert_eq!(client.memo().len(), 1);
        assert!(client.ask(&second, 0, None, 1, only(0)).await.is_err(), "nothing is sent any more");
        assert!(client.memo().is_nobody_asking());
    }

    #[tokio::test]
    async fn an_outage_is_not_remembered() {
        let (teacher, folder) = (Arc::new(Recorder { down: true, ..Recorder::default() }), Folder::new());
        let client = client(&teacher, &folder, 3).await;
        assert!(client.ask(&request("q"), 0, None, 5, only(0)).await.is_err());
        assert!(client.memo().is_empty());
        assert_eq!(client.counts(), Counts::default());
    }

    #[tokio::test]
    async fn a_teacher_that_does_not_vary_is_asked_once() {
        let (teacher, folder) = (Arc::new(Recorder { constant: true, ..Recorder::default() }), Folder::new());
        let client = client(&teacher, &folder, 3).await;
        let outcome = client.ask(&request("q"), 0, None, 5, only(4)).await.expect("no outage");
        assert!(matches!(outcome, Outcome::Rejected { attempts: 1, .. }));
        assert_eq!(client.counts().calls, 1);
    }

    #[tokio::test]
    async fn a_request_that_the_server_finds_wrong_is_asked_once() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 3).await;
        client.ask(&request("right"), 0, None, 1, only(0)).await.expect("no outage");
        for hits in 0..2 {
            let outcome = client.ask(&request("wrong"), 0, None, 5, |answer| answer.whole().map(str::to_owned)).await;
            let Ok(Outcome::Rejected { reject, attempts: 1, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(reject, Reject::new("invalid_request", "the server refused the request: 0/0"));
            assert_eq!((client.counts().calls, client.counts().memo_hits), (2, hits));
        }
    }

    #[tokio::test]
    async fn a_server_that_refuses_everything_is_out_and_nothing_is_remembered() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 8).await;
        let requests: Vec<_> = (0..40).map(|n| request(&format!("wrong {n}"))).collect();
        let outcomes = join_all(requests.iter().map(|request| client.ask(request, 0, None, 3, only(9)))).await;
        assert!(outcomes.iter().all(Result::is_err));
        assert!(client.memo().is_empty());
        assert!(client.counts().calls < 30, "{:?}", client.counts());
    }

    #[tokio::test]
    async fn a_few_refusals_are_rejects_even_where_nothing_else_is_asked() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 8).await;
        let requests: Vec<_> = (0..5).map(|n| request(&format!("wrong {n}"))).collect();
        let outcomes = join_all(requests.iter().map(|request| client.ask(request, 0, None, 3, only(9)))).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Outcome::Rejected { attempts: 1, .. }))));
        assert!(client.memo().is_empty(), "nothing shows yet that the server is in order");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_rejected_without_a_call() {
        let (teacher, folder) = (Arc::new(Recorder::default()), Folder::new());
        let client = client(&teacher, &folder, 3).await;
        let outcome = client.ask(&request(&"x".repeat(101)), 0, None, 5, only(0)).await.expect("no outage");
        let reject = Reject::new("too_long", "more than 100 bytes");
        assert_eq!(outcome, Outcome::Rejected { reject, raw: String::new(), attempts: 0 });
        assert_eq!((client.counts(), client.memo().len()), (Counts::default(), 0));
    }
}
