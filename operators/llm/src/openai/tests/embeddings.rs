//! The embedder against a server that misbehaves on order.

use std::path::Path;

use object_store::memory::InMemory;

use super::*;
use crate::budget::Nanodollars;
use crate::client::Counts;
use crate::embed::{Embedded, Embedder, Embeddings};
use crate::memo::{Folder, Memo};

/// Vectors at these places of the list, each `[its number + 1, 0]`.
fn vectors(indices: &[usize]) -> Say {
    let item = |index: &usize| json!({ "object": "embedding", "index": index, "embedding": [*index as f64 + 1.0, 0.0] });
    let items: Vec<Value> = indices.iter().map(item).collect();
    Say::Reply(200, "", json!({ "data": items, "model": "e-2", "usage": { "prompt_tokens": 7, "total_tokens": 7 } }).to_string())
}

/// As many vectors as a request has texts.
fn for_each(body: &Value) -> Say {
    vectors(&(0..body["input"].as_array().expect("a list").len()).collect::<Vec<_>>())
}

async fn embed(embedder: &OpenAi, texts: &[&str]) -> Result<Vec<Vec<f32>>, Outage> {
    match embedder.embed(texts).await? {
        Embedded::Vectors { vectors, .. } => Ok(vectors),
        Embedded::Refused(words) => panic!("{words}"),
    }
}

async fn remembering(embedder: OpenAi, folder: &Path) -> Embeddings {
    let memo = Memo::open(Arc::new(InMemory::new()), "embeddings".into(), folder).await.expect("opens");
    Embeddings::new(Arc::new(embedder), memo, 4)
}

#[tokio::test]
async fn a_request_and_its_vectors() {
    let server = Server::start(|_, _| {
        let items = json!([{ "index": 1, "embedding": [0, 2.5] }, { "index": 0, "embedding": [3, 4] }]);
        Say::Reply(200, "", json!({ "data": items, "model": "e-2", "usage": { "prompt_tokens": 7 } }).to_string())
    })
    .await;
    let extra = json!({ "api_key": "${secret:PATH}", "extra_body": { "dimensions": 2, "encoding_format": null } });
    let embedder = with(&[server.url()], extra, limits());
    let Embedded::Vectors { vectors, usage, model, created_ms } = embedder.embed(&["a", "b"]).await.expect("vectors") else {
        panic!("refused")
    };
    assert_eq!(vectors, vec![vec![0.6_f32, 0.8], vec![0.0, 1.0]], "in the order of `index`, and of length 1");
    assert_eq!((usage, model.as_str()), (Some(Usage { input_tokens: 7, output_tokens: 0 }), "e-2"));
    assert!(created_ms > 1_700_000_000_000);
    let seen = server.seen.lock().expect("not poisoned");
    let head = seen[0].head.to_ascii_lowercase();
    assert!(head.starts_with("post /v1/embeddings http/1.1") && head.contains("authorization: bearer "), "{head}");
    assert_eq!(seen[0].body, json!({ "model": "m", "input": ["a", "b"], "dimensions": 2 }));
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    type Case = (&'static str, fn() -> Say);
    let cases: [Case; 5] = [
        ("429", || error(429, "slow down")),
        ("500", || error(500, "oops")),
        ("an error with 200", || Say::Reply(200, "", json!({ "error": { "code": 502, "message": "x" } }).to_string())),
        ("broken JSON", || Say::Reply(200, "", "{\"data\": [{\"embed".to_owned())),
        ("a closed connection", || Say::Cut(Vec::new())),
    ];
    for (name, bad) in cases {
        let server = Server::start(move |n, body| if n < 2 { bad() } else { for_each(body) }).await;
        let embedded = embed(&teacher(&server), &["a"]).await.unwrap_or_else(|outage| panic!("{name}: {outage}"));
        assert_eq!((embedded, server.requests()), (vec![vec![1.0, 0.0]], 3), "{name}");
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_is_an_outage_at_once() {
    type Case = (&'static str, fn() -> Say);
    let cases: [Case; 5] = [
        ("holds 1 vectors for 2 texts", || vectors(&[0])),
        ("holds 3 vectors for 2 texts", || vectors(&[0, 1, 2])),
        ("has `index` 1 twice, or too large", || vectors(&[1, 1])),
        ("has `index` 2 twice, or too large", || vectors(&[0, 2])),
        ("has a vector without direction at `index` 0", || {
            Say::Reply(200, "", json!({ "data": [{ "embedding": [0, 0] }, { "embedding": [1, 0] }] }).to_string())
        }),
    ];
    for (message, bad) in cases {
        let server = Server::start(move |_, _| bad()).await;
        let embedder = teacher(&server);
        let outage = embed(&embedder, &["a", "b"]).await.expect_err(message);
        assert!(outage.to_string().contains(message), "`{message}` isn't in: {outage}");
        assert!(outage.to_string().contains(&server.url()) && hint(outage).contains("`m`"));
        assert!(embed(&embedder, &["a", "b"]).await.is_err());
        assert_eq!(server.requests(), 1, "nothing is sent after that");
    }
    let chat = Server::start(|_, _| error(404, "Not Found")).await;
    let outage = embed(&teacher(&chat), &["a"]).await.expect_err("no such place");
    assert!(outage.to_string().contains("doesn't know the model `m`, or nothing is there"), "{outage}");
    let other = Server::start(|_, _| said("yes")).await;
    let outage = embed(&teacher(&other), &["a"]).await.expect_err("a chat");
    assert!(outage.to_string().contains("a JSON object without `data`"), "{outage}");
}

#[tokio::test]
async fn texts_go_out_by_the_batch_and_are_paid_for_once() {
    let server = Server::start(|_, body| match body["input"].as_array() {
        Some(texts) if texts.iter().any(|text| text == "text 7") => error(400, "maximum context length is 512 tokens"),
        _ => for_each(body),
    })
    .await;
    let folder = Folder::new();
    let embeddings = remembering(teacher(&server), folder.path()).await;
    let texts: Vec<String> = (0..100).map(|n| format!("text {}", n % 50)).collect();
    let counts = Mutex::new(Counts::default());
    let count = |done: Counts| {
        let mut all = counts.lock().expect("not poisoned");
        (all.calls, all.memo_hits) = (all.calls + done.calls, all.memo_hits + done.memo_hits);
        all.input_tokens += done.input_tokens;
    };
    let found = embeddings.embed(&texts, None, &count).await.expect("no outage");
    let refused: Vec<usize> = (0..100).filter(|n| found[*n].is_err()).collect();
    assert_eq!(refused, [7, 57]);
    let reject = found[7].clone().expect_err("too long");
    assert_eq!((reject.reason, reject.detail.ends_with("maximum context length is 512 tokens")), ("invalid_request", true));
    // 32 and 18 texts; the first request is divided five times.
    let requests = server.requests();
    assert_eq!(requests, 2 + 10);
    assert_eq!(*counts.lock().expect("not poisoned"), Counts { calls: 12, input_tokens: 42, ..Counts::default() });
    let again = embeddings.embed(&texts, None, &count).await.expect("no outage");
    assert_eq!((again, server.requests()), (found, requests), "all of it is remembered");
    assert_eq!(counts.lock().expect("not poisoned").memo_hits, 50);
    embeddings.embed(&texts[..1], Some("2"), &count).await.expect("no outage");
    assert_eq!(server.requests(), requests + 1, "another wish is another vector");
}

#[tokio::test]
async fn vectors_are_paid_from_the_budget() {
    let server = Server::start(|_, body| for_each(body)).await;
    let folder = Folder::new();
    // A dollar a token.
    let config: crate::ModelConfig = serde_json::from_value(json!({
        "openai": { "base_url": server.url(), "model": "m" }, "price": { "input": 1e6, "output": 0 },
    }))
    .expect("valid");
    let limit = Nanodollars::of_dollars(110.0);
    let budget = Budget::open(Arc::new(InMemory::new()), "budget".into(), folder.path(), limit).await.expect("opened");
    let budget = Arc::new(budget);
    let embedder = config.embedder(Some(budget.clone())).expect("a server");
    embedder.embed(&["a"]).await.expect("vectors");
    assert_eq!(budget.spent(), Nanodollars::of_dollars(7.0));
    let long = "long ".repeat(20);
    let outage = embedder.embed(&[&long]).await.expect_err("a token for each byte is too much");
    assert!(matches!(outage, Outage::Budget(_)), "{outage}");
    assert_eq!(server.requests(), 1);
}
