//! `show`

use std::{collections::BTreeMap, io::Write, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, FieldRef, Schema},
    util::display::{ArrayFormatter, FormatOptions},
};
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    operator::{Cell, Resource},
    plan::StageIndex,
    run::{Environment, query, rehearse},
};
use ingrain_operators::{
    condition,
    teachers::{Request, preview},
};
use serde_json::{Value, json};

use crate::{
    End,
    call::ShowCall,
    pipeline::Pipeline,
    progress::{grouped, printable, rows as rows_of, tell},
};

/// Characters of a cell that a table shows.
const CELL: usize = 64;

pub(crate) async fn show(call: ShowCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let found = pipeline.outputs(&call.output)?;
    let environment = pipeline.open(&call.store).await?;
    if call.prompts {
        let (index, _) = pipeline.output(&call.output)?;
        return prompts(&pipeline, environment, index, &call).await;
    }
    let (mut rows, mut total) = (Vec::new(), 0);
    for (index, output) in &found {
        let table = pipeline.table(&environment, *index, output).await?;
        total += table.rows();
        let inputs: BTreeMap<_, _> = [("rows".to_owned(), vec![table])].into();
        let predicate = match &call.predicate {
            Some(predicate) => format!(" where {}", condition(predicate, &output.schema)?),
            None => String::new(),
        };
        let order = if output.schema.column_with_name("position").is_some() { "position" } else { "row_id" };
        let sql = format!("select * from rows{predicate} order by {order} limit {}", call.limit);
        let some: Vec<RecordBatch> = query(&environment, &inputs, &sql).await?.try_collect().await.map_err(Failure::from)?;
        rows.extend(with_axes(&some, &pipeline.plan.stage(*index).cell)?);
    }
    let mut stdout = std::io::stdout().lock();
    if call.json {
        for batch in rows {
            for row in row_objects(std::slice::from_ref(&batch))? {
                writeln!(stdout, "{row}").map_err(Failure::from)?;
            }
        }
        return Ok(());
    }
    // Cells may have other columns than each other.
    for alike in rows.chunk_by(|one, other| one.schema() == other.schema()) {
        print_rows(&mut stdout, alike, &[])?;
    }
    let shown: usize = rows.iter().map(RecordBatch::num_rows).sum();
    if rows.is_empty() {
        print_rows(&mut stdout, &[], &[])?;
    }
    let cells = if found.len() > 1 { format!(", of {} cells", found.len()) } else { String::new() };
    tell(&format!("{} of {}{cells}", grouped(shown as u64), rows_of(total)), None);
    Ok(())
}

/// Rows of a cell of a matrix, with a column for the label on each axis in front.
pub(crate) fn with_axes(rows: &[RecordBatch], cell: &Cell) -> Result<Vec<RecordBatch>, Failure> {
    let mut out = Vec::with_capacity(rows.len());
    for batch in rows {
        let (mut fields, mut columns): (Vec<FieldRef>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
        for (axis, label) in &cell.0 {
            let name = if batch.schema().column_with_name(axis).is_some() { format!("matrix.{axis}") } else { axis.clone() };
            fields.push(Arc::new(Field::new(name, DataType::Utf8, false)));
            columns.push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(label, batch.num_rows()))));
        }
        fields.extend(batch.schema().fields().iter().cloned());
        columns.extend(batch.columns().iter().cloned());
        out.push(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?);
    }
    Ok(out)
}

/// Prints requests as they would be sent.
async fn prompts(pipeline: &Pipeline, environment: Arc<Environment>, index: StageIndex, call: &ShowCall) -> Result<(), End> {
    let stage = pipeline.plan.stage(index);
    if stage.operator.resource() != Resource::Teacher {
        return Err(Failure::data(format!("`{}` asks no teacher", stage.name))
            .hint("leave `--prompts` out to see its rows")
            .into());
    }
    let environment = Arc::new(environment.rehearsal()?);
    let preview = preview(&environment, call.limit)?;
    let requests = preview.requests(rehearse(&pipeline.plan, &environment, index)).await?;
    let mut stdout = std::io::stdout().lock();
    for (number, request) in requests.iter().enumerate() {
        let told = if call.json {
            let Request { messages, decoding, response_format, .. } = request;
            writeln!(stdout, "{}", json!({ "messages": messages, "decoding": decoding, "response_format": response_format }))
        } else {
            let decoding = request.decoding;
            let said: String = request
                .messages
                .iter()
                .map(|message| format!("[{}]\n{}\n", message.role.as_str(), printable(&message.content)))
                .collect();
            writeln!(
                stdout,
                "request {} (temperature {}, top_p {}, at most {} tokens)\n{said}",
                number + 1,
                decoding.temperature,
                decoding.top_p,
                decoding.max_output_tokens
            )
        };
        told.map_err(Failure::from)?;
    }
    if requests.is_empty() {
        tell("the stage would ask nothing", None);
    }
    Ok(())
}

/// Rows as JSON objects.
pub(crate) fn row_objects(rows: &[RecordBatch]) -> Result<Vec<Value>, Failure> {
    let mut writer = arrow::json::writer::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    for batch in rows {
        writer.write(batch)?;
    }
    writer.finish()?;
    let bytes = writer.into_inner();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| Failure::bug(error.to_string()))
}

/// Prints rows as a table, without the columns in `leave_out`. Long cells are cut, line ends shown as spaces.
pub(crate) fn print_rows(out: &mut impl Write, rows: &[RecordBatch], leave_out: &[&str]) -> Result<(), Failure> {
    let options = FormatOptions::default().with_null("-");
    let mut shown = Vec::new();
    for batch in rows {
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            if leave_out.contains(&field.name().as_str()) {
                continue;
            }
            let cells = ArrayFormatter::try_new(column, &options)?;
            let is_float = field.data_type().is_floating();
            let cells = (0..batch.num_rows()).map(|row| {
                let cell = cells.value(row).to_string();
                match cell.parse::<f64>() {
                    Ok(value) if is_float => decimal(value),
                    _ => cut(&printable(&cell).replace('\n', " ")),
                }
            });
            columns.push((field.name().clone(), std::sync::Arc::new(StringArray::from_iter_values(cells))));
        }
        shown.push(RecordBatch::try_from_iter(columns)?);
    }
    if shown.iter().all(|batch| batch.num_rows() == 0) {
        writeln!(out, "no rows")?;
        return Ok(());
    }
    writeln!(out, "{}", arrow::util::pretty::pretty_format_batches(&shown)?)?;
    Ok(())
}

/// Three decimals; a number that they would make 0 has an exponent.
fn decimal(value: f64) -> String {
    let text = format!("{value:.3}");
    match text.trim_start_matches('-') {
        "0.000" if value != 0.0 => format!("{value:.2e}"),
        _ => text,
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_number_is_not_shown_as_nothing() {
        let shown = [0.0, 1.0e-5, -2.5e-4, 0.001, 0.0006, -0.25, 12.0].map(decimal);
        assert_eq!(shown, ["0.000", "1.00e-5", "-2.50e-4", "0.001", "0.001", "-0.250", "12.000"]);
    }
}
