//! From rows to those that they were made of, and to those that were made of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use arrow::array::RecordBatch;

use super::{
    graph::{Edge, Lineage},
    ids::{Ids, beginning, named, naming, present, rows, whole},
};
use crate::{failure::Failure, run::Table};

/// Rows that some were made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Parent {
    /// The column that names them; `row_id` where rows pass through.
    pub column: String,
    /// The artifact whose rows they are, by its place.
    pub artifact: usize,
    /// The output.
    pub output: String,
    /// The rows.
    pub ids: Ids,
}

/// What of a table depends on some rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Affected {
    /// These rows, never none.
    Rows(Ids),
    /// Nobody can say which rows: all of it.
    Whole,
}

/// So many rows of a table are asked whether they name rows of another one.
const ASKED: usize = 4096;

impl Lineage {
    /// What the rows `ids` of an output were made of, one stage up: the rows by column and by the output that they are in. A
    /// removed row's `kept_id` is found among the stage's own rows.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn parents(&self, artifact: usize, output: &str, ids: &Ids) -> Result<Vec<Parent>, Failure> {
        let Some(table) = self.table(artifact, output) else { return Ok(Vec::new()) };
        let named = named(&self.environment, &table, ids).await?;
        let own = self.artifacts()[artifact].manifest.outputs.keys().filter(|name| *name != output);
        let own: Vec<(usize, &str)> = own.map(|name| (artifact, name.as_str())).collect();
        let above: BTreeSet<(usize, &str)> =
            self.artifacts()[artifact].reads.iter().map(|edge| (edge.artifact, edge.output.as_str())).collect();
        let mut parents = Vec::new();
        // A row that is found beside is meant there, though it passed through from above.
        let mut beside: BTreeMap<&str, Ids> = BTreeMap::new();
        for (place, name) in own.into_iter().chain(above) {
            let Some(table) = self.table(place, name) else { continue };
            let is_own = place == artifact;
            let columns = named.iter().map(|(column, ids)| (column.as_str(), ids)).chain((!is_own).then_some(("row_id", ids)));
            for (column, wanted) in columns {
                let mut found = present(&self.environment, &table, wanted).await?;
                if is_own {
                    beside.entry(column).or_default().extend(found.iter().cloned());
                } else if let Some(known) = beside.get(column) {
                    found.retain(|id| !known.contains(id));
                }
                if !found.is_empty() {
                    let (column, output) = (column.to_owned(), name.to_owned());
                    parents.push(Parent { column, artifact: place, output, ids: found });
                }
            }
        }
        Ok(parents)
    }

    /// Which of `ids` are rows of an output.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn present(&self, artifact: usize, output: &str, ids: &Ids) -> Result<Ids, Failure> {
        match self.table(artifact, output) {
            Some(table) => present(&self.environment, &table, ids).await,
            None => Ok(Ids::new()),
        }
    }

    /// The rows of an output that hold one of `wanted` in a column of text, by `row_id`.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn rows_with(&self, artifact: usize, output: &str, column: &str, wanted: &Ids) -> Result<Ids, Failure> {
        let mut found = Ids::new();
        let Some(table) = self.table(artifact, output) else { return Ok(found) };
        let has = |name: &str| table.schema().column_with_name(name).is_some();
        if has("row_id") && has(column) {
            rows(&self.environment, &table, &["row_id"], (&[column], Some(wanted)), |cells| {
                found.extend(cells[0].map(str::to_owned));
                true
            })
            .await?;
        }
        Ok(found)
    }

    /// The rows `ids` of an output with all their columns: for few rows, in no order.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn read(&self, artifact: usize, output: &str, ids: &Ids) -> Result<Vec<RecordBatch>, Failure> {
        match self.table(artifact, output) {
            Some(table) => whole(&self.environment, &table, ids).await,
            None => Ok(Vec::new()),
        }
    }

    /// The first `limit` row ids of an output that begin with `prefix`, in their order.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn beginning(&self, artifact: usize, output: &str, prefix: &str, limit: usize) -> Result<Vec<String>, Failure> {
        match self.table(artifact, output) {
            Some(table) => beginning(&self.environment, &table, prefix, limit).await,
            None => Ok(Vec::new()),
        }
    }

    /// Everything that was made of some rows, themselves included: by the artifact's place and the output.
    ///
    /// A row is affected if it names an affected row of what its stage read, or is one that passed through. An output of which
    /// no row names any row of what arrives at the port of an affected input is affected as a whole, and so is what was made
    /// of an output that is; an empty one isn't. Of a port that gives nothing but a vocabulary nothing goes on.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn made_of(&self, start: Vec<(usize, String, Ids)>) -> Result<BTreeMap<(usize, String), Affected>, Failure> {
        self.made_of_within(start, |_| true).await
    }

    /// As [`Self::made_of`], in those artifacts only whose places fit.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn made_of_within(
        &self,
        start: Vec<(usize, String, Ids)>,
        fits: impl Fn(usize) -> bool,
    ) -> Result<BTreeMap<(usize, String), Affected>, Failure> {
        let mut affected: BTreeMap<(usize, String), Affected> = BTreeMap::new();
        let mut open: BTreeSet<usize> = BTreeSet::new();
        for (artifact, output, ids) in start.into_iter().filter(|(_, _, ids)| !ids.is_empty()) {
            open.extend(self.readers(artifact));
            // The other outputs of the stage may name its rows.
            open.insert(artifact);
            add(&mut affected, (artifact, output), Affected::Rows(ids));
        }
        // Equal outputs make edges to each of those that gave one, and those may go round in a circle: until nothing is new.
        while let Some(artifact) = open.pop_first() {
            if !fits(artifact) {
                continue;
            }
            for output in self.artifacts()[artifact].manifest.outputs.keys() {
                let Some(found) = self.affected(artifact, output, &affected).await? else { continue };
                if add(&mut affected, (artifact, output.clone()), found) {
                    open.extend(self.readers(artifact));
                    // Another output may name its rows, and was perhaps looked at before.
                    let outputs = self.artifacts()[artifact].manifest.outputs.values();
                    if outputs.filter(|table| table.rows > 0).count() > 1 {
                        open.insert(artifact);
                    }
                }
            }
        }
        Ok(affected)
    }

    /// What of an output depends on what is affected above it, or beside it in its own artifact.
    async fn affected(
        &self,
        artifact: usize,
        output: &str,
        affected: &BTreeMap<(usize, String), Affected>,
    ) -> Result<Option<Affected>, Failure> {
        let Some(table) = self.table(artifact, output).filter(|table| table.rows() > 0) else { return Ok(None) };
        let mut wanted = Ids::new();
        let mut above: Vec<(&Edge, &Ids)> = Vec::new();
        for edge in self.artifacts()[artifact].reads.iter().filter(|edge| !edge.is_vocabulary) {
            match affected.get(&(edge.artifact, edge.output.clone())) {
                None => {}
                Some(Affected::Whole) => return Ok(Some(Affected::Whole)),
                Some(Affected::Rows(ids)) => {
                    wanted.extend(ids.iter().cloned());
                    above.push((edge, ids));
                }
            }
        }
        let beside = self.artifacts()[artifact].manifest.outputs.keys().filter(|name| *name != output);
        let beside: Vec<&Ids> = beside
            .filter_map(|name| match affected.get(&(artifact, name.clone())) {
                Some(Affected::Rows(ids)) => Some(ids),
                _ => None,
            })
            .collect();
        let mut found = self.naming_any(&table, &wanted, true).await?;
        let is_told = above.len() == 1 && !found.is_empty();
        for ids in beside {
            // A removed row names the one that stayed.
            found.extend(self.naming_any(&table, ids, false).await?);
        }
        let ports: BTreeSet<&str> = above.iter().filter(|_| !is_told).map(|(edge, _)| edge.port.as_str()).collect();
        for port in ports {
            // What one table of a list is named by names the others, too: of one that no row is of, as of a source with weight 0,
            // nothing went on.
            let mut is_named = false;
            for edge in self.artifacts()[artifact].reads.iter().filter(|edge| edge.port == port) {
                is_named = is_named || self.names_rows_of(&table, edge).await?;
            }
            if !is_named {
                return Ok(Some(Affected::Whole));
            }
        }
        Ok((!found.is_empty()).then_some(Affected::Rows(found)))
    }

    /// The rows of a table that name one of `wanted`, or, where rows may have `passed` through, are one of them.
    async fn naming_any(&self, table: &Table, wanted: &Ids, passed: bool) -> Result<Ids, Failure> {
        let mut found = Ids::new();
        if table.schema().column_with_name("row_id").is_none() {
            return Ok(found);
        }
        let mut by: Vec<&str> = naming(table.schema());
        by.extend(passed.then_some("row_id"));
        rows(&self.environment, table, &["row_id"], (&by, Some(wanted)), |cells| {
            found.extend(cells[0].map(str::to_owned));
            true
        })
        .await?;
        Ok(found)
    }

    /// Whether rows of a table name rows of what its stage read at an edge: some of the first do, if any.
    async fn names_rows_of(&self, table: &Table, edge: &Edge) -> Result<bool, Failure> {
        let Some(read) = self.table(edge.artifact, &edge.output) else { return Ok(false) };
        if table.schema().column_with_name("row_id").is_none() {
            return Ok(false);
        }
        let mut columns: Vec<&str> = naming(table.schema());
        columns.push("row_id");
        let (mut asked, mut count) = (HashSet::new(), 0);
        rows(&self.environment, table, &columns, (&[], None), |cells| {
            asked.extend(cells.iter().flatten().map(|cell| (*cell).to_owned()));
            count += 1;
            count < ASKED
        })
        .await?;
        let mut does = false;
        rows(&self.environment, &read, &["row_id"], (&["row_id"], None), |cells| {
            does = cells[0].is_some_and(|id| asked.contains(id));
            !does
        })
        .await?;
        Ok(does)
    }
}

/// Adds to what is affected, and says whether that is news.
fn add(affected: &mut BTreeMap<(usize, String), Affected>, at: (usize, String), more: Affected) -> bool {
    match (affected.get_mut(&at), more) {
        (None, more) => {
            affected.insert(at, more);
            true
        }
        (Some(Affected::Whole), _) => false,
        (Some(known), Affected::Whole) => {
            *known = Affected::Whole;
            true
        }
        (Some(Affected::Rows(known)), Affected::Rows(more)) => {
            let before = known.len();
            known.extend(more);
            known.len() > before
        }
    }
}
