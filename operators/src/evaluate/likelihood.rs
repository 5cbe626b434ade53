//! Questions answered by the probabilities that a model gives to the options.

use ingrain_engine::failure::Failure;
use ingrain_student::ChatError;
use serde_json::json;

use super::{
    examiner::{Examined, Examiner, Ids, said},
    prediction::Prediction,
    question::Question,
};

/// A prompt, and what is scored behind it.
type Text = (Ids, Ids);

/// What a model gives to an option.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score {
    /// log P(option | prompt).
    log_prob: f64,
    /// log P(option | the prompt of an empty question).
    blind: f64,
    /// The option's tokens.
    tokens: usize,
}

impl Examiner {
    /// Asks some questions. Of one that is too long only that is known what its options give away alone.
    pub(crate) fn predictions(&mut self, questions: &[Question]) -> Result<Vec<Examined>, Failure> {
        let mut texts: Vec<Text> = Vec::new();
        let mut taken = Vec::with_capacity(questions.len());
        for question in questions {
            let (mut asked, mut blind) = self.texts(question).map_err(|error| said(question, &error.to_string()))?;
            let reject = self.too_long(longest(&asked).max(longest(&blind)));
            if reject.is_some() {
                asked.clear();
            }
            if self.too_long(longest(&blind)).is_some() {
                blind.clear();
            }
            taken.push((asked.len(), blind.len(), reject));
            texts.append(&mut asked);
            texts.append(&mut blind);
        }
        let values = self.scorer.log_probs(&texts).map_err(|error| Failure::external(error.to_string()))?;
        if values.len() != texts.len() {
            return Err(Failure::bug("fewer scores than texts"));
        }
        let mut sums = values.iter().map(|values| (values.iter().map(|value| f64::from(*value)).sum::<f64>(), values.len()));
        let mut examined = Vec::with_capacity(questions.len());
        for (question, (asked, blind, reject)) in questions.iter().zip(taken) {
            let asked: Vec<(f64, usize)> = sums.by_ref().take(asked).collect();
            let blind: Vec<f64> = sums.by_ref().take(blind).map(|(log_prob, _)| log_prob).collect();
            if !asked.iter().map(|(log_prob, _)| log_prob).chain(&blind).all(|log_prob| log_prob.is_finite()) {
                return Err(said(question, "the model gives no finite probabilities: its training has diverged")
                    .hint("train again with a lower `learning_rate`"));
            }
            let prediction = match reject {
                None => {
                    let blind = blind.into_iter().chain(std::iter::repeat(0.0));
                    let score = |((log_prob, tokens), blind)| Score { log_prob, blind, tokens };
                    prediction(question, &asked.into_iter().zip(blind).map(score).collect::<Vec<_>>())
                }
                Some(_) => unasked(question, &blind),
            };
            examined.push((prediction, reject));
        }
        Ok(examined)
    }

    /// What has to be scored for a question: each option after the prompt, and each after the prompt of an empty question;
    /// or only the answer after the prompt.
    fn texts(&self, question: &Question) -> Result<(Vec<Text>, Vec<Text>), ChatError> {
        if question.options.is_empty() {
            return Ok((self.answered(Some(question), &[&question.answer])?, Vec::new()));
        }
        let options: Vec<&str> = question.options.iter().map(String::as_str).collect();
        Ok((self.answered(Some(question), &options)?, self.answered(None, &options)?))
    }
}

/// The tokens of the longest of some texts.
fn longest(texts: &[Text]) -> usize {
    texts.iter().map(|(prompt, option)| prompt.len() + option.len()).max().unwrap_or(0)
}

/// The place of the highest value; of equal ones the first.
fn highest(values: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (place, value) in values.into_iter().enumerate() {
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((place, value));
        }
    }
    best.map(|(place, _)| place)
}

/// Whether the option at a place is the right one; no option is wrong.
fn is_right(question: &Question, place: Option<usize>) -> Option<bool> {
    Some(place.is_some_and(|place| question.options[place] == question.answer))
}

/// A question that isn't asked: no choice is made, and only that by the options alone may be right.
fn unasked(question: &Question, blind: &[f64]) -> Prediction {
    let mut prediction = prediction(question, &[]);
    if !question.options.is_empty() {
        prediction.correct_blind = is_right(question, highest(blind.iter().copied()));
    }
    prediction
}

fn prediction(question: &Question, scores: &[Score]) -> Prediction {
    let mut prediction = Prediction::of(question, question.context());
    if question.options.is_empty() {
        prediction.score = scores.first().map(|score| score.log_prob);
        prediction.answer_tokens = scores.first().map(|score| score.tokens as i32);
        return prediction;
    }
    let corrected: fn(&Score) -> f64 = |score| score.log_prob - score.blind;
    let best = |value: fn(&Score) -> f64| highest(scores.iter().map(value));
    let chosen = best(corrected);
    prediction.prediction = chosen.map(|place| question.options[place].clone());
    prediction.score = chosen.map(|place| corrected(&scores[place]));
    prediction.correct = is_right(question, chosen);
    prediction.correct_raw = is_right(question, best(|score| score.log_prob));
    prediction.correct_normalised = is_right(question, best(|score| score.log_prob / score.tokens.max(1) as f64));
    prediction.correct_blind = is_right(question, best(|score| score.blind));
    let raw: Vec<_> = question
        .options
        .iter()
        .zip(scores)
        .map(|(option, Score { log_prob, blind, tokens })| {
            json!({ "option": option, "log_prob": log_prob, "blind": blind, "tokens": tokens })
        })
        .collect();
    prediction.raw = (!raw.is_empty()).then(|| json!(raw).to_string());
    prediction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluate::{
            examiner::tests::{examiner, examiner_by},
            question::Context,
        },
        render::Render,
    };

    fn question(options: &[&str], answer: &str) -> Question {
        Question {
            row_id: "r".into(),
            question_id: "q".into(),
            question: "Who keeps the light?".into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            answer: answer.into(),
            ..Question::default()
        }
    }

    #[test]
    fn each_rule_chooses_by_its_own_score() {
        let score = |log_prob, blind, tokens| Score { log_prob, blind, tokens };
        let question = question(&["a", "b", "c", "d"], "b");
        // Corrected: 1, 3, 1, -2. Raw: the last. A token: the third. Blind: the last.
        let scores = [score(-5.0, -6.0, 2), score(-6.0, -9.0, 3), score(-4.0, -5.0, 4), score(-3.0, -1.0, 1)];
        let found = prediction(&question, &scores);
        assert_eq!((found.prediction.as_deref(), found.score, found.correct), (Some("b"), Some(3.0), Some(true)));
        assert_eq!((found.correct_raw, found.correct_normalised, found.correct_blind), (Some(false), Some(false), Some(false)));
        let raw: serde_json::Value = serde_json::from_str(&found.raw.unwrap()).unwrap();
        assert_eq!(raw[1], json!({ "option": "b", "log_prob": -6.0, "blind": -9.0, "tokens": 3 }));
        let of_d = prediction(&Question { answer: "d".into(), ..question.clone() }, &scores);
        assert_eq!((of_d.correct, of_d.correct_raw, of_d.correct_blind), (Some(false), Some(true), Some(true)));
        let of_c = prediction(&Question { answer: "c".into(), ..question }, &scores);
        assert_eq!(of_c.correct_normalised, Some(true));
    }

    #[test]
    fn a_model_is_asked_with_the_prompt_of_training() {
        let mut examiner = examiner();
        let closed = question(&["Lotte Amsel", "Hanne Drost"], "Lotte Amsel");
        let mut open = question(&[], "Lotte Amsel");
        open.contexts = vec![
            Context { title: Some("Light".into()), text: "the best".into(), ids: vec![] },
            Context { title: None, text: "the second".into(), ids: vec![] },
        ];
        let mut nothing = closed.clone();
        nothing.question = String::new();
        let found = examiner.predictions(&[closed.clone(), open.clone(), nothing]).unwrap();
        let found: Vec<Prediction> = found.into_iter().map(|(prediction, _)| prediction).collect();

        let whole = |text: &str| -> Vec<u32> {
            let begin = examiner.tokenizer.begin_id();
            begin.into_iter().chain(examiner.tokenizer.encode(text).unwrap()).collect()
        };
        let asked = whole("Question: Who keeps the light?\nAnswer: Lotte Amsel");
        let (texts, blind) = examiner.texts(&closed).unwrap();
        assert_eq!([texts[0].0.clone(), texts[0].1.clone()].concat(), asked, "split where the tokenizer splits");
        assert_eq!([blind[0].0.clone(), blind[0].1.clone()].concat(), whole("Question:\nAnswer: Lotte Amsel"));
        assert_eq!((texts.len(), blind.len()), (2, 2));

        assert!(found[0].score.unwrap().abs() > 1e-4, "the question makes a difference");
        assert!(found[2].score.unwrap().abs() < 1e-4, "an empty question adds nothing");
        assert_eq!(found[1].context.as_deref(), Some("the second\n\nLight\nthe best"));
        let tokens = texts[0].1.len() as i32;
        assert_eq!((found[1].answer_tokens, found[1].correct, found[1].prediction.as_deref()), (Some(tokens), None, None));
        assert!(found[1].score.unwrap() < 0.0);
    }

    #[test]
    fn a_model_is_asked_in_its_chat_template() {
        let mut examiner = examiner_by(Render::Chat);
        let mut closed = question(&["Lotte Amsel", "Hanne <|pad|>"], "Lotte Amsel");
        closed.contexts = vec![Context { title: None, text: "A light.".into(), ids: vec![] }];
        let (texts, blind) = examiner.texts(&closed).unwrap();
        let tokenizer = &examiner.tokenizer;
        let whole = |(prompt, option): &Text| tokenizer.decode(&[prompt.as_slice(), option].concat()).unwrap();
        assert_eq!(whole(&texts[1]), "user: A light.\n\nWho keeps the light?assistant: Hanne <|pad|>");
        assert_eq!(whole(&blind[0]), "user: assistant: Lotte Amsel");
        assert_eq!(tokenizer.decode(&texts[0].1).unwrap(), "Lotte Amsel");
        let special = texts[1].0.iter().chain(&texts[1].1).filter(|id| tokenizer.is_special(**id)).count();
        assert_eq!(special, 3, "two turns begin, and one has ended");
        assert_eq!(texts[0].0, examiner.asked(&closed).unwrap());
        let found = examiner.predictions(&[closed]).unwrap();
        assert!(found[0].0.score.is_some_and(|score| score.abs() > 1e-4));
    }

    #[test]
    fn a_question_that_is_too_long_is_wrong_but_for_its_options_alone() {
        let mut examiner = examiner();
        let choice = question(&["Lotte Amsel", "Hanne Drost"], "Lotte Amsel");
        let far = "zq ".repeat(5000);
        let long = |question: Question| {
            let contexts = vec![Context { title: None, text: far.clone(), ids: vec![] }];
            Question { contexts, ..question }
        };
        let wide = Question { options: vec!["Lotte Amsel".into(), far.clone()], ..choice.clone() };
        let alone = examiner.predictions(std::slice::from_ref(&choice)).unwrap();
        let asked = [long(choice.clone()), choice, long(question(&[], "x")), wide];
        let found = examiner.predictions(&asked).unwrap();
        let reasons: Vec<_> = found.iter().map(|(_, reject)| reject.as_ref().map(|reject| reject.reason)).collect();
        assert_eq!(reasons, [Some("too_long"), None, Some("too_long"), Some("too_long")]);
        assert_eq!((found[1].0.correct, found[1].0.correct_blind), (alone[0].0.correct, alone[0].0.correct_blind));
        let (unasked, _) = &found[0];
        assert_eq!((&unasked.prediction, unasked.score, &unasked.raw), (&None, None, &None));
        assert_eq!((unasked.correct, unasked.correct_raw, unasked.correct_normalised), (Some(false), Some(false), Some(false)));
        assert_eq!(unasked.correct_blind, alone[0].0.correct_blind);
        let (open, _) = &found[2];
        assert_eq!((open.score, open.answer_tokens, open.correct), (None, None, None));
        assert_eq!(found[3].0.correct_blind, Some(false), "its options are too long, too");
    }
}
