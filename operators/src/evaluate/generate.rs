//! Questions answered in writing.

use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{failure::Failure, run::Counters};
use ingrain_llm::{Client, Decoding, Message, Outcome, Request, Role};
use minijinja::{Environment, value::Serde};
use serde_json::{Value, json};

use super::{
    answer::{choice, exact_match, final_answer, letter, token_f1},
    number::{only_number, right_number},
    prediction::Prediction,
    question::{Context, Question},
    refuse,
};
use crate::{
    rejects::{Reject, Rejects},
    teachers::{self, About},
};

const PROMPT: &str = include_str!("answer.jinja");

/// How many questions wait for the client at once; the client bounds those in flight.
const WAITING: usize = 1024;

/// How answers are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// 0 takes the likeliest token.
    pub(crate) temperature: f64,
    /// An answer is cut after so many tokens.
    pub(crate) max_output_tokens: u32,
    /// How far a number may be off, as a share of the right one.
    pub(crate) tolerance: Option<f64>,
}

/// What the model said to a question, or why that can't be read as an answer.
enum Said {
    Text { text: String, request_id: String },
    Refused { reject: Reject, attempts: i32 },
}

/// Asks every question once. Answers that are refused or cut count as wrong and are rejects, too.
pub(crate) async fn predictions(
    client: &Client,
    questions: &[Question],
    settings: Settings,
    refresh: Option<&str>,
    counters: &Counters,
    rejects: &mut Rejects,
) -> Result<Vec<Prediction>, Failure> {
    let answers = stream::iter(0..questions.len()).map(|place| ask(client, &questions[place], settings, refresh, counters));
    let mut answers = answers.buffered(WAITING);
    let mut predictions = Vec::with_capacity(questions.len());
    while let Some(said) = answers.try_next().await? {
        let question = &questions[predictions.len()];
        match said {
            Said::Text { text, request_id } => {
                let prediction = prediction(question, Some(&text), text.clone(), settings.tolerance);
                predictions.push(Prediction { request_id: Some(request_id), ..prediction });
            }
            Said::Refused { reject, attempts } => {
                refuse(rejects, &question.row_id, &reject, attempts);
                predictions.push(prediction(question, None, reject.raw.unwrap_or_default(), None));
            }
        }
        counters.say(format!("question {} of {}", predictions.len(), questions.len()));
        counters.progress(predictions.len() as u64, questions.len() as u64);
    }
    Ok(predictions)
}

async fn ask(
    client: &Client,
    question: &Question,
    settings: Settings,
    refresh: Option<&str>,
    counters: &Counters,
) -> Result<Said, Failure> {
    let request = request(question, settings)?;
    let contexts = question.contexts.iter().flat_map(|context| &context.ids);
    let shown: Vec<&str> = std::iter::once(&question.row_id).chain(contexts).map(String::as_str).collect();
    let about = About { document: &question.question_id, shown: &shown, draw: 0, refresh, attempts: 1 };
    let whole = |answer: &ingrain_llm::Answer| answer.whole().map(str::to_owned);
    match teachers::ask(client, counters, &request, about, whole).await? {
        Outcome::Accepted { value, request_id, .. } => Ok(Said::Text { text: value, request_id }),
        Outcome::Rejected { reject, raw, attempts } => {
            let reject = Reject::new(reject.reason, reject.detail).raw(&raw);
            Ok(Said::Refused { reject, attempts: i32::try_from(attempts).unwrap_or(i32::MAX) })
        }
    }
}

fn request(question: &Question, settings: Settings) -> Result<Request, Failure> {
    // The best stands last, nearest to the question.
    let contexts: Vec<&Context> = question.contexts.iter().rev().collect();
    let options = question.options.iter().enumerate();
    let lettered: Vec<Value> = options.map(|(index, text)| json!({ "letter": letter(index), "text": text })).collect();
    let shown = json!({ "question": question.question, "options": lettered, "contexts": contexts });
    let content = Environment::empty().render_str(PROMPT, minijinja::Value::from(Serde(shown)));
    let content = content.map_err(|error| Failure::bug(format!("the prompt of `evaluate`: {error}")))?;
    Ok(Request {
        messages: vec![Message { role: Role::User, content: content.trim().to_owned() }],
        decoding: Decoding { temperature: settings.temperature, top_p: 1.0, max_output_tokens: settings.max_output_tokens },
        response_format: None,
        task: "answer".to_owned(),
        variables: json!({ "question": question.question, "options": question.options, "contexts": contexts }),
    })
}

/// `text` is what the model wrote, if that was whole; `raw` what there is of it.
fn prediction(question: &Question, text: Option<&str>, raw: String, tolerance: Option<f64>) -> Prediction {
    let answer = text.and_then(final_answer);
    let mut prediction = Prediction::of(question, question.context());
    prediction.raw = Some(raw);
    if question.options.is_empty() {
        let right = || std::iter::once(&question.answer).chain(&question.answers);
        let answered = answer.unwrap_or_default();
        let same = |right: &String| match tolerance.zip(right_number(right)) {
            Some((tolerance, right)) => only_number(answered).is_some_and(|said| said.is(&right, &question.question, tolerance)),
            None => exact_match(answered, right),
        };
        prediction.exact_match = Some(answer.is_some() && right().any(same));
        let f1 = right().map(|right| token_f1(answered, right)).fold(0.0, f64::max);
        prediction.token_f1 = Some(if answer.is_some() { f1 } else { 0.0 });
        prediction.score = prediction.token_f1;
        prediction.prediction = answer.map(str::to_owned);
    } else {
        let chosen = answer.and_then(|answer| choice(answer, &question.options)).map(|index| &question.options[index]);
        prediction.correct = Some(chosen == Some(&question.answer));
        prediction.prediction = chosen.cloned();
    }
    prediction
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { temperature: 0.0, max_output_tokens: 100, tolerance: None };

    fn question(options: &[&str]) -> Question {
        Question {
            row_id: "r".into(),
            question_id: "q".into(),
            question: "How deep is the <well>?".into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            answer: "18 metres".into(),
            answers: vec!["eighteen metres".into()],
            contexts: vec![
                Context { title: Some("Well".into()), text: "The well is 18 metres deep.".into(), ids: vec![] },
                Context { title: None, text: "A mill.".into(), ids: vec![] },
            ],
            group: None,
        }
    }

    #[test]
    fn the_prompt_shows_contexts_best_last_and_lettered_options() {
        let request = request(&question(&["75 metres", "18 metres"]), SETTINGS).unwrap();
        assert_eq!(
            request.messages[0].content,
            "A mill.\n\nWell\nThe well is 18 metres deep.\n\nAnswer the question. The texts above may help.\n\n\
             Question: How deep is the <well>?\n\nA. 75 metres\nB. 18 metres\n\n\
             There is only one correct choice. Explain in a few sentences how you come to it. Then end with a line of its own \
             that holds nothing but `Answer:` and the letter of your choice."
        );
        assert_eq!(request.variables["options"], json!(["75 metres", "18 metres"]));
        assert_eq!(request.variables["contexts"][1], json!({ "title": "Well", "text": "The well is 18 metres deep." }));
        let mut open = question(&[]);
        open.contexts.clear();
        let content = &super::request(&open, SETTINGS).unwrap().messages[0].content;
        assert!(content.starts_with("Question: How deep is the <well>?\n\nExplain in a few"), "{content}");
    }

    #[tokio::test]
    async fn a_reader_answers_from_contexts() {
        let folder = tempfile::tempdir().unwrap();
        let store = std::sync::Arc::new(object_store::memory::InMemory::new());
        let memo = ingrain_llm::Memo::open(store, "memo".into(), folder.path()).await.unwrap();
        let client = Client::new(std::sync::Arc::new(ingrain_llm::Offline), memo, 4);
        let mut open = question(&[]);
        open.question = "How deep is the well of Tern Ledge?".into();
        open.contexts[0].text = "The well of Tern Ledge is 18 metres deep. Lotte Amsel bakes the bread.".into();
        let choice = Question { options: ["75 metres", "18 metres"].map(str::to_owned).to_vec(), ..open.clone() };
        let questions = [choice, open];
        for (calls, hits) in [(2, 0), (0, 2)] {
            let (counters, mut rejects) = (Counters::default(), Rejects::default());
            let found = predictions(&client, &questions, SETTINGS, None, &counters, &mut rejects).await.unwrap();
            assert_eq!((found[0].prediction.as_deref(), found[0].correct), (Some("18 metres"), Some(true)), "{found:?}");
            assert_eq!((found[1].exact_match, found[1].correct), (Some(true), None), "{found:?}");
            assert!(found.iter().all(|prediction| prediction.request_id.as_ref().is_some_and(|id| id.len() == 32)), "{found:?}");
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!((count(&counters.calls), count(&counters.memo_hits)), (calls, hits));
            assert_eq!(rejects.len(), 0);
        }
    }

    #[test]
    fn what_cannot_be_read_is_wrong() {
        let of = |options: &[&str], text: Option<&str>| prediction(&question(options), text, "raw".into(), None);
        let options = ["75 metres", "18 metres"];
        let right = of(&options, Some("It is deep.\nAnswer: B"));
        assert_eq!((right.prediction.as_deref(), right.correct), (Some("18 metres"), Some(true)));
        for text in [Some("I think it is B."), Some("Answer: F"), None] {
            let wrong = of(&options, text);
            assert_eq!((wrong.prediction, wrong.correct, wrong.exact_match), (None, Some(false), None));
        }
        let open = of(&[], Some("Answer: eighteen metres."));
        assert_eq!((open.exact_match, open.token_f1, open.correct), (Some(true), Some(1.0), None));
        let near = of(&[], Some("Answer: 18 feet"));
        assert_eq!((near.exact_match, near.token_f1), (Some(false), Some(0.5)));
        let none = of(&[], Some("18 metres"));
        assert_eq!((none.prediction, none.exact_match, none.token_f1), (None, Some(false), Some(0.0)));
    }

    #[test]
    fn with_a_tolerance_numbers_decide_alone() {
        let of = |answer: &str, said: &str, tolerance: Option<f64>| {
            let question = Question { answer: answer.into(), answers: vec!["eighteen metres".into()], ..question(&[]) };
            prediction(&question, Some(&format!("Answer: {said}")), "raw".into(), tolerance).exact_match
        };
        for (answer, said, near, exact) in [
            ("18 metres", "18.1 m", true, false),
            ("18 metres", "18 metres", true, true),
            ("1.8 metres", "18 metres", false, true),
            ("-18 metres", "18 metres", false, true),
            ("18 metres", "Eighteen metres.", true, true),
            ("18 metres", "17 to 19 metres", false, false),
            ("Tern Ledge", "the Tern Ledge", true, true),
        ] {
            assert_eq!((of(answer, said, Some(0.01)), of(answer, said, None)), (Some(near), Some(exact)), "{said} for {answer}");
        }
    }
}
