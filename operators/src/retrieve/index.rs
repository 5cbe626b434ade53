//! A BM25 index in a local folder.

use std::path::Path;

use ingrain_engine::failure::Failure;
use tantivy::{
    IndexWriter, ReloadPolicy, Searcher, TantivyDocument, TantivyError, Term,
    collector::TopDocs,
    indexer::NoMergePolicy,
    query::{BooleanQuery, ConstScoreQuery, Occur, Query, TermQuery},
    schema::{Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value},
    tokenizer::TextAnalyzer,
};

/// The writer's buffer; a segment is written when it is full.
const HEAP: usize = 64 << 20;

/// A row that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    /// The row's id.
    pub(crate) row_id: String,
    /// Its document.
    pub(crate) doc_id: Option<String>,
    /// Its title.
    pub(crate) title: Option<String>,
    /// Its text.
    pub(crate) text: String,
    /// Its BM25 score, to four decimals.
    pub(crate) score: f64,
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    row_id: Field,
    doc_id: Field,
    title: Field,
    text: Field,
    /// Title and text, as they are searched.
    searched: Field,
}

/// An index while it is written, by one thread, so that equal rows give equal scores.
pub(crate) struct Writer {
    writer: IndexWriter,
    fields: Fields,
}

impl Writer {
    /// A new index in an empty folder.
    pub(crate) fn create(folder: &Path) -> Result<Self, Failure> {
        let mut schema = Schema::builder();
        let words = TextFieldIndexing::default().set_tokenizer("default").set_index_option(IndexRecordOption::WithFreqs);
        let fields = Fields {
            row_id: schema.add_text_field("row_id", STORED),
            doc_id: schema.add_text_field("doc_id", STRING | STORED),
            title: schema.add_text_field("title", STORED),
            text: schema.add_text_field("text", STORED),
            searched: schema.add_text_field("searched", TextOptions::default().set_indexing_options(words)),
        };
        let index = tantivy::Index::create_in_dir(folder, schema.build()).map_err(failure)?;
        let writer = index.writer_with_num_threads(1, HEAP).map_err(failure)?;
        // Merges run beside the writer and would make the layout a matter of time.
        writer.set_merge_policy(Box::new(NoMergePolicy));
        Ok(Self { writer, fields })
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, row_id: &str, doc_id: Option<&str>, title: Option<&str>, text: &str) -> Result<(), Failure> {
        let mut document = TantivyDocument::new();
        document.add_text(self.fields.row_id, row_id);
        document.add_text(self.fields.text, text);
        if let Some(doc_id) = doc_id {
            document.add_text(self.fields.doc_id, doc_id);
        }
        match title {
            Some(title) => {
                document.add_text(self.fields.title, title);
                document.add_text(self.fields.searched, format!("{title}\n{text}"));
            }
            None => document.add_text(self.fields.searched, text),
        }
        self.writer.add_document(document).map_err(failure)?;
        Ok(())
    }

    /// Ends writing.
    pub(crate) fn finish(mut self) -> Result<Index, Failure> {
        self.writer.commit().map_err(failure)?;
        let index = self.writer.index().clone();
        self.writer.wait_merging_threads().map_err(failure)?;
        let words = index.tokenizer_for_field(self.fields.searched).map_err(failure)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().map_err(failure)?;
        Ok(Index { searcher: reader.searcher(), words, fields: self.fields })
    }
}

/// A written index.
pub(crate) struct Index {
    searcher: Searcher,
    words: TextAnalyzer,
    fields: Fields,
}

impl Index {
    /// The rows with the highest scores, at most `top_k` (at least 1), best first and equal ones by their ids. With
    /// `doc_id`, only rows of that document, and these whether or not they share a word with the question.
    pub(crate) fn search(&self, question: &str, doc_id: Option<&str>, top_k: usize) -> Result<Vec<Hit>, Failure> {
        let mut clauses = self.clauses(question);
        if let Some(doc_id) = doc_id {
            let term = Term::from_field_text(self.fields.doc_id, doc_id);
            let own = ConstScoreQuery::new(Box::new(TermQuery::new(term, IndexRecordOption::Basic)), 0.0);
            clauses.push((Occur::Must, Box::new(own)));
        }
        let rows = self.searcher.num_docs() as usize;
        if clauses.is_empty() || rows == 0 {
            return Ok(Vec::new());
        }
        let query = BooleanQuery::new(clauses);
        // Which of equal rows are among the first is a matter of layout: more are taken until a lower score shows that all
        // rows equal to the last one wanted are there.
        let mut limit = (top_k + 8).min(rows);
        let found = loop {
            let found = self.searcher.search(&query, &TopDocs::with_limit(limit).order_by_score()).map_err(failure)?;
            let whole = match (found.get(top_k - 1), found.last()) {
                (Some((wanted, _)), Some((last, _))) => rounded(*last) < rounded(*wanted),
                _ => true,
            };
            if whole || found.len() < limit || limit == rows {
                break found;
            }
            limit = (limit * 4).min(rows);
        };
        let lowest = found.get(top_k - 1).map_or(0.0, |(score, _)| rounded(*score));
        let mut hits = Vec::with_capacity(top_k);
        for (score, address) in found.into_iter().filter(|(score, _)| rounded(*score) >= lowest) {
            let document: TantivyDocument = self.searcher.doc(address).map_err(failure)?;
            let stored = |field: Field| document.get_first(field).and_then(|value| value.as_str().map(str::to_owned));
            hits.push(Hit {
                row_id: stored(self.fields.row_id).unwrap_or_default(),
                doc_id: stored(self.fields.doc_id),
                title: stored(self.fields.title),
                text: stored(self.fields.text).unwrap_or_default(),
                score: rounded(score),
            });
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.row_id.cmp(&b.row_id)));
        hits.truncate(top_k);
        Ok(hits)
    }

    /// A clause for each different word of the question.
    fn clauses(&self, question: &str) -> Vec<(Occur, Box<dyn Query>)> {
        let mut words = self.words.clone();
        let mut stream = words.token_stream(question);
        let mut terms = std::collections::BTreeSet::new();
        while let Some(token) = stream.next() {
            terms.insert(Term::from_field_text(self.fields.searched, &token.text));
        }
        let clause = |term| {
            let query: Box<dyn Query> = Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
            (Occur::Should, query)
        };
        terms.into_iter().map(clause).collect()
    }
}

/// Scores are sums of 32-bit floats in an order that may differ between rows: beyond four decimals they say nothing.
fn rounded(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}

fn failure(error: TantivyError) -> Failure {
    Failure::external(format!("the index failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(rows: &[(&str, &str, Option<&str>, &str)]) -> (tempfile::TempDir, Index) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        for (row_id, doc_id, title, text) in rows {
            writer.add(row_id, Some(doc_id), *title, text).unwrap();
        }
        (folder, writer.finish().unwrap())
    }

    fn ids(hits: &[Hit]) -> Vec<&str> {
        hits.iter().map(|hit| hit.row_id.as_str()).collect()
    }

    const ROWS: [(&str, &str, Option<&str>, &str); 4] = [
        ("a", "office", Some("Harbour Office"), "It was founded in 1874 by the engineer Ida Brandt."),
        ("b", "office", Some("Harbour Office"), "It keeps nine pilots and two tugs."),
        ("c", "mill", Some("Paper Mill"), "It was founded in 1901 by a lawyer."),
        ("d", "mill", None, "The lawyer sold the mill to the city."),
    ];

    #[test]
    fn the_obvious_row_comes_first_and_scores_are_bm25() {
        let (_folder, index) = index(&ROWS);
        let hits = index.search("Which engineer founded the Harbour Office?", None, 8).unwrap();
        assert_eq!(hits[0].row_id, "a");
        assert_eq!(hits[0].title.as_deref(), Some("Harbour Office"));
        assert!(hits.windows(2).all(|pair| pair[0].score >= pair[1].score));
        // `tugs` stands once, in 1 of 4 rows, which has 9 words; the rows have 12, 9, 10 and 8.
        let tugs = index.search("tugs?", None, 8).unwrap();
        assert_eq!(ids(&tugs), ["b"]);
        let expected = (1.0 + 3.5f64 / 1.5).ln() * 2.2 / (1.0 + 1.2 * (0.25 + 0.75 * 9.0 / 9.75));
        assert!((tugs[0].score - expected).abs() < 2e-4, "{} {expected}", tugs[0].score);
    }

    #[test]
    fn what_a_user_writes_is_words_and_no_query() {
        let (_folder, index) = index(&ROWS);
        for question in ["text:* OR (", "\"founded in 1874", "-lawyer AND +[a TO z]", "^2 ~ \\"] {
            index.search(question, None, 8).unwrap();
        }
        let plain = index.search("not lawyer", None, 8).unwrap();
        assert_eq!(index.search("NOT -lawyer!", None, 8).unwrap(), plain);
        assert!(index.search("... ?", None, 8).unwrap().is_empty());
        assert!(index.search("zeppelin", None, 8).unwrap().is_empty());
    }

    #[test]
    fn ties_go_by_id_whatever_the_order_of_rows() {
        let names: Vec<String> = (0..60).map(|n| format!("{:02}", (n * 37) % 60)).collect();
        let rows: Vec<_> = names.iter().map(|name| (name.as_str(), "d", None, "the same words in every row")).collect();
        let (_folder, index_a) = index(&rows);
        let reversed: Vec<_> = rows.iter().rev().copied().collect();
        let (_other, index_b) = index(&reversed);
        let hits = index_a.search("which words?", None, 3).unwrap();
        assert_eq!(ids(&hits), ["00", "01", "02"]);
        assert_eq!(index_b.search("which words?", None, 3).unwrap(), hits);
    }

    #[test]
    fn gold_stays_in_the_document() {
        let (_folder, index) = index(&ROWS);
        let hits = index.search("Who founded Harbour Office?", Some("mill"), 8).unwrap();
        assert_eq!(ids(&hits), ["c", "d"]);
        let none = index.search("...", Some("office"), 8).unwrap();
        assert_eq!(ids(&none), ["a", "b"]);
        assert_eq!(none[0].score, 0.0);
        assert!(index.search("founded", Some("elsewhere"), 8).unwrap().is_empty());
    }
}
