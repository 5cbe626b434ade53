//! What all cases came to, as tables.

use std::{collections::BTreeMap, fmt};

use super::{
    plan::{Case, Kind},
    verdict::Verdict,
};

#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<(Kind, bool), Row>,
    /// By step, then by fault.
    faults: BTreeMap<String, BTreeMap<String, u64>>,
    failed: Vec<u64>,
}

#[derive(Default)]
struct Row {
    cases: u64,
    runs: u64,
    killed: u64,
    rows_lost: u64,
    paid_twice: u64,
    wrong_hits: u64,
    panics: u64,
    unequal: u64,
    other: u64,
    excused: u64,
}

impl Table {
    pub(super) fn add(&mut self, case: Case, verdict: &Verdict) {
        let row = self.rows.entry((case.kind, case.is_on_s3)).or_default();
        row.cases += 1;
        row.runs += verdict.runs;
        row.killed += verdict.killed;
        row.rows_lost += verdict.rows_lost;
        row.paid_twice += verdict.paid_twice;
        row.wrong_hits += verdict.wrong_hits;
        row.panics += verdict.panics;
        row.unequal += verdict.unequal;
        row.other += verdict.other.len() as u64;
        row.excused += verdict.excused;
        for ((step, fault), count) in &verdict.faults {
            *self.faults.entry(step.clone()).or_default().entry(fault.clone()).or_default() += count;
        }
        if !verdict.is_good() {
            self.failed.push(case.seed);
            self.failed.sort_unstable();
        }
    }

    /// The seeds of cases that failed.
    pub(super) fn failed(&self) -> &[u64] {
        &self.failed
    }

    /// How many runs were killed at a write of a step.
    pub(super) fn kills(&self, step: &str) -> u64 {
        let faults = self.faults.get(step).into_iter().flatten();
        faults.filter(|(fault, _)| fault.starts_with("kill")).map(|(_, count)| count).sum()
    }

    /// How many kinds of cases there were, those on a local store and those on S3 apart.
    pub(super) fn kinds(&self) -> usize {
        self.rows.len()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads =
            ["cases", "runs", "killed", "rows lost", "paid twice", "wrong hits", "panics", "unequal", "other", "excused repeats"];
        writeln!(f, "| kind | store | {} |", heads.join(" | "))?;
        writeln!(f, "|---|---|{}", "---:|".repeat(heads.len()))?;
        let mut sums = [0; 10];
        for ((kind, is_on_s3), row) in &self.rows {
            let Row { cases, runs, killed, rows_lost, paid_twice, wrong_hits, panics, unequal, other, excused } = row;
            let numbers = [cases, runs, killed, rows_lost, paid_twice, wrong_hits, panics, unequal, other, excused];
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            writeln!(f, "| {} | {} | {} |", kind.name(), if *is_on_s3 { "S3" } else { "local" }, numbers.join(" | "))?;
        }
        let sums: Vec<String> = sums.iter().map(ToString::to_string).collect();
        writeln!(f, "| all | | {} |", sums.join(" | "))?;
        writeln!(f, "\n| step | faults | by kind |\n|---|---:|---|")?;
        for (step, faults) in &self.faults {
            let kinds: Vec<String> = faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
            writeln!(f, "| {step} | {} | {} |", faults.values().sum::<u64>(), kinds.join(", "))?;
        }
        Ok(())
    }
}
