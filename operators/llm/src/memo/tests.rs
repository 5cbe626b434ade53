use std::sync::atomic::{AtomicU32, Ordering};

use object_store::memory::InMemory;

use super::*;
use crate::request::Finish;

/// A folder that goes with the value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ingrain-llm-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }

    fn files(&self) -> usize {
        std::fs::read_dir(&self.0).expect("a folder").count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn answer(text: &str, created_ms: u64) -> Answer {
    let reasoning = Some(format!("thoughts about {text}"));
    Answer { text: text.to_owned(), reasoning, finish: Finish::Stop, usage: None, model: "m".to_owned(), created_ms }
}

fn key(n: u8) -> Key {
    Key::from_bytes([n; 32])
}

async fn segments(store: &Arc<dyn ObjectStore>) -> usize {
    store.list(None).try_collect::<Vec<_>>().await.expect("a listing").len()
}

#[tokio::test]
async fn answers_come_back_from_the_store() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let memo = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("opens");
    assert!(memo.is_empty());
    for n in 0..20 {
        memo.record(key(n), &answer(&format!("answer {n}"), 1)).await.expect("records");
    }
    assert_eq!(memo.answer(&key(3)), Some(answer("answer 3", 1)));
    assert_eq!(segments(&store).await, 0);
    memo.flush().await.expect("flushes");
    memo.flush().await.expect("flushes");
    assert_eq!(segments(&store).await, 1, "what was sent isn't sent again");
    drop(memo);
    assert_eq!(folder.files(), 0, "an empty log takes its files with it");

    let memo = Memo::open(store, "memo".into(), elsewhere.path()).await.expect("opens");
    assert_eq!(memo.len(), 20);
    assert_eq!(memo.answer(&key(19)), Some(answer("answer 19", 1)));
    assert_eq!(memo.answer(&key(20)), None);
}

#[tokio::test]
async fn a_look_sees_store_and_logs_and_changes_nothing() {
    let folder = Folder::new();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let memo = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("opens");
    memo.record(key(1), &answer("sent", 1)).await.expect("records");
    memo.flush().await.expect("flushes");
    memo.record(key(2), &answer("in the log", 1)).await.expect("records");
    let (files, objects) = (folder.files(), segments(&store).await);
    let look = Memo::look(Arc::clone(&store), "memo".into(), folder.path()).await.expect("looks");
    assert_eq!((look.len(), look.answer(&key(2))), (2, Some(answer("in the log", 1))));
    look.record(key(3), &answer("nothing", 1)).await.expect("is taken");
    look.flush().await.expect("does nothing");
    assert_eq!((look.len(), folder.files(), segments(&store).await), (2, files, objects));
    let nowhere = Memo::look(store, "memo".into(), &folder.path().join("nowhere")).await.expect("looks");
    assert_eq!(nowhere.len(), 1);
}

#[tokio::test]
async fn the_log_of_an_ended_process_is_adopted_and_that_of_a_living_one_is_not() {
    let folder = Folder::new();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let first = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("opens");
    first.record(key(1), &answer("paid", 1)).await.expect("records");

    let second = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("opens beside it");
    assert_eq!(second.answer(&key(1)), None, "the first is alive");
    second.record(key(2), &answer("paid, too", 2)).await.expect("records");
    drop(first);
    drop(second);
    assert_eq!(segments(&store).await, 0);

    let third = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("adopts");
    assert_eq!(third.answer(&key(1)), Some(answer("paid", 1)));
    assert_eq!(third.answer(&key(2)), Some(answer("paid, too", 2)));
    assert_eq!(segments(&store).await, 1);
    assert_eq!(folder.files(), 2, "a log and a lock of its own are all that is left");
}

#[tokio::test]
async fn an_answer_whose_caller_gave_up_is_kept() {
    let folder = Folder::new();
    let memo = Memo::open(Arc::new(InMemory::new()), "memo".into(), folder.path()).await.expect("opens");
    let given_up = answer("nobody waits", 1);
    {
        let mut record = Box::pin(memo.record(key(7), &given_up));
        assert!(futures::poll!(&mut record).is_pending());
    }
    memo.sync().await.expect("syncs");
    assert_eq!(memo.answer(&key(7)), Some(given_up));
}

#[tokio::test]
async fn all_readers_take_the_earlier_of_two_answers() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (a, b) = (Folder::new(), Folder::new());
    let one = Memo::open(Arc::clone(&store), "memo".into(), a.path()).await.expect("opens");
    let other = Memo::open(Arc::clone(&store), "memo".into(), b.path()).await.expect("opens");
    other.record(key(1), &answer("later", 20)).await.expect("records");
    one.record(key(1), &answer("earlier", 10)).await.expect("records");
    other.flush().await.expect("flushes");
    one.flush().await.expect("flushes");
    assert_eq!(segments(&store).await, 2);
    for _ in 0..3 {
        let folder = Folder::new();
        let memo = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("opens");
        assert_eq!(memo.answer(&key(1)), Some(answer("earlier", 10)));
    }
}

#[tokio::test]
async fn a_damaged_segment_is_left_out() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    store.put(&"memo/x.parquet".into(), "not a segment".into()).await.expect("puts");
    let folder = Folder::new();
    let memo = Memo::open(store, "memo".into(), folder.path()).await.expect("opens all the same");
    assert!(memo.is_empty());
}

#[test]
fn runs_are_cut_by_size() {
    let entries: Entries = (0..5).map(|n| (key(n), Arc::from("x".repeat(SEGMENT_BYTES / 2 - 1)))).collect();
    let lengths: Vec<usize> = by_size(entries).iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 2, 1]);
}
