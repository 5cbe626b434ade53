//! Answers go when they are told to, and no others.

use super::*;

fn about(n: u8, document: &str) -> (Key, Arc<str>) {
    (key(n), recorded(&answer(&format!("said of {document}, {n}"), 1), &[document]).expect("JSON").into())
}

fn is_of_a(answer: &Remembered) -> bool {
    answer.about.iter().any(|id| id == "a.md")
}

/// Every byte under the memo on the store, decompressed.
async fn texts(store: &Arc<dyn ObjectStore>) -> String {
    let listed: Vec<_> = store.list(None).try_collect().await.expect("a listing");
    let mut texts = String::new();
    for meta in listed {
        let bytes = store.get(&meta.location).await.expect("there").bytes().await.expect("reads");
        let whole = segment::Whole::decode_unchanged(bytes, meta.location.filename().expect("a name")).expect("decodes");
        for entry in whole.entries() {
            texts.push_str(entry.expect("an entry").1);
        }
    }
    texts
}

#[tokio::test]
async fn an_answer_goes_by_its_id_or_by_what_it_is_about() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    put_segment(&store, &[about(1, "a.md"), about(2, "b.md"), entry(3, "of nobody", 1), entry(4, "of a row", 1)]).await;
    put_segment(&store, &[about(5, "a.md")]).await;
    let untouched = put_segment(&store, &[about(6, "b.md")]).await;
    let memo = open(&store, &folder).await;
    let reader = open(&store, &elsewhere).await;
    memo.record_about(key(7), &answer("in the log", 1), &["x", "a.md"]).await.expect("records");
    let id = key(4).request_id();
    let is_meant = |answer: &Remembered| is_of_a(answer) || answer.request_id == id;
    assert_eq!(memo.count(is_meant).await.expect("counts"), Removed { answers: 4, damaged: 0 });
    assert_eq!(memo.len(), 7);
    assert_eq!(memo.forget(is_meant).await.expect("forgets"), Removed { answers: 4, damaged: 0 });
    for memo in [&memo, &reader] {
        for n in [1, 4, 5, 7] {
            assert_eq!(found(memo, &key(n)).await, None, "{n}");
        }
        assert_eq!(found(memo, &key(3)).await, Some(answer("of nobody", 1)));
        assert!(found(memo, &key(2)).await.is_some() && found(memo, &key(6)).await.is_some());
    }
    assert_eq!(memo.len(), 3);
    let texts = texts(&store).await;
    assert!(!texts.contains("a.md") && !texts.contains("of a row") && !texts.contains("in the log"), "{texts}");
    assert_eq!(segments(&store).await, 2);
    assert!(store.head(&Path::from_iter(["memo", &untouched])).await.is_ok(), "a segment without such answers stays");
    assert_eq!(memo.forget(is_meant).await.expect("forgets"), Removed::default());
}

#[tokio::test]
async fn what_an_interruption_left_is_cleared_up() {
    let all = [about(1, "a.md"), about(2, "b.md")];
    // Killed before anything was written, and before the old segment was deleted.
    for leftovers in [vec![&all[..]], vec![&all[..], &all[1..]]] {
        let (store, folder): (Arc<dyn ObjectStore>, _) = (Arc::new(InMemory::new()), Folder::new());
        for entries in &leftovers {
            put_segment(&store, entries).await;
        }
        let memo = open(&store, &folder).await;
        assert_eq!(memo.forget(is_of_a).await.expect("forgets"), Removed { answers: 1, damaged: 0 });
        assert_eq!((segments(&store).await, memo.len()), (1, 1));
        assert!(found(&memo, &key(2)).await.is_some());
        assert!(!texts(&store).await.contains("a.md"));
    }
}

#[tokio::test]
async fn a_log_of_a_dead_process_is_looked_through() {
    let (store, folder): (Arc<dyn ObjectStore>, _) = (Arc::new(InMemory::new()), Folder::new());
    let memo = open(&store, &folder).await;
    memo.record_about(key(1), &answer("of a", 1), &["a.md"]).await.expect("records");
    memo.record_about(key(2), &answer("of b", 1), &["b.md"]).await.expect("records");
    drop(memo);
    assert!(folder.files() > 0, "the log is left");
    let memo = open(&store, &folder).await;
    assert_eq!(memo.forget(is_of_a).await.expect("forgets").answers, 1);
    assert_eq!(memo.len(), 1);
    assert!(!texts(&store).await.contains("of a"));
    drop(memo);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|file| file.file_name()).collect();
    assert_eq!(left, ["keys"], "no log is left");
}

#[tokio::test]
async fn a_damaged_segment_is_told_and_stays() {
    let (store, folder): (Arc<dyn ObjectStore>, _) = (Arc::new(InMemory::new()), Folder::new());
    let segment = segment::encode(&[about(1, "a.md")]).expect("encodes");
    put(&store, &segment.name, segment.bytes.slice(..segment.bytes.len() - 9)).await;
    let memo = open(&store, &folder).await;
    assert_eq!(memo.forget(is_of_a).await.expect("forgets"), Removed { answers: 0, damaged: 1 });
    assert_eq!(segments(&store).await, 1);
}
