//! Hugging Face checkpoint folders, in and out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};
use serde_json::{Value, json};

use crate::architecture::{Architecture, ArchitectureError, TokenIds};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{HostTensor, Weights, mismatch};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// Files that belong to a tokenizer or to generation and are carried along as they are.
const CARRIED: [&str; 5] = [TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, "special_tokens_map.json", "chat_template.jinja"];

/// No JSON file of a checkpoint is larger; a safetensors header may be.
const LARGEST_TEXT_FILE: u64 = 256 << 20;
/// The limit of the format's own reader.
const LARGEST_HEADER: u64 = 100_000_000;

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
    /// The tensors aren't those that `config.json` describes.
    #[error("`{path}`: the tensors don't fit `config.json`: {reason}")]
    Mismatch {
        /// The folder.
        path: PathBuf,
        /// Which tensors.
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
    /// `model.safetensors`, as 32-bit floats whatever the file held.
    pub weights: Weights,
    /// `tokenizer.json` and the other small files that go with it, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// A checkpoint of a model from scratch. The ids of the special tokens in the architecture are the tokenizer's.
    ///
    /// # Errors
    /// When the tokenizer can't be read or has more ids than the model, or the weights aren't the architecture's.
    pub fn new(mut architecture: Architecture, weights: Weights, tokenizer_json: &[u8]) -> Result<Self, CheckpointError> {
        architecture.check()?;
        let tokenizer = Tokenizer::from_json(tokenizer_json)?;
        if tokenizer.vocabulary() > architecture.vocab_size {
            return Err(CheckpointError::Mismatch {
                path: PathBuf::from(TOKENIZER),
                reason: format!(
                    "the tokenizer has {} ids and `vocab_size` is {}",
                    tokenizer.vocabulary(),
                    architecture.vocab_size
                ),
            });
        }
        if let Some(reason) = weights.mismatch(&architecture) {
            return Err(CheckpointError::Mismatch { path: PathBuf::from(WEIGHTS), reason });
        }
        architecture.bos_token_id = tokenizer.begin_id();
        architecture.eos_token_id = Some(TokenIds::One(tokenizer.end_id()));
        architecture.pad_token_id = tokenizer.pad_id();
        let mut files = BTreeMap::new();
        files.insert(TOKENIZER.to_string(), tokenizer_json.to_vec());
        files.insert(TOKENIZER_CONFIG.to_string(), pretty(&tokenizer.config(architecture.max_position_embeddings))?);
        Ok(Self { architecture, weights, files })
    }

    /// The tokenizer, with the end token that `config.json` names.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let json = self.files.get(TOKENIZER).ok_or_else(|| CheckpointError::Malformed {
            path: PathBuf::from(TOKENIZER),
            reason: "the checkpoint has none".into(),
        })?;
        Ok(tokenizer(&self.architecture, json)?)
    }

    /// Reads a folder. The header of every weight file is checked against the file's length and `config.json` before
    /// memory for a tensor is taken; 16-bit floats are widened.
    ///
    /// # Errors
    /// Names the file and the tensors.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let architecture = Architecture::from_json(&text_file(&folder.join(CONFIG))?)?;
        let weights = read_weights(folder, &architecture)?;
        let mut files = BTreeMap::new();
        for name in CARRIED {
            let path = folder.join(name);
            if path.is_file() {
                files.insert(name.to_string(), text_file(&path)?);
            }
        }
        Ok(Self { architecture, weights, files })
    }

    /// Writes the folder: everything into a temporary one beside it, synced, then renamed. It must not exist.
    ///
    /// # Errors
    /// When it exists, the weights aren't the architecture's, or the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        if let Some(reason) = self.weights.mismatch(&self.architecture) {
            return Err(CheckpointError::Mismatch { path: folder.to_path_buf(), reason });
        }
        if folder.exists() {
            return Err(CheckpointError::Exists(folder.to_path_buf()));
        }
        let name = folder
            .file_name()
            .ok_or_else(|| CheckpointError::Malformed { path: folder.to_path_buf(), reason: "not a folder's name".into() })?;
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let partial = parent.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
        fs::create_dir_all(&partial).map_err(at(&partial))?;
        let written = self.write_files(&partial).and_then(|()| fs::rename(&partial, folder).map_err(at(folder)));
        if written.is_err() {
            // What went wrong first is what the user needs to know; a left-over folder is hidden and named after us.
            let _ = fs::remove_dir_all(&partial);
        }
        written?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(at(parent))
    }

    fn write_files(&self, folder: &Path) -> Result<(), CheckpointError> {
        let mut config = serde_json::to_value(&self.architecture).map_err(ArchitectureError::Parse)?;
        let dtype = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        config[dtype] = "float32".into();
        write_file(&folder.join(CONFIG), &pretty(&config)?)?;
        for (name, content) in &self.files {
            write_file(&folder.join(name), content)?;
        }
        if !self.files.contains_key(GENERATION_CONFIG) {
            let mut generation = json!({ "do_sample": false });
            for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
                if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
                    generation[key] = id.clone();
                }
            }
            write_file(&folder.join(GENERATION_CONFIG), &pretty(&generation)?)?;
        }
        let path = folder.join(WEIGHTS);
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize_to_file(self.weights.tensors.iter(), Some(metadata), &path)
            .map_err(|error| CheckpointError::Malformed { path: path.clone(), reason: error.to_string() })?;
        // The library writes a temporary file that only its owner may read.
        fs::metadata(folder.join(CONFIG))
            .and_then(|config| fs::set_permissions(&path, config.permissions()))
            .map_err(at(&path))?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(at(&path))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
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

fn write_file(path: &Path, content: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(at(path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(path))
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

/// Where a tensor lies: the file, the first byte of the file's data, the header's entry.
struct Place {
    file: PathBuf,
    data: u64,
    info: TensorInfo,
}

fn read_weights(folder: &Path, architecture: &Architecture) -> Result<Weights, CheckpointError> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for file in weight_files(folder)? {
        for (name, place) in read_header(&file)? {
            if let Some(other) = places.insert(name.clone(), place) {
                return Err(CheckpointError::Malformed {
                    path: file,
                    reason: format!("`{name}` is in `{}`, too", other.file.display()),
                });
            }
        }
    }
    // A tied head is written by some exporters and ignored by all readers; rotary tables are computed.
    if architecture.tie_word_embeddings {
        places.remove("lm_head.weight");
    }
    places.retain(|name, _| !name.ends_with("rotary_emb.inv_freq"));
    if let Some(reason) = mismatch(architecture, places.iter().map(|(name, place)| (name.as_str(), place.info.shape.as_slice())))
    {
        return Err(CheckpointError::Mismatch { path: folder.to_path_buf(), reason });
    }
    let mut tensors = BTreeMap::new();
    for (name, place) in places {
        let values = read_values(&name, &place)?;
        tensors.insert(name, HostTensor { shape: place.info.shape, values });
    }
    Ok(Weights { tensors })
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(vec![folder.join(WEIGHTS)]);
    }
    let malformed = |reason: String| CheckpointError::Malformed { path: index.clone(), reason };
    let value: Value = serde_json::from_slice(&text_file(&index)?).map_err(|error| malformed(error.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| malformed("no `weight_map`".into()))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        let name = name.as_str().ok_or_else(|| malformed(format!("a file's name is {name}")))?;
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(malformed(format!("`{name}` is not a file of this folder")));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn read_header(path: &Path) -> Result<Vec<(String, Place)>, CheckpointError> {
    let malformed = |reason: String| CheckpointError::Malformed { path: path.to_path_buf(), reason };
    let mut file = File::open(path).map_err(at(path))?;
    let length = file.metadata().map_err(at(path))?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(at(path))?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size + 8 > length {
        return Err(malformed(format!("the header claims {size} bytes, and the file has {length}")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(at(path))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
    let data = 8 + size;
    let wanted = data.checked_add(metadata.data_len() as u64);
    if wanted != Some(length) {
        return Err(malformed(format!("the header describes {wanted:?} bytes, and the file has {length}")));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let info = TensorInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets: info.data_offsets };
        (name, Place { file: path.to_path_buf(), data, info })
    });
    Ok(tensors.collect())
}

fn read_values(name: &str, place: &Place) -> Result<Vec<f32>, CheckpointError> {
    let widen: fn(&[u8]) -> f32 = match place.info.dtype {
        Dtype::F32 => |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Dtype::BF16 => |bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::F16 => |bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        other => {
            return Err(CheckpointError::Malformed {
                path: place.file.clone(),
                reason: format!("`{name}` is of type {other}: F32, F16 and BF16 can be read"),
            });
        }
    };
    let width = place.info.dtype.bitsize() / 8;
    let (start, end) = place.info.data_offsets;
    let mut file = File::open(&place.file).map_err(at(&place.file))?;
    file.seek(SeekFrom::Start(place.data + start as u64)).map_err(at(&place.file))?;
    let mut values = Vec::with_capacity((end - start) / width);
    let mut buffer = vec![0; (end - start).min(1 << 20)];
    let mut left = end - start;
    while left > 0 {
        let chunk = left.min(buffer.len());
        file.read_exact(&mut buffer[..chunk]).map_err(at(&place.file))?;
        values.extend(buffer[..chunk].chunks_exact(width).map(widen));
        left -= chunk;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Preset;
    use crate::tokenizer::tests::TEXTS;
    use crate::weights::initialise;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ingrain-checkpoint-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn checkpoint() -> Checkpoint {
        let tokenizer = crate::tokenizer::train(TEXTS.iter(), 300).unwrap();
        let architecture = Preset::Tiny.architecture(300);
        let weights = initialise(&architecture, 1);
        Checkpoint::new(architecture, weights, tokenizer.json.as_bytes()).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = Folder::new("round-trip");
        let (written, path) = (checkpoint(), folder.0.join("student"));
        written.write(&path).unwrap();
        let read = Checkpoint::read(&path).unwrap();
        assert_eq!(read.weights, written.weights);
        assert_eq!(read.architecture, written.architecture);
        assert_eq!(read.files[TOKENIZER], written.files[TOKENIZER]);
        assert!(read.files.contains_key(GENERATION_CONFIG));
        let permissions = |file: &str| fs::metadata(path.join(file)).unwrap().permissions();
        assert_eq!(permissions(WEIGHTS), permissions(CONFIG));
        assert_eq!(read.tokenizer().unwrap().end_id(), 1);
        assert!(matches!(written.write(&path), Err(CheckpointError::Exists(_))));
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing but the checkpoint is left");
    }

    #[test]
    fn sixteen_bit_shards_are_read() {
        let folder = Folder::new("shards");
        let written = checkpoint();
        let path = folder.0.join("student");
        written.write(&path).unwrap();
        fs::remove_file(path.join(WEIGHTS)).unwrap();
        let mut map = serde_json::Map::new();
        for (shard, chunk) in written.weights.tensors.iter().collect::<Vec<_>>().chunks(8).enumerate() {
            let file = format!("model-{shard}.safetensors");
            let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = chunk
                .iter()
                .map(|(name, tensor)| {
                    let bytes = tensor.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
                    ((*name).clone(), tensor.shape.clone(), bytes)
                })
                .collect();
            let views = bytes.iter().map(|(name, shape, bytes)| {
                map.insert(name.clone(), file.clone().into());
                let view = safetensors::tensor::TensorView::new(Dtype::BF16, shape.clone(), bytes);
                (name.clone(), view.unwrap())
            });
            fs::write(path.join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        fs::write(path.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
        let read = Checkpoint::read(&path).unwrap();
        for (name, tensor) in &written.weights.tensors {
            let rounded: Vec<f32> = tensor.values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
            assert_eq!(read.weights.tensors[name].values, rounded);
        }
    }

    #[test]
    fn a_false_header_is_refused_before_anything_is_allocated() {
        let folder = Folder::new("header");
        let path = folder.0.join("student");
        checkpoint().write(&path).unwrap();
        let weights = path.join(WEIGHTS);
        let good = fs::read(&weights).unwrap();
        let refuse = |bytes: &[u8], needle: &str| {
            fs::write(&weights, bytes).unwrap();
            let message = Checkpoint::read(&path).unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        };
        let mut long = good.clone();
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        refuse(&long, "the header claims");
        refuse(&good[..good.len() - 4], "the header describes");
        let mut extra = good.clone();
        extra.extend([0; 4]);
        refuse(&extra, "the header describes");
        refuse(&good[..4], "model.safetensors");
        let mut small = checkpoint();
        small.weights.tensors.remove("model.norm.weight");
        let bytes = safetensors::serialize(small.weights.tensors.iter(), None).unwrap();
        refuse(&bytes, "missing: `model.norm.weight`");
    }

    #[test]
    fn an_index_cannot_point_out_of_its_folder() {
        let folder = Folder::new("index");
        let path = folder.0.join("student");
        checkpoint().write(&path).unwrap();
        for name in ["../student/model.safetensors", "/etc/passwd", ".."] {
            fs::write(path.join(INDEX), json!({ "weight_map": { "a": name } }).to_string()).unwrap();
            let message = Checkpoint::read(&path).unwrap_err().to_string();
            assert!(message.contains("is not a file of this folder"), "{message}");
        }
    }
}
