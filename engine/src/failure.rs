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
}

impl Failure {
    /// The data or the settings are wrong.
    pub fn data(message: impl Into<String>) -> Self {
        Self { fault: Fault::Data, message: message.into(), hint: None }
    }

    /// Something outside failed.
    pub fn external(message: impl Into<String>) -> Self {
        Self { fault: Fault::External, message: message.into(), hint: None }
    }

    /// An invariant of ours doesn't hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self { fault: Fault::Bug, message: message.into(), hint: None }
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
        within(&error).unwrap_or_else(|| Failure::external(error.to_string()))
    }
}

impl From<parquet::errors::ParquetError> for Failure {
    fn from(error: parquet::errors::ParquetError) -> Self {
        within(&error).unwrap_or_else(|| Failure::external(error.to_string()))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::external(error.to_string())
    }
}
