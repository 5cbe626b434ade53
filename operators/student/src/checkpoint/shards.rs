//! Reading tensors from safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::Value;

use super::{CheckpointError, INDEX, WEIGHTS, at, text_file};
use crate::architecture::Architecture;
use crate::header::{Header, is_ignored};
use crate::weights::{HostTensor, TensorError, Tensors, mismatch, missing};

/// Where a tensor lies: the file, the first byte of the file's data, the header's entry.
#[derive(Debug)]
struct Place {
    file: PathBuf,
    data: u64,
    info: TensorInfo,
}

/// The tensors in some safetensors files: their headers are in memory, each tensor is read when it is asked for.
#[derive(Debug)]
pub struct Shards {
    places: BTreeMap<String, Place>,
}

impl Shards {
    /// The weights in a checkpoint folder: `model.safetensors`, or the files that its index names.
    ///
    /// # Errors
    /// When a file is missing, cut off or malformed, a number's type can't be read, or the tensors aren't the architecture's.
    pub fn open(folder: &Path, architecture: &Architecture) -> Result<Self, CheckpointError> {
        let mut shards = Self::of(&weight_files(folder)?)?;
        shards.places.retain(|name, _| !is_ignored(architecture, name));
        match shards.mismatch(architecture) {
            Some(reason) => Err(CheckpointError::Mismatch { path: folder.to_path_buf(), reason }),
            None => Ok(shards),
        }
    }

    /// The tensors in all of these files.
    pub(crate) fn of(files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for file in files {
            for (name, place) in read_header(file)? {
                if let Some(other) = places.insert(name.clone(), place) {
                    let reason = format!("`{name}` is in `{}`, too", other.file.display());
                    return Err(CheckpointError::Malformed { path: file.clone(), reason });
                }
            }
        }
        Ok(Self { places })
    }

    /// Every tensor's name and shape.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.places.iter().map(|(name, place)| (name.as_str(), place.info.shape.as_slice()))
    }
}

impl Tensors for Shards {
    fn mismatch(&self, architecture: &Architecture) -> Option<String> {
        mismatch(architecture, self.shapes())
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        let place = self.places.get(name).ok_or_else(|| missing(name))?;
        let values = read_values(place).map_err(|error| TensorError {
            name: name.to_owned(),
            reason: format!("`{}` can't be read any more: {error}", place.file.display()),
        })?;
        Ok(HostTensor { shape: place.info.shape.clone(), values })
    }
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let index = folder.join(INDEX);
    if !index.is_file() {
        let whole = folder.join(WEIGHTS);
        if folder.is_dir() && !whole.exists() {
            let reason = format!("neither `{WEIGHTS}` nor `{INDEX}` is there: weights are read from safetensors files only");
            return Err(CheckpointError::Malformed { path: folder.to_path_buf(), reason });
        }
        return Ok(vec![whole]);
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
    let (there, absent): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| folder.join(name).is_file());
    if !absent.is_empty() {
        let names = absent.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(malformed(format!("names {names}, which the folder lacks: it is incomplete, or still being written")));
    }
    Ok(there.into_iter().map(|name| folder.join(name)).collect())
}

fn read_header(path: &Path) -> Result<Vec<(String, Place)>, CheckpointError> {
    let mut file = File::open(path).map_err(at(path))?;
    let length = file.metadata().map_err(at(path))?.len();
    let mut header = vec![0; 8];
    file.read_exact(&mut header).map_err(at(path))?;
    let name = path.display().to_string();
    let data = Header::length(&name, &header, length)?;
    header.resize(data as usize, 0);
    file.read_exact(&mut header[8..]).map_err(at(path))?;
    let header = Header::parse(&name, &header, length)?;
    Ok(header.tensors().map(|(name, info)| (name, Place { file: path.to_path_buf(), data, info })).collect())
}

/// How bytes of that type become 32-bit floats.
fn widening(dtype: Dtype) -> Option<fn(&[u8]) -> f32> {
    match dtype {
        Dtype::F32 => Some(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        Dtype::BF16 => Some(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        Dtype::F16 => Some(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        _ => None,
    }
}

fn read_values(place: &Place) -> std::io::Result<Vec<f32>> {
    let widen = widening(place.info.dtype).ok_or(ErrorKind::Unsupported)?;
    let width = place.info.dtype.bitsize() / 8;
    let (start, end) = place.info.data_offsets;
    let mut file = File::open(&place.file)?;
    file.seek(SeekFrom::Start(place.data + start as u64))?;
    let mut values = Vec::with_capacity((end - start) / width);
    let mut buffer = vec![0; (end - start).min(1 << 20)];
    let mut left = end - start;
    while left > 0 {
        let chunk = left.min(buffer.len());
        file.read_exact(&mut buffer[..chunk])?;
        values.extend(buffer[..chunk].chunks_exact(width).map(widen));
        left -= chunk;
    }
    Ok(values)
}
