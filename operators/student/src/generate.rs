//! Continuations of texts, greedy or sampled.

use std::cmp::Ordering;

use crate::engine::{Engine, EngineError};
use crate::pack::Batch;
use crate::score::{ScoreError, Scorer, failed};

/// Tokens, those to come counted, of the texts that are gone on with at once: keys and values of all of them are kept.
const TOKENS_AT_ONCE: usize = 1 << 14;

/// How texts are gone on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// A text is cut after so many new tokens.
    pub max_tokens: usize,
    /// Tokens that end a text; they are left out of it.
    pub stop: Vec<u32>,
    /// 0 takes the likeliest token; above, probabilities are those of the logits divided by it.
    pub temperature: f64,
    /// Tokens are drawn from the smallest set of likeliest ones that holds this share of the probability.
    pub top_p: f64,
    /// Draws follow from it and from the text so far, and from nothing else: not from the texts beside it.
    pub seed: u64,
}

impl Generation {
    /// The likeliest tokens until one of `stop`, or `max_tokens`.
    pub fn greedy(max_tokens: usize, stop: Vec<u32>) -> Self {
        Self { max_tokens, stop, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// What came behind a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Whether a token of `stop` ended it; else it was cut.
    pub stopped: bool,
}

impl Scorer {
    /// Goes on with each prompt. Keys and values of what was read are kept, so a token costs a pass over itself.
    ///
    /// # Errors
    /// As [`Scorer::log_probs`]; a prompt is too long if `max_tokens` more don't fit.
    pub fn generate(&mut self, prompts: &[Vec<u32>], how: &Generation) -> Result<Vec<Generated>, ScoreError> {
        for (number, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ScoreError::EmptyPrompt(number));
            }
            self.check(number, prompt.len() + how.max_tokens, prompt.iter())?;
        }
        let mut done = vec![Generated { ids: Vec::new(), stopped: false }; prompts.len()];
        if how.max_tokens == 0 {
            return Ok(done);
        }
        let mut start = 0;
        while start < prompts.len() {
            let mut tokens = 0;
            let fitting = prompts[start..].iter().take_while(|prompt| {
                tokens += prompt.len() + how.max_tokens;
                tokens <= TOKENS_AT_ONCE
            });
            let end = start + fitting.count().max(1);
            let (device, vocabulary) = (self.device, self.vocabulary);
            let said = go_on(&mut *self.engine, vocabulary, &prompts[start..end], how).map_err(|error| failed(device, error))?;
            done.splice(start..end, said);
            start = end;
        }
        Ok(done)
    }
}

/// Goes on with some prompts at once, none of them empty.
pub(crate) fn go_on(
    engine: &mut dyn Engine,
    vocabulary: usize,
    prompts: &[Vec<u32>],
    how: &Generation,
) -> Result<Vec<Generated>, EngineError> {
    let mut done = vec![Generated { ids: Vec::new(), stopped: false }; prompts.len()];
    let mut logits = engine.read(&Batch::texts(prompts.iter().map(Vec::as_slice)))?;
    let mut open: Vec<usize> = (0..prompts.len()).collect();
    loop {
        let (mut kept, mut ids, mut still) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (number, logits)) in open.iter().zip(logits.chunks_exact(vocabulary)).enumerate() {
            let text = &mut done[*number];
            let id = how.next(logits, &prompts[*number], &text.ids);
            if how.stop.contains(&id) {
                text.stopped = true;
                continue;
            }
            text.ids.push(id);
            if text.ids.len() < how.max_tokens {
                kept.push(place);
                ids.push(id);
                still.push(*number);
            }
        }
        if still.is_empty() {
            return Ok(done);
        }
        open = still;
        logits = engine.go_on(&kept, &ids)?;
    }
}

impl Generation {
    /// The token after `prompt` and `text`.
    fn next(&self, logits: &[f32], prompt: &[u32], text: &[u32]) -> u32 {
        let likelier = |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
        if self.temperature <= 0.0 {
            return (0..logits.len()).min_by(likelier).unwrap_or(0) as u32;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
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
    use crate::score::tests::scorer;

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
        let mut scorer = scorer();
        let how = Generation { temperature: 1.0, ..Generation::greedy(8, vec![]) };
        let together = scorer.generate(&prompts(), &how).unwrap();
        for (prompt, together) in prompts().into_iter().zip(together) {
            assert_eq!(scorer.generate(&[prompt], &how).unwrap()[0], together);
        }
    }
}
