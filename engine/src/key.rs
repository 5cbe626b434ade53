//! Keys and row ids: blake3 over a typed, length-delimited encoding.

use serde_json::Value;

/// Appends the canonical encoding of `value`: a type tag, then lengths as little-endian `u64` before everything that
/// varies in length; mappings are sorted by key, so their written order doesn't count, while that of lists does. Integers
/// are `i128`, floats their bits with one zero and one NaN, so that `1` and `1.0` differ.
pub fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(false) => out.push(b'0'),
        Value::Bool(true) => out.push(b'1'),
        Value::Number(number) => {
            if let Some(int) = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)) {
                out.push(b'i');
                out.extend(int.to_le_bytes());
            } else {
                out.push(b'f');
                out.extend(float_bits(number.as_f64().unwrap_or(f64::NAN)).to_le_bytes());
            }
        }
        Value::String(text) => {
            out.push(b's');
            delimited(text.as_bytes(), out);
        }
        Value::Array(items) => {
            out.push(b'a');
            out.extend((items.len() as u64).to_le_bytes());
            for item in items {
                encode(item, out);
            }
        }
        Value::Object(entries) => {
            out.push(b'o');
            out.extend((entries.len() as u64).to_le_bytes());
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(b.0));
            for (key, value) in sorted {
                delimited(key.as_bytes(), out);
                encode(value, out);
            }
        }
    }
}

/// The bits of a float with one zero and one NaN.
pub(crate) fn float_bits(float: f64) -> u64 {
    if float.is_nan() {
        f64::NAN.to_bits()
    } else if float == 0.0 {
        0
    } else {
        float.to_bits()
    }
}

fn delimited(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// The key of `preimage` in a domain of its own (`stage`, `partition`, ...): 64 hex digits.
pub fn key(domain: &str, preimage: &Value) -> String {
    let mut bytes = Vec::with_capacity(1024);
    delimited(b"ingrain", &mut bytes);
    delimited(domain.as_bytes(), &mut bytes);
    encode(preimage, &mut bytes);
    blake3::hash(&bytes).to_hex().to_string()
}

/// The id of a row: the first 16 bytes of a hash, as 32 hex digits.
///
/// `source` numbers the source table where an operator reads several, `parents` are the ids of the rows that it was made
/// from, `draw` tells repeated draws apart, `ordinal` the rows of one parent. The config is not in it, so that a row keeps
/// its id when its neighbours, or the settings, change.
pub fn row_id(operator: &str, source: u64, parents: &[&str], draw: u64, ordinal: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(operator.as_bytes());
    part(&source.to_le_bytes());
    part(&(parents.len() as u64).to_le_bytes());
    for parent in parents {
        part(parent.as_bytes());
    }
    part(&draw.to_le_bytes());
    part(&ordinal.to_le_bytes());
    hex(&hasher.finalize().as_bytes()[..16])
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // Made by a second implementation of the encoding.
    #[test]
    fn golden_keys() {
        let preimage = json!({"op": "chunk", "n": 1, "f": 1.0, "list": [null, true, "x"]});
        assert_eq!(key("stage", &preimage), "4b0a71e324779b50f02a81c060e42e37a85988de0ba19b3f9a5ca6dcaa1ceb08");
        assert_eq!(row_id("chunk", 0, &["a"], 0, 3), "8eb7f09e1545bbeb9d8f724b007945e0");
    }

    #[test]
    fn key_order_does_not_count_and_list_order_does() {
        assert_eq!(key("stage", &json!({"a": 1, "b": 2})), key("stage", &json!({"b": 2, "a": 1})));
        assert_ne!(key("stage", &json!([1, 2])), key("stage", &json!([2, 1])));
        assert_ne!(key("stage", &json!(["ab", "c"])), key("stage", &json!(["a", "bc"])));
        assert_ne!(key("stage", &json!(1)), key("stage", &json!(1.0)));
        assert_ne!(key("stage", &json!(1)), key("partition", &json!(1)));
    }

    #[test]
    fn parents_are_delimited() {
        assert_ne!(row_id("mix", 0, &["ab", "c"], 0, 0), row_id("mix", 0, &["a", "bc"], 0, 0));
        assert_ne!(row_id("mix", 1, &["a"], 0, 0), row_id("mix", 0, &["a"], 1, 0));
    }
}
