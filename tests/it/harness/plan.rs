//! What a case does to its runs: all of it follows from its seed.

use std::time::Duration;

use super::{chance::Chance, teacher};

/// What kind of misfortune a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// kill -9 at a write.
    Writes,
    /// kill -9 around an answer of the teacher.
    Answers,
    /// A store whose requests fail.
    Store,
    /// A teacher that fails.
    Teacher,
    /// Two runs at once.
    Race,
}

/// Where a write is when its process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    /// With half of the object written down beside it. Only on a local store.
    Torn,
    After,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    pub(super) is_on_s3: bool,
}

/// The disturbance of a run, or of two at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempt {
    pub(super) seed: u64,
    /// At which put of a step the first run is killed.
    pub(super) write: Option<(&'static str, u64, Moment)>,
    /// At which request to the teacher the first run is killed.
    pub(super) answer: Option<(u64, teacher::Moment)>,
    /// One request to the store in so many fails.
    pub(super) store: Option<u64>,
    /// One request to the teacher in so many fails.
    pub(super) teacher: Option<u64>,
    pub(super) is_race: bool,
}

/// The steps of a run that write, and at most how many puts of each a run of the pipeline makes for sure.
pub(super) const STEPS: [(&str, u64); 9] = [
    ("partition", 8),
    ("action", 6),
    ("memo", 1),
    ("manifest", 6),
    ("part", 10),
    ("run", 1),
    ("budget", 1),
    ("format", 1),
    ("lease", 2),
];
pub(super) const MOMENTS: [Moment; 3] = [Moment::Before, Moment::After, Moment::Torn];

/// Places of a kill at a write.
const PLACES: u64 = (STEPS.len() * MOMENTS.len()) as u64;

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Writes, Self::Answers, Self::Store, Self::Teacher, Self::Race];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Writes => "kill at a write",
            Self::Answers => "kill at an answer",
            Self::Store => "store faults",
            Self::Teacher => "teacher faults",
            Self::Race => "two runs at once",
        }
    }
}

impl Moment {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Torn => "torn",
            Self::After => "after",
        }
    }
}

impl Case {
    /// Half of all cases are kills at writes: there are most places for those.
    pub(super) fn new(seed: u64) -> Self {
        use Kind::{Answers, Race, Store, Teacher, Writes};
        let kind = [Writes, Answers, Writes, Store, Writes, Teacher, Writes, Race][(seed % 8) as usize];
        let turn = if kind == Writes { seed / 2 + seed / 2 / PLACES } else { seed / 8 };
        let is_on_s3 = turn % 2 == 1;
        Self { seed, kind, is_on_s3 }
    }

    /// Numbers for everything that isn't laid down by the case's place among others.
    pub(super) fn chance(self) -> Chance {
        Chance::new(self.seed.wrapping_mul(0x9e6c_63d0_876a_68ee))
    }

    /// The attempts that are disturbed. Those after them aren't.
    pub(super) fn attempts(self, chance: &mut Chance) -> Vec<Attempt> {
        let count = match self.kind {
            Kind::Writes => 3,
            Kind::Race => 1 + chance.below(2),
            Kind::Store => 2 + chance.below(3),
            _ => 1 + chance.below(3),
        };
        (0..count).map(|number| self.attempt(number, chance)).collect()
    }

    fn attempt(self, number: u64, chance: &mut Chance) -> Attempt {
        let mut attempt = Attempt { seed: chance.next(), is_race: self.kind == Kind::Race, ..Attempt::default() };
        match self.kind {
            Kind::Writes => {
                // Each place comes first once in so many cases: after a kill, some writes aren't made any more.
                let place = ([1, 5, 7][number as usize] * (self.seed / 2) + [0, 11, 3][number as usize]) % PLACES;
                let (step, puts) = STEPS[(place % STEPS.len() as u64) as usize];
                let moment = MOMENTS[(place / STEPS.len() as u64) as usize];
                let moment = if self.is_on_s3 && moment == Moment::Torn { Moment::After } else { moment };
                // After a kill less is left to do.
                let puts = if number == 0 { puts } else { puts.min(3) };
                attempt.write = Some((step, 1 + chance.below(puts), moment));
                attempt.teacher = chance.one_in(4).then_some(12);
            }
            Kind::Answers => {
                attempt.answer = Some(self.around_an_answer(chance));
                attempt.store = chance.one_in(3).then_some(60);
            }
            Kind::Store => {
                attempt.store = Some(10 + chance.below(40));
                attempt.answer = chance.one_in(4).then(|| self.around_an_answer(chance));
            }
            Kind::Teacher => attempt.teacher = Some(4 + chance.below(12)),
            Kind::Race => match chance.below(4) {
                0 => attempt.answer = Some(self.around_an_answer(chance)),
                1 => {
                    let (step, puts) = chance.of(&STEPS[..5]);
                    let moment = if self.is_on_s3 { chance.of(&MOMENTS[..2]) } else { chance.of(&MOMENTS) };
                    attempt.write = Some((step, 1 + chance.below(puts), moment));
                }
                2 => attempt.teacher = Some(12),
                _ => {}
            },
        }
        attempt
    }

    fn around_an_answer(self, chance: &mut Chance) -> (u64, teacher::Moment) {
        let moment = match chance.below(3) {
            0 => teacher::Moment::Before,
            1 => teacher::Moment::After(Duration::ZERO),
            _ => teacher::Moment::After(Duration::from_millis(1 + chance.below(30))),
        };
        (1 + chance.below(16), moment)
    }
}

/// The step that writes an object of a store.
pub(super) fn step(key: &str) -> &'static str {
    let mut folders = key.split('/');
    match folders.next().unwrap_or_default() {
        "parts" if key.ends_with(".json") && folders.count() == 2 => "partition",
        "parts" => "part",
        "manifests" => "manifest",
        "actions" if key.ends_with(".damaged") => "damage",
        "actions" => "action",
        "runs" => "run",
        "lineage" => "lineage",
        "memo" => "memo",
        "budget" => "budget",
        "leases" => "lease",
        "progress" => "progress",
        "format.json" => "format",
        _ => "other",
    }
}
