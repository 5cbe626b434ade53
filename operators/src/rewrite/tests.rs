use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::Schema,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use ingrain_engine::key;
use ingrain_llm::{Answer, Finish};
use serde_json::{Value, json};

use super::{
    asking::{Answered, Job, Requests, Rewritten, batches, jobs, read, turned},
    *,
};
use crate::{rejects::Reject, teachers::texts};

fn requests_of(config: &Rewrite) -> Requests {
    Requests::new(config, Prompt::open(config.prompt.as_deref(), config.template().0).unwrap())
}

fn config(extra: Value) -> Rewrite {
    let mut config = json!({ "teacher": "offline" });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn table(columns: &[(&str, Vec<Option<String>>)]) -> RecordBatch {
    let columns = columns.iter().map(|(name, values)| (*name, Arc::new(StringArray::from(values.clone())) as ArrayRef, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

fn documents() -> RecordBatch {
    table(&[
        ("row_id", some(&["d1", "d2"])),
        ("doc_id", some(&["a.txt", "b.txt"])),
        ("title", vec![Some("Ellmark".into()), None]),
        ("text", some(&["Ida Brandt founded it.", "Nine pilots."])),
    ])
}

fn questions() -> RecordBatch {
    let ids: Vec<String> = (0..20).map(|n| format!("q{n:02}")).chain(["lost".into(), "lone".into()]).collect();
    let parents = (0..20).map(|n| Some(if n < 18 { "d1" } else { "d2" }.to_owned())).chain([Some("gone".into()), None]);
    table(&[
        ("row_id", ids.iter().cloned().map(Some).collect()),
        ("parent_id", parents.collect()),
        ("question", ids.iter().map(|id| Some(format!("{id}?"))).collect()),
    ])
}

fn inputs(documents: &RecordBatch, questions: &RecordBatch) -> Inputs {
    let port = |name: &str, rows: &RecordBatch| {
        (name.to_owned(), vec![Input { name: name.to_owned(), cell: Default::default(), schema: rows.schema() }])
    };
    Inputs { ports: [port(DOCUMENTS, documents), port(QUESTIONS, questions)].into(), ..Inputs::default() }
}

/// What the operator's query gives, sorted as the engine sorts it.
async fn asked(config: &Rewrite, documents: &RecordBatch, questions: &RecordBatch, partitions: usize) -> RecordBatch {
    let mut session = SessionConfig::new().with_target_partitions(partitions);
    session.options_mut().sql_parser.map_string_types_to_utf8view = false;
    session.options_mut().optimizer.prefer_hash_join = false;
    let session = SessionContext::new_with_config(session);
    session.register_batch(DOCUMENTS, documents.clone()).unwrap();
    session.register_batch(QUESTIONS, questions.clone()).unwrap();
    let sql = format!("select * from ({}) order by row_id", config.sql(&inputs(documents, questions)));
    let rows = session.sql(&sql).await.unwrap();
    let schema = Arc::new(rows.schema().as_arrow().clone());
    concat_batches(&schema, &rows.collect().await.unwrap()).unwrap()
}

fn ids(rows: &RecordBatch) -> Vec<String> {
    texts(rows, "row_id").unwrap().iter().flatten().map(str::to_owned).collect()
}

#[tokio::test]
async fn questions_are_drawn_without_replacement_and_by_their_own_id_alone() {
    let (documents, questions) = (documents(), questions());
    let three = asked(&config(json!({ "per_document": 3 })), &documents, &questions, 1).await;
    assert_eq!(three.num_rows(), 3 + 2 + 2, "three of d1's, both of d2's, and the two without a document");
    let unique: std::collections::BTreeSet<String> = ids(&three).into_iter().collect();
    assert_eq!(unique.len(), three.num_rows());
    assert_eq!(asked(&config(json!({ "per_document": 3 })), &documents, &questions, 4).await, three);

    let all = asked(&config(json!({ "per_document": 18 })), &documents, &questions, 2).await;
    assert_eq!(all.num_rows(), 22);
    let drawn: Vec<String> = ids(&three).into_iter().filter(|id| id.starts_with('q') && id.as_str() < "q18").collect();
    assert_ne!(drawn, ["q00", "q01", "q02"], "not merely the first ones");
    let fewer = questions.slice(0, 17);
    let kept = ids(&asked(&config(json!({ "per_document": 3 })), &documents, &fewer, 1).await);
    assert!(drawn.iter().filter(|id| kept.contains(id)).count() >= 2, "{drawn:?} {kept:?}");
}

#[tokio::test]
async fn a_question_goes_with_the_row_that_it_was_asked_about() {
    let (documents, questions) = (documents(), questions());
    let config = config(json!({ "per_document": 20, "max_output_tokens": 120 }));
    let rows = asked(&config, &documents, &questions, 1).await;
    let requests = Arc::new(requests_of(&config));
    let jobs: Vec<Job> = jobs(&requests, rows).unwrap();
    let job = |id: &str| jobs.iter().find(|job| job.text("row_id").unwrap() == id).unwrap();
    let (request, _) = job("q18").request().unwrap();
    assert_eq!((job("q18").text("document_id").unwrap(), job("q18").cell("doc_id").unwrap()), ("d2", Some("b.txt")));
    let expected = json!({ "title": null, "text": "Nine pilots.", "question": "q18?", "answer": null, "max_words": 90 });
    assert_eq!(request.variables, expected);
    assert!(request.messages[0].content.contains("Question: q18?\n") && request.messages[0].content.contains("at most 90 words"));
    assert!(!request.messages[0].content.contains("The answer that"));
    assert_eq!(job("q18").unasked().unwrap(), None);
    let lost = Reject::new("no_document", "its `parent_id` gone is the `row_id` of no row of `documents`");
    assert_eq!(job("lost").unasked().unwrap(), Some(lost));
    assert_eq!(job("lone").unasked().unwrap(), Some(Reject::new("no_document", "it has no `parent_id`")));
}

#[tokio::test]
async fn nothing_is_asked_without_text_or_question() {
    let documents = table(&[
        ("row_id", some(&["d1", "d2"])),
        ("doc_id", some(&["a.txt", "b.txt"])),
        ("text", vec![None, Some("Nine pilots.".into())]),
    ]);
    let questions = table(&[
        ("row_id", some(&["q0", "q1", "q2"])),
        ("parent_id", some(&["d1", "d2", "d2"])),
        ("question", some(&["Who?", "How many?", " \n"])),
    ]);
    let config = config(json!({}));
    let rows = asked(&config, &documents, &questions, 1).await;
    let jobs = jobs(&Arc::new(requests_of(&config)), rows).unwrap().into_iter().map(|job| job.unasked().unwrap());
    let empty = |detail: &str| Some(Reject::new("empty", detail));
    assert_eq!(jobs.collect::<Vec<_>>(), [empty("its document has no `text`"), None, empty("no `question`")]);
}

#[test]
fn what_there_is_none_of_is_an_empty_text_in_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jinja");
    std::fs::write(&path, "{{ title }}|{{ text }}|{{ question }}|{{ answer }}{% if answer %}!{% endif %}").unwrap();
    let requests = requests_of(&config(json!({ "prompt": path })));
    let content = |title, answer| {
        let variables = [("title", title), ("text", Some("T.")), ("question", Some("Q?")), ("answer", answer)];
        requests.request(NAME, &variables).unwrap().messages[0].content.clone()
    };
    assert_eq!(content(None, None), "|T.|Q?|");
    assert_eq!(content(Some("Ellmark"), Some("nine")), "Ellmark|T.|Q?|nine!");
}

#[tokio::test]
async fn no_match_at_all_is_an_error() {
    let strangers = questions().slice(20, 2);
    let config = config(json!({}));
    let rows = asked(&config, &documents(), &strangers, 1).await;
    assert_eq!(rows.num_rows(), 2);
    let failure = jobs(&Arc::new(requests_of(&config)), rows).err().unwrap();
    assert!(failure.message.contains("no question belongs to a document"), "{failure}");
    let none = asked(&config, &documents(), &strangers.slice(0, 0), 1).await;
    assert!(jobs(&Arc::new(requests_of(&config)), none).unwrap().is_empty());
}

#[test]
fn strategies_that_are_not_built_are_refused_by_name() {
    let mistakes =
        config(json!({ "strategy": "active_reading", "max_output_tokens": 20 })).bind(&inputs(&documents(), &questions()));
    let mistakes = mistakes.unwrap_err();
    assert_eq!(mistakes.iter().map(|mistake| mistake.field.as_str()).collect::<Vec<_>>(), ["/strategy", "/min_words"]);
    assert_eq!(mistakes[0].message, "`active_reading` isn't built yet");
    for strategy in [Strategy::Focal, Strategy::ActiveReading, Strategy::Rephrase, Strategy::Entigraph, Strategy::StudyGuide] {
        assert_eq!(json!(strategy), strategy.name());
    }
}

#[test]
fn short_rewrites_are_refused_unless_the_document_is_shorter() {
    let requests = requests_of(&config(json!({ "min_words": 3 })));
    assert_eq!((requests.least_words("one two"), requests.least_words("one two three")), (1, 3));
    let zero = requests_of(&config(json!({ "min_words": 0 })));
    assert_eq!((zero.least_words(""), zero.least_words("one two three")), (1, 1));
    let answer =
        |text: &str, finish| Answer { text: text.into(), reasoning: None, finish, usage: None, model: "m".into(), created_ms: 0 };
    assert_eq!(read(&answer(" one two three\n", Finish::Stop), 3).unwrap(), "one two three");
    assert_eq!(read(&answer("one two", Finish::Stop), 3).unwrap_err().reason, "too_short");
    assert_eq!(read(&answer(" ", Finish::Stop), 1).unwrap_err().reason, "too_short");
    assert_eq!(read(&answer("one two three", Finish::Length), 3).unwrap_err().reason, "length");
}

#[test]
fn rewrites_become_rows_and_refused_ones_rejects() {
    let config = config(json!({}));
    let schema = config.bind(&inputs(&documents(), &questions())).unwrap()[0].schema.clone();
    let rewritten =
        Rewritten { document_id: "d1".into(), doc_id: Some("a.txt".into()), text: "New.".into(), request_id: "r".into() };
    let outputs = batches(
        &schema,
        Strategy::Focal,
        vec![
            Answered { asked_id: "lost".into(), turn: None, result: Err((Reject::new("no_document", "none"), 0)) },
            Answered { asked_id: "q01".into(), turn: None, result: Ok(rewritten) },
        ],
    )
    .unwrap();
    let (rows, rejected) = (&outputs[0].rows, &outputs[1].rows);
    let cell = |name: &str| texts(rows, name).unwrap().value(0);
    assert_eq!(cell("row_id"), key::row_id("rewrite", 0, &["d1", "q01"], 0, 0));
    assert_eq!((cell("parent_id"), cell("question_id"), cell("strategy"), cell("text")), ("d1", "q01", "focal", "New."));
    assert_eq!(texts(rejected, "parent_id").unwrap().value(0), "lost");
    assert_eq!(Schema::new(rejected.schema().fields().clone()), *ingrain_engine::operator::rejects_schema());
}

#[test]
fn a_document_is_rephrased_piece_by_piece_and_style_by_style() {
    let text = "Ida Brandt founded the mill of Gull Sound in 1866. ".repeat(40);
    let documents = table(&[
        ("row_id", some(&["d1", "d2"])),
        ("doc_id", some(&["a.txt", "b.txt"])),
        ("text", vec![Some(text.clone()), Some(" ".into())]),
    ]);
    let config = config(json!({ "strategy": "rephrase", "styles": ["qa", "easy"], "max_output_tokens": 120 }));
    let requests = Arc::new(requests_of(&config));
    let jobs = turned(&requests, documents.clone(), config.styles(), 5).unwrap();
    assert_eq!(jobs.len(), 6, "five of the first, and one to say that the second has no text");
    assert_eq!(jobs[5].unasked().unwrap(), Some(Reject::new("empty", "no `text`")));
    let (request, least) = jobs[3].request().unwrap();
    let turn = jobs[3].turn.clone().unwrap();
    assert_eq!((request.task.as_str(), least), ("rephrase", 30));
    assert_eq!((turn.piece, turn.style, jobs[4].turn.as_ref().unwrap().draw), (1, Style::Easy, 1));
    assert_eq!(request.variables["text"], json!(text[turn.span.clone()]));
    assert_eq!(request.variables["style"], "easy");
    let said = &request.messages[0].content;
    assert!(
        said.contains("short sentences") && said.contains("at most 90 words") && said.contains("the text's subject"),
        "{said}"
    );

    let schema = config.bind(&one(&documents)).unwrap()[0].schema.clone();
    let rewritten =
        Rewritten { document_id: "d1".into(), doc_id: Some("a.txt".into()), text: "New.".into(), request_id: "r".into() };
    let answered = Answered { asked_id: "d1".into(), turn: jobs[3].turn.clone(), result: Ok(rewritten) };
    let rows = &batches(&schema, Strategy::Rephrase, vec![answered]).unwrap()[0].rows;
    let cell = |name: &str| texts(rows, name).unwrap().value(0).to_owned();
    assert_eq!((cell("parent_id"), cell("strategy"), cell("style")), ("d1".into(), "rephrase".into(), "easy".into()));
    assert_eq!(cell("row_id"), key::row_id("rewrite", 0, &["d1"], 0, 4));
    assert!(rows.column_by_name("byte_start").is_some() && rows.column_by_name("question_id").is_none());
}

fn one(documents: &RecordBatch) -> Inputs {
    let mut inputs = inputs(documents, documents);
    inputs.ports.remove(QUESTIONS);
    inputs
}

#[test]
fn a_strategy_takes_what_it_needs_and_nothing_else() {
    let said = |config: Value, inputs: &Inputs| -> Vec<(String, String)> {
        let mistakes = self::config(config).bind(inputs).err().unwrap_or_default();
        mistakes.into_iter().map(|mistake| (mistake.field, mistake.message)).collect()
    };
    let (both, alone) = (inputs(&documents(), &questions()), one(&documents()));
    assert_eq!(said(json!({ "strategy": "rephrase" }), &alone), []);
    let focal = said(json!({}), &alone);
    assert!(focal[0].1.contains("nothing arrives at the port `questions`"), "{focal:?}");
    let served = said(json!({ "strategy": "rephrase" }), &both);
    assert_eq!(served[0].0, "/from/questions");
    let styled = said(json!({ "styles": ["qa"] }), &both);
    assert_eq!(styled[0].1, "only `rephrase` has styles, and the strategy is `focal`");
    let twice = said(json!({ "strategy": "rephrase", "styles": ["qa", "easy", "qa"] }), &alone);
    assert_eq!(twice, [("/styles/2".to_owned(), "`qa` stands there twice".to_owned())]);
}
