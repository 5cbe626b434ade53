//! An S3 server over HTTP in this process: `s3s` speaks the protocol and checks signatures, the objects lie in memory.
//!
//! `s3s-fs` can't be used under a store: it names a file after the whole key, and ours are too long for that; it checks
//! `If-None-Match` apart from the write, and its listings have no etags.

mod connection;

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::TryStreamExt;
use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefix, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
        DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, GetObjectInput,
        GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Object as Listed,
        PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
    },
    s3_error,
    service::S3ServiceBuilder,
};

use self::connection::{Cut, Listener};

/// A request, as a schedule sees it.
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The object, or the prefix of a listing, in its bucket.
    pub(crate) key: String,
    pub(crate) is_listing: bool,
    /// The id of the access key: [`Server::key_id`] and whatever the client put behind it.
    pub(crate) who: String,
}

/// What becomes of a request.
pub(crate) enum Fate {
    Serve,
    /// It isn't served, and refused with a status and a code.
    Refuse(u16, &'static str),
    /// It isn't served, and the connection is cut.
    Drop,
    /// It is served; then this is done, and the connection is cut before a byte of the answer.
    Lose(Box<dyn FnOnce() + Send>),
    /// It is served, and the connection cut in the middle of the content.
    Truncate,
    /// It is served so much later.
    Late(Duration),
}

type Schedule = Arc<dyn Fn(&Seen) -> Fate + Send + Sync>;

/// A server on a port of its own, until it is dropped.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    pub(crate) key_id: String,
    pub(crate) key: String,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct State {
    buckets: Mutex<BTreeMap<String, BTreeMap<String, Object>>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<i32, Bytes>>>,
    requests: Mutex<Vec<String>>,
    answered: Mutex<HashSet<String>>,
    /// The last bytes of this object change as soon as it is read.
    restless: Mutex<Option<String>>,
    schedule: Mutex<Option<Schedule>>,
    page: AtomicUsize,
    ignores_conditions: AtomicBool,
    loses_answers: AtomicBool,
}

#[derive(Clone)]
struct Object {
    content: Bytes,
    modified: SystemTime,
}

impl Object {
    fn new(content: Bytes) -> Self {
        Self { content, modified: SystemTime::now() }
    }

    fn etag(&self) -> ETag {
        ETag::Strong(blake3::hash(&self.content).to_hex()[..32].to_owned())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A server with these buckets. Its credentials hold `name`.
    pub(crate) fn start(name: &str, buckets: &[&str]) -> Self {
        let state = Arc::new(State::default());
        state.page.store(1000, Ordering::Relaxed);
        for bucket in buckets {
            locked(&state.buckets).insert((*bucket).to_owned(), BTreeMap::new());
        }
        let (key_id, key) = (format!("AKIA{name}ID"), format!("hunter2-{name}-key"));
        let mut service = S3ServiceBuilder::new(Objects(state.clone()));
        service.set_auth(OneKey { id: key_id.clone(), key: key.clone() });
        let service = service.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = state.clone();
        let app = Router::new().fallback(move |ConnectInfo(cut): ConnectInfo<Cut>, request: Request| {
            let (service, state) = (service.clone(), seen.clone());
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let is_conditional = request.headers().contains_key("if-none-match");
                locked(&state.requests).push(line.clone());
                let schedule = locked(&state.schedule).clone();
                let fate = schedule.map_or(Fate::Serve, |schedule| schedule(&Seen::of(&request)));
                match fate {
                    Fate::Refuse(status, code) => return refusal(status, code),
                    Fate::Drop => {
                        cut.now();
                        return StatusCode::OK.into_response();
                    }
                    Fate::Late(delay) => tokio::time::sleep(delay).await,
                    Fate::Serve | Fate::Lose(_) | Fate::Truncate => {}
                }
                let answer = service.call(request.map(s3s::Body::http_body_unsync)).await;
                let is_lost =
                    state.loses_answers.load(Ordering::Relaxed) && is_conditional && locked(&state.answered).insert(line);
                let answer = match answer {
                    Ok(answer) if !is_lost => answer.map(Body::new),
                    _ => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                };
                match fate {
                    Fate::Lose(then) => {
                        then();
                        cut.now();
                        answer
                    }
                    Fate::Truncate => truncated(answer).await,
                    _ => answer,
                }
            }
        });
        let app = app.into_make_service_with_connect_info::<Cut>();
        runtime.spawn(async move { axum::serve(Listener(listener), app).await });
        Self { endpoint, key_id, key, state, runtime: Some(runtime) }
    }

    /// Listings come in pages of so many keys.
    pub(crate) fn pages_of(&self, keys: usize) {
        self.state.page.store(keys, Ordering::Relaxed);
    }

    /// From now on, conditional puts overwrite.
    pub(crate) fn ignore_conditions(&self) {
        self.state.ignores_conditions.store(true, Ordering::Relaxed);
    }

    /// From now on, the first answer to each conditional put of an object is an error, though the put was served.
    pub(crate) fn lose_answers(&self) {
        self.state.loses_answers.store(true, Ordering::Relaxed);
    }

    /// From now on, `schedule` says what becomes of each request.
    pub(crate) fn schedule(&self, schedule: impl Fn(&Seen) -> Fate + Send + Sync + 'static) {
        *locked(&self.state.schedule) = Some(Arc::new(schedule));
    }

    /// From now on, every request is served.
    pub(crate) fn serve_all(&self) {
        *locked(&self.state.schedule) = None;
    }

    /// The object changes as soon as somebody reads it.
    pub(crate) fn change_when_read(&self, key: &str) {
        *locked(&self.state.restless) = Some(key.to_owned());
    }

    pub(crate) fn put(&self, bucket: &str, key: &str, content: impl Into<Vec<u8>>) {
        let mut buckets = locked(&self.state.buckets);
        let objects = buckets.get_mut(bucket).expect("a bucket of this server");
        objects.insert(key.to_owned(), Object::new(content.into().into()));
    }

    /// Every object, as `bucket/key`, with its content.
    pub(crate) fn objects(&self) -> Vec<(String, Bytes)> {
        let buckets = locked(&self.state.buckets);
        let all = buckets.iter().flat_map(|(bucket, objects)| {
            objects.iter().map(move |(key, object)| (format!("{bucket}/{key}"), object.content.clone()))
        });
        all.collect()
    }

    /// How many objects there are.
    pub(crate) fn count(&self) -> usize {
        locked(&self.state.buckets).values().map(BTreeMap::len).sum()
    }

    pub(crate) fn empty(&self) {
        locked(&self.state.buckets).values_mut().for_each(BTreeMap::clear);
    }

    /// The requests since the last call, as `METHOD path?query`.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *locked(&self.state.requests))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seen {
    fn of(request: &Request) -> Self {
        let uri = request.uri();
        let query = uri.query().unwrap_or_default();
        let prefix = query.split('&').find_map(|field| field.strip_prefix("prefix=")).unwrap_or_default();
        let is_listing = query.contains("list-type=2");
        let key = if is_listing { prefix } else { uri.path().splitn(3, '/').nth(2).unwrap_or_default() };
        let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let who = authorization.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
        Self { method: request.method().to_string(), key: key.replace("%2F", "/"), is_listing, who: who.to_owned() }
    }
}

fn refusal(status: u16, code: &str) -> Response {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on order</Message></Error>");
    (StatusCode::from_u16(status).expect("a status"), body).into_response()
}

/// An answer whose content breaks off in the middle, whatever length was promised.
async fn truncated(answer: Response) -> Response {
    let (head, body) = answer.into_parts();
    let content = axum::body::to_bytes(body, usize::MAX).await.expect("in memory");
    let half = content.slice(..content.len() / 2);
    let pieces = [Ok(half), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
    Response::from_parts(head, Body::from_stream(futures::stream::iter(pieces)))
}

/// One key; clients tell themselves apart by what they put behind its id.
struct OneKey {
    id: String,
    key: String,
}

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, id: &str) -> S3Result<SecretKey> {
        if id.starts_with(&self.id) { Ok(self.key.clone().into()) } else { Err(s3_error!(InvalidAccessKeyId)) }
    }
}

struct Objects(Arc<State>);

impl Objects {
    fn with<T>(&self, bucket: &str, act: impl FnOnce(&mut BTreeMap<String, Object>) -> S3Result<T>) -> S3Result<T> {
        match locked(&self.0.buckets).get_mut(bucket) {
            Some(objects) => act(objects),
            None => Err(s3_error!(NoSuchBucket)),
        }
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<Object> {
        self.with(bucket, |objects| objects.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey)))
    }
}

async fn collected(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let pieces: Vec<Bytes> = body.try_collect().await.map_err(|_| s3_error!(IncompleteBody))?;
    Ok(pieces.concat().into())
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let object = Object::new(collected(input.body).await?);
        let is_conditional = input.if_none_match.as_ref().is_some_and(ETagCondition::is_any);
        let is_conditional = is_conditional && !self.0.ignores_conditions.load(Ordering::Relaxed);
        let e_tag = Some(object.etag());
        self.with(&input.bucket, |objects| {
            if is_conditional && objects.contains_key(&input.key) {
                return Err(s3_error!(PreconditionFailed));
            }
            objects.insert(input.key, object);
            Ok(())
        })?;
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        if locked(&self.0.restless).as_ref() == Some(&input.key) {
            self.with(&input.bucket, |objects| {
                if let Some(object) = objects.get_mut(&input.key) {
                    let mut content = object.content.to_vec();
                    content.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                    *object = Object::new(content.into());
                }
                Ok(())
            })?;
        }
        let object = self.object(&input.bucket, &input.key)?;
        let size = object.content.len() as u64;
        let range = match &input.range {
            Some(range) => Some(range.check(size).map_err(|_| s3_error!(InvalidRange))?),
            None => None,
        };
        let within = range.clone().unwrap_or(0..size);
        let content = object.content.slice(within.start as usize..within.end as usize);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(content.len() as i64),
            content_range: range.map(|range| format!("bytes {}-{}/{size}", range.start, range.end - 1)),
            e_tag: Some(object.etag()),
            last_modified: Some(Timestamp::from(object.modified)),
            body: Some(StreamingBlob::from(s3s::Body::from(content))),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.content.len() as i64),
            e_tag: Some(object.etag()),
            last_modified: Some(Timestamp::from(object.modified)),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after.clone());
        let page = self.0.page.load(Ordering::Relaxed);
        let (mut contents, mut folders, mut last) = (Vec::new(), Vec::<String>::new(), None);
        let mut is_truncated = false;
        self.with(&input.bucket, |objects| {
            let from = after.clone().map_or(Bound::Included(prefix.clone()), |after| Bound::Excluded(after.max(prefix.clone())));
            for (key, object) in objects.range((from, Bound::Unbounded)) {
                let Some(rest) = key.strip_prefix(&prefix) else { if *key < prefix { continue } else { break } };
                let folder = input.delimiter.as_ref().and_then(|delimiter| {
                    rest.find(delimiter.as_str()).map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]))
                });
                if folder.is_some() && folders.last() == folder.as_ref() {
                    last = Some(key.clone());
                    continue;
                }
                if contents.len() + folders.len() == page {
                    is_truncated = true;
                    break;
                }
                last = Some(key.clone());
                match folder {
                    Some(folder) => folders.push(folder),
                    None => contents.push(Listed {
                        key: Some(key.clone()),
                        size: Some(object.content.len() as i64),
                        e_tag: Some(object.etag()),
                        last_modified: Some(Timestamp::from(object.modified)),
                        ..Default::default()
                    }),
                }
            }
            Ok(())
        })?;
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            key_count: Some((contents.len() + folders.len()) as i32),
            is_truncated: Some(is_truncated),
            next_continuation_token: if is_truncated { last } else { None },
            contents: Some(contents),
            common_prefixes: Some(folders.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect()),
            delimiter: input.delimiter,
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.with(&request.input.bucket, |objects| {
            objects.remove(&request.input.key);
            Ok(())
        })?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let keys: Vec<String> = request.input.delete.objects.into_iter().map(|object| object.key).collect();
        self.with(&request.input.bucket, |objects| {
            keys.iter().for_each(|key| drop(objects.remove(key)));
            Ok(())
        })?;
        let deleted = keys.into_iter().map(|key| DeletedObject { key: Some(key), ..Default::default() }).collect();
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.with(&input.bucket, |_| Ok(()))?;
        let mut uploads = locked(&self.0.uploads);
        let id = format!("upload-{}", uploads.len());
        uploads.insert(id.clone(), BTreeMap::new());
        let (bucket, key) = (Some(input.bucket), Some(input.key));
        Ok(S3Response::new(CreateMultipartUploadOutput { bucket, key, upload_id: Some(id), ..Default::default() }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let object = Object::new(collected(input.body).await?);
        let e_tag = Some(object.etag());
        match locked(&self.0.uploads).get_mut(&input.upload_id) {
            Some(parts) => parts.insert(input.part_number, object.content),
            None => return Err(s3_error!(NoSuchUpload)),
        };
        Ok(S3Response::new(UploadPartOutput { e_tag, ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let parts = locked(&self.0.uploads).remove(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let object = Object::new(parts.into_values().collect::<Vec<_>>().concat().into());
        let e_tag = Some(object.etag());
        self.with(&input.bucket, |objects| {
            objects.insert(input.key.clone(), object);
            Ok(())
        })?;
        let (bucket, key) = (Some(input.bucket), Some(input.key));
        Ok(S3Response::new(CompleteMultipartUploadOutput { bucket, key, e_tag, ..Default::default() }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        locked(&self.0.uploads).remove(&request.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
