//! `export`

use std::{path::absolute, sync::Arc};

use ingrain_engine::{failure::Failure, plan::StageIndex, run::Environment};
use ingrain_operators::{
    checkpoint,
    export::{Base, Exported, Format, Recipe, export as write, format_of},
    train,
};

use crate::{
    End,
    call::ExportCall,
    pipeline::Pipeline,
    progress::{rows, tell},
};

pub(crate) async fn export(call: &ExportCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let (index, output) = pipeline.output(&call.output)?;
    if call.destination.to_string_lossy().contains("://") {
        return Err(Failure::data(format!(
            "`{}` isn't on this machine: exporting to a bucket isn't built yet",
            call.destination.display()
        ))
        .hint("export to a folder here and copy it")
        .into());
    }
    let environment = pipeline.open(&call.store).await?;
    let table = pipeline.table(&environment, index, output).await?;
    let format = match call.format {
        Some(format) => format,
        None => format_of(&call.destination, &table)?,
    };
    let name = format!("{}/{}", pipeline.plan.pipeline, call.output);
    let stage = pipeline.plan.stage(index);
    let (path, base);
    let mut exported =
        Exported { table: &table, name: &name, description: stage.description.as_deref(), recipe: None, base: None };
    if stage.operator_type.name == train::TYPE.name {
        base = pipeline.plan.reads(index).get(&(train::BASE, 0)).and_then(|(base, _)| base_path(&pipeline, *base));
        exported.base = base.as_deref();
    }
    if format == Format::Axolotl {
        let trained = trained_on(&pipeline, index, &output.name);
        if let Some((training, base)) = trained.first() {
            path = base_path(&pipeline, *base);
            exported.recipe = Some(recipe(&pipeline, &environment, *training, *base, path.as_deref()).await?);
        }
        if let [(first, _), _, ..] = trained.as_slice() {
            let first = &pipeline.plan.stage(*first).name;
            tell(&format!("{} stages train on it: the configuration is that of `{first}`", trained.len()), None);
        }
    }
    let written = write(&exported, format, &call.destination).await?;
    let said = match (format, written.files.as_slice()) {
        (Format::Folder, files) => format!("wrote {} files to `{}`", files.len(), call.destination.display()),
        (_, [file, description]) => {
            format!("wrote {} to `{}`, described in `{}`", rows(written.count), file.display(), description.display())
        }
        (_, files) => format!("wrote {} files with {} to `{}`", files.len(), rows(written.count), call.destination.display()),
    };
    tell(&said, None);
    written.notes.iter().for_each(|note| tell(note, None));
    Ok(())
}

/// The stages that train on an output, each with the stage that it starts from, in the order of the pipeline.
fn trained_on(pipeline: &Pipeline, index: StageIndex, output: &str) -> Vec<(StageIndex, StageIndex)> {
    let plan = &pipeline.plan;
    let trainings = plan.stages().filter(|(_, stage)| stage.operator_type.name == train::TYPE.name);
    let base = |(training, _)| {
        let reads = plan.reads(training);
        let (base, _) = reads.get(&(train::BASE, 0))?;
        (reads.get(&(train::MIXTURE, 0))? == &(index, output)).then_some((training, *base))
    };
    trainings.filter_map(base).collect()
}

/// What the `path` of a `checkpoint` stage names, where other tools can read it: a folder in full, or something on the hub as it is
/// written.
fn base_path(pipeline: &Pipeline, base: StageIndex) -> Option<String> {
    let written = pipeline.plan.stage(base).config.get("path")?.as_str()?;
    if written.contains("://") {
        // Nobody else reads a model from a bucket.
        return written.starts_with("hf://").then(|| written.to_owned());
    }
    let path = pipeline.plan.folder.join(written);
    Some(absolute(&path).unwrap_or(path).to_string_lossy().into_owned())
}

/// How the stage `training` trains.
async fn recipe<'a>(
    pipeline: &'a Pipeline,
    environment: &Arc<Environment>,
    training: StageIndex,
    base: StageIndex,
    path: Option<&'a str>,
) -> Result<Recipe<'a>, Failure> {
    let (training, stage) = (pipeline.plan.stage(training), pipeline.plan.stage(base));
    let table = match stage.output(stage.main_output()) {
        // Where it hasn't run, what is known of it without is what there is.
        Some(output) => pipeline.table(environment, base, output).await.ok(),
        None => None,
    };
    let preset = stage.config.get("preset").is_some_and(|preset| !preset.is_null());
    let random = stage.operator_type.name == checkpoint::TYPE.name && preset;
    let base = Base { stage: &stage.name, random, path, table };
    Ok(Recipe { stage: &training.name, config: &training.config, seed: training.seed, base })
}
