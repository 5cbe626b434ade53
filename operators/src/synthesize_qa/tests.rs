use arrow::{
    array::{AsArray, StringArray},
    datatypes::{Int32Type, Schema},
};
use ingrain_engine::operator::Input;

use super::*;

fn requests_of(config: &SynthesizeQa) -> Requests {
    Requests::new(config, Prompt::open(config.prompt.as_deref(), PROMPT).unwrap())
}

fn config(extra: Value) -> SynthesizeQa {
    let mut config = json!({ "teacher": "offline" });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn inputs(columns: &[&str]) -> Inputs {
    let fields: Vec<Field> = columns.iter().map(|name| Field::new(*name, DataType::Utf8, *name == "title")).collect();
    let input = Input { name: "units".into(), cell: Default::default(), schema: Arc::new(Schema::new(fields)) };
    Inputs { ports: [(PORT.to_owned(), vec![input])].into(), ..Inputs::default() }
}

fn units() -> RecordBatch {
    let column = |values: [Option<&str>; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    RecordBatch::try_from_iter_with_nullable([
        ("row_id", column([Some("a1"), Some("b2")]), false),
        ("doc_id", column([Some("a.txt"), Some("b.txt")]), false),
        ("title", column([Some("Ellmark"), None]), true),
        ("text", column([Some("Ida Brandt founded it."), Some("Nine pilots.")]), false),
    ])
    .unwrap()
}

fn default_schema(config: &SynthesizeQa) -> SchemaRef {
    config.bind(&inputs(&["row_id", "doc_id", "text"])).unwrap()[0].schema.clone()
}

#[test]
fn the_default_prompt_needs_no_more_than_the_port_gives() {
    assert_eq!(config(json!({})).bind(&inputs(&["row_id", "doc_id", "text"])).unwrap().len(), 1);
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jinja");
    std::fs::write(&path, "{{ text }} {{ heading }} {{ pairs }} {{ draw }} {{ title }}").unwrap();
    let wrong = config(json!({ "prompt": path, "avoid_repeats": true }));
    let mistakes = wrong.bind(&inputs(&["row_id", "doc_id", "text"])).unwrap_err();
    let fields: Vec<&str> = mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
    assert_eq!(fields, ["/avoid_repeats", "/prompt"]);
    assert_eq!(mistakes[1].message, "the prompt reads `heading`, which `units` doesn't provide (line 1)");
    assert!(config(json!({ "prompt": path })).bind(&inputs(&["row_id", "doc_id", "text", "heading"])).is_ok());
    assert!(config(json!({ "prompt": "no/such" })).bind(&inputs(&["row_id", "doc_id", "text"])).is_err());
}

#[test]
fn a_request_holds_the_row_and_what_is_asked_for() {
    let config = config(json!({ "pairs": 3, "temperature": 0.5, "max_output_tokens": "1Ki" }));
    let requests = requests_of(&config);
    let request = requests.request(&units(), 0, 0).unwrap();
    let content = &request.messages[0].content;
    for part in ["Title: Ellmark", "<text>\nIda Brandt founded it.\n</text>", "Write 3 questions", "this text is about Ellmark"] {
        assert!(content.contains(part), "{part} in {content}");
    }
    assert_eq!(request.decoding, Decoding { temperature: 0.5, top_p: 1.0, max_output_tokens: 1024 });
    assert_eq!(request.variables, json!({ "title": "Ellmark", "text": "Ida Brandt founded it.", "pairs": 3 }));
    let untitled = requests.request(&units(), 1, 0).unwrap();
    assert!(!untitled.messages[0].content.contains("Title"));
    assert_eq!(untitled.variables["title"], Value::Null);
    assert_eq!(requests.request(&units(), 0, 1).unwrap(), request, "a draw is told apart by its number, not by the prompt");
}

#[test]
fn every_row_is_asked_about_once_a_draw_in_order() {
    let requests = requests_of(&config(json!({ "draws": 2 })));
    let jobs: Vec<Job> = jobs(Arc::new(requests), units()).unwrap().collect();
    let order: Vec<(String, u32)> = jobs.iter().map(|job| (job.row_id().unwrap(), job.draw)).collect();
    assert_eq!(order, [("a1".into(), 0), ("a1".into(), 1), ("b2".into(), 0), ("b2".into(), 1)]);
    assert_eq!(jobs[2].doc_id().unwrap().as_deref(), Some("b.txt"));
}

#[test]
fn a_row_without_text_comes_once_and_the_others_in_every_draw() {
    let column = |values: &[Option<&str>]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("row_id", column(&[Some("a1"), Some("b2"), Some("c3")]), false),
        ("doc_id", column(&[None, None, None]), true),
        ("text", column(&[None, Some(" \n"), Some("Nine pilots.")]), true),
    ]);
    let requests = Arc::new(requests_of(&config(json!({ "draws": 2 }))));
    let order: Vec<(usize, u32)> = jobs(requests, rows.unwrap()).unwrap().map(|job| (job.row, job.draw)).collect();
    assert_eq!(order, [(0, 0), (1, 0), (2, 0), (2, 1)]);
}

#[test]
fn a_cell_without_a_value_is_an_empty_text_in_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jinja");
    std::fs::write(&path, "About {{ title }}: {{ text }}{% if title %} ({{ title }}){% endif %}").unwrap();
    let requests = requests_of(&config(json!({ "prompt": path })));
    let content = |row| requests.request(&units(), row, 0).unwrap().messages[0].content.clone();
    assert_eq!(content(0), "About Ellmark: Ida Brandt founded it. (Ellmark)");
    assert_eq!(content(1), "About : Nine pilots.");
}

#[test]
fn pairs_become_rows_and_refused_answers_rejects() {
    let config = config(json!({}));
    let answer =
        |text: &str, finish| Answer { text: text.into(), reasoning: None, finish, usage: None, model: "m".into(), created_ms: 0 };
    let said = r#"Sure: {"pairs": [{"question": "Who founded it?", "explanation": "It was Ida.", "answer": "Ida Brandt"}, {"question": "How many?", "answer": "9"}]}"#;
    let pairs = read(&answer(said, ingrain_llm::Finish::Stop)).unwrap();
    let cut = read(&answer(said, ingrain_llm::Finish::Length)).unwrap_err();
    assert_eq!(cut.reason, "length");
    assert_eq!(read(&answer("no", ingrain_llm::Finish::Stop)).unwrap_err().reason, "unparsable");
    let answered = |draw, result| Answered { row_id: "a1".into(), doc_id: Some("a.txt".into()), draw, result };
    let outputs = batches(
        &default_schema(&config),
        vec![answered(0, Err((Reject::new(cut.reason, cut.detail).raw(said), 3))), answered(1, Ok((pairs, "r".into())))],
    )
    .unwrap();
    assert_eq!(outputs.iter().map(|output| output.output).collect::<Vec<_>>(), [DEFAULT_OUTPUT, REJECTS_OUTPUT]);
    let rows = &outputs[0].rows;
    assert_eq!(rows.num_rows(), 2);
    let column = |name: &str| texts(rows, name).unwrap();
    assert_eq!(column("row_id").value(1), key::row_id("synthesize_qa", 0, &["a1"], 1, 1));
    assert_eq!((column("parent_id").value(0), column("question").value(1), column("answer").value(1)), ("a1", "How many?", "9"));
    assert_eq!((column("explanation").value(0), column("explanation").is_null(1)), ("It was Ida.", true));
    assert_eq!(rows.column_by_name("draw").unwrap().as_primitive::<Int32Type>().values(), &[1, 1]);
    let rejected = &outputs[1].rows;
    assert_eq!((texts(rejected, "reason").unwrap().value(0), texts(rejected, "raw").unwrap().value(0)), ("length", said));
    assert_eq!(texts(rejected, "parent_id").unwrap().value(0), "a1");
}

#[test]
fn pairs_that_are_not_whole_leave_a_reject_behind() {
    let said = r#"[{"question": "Who?", "answer": "Ida"}, {"question": "When?", "answer": ""}]"#;
    let stop = ingrain_llm::Finish::Stop;
    let answer = Answer { text: said.into(), reasoning: None, finish: stop, usage: None, model: "m".into(), created_ms: 0 };
    let result = Ok((read(&answer).unwrap(), "r".into()));
    let answered = Answered { row_id: "a1".into(), doc_id: Some("a.txt".into()), draw: 0, result };
    assert_eq!(answered.units(), 2);
    let outputs = batches(&default_schema(&config(json!({}))), vec![answered]).unwrap();
    assert_eq!(outputs[0].rows.num_rows(), 1);
    let cell = |name: &str| texts(&outputs[1].rows, name).unwrap().value(0);
    assert_eq!((cell("parent_id"), cell("reason"), cell("raw")), ("a1", "incomplete", said));
    assert_eq!(cell("detail"), "1 more without a whole `question` and `answer`; 1 were taken");
}

#[test]
fn fields_out_of_range_are_refused_by_the_schema() {
    let schema = TYPE.schema().to_value();
    assert_eq!(schema["properties"]["top_p"]["exclusiveMinimum"], 0);
    assert_eq!(schema["properties"]["pairs"]["minimum"], 1);
    assert_eq!(schema["required"], json!(["teacher"]));
}
