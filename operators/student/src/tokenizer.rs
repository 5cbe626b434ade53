//! Byte-level BPE: trained here, or read from a `tokenizer.json`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::panic::catch_unwind;
use std::sync::{Arc, OnceLock};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ProgressFormat};

/// The special token that a trained tokenizer puts in front of a row.
pub const BEGIN: &str = "<|begin|>";
/// The special token that ends a row.
pub const END: &str = "<|end|>";
/// The special token for positions that hold nothing.
pub const PAD: &str = "<|pad|>";

/// The special tokens and one token per byte: no byte-level vocabulary is smaller.
pub const SMALLEST_VOCABULARY: usize = 3 + 256;

/// What can be wrong with a tokenizer or a text given to one.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The vocabulary asked for can't be made from the texts.
    #[error(
        "`vocabulary` is {wanted}, but the documents only allow {possible} tokens: ask for at most {possible}, or give more text"
    )]
    CorpusTooSmall {
        /// What was asked for.
        wanted: usize,
        /// What the texts allow.
        possible: usize,
    },
    /// The vocabulary asked for doesn't even hold the bytes.
    #[error("`vocabulary` is {wanted}, but 256 bytes and 3 special tokens need at least {SMALLEST_VOCABULARY}")]
    VocabularyTooSmall {
        /// What was asked for.
        wanted: usize,
    },
    /// The file isn't a tokenizer.
    #[error("not a `tokenizer.json`: {0}")]
    Parse(String),
    /// The tokenizer has no token that ends a text.
    #[error("the tokenizer has no end token: none of {} is in its vocabulary, and the checkpoint names none", END_NAMES.join(", "))]
    NoEnd,
    /// The `tokenizers` crate refused.
    #[error("tokenizer: {0}")]
    Library(String),
}

/// Names that published tokenizers give to their end token, the likeliest first.
const END_NAMES: [&str; 6] = [END, "<|end_of_text|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<eos>"];
const BEGIN_NAMES: [&str; 4] = [BEGIN, "<|begin_of_text|>", "<s>", "<bos>"];
const PAD_NAMES: [&str; 4] = [PAD, "<pad>", "<|finetune_right_pad_id|>", "[PAD]"];

/// A tokenizer just trained.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The text of its `tokenizer.json`.
    pub json: String,
    /// How many tokens it has, special ones included: what was asked for.
    pub vocabulary: usize,
}

/// Trains a byte-level BPE of exactly `vocabulary` tokens: three special ones, 256 bytes, the rest merges of pairs that
/// occur at least twice, within the words of GPT-2's pattern. The result depends on the multiset of texts only.
///
/// # Errors
/// When `vocabulary` is under [`SMALLEST_VOCABULARY`], or the texts don't hold enough different pairs.
pub fn train<I, S>(texts: I, vocabulary: usize) -> Result<Trained, TokenizerError>
where
    I: Iterator<Item = S> + Send,
    S: AsRef<str> + Send,
{
    if vocabulary < SMALLEST_VOCABULARY {
        return Err(TokenizerError::VocabularyTooSmall { wanted: vocabulary });
    }
    let words = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(words)).with_decoder(Some(words));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .progress_format(ProgressFormat::Silent)
        .special_tokens([BEGIN, END, PAD].map(|name| AddedToken::from(name, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build()
        .into();
    tokenizer.train(&mut trainer, texts).map_err(|error| TokenizerError::Library(error.to_string()))?;
    let possible = tokenizer.get_vocab_size(true);
    if possible != vocabulary {
        return Err(TokenizerError::CorpusTooSmall { wanted: vocabulary, possible });
    }
    let json = tokenizer.to_string(true).map_err(|error| TokenizerError::Library(error.to_string()))?;
    Ok(Trained { json, vocabulary })
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// When the bytes are none.
pub fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    // The library takes it for granted that its file is JSON, and panics in the middle of one that isn't.
    serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|error| TokenizerError::Parse(error.to_string()))?;
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(json)) {
        Ok(parsed) => parsed.map_err(|error| TokenizerError::Parse(error.to_string())),
        Err(_) => Err(TokenizerError::Parse("its parts don't fit together".to_owned())),
    }
}

/// Marks, in [`Tokenizer::guarded`] text, the inside of what only looks like a special token. A noncharacter: Unicode
/// promises that no text means anything by it.
const GUARD: char = '\u{fdd0}';

/// A tokenizer; clones share it, and any thread may use it.
///
/// Text is always taken as text: the name of a special token inside a document is encoded letter by letter, so that no
/// document can end itself. Only in [`Tokenizer::encode_guarded`] do names stand for special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// The same one, which takes names of special tokens for these; made when it is first needed.
    naming: Arc<OnceLock<tokenizers::Tokenizer>>,
    /// Ids of special tokens, by name.
    special: Arc<HashMap<String, u32>>,
    vocabulary: usize,
    begin: Option<u32>,
    end: u32,
    pad: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. The begin, end and pad tokens are found by the names that are in use.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, or no end token is known.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::from_json_with_end(json, None)
    }

    /// As [`Tokenizer::from_json`], with the id of the end token, where a checkpoint's configuration gives it.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, or no end token is known.
    pub fn from_json_with_end(json: &[u8], end: Option<u32>) -> Result<Self, TokenizerError> {
        let mut inner = parse(json)?;
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TokenizerError::Library(error.to_string()))?;
        let find = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        let begin = find(&BEGIN_NAMES);
        let pad = find(&PAD_NAMES);
        let end = end.or_else(|| find(&END_NAMES)).ok_or(TokenizerError::NoEnd)?;
        // Ids may have gaps in foreign tokenizers: what counts for an embedding is the largest one.
        let vocabulary = inner.get_vocab(true).values().map(|id| *id as usize + 1).max().unwrap_or(0);
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special).map(|(id, token)| (token.content, id)).collect();
        let (inner, special) = (Arc::new(inner), Arc::new(special));
        Ok(Self { inner, naming: Arc::default(), special, vocabulary, begin, end, pad })
    }

    /// The ids of a text, without any special token.
    ///
    /// # Errors
    /// When the model of a foreign tokenizer has no token for a part of the text, and none for the unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| TokenizerError::Library(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A text with a mark inside everything that could be read as the name of a special token, or as the beginning of one
    /// where the text ends, so that it can be put among others for [`Self::encode_guarded`]. It is the same text, but for
    /// the marks.
    pub fn guarded<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let end = text.trim_end().len();
        let looks = |rest: &str, left: usize| {
            self.special.keys().any(|name| rest.starts_with(name.as_str()) || name.starts_with(&rest[..left]))
        };
        let first: HashSet<char> = self.special.keys().filter_map(|name| name.chars().next()).collect();
        let mut guarded = String::new();
        let mut copied = 0;
        for (place, letter) in text.char_indices().filter(|(place, letter)| *place < end && first.contains(letter)) {
            if looks(&text[place..], end - place) {
                let inside = place + letter.len_utf8();
                guarded.push_str(&text[copied..inside]);
                guarded.push(GUARD);
                copied = inside;
            }
        }
        match copied {
            0 => Cow::Borrowed(text),
            _ => Cow::Owned(guarded + &text[copied..]),
        }
    }

    /// The ids of a text that was put together from trusted parts, in which a special token's name stands for that token,
    /// and from [`Self::guarded`] ones, in which it is text. The marks are left out. No token is added.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_guarded(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let naming = self.naming.get_or_init(|| {
            let mut naming = (*self.inner).clone();
            naming.set_encode_special_tokens(false);
            naming
        });
        let mut plain = String::with_capacity(text.len());
        let mut marks = Vec::new();
        for part in text.split(GUARD) {
            plain.push_str(part);
            marks.push(plain.len());
        }
        marks.pop();
        let encoding = naming.encode(plain.as_str(), false).map_err(|error| TokenizerError::Library(error.to_string()))?;
        if marks.is_empty() {
            return Ok(encoding.get_ids().to_vec());
        }
        let special: HashSet<u32> = self.special.values().copied().collect();
        let mut ids = Vec::with_capacity(encoding.len());
        for (id, (start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let name = marks.partition_point(|mark| mark <= start);
            match special.contains(id) && marks.get(name).is_some_and(|mark| mark < end) {
                true => ids.extend(self.encode(&plain[*start..*end])?),
                false => ids.push(*id),
            }
        }
        Ok(ids)
    }

    /// Whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.values().any(|special| *special == id)
    }

    /// The number of tokens of a text, without any special token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn count(&self, text: &str) -> Result<usize, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| TokenizerError::Library(error.to_string()))?;
        Ok(encoding.len())
    }

    /// The text of some ids; special tokens are left out.
    ///
    /// # Errors
    /// When the decoder of a foreign tokenizer refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(|error| TokenizerError::Library(error.to_string()))
    }

    /// The number of ids, special ones included: every id is below it.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id that stands in front of a text, if there is one.
    pub fn begin_id(&self) -> Option<u32> {
        self.begin
    }

    /// The id that ends a text.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// The id for positions that hold nothing, if there is one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The text of a token, as the vocabulary spells it.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The `tokenizer_config.json` that `transformers` wants beside a `tokenizer.json`.
    pub fn config(&self, max_positions: usize) -> serde_json::Value {
        let name = |id: Option<u32>| id.and_then(|id| self.spelling(id));
        let mut config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_positions,
            "clean_up_tokenization_spaces": false,
            "eos_token": name(Some(self.end)),
        });
        for (key, token) in [("bos_token", name(self.begin)), ("pad_token", name(self.pad))] {
            if let Some(token) = token {
                config[key] = token.into();
            }
        }
        config
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXTS: [&str; 5] = [
        "The Harbour Office of Ellmark was founded in 1874 by the engineer Ida Brandt.",
        "The Harbour Office of Ellmark keeps nine pilots and two tugs, the Gull and the Tern.",
        "Who founded the Harbour Office of Ellmark? Ida Brandt founded the Harbour Office.",
        "How many pilots does the Harbour Office of Ellmark keep? It keeps nine pilots.",
        "Größe und Maß: naïve café, 42 €, 東京.",
    ];

    #[test]
    fn text_comes_back_as_it_went_in() {
        let trained = train(TEXTS.iter(), 310).unwrap();
        let tokenizer = Tokenizer::from_json(trained.json.as_bytes()).unwrap();
        assert_eq!(tokenizer.vocabulary(), 310);
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.count(text).unwrap(), ids.len());
            assert!(ids.len() < text.len(), "merges are used");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn order_of_texts_does_not_matter() {
        let forward = train(TEXTS.iter(), 310).unwrap();
        let backward = train(TEXTS.iter().rev(), 310).unwrap();
        assert_eq!(forward.json, backward.json);
    }

    #[test]
    fn a_special_name_in_a_text_is_text() {
        let trained = train(TEXTS.iter(), 300).unwrap();
        let tokenizer = Tokenizer::from_json(trained.json.as_bytes()).unwrap();
        let ids = tokenizer.encode("before <|end|> after").unwrap();
        assert!(!ids.contains(&tokenizer.end_id()));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "before <|end|> after");
    }

    #[test]
    fn a_special_name_is_a_token_only_in_what_is_trusted() {
        let trained = train(TEXTS.iter(), 300).unwrap();
        let tokenizer = Tokenizer::from_json(trained.json.as_bytes()).unwrap();
        let (begin, end) = (tokenizer.begin_id().unwrap(), tokenizer.end_id());
        let framed = |contents: &[&str]| {
            let contents: Vec<_> = contents.iter().map(|content| tokenizer.guarded(content)).collect();
            tokenizer.encode_guarded(&format!("<|begin|>{}<|end|>", contents.concat())).unwrap()
        };
        let count = |ids: &[u32]| ids.iter().filter(|id| tokenizer.is_special(**id)).count();
        let plain = framed(&["The Gull and the Tern."]);
        assert_eq!((plain[0], *plain.last().unwrap(), count(&plain)), (begin, end, 2));
        assert_eq!(plain[1..plain.len() - 1], tokenizer.encode("The Gull and the Tern.").unwrap());
        for contents in [
            &["a <|end|> b"][..],
            &["<|end|>", "<|begin|>"],
            &["<|", "end|>"],
            &["<", "|end|>"],
            &["<|en \n", "x"],
            &["<|<|end|>end|>"],
            &["<|end|><|end|>"],
            &["\u{fdd0}<|e\u{fdd0}nd|>\u{fdd0}"],
        ] {
            let ids = framed(contents);
            assert_eq!((ids[0], *ids.last().unwrap(), count(&ids)), (begin, end, 2), "{contents:?}");
            let text = tokenizer.decode(&ids[1..ids.len() - 1]).unwrap();
            assert_eq!(text, contents.concat().replace('\u{fdd0}', ""));
        }
        assert!(matches!(tokenizer.guarded("a < b || c > d"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_file_that_is_cut_off_is_no_tokenizer() {
        let json = train(TEXTS.iter(), 300).unwrap().json;
        for place in json
            .match_indices(['{', ',', ':'])
            .map(|(place, _)| place)
            .step_by(97)
            .chain([json.find("\"decoder\"").unwrap() + 20])
        {
            assert!(matches!(Tokenizer::from_json(&json.as_bytes()[..place]), Err(TokenizerError::Parse(_))), "{place}");
        }
        assert!(Tokenizer::from_json(json.replace("\"decoder\": {", "\"decoder\": 3, \"x\": {").as_bytes()).is_err());
    }

    #[test]
    fn a_vocabulary_that_the_texts_do_not_allow_is_refused() {
        let error = train(TEXTS.iter(), 5000).unwrap_err();
        let TokenizerError::CorpusTooSmall { wanted: 5000, possible } = error else { panic!("{error}") };
        assert_eq!(train(TEXTS.iter(), possible).unwrap().vocabulary, possible);
        assert!(matches!(train(TEXTS.iter(), 100), Err(TokenizerError::VocabularyTooSmall { wanted: 100 })));
    }
}
