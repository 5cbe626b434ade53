//! What it means that a server replied so: an answer, something to try again, or an outage.

use std::time::Duration;

use super::body::{self, Completion, remark};
use super::credentials::Credentials;
use super::pool::Form;
use super::retry::Kind;
use crate::budget::Nanodollars;
use crate::config::{OpenAiModel, Price};
use crate::request::{Answer, Finish, Outage};

/// An answer's body is no larger. Without a bound, one bad answer could take all memory.
pub(super) const LARGEST: usize = 16 << 20;
/// The body of an error is read no further.
pub(super) const LARGEST_ERROR: usize = 64 << 10;
/// What is kept of an answer that is too large.
const BEGINNING: usize = 4 << 10;

/// A response, read to its end or to the largest size.
pub(super) struct Received {
    pub(super) status: u16,
    /// How long the server asks to be left alone.
    pub(super) pause: Option<Duration>,
    /// Where it redirects to.
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
    /// Whether the body goes on.
    pub(super) cut: bool,
}

impl Received {
    /// The first 64 KiB of the body, as text.
    fn beginning(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(LARGEST_ERROR)]).into_owned()
    }
}

/// A request that may go right another time.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// What happened, as a fragment, without secrets.
    pub(super) what: String,
    /// How long the server asks to be left alone.
    pub(super) pause: Option<Duration>,
    /// Whether the model can't have been at work: the server couldn't be reached, or said so.
    pub(super) free: bool,
}

/// What came of a request.
pub(super) enum Reply {
    /// The model answered, or the server refused this request and would refuse it again.
    Answer(Answer),
    /// The server doesn't take the request in its form, and may take it in this one.
    Otherwise(Form),
    /// It may go right another time.
    Fault(Fault),
    /// No request will go right.
    Outage(Outage),
}

impl Reply {
    /// What the request cost. `None` where its end isn't known (a timeout, a connection that broke off, a completion without
    /// `usage`): it may have cost anything.
    pub(super) fn cost(&self, price: Price) -> Option<Nanodollars> {
        match self {
            Self::Answer(answer) => match answer.finish {
                Finish::Invalid => Some(Nanodollars(0)),
                Finish::Stop | Finish::Length | Finish::Refusal | Finish::TooLarge => answer.usage.map(|usage| price.of(usage)),
            },
            Self::Otherwise(_) | Self::Outage(_) => Some(Nanodollars(0)),
            Self::Fault(fault) => fault.free.then_some(Nanodollars(0)),
        }
    }
}

/// A request as it was sent.
pub(super) struct Sent<'a> {
    pub(super) model: &'a OpenAiModel,
    pub(super) credentials: &'a Credentials,
    /// The server's address, for messages.
    pub(super) server: &'a str,
    pub(super) form: Form,
    /// Whether a `response_format` was in it.
    pub(super) response_format: bool,
}

impl Sent<'_> {
    /// Reads a response.
    pub(super) fn read(&self, received: Received) -> Reply {
        if !(200..300).contains(&received.status) {
            return self.error(received.status, &received.beginning(), &received);
        }
        if received.cut {
            let mut beginning = self.credentials.hide_in_answer(received.beginning());
            beginning.truncate(beginning.floor_char_boundary(BEGINNING));
            return Reply::Answer(remark(beginning, Finish::TooLarge, &self.model.model));
        }
        match body::completion(&received.body, &self.model.model) {
            Completion::Answer(answer) => {
                let hidden = |text: String| self.credentials.hide_in_answer(text);
                Reply::Answer(Answer {
                    text: hidden(answer.text),
                    reasoning: answer.reasoning.map(hidden),
                    model: hidden(answer.model),
                    ..answer
                })
            }
            Completion::Error { status: Some(status), body } => self.error(status, &body.to_string(), &received),
            Completion::Error { status: None, body } => self.broken(self.words(&body.to_string())),
            Completion::Aborted(what) => self.broken(what),
            Completion::Unreadable(why) => match self.words(&received.beginning()) {
                said if said.is_empty() => self.broken("an empty body".to_owned()),
                said => self.broken(format!("{why}: {said}")),
            },
        }
    }

    /// What a server says in a body. Secrets go before the rest is cut, so that no part of one is left.
    fn words(&self, body: &str) -> String {
        self.credentials.hide(body::words(&self.credentials.hide(body.to_owned())))
    }

    fn broken(&self, what: String) -> Reply {
        Reply::Fault(Fault { kind: Kind::Broken, what: self.credentials.hide(what), pause: None, free: false })
    }

    fn error(&self, status: u16, body: &str, received: &Received) -> Reply {
        let said = match self.words(body) {
            said if said.is_empty() => format!("HTTP {status}"),
            said => format!("HTTP {status}: {said}"),
        };
        let fault = |kind, what| Reply::Fault(Fault { kind, what, pause: received.pause, free: status != 408 });
        let (server, model) = (self.server, &self.model.model);
        match status {
            400 | 413 | 422 => match self.otherwise(body) {
                Some(form) => Reply::Otherwise(form),
                None => Reply::Answer(remark(said, Finish::Invalid, model)),
            },
            401 | 403 => outage(format!("the teacher at `{server}` lets nobody in with this key: {said}"), &self.key_hint()),
            402 => outage(format!("the teacher at `{server}` asks for payment: {said}"), "add credit to the account there"),
            // Providers that mean an empty account by 429 say so, and no waiting helps.
            429 if body.contains("insufficient_quota") => {
                outage(format!("the teacher at `{server}` asks for payment: {said}"), "add credit to the account there")
            }
            404 | 405 => outage(
                format!("the teacher at `{server}` doesn't know the model `{model}`, or nothing is there: {said}"),
                &format!("`{server}/models` lists the models; `base_url` ends in `/v1` with most servers"),
            ),
            300..=399 => {
                let to = received
                    .location
                    .as_deref()
                    .map(|to| format!(" to `{}`", self.credentials.hide(to.to_owned())))
                    .unwrap_or_default();
                outage(format!("the teacher at `{server}` redirects{to}: {said}"), "write the address itself as `base_url`")
            }
            429 => fault(Kind::RateLimit, said),
            408 => fault(Kind::Timeout, said),
            409 | 425 | 500..=u16::MAX => fault(Kind::Broken, said),
            _ => outage(
                format!("the teacher at `{server}` can't be asked: {said}"),
                "see what the server says about `base_url`, `headers` and `extra_body`",
            ),
        }
    }

    /// The form in which a server may take a request that it refused, if its refusal names the field in question.
    fn otherwise(&self, body: &str) -> Option<Form> {
        let names = |names: &[&str]| names.iter().any(|name| body.contains(name));
        if self.response_format && names(&["response_format", "json_schema", "guided_json"]) {
            return Some(Form { no_response_format: true, ..self.form });
        }
        if !self.form.max_completion_tokens && names(&["max_completion_tokens"]) {
            return Some(Form { max_completion_tokens: true, ..self.form });
        }
        None
    }

    fn key_hint(&self) -> String {
        match &self.model.api_key {
            Some(key) => format!("see that `{}` holds a key of this server that may use `{}`", key.name(), self.model.model),
            None => {
                "give the server's key as `api_key: ${secret:NAME}`, with the value in the environment variable `NAME`".to_owned()
            }
        }
    }
}

fn outage(message: String, hint: &str) -> Reply {
    Reply::Outage(Outage::Teacher { message, hint: Some(hint.to_owned()) })
}

impl Fault {
    /// What a request without a whole response means.
    pub(super) fn of(error: &reqwest::Error, credentials: &Credentials) -> Self {
        let mut deepest: &dyn std::error::Error = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        // The error at the top names the URL, and says less.
        let what = credentials.hide(deepest.to_string());
        let (kind, what) = if error.is_connect() {
            (Kind::Connect, what)
        } else if error.is_timeout() {
            (Kind::Timeout, "no whole answer in time".to_owned())
        } else {
            (Kind::Broken, format!("the connection broke off: {what}"))
        };
        Self { kind, what, pause: None, free: kind == Kind::Connect }
    }

    /// The outage that this fault is when it isn't tried again, after `failures` of one call.
    pub(super) fn outage(&self, server: &str, servers: usize, failures: u32, timeout: Duration) -> Outage {
        let what = &self.what;
        let (message, hint) = match self.kind {
            Kind::Connect => {
                let message = match servers {
                    1 => format!("the teacher at `{server}` can't be reached: {what}"),
                    n => format!("none of the teacher's {n} servers can be reached; the last one asked, `{server}`: {what}"),
                };
                let hint = match what.contains("certificate") {
                    true => "name the file with the authority's certificate in the environment variable `SSL_CERT_FILE`",
                    false => "see that the server runs, and that `base_url` is its address (`http` or `https`)",
                };
                (message, hint.to_owned())
            }
            Kind::Timeout => (
                format!("the teacher at `{server}` gave no answer, {failures} times one after the other: {what}"),
                format!("raise `timeout` (now {} s), or lower `max_in_flight`", timeout.as_secs()),
            ),
            Kind::RateLimit => (
                format!("the teacher at `{server}` takes no more requests ({failures} were refused): {what}"),
                "lower `max_in_flight`, or run again later".to_owned(),
            ),
            Kind::Broken => (
                format!("the teacher at `{server}` failed {failures} times; the last time: {what}"),
                "see the server's log, and run again when it is in order".to_owned(),
            ),
        };
        Outage::Teacher { message, hint: Some(hint) }
    }

    /// The outage of a server that asks for a pause longer than anybody waits.
    pub(super) fn long_pause(&self, server: &str, pause: Duration) -> Outage {
        Outage::Teacher {
            message: format!("the teacher at `{server}` wants no request for {} s: {}", pause.as_secs(), self.what),
            hint: Some("run again then".to_owned()),
        }
    }
}
