//! Documents rewritten by a teacher.

mod asking;
mod rephrase;

use std::{path::PathBuf, sync::Arc};

use arrow::datatypes::{DataType, Field};
use ingrain_engine::{
    operator::{DEFAULT_OUTPUT, Input, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Query, Resource},
    spec::Size,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::asking::Ask;
pub use self::rephrase::Style;
use crate::{route::input, teachers::prompt::Prompt};

const NAME: &str = "rewrite";
const DOCUMENTS: &str = "documents";
const QUESTIONS: &str = "questions";
const FOCAL: &str = include_str!("focal.jinja");
const REPHRASE: &str = include_str!("rephrase.jinja");

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Rewrite>(NAME, 2);

/// Asks a teacher to rewrite each document several times, so that a student meets the same facts in many forms.
///
/// With the strategy `focal`, each rewrite serves one question about its document: the teacher chooses a way to learn the
/// document with that question in mind, and writes by it. A question goes with the row that it was asked about
/// (`questions.parent_id` is that row's `row_id`), and each row takes `per_document` of its questions, without
/// replacement: those that come first by a hash of their own `row_id`. So another seed costs no call, and a question that
/// is added or removed changes one rewrite at most.
///
/// With `rephrase` (WRAP: Maini et al., arXiv 2401.16380) no question is asked: each row is cut at sentences into even pieces of at
/// most 260 words, about 350 tokens, and the teacher says each piece again in the styles `easy`, `medium`, `hard` and `qa`. The
/// `per_document` rewrites are every piece in the first style, every piece in the next, and when all styles are done, the same again
/// with another draw. The prompts are ours.
///
/// Every answer is remembered on the store before its row is written, so that no request is paid for twice. An answer that
/// can't be used (a refusal, one that `max_output_tokens` cut off, one of fewer words than `min_words`) is asked for again,
/// `attempts` times in all, and then is a row of `rejects`. So is a request that the server refuses (`invalid_request`, with
/// its words) or that doesn't fit into the model's `context` (`too_long`), and so are, unasked, a question without its document
/// (`no_document`) and one that is empty, or whose document is (`empty`). When there are questions and none has its document,
/// the stage fails.
///
/// A prompt is a template in Jinja's syntax. It reads `title`, `text`, `max_words` (three quarters of `max_output_tokens`), and for
/// `focal` `question` and `answer`, for `rephrase` `style` (its name) and `manner` (what the style asks for); `title` and `answer`
/// are empty texts where there is none. It can read nothing else.
///
/// # Ports
/// - `documents`: documents or chunks: `doc_id`, `text`, and `title` where there is one.
/// - `questions`, for `focal`: what they are rewritten for: `question`, and `answer` where there is one.
///
/// # Outputs
/// - default: a row for each rewrite: `doc_id, text, strategy, question_id` (the question's `row_id`), `request_id` (of the
///   answer in the memo). `parent_id` is the document's row. With `rephrase`, in place of `question_id`: `style`, and `byte_start`
///   and `byte_end` of the piece in the document's `text`.
///
/// # Example
/// ```yaml
/// rewrites:  { op: rewrite, from: { documents: units, questions: qa_unique }, strategy: focal, teacher: llama70b, per_document: 8 }
/// rephrased: { op: rewrite, from: units, strategy: rephrase, teacher: llama70b, per_document: 8 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// How a document is rewritten. Built so far: `focal`, the default, and `rephrase`.
    #[serde(default)]
    pub strategy: Strategy,
    /// The styles of `rephrase`, in the order in which they are asked for. Default all four: `easy`, `medium`, `hard`, `qa`.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub styles: Option<Vec<Style>>,
    /// The model that is asked: a name under `models`.
    pub teacher: String,
    /// Rewrites of each document: for `focal` at most, one a question. Default 8.
    #[serde(default = "eight")]
    #[schemars(range(min = 1))]
    pub per_document: u32,
    /// A file with a prompt template, relative to the pipeline file. Default: the strategy's own.
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// Temperature of the teacher's draws; 0 takes the likeliest token. Default 0.7.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: f64,
    /// The share of probability that the teacher draws from. Default 0.95.
    #[serde(default = "top_p")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub top_p: f64,
    /// Tokens after which a rewrite is cut off (and refused); the teacher is told to stay under three quarters as many words.
    /// A student learns best from rewrites that are no longer than its training sequence. Default 4096.
    #[serde(default = "output_tokens")]
    #[schemars(extend("minimum" = 2, "maximum" = 4_294_967_295_u32))]
    pub max_output_tokens: Size,
    /// Words that a rewrite has at least. A document with fewer words itself may have any rewrite but an empty one.
    /// Default 30.
    #[serde(default = "thirty")]
    pub min_words: u32,
    /// How often a request is asked at most until its answer can be used. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
}

/// How a document is rewritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// For one question about it at a time.
    #[default]
    Focal,
    /// By strategies that the teacher proposes for it.
    ActiveReading,
    /// In fixed styles.
    Rephrase,
    /// As relations among its entities.
    Entigraph,
    /// As material to study from.
    StudyGuide,
}

impl Strategy {
    /// The word in the pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Focal => "focal",
            Self::ActiveReading => "active_reading",
            Self::Rephrase => "rephrase",
            Self::Entigraph => "entigraph",
            Self::StudyGuide => "study_guide",
        }
    }
}

fn eight() -> u32 {
    8
}

fn thirty() -> u32 {
    30
}

fn five() -> u32 {
    5
}

fn temperature() -> f64 {
    0.7
}

fn top_p() -> f64 {
    0.95
}

fn output_tokens() -> Size {
    Size(4096)
}

impl Operator for Rewrite {
    fn ports(&self) -> Ports {
        let text = |names: &[&'static str]| names.iter().map(|name| (*name, DataType::Utf8)).collect::<Vec<_>>();
        Ports::Named(vec![
            Port::new(DOCUMENTS, &text(&["row_id", "doc_id", "text"])),
            Port::new(QUESTIONS, &text(&["row_id", "parent_id", "question"])).optional(),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let documents = input(inputs, DOCUMENTS)?;
        let mut mistakes = Vec::new();
        let (template, variables) = self.template();
        match Prompt::open(self.prompt.as_deref(), template) {
            Err(wrong) => mistakes.push(Invalid::new("/prompt", wrong)),
            Ok(prompt) => mistakes.extend(prompt.unknown("/prompt", "`rewrite`", &variables.iter().copied().collect())),
        }
        match (self.strategy, inputs.first(QUESTIONS)) {
            (Strategy::Focal, None) => mistakes.push(
                Invalid::new(
                    "/from",
                    "nothing arrives at the port `questions` of `rewrite`, and `focal` rewrites for a question each",
                )
                .hint("write `from: { documents: some_stage, questions: some_stage }`, or `strategy: rephrase`"),
            ),
            (Strategy::Rephrase, Some(questions)) => mistakes.push(
                Invalid::new("/from/questions", format!("`rephrase` serves no questions, and `{}` arrives", questions.name))
                    .hint("leave `questions` out, or write `strategy: focal`"),
            ),
            (Strategy::Focal | Strategy::Rephrase, _) => {}
            (other, _) => mistakes.push(
                Invalid::new("/strategy", format!("`{}` isn't built yet", other.name())).hint("`focal` and `rephrase` are"),
            ),
        }
        if let Some(styles) = &self.styles {
            if self.strategy != Strategy::Rephrase {
                mistakes.push(
                    Invalid::new(
                        "/styles",
                        format!("only `rephrase` has styles, and the strategy is `{}`", self.strategy.name()),
                    )
                    .hint("leave `styles` out"),
                );
            }
            if let Some(twice) = styles.iter().enumerate().find(|(place, style)| styles[..*place].contains(style)) {
                mistakes.push(Invalid::new(&format!("/styles/{}", twice.0), format!("`{}` stands there twice", twice.1.name())));
            }
        }
        if u32::try_from(self.max_output_tokens.0).is_err() {
            mistakes.push(Invalid::new("/max_output_tokens", "is more than any model gives").hint("`4096` is the default"));
        }
        if u64::from(self.min_words) > u64::from(self.max_words()) {
            mistakes.push(
                Invalid::new(
                    "/min_words",
                    format!("is {}, and `max_output_tokens` leaves room for {} words", self.min_words, self.max_words()),
                )
                .hint("lower `min_words` or raise `max_output_tokens`"),
            );
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let doc_id = documents.schema.field_with_name("doc_id").is_ok_and(|field| !field.is_nullable());
        let text = |name: &str, nullable: bool| Field::new(name, DataType::Utf8, nullable);
        let mut fields = vec![
            text("row_id", false),
            text("parent_id", false),
            text("doc_id", !doc_id),
            text("text", false),
            text("strategy", false),
        ];
        match self.strategy {
            Strategy::Rephrase => {
                let place = |name: &str| Field::new(name, DataType::Int64, false);
                fields.extend([text("style", false), place("byte_start"), place("byte_end")]);
            }
            _ => fields.push(text("question_id", false)),
        }
        fields.push(text("request_id", false));
        Ok(vec![Output::new(DEFAULT_OUTPUT, fields)])
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let query = match self.strategy {
            // Nothing is joined: the documents' parts are asked about one by one.
            Strategy::Rephrase => None,
            _ => Some(Query { sql: self.sql(inputs), unique: false }),
        };
        Lowering::Rows { query, stream: Some(Arc::new(Ask(self.clone()))) }
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        self.prompt.iter().map(|path| ("prompt", path.clone())).collect()
    }

    fn models(&self) -> Vec<(&'static str, String)> {
        vec![("teacher", self.teacher.clone())]
    }

    fn resource(&self) -> Resource {
        Resource::Teacher
    }
}

impl Rewrite {
    /// The strategy's own prompt, and what one of a user's may read.
    fn template(&self) -> (&'static str, &'static [&'static str]) {
        match self.strategy {
            Strategy::Rephrase => (REPHRASE, &["title", "text", "style", "manner", "max_words"]),
            _ => (FOCAL, &["title", "text", "question", "answer", "max_words"]),
        }
    }

    fn styles(&self) -> &[Style] {
        self.styles.as_deref().unwrap_or(&Style::ALL)
    }

    /// Words that the teacher is told to stay under.
    fn max_words(&self) -> u32 {
        u32::try_from(self.max_output_tokens.0.saturating_mul(3) / 4).unwrap_or(u32::MAX)
    }

    /// The questions that are rewritten for, each with its document, and those without one. `matched` is the number of all
    /// questions that have their document, the same in every row: a partition alone can't know that it is 0.
    fn sql(&self, inputs: &Inputs) -> String {
        let has = |port: &str, column: &str| {
            inputs.first(port).is_some_and(|Input { schema, .. }| schema.column_with_name(column).is_some())
        };
        let title = if has(DOCUMENTS, "title") { "documents.title" } else { "cast(null as varchar)" };
        let answer = if has(QUESTIONS, "answer") { "answer" } else { "cast(null as varchar)" };
        format!(
            "select asked.row_id, asked.parent_id, asked.question, asked.answer, \
                documents.row_id as document_id, documents.doc_id, {title} as title, documents.text, matched.n as matched \
             from (select count(*) as n from questions join documents on questions.parent_id = documents.row_id) as matched \
             cross join (select row_id, parent_id, question, {answer} as answer, row_number() over (\
                partition by parent_id order by encode(digest(concat('rewrite;', row_id), 'blake3'), 'hex'), row_id) as place from questions) as asked \
             left join documents on asked.parent_id = documents.row_id \
             where asked.place <= {} or documents.row_id is null",
            self.per_document
        )
    }
}

#[cfg(test)]
mod tests;
