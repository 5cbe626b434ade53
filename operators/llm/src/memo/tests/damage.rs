//! Whatever happened to a segment, nobody gets an answer that wasn't recorded under their key.

use super::*;

/// Opens a memo of one segment of which a byte is flipped, and asks for some of its answers: which of them are known.
async fn known(bytes: &Bytes, name: &str, at: usize, entries: &[(Key, Arc<str>)], keys: Option<&Folder>) -> usize {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << (at % 8);
    put(&store, name, flipped.into()).await;
    let folder = Folder::new();
    let memo = open(&store, keys.unwrap_or(&folder)).await;
    let mut known = 0;
    for (key, answer) in entries {
        if let Some(found) = json(&memo, key).await {
            assert_eq!(found, *answer, "byte {at}");
            known += 1;
        }
    }
    for (key, _) in entries {
        assert!(!memo.contains(key) || json(&memo, key).await.is_some(), "byte {at}");
    }
    known
}

#[tokio::test]
async fn a_flipped_byte_makes_few_answers_unknown_and_none_wrong() {
    for rows in [20, 600] {
        let entries = many(0..rows);
        let segment = segment::encode(&entries).expect("encodes");
        let asked: Entries = entries.iter().step_by(rows as usize / 20).cloned().collect();
        let length = segment.bytes.len();
        // All bytes of the end, which says where things are, and some of the pages.
        let places = (0..length).step_by(length / 150).chain(length - 300..length);
        let with_keys = Folder::new();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        put(&store, &segment.name, segment.bytes.clone()).await;
        drop(open(&store, &with_keys).await);
        let (mut flips, mut unknown) = (0, 0);
        for at in places {
            for keys in [None, Some(&with_keys)] {
                let known = known(&segment.bytes, &segment.name, at, &asked, keys).await;
                flips += asked.len();
                unknown += asked.len() - known;
            }
        }
        assert!(unknown > 0 && unknown < flips * 2 / 3, "{unknown} of {flips}, of {rows} rows");
    }
}

#[tokio::test]
async fn a_flipped_byte_in_a_segment_without_digests_makes_its_answers_unknown() {
    let entries = many(0..600);
    let (name, bytes) = old(&entries);
    let asked = &entries[..3];
    for at in (4..bytes.len()).step_by(bytes.len() / 50) {
        assert_eq!(known(&bytes, &name, at, asked, None).await, 0, "byte {at}");
    }
}

#[tokio::test]
async fn an_upload_replaces_the_damaged_object_in_its_place() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let segment = segment::encode(&[entry(1, "paid", 1)]).expect("encodes");
    put(&store, &segment.name, "damaged".into()).await;
    let (a, b) = (Folder::new(), Folder::new());
    let memo = open(&store, &a).await;
    assert!(memo.is_empty());
    memo.record(key(1), &answer("paid", 1)).await.expect("records");
    memo.flush().await.expect("flushes");
    assert_eq!(found(&memo, &key(1)).await, Some(answer("paid", 1)));
    assert_eq!(found(&open(&store, &b).await, &key(1)).await, Some(answer("paid", 1)));
}
