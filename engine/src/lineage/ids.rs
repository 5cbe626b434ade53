//! Row ids, and columns that hold some.

use std::collections::{BTreeMap, HashSet};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Schema},
};
use futures::TryStreamExt;

use crate::{
    failure::Failure,
    run::{Environment, Table, look_up},
};

/// Ids of rows.
pub type Ids = HashSet<String>;

/// Columns that end in `_id` and name no row that the stage read.
const NO_ROWS: [&str; 3] = ["row_id", "doc_id", "request_id"];

/// The columns of a table that may name rows which it was made of.
pub(super) fn naming(schema: &Schema) -> Vec<&str> {
    let fields = schema.fields().iter();
    let named = fields.filter(|field| field.name().ends_with("_id") && field.data_type() == &DataType::Utf8);
    named.map(|field| field.name().as_str()).filter(|name| !NO_ROWS.contains(name)).collect()
}

/// Up to so many ids are looked for by a condition on the files, which reads the other columns only where it holds.
const FEW: usize = 64;

/// Runs through the columns `of` of a table, first those of the rows that hold one of `wanted` in one of the columns `by`; of
/// every row where `wanted` is `None`. `each` gets the cells of a row in the order of `of`.
pub(super) async fn rows(
    environment: &Environment,
    table: &Table,
    of: &[&str],
    (by, wanted): (&[&str], Option<&Ids>),
    mut each: impl FnMut(&[Option<&str>]) -> bool,
) -> Result<(), Failure> {
    if wanted.is_some_and(HashSet::is_empty) || table.rows() == 0 || of.is_empty() {
        return Ok(());
    }
    let quoted = |name: &&str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut columns: Vec<&str> = of.to_vec();
    columns.extend(by.iter().filter(|name| !of.contains(name)));
    let mut sql = format!("select {} from rows", columns.iter().map(quoted).collect::<Vec<_>>().join(", "));
    if let Some(wanted) = wanted.filter(|wanted| wanted.len() <= FEW) {
        let list = list(wanted);
        let condition = |name: &&str| format!("{} in ({list})", quoted(name));
        sql.push_str(&format!(" where {}", by.iter().map(condition).collect::<Vec<_>>().join(" or ")));
    }
    let mut batches = look_up(environment, table, &sql).await?;
    while let Some(batch) = batches.try_next().await? {
        let cells: Vec<_> = batch.columns().iter().map(|column| column.as_string_opt::<i32>()).collect();
        let cells: Option<Vec<_>> = cells.into_iter().collect();
        let cells = cells.ok_or_else(|| Failure::bug("an id that isn't text"))?;
        let mut row_cells = Vec::with_capacity(cells.len());
        for row in 0..batch.num_rows() {
            row_cells.clear();
            row_cells.extend(cells.iter().map(|column| column.is_valid(row).then(|| column.value(row))));
            let holds = |name: &&str| {
                let place = columns.iter().position(|column| column == name);
                let cell = place.and_then(|place| row_cells[place]);
                cell.is_some_and(|cell| wanted.is_none_or(|wanted| wanted.contains(cell)))
            };
            if wanted.is_some() && !by.iter().any(holds) {
                continue;
            }
            if !each(&row_cells[..of.len()]) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Ids as SQL writes them in a list.
fn list(ids: &Ids) -> String {
    let mut list: Vec<String> = ids.iter().map(|id| literal(id)).collect();
    list.sort();
    list.join(", ")
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Which of `wanted` are row ids of a table.
pub(super) async fn present(environment: &Environment, table: &Table, wanted: &Ids) -> Result<Ids, Failure> {
    let mut found = Ids::new();
    if table.schema().column_with_name("row_id").is_none() {
        return Ok(found);
    }
    rows(environment, table, &["row_id"], (&["row_id"], Some(wanted)), |cells| {
        found.extend(cells[0].map(str::to_owned));
        found.len() < wanted.len()
    })
    .await?;
    Ok(found)
}

/// The rows `ids` of a table, with all its columns.
pub(super) async fn whole(environment: &Environment, table: &Table, ids: &Ids) -> Result<Vec<RecordBatch>, Failure> {
    if ids.is_empty() || table.rows() == 0 || table.schema().column_with_name("row_id").is_none() {
        return Ok(Vec::new());
    }
    let sql = format!("select * from rows where row_id in ({})", list(ids));
    Ok(look_up(environment, table, &sql).await?.try_collect().await?)
}

/// The first `limit` row ids of a table that begin with `prefix`, in their order.
pub(super) async fn beginning(
    environment: &Environment,
    table: &Table,
    prefix: &str,
    limit: usize,
) -> Result<Vec<String>, Failure> {
    if table.rows() == 0 || table.schema().column_with_name("row_id").is_none() {
        return Ok(Vec::new());
    }
    let prefix = literal(prefix);
    let sql = format!("select distinct row_id from rows where starts_with(row_id, {prefix}) order by row_id limit {limit}");
    let batches: Vec<RecordBatch> = look_up(environment, table, &sql).await?.try_collect().await?;
    let cells = batches.iter().filter_map(|batch| batch.column(0).as_string_opt::<i32>());
    Ok(cells.flat_map(|cells| cells.iter().flatten().map(str::to_owned)).collect())
}

/// What the rows `ids` of a table name, by column.
pub(super) async fn named(environment: &Environment, table: &Table, ids: &Ids) -> Result<BTreeMap<String, Ids>, Failure> {
    let columns: Vec<String> = naming(table.schema()).into_iter().map(str::to_owned).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut found: BTreeMap<String, Ids> = BTreeMap::new();
    rows(environment, table, &columns, (&["row_id"], Some(ids)), |cells| {
        for (column, cell) in columns.iter().zip(cells) {
            if let Some(cell) = cell {
                found.entry((*column).to_owned()).or_default().insert((*cell).to_owned());
            }
        }
        true
    })
    .await?;
    Ok(found)
}
