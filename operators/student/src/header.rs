//! Headers of weight files, apart from the weights: what tensors there are can be checked long before they are read.

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::architecture::Architecture;
use crate::checkpoint::CheckpointError;
use crate::weights::mismatch;

/// The limit of the format's own reader.
const LARGEST: u64 = 100_000_000;

/// Types of numbers that become 32-bit floats without loss.
const READABLE: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

/// What a `.safetensors` file says of its tensors.
#[derive(Debug, Clone)]
pub struct Header {
    /// The file's name.
    file: String,
    metadata: Metadata,
}

impl Header {
    /// Bytes at the front of a file of `length` bytes that hold the header, the 8 with its size included; `start` is the file's
    /// first 8 bytes.
    ///
    /// # Errors
    /// When no such file has this length.
    pub fn length(file: &str, start: &[u8], length: u64) -> Result<u64, CheckpointError> {
        let size = start.first_chunk().map(|size| u64::from_le_bytes(*size));
        match size {
            Some(size) if size <= LARGEST && size + 8 <= length => Ok(size + 8),
            Some(size) => Err(malformed(file, format!("the header claims {size} bytes, and the file has {length}"))),
            None => Err(malformed(file, format!("{length} bytes are no weights"))),
        }
    }

    /// Reads a header: as many bytes as [`Self::length`] says, of a file of `length` bytes.
    ///
    /// # Errors
    /// When it can't be read, or describes another number of bytes than the file has.
    pub fn parse(file: &str, header: &[u8], length: u64) -> Result<Self, CheckpointError> {
        let json = header.get(8..).unwrap_or_default();
        let metadata: Metadata = serde_json::from_slice(json).map_err(|error| malformed(file, error.to_string()))?;
        let described = (header.len() as u64).checked_add(metadata.data_len() as u64);
        if described != Some(length) {
            let cut = if described.is_some_and(|bytes| bytes > length) { ": it is cut off, or still being written" } else { "" };
            let described = described.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
            return Err(malformed(file, format!("the header describes {described} bytes, and the file has {length}{cut}")));
        }
        let other = metadata.tensors().into_iter().find(|(_, tensor)| !READABLE.contains(&tensor.dtype));
        if let Some((name, tensor)) = other {
            return Err(malformed(file, format!("`{name}` is of type {}: F32, F16 and BF16 can be read", tensor.dtype)));
        }
        Ok(Self { file: file.to_owned(), metadata })
    }

    /// The tensors, by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, TensorInfo)> {
        self.metadata.tensors().into_iter().map(|(name, TensorInfo { dtype, shape, data_offsets })| {
            (name, TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: *data_offsets })
        })
    }
}

/// Checks that the tensors of a checkpoint's weight files are those of an architecture.
///
/// # Errors
/// Names those that are missing, that don't belong, that have another shape or stand in two files.
pub fn check(architecture: &Architecture, headers: &[Header]) -> Result<(), CheckpointError> {
    let mut found: std::collections::BTreeMap<String, (&str, &[usize])> = std::collections::BTreeMap::new();
    for header in headers {
        for (name, tensor) in header.metadata.tensors() {
            if let Some((other, _)) = found.insert(name.clone(), (&header.file, &tensor.shape)) {
                return Err(malformed(&header.file, format!("`{name}` is in `{other}`, too")));
            }
        }
    }
    found.retain(|name, _| !is_ignored(architecture, name));
    match mismatch(architecture, found.iter().map(|(name, (_, shape))| (name.as_str(), *shape))) {
        Some(reason) => {
            let files = headers.first().map_or_else(String::new, |header| header.file.clone());
            Err(CheckpointError::Mismatch { path: files.into(), reason })
        }
        None => Ok(()),
    }
}

/// A tied head is written by some exporters and ignored by all readers; rotary tables are computed.
pub(crate) fn is_ignored(architecture: &Architecture, name: &str) -> bool {
    (architecture.tie_word_embeddings && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq")
}

fn malformed(file: &str, reason: String) -> CheckpointError {
    CheckpointError::Malformed { path: file.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Preset;
    use crate::weights::{Weights, initialise};

    fn parsed(file: &str, content: &[u8]) -> Result<Header, CheckpointError> {
        let length = content.len() as u64;
        let header = Header::length(file, &content[..content.len().min(8)], length)?;
        Header::parse(file, &content[..header as usize], length)
    }

    fn file(weights: &Weights) -> Vec<u8> {
        safetensors::serialize(weights.tensors.iter(), None).unwrap()
    }

    #[test]
    fn the_tensors_of_all_files_are_those_of_the_architecture() {
        let architecture = Preset::Tiny.architecture(300);
        let mut first = initialise(&architecture, 7);
        let norm = first.tensors.remove("model.norm.weight").unwrap();
        let second = Weights { tensors: [("model.norm.weight".to_owned(), norm)].into() };
        let (first, second) = (parsed("a", &file(&first)).unwrap(), parsed("b", &file(&second)).unwrap());
        check(&architecture, &[first.clone(), second.clone()]).unwrap();
        let said = |headers: &[Header]| check(&architecture, headers).unwrap_err().to_string();
        assert!(said(std::slice::from_ref(&first)).contains("missing: `model.norm.weight`"));
        assert!(said(&[first, second.clone(), second]).contains("`model.norm.weight` is in `b`, too"));
    }

    #[test]
    fn a_file_that_was_cut_or_is_none_is_refused() {
        let whole = file(&initialise(&Preset::Tiny.architecture(300), 7));
        let said = |content: &[u8]| parsed("model.safetensors", content).unwrap_err().to_string();
        assert!(said(&whole[..whole.len() - 4]).contains("the header describes"));
        assert!(said(&whole[..100]).contains("the header claims"));
        assert!(said(&whole[..5]).contains("5 bytes are no weights"));
        assert!(said(&[255; 64]).contains("the header claims"));
        let mut broken = whole;
        broken[9] = b'!';
        assert!(said(&broken).starts_with("`model.safetensors`: "));
    }
}
