//! What was made of rows.

use std::collections::{BTreeMap, HashMap};

use ingrain_engine::{
    failure::Failure,
    lineage::{Affected, Ids},
    operator::DEFAULT_OUTPUT,
};
use serde::Serialize;

use super::{Row, Trace, outputs, sentence};
use crate::train::{self, Fate, Training};

/// What was made of rows, in one output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Made {
    /// The stage.
    pub stage: String,
    /// Its output.
    pub output: String,
    /// Its operator.
    pub operator: String,
    /// How many of its rows; `None` where its rows don't say which: all of it depends on the rows.
    pub rows: Option<usize>,
    /// How many rows the output has.
    pub of: u64,
    /// The first of them.
    pub first: Vec<Row>,
    /// Of what it was made, by the place in the list; `None` where that is the traced rows themselves.
    #[serde(skip)]
    pub under: Option<usize>,
    /// When it was trained on them, where it is a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
}

/// When a training saw rows of its mixture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trained {
    /// Rows that were trained on.
    pub rows: usize,
    /// Rows that were held out.
    pub held_out: usize,
    /// The first step that saw one, from 1.
    pub first_step: Option<usize>,
    /// The last.
    pub last_step: Option<usize>,
    /// What became of the first of them, in the order of training; held-out rows come last.
    pub seen: Vec<Seen>,
}

/// What became of a row of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// The row.
    pub row_id: String,
    /// What became of it.
    pub fate: Fate,
}

/// So many rows are read at once.
const AT_ONCE: usize = 1024;

type Reached = BTreeMap<(usize, String), Affected>;

impl Trace {
    /// Everything that was made of a row: how many rows of each output, and the first `limit` of them; stages after those that
    /// they read.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn forward(&self, stage: &str, output: &str, row_id: &str, limit: usize) -> Result<Vec<Made>, Failure> {
        let Some(artifact) = self.lineage.find(stage) else { return Ok(Vec::new()) };
        let start = vec![(artifact, output.to_owned(), Ids::from([row_id.to_owned()]))];
        self.made(start, limit, |_| true).await
    }

    /// What was made of a sentence of a row's text, or of words of it: rows made of the row whose `answer` stands in the sentence,
    /// with everything made of those; and passages whose `text` holds all of it.
    ///
    /// # Errors
    /// As [`Self::forward`], and when the row's text doesn't hold it.
    pub async fn forward_of_sentence(&self, row: &Row, words: &str, limit: usize) -> Result<Vec<Made>, Failure> {
        let Some(artifact) = self.lineage.find(&row.stage) else { return Ok(Vec::new()) };
        let text = row.text("text").ok_or_else(|| {
            Failure::data(format!("a row of `{}` has no `text`", row.stage))
                .hint("leave `--sentence` out to follow the whole row")
        })?;
        let Some(sentence) = sentence::holding(text, words, "", 1).into_iter().next() else {
            return Err(Failure::data("no sentence of the row's text holds these words")
                .hint("write words of one sentence as they stand there; case and spaces don't matter"));
        };
        let start = (artifact, row.output.clone(), Ids::from([row.row_id.clone()]));
        let (mut saying, mut passages) = (Vec::new(), Vec::new());
        for ((place, output), found) in self.lineage.made_of(vec![start]).await? {
            let (Affected::Rows(ids), false) = (found, (place, &output) == (artifact, &row.output)) else { continue };
            let has = |column: &str| self.lineage.artifacts()[place].schemas[&output].column_with_name(column).is_some();
            let (answer, passage) = (has("answer"), has("byte_start"));
            if !answer && !passage {
                continue;
            }
            let mut kept = Ids::new();
            let mut ids: Vec<String> = ids.into_iter().collect();
            ids.sort_unstable();
            for some in ids.chunks(AT_ONCE) {
                let rows = self.rows(place, &output, &some.iter().cloned().collect()).await?;
                let says = |row: &Row| match answer {
                    true => row.text("answer").is_some_and(|answer| sentence::holds(&sentence.text, answer)),
                    false => row.text("text").is_some_and(|text| sentence::holds(text, &sentence.text)),
                };
                kept.extend(rows.into_iter().filter(says).map(|row| row.row_id));
            }
            if !kept.is_empty() {
                if answer { &mut saying } else { &mut passages }.push((place, output, kept));
            }
        }
        let mut affected: Reached =
            passages.iter().map(|(place, output, ids)| ((*place, output.clone()), Affected::Rows(ids.clone()))).collect();
        affected.extend(self.lineage.made_of(saying).await?);
        self.told(&affected, &[], limit).await
    }

    /// As [`Self::forward`], of several rows and in some artifacts only.
    pub(super) async fn made(
        &self,
        start: Vec<(usize, String, Ids)>,
        limit: usize,
        fits: impl Fn(usize) -> bool,
    ) -> Result<Vec<Made>, Failure> {
        let begun: Vec<(usize, String)> = start.iter().map(|(artifact, output, _)| (*artifact, output.clone())).collect();
        let affected = self.lineage.made_of_within(start, fits).await?;
        self.told(&affected, &begun, limit).await
    }

    /// What is affected, but for what the trace `begun` with.
    async fn told(&self, affected: &Reached, begun: &[(usize, String)], limit: usize) -> Result<Vec<Made>, Failure> {
        let mut made = Vec::new();
        let mut places: HashMap<(usize, &str), usize> = HashMap::new();
        for (place, artifact) in self.lineage.artifacts().iter().enumerate() {
            for output in outputs(artifact) {
                let key = (place, output.to_owned());
                let (Some(found), false) = (affected.get(&key), begun.contains(&key)) else { continue };
                let above = artifact.reads.iter().filter(|edge| !edge.is_vocabulary);
                let above = above.map(|edge| (edge.artifact, edge.output.as_str()));
                let beside = outputs(artifact).into_iter().map(|name| (place, name));
                let all: Vec<usize> = above.chain(beside).filter_map(|at| places.get(&at).copied()).collect();
                // Rows say more than what depends on them as a whole.
                let says = all.iter().find(|under| made.get(**under).is_some_and(|made: &Made| made.rows.is_some()));
                let under = says.or(all.first()).copied();
                let (rows, first) = match found {
                    Affected::Rows(ids) => {
                        let mut some: Vec<&String> = ids.iter().collect();
                        some.sort_unstable();
                        let some = some.into_iter().take(limit).cloned().collect();
                        (Some(ids.len()), self.rows(place, output, &some).await?)
                    }
                    Affected::Whole => (None, Vec::new()),
                };
                let trained = match artifact.operator == train::TYPE.name && output == DEFAULT_OUTPUT {
                    true => self.trained(place, affected, limit).await?,
                    false => None,
                };
                places.insert((place, output), made.len());
                made.push(Made {
                    stage: artifact.name.stage.clone(),
                    output: output.to_owned(),
                    operator: artifact.operator.clone(),
                    rows,
                    of: artifact.manifest.outputs[output].rows,
                    first,
                    under,
                    trained,
                });
            }
        }
        Ok(made)
    }

    /// When a training saw affected rows of its mixture.
    async fn trained(&self, place: usize, affected: &Reached, limit: usize) -> Result<Option<Trained>, Failure> {
        let artifact = &self.lineage.artifacts()[place];
        let port = |port: &str| artifact.reads.iter().find(|edge| edge.port == port);
        let (Some(mixture), Some(base)) = (port(train::MIXTURE), port(train::BASE)) else { return Ok(None) };
        let Some(Affected::Rows(ids)) = affected.get(&(mixture.artifact, mixture.output.clone())) else { return Ok(None) };
        let table = |artifact, output: &str| {
            self.lineage.table(artifact, output).ok_or_else(|| Failure::bug("an artifact without what its stage gives"))
        };
        let training = Training {
            config: artifact.preimage["config"].clone(),
            seed: artifact.preimage["seed"].as_u64().ok_or_else(|| Failure::data("a training without a seed"))?,
            mixture: table(mixture.artifact, &mixture.output)?,
            base: table(base.artifact, &base.output)?,
        };
        let fates = training.fates(ids).await?;
        let places = || {
            let trained = fates.values().filter_map(|fate| match fate {
                Fate::Trained(places) => Some(places),
                Fate::HeldOut => None,
            });
            trained.flatten().map(|place| place.step)
        };
        let (first_step, last_step) = (places().min(), places().max());
        let held_out = fates.values().filter(|fate| **fate == Fate::HeldOut).count();
        let rows = fates.len() - held_out;
        let mut seen: Vec<Seen> = fates.into_iter().map(|(row_id, fate)| Seen { row_id, fate }).collect();
        let first = |seen: &Seen| match &seen.fate {
            Fate::Trained(places) => places.first().copied().map_or((true, None), |place| (false, Some(place))),
            Fate::HeldOut => (true, None),
        };
        seen.sort_by_key(first);
        seen.truncate(limit);
        Ok(Some(Trained { rows, held_out, first_step, last_step, seen }))
    }
}
