//! Why a stage has to run.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;
use serde_json::Value;

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// No run of this pipeline has had a stage of this name.
    FirstRun,
    /// Something that decides what the stage gives has changed.
    Changed(Difference),
    /// Nothing has changed, but the artifact isn't whole any more.
    Missing {
        /// What is wrong with it.
        what: String,
    },
    /// Nothing has changed, but what an earlier run made of it isn't on this store.
    NotOnStore,
    /// `--force`.
    Forced,
    /// `--retry-rejects`, and the stage has rejected rows.
    RetryRejects {
        /// How many.
        rows: u64,
    },
}

/// A difference between what decided the stage's output last time and what does now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What changed.
    #[serde(flatten)]
    pub subject: Subject,
    /// The value of last time, where it says something.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub old: Value,
    /// The value now.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub new: Value,
}

/// What can change about a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "subject", rename_all = "snake_case")]
pub enum Subject {
    /// Its operator.
    Operator {
        /// Whether this program has the one that it was.
        is_known: bool,
    },
    /// What the operator of that name gives.
    Version,
    /// A field of its config.
    Field {
        /// `name`, `name.part`.
        field: String,
    },
    /// The content of a file that a field names.
    File {
        /// The field.
        field: String,
    },
    /// A model that a field names.
    Model {
        /// The field.
        field: String,
        /// What of the model's entry.
        part: String,
    },
    /// The columns of a source that is a table.
    Columns,
    /// The names of the stages that it gathers.
    Names,
    /// Fewer outputs arrive at a port.
    Inputs {
        /// The port.
        port: String,
    },
    /// The seed.
    Seed,
    /// Its `refresh`.
    Refresh,
    /// The version of the query engine.
    Engine,
    /// The format of the store.
    Format,
    /// Files of a source.
    Files {
        /// What became of them.
        change: FileChange,
        /// How many.
        count: usize,
        /// The first one's path.
        first: String,
    },
    /// Documents of a source that are forgotten.
    Forgotten {
        /// Whether tombstones came or went.
        change: FileChange,
        /// How many documents.
        count: usize,
        /// The first one's `doc_id`.
        first: String,
    },
    /// What came out of a stage above: the change is further up.
    Input {
        /// The port at which it arrives.
        port: String,
        /// The stage above.
        stage: String,
        /// Which of its outputs.
        output: String,
    },
}

/// What became of files of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// They weren't there.
    Added,
    /// They aren't there any more.
    Removed,
    /// They have another size, time or content.
    Changed,
}

impl Difference {
    /// A difference that is said without values.
    pub(super) fn of(subject: Subject) -> Self {
        Self { subject, old: Value::Null, new: Value::Null }
    }
}

/// The differences between two values of a member of a preimage. Objects are compared member by member; `subject` is given the
/// names of the members that lead to the difference.
pub(super) fn differ(old: &Value, new: &Value, subject: &impl Fn(&[&str]) -> Subject, differences: &mut Vec<Difference>) {
    fn walk<'a>(
        old: &'a Value,
        new: &'a Value,
        path: &mut Vec<&'a str>,
        subject: &impl Fn(&[&str]) -> Subject,
        differences: &mut Vec<Difference>,
    ) {
        match (old, new) {
            (Value::Object(before), Value::Object(after)) => {
                let members: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
                for member in members {
                    path.push(member);
                    let of = |object: &'a serde_json::Map<String, Value>| object.get(member).unwrap_or(&Value::Null);
                    walk(of(before), of(after), path, subject, differences);
                    path.pop();
                }
            }
            (old, new) if old != new => {
                differences.push(Difference { subject: subject(path), old: old.clone(), new: new.clone() });
            }
            _ => {}
        }
    }
    walk(old, new, &mut Vec::new(), subject, differences);
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstRun => f.write_str("first run"),
            Self::Changed(difference) => difference.fmt(f),
            Self::Missing { what } => f.write_str(what),
            Self::NotOnStore => f.write_str("an earlier run's artifact isn't on this store"),
            Self::Forced => f.write_str("`--force`"),
            Self::RetryRejects { rows } => write!(f, "`--retry-rejects`, and {rows} rows are rejected"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Operator { is_known } => {
                write!(f, "operator: {} -> {}", short(&self.old), short(&self.new))?;
                f.write_str(if *is_known { "" } else { " (this program has no operator of the old name)" })
            }
            Subject::File { field } => write!(f, "the file that `{field}` names has changed"),
            Subject::Files { change, count, first } => {
                let change = match change {
                    FileChange::Added => "added",
                    FileChange::Removed => "removed",
                    FileChange::Changed => "changed",
                };
                write!(f, "files {change}: `{first}`")?;
                if *count > 1 { write!(f, " and {} more", count - 1) } else { Ok(()) }
            }
            Subject::Forgotten { change, count, first } => {
                f.write_str(if *change == FileChange::Removed {
                    "documents forgotten no more: "
                } else {
                    "documents forgotten: "
                })?;
                write!(f, "`{first}`")?;
                if *count > 1 { write!(f, " and {} more", count - 1) } else { Ok(()) }
            }
            Subject::Input { port, stage, output } => {
                let output = if output == "default" { String::new() } else { format!(".{output}") };
                write!(f, "input `{port}` changed (`{stage}{output}`)")
            }
            subject => write!(f, "{subject}: {} -> {}", short(&self.old), short(&self.new)),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { .. } => f.write_str("operator"),
            Self::Version => f.write_str("what the operator gives (its version)"),
            Self::Field { field } | Self::File { field } => write!(f, "`{field}`"),
            Self::Model { field, part } if part.is_empty() => write!(f, "the model that `{field}` names"),
            Self::Model { field, part } => write!(f, "`{part}` of the model that `{field}` names"),
            Self::Columns => f.write_str("columns"),
            Self::Names => f.write_str("names of inputs"),
            Self::Inputs { port } => write!(f, "number of inputs at `{port}`"),
            Self::Seed => f.write_str("`seed`"),
            Self::Refresh => f.write_str("`refresh`"),
            Self::Engine => f.write_str("version of the query engine"),
            Self::Format => f.write_str("format of the store"),
            Self::Files { first, .. } | Self::Forgotten { first, .. } => write!(f, "`{first}`"),
            Self::Input { stage, .. } => write!(f, "`{stage}`"),
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found_member_by_member_and_said_shortly() {
        let old = json!({ "a": 1, "b": { "c": [1], "d": "same" }, "gone": "x".repeat(100) });
        let new = json!({ "a": 2, "b": { "c": [2], "d": "same" }, "new": true });
        let mut found = Vec::new();
        differ(&old, &new, &|path| Subject::Field { field: path.join(".") }, &mut found);
        let said: Vec<String> = found.iter().map(Difference::to_string).collect();
        let long = format!("`gone`: \"{}… -> null", "x".repeat(59));
        assert_eq!(said, ["`a`: 1 -> 2", "`b.c`: [1] -> [2]", long.as_str(), "`new`: null -> true"]);
    }

    #[test]
    fn a_reason_is_typed_for_programs() {
        let input = Subject::Input { port: "default".into(), stage: "qa".into(), output: "rejects".into() };
        let reason = Reason::Changed(Difference::of(input));
        let told = json!(reason);
        assert_eq!(
            told,
            json!({ "reason": "changed", "subject": "input", "port": "default", "stage": "qa", "output": "rejects" })
        );
        assert_eq!(reason.to_string(), "input `default` changed (`qa.rejects`)");
        let files = Subject::Files { change: FileChange::Added, count: 3, first: "a.md".into() };
        assert_eq!(Difference::of(files).to_string(), "files added: `a.md` and 2 more");
        let forgotten = Subject::Forgotten { change: FileChange::Added, count: 1, first: "a.md".into() };
        assert_eq!(Difference::of(forgotten).to_string(), "documents forgotten: `a.md`");
    }
}
