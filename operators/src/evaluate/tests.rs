use std::collections::BTreeMap;

use arrow::{
    array::{ListBuilder, StringBuilder},
    datatypes::{Schema, SchemaRef},
};
use datafusion::{execution::SendableRecordBatchStream, physical_plan::stream::RecordBatchStreamAdapter};
use futures::stream;
use ingrain_engine::operator::Input;
use serde_json::json;

use super::{prediction::Prediction, *};
use crate::columns::text;

fn evaluate(config: serde_json::Value) -> Evaluate {
    serde_json::from_value(config).unwrap()
}

fn schema(columns: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>()))
}

fn inputs(questions: &[&str], model: bool) -> Inputs {
    let input = |schema| vec![Input { name: "made".into(), cell: Default::default(), schema }];
    let mut ports = BTreeMap::from([(QUESTIONS.to_owned(), input(schema(questions)))]);
    if model {
        let last = Field::new("final", DataType::Boolean, false);
        ports.insert(MODEL.to_owned(), input(Arc::new(Schema::new(vec![last]))));
    }
    Inputs { ports, ..Inputs::default() }
}

#[test]
fn exactly_one_model_and_a_method_that_it_can_be_asked_by() {
    let columns = ["row_id", "question", "answer"];
    let bind = |config: serde_json::Value, model: bool| {
        let bound = evaluate(config).bind(&inputs(&columns, model));
        bound.map(|outputs| outputs.len()).map_err(|mistakes| mistakes.into_iter().map(|m| m.field).collect::<Vec<_>>())
    };
    assert_eq!(bind(json!({}), true), Ok(2));
    assert_eq!(bind(json!({ "reader": "r" }), false), Ok(2));
    assert_eq!(bind(json!({ "reader": "r", "method": "generate" }), false), Ok(2));
    assert_eq!(bind(json!({}), false), Err(vec![String::new()]));
    assert_eq!(bind(json!({ "reader": "r" }), true), Err(vec!["/reader".to_owned()]));
    assert_eq!(bind(json!({ "reader": "r", "method": "likelihood" }), false), Err(vec!["/method".to_owned()]));
    assert_eq!(bind(json!({ "method": "generate" }), true), Ok(2));
    assert_eq!(bind(json!({ "by": "distractors" }), true), Err(vec!["/by".into()]));
    assert_eq!(bind(json!({ "render": "chat" }), true), Ok(2));
    assert_eq!(bind(json!({ "render": "chat", "reader": "r" }), false), Err(vec!["/render".into()]));
    assert_eq!(evaluate(json!({})).resource(), Resource::Device);
    assert_eq!(evaluate(json!({ "reader": "r" })).models(), [("reader", "r".to_owned())]);
    assert_eq!(bind(json!({ "tolerance": 0.01 }), true), Err(vec!["/tolerance".to_owned()]));
    assert_eq!(bind(json!({ "tolerance": 0.01, "method": "likelihood" }), true), Err(vec!["/tolerance".to_owned()]));
    assert_eq!(bind(json!({ "tolerance": 0.01, "method": "generate" }), true), Ok(2));
    assert_eq!(bind(json!({ "tolerance": 0.01, "reader": "r" }), false), Ok(2));
    let with_options = inputs(&["row_id", "question", "answer", "options", "metadata"], true);
    let mistakes = evaluate(json!({ "by": "distractors" })).bind(&with_options).unwrap_err();
    assert_eq!(mistakes[0].message, "`options` in `made` isn't a list of texts");
}

fn rows(batch: RecordBatch) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), stream::iter([Ok(batch)])))
}

fn column(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

#[tokio::test]
async fn questions_are_read_with_their_contexts() {
    let mut options = ListBuilder::new(StringBuilder::new());
    options.append_value([Some("18 metres"), Some("75 metres")]);
    options.append_null();
    options.append_value([Some("75 metres"), Some("34 metres")]);
    let questions = RecordBatch::try_from_iter_with_nullable([
        ("row_id", column(&[Some("r2"), Some("r1"), Some("r0")]), false),
        ("question_id", column(&[Some("exam-1"), None, Some("exam-3")]), true),
        ("question", column(&[Some("How deep?"), Some("Who?"), Some("How deep?")]), true),
        ("answer", column(&[Some("18 metres"), Some("Ida"), Some("18 metres")]), true),
        ("options", Arc::new(options.finish()) as ArrayRef, true),
        ("metadata", column(&[Some("{\"distractors\": \"same\", \"n\": 3}"), Some("no json"), None]), true),
    ])
    .unwrap();
    let contexts = RecordBatch::try_from_iter([
        ("question_id", column(&[Some("exam-1"), Some("exam-1"), Some("exam-9")])),
        ("rank", Arc::new(arrow::array::Int32Array::from(vec![2, 1, 1])) as ArrayRef),
        ("text", column(&[Some("second"), Some("best"), Some("other")])),
    ])
    .unwrap();
    let mut rejects = Rejects::default();
    let mut read = Questions::read(rows(questions), Some("distractors"), &mut rejects).await.unwrap();
    read.add_contexts(rows(contexts.slice(2, 1))).await.unwrap();
    assert!(read.clone().sorted().unwrap_err().message.starts_with("none of the contexts"));
    read.add_contexts(rows(contexts)).await.unwrap();
    let questions = read.sorted().unwrap();
    let ids: Vec<_> = questions.iter().map(|question| question.question_id.as_str()).collect();
    assert_eq!(ids, ["r1", "exam-1"]);
    assert_eq!((questions[0].options.len(), questions[0].group.as_deref(), questions[0].context()), (0, None, None));
    assert_eq!(questions[1].group.as_deref(), Some("same"));
    assert_eq!(questions[1].context().as_deref(), Some("second\n\nbest"));
    let rejects = rejects.take().unwrap();
    assert_eq!(rejects.num_rows(), 1);
    assert_eq!(text(&rejects, "parent_id").unwrap().value(0), "r0");
    assert_eq!(text(&rejects, "reason").unwrap().value(0), "bad_options");
}

/// Three questions without contexts, not all of them with metadata.
async fn questions(by: &str) -> Questions {
    let questions = RecordBatch::try_from_iter_with_nullable([
        ("row_id", column(&[Some("r1"), Some("r2"), Some("r3")]), false),
        ("question", column(&[Some("Who?"), Some("Where?"), Some("When?")]), true),
        ("answer", column(&[Some("Ida"), Some("Gull Sound"), Some("1911")]), true),
        ("hard", column(&[None, None, None]), true),
        ("metadata", column(&[Some("{\"distractors\": \"same\"}"), Some("{\"page\": null}"), None]), true),
    ])
    .unwrap();
    Questions::read(rows(questions), Some(by), &mut Rejects::default()).await.unwrap()
}

#[tokio::test]
async fn a_split_has_parts() {
    assert!(questions("distractors").await.check_split("distractors").is_ok());
    assert!(questions("answer").await.check_split("answer").is_ok());
    let failure = questions("distractor").await.check_split("distractor").unwrap_err();
    assert_eq!(failure.message, "no question has `distractor` in its `metadata`");
    assert_eq!(failure.hint.unwrap(), "did you mean `distractors`? its fields are `distractors`, `page`");
    let failure = questions("topic").await.check_split("topic").unwrap_err();
    assert_eq!(failure.hint.unwrap(), "its fields are `distractors`, `page`");
    for by in ["page", "hard"] {
        let failure = questions(by).await.check_split(by).unwrap_err();
        assert_eq!(failure.message, format!("`{by}` is null for every question, so no figure can be split by it"));
    }
}

#[tokio::test]
async fn a_table_of_contexts_has_some() {
    let contexts = |ids: &[Option<&str>], texts: &[Option<&str>]| {
        let ranks: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1; ids.len()]));
        rows(RecordBatch::try_from_iter([("question_id", column(ids)), ("rank", ranks), ("text", column(texts))]).unwrap())
    };
    let mut none = questions("answer").await;
    none.add_contexts(contexts(&[], &[])).await.unwrap();
    assert!(none.sorted().unwrap_err().message.starts_with("there are no contexts"));
    let mut blank = questions("answer").await;
    blank.add_contexts(contexts(&[Some("r1")], &[Some(" ")])).await.unwrap();
    assert!(blank.sorted().unwrap_err().message.starts_with("there are no contexts"));
    let mut one = questions("answer").await;
    one.add_contexts(contexts(&[Some("r1")], &[Some("Ida did.")])).await.unwrap();
    let found: Vec<_> = one.sorted().unwrap().iter().map(|question| question.context()).collect();
    assert_eq!(found, [Some("Ida did.".to_owned()), None, None]);
    assert_eq!(questions("answer").await.sorted().unwrap().len(), 3, "without such a table");
}

#[test]
fn every_figure_is_over_the_rows_that_it_counts() {
    let choice = |correct, blind, group: &str| Prediction {
        correct: Some(correct),
        correct_blind: Some(blind),
        prediction: Some("x".into()),
        group: Some(group.into()),
        score: Some(1.0),
        ..Prediction::default()
    };
    let open = |log_prob, tokens| Prediction { score: Some(log_prob), answer_tokens: Some(tokens), ..Prediction::default() };
    let predictions =
        [choice(true, false, "same"), choice(false, true, "same"), choice(true, false, "other"), open(-2.0, 1), open(-4.0, 2)];
    let table: BTreeMap<_, _> = figures(&predictions, Some("distractors"), false, 100, 7).into_iter().collect();
    let value = |metric: &str| table.get(metric).map(|figure| (figure.value, figure.n));
    assert_eq!(value("accuracy"), Some((2.0 / 3.0, 3)));
    assert_eq!(value("accuracy[distractors=same]"), Some((0.5, 2)));
    assert_eq!(value("accuracy[distractors=other]"), Some((1.0, 1)));
    assert_eq!(value("blind[distractors=same]"), Some((0.5, 2)));
    assert_eq!(value("answer_log_prob_per_token"), Some((-2.0, 2)));
    assert_eq!(value("perplexity"), Some((2f64.exp(), 2)));
    assert_eq!((value("accuracy_answered_only"), value("exact_match"), value("accuracy_raw")), (None, None, None));

    let unread = Prediction { correct: Some(false), ..Prediction::default() };
    let written = figures(&[choice(true, false, "same"), unread], None, true, 100, 7);
    let written: BTreeMap<_, _> = written.into_iter().collect();
    assert_eq!((written["accuracy"].value, written["accuracy"].n), (0.5, 2));
    assert_eq!((written["accuracy_answered_only"].value, written["accuracy_answered_only"].n), (1.0, 1));
    assert!(!written.contains_key("without_context"));
}

#[test]
fn what_was_not_answered_and_what_had_no_context_are_figures() {
    let of = |prediction: Option<&str>, context: Option<&str>, group: &str| Prediction {
        correct: Some(prediction.is_some()),
        prediction: prediction.map(str::to_owned),
        context: context.map(str::to_owned),
        group: Some(group.into()),
        ..Prediction::default()
    };
    let table = |predictions: &[Prediction]| -> BTreeMap<String, (f64, usize)> {
        let figures = figures(predictions, Some("kind"), false, 100, 7);
        figures.into_iter().map(|(metric, figure)| (metric, (figure.value, figure.n))).collect()
    };
    let found = table(&[of(Some("x"), Some("text"), "name"), of(None, Some("text"), "name"), of(Some("x"), None, "year")]);
    assert_eq!(found["accuracy"], (2.0 / 3.0, 3));
    assert_eq!(found["accuracy_answered_only"], (1.0, 2));
    assert_eq!(found["without_context"], (1.0 / 3.0, 3));
    assert_eq!((found["without_context[kind=name]"], found["without_context[kind=year]"]), ((0.0, 2), (1.0, 1)));
    let whole = table(&[of(Some("x"), Some("text"), "name"), of(Some("y"), Some("text"), "year")]);
    assert!(!whole.contains_key("without_context") && !whole.contains_key("accuracy_answered_only"));
}

#[test]
fn predictions_become_rows() {
    let prediction = Prediction { parent_id: "r".into(), question_id: "q".into(), correct: Some(true), ..Prediction::default() };
    let schema = Arc::new(Schema::new(prediction::fields()));
    let rows = prediction::rows(&[prediction], schema).unwrap();
    assert_eq!(text(&rows, "row_id").unwrap().value(0), key::row_id("evaluate", 0, &["r"], 0, 0));
    assert_eq!(rows.column_by_name("score").unwrap().null_count(), 1);
}
