//! A checkpoint that questions are put to.

use std::path::Path;

use ingrain_engine::failure::Failure;
use ingrain_student::{Checkpoint, Device, Generation, Scorer, Tokenizer, TokenizerError};

use super::{
    answer::{exact_match, last_option, last_words, token_f1},
    prediction::Prediction,
    question::Question,
};
use crate::render;

pub(super) type Ids = Vec<u32>;

/// A model that is ready to be questioned. It stays on the thread that loaded it.
#[derive(Debug)]
pub(super) struct Examiner {
    pub(super) scorer: Scorer,
    pub(super) tokenizer: Tokenizer,
    /// The longest text that the model is made for, in tokens.
    limit: usize,
    /// The prompt of an empty question.
    pub(super) blind: Ids,
}

/// How a model writes answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writing {
    /// 0 takes the likeliest token.
    pub(super) temperature: f64,
    /// An answer is cut after so many tokens.
    pub(super) max_output_tokens: usize,
    pub(super) seed: u64,
}

impl Examiner {
    /// Reads a checkpoint and copies it to a device.
    pub(super) fn load(folder: &Path, device: &str) -> Result<Self, Failure> {
        let checkpoint = Checkpoint::read(folder).map_err(|error| Failure::data(error.to_string()))?;
        let device = Device::resolve(device).map_err(|error| Failure::external(error.to_string()))?;
        Self::new(&checkpoint, &device)
    }

    /// A checkpoint on a device.
    fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Self, Failure> {
        let tokenizer = checkpoint.tokenizer().map_err(|error| Failure::data(error.to_string()))?;
        let scorer = Scorer::new(&checkpoint.architecture, &checkpoint.weights, device);
        let scorer = scorer.map_err(|error| Failure::external(error.to_string()))?;
        let blind = prompt(&tokenizer, &render::prompt("")).map_err(|error| Failure::data(error.to_string()))?;
        Ok(Self { scorer, tokenizer, limit: checkpoint.architecture.max_position_embeddings, blind })
    }

    /// What stands before the answer: the contexts, and the question in the form of training.
    pub(super) fn asked(&self, question: &Question) -> Result<Ids, TokenizerError> {
        let asked = render::prompt(&question.question);
        let asked = match question.context() {
            Some(context) => format!("{context}\n\n{asked}"),
            None => asked,
        };
        prompt(&self.tokenizer, &asked)
    }

    /// Refuses a text that is longer than the model is made for.
    pub(super) fn check_length(&self, question: &Question, tokens: usize) -> Result<(), Failure> {
        if tokens <= self.limit {
            return Ok(());
        }
        let message = format!("it has {tokens} tokens with its contexts, and the model is made for {}", self.limit);
        Err(said(question, &message).hint("fewer or shorter contexts: lower `top_k`, or smaller chunks"))
    }

    /// Has some questions answered in writing.
    pub(super) fn written(&mut self, questions: &[Question], writing: Writing) -> Result<Vec<Prediction>, Failure> {
        let mut prompts = Vec::with_capacity(questions.len());
        for question in questions {
            let asked = self.asked(question).map_err(|error| said(question, &error.to_string()))?;
            self.check_length(question, asked.len() + writing.max_output_tokens)?;
            prompts.push(asked);
        }
        let how = Generation {
            temperature: writing.temperature,
            seed: writing.seed,
            ..Generation::greedy(writing.max_output_tokens, vec![self.tokenizer.end_id()])
        };
        let texts = self.scorer.generate(&prompts, &how).map_err(|error| Failure::external(error.to_string()))?;
        let mut predictions = Vec::with_capacity(questions.len());
        for (question, text) in questions.iter().zip(texts) {
            let said_so = self.tokenizer.decode(&text.ids).map_err(|error| said(question, &error.to_string()))?;
            predictions.push(prediction(question, &said_so, text.stopped));
        }
        Ok(predictions)
    }
}

fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<Ids, TokenizerError> {
    Ok(tokenizer.begin_id().into_iter().chain(tokenizer.encode(text)?).collect())
}

pub(super) fn said(question: &Question, what: &str) -> Failure {
    Failure::data(format!("question `{}`: {what}", question.question_id))
}

/// What a text is worth; one that isn't `whole` is no answer.
fn prediction(question: &Question, text: &str, whole: bool) -> Prediction {
    let mut prediction = Prediction::of(question, question.context());
    prediction.raw = Some(text.trim().to_owned());
    if question.options.is_empty() {
        let right = || std::iter::once(&question.answer).chain(&question.answers);
        let ends = right().filter_map(|right| Some((last_words(text, right).filter(|_| whole)?, right)));
        let best =
            ends.map(|(end, right)| (token_f1(&end, right), exact_match(&end, right), end)).max_by(|a, b| a.0.total_cmp(&b.0));
        let (f1, exact, end) = best.map_or((0.0, false, None), |(f1, exact, end)| (f1, exact, Some(end)));
        prediction.exact_match = Some(exact);
        prediction.token_f1 = Some(f1);
        prediction.score = prediction.token_f1;
        prediction.prediction = end;
    } else {
        let chosen = last_option(text, &question.options).filter(|_| whole).map(|index| &question.options[index]);
        prediction.correct = Some(chosen == Some(&question.answer));
        prediction.prediction = chosen.cloned();
    }
    prediction
}

#[cfg(test)]
pub(super) mod tests {
    use ingrain_student::{Preset, tokenizer, weights::initialise};

    use super::*;

    pub(in crate::evaluate) fn examiner() -> Examiner {
        let texts = ["Question: Who keeps the light?\nAnswer: Lotte Amsel keeps the light.", "Hanne Drost sold the old boat."];
        let trained = tokenizer::train(texts.iter(), 270).unwrap();
        let architecture = Preset::Tiny.architecture(270);
        let mut weights = initialise(&architecture, 5);
        // Larger weights than a fresh model's, so that the options' probabilities differ.
        for tensor in weights.tensors.values_mut().filter(|tensor| tensor.shape.len() == 2) {
            tensor.values.iter_mut().for_each(|value| *value *= 8.0);
        }
        let checkpoint = Checkpoint::new(architecture, weights, trained.json.as_bytes()).unwrap();
        Examiner::new(&checkpoint, &Device::Cpu).unwrap()
    }

    fn question(options: &[&str]) -> Question {
        Question {
            question_id: "q".into(),
            question: "Who keeps the light?".into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            answer: "Lotte Amsel".into(),
            answers: vec!["Amsel of Gull Sound".into()],
            ..Question::default()
        }
    }

    #[test]
    fn what_is_written_is_judged_by_its_end() {
        let open = prediction(&question(&[]), " It was lit by Ida. The keeper is Lotte Amsel.", true);
        assert_eq!((open.exact_match, open.token_f1, open.prediction.as_deref()), (Some(true), Some(1.0), Some("lotte amsel")));
        let half = prediction(&question(&[]), "Lotte Brandt", true);
        assert_eq!((half.exact_match, half.token_f1), (Some(false), Some(0.5)));
        let cut = prediction(&question(&[]), "Lotte Amsel", false);
        assert_eq!((cut.exact_match, cut.token_f1, cut.prediction), (Some(false), Some(0.0), None));
        let options = ["Hanne Drost", "Lotte Amsel"];
        let choice = prediction(&question(&options), "Not Hanne Drost but Lotte Amsel.", true);
        assert_eq!((choice.correct, choice.prediction.as_deref()), (Some(true), Some("Lotte Amsel")));
        let none = prediction(&question(&options), "Nobody.", true);
        assert_eq!((none.correct, none.prediction, none.exact_match), (Some(false), None, None));
    }

    #[test]
    fn a_model_writes_until_its_end_or_the_limit() {
        let mut examiner = examiner();
        let writing = Writing { temperature: 0.0, max_output_tokens: 5, seed: 1 };
        let found = examiner.written(&[question(&[]), question(&["a", "b"])], writing).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].raw.as_ref().is_some_and(|raw| !raw.is_empty()) && found[0].token_f1.is_some());
        assert!(found[1].correct.is_some());
        let failure = examiner.written(&[question(&[])], Writing { max_output_tokens: 5000, ..writing }).unwrap_err();
        assert!(failure.message.contains("tokens with its contexts"), "{failure}");
    }
}
