//! What a case runs: documents in two variants, a pipeline over them, and what an undisturbed run of it gives.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use super::{chance::FaultLog, process::Processes, teacher::Teacher};
use crate::project::Project;

pub(super) const PIPELINE: &str = "harness";
/// What a pipeline with a budget may spend: far more than it costs.
pub(super) const BUDGET: f64 = 2.0;
/// Dollars per million tokens, of requests and of answers.
pub(super) const PRICE: (f64, f64) = (1.0, 2.0);
/// Requests that a run has in flight at once.
pub(super) const MAX_IN_FLIGHT: u64 = 4;
/// Small parts, so that every stage has several partitions.
pub(super) const SMALL: [&str; 2] = ["--part-bytes", "1024"];
/// Every stage of the pipeline.
pub(super) const STAGES: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// What the store holds the artifacts of.
    Before,
    /// What the disturbed runs read.
    After,
}

/// The pipeline file; its teacher is at `url`.
pub(super) fn pipeline(url: &str, has_budget: bool) -> String {
    let budget = if has_budget { format!("budget: {{ usd: {BUDGET} }}\n") } else { String::new() };
    let (input, output) = PRICE;
    format!(
        r#"pipeline: {PIPELINE}
seed: 3
{budget}models:
  teacher:
    openai: {{ base_url: "{url}", model: m, api_key: "${{secret:TEACHER_KEY}}" }}
    max_in_flight: {MAX_IN_FLIGHT}
    price: {{ input: {input}, output: {output} }}
stages:
  documents: {{ op: read, path: "docs/*.md" }}
  chunks: {{ op: chunk, from: documents, max_characters: 260, overlap_characters: 0 }}
  qa: {{ op: synthesize_qa, from: chunks, teacher: teacher, pairs: 2 }}
  unique: {{ op: dedup, from: qa, column: question, within: doc_id }}
  rewrites: {{ op: rewrite, from: {{ documents: chunks, questions: unique }}, teacher: teacher, per_document: 1 }}
  long: {{ op: filter, from: rewrites, where: "length(text) > 20" }}
"#
    )
}

/// Brings the documents of a project to a variant: of the first twelve, seven are edited (three of them keep their sizes), one
/// is gone, and there are two more.
pub(super) fn write_documents(project: &Project, variant: Variant) {
    let is_after = variant == Variant::After;
    for n in 0..14 {
        let name = format!("docs/{n:02}.md");
        match (n, is_after) {
            (5, true) | (12.., false) => {
                let _ = std::fs::remove_file(project.path(&name));
            }
            (1 | 2 | 6 | 7, true) => project.write(&name, document(n, "every Friday, and sometimes twice")),
            (3 | 4 | 8, true) => project.write(&name, document(n, "every Sunday")),
            _ if is_after && project.path(&name).exists() => {}
            _ => project.write(&name, document(n, "every Monday")),
        }
    }
}

fn document(n: usize, when: &str) -> String {
    let name = ["Harrow", "Tansy", "Corbel", "Merrow", "Quill", "Osier", "Brindle", "Fallow"][n % 8];
    format!(
        "# {name} Lantern {n}\n\n{name} Lantern {n} was built in {} by the tinsmith Ida Brandt. It weighs {} grams and hangs in the \
         hall of Port {name}. Its keeper fills it with {} litres of oil on {when}.\n\nThe glass of {name} Lantern {n} is amber. Its \
         frame was painted green in {}, after a fire at the mill. The bell below it rings {} times when a boat comes in.\n",
        1801 + n,
        300 + 31 * n,
        n + 2,
        1902 + n,
        n + 5,
    )
}

/// What an undisturbed run gives.
pub(super) struct Expected {
    /// By stage and output.
    pub(super) digests: BTreeMap<String, Value>,
    /// Rows of each stage's main output.
    pub(super) rows: BTreeMap<String, u64>,
}

/// What an undisturbed run over a variant gives on a store of its own.
pub(super) fn expected(variant: Variant) -> &'static Expected {
    static ALL: OnceLock<[Expected; 2]> = OnceLock::new();
    let all = ALL.get_or_init(|| [undisturbed(Variant::Before), undisturbed(Variant::After)]);
    &all[usize::from(variant == Variant::After)]
}

fn undisturbed(variant: Variant) -> Expected {
    let (project, faults) = (Project::new(), Arc::new(FaultLog::default()));
    let teacher = Teacher::start(Arc::new(Processes::default()), faults);
    write_documents(&project, variant);
    project.write("pipeline.yaml", pipeline(&teacher.url(), false));
    let words = ["run", "pipeline.yaml", "--json", "--store", "store", SMALL[0], SMALL[1]];
    let output = project.command(&words).env("TEACHER_KEY", "undisturbed").env("NO_PROXY", "*").output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = crate::project::Said::of(&output);
    assert_eq!(said.executed().len(), STAGES);
    let partitions = said.report("qa")["partitions"].as_u64().expect("a number");
    assert!(partitions >= 4, "`qa` has {partitions} partitions");
    let rows = said.events.iter().filter(|event| event["event"] == "finished");
    let rows = rows.map(|event| (event["stage"].as_str().expect("a name").to_owned(), event["rows"].as_u64().expect("rows")));
    let digests = project.digests("store", PIPELINE);
    let digests = digests.as_object().expect("stages").iter().map(|(stage, digests)| (stage.clone(), digests.clone()));
    let paid = teacher.paid_twice();
    assert_eq!((paid.wrongly, paid.excused), (0, 0));
    Expected { digests: digests.collect(), rows: rows.collect() }
}
