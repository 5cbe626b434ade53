//! A teacher that fails on a schedule, kills those who ask it, and knows what it was paid for.

use std::{
    collections::BTreeMap,
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    chance::{Chance, FaultLog},
    corpus::MAX_IN_FLIGHT,
    process::{Processes, locked},
};
use crate::teacher::received;

/// Tokens that every call is said to have had.
pub(super) const USAGE: (u64, u64) = (100, 20);
/// An answer that came shorter before a kill may not have been kept yet.
const IN_FLIGHT: Duration = Duration::from_millis(300);
/// How many a kill may take: those that a run waits for, and, since others are asked meanwhile, those that are being written down
/// and those that will be next.
const MOST_IN_FLIGHT: u64 = 3 * MAX_IN_FLIGHT;

/// When an asking process is killed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    Before,
    /// So long after the whole answer was sent.
    After(Duration),
}

/// What the teacher does to those who ask, until it is told otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    /// One request in so many fails.
    pub(super) every: Option<u64>,
    /// The process of this name is killed at its `n`-th request.
    pub(super) kill: Option<(String, u64, Moment)>,
}

/// An answer that was sent whole.
struct Delivered {
    who: String,
    at: Instant,
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    /// Since the schedule is in force.
    requests: u64,
    by_who: BTreeMap<String, u64>,
    asked: u64,
    /// By request.
    delivered: BTreeMap<Vec<u8>, Vec<Delivered>>,
}

pub(super) struct Teacher {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    processes: Arc<Processes>,
    faults: Arc<FaultLog>,
}

/// Answers that were paid for more than once.
#[derive(Debug, Default)]
pub(super) struct PaidTwice {
    /// Though somebody had them and lived on.
    pub(super) wrongly: u64,
    /// Because whoever had them was killed as they came.
    pub(super) excused: u64,
}

enum Reply {
    Said(String),
    Http(u16, &'static str, &'static str),
    Cut,
}

impl Teacher {
    pub(super) fn start(processes: Arc<Processes>, faults: Arc<FaultLog>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { state: Mutex::default(), processes, faults });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, shared }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn schedule(&self, schedule: Schedule) {
        let mut state = locked(&self.shared.state);
        state.schedule = schedule;
        state.requests = 0;
        state.by_who.clear();
    }

    /// Requests so far.
    pub(super) fn asked(&self) -> u64 {
        locked(&self.shared.state).asked
    }

    /// Answers sent whole so far.
    pub(super) fn answered(&self) -> u64 {
        locked(&self.shared.state).delivered.values().map(|times| times.len() as u64).sum()
    }

    /// What was paid for more than once.
    pub(super) fn paid_twice(&self) -> PaidTwice {
        let mut paid = PaidTwice::default();
        let mut by_who: BTreeMap<&str, u64> = BTreeMap::new();
        let state = locked(&self.shared.state);
        for times in state.delivered.values() {
            // The last time doesn't need an excuse.
            for Delivered { who, at } in &times[..times.len() - 1] {
                let killed = self.shared.processes.get(who).and_then(|process| process.killed());
                let lost = by_who.entry(who).or_default();
                if killed.is_some_and(|killed| *at + IN_FLIGHT >= killed) && *lost < MOST_IN_FLIGHT {
                    *lost += 1;
                    paid.excused += 1;
                } else {
                    paid.wrongly += 1;
                }
            }
        }
        paid
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut writer = stream.try_clone().expect("a second handle");
        let mut reader = BufReader::new(stream);
        while let Some((head, body)) = received(&mut reader) {
            let who = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or_default().to_owned();
            let (fault, kill) = self.next(&who);
            if let Some(Moment::Before) = kill {
                self.kill(&who, "before");
                return;
            }
            let reply = match fault {
                Some((name, reply)) => {
                    self.faults.add("teacher", name);
                    reply
                }
                None if is_refused(&body) => Reply::Http(400, "", "{\"error\": {\"message\": \"not about this\"}}"),
                None => Reply::Said(answer(&body)),
            };
            let (head, text, is_answer) = match reply {
                Reply::Said(text) => (head_of(200, "", text.len()), text, true),
                Reply::Http(status, headers, text) => (head_of(status, headers, text.len()), text.to_owned(), false),
                Reply::Cut => (head_of(200, "", 9999), "{\"choices\": [{".to_owned(), false),
            };
            let is_cut = !is_answer && head.contains("content-length: 9999\r\n");
            if writer.write_all(head.as_bytes()).is_err() || writer.write_all(text.as_bytes()).is_err() || is_cut {
                return;
            }
            if is_answer {
                let delivered = Delivered { who: who.clone(), at: Instant::now() };
                locked(&self.state).delivered.entry(body).or_default().push(delivered);
            }
            if let Some(Moment::After(delay)) = kill {
                std::thread::sleep(delay);
                self.kill(&who, if delay.is_zero() { "after" } else { "soon after" });
            }
        }
    }

    fn kill(&self, who: &str, moment: &str) {
        if let Some(process) = self.processes.get(who) {
            self.faults.add("teacher", &format!("kill {moment}"));
            process.kill();
        }
    }

    /// What becomes of the next request.
    fn next(&self, who: &str) -> (Option<(&'static str, Reply)>, Option<Moment>) {
        let mut state = locked(&self.state);
        state.asked += 1;
        state.requests += 1;
        let (requests, seed) = (state.requests, state.schedule.seed);
        let mine = state.by_who.entry(who.to_owned()).or_default();
        *mine += 1;
        let mine = *mine;
        let kill =
            state.schedule.kill.as_ref().filter(|(victim, n, _)| victim == who && *n == mine).map(|(_, _, moment)| *moment);
        let mut chance = Chance::new(seed ^ requests.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let fails = kill.is_none() && state.schedule.every.is_some_and(|every| chance.one_in(every));
        let fault = fails.then(|| match chance.below(4) {
            0 => ("429", Reply::Http(429, "retry-after-ms: 20\r\n", "")),
            1 => ("500", Reply::Http(500, "", "{\"error\": {\"message\": \"out of memory\"}}")),
            2 => ("cut", Reply::Cut),
            _ => ("html", Reply::Http(200, "content-type: text/html\r\n", "<html><title>502</title></html>")),
        });
        (fault, kill)
    }
}

fn head_of(status: u16, headers: &str, length: usize) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n")
}

/// Whether the teacher finds a request wrong, whenever it comes.
fn is_refused(body: &[u8]) -> bool {
    blake3::hash(body).as_bytes()[0].is_multiple_of(16)
}

/// What the teacher says to a request: it follows from nothing else.
fn answer(body: &[u8]) -> String {
    let request: Value = serde_json::from_slice(body).expect("JSON");
    let prompt = request["messages"][0]["content"].as_str().expect("a prompt");
    let digest = blake3::hash(prompt.as_bytes()).to_hex();
    let title = prompt.lines().find_map(|line| line.strip_prefix("Title: ")).unwrap_or("it");
    let text = match prompt.starts_with("You write study questions") {
        // The second one is the same for all chunks of a document.
        true => json!({ "pairs": [
            { "question": format!("What is {} of {title}?", &digest[..8]), "explanation": "It says so.", "answer": &digest[8..16] },
            { "question": format!("What else is {title}?"), "explanation": "", "answer": &digest[16..24] },
        ] })
        .to_string(),
        false => (0..40).map(|word| format!("{} ", &digest[word..word + 6])).collect(),
    };
    let message = json!({ "role": "assistant", "content": text });
    json!({
        "model": "m", "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": USAGE.0, "completion_tokens": USAGE.1 },
    })
    .to_string()
}
