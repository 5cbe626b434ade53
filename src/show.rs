//! `show`

use std::{collections::BTreeMap, io::Write};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    util::display::{ArrayFormatter, FormatOptions},
};
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    run::{Status, Table, query, why},
};
use serde_json::Value;

use crate::{
    End,
    call::ShowCall,
    pipeline::Pipeline,
    progress::{grouped, printable, tell},
};

/// Characters of a cell that a table shows.
const CELL: usize = 64;

pub(crate) async fn show(call: ShowCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file)?;
    let (stage_name, output_name) = call.output.split_once('.').unwrap_or((&call.output, "default"));
    let index = pipeline.stage(stage_name)?;
    let stage = pipeline.plan.stage(index);
    let output = stage.output(output_name).ok_or_else(|| {
        let names: Vec<String> = stage.outputs.iter().map(|output| format!("`{stage_name}.{}`", output.name)).collect();
        Failure::data(format!("`{stage_name}` has no output `{output_name}`")).hint(format!("it has {}", names.join(", ")))
    })?;
    let environment = pipeline.open(&call.store).await?;
    if !environment.store.is_there() {
        return Err(Failure::data(format!("there is no store at `{}`", environment.store.location()))
            .hint(format!("`ingrain run {}` makes one; `--store` names another", call.store.file.file.display()))
            .into());
    }
    let statuses = why(&pipeline.plan, &environment, &pipeline.plan.needed_by(index), Default::default()).await?;
    let status = statuses.into_iter().find(|(found, _)| *found == index).map(|(_, status)| status);
    let Some(Status::Hit { manifest, .. }) = status else {
        return Err(Failure::data(format!("`{stage_name}` hasn't run as it stands now"))
            .hint(format!("run it: `ingrain run {} --until {stage_name}`", call.store.file.file.display()))
            .into());
    };
    let table = manifest.outputs.get(output_name).ok_or_else(|| Failure::bug("an artifact without a bound output"))?;
    let table = Table::new(&environment, output.schema.clone(), table.clone());
    let total = table.rows();
    let inputs: BTreeMap<_, _> = [("rows".to_owned(), vec![table])].into();
    let predicate = call.predicate.as_deref().map(|predicate| format!(" where {predicate}")).unwrap_or_default();
    let order = if output.schema.column_with_name("position").is_some() { "position" } else { "row_id" };
    let sql = format!("select * from rows{predicate} order by {order} limit {}", call.limit);
    let rows: Vec<RecordBatch> = query(&environment, &inputs, &sql).await?.try_collect().await.map_err(Failure::from)?;
    let mut stdout = std::io::stdout().lock();
    if call.json {
        for row in row_objects(&rows)? {
            writeln!(stdout, "{row}").map_err(Failure::from)?;
        }
        return Ok(());
    }
    print_rows(&mut stdout, &rows, &[])?;
    let shown: usize = rows.iter().map(RecordBatch::num_rows).sum();
    tell(&format!("{} of {} rows", grouped(shown as u64), grouped(total)), None);
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
                    Ok(value) if is_float => format!("{value:.3}"),
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

fn cut(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
