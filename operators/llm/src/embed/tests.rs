use std::sync::Mutex as Plain;
use std::sync::atomic::AtomicUsize;

use object_store::memory::InMemory;
use serde_json::json;

use super::*;
use crate::memo::Folder;

/// Gives `[bytes of the text, 1]`, after giving others a chance to come in between; refuses requests with a text that begins
/// with `wrong`.
#[derive(Default)]
struct Recorder {
    asked: Plain<Vec<Vec<String>>>,
    now: AtomicUsize,
    most: AtomicUsize,
    /// Numbers that are added to each vector.
    more: usize,
    unasked: bool,
}

impl Recorder {
    fn requests(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }
}

#[async_trait]
impl Embedder for Recorder {
    fn identity(&self) -> Value {
        json!({ "provider": "test" })
    }

    async fn embed(&self, texts: &[&str]) -> Result<Embedded, Outage> {
        if self.unasked {
            return Err(Outage::Unasked);
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.asked.lock().expect("not poisoned").push(texts.iter().map(|text| (*text).to_owned()).collect());
        if texts.iter().any(|text| text.starts_with("wrong")) {
            return Ok(Embedded::Refused("HTTP 400: too long".to_owned()));
        }
        let vector = |text: &&str| [vec![text.len() as f32, 1.0], vec![0.0; self.more]].concat();
        let vectors = texts.iter().map(vector).map(|vector| unit(&vector).expect("a direction")).collect();
        let usage = Some(Usage { input_tokens: 10, output_tokens: 0 });
        Ok(Embedded::Vectors { vectors, usage, model: "test".to_owned(), created_ms: 1 })
    }
}

fn texts(of: impl IntoIterator<Item = &'static str>) -> Vec<String> {
    of.into_iter().map(str::to_owned).collect()
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("text {n}")).collect()
}

async fn memo(folder: &Folder) -> Memo {
    Memo::open(Arc::new(InMemory::new()), "embeddings".into(), folder.path()).await.expect("opens")
}

fn embeddings(recorder: &Arc<Recorder>, memo: &Memo) -> Embeddings {
    Embeddings::new(Arc::clone(recorder) as Arc<dyn Embedder>, memo.clone(), 3)
}

fn uncounted(_: Counts) {}

#[tokio::test]
async fn equal_texts_are_asked_for_once_and_remembered_ones_not_at_all() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let memo = memo(&folder).await;
    let first = embeddings(&recorder, &memo);
    let found = first.embed(&texts(["one", "three", "one"]), None, &uncounted).await.expect("no outage");
    assert_eq!(*recorder.asked.lock().expect("not poisoned"), [texts(["one", "three"])]);
    assert_eq!(found[0], found[2]);
    let three = found[1].clone().expect("a vector");
    assert!((three[0] / three[1] - 5.0).abs() < 1e-6, "in the order of the texts: {three:?}");
    let second = embeddings(&recorder, &memo);
    assert_eq!(second.embed(&texts(["three", "one", "one"]), None, &uncounted).await.expect("no outage")[0], found[1]);
    assert_eq!(recorder.requests(), 1);
    // Two calls at once want the same.
    let (some, more) = (numbered(0..40), numbered(20..60));
    let (some, more) = tokio::join!(first.embed(&some, None, &uncounted), first.embed(&more, None, &uncounted));
    assert_eq!(some.expect("no outage")[20..], more.expect("no outage")[..20]);
    let asked: usize = recorder.asked.lock().expect("not poisoned").iter().map(Vec::len).sum();
    assert_eq!(asked, 2 + 60);
}

#[tokio::test]
async fn no_more_are_in_flight_than_there_may_be() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let embeddings = embeddings(&recorder, &memo(&folder).await);
    embeddings.embed(&numbered(0..320), None, &uncounted).await.expect("no outage");
    assert_eq!((recorder.requests(), recorder.most.load(Ordering::SeqCst)), (10, 3));
}

#[tokio::test]
async fn a_text_that_cannot_be_embedded_is_a_reject() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let memo = memo(&folder).await;
    let all = texts(["good", "wrong", " ", "better"]);
    let found = embeddings(&recorder, &memo).embed(&all, None, &uncounted).await.expect("no outage");
    let reasons: Vec<Option<&str>> = found.iter().map(|found| found.as_ref().err().map(|reject| reject.reason)).collect();
    assert_eq!(reasons, [None, Some("invalid_request"), Some("empty"), None]);
    // Three together, then the first alone, the second and third, and each of those.
    assert_eq!(recorder.requests(), 5);
    assert_eq!(embeddings(&recorder, &memo).embed(&all, None, &uncounted).await.expect("no outage"), found);
    assert_eq!(recorder.requests(), 5, "a refusal is remembered, too");
}

#[tokio::test]
async fn a_server_that_refuses_everything_is_an_outage() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let memo = memo(&folder).await;
    let wrong: Vec<String> = (0..200).map(|n| format!("wrong {n}")).collect();
    let outage = embeddings(&recorder, &memo).embed(&wrong, None, &uncounted).await.expect_err("all refused");
    assert!(outage.to_string().contains("HTTP 400: too long"), "{outage}");
    assert!(memo.is_empty());
}

#[tokio::test]
async fn where_nobody_is_asked_only_what_is_remembered_comes_back() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let memo = memo(&folder).await;
    embeddings(&recorder, &memo).embed(&numbered(0..2), None, &uncounted).await.expect("no outage");
    let mute = Arc::new(Recorder { unasked: true, ..Recorder::default() });
    let found = embeddings(&mute, &memo).embed(&numbered(1..70), None, &uncounted).await.expect("no outage");
    assert!(found[0].is_ok());
    assert!(found[1..].iter().all(|found| found.as_ref().is_err_and(|reject| reject.reason == "unasked")));
    assert_eq!(memo.len(), 2);
}

#[tokio::test]
async fn vectors_of_two_lengths_are_of_two_models() {
    let folder = Folder::new();
    let memo = memo(&folder).await;
    let (before, after) = (Arc::new(Recorder::default()), Arc::new(Recorder { more: 1, ..Recorder::default() }));
    embeddings(&before, &memo).embed(&texts(["a"]), None, &uncounted).await.expect("no outage");
    let outage = embeddings(&after, &memo).embed(&texts(["a", "b"]), None, &uncounted).await.expect_err("2 and 3 numbers");
    assert_eq!(outage.to_string(), "the embedder gave vectors of 2 numbers and of 3");
}

#[tokio::test]
async fn a_request_in_flight_is_kept_though_nobody_waits_for_it() {
    let (recorder, folder) = (Arc::new(Recorder::default()), Folder::new());
    let memo = memo(&folder).await;
    let embeddings = embeddings(&recorder, &memo);
    let all = numbered(0..200);
    tokio::select! {
        biased;
        _ = embeddings.embed(&all, None, &uncounted) => panic!("nobody was to wait so long"),
        () = tokio::task::yield_now() => {}
    }
    embeddings.settle(Duration::from_secs(60)).await;
    assert_eq!((recorder.requests(), memo.len()), (3, 96), "the others weren't sent");
    assert!(embeddings.embed(&all, None, &uncounted).await.is_err(), "nothing is sent any more");
}

#[test]
fn requests_are_cut_by_count_and_bytes() {
    let key = Key::vectors(&json!({}), None);
    let lengths = |texts: Vec<String>| -> Vec<usize> {
        let texts = texts.into_iter().map(|text| (key(&text), text)).collect();
        batches(texts).iter().map(Vec::len).collect()
    };
    assert_eq!(lengths(numbered(0..70)), [32, 32, 6]);
    let long = "x".repeat(BYTES / 2);
    assert_eq!(lengths(vec![long.clone(), long.clone(), "y".to_owned(), long.repeat(3), long]), [2, 1, 1, 1]);
}

#[test]
fn a_vector_of_length_1() {
    assert_eq!(unit(&[3.0, -4.0]), Some(vec![0.6, -0.8]));
    for none in [vec![0.0, 0.0], vec![], vec![f32::INFINITY, 1.0], vec![f32::NAN]] {
        assert_eq!(unit(&none), None);
    }
}
