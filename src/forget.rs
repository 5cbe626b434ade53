//! `forget`, and `gc --forgotten`

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use ingrain_engine::{
    diagnostic::{nearest, quoted},
    failure::Failure,
    lineage::{Affected, Dependents, LastUse, Lineage},
    run::Environment,
    store::{Erased, Forgotten, Tombstone, same_source},
};
use ingrain_operators::teachers::{Answers, forget as answers};
use serde_json::{Value, json};

use crate::{
    End,
    call::{ForgetCall, GcCall},
    gc::size,
    pipeline::Pipeline,
    progress::{grouped, printable, rows, tell},
};

pub(crate) async fn forget(call: &ForgetCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let environment = pipeline.open(&call.store).await?;
    if !environment.store.is_there() {
        return Err(Failure::data(format!("there is no store at `{}`", environment.store.location()))
            .hint("`--store` names another one")
            .into());
    }
    let lineage = Lineage::of_store(&environment).await?;
    let known = environment.store.forgotten().await?;
    let document = document(call, &lineage, &known).await?;
    let since = known
        .iter()
        .find(|forgotten| forgotten.tombstone.doc_id == document.doc_id && forgotten.tombstone.is_in(&document.source));
    let since = since.map(|forgotten| forgotten.since);
    let dependents = lineage.dependents(std::slice::from_ref(&document)).await?;
    let remembered = answers(&environment, std::slice::from_ref(&document), &dependents, false).await?;
    let pipelines = lineage.last_used_by(&dependents.artifacts()).await?;
    let listed = Listed::of(&lineage, &dependents);
    if call.apply && since.is_none() {
        environment.store.forget(&document).await?;
    }
    let mut stdout = std::io::stdout().lock();
    if call.json {
        let line = json!({
            "doc_id": document.doc_id, "source": document.source, "forgotten_since": since, "applied": call.apply,
            "outputs": listed.outputs(), "artifacts": dependents.artifacts().len(), "checkpoints": listed.checkpoints,
            "files": listed.files, "answers": remembered.answers, "run_again": pipelines.iter().map(|last| &last.pipeline).collect::<Vec<_>>(),
        });
        return Ok(writeln!(stdout, "{line}").map_err(Failure::from)?);
    }
    write!(stdout, "{}", listed.table()).map_err(Failure::from)?;
    let checkpoints = match listed.checkpoints.is_empty() {
        true => "no checkpoint was trained on it".to_owned(),
        false => format!("trained on it: {}", quoted(listed.checkpoints.iter().map(String::as_str))),
    };
    let artifacts = grouped(dependents.artifacts().len() as u64);
    let (answers, files) = (grouped(remembered.answers as u64), grouped(listed.files));
    let name = format!("`{}` of `{}`", printable(&document.doc_id), printable(&document.source));
    tell(
        &format!(
            "{name}: {artifacts} artifacts with {files} files beside their tables, {answers} answers in the memo; {checkpoints}"
        ),
        None,
    );
    let next = format!("{}then `ingrain gc {} --forgotten` removes what is listed", first(&pipelines), pipeline.file());
    match (since, call.apply) {
        (Some(since), _) if dependents.outputs.is_empty() && remembered.answers == 0 => {
            tell(&format!("it is forgotten since {}, and nothing is left of it", since.format("%F %T UTC")), None);
        }
        (Some(since), _) => tell(&format!("it is forgotten already, since {}", since.format("%F %T UTC")), Some(&next)),
        (None, true) => tell("it is forgotten: no `read` gives it any more", Some(&next)),
        (None, false) => tell("nothing was changed", Some("`--apply` has it forgotten")),
    }
    Ok(())
}

/// The document that is meant: of the only source that has one of this id, or of the one that the call names.
async fn document(call: &ForgetCall, lineage: &Lineage, known: &[Forgotten]) -> Result<Tombstone, Failure> {
    let doc_id = call.document.as_str();
    let mut sources: BTreeSet<String> = lineage.sources_of(doc_id).await?.into_iter().collect();
    for Forgotten { tombstone, .. } in known.iter().filter(|forgotten| forgotten.tombstone.doc_id == doc_id) {
        if !sources.iter().any(|source| tombstone.is_in(source)) {
            sources.insert(tombstone.source.clone());
        }
    }
    if sources.is_empty() {
        let ids = lineage.doc_ids().await?;
        let failure = Failure::data(format!("no document on the store has the `doc_id` `{doc_id}`"));
        return Err(match nearest(doc_id, ids.iter().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if ids.is_empty() => failure.hint("no artifact on the store has documents"),
            None => failure.hint(format!(
                "there are {} others, such as {}",
                ids.len(),
                quoted(ids.iter().take(5).map(String::as_str))
            )),
        });
    }
    let given = call.source.as_deref().map(|source| Tombstone::new(doc_id, source).source);
    let meant: Vec<&String> = match &given {
        None => sources.iter().collect(),
        Some(given) if sources.contains(given) => sources.iter().filter(|source| *source == given).collect(),
        Some(given) => sources.iter().filter(|source| same_source(source, given)).collect(),
    };
    let options =
        |sources: &[&String]| sources.iter().map(|source| format!("`--source {source}`")).collect::<Vec<_>>().join(", ");
    match (meant.as_slice(), &given) {
        ([only], _) => Ok(Tombstone::new(doc_id, only)),
        ([], given) => {
            let given = given.as_deref().unwrap_or_default();
            Err(Failure::data(format!("`{given}` has no document `{doc_id}`"))
                .hint(format!("sources that have one: {}", options(&sources.iter().collect::<Vec<_>>()))))
        }
        (several, _) => Err(Failure::data(format!("{} sources have a document `{doc_id}`", several.len()))
            .hint(format!("nothing was changed; name one: {}", options(several)))),
    }
}

pub(crate) async fn gc(call: &GcCall, environment: &std::sync::Arc<Environment>) -> Result<(), End> {
    let known = environment.store.forgotten().await?;
    if known.is_empty() {
        tell("no document is forgotten on this store", Some("`ingrain forget FILE DOCUMENT --apply` has one forgotten"));
    }
    let lineage = Lineage::of_store(environment).await?;
    let documents: Vec<Tombstone> = known.iter().map(|forgotten| forgotten.tombstone.clone()).collect();
    let dependents = lineage.dependents(&documents).await?;
    let pipelines = lineage.last_used_by(&dependents.artifacts()).await?;
    // Which answers are meant is told by the artifacts: they go last, so that a call that was interrupted can be made again.
    let remembered = match known.is_empty() {
        true => Answers::default(),
        false => answers(environment, &documents, &dependents, !call.dry_run).await?,
    };
    let erased = match known.is_empty() {
        true => Erased::default(),
        false => lineage.erase(&dependents, &known, call.grace, call.dry_run).await?,
    };
    if call.json {
        let mut line = serde_json::to_value(&erased).map_err(|error| Failure::bug(error.to_string()))?;
        line["answers"] = remembered.answers.into();
        line["refusals"] = remembered.refusals.into();
        line["damaged_segments"] = remembered.damaged.into();
        line["documents"] = documents.len().into();
        line["run_again"] = pipelines.iter().map(|last| last.pipeline.as_str()).collect();
        return Ok(writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::from)?);
    }
    let word = if call.dry_run { "would remove" } else { "removed" };
    let said = format!(
        "{word} {} artifacts, {} files of {}, {} answers",
        grouped(erased.artifacts as u64),
        grouped(erased.files as u64),
        size(erased.bytes),
        grouped((remembered.answers + remembered.refusals) as u64)
    );
    let again = first(&pipelines);
    tell(&said, Some(again.trim_end_matches([',', ' '])).filter(|again| !again.is_empty()));
    if erased.young_files > 0 || erased.at_work > 0 {
        tell(
            &format!(
                "{} files that belong to no artifact are younger than the last tombstone, and {} stages are being worked on",
                grouped(erased.young_files as u64),
                erased.at_work
            ),
            Some("a run that began before may still write what it read: call this again when it has ended, with `--grace 0s`"),
        );
    }
    if remembered.damaged > 0 {
        tell(
            &format!("{} damaged segments of answers stay as they are", remembered.damaged),
            Some("nobody knows what they hold: delete them under `memo` and `embeddings` on the store to be sure"),
        );
    }
    Ok(())
}

/// "run `a.yaml`, run `b.yaml`, "
fn first(pipelines: &[LastUse]) -> String {
    let name = |last: &LastUse| match &last.file {
        Some(file) => format!("run `{}` (`{}`), ", last.pipeline, file.display()),
        None => format!("run `{}`, ", last.pipeline),
    };
    pipelines.iter().map(name).collect()
}

/// What depends on a document, for people.
#[derive(Default)]
struct Listed {
    /// Artifacts and affected rows by pipeline, stage and output; `None` where all of them are.
    outputs: BTreeMap<(String, String, String), (u64, Option<u64>)>,
    /// Stages whose checkpoints were trained on it.
    checkpoints: BTreeSet<String>,
    /// Files beside tables.
    files: u64,
}

impl Listed {
    fn of(lineage: &Lineage, dependents: &Dependents) -> Self {
        let mut listed = Self::default();
        for ((place, output), affected) in &dependents.outputs {
            let artifact = &lineage.artifacts()[*place];
            let table = artifact.manifest.outputs.get(output);
            let entry = (artifact.name.pipeline.clone(), artifact.name.stage.clone(), output.clone());
            let (artifacts, count) = listed.outputs.entry(entry).or_insert((0, Some(0)));
            *artifacts += 1;
            *count = match affected {
                Affected::Rows(ids) => count.map(|count| count + ids.len() as u64),
                Affected::Whole => None,
            };
            listed.files += table.map_or(0, |table| table.blobs.len() as u64);
            // Of all tables only those of checkpoints have this column.
            if table.is_some_and(|table| table.columns.iter().any(|column| column.name == "architecture")) {
                listed.checkpoints.insert(format!("{}/{}", artifact.name.pipeline, artifact.name.stage));
            }
        }
        listed
    }

    fn outputs(&self) -> Vec<Value> {
        let outputs = self.outputs.iter().map(|((pipeline, stage, output), (artifacts, count))| {
            json!({
                "pipeline": pipeline, "stage": stage, "output": output, "artifacts": artifacts, "rows": count,
                "whole": count.is_none(),
            })
        });
        outputs.collect()
    }

    fn table(&self) -> String {
        let lines: Vec<(String, String)> = self
            .outputs
            .iter()
            .map(|((pipeline, stage, output), (_, count))| {
                let output = if output == "default" { String::new() } else { format!(".{output}") };
                (printable(&format!("{pipeline}/{stage}{output}")), count.map_or("all of it".to_owned(), rows))
            })
            .collect();
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        lines.iter().map(|(name, count)| format!("{name:width$}  {count}\n")).collect()
    }
}
