//! Hugging Face checkpoint folders, in and out.

mod adapter;
mod shards;
mod writing;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

pub use self::adapter::{Adapter, CONFIG as ADAPTER_CONFIG, Merged, Projection};
pub use self::shards::Shards;
pub(crate) use self::writing::{whole, write_file, write_folder, write_tensors};
use crate::architecture::{Architecture, ArchitectureError, TokenIds};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{TensorError, Tensors};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// Files beside `config.json` that belong to a tokenizer or to generation and are carried along as they are.
pub const FILES: [&str; 5] = [TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, "special_tokens_map.json", crate::chat::FILE];

/// No JSON file of a checkpoint is larger; a safetensors header may be.
const LARGEST_TEXT_FILE: u64 = 256 << 20;

/// Why a checkpoint can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("`{path}`: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file isn't what it should be.
    #[error("`{path}`: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors or the tokenizer aren't those that `config.json` describes.
    #[error("`{path}` doesn't fit `config.json`: {reason}")]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The folder to write is there already.
    #[error("`{0}` exists already: a checkpoint is never overwritten")]
    Exists(PathBuf),
    /// The configuration can't be used.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// The tokenizer can't be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A tensor can't be had.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The tokenizer of a checkpoint, by its `tokenizer.json`: which token ends a text is in its `config.json`.
///
/// # Errors
/// When it can't be read.
pub fn tokenizer(architecture: &Architecture, json: &[u8]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json_with_end(json, architecture.eos_token_id.as_ref().and_then(TokenIds::first))
}

/// A model with its tokenizer, as a folder holds it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// `config.json`.
    pub architecture: Architecture,
    /// `model.safetensors`, or the shards that its index names.
    pub weights: Arc<dyn Tensors>,
    /// `tokenizer.json` and the other small files that go with it, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// A checkpoint of a model from scratch. The ids of the special tokens in the architecture are the tokenizer's.
    ///
    /// # Errors
    /// When the tokenizer can't be read or has more ids than the model, or the weights aren't the architecture's.
    pub fn new(
        mut architecture: Architecture,
        weights: impl Tensors + 'static,
        tokenizer_json: &[u8],
    ) -> Result<Self, CheckpointError> {
        architecture.check()?;
        let tokenizer = Tokenizer::from_json(tokenizer_json)?;
        fits(&tokenizer, &architecture, Path::new(TOKENIZER))?;
        if let Some(reason) = weights.mismatch(&architecture) {
            return Err(CheckpointError::Mismatch { path: PathBuf::from(WEIGHTS), reason });
        }
        architecture.bos_token_id = tokenizer.begin_id();
        architecture.eos_token_id = Some(TokenIds::One(tokenizer.end_id()));
        architecture.pad_token_id = tokenizer.pad_id();
        let mut files = BTreeMap::new();
        files.insert(TOKENIZER.to_string(), tokenizer_json.to_vec());
        files.insert(TOKENIZER_CONFIG.to_string(), pretty(&tokenizer.config(architecture.max_position_embeddings))?);
        Ok(Self { architecture, weights: Arc::new(weights), files })
    }

    /// The tokenizer, with the end token that `config.json` names.
    ///
    /// # Errors
    /// When there is none, it can't be read, or it has more ids than the model.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let json = self.files.get(TOKENIZER).ok_or_else(|| CheckpointError::Malformed {
            path: PathBuf::from(TOKENIZER),
            reason: "the checkpoint has none".into(),
        })?;
        let tokenizer = tokenizer(&self.architecture, json)?;
        fits(&tokenizer, &self.architecture, Path::new(TOKENIZER))?;
        Ok(tokenizer)
    }

    /// Opens a folder. The header of every weight file is checked against the file's length and `config.json`; the tensors are
    /// read when they are asked for, so the folder must stay as it is.
    ///
    /// # Errors
    /// Names the file and the tensors.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let config = folder.join(CONFIG);
        if folder.is_dir() && !config.exists() {
            return Err(CheckpointError::Malformed {
                path: folder.to_path_buf(),
                reason: "no `config.json`: this isn't a Hugging Face checkpoint, or it is still being written".into(),
            });
        }
        let architecture = Architecture::from_json(&text_file(&config)?)?;
        let weights = Arc::new(Shards::open(folder, &architecture)?);
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = folder.join(name);
            if path.is_file() {
                files.insert(name.to_string(), text_file(&path)?);
            }
        }
        Ok(Self { architecture, weights, files })
    }

    /// Writes the folder: everything into a temporary one beside it, synced, then renamed. It must not exist. Weights are
    /// written in the precision that the architecture names, a tensor at a time, in files of 5 GB at most.
    ///
    /// # Errors
    /// When it exists, the weights aren't the architecture's, or the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        if let Some(reason) = self.weights.mismatch(&self.architecture) {
            return Err(CheckpointError::Mismatch { path: folder.to_path_buf(), reason });
        }
        write_folder(folder, &self.architecture, &self.files, &mut |name| self.weights.tensor(name))
    }
}

/// Every id of the tokenizer has a row in the embedding.
fn fits(tokenizer: &Tokenizer, architecture: &Architecture, path: &Path) -> Result<(), CheckpointError> {
    let (ids, rows) = (tokenizer.vocabulary(), architecture.vocab_size);
    if ids > rows {
        let reason = format!("the tokenizer has {ids} ids, and the embedding {rows} rows (`vocab_size`)");
        return Err(CheckpointError::Mismatch { path: path.to_path_buf(), reason });
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |source| CheckpointError::Io { path, source }
}

fn pretty(value: &Value) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(ArchitectureError::Parse)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn text_file(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let length = fs::metadata(path).map_err(at(path))?.len();
    if length > LARGEST_TEXT_FILE {
        return Err(CheckpointError::Malformed {
            path: path.to_path_buf(),
            reason: format!("{length} bytes, where at most {LARGEST_TEXT_FILE} are expected"),
        });
    }
    fs::read(path).map_err(at(path))
}

#[cfg(test)]
mod tests;
