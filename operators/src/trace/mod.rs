//! Follows rows of a pipeline: back to what they were made of, forward to what was made of them.
//!
//! The engine's [`ingrain_engine::lineage`] joins rows by their ids. Here is what it can't know: which row of a mixture a
//! training saw when, which document a question is about, and which sentence of a document holds an answer.

mod backward;
mod forward;
mod row;
mod sentence;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use ingrain_engine::{
    failure::Failure,
    lineage::{Artifact, Lineage, Name},
    operator::DEFAULT_OUTPUT,
    plan::Plan,
    run::Environment,
};

pub use self::{
    backward::{Backward, Dependence, Known, Link, Loose, Spot},
    forward::{Made, Seen, Trained},
    row::Row,
    sentence::Sentence,
};

/// The artifacts that a pipeline's stages have now, and the rows in them.
pub struct Trace {
    lineage: Lineage,
    environment: Arc<Environment>,
    pipeline: String,
    missing: Vec<String>,
}

/// So many ids that begin alike are named.
const ALIKE: usize = 4;

impl Trace {
    /// Finds out what the stages of a plan have.
    ///
    /// # Errors
    /// As [`Lineage::of_plan`].
    pub async fn open(plan: &Plan, environment: &Arc<Environment>) -> Result<Self, Failure> {
        let (lineage, missing) = Lineage::of_plan(plan, environment).await?;
        Ok(Self { lineage, environment: environment.clone(), pipeline: plan.pipeline.clone(), missing })
    }

    /// The stages that have nothing as the pipeline stands now: nothing of them shows in a trace.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// The row of a stage's output whose `row_id` is `written`, or the only one whose begins with it. `file` is the pipeline's,
    /// for what to call instead.
    ///
    /// # Errors
    /// When there is none: the nearest stage that has one, or else which run of which pipeline made it.
    pub async fn find(&self, file: &str, stage: &str, output: &str, written: &str) -> Result<String, Failure> {
        let shown = shown(stage, output);
        let at = self.lineage.find(stage);
        if let Some(artifact) = at {
            let alike = self.lineage.beginning(artifact, output, written, ALIKE).await?;
            match alike.as_slice() {
                [] => {}
                [only] => return Ok(only.clone()),
                // In their order, the one that is nothing but the prefix comes first.
                [first, ..] if first == written => return Ok(first.clone()),
                several => {
                    let more = if several.len() == ALIKE { ", …" } else { "" };
                    let names: Vec<String> = several.iter().map(|id| format!("`{id}`")).collect();
                    return Err(Failure::data(format!("several rows of `{shown}` begin with `{written}`"))
                        .hint(format!("write more of it: {}{more}", names.join(", "))));
                }
            }
        }
        let what = match at {
            Some(_) => format!("`{shown}` has no row `{written}`"),
            None => format!("`{stage}` hasn't run as it stands now"),
        };
        if let Some((stage, id)) = self.nearest(at, written).await? {
            return Err(Failure::data(what).hint(format!("`{stage}` has it: `ingrain trace {file} {stage} {id}`")));
        }
        let what = match at {
            Some(_) => format!("{what}, nor has any other stage as the pipeline stands now"),
            None => format!("{what}, and no other stage has row `{written}`"),
        };
        let all = Lineage::of_store(&self.environment).await?;
        let mut order: Vec<usize> = (0..all.artifacts().len()).collect();
        // Runs are named by their time: the last one first.
        order.sort_by_cached_key(|place| {
            let Name { pipeline, stage: filled, run } = &all.artifacts()[*place].name;
            (*pipeline != self.pipeline, filled != stage, Reverse(run.clone()), *place)
        });
        if let Some((artifact, output)) = first_with(&all, order.into_iter(), written).await? {
            let Name { pipeline, stage, run } = &artifact.name;
            let run = run.as_ref().map(|run| format!(", run `{run}`")).unwrap_or_default();
            return Err(Failure::data(what).hint(format!(
                "`{}` of pipeline `{pipeline}`{run} made it, from other inputs or settings than now",
                self::shown(stage, &output)
            )));
        }
        let help = match at {
            Some(_) => format!("`ingrain show {file} {shown}` has rows with their ids"),
            None => format!("run it: `ingrain run {file} --until {stage}`"),
        };
        Err(Failure::data(format!("{what}, nor anything else on the store")).hint(help))
    }

    /// The output that has a row, in the stage that is the fewest stages away, and the row's whole id.
    async fn nearest(&self, from: Option<usize>, written: &str) -> Result<Option<(String, String)>, Failure> {
        let artifacts = self.lineage.artifacts();
        let (mut order, mut known) = (Vec::new(), BTreeSet::new());
        for start in from.into_iter().chain(0..artifacts.len()) {
            let mut open = VecDeque::from([start]);
            while let Some(next) = open.pop_front() {
                if known.insert(next) {
                    order.push(next);
                    open.extend(artifacts[next].reads.iter().map(|edge| edge.artifact));
                    open.extend(self.lineage.readers(next));
                }
            }
        }
        let found = first_with(&self.lineage, order.into_iter(), written).await?;
        let Some((artifact, output)) = found else { return Ok(None) };
        let place = self.lineage.find(&artifact.name.stage).unwrap_or_default();
        let id = self.lineage.beginning(place, &output, written, 1).await?.into_iter().next();
        Ok(id.map(|id| (shown(&artifact.name.stage, &output), id)))
    }
}

/// The first of some artifacts with a row whose id begins so, and its output.
async fn first_with<'a>(
    lineage: &'a Lineage,
    places: impl Iterator<Item = usize>,
    written: &str,
) -> Result<Option<(&'a Artifact, String)>, Failure> {
    for place in places {
        let artifact = &lineage.artifacts()[place];
        for output in outputs(artifact) {
            if !lineage.beginning(place, output, written, 1).await?.is_empty() {
                return Ok(Some((artifact, output.to_owned())));
            }
        }
    }
    Ok(None)
}

/// The outputs of an artifact, the default one first.
fn outputs(artifact: &Artifact) -> Vec<&str> {
    let mut names: Vec<&str> = artifact.manifest.outputs.keys().map(String::as_str).collect();
    names.sort_by_key(|name| (*name != DEFAULT_OUTPUT, *name));
    names
}

/// An output as it is written in a pipeline file.
pub fn shown(stage: &str, output: &str) -> String {
    if output == DEFAULT_OUTPUT { stage.to_owned() } else { format!("{stage}.{output}") }
}
