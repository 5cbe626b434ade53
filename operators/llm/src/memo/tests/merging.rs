//! Small segments are merged, and no answer is lost by that.

use std::collections::BTreeMap;

use super::*;

/// Segments of ten answers each, 7 of which stand in the next one, too, there with a later time.
async fn small(store: &Arc<dyn ObjectStore>, segments: u32) -> BTreeMap<Key, Arc<str>> {
    let mut expected = BTreeMap::new();
    for n in 0..segments {
        let mut entries = many(n * 3..n * 3 + 10);
        for (key, json) in &mut entries {
            let text = format!("{key:?}");
            *json = serde_json::to_string(&answer(&text, u64::from(n))).expect("JSON").into();
            expected.entry(*key).or_insert_with(|| Arc::clone(json));
        }
        put_segment(store, &entries).await;
    }
    expected
}

async fn holds(memo: &Memo, expected: &BTreeMap<Key, Arc<str>>) {
    for (key, answer) in expected {
        assert_eq!(json(memo, key).await.as_ref(), Some(answer));
    }
    assert_eq!(memo.len(), expected.len());
}

#[tokio::test]
async fn few_segments_stay_as_they_are() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    small(&store, 64).await;
    let folder = Folder::new();
    open(&store, &folder).await.compact().await.expect("does nothing");
    assert_eq!(segments(&store).await, 64);
}

#[tokio::test]
async fn many_segments_become_one_under_the_eyes_of_readers() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let expected = small(&store, 80).await;
    let (a, b, c) = (Folder::new(), Folder::new(), Folder::new());
    let (memo, reader) = (open(&store, &a).await, open(&store, &b).await);
    let reading = async {
        for _ in 0..5 {
            holds(&reader, &expected).await;
        }
    };
    let merging = async {
        tokio::task::yield_now().await;
        memo.compact().await.expect("merges");
    };
    tokio::join!(reading, merging);
    assert_eq!(segments(&store).await, 1);
    holds(&memo, &expected).await;
    holds(&reader, &expected).await;
    holds(&open(&store, &c).await, &expected).await;
    memo.compact().await.expect("has nothing to do");
    memo.flush().await.expect("has nothing to do");
    assert_eq!(segments(&store).await, 1);
}

#[tokio::test]
async fn two_may_merge_at_once() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let expected = small(&store, 90).await;
    let (a, b, c) = (Folder::new(), Folder::new(), Folder::new());
    let (one, other) = (open(&store, &a).await, open(&store, &b).await);
    let (one, other) = tokio::join!(one.compact(), other.compact());
    one.and(other).expect("both merge");
    holds(&open(&store, &c).await, &expected).await;
}

#[tokio::test]
async fn what_an_interruption_left_is_merged_again() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let expected = small(&store, 70).await;
    // The merged segment is there, and none of the others was deleted.
    put_segment(&store, &Entries::from_iter(expected.clone())).await;
    let (a, b) = (Folder::new(), Folder::new());
    let memo = open(&store, &a).await;
    memo.compact().await.expect("merges");
    assert_eq!(segments(&store).await, 1);
    holds(&memo, &expected).await;
    holds(&open(&store, &b).await, &expected).await;
}

#[tokio::test]
async fn damaged_segments_stay_and_full_ones_are_not_touched() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let expected = small(&store, 70).await;
    let damaged = many(1000..1600);
    let segment = segment::encode(&damaged).expect("encodes");
    let mut bytes = segment.bytes.to_vec();
    let at = 600 * 32 + 50_000;
    bytes[at] ^= 1;
    put(&store, &segment.name, bytes.into()).await;
    // Compresses to little, and has no room for others.
    let text = "x".repeat(SEGMENT_BYTES);
    let full = put_segment(&store, &[entry(7, &text, 1)]).await;
    let folder = Folder::new();
    let memo = open(&store, &folder).await;
    memo.compact().await.expect("merges");
    assert_eq!(segments(&store).await, 3);
    for name in [&segment.name, &full] {
        store.head(&Path::from_iter(["memo", name])).await.expect("is there");
    }
    for (key, answer) in &expected {
        assert_eq!(json(&memo, key).await.as_ref(), Some(answer));
    }
    let mut lost = 0;
    for (key, answer) in &damaged {
        match json(&memo, key).await {
            Some(found) => assert_eq!(found, *answer),
            None => lost += 1,
        }
    }
    assert!((1..80).contains(&lost), "those of a page: {lost}");
    assert!(found(&memo, &key(7)).await.is_some_and(|answer| answer.text == text));
}
