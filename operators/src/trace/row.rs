//! Rows with what they hold.

use arrow::array::RecordBatch;
use ingrain_engine::{
    failure::Failure,
    lineage::{Artifact, Ids},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Trace;

/// A row of an artifact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The stage.
    pub stage: String,
    /// Its output.
    pub output: String,
    /// Its operator.
    pub operator: String,
    /// The row's id.
    pub row_id: String,
    /// Its other columns, those that are null left out.
    pub values: Map<String, Value>,
}

impl Row {
    /// A column of text; `None` where it is null or there is no such column.
    pub fn text(&self, column: &str) -> Option<&str> {
        self.values.get(column).and_then(Value::as_str)
    }

    /// Which bytes of its document's text it is, where it says so.
    pub fn span(&self) -> Option<(usize, usize)> {
        let place = |column: &str| self.values.get(column)?.as_u64().and_then(|place| usize::try_from(place).ok());
        Some((place("byte_start")?, place("byte_end")?))
    }
}

impl Trace {
    /// A row that was found.
    ///
    /// # Errors
    /// When the table can't be read, or doesn't have it.
    pub async fn row(&self, stage: &str, output: &str, row_id: &str) -> Result<Row, Failure> {
        let rows = match self.lineage.find(stage) {
            Some(artifact) => self.rows(artifact, output, &Ids::from([row_id.to_owned()])).await?,
            None => Vec::new(),
        };
        rows.into_iter().next().ok_or_else(|| Failure::bug(format!("no row `{row_id}`")))
    }

    /// Some rows of an output, by `position` or `rank` where it has one, then by `row_id`.
    pub(super) async fn rows(&self, artifact: usize, output: &str, ids: &Ids) -> Result<Vec<Row>, Failure> {
        let named = &self.lineage.artifacts()[artifact];
        let mut rows = Vec::new();
        for batch in self.lineage.read(artifact, output, ids).await? {
            rows.extend(of(named, output, &batch)?);
        }
        let position = |row: &Row| ["position", "rank"].iter().find_map(|column| row.values.get(*column)?.as_i64());
        rows.sort_by(|a, b| (position(a), &a.row_id).cmp(&(position(b), &b.row_id)));
        Ok(rows)
    }
}

fn of(artifact: &Artifact, output: &str, batch: &RecordBatch) -> Result<Vec<Row>, Failure> {
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let written = writer.into_inner();
    if batch.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let objects: Vec<Map<String, Value>> =
        serde_json::from_slice(&written).map_err(|error| Failure::bug(format!("rows as JSON: {error}")))?;
    let row = |mut values: Map<String, Value>| {
        let id = values.shift_remove("row_id");
        let row_id = id.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        let (stage, operator) = (artifact.name.stage.clone(), artifact.operator.clone());
        Row { stage, output: output.to_owned(), operator, row_id, values }
    };
    Ok(objects.into_iter().map(row).collect())
}
