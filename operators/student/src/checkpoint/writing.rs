//! Writing a checkpoint folder.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, View};
use serde_json::json;

use super::{CONFIG, CheckpointError, GENERATION_CONFIG, INDEX, WEIGHTS, at, pretty};
use crate::architecture::{Architecture, ArchitectureError, Precision};
use crate::weights::{HostTensor, TensorError};

/// Bytes of tensors in one file, as `transformers` has it: what is more goes into several, with an index.
const BYTES_PER_FILE: usize = 5_000_000_000;

/// A tensor's name and shape.
type Shaped = (String, Vec<usize>);

/// Gives a tensor by its name.
pub(crate) type Fetch<'a> = dyn FnMut(&str) -> Result<HostTensor, TensorError> + 'a;

/// Writes a checkpoint folder, as [`super::Checkpoint::write`] says.
pub(crate) fn write_folder(
    folder: &Path,
    architecture: &Architecture,
    files: &BTreeMap<String, Vec<u8>>,
    tensor: &mut Fetch<'_>,
) -> Result<(), CheckpointError> {
    whole(folder, |partial| {
        let config = serde_json::to_value(architecture).map_err(ArchitectureError::Parse)?;
        write_file(&partial.join(CONFIG), &pretty(&config)?)?;
        for (name, content) in files {
            write_file(&partial.join(name), content)?;
        }
        if !files.contains_key(GENERATION_CONFIG) {
            let mut generation = json!({ "do_sample": false });
            for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
                if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
                    generation[key] = id.clone();
                }
            }
            write_file(&partial.join(GENERATION_CONFIG), &pretty(&generation)?)?;
        }
        write_weights(partial, architecture.tensors(), architecture.precision(), BYTES_PER_FILE, tensor)
    })
}

/// Makes a folder that is there whole or not at all: `write` fills a temporary one beside it, which is synced and renamed.
pub(crate) fn whole(folder: &Path, write: impl FnOnce(&Path) -> Result<(), CheckpointError>) -> Result<(), CheckpointError> {
    if folder.exists() {
        return Err(CheckpointError::Exists(folder.to_path_buf()));
    }
    let name = folder
        .file_name()
        .ok_or_else(|| CheckpointError::Malformed { path: folder.to_path_buf(), reason: "not a folder's name".into() })?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = parent.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    fs::create_dir_all(&partial).map_err(at(&partial))?;
    let sync = || File::open(&partial).and_then(|folder| folder.sync_all()).map_err(at(&partial));
    let written = write(&partial).and_then(|()| sync()).and_then(|()| fs::rename(&partial, folder).map_err(at(folder)));
    if written.is_err() {
        // What went wrong first is what the user needs to know; a left-over folder is hidden and named after us.
        let _ = fs::remove_dir_all(&partial);
    }
    written?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(at(parent))
}

pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(at(path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(path))
}

/// Writes tensors, in files of at most `bytes` each (or one tensor), with an index where there are several.
pub(super) fn write_weights(
    folder: &Path,
    tensors: Vec<Shaped>,
    precision: Precision,
    bytes: usize,
    tensor: &mut Fetch<'_>,
) -> Result<(), CheckpointError> {
    let size = |shape: &[usize]| shape.iter().product::<usize>() * width(precision);
    let total: usize = tensors.iter().map(|(_, shape)| size(shape)).sum();
    let mut files: Vec<(usize, Vec<Shaped>)> = Vec::new();
    for (name, shape) in tensors {
        let more = size(&shape);
        match files.last_mut() {
            Some((used, tensors)) if *used + more <= bytes => {
                *used += more;
                tensors.push((name, shape));
            }
            _ => files.push((more, vec![(name, shape)])),
        }
    }
    let count = files.len();
    let mut map = BTreeMap::new();
    for (number, (_, tensors)) in (1..).zip(files) {
        let file = if count == 1 { WEIGHTS.to_owned() } else { format!("model-{number:05}-of-{count:05}.safetensors") };
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone())));
        write_tensors(&folder.join(file), &folder.join(CONFIG), tensors, precision, tensor)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_file(&folder.join(INDEX), &pretty(&index)?)?;
    }
    Ok(())
}

/// Writes one safetensors file, a tensor at a time, that may be read by whom the file `like` may.
pub(crate) fn write_tensors(
    path: &Path,
    like: &Path,
    tensors: Vec<Shaped>,
    precision: Precision,
    tensor: &mut Fetch<'_>,
) -> Result<(), CheckpointError> {
    let (fetch, failed) = (RefCell::new(tensor), RefCell::new(None));
    let views = tensors.into_iter().map(|(name, shape)| {
        let view = Later { name: name.clone(), shape, precision, fetch: &fetch, failed: &failed };
        (name, view)
    });
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| CheckpointError::Malformed { path: path.to_path_buf(), reason: error.to_string() })?;
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    // The library writes a temporary file that only its owner may read.
    fs::metadata(like).and_then(|like| fs::set_permissions(path, like.permissions())).map_err(at(path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(at(path))
}

fn width(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// A tensor that is fetched when its turn comes. The library lets no view fail, so the first failure is put aside and zeros
/// stand in the file, which its writer then throws away.
struct Later<'a, 'f> {
    name: String,
    shape: Vec<usize>,
    precision: Precision,
    fetch: &'a RefCell<&'a mut Fetch<'f>>,
    failed: &'a RefCell<Option<CheckpointError>>,
}

impl View for Later<'_, '_> {
    fn dtype(&self) -> Dtype {
        match self.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.failed.borrow().is_none() {
            match (self.fetch.borrow_mut())(&self.name) {
                Ok(tensor) if tensor.shape == self.shape => {
                    return match self.precision {
                        Precision::F32 => tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                        Precision::Bf16 => tensor.values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
                    };
                }
                Ok(tensor) => {
                    let reason = format!("has shape {:?}, and {:?} was to be written", tensor.shape, self.shape);
                    *self.failed.borrow_mut() = Some(TensorError { name: self.name.clone(), reason }.into());
                }
                Err(error) => *self.failed.borrow_mut() = Some(error.into()),
            }
        }
        vec![0; self.data_len()].into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * width(self.precision)
    }
}
