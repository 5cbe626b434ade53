//! Rendered rows in a local file, so that a mixture's texts are in memory only while they are written.

use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use ingrain_engine::failure::Failure;
use serde::{Deserialize, Serialize};

/// A row of a source as it goes into the mixture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rendered {
    /// Its id in the source.
    pub(crate) row_id: String,
    /// The document that it is about, if known.
    pub(crate) doc_id: Option<String>,
    /// The bytes of `text` that are the prompt, for a question with its answer.
    pub(crate) prompt: Option<usize>,
    /// The turns of a conversation, as JSON.
    pub(crate) messages: Option<String>,
    /// The whole text.
    pub(crate) text: String,
}

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    start: u64,
    bytes: u32,
}

/// The file while it is written.
#[derive(Debug)]
pub(crate) struct Spool {
    file: BufWriter<File>,
    end: u64,
}

/// The file while it is read.
#[derive(Debug)]
pub(crate) struct Spooled {
    file: File,
    buffer: Vec<u8>,
}

impl Spool {
    /// A new file at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), end: 0 })
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: &Rendered) -> Result<Slot, Failure> {
        let record = serde_json::to_vec(row).map_err(|error| Failure::bug(error.to_string()))?;
        let bytes = u32::try_from(record.len())
            .map_err(|_| Failure::data(format!("row `{}` is longer than 4 GiB", row.row_id)).hint("chunk the documents first"))?;
        self.file.write_all(&record)?;
        let slot = Slot { start: self.end, bytes };
        self.end += u64::from(bytes);
        Ok(slot)
    }

    /// Ends writing.
    pub(crate) fn finish(self) -> Result<Spooled, Failure> {
        let file = self.file.into_inner().map_err(|error| Failure::external(error.to_string()))?;
        Ok(Spooled { file, buffer: Vec::new() })
    }
}

impl Spooled {
    /// The row at `slot`.
    pub(crate) fn read(&mut self, slot: Slot) -> Result<Rendered, Failure> {
        self.buffer.resize(slot.bytes as usize, 0);
        self.file.seek(SeekFrom::Start(slot.start))?;
        self.file.read_exact(&mut self.buffer)?;
        serde_json::from_slice(&self.buffer).map_err(|error| Failure::bug(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&folder.path().join("rows")).unwrap();
        let rows: Vec<Rendered> = (0..100)
            .map(|n| Rendered {
                row_id: format!("{n:032x}"),
                doc_id: (n % 2 == 0).then(|| "a \"b\"\n".to_owned()),
                prompt: (n % 3 == 0).then_some(4),
                messages: (n % 5 == 0).then(|| "[]".to_owned()),
                text: "Größe ".repeat(n),
            })
            .collect();
        let slots: Vec<Slot> = rows.iter().map(|row| spool.push(row).unwrap()).collect();
        let mut spooled = spool.finish().unwrap();
        for n in (0..100).rev().step_by(7) {
            assert_eq!(spooled.read(slots[n]).unwrap(), rows[n]);
        }
    }
}
