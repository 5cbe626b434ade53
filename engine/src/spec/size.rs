//! Amounts such as `2M` and `512Ki`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

const SUFFIXES: [(&str, u64); 7] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("K", 1_000), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// The texts that are sizes, short of their being whole and not too large.
pub(super) const PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(K|k|M|G|Ki|Mi|Gi)?$";

/// A number of tokens, bytes or rows, written as a whole number or with a suffix: `K`, `M`, `G` are powers of 1,000 and
/// `Ki`, `Mi`, `Gi` powers of 1,024. `1.5k` is 1,500.
///
/// It is read from a number or a text and always written as a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        exact(text).map(Self).ok_or_else(|| {
            format!("`{text}` is not a size: a whole number, with `K`, `M`, `G`, `Ki`, `Mi` or `Gi` behind it or not")
        })
    }
}

/// The number that `text` says; `None` if it is malformed, not whole, or too large.
fn exact(text: &str) -> Option<u64> {
    let (digits, unit) =
        SUFFIXES.iter().find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit))).unwrap_or((text, 1));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let parts = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let scaled = whole.parse::<u128>().ok()?.checked_mul(scale)?.checked_add(parts)?.checked_mul(u128::from(unit))?;
    if scaled % scale != 0 {
        return None;
    }
    u64::try_from(scaled / scale).ok()
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Size {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a size such as `2M`")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": PATTERN,
            "description": "A whole number, or one with a suffix: `K`, `M`, `G` (powers of 1,000), `Ki`, `Mi`, `Gi` (powers of 1,024).",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_numbers_and_suffixes() {
        for (text, value) in [
            ("2M", 2_000_000),
            ("1.5k", 1_500),
            ("1.50K", 1_500),
            ("512Ki", 512 << 10),
            ("4Gi", 4 << 30),
            ("0.5Mi", 1 << 19),
            ("3G", 3_000_000_000),
            ("17", 17),
            ("0", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(value)), "{text}");
            assert_eq!(serde_json::from_value::<Size>(json!(text)).unwrap(), Size(value));
        }
        assert_eq!(serde_json::from_value::<Size>(json!(2048)).unwrap(), Size(2048));
        assert_eq!(serde_json::to_value(Size(2048)).unwrap(), json!(2048));
    }

    #[test]
    fn refuses_what_is_not_a_whole_number() {
        for text in ["", "M", "1.5", "1.0001k", "-1", "+1", "1e3", "2 M", "2MM", ".5k", "1.k", "99999999999G", "2m", "1_000"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("9".repeat(200).parse::<Size>().is_err());
        assert!(format!("1.{}1", "0".repeat(100)).parse::<Size>().is_err());
        assert!(serde_json::from_value::<Size>(json!(-1)).is_err());
        assert!(serde_json::from_value::<Size>(json!([1])).is_err());
        assert_eq!(
            "2Q".parse::<Size>().unwrap_err(),
            "`2Q` is not a size: a whole number, with `K`, `M`, `G`, `Ki`, `Mi` or `Gi` behind it or not"
        );
    }
}
