//! What a person sees on the terminal. Everything here goes to stderr.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{IsTerminal, Write},
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ingrain_engine::{
    diagnostic::Diagnostics,
    operator::Price,
    plan::Stage,
    run::{Counters, Event, StageReport},
};

/// Prints a message and what would be right, apart from it.
pub(crate) fn tell(message: &str, hint: Option<&str>) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", printable(message));
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "\nhint: {}", printable(hint));
    }
}

/// Prints every mistake in a file.
pub(crate) fn tell_diagnostics(diagnostics: &Diagnostics) {
    let stderr = std::io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let _ = writeln!(stderr.lock(), "{}", diagnostics.render(colour, 110));
}

/// `text` without control characters other than line ends: what documents and servers say must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char }).collect()
}

/// "12,345"
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "12,345 rows", "1 row"
pub(crate) fn rows(n: u64) -> String {
    format!("{} row{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// One line per stage of the file on a terminal; nothing elsewhere.
pub(crate) struct Progress {
    lines: MultiProgress,
    /// By name, the stage of the file.
    bases: HashMap<String, String>,
    bars: Mutex<HashMap<String, Bar>>,
    width: usize,
    shown: bool,
}

/// The line of a stage of the file, while one of its cells runs.
struct Bar {
    line: Option<ProgressBar>,
    /// Paces of the cells that run.
    running: BTreeMap<String, Pace>,
    /// How many cells there are, and what became of those that are done.
    cells: usize,
    cached: usize,
    ran: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
}

impl Bar {
    fn done(&self) -> usize {
        self.cached + self.ran + self.failed + self.skipped
    }
}

impl Progress {
    pub(crate) fn new<'a>(stages: impl Iterator<Item = &'a Stage>, shown: bool) -> Self {
        let shown = shown && std::io::stderr().is_terminal();
        let (mut bases, mut bars) = (HashMap::new(), HashMap::new());
        for stage in stages {
            bases.insert(stage.name.clone(), stage.base.clone());
            let new =
                Bar { line: None, running: BTreeMap::new(), cells: 0, cached: 0, ran: 0, failed: 0, skipped: 0, seconds: 0.0 };
            bars.entry(stage.base.clone()).or_insert(new).cells += 1;
        }
        let width = bars.keys().map(String::len).max().unwrap_or(0);
        Self { lines: MultiProgress::new(), bases, bars: Mutex::new(bars), width, shown }
    }

    pub(crate) fn event(&self, event: &Event) {
        if !self.shown {
            // What a person has to know is said wherever it runs.
            if let Some(notice) = notice(event) {
                tell(&notice, None);
            }
            return;
        }
        match event {
            Event::Started { stage, .. } => self.started(stage),
            Event::Waiting { .. } | Event::Namesake { .. } => {
                if let Some(notice) = notice(event) {
                    let _ = self.lines.println(notice);
                }
            }
            Event::Cached { stage, rows } => {
                self.ended(stage, &format!("cached, {}", self::rows(*rows)), |bar| bar.cached += 1);
            }
            Event::Finished(report) => self.ended(&report.stage, &said(report), |bar| {
                bar.ran += 1;
                bar.seconds += report.seconds;
            }),
            Event::Failed { stage, failure } => {
                let text = format!("failed: {}", printable(&failure.message));
                if self.is_cell(stage) {
                    self.line(stage, &text);
                }
                self.ended(stage, &text, |bar| bar.failed += 1);
            }
            Event::Damaged { stage, object } => {
                self.undone(stage);
                self.line(stage, &format!("`{object}` doesn't hold what was written there: it is made anew"));
            }
            Event::Skipped { stage, because } => {
                self.ended(stage, &format!("not run: needs {}", because.join(", ")), |bar| bar.skipped += 1);
            }
        }
    }

    fn is_cell(&self, stage: &str) -> bool {
        self.bases.get(stage).is_some_and(|base| base != stage)
    }

    fn started(&self, stage: &str) {
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((base, bar)) = self.bases.get(stage).and_then(|base| Some((base, bars.get_mut(base)?))) else { return };
        bar.running.insert(stage.to_owned(), Pace::default());
        bar.line.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let line = self.lines.add(ProgressBar::new_spinner().with_style(style));
            line.set_prefix(format!("{base:width$}", width = self.width));
            line.enable_steady_tick(Duration::from_millis(120));
            line
        });
    }

    /// Counts a stage that is done, and says so; of the cells of a matrix when the last one is.
    fn ended(&self, stage: &str, text: &str, count: impl FnOnce(&mut Bar)) {
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((base, bar)) = self.bases.get(stage).and_then(|base| Some((base, bars.get_mut(base)?))) else { return };
        count(bar);
        bar.running.remove(stage);
        if bar.running.is_empty()
            && let Some(line) = bar.line.take()
        {
            line.finish_and_clear();
        }
        if bar.cells == 1 {
            return self.line(base, text);
        }
        if bar.done() == bar.cells {
            let counts = [(bar.ran, "ran"), (bar.cached, "cached"), (bar.failed, "failed"), (bar.skipped, "not run")];
            let counts: Vec<String> =
                counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
            let seconds = if bar.ran > 0 { format!(", {:.1} s in all", bar.seconds) } else { String::new() };
            self.line(base, &format!("{} cells: {}{seconds}", bar.cells, counts.join(", ")));
        }
    }

    /// Takes back that a stage was done.
    fn undone(&self, stage: &str) {
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = self.bases.get(stage).and_then(|base| bars.get_mut(base)) {
            let count = if bar.cached > 0 { &mut bar.cached } else { &mut bar.ran };
            *count = count.saturating_sub(1);
        }
    }

    /// Brings a running stage's line up to date.
    pub(crate) fn update(&self, stage: &str, counters: &Counters, price: Option<Price>) {
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(bar) = self.bases.get(stage).and_then(|base| bars.get_mut(base)) else { return };
        let (done, at_once) = (bar.done(), bar.running.len());
        let is_first = bar.running.first_key_value().is_some_and(|(first, _)| first == stage);
        let (Some(pace), Some(line)) = (bar.running.get_mut(stage), &bar.line) else { return };
        let text = running(counters, price, pace, line.elapsed());
        match bar.cells {
            1 => line.set_message(text),
            cells if at_once > 1 => line.set_message(format!("{done} of {cells} cells, {at_once} at work")),
            cells if is_first => line.set_message(format!("{done} of {cells} cells; {}: {text}", cell_of(stage))),
            _ => {}
        }
    }

    fn line(&self, stage: &str, text: &str) {
        let _ = self.lines.println(format!("  {stage:width$} {text}", width = self.width));
    }
}

/// `arm=mixed` of `student[arm=mixed]`.
fn cell_of(stage: &str) -> &str {
    stage.split_once('[').map_or(stage, |(_, cell)| cell.trim_end_matches(']'))
}

/// What a running stage does, `elapsed` after it started.
fn running(counters: &Counters, price: Option<Price>, pace: &mut Pace, elapsed: Duration) -> String {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let message = counters.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let (done, partitions) = (load(&counters.partitions_done), load(&counters.partitions));
    let (mut now, mut of) = (load(&counters.done), load(&counters.of) * load(&counters.units_per_row).max(1));
    // A stage that counts no units as they are done is as far as its partitions are.
    if (now == 0 || of == 0) && partitions > 1 {
        (now, of) = (done, partitions);
    }
    let rows = load(&counters.rows);
    pace.note(elapsed, [rows, load(&counters.calls), now]);
    let mut text = printable(&message);
    if text.is_empty() {
        text = format!("{}, {}/s", self::rows(rows), grouped(pace.per_second(0) as u64));
        if partitions > 1 {
            text.push_str(&format!(", {done} of {partitions} partitions"));
        }
    }
    let (calls, hits) = (load(&counters.calls), load(&counters.memo_hits));
    if calls + hits > 0 {
        let (input, output) = (load(&counters.input_tokens), load(&counters.output_tokens));
        text.push_str(&format!(", {} calls ({:.1}/s), {} from memo", grouped(calls), pace.per_second(1), grouped(hits)));
        text.push_str(&format!(", {} tokens", grouped(input + output)));
        if let Some(price) = price {
            text.push_str(&format!(", ${:.4}", price.of(input, output)));
        }
    }
    let left = of.saturating_sub(now);
    if left > 0 && pace.per_second(2) > 0.0 {
        text.push_str(&format!(", {} to go", duration(left as f64 / pace.per_second(2))));
    }
    text
}

/// How far back a rate looks: what a stage finds done at its start, and bursts of one second, don't count for long.
const WINDOW: Duration = Duration::from_secs(20);

/// Rates of growing numbers.
#[derive(Debug, Default)]
struct Pace {
    seen: VecDeque<(Duration, [u64; 3])>,
}

impl Pace {
    fn note(&mut self, at: Duration, numbers: [u64; 3]) {
        while self.seen.len() > 1 && self.seen.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= WINDOW) {
            self.seen.pop_front();
        }
        self.seen.push_back((at, numbers));
    }

    /// By how much number `which` grew a second, lately.
    fn per_second(&self, which: usize) -> f64 {
        let (Some((from, before)), Some((to, now))) = (self.seen.front(), self.seen.back()) else { return 0.0 };
        let seconds = to.saturating_sub(*from).as_secs_f64();
        if seconds > 0.0 { now[which].saturating_sub(before[which]) as f64 / seconds } else { 0.0 }
    }
}

/// "40 s", "12 min", "3.5 h"
fn duration(seconds: f64) -> String {
    match seconds {
        ..100.0 => format!("{seconds:.0} s"),
        ..6000.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// What is said of a run as a whole, or of one that stands still.
fn notice(event: &Event) -> Option<String> {
    match event {
        Event::Waiting { stage, holder } => Some(format!("`{stage}` waits: {} is at work on the same stage", printable(holder))),
        Event::Namesake { file } => Some(format!(
            "another file, `{}`, ran on this store under the same name: they spend from one budget, and each is compared with the \
             other's last run; give one of them another name (`pipeline:`)",
            printable(&file.display().to_string())
        )),
        _ => None,
    }
}

fn said(report: &StageReport) -> String {
    let mut text = format!("{} in {:.1} s", rows(report.rows), report.seconds);
    if report.rejects > 0 {
        text.push_str(&format!(", {} rejected", grouped(report.rejects)));
    }
    if report.calls + report.memo_hits > 0 {
        text.push_str(&format!(", {} calls, {} from memo", grouped(report.calls), grouped(report.memo_hits)));
    }
    if let Some(usd) = report.usd {
        text.push_str(&format!(", {} tokens, ${usd:.4}", grouped(report.input_tokens + report.output_tokens)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_forgets_what_was_found_done_and_tells_what_is_left() {
        let counters = Counters::default();
        let mut pace = Pace::default();
        let price = Some(Price { input: 1.0, output: 2.0 });
        let mut at = |second: u64, done: u64| {
            counters.progress(done, 1000);
            for (counter, n) in [(&counters.rows, 8 * done), (&counters.calls, done), (&counters.input_tokens, 1000 * done)] {
                counter.store(n, Ordering::Relaxed);
            }
            running(&counters, price, &mut pace, Duration::from_secs(second))
        };
        assert_eq!(at(0, 500), "4,000 rows, 0/s, 500 calls (0.0/s), 0 from memo, 500,000 tokens, $0.5000");
        let later = at(10, 520);
        assert_eq!(later, "4,160 rows, 16/s, 520 calls (2.0/s), 0 from memo, 520,000 tokens, $0.5200, 4 min to go");
        at(20, 540);
        assert!(at(40, 640).ends_with("72 s to go"), "100 in the last 20 s, 360 left");
    }

    #[test]
    fn a_message_takes_the_place_of_rows() {
        let counters = Counters::default();
        let mut pace = Pace::default();
        counters.say("step 10 of 40");
        counters.progress(10, 40);
        running(&counters, None, &mut pace, Duration::ZERO);
        counters.progress(20, 40);
        assert_eq!(running(&counters, None, &mut pace, Duration::from_secs(5)), "step 10 of 40, 10 s to go");
        assert_eq!((duration(119.0), duration(9000.0)), ("2 min".to_owned(), "2.5 h".to_owned()));
    }
}
