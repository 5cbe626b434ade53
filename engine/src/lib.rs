//! The engine: a pipeline file becomes a spec, a plan, a run, and the run fills a store with artifacts.
//!
//! # From text to artifacts
//! 1. [`spec`] parses the YAML into a tree that keeps the place of every node, fills in values, and checks the file and
//!    each stage against its operator's JSON Schema. All mistakes are collected; nothing is read but the file.
//! 2. [`plan`] binds the graph: ports to outputs, columns and types, models, cycles, leakage. A [`plan::Plan`] is always
//!    runnable; there is no half-built one.
//! 3. [`run`] computes each stage's key, looks for its artifact, and runs what is missing.
//!
//! 4. [`lineage`] follows rows through what runs committed, back and forward.
//!
//! Imports go one way: `spec` <- `plan` <- `run` <- `lineage`. The engine knows no operator by name: the command hands it a
//! [`operator::Registry`].
//!
//! # How a stage runs
//! An operator lowers itself to a query, a row transform, or both, or to a task. Queries and transforms become one
//! DataFusion plan under the engine's one physical node, which runs the transform over each partition, writes a Parquet
//! file a part and an output, and commits the partition by a record put if absent. Tasks see whole tables; one that needs
//! the device runs in a child process of the same binary.
//!
//! # Invariants
//! - **An action is the only proof of an artifact.** Data is written under names of its own attempt, then the manifest, then
//!   the action by put-if-absent. Whatever a killed process left behind is never read: nothing names it.
//! - **A partition's record names what the partition reads**, so that a restart, a second run and another artifact over the
//!   same parts find it, and nothing else can be taken for it.
//! - **Outputs are a function of content.** Partitions follow from content, parts are cut by content, rows are ordered by
//!   the input part or by `row_id`. The number of threads, batch sizes and time enter neither rows nor bytes.
//! - **Inputs enter keys by the digest of their content**, never by the key of the stage that made them: a stage whose input
//!   came out equal doesn't run.
//! - **A part's name holds the digest of its content**, which every reading compares: what isn't whole is made anew, never
//!   believed.
//! - **What a key is the hash of is stored**, and `why` is a comparison of two such preimages.
//! - **Every requirement of our node is declared on it**: a scheduler that plans anew drops what nobody asks for.
//!
//! # What is not here
//! - No network client of a model, no prompt, no tensor: operators bring these.
//! - No directory is listed to find rows: scans name their parts.
//! - No secret is resolved here but a bucket's and the hub's, when their clients are made: everywhere else `${secret:NAME}` passes through as it
//!   is written.
//! - No global state: what lives longer than a stage hangs on the run's [`run::Environment`].

pub mod diagnostic;
pub mod digest;
pub mod failure;
mod hub;
pub mod key;
pub mod lineage;
pub mod operator;
pub mod plan;
pub mod run;
mod schema;
pub mod spec;
pub mod store;
