//! What plain scalars mean, and syntax errors in words.

use granit_parser::ErrorKind;

use super::tree::{Kind, MAX_DEPTH};

/// What a plain scalar means by the core schema of YAML 1.2 (section 10.3.2).
///
/// # Errors
/// A number that is too large, or that isn't one.
pub(super) fn plain(text: &str) -> Result<Kind, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_whole = |digits: &str, radix: u32| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let whole = |number: &str, radix: u32| {
        i64::from_str_radix(number, radix)
            .map(Kind::Int)
            .map_err(|_| format!("`{text}` is too large for a whole number: at most {}", i64::MAX))
    };
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Kind::Null),
        "true" | "True" | "TRUE" => return Ok(Kind::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Kind::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => return Err(format!("`{text}` is not accepted as a number")),
        _ => {}
    }
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return Err(format!("`{text}` is not accepted as a number"));
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| is_whole(digits, 8)) {
        return whole(digits, 8);
    }
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| is_whole(digits, 16)) {
        return whole(digits, 16);
    }
    if is_whole(digits, 10) {
        return whole(text, 10);
    }
    if !is_float(digits) {
        return Ok(Kind::String(text.into()));
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Kind::Float(value)),
        _ => Err(format!("`{text}` is too large for a number")),
    }
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (text, None),
    };
    if exponent.is_some_and(|exponent| exponent.is_empty() || !all_digits(exponent)) {
        return false;
    }
    match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && all_digits(fraction),
        Some((whole, fraction)) => all_digits(whole) && all_digits(fraction),
        None => !mantissa.is_empty() && all_digits(mantissa),
    }
}

/// A syntax error in the words of this program, and what to do about it.
pub(super) fn said(kind: &ErrorKind) -> (String, Option<&'static str>) {
    let spaces = Some("indent with spaces");
    let quote = Some("a text that holds `: ` or ` #`, or starts with one of `[ ] { } & * ! | > ' \" % @`, needs quotes");
    let aligned = Some("keys of one mapping, and entries of one list, start in the same column");
    match kind {
        ErrorKind::UnclosedFlowCollection { open } => (format!("`{open}` is never closed"), None),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => (format!("`{open}` is closed by `{close}`"), None),
        ErrorKind::MisplacedFlowCollectionEnd => ("this bracket closes nothing".into(), quote),
        ErrorKind::UnclosedQuotedScalar => ("a quoted text is never closed".into(), None),
        ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation | ErrorKind::TabNotAllowed => {
            ("a tab can't stand here".into(), spaces)
        }
        ErrorKind::InvalidIndentation | ErrorKind::ExpectedBlockMappingKey | ErrorKind::ExpectedBlockSequenceEntry => {
            ("the indentation fits nothing above it".into(), aligned)
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => ("`:` can't stand here".into(), quote),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => ("a key without `:`".into(), aligned),
        ErrorKind::ExpectedFlowMappingSeparator => ("expected `,` or `}`".into(), quote),
        ErrorKind::ExpectedFlowSequenceSeparator => ("expected `,` or `]`".into(), quote),
        ErrorKind::UnexpectedCharacter { character } => (format!("`{}` can't start a value", character.escape_default()), quote),
        ErrorKind::RecursionLimitExceeded => (format!("nested more than {MAX_DEPTH} levels deep"), None),
        kind => (format!("not valid YAML: {kind}"), None),
    }
}
