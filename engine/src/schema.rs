//! Arrow schemas as text, for records and plan nodes.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    datatypes::{Schema, SchemaRef},
    ipc::{
        convert::try_schema_from_flatbuffer_bytes,
        writer::{IpcDataGenerator, IpcWriteOptions},
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    operator::{Cell, Input, Inputs},
};

/// A schema as hex digits of an Arrow IPC schema message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SchemaBytes(String);

impl SchemaBytes {
    pub(crate) fn new(schema: &Schema) -> Self {
        let mut tracker = arrow::ipc::writer::DictionaryTracker::new(false);
        let options = IpcWriteOptions::default();
        let data = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
        Self(crate::key::hex(&data.ipc_message))
    }

    pub(crate) fn schema(&self) -> Result<SchemaRef, Failure> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let bytes: Option<Vec<u8>> = self
            .0
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
                _ => None,
            })
            .collect();
        let bytes = bytes.ok_or_else(|| Failure::bug("a schema isn't written in hex digits"))?;
        Ok(Arc::new(try_schema_from_flatbuffer_bytes(&bytes)?))
    }
}

/// The schemas that an operator was bound with, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InputSchemas {
    ports: BTreeMap<String, Vec<(String, Cell, SchemaBytes)>>,
    source: Option<SchemaBytes>,
}

impl InputSchemas {
    pub(crate) fn new(inputs: &Inputs) -> Self {
        let text = |input: &Input| (input.name.clone(), input.cell.clone(), SchemaBytes::new(&input.schema));
        let ports = inputs.ports.iter().map(|(port, inputs)| (port.clone(), inputs.iter().map(text).collect())).collect();
        Self { ports, source: inputs.source.as_deref().map(SchemaBytes::new) }
    }

    pub(crate) fn inputs(&self) -> Result<Inputs, Failure> {
        let mut ports = BTreeMap::new();
        for (port, inputs) in &self.ports {
            let mut opened = Vec::new();
            for (name, cell, schema) in inputs {
                opened.push(Input { name: name.clone(), cell: cell.clone(), schema: schema.schema()? });
            }
            ports.insert(port.clone(), opened);
        }
        let source = self.source.as_ref().map(SchemaBytes::schema).transpose()?;
        Ok(Inputs { ports, source })
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn schemas_come_back_with_nullability_and_metadata() {
        let schema = Schema::new(vec![
            crate::digest::undigested(Field::new("uri", DataType::Utf8, false)),
            Field::new_list("options", Field::new_list_field(DataType::Utf8, true), true),
        ]);
        assert_eq!(*SchemaBytes::new(&schema).schema().expect("own text"), schema);
    }
}
