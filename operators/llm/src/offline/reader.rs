//! Answers a question from texts by the words they share.

use std::collections::{BTreeSet, HashMap};

use super::document::{Document, rarity};
use super::fact::{Sort, facts};
use super::lexicon::{STOP, verb};
use super::text::{contains_words, seed, sentences, words};

/// How many sentences may support an option.
const TOP: usize = 5;

/// A text to read from.
pub(super) struct Context {
    pub(super) title: String,
    pub(super) text: String,
}

/// The answer on one line that ends in `Answer: …`, behind the sentence that it was taken from, if any. With options it is
/// one of them, word for word. Without texts an option is chosen by the words alone; without either it is `unknown`.
pub(super) fn answer(question: &str, options: Option<&[String]>, contexts: &[Context]) -> String {
    let scored = Scored::new(question, contexts);
    let options = options.filter(|options| !options.is_empty());
    let (evidence, answer) = match (options, scored.best()) {
        (Some(options), Some(_)) => scored.choose(question, options),
        (Some(options), None) => (None, blind(question, options)),
        (None, Some(_)) => scored.extract(question, contexts),
        (None, None) => (None, "unknown".to_owned()),
    };
    let answer = one_line(&answer);
    match evidence {
        Some(evidence) => format!("{} Answer: {answer}", one_line(evidence)),
        None => format!("Answer: {answer}"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn blind(question: &str, options: &[String]) -> String {
    options.iter().max_by_key(|option| seed(&[question, option])).cloned().unwrap_or_default()
}

/// What two forms of a word have in common: "builds", "built" and "building" are one.
pub(super) fn stem(word: &str) -> String {
    if let Some((base, _)) = verb(word) {
        return base;
    }
    match word.strip_suffix('s') {
        Some(stem) if stem.len() > 2 && !stem.ends_with('s') => stem.to_owned(),
        _ => word.to_owned(),
    }
}

/// The stems of the words that carry meaning, in order, so that sums over them are the same everywhere.
fn stems(text: &str) -> BTreeSet<String> {
    words(text).iter().filter(|word| !STOP.contains(word.as_str())).map(|word| stem(word)).collect()
}

/// The sentences of all texts, best first.
struct Scored {
    sentences: Vec<Sentence>,
    rarity: HashMap<String, f64>,
}

struct Sentence {
    context: usize,
    text: String,
    stems: BTreeSet<String>,
    score: f64,
}

impl Scored {
    fn new(question: &str, contexts: &[Context]) -> Self {
        let asked = stems(question);
        let mut found: Vec<Sentence> = Vec::new();
        for (context, Context { text, .. }) in contexts.iter().enumerate() {
            found.extend(sentences(text).into_iter().map(|text| Sentence {
                context,
                text: text.to_owned(),
                stems: stems(text),
                score: 0.0,
            }));
        }
        let stemmed: Vec<String> =
            found.iter().map(|sentence| sentence.stems.iter().cloned().collect::<Vec<_>>().join(" ")).collect();
        let rarity = rarity(&stemmed);
        let weight = |stem: &String| rarity.get(stem).copied().unwrap_or(1.0);
        for sentence in &mut found {
            let title = stems(&contexts[sentence.context].title);
            // A title counts for all its sentences: they need not repeat what they are about.
            sentence.score = asked
                .iter()
                .map(|stem| match (sentence.stems.contains(stem), title.contains(stem)) {
                    (true, _) => weight(stem),
                    (false, true) => 0.8 * weight(stem).max(1.0),
                    _ => 0.0,
                })
                .sum::<f64>()
                / (4.0 + sentence.stems.len() as f64).sqrt();
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        Self { sentences: found, rarity }
    }

    fn best(&self) -> Option<&Sentence> {
        self.sentences.first()
    }

    /// The option that the best sentences support most. The first such option wins a tie; where none has any support, the
    /// choice is blind.
    fn choose(&self, question: &str, options: &[String]) -> (Option<&str>, String) {
        let mut best: Option<(f64, &Sentence, &String)> = None;
        for option in options {
            let wanted = stems(option);
            let weigh = |stem: &String| self.rarity.get(stem).copied().unwrap_or(2.0);
            let all: f64 = wanted.iter().map(weigh).sum();
            for sentence in self.sentences.iter().take(TOP) {
                let support = if contains_words(&sentence.text, option) {
                    1.0
                } else if all > 0.0 {
                    0.8 * wanted.iter().filter(|stem| sentence.stems.contains(*stem)).map(weigh).sum::<f64>() / all
                } else {
                    0.0
                };
                let score = support * (0.1 + sentence.score);
                if score > 0.0 && best.is_none_or(|(most, ..)| score > most) {
                    best = Some((score, sentence, option));
                }
            }
        }
        match best {
            Some((_, sentence, option)) => (Some(&sentence.text), option.clone()),
            None => (None, blind(question, options)),
        }
    }

    /// A short span of a good sentence, of the sort that the question asks for.
    fn extract(&self, question: &str, contexts: &[Context]) -> (Option<&str>, String) {
        let wanted = sorts(question);
        let mut best: Option<(f64, &Sentence, String)> = None;
        let mut documents: HashMap<usize, (Document, Vec<super::fact::Fact>)> = HashMap::new();
        for sentence in self.sentences.iter().take(TOP) {
            let Context { title, text } = &contexts[sentence.context];
            let (document, facts) = documents.entry(sentence.context).or_insert_with(|| {
                let document = Document::new(title, text);
                let found = facts(&document, text);
                (document, found)
            });
            for fact in facts.iter() {
                let own = &document.sentences[document.clauses[fact.clause].sentence];
                if one_line(&sentence.text) != *own || contains_words(question, &fact.answer) {
                    continue;
                }
                let fits = match wanted.iter().position(|sort| *sort == fact.sort) {
                    Some(place) => 3.0 - 0.2 * place as f64,
                    None => 1.0,
                };
                let counted = !fact.unit.is_empty() && contains_words(question, &fact.unit);
                let score = (0.1 + sentence.score) * (fits + if counted { 1.0 } else { 0.0 });
                if best.as_ref().is_none_or(|(most, ..)| score > *most) {
                    best = Some((score, sentence, fact.answer.clone()));
                }
            }
        }
        match (best, self.best()) {
            (Some((_, sentence, answer)), _) => (Some(&sentence.text), answer),
            (None, Some(sentence)) => {
                let cut: Vec<&str> = sentence.text.split_whitespace().take(12).collect();
                (Some(&sentence.text), cut.join(" ").trim_end_matches(['.', ',', ';']).to_owned())
            }
            (None, None) => (None, "unknown".to_owned()),
        }
    }
}

/// The sorts of answer that a question asks for, the likeliest first.
fn sorts(question: &str) -> Vec<Sort> {
    let row = words(question);
    let has = |word: &str| row.iter().any(|other| other == word);
    let after = |first: &str, second: &str| row.windows(2).any(|pair| pair[0] == first && pair[1] == second);
    if after("how", "many") {
        vec![Sort::Count, Sort::Quantity, Sort::Money]
    } else if after("how", "much") {
        vec![Sort::Money, Sort::Percent, Sort::Quantity, Sort::Count]
    } else if ["long", "far", "high", "tall", "deep", "heavy", "wide", "old", "fast"].iter().any(|word| after("how", word)) {
        vec![Sort::Quantity, Sort::Count]
    } else if has("year") {
        vec![Sort::Year, Sort::Date]
    } else if after("what", "time") || has("hour") {
        vec![Sort::Time]
    } else if has("month") {
        vec![Sort::Month, Sort::Date]
    } else if has("weekday") || after("which", "day") || after("what", "day") {
        vec![Sort::Weekday, Sort::Date]
    } else if has("colour") || has("color") {
        vec![Sort::Colour]
    } else if has("percentage") || has("percent") {
        vec![Sort::Percent]
    } else if has("when") || has("date") {
        vec![Sort::Date, Sort::Year, Sort::Time, Sort::Month, Sort::Weekday, Sort::Period, Sort::Condition]
    } else if has("who") || has("whom") || has("whose") {
        vec![Sort::Person, Sort::Role, Sort::Name]
    } else if has("where") || has("place") || has("town") || has("city") {
        vec![Sort::Place, Sort::Name, Sort::Noun]
    } else if has("why") {
        vec![Sort::Reason, Sort::Purpose]
    } else {
        vec![Sort::Noun, Sort::Name, Sort::Quote, Sort::Role]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Vec<Context> {
        [
            (
                "Tern Ledge",
                "Tern Ledge was surveyed in 1912 by Ada Fenn. A violet pennant hangs from its gable. It has 142 stone steps.",
            ),
            ("Cold Reeling", "Cold Reeling was written down in 1938. A white pennant announces it. The fine is 6 crowns."),
        ]
        .map(|(title, text)| Context { title: title.to_owned(), text: text.to_owned() })
        .into()
    }

    fn last(question: &str, options: Option<&[&str]>) -> String {
        let options: Option<Vec<String>> = options.map(|options| options.iter().map(|option| (*option).to_owned()).collect());
        let line = answer(question, options.as_deref(), &contexts());
        assert!(!line.contains('\n'));
        line.rsplit_once("Answer: ").map(|(_, answer)| answer.to_owned()).unwrap_or_default()
    }

    #[test]
    fn spans_of_the_sort_asked_for() {
        for (question, expected) in [
            ("In which year was Tern Ledge surveyed?", "1912"),
            ("Who surveyed Tern Ledge?", "Ada Fenn"),
            ("What colour is the pennant at Tern Ledge?", "violet"),
            ("What colour is the pennant of Cold Reeling?", "white"),
            ("How many steps are there at Tern Ledge?", "142 stone steps"),
        ] {
            assert_eq!(last(question, None), expected, "{question}");
        }
    }

    #[test]
    fn options_are_answered_word_for_word() {
        assert_eq!(last("When was Cold Reeling written down?", Some(&["1912", "1938", "1950"])), "1938");
        assert_eq!(last("What is the fine in Cold Reeling?", Some(&["9 crowns", "6 crowns"])), "6 crowns");
    }

    #[test]
    fn without_texts_the_choice_is_blind_and_stable() {
        let options = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let turned = ["c".to_owned(), "a".to_owned(), "b".to_owned()];
        assert_eq!(answer("q?", Some(&options), &[]), answer("q?", Some(&turned), &[]));
        assert_eq!(answer("q?", None, &[]), "Answer: unknown");
    }
}
