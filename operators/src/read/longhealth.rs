//! The LongHealth benchmark (github.com/kbressem/LongHealth): one JSON object of all patients, by patient. Field names are those of
//! the file.

use std::{fmt, io::BufRead};

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    content::cut_off,
    document::{Document, Parsed},
    item::{Halt, Sink},
    line::{text_of, wrong_type},
    question::{Question, checked, needed},
    reading::LARGEST,
};
use crate::rejects::Reject;

/// What a question about a patient must say of them to be answerable without the letters.
const ABOUT: [&str; 3] = ["name", "birthday", "diagnosis"];

/// Reads patients one by one.
///
/// # Errors
/// When reading has to stop.
pub(super) fn read<R: BufRead>(reader: R, sink: &mut Sink) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let mut halted = None;
    let mut patients = 0;
    let visitor = Patients { sink: &mut *sink, halted: &mut halted, read: &mut patients };
    let mut reading = serde_json::Deserializer::from_reader(reader.take(LARGEST));
    let read = reading.deserialize_map(visitor).and_then(|()| reading.end());
    match (halted, read) {
        (Some(halt), _) => Err(halt),
        (None, Ok(())) if patients == 0 => sink.reject(0, Reject::new("empty", format!("`{source}` has no patient"))),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.is_io() => {
            let error = std::io::Error::from(error);
            sink.reject(0, cut_off(&format!("`{source}` behind patient {patients}"), &error))
        }
        (None, Err(error)) => sink.reject(0, Reject::new("bad_json", format!("`{source}` behind patient {patients}: {error}"))),
    }
}

struct Patients<'a> {
    sink: &'a mut Sink,
    halted: &'a mut Option<Halt>,
    read: &'a mut u64,
}

impl<'de> Visitor<'de> for Patients<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of patients")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut patients: A) -> Result<(), A::Error> {
        while let Some((id, patient)) = patients.next_entry::<String, Value>()? {
            *self.read += 1;
            if let Err(halt) = give(self.sink, *self.read, &id, patient) {
                *self.halted = Some(halt);
                return Err(serde::de::Error::custom("reading ended"));
            }
        }
        Ok(())
    }
}

/// Gives a patient's letters and questions.
fn give(sink: &mut Sink, number: u64, id: &str, patient: Value) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let place = |reject: Reject, what: &str| {
        let detail = format!("`{source}` patient `{id}`{what}: {}", reject.detail);
        Reject { detail, ..reject }
    };
    let mut patient = match patient {
        Value::Object(patient) => patient,
        other => return sink.reject(number, place(wrong_type(id, "an object", &other), "")),
    };
    let questions = patient.shift_remove("questions");
    let texts = patient.shift_remove("texts");
    let about: Map<String, Value> =
        ABOUT.iter().filter_map(|name| Some(((*name).to_owned(), patient.get(*name)?.clone()))).collect();
    match letters(texts) {
        Ok((text, letters)) => {
            let title = patient.get("name").and_then(Value::as_str).map(str::to_owned);
            let mut metadata = patient;
            metadata.insert("texts".to_owned(), letters);
            sink.document(Document::new(id.to_owned(), Parsed { title, text, metadata: Some(metadata) })?)?;
        }
        Err(reject) => sink.reject(number, place(reject, ""))?,
    }
    let questions = match questions {
        Some(Value::Array(questions)) => questions,
        Some(other) => return sink.reject(number + (1 << 40), place(wrong_type("questions", "a list", &other), "")),
        None => Vec::new(),
    };
    for (at, item) in questions.into_iter().enumerate() {
        let raw = item.to_string();
        match question(item, id, at, &about) {
            Ok((question_id, question)) => sink.question(question_id, question, Vec::new())?,
            Err(reject) => {
                // Patients have the numbers below: a patient has far fewer questions than this.
                let row = number + ((at as u64 + 2) << 40);
                sink.reject(row, place(reject, &format!(", question {}", at + 1)).raw(&raw))?;
            }
        }
    }
    Ok(())
}

/// The letters in the order of the file, joined by empty lines, and where each stands: lists of id, start and end in bytes.
fn letters(texts: Option<Value>) -> Result<(String, Value), Reject> {
    let texts = match texts {
        Some(Value::Object(texts)) => texts,
        Some(other) => return Err(wrong_type("texts", "an object of letters", &other)),
        None => return Err(Reject::new("empty", "`texts` is missing")),
    };
    let (mut joined, mut places) = (String::new(), Vec::new());
    for (id, letter) in texts {
        let Some(letter) = text_of("texts", Some(letter))?.filter(|letter| !letter.trim().is_empty()) else { continue };
        if !joined.is_empty() {
            joined.push_str("\n\n");
        }
        places.push(Value::from(vec![Value::from(id), joined.len().into(), (joined.len() + letter.len()).into()]));
        joined.push_str(&letter);
    }
    if joined.is_empty() {
        return Err(Reject::new("empty", "no text in `texts`"));
    }
    Ok((joined, Value::Array(places)))
}

fn question(item: Value, patient: &str, at: usize, about: &Map<String, Value>) -> Result<(String, Question), Reject> {
    let mut item = match item {
        Value::Object(item) => item,
        other => return Err(wrong_type("questions", "a list of objects", &other)),
    };
    let number = match item.shift_remove("No") {
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(number)) if !number.is_empty() => number,
        _ => (at + 1).to_string(),
    };
    let question = needed("question", item.shift_remove("question"))?;
    let mut options = Vec::new();
    for letter in 'a'..='z' {
        let name = format!("answer_{letter}");
        match item.shift_remove(&name) {
            Some(option) => options.push(needed(&name, Some(option))?),
            None => break,
        }
    }
    let correct = needed("correct", item.shift_remove("correct"))?;
    // White space around the one or the other makes no other answer.
    let answer = options.iter().find(|option| option.trim() == correct.trim()).cloned().unwrap_or(correct);
    let options = Some(checked(Some(options), &answer)?);
    let mut metadata = about.clone();
    metadata.append(&mut item);
    let doc_id = Some(patient.to_owned());
    let question_id = format!("{patient}_{number}");
    let question = Question {
        question_id: None,
        doc_id,
        question,
        options,
        answer,
        answers: Vec::new(),
        hard: None,
        metadata: Some(metadata),
    };
    Ok((question_id, question))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_answer_is_the_text_of_an_option() {
        let about = json!({"name": "Anna"}).as_object().unwrap().clone();
        let item =
            json!({"No": 3, "question": "Which?", "answer_a": "x", "answer_b": "y ", "correct": "y", "answer_location": {}});
        let (id, found) = question(item, "patient_01", 0, &about).unwrap();
        assert_eq!((id.as_str(), found.answer.as_str(), found.doc_id.as_deref()), ("patient_01_3", "y ", Some("patient_01")));
        assert_eq!(serde_json::to_string(&found.metadata).unwrap(), r#"{"name":"Anna","answer_location":{}}"#);
        let item = json!({"question": "Which?", "answer_a": "x", "answer_b": "y", "correct": "z"});
        assert_eq!(question(item, "p", 0, &about).unwrap_err().reason, "bad_question");
    }

    #[test]
    fn letters_keep_their_order_and_places() {
        let (text, places) = letters(Some(json!({"text_1": "Später.", "text_0": "First."}))).unwrap();
        assert_eq!(text, "Später.\n\nFirst.");
        assert_eq!(places, json!([["text_1", 0, 8], ["text_0", 10, 16]]));
        assert_eq!(letters(Some(json!({"text_0": " "}))).unwrap_err().reason, "empty");
        assert_eq!(letters(Some(json!({"text_0": 3}))).unwrap_err().reason, "wrong_type");
    }
}
