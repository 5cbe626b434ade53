//! `run --sample`

use std::{collections::BTreeMap, io::Write, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    operator::Resource,
    plan::StageIndex,
    run::{Environment, RunOptions, Spent, Table, query},
};
use ingrain_operators::{
    REGISTRY,
    sample::{Projection, project, reduce},
    teachers::max_in_flight,
};
use serde_json::{Value, json};

use crate::{
    End,
    call::RunCall,
    pipeline::Pipeline,
    progress::grouped,
    run::{Driven, Interrupts, drive, emit},
    show::{print_rows, row_objects},
};

/// Rows of a stage that are shown.
const SHOWN: usize = 3;

/// Runs a few documents through every stage up to the mixture, shows what came of them, and projects what all would take.
pub(crate) async fn sample(call: &RunCall, whole: &Pipeline, documents: u64) -> Result<(), End> {
    let sample = reduce(&whole.spec, whole.sources(), documents)?;
    let small = whole.with(sample.spec)?;
    let until = sample.until.iter().map(|name| small.stage(name)).collect::<Result<Vec<_>, _>>()?;
    let asking: Vec<StageIndex> = small
        .plan
        .stages()
        .filter(|(index, stage)| {
            stage.operator.resource() == Resource::Teacher
                && until.iter().any(|until| small.plan.needed_by(*until).contains(index))
        })
        .map(|(index, _)| index)
        .collect();
    // Stages that ask run again even if they are cached, to count: their answers are in the memo and cost nothing.
    let force = asking.iter().copied().collect();
    let written = Some(whole.written());
    let options = RunOptions { until, force, verify: call.verify, round_trip: call.round_trip, by_document: true, written };
    let mut interrupts = Interrupts::new()?;
    let environment = interrupts.unless(small.open_for(call)).await??;
    let driven = drive(&small.plan, &environment, options, call.json, &mut interrupts).await?;
    if driven.outcome.failures.is_empty() {
        let shown = async {
            let corpus = Corpus::read(&small, &environment, &driven, &sample.documents).await?;
            for index in &asking {
                show(&small, &environment, &driven, *index, call.json).await?;
            }
            let projected =
                asking.iter().map(|index| Projected::of(&small, &environment, &driven, &corpus, *index)).collect::<Vec<_>>();
            tell_projection(&projected, &corpus, call.json)
        };
        interrupts.unless(shown).await??;
    }
    driven.end(&small.plan, call.json)
}

/// The documents: how many bytes of text each one in the sample has, and all together.
struct Corpus {
    sampled: BTreeMap<String, u64>,
    documents: u64,
    bytes: u64,
}

impl Corpus {
    async fn read(
        pipeline: &Pipeline,
        environment: &Arc<Environment>,
        driven: &Driven,
        documents: &[(String, String)],
    ) -> Result<Self, Failure> {
        let mut corpus = Self { sampled: BTreeMap::new(), documents: 0, bytes: 0 };
        for (all, some) in documents {
            // A stage of documents that no teacher is asked about doesn't run.
            if let Ok(rows) = lengths(pipeline, environment, driven, some).await {
                corpus.sampled.extend(rows);
                let rows = lengths(pipeline, environment, driven, all).await?;
                corpus.documents += rows.len() as u64;
                corpus.bytes += rows.values().sum::<u64>();
            }
        }
        Ok(corpus)
    }
}

/// Bytes of text by document.
async fn lengths(
    pipeline: &Pipeline,
    environment: &Arc<Environment>,
    driven: &Driven,
    output: &str,
) -> Result<BTreeMap<String, u64>, Failure> {
    let (index, output) = pipeline.output(output)?;
    let table = driven.outcome.artifacts.get(&index).and_then(|manifest| manifest.outputs.get(&output.name));
    let table = table.ok_or_else(|| Failure::bug("the stage didn't run"))?;
    let inputs = [("rows".to_owned(), vec![Table::new(environment, output.schema.clone(), table.clone())])].into();
    let sql = "select doc_id, sum(octet_length(text)) as bytes from rows group by doc_id";
    let batches: Vec<RecordBatch> = query(environment, &inputs, sql).await?.try_collect().await?;
    let mut found = BTreeMap::new();
    for batch in &batches {
        let (names, bytes) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        found.extend((0..batch.num_rows()).map(|row| (names.value(row).to_owned(), bytes.value(row).max(0) as u64)));
    }
    Ok(found)
}

/// Shows some rows of a stage's main output.
async fn show(
    pipeline: &Pipeline,
    environment: &Arc<Environment>,
    driven: &Driven,
    index: StageIndex,
    json: bool,
) -> Result<(), Failure> {
    let stage = pipeline.plan.stage(index);
    let output = stage.output(stage.main_output());
    let manifest = driven.outcome.artifacts.get(&index).and_then(|manifest| manifest.outputs.get(stage.main_output()));
    let (Some(output), Some(manifest)) = (output, manifest) else { return Ok(()) };
    let inputs = [("rows".to_owned(), vec![Table::new(environment, output.schema.clone(), manifest.clone())])].into();
    let sql = format!("select * from rows order by row_id limit {SHOWN}");
    let rows: Vec<RecordBatch> = query(environment, &inputs, &sql).await?.try_collect().await?;
    if json {
        emit(&json!({ "event": "sample", "stage": stage.name, "rows": row_objects(&rows)? }));
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{}", stage.name)?;
    print_rows(&mut stdout, &rows, &["row_id", "parent_id", "request_id", "question_id", "draw"])
}

/// What a stage took on the sample, and would take on all documents.
struct Projected {
    stage: String,
    sample: Spent,
    requests: Option<Projection>,
    input_tokens: Option<Projection>,
    output_tokens: Option<Projection>,
    usd: Option<Projection>,
    seconds: Option<f64>,
}

impl Projected {
    fn of(pipeline: &Pipeline, environment: &Environment, driven: &Driven, corpus: &Corpus, index: StageIndex) -> Self {
        let stage = pipeline.plan.stage(index);
        let counters = driven.counters.get(&index).cloned().unwrap_or_default();
        let spent = counters.spent();
        let mut sample = Spent::default();
        for one in spent.values() {
            sample.requests += one.requests;
            sample.input_tokens += one.input_tokens;
            sample.output_tokens += one.output_tokens;
        }
        let of = |quantity: &dyn Fn(&Spent) -> f64| project(&corpus.sampled, &spent, corpus.bytes, quantity);
        let requests = of(&|spent| spent.requests as f64);
        let price = pipeline.plan.price(index, &REGISTRY);
        // The sample's calls went out in waves of as many as may be in flight; so will all of them.
        let calls = counters.calls.load(std::sync::atomic::Ordering::Relaxed);
        let models = stage.operator.models();
        let in_flight = models.first().and_then(|(_, model)| max_in_flight(environment, model).ok());
        let seconds = match (in_flight, driven.seconds.get(&stage.name), &requests) {
            (Some(in_flight), Some(seconds), Some(requests)) if calls > 0 => {
                let wave = seconds / (calls as f64 / in_flight as f64).ceil();
                Some((wave * requests.value / in_flight as f64).max(*seconds))
            }
            _ => None,
        };
        Self {
            stage: stage.name.clone(),
            sample,
            requests,
            input_tokens: of(&|spent| spent.input_tokens as f64),
            output_tokens: of(&|spent| spent.output_tokens as f64),
            usd: price.and_then(|price| of(&|spent| price.of(spent.input_tokens, spent.output_tokens))),
            seconds,
        }
    }
}

fn tell_projection(projected: &[Projected], corpus: &Corpus, json: bool) -> Result<(), Failure> {
    if json {
        let interval = |projection: &Option<Projection>| match projection {
            Some(Projection { value, interval }) => {
                let (low, high) = interval.unzip();
                json!({ "value": value, "low": low, "high": high })
            }
            None => Value::Null,
        };
        for stage in projected {
            emit(&json!({
                "event": "projection", "stage": stage.stage, "documents": corpus.documents, "sampled": corpus.sampled.len(),
                "sample_requests": stage.sample.requests, "requests": interval(&stage.requests),
                "input_tokens": interval(&stage.input_tokens), "output_tokens": interval(&stage.output_tokens),
                "usd": interval(&stage.usd), "seconds": stage.seconds,
            }));
        }
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "\nall {} documents, from {} of them (by bytes of text{})",
        grouped(corpus.documents),
        corpus.sampled.len(),
        if corpus.sampled.len() < 2 { "" } else { ", with 95 % intervals over documents" }
    )?;
    let number = |value: f64| grouped(value.round().max(0.0) as u64);
    let count = |projection: &Option<Projection>| match projection {
        Some(Projection { value, interval: Some((low, high)) }) => {
            format!("{} [{}, {}]", number(*value), number(*low), number(*high))
        }
        Some(Projection { value, interval: None }) => number(*value),
        None => "-".to_owned(),
    };
    let money = |projection: &Option<Projection>| match projection {
        Some(Projection { value, interval: Some((low, high)) }) => format!("${value:.4} [${low:.4}, ${high:.4}]"),
        Some(Projection { value, interval: None }) => format!("${value:.4}"),
        None => "no price".to_owned(),
    };
    let time = |seconds: &Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{} s", number(seconds)));
    let column =
        |cell: &dyn Fn(&Projected) -> String| Arc::new(StringArray::from_iter_values(projected.iter().map(cell))) as ArrayRef;
    let table = RecordBatch::try_from_iter([
        ("stage", column(&|stage| stage.stage.clone())),
        ("requests in the sample", column(&|stage| grouped(stage.sample.requests))),
        ("requests", column(&|stage| count(&stage.requests))),
        ("input tokens", column(&|stage| count(&stage.input_tokens))),
        ("output tokens", column(&|stage| count(&stage.output_tokens))),
        ("cost", column(&|stage| money(&stage.usd))),
        ("time", column(&|stage| time(&stage.seconds))),
    ])?;
    print_rows(&mut stdout, &[table], &[])
}
