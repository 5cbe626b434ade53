//! The `openai` teacher: any server that speaks the OpenAI chat protocol at `…/chat/completions`.
//!
//! A call goes through these parts: one request goes first ([`gate`]); the server with the fewest requests in flight is
//! taken ([`pool`]); the body is made and read ([`body`]); what came back is an answer, something to try again, or an outage
//! ([`reply`]); and in between it is waited ([`retry`]). [`credentials`] keeps secrets out of all that is shown or kept.

mod body;
mod credentials;
mod embeddings;
mod gate;
mod length;
mod pool;
mod reply;
mod retry;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore, watch};
use url::Url;

use self::credentials::Credentials;
use self::gate::Gate;
use self::pool::{Form, Lease, Pool};
use self::reply::{Fault, LARGEST, LARGEST_ERROR, Received, Reply, Sent};
use self::retry::{Kind, Limits, Tries, jitter, retry_after};
use crate::budget::{Budget, Hold};
use crate::client::Reject;
use crate::config::{OpenAiModel, Price};
use crate::request::{Answer, Finish, Outage, Request, Teacher, Usage};

/// Bodies larger than this are read few at a time.
const LARGE: usize = 1 << 20;
/// How many large bodies are read at once: together with [`LARGEST`] they bound what answers take while they arrive.
const LARGE_AT_ONCE: usize = 4;

/// A model behind one or several servers.
///
/// **What is an answer, and what an outage.** What the model says is an answer, refusals and cut ones included, and so is
/// a request that the server finds wrong (400, 413, 422: [`crate::Finish::Invalid`], with its words) and an answer larger
/// than 16 MiB ([`crate::Finish::TooLarge`]). A refused key (401, 403), an unknown model or path (404), an empty account and
/// a redirect are an outage at once, after which this teacher sends nothing any more; as long as nothing was answered, a
/// single request is in flight. So is a server that can't be reached, if none of this model's has answered before; one that
/// has may be starting again.
///
/// **What is tried again.** 429, 409, 425 and 5xx, a connection that breaks off, a body that is no completion (broken
/// JSON, an HTML page with status 200): 8 times a call, after a delay drawn from 0 to 0.5 s, 1 s, 2 s … 60 s. A call that
/// meets a rate limit while others of this teacher are answered waits on, up to 128 times. Requests that run into `timeout`
/// (and 408) are tried again twice. `Retry-After` (seconds or a date) is kept by all calls to that server; more than 10 minutes of it
/// are an outage.
///
/// **Several servers.** One that can't be reached, or fails, is left alone for up to 30 s while others answer.
///
/// **Forms.** A server that refuses `response_format`, naming it, is asked without it from then on; one that asks for
/// `max_completion_tokens` in the place of `max_tokens` gets it. The memo's key is that of the request as rendered.
pub(crate) struct OpenAi {
    model: OpenAiModel,
    spending: Option<(Arc<Budget>, Price)>,
    limits: Limits,
    pool: Pool,
    gate: Gate,
    link: OnceCell<Link>,
    large: Semaphore,
    answers: AtomicU64,
    /// Whether nothing is sent any more.
    stopped: watch::Sender<bool>,
}

/// What every request shares, made when the first one is sent.
struct Link {
    http: reqwest::Client,
    credentials: Credentials,
}

impl OpenAi {
    /// The teacher that an entry describes. Does no I/O and reads no secret.
    pub(crate) fn new(model: OpenAiModel, spending: Option<(Arc<Budget>, Price)>) -> Self {
        let limits = Limits::new(Duration::from_secs(model.timeout));
        Self { spending, ..Self::with_limits(model, limits) }
    }

    fn with_limits(model: OpenAiModel, limits: Limits) -> Self {
        Self {
            pool: Pool::new(&model.base_url),
            gate: Gate::new(limits.probe),
            link: OnceCell::new(),
            large: Semaphore::new(LARGE_AT_ONCE),
            answers: AtomicU64::new(0),
            stopped: watch::Sender::new(false),
            model,
            spending: None,
            limits,
        }
    }

    async fn link(&self) -> Result<&Link, Outage> {
        let connect = || async {
            let credentials = Credentials::read(&self.model)?;
            let http = reqwest::Client::builder()
                .user_agent(concat!("ingrain/", env!("CARGO_PKG_VERSION")))
                // A connection for each request in flight: over one HTTP/2 connection, a server's limit on its streams
                // (often 100) would be one on requests.
                .http1_only()
                // A redirect would take the key along.
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(self.limits.connect)
                .tcp_keepalive(Duration::from_secs(60))
                .build();
            let http = http.map_err(|error| Outage::teacher(format!("no connection can be set up: {error}")))?;
            Ok(Link { http, credentials })
        };
        self.link.get_or_try_init(connect).await
    }

    /// Waits until the budget has room for the worst that the request may cost: a token for each of its bytes, and all the
    /// tokens that it allows.
    async fn hold(&self, request: &Request, form: Form) -> Result<Option<(Hold<'_>, Price)>, Outage> {
        let Some((budget, price)) = &self.spending else { return Ok(None) };
        let (_, output_tokens) = body::bounds(&self.model, request);
        let worst = Usage { input_tokens: body::request(&self.model, request, form).len() as u64, output_tokens };
        Ok(Some((budget.hold(price.of(worst)).await?, *price)))
    }

    /// Waits for what has to be before the request is sent (again), unless nothing is to be sent any more.
    async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T, Outage> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => Err(Outage::teacher("the run is being stopped")),
            done = wait => Ok(done),
        }
    }

    /// Sends the request once.
    async fn exchange(&self, link: &Link, lease: &Lease<'_>, request: &Request, form: Form) -> Reply {
        let server = lease.server();
        let sent = Sent {
            model: &self.model,
            credentials: &link.credentials,
            server: &server.name,
            form,
            response_format: request.response_format.is_some() && !form.no_response_format,
        };
        match self.post(link, server.url.clone(), body::request(&self.model, request, form)).await {
            Ok(received) => sent.read(received),
            Err(fault) => Reply::Fault(fault),
        }
    }

    /// Sends a body, and reads the response.
    async fn post(&self, link: &Link, url: Url, body: Bytes) -> Result<Received, Fault> {
        let asked = link
            .http
            .post(url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .headers(link.credentials.headers.clone())
            .body(body)
            .timeout(self.limits.timeout);
        let mut response = asked.send().await.map_err(|error| Fault::of(&error, &link.credentials))?;
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut received = Received {
            status: response.status().as_u16(),
            pause: retry_after(response.headers(), SystemTime::now()),
            location,
            body: Vec::new(),
            cut: false,
        };
        let whole = response.status().is_success();
        let largest = if whole { LARGEST } else { LARGEST_ERROR };
        // Held until the answer is read.
        let mut large = None;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    if received.body.len() + chunk.len() > LARGE && large.is_none() {
                        large = self.large.acquire().await.ok();
                    }
                    let room = largest - received.body.len();
                    received.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    if chunk.len() > room {
                        received.cut = true;
                        break;
                    }
                }
                Ok(None) => break,
                // The status of an error says enough.
                Err(_) if !whole => break,
                Err(error) => return Err(Fault::of(&error, &link.credentials)),
            }
        }
        Ok(received)
    }

    /// How long a call waits after a fault, or the outage that it ends with.
    fn after(&self, fault: &Fault, lease: &Lease<'_>, tries: &mut Tries) -> Result<Duration, Outage> {
        let answers = self.answers.load(Ordering::Relaxed);
        let server = &lease.server().name;
        let delay = tries.failed(fault.kind, answers, &self.limits);
        let outage = || fault.outage(server, self.pool.len(), tries.count(), self.limits.timeout);
        match fault.kind {
            Kind::Connect => {
                lease.unreachable(self.limits.aside);
                if delay.is_some() && self.pool.has_another() {
                    return Ok(Duration::ZERO);
                }
                // A server that has never answered isn't there; one that has may be starting again.
                if answers == 0 {
                    return Err(outage());
                }
            }
            Kind::Timeout | Kind::Broken => lease.failed(&self.limits),
            Kind::RateLimit => {}
        }
        let delay = delay.ok_or_else(outage)?;
        match fault.pause {
            None => Ok(delay),
            Some(pause) if pause > self.limits.longest_pause => Err(fault.long_pause(server, pause)),
            Some(pause) => {
                lease.pause(pause);
                Ok(jitter(self.limits.base))
            }
        }
    }
}

#[async_trait]
impl Teacher for OpenAi {
    fn identity(&self) -> Value {
        let model = &self.model;
        let mut identity = json!({ "provider": "openai", "model": model.model, "revision": model.revision });
        if !model.extra_body.is_empty() {
            identity["extra_body"] = Value::Object(model.extra_body.clone());
        }
        identity
    }

    // By the request alone: what the answers so far would tell of its length depends on which came first.
    fn unfit(&self, request: &Request) -> Option<Reject> {
        let context = self.model.context?.0;
        let least: u64 = request.messages.iter().map(|message| length::least_tokens(&message.content)).sum();
        let (output, _) = body::bounds(&self.model, request);
        let bound = match output == u64::from(request.decoding.max_output_tokens) {
            true => "`max_output_tokens`",
            false => "the bound in `extra_body`",
        };
        (least.saturating_add(output) > context).then(|| {
            Reject::new(
                "too_long",
                format!("at least {least} tokens and {bound} ({output}) don't fit into the model's context of {context}"),
            )
        })
    }

    async fn answer(&self, request: &Request, _draw: u32, _attempt: u32) -> Result<Answer, Outage> {
        let link = self.link().await?;
        let _pass = self.gate.pass().await?;
        let mut tries = Tries::default();
        let mut own = Form::default();
        loop {
            let hold = self.unless_stopped(self.hold(request, own)).await??;
            let lease = self.unless_stopped(self.pool.lease(&self.limits)).await?;
            self.gate.check()?;
            let form = lease.form() | own;
            let reply = self.exchange(link, &lease, request, form).await;
            if let Some((hold, price)) = hold
                && let Some(cost) = reply.cost(price)
            {
                hold.paid(cost);
            }
            let delay = match reply {
                Reply::Answer(answer) => {
                    // A request that is refused in either form doesn't show that the form was at fault.
                    lease.answered(if answer.finish == Finish::Invalid { Form::default() } else { form });
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    self.gate.open();
                    return Ok(answer);
                }
                Reply::Otherwise(form) => {
                    own = own | form;
                    Duration::ZERO
                }
                Reply::Outage(outage) => {
                    self.gate.shut(&outage);
                    return Err(outage);
                }
                Reply::Fault(fault) => {
                    let delay = self.after(&fault, &lease, &mut tries)?;
                    tracing::debug!(server = lease.server().name, what = fault.what, ?delay, "asked again");
                    delay
                }
            };
            drop(lease);
            if !delay.is_zero() {
                self.unless_stopped(tokio::time::sleep(delay)).await?;
            }
        }
    }

    fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
