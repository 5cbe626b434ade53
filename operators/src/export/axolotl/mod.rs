//! A folder that Axolotl trains from: for models that don't fit one GPU, or several GPUs.
//!
//! Rows are in one of two formats. `completion` is text that is tokenised whole, gets the end token, and is cut where it is
//! longer than a sequence (<https://docs.axolotl.ai/docs/dataset-formats/index.html#pre-training-without-streaming>).
//! `input_output` is for a loss on answers only: segments that are joined as they are, those with `"label": false` masked
//! (<https://docs.axolotl.ai/docs/dataset-formats/template_free.html>).

mod config;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::Int32Type,
};
use futures::TryStreamExt;
use ingrain_engine::failure::Failure;
use ingrain_student::{Architecture, Precision};
use serde_json::{Value, json};

use self::config::Config;
use super::{Base, Exported, Hashed, Model, Recipe, Written, copy_files, croissant, staged_folder};
use crate::{
    checkpoint::FOLDER,
    columns::{is_text, optional_text, text},
    tokenizer::{FILE, failure},
    train::{HeldOut, LossOn, Lot, Train},
};

const MIXTURE: &str = "mixture.jsonl";
const HELDOUT: &str = "heldout.jsonl";
const CONFIG: &str = "config.yaml";
const BASE: &str = "base";
/// The column of conversations, which a chat template has framed in `text`.
const MESSAGES: &str = "messages";

/// Writes the folder. What a recipe holds out goes to a file of its own, the rest stays in its order.
pub(super) async fn folder(output: &Exported<'_>, destination: &Path, parent: &Path) -> Result<Written, Failure> {
    let schema = output.table.schema();
    if let Some(missing) = ["text", "prompt", "parent_id"].into_iter().find(|name| !is_text(schema, name)) {
        return Err(Failure::data(format!("these rows have no `{missing}`, so they are no mixture"))
            .hint("`axolotl` takes what `mix` gives; `--format chat` takes questions with answers, or texts"));
    }
    let recipe = output.recipe.as_ref();
    let train: Option<Train> = match recipe {
        Some(recipe) => Some(
            serde_json::from_value(recipe.config.clone())
                .map_err(|error| Failure::bug(format!("the config of `{}`: {error}", recipe.stage)))?,
        ),
        None => None,
    };
    let on_completion = train.as_ref().is_some_and(|train| train.loss_on == LossOn::Completion);
    let conversations = schema.field_with_name(MESSAGES).is_ok();
    let lines = match recipe {
        Some(recipe) if on_completion || conversations => Lines::segments(recipe, on_completion).await?,
        None if conversations => {
            return Err(Failure::data(
                "which tokens frame its conversations is known of a base, and no `train` stage reads this mixture",
            )
            .hint("add the `train` stage; `--format chat` writes the conversations themselves"));
        }
        _ => Lines::Completion,
    };
    let settings = match (recipe, &train) {
        (Some(recipe), Some(train)) => train.settings(recipe.base.random, Precision::Bf16),
        _ => ingrain_student::Settings::pretrained(),
    };
    let heldout = HeldOut::of(lots(output).await?.into_iter(), train.as_ref().map_or(0.0, |train| train.heldout));

    let staging = staged_folder(parent)?;
    let written = rows(output, &lines, heldout, settings.sequence_length, staging.path()).await?;
    let mut notes = Vec::new();
    if written.long > 0 {
        notes.push(format!(
            "{} of the rows are longer than a sequence of {} tokens: Axolotl cuts them off there",
            written.long, settings.sequence_length
        ));
    }
    let model = model(recipe, staging.path(), &mut notes).await?;
    let config =
        Config { name: output.name, recipe, settings: &settings, model, kind: lines.kind(), heldout: written.heldout > 0 };
    std::fs::write(staging.path().join(CONFIG), config.yaml())?;
    let names = walk(staging.path())?;
    std::fs::rename(staging.path(), destination)?;
    let files = names.iter().map(|name| destination.join(name)).collect();
    Ok(Written { count: written.mixture + written.heldout, files, notes })
}

/// Where the model is that training starts from; a checkpoint of the store is copied beside the rows.
async fn model(recipe: Option<&Recipe<'_>>, folder: &Path, notes: &mut Vec<String>) -> Result<Option<Model>, Failure> {
    let Some(recipe) = recipe else {
        notes.push(format!(
            "no `train` stage of the pipeline reads it: `{CONFIG}` has the defaults for a pretrained base, and its `base_model` is to be \
             filled in"
        ));
        return Ok(None);
    };
    match &recipe.base {
        Base { path: Some(path), .. } => Ok(Some(Model::of(path))),
        Base { table: Some(table), .. } => {
            let to = folder.join(BASE);
            std::fs::create_dir(&to)?;
            copy_files(table, &to).await?;
            Ok(Some(Model { name: format!("./{BASE}"), revision: None }))
        }
        Base { stage, .. } => {
            notes.push(format!(
                "`{stage}` hasn't run as it stands now, so that `base_model` in `{CONFIG}` is to be filled in: run it and export again"
            ));
            Ok(None)
        }
    }
}

/// How a row becomes a line.
#[derive(Debug, PartialEq)]
enum Lines {
    /// `{"text": …}`: the loss is on all of it.
    Completion,
    /// `{"segments": [{"label": …, "text": …}]}`, which begin and end with the tokenizer's own tokens, or are as a chat template
    /// framed them. Prompts have no loss with `on_completion`.
    Segments { begin: String, end: String, on_completion: bool },
}

impl Lines {
    /// Segments, with what begins and ends a row in the tokenizer of the recipe's base.
    async fn segments(recipe: &Recipe<'_>, on_completion: bool) -> Result<Self, Failure> {
        let Base { stage, table, .. } = &recipe.base;
        let table = table.as_ref().ok_or_else(|| {
            Failure::data(format!(
                "which tokens begin and end a row that `{}` trains on is known when `{stage}` has run",
                recipe.stage
            ))
            .hint(format!("run it: `--until {stage}`"))
        })?;
        let rows = table.collect().await?;
        let row = rows.iter().find(|rows| rows.num_rows() > 0).ok_or_else(|| Failure::data("a base without rows"))?;
        let architecture = Architecture::from_json(text(row, "architecture")?.value(0).as_bytes())
            .map_err(|error| Failure::data(format!("the `architecture` of `{stage}`: {error}")))?;
        let json = table.blob(&format!("{FOLDER}/{FILE}")).await?;
        let tokenizer = ingrain_student::checkpoint::tokenizer(&architecture, &json).map_err(failure)?;
        let begin = tokenizer.begin_id().and_then(|id| tokenizer.spelling(id)).unwrap_or_default();
        let end = tokenizer.spelling(tokenizer.end_id());
        let end = end.ok_or_else(|| Failure::data(format!("the end token of `{stage}` isn't in its tokenizer")))?;
        Ok(Self::Segments { begin, end, on_completion })
    }

    /// `datasets: type`.
    fn kind(&self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Segments { .. } => "input_output",
        }
    }

    /// The column beside `row_id`, and what each thing in it is, if it holds several.
    fn column(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Completion => ("text", None),
            Self::Segments { .. } => ("segments", Some("text of each segment, and whether it has a loss")),
        }
    }

    fn line(&self, batch: &RecordBatch, row: usize) -> Result<Value, Failure> {
        let id = text(batch, "row_id")?.value(row);
        let whole = text(batch, "text")?.value(row);
        let Self::Segments { begin, end, on_completion } = self else { return Ok(json!({ "row_id": id, "text": whole })) };
        let (begin, end) = match optional_text(batch, MESSAGES, row)? {
            Some(_) => ("", ""),
            None => (begin.as_str(), end.as_str()),
        };
        let (prompt, rest) = match optional_text(batch, "prompt", row)? {
            Some(prompt) => whole.strip_prefix(prompt).map_or(("", whole), |rest| (prompt, rest)),
            None => ("", whole),
        };
        let labelled = format!("{rest}{end}");
        let segments = match prompt {
            "" => json!([{ "label": true, "text": format!("{begin}{labelled}") }]),
            prompt => {
                json!([{ "label": !on_completion, "text": format!("{begin}{prompt}") }, { "label": true, "text": labelled }])
            }
        };
        Ok(json!({ "row_id": id, "segments": segments }))
    }
}

/// The lots of all rows, which decide who is held out.
async fn lots(output: &Exported<'_>) -> Result<Vec<Lot>, Failure> {
    let (mut batches, mut lots) = (output.table.stream().await?, Vec::new());
    while let Some(batch) = batches.try_next().await? {
        for row in 0..batch.num_rows() {
            lots.push(Lot::of(&batch, row)?);
        }
    }
    Ok(lots)
}

/// What was written, in rows.
struct Rows {
    mixture: u64,
    heldout: u64,
    /// Those that Axolotl doesn't take whole.
    long: u64,
}

/// Writes rows to `folder`, those that are held out apart, and describes each file.
async fn rows(output: &Exported<'_>, lines: &Lines, bounds: HeldOut, sequence: usize, folder: &Path) -> Result<Rows, Failure> {
    let mut written = Rows { mixture: 0, heldout: 0, long: 0 };
    let mut mixture = Hashed::new(BufWriter::new(File::create(folder.join(MIXTURE))?));
    let mut heldout = Hashed::new(BufWriter::new(File::create(folder.join(HELDOUT))?));
    let mut batches = output.table.stream().await?;
    while let Some(batch) = batches.try_next().await? {
        // The begin and the end token come on top.
        let lengths = batch.column_by_name("token_count").and_then(|column| column.as_primitive_opt::<Int32Type>());
        for row in 0..batch.num_rows() {
            let line = lines.line(&batch, row)?;
            let (file, count) = match bounds.holds(Lot::of(&batch, row)?) {
                true => (&mut heldout, &mut written.heldout),
                false => (&mut mixture, &mut written.mixture),
            };
            writeln!(file, "{line}")?;
            *count += 1;
            let length = lengths.map_or(0, |lengths| usize::try_from(lengths.value(row)).unwrap_or(0));
            written.long += u64::from(*lines != Lines::Completion && length + 2 > sequence);
        }
    }
    for (name, mut file, count) in [(MIXTURE, mixture, written.mixture), (HELDOUT, heldout, written.heldout)] {
        file.flush()?;
        let (path, digest) = (folder.join(name), file.digest());
        if count == 0 {
            std::fs::remove_file(path)?;
            continue;
        }
        let bytes = std::fs::metadata(&path)?.len();
        let (column, each) = lines.column();
        let described = croissant::describe_lines(output, &path, (count, bytes, &digest), column, each);
        std::fs::write(folder.join(format!("{name}.croissant.json")), format!("{described:#}\n"))?;
    }
    if written.mixture == 0 {
        return Err(Failure::data("the mixture has no rows").hint("see what its sources gave with `show`"));
    }
    Ok(written)
}

/// The files of a folder and of those in it, sorted.
fn walk(folder: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = std::path::PathBuf::from(entry.file_name());
        if entry.file_type()?.is_dir() {
            names.extend(walk(&entry.path())?.into_iter().map(|inner| name.join(inner)));
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn line(lines: &Lines, prompt: Option<&str>, text: &str) -> Value {
        let columns = [("row_id", Some("a")), ("prompt", prompt), ("text", Some(text))];
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.map(|(name, value)| (name, Arc::new(StringArray::from(vec![value])) as ArrayRef, true)),
        );
        lines.line(&batch.unwrap(), 0).unwrap()
    }

    #[test]
    fn a_loss_on_answers_masks_the_prompt() {
        let lines = Lines::Segments { begin: "<s>".into(), end: "</s>".into(), on_completion: true };
        let asked = line(&lines, Some("Question: Who?\nAnswer:"), "Question: Who?\nAnswer: Ida Brandt");
        let segments =
            json!([{ "label": false, "text": "<s>Question: Who?\nAnswer:" }, { "label": true, "text": " Ida Brandt</s>" }]);
        assert_eq!(asked, json!({ "row_id": "a", "segments": segments }));
        let document = line(&lines, None, "A text.");
        assert_eq!(document["segments"], json!([{ "label": true, "text": "<s>A text.</s>" }]));
    }

    #[test]
    fn a_conversation_keeps_the_frame_of_its_template() {
        let columns = [("row_id", "a"), ("prompt", "<u>Who?<a>"), ("text", "<u>Who?<a>Ida</a>"), ("messages", "[]")];
        let batch =
            RecordBatch::try_from_iter(columns.map(|(name, value)| (name, Arc::new(StringArray::from(vec![value])) as ArrayRef)));
        let batch = batch.unwrap();
        for on_completion in [true, false] {
            let lines = Lines::Segments { begin: "<s>".into(), end: "</s>".into(), on_completion };
            let segments = json!([{ "label": !on_completion, "text": "<u>Who?<a>" }, { "label": true, "text": "Ida</a>" }]);
            assert_eq!(lines.line(&batch, 0).unwrap()["segments"], segments);
        }
    }

    #[test]
    fn a_loss_on_everything_needs_no_tokens_of_its_own() {
        assert_eq!(line(&Lines::Completion, Some("Q:"), "Q: A"), json!({ "row_id": "a", "text": "Q: A" }));
    }
}
