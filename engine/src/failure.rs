//! What goes wrong while a pipeline runs.

use datafusion::error::DataFusionError;

/// Whose fault a failure is; decides what the user is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The data or the settings: running again gives the same.
    Data,
    /// Something outside (a server, a disk, a device): running again may help.
    External,
    /// The budget is spent: a larger one lets the run go on.
    Budget,
    /// A mistake of ours.
    Bug,
}

/// A stage's failure: a lower-case fragment that fits after the stage's name, and what would be right.
#[derive(Debug, Clone, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Whose fault it is.
    pub fault: Fault,
    /// What is wrong, and where.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// The object on the store that doesn't hold what was written there, if that is what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

impl Failure {
    fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), hint: None, damaged: None }
    }

    /// The data or the settings are wrong.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Fault::Data, message)
    }

    /// Something outside failed.
    pub fn external(message: impl Into<String>) -> Self {
        Self::new(Fault::External, message)
    }

    /// An invariant of ours doesn't hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Fault::Bug, message)
    }

    /// An object of the store doesn't hold what was written there. A run makes the artifact anew that it belongs to.
    pub fn damaged(object: &str) -> Self {
        let failure = Self::external(format!("`{object}` doesn't hold what was written there"));
        Self { damaged: Some(object.to_owned()), ..failure }.hint("a run that reads it, or `run --verify`, makes it anew")
    }

    /// Says what would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Failure> for DataFusionError {
    fn from(failure: Failure) -> Self {
        DataFusionError::External(Box::new(failure))
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(inner) => within(&*inner).unwrap_or_else(|| Failure::external(inner.to_string())),
            },
            DataFusionError::Context(_, inner) => (*inner).into(),
            DataFusionError::Shared(inner) => shared(&inner),
            DataFusionError::ArrowError(error, _) => (*error).into(),
            DataFusionError::ObjectStore(error) => (*error).into(),
            DataFusionError::ResourcesExhausted(message) => Failure::external(format!("out of memory: {message}"))
                .hint("raise `--memory`, or lower `--threads` so that fewer partitions run at once"),
            error @ (DataFusionError::Internal(_) | DataFusionError::Substrait(_)) => Failure::bug(error.to_string()),
            error @ DataFusionError::IoError(_) => Failure::external(error.to_string()),
            error => shared(&error),
        }
    }
}

fn shared(error: &DataFusionError) -> Failure {
    within(error).unwrap_or_else(|| Failure::data(error.strip_backtrace()))
}

/// What the innermost reason of an error says.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

/// The failure that an error carries.
fn within(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return Some(failure.clone());
        }
        source = error.source();
    }
    None
}

impl From<arrow::error::ArrowError> for Failure {
    fn from(error: arrow::error::ArrowError) -> Self {
        match error {
            arrow::error::ArrowError::ExternalError(inner) => match inner.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(inner) => match inner.downcast::<DataFusionError>() {
                    Ok(error) => (*error).into(),
                    Err(inner) => Failure::external(inner.to_string()),
                },
            },
            error => Failure::data(error.to_string()),
        }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        within(&error).or_else(|| no_room(&error)).unwrap_or_else(|| Failure::external(error.to_string()))
    }
}

/// What is said where an error is that a disk is full.
fn no_room(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let errors = std::iter::successors(Some(error), |error| error.source());
    let mut causes = errors.filter_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    let is_full = causes.any(|kind| matches!(kind, std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded));
    is_full.then(|| {
        Failure::external(format!("the disk is full: {error}"))
            .hint("make room (`ingrain gc` removes from a store what no recent run needs) and run again: what is committed stays")
    })
}

impl From<parquet::errors::ParquetError> for Failure {
    fn from(error: parquet::errors::ParquetError) -> Self {
        within(&error).unwrap_or_else(|| Failure::external(error.to_string()))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        no_room(&error).unwrap_or_else(|| Failure::external(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_called_so_however_deep_it_lies() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(full) };
        let failure = Failure::from(error);
        assert!(failure.message.starts_with("the disk is full: ") && failure.hint.is_some(), "{failure:?}");
        assert_eq!(Failure::from(std::io::Error::other("else")).message, "else");
    }
}
