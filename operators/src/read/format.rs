//! What files hold: as the stage says, or told by their names.

use std::collections::BTreeMap;

use ingrain_engine::failure::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What files hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Documents, by file name.
    #[default]
    Auto,
    /// Plain text, a document a file.
    Text,
    /// Markdown, a document a file.
    Markdown,
    /// HTML, a document a file.
    Html,
    /// PDF, a document a file.
    Pdf,
    /// JSON objects, a document a line.
    Jsonl,
    /// Comma-separated values with a header, a document a row.
    Csv,
    /// Parquet, a document a row.
    Parquet,
    /// Parquet, any rows with their columns as they are.
    Table,
    /// Questions with options, one a line.
    MultipleChoice,
    /// Questions with a free answer, one a line.
    OpenEnded,
    /// The QuALITY benchmark.
    Quality,
    /// The LongHealth benchmark.
    Longhealth,
    /// The FinanceBench benchmark.
    Financebench,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Format {
    /// Whether a file is one document, whose `doc_id` is its path.
    pub(super) fn is_one_document(self) -> bool {
        matches!(self, Self::Text | Self::Markdown | Self::Html | Self::Pdf)
    }

    /// Whether its files hold questions of our own forms.
    pub(super) fn exam(self) -> bool {
        matches!(self, Self::MultipleChoice | Self::OpenEnded)
    }

    /// Whether its files hold documents with questions about them.
    pub(super) fn benchmark(self) -> bool {
        matches!(self, Self::Quality | Self::Longhealth | Self::Financebench)
    }

    /// Whether `columns` says something of its files.
    pub(super) fn has_columns(self) -> bool {
        matches!(self, Self::Auto | Self::Jsonl | Self::Csv | Self::Parquet | Self::Table)
    }

    /// The format and the compression of the file at `path`, in a stage of this format. The compression is always told by the
    /// last extension, the format only where this is `auto`.
    ///
    /// # Errors
    /// When the name doesn't tell the format.
    pub(super) fn of_file(self, path: &str) -> Result<(Self, Compression), Failure> {
        let (name, compression) = plain_name(path);
        if self != Self::Auto {
            return Ok((self, compression));
        }
        let format = match extension(name).as_str() {
            "txt" => Self::Text,
            "md" | "markdown" => Self::Markdown,
            "html" | "htm" => Self::Html,
            "pdf" => Self::Pdf,
            "jsonl" => Self::Jsonl,
            "csv" | "tsv" => Self::Csv,
            "parquet" => Self::Parquet,
            _ => {
                return Err(Failure::data(format!("the format of `{path}` can't be told from its name")).hint(
                    "known names end in `.txt`, `.md`, `.markdown`, `.html`, `.htm`, `.pdf`, `.jsonl`, `.csv`, `.tsv`, \
                     `.parquet`, and `.gz` or `.zst` behind any of them; set `format`, narrow `path`, or `exclude` the file",
                ));
            }
        };
        Ok((format, compression))
    }
}

/// What stands between two fields of the table of text at `path`.
pub(super) fn delimiter(path: &str) -> u8 {
    if extension(plain_name(path).0) == "tsv" { b'\t' } else { b',' }
}

/// The file's name without the extension of its compression.
fn plain_name(path: &str) -> (&str, Compression) {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = || name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    match extension(name).as_str() {
        "gz" | "gzip" => (stem(), Compression::Gzip),
        "zst" | "zstd" => (stem(), Compression::Zstd),
        _ => (name, Compression::None),
    }
}

fn extension(name: &str) -> String {
    name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default()
}

/// Our column to the field that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Columns(pub(super) BTreeMap<String, String>);

impl<const N: usize> From<[(String, String); N]> for Columns {
    fn from(columns: [(String, String); N]) -> Self {
        Self(columns.into())
    }
}

impl Columns {
    /// The field that our column `ours` comes from.
    pub(super) fn theirs<'a>(&'a self, ours: &'a str) -> &'a str {
        self.0.get(ours).map_or(ours, String::as_str)
    }

    /// Where our `text`, `title` and `doc_id` stand among the columns `names` of the table at `source`. A column that
    /// `columns` names must be there, and `text` always.
    ///
    /// # Errors
    /// When one isn't there, with the names that are, or stands there twice.
    pub(super) fn places(&self, source: &str, names: &[String]) -> Result<Places, Failure> {
        let place = |ours: &str, needed: bool| {
            let theirs = self.theirs(ours);
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == theirs).map(|(place, _)| place);
            let first = found.next();
            if found.next().is_some() {
                return Err(Failure::data(format!("`{source}` has two columns `{theirs}`")).hint("rename one of them"));
            }
            if first.is_none() && needed {
                let there: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                return Err(Failure::data(format!("`{source}` has no column `{theirs}`")).hint(format!(
                    "it has {}; `columns: {{ {ours}: ... }}` says which of them is our `{ours}`",
                    there.join(", ")
                )));
            }
            Ok(first)
        };
        let text = place("text", true)?.ok_or_else(|| Failure::bug("a column that is there has no place"))?;
        let optional = |ours: &str| place(ours, self.0.contains_key(ours));
        Ok(Places { text, title: optional("title")?, doc_id: optional("doc_id")? })
    }
}

/// Where our columns stand in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) text: usize,
    pub(super) title: Option<usize>,
    pub(super) doc_id: Option<usize>,
}

impl Places {
    /// Whether the column at `place` is one of ours, and so no metadata.
    pub(super) fn ours(&self, place: usize) -> bool {
        self.text == place || self.title == Some(place) || self.doc_id == Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_and_compression() {
        let of = |path: &str| Format::Auto.of_file(path).unwrap();
        assert_eq!(of("a/B.TXT"), (Format::Text, Compression::None));
        assert_eq!(of("a.jsonl.gz"), (Format::Jsonl, Compression::Gzip));
        assert_eq!(of("a.md.ZST"), (Format::Markdown, Compression::Zstd));
        assert_eq!(of("x.y.parquet"), (Format::Parquet, Compression::None));
        assert_eq!(of("x.pdf"), (Format::Pdf, Compression::None));
        assert_eq!(Format::Csv.of_file("table.dat.gz").unwrap(), (Format::Csv, Compression::Gzip));
        assert_eq!((delimiter("a.tsv"), delimiter("a.tsv.gz"), delimiter("tsv.csv")), (b'\t', b'\t', b','));
        for unknown in ["x.zip", "x.gz", "README", ".txt/README", "x.rtf.zst"] {
            let failure = Format::Auto.of_file(unknown).unwrap_err();
            assert!(failure.message.contains(unknown) && failure.hint.unwrap().contains("`.parquet`"));
        }
    }

    #[test]
    fn columns_are_found_or_named() {
        let names: Vec<String> = ["id", "body", "title", "body2", "x", "x"].map(str::to_owned).into();
        let columns = |pairs: &[(&str, &str)]| {
            Columns(pairs.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect())
        };
        let places = columns(&[("text", "body"), ("doc_id", "id")]).places("a.csv", &names).unwrap();
        assert_eq!(places, Places { text: 1, title: Some(2), doc_id: Some(0) });
        assert!(places.ours(2) && !places.ours(3));
        let failure = columns(&[]).places("a.csv", &names).unwrap_err();
        assert_eq!(failure.message, "`a.csv` has no column `text`");
        assert!(failure.hint.unwrap().contains("`id`, `body`, `title`"));
        let failure = columns(&[("text", "body"), ("title", "heading")]).places("a.csv", &names).unwrap_err();
        assert_eq!(failure.message, "`a.csv` has no column `heading`");
        let failure = columns(&[("text", "x")]).places("a.csv", &names).unwrap_err();
        assert_eq!(failure.message, "`a.csv` has two columns `x`");
    }
}
