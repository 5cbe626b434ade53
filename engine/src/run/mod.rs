//! From a plan to committed artifacts.

mod codec;
mod context;
mod node;
mod resolve;
mod schedule;
mod session;
mod sources;
mod stage;
mod table;
mod task;
mod worker;
mod write;

pub use self::{
    context::{Counters, Environment, OutputRows, OutputStream, RowStream, Service, Settings, StreamContext, Task, TaskContext},
    resolve::{Difference, Reason, Resolver, StageKey, Status, why},
    schedule::{Event, Outcome, Run, RunOptions, StageReport},
    session::default_memory,
    sources::SourceFile,
    table::{Table, query},
    worker::serve_worker,
};
