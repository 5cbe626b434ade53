mod damage;
mod forgetting;
mod merging;
mod watched;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{ArrayRef, FixedSizeBinaryArray, RecordBatch, StringArray};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;

use self::watched::Watched;
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

    /// Files, not those in folders below it.
    fn files(&self) -> usize {
        std::fs::read_dir(&self.0)
            .expect("a folder")
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_file()))
            .count()
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

pub(super) fn key(n: u8) -> Key {
    Key::from_bytes([n; 32])
}

pub(super) fn entry(n: u8, text: &str, created_ms: u64) -> (Key, Arc<str>) {
    (key(n), serde_json::to_string(&answer(text, created_ms)).expect("JSON").into())
}

/// Entries in order, with answers that hardly compress: 500 of them are more than what is read at once.
pub(super) fn many(numbers: Range<u32>) -> Entries {
    let entry = |n: u32| {
        let key = blake3::hash(&n.to_le_bytes());
        let mut noise = vec![0; 300];
        blake3::Hasher::new_derive_key("noise").update(&n.to_le_bytes()).finalize_xof().fill(&mut noise);
        let text = answer(&key::hex(&noise), 1);
        (Key::from_bytes(*key.as_bytes()), serde_json::to_string(&text).expect("JSON").into())
    };
    let mut entries: Entries = numbers.map(entry).collect();
    entries.sort();
    entries
}

/// A segment as it was written before there were digests: its name and its bytes.
pub(super) fn old(entries: &[(Key, Arc<str>)]) -> (String, Bytes) {
    let keys = FixedSizeBinaryArray::try_from_iter(entries.iter().map(|(key, _)| key.as_bytes())).expect("keys");
    let answers = StringArray::from_iter_values(entries.iter().map(|(_, answer)| answer.as_ref()));
    let columns: [(&str, ArrayRef); 2] = [("key", Arc::new(keys)), ("answer", Arc::new(answers))];
    let rows = RecordBatch::try_from_iter(columns).expect("rows");
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).expect("a writer");
    writer.write(&rows).expect("writes");
    writer.close().expect("closes");
    (segment::name(&bytes), bytes.into())
}

async fn put(store: &Arc<dyn ObjectStore>, name: &str, bytes: Bytes) {
    store.put(&Path::from_iter(["memo", name]), bytes.into()).await.expect("puts");
}

async fn put_segment(store: &Arc<dyn ObjectStore>, entries: &[(Key, Arc<str>)]) -> String {
    let segment = segment::encode(entries).expect("encodes");
    put(store, &segment.name, segment.bytes).await;
    segment.name
}

async fn open(store: &Arc<dyn ObjectStore>, folder: &Folder) -> Memo {
    Memo::open(Arc::clone(store), "memo".into(), folder.path()).await.expect("opens")
}

async fn json(memo: &Memo, key: &Key) -> Option<Arc<str>> {
    memo.inner.find(key).await.expect("the store is there")
}

async fn found(memo: &Memo, key: &Key) -> Option<Answer> {
    memo.answer(key).await.expect("the store is there")
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
    assert_eq!(found(&memo, &key(3)).await, Some(answer("answer 3", 1)));
    assert_eq!(segments(&store).await, 0);
    memo.flush().await.expect("flushes");
    memo.flush().await.expect("flushes");
    assert_eq!(segments(&store).await, 1, "what was sent isn't sent again");
    drop(memo);
    assert_eq!(folder.files(), 0, "an empty log takes its files with it");

    let memo = Memo::open(store, "memo".into(), elsewhere.path()).await.expect("opens");
    assert_eq!(memo.len(), 20);
    assert_eq!(found(&memo, &key(19)).await, Some(answer("answer 19", 1)));
    assert_eq!(found(&memo, &key(20)).await, None);
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
    assert_eq!((look.len(), found(&look, &key(2)).await), (2, Some(answer("in the log", 1))));
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
    assert_eq!(found(&second, &key(1)).await, None, "the first is alive");
    second.record(key(2), &answer("paid, too", 2)).await.expect("records");
    drop(first);
    drop(second);
    assert_eq!(segments(&store).await, 0);

    let third = Memo::open(Arc::clone(&store), "memo".into(), folder.path()).await.expect("adopts");
    assert_eq!(found(&third, &key(1)).await, Some(answer("paid", 1)));
    assert_eq!(found(&third, &key(2)).await, Some(answer("paid, too", 2)));
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
    assert_eq!(found(&memo, &key(7)).await, Some(given_up));
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
        assert_eq!(found(&memo, &key(1)).await, Some(answer("earlier", 10)));
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

#[tokio::test]
async fn rows_are_read_one_by_one_and_then_all_at_once() {
    let watched = Arc::new(Watched::default());
    let store: Arc<dyn ObjectStore> = Arc::clone(&watched) as _;
    let entries = many(0..1000);
    put_segment(&store, &entries).await;
    let folder = Folder::new();
    let memo = open(&store, &folder).await;
    assert_eq!(memo.len(), 1000);
    watched.take();
    for (n, (key, answer)) in entries.iter().enumerate() {
        assert_eq!(json(&memo, key).await.as_ref(), Some(answer), "{n}");
    }
    // 15 rows, two pages each at once, and the whole.
    assert_eq!(watched.take(), (0, 16), "lists, gets");
    assert_eq!(json(&memo, &key(1)).await, None);
    assert_eq!(watched.take(), (0, 0));
}

#[tokio::test]
async fn an_open_memo_costs_few_requests() {
    let watched = Arc::new(Watched::default());
    let store: Arc<dyn ObjectStore> = Arc::clone(&watched) as _;
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    drop(open(&store, &folder).await);
    assert_eq!(watched.take(), (1, 0), "an empty one");
    put_segment(&store, &many(0..10)).await;
    put_segment(&store, &many(10..2000)).await;
    let memo = open(&store, &folder).await;
    assert_eq!(watched.take(), (1, 3), "all of a small segment; layout and keys of a larger one");
    memo.refresh().await.expect("refreshes");
    assert_eq!(watched.take(), (1, 0));
    drop(memo);
    let again = open(&store, &folder).await;
    assert_eq!((watched.take(), again.len()), ((1, 0), 2000), "the keys lie in the folder");
    let look = Memo::look(Arc::clone(&store), "memo".into(), elsewhere.path()).await.expect("looks");
    assert_eq!((watched.take(), look.len()), ((1, 3), 2000));
    assert!(!elsewhere.path().join("keys").exists(), "a look writes nothing");
    again.record(key(1), &answer("one", 1)).await.expect("records");
    again.flush().await.expect("flushes");
    drop(again);
    watched.take();
    assert_eq!(open(&store, &folder).await.len(), 2001);
    assert_eq!(watched.take(), (1, 0), "who uploads knows the keys");
}

#[tokio::test]
async fn what_is_on_the_store_is_not_in_memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let folder = Folder::new();
    let memo = open(&store, &folder).await;
    for n in 0..20 {
        memo.record(key(n), &answer("text", 1)).await.expect("records");
    }
    assert_eq!(locked(&memo.inner.known).unsent.len(), 20);
    memo.flush().await.expect("flushes");
    assert!(locked(&memo.inner.known).unsent.is_empty());
    assert_eq!(found(&memo, &key(7)).await, Some(answer("text", 1)));
    assert_eq!(memo.len(), 20);
}

#[tokio::test]
async fn keys_that_begin_alike_are_told_apart() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut entries = many(0..1000);
    let twin = |key: &Key, last: u8| {
        let mut bytes = *key.as_bytes();
        bytes[31] = last;
        Key::from_bytes(bytes)
    };
    let (first, second, third) = (twin(&entries[500].0, 1), twin(&entries[500].0, 2), twin(&entries[500].0, 3));
    entries[500].0 = first;
    entries.insert(501, (second, entry(0, "second", 1).1));
    put_segment(&store, &entries).await;
    put_segment(&store, &[entry(0, "small", 1)]).await;
    let folder = Folder::new();
    let memo = open(&store, &folder).await;
    // One by one, and from the whole segment.
    for _ in 0..20 {
        assert_eq!(json(&memo, &first).await, Some(Arc::clone(&entries[500].1)));
        assert_eq!(found(&memo, &second).await, Some(answer("second", 1)));
        assert_eq!(found(&memo, &third).await, None);
    }
    assert!(memo.contains(&third), "as far as the index knows");
}

#[tokio::test]
async fn another_process_s_answers_are_seen_after_a_refresh() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (a, b) = (Folder::new(), Folder::new());
    let (one, other) = (open(&store, &a).await, open(&store, &b).await);
    other.record(key(1), &answer("new", 1)).await.expect("records");
    other.flush().await.expect("flushes");
    assert_eq!(found(&one, &key(1)).await, None);
    one.refresh().await.expect("refreshes");
    assert_eq!(found(&one, &key(1)).await, Some(answer("new", 1)));
    // A process in the same folder ends without an upload.
    let third = open(&store, &a).await;
    third.record(key(2), &answer("in its log", 1)).await.expect("records");
    drop(third);
    assert_eq!(found(&one, &key(2)).await, None);
    one.refresh().await.expect("refreshes");
    assert_eq!(found(&one, &key(2)).await, Some(answer("in its log", 1)));
    assert_eq!((one.len(), segments(&store).await), (2, 2));
    // What is gone is forgotten.
    for object in store.list(None).try_collect::<Vec<_>>().await.expect("a listing") {
        store.delete(&object.location).await.expect("deletes");
    }
    one.refresh().await.expect("refreshes");
    assert!(one.is_empty());
}

#[tokio::test]
async fn segments_without_digests_are_read_and_merged_answers_are_the_earlier_ones() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut entries = many(0..1000);
    entries[3].1 = entry(0, "earlier", 0).1;
    let (name, bytes) = old(&entries);
    put(&store, &name, bytes).await;
    put_segment(&store, &many(0..1000)).await;
    let folder = Folder::new();
    let memo = open(&store, &folder).await;
    assert_eq!(memo.len(), 1000);
    for (key, answer) in entries.iter().take(100) {
        assert_eq!(json(&memo, key).await.as_ref(), Some(answer));
    }
}

#[tokio::test]
async fn where_the_log_is_full_answers_go_to_the_store() {
    let watched = Arc::new(Watched::default());
    let store: Arc<dyn ObjectStore> = Arc::clone(&watched) as _;
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let full = |settled| Log::full(folder.path(), settled);
    let memo = Memo::with_log(Arc::clone(&store), "memo".into(), folder.path(), full).await.expect("opens");
    for n in 0..3 {
        memo.record(key(n), &answer("paid", 1)).await.expect("the store takes it");
    }
    memo.sync().await.expect("all are kept");
    assert_eq!(open(&store, &elsewhere).await.len(), 3);
    watched.refuse_puts(true);
    let error = memo.record(key(4), &answer("paid", 1)).await.expect_err("neither takes it");
    assert!(matches!(&error, MemoError::Local { message, .. } if message.contains("no space left")), "{error}");
    memo.sync().await.expect_err("one isn't kept");
    watched.refuse_puts(false);
    memo.flush().await.expect("flushes");
    assert_eq!(open(&store, &elsewhere).await.len(), 4, "it was tried again");
}
