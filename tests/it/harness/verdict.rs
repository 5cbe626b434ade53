//! Plays a case and judges what came of it.

use std::collections::BTreeMap;

use super::{
    corpus::{BUDGET, PRICE, STAGES, Variant, expected},
    plan::{Attempt, Case, Kind},
    process::Ended,
    teacher::USAGE,
    world::World,
};

/// What went wrong in a case: all of it is to be nothing, but for the excused repeats.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Stages with fewer rows than they have in an undisturbed run.
    pub(super) rows_lost: u64,
    /// Answers that were paid for again though somebody had them.
    pub(super) paid_twice: u64,
    /// Outputs that are those of the documents before they changed.
    pub(super) wrong_hits: u64,
    /// Runs that panicked or found a mistake of the program.
    pub(super) panics: u64,
    /// Other outputs that aren't those of an undisturbed run.
    pub(super) unequal: u64,
    /// Whatever else.
    pub(super) other: Vec<String>,
    /// Answers that were paid for again because a kill took them on their way.
    pub(super) excused: u64,
    /// Runs, and how many were killed.
    pub(super) runs: u64,
    pub(super) killed: u64,
    /// Faults by step and kind.
    pub(super) faults: BTreeMap<(String, String), u64>,
    /// What helps to understand a failure.
    pub(super) said: String,
}

impl Verdict {
    pub(super) fn is_good(&self) -> bool {
        self.rows_lost + self.paid_twice + self.wrong_hits + self.panics + self.unequal == 0 && self.other.is_empty()
    }

    /// Looks at how a run ended that `attempt` disturbed.
    fn hear(&mut self, attempt: &Attempt, ended: &Ended) {
        self.runs += 1;
        self.killed += u64::from(ended.code.is_none());
        self.panics += u64::from(ended.has_bug());
        if ended.stood_still {
            self.other.push("a run stood still".into());
        }
        let may_be_killed = attempt.write.is_some() || attempt.answer.is_some();
        let may_fail = attempt.store.is_some() || attempt.is_race;
        let is_right = match ended.code {
            Some(0) => true,
            Some(1) => may_fail,
            // A store that can't be opened is a wrong call.
            Some(2) => attempt.store.is_some(),
            None => may_be_killed,
            Some(_) => false,
        };
        if !is_right {
            self.other.push(format!("a run ended with {:?} after {attempt:?}", ended.code));
        }
        let code = ended.code.map_or("killed".to_owned(), |code| code.to_string());
        let attempt = format!("write {:?} answer {:?} store {:?}", attempt.write, attempt.answer, attempt.store);
        self.said.push_str(&format!("-- {code}, {} stages ran, {attempt}\n{}", ended.executed(), ended.stderr));
    }
}

/// Plays a case.
pub(super) fn play(case: Case) -> Verdict {
    let mut chance = case.chance();
    let attempts = case.attempts(&mut chance);
    let writes = |step| attempts.iter().any(|attempt| attempt.write.is_some_and(|(at, ..)| at == step));
    // What a machine has that died, another one can't know: where there are two, none of their runs ends early.
    let ends_early =
        attempts.iter().any(|attempt| attempt.write.is_some() || attempt.answer.is_some() || attempt.store.is_some());
    let two_caches = case.kind == Kind::Race && !ends_early && chance.one_in(2);
    let has_budget = writes("budget") || !two_caches && chance.one_in(3);
    let mut world = World::new(case, has_budget, two_caches);
    let mut verdict = Verdict::default();

    world.documents(Variant::Before);
    // Only a new store gets its format.
    let (first, then): (Vec<Attempt>, Vec<Attempt>) =
        attempts.into_iter().partition(|attempt| attempt.write.is_some_and(|(step, ..)| step == "format"));
    until_it_ends(&mut world, first, &mut verdict);
    world.documents(Variant::After);
    until_it_ends(&mut world, then, &mut verdict);
    judge(&mut world, has_budget, &mut verdict);
    verdict.faults = world.faults.take();
    verdict
}

/// Disturbed runs until one ends well, and one that isn't disturbed if none does.
fn until_it_ends(world: &mut World, attempts: Vec<Attempt>, verdict: &mut Verdict) {
    for attempt in attempts.into_iter().chain([Attempt::default()]) {
        let ended = world.run(&attempt);
        for ended in &ended {
            verdict.hear(&attempt, ended);
        }
        if ended.iter().any(|ended| ended.code == Some(0)) {
            return;
        }
    }
}

/// Compares what is there now with what an undisturbed run gives.
fn judge(world: &mut World, has_budget: bool, verdict: &mut Verdict) {
    let asked = world.teacher.asked();
    let last = world.run(&Attempt::default()).remove(0);
    verdict.hear(&Attempt::default(), &last);
    if last.executed() > 0 || world.teacher.asked() > asked {
        let requests = world.teacher.asked() - asked;
        verdict.other.push(format!("a run after the end ran {} stages and made {requests} requests", last.executed()));
    }
    let (before, after) = (expected(Variant::Before), expected(Variant::After));
    for (stage, expected) in &after.rows {
        let found = last.events.iter().find(|event| event["stage"] == **stage).and_then(|event| event["rows"].as_u64());
        verdict.rows_lost += u64::from(found.is_none_or(|found| found < *expected));
    }
    let digests = world.digests();
    if digests.len() != STAGES {
        verdict.other.push(format!("{} stages are cached in the end", digests.len()));
    }
    for (stage, outputs) in &after.digests {
        for (output, expected) in outputs.as_object().into_iter().flatten() {
            let found = digests.get(stage).map(|outputs| &outputs[output]);
            if found == Some(expected) {
                continue;
            }
            verdict.said.push_str(&format!("-- `{stage}.{output}` is {found:?} and not {expected}\n"));
            match found == Some(&before.digests[stage][output]) {
                true => verdict.wrong_hits += 1,
                false => verdict.unequal += 1,
            }
        }
    }
    let paid = world.teacher.paid_twice();
    (verdict.paid_twice, verdict.excused) = (paid.wrongly, paid.excused);
    if has_budget {
        let spent = world.spent() as f64 / 1e9;
        let cost = (USAGE.0 as f64 * PRICE.0 + USAGE.1 as f64 * PRICE.1) / 1e6;
        let least = world.teacher.answered() as f64 * cost;
        if spent > BUDGET || spent < least - 1e-9 {
            verdict.other.push(format!("${spent} were spent, by the record, and ${least} by the teacher"));
        }
    }
}
