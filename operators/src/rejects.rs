//! Rows for the `rejects` output.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, RecordBatch, StringBuilder};
use ingrain_engine::{failure::Failure, operator::rejects_schema};

/// How many bytes of a refused row's raw text are kept.
const RAW_LIMIT: usize = 16 << 10;

/// A row that a stage refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reject {
    /// A word to group by: `empty`, `bad_json`, ...
    pub(crate) reason: &'static str,
    /// Where, and what is wrong.
    pub(crate) detail: String,
    /// What was refused; cut at 16 KiB.
    pub(crate) raw: Option<String>,
}

impl Reject {
    /// A reject that keeps no raw text.
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), raw: None }
    }

    /// Keeps `raw`, cut at 16 KiB.
    pub(crate) fn raw(mut self, raw: &str) -> Self {
        self.raw = Some(raw[..raw.floor_char_boundary(RAW_LIMIT)].to_owned());
        self
    }
}

/// Collects rejects into batches of [`rejects_schema`].
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    row_id: StringBuilder,
    parent_id: StringBuilder,
    reason: StringBuilder,
    detail: StringBuilder,
    raw: StringBuilder,
    attempts: Int32Builder,
    bytes: usize,
}

impl Rejects {
    /// Adds a row; `parent` is `None` in sources.
    pub(crate) fn push(&mut self, row_id: &str, parent: Option<&str>, reject: &Reject, attempts: i32) {
        self.row_id.append_value(row_id);
        self.parent_id.append_option(parent);
        self.reason.append_value(reject.reason);
        self.detail.append_value(&reject.detail);
        self.raw.append_option(reject.raw.as_deref());
        self.attempts.append_value(attempts);
        self.bytes += reject.detail.len() + reject.raw.as_ref().map_or(0, String::len);
    }

    /// How many rows are waiting.
    pub(crate) fn len(&self) -> usize {
        self.attempts.values_slice().len()
    }

    /// How many bytes of text are waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The waiting rows.
    pub(crate) fn take(&mut self) -> Result<RecordBatch, Failure> {
        self.bytes = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.detail.finish()),
            Arc::new(self.raw.finish()),
            Arc::new(self.attempts.finish()),
        ];
        Ok(RecordBatch::try_new(rejects_schema(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_text_is_cut_at_a_character() {
        let long = "é".repeat(RAW_LIMIT);
        let reject = Reject::new("empty", "nothing").raw(&format!("x{long}"));
        let raw = reject.raw.clone().unwrap();
        assert!(raw.len() <= RAW_LIMIT && raw.len() >= RAW_LIMIT - 1);
        let mut rejects = Rejects::default();
        rejects.push("a", None, &reject, 1);
        assert_eq!(rejects.len(), 1);
        let batch = rejects.take().unwrap();
        assert_eq!(batch.num_rows(), 1);
        assert_eq!(rejects.len(), 0);
    }
}
