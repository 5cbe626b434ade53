//! A pipeline over a few of its documents, and what all of them would take.

use std::collections::{BTreeMap, BTreeSet};

use ingrain_engine::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Inputs, Resource},
    plan::SourceColumns,
    run::Spent,
    spec::Spec,
};
use serde_json::json;

use crate::{
    bootstrap::{Figure, ratio},
    mix, read, sql, tokenizer,
};

/// Resamples of an interval.
const RESAMPLES: u32 = 2000;

/// A pipeline that goes on with a few documents.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The pipeline, named apart from the whole one.
    pub spec: Spec,
    /// Stages of all documents, each with the stage that keeps some of them.
    pub documents: Vec<(String, String)>,
    /// The stages to run: what mixtures are made of or, without one, all that ask a teacher.
    pub until: Vec<String>,
}

/// Takes `count` documents of each stage that reads some. They are those with the smallest `row_id`, which is a hash: a
/// random sample, the same every time, and part of every larger one. Tokenizers are still made from all documents, so that
/// the whole run asks what the sample asked.
///
/// # Errors
/// When no stage reads documents, or nothing is made of them.
pub fn reduce(spec: &Spec, sources: &SourceColumns, count: u64) -> Result<Sample, Failure> {
    let mut reduced = spec.clone();
    reduced.pipeline = format!("{}_sample", spec.pipeline);
    let mut documents = Vec::new();
    for stage in spec.stages.iter().filter(|stage| stage.op == read::TYPE.name) {
        let Some((_, operator, _)) = &stage.operator else { continue };
        let source = sources.get(&stage.name).and_then(|columns| columns.as_ref().ok().cloned());
        let outputs = operator.bind(&Inputs { source, ..Inputs::default() }).unwrap_or_default();
        for output in outputs {
            let has = |name: &str| output.schema.field_with_name(name).is_ok();
            if !(has("doc_id") && has("text")) {
                continue;
            }
            let name = free_name(&reduced, &format!("{}_sample", stage.name));
            let query = format!("select * from documents order by row_id limit {count}");
            let (operator, config) = sql::TYPE.parse(json!({ "query": query })).map_err(Failure::bug)?;
            let of = (stage.name.as_str(), output.name.as_str());
            reduced.interpose(of, &name, (&sql::TYPE, operator, config), "documents", |stage| stage.op != tokenizer::TYPE.name);
            let written = if output.name == DEFAULT_OUTPUT { stage.name.clone() } else { format!("{}.{}", of.0, of.1) };
            documents.push((written, name));
        }
    }
    if documents.is_empty() {
        return Err(Failure::data("no stage of the pipeline reads documents, of which a sample could be taken"));
    }
    let until = until(&reduced);
    if until.is_empty() {
        return Err(Failure::data(
            "the pipeline has neither a mixture nor a stage that asks a teacher: there is nothing to project",
        )
        .hint("run it whole"));
    }
    Ok(Sample { spec: reduced, documents, until })
}

fn free_name(spec: &Spec, wanted: &str) -> String {
    let mut name = wanted.to_owned();
    while spec.stage(&name).is_some() {
        name.push('_');
    }
    name
}

fn until(spec: &Spec) -> Vec<String> {
    let mixtures = spec.stages.iter().filter(|stage| stage.op == mix::TYPE.name);
    // A tokenizer that is made for the mixture would find too little text in what a few documents give.
    let sources = mixtures.flat_map(|stage| stage.from.iter().filter(|port| port.port.as_deref() != Some(mix::TOKENIZER)));
    let read = sources.flat_map(|port| &port.inputs).map(|input| input.stage_name());
    let read: BTreeSet<String> = read.collect();
    if !read.is_empty() {
        return read.into_iter().collect();
    }
    let asks = |resource: Resource| resource == Resource::Teacher;
    let stages =
        spec.stages.iter().filter(|stage| stage.operator.as_ref().is_some_and(|(_, operator, _)| asks(operator.resource())));
    stages.map(|stage| stage.name.clone()).collect()
}

/// What all documents would take, with a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// The estimate.
    pub value: f64,
    /// The 2.5th and the 97.5th percentile; none over fewer than two documents.
    pub interval: Option<(f64, f64)>,
}

/// Projects a quantity of the sampled documents to all of them: what it is per byte of text, times the bytes of all
/// documents. The interval is a bootstrap over documents. `bytes` are those of each
/// sampled document; a document that nothing was spent on counts with 0.
pub fn project(
    bytes: &BTreeMap<String, u64>,
    spent: &BTreeMap<String, Spent>,
    all_bytes: u64,
    quantity: impl Fn(&Spent) -> f64,
) -> Option<Projection> {
    let each: Vec<(f64, f64)> =
        bytes.iter().map(|(document, bytes)| (spent.get(document).map_or(0.0, &quantity), *bytes as f64)).collect();
    let Figure { value, low, high, n } = ratio(&each, RESAMPLES, 0)?.map(|rate| rate * all_bytes as f64);
    Some(Projection { value, interval: (n >= 2).then_some((low, high)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projection_goes_by_the_bytes_of_documents() {
        let bytes: BTreeMap<String, u64> = [("a".to_owned(), 100), ("b".to_owned(), 300), ("c".to_owned(), 200)].into();
        let spent = |requests: [u64; 3]| -> BTreeMap<String, Spent> {
            let names = ["a", "b", "c"].into_iter().map(str::to_owned);
            names.zip(requests.map(|requests| Spent { requests, ..Spent::default() })).collect()
        };
        let even = project(&bytes, &spent([1, 3, 2]), 60_000, |spent| spent.requests as f64).unwrap();
        assert_eq!(even, Projection { value: 600.0, interval: Some((600.0, 600.0)) });
        let uneven = project(&bytes, &spent([3, 3, 0]), 60_000, |spent| spent.requests as f64).unwrap();
        let (low, high) = uneven.interval.unwrap();
        assert!(low < uneven.value && uneven.value < high, "{uneven:?}");
        let alone = [("a".to_owned(), 100)].into();
        assert_eq!(project(&alone, &spent([3, 3, 0]), 200, |spent| spent.requests as f64).unwrap().interval, None);
        let mut some = spent([3, 3, 0]);
        some.remove("c");
        assert_eq!(project(&bytes, &some, 60_000, |spent| spent.requests as f64), Some(uneven));
    }
}
