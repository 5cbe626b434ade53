//! How much rows differ from each other.

mod bleu;
mod eigen;
mod vendi;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{
        DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT, Resource,
    },
    run::{Task, TaskContext},
    spec::Size,
};
use ingrain_llm::Vector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{bleu::self_bleu, vendi::vendi};
use crate::{
    columns::{blocking, is_text, text},
    dedup::ngrams::{roll, words},
    rejects::{Reject, Rejects},
    route::no_column,
    teachers::embedder::{embed, embedder},
};

const PORT: &str = "default";
/// Words of a sample, where `token_budget` is left out and all inputs have as many.
const WORDS: u64 = 1_000_000;
/// Words of the n-grams that are counted.
const NGRAM: usize = 4;
/// Rows of a sample that are embedded: the work of the Vendi score grows with the third power of their number.
const EMBEDDED: usize = 2000;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Diversity>("diversity", 1).gathers().reported();

/// Says how much the rows of each input differ from each other, on samples of equally many words.
///
/// Rows are drawn by a hash of the stage's seed and their `row_id` until the budget is reached; the last is cut. A word is
/// what stands between white space, in lower case. Figures of inputs compare because they rest on equally many words: in a
/// larger sample, more repeats. So compare them within a table, not between tables of different `token_budget`.
///
/// # Ports
/// One, of one or several tables with the column.
///
/// # Outputs
/// - default: `input` (its name as in `from`), `metric`, `value` (rounded to six decimals), `n`. One that has nothing to count
///   is left out.
///   - `unique_4grams`: different sequences of four words in a row, as a share of all, from 0 (the same again and again) to
///     1 (none comes twice); `n` is the number of all.
///   - `self_bleu`: how well each row is foretold by the others, from 0 to 1: its BLEU-4 against all other rows of the sample,
///     averaged (a precision without a match counts as 0.1 match). Higher is less diverse. `n` is the number of rows; rows
///     of fewer than four words are left out.
///   - `vendi`, with an `embedder`: how many different rows the sample amounts to, from 1 (all say the same) to `n`: its Vendi
///     score (Friedman and Dieng, 2022) over the cosines of their embeddings. `n` is the number of rows, at most 2,000, the
///     first ones drawn. A score is bounded by `n`: look at both.
/// - `rejects`: rows that the embedder refused, too long ones for instance. They don't count for `vendi`.
///
/// # Memory
/// 8 bytes a word of each sample, and some 50 for each different n-gram of one. With an `embedder` also the sample's text; for
/// each input 4 bytes a number of 2,000 vectors, and three times as much for one of them at a time.
///
/// # Example
/// ```yaml
/// variety: { op: diversity, from: [documents, rewrites], column: text }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diversity {
    /// The column to look at, text. Default `text`.
    #[serde(default = "text_column")]
    pub column: String,
    /// How many words of each input are looked at. Default: those of the smallest input, up to 1M.
    #[serde(default)]
    pub token_budget: Option<Size>,
    /// The entry of `models:` that embeds rows for the Vendi score. A server that speaks the OpenAI protocol does it at
    /// `/embeddings`; `offline` is a stand-in that only looks at words. Default: none, and no Vendi score.
    #[serde(default)]
    pub embedder: Option<String>,
}

fn text_column() -> String {
    "text".into()
}

impl Operator for Diversity {
    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::new(PORT, &[("row_id", DataType::Utf8)]).many()])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        if self.token_budget == Some(Size(0)) {
            mistakes.push(
                Invalid::new("/token_budget", "a sample of 0 words says nothing")
                    .hint("leave it out for the words of the smallest input"),
            );
        }
        for rows in inputs.all(PORT) {
            match rows.schema.field_with_name(&self.column) {
                Err(_) => mistakes.push(no_column("/column", &self.column, rows)),
                Ok(_) if is_text(&rows.schema, &self.column) => {}
                Ok(found) => mistakes.push(Invalid::new(
                    "/column",
                    format!("`{}` in `{}` is {}; text is needed", self.column, rows.name, found.data_type()),
                )),
            }
        }
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, fields())]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let names = inputs.all(PORT).iter().map(|rows| rows.name.clone()).collect();
        Lowering::Task(Arc::new(Measuring { config: self.clone(), names }))
    }

    fn draws(&self) -> bool {
        true
    }

    fn models(&self) -> Vec<(&'static str, String)> {
        self.embedder.iter().map(|model| ("embedder", model.clone())).collect()
    }

    fn resource(&self) -> Resource {
        match self.embedder {
            Some(_) => Resource::Teacher,
            None => Resource::None,
        }
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("input", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("n", DataType::Int64, false),
    ]
}

#[derive(Debug)]
struct Measuring {
    config: Diversity,
    names: Vec<String>,
}

/// A line of the result.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    /// The place of the input.
    input: usize,
    metric: &'static str,
    value: f64,
    n: usize,
}

#[async_trait]
impl Task for Measuring {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let wanted = self.config.token_budget.map(|size| size.0);
        let mut samples = Vec::new();
        for (table, name) in context.tables(PORT).iter().zip(&self.names) {
            context.counters.say(format!("drawing from `{name}`"));
            let mut sample = Sample::new(context.seed, wanted.unwrap_or(WORDS), self.config.embedder.is_some());
            let mut batches = table.stream().await?;
            while let Some(batch) = batches.try_next().await? {
                let column = self.config.column.clone();
                sample = blocking(move || sample.add(&batch, &column)).await??;
            }
            samples.push(sample);
        }
        let budget = self.budget(&samples)?;
        let vectors = match &self.config.embedder {
            Some(model) => self.vectors(context, model, &samples, budget).await?,
            None => Vec::new(),
        };
        context.counters.say("comparing rows");
        let lines = blocking(move || lines(&samples, budget, &vectors)).await??;
        let name = |line: &Line| self.names.get(line.input).map_or("", String::as_str);
        let id = |line: &Line| key::row_id("diversity", line.input as u64, &[name(line), line.metric], 0, 0);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(lines.iter().map(id))),
            Arc::new(StringArray::from_iter_values(lines.iter().map(name))),
            Arc::new(StringArray::from_iter_values(lines.iter().map(|line| line.metric))),
            Arc::new(Float64Array::from_iter_values(lines.iter().map(|line| line.value))),
            Arc::new(Int64Array::from_iter_values(lines.iter().map(|line| line.n as i64))),
        ];
        let rows = RecordBatch::try_new(context.schema(DEFAULT_OUTPUT)?, columns)?;
        context.write(DEFAULT_OUTPUT, rows).await
    }
}

impl Measuring {
    /// The words that every sample has.
    fn budget(&self, samples: &[Sample]) -> Result<u64, Failure> {
        let smallest = samples.iter().zip(&self.names).min_by_key(|(sample, _)| sample.words);
        let (sample, name) = smallest.ok_or_else(|| Failure::bug("nothing to measure"))?;
        let column = &self.config.column;
        match self.config.token_budget {
            _ if sample.words == 0 => Err(Failure::data(format!("`{name}` has no words in `{column}`"))
                .hint("leave it out, or look at the stage that makes it")),
            Some(Size(wanted)) if wanted > sample.words => {
                let message = format!("`{name}` has {} words in `{column}`, and `token_budget` is {wanted}", sample.words);
                Err(Failure::data(message).hint("leave `token_budget` out for the words of the smallest input"))
            }
            Some(Size(wanted)) => Ok(wanted),
            None => Ok(sample.words.min(WORDS)),
        }
    }

    /// The vectors of every sample's rows. Rows that can't be embedded are rejects.
    async fn vectors(
        &self,
        context: &mut TaskContext,
        model: &str,
        samples: &[Sample],
        budget: u64,
    ) -> Result<Vec<Vec<Vector>>, Failure> {
        let (mut rows, mut texts) = (Vec::new(), Vec::new());
        for (input, sample) in samples.iter().enumerate() {
            for (id, text) in sample.passages(budget) {
                rows.push((input, id));
                texts.push(text.to_owned());
            }
        }
        let embeddings = embedder(&context.environment, model).await?;
        let found = embed(&embeddings, &context.counters, &texts, context.refresh.as_deref()).await?;
        let mut vectors = vec![Vec::new(); samples.len()];
        let mut rejects = Rejects::default();
        for ((input, id), found) in rows.into_iter().zip(found) {
            match found {
                Ok(vector) => vectors[input].push(vector),
                Err(reject) => {
                    let row_id = key::row_id("diversity.reject", input as u64, &[id], 0, 0);
                    rejects.push(&row_id, Some(id), &Reject::new(reject.reason, reject.detail), 1);
                }
            }
        }
        context.count_units(texts.len() as u64);
        if rejects.len() > 0 {
            let rows = rejects.take()?;
            context.write(REJECTS_OUTPUT, rows).await?;
        }
        Ok(vectors)
    }
}

/// Rows in a drawn order: the first ones that hold as many words as are wanted, or all.
#[derive(Debug)]
struct Sample {
    seed: u64,
    wanted: u64,
    /// Whether texts are kept, too.
    keep_texts: bool,
    /// By the row's place in the order.
    rows: BTreeMap<[u8; 32], Row>,
    words: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// Hashes of the words.
    words: Vec<u64>,
    /// Its `row_id` and text, where they are kept.
    text: Option<(String, String)>,
}

impl Sample {
    fn new(seed: u64, wanted: u64, keep_texts: bool) -> Self {
        Self { seed, wanted, keep_texts, rows: BTreeMap::new(), words: 0 }
    }

    fn add(mut self, batch: &RecordBatch, column: &str) -> Result<Self, Failure> {
        for (id, row) in text(batch, "row_id")?.iter().zip(text(batch, column)?) {
            let (Some(id), Some(row)) = (id, row) else { continue };
            let place = *blake3::Hasher::new().update(&self.seed.to_le_bytes()).update(id.as_bytes()).finalize().as_bytes();
            let full = self.words >= self.wanted;
            if full && self.rows.last_key_value().is_some_and(|(last, _)| *last < place) {
                continue;
            }
            let words = words(row);
            if words.is_empty() {
                continue;
            }
            self.words += words.len() as u64;
            self.rows.insert(place, Row { words, text: self.keep_texts.then(|| (id.to_owned(), row.to_owned())) });
            while let Some(last) = self.rows.last_entry() {
                let left = self.words - last.get().words.len() as u64;
                if left < self.wanted {
                    break;
                }
                self.words = left;
                last.remove();
            }
        }
        Ok(self)
    }

    /// The rows that hold the first `budget` words, each with how many of its words those are.
    fn cut(&self, budget: u64) -> impl Iterator<Item = (&Row, usize)> {
        let mut left = usize::try_from(budget).unwrap_or(usize::MAX);
        let cut = self.rows.values().map(move |row| {
            let words = row.words.len().min(left);
            left -= words;
            (row, words)
        });
        cut.filter(|(_, words)| *words > 0)
    }

    /// The first `budget` words, row by row; rows too short for an n-gram are left out.
    fn texts(&self, budget: u64) -> Vec<&[u64]> {
        self.cut(budget).filter(|(_, words)| *words >= NGRAM).map(|(row, words)| &row.words[..words]).collect()
    }

    /// `row_id` and text of the rows that are embedded.
    fn passages(&self, budget: u64) -> Vec<(&str, &str)> {
        let kept = self.cut(budget).filter_map(|(row, words)| row.text.as_ref().map(|(id, text)| (id, text, words)));
        kept.take(EMBEDDED).map(|(id, text, words)| (id.as_str(), first_words(text, words))).collect()
    }
}

/// A text up to the end of its word number `n`, without white space at its ends.
fn first_words(text: &str, n: usize) -> &str {
    let (mut words, mut inside) = (0, false);
    for (at, character) in text.char_indices() {
        let begins = !inside && !character.is_whitespace();
        if begins && words == n {
            return text[..at].trim();
        }
        words += usize::from(begins);
        inside = !character.is_whitespace();
    }
    text.trim()
}

/// `vectors` are those of each sample, or none at all.
fn lines(samples: &[Sample], budget: u64, vectors: &[Vec<Vector>]) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for (input, sample) in samples.iter().enumerate() {
        let texts = sample.texts(budget);
        let mut grams = Vec::new();
        for text in &texts {
            roll(text, NGRAM, &mut grams);
        }
        if !grams.is_empty() {
            let different = grams.iter().collect::<HashSet<_>>().len();
            let value = rounded(different as f64 / grams.len() as f64);
            lines.push(Line { input, metric: "unique_4grams", value, n: grams.len() });
        }
        if let Some(value) = self_bleu(&texts) {
            lines.push(Line { input, metric: "self_bleu", value: rounded(value), n: texts.len() });
        }
        if let Some(vectors) = vectors.get(input).filter(|vectors| !vectors.is_empty()) {
            let value = vendi(vectors).ok_or_else(|| Failure::bug("the eigenvalues of cosines don't converge"))?;
            lines.push(Line { input, metric: "vendi", value: rounded(value), n: vectors.len() });
        }
    }
    Ok(lines)
}

/// Six decimals: exponentials differ in their last digits between machines.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use ingrain_engine::operator::Input;
    use serde_json::json;

    use super::*;

    fn batch(rows: &[(String, Option<&str>)]) -> RecordBatch {
        let ids = StringArray::from_iter_values(rows.iter().map(|row| &row.0));
        let texts: StringArray = rows.iter().map(|row| row.1).collect();
        let columns = [("row_id", Arc::new(ids) as ArrayRef, false), ("text", Arc::new(texts) as ArrayRef, true)];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn sample(rows: &[(String, Option<&str>)], at_once: usize, seed: u64, wanted: u64) -> Sample {
        let add = |sample: Sample, rows: &[(String, Option<&str>)]| sample.add(&batch(rows), "text").unwrap();
        rows.chunks(at_once).fold(Sample::new(seed, wanted, true), add)
    }

    fn numbered<'a>(texts: &[Option<&'a str>]) -> Vec<(String, Option<&'a str>)> {
        texts.iter().enumerate().map(|(n, text)| (format!("{n:032x}"), *text)).collect()
    }

    #[test]
    fn a_sample_depends_on_the_rows_and_the_seed_alone() {
        let texts: Vec<String> = (0..500).map(|n| format!("{n} ").repeat(1 + n % 7)).collect();
        let rows = numbered(&texts.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>());
        let whole = sample(&rows, 500, 7, 100);
        let turned: Vec<_> = rows.iter().rev().cloned().collect();
        let parts = sample(&turned, 3, 7, 100);
        assert_eq!((&whole.rows, whole.words), (&parts.rows, parts.words));
        assert!((100..107).contains(&whole.words), "{}", whole.words);
        assert_ne!(whole.rows, sample(&rows, 500, 8, 100).rows);
        // A smaller sample is the beginning of a larger one.
        let small = sample(&rows, 500, 7, 50);
        assert!(small.rows.iter().eq(whole.rows.iter().take(small.rows.len())));
        assert_eq!(whole.texts(50), small.texts(50));
    }

    #[test]
    fn equal_words_are_counted() {
        let rows = numbered(&[Some("a b c d e"), Some("A b  c d"), None, Some(""), Some("x y z")]);
        let all = sample(&rows, 2, 1, 1000);
        assert_eq!((all.rows.len(), all.words), (3, 12));
        let found = lines(&[all], 12, &[]).unwrap();
        // 4-grams: a b c d twice, b c d e.
        assert_eq!((found[0].metric, found[0].value, found[0].n), ("unique_4grams", 0.666667, 3));
        assert_eq!((found[1].metric, found[1].n), ("self_bleu", 2));
        let short = lines(&[sample(&rows[4..], 1, 1, 1000)], 3, &[]).unwrap();
        assert!(short.is_empty());
    }

    #[test]
    fn vectors_are_counted() {
        let all = sample(&numbered(&[Some("a b c d e")]), 1, 1, 1000);
        let vectors = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]].map(|vector: [f32; 2]| Vector::from(vector)).to_vec();
        let found = lines(&[all], 5, &[vectors]).unwrap();
        assert_eq!(found[1], Line { input: 0, metric: "vendi", value: 2.0, n: 4 });
    }

    #[test]
    fn what_is_embedded_is_what_is_counted() {
        assert_eq!(first_words(" a  b\u{a0}c\nd ", 3), "a  b\u{a0}c");
        assert_eq!((first_words("a b ", 2), first_words(" a b ", 9), first_words("a", 0)), ("a b", "a b", ""));
        let rows = numbered(&[Some("a b c d e"), Some(" f g h "), None, Some("i")]);
        let sample = sample(&rows, 2, 1, 1000);
        let words = |budget: u64| {
            let passages = sample.passages(budget).into_iter();
            passages.map(|(_, text)| text.split_whitespace().count()).sum::<usize>()
        };
        assert_eq!([1, 4, 8, 9, 1000].map(words), [1, 4, 8, 9, 9]);
        let (id, text) = sample.passages(1000)[0];
        assert!(rows.iter().any(|(row, words)| row == id && words.unwrap().trim() == text));
    }

    #[test]
    fn mistakes_are_named() {
        let schema = batch(&[]).schema();
        let inputs = Inputs {
            ports: [(PORT.to_owned(), vec![Input { name: "a".into(), cell: Default::default(), schema }])].into(),
            ..Inputs::default()
        };
        let fields = |config: serde_json::Value| {
            let operator: Diversity = serde_json::from_value(config).unwrap();
            let mistakes = operator.bind(&inputs).err().unwrap_or_default();
            mistakes.into_iter().map(|mistake| mistake.field).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(fields(json!({})), none);
        let wrong = json!({ "column": "question", "embedder": "e", "token_budget": 0 });
        assert_eq!(fields(wrong), ["/token_budget", "/column"]);
    }

    #[test]
    fn only_an_embedder_is_asked() {
        let asks = |config: serde_json::Value| {
            let operator: Diversity = serde_json::from_value(config).unwrap();
            (operator.models(), operator.resource())
        };
        assert_eq!(asks(json!({})), (Vec::new(), Resource::None));
        assert_eq!(asks(json!({ "embedder": "e" })), (vec![("embedder", "e".to_owned())], Resource::Teacher));
    }

    #[test]
    fn no_sample_is_smaller_than_the_budget() {
        let budget = |config: serde_json::Value, texts: &[&str]| {
            let config = serde_json::from_value(config).unwrap();
            let names = (0..texts.len()).map(|n| format!("input{n}")).collect();
            let samples: Vec<Sample> = texts.iter().map(|text| sample(&numbered(&[Some(text)]), 1, 1, 100)).collect();
            Measuring { config, names }.budget(&samples).map_err(|failure| failure.message)
        };
        assert_eq!(budget(json!({}), &["a b c d", "a b c"]), Ok(3));
        assert_eq!(budget(json!({ "token_budget": 2 }), &["a b c d", "a b c"]), Ok(2));
        let few = budget(json!({ "token_budget": 4 }), &["a b c d", "a b c"]).unwrap_err();
        assert_eq!(few, "`input1` has 3 words in `text`, and `token_budget` is 4");
        assert_eq!(budget(json!({}), &["a", " "]).unwrap_err(), "`input1` has no words in `text`");
    }
}
