//! How long a text is, in characters or in a tokenizer's tokens.

use std::{collections::HashMap, sync::Arc};

use ingrain_engine::failure::Failure;
use ingrain_student::tokenizer::parse;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Model, Tokenizer};

/// Longer pieces are counted anew each time.
const LONGEST_REMEMBERED: usize = 64;
/// How many pieces are remembered: some 20 MB of them.
const REMEMBERED: usize = 1 << 18;
/// The pattern by which `ByteLevel` cuts words unless it is told otherwise (GPT-2).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Measures texts.
pub(super) enum Measure {
    /// In Unicode scalar values.
    Characters,
    /// In tokens, without the special ones that a tokenizer puts around a text.
    Tokens(Counter),
}

impl Measure {
    /// The length of `text`.
    ///
    /// # Errors
    /// When the tokenizer can't encode it.
    pub(super) fn length(&mut self, text: &str) -> Result<usize, Failure> {
        match self {
            Self::Characters => Ok(text.chars().count()),
            Self::Tokens(counter) => counter.count(text),
        }
    }
}

/// A tokenizer, made ready for counting. Shared by all who count with it.
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    byte_level: Option<ByteLevel>,
}

/// What a byte-level BPE tokenizer does before it merges, as far as counting needs it.
struct ByteLevel {
    pieces: Pieces,
    /// Texts that may hold an added token.
    added: Option<Regex>,
    /// Whether text is put into normal form C first.
    composed: bool,
}

/// The parts of a `tokenizer.json` that decide how text is cut into pieces.
#[derive(Deserialize)]
struct Description {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: ModelDescription,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
}

#[derive(Deserialize)]
struct ModelDescription {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
}

impl Tokens {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it isn't one, or draws at random (`dropout`).
    pub(super) fn parse(json: &[u8]) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::data(format!("the tokenizer can't be read: {error}"));
        let description: Description = serde_json::from_slice(json).map_err(|error| wrong(&error))?;
        if description.model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err(Failure::data("the tokenizer leaves out merges at random (`dropout`)").hint("set it to null"));
        }
        let mut tokenizer = parse(json).map_err(|error| wrong(&error))?;
        tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, byte_level: ByteLevel::of(&description) })
    }
}

impl ByteLevel {
    /// `None` for every tokenizer that does more than cut text by a pattern and merge bytes.
    fn of(description: &Description) -> Option<Self> {
        let kind = |value: &Value| value["type"].as_str().map(str::to_owned);
        let composed = match &description.normalizer {
            None | Some(Value::Null) => false,
            Some(normalizer) if kind(normalizer).as_deref() == Some("NFC") => true,
            Some(_) => return None,
        };
        if description.model.kind.as_deref() != Some("BPE") {
            return None;
        }
        let bytes_only = |step: &Value, cuts: bool| {
            kind(step).as_deref() == Some("ByteLevel")
                && step["add_prefix_space"] == Value::Bool(false)
                && step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == cuts
        };
        let first = description.pre_tokenizer.as_ref()?;
        let pattern = if bytes_only(first, true) {
            GPT2
        } else {
            let [split, bytes] = first["pretokenizers"].as_array()?.as_slice() else { return None };
            let cuts = kind(split).as_deref() == Some("Split")
                && split["behavior"] == "Isolated"
                && split["invert"] == Value::Bool(false);
            if kind(first).as_deref() != Some("Sequence") || !cuts || !bytes_only(bytes, false) {
                return None;
            }
            split["pattern"]["Regex"].as_str()?
        };
        let added: Vec<_> = description.added_tokens.iter().map(|token| regex::escape(&token.content)).collect();
        let added = if added.is_empty() { None } else { Some(Regex::new(&added.join("|")).ok()?) };
        Some(Self { pieces: Pieces::new(pattern)?, added, composed })
    }

    /// Whether pieces of `text` may be counted one by one.
    fn applies(&self, text: &str) -> bool {
        (!self.composed || text.is_ascii() || text.chars().all(composed))
            && self.added.as_ref().is_none_or(|added| !added.is_match(text))
    }
}

/// Whether normal form C leaves a character alone, whatever stands around it. Says no to some that it does leave alone.
fn composed(c: char) -> bool {
    matches!(u32::from(c),
        0..=0x2FF | 0x400..=0x482 | 0x48A..=0x52F | 0x2010..=0x2027 | 0x2030..=0x205E | 0x20A0..=0x20BF
        | 0x3001..=0x3029 | 0x3041..=0x3096 | 0x30A0..=0x30FF | 0x4E00..=0x9FFF | 0xAC00..=0xD7A3 | 0xFF01..=0xFFEF)
}

/// Cuts text by a tokenizer's pattern. `regex` has no look-ahead; the one that these patterns use, `\s+(?!\S)` before
/// `\s+`, is done by hand: whitespace leaves its last character to the word that follows.
struct Pieces {
    all: Regex,
    /// The pattern without its last two alternatives, if they are those.
    without_space: Option<Regex>,
}

impl Pieces {
    fn new(pattern: &str) -> Option<Self> {
        match pattern.strip_suffix(r"|\s+(?!\S)|\s+") {
            Some(front) => {
                Some(Self { all: Regex::new(&format!(r"{front}|\s+")).ok()?, without_space: Some(Regex::new(front).ok()?) })
            }
            None => Some(Self { all: Regex::new(pattern).ok()?, without_space: None }),
        }
    }

    /// Calls `piece` for each piece of `text`, in order; together they are the text.
    fn each<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t str) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut at = 0;
        while at < text.len() {
            let Some(found) = self.all.find_at(text, at).filter(|found| !found.is_empty()) else {
                return piece(&text[at..]);
            };
            if found.start() > at {
                piece(&text[at..found.start()])?;
            }
            let mut end = found.end();
            if end < text.len() && self.leaves_last(found.as_str(), &text[end..]) {
                end = text.floor_char_boundary(end - 1);
            }
            piece(&text[found.start()..end])?;
            at = end;
        }
        Ok(())
    }

    /// Whether `space` was found by the last alternative, is longer than one character, and a word follows.
    fn leaves_last(&self, space: &str, rest: &str) -> bool {
        let Some(without_space) = &self.without_space else { return false };
        space.len() > 1
            && space.chars().nth(1).is_some()
            && space.chars().all(char::is_whitespace)
            && !rest.starts_with(char::is_whitespace)
            && without_space.find(space).is_none_or(|found| found.range() != (0..space.len()))
    }
}

/// Counts tokens, and remembers the counts of pieces that come again.
pub(super) struct Counter {
    tokens: Arc<Tokens>,
    counts: HashMap<Box<str>, u32>,
}

impl Counter {
    pub(super) fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, counts: HashMap::new() }
    }

    /// How many tokens `text` has.
    ///
    /// # Errors
    /// When the tokenizer can't encode it.
    pub(super) fn count(&mut self, text: &str) -> Result<usize, Failure> {
        let tokens = self.tokens.clone();
        match &tokens.byte_level {
            Some(byte_level) if byte_level.applies(text) => {
                let mut total = 0;
                byte_level.pieces.each(text, |piece| {
                    total += self.piece(piece)?;
                    Ok(())
                })?;
                Ok(total)
            }
            _ => {
                let encoding = tokens.tokenizer.encode_fast(text, false);
                let encoding = encoding.map_err(|error| Failure::data(format!("the tokenizer can't encode a text: {error}")))?;
                Ok(encoding.len())
            }
        }
    }

    fn piece(&mut self, piece: &str) -> Result<usize, Failure> {
        if let Some(count) = self.counts.get(piece) {
            return Ok(*count as usize);
        }
        let bytes: String = piece.bytes().map(byte_character).collect();
        let tokens = self.tokens.tokenizer.get_model().tokenize(&bytes);
        let count = tokens.map_err(|error| Failure::data(format!("the tokenizer can't encode a text: {error}")))?.len();
        if piece.len() <= LONGEST_REMEMBERED && self.counts.len() < REMEMBERED {
            self.counts.insert(piece.into(), u32::try_from(count).unwrap_or(u32::MAX));
        }
        Ok(count)
    }
}

/// The character by which byte-level vocabularies write a byte: itself if it is printable, else one from U+0100 on, in
/// order (OpenAI's `bytes_to_unicode`).
fn byte_character(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=b' ' => offset(u32::from(byte)),
        0x7F..=0xA0 => offset(u32::from(byte) - 0x7F + 33),
        0xAD => offset(67),
    }
}

fn offset(n: u32) -> char {
    char::from_u32(0x100 + n).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
pub(super) mod tests {
    use tokenizers::{
        AddedToken as Added, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
        SplitDelimiterBehavior, TokenizerBuilder,
        models::bpe::{BPE, BpeTrainerBuilder},
        normalizers::unicode::NFC,
        pre_tokenizers::{
            byte_level::ByteLevel as Bytes,
            metaspace::Metaspace,
            sequence::Sequence,
            split::{Split, SplitPattern},
        },
    };

    use super::*;

    const LLAMA3: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    pub(in crate::chunk) const SAMPLE: &str = "The harbour office of Lindgate opened in 1871, and its clock, painted \
        green, still runs four minutes late. Nobody's sure why: they've asked the keeper twice! It'll be 25,000 days \
        soon.\n\n  Indented lines,\ttabs, and “quotes” — as in naïve cafés — stay. 这是一个句子。 Ünïcödé 🎉🎉 done.\r\n";

    /// Trains a small BPE tokenizer on [`SAMPLE`].
    pub(in crate::chunk) fn trained(pre: PreTokenizerWrapper, nfc: bool) -> Vec<u8> {
        let normalizer = nfc.then_some(NormalizerWrapper::from(NFC));
        let mut tokenizer =
            TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
                .with_model(BPE::default())
                .with_normalizer(normalizer)
                .with_pre_tokenizer(Some(pre))
                .build()
                .unwrap();
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(420)
            .initial_alphabet(Bytes::alphabet().into_iter().collect())
            .special_tokens(vec![Added::from("<|end|>", true)])
            .build();
        tokenizer.train(&mut trainer, [SAMPLE.repeat(3)].iter()).unwrap();
        tokenizer.to_string(false).unwrap().into_bytes()
    }

    pub(in crate::chunk) fn gpt2() -> PreTokenizerWrapper {
        Bytes::new(false, true, true).into()
    }

    fn llama3() -> PreTokenizerWrapper {
        let split = Split::new(SplitPattern::Regex(LLAMA3.into()), SplitDelimiterBehavior::Isolated, false).unwrap();
        Sequence::new(vec![split.into(), Bytes::new(false, true, false).into()]).into()
    }

    /// Compares with the tokenizer itself, on every prefix and on random mixtures.
    fn agrees(json: &[u8], by_pieces: bool) {
        let tokens = Arc::new(Tokens::parse(json).unwrap());
        assert_eq!(tokens.byte_level.is_some(), by_pieces);
        let tokenizer = Tokenizer::from_bytes(json).unwrap();
        let mut counter = Counter::new(tokens);
        let mut check = |text: &str| {
            let expected = tokenizer.encode_fast(text, false).unwrap().len();
            assert_eq!(counter.count(text).unwrap(), expected, "{text:?}");
        };
        for (end, _) in SAMPLE.char_indices() {
            check(&SAMPLE[..end]);
        }
        let mut state = 3_u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let pieces = [
            " ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{2003}", "a", "Word", "'s", "'LL", "12345", ".", "...", "!?", "é",
            "e\u{301}", "中文", "<|end|>", "🎉", "\u{85}", "½", "Ⅷ",
        ];
        for _ in 0..2000 {
            let text: String = (0..random(12)).map(|_| pieces[random(pieces.len())]).collect();
            check(&text);
        }
    }

    #[test]
    fn counts_are_those_of_the_tokenizer() {
        agrees(&trained(gpt2(), false), true);
        agrees(&trained(llama3(), false), true);
        agrees(&trained(llama3(), true), true);
        agrees(&trained(Metaspace::default().into(), false), false);
    }

    #[test]
    fn bytes_are_written_as_in_the_vocabulary() {
        let all: std::collections::BTreeSet<char> = (0..=255).map(byte_character).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(all, Bytes::alphabet().into_iter().collect());
        assert_eq!((byte_character(b' '), byte_character(b'\n')), ('Ġ', 'Ċ'));
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        assert!(Tokens::parse(b"{}").is_err());
        let json = String::from_utf8(trained(gpt2(), false)).unwrap().replace("\"dropout\":null", "\"dropout\":0.1");
        let Err(failure) = Tokens::parse(json.as_bytes()) else { panic!("accepted") };
        assert!(failure.message.contains("dropout"));
    }
}
