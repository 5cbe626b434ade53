//! A checkpoint that questions are put to.

use std::path::Path;

use ingrain_engine::failure::Failure;
use ingrain_student::{ChatError, Checkpoint, Device, Generation, Scorer, Tokenizer, TokenizerError, end_ids};

use super::{
    answer::{exact_match, last_option, last_words, token_f1},
    number::{last_number, right_number},
    prediction::Prediction,
    question::Question,
};
use crate::{
    rejects::Reject,
    render::{self, Chat, Render},
};

pub(super) type Ids = Vec<u32>;

/// What came of a question, and why it wasn't asked, if it wasn't.
pub(super) type Examined = (Prediction, Option<Reject>);

/// A model that is ready to be questioned. It stays on the thread that loaded it.
#[derive(Debug)]
pub(super) struct Examiner {
    pub(super) scorer: Scorer,
    pub(super) tokenizer: Tokenizer,
    /// The longest text that the model is made for, in tokens.
    limit: usize,
    /// The chat template, where questions are put into one.
    chat: Option<Chat>,
    /// Tokens that end an answer.
    ends: Ids,
}

/// How a model writes answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writing {
    /// 0 takes the likeliest token.
    pub(super) temperature: f64,
    /// An answer is cut after so many tokens.
    pub(super) max_output_tokens: usize,
    pub(super) seed: u64,
    /// How far a number may be off, as a share of the right one.
    pub(super) tolerance: Option<f64>,
}

impl Examiner {
    /// Reads a checkpoint and copies it to a device.
    pub(super) fn load(folder: &Path, device: &str, render: Render) -> Result<Self, Failure> {
        let checkpoint = Checkpoint::read(folder).map_err(|error| Failure::data(error.to_string()))?;
        let device = Device::resolve(device).map_err(|error| Failure::external(error.to_string()))?;
        Self::new(&checkpoint, &device, render)
    }

    /// A checkpoint on a device.
    fn new(checkpoint: &Checkpoint, device: &Device, render: Render) -> Result<Self, Failure> {
        let tokenizer = checkpoint.tokenizer().map_err(|error| Failure::data(error.to_string()))?;
        let mut ends =
            end_ids(&checkpoint.architecture, &checkpoint.files, &tokenizer).map_err(|error| Failure::data(error.to_string()))?;
        let chat = match render {
            Render::Qa => None,
            Render::Chat => Some(Chat::of(&checkpoint.files, tokenizer.clone())?),
        };
        if let Some(chat) = &chat {
            ends.push(chat.end_id().map_err(|error| Failure::data(error.to_string()))?);
        }
        let scorer = Scorer::new(&checkpoint.architecture, &*checkpoint.weights, device);
        let scorer = scorer.map_err(|error| Failure::external(error.to_string()))?;
        Ok(Self { scorer, tokenizer, limit: checkpoint.architecture.max_position_embeddings, chat, ends })
    }

    /// What stands before the answer: the contexts, and the question in the form of training.
    pub(super) fn asked(&self, question: &Question) -> Result<Ids, ChatError> {
        let asked = self.text(&question.question, question.context());
        match &self.chat {
            Some(chat) => chat.asked(&asked),
            None => Ok(prompt(&self.tokenizer, &asked)?),
        }
    }

    /// A question as text, behind its contexts.
    fn text(&self, question: &str, context: Option<String>) -> String {
        let question = match &self.chat {
            Some(_) => question.to_owned(),
            None => render::prompt(question),
        };
        match context {
            Some(context) => format!("{context}\n\n{question}"),
            None => question,
        }
    }

    /// For each of some answers, what stands before it, and its tokens; of a question behind its contexts, or of an empty one.
    pub(super) fn answered(&self, question: Option<&Question>, answers: &[&str]) -> Result<Vec<(Ids, Ids)>, ChatError> {
        let asked = match question {
            Some(question) => self.text(&question.question, question.context()),
            None => self.text("", None),
        };
        if let Some(chat) = &self.chat {
            return answers.iter().map(|answer| chat.answered(&asked, answer)).collect();
        }
        let asked = prompt(&self.tokenizer, &asked)?;
        // The space belongs to the answer's first word, as it does where text is encoded whole.
        answers.iter().map(|answer| Ok((asked.clone(), self.tokenizer.encode(&format!(" {answer}"))?))).collect()
    }

    /// Refuses a text that is longer than the model is made for.
    pub(super) fn too_long(&self, tokens: usize) -> Option<Reject> {
        let limit = self.limit;
        let detail = || {
            format!(
                "with its contexts and its answer it has {tokens} tokens, and the model is made for {limit}: a lower `top_k` or \
                 smaller chunks make it shorter"
            )
        };
        (tokens > limit).then(|| Reject::new("too_long", detail()))
    }

    /// Has some questions answered in writing; those that are too long are answered wrong.
    pub(super) fn written(&mut self, questions: &[Question], writing: Writing) -> Result<Vec<Examined>, Failure> {
        let (tokens, limit) = (writing.max_output_tokens, self.limit);
        if tokens >= limit {
            return Err(Failure::data(format!("`max_output_tokens` ({tokens}) leaves no room for a question"))
                .hint(format!("the model is made for {limit} tokens, the question and its contexts included")));
        }
        let mut prompts = Vec::with_capacity(questions.len());
        let mut rejects = Vec::with_capacity(questions.len());
        for question in questions {
            let asked = self.asked(question).map_err(|error| said(question, &error.to_string()))?;
            let reject = self.too_long(asked.len() + tokens);
            if reject.is_none() {
                prompts.push(asked);
            }
            rejects.push(reject);
        }
        let how = Generation {
            temperature: writing.temperature,
            seed: writing.seed,
            ..Generation::greedy(writing.max_output_tokens, self.ends.clone())
        };
        let texts = self.scorer.generate(&prompts, &how).map_err(|error| Failure::external(error.to_string()))?;
        let mut texts = texts.into_iter();
        let mut examined = Vec::with_capacity(questions.len());
        for (question, reject) in questions.iter().zip(rejects) {
            if reject.is_some() {
                examined.push((Prediction { raw: None, ..prediction(question, "", false, None) }, reject));
                continue;
            }
            let text = texts.next().ok_or_else(|| Failure::bug("fewer texts than prompts"))?;
            let said_so = self.tokenizer.decode(&text.ids).map_err(|error| said(question, &error.to_string()))?;
            examined.push((prediction(question, &said_so, text.stopped, writing.tolerance), None));
        }
        Ok(examined)
    }
}

fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<Ids, TokenizerError> {
    Ok(tokenizer.begin_id().into_iter().chain(tokenizer.encode(text)?).collect())
}

pub(super) fn said(question: &Question, what: &str) -> Failure {
    Failure::data(format!("question `{}`: {what}", question.question_id))
}

/// The end of a text beside one of the right answers.
struct End {
    exact: bool,
    f1: f64,
    said: String,
}

impl End {
    /// As many last words as the right answer has; with a `tolerance`, where the right answer is a number, the last number.
    /// `None` for a text without words.
    fn of(question: &Question, text: &str, right: &str, tolerance: Option<f64>) -> Option<Self> {
        let words = last_words(text, right)?;
        let f1 = token_f1(&words, right);
        match tolerance.zip(right_number(right)) {
            None => Some(Self { exact: exact_match(&words, right), f1, said: words }),
            Some((tolerance, right)) => {
                let number = last_number(text);
                let exact = number.is_some_and(|number| number.is(&right, &question.question, tolerance));
                Some(Self { exact, f1, said: number.map_or(words, |number| number.text.to_owned()) })
            }
        }
    }
}

/// What a text is worth; one that isn't `whole` is no answer.
fn prediction(question: &Question, text: &str, whole: bool, tolerance: Option<f64>) -> Prediction {
    let mut prediction = Prediction::of(question, question.context());
    prediction.raw = Some(text.trim().to_owned());
    if question.options.is_empty() {
        let right = std::iter::once(&question.answer).chain(&question.answers).filter(|_| whole);
        let ends: Vec<End> = right.filter_map(|right| End::of(question, text, right, tolerance)).collect();
        prediction.exact_match = Some(ends.iter().any(|end| end.exact));
        prediction.token_f1 = Some(ends.iter().map(|end| end.f1).fold(0.0, f64::max));
        prediction.score = prediction.token_f1;
        let best = ends.into_iter().max_by(|a, b| a.exact.cmp(&b.exact).then(a.f1.total_cmp(&b.f1)));
        prediction.prediction = best.map(|end| end.said);
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
    use crate::evaluate::question::Context;

    pub(in crate::evaluate) fn examiner_by(render: Render) -> Examiner {
        let texts = ["Question: Who keeps the light?\nAnswer: Lotte Amsel keeps the light.", "Hanne Drost sold the old boat."];
        let trained = tokenizer::train(texts.iter(), 270).unwrap();
        let architecture = Preset::Tiny.architecture(270);
        let mut weights = initialise(&architecture, 5);
        // Larger weights than a fresh model's, so that the options' probabilities differ.
        for tensor in weights.tensors.values_mut().filter(|tensor| tensor.shape.len() == 2) {
            tensor.values.iter_mut().for_each(|value| *value *= 8.0);
        }
        let mut checkpoint = Checkpoint::new(architecture, weights, trained.json.as_bytes()).unwrap();
        if render == Render::Chat {
            let template = "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|pad|>{% endfor %}\
                            {% if add_generation_prompt %}<|begin|>assistant: {% endif %}";
            checkpoint.files.insert("chat_template.jinja".into(), template.into());
        }
        Examiner::new(&checkpoint, &Device::Cpu, render).unwrap()
    }

    pub(in crate::evaluate) fn examiner() -> Examiner {
        examiner_by(Render::Qa)
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
        let open = prediction(&question(&[]), " It was lit by Ida. The keeper is Lotte Amsel.", true, None);
        assert_eq!((open.exact_match, open.token_f1, open.prediction.as_deref()), (Some(true), Some(1.0), Some("lotte amsel")));
        let half = prediction(&question(&[]), "Lotte Brandt", true, None);
        assert_eq!((half.exact_match, half.token_f1), (Some(false), Some(0.5)));
        let cut = prediction(&question(&[]), "Lotte Amsel", false, None);
        assert_eq!((cut.exact_match, cut.token_f1, cut.prediction), (Some(false), Some(0.0), None));
        let options = ["Hanne Drost", "Lotte Amsel"];
        let choice = prediction(&question(&options), "Not Hanne Drost but Lotte Amsel.", true, None);
        assert_eq!((choice.correct, choice.prediction.as_deref()), (Some(true), Some("Lotte Amsel")));
        let none = prediction(&question(&options), "Nobody.", true, None);
        assert_eq!((none.correct, none.prediction, none.exact_match), (Some(false), None, None));
    }

    #[test]
    fn a_model_writes_until_its_end_or_the_limit() {
        let mut examiner = examiner();
        let writing = Writing { temperature: 0.0, max_output_tokens: 5, seed: 1, tolerance: None };
        let found = examiner.written(&[question(&[]), question(&["a", "b"])], writing).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|(_, reject)| reject.is_none()));
        assert!(found[0].0.raw.as_ref().is_some_and(|raw| !raw.is_empty()) && found[0].0.token_f1.is_some());
        assert!(found[1].0.correct.is_some());
        let failure = examiner.written(&[question(&[])], Writing { max_output_tokens: 5000, ..writing }).unwrap_err();
        assert_eq!(failure.message, "`max_output_tokens` (5000) leaves no room for a question");
    }

    #[test]
    fn a_question_that_is_too_long_is_answered_wrong_and_holds_up_no_other() {
        let mut examiner = examiner();
        let writing = Writing { temperature: 0.0, max_output_tokens: 5, seed: 1, tolerance: None };
        let long = |options: &[&str]| {
            let contexts = vec![Context { title: None, text: "zq ".repeat(5000), ids: vec![] }];
            Question { contexts, ..question(options) }
        };
        let alone = examiner.written(&[question(&[])], writing).unwrap();
        let found = examiner.written(&[long(&[]), question(&[]), long(&["a", "b"])], writing).unwrap();
        assert_eq!(found[1], alone[0]);
        let (open, reject) = &found[0];
        assert_eq!((open.exact_match, open.token_f1, &open.prediction, &open.raw), (Some(false), Some(0.0), &None, &None));
        let reject = reject.as_ref().unwrap();
        assert_eq!(reject.reason, "too_long");
        assert!(reject.detail.contains("`top_k`"), "{}", reject.detail);
        assert_eq!((found[2].0.correct, &found[2].0.prediction), (Some(false), &None));
        assert!(found[2].1.is_some() && found[0].0.context.is_some());
    }

    #[test]
    fn with_a_tolerance_the_last_number_decides_alone() {
        let of = |answers: &[&str], text: &str| {
            let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
            let question = Question { answer: answers[0].clone(), answers: answers[1..].to_vec(), ..question(&[]) };
            let found = prediction(&question, text, true, Some(0.01));
            (found.exact_match.unwrap(), found.prediction.unwrap())
        };
        for (answer, text, exact, said) in [
            ("1577000000", "So they spent $1.58 billion.", true, "$1.58 billion"),
            ("1577000000", "So they spent 1.58.", false, "1.58"),
            ("158", "It is 1.58.", false, "1.58"),
            ("-3.5", "It is 3.5.", false, "3.5"),
            ("-3.5", "It is \u{2212}3.52.", true, "\u{2212}3.52"),
            ("1580", "They spent $1,580.00.", true, "$1,580.00"),
            ("8.7%", "It rose by 8.7%", true, "8.7%"),
            ("8.7%", "It rose by 87", false, "87"),
            ("15", "Fifteen it is.", false, "is"),
            ("Lotte Amsel", "In 1911 by Lotte Amsel.", true, "lotte amsel"),
        ] {
            assert_eq!(of(&[answer], text), (exact, said.to_owned()), "{text} for {answer}");
        }
        // Another right answer shares more words.
        assert_eq!(of(&["18", "19 metres of rope"], "It has 18.1 metres of rope."), (true, "18.1".to_owned()));
    }
}
