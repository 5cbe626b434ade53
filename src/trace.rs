//! `trace`

use std::{collections::HashSet, io::Write};

use ingrain_engine::{diagnostic::quoted, failure::Failure};
use ingrain_operators::{
    trace::{Backward, Dependence, Known, Link, Loose, Made, Row, Sentence, Spot, Trace, Trained, shown},
    train::{Fate, Place},
};
use serde_json::{Value, json};

use crate::{
    End,
    call::TraceCall,
    pipeline::Pipeline,
    progress::{grouped, printable, rows as rows_of, tell},
};

pub(crate) async fn trace(call: &TraceCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let (index, output) = pipeline.output(&call.output)?;
    let (stage, output) = (pipeline.plan.stage(index).name.clone(), output.name.clone());
    let environment = pipeline.open(&call.store).await?;
    pipeline.store_is_there(&environment)?;
    let trace = Trace::open(&pipeline.plan, &environment).await?;
    let id = trace.find(pipeline.file(), &stage, &output, &call.row_id).await?;
    let mut out = std::io::stdout().lock();
    if call.forward {
        let start = trace.row(&stage, &output, &id).await?;
        let made = match &call.sentence {
            Some(sentence) => trace.forward_of_sentence(&start, sentence, call.limit).await?,
            None => trace.forward(&stage, &output, &id, call.limit).await?,
        };
        if call.json {
            emit(&mut out, "row", &start)?;
            made.iter().try_for_each(|made| emit(&mut out, "made", made))?;
        } else {
            writeln!(out, "{}", head(&start)).map_err(Failure::from)?;
            print(&mut out, "", &of_row(&start, true))?;
            print(&mut out, "", &made_lines(&made, None))?;
            if made.is_empty() {
                writeln!(out, "nothing was made of it").map_err(Failure::from)?;
            }
        }
    } else {
        let found = trace.backward(&stage, &output, &id, call.limit).await?;
        if call.json { objects(&mut out, &found)? } else { tree(&mut out, &found)? }
    }
    if !trace.missing().is_empty() {
        let names: Vec<&str> = trace.missing().iter().map(String::as_str).collect();
        tell(&format!("not yet run as they stand now, and so not looked at: {}", quoted(names)), None);
    }
    Ok(())
}

/// A line of a tree with those under it.
struct Lines(String, Vec<Lines>);

fn leaf(line: impl Into<String>) -> Lines {
    Lines(line.into(), Vec::new())
}

fn print(out: &mut impl Write, indent: &str, lines: &[Lines]) -> Result<(), Failure> {
    for (place, Lines(line, under)) in lines.iter().enumerate() {
        let (mark, more) = if place + 1 == lines.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        writeln!(out, "{indent}{mark}{line}")?;
        print(out, &format!("{indent}{more}"), under)?;
    }
    Ok(())
}

fn tree(out: &mut impl Write, found: &Backward) -> Result<(), Failure> {
    let Some(first) = found.rows.first() else { return Ok(()) };
    writeln!(out, "{}", head(first))?;
    print(out, "", &above(found, 0, &mut HashSet::new()))?;
    for known in &found.known {
        writeln!(out)?;
        let of = match &known.doc_id {
            Some(doc_id) => format!("document `{}`", printable(doc_id)),
            None => "no document: the question names none".to_owned(),
        };
        writeln!(out, "{}, which answered, was taught of {of}", known.model)?;
        print(out, "", &taught(known))?;
    }
    Ok(())
}

/// What a row holds, and what it was made of.
fn above(found: &Backward, place: usize, told: &mut HashSet<usize>) -> Vec<Lines> {
    if !told.insert(place) {
        return vec![leaf("as above")];
    }
    let links: Vec<&Link> = found.links.iter().filter(|link| link.row == place).collect();
    let mut lines = of_row(&found.rows[place], links.is_empty());
    lines.extend(found.spots.iter().filter(|spot| spot.row == place).map(spot));
    for Loose { on, how, .. } in found.loose.iter().filter(|loose| loose.row == place) {
        let names = quoted(on.iter().map(String::as_str));
        lines.push(leaf(match how {
            Dependence::Ends => format!("its rows say no further: made of {names}"),
            Dependence::All => format!("depends on all of {names}"),
            Dependence::Perhaps => format!("may hold something of {names}: the query doesn't say of which rows"),
        }));
    }
    for Link { column, of, .. } in links {
        let line = format!("{}: {}", column_said(column), head(&found.rows[*of]));
        lines.push(Lines(line, above(found, *of, told)));
    }
    lines
}

/// How a link reads.
fn column_said(column: &str) -> &str {
    if column == "row_id" { "passed on by" } else { column }
}

fn taught(known: &Known) -> Vec<Lines> {
    if known.doc_id.is_some() && known.documents.is_empty() {
        return vec![leaf("nothing: no document of that id is among what it was trained on")];
    }
    let mut lines = Vec::new();
    for (place, document) in known.documents.iter().enumerate() {
        let mut under = of_row(document, true);
        under.extend(known.spots.iter().filter(|spot| spot.row == place).map(spot));
        lines.push(Lines(head(document), under));
    }
    lines.extend(made_lines(&known.made, None));
    lines
}

fn spot(spot: &Spot) -> Lines {
    let answer = cut(&spot.answer, 60);
    if spot.sentences.is_empty() {
        return leaf(format!("no sentence holds `{answer}` word for word"));
    }
    let said =
        |sentence: &Sentence| format!("bytes {} to {}: {}", sentence.byte_start, sentence.byte_end, cut(&sentence.text, 240));
    match spot.sentences.as_slice() {
        [only] => leaf(format!("`{answer}` stands in {}", said(only))),
        several => Lines(format!("`{answer}` stands in"), several.iter().map(|sentence| leaf(said(sentence))).collect()),
    }
}

/// What was made, under what it was made of.
fn made_lines(made: &[Made], under: Option<usize>) -> Vec<Lines> {
    let mut lines = Vec::new();
    let here = |made: &Made| made.under == under;
    for (place, of) in made.iter().enumerate().filter(|(_, made)| here(made)) {
        // The outputs of a stage that depend on the row as wholes are told together.
        let alike = |other: &Made| here(other) && other.rows.is_none() && of.rows.is_none() && other.stage == of.stage;
        if made[..place].iter().any(alike) {
            continue;
        }
        let places: Vec<usize> = (place..made.len()).filter(|other| *other == place || alike(&made[*other])).collect();
        let names: Vec<String> = places.iter().map(|place| shown(&made[*place].stage, &made[*place].output)).collect();
        let names = names.join(", ");
        let mut below: Vec<Lines> = of.first.iter().map(|row| leaf(brief(row))).collect();
        let line = match of.rows {
            Some(rows) => {
                below.extend(more(rows - of.first.len()));
                format!("{names} ({}): {} of {}", of.operator, grouped(rows as u64), rows_of(of.of))
            }
            None => format!("{names} ({}): as a whole", of.operator),
        };
        for place in places {
            below.extend(made[place].trained.iter().map(trained));
            below.extend(made_lines(made, Some(place)));
        }
        lines.push(Lines(line, below));
    }
    lines
}

/// That there are more rows than are shown.
fn more(rows: usize) -> Option<Lines> {
    (rows > 0).then(|| leaf(format!("… {} more", grouped(rows as u64))))
}

fn trained(trained: &Trained) -> Lines {
    let mut line = format!("trained on {} of them", grouped(trained.rows as u64));
    if let (Some(first), Some(last)) = (trained.first_step, trained.last_step) {
        line.push_str(&format!(", in steps {} to {}", grouped(first as u64), grouped(last as u64)));
    }
    if trained.held_out > 0 {
        line.push_str(&format!("; {} held out", grouped(trained.held_out as u64)));
    }
    let mut under = Vec::new();
    for seen in &trained.seen {
        let fate = match &seen.fate {
            Fate::HeldOut => "held out".to_owned(),
            Fate::Trained(places) if places.is_empty() => "left out: it has no token to predict".to_owned(),
            Fate::Trained(places) => {
                let place = |place: &Place| {
                    format!(
                        "epoch {}, step {}, sequence {}, tokens {} to {}",
                        place.epoch,
                        place.step,
                        place.sequence,
                        place.offset,
                        place.offset + place.tokens
                    )
                };
                places.iter().map(place).collect::<Vec<_>>().join("; ")
            }
        };
        under.push(leaf(format!("{}: {fate}", short(&seen.row_id))));
    }
    under.extend(more(trained.rows + trained.held_out - trained.seen.len()));
    Lines(line, under)
}

/// The row's output, operator and id.
fn head(row: &Row) -> String {
    format!("{} ({}) {}", shown(&row.stage, &row.output), row.operator, short(&row.row_id))
}

/// A row id as it is shown: as much of it as names the row to `trace`.
fn short(id: &str) -> String {
    let is_hash = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { id[..12].to_owned() } else { cut(id, 64) }
}

/// What is shown of a row, in this order.
const SHOWN: [&str; 16] = [
    "title",
    "question",
    "answer",
    "prediction",
    "correct",
    "similarity",
    "strategy",
    "rank",
    "text",
    "reason",
    "detail",
    "step",
    "tokens",
    "loss",
    "metric",
    "value",
];

fn of_row(row: &Row, is_source: bool) -> Vec<Lines> {
    let line = |column: &str| {
        let value = said(row.values.get(column)?);
        Some(leaf(format!("{column}: {value}")))
    };
    let mut lines: Vec<Lines> = is_source.then(|| line("doc_id")).flatten().into_iter().collect();
    lines.extend(SHOWN.iter().filter_map(|column| line(column)));
    if let Some((start, end)) = row.span() {
        lines.push(leaf(format!("bytes {start} to {end} of the document's text")));
    }
    lines
}

/// A row in a line.
fn brief(row: &Row) -> String {
    let texts = ["question", "prediction", "text", "title", "metric"].iter();
    let text = texts.filter_map(|column| row.text(column)).next().map(|text| format!(": {}", cut(text, 96)));
    format!("{}{}", short(&row.row_id), text.unwrap_or_default())
}

fn said(value: &Value) -> String {
    match value {
        Value::String(text) => cut(text, 160),
        other => cut(&other.to_string(), 160),
    }
}

/// The beginning of a text, on one line.
fn cut(text: &str, most: usize) -> String {
    let line = printable(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn emit(out: &mut impl Write, kind: &str, what: &impl serde::Serialize) -> Result<(), Failure> {
    let mut object = json!({ "kind": kind });
    let more = serde_json::to_value(what).map_err(|error| Failure::bug(error.to_string()))?;
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    writeln!(out, "{object}")?;
    Ok(())
}

fn objects(out: &mut impl Write, found: &Backward) -> Result<(), Failure> {
    let name = |place: usize| {
        let row: &Row = &found.rows[place];
        json!({ "stage": row.stage, "output": row.output, "row_id": row.row_id })
    };
    found.rows.iter().try_for_each(|row| emit(out, "row", row))?;
    for Link { row, column, of } in &found.links {
        emit(out, "link", &json!({ "row": name(*row), "column": column, "of": name(*of) }))?;
    }
    for Loose { row, on, how } in &found.loose {
        emit(out, "loose", &json!({ "row": name(*row), "on": on, "how": how }))?;
    }
    for Spot { row, answer, sentences } in &found.spots {
        emit(out, "sentences", &json!({ "row": name(*row), "answer": answer, "sentences": sentences }))?;
    }
    for Known { model, doc_id, documents, spots, made } in &found.known {
        emit(out, "known", &json!({ "model": model, "doc_id": doc_id }))?;
        documents.iter().try_for_each(|document| emit(out, "document", document))?;
        for Spot { row, answer, sentences } in spots {
            let Row { stage, output, row_id, .. } = &documents[*row];
            let row = json!({ "stage": stage, "output": output, "row_id": row_id });
            emit(out, "sentences", &json!({ "row": row, "answer": answer, "sentences": sentences }))?;
        }
        made.iter().try_for_each(|made| emit(out, "made", made))?;
    }
    Ok(())
}
