//! Reads what a teacher said. Teachers wrap JSON in prose and code fences, leave commas behind, break lines inside texts,
//! and are cut in the middle; what is whole in an answer is kept.

use crate::client::Reject;

/// Nesting beyond this isn't read: no answer needs it, and a hostile one must not use up the stack.
const MAX_DEPTH: usize = 64;

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The question, trimmed, never empty.
    pub question: String,
    /// A text that leads to the answer; empty where the teacher gave none.
    pub explanation: String,
    /// The answer, trimmed, never empty.
    pub answer: String,
}

/// What an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// The whole pairs, at least one, in their order.
    pub whole: Vec<Pair>,
    /// How many more were begun: objects that are cut off, or have only one of a question and an answer.
    pub incomplete: usize,
}

/// The pairs in an answer: objects with the members `question`, `answer` and perhaps `explanation` (in any case), in a
/// list or one after another, anywhere in the text. Objects that are cut off, or lack a question or an answer, are counted
/// and left out. An answer without a single pair is a reject with the reason `unparsable`, whose detail says what was found.
pub fn pairs(text: &str) -> Result<Pairs, Reject> {
    let mut pairs = Vec::new();
    let mut incomplete = 0;
    let mut found_json = false;
    let mut at = 0;
    while let Some(start) = text[at..].find(['{', '[']).map(|offset| at + offset) {
        let mut reader = Reader { text, at: start };
        match reader.value(0) {
            Some(value) => {
                found_json |= !matches!(&value, Value::List { items, .. } if items.is_empty());
                collect(&value, &mut pairs, &mut incomplete);
                at = reader.at.max(start + 1);
            }
            // A bracket in prose: what follows it may still be an object.
            None => at = start + 1,
        }
    }
    if !pairs.is_empty() {
        return Ok(Pairs { whole: pairs, incomplete });
    }
    let detail = match (found_json, incomplete) {
        (false, _) => "no JSON in the answer".to_owned(),
        (true, 0) => "no object with `question` and `answer`".to_owned(),
        (true, n) => format!("{n} objects without a whole `question` and `answer`"),
    };
    Err(Reject::new("unparsable", detail))
}

fn collect(value: &Value, pairs: &mut Vec<Pair>, incomplete: &mut usize) {
    match value {
        Value::Text { .. } | Value::Other => {}
        Value::List { items } => items.iter().for_each(|item| collect(item, pairs, incomplete)),
        Value::Object { members, whole } => {
            let member =
                |name: &str| members.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value);
            let text = |name: &str| match member(name) {
                Some(Value::Text { text, whole: true }) => Some(text.trim()).filter(|text| !text.is_empty()),
                _ => None,
            };
            match (text("question"), text("answer")) {
                (Some(question), Some(answer)) if *whole => pairs.push(Pair {
                    question: question.to_owned(),
                    explanation: text("explanation").unwrap_or_default().to_owned(),
                    answer: answer.to_owned(),
                }),
                _ => {
                    if member("question").is_some() || member("answer").is_some() {
                        *incomplete += 1;
                    }
                    members.iter().for_each(|(_, value)| collect(value, pairs, incomplete));
                }
            }
        }
    }
}

/// JSON as far as pairs need it. `whole` is false where the text ended first.
enum Value {
    Text { text: String, whole: bool },
    List { items: Vec<Value> },
    Object { members: Vec<(String, Value)>, whole: bool },
    Other,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// The value here. `None` if there is none; then `at` may have moved.
    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.skip_space();
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => {
                let (text, whole) = self.string();
                Some(Value::Text { text, whole })
            }
            _ => self.word(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut members = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None => {
                    return Some(Value::Object { members, whole: false });
                }
                Some(b'}') => {
                    self.at += 1;
                    return Some(Value::Object { members, whole: true });
                }
                Some(b',') => self.at += 1,
                Some(b'"') => {
                    let (key, _) = self.string();
                    self.skip_space();
                    match self.peek() {
                        None => {
                            return Some(Value::Object { members, whole: false });
                        }
                        Some(b':') => self.at += 1,
                        Some(_) => return None,
                    }
                    self.skip_space();
                    if self.peek().is_none() {
                        return Some(Value::Object { members, whole: false });
                    }
                    members.push((key, self.value(depth + 1)?));
                }
                Some(_) => return None,
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None => return Some(Value::List { items }),
                Some(b']') => {
                    self.at += 1;
                    return Some(Value::List { items });
                }
                Some(b',') => self.at += 1,
                Some(_) => match self.value(depth + 1) {
                    Some(item) => items.push(item),
                    // What was whole before the broken item is kept.
                    None if items.is_empty() => return None,
                    None => return Some(Value::List { items }),
                },
            }
        }
    }

    /// A number or a bare word. Numbers become texts: `"answer": 1912` is an answer.
    fn word(&mut self) -> Option<Value> {
        let rest = &self.text[self.at..];
        let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(rest.len());
        let word = &rest[..length];
        self.at += length;
        match word {
            "" => None,
            "null" | "true" | "false" => Some(Value::Other),
            _ if word.parse::<f64>().is_ok() => Some(Value::Text { text: word.to_owned(), whole: self.peek().is_some() }),
            _ => None,
        }
    }

    /// The string here, unescaped. Raw line breaks are taken as they are, unknown escapes as what follows the backslash.
    fn string(&mut self) -> (String, bool) {
        self.at += 1;
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((offset, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += offset + 1;
                    return (out, true);
                }
                '\\' => match chars.next() {
                    None => break,
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, 'r')) => out.push('\r'),
                    Some((_, 'b' | 'f')) => {}
                    Some((_, 'u')) => {
                        let first = hex4(chars.as_str());
                        let Some(unit) = first else { continue };
                        skip(&mut chars, 4);
                        let low = chars.as_str().strip_prefix("\\u").and_then(hex4);
                        match low {
                            Some(low) if (0xD800..0xDC00).contains(&unit) && (0xDC00..0xE000).contains(&low) => {
                                skip(&mut chars, 6);
                                let code = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                                out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                            }
                            _ => out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                        }
                    }
                    Some((_, other)) => out.push(other),
                },
                _ => out.push(c),
            }
        }
        self.at = self.text.len();
        (out, false)
    }
}

fn hex4(text: &str) -> Option<u32> {
    text.get(..4)
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
}

fn skip(chars: &mut std::str::CharIndices<'_>, n: usize) {
    for _ in 0..n {
        chars.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        pairs(text).expect("pairs").whole.into_iter().map(|pair| (pair.question, pair.answer)).collect()
    }

    fn two() -> Vec<(String, String)> {
        vec![("A?".to_owned(), "a".to_owned()), ("B?".to_owned(), "b".to_owned())]
    }

    #[test]
    fn the_same_pairs_in_many_clothes() {
        let list = r#"[{"question":"A?","explanation":"It is a.","answer":"a"},{"question":"B?","answer":"b"}]"#;
        let texts = [
            list.to_owned(),
            format!("{{\"pairs\": {list}}}"),
            format!("Sure! [Here] are {{some}} pairs:\n```json\n{list}\n```\nEnjoy."),
            list.replace("},", "},,").replace("\"}]", "\",},]"),
            list.replace("},{", "}\n{").trim_matches(['[', ']']).to_owned(),
            list.replace("question", "Question").replace("answer", "ANSWER"),
            format!("{}, {{\"question\": \"C?\", \"answer\": \"cu", &list[..list.len() - 1]),
            format!("{}, {{\"question\": \"C", &list[..list.len() - 1]),
            format!("{}, {{\"question\": \"C?\", \"answer\": \"c\"", &list[..list.len() - 1]),
            format!("{}, {{\"question\"; 3}}]", &list[..list.len() - 1]),
            format!("{{\"title\": null, \"n\": 2, \"result\": {{\"questions\": {list}}}}}"),
        ];
        for text in texts {
            assert_eq!(read(&text), two(), "{text}");
        }
        assert_eq!(pairs(list).expect("pairs").whole[0].explanation, "It is a.");
        assert_eq!(pairs(list).expect("pairs").whole[1].explanation, "");
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let whole = r#"{"question": "A?", "answer": "a"}"#;
        for (text, incomplete) in [
            (format!("[{whole}]"), 0),
            (format!("[{whole}, {{\"question\": \"B?\", \"answer\": \"\"}}, {{\"answer\": \"c\"}}]"), 2),
            (format!("[{whole}, {{\"question\": \"B?\", \"ans"), 1),
            (format!("[{whole}, {{\"note\": \"no pair at all\"}}]"), 0),
        ] {
            let found = pairs(&text).expect("pairs");
            assert_eq!((found.whole.len(), found.incomplete), (1, incomplete), "{text}");
        }
    }

    #[test]
    fn prose_fences_and_commas_together() {
        let text = "Here you go.\n\n```json\n{\n  \"pairs\": [\n    {\"question\": \"A?\", \"answer\": \"a\",},\n    \
                    {\"question\": \"B?\", \"answer\": \"b\"},\n  ],\n}\n```\n\nLet me know {if} you [need] more!";
        assert_eq!(read(text), two());
        let unfenced_end = &text[..text.find("\n  ],").expect("an end")];
        assert_eq!(read(unfenced_end), two(), "cut before the list ends");
        assert_eq!(read(&text.replace("```json", "~~~").replace('`', "")), two());
    }

    #[test]
    fn strings_are_unescaped() {
        let text = "{\"question\": \"\\u00e9\\ud83d\\ude00\\\"x\\\" \n y\\n\", \"answer\": 1912}";
        assert_eq!(read(text), [("é😀\"x\" \n y".to_owned(), "1912".to_owned())]);
    }

    #[test]
    fn rejects_say_what_was_found() {
        for (text, detail) in [
            ("I can't do that.", "no JSON in the answer"),
            ("[]", "no JSON in the answer"),
            ("{\"text\": \"x\"}", "no object with `question` and `answer`"),
            (
                "[{\"question\": \"A?\", \"answer\": \" \"}, {\"question\": \"B",
                "2 objects without a whole `question` and `answer`",
            ),
        ] {
            assert_eq!(pairs(text), Err(Reject::new("unparsable", detail)), "{text}");
        }
    }

    #[test]
    fn hostile_answers_end() {
        assert!(pairs(&"[".repeat(20_000)).is_err());
        assert!(pairs(&"{\"a\":".repeat(20_000)).is_err());
        assert!(pairs("{\"question\": \"\\u12").is_err());
    }
}
