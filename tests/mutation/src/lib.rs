//! Input that nobody meant: arbitrary, or real input changed in places. For property tests of what is read from outside.
//!
//! ```text
//! PROPTEST_CASES=20000 cargo test --release --workspace fuzz
//! ```
//!
//! Without `PROPTEST_CASES` every property sees the same few cases each time, so that no change fails by another's bad luck;
//! with it, as many as it says, and others each time.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use proptest::{
    collection::vec,
    prelude::{Just, any, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
pub use proptest::{sample, strategy, strategy::Strategy};

/// How long one failing case is made smaller.
const SHRINKING: Duration = Duration::from_secs(20);
/// The most that a case is changed.
const MOST_CHANGES: usize = 6;
/// No changed input is longer.
const LONGEST: usize = 64 << 10;

/// Numbers at which arithmetic on sizes and places ends.
const NUMBERS: [u64; 12] =
    [0, 1, 7, 127, 255, 65_535, (1 << 31) - 1, 1 << 31, u32::MAX as u64, i64::MAX as u64, 1 << 63, u64::MAX];

/// Words that readers of any text stumble over.
const WORDS: [&str; 44] = [
    "",
    " ",
    "\0",
    "\t",
    "\r\n",
    "\u{FEFF}",
    "\u{2028}",
    "\u{1F600}",
    "e\u{301}",
    "\u{202E}",
    "\u{7F}",
    "\u{1B}[31m",
    "0",
    "-0",
    "-1",
    "1e309",
    "1e-320",
    "NaN",
    "inf",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "0.1e1",
    "00",
    "null",
    "true",
    "{",
    "}",
    "[",
    "]",
    "{}",
    "[]",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    ":",
    ",",
    "../../x",
    "/etc/passwd",
    "a/../b",
    "${",
    "%00",
];

/// Runs `property` on `default` inputs, or on as many as `PROPTEST_CASES` says. A property fails by panicking; the input is
/// then made as small as it still fails with.
///
/// # Panics
/// With the smallest input found, where the property fails.
pub fn holds<S: Strategy>(default: u32, inputs: &S, property: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: asked.unwrap_or(default),
        failure_persistence: None,
        max_shrink_iters: 10_000,
        max_shrink_time: u32::try_from(SHRINKING.as_millis()).unwrap_or(u32::MAX),
        ..Config::default()
    };
    let mut runner = match asked {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let run = runner.run(inputs, |input| {
        property(input);
        Ok(())
    });
    if let Err(failed) = run {
        panic!("{failed}");
    }
}

/// Does `work` and checks that this thread was at it for no longer than `most`. Time in which others had the processor doesn't
/// count where the system tells.
///
/// # Panics
/// When it was.
pub fn within<T>(most: Duration, work: impl FnOnce() -> T) -> T {
    let (started, busy) = (Instant::now(), on_processor());
    let done = work();
    let took = match (busy, on_processor()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => started.elapsed(),
    };
    assert!(took <= most, "took {took:?}, and may take {most:?}");
    done
}

fn on_processor() -> Option<Duration> {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    said.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Any bytes.
pub fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=longest)
}

/// Any text, of characters that mean something to most readers and of any others.
pub fn text(longest: usize) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z0-9_]{1,8}",
        3 => "[ \\n:,.=<>/#*&|!%@`'\"\\\\(){}\\[\\]$~+-]{1,3}",
        2 => select(&WORDS[..]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    vec(piece, 0..=longest / 3).prop_map(|pieces| pieces.concat())
}

/// Text put together from `words`, from what most readers stumble over, and from little else.
pub fn worded(words: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => select(words).prop_map(str::to_owned),
        1 => select(&WORDS[..]).prop_map(str::to_owned),
        1 => "[a-z0-9_]{1,4}",
    ];
    vec(piece, 0..=most).prop_map(|pieces| pieces.concat())
}

/// One of `seeds` with some changes; words are replaced by `words`, too.
pub fn mutated(seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    assert!(!seeds.is_empty(), "there is something to change");
    let kinds = vec(change(words), 1..=MOST_CHANGES);
    (any::<Index>(), any::<Index>(), kinds).prop_map(move |(seed, other, changes)| {
        let (seed, other): (&Vec<u8>, &Vec<u8>) = (seed.get(&seeds), other.get(&seeds));
        let mut bytes = seed.clone();
        for change in changes {
            change.apply(&mut bytes, other);
            bytes.truncate(LONGEST.max(seed.len() * 2));
        }
        bytes
    })
}

/// As [`mutated`], where what isn't UTF-8 any more is replaced.
pub fn mutated_text<T: AsRef<str>>(seeds: &[T], words: &'static [&'static str]) -> impl Strategy<Value = String> + use<T> {
    let seeds = seeds.iter().map(|seed| seed.as_ref().as_bytes().to_vec()).collect();
    mutated(seeds, words).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// One change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Truncate(Index),
    Cut(Index, usize),
    /// A piece stands there several times more.
    Repeat(Index, usize, usize),
    Insert(Index, Vec<u8>),
    /// A byte order mark stands in front.
    Mark,
    /// A piece of another input stands there, too.
    Splice(Index, Index, usize),
    /// A word is another one.
    Word(Index, String),
    /// A line stands somewhere else.
    Line(Index, Index),
    /// A number in as many bytes, the lowest first.
    Number(Index, u64, usize),
}

fn change(words: &'static [&'static str]) -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    let word = move || {
        let general = select(&WORDS[..]).prop_map(str::to_owned);
        let number = select(&NUMBERS[..]).prop_map(|number| number.to_string());
        let long =
            (select(&["a", "[", "{a: ", "(", "9", "\u{e9}"][..]), 1_usize..3000).prop_map(|(one, times)| one.repeat(times));
        let own = match words {
            [] => general.clone().boxed(),
            words => select(words).prop_map(str::to_owned).boxed(),
        };
        prop_oneof![4 => own, 3 => general, 2 => number, 1 => long]
    };
    prop_oneof![
        3 => (at(), 0_u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => at().prop_map(Change::Truncate),
        2 => (at(), 1_usize..64).prop_map(|(at, length)| Change::Cut(at, length)),
        2 => (at(), 1_usize..64, 1_usize..20).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        2 => (at(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (at(), word()).prop_map(|(at, word)| Change::Insert(at, word.into_bytes())),
        2 => (at(), at(), 1_usize..256).prop_map(|(at, from, length)| Change::Splice(at, from, length)),
        5 => (at(), word()).prop_map(|(at, word)| Change::Word(at, word)),
        2 => (at(), at()).prop_map(|(from, to)| Change::Line(from, to)),
        2 => (at(), select(&NUMBERS[..]), select(&[1_usize, 2, 4, 8][..]))
            .prop_map(|(at, number, width)| Change::Number(at, number, width)),
        1 => Just(Change::Mark),
    ]
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>, other: &[u8]) {
        let place = |at: Index, bytes: &[u8]| at.index(bytes.len() + 1);
        let piece = |at: usize, length: usize, bytes: &[u8]| at..(at + length).min(bytes.len());
        match self {
            Self::Flip(..) | Self::Set(..) if bytes.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Self::Truncate(at) => bytes.truncate(place(at, bytes)),
            Self::Cut(at, length) => {
                bytes.drain(piece(place(at, bytes), length, bytes));
            }
            Self::Repeat(at, length, times) => {
                let at = place(at, bytes);
                let repeated = bytes[piece(at, length, bytes)].repeat(times);
                bytes.splice(at..at, repeated);
            }
            Self::Insert(at, more) => {
                let at = place(at, bytes);
                bytes.splice(at..at, more);
            }
            Self::Mark => drop(bytes.splice(..0, *b"\xEF\xBB\xBF")),
            Self::Splice(at, from, length) => {
                let (at, from) = (place(at, bytes), place(from, other));
                bytes.splice(at..at, other[piece(from, length, other)].iter().copied());
            }
            Self::Word(at, word) => {
                let at = word_at(place(at, bytes), bytes);
                bytes.splice(at, word.into_bytes());
            }
            Self::Line(from, to) => {
                let from = line_at(place(from, bytes), bytes);
                let line: Vec<u8> = bytes.drain(from).collect();
                let to = line_at(place(to, bytes), bytes).start;
                bytes.splice(to..to, line);
            }
            Self::Number(at, number, width) => {
                let at = place(at, bytes);
                let number = number.to_le_bytes();
                bytes.splice(piece(at, width, bytes), number[..width].iter().copied());
            }
        }
    }
}

/// The word that a place is in, or that comes next, or the last one.
fn word_at(at: usize, bytes: &[u8]) -> std::ops::Range<usize> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'+');
    let start = (at..bytes.len()).find(|&at| is_word(&bytes[at])).unwrap_or(bytes.len());
    let start = (0..start).rev().take_while(|&at| is_word(&bytes[at])).last().unwrap_or(start);
    let end = (start..bytes.len()).find(|&at| !is_word(&bytes[at])).unwrap_or(bytes.len());
    start..end
}

/// The line that a place is in, with its end.
fn line_at(at: usize, bytes: &[u8]) -> std::ops::Range<usize> {
    let at = at.min(bytes.len());
    let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |end| at + end + 1);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_words_and_lines_are_found() {
        assert_eq!(word_at(1, b"ab cd"), 0..2);
        assert_eq!(word_at(2, b"ab cd"), 3..5);
        assert_eq!(word_at(9, b"ab"), 0..2);
        assert_eq!(line_at(2, b"a\nbc\nd"), 2..5);
        assert_eq!(line_at(6, b"a\nbc\nd"), 5..6);
    }

    #[test]
    #[should_panic(expected = "minimal failing input")]
    fn fuzz_a_property_that_fails_says_with_what() {
        holds(64, &mutated(vec![b"a: 1\n".to_vec()], &[]), |bytes| assert!(bytes.len() < 100));
    }
}
