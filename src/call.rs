//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use ingrain_operators::export::Format;

/// Puts what a company's documents say into a language model's weights.
#[derive(Debug, Parser)]
#[command(name = "ingrain", version, disable_help_subcommand = true)]
pub(crate) struct Call {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run what a pipeline needs
    Run(RunCall),
    /// Check a pipeline file and say everything that is wrong with it
    Check(FileCall),
    /// Say for each stage whether it is cached or will run, and why
    Plan(PlanCall),
    /// Say why a stage has to run: the field that changed, old and new value
    Why(WhyCall),
    /// Say what ran when, and how two runs differ
    Runs(RunsCall),
    /// Show the rows of a stage
    Show(ShowCall),
    /// Follow a row back to the documents that it was made of, or forward to everything made of it
    Trace(TraceCall),
    /// Write a stage's rows to a Parquet or JSON Lines file, or a checkpoint to a folder
    Export(ExportCall),
    /// List what depends on a document, by any pipeline on the store, and have it forgotten
    Forget(ForgetCall),
    /// Remove from the store what no recent run needs, and unfinished trainings from this machine's cache; or what is left of forgotten
    /// documents
    Gc(GcCall),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// List the operators, or explain one
    Operators {
        /// The operator to explain
        name: Option<String>,
    },
    /// Write a small pipeline with a document and a question to start from
    Init {
        /// Where to; made if it isn't there
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Say what is built, what a store promises of what runs need, or what a device computes and how fast
    Doctor(DoctorCall),
    /// Serve one task of a run
    #[command(hide = true)]
    Worker,
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[derive(Debug, Args)]
pub(crate) struct FileCall {
    /// The pipeline file
    pub(crate) file: PathBuf,
    /// Set a variable: `--set vars.tokens=10M`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreCall {
    #[command(flatten)]
    pub(crate) file: FileCall,
    /// Where artifacts go: a folder or `s3://bucket/prefix`
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// Bytes of content after which a part is cut
    #[arg(long, hide = true, default_value_t = 8 << 20)]
    pub(crate) part_bytes: u64,
}

#[derive(Debug, Args)]
pub(crate) struct RunCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// Run this stage and what it needs, and nothing else; several times for several stages
    #[arg(long, value_name = "STAGE")]
    pub(crate) until: Vec<String>,
    /// Run this stage even if it is cached
    #[arg(long, value_name = "STAGE")]
    pub(crate) force: Vec<String>,
    /// Ask again about rows whose answers were rejected
    #[arg(long, conflicts_with = "sample")]
    pub(crate) retry_rejects: bool,
    /// Take so many documents through every stage up to the mixture, and project what all would take
    #[arg(long, value_name = "N", conflicts_with_all = ["until", "force"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sample: Option<u64>,
    /// Dollars that the pipeline may spend, over all its runs on the store, instead of `budget.usd`
    #[arg(long, value_name = "USD")]
    pub(crate) budget: Option<f64>,
    /// Where models are trained: `auto`, `cpu`, `cuda:0`
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Partitions that run at once [default: the number of cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Memory for tables before they spill, such as `4Gi` [default: 60 % of what there is]
    #[arg(long)]
    pub(crate) memory: Option<String>,
    /// Read every file of a cached stage, and make anew what doesn't hold what was written
    #[arg(long)]
    pub(crate) verify: bool,
    /// Write one JSON event per line
    #[arg(long)]
    pub(crate) json: bool,
    /// Encode and decode every stage plan before it runs
    #[arg(long, hide = true)]
    pub(crate) round_trip: bool,
    #[command(flatten)]
    pub(crate) later: LaterCall,
}

/// What the design has and this version hasn't: refused by name rather than as unknown.
#[derive(Debug, Args)]
pub(crate) struct LaterCall {
    #[arg(long, hide = true)]
    cluster: Option<String>,
}

impl LaterCall {
    /// The first option given that isn't built yet.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [(self.cluster.is_some(), "--cluster")];
        given.into_iter().find(|(given, _)| *given).map(|(_, name)| name)
    }
}

#[derive(Debug, Args)]
pub(crate) struct PlanCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WhyCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// The stage
    pub(crate) stage: String,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunsCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// Show this run's stages: its id, the beginning or end of it, or its number, 1 for the newest
    pub(crate) run: Option<String>,
    /// Runs of every pipeline on the store
    #[arg(long)]
    pub(crate) all: bool,
    /// Say for each stage how the second run differs from the first, and why
    #[arg(long, num_args = 2, value_names = ["RUN", "RUN"], conflicts_with = "run")]
    pub(crate) diff: Vec<String>,
    /// How many are listed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// Write JSON: an object a run, or a stage with `--diff`
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// The stage, or `stage.output`
    pub(crate) output: String,
    /// How many rows
    #[arg(long, default_value_t = 10)]
    pub(crate) limit: usize,
    /// Show the first requests that the stage sends to its teacher, instead of rows; nothing is sent
    #[arg(long, conflicts_with = "predicate")]
    pub(crate) prompts: bool,
    /// An SQL predicate over the columns
    #[arg(long = "where", value_name = "PREDICATE")]
    pub(crate) predicate: Option<String>,
    /// Write one JSON object per row
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TraceCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// The stage, or `stage.output`
    #[arg(value_name = "STAGE")]
    pub(crate) output: String,
    /// The row's id, or the beginning of it
    pub(crate) row_id: String,
    /// Follow the row to everything that was made of it
    #[arg(long)]
    pub(crate) forward: bool,
    /// Of the row's text, follow only this sentence, or words of it: what has an answer that stands there
    #[arg(long, value_name = "TEXT", requires = "forward")]
    pub(crate) sentence: Option<String>,
    /// How many rows of each output to show
    #[arg(long, default_value_t = 5)]
    pub(crate) limit: usize,
    /// Write JSON: an object a line, each with a `kind`
    ///
    /// The kinds are:
    ///
    /// `row`: `stage`, `output`, `operator`, `row_id`, `values` (its other columns). The traced row comes first.
    ///
    /// `link`: `row` was made of `of` (each `stage`, `output`, `row_id`), told by `column`: `parent_id` or another column with ids,
    /// `row_id` where the row was passed on, `contexts` for a passage that a question was asked with.
    ///
    /// `loose`: `row` depends on the outputs in `on` and doesn't say on which of their rows: `how` is `ends` where it tells no row at all, `all`, or
    /// `perhaps` for what a query read beside.
    ///
    /// `sentences`: where `answer` stands in the text of `row`: `sentences` of `byte_start`, `byte_end`, `text`.
    ///
    /// `known`: `model` answered a question about `doc_id`; after it come each `document` of that id that it was trained on, their
    /// `sentences`, and what was `made` of them.
    ///
    /// `made`: of `stage` and `output`, `rows` of `of` were made of it (null: all of it depends on it), the first of them in `first`.
    /// A checkpoint has `trained`: `rows`, `held_out`, `first_step`, `last_step`, and `seen`, the first mixture rows with their
    /// `fate`: `held_out`, or `trained` at places of `epoch`, `step`, `sequence` (in the step), `offset` (in the sequence), `start` (in
    /// the row) and `tokens`; all but offset and start count from 1.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// The stage, or `stage.output`
    #[arg(value_name = "STAGE")]
    pub(crate) output: String,
    /// Where to: `rows.parquet`, `rows.jsonl`, or a folder for a checkpoint or for Axolotl
    pub(crate) destination: PathBuf,
    /// `parquet`, `jsonl`, `chat` (JSON Lines of messages), `folder`, or `axolotl` (a mixture with a configuration that trains
    /// on it) [default: by the destination's name]
    #[arg(long)]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// The document's `doc_id`
    pub(crate) document: String,
    /// The file that the document is in, where several sources have one of this `doc_id`
    #[arg(long, value_name = "PATH")]
    pub(crate) source: Option<String>,
    /// Have it forgotten: no `read` on the store gives it from now on
    #[arg(long)]
    pub(crate) apply: bool,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcCall {
    #[command(flatten)]
    pub(crate) store: StoreCall,
    /// Keep what the last so many runs of each pipeline used
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) keep: usize,
    /// Keep what is younger, and files for so long after nothing finds them any more: `30m`, `24h`, `7d`
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub(crate) grace: Duration,
    /// Remove everything that holds something of a forgotten document instead, whatever its age: artifacts, and answers in the memo
    #[arg(long, conflicts_with = "keep")]
    pub(crate) forgotten: bool,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A time such as `24h`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number with `s`, `m`, `h` or `d` behind it".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number with `s`, `m`, `h` or `d` behind it")?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "is too long".into())
}

#[derive(Debug, Args)]
pub(crate) struct DoctorCall {
    /// A pipeline file, for its store and for how its buckets are reached
    pub(crate) file: Option<PathBuf>,
    /// Set a variable: `--set vars.tokens=10M`
    #[arg(long = "set", value_name = "NAME=VALUE", requires = "file")]
    pub(crate) set: Vec<String>,
    /// The store to look at: a folder or `s3://bucket/prefix`
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// Try out a device instead of a store: `auto`, `cpu`, `cuda:0`
    #[arg(long, conflicts_with_all = ["file", "store"])]
    pub(crate) device: Option<String>,
    /// Hold the device's numbers against the CPU's, and measure rates
    #[arg(long, requires = "device")]
    pub(crate) full: bool,
    /// With which models: `tiny`, `4x128`, `0.1b`, `1b`, `8b` [default: `tiny,0.1b` on the CPU, all but `4x128` elsewhere]
    #[arg(long, value_delimiter = ',', requires = "full")]
    pub(crate) shapes: Vec<String>,
    /// How long a rate is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Write one JSON object for each measurement
    #[arg(long, requires = "device")]
    pub(crate) json: bool,
    /// Find out one part in this process: `product`, `numbers`, or a shape.
    #[arg(long, hide = true, requires = "device")]
    pub(crate) part: Option<String>,
}

impl Call {
    /// Threads of the runtime.
    pub(crate) fn threads(&self) -> usize {
        match &self.command {
            Command::Run(RunCall { threads: Some(threads), .. }) => (*threads).max(1),
            _ => cores(),
        }
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
