//! `min_yield`: the share of a stage's units of work that must be accepted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use futures::TryStreamExt;

use super::{
    context::Environment,
    table::{self, Table},
};
use crate::{
    failure::Failure,
    operator::{REJECTS_OUTPUT, rejects_schema},
    plan::Stage,
    store::{Manifest, TableManifest},
};

/// Units after which a running stage is judged for the first time.
const SAMPLE: u64 = 100;
/// Reasons that are listed for a whole artifact.
const LISTED: usize = 5;

/// Stops a running stage whose units are rejected so often that the rest wouldn't save it.
#[derive(Debug)]
pub(crate) struct Gate {
    min_yield: f64,
    units: AtomicU64,
    rejected: Mutex<Rejected>,
}

#[derive(Debug, Default)]
struct Rejected {
    rows: u64,
    /// How many of them are of partitions that were done before.
    earlier: u64,
    /// By reason: how many, and what the first one says.
    reasons: BTreeMap<String, (u64, Option<String>)>,
}

impl Gate {
    /// A gate for one filling of a stage.
    pub(crate) fn new(min_yield: f64) -> Self {
        Self { min_yield, units: AtomicU64::new(0), rejected: Mutex::default() }
    }

    /// More units were begun or done.
    pub(crate) fn count(&self, units: u64) {
        self.units.fetch_add(units, Ordering::Relaxed);
    }

    /// A partition was done before: so many units, of which so many rows came out as rejects.
    pub(crate) fn found(&self, units: u64, rejects: u64) {
        self.count(units);
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        rejected.rows += rejects;
        rejected.earlier += rejects;
    }

    /// Rows came out as rejects.
    ///
    /// # Errors
    /// After [`SAMPLE`] units, when the accepted share lies under `min_yield` by more than three standard errors: the stage
    /// then ends before more is paid for.
    pub(crate) fn reject(&self, rows: &RecordBatch) -> Result<(), Failure> {
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        rejected.rows += rows.num_rows() as u64;
        let texts = |name: &str| rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        if let (Some(reasons), Some(details)) = (texts("reason"), texts("detail")) {
            for row in 0..rows.num_rows() {
                let first = || details.is_valid(row).then(|| details.value(row).to_owned());
                rejected.reasons.entry(reasons.value(row).to_owned()).or_insert_with(|| (0, first())).0 += 1;
            }
        }
        let units = self.units.load(Ordering::Relaxed).max(rejected.rows);
        let accepted = 1.0 - rejected.rows as f64 / units as f64;
        let error = (self.min_yield * (1.0 - self.min_yield) / units as f64).sqrt();
        if units < SAMPLE || accepted >= self.min_yield - 3.0 * error {
            return Ok(());
        }
        let mut reasons: Vec<_> = rejected.reasons.iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        let mut listed: Vec<String> = reasons.iter().map(|(reason, (count, _))| format!("`{reason}` {count}")).collect();
        if rejected.earlier > 0 {
            listed.push(format!("{} before this run", rejected.earlier));
        }
        let example = reasons.first().and_then(|(_, (_, detail))| detail.as_deref());
        let example = example.map(|detail| format!("; the first says: {detail}")).unwrap_or_default();
        Err(Failure::data(format!(
            "{} of the first {units} units of work were rejected, and `min_yield` demands {:.0} % accepted: {}{example}",
            rejected.rows,
            self.min_yield * 100.0,
            listed.join(", ")
        ))
        .hint(
            "stopped early, nothing was committed and every answer is kept: mend the prompt or the model, or lower `min_yield`",
        ))
    }
}

/// Judges a whole artifact, on a hit, too.
///
/// # Errors
/// When too small a share was accepted. The failure says why rows were rejected, as far as that can be read.
pub(crate) async fn check(environment: &Environment, stage: &Stage, manifest: &Manifest) -> Result<(), Failure> {
    let Some(rejects) = manifest.outputs.get(REJECTS_OUTPUT) else { return Ok(()) };
    let Some(failure) = judged(stage, rejects.rows, manifest.units) else { return Ok(()) };
    let why = reasons(environment, rejects).await.unwrap_or_default();
    Err(Failure { message: format!("{}{why}", failure.message), ..failure })
}

/// What is wrong with a stage that rejected `rejects` of `units`.
fn judged(stage: &Stage, rejects: u64, units: u64) -> Option<Failure> {
    if rejects == 0 || units == 0 {
        return None;
    }
    let accepted = 1.0 - rejects as f64 / units as f64;
    if accepted >= stage.min_yield {
        return None;
    }
    let failure = Failure::data(format!(
        "{rejects} of {units} units of work were rejected: {:.0} % accepted, {:.0} % demanded by `min_yield`",
        accepted.max(0.0) * 100.0,
        stage.min_yield * 100.0
    ));
    Some(
        failure.hint(format!(
            "the output `{}.{REJECTS_OUTPUT}` has them all; lower `min_yield` if that is as it should be",
            stage.name
        )),
    )
}

/// The reasons of a table of rejects, the most frequent first, and what one of these says.
async fn reasons(environment: &Environment, rejects: &TableManifest) -> Result<String, Failure> {
    let rejects = Table::new(environment, rejects_schema(), rejects.clone());
    let inputs = BTreeMap::from([("rejects".to_owned(), vec![rejects])]);
    let sql = format!(
        "select reason, count(*) as n, min(detail) as detail from rejects group by reason order by n desc, reason limit {LISTED}"
    );
    let found: Vec<RecordBatch> = table::query(environment, &inputs, &sql).await?.try_collect().await?;
    let mut listed = Vec::new();
    let mut example = String::new();
    for rows in &found {
        let texts = |name: &str| rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let counts = rows.column_by_name("n").and_then(|column| column.as_primitive_opt::<Int64Type>());
        let (Some(reasons), Some(details), Some(counts)) = (texts("reason"), texts("detail"), counts) else {
            return Err(Failure::bug("no reasons, counts and details"));
        };
        for row in 0..rows.num_rows() {
            if listed.is_empty() && details.is_valid(row) {
                example = format!("; one says: {}", details.value(row));
            }
            listed.push(format!("`{}` {}", reasons.value(row), counts.value(row)));
        }
    }
    Ok(format!(" ({}){example}", listed.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn rejects(n: usize, reason: &str) -> RecordBatch {
        let texts = |text: &str| Arc::new(StringArray::from(vec![text; n])) as ArrayRef;
        RecordBatch::try_from_iter([("reason", texts(reason)), ("detail", texts("no JSON in it"))]).expect("two columns")
    }

    #[test]
    fn a_hopeless_sample_ends_the_stage_and_says_why() {
        let gate = Gate::new(0.5);
        gate.count(90);
        gate.reject(&rejects(90, "unparsable")).expect("too few to judge");
        gate.count(20);
        let failure = gate.reject(&rejects(2, "refusal")).expect_err("hopeless");
        assert!(failure.message.starts_with("92 of the first 110 units"), "{}", failure.message);
        assert!(failure.message.contains("`unparsable` 90, `refusal` 2; the first says: no JSON in it"), "{}", failure.message);
    }

    #[test]
    fn what_was_done_before_the_run_counts() {
        let gate = Gate::new(0.5);
        gate.found(90, 80);
        gate.count(10);
        let failure = gate.reject(&rejects(10, "unparsable")).expect_err("hopeless");
        assert!(failure.message.starts_with("90 of the first 100 units"), "{}", failure.message);
        assert!(failure.message.contains("`unparsable` 10, 80 before this run; the first says: no JSON"), "{}", failure.message);
        let sound = Gate::new(0.5);
        sound.found(1000, 10);
        sound.count(100);
        sound.reject(&rejects(100, "unparsable")).expect("90 % of all are accepted");
    }

    #[test]
    fn a_share_that_may_still_be_chance_goes_on() {
        let gate = Gate::new(0.5);
        gate.count(100);
        gate.reject(&rejects(60, "unparsable")).expect("40 % of a hundred may be chance");
        let none = Gate::new(0.0);
        none.count(1000);
        none.reject(&rejects(1000, "unparsable")).expect("nothing is demanded");
    }
}
