//! From a plan to committed artifacts.

mod codec;
mod context;
mod footer;
#[cfg(test)]
mod fuzz;
mod gate;
mod history;
mod journal;
mod known;
mod node;
mod openlineage;
mod reason;
mod reference;
mod rehearse;
mod resolve;
mod schedule;
mod session;
mod sources;
mod stage;
mod table;
mod task;
mod unfinished;
mod walk;
mod worker;
mod write;

pub use self::{
    context::{
        Counters, Environment, OutputRows, OutputStream, RowStream, Service, Settings, Spent, StreamContext, Task, TaskContext,
    },
    footer::source_columns,
    history::{Ending, RunRecord, Runs, StageChange, StageRecord, StageState, Took, compare_runs},
    known::content_digest,
    reason::{Difference, FileChange, Reason, Subject},
    rehearse::rehearse,
    resolve::{LastTime, Resolver, StageKey, Status, why},
    schedule::{Event, Outcome, Run, RunOptions, StageReport},
    session::default_memory,
    sources::{SourceFile, check_place},
    table::{Table, query},
    unfinished::{Unfinished, remove_unfinished},
    worker::serve_worker,
};
pub(crate) use self::{resolve::last_run, table::look_up};
