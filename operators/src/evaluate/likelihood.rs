//! Questions answered by the probabilities that a model gives to the options.

use ingrain_engine::failure::Failure;
use ingrain_student::TokenizerError;
use serde_json::json;

use super::{
    examiner::{Examiner, Ids, said},
    prediction::Prediction,
    question::Question,
};

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
    /// Asks some questions.
    pub(crate) fn predictions(&mut self, questions: &[Question]) -> Result<Vec<Prediction>, Failure> {
        let mut texts: Vec<(Ids, Ids)> = Vec::new();
        for question in questions {
            let begin = texts.len();
            self.texts(question, &mut texts).map_err(|error| said(question, &error.to_string()))?;
            let longest = texts[begin..].iter().map(|(prompt, option)| prompt.len() + option.len()).max().unwrap_or(0);
            self.check_length(question, longest)?;
        }
        let values = self.scorer.log_probs(&texts).map_err(|error| Failure::external(error.to_string()))?;
        let mut sums = values.iter().map(|values| (values.iter().map(|value| f64::from(*value)).sum::<f64>(), values.len()));
        let mut next = || sums.next().ok_or_else(|| Failure::bug("fewer scores than texts"));
        let mut predictions = Vec::with_capacity(questions.len());
        for question in questions {
            let mut scores = Vec::new();
            for _ in 0..question.options.len().max(1) {
                let (log_prob, tokens) = next()?;
                let blind = if question.options.is_empty() { 0.0 } else { next()?.0 };
                if !(log_prob.is_finite() && blind.is_finite()) {
                    return Err(said(question, "the model gives no finite probabilities: its training has diverged")
                        .hint("train again with a lower `learning_rate`"));
                }
                scores.push(Score { log_prob, blind, tokens });
            }
            predictions.push(prediction(question, &scores));
        }
        Ok(predictions)
    }

    /// What has to be scored for a question: each option after the prompt and after the prompt of an empty question, or the
    /// answer after the prompt.
    fn texts(&self, question: &Question, texts: &mut Vec<(Ids, Ids)>) -> Result<(), TokenizerError> {
        let asked = self.asked(question)?;
        // The space belongs to the answer's first word, as it does where text is encoded whole.
        let answer = |text: &str| self.tokenizer.encode(&format!(" {text}"));
        if question.options.is_empty() {
            texts.push((asked, answer(&question.answer)?));
            return Ok(());
        }
        for option in &question.options {
            let option = answer(option)?;
            texts.push((asked.clone(), option.clone()));
            texts.push((self.blind.clone(), option));
        }
        Ok(())
    }
}

fn prediction(question: &Question, scores: &[Score]) -> Prediction {
    let mut prediction = Prediction::of(question, question.context());
    if question.options.is_empty() {
        prediction.score = scores.first().map(|score| score.log_prob);
        prediction.answer_tokens = scores.first().map(|score| score.tokens as i32);
        return prediction;
    }
    let corrected = |score: &Score| score.log_prob - score.blind;
    let best = |value: &dyn Fn(&Score) -> f64| {
        let better = |best: usize, index: usize| if value(&scores[index]) > value(&scores[best]) { index } else { best };
        (0..scores.len()).fold(0, better)
    };
    let right = |index: usize| Some(question.options[index] == question.answer);
    let chosen = best(&corrected);
    prediction.prediction = Some(question.options[chosen].clone());
    prediction.score = Some(corrected(&scores[chosen]));
    prediction.correct = right(chosen);
    prediction.correct_raw = right(best(&|score| score.log_prob));
    prediction.correct_normalised = right(best(&|score| score.log_prob / score.tokens.max(1) as f64));
    prediction.correct_blind = right(best(&|score| score.blind));
    let raw: Vec<_> = question
        .options
        .iter()
        .zip(scores)
        .map(|(option, Score { log_prob, blind, tokens })| {
            json!({ "option": option, "log_prob": log_prob, "blind": blind, "tokens": tokens })
        })
        .collect();
    prediction.raw = Some(json!(raw).to_string());
    prediction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{examiner::tests::examiner, question::Context};

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
            Context { title: Some("Light".into()), text: "the best".into() },
            Context { title: None, text: "the second".into() },
        ];
        let mut nothing = closed.clone();
        nothing.question = String::new();
        let found = examiner.predictions(&[closed.clone(), open.clone(), nothing]).unwrap();

        let whole = |text: &str| -> Vec<u32> {
            let begin = examiner.tokenizer.begin_id();
            begin.into_iter().chain(examiner.tokenizer.encode(text).unwrap()).collect()
        };
        let asked = whole("Question: Who keeps the light?\nAnswer: Lotte Amsel");
        let mut texts = Vec::new();
        examiner.texts(&closed, &mut texts).unwrap();
        assert_eq!([texts[0].0.clone(), texts[0].1.clone()].concat(), asked, "split where the tokenizer splits");
        assert_eq!([texts[1].0.clone(), texts[1].1.clone()].concat(), whole("Question:\nAnswer: Lotte Amsel"));
        assert_eq!(texts.len(), 4);

        assert!(found[0].score.unwrap().abs() > 1e-4, "the question makes a difference");
        assert!(found[2].score.unwrap().abs() < 1e-4, "an empty question adds nothing");
        assert_eq!(found[1].context.as_deref(), Some("the second\n\nLight\nthe best"));
        let tokens = texts[0].1.len() as i32;
        assert_eq!((found[1].answer_tokens, found[1].correct, found[1].prediction.as_deref()), (Some(tokens), None, None));
        assert!(found[1].score.unwrap() < 0.0);
    }

    #[test]
    fn a_question_that_is_too_long_is_named() {
        let mut long = question(&[], "x");
        long.contexts = vec![Context { title: None, text: "zq ".repeat(5000) }];
        let failure = examiner().predictions(&[long]).unwrap_err();
        assert!(failure.message.starts_with("question `q`: it has "), "{failure}");
        assert!(failure.hint.unwrap().contains("top_k"));
    }
}
