//! The teacher against a server that misbehaves on order.

mod embeddings;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::budget::Nanodollars;
use crate::request::{Decoding, Message, Role};

/// What the server does with a request.
enum Say {
    /// Status, further header lines, body.
    Reply(u16, &'static str, String),
    /// These bytes, and the end of the connection.
    Cut(Vec<u8>),
    /// Nothing, with the connection open.
    Hang,
}

struct Seen {
    head: String,
    body: Value,
    at: Instant,
}

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Script = Arc<dyn Fn(usize, &Value) -> Say + Send + Sync>;

impl Server {
    /// A server that does what `say` says of its request number n (from 0).
    async fn start(say: impl Fn(usize, &Value) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (say, log): (Script, _) = (Arc::new(say), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&say), Arc::clone(&log)));
            }
        });
        Self { address, seen }
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    fn requests(&self) -> usize {
        self.seen.lock().expect("not poisoned").len()
    }

    fn bodies(&self) -> Vec<Value> {
        self.seen.lock().expect("not poisoned").iter().map(|seen| seen.body.clone()).collect()
    }
}

async fn serve(mut stream: TcpStream, say: Script, log: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break String::from_utf8_lossy(&buffer.drain(..end + 4).collect::<Vec<u8>>()).into_owned();
            }
            match stream.read_buf(&mut buffer).await {
                // The first byte of a TLS handshake.
                Ok(n) if n > 0 && buffer[0] == 0x16 => {
                    let _ = stream.write_all(b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n").await;
                    return;
                }
                Ok(n) if n > 0 => {}
                _ => return,
            }
        };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let length: usize = length.unwrap_or_default();
        while buffer.len() < length {
            match stream.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
        let body: Value = serde_json::from_slice(&buffer.drain(..length).collect::<Vec<u8>>()).unwrap_or_default();
        let n = {
            let mut log = log.lock().expect("not poisoned");
            log.push(Seen { head, body: body.clone(), at: Instant::now() });
            log.len() - 1
        };
        match say(n, &body) {
            Say::Reply(status, headers, body) => {
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
                if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(body.as_bytes()).await.is_err() {
                    return;
                }
            }
            Say::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Say::Hang => std::future::pending().await,
        }
    }
}

fn said(text: &str) -> Say {
    finished(text, "stop")
}

fn finished(text: &str, finish: &str) -> Say {
    let body = json!({
        "model": "m-2", "choices": [{ "message": { "role": "assistant", "content": text }, "finish_reason": finish }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 2 },
    });
    Say::Reply(200, "", body.to_string())
}

fn error(status: u16, message: &str) -> Say {
    Say::Reply(status, "", json!({ "error": { "message": message } }).to_string())
}

fn limits() -> Limits {
    Limits { base: Duration::from_millis(1), longest_delay: Duration::from_millis(4), ..Limits::new(Duration::from_secs(20)) }
}

fn with(servers: &[String], extra: Value, limits: Limits) -> OpenAi {
    let mut model = json!({ "base_url": servers, "model": "m" });
    model.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    OpenAi::with_limits(serde_json::from_value(model).expect("valid"), limits)
}

fn teacher(server: &Server) -> OpenAi {
    with(&[server.url()], json!({}), limits())
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

async fn ask(teacher: &OpenAi) -> Result<Answer, Outage> {
    teacher.answer(&request("q"), 0, 0).await
}

async fn many(teacher: &OpenAi, n: usize) -> Vec<Result<Answer, Outage>> {
    join_all((0..n).map(|_| ask(teacher))).await
}

fn hint(outage: Outage) -> String {
    match outage {
        Outage::Teacher { hint, .. } => hint.expect("a hint"),
        other @ (Outage::Memo(_) | Outage::Budget(_) | Outage::Unasked) => panic!("{other}"),
    }
}

/// An address where nobody listens.
async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}/v1", listener.local_addr().expect("an address"))
}

#[tokio::test]
async fn a_request_and_its_answer() {
    let server = Server::start(|_, _| said("yes")).await;
    let extra = json!({ "api_key": "${secret:PATH}", "headers": { "x-team": "blue" }, "extra_body": { "top_k": 40 } });
    let answer = ask(&with(&[server.url()], extra, limits())).await.expect("an answer");
    assert_eq!((answer.text.as_str(), answer.model.as_str()), ("yes", "m-2"));
    let seen = server.seen.lock().expect("not poisoned");
    let head = seen[0].head.to_ascii_lowercase();
    let key = format!("authorization: bearer {}", std::env::var("PATH").expect("set").to_ascii_lowercase());
    assert!(
        head.starts_with("post /v1/chat/completions http/1.1") && head.contains(&key) && head.contains("x-team: blue"),
        "{head}"
    );
    assert_eq!((&seen[0].body["top_k"], &seen[0].body["messages"][0]["content"]), (&json!(40), &json!("q")));
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"choices\": [".to_vec();
    type Case = (&'static str, Box<dyn Fn() -> Say + Send + Sync>);
    let cases: Vec<Case> = vec![
        ("500", Box::new(|| error(500, "oops"))),
        ("503", Box::new(|| Say::Reply(503, "retry-after: 0\r\n", String::new()))),
        ("429", Box::new(|| error(429, "slow down"))),
        ("408", Box::new(|| error(408, "slow"))),
        ("a cut stream", Box::new(move || Say::Cut(cut.clone()))),
        ("a closed connection", Box::new(|| Say::Cut(Vec::new()))),
        ("broken JSON", Box::new(|| Say::Reply(200, "", "{\"choices\": [{\"message\": ".to_owned()))),
        ("an error with 200", Box::new(|| Say::Reply(200, "", json!({ "error": { "code": 502, "message": "x" } }).to_string()))),
        ("a page", Box::new(|| Say::Reply(200, "content-type: text/html\r\n", "<html><title>Login</title></html>".to_owned()))),
        ("an aborted answer", Box::new(|| finished("par", "abort"))),
    ];
    for (name, bad) in cases {
        let server = Server::start(move |n, _| if n < 2 { bad() } else { said("yes") }).await;
        let answer = ask(&teacher(&server)).await.unwrap_or_else(|outage| panic!("{name}: {outage}"));
        assert_eq!((answer.text.as_str(), server.requests()), ("yes", 3), "{name}");
    }
}

#[tokio::test]
async fn what_does_not_pass_is_an_outage_that_says_why() {
    type Case = (usize, &'static str, Box<dyn Fn() -> Say + Send + Sync>);
    let cases: Vec<Case> = vec![
        (9, "failed 9 times; the last time: HTTP 500: out of memory", Box::new(|| error(500, "out of memory"))),
        (9, "takes no more requests (9 were refused): HTTP 429: slow down", Box::new(|| error(429, "slow down"))),
        (9, "an HTML page, `Login`", Box::new(|| Say::Reply(200, "", "<html><title>Login</title></html>".to_owned()))),
        (9, "the connection broke off", Box::new(|| Say::Cut(Vec::new()))),
        (3, "gave no answer, 3 times", Box::new(|| Say::Hang)),
        (1, "wants no request for 86400 s", Box::new(|| Say::Reply(429, "retry-after: 86400\r\n", String::new()))),
        (1, "asks for payment", Box::new(|| error(402, "no credit"))),
        (1, "asks for payment", Box::new(|| error(429, "insufficient_quota: see your plan"))),
        (1, "redirects to `/login`", Box::new(|| Say::Reply(302, "location: /login\r\n", String::new()))),
        (1, "HTTP 415: no JSON", Box::new(|| error(415, "no JSON"))),
    ];
    for (requests, message, bad) in cases {
        let server = Server::start(move |_, _| bad()).await;
        let patience = if requests == 3 { Duration::from_millis(40) } else { limits().timeout };
        let limits = Limits { timeout: patience, ..limits() };
        let outage = ask(&with(&[server.url()], json!({}), limits)).await.expect_err(message);
        assert!(outage.to_string().contains(message), "`{message}` isn't in: {outage}");
        assert!(outage.to_string().contains(&server.url()), "{outage}");
        assert!(!hint(outage).is_empty());
        assert_eq!(server.requests(), requests, "{message}");
    }
}

#[tokio::test]
async fn a_wrong_key_costs_one_request_and_is_not_shown() {
    let key = std::env::var("PATH").expect("set");
    for status in [401, 403] {
        let echo = key.clone();
        let server = Server::start(move |_, _| error(status, &format!("{}{echo} is no key", " ".repeat(499)))).await;
        let teacher = with(&[server.url()], json!({ "api_key": "${secret:PATH}" }), limits());
        for result in many(&teacher, 64).await {
            let outage = result.expect_err("a wrong key");
            assert!(outage.to_string().contains(&format!("HTTP {status}: ${{secret:PATH}} is no key")), "{outage}");
            assert!(!format!("{outage:?}").contains(&key), "{outage:?}");
            assert!(hint(outage).contains("`PATH` holds a key"));
        }
        assert_eq!(server.requests(), 1);
        assert!(ask(&teacher).await.is_err());
        assert_eq!(server.requests(), 1, "nothing is sent after that");
    }
}

#[tokio::test]
async fn an_unknown_model_costs_one_request() {
    let server = Server::start(|_, _| error(404, "The model `m` does not exist.")).await;
    let teacher = teacher(&server);
    for result in many(&teacher, 64).await {
        let outage = result.expect_err("an unknown model");
        assert!(outage.to_string().contains("doesn't know the model `m`"), "{outage}");
        assert!(hint(outage).contains(&format!("`{}/models`", server.url())));
    }
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_missing_key_is_named_before_anything_is_sent() {
    let server = Server::start(|_, _| said("yes")).await;
    let teacher = with(&[server.url()], json!({ "api_key": "${secret:INGRAIN_TEST_NO_SUCH_VARIABLE}" }), limits());
    let outage = ask(&teacher).await.expect_err("no key");
    assert!(outage.to_string().contains("`INGRAIN_TEST_NO_SUCH_VARIABLE`"), "{outage}");
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn an_echoed_key_stays_out_of_answers() {
    let key = std::env::var("PATH").expect("set");
    let echo = key.clone();
    let server = Server::start(move |_, _| said(&format!("<think>{echo}</think>your key is {echo}"))).await;
    let answer = ask(&with(&[server.url()], json!({ "api_key": "${secret:PATH}" }), limits())).await.expect("an answer");
    assert_eq!(answer.text, "your key is ${secret:PATH}");
    assert_eq!(answer.reasoning.as_deref(), Some("${secret:PATH}"));
}

#[tokio::test]
async fn what_was_said_is_an_answer() {
    let server = Server::start(|n, _| match n {
        0 => finished("[1, 2", "length"),
        1 => Say::Reply(200, "", json!({ "choices": [{ "message": { "content": null, "refusal": "No." } }] }).to_string()),
        2 => finished("", "content_filter"),
        3 => error(400, "maximum context length is 8192 tokens"),
        4 => error(413, "too large"),
        _ => Say::Reply(422, "", json!({ "detail": [{ "loc": ["body", "top_k"], "msg": "not a number" }] }).to_string()),
    })
    .await;
    let teacher = teacher(&server);
    let mut ends = Vec::new();
    for _ in 0..6 {
        let answer = ask(&teacher).await.expect("an answer");
        ends.push((answer.finish, answer.text));
    }
    let expected = [
        (Finish::Length, "[1, 2"),
        (Finish::Refusal, "No."),
        (Finish::Refusal, ""),
        (Finish::Invalid, "HTTP 400: maximum context length is 8192 tokens"),
        (Finish::Invalid, "HTTP 413: too large"),
        (Finish::Invalid, "HTTP 422: body.top_k: not a number"),
    ];
    assert_eq!(ends, expected.map(|(finish, text)| (finish, text.to_owned())));
    assert_eq!(server.requests(), 6, "each was asked once");
}

#[tokio::test]
async fn large_answers_pass_and_larger_ones_are_cut() {
    let server = Server::start(|n, _| said(&"x".repeat(if n < 6 { 10 << 20 } else { 17 << 20 }))).await;
    let teacher = teacher(&server);
    let answers = many(&teacher, 6).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|a| a.text.len() == 10 << 20 && a.finish == Finish::Stop)));
    let larger = ask(&teacher).await.expect("an answer");
    assert_eq!(larger.finish, Finish::TooLarge);
    assert!(larger.text.len() <= 4 << 10 && larger.text.contains("xxxx"));
}

#[tokio::test]
async fn a_server_without_response_format_is_asked_without_from_then_on() {
    let server = Server::start(|_, body| match body.get("response_format") {
        Some(_) => error(400, "Extra inputs are not permitted: response_format"),
        None => said("yes"),
    })
    .await;
    let teacher = teacher(&server);
    let wanted = Request { response_format: Some(json!({ "type": "json_object" })), ..request("q") };
    for _ in 0..3 {
        assert_eq!(teacher.answer(&wanted, 0, 0).await.expect("an answer").text, "yes");
    }
    let with: Vec<bool> = server.bodies().iter().map(|body| body.get("response_format").is_some()).collect();
    assert_eq!(with, [true, false, false, false]);
}

#[tokio::test]
async fn a_request_that_is_wrong_in_every_form_keeps_the_form() {
    let server = Server::start(|_, body| match body["messages"][0]["content"] == "bad" {
        true => error(400, "context length exceeded by {response_format: {}}"),
        false => said("yes"),
    })
    .await;
    let teacher = teacher(&server);
    let wanted = |content: &str| Request { response_format: Some(json!({ "type": "json_object" })), ..request(content) };
    assert_eq!(teacher.answer(&wanted("bad"), 0, 0).await.expect("an answer").finish, Finish::Invalid);
    assert_eq!(teacher.answer(&wanted("good"), 0, 0).await.expect("an answer").finish, Finish::Stop);
    let with: Vec<bool> = server.bodies().iter().map(|body| body.get("response_format").is_some()).collect();
    assert_eq!(with, [true, false, true]);
}

#[tokio::test]
async fn a_server_that_wants_max_completion_tokens_gets_it() {
    let server = Server::start(|_, body| match body.get("max_tokens") {
        Some(_) => error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        None => said("yes"),
    })
    .await;
    let teacher = teacher(&server);
    assert!(many(&teacher, 20).await.iter().all(Result::is_ok));
    assert_eq!(server.requests(), 21);
    assert_eq!(server.bodies()[20]["max_completion_tokens"], 100);
}

#[tokio::test]
async fn a_rate_limit_holds_for_all_calls() {
    let server = Server::start(|n, _| match n {
        0 => said("first"),
        1 => Say::Reply(429, "retry-after-ms: 300\r\n", String::new()),
        _ => said("yes"),
    })
    .await;
    let teacher = teacher(&server);
    ask(&teacher).await.expect("an answer");
    let second = ask(&teacher);
    let others = async {
        // The gate is open and the second request has been refused before these are sent.
        while !teacher.pool.is_paused() {
            tokio::task::yield_now().await;
        }
        many(&teacher, 10).await
    };
    let (second, others) = tokio::join!(second, others);
    assert!(second.is_ok() && others.iter().all(Result::is_ok));
    let seen = server.seen.lock().expect("not poisoned");
    assert_eq!(seen.len(), 13);
    assert!(seen[2..].iter().all(|later| later.at - seen[1].at >= Duration::from_millis(300)), "nobody comes early");
}

#[tokio::test]
async fn requests_go_to_the_server_with_the_fewest_in_flight() {
    let servers = [Server::start(|_, _| said("a")).await, Server::start(|_, _| said("b")).await];
    let teacher = with(&servers.each_ref().map(Server::url), json!({}), limits());
    assert!(many(&teacher, 41).await.iter().all(Result::is_ok));
    let counts = servers.each_ref().map(Server::requests);
    assert!(counts.iter().sum::<usize>() == 41 && counts.iter().all(|n| *n >= 15), "{counts:?}");
}

#[tokio::test]
async fn servers_that_fail_are_left_alone_while_others_answer() {
    let (good, bad) = (Server::start(|_, _| said("yes")).await, Server::start(|_, _| error(500, "oops")).await);
    let limits = Limits {
        aside: Duration::from_secs(60),
        base: Duration::from_millis(20),
        longest_delay: Duration::from_secs(60),
        ..limits()
    };
    let teacher = with(&[nowhere().await, bad.url(), good.url()], json!({}), limits);
    for _ in 0..4 {
        assert!(many(&teacher, 10).await.iter().all(Result::is_ok));
    }
    assert_eq!(good.requests(), 40);
    assert!(bad.requests() < 40, "{}", bad.requests());
}

#[tokio::test]
async fn servers_that_are_not_there_are_an_outage_at_once() {
    let one = ask(&with(&[nowhere().await], json!({}), limits())).await.expect_err("nobody");
    assert!(one.to_string().contains("can't be reached: ") && one.to_string().contains("refused"), "{one}");
    assert!(hint(one).contains("see that the server runs"));
    let two = ask(&with(&[nowhere().await, nowhere().await], json!({}), limits())).await.expect_err("nobody");
    assert!(two.to_string().starts_with("none of the teacher's 2 servers can be reached"), "{two}");
}

#[tokio::test]
async fn a_server_without_tls_is_an_outage_at_once() {
    let server = Server::start(|_, _| said("yes")).await;
    let outage = ask(&with(&[server.url().replace("http:", "https:")], json!({}), limits())).await.expect_err("no TLS");
    assert!(outage.to_string().contains("can't be reached"), "{outage}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn only_what_surely_does_not_fit_is_unfit() {
    let teacher = |extra: Value| with(&["http://h/v1".to_owned()], extra, limits());
    let small = teacher(json!({ "context": "1Ki" }));
    assert_eq!(small.unfit(&request(&"word, ".repeat(924))), None);
    let reject = small.unfit(&request(&"word, ".repeat(925))).expect("too long");
    assert_eq!(reject.reason, "too_long");
    assert_eq!(reject.detail, "at least 925 tokens and `max_output_tokens` (100) don't fit into the model's context of 1024");
    assert_eq!(teacher(json!({})).unfit(&request(&"x ".repeat(1 << 20))), None);
    let bound = teacher(json!({ "context": "1Ki", "extra_body": { "max_tokens": 1000 } }));
    let reject = bound.unfit(&request(&"word, ".repeat(25))).expect("too long");
    assert_eq!(
        reject.detail,
        "at least 25 tokens and the bound in `extra_body` (1000) don't fit into the model's context of 1024"
    );
    assert_eq!(bound.unfit(&request(&"word, ".repeat(24))), None);
}

#[tokio::test]
async fn a_budget_holds_what_the_request_that_is_sent_may_cost() {
    let server = Server::start(|_, _| said("yes")).await;
    let folder = tempfile::tempdir().expect("a folder");
    let price = Price { input: 0.0, output: 1000.0 };
    // A dollar is a thousand tokens.
    for (extra_body, expected) in [(json!({}), None), (json!({ "max_completion_tokens": 2000 }), Some("which may cost $2.00"))] {
        let store = Arc::new(object_store::memory::InMemory::new());
        let limit = Nanodollars::of_dollars(1.0);
        let budget = Budget::open(store, "budget/p".into(), folder.path(), limit).await.expect("opened");
        let teacher = with(&[server.url()], json!({ "extra_body": extra_body }), limits());
        let teacher = OpenAi { spending: Some((Arc::new(budget), price)), ..teacher };
        match (ask(&teacher).await, expected) {
            (Ok(_), None) => {}
            (Err(outage), Some(part)) => assert!(outage.to_string().contains(part), "{outage}"),
            (other, _) => panic!("{other:?}"),
        }
    }
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_server_that_goes_away_is_tried_again_and_then_an_outage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let say: Script = Arc::new(|n: usize, _: &Value| if n == 0 { said("yes") } else { Say::Cut(Vec::new()) });
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        drop(listener);
        serve(stream, say, Arc::default()).await;
    });
    let teacher = with(&[url], json!({}), limits());
    ask(&teacher).await.expect("an answer");
    let outage = ask(&teacher).await.expect_err("nobody listens any more");
    assert!(outage.to_string().contains("can't be reached: "), "{outage}");
    assert!(hint(outage).contains("see that the server runs"));
}
