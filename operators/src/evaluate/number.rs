//! Numbers in answers, as people write them.

use std::ops::Range;

/// What a percentage is times of.
const PERCENT: f64 = 0.01;

/// What stands in front of an amount of money.
const CURRENCIES: [&str; 7] = ["$", "€", "£", "¥", "USD", "EUR", "GBP"];

/// How a minus is written: as a hyphen, as itself, as a dash.
const MINUS: [char; 3] = ['-', '\u{2212}', '\u{2013}'];

/// What joins digits to one run: of these only commas between thousands and a decimal point make a number.
const JOINS: [char; 8] = [',', '.', ':', '/', '\'', '-', '\u{2212}', '\u{2013}'];

/// Spaces within a number and its unit.
const SPACES: [char; 2] = [' ', '\u{a0}'];

/// What may stand in front of a right answer that is a number.
const ABOUT: [&str; 6] = ["about", "almost", "approximately", "around", "nearly", "roughly"];

/// How many words may stand behind a right answer that is a number.
const WORDS_BEHIND: usize = 2;

/// What decimals are off by because they are kept as binary fractions, as a share.
const ROUNDING: f64 = 1e-9;

/// A number in a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number<'a> {
    /// As it stands there, with its sign, its currency and its unit.
    pub(crate) text: &'a str,
    /// What stands in front of it.
    front: &'a str,
    /// What stands behind it.
    back: &'a str,
    /// Its value in its unit.
    value: f64,
    /// What it is times of: 0.01 for a percentage, a million. `None` where the text doesn't say.
    unit: Option<f64>,
}

impl Number<'_> {
    /// Whether it is the right number, but for `tolerance` times that. A number without a unit may be in one that the
    /// question asks in, and a percentage may be without its sign.
    pub(crate) fn is(&self, right: &Number<'_>, question: &str, tolerance: f64) -> bool {
        let asked = units(question);
        let readings = |number: &Number<'_>, unsaid: Option<f64>| -> Vec<f64> {
            match number.unit {
                Some(unit) => vec![number.value * unit],
                None => std::iter::once(1.0).chain(asked.iter().copied()).chain(unsaid).map(|unit| number.value * unit).collect(),
            }
        };
        let near = |said: f64, right: f64| right.is_finite() && (said - right).abs() <= (tolerance + ROUNDING) * right.abs();
        let rights = readings(right, None);
        let said = readings(self, right.unit.filter(|unit| *unit == PERCENT));
        said.iter().any(|said| rights.iter().any(|right| near(*said, *right)))
    }
}

/// The number that a right answer is: its only one, with nothing in front of it but `about` or the like, and at most two
/// words behind it, such as its unit.
pub(crate) fn right_number(answer: &str) -> Option<Number<'_>> {
    let number = only_number(answer)?;
    let front = number.front.trim_matches(|c: char| !c.is_alphanumeric());
    let words = number.back.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).count();
    let about = front.is_empty() || ABOUT.iter().any(|word| front.eq_ignore_ascii_case(word));
    (about && words <= WORDS_BEHIND).then_some(number)
}

/// The number of a text that holds just one.
pub(crate) fn only_number(text: &str) -> Option<Number<'_>> {
    match numbers(text)[..] {
        [number] => number,
        _ => None,
    }
}

/// The number that stands last in a text.
pub(crate) fn last_number(text: &str) -> Option<Number<'_>> {
    numbers(text).pop().flatten()
}

/// The numbers of a text in their order, `None` for digits that are no number, such as those of a date, a range or a time.
/// Digits that are part of a name (`Q2`, `FY 2018`, `10-K`) are left out.
fn numbers(text: &str) -> Vec<Option<Number<'_>>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(place) = text[from..].find(|c: char| c.is_ascii_digit()) {
        let first = from + place;
        let end = first + run(&text[first..]);
        // `.5`
        let point = text[..first].strip_suffix('.').is_some_and(|front| !front.ends_with(char::is_alphanumeric));
        let start = first - usize::from(point);
        from = end;
        found.extend(number(text, start..end));
    }
    found
}

/// How many bytes the digits at the beginning of a text take, with what joins them.
fn run(text: &str) -> usize {
    let mut end = 0;
    loop {
        end += text[end..].find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len() - end);
        let mut next = text[end..].chars();
        match (next.next(), next.next()) {
            (Some(join), Some(digit)) if JOINS.contains(&join) && digit.is_ascii_digit() => end += join.len_utf8(),
            _ => return end,
        }
    }
}

/// What the digits at a place are: `None` if they are part of a name, `Some(None)` if they are no number.
fn number(text: &str, place: Range<usize>) -> Option<Option<Number<'_>>> {
    let (before, digits, after) = (&text[..place.start], &text[place.clone()], &text[place.end..]);
    let front = Front::of(before);
    let back = Back::of(after, &front);
    let named_before = before.strip_suffix(MINUS).unwrap_or(before).ends_with(|c: char| c.is_alphabetic() || c == '_')
        || before.trim_end().ends_with("FY");
    let named_behind = after.strip_prefix('-').is_some_and(|rest| rest.starts_with(char::is_alphabetic));
    if named_before && !front.money || named_behind && back.unit.is_none() {
        return None;
    }
    let Some(value) = value(digits) else { return Some(None) };
    // A bare year in brackets isn't negative, unless there is nothing else.
    let amount = front.money || back.unit.is_some() || digits.contains([',', '.']);
    let alone = front.rest.trim().is_empty() && back.rest.trim_matches(|c: char| !c.is_alphanumeric()).is_empty();
    let bracketed = back.closed && (amount || alone);
    let (begin, end) = (front.rest.len(), text.len() - back.rest.len());
    let shown = if bracketed { &text[begin..end] } else { text[begin..end].trim_matches(['(', ')']) };
    let value = if bracketed || front.negative { -value } else { value };
    Some(Some(Number { text: shown, front: front.rest, back: back.rest, value, unit: back.unit }))
}

/// The value of digits with commas between thousands, or without, and with decimals or without.
fn value(digits: &str) -> Option<f64> {
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let only_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mut groups = whole.split(',');
    let first = groups.next().unwrap_or_default();
    let mut thousands = groups.peekable();
    let head = thousands.peek().is_none() || (1..=3).contains(&first.len());
    let readable = head && only_digits(first) && thousands.all(|group| group.len() == 3 && only_digits(group));
    let value: f64 = (readable && only_digits(decimals)).then(|| digits.replace(',', ""))?.parse().ok()?;
    // With infinity everything is near enough.
    value.is_finite().then_some(value)
}

/// What stands in front of digits and belongs to them, in any order: `-$`, `$(`.
struct Front<'a> {
    rest: &'a str,
    negative: bool,
    money: bool,
    bracket: bool,
}

impl<'a> Front<'a> {
    fn of(before: &'a str) -> Self {
        let mut front = Self { rest: before, negative: false, money: false, bracket: false };
        loop {
            let spaced = front.rest.trim_end_matches(SPACES);
            let currency = CURRENCIES.iter().find_map(|sign| spaced.strip_suffix(*sign));
            // `5-3` is no negative three.
            let minus = front.rest.strip_suffix(MINUS).filter(|rest| !rest.ends_with(|c: char| c.is_alphanumeric() || c == ')'));
            if let Some(rest) = currency {
                (front.rest, front.money) = (rest, true);
            } else if let Some(rest) = minus {
                (front.rest, front.negative) = (rest, true);
            } else if let Some(rest) = front.rest.strip_suffix('(') {
                (front.rest, front.bracket) = (rest, true);
            } else {
                return front;
            }
        }
    }
}

/// What stands behind digits and belongs to them: `%`, ` million`, `)`.
struct Back<'a> {
    rest: &'a str,
    unit: Option<f64>,
    closed: bool,
}

impl<'a> Back<'a> {
    fn of(after: &'a str, front: &Front<'_>) -> Self {
        let mut back = Self { rest: after, unit: None, closed: false };
        loop {
            let bracket = back.rest.strip_prefix(')').filter(|_| front.bracket && !back.closed);
            let unit = unit(back.rest, front.money).filter(|_| back.unit.is_none());
            if let Some(rest) = bracket {
                (back.rest, back.closed) = (rest, true);
            } else if let Some((unit, rest)) = unit {
                (back.rest, back.unit) = (rest, Some(unit));
            } else {
                return back;
            }
        }
    }
}

/// The unit that a text begins with, and what stands behind it. A letter is one only right behind an amount of money: `$5m`
/// are millions, `18 m` and `18m` metres.
fn unit(text: &str, money: bool) -> Option<(f64, &str)> {
    let word = text.trim_start_matches(SPACES);
    if let Some(rest) = word.strip_prefix('%') {
        return Some((PERCENT, rest));
    }
    let word = word.strip_prefix('-').unwrap_or(word);
    let (name, rest) = word.split_at(word.find(|c: char| !c.is_alphabetic()).unwrap_or(word.len()));
    let letter = money && word.len() == text.len();
    let factor = match name.to_lowercase().as_str() {
        "per" => {
            let rest = rest.trim_start_matches(SPACES).strip_prefix("cent");
            return rest.filter(|rest| !rest.starts_with(char::is_alphabetic)).map(|rest| (PERCENT, rest));
        }
        "mn" => 1e6,
        "bn" => 1e9,
        "mm" if money => 1e6,
        "k" if letter => 1e3,
        "m" if letter => 1e6,
        "b" if letter => 1e9,
        name => named(name)?,
    };
    Some((factor, rest))
}

/// The unit of that name, in lower case.
fn named(name: &str) -> Option<f64> {
    match name {
        "%" | "percent" | "percents" | "percentage" => Some(PERCENT),
        "thousand" | "thousands" => Some(1e3),
        "million" | "millions" => Some(1e6),
        "billion" | "billions" => Some(1e9),
        "trillion" | "trillions" => Some(1e12),
        _ => None,
    }
}

/// The units that a question asks in (`in USD millions`, `as a %`); those of its own numbers are none.
fn units(question: &str) -> Vec<f64> {
    let mut found = Vec::new();
    let mut counted = false;
    for word in question.split_whitespace() {
        let name = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '%');
        let unit = named(&name.to_lowercase()).filter(|unit| !counted && !found.contains(unit));
        found.extend(unit);
        counted = name.ends_with(|c: char| c.is_ascii_digit());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, value) in [
            ("$1,577.00", Some(1577.0)),
            ("1,577,000,000", Some(1.577e9)),
            (".5", Some(0.5)),
            ("about 8.7 billion dollars", Some(8.7e9)),
            ("$8.7bn", Some(8.7e9)),
            ("8.7 bn", Some(8.7e9)),
            ("$2,018mn", Some(2.018e9)),
            ("$5m", Some(5e6)),
            ("US$ 2.5 mm", Some(2.5e6)),
            ("$5 m", Some(5.0)),
            ("18.1 m", Some(18.1)),
            ("18m", Some(18.0)),
            ("18 mm", Some(18.0)),
            ("5 k", Some(5.0)),
            ("a five-million-dollar prize of 5-million dollars", Some(5e6)),
            ("(12)", Some(-12.0)),
            ("($1,577) million", Some(-1.577e9)),
            ("$(1,577) million", Some(-1.577e9)),
            ("(2.5%)", Some(-0.025)),
            ("-$473 million", Some(-4.73e8)),
            ("$-473", Some(-473.0)),
            ("\u{2212}3.5", Some(-3.5)),
            ("\u{2013}3.5", Some(-3.5)),
            ("-3.5%", Some(-0.035)),
            ("65.4 per cent", Some(0.654)),
            ("65.4 percent.", Some(0.654)),
            ("It was lit long ago (1874).", Some(1874.0)),
            ("In FY2018 and FY 2017 it was $3.", Some(3.0)),
            ("a 3-year mean of 2.8%, as the 10-K says", Some(0.028)),
            ("It was 18 metres.", Some(18.0)),
            ("from 3 to 5", None),
            ("2015-2017", None),
            ("3\u{2013}5", None),
            ("10:30", None),
            ("9".repeat(400).as_str(), None),
            ("1,5", None),
            ("1.2.3", None),
            ("Q2", None),
            ("none", None),
            ("", None),
        ] {
            let found = only_number(text).map(|number| number.value * number.unit.unwrap_or(1.0));
            let same = match (found, value) {
                (Some(found), Some(value)) => (found - value).abs() <= 1e-12 * value.abs(),
                (found, value) => found == value,
            };
            assert!(same, "{text}: {found:?}");
        }
    }

    #[test]
    fn the_last_number_stands_as_it_was_written() {
        let last = |text| last_number(text).map(|number| number.text);
        assert_eq!(last("In 2018 they spent $1.58 billion."), Some("$1.58 billion"));
        assert_eq!(last("From 3 to -3.5%."), Some("-3.5%"));
        assert_eq!(last("They lost ($1,577) million (net)."), Some("($1,577) million"));
        assert_eq!(last("It was lit (1874)."), Some("1874"));
        assert_eq!(last("They spent ($5m in all)."), Some("$5m"));
        assert_eq!((last("It was 5 in 2015-2017."), last("Größe")), (None, None));
    }

    #[test]
    fn a_right_answer_is_a_number_if_it_is_little_else() {
        for answer in ["$1577.00", "18 metres", "About 142 stone steps.", "~90%", "$400,000,000 increase.", "(12)"] {
            assert!(right_number(answer).is_some(), "{answer}");
        }
        for answer in ["Lotte Amsel, 1911", "9.5 times in the year before", "3 to 5", "FY2018", "nine"] {
            assert!(right_number(answer).is_none(), "{answer}");
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        let same = |said, right, question| {
            only_number(said).zip(right_number(right)).is_some_and(|(said, right)| said.is(&right, question, 0.01))
        };
        for (said, right) in [
            ("$1.58 billion", "1577000000"),
            ("1.01", "1"),
            ("18.1 m", "18 metres"),
            ("65.4%", "0.654"),
            ("0.654", "65.4%"),
            ("65.4", "65.4%"),
            ("65.4%", "65.4 percent"),
            ("0", "0"),
        ] {
            assert!(same(said, right, "How much?"), "{said} is {right}");
        }
        for (said, right) in [
            ("$1.60 billion", "1577000000"),
            ("158", "1.58"),
            ("3.5", "-3.5"),
            ("15", "1.5"),
            ("65.4%", "65.4"),
            ("$1,577 million", "$1577.00"),
            ("8.7", "$8.70 billion"),
            ("0.001", "0"),
            ("many", "18"),
        ] {
            assert!(!same(said, right, "How much?"), "{said} isn't {right}");
        }
        let question = "What is the capital expenditure (in USD millions) of a firm that sold over 5 billion?";
        for said in ["1577", "$1,577 million", "$1.577 billion", "1,577,000,000"] {
            assert!(same(said, "$1577.00", question), "{said}");
        }
        assert!(same("1577", "$1.577 billion", question));
        assert!(!same("$1,577 billion", "$1577.00", question) && !same("$1.577", "$1577.00", question));
        assert!(same("65.4%", "65.4", "What is the margin (as a %)?"));
    }
}
