//! Finds the rows of a corpus that fit a question.

mod index;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Builder, Int32Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT},
    run::{Task, TaskContext},
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::index::{Hit, Index, Writer};
use crate::{
    columns::{blocking, is_text, optional_text, text},
    rejects::{Reject, Rejects},
};

const QUESTIONS: &str = "questions";
const CORPUS: &str = "corpus";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Retrieve>("retrieve", 1).planned(&["candidates", "rerank", "embedder"]);

/// How rows are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By the words that they share with the question (BM25).
    #[default]
    Bm25,
    /// By the words, among the rows of the question's own document only: what a perfect retriever over documents finds.
    Gold,
    /// By embeddings. Not built yet.
    Embeddings,
    /// By words and embeddings. Not built yet.
    Hybrid,
}

/// Finds for each question the rows of a corpus that fit it best.
///
/// `bm25` scores a row by the words that it shares with the question (Okapi BM25 with k1 = 1.2 and b = 0.75; row lengths
/// are rounded as in Lucene). A row's title stands in front of its text. Words are runs of letters and digits in lower
/// case, without stemming; those of over 40 bytes are left out. Scores are rounded to four decimals, and equal ones are
/// ordered by the `row_id` of the corpus. A row that shares no word with the question isn't found, so a question may have
/// fewer than `top_k` rows, or none. An empty question is rejected (`empty`), and a corpus without any text is an error.
///
/// # Ports
/// - `questions`: rows with `question`; `question_id` where it is there, else `row_id`, names the question. With `gold`,
///   `doc_id` too.
/// - `corpus`: rows with `text`, and `title` and `doc_id` where there are any: documents, or better, small chunks.
///
/// # Outputs
/// - default: `question_id`, `rank` (1 is the best), `text`, `score`, `corpus_id` (the `row_id` in the corpus), `title`,
///   `doc_id`. `parent_id` is the question's `row_id`.
///
/// # Memory
/// The index lies in a temporary folder, of about the corpus' size; 64 MiB while it is written.
///
/// # Example
/// ```yaml
/// found: { op: retrieve, from: { questions: exam, corpus: chunks }, top_k: 8 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retrieve {
    /// How rows are found: `bm25` or `gold`. (`embeddings` and `hybrid` are not built yet.)
    #[serde(default)]
    pub method: Method,
    /// How many rows a question gets at most. Default: 8.
    #[serde(default = "default_top_k")]
    #[schemars(range(min = 1, max = 1000))]
    pub top_k: u32,
}

fn default_top_k() -> u32 {
    8
}

impl Operator for Retrieve {
    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::new(QUESTIONS, &[("row_id", DataType::Utf8), ("question", DataType::Utf8)]),
            Port::new(CORPUS, &[("row_id", DataType::Utf8), ("text", DataType::Utf8)]),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        if let Method::Embeddings | Method::Hybrid = self.method {
            mistakes.push(Invalid::new("/method", "retrieval by embeddings is not built yet").hint("`bm25` and `gold` are"));
        }
        if self.top_k == 0 {
            mistakes.push(Invalid::new("/top_k", "0 rows a question is no retrieval").hint("1 at least"));
        }
        if self.method == Method::Gold {
            for port in [QUESTIONS, CORPUS] {
                if let Some(input) = inputs.first(port).filter(|input| !is_text(&input.schema, "doc_id")) {
                    let message = format!("`gold` needs `doc_id` as text, and `{}` has none", input.name);
                    mistakes.push(Invalid::new("/method", message).hint("`bm25` searches the whole corpus"));
                }
            }
        }
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, fields())]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(self.clone()))
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, false),
        Field::new("question_id", DataType::Utf8, false),
        Field::new("rank", DataType::Int32, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("score", DataType::Float64, false),
        Field::new("corpus_id", DataType::Utf8, false),
        Field::new("title", DataType::Utf8, true),
        Field::new("doc_id", DataType::Utf8, true),
    ]
}

#[async_trait]
impl Task for Retrieve {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        context.counters.say("writing the index");
        let mut writer = Writer::create(context.scratch())?;
        let (rows, mut corpus) = (context.table(CORPUS)?.rows(), context.table(CORPUS)?.stream().await?);
        let mut has_text = false;
        while let Some(batch) = corpus.try_next().await? {
            let (back, found) = blocking(move || {
                let mut found = false;
                for row in 0..batch.num_rows() {
                    let content = optional_text(&batch, "text", row)?.unwrap_or_default();
                    found |= !content.trim().is_empty();
                    writer.add(
                        text(&batch, "row_id")?.value(row),
                        optional_text(&batch, "doc_id", row)?,
                        optional_text(&batch, "title", row)?,
                        content,
                    )?;
                }
                Ok::<_, Failure>((writer, found))
            })
            .await??;
            writer = back;
            has_text |= found;
        }
        if !has_text {
            let what = if rows == 0 { "has no rows" } else { "has no row with text" };
            return Err(Failure::data(format!("the corpus {what}: there is nothing to find"))
                .hint("look at the stage whose rows arrive at the port `corpus`"));
        }
        let index = Arc::new(blocking(move || writer.finish()).await??);
        context.counters.say("searching");
        let schema = context.schema(DEFAULT_OUTPUT)?;
        let mut questions = context.table(QUESTIONS)?.stream().await?;
        while let Some(batch) = questions.try_next().await? {
            context.count_units(batch.num_rows() as u64);
            let (config, index, schema) = (self.clone(), index.clone(), schema.clone());
            let (found, rejects) = blocking(move || config.batch(&batch, &index, schema)).await??;
            context.write(DEFAULT_OUTPUT, found).await?;
            if let Some(rejects) = rejects {
                context.write(REJECTS_OUTPUT, rejects).await?;
            }
        }
        Ok(())
    }
}

impl Retrieve {
    /// The rows found for a batch of questions, and the questions that ask nothing.
    fn batch(
        &self,
        batch: &RecordBatch,
        index: &Index,
        schema: SchemaRef,
    ) -> Result<(RecordBatch, Option<RecordBatch>), Failure> {
        let search = |row: usize| match optional_text(batch, "question", row)?.filter(|question| !question.trim().is_empty()) {
            None => Ok(None),
            Some(question) => match (self.method, optional_text(batch, "doc_id", row)?) {
                (Method::Gold, None) => Ok(Some(Vec::new())),
                (Method::Gold, document) => index.search(question, document, self.top_k as usize).map(Some),
                _ => index.search(question, None, self.top_k as usize).map(Some),
            },
        };
        let found: Vec<Option<Vec<Hit>>> = (0..batch.num_rows()).into_par_iter().map(search).collect::<Result<_, Failure>>()?;
        let mut rows = Rows::default();
        let mut rejects = Rejects::default();
        for (row, hits) in found.into_iter().enumerate() {
            let parent = text(batch, "row_id")?.value(row);
            let question_id = optional_text(batch, "question_id", row)?.unwrap_or(parent);
            match hits {
                Some(hits) => rows.add(parent, question_id, hits),
                None => {
                    let row_id = key::row_id("retrieve.reject", 0, &[parent], 0, 0);
                    rejects.push(&row_id, Some(parent), &Reject::new("empty", "no `question`"), 0);
                }
            }
        }
        let rejects = (rejects.len() > 0).then(|| rejects.take()).transpose()?;
        Ok((rows.finish(schema)?, rejects))
    }
}

/// Rows of the output while they are collected.
#[derive(Debug, Default)]
struct Rows {
    row_id: StringBuilder,
    parent_id: StringBuilder,
    question_id: StringBuilder,
    rank: Int32Builder,
    text: StringBuilder,
    score: Float64Builder,
    corpus_id: StringBuilder,
    title: StringBuilder,
    doc_id: StringBuilder,
}

impl Rows {
    fn add(&mut self, parent: &str, question_id: &str, hits: Vec<Hit>) {
        for (hit, rank) in hits.into_iter().zip(1..) {
            self.row_id.append_value(key::row_id("retrieve", 0, &[parent, &hit.row_id], 0, 0));
            self.parent_id.append_value(parent);
            self.question_id.append_value(question_id);
            self.rank.append_value(rank);
            self.text.append_value(hit.text);
            self.score.append_value(hit.score);
            self.corpus_id.append_value(hit.row_id);
            self.title.append_option(hit.title);
            self.doc_id.append_option(hit.doc_id);
        }
    }

    fn finish(mut self, schema: SchemaRef) -> Result<RecordBatch, Failure> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.question_id.finish()),
            Arc::new(self.rank.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.score.finish()),
            Arc::new(self.corpus_id.finish()),
            Arc::new(self.title.finish()),
            Arc::new(self.doc_id.finish()),
        ];
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{AsArray, StringArray},
        datatypes::Schema,
    };

    use super::*;

    #[test]
    fn questions_are_answered_in_order_and_empty_ones_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        for (id, text) in [("c0", "The lighthouse was lit in 1874."), ("c1", "Nine pilots work there."), ("c2", "Two tugs.")] {
            writer.add(id, Some("d"), None, text).unwrap();
        }
        let index = writer.finish().unwrap();
        let column = |texts: Vec<Option<&str>>| Arc::new(StringArray::from(texts)) as ArrayRef;
        let questions = RecordBatch::try_from_iter_with_nullable([
            ("row_id", column(vec![Some("q0"), Some("q1"), Some("q2")]), false),
            ("question_id", column(vec![Some("exam-0"), None, Some("exam-2")]), true),
            ("question", column(vec![Some("How many pilots, and how many tugs?"), Some("?"), None]), true),
        ])
        .unwrap();
        let retrieve = Retrieve { method: Method::Bm25, top_k: 1 };
        let schema = Arc::new(Schema::new(fields()));
        let (found, rejects) = retrieve.batch(&questions, &index, schema).unwrap();
        assert_eq!(found.num_rows(), 1);
        let cell = |name: &str| found.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
        assert_eq!((cell("question_id"), cell("parent_id"), cell("corpus_id")), ("exam-0".into(), "q0".into(), "c2".into()));
        assert_eq!(cell("row_id"), key::row_id("retrieve", 0, &["q0", "c2"], 0, 0));
        assert_eq!(rejects.unwrap().column_by_name("parent_id").unwrap().as_string::<i32>().value(0), "q2");
    }

    #[test]
    fn what_is_not_built_is_said() {
        let retrieve = Retrieve { method: Method::Hybrid, top_k: 8 };
        let mistakes = retrieve.bind(&Inputs::default()).unwrap_err();
        assert_eq!((mistakes.len(), mistakes[0].field.as_str()), (1, "/method"));
        let (_, config) = TYPE.parse(serde_json::json!({})).unwrap();
        assert_eq!(config, serde_json::json!({ "method": "bm25", "top_k": 8 }));
    }
}
