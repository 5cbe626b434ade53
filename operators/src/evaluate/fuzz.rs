//! Answers that nobody meant, judged.

use std::time::Duration;

use ingrain_mutation::{Strategy, holds, mutated_text, strategy, text, within, worded};

use super::{
    answer::{choice, exact_match, final_answer, last_option, last_words, letter, token_f1},
    number::{last_number, only_number, right_number},
};

const WORDS: [&str; 36] = [
    "Answer:",
    "**Answer:**",
    "answer :",
    "Answer",
    "\n",
    " ",
    ":",
    "*",
    "_",
    "`",
    "> ",
    "# ",
    "A",
    "B",
    "(A)",
    "[",
    "A)",
    "a.",
    "ß",
    "İ",
    "ﬁ",
    "0",
    "1,577",
    "1.5",
    "$",
    "-$(",
    ")",
    "%",
    "million",
    "bn",
    "\u{2212}",
    "\u{2013}",
    "FY 2018",
    "Q2",
    "10-K",
    "\u{a0}",
];

fn answers() -> impl Strategy<Value = String> {
    let seeds = [
        "It was lit in 1874.\n**Answer:** B) 34 metres",
        "So they spent $1.58 billion (1,577.0 million) in FY2018.\nAnswer: $(1,577)m",
        "Answer: A or Answer: B",
        "It is \u{2212}3.52 %, or .5 to 1/3, 10:30.",
        "The 9 pilots chose the red one.",
    ];
    strategy::Union::new([mutated_text(&seeds, &WORDS).boxed(), worded(&WORDS, 40).boxed(), text(120).boxed()])
}

#[test]
fn any_answer_is_judged() {
    holds(192, &(answers(), answers(), answers()), |(said, right, option)| {
        within(Duration::from_secs(1), || {
            if let Some(answer) = final_answer(&said) {
                assert!(said.contains(answer) && !answer.is_empty());
            }
            let options = [right.clone(), option.clone(), "C".to_owned()];
            assert!(choice(&said, &options).is_none_or(|place| place < options.len()));
            assert!(last_option(&said, &options).is_none_or(|place| place < options.len()));
            let f1 = token_f1(&said, &right);
            assert!((0.0..=1.0).contains(&f1), "{f1}");
            assert_eq!(f1, token_f1(&right, &said));
            assert!(exact_match(&said, &said) && (token_f1(&said, &said) - 1.0).abs() < 1e-12);
            if let Some(words) = last_words(&said, &right) {
                assert!(token_f1(&words, &right) <= 1.0);
            }
            assert_eq!(choice(&letter(2), &["x", "y", "z"].map(str::to_owned)), Some(2));
            for number in [only_number(&said), last_number(&said), right_number(&said)].into_iter().flatten() {
                assert!(said.contains(number.text));
                if let Some(right) = right_number(&right) {
                    number.is(&right, &option, 0.01);
                }
                assert!(!said.contains(|c: char| c.is_ascii_digit()) || number.is(&number, &option, 0.0));
            }
        });
    });
}
