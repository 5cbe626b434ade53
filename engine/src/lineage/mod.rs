//! What rows were made of, and what was made of them, over the artifacts of a plan or of a whole store.
//!
//! Nothing is recorded for it: a row names the rows that it was made of by their ids. `parent_id`, `question_id` and every
//! other text column that ends in `_id` may hold the `row_id` of a row that the stage read; where rows pass through a stage,
//! they keep their own. What a stage read is told by the digests in the preimage of its key. `doc_id` and `request_id` name no
//! rows.
//!
//! A table of which no row names a row of what its stage read, as a trained checkpoint, depends on that as a whole
//! ([`Affected::Whole`]).

mod documents;
mod graph;
mod ids;
#[cfg(test)]
mod tests;
mod walk;

pub use self::{
    documents::{Dependents, LastUse},
    graph::{Artifact, Edge, Lineage, Name},
    ids::Ids,
    walk::{Affected, Parent},
};
