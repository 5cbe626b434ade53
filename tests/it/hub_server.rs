//! A Hugging Face hub over HTTP in this process, with the redirects, headers and refusals of the real one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Files by path.
type Commit = BTreeMap<String, Bytes>;

/// A hub and the server that it redirects large files to, until it is dropped.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    pub(crate) token: String,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct State {
    /// Where large files are.
    storage: String,
    token: String,
    repositories: Mutex<BTreeMap<String, Repository>>,
    requests: Mutex<Vec<String>>,
    /// So many pieces of large files are cut off in the middle.
    cuts: AtomicUsize,
}

#[derive(Default)]
struct Repository {
    is_gated: bool,
    main: String,
    commits: BTreeMap<String, Commit>,
    /// Large files come with another last byte than is listed.
    is_broken: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

impl Hub {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let bind = || runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (hub, storage) = (bind(), bind());
        let url = |listener: &tokio::net::TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let token = "hf_hunter2TokenOfTheTest".to_owned();
        let state = Arc::new(State { storage: url(&storage), token: token.clone(), ..State::default() });
        let endpoint = url(&hub);
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let state = state.clone();
            let app = Router::new().fallback(move |request: Request| {
                let state = state.clone();
                async move { if is_storage { state.stored(&request) } else { state.answer(&request) } }
            });
            runtime.spawn(async move { axum::serve(listener, app).await });
        }
        Self { endpoint, token, state, runtime: Some(runtime) }
    }

    /// Puts a commit on the main branch of a repository (`owner/name`, or `datasets/owner/name` without large files), which needs a
    /// token; gives its hash.
    pub(crate) fn commit(&self, repository: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
        let files: Commit = files.iter().map(|(path, content)| (path.clone(), Bytes::from(content.clone()))).collect();
        let mut hash = Sha256::new();
        for (path, content) in &files {
            hash.update(path.as_bytes());
            hash.update(content);
        }
        let sha = hex(&hash.finalize()[..20]);
        let mut repositories = locked(&self.state.repositories);
        let repository = repositories.entry(repository.to_owned()).or_default();
        repository.main.clone_from(&sha);
        repository.commits.insert(sha.clone(), files);
        sha
    }

    /// From now on, the repository's owner lets nobody in.
    pub(crate) fn gate(&self, repository: &str) {
        locked(&self.state.repositories).get_mut(repository).expect("a repository").is_gated = true;
    }

    /// From now on, large files of the repository come with another last byte than is listed; or no more.
    pub(crate) fn break_files(&self, repository: &str, is_broken: bool) {
        locked(&self.state.repositories).get_mut(repository).expect("a repository").is_broken = is_broken;
    }

    /// So many of the next pieces of large files are cut off.
    pub(crate) fn cut(&self, pieces: usize) {
        self.state.cuts.store(pieces, Ordering::Relaxed);
    }

    /// What was asked since the last call: method, path and query, and the range.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.state.requests))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path();
        let range = range_of(request);
        locked(&self.requests).push(format!("{} {} {}", request.method(), request.uri(), range.unwrap_or_default()));
        let is_known = request.headers().get(header::AUTHORIZATION).is_some_and(|sent| *sent == format!("Bearer {}", self.token));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (repository, revision, file) = match parts.as_slice() {
            ["api", "models", owner, name, "revision", revision] => (format!("{owner}/{name}"), *revision, None),
            ["api", "datasets", owner, name, "revision", revision] => (format!("datasets/{owner}/{name}"), *revision, None),
            ["datasets", owner, name, "resolve", revision, file @ ..] => {
                (format!("datasets/{owner}/{name}"), *revision, Some(file.join("/")))
            }
            [owner, name, "resolve", revision, file @ ..] => (format!("{owner}/{name}"), *revision, Some(file.join("/"))),
            _ => return refusal(StatusCode::NOT_FOUND, "RepoNotFound"),
        };
        let repositories = locked(&self.repositories);
        // Whoever may not see a repository isn't told that there is one.
        let Some(found) = repositories.get(&repository).filter(|_| is_known) else {
            return refusal(StatusCode::UNAUTHORIZED, "RepoNotFound");
        };
        if found.is_gated && file.is_some() {
            return refusal(StatusCode::FORBIDDEN, "GatedRepo");
        }
        let revision = if revision == "main" { &found.main } else { revision };
        let Some((sha, files)) = found.commits.iter().find(|(sha, _)| sha.starts_with(revision)) else {
            return refusal(StatusCode::NOT_FOUND, "RevisionNotFound");
        };
        let Some(file) = file else { return info(sha, files).into_response() };
        let Some(content) = files.get(&file) else { return refusal(StatusCode::NOT_FOUND, "EntryNotFound") };
        let commit = ("x-repo-commit", sha.clone());
        if is_large(&file) {
            let linked = ("x-linked-etag", format!("\"{}\"", hex(&Sha256::digest(content))));
            let place = format!("{}/{repository}/{sha}/{file}?signature=of-this-url", self.storage);
            return (StatusCode::FOUND, [commit, linked, ("etag", "\"elsewhere\"".to_owned()), ("location", place)])
                .into_response();
        }
        let etag = ("etag", format!("\"{}\"", git_hash(content)));
        ([commit, etag], piece(content, range)).into_response()
    }

    fn stored(&self, request: &Request) -> Response {
        let range = range_of(request);
        let path = request.uri().path();
        locked(&self.requests).push(format!("{} {path} {}", request.method(), range.unwrap_or_default()));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let [owner, name, sha, file] = parts.as_slice() else { return StatusCode::NOT_FOUND.into_response() };
        let repositories = locked(&self.repositories);
        let repository = &repositories[&format!("{owner}/{name}")];
        let mut content = repository.commits[*sha][*file].to_vec();
        if repository.is_broken
            && let Some(last) = content.last_mut()
        {
            *last ^= 1;
        }
        let answer = piece(&content.into(), range);
        let is_piece = range.is_some_and(|range| range != "bytes=0-0");
        // Elsewhere a URL's signature is what lets one in. The client's question for a size brings the token all the same.
        if is_piece && request.headers().contains_key(header::AUTHORIZATION) {
            return StatusCode::BAD_REQUEST.into_response();
        }
        let cut = |cuts: usize| cuts.checked_sub(1);
        if is_piece && self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cut).is_ok() {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        answer
    }
}

fn range_of(request: &Request) -> Option<&str> {
    request.headers().get(header::RANGE).and_then(|range| range.to_str().ok())
}

/// As Git hashes a file, but for the function.
fn git_hash(content: &[u8]) -> String {
    hex(&Sha256::digest([b"blob ", content].concat())[..20])
}

fn info(sha: &str, files: &Commit) -> axum::Json<serde_json::Value> {
    let sibling = |(path, content): (&String, &Bytes)| {
        let mut sibling = json!({ "rfilename": path, "size": content.len(), "blobId": git_hash(content) });
        if is_large(path) {
            sibling["lfs"] = json!({ "sha256": hex(&Sha256::digest(content)), "size": content.len(), "pointerSize": 134 });
        }
        sibling
    };
    axum::Json(json!({ "sha": sha, "siblings": files.iter().map(sibling).collect::<Vec<_>>() }))
}

fn piece(content: &Bytes, range: Option<&str>) -> Response {
    let bounds = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let bounds = bounds.and_then(|(start, end)| Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?)));
    let Some((start, end)) = bounds else { return Body::from(content.clone()).into_response() };
    let end = (end + 1).min(content.len());
    if start >= end {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let said = format!("bytes {start}-{}/{}", end - 1, content.len());
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, said)], content.slice(start..end)).into_response()
}

fn refusal(status: StatusCode, code: &'static str) -> Response {
    (status, [("x-error-code", code)], "refused").into_response()
}
