//! Answers about documents that are forgotten.

use std::collections::HashSet;

use ingrain_engine::{failure::Failure, lineage::Dependents, run::Environment, store::Tombstone};
use ingrain_llm::{Finish, Memo, Remembered, Removed};
use object_store::path::Path;

use super::{MEMO, embedder::EMBEDDINGS, local_folder, memo_failure};

/// How many of what teachers were asked are to go, or went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answers in the memo.
    pub answers: usize,
    /// What an embedder said instead of a vector: it may quote the text.
    pub refusals: usize,
    /// Damaged segments, which stay as they are.
    pub damaged: usize,
}

/// Counts the answers that hold something of these documents, and where `remove` says so removes them: those that affected
/// rows were made of, and those that were asked about the documents or about affected rows, rejected ones included. Of answers
/// that were asked about a document with the same `doc_id`, those that rows of another source were made of stay.
///
/// Vectors stay: they hold no text, and nobody can say of which they are. An embedder's words of refusal go, all of them.
///
/// # Errors
/// When a memo can't be opened, read or written.
pub async fn forget(
    environment: &Environment,
    documents: &[Tombstone],
    dependents: &Dependents,
    remove: bool,
) -> Result<Answers, Failure> {
    let doc_ids: HashSet<&str> = documents.iter().map(|document| document.doc_id.as_str()).collect();
    let is_meant = |answer: &Remembered| {
        let is_named = |id: &String| doc_ids.contains(id.as_str()) || dependents.rows.contains(id);
        dependents.answers.contains(&answer.request_id)
            || answer.about.iter().any(is_named) && !dependents.of_others.contains(&answer.request_id)
    };
    let is_refusal = |answer: &Remembered| answer.finish == Some(Finish::Invalid);
    let answers = in_memo(environment, MEMO, is_meant, remove).await?;
    let refusals = in_memo(environment, EMBEDDINGS, is_refusal, remove).await?;
    Ok(Answers { answers: answers.answers, refusals: refusals.answers, damaged: answers.damaged + refusals.damaged })
}

async fn in_memo(
    environment: &Environment,
    name: &str,
    is_meant: impl Fn(&Remembered) -> bool + Send + Sync,
    remove: bool,
) -> Result<Removed, Failure> {
    let (objects, folder) = (environment.store.objects().clone(), local_folder(environment, name));
    let removed = match remove {
        true => Memo::open(objects, Path::from(name), &folder).await.map_err(memo_failure)?.forget(is_meant).await,
        false => Memo::look(objects, Path::from(name), &folder).await.map_err(memo_failure)?.count(is_meant).await,
    };
    removed.map_err(memo_failure)
}
