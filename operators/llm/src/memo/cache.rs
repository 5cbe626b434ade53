//! Whole segments in memory, bounded by bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::segment::Whole;

/// Holds the segments that were used last.
pub(super) struct Cache {
    limit: usize,
    segments: HashMap<u32, (Arc<Whole>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    /// Holds segments of `limit` bytes together, or a single one that is larger.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, segments: HashMap::new(), bytes: 0, clock: 0 }
    }

    /// The segment with this number.
    pub(super) fn get(&mut self, number: u32) -> Option<Arc<Whole>> {
        self.clock += 1;
        let (whole, used) = self.segments.get_mut(&number)?;
        *used = self.clock;
        Some(Arc::clone(whole))
    }

    /// Takes a segment in, in the place of those that weren't used for the longest time.
    pub(super) fn put(&mut self, number: u32, whole: Arc<Whole>) {
        self.remove(number);
        while self.bytes + whole.bytes > self.limit
            && let Some(number) = self.segments.iter().min_by_key(|(_, (_, used))| *used).map(|(number, _)| *number)
        {
            self.remove(number);
        }
        self.clock += 1;
        self.bytes += whole.bytes;
        self.segments.insert(number, (whole, self.clock));
    }

    /// Lets a segment go.
    pub(super) fn remove(&mut self, number: u32) {
        if let Some((whole, _)) = self.segments.remove(&number) {
            self.bytes -= whole.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment;
    use super::super::tests::{entry, key};
    use super::*;

    #[test]
    fn what_was_not_used_for_long_goes_first() {
        let segment = segment::encode(&[entry(1, "one", 1)]).expect("encodes");
        let whole = Arc::new(Whole::decode(segment.bytes, &segment.name).expect("decodes"));
        let mut cache = Cache::new(2 * whole.bytes + whole.bytes / 2);
        cache.put(1, Arc::clone(&whole));
        cache.put(2, Arc::clone(&whole));
        assert!(cache.get(1).is_some());
        cache.put(3, Arc::clone(&whole));
        cache.put(3, Arc::clone(&whole));
        assert_eq!([1, 2, 3].map(|number| cache.get(number).is_some()), [true, false, true]);
        assert_eq!(cache.bytes, 2 * whole.bytes);
        cache.limit = 1;
        cache.put(4, Arc::clone(&whole));
        assert_eq!([1, 3, 4].map(|number| cache.get(number).is_some()), [false, false, true]);
        let answer = cache.get(4).map(|whole| whole.row(0, &key(1)));
        assert!(matches!(answer, Some(segment::Row::Answer(_))));
    }
}
