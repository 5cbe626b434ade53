//! References to secrets: written in a pipeline file, read from the environment when first used.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A reference to a secret, written `${secret:NAME}`. The value itself is never held: [`Secret::read`] takes it from
/// the environment variable `NAME` at the moment of use, and `Debug` and serialisation show the reference only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret {
    name: String,
}

/// The environment variable that a secret names isn't set, or isn't UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`${{secret:{name}}}` needs the environment variable `{name}`, which isn't set to a text")]
pub struct MissingSecret {
    /// The variable.
    pub name: String,
}

impl Secret {
    /// Parses `${secret:NAME}`. `None` for anything else: a secret in plain text is never accepted. `NAME` is a
    /// letter or `_`, then letters, digits and `_`.
    pub fn parse(reference: &str) -> Option<Self> {
        let name = reference.trim().strip_prefix("${secret:")?.strip_suffix('}')?;
        let mut bytes = name.bytes();
        let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        valid.then(|| Self { name: name.to_owned() })
    }

    /// The environment variable that holds the secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The secret itself, from the environment. The caller must not log, store or show it.
    pub fn read(&self) -> Result<String, MissingSecret> {
        std::env::var(&self.name).map_err(|_| MissingSecret { name: self.name.clone() })
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${{secret:{}}}", self.name)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        // The refused text may be the secret itself, so the message doesn't repeat it.
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom("a secret is written `${secret:NAME}`, with the value in the environment variable `NAME`")
        })
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_references_are_accepted() {
        assert_eq!(Secret::parse("${secret:TEACHER_KEY}").map(|s| s.name().to_owned()), Some("TEACHER_KEY".to_owned()));
        for wrong in ["sk-123", "${env:KEY}", "${secret:}", "${secret:1X}", "${secret:A B}", "x${secret:A}", "${secret:A}x"] {
            assert_eq!(Secret::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn neither_debug_nor_errors_show_more_than_the_reference() {
        let error = serde_json::from_str::<Secret>("\"sk-123\"").expect_err("plain text is refused");
        assert!(!error.to_string().contains("sk-123"), "{error}");
        let secret: Secret = serde_json::from_str("\"${secret:PATH}\"").expect("a reference");
        assert_eq!(format!("{secret:?}"), "Secret(${secret:PATH})");
        assert_eq!(serde_json::to_string(&secret).expect("json"), "\"${secret:PATH}\"");
        assert_eq!(secret.read().ok(), std::env::var("PATH").ok());
        let missing = Secret::parse("${secret:INGRAIN_TEST_NO_SUCH_VARIABLE}").expect("a reference");
        assert_eq!(missing.read().expect_err("not set").name, "INGRAIN_TEST_NO_SUCH_VARIABLE");
    }
}
