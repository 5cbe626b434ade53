//! The operators: what a stage of a pipeline can do.
//!
//! An operator is a file here, or a folder where it needs several: a config struct whose doc comment is its reference page,
//! an `impl` of [`ingrain_engine::operator::Operator`], and a `TYPE`, its row of [`OPERATORS`]. Help, JSON Schema and
//! reference pages are made from these. A new operator needs nothing else but a case file under `tests/operators`.
//!
//! The engine knows operators only through the table.

mod baseline;
mod bootstrap;
mod by_question;
mod cells;
pub mod checkpoint;
pub mod chunk;
mod columns;
pub mod compare;
pub mod dedup;
pub mod diversity;
pub mod evaluate;
pub mod export;
pub mod filter;
pub mod mix;
mod query;
pub mod read;
mod rejects;
mod render;
pub mod retrieve;
pub mod rewrite;
mod route;
pub mod sample;
pub mod scaling;
pub mod split;
pub mod sql;
pub mod synthesize_qa;
pub mod teachers;
pub mod tokenizer;
pub mod trace;
pub mod train;

use ingrain_engine::operator::{OperatorType, Registry};

pub use query::condition;

/// The operators that are built, in the order in which a pipeline tends to use them.
pub const OPERATORS: &[OperatorType] = &[
    read::TYPE,
    tokenizer::TYPE,
    checkpoint::TYPE,
    chunk::TYPE,
    synthesize_qa::TYPE,
    rewrite::TYPE,
    filter::TYPE,
    split::TYPE,
    dedup::TYPE,
    sql::TYPE,
    diversity::TYPE,
    mix::TYPE,
    train::TYPE,
    retrieve::TYPE,
    evaluate::TYPE,
    compare::TYPE,
    scaling::TYPE,
];

/// Operators that have a name and aren't built yet.
pub const PLANNED: &[&str] = &["judge", "decontaminate"];

/// What the engine is given to work with.
pub const REGISTRY: Registry = Registry {
    operators: OPERATORS,
    planned: PLANNED,
    model_schema: teachers::model_schema,
    model_beside: teachers::model_beside,
    model_ready: teachers::model_ready,
    model_identity: teachers::model_identity,
    model_on_device: teachers::model_on_device,
    model_cost: teachers::model_cost,
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_stands_once() {
        let names: Vec<_> = OPERATORS.iter().map(|operator| operator.name).chain(PLANNED.iter().copied()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn every_operator_and_field_is_described() {
        for operator in OPERATORS {
            let schema = operator.schema();
            let page = schema.get("description").and_then(|page| page.as_str()).unwrap_or_default();
            for heading in ["# Ports", "# Outputs", "# Example", "```yaml"] {
                assert!(page.contains(heading), "`{}` has no `{heading}`", operator.name);
            }
            let fields = schema.get("properties").and_then(|fields| fields.as_object()).expect("fields");
            for (name, field) in fields {
                assert!(field["description"].is_string(), "`{}` doesn't describe `{name}`", operator.name);
            }
        }
    }
}
