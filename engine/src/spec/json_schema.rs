//! One JSON Schema of the whole pipeline file, for editors.

use serde_json::{Map, Value, json};

use super::schema;
use crate::operator::Registry;

/// A text that holds a `${...}`, which may stand wherever another type is expected.
const REFERENCE: &str = r"\$\{(vars\.|env:|matrix\.)[^}]*\}";
/// What a field for secrets takes.
const SECRET: &str = r"^\$\{secret:[A-Za-z_][A-Za-z0-9_]*\}$";
const OUTPUT: &str = r"^[a-z][a-z0-9_]*(\[[^\]]*\])?(\.[a-z][a-z0-9_]*)?$";

/// JSON Schema (draft 2020-12) of a pipeline file with the operators and models of `registry`.
///
/// A stage is checked against the schema of the operator that its `op` names, with the engine's keys beside the
/// operator's own. It accepts everything that [`parse`](super::parse) accepts; what only the graph tells (stages,
/// outputs, columns) is not in it.
pub fn json_schema(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    let mut cases = Vec::new();
    for operator in registry.operators {
        let name = operator.name;
        let mut own = operator.schema().to_value();
        let mut op = json!({ "const": name });
        if let Some(description) = own.get("description") {
            op["description"] = description.clone();
        }
        hoist(&mut own, name, &mut definitions);
        let mut stage = schema::stage(own);
        accept_references(&mut stage);
        if let Some(properties) = stage.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert("op".into(), op);
            properties.extend(graph_keys());
        }
        definitions.insert(definition(name), stage);
        cases.push(json!({
            "if": { "properties": { "op": { "const": name } }, "required": ["op"] },
            "then": { "$ref": format!("#/$defs/{}", definition(name)) },
        }));
    }
    let mut model = (registry.model_schema)().to_value();
    hoist(&mut model, "model", &mut definitions);
    accept_references(&mut model);
    let names: Vec<&str> = registry.operators.iter().map(|operator| operator.name).collect();
    definitions.insert("model".into(), model);
    definitions.insert(
        "stage".into(),
        json!({
            "type": "object",
            "properties": { "op": { "enum": names, "description": "The operator." } },
            "required": ["op"],
            "allOf": cases,
        }),
    );
    definitions.insert("output".into(), json!({ "type": "string", "pattern": OUTPUT }));

    let mut top = schema::top_level();
    accept_references(&mut top);
    if let Some(properties) = top.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert(
            "models".into(),
            json!({
                "type": ["object", "null"],
                "description": "Everything that answers or embeds; stages name one as teacher, judge, reader or embedder.",
                "additionalProperties": { "$ref": "#/$defs/model" },
            }),
        );
        properties.insert(
            "stages".into(),
            json!({
                "type": "object",
                "description": "The vertices of the pipeline, by name.",
                "minProperties": 1,
                "propertyNames": { "pattern": "^[a-z][a-z0-9_]{0,63}$" },
                "additionalProperties": { "$ref": "#/$defs/stage" },
            }),
        );
    }
    let mut whole = Map::new();
    whole.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".into(), json!("Ingrain pipeline"));
    if let Value::Object(top) = top {
        whole.extend(top);
    }
    whole.insert("$defs".into(), Value::Object(definitions));
    Value::Object(whole)
}

/// Keys of a stage that are about the graph.
fn graph_keys() -> Map<String, Value> {
    let output = json!({ "$ref": "#/$defs/output" });
    let port = json!({ "anyOf": [output, { "type": "array", "items": output, "minItems": 1 }] });
    let keys = json!({
        "from": {
            "description": "What the stage reads: an output (`stage` or `stage.output`), a list of them, or a map of ports.",
            "anyOf": [port, { "type": "object", "additionalProperties": port }],
        },
        "matrix": {
            "type": "object",
            "description": "Axes by name, each with its values: a list, or a mapping of names to values. The stage is made once for each cell, with `${matrix.AXIS}` for the value.",
            "minProperties": 1,
            "propertyNames": { "pattern": "^[A-Za-z_][A-Za-z0-9_-]{0,63}$" },
            "additionalProperties": {
                "anyOf": [
                    { "type": "array", "items": { "type": ["string", "number", "boolean"] }, "minItems": 1 },
                    { "type": "object", "minProperties": 1 },
                    { "type": "string", "pattern": REFERENCE },
                ],
            },
        },
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

/// The definition that holds the stages of an operator. No operator can be called like it.
fn definition(operator: &str) -> String {
    format!("op:{operator}")
}

/// Moves the definitions of `schema` (recursive types have some) to `definitions` under names of their own, and points
/// references to them, and to the schema itself, there.
fn hoist(schema: &mut Value, owner: &str, definitions: &mut Map<String, Value>) {
    let prefix = format!("{owner}:");
    let root = if owner == "model" { "#/$defs/model".to_owned() } else { format!("#/$defs/{}", definition(owner)) };
    let own = schema.as_object_mut().and_then(|object| {
        object.remove("$schema");
        object.remove("$defs")
    });
    point_to(schema, &prefix, &root);
    if let Some(Value::Object(own)) = own {
        for (name, mut definition) in own {
            point_to(&mut definition, &prefix, &root);
            accept_references(&mut definition);
            definitions.insert(format!("{prefix}{name}"), definition);
        }
    }
}

fn point_to(schema: &mut Value, prefix: &str, root: &str) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(uri)) = object.get_mut("$ref") {
                *uri = match uri.strip_prefix("#/$defs/") {
                    Some(name) => format!("#/$defs/{prefix}{name}"),
                    None => root.to_owned(),
                };
            }
            object.values_mut().for_each(|value| point_to(value, prefix, root));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| point_to(value, prefix, root)),
        _ => {}
    }
}

/// Lets every field and every entry of a list be a `${...}` as well.
fn accept_references(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    for keyword in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(branches)) = object.get_mut(keyword) {
            branches.iter_mut().for_each(accept_references);
        }
    }
    for keyword in ["properties", "patternProperties"] {
        if let Some(Value::Object(fields)) = object.get_mut(keyword) {
            fields.values_mut().for_each(accept_reference);
        }
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(field) = object.get_mut(keyword) {
            accept_reference(field);
        }
    }
    if let Some(Value::Array(fields)) = object.get_mut("prefixItems") {
        fields.iter_mut().for_each(accept_reference);
    }
}

/// Lets the value that `schema` describes be a `${...}` as well.
fn accept_reference(schema: &mut Value) {
    accept_references(schema);
    let Value::Object(object) = schema else { return };
    if object.get("format").and_then(Value::as_str) == Some("secret") {
        object.insert("pattern".into(), json!(SECRET));
        return;
    }
    let limits_text = ["enum", "pattern", "minLength", "maxLength", "format"].iter().any(|key| object.contains_key(*key));
    let takes_text = object
        .get("type")
        .is_some_and(|kind| kind == "string" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string")));
    // A tag tells alternatives apart: if it could be a reference, more than one of them would fit.
    if object.contains_key("const") || (takes_text && !limits_text) || is_open(object) {
        return;
    }
    let mut outer = Map::new();
    for key in ["title", "description", "default", "examples"] {
        if let Some(value) = object.remove(key) {
            outer.insert(key.into(), value);
        }
    }
    let inner = std::mem::take(object);
    outer.insert("anyOf".into(), json!([inner, { "type": "string", "pattern": REFERENCE }]));
    *object = outer;
}

/// Whether the schema takes every value anyway.
fn is_open(object: &Map<String, Value>) -> bool {
    object.keys().all(|key| ["title", "description", "default", "examples"].contains(&key.as_str()))
}
