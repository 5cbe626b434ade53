//! Which rows go: candidates from equal bands, each verified on its texts.
//!
//! Entries are ranked by `row_id`. Entries that agree in a band form a bucket of that band; an entry's link in a band is the
//! rank before its own in the bucket. Entries that are connected by links, however far, form a cluster. Clusters have nothing
//! to do with each other and are settled at the same time, each in the order of its ranks.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use ingrain_engine::failure::Failure;
use rayon::{
    iter::{IntoParallelIterator, ParallelIterator},
    slice::{ParallelSlice, ParallelSliceMut},
};

use super::{
    index::{Index, TextReader},
    ngrams::jaccard,
};

/// A row that goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Removal {
    /// Its place in the table.
    pub(super) position: u32,
    /// The entry of the row that stays for it.
    pub(super) kept: u32,
    /// How similar they are.
    pub(super) similarity: f64,
}

/// No entry before this one in a bucket.
const NONE: u32 = u32::MAX;
/// How many n-grams of rows that stay are held while a cluster is settled; past it they are read again.
const HELD_GRAMS: usize = 1 << 20;

/// The rows that go, by position: in the order of `row_id`, each whose similarity to one that stays is at least `similarity`.
/// Takes the hashes out of the index.
///
/// # Errors
/// When the texts can't be read back.
pub(super) fn removals(index: &mut Index, similarity: f64) -> Result<Vec<Removal>, Failure> {
    index.flush()?;
    let links = std::mem::take(&mut index.hashes).into_iter().map(AtomicU32::new).collect();
    let removed = (0..index.entries.len()).map(|_| AtomicBool::new(false)).collect();
    let search = Search { order: order(index), index, links, removed, similarity };
    search.link();
    let clusters = search.clusters();
    let removals: Vec<Vec<Removal>> = clusters
        .par_chunk_by(|a, b| a.root == b.root)
        .map_init(
            || search.index.reader(),
            |reader, cluster| match reader {
                Ok(reader) => search.settle(cluster, reader),
                Err(failure) => Err(failure.clone()),
            },
        )
        .collect::<Result<_, Failure>>()?;
    let mut removals = removals.concat();
    removals.par_sort_unstable_by_key(|removal| removal.position);
    Ok(removals)
}

/// The entries by `row_id`: from ranks to entries.
fn order(index: &Index) -> Vec<u32> {
    let beginning = |entry: u32| {
        let id = index.id(entry).as_bytes();
        let mut first = [0; 8];
        let bytes = id.len().min(8);
        first[..bytes].copy_from_slice(&id[..bytes]);
        u64::from_be_bytes(first)
    };
    let mut keys: Vec<(u64, u32)> = (0..index.entries.len() as u32).map(|entry| (beginning(entry), entry)).collect();
    keys.par_sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| index.id(*x).cmp(index.id(*y))));
    keys.into_iter().map(|(_, entry)| entry).collect()
}

/// The smallest rank that `rank` is connected with so far.
fn root(parents: &mut [u32], mut rank: u32) -> u32 {
    while parents[rank as usize] != rank {
        let parent = parents[rank as usize];
        parents[rank as usize] = parents[parent as usize];
        rank = parent;
    }
    rank
}

struct Search<'a> {
    index: &'a Index,
    order: Vec<u32>,
    /// By entry and band: first the band's hash, then the link. Atomic, because different threads write different places.
    links: Vec<AtomicU32>,
    /// By rank.
    removed: Vec<AtomicBool>,
    similarity: f64,
}

/// A rank in a cluster of several; its root is the smallest rank there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    root: u32,
    rank: u32,
}

impl Search<'_> {
    fn slot(&self, rank: u32, band: usize) -> &AtomicU32 {
        &self.links[self.order[rank as usize] as usize * self.index.bands() + band]
    }

    /// Turns hashes into links.
    fn link(&self) {
        (0..self.index.bands()).into_par_iter().for_each_init(Vec::new, |keys, band| {
            keys.clear();
            let ranks = 0..self.order.len() as u32;
            keys.extend(ranks.map(|rank| u64::from(self.slot(rank, band).load(Relaxed)) << 32 | u64::from(rank)));
            keys.sort_unstable();
            let mut before = None;
            for key in &*keys {
                let (hash, rank) = (key >> 32, *key as u32);
                let link = before.filter(|(other, _)| *other == hash).map_or(NONE, |(_, rank)| rank);
                self.slot(rank, band).store(link, Relaxed);
                before = Some((hash, rank));
            }
        });
    }

    /// The members of all clusters, cluster by cluster, each by rank. Ranks that agree with no other are left out.
    fn clusters(&self) -> Vec<Member> {
        let mut parents: Vec<u32> = (0..self.order.len() as u32).collect();
        for rank in 0..self.order.len() as u32 {
            for band in 0..self.index.bands() {
                let link = self.slot(rank, band).load(Relaxed);
                if link != NONE {
                    let (a, b) = (root(&mut parents, rank), root(&mut parents, link));
                    parents[a.max(b) as usize] = a.min(b);
                }
            }
        }
        let mut members = Vec::new();
        for rank in 0..self.order.len() as u32 {
            let root = root(&mut parents, rank);
            if root != rank {
                members.push(Member { root, rank });
            }
        }
        let mut roots: Vec<Member> = members.iter().map(|member| Member { root: member.root, rank: member.root }).collect();
        roots.par_sort_unstable();
        roots.dedup();
        members.append(&mut roots);
        members.par_sort_unstable();
        members
    }

    /// The rows of a cluster that go.
    fn settle(&self, cluster: &[Member], reader: &mut TextReader) -> Result<Vec<Removal>, Failure> {
        let mut removals = Vec::new();
        let mut candidates = Vec::new();
        let mut held: HashMap<u32, Vec<u64>> = HashMap::new();
        let mut held_grams = 0;
        for member in cluster {
            self.candidates(member.rank, &mut candidates);
            if candidates.is_empty() {
                continue;
            }
            let entry = self.order[member.rank as usize];
            let group = self.index.entries[entry as usize].group;
            let own = self.index.grams(entry, reader)?;
            for rank in candidates.drain(..) {
                let kept = self.order[rank as usize];
                if self.index.entries[kept as usize].group != group {
                    continue;
                }
                if !held.contains_key(&rank) {
                    if held_grams > HELD_GRAMS {
                        held.clear();
                        held_grams = 0;
                    }
                    let grams = self.index.grams(kept, reader)?;
                    held_grams += grams.len();
                    held.insert(rank, grams);
                }
                let similarity = jaccard(&own, &held[&rank]);
                if similarity >= self.similarity {
                    self.removed[member.rank as usize].store(true, Relaxed);
                    removals.push(Removal { position: self.index.entries[entry as usize].position, kept, similarity });
                    break;
                }
            }
        }
        Ok(removals)
    }

    /// The ranks before `rank` that stay and agree with it in a band, ascending. Called once for each rank of a cluster, in
    /// their order: the links of those before lead only to ranks that stay, and so do its own from then on.
    fn candidates(&self, rank: u32, candidates: &mut Vec<u32>) {
        candidates.clear();
        for band in 0..self.index.bands() {
            let own = self.slot(rank, band);
            let mut before = own.load(Relaxed);
            if before != NONE && self.removed[before as usize].load(Relaxed) {
                before = self.slot(before, band).load(Relaxed);
                own.store(before, Relaxed);
            }
            while before != NONE {
                candidates.push(before);
                before = self.slot(before, band).load(Relaxed);
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
    }
}
