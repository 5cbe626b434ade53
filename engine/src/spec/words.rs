//! Values, types and places of a file in words.

use serde_json::Value;

/// `/price/input` as `price.input`, `/weights/1` as `weights[1]`.
pub(super) fn dotted(path: &str) -> String {
    let mut out = String::new();
    for segment in path.split('/').skip(1) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        if segment.bytes().all(|byte| byte.is_ascii_digit()) && !segment.is_empty() {
            out.push_str(&format!("[{segment}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&cut(&segment));
        }
    }
    out
}

pub(super) fn type_words(name: &str) -> &'static str {
    match name {
        "array" => "a list",
        "boolean" => "`true` or `false`",
        "integer" => "a whole number",
        "null" => "nothing",
        "number" => "a number",
        "object" => "a mapping",
        _ => "a text",
    }
}

/// `a, b or c`
pub(super) fn alternatives(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "something else".into(),
    }
}

pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as it may stand in a message.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
        scalar => format!("`{}`", cut(&plain(scalar))),
    }
}

/// The first characters of `text`.
pub(super) fn cut(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A limit of a schema; whole numbers without the fraction that a schema made from a float has.
pub(super) fn number(limit: &Value) -> String {
    match limit.as_f64() {
        Some(value) if limit.is_f64() && value.fract() == 0.0 => format!("{value:.0}"),
        _ => limit.to_string(),
    }
}

pub(super) fn entries(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}
