//! OpenLineage 2-0-2, as far as runs speak it: <https://openlineage.io/spec/2-0-2/OpenLineage.json>.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

/// Who says all this.
const PRODUCER: &str = concat!("urn:ingrain:", env!("CARGO_PKG_VERSION"));

/// An event: something began or ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunEvent {
    event_type: EventType,
    event_time: String,
    producer: &'static str,
    #[serde(rename = "schemaURL")]
    schema_url: &'static str,
    run: Run,
    job: Job,
    inputs: Vec<InputDataset>,
    outputs: Vec<OutputDataset>,
}

impl RunEvent {
    pub(super) fn new(event_type: EventType, at: DateTime<Utc>, run: Run, job: Job) -> Self {
        Self {
            event_type,
            event_time: at.to_rfc3339_opts(SecondsFormat::Micros, true),
            producer: PRODUCER,
            schema_url: "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
            run,
            job,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    pub(super) fn reading(self, inputs: Vec<InputDataset>) -> Self {
        Self { inputs, ..self }
    }

    pub(super) fn giving(self, outputs: Vec<OutputDataset>) -> Self {
        Self { outputs, ..self }
    }
}

/// What a run went into.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventType {
    Start,
    Complete,
    Fail,
    Abort,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Run {
    pub(super) run_id: String,
    pub(super) facets: RunFacets,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct RunFacets {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<Facet<Parent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) processing_engine: Option<Facet<ProcessingEngine>>,
    #[serde(rename = "errorMessage", skip_serializing_if = "Option::is_none")]
    pub(super) error_message: Option<Facet<ErrorMessage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ingrain_cache: Option<Facet<Cache>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ingrain_usage: Option<Facet<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ingrain_pipeline: Option<Facet<Pipeline>>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Job {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) facets: JobFacets,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct JobFacets {
    #[serde(rename = "jobType", skip_serializing_if = "Option::is_none")]
    pub(super) job_type: Option<Facet<JobType>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sql: Option<Facet<Sql>>,
}

/// A dataset by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InputDataset {
    #[serde(flatten)]
    pub(super) name: Name,
    pub(super) facets: DatasetFacets,
    pub(super) input_facets: InputFacets,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct InputFacets {
    #[serde(rename = "inputStatistics", skip_serializing_if = "Option::is_none")]
    pub(super) statistics: Option<Facet<InputStatistics>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutputDataset {
    #[serde(flatten)]
    pub(super) name: Name,
    pub(super) facets: DatasetFacets,
    pub(super) output_facets: OutputFacets,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct OutputFacets {
    #[serde(rename = "outputStatistics", skip_serializing_if = "Option::is_none")]
    pub(super) statistics: Option<Facet<OutputStatistics>>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct DatasetFacets {
    #[serde(rename = "dataSource", skip_serializing_if = "Option::is_none")]
    pub(super) data_source: Option<Facet<DataSource>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<Facet<Version>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<Facet<Schema>>,
    #[serde(rename = "columnLineage", skip_serializing_if = "Option::is_none")]
    pub(super) column_lineage: Option<Facet<ColumnLineage>>,
}

/// What a facet says, and where its form is published.
pub(super) trait Body {
    const SCHEMA: &'static str;
}

/// A facet.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facet<B> {
    _producer: &'static str,
    #[serde(rename = "_schemaURL")]
    _schema_url: &'static str,
    #[serde(flatten)]
    body: B,
}

impl<B: Body> From<B> for Facet<B> {
    fn from(body: B) -> Self {
        Self { _producer: PRODUCER, _schema_url: B::SCHEMA, body }
    }
}

macro_rules! published {
    ($body:ty, $version:literal, $name:literal) => {
        impl Body for $body {
            const SCHEMA: &'static str =
                concat!("https://openlineage.io/spec/facets/", $version, "/", $name, ".json#/$defs/", $name);
        }
    };
}

macro_rules! ours {
    ($body:ty, $version:literal, $name:literal) => {
        impl Body for $body {
            const SCHEMA: &'static str = concat!("urn:ingrain:openlineage:", $version, ":", $name, "#/$defs/", $name);
        }
    };
}

/// Of which run this one is a part.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Parent {
    pub(super) run: RunId,
    pub(super) job: JobName,
}
published!(Parent, "1-1-0", "ParentRunFacet");

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunId {
    pub(super) run_id: String,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct JobName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What ran it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProcessingEngine {
    version: &'static str,
    name: &'static str,
    openlineage_adapter_version: &'static str,
}
published!(ProcessingEngine, "1-1-1", "ProcessingEngineRunFacet");

impl ProcessingEngine {
    pub(super) fn this() -> Facet<Self> {
        let version = env!("CARGO_PKG_VERSION");
        Self { version, name: "ingrain", openlineage_adapter_version: version }.into()
    }
}

/// Why it failed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorMessage {
    pub(super) message: String,
    pub(super) programming_language: &'static str,
}
published!(ErrorMessage, "1-0-1", "ErrorMessageRunFacet");

/// What kind of job it is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobType {
    processing_type: &'static str,
    integration: &'static str,
    job_type: &'static str,
}
published!(JobType, "2-0-3", "JobTypeJobFacet");

impl JobType {
    pub(super) fn of(job_type: &'static str) -> Facet<Self> {
        Self { processing_type: "BATCH", integration: "INGRAIN", job_type }.into()
    }
}

/// The query that it is.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sql {
    pub(super) query: String,
    pub(super) dialect: &'static str,
}
published!(Sql, "1-1-0", "SQLJobFacet");

/// Where a dataset lies.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DataSource {
    pub(super) name: String,
    pub(super) uri: String,
}
published!(DataSource, "1-0-1", "DatasourceDatasetFacet");

/// Which content a dataset has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    pub(super) dataset_version: String,
}
published!(Version, "1-0-1", "DatasetVersionDatasetFacet");

/// The columns of a dataset.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Schema {
    pub(super) fields: Vec<SchemaField>,
}
published!(Schema, "1-2-0", "SchemaDatasetFacet");

#[derive(Debug, Clone, Serialize)]
pub(super) struct SchemaField {
    pub(super) name: String,
    pub(super) r#type: String,
    pub(super) ordinal_position: usize,
}

/// Where the columns of a dataset come from, and what else of its inputs decides its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct ColumnLineage {
    pub(super) fields: BTreeMap<String, InputFields>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) dataset: Vec<InputField>,
}
published!(ColumnLineage, "1-2-0", "ColumnLineageDatasetFacet");

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InputFields {
    pub(super) input_fields: Vec<InputField>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct InputField {
    #[serde(flatten)]
    pub(super) name: Name,
    pub(super) field: String,
    pub(super) transformations: Vec<Transformation>,
}

/// How a column acts on another one, or on a whole dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Transformation {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masking: Option<bool>,
}

impl Transformation {
    const fn new(r#type: &'static str, subtype: Option<&'static str>) -> Self {
        Self { r#type, subtype, description: None, masking: None }
    }

    /// The same value.
    pub(super) const IDENTITY: Self = Self::new("DIRECT", Some("IDENTITY"));
    /// A value that is computed of it.
    pub(super) const COMPUTED: Self = Self::new("DIRECT", Some("TRANSFORMATION"));
    /// A value that is computed of it in several rows.
    pub(super) const AGGREGATION: Self = Self::new("DIRECT", Some("AGGREGATION"));
    /// An id that is a hash over it and more.
    pub(super) const HASHED: Self = Self {
        description: Some("a hash over this id, the operator and an ordinal"),
        masking: Some(true),
        ..Self::new("DIRECT", Some("TRANSFORMATION"))
    };
    /// It decides which rows stay.
    pub(super) const FILTER: Self = Self::new("INDIRECT", Some("FILTER"));
    /// It decides which rows come together.
    pub(super) const JOIN: Self = Self::new("INDIRECT", Some("JOIN"));
    /// It decides which rows are counted together.
    pub(super) const GROUP_BY: Self = Self::new("INDIRECT", Some("GROUP_BY"));
    /// It decides the order of rows.
    pub(super) const SORT: Self = Self::new("INDIRECT", Some("SORT"));
    /// It decides which rows a function looks at.
    pub(super) const WINDOW: Self = Self::new("INDIRECT", Some("WINDOW"));
    /// The operator may look at it.
    pub(super) const READ: Self = Self {
        description: Some("the operator reads this column; how its values act isn't said"),
        ..Self::new("INDIRECT", None)
    };
}

/// What was read of a dataset.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InputStatistics {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) row_count: Option<u64>,
    pub(super) size: u64,
    pub(super) file_count: usize,
}
published!(InputStatistics, "1-0-0", "InputStatisticsInputDatasetFacet");

/// What a dataset holds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutputStatistics {
    pub(super) row_count: u64,
    pub(super) size: u64,
    pub(super) file_count: usize,
}
published!(OutputStatistics, "1-0-2", "OutputStatisticsOutputDatasetFacet");

/// Whether a stage's artifact was there.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cache {
    pub(super) hit: bool,
    pub(super) stage_key: String,
    pub(super) generation: u64,
    /// The run that made the artifact: this one, where it wasn't there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) filled_by: Option<String>,
}
ours!(Cache, "1-0-0", "IngrainCacheRunFacet");

/// What a run, or a stage in it, took.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    pub(super) seconds: f64,
    pub(super) calls: u64,
    pub(super) memo_hits: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usd: Option<f64>,
}
ours!(Usage, "1-0-0", "IngrainUsageRunFacet");

/// What ran as a whole, and how it ended.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pipeline {
    pub(super) file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_digest: Option<String>,
    pub(super) datafusion_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<&'static str>,
}
ours!(Pipeline, "1-0-0", "IngrainPipelineRunFacet");
