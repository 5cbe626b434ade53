//! Continuations of texts, greedy or sampled.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::architecture::{Architecture, TokenIds};
use crate::checkpoint::CheckpointError;
use crate::engine::{Engine, EngineError};
use crate::pack::Batch;
use crate::score::{ScoreError, Scorer, failed};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The file that says which tokens end a text that is generated.
const CONFIG: &str = "generation_config.json";

/// Tokens, those to come counted, of the texts that are gone on with at once: keys and values of all of them are kept.
pub const TOKENS_AT_ONCE: usize = 1 << 14;

/// How texts are gone on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// A text is cut after so many new tokens.
    pub max_tokens: usize,
    /// Tokens that end a text; they are left out of it.
    pub stop: Vec<u32>,
    /// 0 takes the likeliest token; above, probabilities are those of the logits divided by it.
    pub temperature: f64,
    /// Tokens are drawn from this many likeliest ones; 0 takes all.
    pub top_k: usize,
    /// Tokens are drawn from the smallest set of likeliest ones that holds this share of the probability, which is that
    /// among the `top_k`.
    pub top_p: f64,
    /// Draws follow from it and from the text so far, and from nothing else: not from the texts beside it.
    pub seed: u64,
}

impl Generation {
    /// The likeliest tokens until one of `stop`, or `max_tokens`.
    pub fn greedy(max_tokens: usize, stop: Vec<u32>) -> Self {
        Self { max_tokens, stop, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// The tokens that end a text of a checkpoint, by its small files: those that `generation_config.json` names (of a model
/// tuned on conversations, the end of a turn, too), those of `config.json`, and the tokenizer's end token.
///
/// # Errors
/// When `generation_config.json` can't be read.
pub fn end_ids(
    architecture: &Architecture,
    files: &BTreeMap<String, Vec<u8>>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, CheckpointError> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        eos_token_id: Option<TokenIds>,
    }
    let named = match files.get(CONFIG) {
        None => None,
        Some(json) => {
            serde_json::from_slice::<Named>(json)
                .map_err(|error| CheckpointError::Malformed { path: CONFIG.into(), reason: error.to_string() })?
                .eos_token_id
        }
    };
    let mut ids = vec![tokenizer.end_id()];
    for named in [named.as_ref(), architecture.eos_token_id.as_ref()].into_iter().flatten() {
        match named {
            TokenIds::One(id) => ids.push(*id),
            TokenIds::Many(several) => ids.extend(several),
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// What came behind a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Whether a token of `stop` ended it, or what the caller waited for; else it was cut.
    pub stopped: bool,
}

/// A prompt that is gone on with in writing.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// How it is gone on with.
    pub how: Generation,
    /// The text is cut in front of the first of these, whichever tokens it is made of. Empty ones are left aside.
    pub stop_strings: Vec<String>,
}

impl Asked {
    /// The tokens of the prompt, and those that may come.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.how.max_tokens
    }

    /// Where the first of the strings that end the text begins.
    fn end(&self, text: &str) -> Option<usize> {
        self.stop_strings.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min()
    }
}

/// What came behind a prompt, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The text, without the string that ended it.
    pub text: String,
    /// How many tokens were made, those of the string that ended it included.
    pub tokens: usize,
    /// Whether it ended by itself; else it was cut.
    pub stopped: bool,
}

impl Scorer {
    /// Goes on with each prompt in writing.
    ///
    /// # Errors
    /// As [`Scorer::generate`]; and when ids have no text in a foreign tokenizer.
    pub fn write(&mut self, tokenizer: &Tokenizer, asked: &[Asked]) -> Result<Vec<Written>, WriteError> {
        let mut failed = None;
        let texts: Vec<Text<'_>> = asked.iter().map(|asked| (asked.prompt.as_slice(), &asked.how)).collect();
        let texts = self.generate_until(&texts, &mut |number, ids| {
            let asked = &asked[number];
            let Some(longest) = asked.stop_strings.iter().map(String::len).max().filter(|longest| *longest > 0) else {
                return false;
            };
            // A token that shows adds a byte at least; the first ones of the window may show as broken letters, or lose a
            // space, and there may be special tokens in it.
            let window = &ids[ids.len().saturating_sub(longest + 16)..];
            let ends = |ids: &[u32]| tokenizer.decode(ids).map(|text| asked.end(&text).is_some());
            match ends(window).and_then(|near| if near { ends(ids) } else { Ok(false) }) {
                Ok(ends) => ends,
                Err(error) => {
                    failed.get_or_insert(error);
                    true
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let written = texts.into_iter().zip(asked).map(|(Generated { ids, stopped }, asked)| {
            let mut text = tokenizer.decode(&ids)?;
            if let Some(end) = asked.end(&text) {
                text.truncate(end);
            }
            Ok(Written { text, tokens: ids.len(), stopped })
        });
        written.collect()
    }

    /// Goes on with each prompt. Keys and values of what was read are kept, so a token costs a pass over itself.
    ///
    /// # Errors
    /// As [`Scorer::log_probs`]; a prompt is too long if `max_tokens` more don't fit.
    pub fn generate(&mut self, prompts: &[Vec<u32>], how: &Generation) -> Result<Vec<Generated>, ScoreError> {
        let texts: Vec<Text<'_>> = prompts.iter().map(|prompt| (prompt.as_slice(), how)).collect();
        self.generate_until(&texts, &mut |_, _| false)
    }

    /// As [`Scorer::generate`]; `ends` sees the new tokens of a text, which it knows by its number, after each of them, and
    /// says whether they end it.
    fn generate_until(
        &mut self,
        texts: &[Text<'_>],
        ends: &mut dyn FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>, ScoreError> {
        for (number, (prompt, how)) in texts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ScoreError::EmptyPrompt(number));
            }
            self.check(number, prompt.len() + how.max_tokens, prompt.iter())?;
        }
        let (device, vocabulary) = (self.device, self.vocabulary);
        let mut done = vec![Generated { ids: Vec::new(), stopped: false }; texts.len()];
        let open: Vec<usize> = (0..texts.len()).filter(|number| texts[*number].1.max_tokens > 0).collect();
        let mut open = open.as_slice();
        while !open.is_empty() {
            let mut tokens = 0;
            let fitting = open.iter().take_while(|number| {
                let (prompt, how) = texts[**number];
                tokens += prompt.len() + how.max_tokens;
                tokens <= TOKENS_AT_ONCE
            });
            let (some, rest) = open.split_at(fitting.count().max(1));
            go_on(&mut *self.engine, vocabulary, texts, some.to_vec(), ends, &mut done).map_err(|error| failed(device, error))?;
            open = rest;
        }
        Ok(done)
    }
}

/// Goes on greedily with some prompts, none of them empty.
pub(crate) fn greedily(
    engine: &mut dyn Engine,
    vocabulary: usize,
    prompts: &[Vec<u32>],
    how: &Generation,
) -> Result<Vec<Generated>, EngineError> {
    let texts: Vec<Text<'_>> = prompts.iter().map(|prompt| (prompt.as_slice(), how)).collect();
    let mut done = vec![Generated { ids: Vec::new(), stopped: false }; texts.len()];
    go_on(engine, vocabulary, &texts, (0..texts.len()).collect(), &mut |_, _| false, &mut done)?;
    Ok(done)
}

/// Goes on with the texts that have these numbers, together.
fn go_on(
    engine: &mut dyn Engine,
    vocabulary: usize,
    texts: &[Text<'_>],
    mut open: Vec<usize>,
    ends: &mut dyn FnMut(usize, &[u32]) -> bool,
    done: &mut [Generated],
) -> Result<(), EngineError> {
    let mut logits = engine.read(&Batch::texts(open.iter().map(|number| texts[*number].0)))?;
    loop {
        let (mut kept, mut ids, mut still) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (number, logits)) in open.iter().zip(logits.chunks_exact(vocabulary)).enumerate() {
            let (prompt, how) = texts[*number];
            let text = &mut done[*number];
            let id = how.next(logits, prompt, &text.ids);
            if how.stop.contains(&id) {
                text.stopped = true;
                continue;
            }
            text.ids.push(id);
            text.stopped = ends(*number, &text.ids);
            if !text.stopped && text.ids.len() < how.max_tokens {
                kept.push(place);
                ids.push(id);
                still.push(*number);
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        open = still;
        logits = engine.go_on(&kept, &ids)?;
    }
}

/// A prompt, and how it is gone on with.
type Text<'a> = (&'a [u32], &'a Generation);

impl Generation {
    /// The token after `prompt` and `text`.
    fn next(&self, logits: &[f32], prompt: &[u32], text: &[u32]) -> u32 {
        let likelier = |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
        if self.temperature <= 0.0 {
            return (0..logits.len()).min_by(likelier).unwrap_or(0) as u32;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if (1..order.len()).contains(&self.top_k) {
            order.select_nth_unstable_by(self.top_k - 1, likelier);
            order.truncate(self.top_k);
        }
        order.sort_unstable_by(likelier);
        let top = order.first().map_or(0.0, |id| logits[*id]);
        let weights: Vec<f64> = order.iter().map(|id| (f64::from(logits[*id] - top) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut share = 0.0;
        let within = weights.iter().take_while(|weight| {
            let take = share < self.top_p * total;
            share += **weight;
            take
        });
        let count = within.count().max(1);
        let mut left = lot(self.seed, prompt, text) * weights[..count].iter().sum::<f64>();
        for (id, weight) in order.iter().zip(&weights[..count]) {
            left -= weight;
            if left < 0.0 {
                return *id as u32;
            }
        }
        order[count - 1] as u32
    }
}

/// Why a text can't be gone on with in writing.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It can't be gone on with.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// What came can't be shown.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A number in [0, 1) from the seed and the text so far.
fn lot(seed: u64, prompt: &[u32], text: &[u32]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"next token").update(&seed.to_le_bytes()).update(&(prompt.len() as u64).to_le_bytes());
    for id in prompt.iter().chain(text) {
        hasher.update(&id.to_le_bytes());
    }
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Preset;
    use crate::score::tests::scorer;
    use crate::tokenizer::tests::TEXTS;
    use crate::tokenizer::train;

    fn prompts() -> Vec<Vec<u32>> {
        vec![vec![3, 4, 5], vec![250], vec![7; 40]]
    }

    #[test]
    fn greedy_generation_takes_the_likeliest_token() {
        let mut scorer = scorer();
        let texts = scorer.generate(&prompts(), &Generation::greedy(6, vec![])).unwrap();
        for (prompt, text) in prompts().iter().zip(&texts) {
            assert_eq!((text.ids.len(), text.stopped), (6, false));
            let mut before = prompt.clone();
            for id in &text.ids {
                let all: Vec<_> = (0..300).map(|id| (before.clone(), vec![id])).collect();
                let values = scorer.log_probs(&all).unwrap();
                let best = values.iter().map(|v| v[0]).fold(f32::NEG_INFINITY, f32::max);
                assert!(values[*id as usize][0] >= best - 1e-4);
                before.push(*id);
            }
        }
        let stop = texts[0].ids[2];
        let stopped = scorer.generate(&prompts()[..1], &Generation::greedy(6, vec![stop])).unwrap().remove(0);
        assert_eq!(stopped, Generated { ids: texts[0].ids[..2].to_vec(), stopped: true });
    }

    #[test]
    fn kept_keys_and_values_give_the_logits_of_a_whole_pass() {
        let mut scorer = scorer();
        let longer = |prompt: &[u32], more: &[u32]| [prompt, more].concat();
        let texts = prompts();
        scorer.engine.read(&Batch::texts(texts.iter().map(Vec::as_slice))).unwrap();
        scorer.engine.go_on(&[0, 1, 2], &[9, 8, 7]).unwrap();
        let kept = scorer.engine.go_on(&[0, 2], &[19, 17]).unwrap();
        let whole = [longer(&texts[0], &[9, 19]), longer(&texts[2], &[7, 17])];
        let whole = scorer.engine.read(&Batch::texts(whole.iter().map(Vec::as_slice))).unwrap();
        assert_eq!(kept.len(), 600);
        for (kept, whole) in kept.iter().zip(&whole) {
            assert!((kept - whole).abs() < 1e-4 * whole.abs().max(1.0), "{kept} {whole}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_not_the_company() {
        let how = Generation { temperature: 1.0, top_p: 0.9, ..Generation::greedy(1, vec![]) };
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let mut counts = [0; 4];
        for seed in 0..4000 {
            counts[Generation { seed, ..how.clone() }.next(&logits, &[1], &[]) as usize] += 1;
        }
        // The three likeliest hold 0.95.
        for (count, share) in counts.iter().zip([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]) {
            assert!((f64::from(*count) / 4000.0 - share).abs() < 0.03, "{counts:?}");
        }
        for seed in 0..200 {
            let two = Generation { seed, top_k: 2, ..how.clone() };
            assert!(two.next(&logits, &[1], &[]) < 2);
            assert_eq!(Generation { top_k: 1, ..two.clone() }.next(&logits, &[1], &[]), 0);
            // The likeliest holds 0.625 of the two.
            assert_eq!(Generation { top_p: 0.6, ..two }.next(&logits, &[1], &[]), 0);
        }
        let mut scorer = scorer();
        let how = Generation { temperature: 1.0, ..Generation::greedy(8, vec![]) };
        let together = scorer.generate(&prompts(), &how).unwrap();
        for (prompt, together) in prompts().into_iter().zip(together) {
            assert_eq!(scorer.generate(&[prompt], &how).unwrap()[0], together);
        }
    }
    #[test]
    fn a_text_ends_at_the_first_of_its_strings() {
        let tokenizer = Tokenizer::from_json(train(TEXTS.iter(), 300).unwrap().json.as_bytes()).unwrap();
        let mut scorer = scorer();
        let asked = |stop_strings: &[&str]| -> Vec<Asked> {
            let how = Generation { temperature: 1.5, seed: 3, ..Generation::greedy(40, vec![]) };
            let stop_strings: Vec<String> = stop_strings.iter().map(|&stop| stop.to_owned()).collect();
            prompts().into_iter().map(|prompt| Asked { prompt, how: how.clone(), stop_strings: stop_strings.clone() }).collect()
        };
        let whole = scorer.write(&tokenizer, &asked(&[])).unwrap();
        assert!(whole.iter().all(|text| text.tokens == 40 && !text.stopped));
        let ids = scorer.generate(&prompts(), &asked(&[])[0].how).unwrap();
        // Ten characters from the middle of what comes anyway, over several tokens.
        let letters: Vec<(usize, char)> = whole[0].text.char_indices().collect();
        let place = letters[letters.len() / 2].0;
        let stop: String = whole[0].text[place..].chars().take(10).collect();
        assert!(!ids[0].ids.iter().any(|id| tokenizer.decode(&[*id]).unwrap().contains(&stop)));
        let place = whole[0].text.find(&stop).unwrap();
        let cut = scorer.write(&tokenizer, &asked(&["", &stop, "\u{1}none"])).unwrap();
        assert_eq!((cut[0].text.as_str(), cut[0].stopped), (&whole[0].text[..place], true));
        assert!(cut[0].tokens < 40);
        for (cut, whole) in cut.iter().zip(&whole).filter(|(cut, _)| !cut.stopped) {
            assert_eq!(cut, whole, "others go on");
        }
        let begin = whole[0].text.chars().next().unwrap().to_string();
        let earlier = scorer.write(&tokenizer, &asked(&[&stop, &begin])).unwrap();
        assert_eq!((earlier[0].text.as_str(), earlier[0].stopped), ("", true));
    }

    #[test]
    fn each_text_is_gone_on_with_in_its_own_way() {
        let mut scorer = scorer();
        let hows = [
            Generation::greedy(3, vec![]),
            Generation::greedy(0, vec![]),
            Generation { temperature: 1.0, seed: 9, ..Generation::greedy(12, vec![]) },
        ];
        let prompts = prompts();
        let texts: Vec<Text<'_>> = prompts.iter().map(Vec::as_slice).zip(&hows).collect();
        let together = scorer.generate_until(&texts, &mut |_, _| false).unwrap();
        assert_eq!(together.iter().map(|text| text.ids.len()).collect::<Vec<_>>(), [3, 0, 12]);
        for ((prompt, how), together) in prompts.iter().zip(&hows).zip(together) {
            assert_eq!(scorer.generate(std::slice::from_ref(prompt), how).unwrap()[0], together);
        }
    }

    #[test]
    fn a_text_ends_with_the_tokens_that_the_checkpoint_names() {
        let tokenizer = Tokenizer::from_json(train(TEXTS.iter(), 300).unwrap().json.as_bytes()).unwrap();
        let mut architecture = Preset::Tiny.architecture(300);
        architecture.eos_token_id = Some(TokenIds::One(7));
        let ends = |config: Option<&str>| {
            let files = config.map(|config| (CONFIG.to_owned(), config.as_bytes().to_vec())).into_iter().collect();
            end_ids(&architecture, &files, &tokenizer)
        };
        assert_eq!(ends(None).unwrap(), [1, 7]);
        assert_eq!(ends(Some(r#"{"eos_token_id": [9, 1, 5], "top_k": 50}"#)).unwrap(), [1, 5, 7, 9]);
        assert_eq!(ends(Some(r#"{"eos_token_id": 3}"#)).unwrap(), [1, 3, 7]);
        assert!(ends(Some(r#"{"eos_token_id": "x"}"#)).unwrap_err().to_string().starts_with("`generation_config.json`: "));
    }
}
