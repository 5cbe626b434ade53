//! What ran when: the records of runs, and how two of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    reason::Reason,
    resolve::{Arrival, differences},
};
use crate::{failure::Failure, operator::Registry, store::Store};

/// Records that are read at once.
const READS: usize = 16;

/// The record of a run, `runs/<pipeline>/<run>.json`. Members that a record of an older program hasn't got are empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id, a UUID of version 7.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file, on the machine that it ran on.
    #[serde(default)]
    pub file: PathBuf,
    /// blake3 of what the file said, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_digest: Option<String>,
    /// The program's version.
    #[serde(default)]
    pub version: String,
    /// How it ended.
    #[serde(default)]
    pub result: Option<Ending>,
    /// When it began, by its machine's clock.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// What became of each stage.
    #[serde(default)]
    pub stages: BTreeMap<String, StageRecord>,
    /// What went wrong, by stage.
    #[serde(default)]
    pub failures: BTreeMap<String, Failure>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every stage that was wanted is there.
    Done,
    /// A stage failed.
    Failed,
    /// Somebody stopped it.
    Interrupted,
}

/// What became of a stage in a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Its key; for a stage that the run gave no artifact, that of the run before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which filling of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Whether it ran and was committed.
    #[serde(default)]
    pub executed: bool,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StageState>,
    /// Digests of its outputs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, String>,
    /// What it read: by port, in the order of the port's list, stages and their outputs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reads: BTreeMap<String, Vec<(String, String)>>,
    /// Rows of its main output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows that it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejects: Option<u64>,
    /// What this run spent on it.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
}

/// What a stage took in one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Wall time.
    pub seconds: f64,
    /// Calls that a teacher answered.
    pub calls: u64,
    /// Answers found in the memo.
    pub memo_hits: u64,
    /// Tokens of the requests of these calls.
    pub input_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// What the calls cost, where the model's price is known, in dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
}

/// What became of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// It ran and was committed.
    Ran,
    /// The store had its artifact.
    Cached,
    /// It failed.
    Failed,
    /// The run ended while it ran.
    Interrupted,
    /// It needs a stage that failed.
    Skipped,
    /// The run didn't come to it.
    NotReached,
}

impl StageState {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Cached => "cached",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
            Self::NotReached => "not reached",
        }
    }
}

impl Ending {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl StageRecord {
    /// What became of it, in a record of any age.
    pub fn state(&self) -> StageState {
        let older = || match (self.executed, self.digests.is_empty()) {
            (true, _) => StageState::Ran,
            (false, false) => StageState::Cached,
            (false, true) => StageState::NotReached,
        };
        self.state.unwrap_or_else(older)
    }

    /// Whether the run had an artifact of it.
    fn is_there(&self) -> bool {
        !self.digests.is_empty()
    }
}

impl RunRecord {
    /// How it ended, in a record of any age.
    pub fn ending(&self) -> Ending {
        self.result.unwrap_or(if self.failures.is_empty() { Ending::Done } else { Ending::Failed })
    }

    /// When it began, in UTC: `2026-11-26 01:20:11`.
    pub fn started_utc(&self) -> String {
        self.started.format("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// Wall time, in seconds.
    pub fn seconds(&self) -> f64 {
        (self.finished - self.started).as_seconds_f64().max(0.0)
    }

    /// What it spent where prices are known, in dollars; `None` if it asked nothing that has a price.
    pub fn usd(&self) -> Option<f64> {
        let known: Vec<f64> = self.stages.values().filter_map(|stage| stage.took?.usd).collect();
        if known.is_empty() { None } else { Some(known.iter().sum()) }
    }

    /// How many stages it left in a state.
    pub fn count(&self, state: StageState) -> usize {
        self.stages.values().filter(|stage| stage.state() == state).count()
    }
}

/// The runs that have a record, newest first by the store's clock.
#[derive(Debug, Clone)]
pub struct Runs {
    found: Vec<(String, Path)>,
}

impl Runs {
    /// The runs of a pipeline on a store, or of all of them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn of(store: &Store, pipeline: Option<&str>) -> Result<Self, Failure> {
        let folder = Path::from_iter(["runs"].into_iter().chain(pipeline));
        let mut found = store.list(&folder).await?;
        found.sort_by(|a, b| (b.last_modified, &b.location).cmp(&(a.last_modified, &a.location)));
        let id = |path: &Path| Some(path.filename()?.strip_suffix(".json")?.to_owned());
        Ok(Self { found: found.into_iter().filter_map(|meta| Some((id(&meta.location)?, meta.location))).collect() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The records of the newest `limit` runs, with their numbers from 1. What can't be read is passed over.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn newest(&self, store: &Store, limit: usize) -> Result<Vec<(usize, RunRecord)>, Failure> {
        let reads = self.found.iter().take(limit).enumerate().map(|(place, (_, path))| async move {
            let content = store.read(path).await?;
            let record = content.and_then(|content| serde_json::from_slice(&content).ok());
            Ok::<_, Failure>(record.map(|record| (place + 1, record)))
        });
        let records: Vec<Option<(usize, RunRecord)>> = futures::stream::iter(reads).buffered(READS).try_collect().await?;
        Ok(records.into_iter().flatten().collect())
    }

    /// The record of the run that `written` means: its number (1 is the newest), its id, or at least four characters of the
    /// beginning or end of its id that no other one has.
    ///
    /// # Errors
    /// When there is none or more than one, or its record can't be read.
    pub async fn find(&self, store: &Store, written: &str) -> Result<RunRecord, Failure> {
        let (id, path) = &self.found[self.place(written)?];
        let content = store.read(path).await?;
        content.and_then(|content| serde_json::from_slice(&content).ok()).ok_or_else(|| {
            Failure::data(format!("the record of the run `{id}` can't be read"))
                .hint("it was written by a newer program, or is damaged")
        })
    }

    fn place(&self, written: &str) -> Result<usize, Failure> {
        let number = written.parse::<usize>().ok().filter(|_| !written.starts_with('0'));
        if let Some(number) = number.filter(|number| (1..=self.found.len()).contains(number)) {
            return Ok(number - 1);
        }
        let text = written.to_lowercase();
        let is_part = |id: &str| text.len() >= LEAST && (id.starts_with(&text) || id.ends_with(&text));
        let is_meant = |id: &str| id == text || is_part(id);
        let meant: Vec<usize> = (0..self.found.len()).filter(|place| is_meant(&self.found[*place].0)).collect();
        let ids = |places: &mut dyn Iterator<Item = usize>| {
            places.take(SHOWN).map(|place| format!("`{}`", self.found[place].0)).collect::<Vec<_>>().join(", ")
        };
        match meant.as_slice() {
            [one] => Ok(*one),
            [] if self.found.is_empty() => Err(Failure::data(format!("no run is called `{written}`: there are none"))),
            [] => {
                let mut nearest: Vec<usize> = (0..self.found.len()).collect();
                // The sort is stable: of equally near ones the newer come first.
                nearest.sort_by_key(|place| strsim::damerau_levenshtein(&self.found[*place].0, &text));
                Err(Failure::data(format!("no run is called `{written}`")).hint(format!(
                    "a run is named by its id, {LEAST} or more characters of its beginning or end, or its number, 1 to {}; the nearest \
                     ids are {}",
                    self.found.len(),
                    ids(&mut nearest.into_iter())
                )))
            }
            several => Err(Failure::data(format!("{} runs are called `{written}`", several.len()))
                .hint(format!("write more of the id: {}", ids(&mut several.iter().copied())))),
        }
    }
}

/// Ids that a message lists.
const SHOWN: usize = 5;
/// Characters of an id that may stand for it: fewer would fit some id by chance.
const LEAST: usize = 4;

/// How a stage differs between two runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum StageChange {
    /// It has the same key and filling.
    Same,
    /// It has the same key, filled again.
    Refilled {
        /// Which filling it was.
        old: u64,
        /// Which it is.
        new: u64,
    },
    /// Only the first run has it.
    OnlyInFirst,
    /// Only the second run has it.
    OnlyInSecond,
    /// Its key has changed.
    Changed {
        /// Why, the first difference first.
        reasons: Vec<Reason>,
    },
    /// Its key has changed, and what it was made of can't be read any more.
    Unknown {
        /// Why it can't.
        why: String,
    },
    /// A run has no artifact of it, so that there is nothing to compare.
    Absent {
        /// What became of it in the first run.
        old: StageState,
        /// What became of it in the second one.
        new: StageState,
    },
}

/// How each stage differs between two runs, by name.
///
/// # Errors
/// When the store fails.
pub async fn compare_runs(
    store: &Store,
    registry: &Registry,
    old: &RunRecord,
    new: &RunRecord,
) -> Result<BTreeMap<String, StageChange>, Failure> {
    let names: BTreeSet<&String> = old.stages.keys().chain(new.stages.keys()).collect();
    let mut changes = BTreeMap::new();
    for name in names {
        let change = match (old.stages.get(name), new.stages.get(name)) {
            (Some(before), Some(after)) => match (before.is_there(), after.is_there()) {
                (true, true) => changed(store, registry, (old, before), (new, after)).await?,
                _ => StageChange::Absent { old: before.state(), new: after.state() },
            },
            (Some(_), None) => StageChange::OnlyInFirst,
            _ => StageChange::OnlyInSecond,
        };
        changes.insert(name.clone(), change);
    }
    Ok(changes)
}

async fn changed(
    store: &Store,
    registry: &Registry,
    (old, before): (&RunRecord, &StageRecord),
    (new, after): (&RunRecord, &StageRecord),
) -> Result<StageChange, Failure> {
    if before.key == after.key {
        let fillings = (before.generation.unwrap_or_default(), after.generation.unwrap_or_default());
        return Ok(match fillings {
            (old, new) if old == new || before.generation.is_none() || after.generation.is_none() => StageChange::Same,
            (old, new) => StageChange::Refilled { old, new },
        });
    }
    let (Some(first), Some(second)) = (preimage(store, before).await?, preimage(store, after).await?) else {
        let why = "`gc` took what one of the keys was made of, or it can't be read".to_owned();
        return Ok(StageChange::Unknown { why });
    };
    let arrivals = arrivals(&second["inputs"], after, &[new, old]);
    let found = differences(&first, &second, registry, &arrivals);
    Ok(match found.is_empty() {
        true => StageChange::Unknown { why: "what the keys were made of is the same".into() },
        false => StageChange::Changed { reasons: found.into_iter().map(Reason::Changed).collect() },
    })
}

async fn preimage(store: &Store, stage: &StageRecord) -> Result<Option<Value>, Failure> {
    let Some(key) = &stage.key else { return Ok(None) };
    let found = store.latest_action(key).await?;
    Ok(found.and_then(|found| found.action).map(|action| action.preimage))
}

/// What arrived at a stage's ports: as its record says, and where that is too old to say it, what in `runs` has the digests.
fn arrivals(inputs: &Value, stage: &StageRecord, runs: &[&RunRecord]) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    for (port, digests) in inputs.as_object().into_iter().flatten() {
        for (position, digest) in digests.as_array().into_iter().flatten().enumerate() {
            let digest = digest.as_str().unwrap_or_default();
            let of = |(stage, record): (&String, &StageRecord)| {
                let output = record.digests.iter().find(|(_, found)| found.as_str() == digest)?;
                Some((stage.clone(), output.0.clone()))
            };
            let written = stage.reads.get(port).and_then(|reads| reads.get(position)).cloned();
            let found = || runs.iter().find_map(|run| run.stages.iter().find_map(of));
            let (stage, output) = written.or_else(found).unwrap_or_else(|| ("another".to_owned(), digest.to_owned()));
            arrivals.push(Arrival { port: port.clone(), position, stage, output });
        }
    }
    arrivals
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Buckets;

    fn runs(ids: &[&str]) -> Runs {
        Runs { found: ids.iter().map(|id| ((*id).to_owned(), Path::from(format!("runs/p/{id}.json")))).collect() }
    }

    #[test]
    fn a_run_is_named_by_number_or_by_what_no_other_id_has() {
        let runs = runs(&["019a-bb22", "019a-aa11", "019c-1234"]);
        for (written, place) in [("1", 0), ("3", 2), ("019c", 2), ("AA11", 1), ("019a-bb22", 0), ("1234", 2)] {
            assert_eq!(runs.place(written).ok(), Some(place), "{written}");
        }
        let several = runs.place("019a").unwrap_err();
        assert_eq!(several.message, "2 runs are called `019a`");
        assert_eq!(several.hint.as_deref(), Some("write more of the id: `019a-bb22`, `019a-aa11`"));
        let none = runs.place("019c-1235").unwrap_err();
        assert!(none.hint.as_deref().is_some_and(|hint| hint.contains("1 to 3; the nearest ids are `019c-1234`")), "{none:?}");
        for written in ["0", "", "4", "34"] {
            assert!(runs.place(written).is_err(), "{written}");
        }
    }

    #[test]
    fn a_record_of_an_older_program_is_read() {
        let record = json!({
            "run": "r", "pipeline": "p", "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:02.5Z",
            "stages": {
                "a": { "key": "k", "executed": true, "digests": { "default": "d" } },
                "b": { "key": "k", "executed": false, "digests": { "default": "d" } },
                "c": { "key": "k", "executed": false },
            },
            "failures": { "d": { "fault": "data", "message": "m", "hint": null } },
        });
        let record: RunRecord = serde_json::from_value(record).expect("a record");
        assert_eq!((record.ending(), record.seconds(), record.usd()), (Ending::Failed, 2.5, None));
        assert_eq!(record.started_utc(), "2026-01-01 00:00:00");
        let states: Vec<StageState> = record.stages.values().map(StageRecord::state).collect();
        assert_eq!(states, [StageState::Ran, StageState::Cached, StageState::NotReached]);
    }

    #[tokio::test]
    async fn what_has_no_record_is_no_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        for name in ["runs/p/a.json", "runs/p/a.txt", "runs/q/b.json"] {
            store.write(&Path::from(name), "{}".into()).await.expect("written");
        }
        assert_eq!(Runs::of(&store, Some("p")).await.expect("listed").len(), 1);
        let all = Runs::of(&store, None).await.expect("listed");
        assert_eq!(all.len(), 2);
        assert!(all.newest(&store, 9).await.expect("read").is_empty(), "no record can be read");
        assert!(all.find(&store, "a").await.unwrap_err().message.contains("can't be read"));
    }
}
