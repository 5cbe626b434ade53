//! In which order the rows of several sources come, as a function of their ids, lengths and weights.

use std::cmp::Ordering;

/// One unit of a weight, or of a share, is so many of the order's integers: they have at most nine decimals.
pub(crate) const SCALE: u64 = 1_000_000_000;
/// The number of the replay source, whatever sources there are.
pub(crate) const REPLAY: u32 = u32::MAX;

/// A row as the order sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A hash of its `row_id`.
    pub(crate) id: [u8; 16],
    /// Its tokens; at least 1.
    pub(crate) tokens: u32,
}

/// A source as the order sees it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its place in the list of sources, which enters the hashes.
    pub(crate) number: u32,
    /// From [`integer`]; not 0.
    pub(crate) weight: u64,
    /// Its rows; not empty.
    pub(crate) rows: Vec<Entry>,
}

/// A place in the mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the sources, by its place among those given to [`Order::new`].
    pub(crate) source: usize,
    /// Which of its rows.
    pub(crate) row: usize,
    /// How often the row has come before.
    pub(crate) repeat: u32,
    /// Its tokens.
    pub(crate) tokens: u32,
}

/// A weight as an integer, exactly; `None` if it is negative, has more than nine decimals or is over a billion.
pub(crate) fn integer(weight: f64) -> Option<u64> {
    if !(0.0..=SCALE as f64).contains(&weight) {
        return None;
    }
    // The shortest decimal text that reads back as this float is what the user wrote.
    let text = weight.abs().to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    if decimals.len() > 9 {
        return None;
    }
    let decimals: u64 = format!("{decimals:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SCALE)?.checked_add(decimals)
}

/// The endless merge of the sources' endless orders, ended by a budget or after one pass. A replay source, the last if there is
/// one, comes where it is behind its share of all tokens, and leaves the others' order among themselves alone.
///
/// Holds per row of a source, beside the source itself, 4 bytes, and 32 more while a repeat is being sorted.
#[derive(Debug)]
pub(crate) struct Order {
    sources: Vec<Source>,
    cursors: Vec<Cursor>,
    has_replay: bool,
    seed: u64,
    budget: Option<u64>,
    tokens: u64,
}

#[derive(Debug)]
struct Cursor {
    /// Tokens of this source so far.
    before: u64,
    repeat: u32,
    rows: Vec<u32>,
    next: usize,
}

impl Order {
    /// Starts the order. `budget` is the number of tokens that the last row reaches; `None` ends when every source has
    /// come once, which is when the source that is largest for its weight has: none is cut, and it isn't repeated. The weight of
    /// `replay` is its share of all tokens: under [`SCALE`].
    pub(crate) fn new(mut sources: Vec<Source>, replay: Option<Source>, seed: u64, budget: Option<u64>) -> Self {
        let has_replay = replay.is_some();
        sources.extend(replay);
        let cursors =
            sources.iter().map(|source| Cursor { before: 0, repeat: 0, rows: sorted(source, seed, 0), next: 0 }).collect();
        Self { sources, cursors, has_replay, seed, budget, tokens: 0 }
    }

    /// How many sources there are, replay not counted.
    fn weighted(&self) -> usize {
        self.sources.len() - usize::from(self.has_replay)
    }

    fn ended(&self) -> bool {
        match self.budget {
            Some(budget) => self.tokens >= budget,
            None => self.cursors[..self.weighted()].iter().all(|cursor| cursor.repeat > 0),
        }
    }

    /// Replay, if it has less than its share of the tokens so far; else the source that is furthest behind its weight: the
    /// smallest of tokens so far over weight, then the first.
    fn behind(&self) -> Option<usize> {
        let weighted = self.weighted();
        if let (Some(replay), Some(cursor)) = (self.sources.get(weighted), self.cursors.get(weighted)) {
            let (share, others) = (u128::from(replay.weight), u128::from(self.tokens - cursor.before));
            if u128::from(cursor.before) * (u128::from(SCALE) - share) < others * share {
                return Some(weighted);
            }
        }
        let place = |index: &usize| (self.cursors[*index].before, self.sources[*index].weight);
        (0..weighted).min_by(|a, b| {
            let ((tokens_a, weight_a), (tokens_b, weight_b)) = (place(a), place(b));
            let ratio = (u128::from(tokens_a) * u128::from(weight_b)).cmp(&(u128::from(tokens_b) * u128::from(weight_a)));
            ratio.then(self.sources[*a].number.cmp(&self.sources[*b].number))
        })
    }
}

impl Iterator for Order {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
        if self.ended() {
            return None;
        }
        let index = self.behind()?;
        let (source, cursor) = (&self.sources[index], &mut self.cursors[index]);
        let row = *cursor.rows.get(cursor.next)? as usize;
        let tokens = source.rows[row].tokens;
        let place = Place { source: index, row, repeat: cursor.repeat, tokens };
        cursor.before += u64::from(tokens);
        self.tokens += u64::from(tokens);
        cursor.next += 1;
        if cursor.next == cursor.rows.len() {
            cursor.repeat += 1;
            cursor.next = 0;
            if !self.ended() {
                let cursor = &mut self.cursors[index];
                cursor.rows = sorted(source, self.seed, cursor.repeat);
            }
        }
        Some(place)
    }
}

/// A repeat of a source: its rows by the hash of seed, source, repeat and row.
fn sorted(source: &Source, seed: u64, repeat: u32) -> Vec<u32> {
    let hash = |entry: &Entry| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"mix order").update(&seed.to_le_bytes()).update(&source.number.to_le_bytes());
        hasher.update(&repeat.to_le_bytes()).update(&entry.id);
        let mut first = [0; 16];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_le_bytes(first)
    };
    let mut rows: Vec<(u128, u32)> = source.rows.iter().zip(0..).map(|(entry, row)| (hash(entry), row)).collect();
    rows.sort_unstable_by(|a, b| match a.0.cmp(&b.0) {
        Ordering::Equal => source.rows[a.1 as usize].id.cmp(&source.rows[b.1 as usize].id),
        different => different,
    });
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32, weight: f64, lengths: &[u32]) -> Source {
        let row = |(n, tokens): (usize, &u32)| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(n as u64 + 1000 * u64::from(number)).to_le_bytes());
            Entry { id, tokens: *tokens }
        };
        let weight = integer(weight).expect("a weight");
        Source { number, weight, rows: lengths.iter().enumerate().map(row).collect() }
    }

    fn lengths(n: u32, salt: u32) -> Vec<u32> {
        (0..n).map(|row| 1 + (row * 7919 + salt * 104_729) % 97).collect()
    }

    fn tokens(places: &[Place], of: usize) -> u64 {
        places.iter().filter(|place| place.source == of).map(|place| u64::from(place.tokens)).sum()
    }

    #[test]
    fn a_smaller_budget_is_a_prefix() {
        let sources = vec![source(0, 1.0, &lengths(50, 1)), source(1, 1.0, &lengths(400, 2))];
        let whole: Vec<Place> = Order::new(sources.clone(), None, 7, Some(60_000)).collect();
        for budget in [1, 2, 500, 4_321, 30_000, 59_999] {
            let part: Vec<Place> = Order::new(sources.clone(), None, 7, Some(budget)).collect();
            assert_eq!(part, whole[..part.len()]);
            let sum = tokens(&part, 0) + tokens(&part, 1);
            let last = part.last().expect("a budget over 0 takes a row");
            assert!(sum >= budget && sum - u64::from(last.tokens) < budget);
        }
        let once: Vec<Place> = Order::new(sources, None, 7, None).collect();
        assert_eq!(once, whole[..once.len()]);
    }

    #[test]
    fn shares_follow_the_weights_everywhere() {
        for (a, b) in [(1.0, 1.0), (1.0, 8.0), (2.5, 0.5), (0.1, 0.3)] {
            let sources = vec![source(0, a, &lengths(60, 1)), source(1, b, &lengths(90, 2))];
            let places: Vec<Place> = Order::new(sources, None, 3, Some(50_000)).collect();
            for end in (100..places.len()).step_by(37) {
                let (of_a, of_b) = (tokens(&places[..end], 0) as f64, tokens(&places[..end], 1) as f64);
                // No source is ever ahead by more than a row of at most 97 tokens.
                assert!((of_a / a - of_b / b).abs() <= 97.0 / a.min(b), "{a}:{b} at {end}: {of_a}, {of_b}");
            }
        }
    }

    #[test]
    fn a_repeat_has_every_row_once_and_an_order_of_its_own() {
        let sources = vec![source(0, 1.0, &lengths(30, 1)), source(1, 1.0, &lengths(500, 2))];
        let places: Vec<Place> = Order::new(sources, None, 1, None).collect();
        let repeat = |n: u32| -> Vec<usize> {
            places.iter().filter(|place| place.source == 0 && place.repeat == n).map(|place| place.row).collect()
        };
        let (first, second) = (repeat(0), repeat(1));
        assert_ne!(first, second);
        for mut rows in [first, second] {
            rows.sort_unstable();
            assert_eq!(rows, (0..30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn without_a_budget_nothing_is_left_out_and_the_largest_comes_once() {
        // The first source ends in one long row, which starts before the second source's last.
        for (a, b) in [(vec![50, 50], vec![1; 99]), (vec![5; 20], vec![5; 20]), (lengths(9, 1), lengths(200, 2))] {
            let sources = vec![source(0, 1.0, &a), source(1, 1.0, &b)];
            let total = |rows: &[u32]| rows.iter().sum::<u32>();
            let largest = usize::from(total(&b) > total(&a));
            let places: Vec<Place> = Order::new(sources, None, 1, None).collect();
            for (number, rows) in [a.len(), b.len()].into_iter().enumerate() {
                let first = places.iter().filter(|place| place.source == number && place.repeat == 0).count();
                assert_eq!(first, rows);
            }
            assert!(places.iter().all(|place| place.source != largest || place.repeat == 0));
        }
    }

    #[test]
    fn a_change_in_one_source_leaves_the_others_order() {
        let of_second = |first: &[u32], seed: u64| -> Vec<(usize, u32)> {
            let sources = vec![source(0, 1.0, first), source(1, 1.0, &lengths(40, 2))];
            let places = Order::new(sources, None, seed, Some(20_000));
            places.filter(|place| place.source == 1).map(|place| (place.row, place.repeat)).take(150).collect()
        };
        let before = of_second(&lengths(40, 1), 7);
        assert_eq!(before.len(), 150);
        assert_eq!(before, of_second(&lengths(41, 5), 7));
        assert_ne!(before, of_second(&lengths(40, 1), 8));
    }

    #[test]
    fn a_new_row_leaves_the_order_of_the_rest() {
        let rows = |n: u32| -> Vec<usize> {
            Order::new(vec![source(0, 1.0, &lengths(n, 1))], None, 7, None).map(|place| place.row).collect()
        };
        let (before, mut after) = (rows(60), rows(61));
        after.retain(|row| *row != 60);
        assert_eq!(before, after);
    }

    #[test]
    fn replay_has_its_share_everywhere_and_leaves_the_rest_alone() {
        let sources = || vec![source(0, 1.0, &lengths(60, 1)), source(1, 2.0, &lengths(90, 2))];
        let share = |share: f64| Some(Source { weight: integer(share).unwrap(), ..source(REPLAY, 1.0, &lengths(40, 3)) });
        let without: Vec<Place> = Order::new(sources(), None, 3, Some(50_000)).collect();
        for of in [0.1, 0.5, 0.9] {
            let places: Vec<Place> = Order::new(sources(), share(of), 3, Some(50_000)).collect();
            for end in (1..places.len()).step_by(37) {
                let (replay, all) =
                    (tokens(&places[..end], 2) as f64, places[..end].iter().map(|place| f64::from(place.tokens)).sum::<f64>());
                assert!((replay - of * all).abs() <= 97.0, "{of} at {end}: {replay} of {all}");
            }
            let rest: Vec<Place> = places.into_iter().filter(|place| place.source < 2).collect();
            assert_eq!(rest, without[..rest.len()]);
        }
        let once = |replay| Order::new(sources(), replay, 3, None).filter(|place| place.source < 2).collect::<Vec<_>>();
        assert_eq!(once(share(0.5)), once(None));
    }

    #[test]
    fn weights_are_exact() {
        assert_eq!(integer(1.0), Some(SCALE));
        assert_eq!(integer(0.1), Some(100_000_000));
        assert_eq!(integer(2.000_000_001), Some(2_000_000_001));
        assert_eq!(integer(0.0), Some(0));
        assert_eq!(integer(-0.0), Some(0));
        for wrong in [-1.0, 1e-10, 0.333_333_333_333, 1e10, f64::NAN, f64::INFINITY] {
            assert_eq!(integer(wrong), None, "{wrong}");
        }
    }
}
