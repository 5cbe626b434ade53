//! The QuALITY benchmark (github.com/nyu-mll/quality, v1.0.1): a line holds an article and one writer's questions about it, so
//! an article stands in two lines. Field names are those of the files.

use std::{collections::HashMap, io::BufRead};

use serde_json::{Map, Value, json};

use super::{
    document::{Document, Parsed},
    item::{Halt, Sink},
    line::{each_object, text_of, wrong_type},
    question::{Question, checked, needed},
};
use crate::rejects::Reject;

/// What of a line describes its article.
const ABOUT: [&str; 6] = ["author", "source", "topic", "url", "year", "license"];

/// Reads articles and questions. What is kept of the articles read before is a digest each.
///
/// # Errors
/// When reading has to stop.
pub(super) fn read<R: BufRead>(reader: R, sink: &mut Sink) -> Result<(), Halt> {
    let mut seen: HashMap<String, blake3::Hash> = HashMap::new();
    each_object(reader, sink, |sink, number, mut object| {
        let (article, document) = match article(&mut object) {
            Ok(found) => found,
            Err(reject) => return Ok(Err(reject)),
        };
        let digest = blake3::hash(document.text.as_bytes());
        match seen.get(&article) {
            None => {
                seen.insert(article.clone(), digest);
                sink.document(Document::new(article.clone(), document)?)?;
            }
            Some(before) if *before != digest => {
                return Ok(Err(Reject::new("bad_document", format!("article `{article}` stands there with another text"))));
            }
            Some(_) => {}
        }
        let set = match object.shift_remove("set_unique_id") {
            Some(Value::String(set)) if !set.is_empty() => set,
            _ => sink.place(number),
        };
        let questions = match object.shift_remove("questions") {
            Some(Value::Array(questions)) => questions,
            Some(other) => return Ok(Err(wrong_type("questions", "a list", &other))),
            None => return Ok(Err(Reject::new("bad_question", "`questions` is missing"))),
        };
        for (place, item) in questions.into_iter().enumerate() {
            let id = format!("{set}_{}", place + 1);
            let raw = item.to_string();
            match question(item, &article) {
                Ok(question) => {
                    let id = question.question_id.clone().unwrap_or(id);
                    sink.question(id, question, Vec::new())?;
                }
                Err(reject) => {
                    let detail = format!("`{}` line {number}, question {}: {}", sink.source(), place + 1, reject.detail);
                    // Lines have the numbers below: a line has far fewer questions than this.
                    let row = number + ((place as u64 + 1) << 40);
                    sink.reject(row, Reject { detail, ..reject }.raw(&raw))?;
                }
            }
        }
        Ok(Ok(()))
    })
}

fn article(line: &mut Map<String, Value>) -> Result<(String, Parsed), Reject> {
    let id = needed("article_id", line.shift_remove("article_id"))?;
    let text = text_of("article", line.shift_remove("article"))?.filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(|| Reject::new("empty", "no text in `article`"))?;
    let title = text_of("title", line.shift_remove("title"))?.map(|title| title.trim().to_owned());
    let about: Map<String, Value> =
        ABOUT.iter().filter_map(|name| Some(((*name).to_owned(), line.shift_remove(*name)?))).collect();
    let title = title.filter(|title| !title.is_empty());
    Ok((id, Parsed { title, text, metadata: (!about.is_empty()).then_some(about) }))
}

fn question(item: Value, article: &str) -> Result<Question, Reject> {
    let mut item = match item {
        Value::Object(item) => item,
        other => return Err(wrong_type("questions", "a list of objects", &other)),
    };
    let question_id = text_of("question_unique_id", item.shift_remove("question_unique_id"))?.filter(|id| !id.is_empty());
    let question = needed("question", item.shift_remove("question"))?;
    let options = match item.shift_remove("options") {
        Some(Value::Array(options)) => options,
        Some(other) => return Err(wrong_type("options", "a list", &other)),
        None => return Err(Reject::new("bad_question", "`options` is missing")),
    };
    let options: Vec<String> = options.into_iter().map(|option| needed("options", Some(option))).collect::<Result<_, _>>()?;
    let answer = match item.shift_remove("gold_label").as_ref().map(Value::as_u64) {
        Some(Some(label)) => {
            usize::try_from(label).ok().and_then(|label| options.get(label.checked_sub(1)?)).cloned().ok_or_else(|| {
                Reject::new("bad_question", format!("`gold_label` is {label}; options are numbered from 1 to {}", options.len()))
            })?
        }
        _ => return Err(Reject::new("bad_question", "no number in `gold_label`: questions of the test split have none")),
    };
    let hard = match item.shift_remove("difficult") {
        None | Some(Value::Null) => None,
        Some(difficult) if difficult == json!(0) || difficult == json!(1) => Some(difficult == json!(1)),
        Some(Value::Bool(difficult)) => Some(difficult),
        Some(other) => return Err(wrong_type("difficult", "0 or 1", &other)),
    };
    let options = Some(checked(Some(options), &answer)?);
    let metadata = (!item.is_empty()).then_some(item);
    let doc_id = Some(article.to_owned());
    Ok(Question { question_id, doc_id, question, options, answer, answers: Vec::new(), hard, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_counted_from_one() {
        let of = |label: Value, difficult: Value| {
            question(
                json!({"question": "Q?", "options": ["a", "b"], "gold_label": label, "writer_label": 2, "difficult": difficult}),
                "52845",
            )
        };
        let found = of(json!(2), json!(1)).unwrap();
        assert_eq!((found.answer.as_str(), found.hard, found.doc_id.as_deref()), ("b", Some(true), Some("52845")));
        assert_eq!(serde_json::to_string(&found.metadata).unwrap(), r#"{"writer_label":2}"#);
        for label in [json!(0), json!(3), json!("1"), Value::Null] {
            assert_eq!(of(label, json!(0)).unwrap_err().reason, "bad_question");
        }
        assert_eq!(of(json!(1), json!(2)).unwrap_err().reason, "wrong_type");
    }
}
