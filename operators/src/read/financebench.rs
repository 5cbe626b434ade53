//! The FinanceBench benchmark (github.com/patronus-ai/financebench): a line holds a question and the pages of a filing that show
//! its answer. Field names are those of the files, not of their description.

use std::{collections::BTreeMap, io::BufRead};

use serde_json::{Map, Value};

use super::{
    document::{Document, Parsed, joined, spans_json},
    item::{Evidence, Halt, Sink},
    line::{each_object, text_of, wrong_type},
    question::{Question, needed},
};
use crate::rejects::Reject;

/// Pages of filings are kept up to here until the file is at its end; the benchmark has half a megabyte of them.
const MOST_BYTES: usize = 1 << 30;

/// The pages of a filing that questions refer to.
#[derive(Default)]
struct Filing {
    company: Option<String>,
    pages: BTreeMap<u32, String>,
}

/// Reads questions, and at the end the filings: a filing's pages stand in the lines of several questions.
///
/// # Errors
/// When reading has to stop.
pub(super) fn read<R: BufRead>(reader: R, sink: &mut Sink) -> Result<(), Halt> {
    let mut filings: BTreeMap<String, Filing> = BTreeMap::new();
    let mut bytes = 0;
    each_object(reader, sink, |sink, number, object| {
        let (question, evidence) = match question(object) {
            Ok(found) => found,
            Err(reject) => return Ok(Err(reject)),
        };
        bytes += evidence.iter().map(|(_, page)| page.len()).sum::<usize>();
        if bytes > MOST_BYTES {
            return Ok(Err(Reject::new("too_large", format!("the file has more than {MOST_BYTES} bytes of evidence"))));
        }
        let company = question.metadata.as_ref().and_then(|fields| fields.get("company")?.as_str()).map(str::to_owned);
        let mut shown = Vec::new();
        for (found, page) in evidence {
            let filing = filings.entry(found.doc_id.clone()).or_default();
            if question.doc_id.as_ref() == Some(&found.doc_id) && filing.company.is_none() {
                filing.company.clone_from(&company);
            }
            filing.pages.entry(found.page).or_insert(page);
            shown.push(found);
        }
        let id = question.question_id.clone().unwrap_or_else(|| sink.place(number));
        sink.question(id, question, shown)?;
        Ok(Ok(()))
    })?;
    for (name, filing) in filings {
        let (text, spans) = joined(filing.pages.iter().map(|(page, text)| (*page, text.as_str())));
        let mut metadata = Map::new();
        if let Some(company) = filing.company {
            metadata.insert("company".to_owned(), company.into());
        }
        metadata.insert("pages".to_owned(), spans_json(&spans));
        let parsed = Parsed { title: Some(name.clone()), text, metadata: Some(metadata) };
        sink.document(Document { pages: spans, ..Document::new(name, parsed)? })?;
    }
    Ok(())
}

/// A question, and its evidence with the text of the whole page each.
fn question(mut object: Map<String, Value>) -> Result<(Question, Vec<(Evidence, String)>), Reject> {
    let question_id = needed("financebench_id", object.shift_remove("financebench_id"))?;
    let doc_id = needed("doc_name", object.shift_remove("doc_name"))?;
    let question = needed("question", object.shift_remove("question"))?;
    let answer = needed("answer", object.shift_remove("answer"))?;
    let items = match object.shift_remove("evidence") {
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("evidence", "a list", &other)),
        None => return Err(Reject::new("bad_question", "`evidence` is missing")),
    };
    let evidence = items.into_iter().map(|item| evidence(item, &doc_id)).collect::<Result<Vec<_>, _>>()?;
    let metadata = (!object.is_empty()).then_some(object);
    let question = Question {
        question_id: Some(question_id),
        doc_id: Some(doc_id),
        question,
        options: None,
        answer,
        answers: Vec::new(),
        hard: None,
        metadata,
    };
    Ok((question, evidence))
}

fn evidence(item: Value, filing: &str) -> Result<(Evidence, String), Reject> {
    let mut item = match item {
        Value::Object(item) => item,
        other => return Err(wrong_type("evidence", "a list of objects", &other)),
    };
    let doc_id = text_of("doc_name", item.shift_remove("doc_name"))?.unwrap_or_else(|| filing.to_owned());
    // A number in some editions of the file, text in others; counted from 0.
    let page = match item.shift_remove("evidence_page_num") {
        Some(Value::Number(page)) => page.as_u64(),
        Some(Value::String(page)) => page.trim().parse().ok(),
        _ => None,
    };
    let page = page.and_then(|page| i32::try_from(page).ok()?.checked_add(1)?.try_into().ok());
    let page = page.ok_or_else(|| Reject::new("bad_question", "no page in `evidence_page_num`"))?;
    let text = needed("evidence_text", item.shift_remove("evidence_text"))?;
    let whole = text_of("evidence_text_full_page", item.shift_remove("evidence_text_full_page"))?;
    let whole = whole.filter(|whole| !whole.trim().is_empty()).unwrap_or_else(|| text.clone());
    Ok((Evidence { doc_id, page, text }, whole))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_are_counted_from_one() {
        let of = |page: Value| evidence(json!({"evidence_text": "x", "evidence_page_num": page}), "3M_2018_10K");
        assert_eq!(of(json!("59")).unwrap().0, Evidence { doc_id: "3M_2018_10K".into(), page: 60, text: "x".into() });
        assert_eq!(of(json!(0)).unwrap().0.page, 1);
        for page in [json!("a"), json!(-1), json!(1.5), Value::Null, json!(u64::MAX)] {
            assert_eq!(of(page).unwrap_err().reason, "bad_question");
        }
    }
}
