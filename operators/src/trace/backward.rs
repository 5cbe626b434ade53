//! What a row was made of.

use std::collections::{BTreeSet, HashMap, VecDeque};

use ingrain_engine::{failure::Failure, lineage::Ids, operator::DEFAULT_OUTPUT};
use serde::Serialize;

use super::{Made, Row, Sentence, Trace, sentence, shown};
use crate::{evaluate, sql, train};

/// A row, and all that it was made of.
#[derive(Debug, Clone, Default)]
pub struct Backward {
    /// The row that was asked for first, each other one after a row that was made of it.
    pub rows: Vec<Row>,
    /// Which row was made of which.
    pub links: Vec<Link>,
    /// What rows depend on without saying on which rows of it.
    pub loose: Vec<Loose>,
    /// The sentences of source rows that hold an answer which was made of them.
    pub spots: Vec<Spot>,
    /// For predictions of a trained model: what it was taught of the document that the question is about.
    pub known: Vec<Known>,
}

/// That a row was made of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The row, by its place in [`Backward::rows`].
    pub row: usize,
    /// The column that names the other one: `row_id` where it is the same row, passed through; `contexts` where it is a passage
    /// that a question was asked with.
    pub column: String,
    /// What it was made of.
    pub of: usize,
}

/// What a row depends on without saying on which rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loose {
    /// The row, by its place in [`Backward::rows`].
    pub row: usize,
    /// The outputs, as a pipeline file writes them.
    pub on: Vec<String>,
    /// How it depends on them.
    pub how: Dependence,
}

/// How a row depends on outputs without saying on which rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependence {
    /// On what its stage read, and no row of that is told: lineage ends here.
    Ends,
    /// On all rows.
    All,
    /// A query read them beside the rows that are told, and may have put something of any of them here.
    Perhaps,
}

/// The sentences of a source row that hold an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// The row, by its place in [`Backward::rows`].
    #[serde(skip)]
    pub row: usize,
    /// The answer.
    pub answer: String,
    /// The sentences, those first that are likeliest meant.
    pub sentences: Vec<Sentence>,
}

/// What a model was taught of the document that a question is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The model's stage.
    pub model: String,
    /// The document's id, as the question has it.
    pub doc_id: Option<String>,
    /// The documents of that id among those that the model was trained on.
    pub documents: Vec<Row>,
    /// Their sentences that hold the answer; [`Spot::row`] is the place in `documents`.
    pub spots: Vec<Spot>,
    /// What was made of them on the way to the model.
    pub made: Vec<Made>,
}

/// So many sentences are shown for an answer, and so many answers for a document.
const SENTENCES: usize = 3;
/// A row has few others above it; a user's table may name any number.
const MOST: usize = 32;

impl Trace {
    /// A row and all that it was made of. Of what a prediction's model was taught, the first `limit` rows of each output.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn backward(&self, stage: &str, output: &str, row_id: &str, limit: usize) -> Result<Backward, Failure> {
        let mut found = Backward::default();
        let Some(artifact) = self.lineage.find(stage) else { return Ok(found) };
        let mut places: HashMap<(usize, String, String), usize> = HashMap::new();
        let mut open: VecDeque<(usize, usize)> = VecDeque::new();
        let first = Ids::from([row_id.to_owned()]);
        let mut reached: Vec<(Option<usize>, String, usize, String, Ids)> =
            vec![(None, String::new(), artifact, output.to_owned(), first)];
        loop {
            for (below, column, artifact, output, ids) in reached.drain(..) {
                let mut some: Vec<&String> = ids.iter().collect();
                some.sort_unstable();
                let some: Ids = some.into_iter().take(MOST).cloned().collect();
                for row in self.rows(artifact, &output, &some).await? {
                    let key = (artifact, output.clone(), row.row_id.clone());
                    let place = *places.entry(key).or_insert_with(|| {
                        open.push_back((found.rows.len(), artifact));
                        found.rows.push(row);
                        found.rows.len() - 1
                    });
                    if let Some(row) = below {
                        found.links.push(Link { row, column: column.clone(), of: place });
                    }
                }
            }
            let Some((place, artifact)) = open.pop_front() else { break };
            let row = &found.rows[place];
            let (output, id) = (row.output.clone(), row.row_id.clone());
            for parent in self.lineage.parents(artifact, &output, &Ids::from([id])).await? {
                reached.push((Some(place), parent.column, parent.artifact, parent.output, parent.ids));
            }
            for (artifact, output, ids) in self.contexts(artifact, row).await? {
                reached.push((Some(place), evaluate::CONTEXTS.to_owned(), artifact, output, ids));
            }
            let named: BTreeSet<usize> = reached.iter().map(|(_, _, artifact, _, _)| *artifact).collect();
            found.loose.extend(self.loose(artifact, place, &named));
        }
        found.spots = spots(&found);
        for (place, row) in found.rows.iter().enumerate() {
            let question = found.links.iter().find(|link| link.row == place).map(|link| &found.rows[link.of]);
            found.known.extend(self.known(row, question.unwrap_or(row), limit).await?);
        }
        Ok(found)
    }

    /// The passages that a question was asked with.
    async fn contexts(&self, artifact: usize, row: &Row) -> Result<Vec<(usize, String, Ids)>, Failure> {
        let mut found = Vec::new();
        let (true, Some(question)) = (is_prediction(row), row.text("question_id")) else { return Ok(found) };
        let question = Ids::from([question.to_owned()]);
        for edge in self.lineage.artifacts()[artifact].reads.iter().filter(|edge| edge.port == evaluate::CONTEXTS) {
            let ids = self.lineage.rows_with(edge.artifact, &edge.output, "question_id", &question).await?;
            found.push((edge.artifact, edge.output.clone(), ids));
        }
        Ok(found)
    }

    /// What a row's stage read and the row says nothing of.
    fn loose(&self, artifact: usize, row: usize, named: &BTreeSet<usize>) -> Option<Loose> {
        let artifact = &self.lineage.artifacts()[artifact];
        let unnamed = artifact.reads.iter().filter(|edge| !edge.is_vocabulary && !named.contains(&edge.artifact));
        // Of the tables in a list, a row is made of one.
        let how = match artifact.operator.as_str() {
            _ if named.is_empty() => Dependence::Ends,
            operator if operator == sql::TYPE.name => Dependence::Perhaps,
            operator if operator == train::TYPE.name || operator == evaluate::TYPE.name => Dependence::All,
            _ => return None,
        };
        let mut on: Vec<String> = Vec::new();
        for edge in unnamed {
            let name = shown(&self.lineage.artifacts()[edge.artifact].name.stage, &edge.output);
            if !on.contains(&name) {
                on.push(name);
            }
        }
        (!on.is_empty()).then_some(Loose { row, on, how })
    }

    /// What the model behind a prediction was taught of the document that the question is about.
    async fn known(&self, row: &Row, question: &Row, limit: usize) -> Result<Option<Known>, Failure> {
        let (true, Some(place)) = (is_prediction(row), self.lineage.find(&row.stage)) else { return Ok(None) };
        let artifacts = self.lineage.artifacts();
        let Some(model) = artifacts[place].reads.iter().find(|edge| edge.port == evaluate::MODEL) else { return Ok(None) };
        let above = self.above(model.artifact);
        if !above.iter().any(|place| artifacts[*place].operator == train::TYPE.name) {
            return Ok(None);
        }
        let model_name = artifacts[model.artifact].name.stage.clone();
        let mut known = Known { model: model_name, doc_id: None, documents: Vec::new(), spots: Vec::new(), made: Vec::new() };
        let Some(doc_id) = question.text("doc_id") else { return Ok(Some(known)) };
        known.doc_id = Some(doc_id.to_owned());
        let wanted = Ids::from([doc_id.to_owned()]);
        let mut start = Vec::new();
        for place in above.iter().filter(|place| artifacts[**place].reads.is_empty()) {
            for output in artifacts[*place].manifest.outputs.keys() {
                let ids = self.lineage.rows_with(*place, output, "doc_id", &wanted).await?;
                if !ids.is_empty() {
                    known.documents.extend(self.rows(*place, output, &ids).await?);
                    start.push((*place, output.clone(), ids));
                }
            }
        }
        if let Some(answer) = question.text("answer") {
            let asked = question.text("question").unwrap_or_default();
            for (row, document) in known.documents.iter().enumerate() {
                let sentences = sentence::holding(document.text("text").unwrap_or_default(), answer, asked, SENTENCES);
                known.spots.push(Spot { row, answer: answer.to_owned(), sentences });
            }
        }
        known.made = self.made(start, limit, |place| above.contains(&place)).await?;
        Ok(Some(known))
    }

    /// An artifact and all that it was made of, but for vocabularies.
    fn above(&self, artifact: usize) -> BTreeSet<usize> {
        let (mut above, mut open) = (BTreeSet::new(), vec![artifact]);
        while let Some(next) = open.pop() {
            if above.insert(next) {
                let reads = self.lineage.artifacts()[next].reads.iter();
                open.extend(reads.filter(|edge| !edge.is_vocabulary).map(|edge| edge.artifact));
            }
        }
        above
    }
}

fn is_prediction(row: &Row) -> bool {
    row.operator == evaluate::TYPE.name && row.output != DEFAULT_OUTPUT
}

/// Where the answers of a trace stand in the source rows that they were made of.
fn spots(found: &Backward) -> Vec<Spot> {
    let mut spots = Vec::new();
    for (place, row) in found.rows.iter().enumerate() {
        let Some(text) = row.text("text") else { continue };
        if found.links.iter().any(|link| link.row == place) {
            continue;
        }
        let below = below(found, place);
        // Of a chunk that was made of it, only the chunk's bytes.
        let spans: Vec<(usize, usize)> = below.iter().filter_map(|row| found.rows[*row].span()).collect();
        let start = spans.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let end = spans.iter().map(|(_, end)| *end).max().unwrap_or(text.len());
        let Some(part) = text.get(start..end) else { continue };
        let mut known: Vec<&str> = Vec::new();
        // A question that was asked with a passage of this row isn't made of it.
        let beside = found.links.iter().filter(|link| below.contains(&link.row) && link.of != place && !below.contains(&link.of));
        let beside: BTreeSet<usize> = beside.map(|link| link.of).collect();
        for (row, is_below) in below.iter().map(|row| (row, true)).chain(beside.iter().map(|row| (row, false))) {
            let row = &found.rows[*row];
            let Some(answer) = row.text("answer").filter(|answer| !known.contains(answer)) else { continue };
            known.push(answer);
            let asked = [row.text("question"), row.text("explanation")].map(Option::unwrap_or_default).join(" ");
            let mut sentences = sentence::holding(part, answer, &asked, SENTENCES);
            for sentence in &mut sentences {
                sentence.byte_start += start;
                sentence.byte_end += start;
            }
            if is_below || !sentences.is_empty() {
                spots.push(Spot { row: place, answer: answer.to_owned(), sentences });
            }
        }
    }
    spots
}

/// The rows that were made of one, nearest to the traced row first.
fn below(found: &Backward, row: usize) -> BTreeSet<usize> {
    let (mut below, mut open) = (BTreeSet::new(), vec![row]);
    while let Some(next) = open.pop() {
        let links = found.links.iter().filter(|link| link.of == next).map(|link| link.row);
        open.extend(links.filter(|row| below.insert(*row)));
    }
    below
}
