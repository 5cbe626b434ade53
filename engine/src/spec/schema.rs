//! What a JSON Schema says about one place of a value.

use serde_json::{Map, Value, json};

/// The keys of a stage that belong to the engine, with their schemas. `from` and `matrix` are checked by hand.
pub(super) const ENGINE_KEYS: [&str; 7] = ["op", "from", "matrix", "seed", "refresh", "min_yield", "description"];
/// References are followed this deep; schemas of recursive types refer to themselves.
const MAX_REFERENCES: usize = 16;

/// The subschemas of `root` that apply to one place, with everything seen through that doesn't go deeper into the value
/// (`$ref`, `allOf`, `anyOf`, `oneOf`, `then`, `else`).
#[derive(Debug, Clone)]
pub(super) struct Parts<'s> {
    root: &'s Value,
    parts: Vec<&'s Map<String, Value>>,
}

impl<'s> Parts<'s> {
    /// The subschemas for the whole value.
    pub(super) fn of(root: &'s Value) -> Self {
        Self::from(root, vec![root])
    }

    fn from(root: &'s Value, schemas: Vec<&'s Value>) -> Self {
        let mut parts = Vec::new();
        for schema in schemas {
            collect(root, schema, 0, &mut parts);
        }
        Self { root, parts }
    }

    /// The subschemas for what stands under `key`, or at the index `key` of a list. `None` if the key is refused.
    pub(super) fn below(&self, key: &str) -> Option<Self> {
        let mut found = Vec::new();
        let mut closed = false;
        for part in &self.parts {
            if let Some(schema) = part.get("properties").and_then(|properties| properties.get(key)) {
                found.push(schema);
                continue;
            }
            if let Some(Value::Object(patterns)) = part.get("patternProperties") {
                found.extend(patterns.values());
            }
            match part.get("additionalProperties").or_else(|| part.get("unevaluatedProperties")) {
                Some(Value::Bool(false)) => closed = true,
                Some(schema @ Value::Object(_)) => found.push(schema),
                _ => {}
            }
            if let Ok(index) = key.parse::<usize>() {
                let prefix = part.get("prefixItems").and_then(Value::as_array);
                match prefix.and_then(|prefix| prefix.get(index)) {
                    Some(schema) => found.push(schema),
                    None => found.extend(part.get("items").filter(|schema| schema.is_object())),
                }
            }
        }
        (!closed || !found.is_empty()).then(|| Self::from(self.root, found))
    }

    /// The subschemas at a JSON pointer into the value.
    pub(super) fn at(&self, pointer: &str) -> Option<Self> {
        pointer
            .split('/')
            .skip(1)
            .try_fold(self.clone(), |parts, segment| parts.below(&segment.replace("~1", "/").replace("~0", "~")))
    }

    /// The keys that have a schema of their own, in the order of the schema.
    pub(super) fn keys(&self) -> Vec<&'s str> {
        let mut keys = Vec::new();
        for part in &self.parts {
            if let Some(Value::Object(properties)) = part.get("properties") {
                for key in properties.keys() {
                    if !keys.contains(&key.as_str()) {
                        keys.push(key.as_str());
                    }
                }
            }
        }
        keys
    }

    /// Whether a secret may stand here (`"format": "secret"`).
    pub(super) fn takes_secret(&self) -> bool {
        self.parts.iter().any(|part| is_secret(part))
    }

    /// Whether nothing but a secret may stand here.
    pub(super) fn is_secret(&self) -> bool {
        let is_text = |kind: &Value| kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("string")));
        self.takes_secret() && !self.parts.iter().any(|part| !is_secret(part) && part.get("type").is_some_and(is_text))
    }

    /// The first paragraph of the first description, on one line.
    pub(super) fn description(&self) -> Option<String> {
        let text = self.parts.iter().find_map(|part| part.get("description").and_then(Value::as_str))?;
        let first = text.split("\n\n").next().unwrap_or(text);
        Some(first.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

fn is_secret(part: &Map<String, Value>) -> bool {
    part.get("format").and_then(Value::as_str) == Some("secret")
}

fn collect<'s>(root: &'s Value, schema: &'s Value, depth: usize, parts: &mut Vec<&'s Map<String, Value>>) {
    let Value::Object(object) = schema else { return };
    if depth > MAX_REFERENCES || parts.iter().any(|part| std::ptr::eq(*part, object)) {
        return;
    }
    parts.push(object);
    let target = object.get("$ref").and_then(Value::as_str).and_then(|uri| uri.strip_prefix('#'));
    if let Some(schema) = target.and_then(|target| root.pointer(target)) {
        collect(root, schema, depth + 1, parts);
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for schema in object.get(keyword).and_then(Value::as_array).into_iter().flatten() {
            collect(root, schema, depth + 1, parts);
        }
    }
    for keyword in ["then", "else"] {
        if let Some(schema) = object.get(keyword) {
            collect(root, schema, depth + 1, parts);
        }
    }
}

/// JSON Schema of the file apart from `models` and `stages`, which are checked entry by entry.
pub(super) fn top_level() -> Value {
    json!({
        "type": "object",
        "properties": {
            "pipeline": {
                "type": "string",
                "pattern": "^[a-z][a-z0-9_-]{0,63}$",
                "description": "The pipeline's name: lower-case letters, digits, `_` and `-`, a letter first, at most 64 characters.",
            },
            "description": { "type": ["string", "null"], "description": "What the pipeline is for." },
            "store": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Where artifacts are kept: a folder or an `s3://` URL. Left out: `.ingrain` beside this file.",
            },
            "budget": {
                "type": ["object", "null"],
                "description": "What may be spent on calls, over all runs of the pipeline on a store. Every model that is asked needs a `price` then.",
                "properties": { "usd": { "type": "number", "minimum": 0, "description": "Dollars." } },
                "required": ["usd"],
                "additionalProperties": false,
            },
            "seed": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Where everything that draws starts from.",
            },
            "vars": { "type": ["object", "null"], "description": "Values for `${vars.NAME}`; `--set vars.NAME=VALUE` replaces one." },
            "s3": buckets(),
            "models": { "type": ["object", "null"], "description": "Everything that answers or embeds; stages name one as teacher, judge, reader or embedder." },
            "stages": { "type": "object", "minProperties": 1, "description": "The vertices of the pipeline, by name." },
        },
        "required": ["pipeline", "stages"],
        "additionalProperties": false,
    })
}

/// The schema of `s3`: buckets by name.
pub(super) fn buckets() -> Value {
    let secret = |what: &str| json!({ "type": ["string", "null"], "format": "secret", "description": what });
    json!({
        "type": ["object", "null"],
        "description": "Buckets that aren't reached as the AWS environment variables say, by name.",
        "propertyNames": { "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$" },
        "additionalProperties": {
            "type": "object",
            "description": "How a bucket is reached. What is left out comes from the environment; an entry with credentials of its own takes nothing from there.",
            "properties": {
                "endpoint": {
                    "type": ["string", "null"],
                    "pattern": "^https?://[^/?#]+/?$",
                    "description": "The server's address, such as `http://minio:9000`. Left out: AWS.",
                },
                "region": { "type": ["string", "null"], "minLength": 1, "description": "The bucket's region." },
                "key_id": secret("The id of the access key, as `${secret:NAME}`."),
                "key": secret("The secret key, as `${secret:NAME}`."),
                "session_token": secret("The token that belongs to a temporary key, as `${secret:NAME}`."),
                "path_style": {
                    "type": ["boolean", "null"],
                    "description": "Whether the bucket stands in the path of a URL rather than in its host. Left out: yes with an `endpoint`.",
                },
                "anonymous": { "type": "boolean", "default": false, "description": "Whether requests aren't signed: for public buckets." },
            },
            "additionalProperties": false,
        },
    })
}

/// Schemas of the engine's own keys of a stage.
pub(super) fn engine_keys() -> Map<String, Value> {
    let keys = json!({
        "op": { "type": "string", "description": "The operator." },
        "from": {
            "description": "What the stage reads: an output (`stage` or `stage.output`), a list of them, or a map of ports.",
        },
        "matrix": {
            "description": "Axes by name, each with its values: a list, or a mapping of names to values. The stage is made once for each cell, with `${matrix.AXIS}` for the value.",
        },
        "seed": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Where this stage's draws start from, instead of the pipeline's seed.",
        },
        "refresh": {
            "type": ["string", "number", "boolean", "null"],
            "description": "Any scalar; changing it makes the stage draw and ask anew.",
        },
        "min_yield": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0.5,
            "description": "The share of rows that has to be accepted for the stage not to fail.",
        },
        "description": { "type": ["string", "null"], "description": "What the stage is for." },
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

/// The schema of a stage: an operator's own fields beside the engine's keys, and nothing else.
pub(super) fn stage(operator: Value) -> Value {
    let Value::Object(mut schema) = operator else { return operator };
    if let Value::Object(properties) = schema.entry("properties").or_insert_with(|| json!({})) {
        properties.extend(engine_keys());
    }
    if !schema.contains_key("additionalProperties") && !schema.contains_key("unevaluatedProperties") {
        schema.insert("unevaluatedProperties".into(), Value::Bool(false));
    }
    Value::Object(schema)
}

/// The schema of a stage whose operator isn't known: only the engine's keys are looked at.
pub(super) fn unknown_stage() -> Value {
    json!({ "type": "object", "properties": engine_keys() })
}
