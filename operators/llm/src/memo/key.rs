//! The key under which an answer is remembered.

use std::fmt;

use serde_json::{Number, Value};

use crate::request::Request;

/// Separates these keys from every other use of the hash, and from other versions of the encoding.
const DOMAIN: &[u8] = b"ingrain/memo/1";
/// The same, for vectors.
const VECTORS: &[u8] = b"ingrain/vectors/1";

/// The key of one attempt at a request: blake3 over the rendered request (messages, decoding, response format), what the
/// teacher says decides its answer ([`crate::Teacher::asked`]), draw, refresh and attempt.
///
/// The encoding is canonical and length-delimited, so no two requests share one: every text is its length in bytes
/// (u64, little-endian) and its bytes, every list its count and its items, every optional part a byte 0 or 1 before it,
/// JSON a tag byte per value with object members sorted by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of attempt `attempt` at `request`.
    pub fn new(request: &Request, asked: &Value, draw: u32, refresh: Option<&str>, attempt: u32) -> Self {
        Self::attempts(request, asked, draw, refresh)(attempt)
    }

    /// The keys of the attempts at `request`, which is encoded once for all of them.
    pub fn attempts(request: &Request, asked: &Value, draw: u32, refresh: Option<&str>) -> impl Fn(u32) -> Self + use<> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&preimage(request, asked, draw, refresh));
        move |attempt| Self(*hasher.clone().update(&attempt.to_le_bytes()).finalize().as_bytes())
    }

    /// The keys of the vectors of texts: blake3 over what the embedder is ([`crate::Embedder::identity`]), refresh and text,
    /// in the same encoding, the text's bytes last.
    pub fn vectors(identity: &Value, refresh: Option<&str>) -> impl Fn(&str) -> Self + use<> {
        let mut out = Vec::new();
        text(&mut out, VECTORS);
        json(&mut out, identity);
        optional(&mut out, refresh);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&out);
        move |text: &str| Self(*hasher.clone().update(text.as_bytes()).finalize().as_bytes())
    }

    /// A key from its bytes, as a segment or log holds them.
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What tables hold in `request_id`: the first 16 bytes in 32 hex digits.
    pub fn request_id(&self) -> String {
        hex(&self.0[..16])
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.request_id())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

/// All but the attempt, which comes last.
fn preimage(request: &Request, asked: &Value, draw: u32, refresh: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + request.messages.iter().map(|m| m.content.len() + 32).sum::<usize>());
    text(&mut out, DOMAIN);
    count(&mut out, request.messages.len());
    for message in &request.messages {
        text(&mut out, message.role.as_str().as_bytes());
        text(&mut out, message.content.as_bytes());
    }
    out.extend(bits(request.decoding.temperature));
    out.extend(bits(request.decoding.top_p));
    out.extend(request.decoding.max_output_tokens.to_le_bytes());
    match &request.response_format {
        None => out.push(0),
        Some(format) => {
            out.push(1);
            json(&mut out, format);
        }
    }
    json(&mut out, asked);
    out.extend(draw.to_le_bytes());
    optional(&mut out, refresh);
    out
}

fn count(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    count(out, bytes.len());
    out.extend(bytes);
}

fn optional(out: &mut Vec<u8>, words: Option<&str>) {
    match words {
        None => out.push(0),
        Some(words) => {
            out.push(1);
            text(out, words.as_bytes());
        }
    }
}

/// One bit pattern per number: -0.0 is 0.0, every NaN is the same one.
fn bits(x: f64) -> [u8; 8] {
    let x = if x.is_nan() { f64::NAN } else { x + 0.0 };
    x.to_bits().to_le_bytes()
}

fn json(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(false) => out.push(b'f'),
        Value::Bool(true) => out.push(b't'),
        Value::Number(number) => json_number(out, number),
        Value::String(string) => {
            out.push(b's');
            text(out, string.as_bytes());
        }
        Value::Array(items) => {
            out.push(b'a');
            count(out, items.len());
            items.iter().for_each(|item| json(out, item));
        }
        Value::Object(members) => {
            out.push(b'o');
            count(out, members.len());
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            for (name, member) in members {
                text(out, name.as_bytes());
                json(out, member);
            }
        }
    }
}

/// `1` and `1.0` are one number in JSON, whatever parsed them: whole numbers that an i128 and an f64 both hold exactly are
/// written as integers, others by their bits.
fn json_number(out: &mut Vec<u8>, number: &Number) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    let float = number.as_f64().unwrap_or(f64::NAN);
    let integer = integer.or_else(|| (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i128));
    match integer {
        Some(integer) => {
            out.push(b'i');
            out.extend(integer.to_le_bytes());
        }
        None => {
            out.push(b'd');
            out.extend(bits(float));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::{Decoding, Message, Role};

    fn request() -> Request {
        Request {
            messages: vec![Message { role: Role::User, content: "héllo".to_owned() }],
            decoding: Decoding { temperature: 1.0, top_p: 0.95, max_output_tokens: 2048 },
            response_format: Some(json!({ "type": "json_object", "a": [1, 2.5, null, true] })),
            task: "synthesize_qa".to_owned(),
            variables: json!({ "text": "a" }),
        }
    }

    fn asked() -> Value {
        json!({ "provider": "openai", "model": "m", "revision": null })
    }

    fn key(change: impl FnOnce(&mut Request)) -> Key {
        let mut request = request();
        change(&mut request);
        Key::new(&request, &asked(), 0, None, 0)
    }

    #[test]
    fn golden() {
        let expected = concat!(
            "0e00000000000000696e677261696e2f6d656d6f2f31", // the domain
            "0100000000000000",                             // one message
            "040000000000000075736572",                     // "user"
            "060000000000000068c3a96c6c6f",                 // "héllo"
            "000000000000f03f666666666666ee3f00080000",     // 1.0, 0.95, 2048
            "016f0200000000000000",                         // a response format: an object of two
            "0100000000000000616104000000000000",           // "a": a list of four
            "00690100000000000000000000000000000064000000", // 1, 2.5
            "00000004406e74",                               // null, true
            "040000000000000074797065730b000000000000006a736f6e5f6f626a656374",
            "6f030000000000000005000000000000006d6f64656c7301000000000000006d",
            "080000000000000070726f766964657273060000000000000",
            "06f70656e616908000000000000007265766973696f6e6e",
            "030000000102000000000000007232", // draw 3, refresh "r2"
        );
        let preimage = preimage(&request(), &asked(), 3, Some("r2"));
        assert_eq!(hex(&preimage), expected);
        let key = Key::new(&request(), &asked(), 3, Some("r2"), 1);
        assert_eq!(hex(key.as_bytes()), "0a70ef786f1b40b60931a31b451a3bbc76f9d8557c87fed648de689709e0238a");
        assert_eq!(key.request_id(), "0a70ef786f1b40b60931a31b451a3bbc");
    }

    #[test]
    fn what_is_sent_and_nothing_else_decides() {
        let base = key(|_| {});
        assert_eq!(key(|r| r.task = "rewrite".to_owned()), base);
        assert_eq!(key(|r| r.variables = json!({})), base);
        assert_eq!(key(|r| r.response_format = Some(json!({ "a": [1.0, 2.5, null, true], "type": "json_object" }))), base);
        assert_ne!(key(|r| r.response_format = None), base);
        assert_ne!(key(|r| r.decoding.temperature = 0.7), base);
        assert_ne!(key(|r| r.decoding.max_output_tokens = 1), base);
        assert_ne!(key(|r| r.messages[0].role = Role::System), base);
        assert_ne!(key(|r| r.messages.push(r.messages[0].clone())), base);
        let r = request();
        let others = [
            Key::new(&r, &json!({}), 0, None, 0),
            Key::new(&r, &asked(), 1, None, 0),
            Key::new(&r, &asked(), 0, Some(""), 0),
            Key::new(&r, &asked(), 0, None, 1),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != base && others[..i].iter().all(|earlier| earlier != other), "{i}");
        }
    }

    #[test]
    fn a_vector_is_known_by_embedder_refresh_and_text() {
        let key = Key::vectors(&asked(), None)("héllo");
        assert_eq!(hex(key.as_bytes()), "369a5e92fa794182be56d10241a32a9519435904006e6b251e14eabf4d9ceb24");
        let others = [
            Key::vectors(&asked(), Some(""))("héllo"),
            Key::vectors(&json!({}), None)("héllo"),
            Key::vectors(&asked(), None)(""),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != key && others[..i].iter().all(|earlier| earlier != other), "{i}");
        }
    }

    #[test]
    fn text_can_not_slide_between_messages() {
        let two = |a: &str, b: &str| {
            key(|r| r.messages = [a, b].map(|text| Message { role: Role::User, content: text.to_owned() }).to_vec())
        };
        assert_ne!(two("ab", "c"), two("a", "bc"));
    }
}
