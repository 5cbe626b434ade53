//! Questions a model.

mod answer;
mod examiner;
mod figures;
mod generate;
mod likelihood;
mod number;
mod prediction;
mod question;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use async_trait::async_trait;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{
        DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT, Resource, Role,
    },
    run::{Task, TaskContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    examiner::{Examined, Examiner, Writing},
    figures::figures,
    question::Questions,
};
use crate::{
    columns::{blocking, is_text, is_texts, optional_text},
    rejects::{Reject, Rejects},
    render::Render,
};

const QUESTIONS: &str = "questions";
/// The port of the model that is questioned.
pub(crate) const MODEL: &str = "model";
/// The port of passages that questions are asked with.
pub(crate) const CONTEXTS: &str = "contexts";
const PREDICTIONS: &str = "predictions";

/// Questions that a model is given at a time, between two signs of progress.
const AT_ONCE: usize = 64;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Evaluate>("evaluate", 5)
    .planned(&["judge", "draws"])
    .reported()
    .detail(&["accuracy_raw", "accuracy_normalised"])
    .unkeyed(&[("allow_leakage", "it only decides whether the pipeline is accepted")]);

/// How a model is questioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By the probabilities that it gives to the options, or to the answer.
    Likelihood,
    /// By what it writes.
    Generate,
}

/// Questions a model and says how often it is right, with 95 % intervals.
///
/// Exactly one of the port `model` and the field `reader` says which model. A question with `options` is multiple choice,
/// one without is open-ended.
///
/// **likelihood** (a `model`). The prompt is `Question: …`, a new line, `Answer:`, as in training, with the contexts in
/// front, best last, each under its title. An option's score is log P(option | prompt) - log P(option | the prompt of an
/// empty question), summed over the option's tokens: what the question adds, so that an option isn't chosen for being
/// common. The option with the highest score is the prediction; of equal ones the first. Open-ended questions are scored by
/// log P(answer | prompt). With `render: chat` contexts and question are the user's turn in the checkpoint's chat template, and
/// what ends the answer there isn't scored.
///
/// **generate** with a `reader`. The model is asked to explain and to end in a line `Answer: …`. For multiple choice that line
/// holds the option's letter or its text. Open-ended answers are compared with `answer` and every one of `answers`, after
/// lower-casing and without punctuation and articles, as SQuAD does. An answer without such a line, a refusal and an answer
/// that is cut count as wrong; the last two are listed in `rejects`, too.
///
/// **generate** with a `model`. The prompt is that of likelihood (in a chat template without what it puts in front of every
/// answer), and the model goes on from it until its end token, or another that the checkpoint or its template names as an end, as
/// it was trained to: an explanation that ends in the answer. So an open-ended answer is right if what was written ends in it, and
/// its F1 is that of as many last words as the right answer has. Options are not shown: the choice is the option that stands
/// last in what was written, or no option.
///
/// **tolerance**. With it, numbers decide alone where a right answer is one: its only number, with nothing in front but
/// `about` or the like, and at most two words behind. `exact_match` is then whether the answer's only number (for a `model`,
/// the last one in what was written) is the right one within the tolerance; the words around it aren't compared. So `-3.5`
/// isn't `3.5`, though their words are the same. Numbers are read with their sign, also as brackets (`($1,577) million`),
/// commas between thousands, a currency, and a unit: `%`, `percent`, `thousand` to `trillion`, `mn`, `bn`; right behind an
/// amount of money also `k`, `m`, `b` (`$5m`; `5 m` are metres). `65.4%` is 0.654, and for a right `65.4%` a bare `65.4` is
/// right, too. A number without a unit may be in one that the question asks in: to `in USD millions`, `1577` and
/// `$1,577 million` are the same. A date, a range, or a second number in a reader's answer is no number. `token_f1` stays that
/// of the words.
///
/// Questions without `question` or `answer`, and multiple choice whose `answer` isn't one of the `options` word for word, are
/// rejected and count nowhere. A question that is too long for the model (`too_long`) is rejected as well, but has its row
/// in `predictions` and counts as wrong, as a refusal does: so figures over different contexts are over the same questions.
/// Only a log-probability has no value for it.
///
/// # Ports
/// - `questions`: an exam, or QA pairs (their `row_id` is the `question_id`): `question`, `answer`, and `options`,
///   `answers`, `metadata` where there are any.
/// - `model`: a checkpoint or a training; of several checkpoints the row with `final`.
/// - `contexts`: what `retrieve` found for these questions. A question without contexts is asked without: how many are, is
///   the figure `without_context`, and if all are, the stage fails.
///
/// # Outputs
/// - default: `metric`, `value`, `low`, `high`, `n` (questions counted). The interval is a percentile bootstrap over
///   questions.
/// - `predictions`: a row per question: `question_id`, `prediction`, `correct`, `score`, `raw`, `context`, `request_id` (of
///   a reader's answer in the memo; null for a model), and the columns that every figure is a mean of. For likelihood `raw`
///   is a JSON list: `option`, `log_prob` (after the prompt), `blind` (after the empty question), `tokens`; for generate it
///   is what the model wrote.
///
/// | metric | mean of | what it is |
/// |---|---|---|
/// | `accuracy` | `correct` | multiple choice |
/// | `accuracy_raw`, `accuracy_normalised` | `correct_raw`, `correct_normalised` | by log P(option \| prompt), summed or a token |
/// | `blind` | `correct_blind` | by log P(option \| the prompt of an empty question): what the options alone give away |
/// | `exact_match`, `token_f1` | `exact_match`, `token_f1` | open-ended, generate |
/// | `accuracy_answered_only`, `exact_match_answered_only` | the same, where `prediction` isn't null | generate, `too_long` |
/// | `answer_log_prob_per_token` | sum of `score` over sum of `answer_tokens` | open-ended, likelihood |
/// | `perplexity` | e to the minus of it | per token of the answer |
/// | `without_context` | whether `context` is null | where some questions have contexts and some don't |
///
/// # Memory
/// All questions and their contexts, and the model on its device.
///
/// # Example
/// ```yaml
/// closed: { op: evaluate, from: { questions: exam, model: student }, by: distractors }
/// rag:    { op: evaluate, from: { questions: exam, contexts: found }, reader: llama8b }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The name of a model under `models:` to question instead of the port `model`.
    #[serde(default)]
    pub reader: Option<String>,
    /// `likelihood` or `generate`. Default: `likelihood` for a `model`, `generate` for a `reader`, whose probabilities
    /// aren't known.
    #[serde(default)]
    pub method: Option<Method>,
    /// How questions become text for a `model`: `qa`, or `chat`, the checkpoint's chat template. Default: the form that the model was
    /// trained in (its column `render`), and `qa` where that isn't known.
    #[serde(default)]
    pub render: Option<Render>,
    /// Splits every figure by a column of the questions, or by a field of their `metadata`, beside the figure over all:
    /// with `by: distractors`, `accuracy[distractors=same_document]`. At least one question must have a value there. Default:
    /// no split.
    #[serde(default)]
    pub by: Option<String>,
    /// How many resamples an interval is made of. Default: 1,000.
    #[serde(default = "default_resamples")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub resamples: u32,
    /// The temperature for `generate`. Default: 0, the likeliest token.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// How many tokens an answer may have for `generate`; one that is cut there counts as wrong. Default: 1,024 for a
    /// `reader`, 128 for a `model`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<u32>,
    /// For `generate` and open-ended questions: where the right answer is a number, another one counts as right within this
    /// share of it, such as `0.01`, whatever its form (`$1.58 billion`, `1,577,000,000`), and nothing else does. Default: the
    /// same words are right.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tolerance: Option<f64>,
    /// Lets a model be questioned with rows that it was trained on, which is refused otherwise. Default: false.
    #[serde(default)]
    pub allow_leakage: bool,
}

fn default_resamples() -> u32 {
    1000
}

/// Tokens that an answer may have where the file doesn't say.
const READER_TOKENS: u32 = 1024;
const MODEL_TOKENS: u32 = 128;

impl Operator for Evaluate {
    fn ports(&self) -> Ports {
        let text = DataType::Utf8;
        Ports::Named(vec![
            Port::new(QUESTIONS, &[("row_id", text.clone()), ("question", text.clone()), ("answer", text.clone())])
                .role(Role::Question),
            Port::new(MODEL, &[("final", DataType::Boolean)]).optional().role(Role::Model),
            Port::new(CONTEXTS, &[("question_id", text.clone()), ("rank", DataType::Int32), ("text", text)]).optional(),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let hint = "give a checkpoint or a training at the port `model`, or a name of `models:` as `reader`";
        match (inputs.first(MODEL), &self.reader) {
            (Some(model), Some(reader)) => {
                let message = format!("both the port `model` (`{}`) and the reader `{reader}` are given", model.name);
                mistakes.push(Invalid::new("/reader", message).hint("leave one of them out"));
            }
            (None, None) => mistakes.push(Invalid::new("", "there is no model to question").hint(hint)),
            (None, Some(_)) if self.method == Some(Method::Likelihood) => mistakes.push(
                Invalid::new("/method", "`likelihood` needs the probabilities of given texts, which a `reader` doesn't tell")
                    .hint("`generate` with a `reader`, or a checkpoint at the port `model`"),
            ),
            _ => {}
        }
        let writes = self.reader.is_some() || self.method == Some(Method::Generate);
        if self.tolerance.is_some() && inputs.first(MODEL).is_some() && !writes {
            mistakes.push(
                Invalid::new("/tolerance", "`tolerance` compares written numbers, and `likelihood` has none written")
                    .hint("`method: generate`, or leave `tolerance` out"),
            );
        }
        if self.render == Some(Render::Chat) && self.reader.is_some() {
            mistakes.push(
                Invalid::new("/render", "`chat` is for a `model`: a `reader` is asked in its own chat template")
                    .hint("leave `render` out"),
            );
        }
        if self.resamples == 0 {
            mistakes.push(Invalid::new("/resamples", "an interval needs resamples").hint("leave it out for 1,000"));
        }
        if let Some(questions) = inputs.first(QUESTIONS) {
            for name in ["options", "answers"] {
                if questions.schema.field_with_name(name).is_ok() && !is_texts(&questions.schema, name) {
                    let message = format!("`{name}` in `{}` isn't a list of texts", questions.name);
                    mistakes.push(Invalid::new(&format!("/from/{QUESTIONS}"), message));
                }
            }
            if let Some(by) = &self.by
                && questions.schema.field_with_name(by).is_err()
                && !is_text(&questions.schema, "metadata")
            {
                let message = format!("`{}` has neither a column `{by}` nor `metadata`", questions.name);
                let there: Vec<_> = questions.schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
                mistakes.push(Invalid::new("/by", message).hint(format!("its columns are {}", there.join(", "))));
            }
        }
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, fields()), Output::new(PREDICTIONS, prediction::fields())]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(self.clone()))
    }

    fn draws(&self) -> bool {
        true
    }

    fn models(&self) -> Vec<(&'static str, String)> {
        self.reader.iter().map(|reader| ("reader", reader.clone())).collect()
    }

    fn resource(&self) -> Resource {
        match self.reader {
            Some(_) => Resource::Teacher,
            None => Resource::Device,
        }
    }

    fn allows_leakage(&self) -> bool {
        self.allow_leakage
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("low", DataType::Float64, false),
        Field::new("high", DataType::Float64, false),
        Field::new("n", DataType::Int64, false),
    ]
}

#[async_trait]
impl Task for Evaluate {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let mut rejects = Rejects::default();
        let mut questions = Questions::read(context.table(QUESTIONS)?.stream().await?, self.by.as_deref(), &mut rejects).await?;
        if let Some(by) = &self.by {
            questions.check_split(by)?;
        }
        if let Some(contexts) = context.tables(CONTEXTS).first() {
            questions.add_contexts(contexts.stream().await?).await?;
        }
        let questions = questions.sorted()?;
        if questions.is_empty() {
            return Err(Failure::data("there are no questions").hint("look at the stage that reads or makes them"));
        }
        if self.tolerance.is_some() && questions.iter().all(|question| !question.options.is_empty()) {
            return Err(Failure::data("`tolerance` is for open-ended questions, and all of these have `options`")
                .hint("leave `tolerance` out"));
        }
        context.count_units((questions.len() + rejects.len()) as u64);
        let predictions = match &self.reader {
            Some(reader) => {
                let client = crate::teachers::client(&context.environment, reader).await?;
                let max_output_tokens = self.max_output_tokens.unwrap_or(READER_TOKENS);
                let (temperature, tolerance) = (self.temperature, self.tolerance);
                let settings = generate::Settings { temperature, max_output_tokens, tolerance };
                let refresh = context.refresh.as_deref();
                generate::predictions(&client, &questions, settings, refresh, &context.counters, &mut rejects).await?
            }
            None => {
                let mut predictions = Vec::with_capacity(questions.len());
                context.computed_on(crate::train::device(&context.environment.device)?);
                for (prediction, reject) in self.by_model(questions, context).await? {
                    if let Some(reject) = reject {
                        refuse(&mut rejects, &prediction.parent_id, &reject, 0);
                    }
                    predictions.push(prediction);
                }
                predictions
            }
        };
        let generated = self.reader.is_some() || self.method == Some(Method::Generate);
        let table = figures(&predictions, self.by.as_deref(), generated, self.resamples, context.seed);
        let values = |value: fn(&crate::bootstrap::Figure) -> f64| {
            Arc::new(Float64Array::from_iter_values(table.iter().map(|(_, figure)| value(figure)))) as ArrayRef
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(
                table.iter().map(|(metric, _)| key::row_id("evaluate.metric", 0, &[metric], 0, 0)),
            )),
            Arc::new(StringArray::from_iter_values(table.iter().map(|(metric, _)| metric))),
            values(|figure| figure.value),
            values(|figure| figure.low),
            values(|figure| figure.high),
            Arc::new(Int64Array::from_iter_values(table.iter().map(|(_, figure)| figure.n as i64))),
        ];
        let rows = RecordBatch::try_new(context.schema(DEFAULT_OUTPUT)?, columns)?;
        context.write(DEFAULT_OUTPUT, rows).await?;
        for some in predictions.chunks(1024) {
            let rows = prediction::rows(some, context.schema(PREDICTIONS)?)?;
            context.write(PREDICTIONS, rows).await?;
        }
        if rejects.len() > 0 {
            let rows = rejects.take()?;
            context.write(REJECTS_OUTPUT, rows).await?;
        }
        Ok(())
    }
}

/// Lists a question as rejected.
fn refuse(rejects: &mut Rejects, question: &str, reject: &Reject, attempts: i32) {
    rejects.push(&key::row_id("evaluate.reject", 0, &[question], 0, 0), Some(question), reject, attempts);
}

impl Evaluate {
    async fn by_model(&self, questions: Vec<question::Question>, context: &TaskContext) -> Result<Vec<Examined>, Failure> {
        let model = context.table(MODEL)?;
        let (mut last, mut trained_in) = (0, None);
        for batch in model.collect().await? {
            let rows = batch.column_by_name("final").and_then(|column| column.as_boolean_opt());
            let rows = rows.into_iter().flatten().enumerate().filter(|(_, is_final)| *is_final == Some(true));
            for (row, _) in rows {
                last += 1;
                trained_in = optional_text(&batch, "render", row)?.and_then(Render::from_name);
            }
        }
        if last != 1 {
            return Err(Failure::data(format!("of the checkpoints at port `{MODEL}`, {last} are `final`"))
                .hint("exactly one must be: give a stage of `train` or `checkpoint` itself"));
        }
        let folder = model.folder("checkpoint").await?;
        let device = context.environment.device.clone();
        let counters = context.counters.clone();
        counters.say("loading the model");
        let writing = (self.method == Some(Method::Generate)).then(|| Writing {
            temperature: self.temperature,
            max_output_tokens: self.max_output_tokens.unwrap_or(MODEL_TOKENS) as usize,
            seed: context.seed,
            tolerance: self.tolerance,
        });
        let render = self.render.or(trained_in).unwrap_or_default();
        // A model stays on the thread that loaded it.
        blocking(move || {
            let mut examiner = Examiner::load(&folder, &device, render)?;
            let mut examined = Vec::with_capacity(questions.len());
            for some in questions.chunks(AT_ONCE) {
                examined.extend(match writing {
                    Some(writing) => examiner.written(some, writing)?,
                    None => examiner.predictions(some)?,
                });
                counters.say(format!("question {} of {}", examined.len(), questions.len()));
                counters.progress(examined.len() as u64, questions.len() as u64);
            }
            Ok(examined)
        })
        .await?
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
