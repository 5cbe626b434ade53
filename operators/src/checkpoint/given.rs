//! Checkpoints that were made elsewhere: small files are taken, weights are looked at and referred to.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use ingrain_engine::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Invalid, Source},
    run::{SourceFile, Task, TaskContext, check_place},
};
use ingrain_student::{
    Architecture,
    header::{self, Header},
};
use serde_json::Value;

use super::{FOLDER, Origin, Row, TOKENIZER, described, failure};
use crate::tokenizer::{self, FILE};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Names that programs give to files which they haven't written to the end.
const UNFINISHED: [&str; 3] = [".partial", ".incomplete", ".lock"];
/// What is looked for in a folder.
const NAMES: &[&str] = &[
    CONFIG,
    FILE,
    INDEX,
    "*.safetensors",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "*.partial",
    "*.incomplete",
    "*.lock",
];
/// Weights that aren't those of the model in this layout: Meta's and Mistral's own, adapters.
const OTHERS: [&str; 2] = ["consolidated*", "adapter*"];
/// No small file of a checkpoint is larger.
const LARGEST: u64 = 256 << 20;
/// Most headers of weight files fit in here.
const GUESS: u64 = 64 << 10;

/// Says what is wrong with a path, as far as it can be seen from the path.
pub(super) fn check(path: &str) -> Result<(), Invalid> {
    if path.is_empty() {
        return Err(Invalid::new("/path", "is empty").hint("`.` is the pipeline file's own folder"));
    }
    check_place(path).map_err(|failure| Invalid { hint: failure.hint, ..Invalid::new("/path", failure.message) })
}

/// The files of the checkpoint at `path`.
pub(super) fn source(path: &str) -> Source {
    Source { paths: vec![path.to_owned()], names: NAMES, exclude: OTHERS.map(str::to_owned).to_vec(), columns_in_files: false }
}

/// Takes up the checkpoint at a path.
pub(super) struct Take {
    pub(super) path: String,
}

#[async_trait]
impl Task for Take {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let files = Files::of(&self.path, context.source())?;
        let mut small = BTreeMap::new();
        for (name, file) in files.small() {
            small.insert(name.clone(), Vec::from(context.open(file).await?));
        }
        let config = small.get(CONFIG).ok_or_else(|| files.missing(CONFIG))?;
        let architecture = Architecture::from_json(config).map_err(|error| failure(error.into()))?;
        let json = small.get(FILE).cloned().ok_or_else(|| files.missing(FILE))?;
        let tokenizer = ingrain_student::checkpoint::tokenizer(&architecture, &json).map_err(tokenizer::failure)?;
        if tokenizer.vocabulary() > architecture.vocab_size {
            return Err(Failure::data(format!(
                "the tokenizer of `{}` has {} ids, and `vocab_size` in `{CONFIG}` is {}",
                self.path,
                tokenizer.vocabulary(),
                architecture.vocab_size
            ))
            .hint("are the two of one model?"));
        }
        let weights = files.weights(small.get(INDEX).map(AsRef::as_ref))?;
        let mut headers = Vec::new();
        for file in &weights {
            context.counters.say(format!("looking at `{}`", file.path));
            headers.push(header(context, file).await?);
        }
        header::check(&architecture, &headers).map_err(failure)?;

        let folder = context.scratch().join(FOLDER);
        tokio::fs::create_dir_all(&folder).await?;
        for (name, content) in &small {
            tokio::fs::write(folder.join(name), content).await?;
        }
        let mut digest = blake3::Hasher::new();
        digest.update(context.put_folder(DEFAULT_OUTPUT, FOLDER, &folder).await?.as_bytes());
        for file in &weights {
            digest.update(&[0]).update(file.path.as_bytes()).update(&[0]).update(file.version.as_bytes());
            context.refer(DEFAULT_OUTPUT, &format!("{FOLDER}/{}", file.path), file);
        }
        let digest = digest.finalize().to_hex().to_string();
        let row = Row {
            row_id: Origin::Given.row_id(&digest),
            parent_id: None,
            digest,
            architecture: described(&architecture)?,
            step: 0,
            tokens: 0,
            loss: None,
            render: None,
        };
        context.write(DEFAULT_OUTPUT, row.batch(context.schema(DEFAULT_OUTPUT)?)?).await?;
        tokenizer::put(context, TOKENIZER, &small).await
    }
}

/// Reads what a weight file says of its tensors, and none of the tensors.
async fn header(context: &TaskContext, file: &SourceFile) -> Result<Header, Failure> {
    let start = context.open_range(file, 0..file.size.min(GUESS)).await?;
    let length = Header::length(&file.source, &start[..start.len().min(8)], file.size).map_err(failure)?;
    let whole = match start.get(..usize::try_from(length).unwrap_or(usize::MAX)) {
        Some(whole) => whole.to_vec(),
        None => {
            let rest = context.open_range(file, start.len() as u64..length).await?;
            [start, rest].concat()
        }
    };
    Header::parse(&file.source, &whole, file.size).map_err(failure)
}

/// The files of a checkpoint, by name.
#[derive(Debug)]
struct Files {
    /// The folder, as it is written.
    path: String,
    by_name: BTreeMap<String, SourceFile>,
}

impl Files {
    /// Looks at what there is.
    ///
    /// # Errors
    /// When somebody is still writing there, or a small file isn't small.
    fn of(path: &str, listed: &[SourceFile]) -> Result<Self, Failure> {
        let by_name: BTreeMap<String, SourceFile> = listed.iter().map(|file| (file.path.clone(), file.clone())).collect();
        let files = Self { path: path.to_owned(), by_name };
        let is_unfinished = |name: &&String| UNFINISHED.iter().any(|end| name.ends_with(end));
        if let Some(name) = files.by_name.keys().find(is_unfinished) {
            return Err(Failure::external(format!("`{path}` is being written: `{name}` is there"))
                .hint("run again when that has ended; if it never will, remove the file"));
        }
        if let Some((_, file)) = files.small().find(|(_, file)| file.size > LARGEST) {
            let (source, size) = (&file.source, file.size);
            return Err(Failure::data(format!("`{source}` has {size} bytes, where at most {LARGEST} are expected")));
        }
        Ok(files)
    }

    /// Those that aren't weights.
    fn small(&self) -> impl Iterator<Item = (&String, &SourceFile)> {
        self.by_name.iter().filter(|(name, _)| !name.ends_with(".safetensors"))
    }

    /// The weight files: those that `index` names, or the one that there is without one.
    ///
    /// # Errors
    /// When there are none, or not all.
    fn weights(&self, index: Option<&[u8]>) -> Result<Vec<SourceFile>, Failure> {
        let Some(index) = index else {
            let only = self.by_name.get(WEIGHTS).cloned();
            return only.map(|file| vec![file]).ok_or_else(|| {
                Failure::data(format!("`{}` has neither `{WEIGHTS}` nor `{INDEX}`", self.path)).hint(
                    "weights are read from safetensors alone, not from `.bin`, `.pth` or `.gguf`: in `transformers`, \
                     `save_pretrained` writes them",
                )
            });
        };
        let malformed = |what: String| Failure::data(format!("`{INDEX}` in `{}`: {what}", self.path));
        let index: Value = serde_json::from_slice(index).map_err(|error| malformed(error.to_string()))?;
        let map = index["weight_map"].as_object().ok_or_else(|| malformed("no `weight_map`".to_owned()))?;
        let named: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        if named.is_empty() {
            return Err(malformed("it names no file".to_owned()));
        }
        let (there, missing): (Vec<_>, Vec<_>) = named.into_iter().partition(|name| self.by_name.contains_key(*name));
        if let Some(first) = missing.first() {
            let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
            return Err(Failure::external(format!("`{}` isn't whole: `{INDEX}` names `{first}`{more}, not there", self.path))
                .hint("is it still being copied? The files that the index names lie beside it and end in `.safetensors`"));
        }
        Ok(there.into_iter().filter_map(|name| self.by_name.get(name).cloned()).collect())
    }

    fn missing(&self, name: &str) -> Failure {
        let hint = match name {
            CONFIG => {
                "a checkpoint in the layout of Hugging Face has one; if the folder is still being written, run again when that has \
                 ended"
            }
            _ => "in `transformers`, `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes it",
        };
        Failure::data(format!("`{}` has no `{name}`", self.path)).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn files(names: &[&str]) -> Result<Files, Failure> {
        let file = |name: &&str| SourceFile {
            url: format!("/models/{name}"),
            path: (*name).to_owned(),
            source: format!("models/{name}"),
            size: 1,
            version: "1".to_owned(),
        };
        Files::of("models", &names.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn weights_are_those_that_the_index_names() {
        let sharded = files(&["a.safetensors", "b.safetensors", "other.safetensors", WEIGHTS, INDEX, CONFIG]).unwrap();
        let index = |value: Value| value.to_string().into_bytes();
        let named = |index: &[u8]| -> Result<Vec<String>, Failure> {
            Ok(sharded.weights(Some(index))?.into_iter().map(|file| file.path).collect())
        };
        let both = index(json!({ "weight_map": { "x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors" } }));
        assert_eq!(named(&both).unwrap(), ["a.safetensors", "b.safetensors"]);
        let gone = named(&index(json!({ "weight_map": { "x": "c.safetensors", "y": "../a.safetensors" } }))).unwrap_err();
        assert!(gone.message.contains("`../a.safetensors` and 1 more"), "{gone}");
        for broken in [json!({ "weight_map": {} }), json!({}), json!([])] {
            assert!(named(&index(broken)).unwrap_err().message.contains(INDEX));
        }
        assert_eq!(sharded.weights(None).unwrap()[0].path, WEIGHTS);
        let none = files(&[CONFIG, FILE]).unwrap().weights(None).unwrap_err();
        assert!(none.hint.unwrap().contains("safetensors alone"));
    }

    #[test]
    fn a_folder_that_is_being_written_is_left_alone() {
        for name in ["model.safetensors.partial", "a.incomplete", "b.lock"] {
            let failure = files(&[CONFIG, FILE, WEIGHTS, name]).unwrap_err();
            assert!(failure.message.contains("is being written") && failure.message.contains(name), "{failure}");
        }
        assert!(files(&[CONFIG]).unwrap().missing(FILE).message.contains("has no `tokenizer.json`"));
    }

    #[test]
    fn a_path_without_a_way_is_refused() {
        for path in ["weights", "../models/x", "s3://b/models", "hf://a/b@c", "."] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        assert!(check("https://huggingface.co/a/b").unwrap_err().message.contains("`https://`"));
        for path in ["", "hf://name@main", "s3://"] {
            assert!(check(path).unwrap_err().hint.is_some(), "{path}");
        }
    }
}
