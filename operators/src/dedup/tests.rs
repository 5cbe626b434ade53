use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::{AsArray, StringArray};
use serde_json::json;

use super::{
    index::{Compared, Index},
    minhash::Bands,
    ngrams::mix,
    search::removals,
    *,
};
use crate::query::inputs;

fn fields(config: serde_json::Value) -> Vec<String> {
    let schema = Schema::new(vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("doc_id", DataType::Utf8, true),
        Field::new("question", DataType::Utf8, true),
        Field::new("draw", DataType::Int32, false),
    ]);
    let operator: Dedup = serde_json::from_value(config).unwrap();
    let bound = operator.bind(&inputs(&[(PORT, Arc::new(schema))]));
    bound.err().unwrap_or_default().into_iter().map(|mistake| mistake.field).collect()
}

#[test]
fn all_mistakes_are_named_at_once() {
    let none: [&str; 0] = [];
    assert_eq!(fields(json!({ "column": "question", "within": "draw", "similarity": 0.8 })), none);
    assert_eq!(fields(json!({ "column": "draw" })), none);
    let near = json!({ "column": "draw", "within": "doc", "similarity": 1.5, "ngram": { "words": 0 } });
    assert_eq!(fields(near), ["/similarity", "/ngram/words", "/column", "/within"]);
    assert_eq!(fields(json!({ "column": "question", "ngram": { "characters": 5 } })), ["/ngram"]);
    assert_eq!(fields(json!({ "column": "question", "similarity": 0.05 })), ["/similarity"]);
    let long = json!({ "column": "question", "similarity": 0.8, "ngram": { "characters": 65 } });
    assert_eq!(fields(long), ["/ngram/characters"]);
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 += 1;
        mix(self.0) % end
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: String,
    group: Option<String>,
    text: Option<String>,
}

/// Rows of which about half are an earlier one with up to a fifth of its words changed, in an order without meaning.
fn rows(count: u64, words: u64, groups: u64, seed: u64) -> Vec<Row> {
    let mut numbers = Numbers(seed << 32);
    let mut texts: Vec<Vec<u64>> = Vec::new();
    let mut rows = Vec::new();
    for n in 0..count {
        let text = match n > 0 && numbers.below(2) == 0 {
            true => {
                let mut text = texts[numbers.below(n) as usize].clone();
                for _ in 0..numbers.below(words / 5 + 1) {
                    let place = numbers.below(text.len() as u64) as usize;
                    text[place] = numbers.below(5000);
                }
                text
            }
            false => (0..words).map(|_| numbers.below(5000)).collect(),
        };
        let group = numbers.below(groups + 1);
        rows.push(Row {
            id: format!("{:032x}", mix(numbers.below(u64::MAX))),
            group: (group < groups).then(|| format!("doc{group}")),
            text: (n % 100 != 99).then(|| text.iter().map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ")),
        });
        texts.push(text);
    }
    rows
}

fn batch(rows: &[Row]) -> RecordBatch {
    let column = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    RecordBatch::try_from_iter_with_nullable([
        ("row_id", column(rows.iter().map(|row| Some(row.id.as_str())).collect()), false),
        ("doc_id", column(rows.iter().map(|row| row.group.as_deref()).collect()), true),
        ("text", column(rows.iter().map(|row| row.text.as_deref()).collect()), true),
    ])
    .unwrap()
}

/// What goes, with what stays for it and how similar they are.
type Gone = BTreeMap<String, (String, f64)>;

fn near(rows: &[Row], batch_rows: usize, within: bool, ngram: Ngram, similarity: f64) -> Gone {
    let folder = tempfile::tempdir().unwrap();
    let within = within.then(|| "doc_id".to_owned());
    let compared = Compared { column: "text".into(), within, ngram, bands: Bands::of(similarity) };
    let mut index = Index::create(&folder.path().join("texts"), compared, rows.len()).unwrap();
    for rows in rows.chunks(batch_rows) {
        index.add(&batch(rows)).unwrap();
    }
    let removals = removals(&mut index, similarity).unwrap();
    let gone = removals.iter().map(|removal| {
        let id = rows[removal.position as usize].id.clone();
        (id, (index.id(removal.kept).to_owned(), removal.similarity))
    });
    gone.collect()
}

/// The n-grams of a text as they are, without hashes. The text is ASCII, with single spaces.
fn plain(text: &str, ngram: Ngram) -> HashSet<&str> {
    let (_, n) = ngram.parts();
    let n = n as usize;
    let spaces = text.match_indices(' ').map(|(place, _)| place);
    let (starts, ends): (Vec<usize>, Vec<usize>) = match ngram {
        Ngram::Words(_) => {
            let starts = std::iter::once(0).chain(spaces.clone().map(|place| place + 1)).collect();
            (starts, spaces.chain([text.len()]).collect())
        }
        Ngram::Characters(_) => ((0..text.len()).collect(), (1..=text.len()).collect()),
    };
    starts.iter().zip(&ends[n - 1..]).map(|(start, end)| &text[*start..*end]).collect()
}

/// Every pair whose similarity is at least `similarity`, by brute force over all pairs that share an n-gram.
fn pairs(rows: &[Row], within: bool, ngram: Ngram, similarity: f64) -> BTreeMap<(String, String), f64> {
    let mut holders: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut sizes = vec![0; rows.len()];
    let mut found = BTreeMap::new();
    for (place, row) in rows.iter().enumerate() {
        let Some(text) = &row.text else { continue };
        let mut shared = vec![0; place];
        let grams = plain(text, ngram);
        sizes[place] = grams.len();
        for gram in grams {
            let others = holders.entry(gram).or_default();
            for other in &*others {
                shared[*other] += 1;
            }
            others.push(place);
        }
        for (other, shared) in shared.into_iter().enumerate().filter(|(_, shared)| *shared > 0) {
            let jaccard = shared as f64 / (sizes[place] + sizes[other] - shared) as f64;
            if jaccard >= similarity && (!within || row.group == rows[other].group) {
                let (a, b) = (row.id.clone(), rows[other].id.clone());
                found.insert(if a < b { (a, b) } else { (b, a) }, jaccard);
            }
        }
    }
    found
}

/// What goes if no pair is missed.
fn greedy(rows: &[Row], pairs: &BTreeMap<(String, String), f64>) -> BTreeSet<String> {
    let mut before: HashMap<&str, Vec<&str>> = HashMap::new();
    for (a, b) in pairs.keys() {
        before.entry(b).or_default().push(a);
    }
    let ids: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let mut gone = BTreeSet::new();
    for id in ids {
        if before.get(id).is_some_and(|others| others.iter().any(|other| !gone.contains(*other))) {
            gone.insert(id.to_owned());
        }
    }
    gone
}

#[test]
fn nearly_all_pairs_are_found_and_no_other() {
    let cases = [
        (120, Ngram::Words(5), 0.5, false),
        (120, Ngram::Words(3), 0.8, false),
        (10, Ngram::Characters(5), 0.7, true),
        (60, Ngram::Words(1), 0.9, true),
    ];
    for (case, (words, ngram, similarity, within)) in cases.into_iter().enumerate() {
        let rows = rows(5000, words, 1, case as u64);
        let gone = near(&rows, 700, within, ngram, similarity);
        let pairs = pairs(&rows, within, ngram, similarity);
        for (id, (kept, found)) in &gone {
            let true_similarity = pairs.get(&(kept.clone(), id.clone()));
            assert_eq!(true_similarity, Some(found), "case {case}: {id} was removed for {kept}");
            assert!(!gone.contains_key(kept), "case {case}: {kept} doesn't stay");
        }
        let exact = greedy(&rows, &pairs);
        let recall = exact.iter().filter(|id| gone.contains_key(*id)).count() as f64 / exact.len() as f64;
        assert!(exact.len() > 300, "case {case}: {} rows are to go", exact.len());
        assert!(recall >= 0.95, "case {case}: recall {recall} of {}", exact.len());
        assert!(gone.len() as f64 <= exact.len() as f64 * 1.05, "case {case}: {} of {} go", gone.len(), exact.len());
    }
}

#[test]
fn pairs_at_the_threshold_are_found_as_often_as_is_said() {
    // 36 words, of which 4 at one end change: 32 of 40 are shared.
    let text = |from: u64| (from..from + 36).map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ");
    let row = |id: u64, from: u64| Row { id: format!("{id:032x}"), group: None, text: Some(text(from)) };
    let rows: Vec<Row> = (0..2000).flat_map(|n| [row(2 * n, n * 100), row(2 * n + 1, n * 100 + 4)]).collect();
    let gone = near(&rows, 1024, false, Ngram::Words(1), 0.8);
    assert!(gone.values().all(|(_, similarity)| *similarity == 0.8));
    assert!((1920..1990).contains(&gone.len()), "{} of 2000", gone.len());
}

#[test]
fn what_goes_depends_on_the_rows_alone() {
    for within in [false, true] {
        let rows = rows(1500, 60, 4, 9);
        let gone = near(&rows, 1024, within, Ngram::Words(2), 0.7);
        assert!(gone.len() > 50, "{}", gone.len());
        let mut shuffled = rows.clone();
        let mut numbers = Numbers(77);
        for place in (1..shuffled.len()).rev() {
            shuffled.swap(place, numbers.below(place as u64 + 1) as usize);
        }
        assert_ne!(rows, shuffled);
        assert_eq!(near(&shuffled, 13, within, Ngram::Words(2), 0.7), gone);
    }
}

#[test]
fn a_row_that_is_near_removed_rows_only_stays() {
    let row = |id: &str, text: &str| Row { id: id.into(), group: None, text: Some(text.into()) };
    // Neighbours share 8 of 10 words, those at both ends 7 of 11.
    let rows = [row("3", "c d e f g h i j k"), row("2", "b c d e f g h i j"), row("1", "a b c d e f g h i")];
    let gone = near(&rows, 2, false, Ngram::Words(1), 0.75);
    assert_eq!(gone, Gone::from([("2".into(), ("1".into(), 0.8))]));
}

#[test]
fn many_equal_rows_are_one_and_nulls_stay() {
    let mut rows: Vec<Row> =
        (0..3000).map(|n| Row { id: format!("{n:04}"), group: None, text: Some("One  and THE same".into()) }).collect();
    rows[1000].text = None;
    rows.push(Row { id: "x".into(), group: None, text: Some(String::new()) });
    rows.push(Row { id: "y".into(), group: None, text: Some(" \n".into()) });
    let gone = near(&rows, 1024, false, Ngram::Words(5), 1.0);
    assert_eq!(gone.len(), 2999);
    assert!(gone.iter().all(|(id, kept)| kept == &(if id == "y" { "x" } else { "0000" }.to_owned(), 1.0)));
    assert!(near(&rows[..0], 1024, false, Ngram::Words(5), 1.0).is_empty());
}

#[test]
fn rows_are_divided_unchanged() {
    let rows = batch(&rows(3, 4, 1, 0));
    let kept = rows.schema();
    let schemas = Schemas { removed: removed_schema(&kept), kept };
    let one: ArrayRef = Arc::new(StringArray::from(vec!["k"]));
    let similarity: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![0.9]));
    let outputs = schemas.divide(&rows, &BooleanArray::from(vec![true, false, true]), one.clone(), similarity.clone()).unwrap();
    assert_eq!(outputs.iter().map(|output| output.output).collect::<Vec<_>>(), [DEFAULT_OUTPUT, REMOVED]);
    assert_eq!(
        (outputs[0].rows.num_rows(), outputs[0].rows.column(0).as_string::<i32>().value(1)),
        (2, rows.column(0).as_string::<i32>().value(2))
    );
    assert_eq!(outputs[1].rows.columns()[..3], rows.slice(1, 1).columns()[..]);
    assert_eq!((outputs[1].rows.column(3), outputs[1].rows.column(4)), (&one, &similarity));
    let none = |array: &ArrayRef| array.slice(0, 0);
    let all = schemas.divide(&rows, &BooleanArray::from(vec![true; 3]), none(&one), none(&similarity)).unwrap();
    assert_eq!((all.len(), &all[0].rows), (1, &rows));
}

#[test]
fn a_table_that_does_not_fit_is_refused() {
    let bands = Bands::of(0.8);
    assert!(super::near::fits(1_000_000, bands, 230_000_000).is_ok());
    let message = super::near::fits(1_000_001, bands, 230_000_000).unwrap_err().message;
    assert_eq!(message, "finding near duplicates among 1000001 rows takes 220 MiB, and `--memory` allows 220");
}
