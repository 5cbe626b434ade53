use std::collections::{HashMap, HashSet};

use super::question::{Kind, questions};
use super::text::{contains_words, mixed, pick, sentences, words};
use super::*;
use crate::parse;
use crate::request::Decoding;

/// Texts in the style of an organisation's site: each about one thing.
const DOCUMENTS: &[(&str, &str)] = &[
    (
        "Larkspur House",
        "Larkspur House is the seed store of the Veldt Trust in Orrin Vale. Marta Quillfeather built it in 1907 from the stones \
         of a ruined brewery. It has 34 drawers of pear wood, and each drawer holds 900 packets. A green lamp burns over the door \
         whenever the store is open. The Trust paid 4,200 florins for the land.\n\n\
         The cellar stays at 6 degrees in every season, because a spring runs under its floor. Rafe Ombler, the storekeeper, \
         weighs each packet on a brass scale. The scale was made in Tolby and is accurate to 2 grams. Visitors may enter on \
         Wednesdays between ten and noon. On the roof stands a weather vane in the shape of a heron.\n\n\
         Larkspur House was closed in 1951 after a flood had reached the second shelf. It opened again four years later. The rarest \
         seed is the blue vetch, which came from the island of Sarn. A cat called Pepper keeps the mice away. Every August the \
         children of Orrin Vale bring baskets of poppy heads to fill the empty drawers.",
    ),
    (
        "The Grindle Engine",
        "The Grindle Engine is a steam pump that drains the lower meadows of the Veldt Trust. It was designed by Tamsin Okoro in 1888. \
         The engine weighs 5,600 kilograms and stands in a shed of tarred oak. Its boiler burns willow from the river bank. At full \
         speed the Grindle Engine lifts 75 litres with each stroke.\n\n\
         The flywheel is painted crimson, and its spokes are black. Two stokers, Hal Brisk and Dora Menzies, look after the fire by \
         day and night. They begin work at 5:40. A bell of bronze rings when the water falls below the mark. The oil comes from \
         Port Lindle in barrels of 40 gallons.\n\n\
         In 1932 a new piston was fitted by the Sorrel Brothers. The old piston serves as a bench outside the shed. The Grindle \
         Engine is stopped each Sunday so that the eels can pass the sluice. A book with a yellow cover lists every repair. The \
         Trust spends 310 florins a year on grease. No visitor may touch the levers.",
    ),
    (
        "Isolde Pemberwick",
        "Isolde Pemberwick is the map maker of the Veldt Trust. She was born in 1962 in Quarry Bottom, where her father kept bees. \
         She learned to draw from a retired sea captain, Anders Holm. Her desk stands in the attic of the mill and is made of \
         cherry. She draws every map with a quill from a grey goose.\n\n\
         Isolde Pemberwick has finished 218 maps, and each one shows a single field. She walks 12 miles on a working day. Her boots \
         were sewn by a cobbler in Tolby. She signs her maps with a small red hare. The largest map measures three metres and hangs \
         in the hall of Larkspur House.\n\n\
         In 1998 she won the Sarn Medal for a map of the underground streams. She keeps the medal in a tea tin. Isolde Pemberwick \
         never works on Fridays, because she teaches children to read contour lines. Her assistant, Piet Farrow, mixes the inks. The \
         blue ink contains woad from the Trust's own garden.",
    ),
    (
        "Lantern Round",
        "Lantern Round is the evening check of all gates at the Veldt Trust. Osric Thale introduced it in 1919, after a bull had \
         escaped to the railway. It begins at 20:15 and lasts 50 minutes. Lantern Round is walked by two people, one of whom carries \
         a white lantern.\n\n\
         The walkers start at the weir and end at the chapel. At each of the 16 gates they turn a brass key and call the number \
         aloud. The lantern burns rape oil. In fog, Lantern Round is led by the bell ringer, who knows every step by heart. A gate \
         that is found open costs its owner 3 florins.\n\n\
         New walkers practise Lantern Round at Quarry Bottom for a month. Dogs are not allowed to come along. The results stand in \
         the Gate Ledger, a thick volume bound in green cloth. On the shortest day of the year all walkers get mulled cider in the \
         chapel. Lantern Round has been missed only once, during the flood of 1951.",
    ),
];

fn request(task: &str, variables: Value) -> Request {
    Request {
        messages: Vec::new(),
        decoding: Decoding { temperature: 1.0, top_p: 1.0, max_output_tokens: 120 },
        response_format: None,
        task: task.to_owned(),
        variables,
    }
}

async fn ask(task: &str, variables: Value, draw: u32) -> String {
    Offline.answer(&request(task, variables), draw, 0).await.expect("no outage").text
}

#[tokio::test]
async fn pairs_are_many_different_short_and_true() {
    let mut n = 0;
    let mut different = HashSet::new();
    let mut in_source = 0;
    let mut kinds: HashMap<Kind, usize> = HashMap::new();
    for (title, text) in DOCUMENTS {
        let by_question: HashMap<String, Kind> =
            questions(title, text).into_iter().map(|asked| (asked.question, asked.kind)).collect();
        for draw in 0..6 {
            let answer = ask("synthesize_qa", json!({ "title": title, "text": text, "pairs": 8 }), draw).await;
            let pairs = parse::pairs(&answer).expect("pairs").whole;
            assert_eq!(pairs.len(), 8);
            for pair in pairs {
                n += 1;
                let name = title.trim_start_matches("The ");
                assert!(contains_words(&pair.question, name), "{pair:?}");
                assert!(words(&pair.answer).len() <= 12 && !contains_words(&pair.question, &pair.answer), "{pair:?}");
                assert!(pair.explanation.trim_end_matches('.').ends_with(&pair.answer), "{pair:?}");
                in_source += usize::from(contains_words(text, &pair.answer));
                *kinds.entry(by_question[&pair.question]).or_default() += 1;
                different.insert(pair.question);
            }
        }
    }
    assert!(different.len() * 10 >= n * 9, "{} of {n} questions differ", different.len());
    assert!(in_source * 100 >= n * 95, "{in_source} of {n} answers stand in their source");
    let common = kinds.values().filter(|count| **count * 50 >= n).count();
    assert!(common >= 6, "{kinds:?}");
}

#[tokio::test]
async fn few_draws_cover_the_text() {
    for (title, text) in DOCUMENTS {
        let mut covered = HashSet::new();
        for draw in 0..6 {
            let answer = ask("synthesize_qa", json!({ "title": title, "text": text, "pairs": 8 }), draw).await;
            for pair in parse::pairs(&answer).expect("pairs").whole {
                covered.extend(sentences(text).into_iter().filter(|sentence| contains_words(sentence, &pair.answer)));
            }
        }
        let all = sentences(text).len();
        assert!(covered.len() * 10 >= all * 8, "{title}: {} of {all} sentences", covered.len());
    }
}

fn grams(text: &str) -> HashSet<Vec<String>> {
    words(text).windows(4).map(<[String]>::to_vec).collect()
}

#[tokio::test]
async fn rewrites_differ_by_question_and_from_their_source() {
    let mut similarities = Vec::new();
    let (mut verbatim, mut told) = (0, 0);
    for (title, text) in DOCUMENTS {
        let source = rewrite::normal(text);
        let mut rewrites: Vec<HashSet<Vec<String>>> = Vec::new();
        for asked in questions(title, text).iter().step_by(9).take(6) {
            let variables = json!({ "title": title, "text": text, "question": asked.question, "answer": asked.answer });
            let rewrite = ask("rewrite", variables, 0).await;
            let n = words(&rewrite).len();
            assert!((30..=90).contains(&n), "{n} words: {rewrite}");
            assert!(contains_words(&rewrite, &asked.answer), "{} in {rewrite}", asked.answer);
            for sentence in sentences(&rewrite) {
                told += 1;
                verbatim += usize::from(source.contains(&rewrite::normal(sentence)));
            }
            let new = grams(&rewrite);
            similarities
                .extend(rewrites.iter().map(|old| old.intersection(&new).count() as f64 / old.union(&new).count() as f64));
            rewrites.push(new);
        }
    }
    similarities.sort_by(f64::total_cmp);
    let median = similarities[similarities.len() / 2];
    assert!(median < 0.7, "{median}");
    assert!(verbatim * 2 < told, "{verbatim} of {told} sentences stand in the source");
}

#[tokio::test]
async fn answers_are_read_from_contexts() {
    let contexts: Vec<Value> = DOCUMENTS.iter().map(|(title, text)| json!({ "title": title, "text": text })).collect();
    for (question, options, expected) in [
        ("In which year was the Grindle Engine designed?", None, "1888"),
        ("Who introduced Lantern Round?", None, "Osric Thale"),
        ("What colour is the flywheel of the Grindle Engine?", Some(["green", "crimson", "yellow", "white"]), "crimson"),
        ("How many maps has Isolde Pemberwick finished?", Some(["34", "900", "218", "12"]), "218"),
    ] {
        let line = ask("answer", json!({ "question": question, "options": options, "contexts": contexts }), 0).await;
        assert!(line.ends_with(&format!("Answer: {expected}")), "{question} {line}");
    }
    assert_eq!(ask("answer", json!({ "question": "Why?", "contexts": [] }), 0).await, "Answer: unknown");
}

#[tokio::test]
async fn the_same_request_has_the_same_answer() {
    let (title, text) = DOCUMENTS[0];
    let variables = json!({ "title": title, "text": text, "pairs": 4, "further": 1 });
    let first = Offline.answer(&request("synthesize_qa", variables.clone()), 2, 0).await.expect("no outage");
    let second = Offline.answer(&request("synthesize_qa", variables.clone()), 2, 3).await.expect("no outage");
    assert_eq!(first, second);
    assert_ne!(first.text, ask("synthesize_qa", variables, 3).await);
    assert_eq!(first.usage, Some(Usage { input_tokens: 0, output_tokens: first.text.len().div_ceil(4) as u64 }));
}

/// Answers are remembered under the revision: whoever changes one raises it, and puts the new digest here.
#[tokio::test]
async fn answers_change_with_the_revision_only() {
    let mut answers = blake3::Hasher::new();
    for (title, text) in DOCUMENTS {
        for draw in 0..6 {
            answers.update(ask("synthesize_qa", json!({ "title": title, "text": text, "pairs": 8 }), draw).await.as_bytes());
        }
        for asked in questions(title, text).iter().take(10) {
            let variables = json!({ "title": title, "text": text, "question": asked.question, "answer": asked.answer });
            answers.update(ask("rewrite", variables, 1).await.as_bytes());
            let contexts = json!([{ "title": title, "text": text }]);
            let variables = json!({ "question": asked.question, "contexts": contexts });
            answers.update(ask("answer", variables, 0).await.as_bytes());
        }
    }
    assert_eq!((REVISION, &answers.finalize().to_hex()[..16]), (1, "04685a1748692ac2"));
}

#[tokio::test]
async fn what_it_can_not_do_is_an_outage() {
    let unknown = Offline.answer(&request("judge", json!({})), 0, 0).await.expect_err("unknown");
    assert!(unknown.to_string().contains("`judge`"), "{unknown}");
    let missing = Offline.answer(&request("rewrite", json!({ "text": "x" })), 0, 0).await.expect_err("missing");
    assert!(missing.to_string().contains("`question`"), "{missing}");
}

/// Sentences of words and marks in any order: whatever a document holds, the rules must not run off its end.
#[test]
fn word_salad_is_survived() {
    let mut salad: Vec<&str> = DOCUMENTS.iter().flat_map(|(_, text)| text.split_whitespace()).collect();
    let marks = [
        ",", ".", "\"", "“", "(", ")", "and", "who", "which", "that", "to", "of", "is", "was", "by", "in", "a", "the", "its",
        "1912", "12:30", "$5", "5%", "red", "-", "–", "…", "’s", "é", "北京", "\u{301}", "\n\n", "- ", "?", ";", ":",
    ];
    salad.extend(marks.iter().cycle().take(salad.len()));
    for round in 0..400_u64 {
        let word = |n: u64| *pick(&salad, mixed(round * 1000 + n)).unwrap_or(&"");
        let text: Vec<&str> = (0..40).map(word).collect();
        let text = text.join(if round % 3 == 0 { "" } else { " " });
        let title = format!("{} {}", word(50), word(51));
        let all = questions(&title, &text);
        let question = all.first().map_or("What?", |asked| &asked.question);
        let answer = all.first().map(|asked| asked.answer.as_str());
        rewrite::rewrite(&rewrite::Focus { title: &title, text: &text, question, answer, max_words: 60 }, 0);
        reader::answer(question, None, &[reader::Context { title, text }]);
    }
}

#[tokio::test]
async fn odd_texts_are_answered() {
    for text in [
        "",
        " \n\n ",
        "?",
        "12",
        "\"\"\"",
        "(((",
        "It.",
        "A, b, and c; d: e.",
        "Ünïcödé ßtraße 北京 🙂 is 5 km — wide.",
        "of of of, which",
    ] {
        let answer = ask("synthesize_qa", json!({ "title": "", "text": text, "pairs": 8 }), 1).await;
        assert!(serde_json::from_str::<Value>(&answer).is_ok());
        ask("rewrite", json!({ "title": "X", "text": text, "question": "What?" }), 0).await;
        ask("answer", json!({ "question": text, "options": [text], "contexts": [{ "title": text, "text": text }] }), 0).await;
    }
}
