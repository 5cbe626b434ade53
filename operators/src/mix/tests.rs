use std::collections::BTreeMap;

use arrow::array::{AsArray, StringArray};
use ingrain_engine::operator::Input;

use super::*;

const TEXTS: [&str; 4] = [
    "The Harbour Office of Ellmark was founded in 1874 by the engineer Ida Brandt.",
    "The Harbour Office of Ellmark keeps nine pilots and two tugs, the Gull and the Tern.",
    "Who founded the Harbour Office of Ellmark? Ida Brandt founded the Harbour Office.",
    "Question: How many pilots are there?\nAnswer: nine",
];

fn tokenizer() -> Tokenizer {
    let trained = ingrain_student::tokenizer::train(TEXTS.iter(), 300).unwrap();
    Tokenizer::from_json(trained.json.as_bytes()).unwrap()
}

fn batch(columns: &[(&str, Vec<Option<&str>>)]) -> RecordBatch {
    let column = |texts: &Vec<Option<&str>>| Arc::new(StringArray::from(texts.clone())) as ArrayRef;
    RecordBatch::try_from_iter_with_nullable(columns.iter().map(|(name, texts)| (*name, column(texts), true))).unwrap()
}

fn mix() -> Mix {
    Mix { weights: None, tokens: None, replay: None, render: Render::Qa }
}

fn inputs(sources: &[&[&str]]) -> Inputs {
    let input = |columns: &&[&str]| Input {
        name: "made".into(),
        cell: Default::default(),
        schema: batch(&columns.iter().map(|name| (*name, vec![])).collect::<Vec<_>>()).schema(),
    };
    Inputs { ports: BTreeMap::from([(SOURCES.to_owned(), sources.iter().map(input).collect())]), ..Inputs::default() }
}

#[test]
fn a_question_in_a_chat_template_keeps_its_turns() {
    let tokenizer = tokenizer();
    let template = "{% for m in messages %}{% if 'sorry' in m.content %}{{ raise_exception('no excuses') }}{% endif %}\
                    <|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
                    {% if add_generation_prompt %}<|begin|>assistant: {% endif %}";
    let files = BTreeMap::from([("chat_template.jinja".to_owned(), template.as_bytes().to_vec())]);
    let renderer = Renderer { chat: Some(Chat::of(&files, tokenizer.clone()).unwrap()), tokenizer: tokenizer.clone() };
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(&folder.path().join("rows")).unwrap();
    let pairs = batch(&[
        ("row_id", vec![Some("q0"), Some("q1"), Some("q2")]),
        ("question", vec![Some(" Who <|end|>? "), Some("Who is sorry?"), Some("How many?")]),
        ("answer", vec![Some("Ida"), Some("x"), Some("nine")]),
    ]);
    let documents = batch(&[("row_id", vec![Some("t0")]), ("text", vec![Some(TEXTS[0])])]);
    let (mut tables, mut sources) = (Vec::new(), Vec::new());
    for (number, rows) in (0..).zip([pairs, documents]) {
        let kind = columns(&rows.schema()).unwrap();
        let mut read = Read { number, kind, entries: Vec::new(), slots: Vec::new() };
        if let Some(rejects) = read.add(&rows, &renderer, &mut spool).unwrap() {
            let said = |name: &str| rejects.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
            assert_eq!((rejects.num_rows(), said("reason").as_str()), (1, "template"));
            assert!(said("detail").ends_with("no excuses"));
        }
        sources.push(Source { number, weight: 1, rows: std::mem::take(&mut read.entries) });
        tables.push(read);
    }
    let mut spooled = spool.finish().unwrap();
    let schema = Arc::new(Schema::new(fields(Render::Chat)));
    let mut mixture = Mixture { order: Order::new(sources, None, 7, None), tables, position: 0, schema };
    let rows = mixture.batch(&mut spooled).unwrap().unwrap();
    let texts = |name: &str| rows.column_by_name(name).unwrap().as_string::<i32>().clone();
    let counts = rows.column_by_name("token_count").unwrap().as_primitive::<arrow::datatypes::Int32Type>();
    let mut seen = 0;
    for row in 0..rows.num_rows() {
        match texts("parent_id").value(row) {
            "q0" => {
                assert_eq!(texts("text").value(row), "<|begin|>user: Who <|end|>?<|end|><|begin|>assistant: Ida<|end|>");
                assert_eq!(texts("prompt").value(row), "<|begin|>user: Who <|end|>?<|end|><|begin|>assistant: ");
                let turns = r#"[{"role":"user","content":"Who <|end|>?"},{"role":"assistant","content":"Ida"}]"#;
                assert_eq!(texts("messages").value(row), turns);
                let text = ["user: Who <|end|>?", "assistant: Ida"].map(|text| tokenizer.count(text).unwrap());
                assert_eq!(counts.value(row) as usize, text.iter().sum::<usize>() + 4);
                seen += 1;
            }
            "t0" => {
                assert_eq!(texts("messages").iter().nth(row), Some(None));
                assert_eq!(counts.value(row) as usize, tokenizer.count(TEXTS[0]).unwrap() + 2);
            }
            _ => {}
        }
    }
    assert!(seen > 0);
}

#[test]
fn rows_are_rendered_counted_and_written_in_order() {
    let tokenizer = tokenizer();
    let renderer = Renderer { tokenizer: tokenizer.clone(), chat: None };
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(&folder.path().join("rows")).unwrap();
    let pairs = batch(&[
        ("row_id", vec![Some("q0"), Some("q1"), Some("q2")]),
        ("doc_id", vec![Some("d"), None, Some("d")]),
        ("question", vec![Some("How many pilots?"), Some(" "), Some("Who founded it?")]),
        ("answer", vec![Some("nine"), Some("x"), Some("Ida Brandt")]),
        ("explanation", vec![None, None, Some("It was founded by Ida Brandt.")]),
    ]);
    let documents = batch(&[("row_id", vec![Some("t0")]), ("text", vec![Some(TEXTS[0])])]);
    let mut tables = Vec::new();
    let mut sources = Vec::new();
    for (number, (rows, refused)) in (0..).zip([(pairs, 1), (documents, 0)]) {
        let kind = columns(&rows.schema()).unwrap();
        let mut read = Read { number, kind, entries: Vec::new(), slots: Vec::new() };
        let rejects = read.add(&rows, &renderer, &mut spool).unwrap();
        assert_eq!(rejects.map_or(0, |rejects| rejects.num_rows()), refused);
        sources.push(Source { number, weight: 1, rows: std::mem::take(&mut read.entries) });
        tables.push(read);
    }
    let mut spooled = spool.finish().unwrap();
    let schema = Arc::new(Schema::new(fields(Render::Qa)));
    let mut mixture = Mixture { order: Order::new(sources, None, 7, Some(200)), tables, position: 0, schema };
    let rows = mixture.batch(&mut spooled).unwrap().unwrap();
    assert!(mixture.batch(&mut spooled).unwrap().is_none());

    let texts = |name: &str| rows.column_by_name(name).unwrap().as_string::<i32>().clone();
    let counts = rows.column_by_name("token_count").unwrap().as_primitive::<arrow::datatypes::Int32Type>();
    let total: i32 = counts.iter().flatten().sum();
    assert!(total >= 200 && total - counts.value(rows.num_rows() - 1) < 200);
    let (ids, parents, text, prompt) = (texts("row_id"), texts("parent_id"), texts("text"), texts("prompt"));
    let mut seen = std::collections::BTreeSet::new();
    for row in 0..rows.num_rows() {
        assert!(seen.insert(ids.value(row)), "row ids are unique");
        assert_eq!(counts.value(row) as usize, tokenizer.count(text.value(row)).unwrap() + 2, "begin and end are counted");
        match parents.value(row) {
            "t0" => assert!(text.value(row) == TEXTS[0] && prompt.iter().nth(row) == Some(None)),
            "q0" => assert_eq!(text.value(row), "Question: How many pilots?\nAnswer: nine"),
            "q2" => {
                assert_eq!(text.value(row), "Question: Who founded it?\nAnswer: It was founded by Ida Brandt.");
                assert_eq!(prompt.value(row), "Question: Who founded it?\nAnswer:");
                assert_eq!(texts("doc_id").value(row), "d");
            }
            other => panic!("`{other}` has no text"),
        }
    }
    assert_eq!(ids.value(0), key::row_id("mix", 0, &[parents.value(0)], 0, 0));
    let positions = rows.column_by_name("position").unwrap().as_primitive::<arrow::datatypes::Int64Type>();
    assert!(positions.iter().flatten().eq(0..rows.num_rows() as i64));
}

#[test]
fn mistakes_are_named_at_their_fields() {
    let qa: &[&str] = &["row_id", "question", "answer"];
    let text: &[&str] = &["row_id", "text"];
    let wrong = |mix: Mix, sources: &[&[&str]]| -> Vec<String> {
        let mistakes = mix.bind(&inputs(sources)).expect_err("a mistake");
        mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.field, mistake.message)).collect()
    };
    assert_eq!(mix().bind(&inputs(&[qa, text])).unwrap()[0].schema.fields().len(), 10);
    assert_eq!(
        wrong(mix(), &[qa, &["row_id", "question"]]),
        ["/from/sources/1: `made` has neither `question` and `answer` nor `text`, as text"]
    );
    let weights = |weights: &[f64]| Mix { weights: Some(weights.to_vec()), ..mix() };
    assert_eq!(wrong(weights(&[1.0]), &[qa, text]), ["/weights: 1 weights for 2 sources"]);
    assert_eq!(wrong(weights(&[1.0, -1.0]), &[qa, text]), ["/weights/1: `-1` is no weight"]);
    assert_eq!(wrong(weights(&[0.0, 0.0]), &[qa, text]), ["/weights: all weights are 0"]);
    let several = Mix { tokens: Some(Size(0)), weights: Some(vec![]), ..mix() };
    assert_eq!(wrong(several, &[qa]), ["/weights: 0 weights for 1 sources", "/tokens: a mixture of 0 tokens has no rows"]);
    let chat = Mix { render: Render::Chat, ..mix() };
    assert_eq!(chat.bind(&inputs(&[qa, text])).unwrap()[0].schema.fields().len(), 11);
}

#[test]
fn numbers_are_read_as_written_in_a_file() {
    let (_, config) = TYPE.parse(serde_json::json!({ "weights": [1, 0.5], "tokens": "2K" })).unwrap();
    assert_eq!(config, serde_json::json!({ "weights": [1.0, 0.5], "tokens": 2000, "replay": null, "render": "qa" }));
    assert!(TYPE.parse(serde_json::json!({ "weight": [1] })).is_err());
}
