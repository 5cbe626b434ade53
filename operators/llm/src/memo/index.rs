//! Where answers lie: 16 bytes in memory for each.

use std::collections::HashSet;

use super::key::Key;

/// A row of a segment. Segments are numbered by whoever opened them, in the order in which they were met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) row: u32,
}

/// A place with the beginning of the key whose answer lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    prefix: u64,
    place: Place,
}

impl Entry {
    pub(super) fn new(key: &Key, segment: u32, row: u32) -> Self {
        Self { prefix: prefix(key), place: Place { segment, row } }
    }
}

/// Keys are hashes: two of 10 million share their first 64 bits in one of 370,000 cases. Whoever follows an entry checks the
/// rest.
fn prefix(key: &Key) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Entries in a few sorted runs, each at least twice as long as the next: adding is cheap over time, and few runs are searched.
#[derive(Default)]
pub(super) struct Index {
    runs: Vec<Vec<Entry>>,
    /// Places whose answers turned out to be damaged.
    damaged: HashSet<Place>,
}

impl Index {
    /// Takes entries in, in any order.
    pub(super) fn add(&mut self, mut entries: Vec<Entry>) {
        entries.sort_unstable();
        if !entries.is_empty() {
            self.runs.push(entries);
        }
        while let [.., longer, shorter] = &self.runs[..]
            && longer.len() < 2 * shorter.len()
            && let (Some(shorter), Some(mut longer)) = (self.runs.pop(), self.runs.pop())
        {
            longer.extend(shorter);
            // A stable sort finds the two runs and merges them.
            longer.sort();
            self.runs.push(longer);
        }
    }

    /// Forgets the segments with these numbers.
    pub(super) fn forget(&mut self, segments: &HashSet<u32>) {
        if segments.is_empty() {
            return;
        }
        for run in &mut self.runs {
            run.retain(|entry| !segments.contains(&entry.place.segment));
        }
        self.damaged.retain(|place| !segments.contains(&place.segment));
        let runs = std::mem::take(&mut self.runs);
        runs.into_iter().for_each(|run| self.add(run));
    }

    /// Counts the answer at a place as unknown from now on.
    pub(super) fn leave_out(&mut self, place: Place) {
        self.damaged.insert(place);
    }

    /// Where an answer under `key` may lie.
    pub(super) fn places(&self, key: &Key) -> Vec<Place> {
        self.entries(prefix(key)).collect()
    }

    /// Whether an answer may lie under `key`.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.entries(prefix(key)).next().is_some()
    }

    fn entries(&self, prefix: u64) -> impl Iterator<Item = Place> {
        self.runs.iter().flat_map(move |run| within(run, prefix)).map(|entry| entry.place).filter(|p| !self.damaged.contains(p))
    }

    /// How many keys there are; two that begin with the same 64 bits count once. Takes time that grows with their number.
    pub(super) fn len(&self) -> usize {
        if !self.damaged.is_empty() {
            let places = self.runs.iter().flatten().filter(|entry| !self.damaged.contains(&entry.place));
            return places.map(|entry| entry.prefix).collect::<HashSet<u64>>().len();
        }
        let mut keys = 0;
        for (n, run) in self.runs.iter().enumerate() {
            let distinct = run.chunk_by(|a, b| a.prefix == b.prefix).filter_map(|same| same.first());
            keys += distinct.filter(|entry| self.runs[..n].iter().all(|run| within(run, entry.prefix).is_empty())).count();
        }
        keys
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.iter().flatten().all(|entry| self.damaged.contains(&entry.place))
    }
}

/// The entries of a sorted run with this prefix.
fn within(run: &[Entry], prefix: u64) -> &[Entry] {
    let run = &run[run.partition_point(|entry| entry.prefix < prefix)..];
    let same = run.iter().take_while(|entry| entry.prefix == prefix).count();
    &run[..same]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u64, last: u8) -> Key {
        let mut key = [last; 32];
        key[..8].copy_from_slice(&first.to_be_bytes());
        Key::from_bytes(key)
    }

    fn entries(keys: impl Iterator<Item = u64>, segment: u32) -> Vec<Entry> {
        keys.zip(0..).map(|(first, row)| Entry::new(&key(first, 0), segment, row)).collect()
    }

    #[test]
    fn an_entry_takes_16_bytes() {
        assert_eq!(size_of::<Entry>(), 16);
    }

    #[test]
    fn runs_are_few_and_find_everything() {
        let mut index = Index::default();
        assert!(index.is_empty());
        for segment in 0..100 {
            let first = u64::from(segment) * 7919 % 100;
            index.add(entries((0..50).map(|n| first + n * 100), segment));
        }
        assert!(index.runs.len() <= 8, "{} runs", index.runs.len());
        assert!(index.runs.windows(2).all(|pair| pair[0].len() >= 2 * pair[1].len()));
        assert!(index.runs.iter().all(|run| run.is_sorted()));
        assert_eq!(index.len(), 5000);
        for n in 0..5000 {
            let segment = (0..100).find(|segment| segment * 7919 % 100 == n % 100).expect("one of them") as u32;
            assert_eq!(index.places(&key(n, 1)), [Place { segment, row: (n / 100) as u32 }]);
        }
        assert!(!index.contains(&key(5000, 0)));
    }

    #[test]
    fn a_key_may_lie_at_several_places() {
        let mut index = Index::default();
        index.add(entries([1, 2, 3].into_iter(), 0));
        index.add(entries([2].into_iter(), 1));
        index.add(entries([3, 2, 9].into_iter(), 2));
        assert_eq!(index.len(), 4);
        let mut places = index.places(&key(2, 0));
        places.sort();
        assert_eq!(places, [(0, 1), (1, 0), (2, 1)].map(|(segment, row)| Place { segment, row }));
        places.iter().for_each(|place| index.leave_out(*place));
        assert!(!index.contains(&key(2, 0)));
        assert_eq!(index.len(), 3);
        index.forget(&HashSet::from([0, 2]));
        assert_eq!(index.len(), 0);
        assert!(index.is_empty());
    }
}
