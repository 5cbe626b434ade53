//! The row of a trained adapter.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{digest::undigested, failure::Failure, key};
use ingrain_student::Lora;

use super::{ADAPTER, number};

pub(super) fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, false),
        undigested(Field::new("uri", DataType::Utf8, false)),
        Field::new("digest", DataType::Utf8, false),
        Field::new("rank", DataType::Int64, false),
        Field::new("alpha", DataType::Float64, false),
    ]
}

pub(super) fn row(schema: SchemaRef, base: &str, digest: String, lora: Lora) -> Result<RecordBatch, Failure> {
    let text = |value: String| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        text(key::row_id("train.adapter", 0, &[base], 0, 0)),
        text(base.to_owned()),
        text(ADAPTER.to_owned()),
        text(digest),
        Arc::new(Int64Array::from(vec![number(lora.rank as u64)])),
        Arc::new(Float64Array::from(vec![lora.alpha])),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}
