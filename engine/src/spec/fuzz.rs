//! Scalars, sizes and URLs that nobody meant.

use ingrain_mutation::{Strategy, holds, mutated_text, strategy, text};
use serde_json::Value;

use super::{Kind, Size, credential, scalar::plain, size::PATTERN};

const WORDS: [&str; 24] = [
    "K",
    "k",
    "M",
    "G",
    "Ki",
    "Mi",
    "Gi",
    "GB",
    "T",
    ".",
    "1",
    "9",
    "0",
    "e",
    "E",
    "+",
    "-",
    "0x",
    "0o",
    ".inf",
    ".nan",
    "1e400",
    "1.5",
    "18446744073709551615",
];

fn scalars() -> impl Strategy<Value = String> {
    let seeds = ["2M", "512Ki", "1.5k", "1e-5", "0xFf", "-.5", "18446744073709551615", "1e400GB", "2026-01-01", "~", "true"];
    strategy::Union::new([mutated_text(&seeds, &WORDS).boxed(), text(30).boxed()])
}

#[test]
fn any_scalar_means_something_finite() {
    holds(256, &scalars(), |text| match plain(&text) {
        Ok(Kind::Float(value)) => assert!(value.is_finite(), "{text:?}"),
        Ok(Kind::String(same)) => assert_eq!(same, text),
        Ok(_) => {}
        Err(message) => assert!(!message.is_empty()),
    });
}

#[test]
fn what_is_a_size_is_what_the_schema_says() {
    let schema = jsonschema::validator_for(&serde_json::json!({ "pattern": PATTERN })).expect("a schema");
    holds(256, &scalars(), |text| {
        let parsed: Result<Size, String> = text.parse();
        let read = serde_json::from_value::<Size>(Value::String(text.clone()));
        assert_eq!(parsed.as_ref().ok(), read.as_ref().ok());
        if let Ok(size) = parsed {
            assert!(schema.is_valid(&Value::String(text)), "the schema refuses what is read");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    });
}

#[test]
fn credentials_are_found_wherever_they_stand() {
    let urls = [
        "https://me:pw@host/v1",
        "s3://key:secret@bucket/x",
        "https://h/k?X-Amz-Signature=ab&sig=c#d",
        "http://a http://b:c@d",
        "a: b://",
    ];
    let words: &'static [&'static str] =
        &["://", "@", ":", "?", "&", ";", "=", "sig", "access_token", "#", "s3", " ", "ä", "%40"];
    holds(256, &(mutated_text(&urls, words), text(30)), |(url, other)| {
        let alone = credential::in_url(&url);
        // What stands behind white space can't hide it.
        if alone.is_some() {
            assert_eq!(credential::in_url(&format!("{url} {other}")), alone);
        }
    });
}
