//! `min_yield`: the share of a stage's units of work that must be accepted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::array::{Array, AsArray, RecordBatch};

use crate::{failure::Failure, operator::REJECTS_OUTPUT, plan::Stage, store::Manifest};

/// Units after which a running stage is judged for the first time.
const SAMPLE: u64 = 100;

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
        let listed: Vec<String> = reasons.iter().map(|(reason, (count, _))| format!("`{reason}` {count}")).collect();
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
/// When too small a share was accepted.
pub(crate) fn check(stage: &Stage, manifest: &Manifest) -> Result<(), Failure> {
    let rejects = manifest.outputs.get(REJECTS_OUTPUT).map_or(0, |table| table.rows);
    if rejects == 0 || manifest.units == 0 {
        return Ok(());
    }
    let accepted = 1.0 - rejects as f64 / manifest.units as f64;
    if accepted >= stage.min_yield {
        return Ok(());
    }
    Err(Failure::data(format!(
        "{rejects} of {} units of work were rejected: {:.0} % accepted, {:.0} % demanded by `min_yield`",
        manifest.units,
        accepted.max(0.0) * 100.0,
        stage.min_yield * 100.0
    ))
    .hint(format!("see why with `show FILE {}.{REJECTS_OUTPUT}`; lower `min_yield` if that is as it should be", stage.name)))
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
    fn a_share_that_may_still_be_chance_goes_on() {
        let gate = Gate::new(0.5);
        gate.count(100);
        gate.reject(&rejects(60, "unparsable")).expect("40 % of a hundred may be chance");
        let none = Gate::new(0.0);
        none.count(1000);
        none.reject(&rejects(1000, "unparsable")).expect("nothing is demanded");
    }
}
