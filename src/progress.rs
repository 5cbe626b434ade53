//! What a person sees on the terminal. Everything here goes to stderr.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ingrain_engine::{
    diagnostic::Diagnostics,
    operator::Price,
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

/// One line per stage on a terminal; nothing elsewhere.
pub(crate) struct Progress {
    lines: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
    width: usize,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(names: impl Iterator<Item = usize>, shown: bool) -> Self {
        let shown = shown && std::io::stderr().is_terminal();
        Self { lines: MultiProgress::new(), bars: Mutex::default(), width: names.max().unwrap_or(0), shown }
    }

    pub(crate) fn event(&self, event: &Event) {
        if !self.shown {
            return;
        }
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Started { stage, .. } => {
                let style = ProgressStyle::with_template("{spinner} {prefix} {msg} {elapsed}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
                let bar = self.lines.add(ProgressBar::new_spinner().with_style(style));
                bar.set_prefix(format!("{stage:width$}", width = self.width));
                bar.enable_steady_tick(Duration::from_millis(120));
                bars.insert(stage.clone(), bar);
            }
            Event::Cached { stage, rows } => self.line(stage, &format!("cached, {}", self::rows(*rows))),
            Event::Finished(report) => {
                if let Some(bar) = bars.remove(&report.stage) {
                    bar.finish_and_clear();
                }
                self.line(&report.stage, &said(report));
            }
            Event::Failed { stage, failure } => {
                if let Some(bar) = bars.remove(stage) {
                    bar.finish_and_clear();
                }
                self.line(stage, &format!("failed: {}", printable(&failure.message)));
            }
            Event::Skipped { stage, because } => self.line(stage, &format!("not run: needs {}", because.join(", "))),
        }
    }

    /// Brings a running stage's line up to date.
    pub(crate) fn update(&self, stage: &str, counters: &Counters, price: Option<Price>) {
        let bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(bar) = bars.get(stage) else { return };
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let message = counters.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if !message.is_empty() {
            bar.set_message(printable(&message));
            return;
        }
        let rows = load(&counters.rows);
        let rate = rows as f64 / bar.elapsed().as_secs_f64().max(0.1);
        let mut text = format!("{}, {}/s", self::rows(rows), grouped(rate as u64));
        let (done, partitions) = (load(&counters.partitions_done), load(&counters.partitions));
        if partitions > 1 {
            text.push_str(&format!(", {done} of {partitions} partitions"));
            if done > 0 {
                let left = bar.elapsed().mul_f64((partitions - done) as f64 / done as f64);
                text.push_str(&format!(", {} s to go", left.as_secs()));
            }
        }
        let (calls, hits) = (load(&counters.calls), load(&counters.memo_hits));
        if calls + hits > 0 {
            let (input, output) = (load(&counters.input_tokens), load(&counters.output_tokens));
            let per_second = calls as f64 / bar.elapsed().as_secs_f64().max(0.1);
            text.push_str(&format!(", {} calls ({per_second:.1}/s), {} from memo", grouped(calls), grouped(hits)));
            text.push_str(&format!(", {} tokens", grouped(input + output)));
            if let Some(price) = price {
                text.push_str(&format!(", ${:.4}", price.of(input, output)));
            }
        }
        bar.set_message(text);
    }

    fn line(&self, stage: &str, text: &str) {
        let _ = self.lines.println(format!("  {stage:width$} {text}", width = self.width));
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
