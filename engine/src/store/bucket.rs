//! How a bucket is reached: the only place that knows endpoints, regions and credentials.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig, StaticCredentialProvider,
    UploadPart,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, S3ConditionalPut},
    client::{HttpClient, HttpConnector, ReqwestConnector},
    path::Path,
};
use serde::Deserialize;
use serde_json::Value;

use super::refusal::{Place, missing_credentials};
use crate::{failure::Failure, hub::Hub};

/// An entry of `s3:` in a pipeline file. The fields for secrets hold `${secret:NAME}`, never a value.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    endpoint: Option<String>,
    region: Option<String>,
    key_id: Option<String>,
    key: Option<String>,
    session_token: Option<String>,
    path_style: Option<bool>,
    #[serde(default)]
    anonymous: bool,
}

/// The buckets that a run reaches, and the hub. Clones share their clients: one for each bucket, made when first used.
///
/// A bucket is reached as the AWS environment variables say, or as its entry under `s3:` does. What an entry leaves out
/// comes from the environment, except that an entry with credentials of its own (or `anonymous`) takes nothing from there.
#[derive(Clone, Default)]
pub struct Buckets {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// As written, for a child process.
    written: BTreeMap<String, Value>,
    entries: BTreeMap<String, Entry>,
    clients: Mutex<HashMap<String, Bucket>>,
    hub: Mutex<Option<Arc<Hub>>>,
}

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buckets").field(&self.shared.entries.keys().collect::<Vec<_>>()).finish()
    }
}

impl Buckets {
    /// The buckets of a pipeline file's `s3:`, by name; every other bucket is reached as the environment says.
    ///
    /// # Errors
    /// When an entry isn't one; the spec has checked them.
    pub fn new(written: BTreeMap<String, Value>) -> std::result::Result<Self, Failure> {
        let mut entries = BTreeMap::new();
        for (name, value) in &written {
            // The text of serde's error may repeat a value that should have been a secret.
            let entry = Entry::deserialize(value).map_err(|_| Failure::data(format!("`s3.{name}` can't be read")))?;
            entries.insert(name.clone(), entry);
        }
        Ok(Self { shared: Arc::new(Shared { written, entries, ..Shared::default() }) })
    }

    /// The entries as they are written; secrets are references.
    pub fn written(&self) -> &BTreeMap<String, Value> {
        &self.shared.written
    }

    /// The objects of the bucket called `name`. Nothing is asked of a server yet.
    ///
    /// # Errors
    /// When a secret isn't set, or the settings make no client.
    pub(crate) fn open(&self, name: &str) -> std::result::Result<Arc<dyn ObjectStore>, Failure> {
        let mut clients = self.shared.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bucket) = clients.get(name) {
            return Ok(Arc::new(bucket.clone()));
        }
        let bucket = Bucket::new(name, self.shared.entries.get(name))?;
        clients.insert(name.to_owned(), bucket.clone());
        Ok(Arc::new(bucket))
    }

    /// The hub that the environment leads to. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When the environment makes no sense.
    pub(crate) fn hub(&self) -> std::result::Result<Arc<Hub>, Failure> {
        let mut hub = self.shared.hub.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(hub) = &*hub {
            return Ok(hub.clone());
        }
        let made = Arc::new(Hub::from_environment()?);
        *hub = Some(made.clone());
        Ok(made)
    }
}

/// Splits `s3://bucket/key` at the first `/`. A key is any text: `#`, `?` and `%` in it mean themselves.
///
/// # Errors
/// When it is no `s3://` URL or names no bucket.
pub(crate) fn split(url: &str) -> std::result::Result<(&str, &str), Failure> {
    let Some(rest) = url.strip_prefix("s3://") else {
        let scheme = url.split("://").next().unwrap_or_default();
        return Err(Failure::data(format!("there is no way to a `{scheme}://` URL"))
            .hint("use a local path, `s3://bucket/path` or `hf://owner/name@revision`"));
    };
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains([' ', '?', '#', '@', ':']) {
        return Err(Failure::data(format!("`{url}` names no bucket")).hint("write `s3://bucket/path`"));
    }
    Ok((bucket, key))
}

/// A key as a path, its characters as they are.
///
/// # Errors
/// When it can't be addressed: an empty segment, `.` or `..`, a control character.
pub(crate) fn path(key: &str) -> std::result::Result<Path, Failure> {
    Path::parse(key).map_err(|error| Failure::data(format!("the key `{key}` can't be addressed: {error}")))
}

/// Requests before the first answer of a server are given up soon: then an address or a credential is wrong.
const FIRST: RetryConfig = retries(3, Duration::from_secs(5));
/// A server that has answered may be away for a while.
const LATER: RetryConfig = retries(10, Duration::from_secs(180));
/// For the services that hand out credentials.
const CREDENTIALS: RetryConfig = retries(1, Duration::from_secs(3));
/// How long credentials may take.
const CREDENTIALS_WITHIN: Duration = Duration::from_secs(10);

const fn retries(max_retries: usize, retry_timeout: Duration) -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(15), base: 2.0 };
    RetryConfig { backoff, max_retries, retry_timeout }
}

/// A bucket whose errors say what is wrong with it.
#[derive(Clone)]
struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    first: AmazonS3,
    later: AmazonS3,
    answered: AtomicBool,
    /// Where credentials come from; none for anonymous requests.
    credentials: Option<AwsCredentialProvider>,
    /// Whether there were some.
    had_credentials: tokio::sync::OnceCell<()>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.inner.place.bucket)
    }
}

impl Bucket {
    fn new(name: &str, entry: Option<&Entry>) -> std::result::Result<Self, Failure> {
        let unusable = |error: Error| {
            // What the library says here names settings, never a value of a credential.
            Failure::data(format!("the bucket `{name}` can't be reached as its settings say: {error}"))
                .hint("see `s3:` in the pipeline file and the variables `AWS_...`")
        };
        let (builder, options) = settings(entry)?;
        let builder = builder.with_bucket_name(name).with_conditional_put(S3ConditionalPut::ETagMatch);
        let (builder, endpoint) = addressed(builder, name, entry)?;
        let is_http = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let options = options.with_allow_http(is_http);
        let builder = builder.with_client_options(options.clone());
        let anonymous = entry.is_some_and(|entry| entry.anonymous) || is_true(&builder, AmazonS3ConfigKey::SkipSignature);
        let is_set = |key| builder.get_config_value(&key).is_some();
        if is_set(AmazonS3ConfigKey::AccessKeyId) != is_set(AmazonS3ConfigKey::SecretAccessKey) {
            return Err(Failure::data(format!("the bucket `{name}`: of the access key's id and the secret key only one is set"))
                .hint("`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` go together"));
        }
        let credentials = if anonymous { None } else { Some(credentials(&builder, name).map_err(unusable)?) };
        let builder = match &credentials {
            Some(provider) => builder.with_credentials(provider.clone()),
            None => builder.with_skip_signature(true),
        };
        let client = ReqwestConnector::default().connect(&options).map_err(unusable)?;
        let builder = builder.with_http_connector(OneClient(client));
        let first = builder.clone().with_retry(FIRST).build().map_err(unusable)?;
        let later = builder.with_retry(LATER).build().map_err(unusable)?;
        let place = Place { bucket: name.to_owned(), endpoint, is_anonymous: anonymous };
        Ok(Self {
            inner: Arc::new(Inner {
                place,
                first,
                later,
                answered: AtomicBool::new(false),
                credentials,
                had_credentials: tokio::sync::OnceCell::new(),
            }),
        })
    }

    /// The client to ask, once there are credentials.
    async fn client(&self) -> Result<&AmazonS3> {
        let inner = &self.inner;
        if let Some(provider) = &inner.credentials {
            inner
                .had_credentials
                .get_or_try_init(|| async {
                    match tokio::time::timeout(CREDENTIALS_WITHIN, provider.get_credential()).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(error)) => Err(missing_credentials(&inner.place, Some(&error))),
                        Err(_) => Err(missing_credentials(&inner.place, None)),
                    }
                })
                .await?;
        }
        Ok(if inner.answered.load(Ordering::Relaxed) { &inner.later } else { &inner.first })
    }

    /// Takes note that the server answers, and says in our words what is wrong.
    fn heard<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => {
                self.inner.answered.store(true, Ordering::Relaxed);
                Ok(value)
            }
            Err(error) => {
                if matches!(error, Error::NotFound { .. } | Error::AlreadyExists { .. } | Error::Precondition { .. }) {
                    self.inner.answered.store(true, Ordering::Relaxed);
                }
                Err(self.inner.place.explain(error))
            }
        }
    }

    /// Objects that come out of a stream of the client's.
    fn stream<T: Send + 'static>(
        &self,
        start: impl FnOnce(&AmazonS3) -> BoxStream<'static, Result<T>> + Send + 'static,
    ) -> BoxStream<'static, Result<T>> {
        let bucket = self.clone();
        futures::stream::once(async move {
            let found = start(bucket.client().await?);
            Ok::<_, Error>(found.map(move |item| bucket.heard(item)))
        })
        .try_flatten()
        .boxed()
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.heard(self.client().await?.put_opts(location, payload, opts).await)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.heard(self.client().await?.put_multipart_opts(location, opts).await)?;
        Ok(Box::new(Upload { bucket: self.clone(), upload }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.heard(self.client().await?.get_opts(location, options).await)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.stream(move |client| client.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        self.stream(move |client| client.list(prefix.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        self.stream(move |client| client.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.heard(self.client().await?.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.heard(self.client().await?.copy_opts(from, to, options).await)
    }
}

#[derive(Debug)]
struct Upload {
    bucket: Bucket,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (bucket, part) = (self.bucket.clone(), self.upload.put_part(data));
        Box::pin(async move { bucket.heard(part.await) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.bucket.heard(self.upload.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        self.bucket.heard(self.upload.abort().await)
    }
}

/// The impatient and the patient client are one to the server.
#[derive(Debug)]
struct OneClient(HttpClient);

impl HttpConnector for OneClient {
    fn connect(&self, _: &ClientOptions) -> Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// What the environment and an entry say, without the bucket's address.
fn settings(entry: Option<&Entry>) -> std::result::Result<(AmazonS3Builder, ClientOptions), Failure> {
    let Some(entry) = entry else { return Ok(from_environment()) };
    let stands_alone = entry.anonymous || entry.key.is_some() || entry.key_id.is_some();
    let (mut builder, options) = if stands_alone { (AmazonS3Builder::new(), timeouts()) } else { from_environment() };
    if let Some(region) = &entry.region {
        builder = builder.with_region(region);
    }
    if let Some(key_id) = &entry.key_id {
        builder = builder.with_access_key_id(secret(key_id)?);
    }
    if let Some(key) = &entry.key {
        builder = builder.with_secret_access_key(secret(key)?);
    }
    if let Some(token) = &entry.session_token {
        builder = builder.with_token(secret(token)?);
    }
    Ok((builder, options))
}

/// A request ends within two minutes: 8 MiB over a slow line take their time.
fn timeouts() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(Duration::from_secs(3)).with_timeout(Duration::from_secs(120))
}

/// The settings in variables `AWS_...`. An empty variable counts as not set.
fn from_environment() -> (AmazonS3Builder, ClientOptions) {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty())
        .collect();
    // Of two names of one setting the last one counts, on every machine the same.
    variables.sort();
    let nothing = (AmazonS3Builder::new(), timeouts());
    variables.into_iter().fold(nothing, |(builder, options), (name, value)| {
        match name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            Ok(AmazonS3ConfigKey::Client(key)) => (builder, options.with_config(key, value)),
            Ok(key) => (builder.with_config(key, value), options),
            Err(_) => (builder, options),
        }
    })
}

/// Whether a switch is on, however the environment writes that.
fn is_true(builder: &AmazonS3Builder, key: AmazonS3ConfigKey) -> bool {
    let value = builder.get_config_value(&key).unwrap_or_default();
    ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str())
}

/// Reads `${secret:NAME}` from the environment variable `NAME`.
fn secret(reference: &str) -> std::result::Result<String, Failure> {
    let name = reference.strip_prefix("${secret:").and_then(|rest| rest.strip_suffix('}'));
    let name = name.ok_or_else(|| Failure::data("a credential of a bucket must be written as `${secret:NAME}`"))?;
    std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::data(format!("`${{secret:{name}}}` needs the environment variable `{name}`, which isn't set to a text"))
            .hint(format!("set `{name}`"))
    })
}

/// Gives the bucket its address, and says which endpoint that is. With an endpoint of one's own, the bucket stands in the
/// path unless the settings say otherwise.
fn addressed(
    builder: AmazonS3Builder,
    bucket: &str,
    entry: Option<&Entry>,
) -> std::result::Result<(AmazonS3Builder, Option<String>), Failure> {
    let virtual_hosted = match entry.and_then(|entry| entry.path_style) {
        Some(path_style) => !path_style,
        None => is_true(&builder, AmazonS3ConfigKey::VirtualHostedStyleRequest),
    };
    let builder = builder.with_virtual_hosted_style_request(virtual_hosted);
    let endpoint = entry.and_then(|entry| entry.endpoint.clone()).or_else(|| {
        let of = |key| builder.get_config_value(&key);
        of(AmazonS3ConfigKey::S3Endpoint).or_else(|| of(AmazonS3ConfigKey::Endpoint))
    });
    let Some(endpoint) = endpoint else { return Ok((builder, None)) };
    let mut url = url::Url::parse(&endpoint)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
        .ok_or_else(|| {
            Failure::data(format!("the endpoint of the bucket `{bucket}` is no URL")).hint("write it as `https://host:port`")
        })?;
    if url.password().is_some() || !url.username().is_empty() {
        return Err(Failure::data(format!("the endpoint of the bucket `{bucket}` has credentials in it"))
            .hint("give them as `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or as `key_id` and `key` under `s3:`"));
    }
    let host = url.host_str().unwrap_or_default().to_owned();
    if virtual_hosted && !host.starts_with(&format!("{bucket}.")) {
        url.set_host(Some(&format!("{bucket}.{host}")))
            .map_err(|error| Failure::data(format!("the bucket `{bucket}` can't stand in the name of its host: {error}")))?;
    }
    let address = url.as_str().trim_end_matches('/').to_owned();
    // An endpoint for S3 alone goes before the general one.
    Ok((builder.with_config(AmazonS3ConfigKey::S3Endpoint, &address), Some(address)))
}

/// Where credentials come from: fixed ones, or a web identity, a container or an instance role, which are given up soon.
fn credentials(builder: &AmazonS3Builder, bucket: &str) -> Result<AwsCredentialProvider> {
    let of = |key| builder.get_config_value(&key);
    if let (Some(key_id), Some(secret_key)) = (of(AmazonS3ConfigKey::AccessKeyId), of(AmazonS3ConfigKey::SecretAccessKey)) {
        let token = of(AmazonS3ConfigKey::Token);
        return Ok(Arc::new(StaticCredentialProvider::new(AwsCredential { key_id, secret_key, token })));
    }
    let asked = builder.clone().with_bucket_name(bucket).with_retry(CREDENTIALS).build()?;
    Ok(asked.credentials().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_texts_not_urls() {
        assert_eq!(split("s3://b/a b#c?d%20e").expect("a URL"), ("b", "a b#c?d%20e"));
        assert_eq!(split("s3://b").expect("a URL"), ("b", ""));
        assert_eq!(path("a b#c?d%20e").expect("a path").as_ref(), "a b#c?d%20e");
        for wrong in ["s3://", "s3:///x", "gs://b/x", "s3://key:secret@b/x"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
        assert!(path("a//b").is_err());
    }

    #[test]
    fn a_bucket_has_the_address_that_its_entry_gives() {
        let address = |entry: Value, bucket: &str| {
            let entry = Entry::deserialize(entry).expect("an entry");
            addressed(AmazonS3Builder::new(), bucket, Some(&entry)).map(|(_, endpoint)| endpoint)
        };
        let endpoint = |entry| address(entry, "corpora").expect("an address");
        assert_eq!(endpoint(serde_json::json!({ "region": "eu-west-1" })), None);
        assert_eq!(endpoint(serde_json::json!({ "endpoint": "http://minio:9000/" })).as_deref(), Some("http://minio:9000"));
        assert_eq!(
            endpoint(serde_json::json!({ "endpoint": "https://s3.example.com", "path_style": false })).as_deref(),
            Some("https://corpora.s3.example.com")
        );
        let failure = address(serde_json::json!({ "endpoint": "https://id:hunter2@host" }), "b").expect_err("credentials");
        assert!(!failure.message.contains("hunter2"), "{failure}");
        assert!(address(serde_json::json!({ "endpoint": "minio:9000" }), "b").is_err());
    }

    #[test]
    fn debug_shows_names_only() {
        let written = [(
            "corpora".to_owned(),
            serde_json::json!({ "key_id": "${secret:INGRAIN_TEST_UNSET}", "key": "${secret:INGRAIN_TEST_UNSET}" }),
        )];
        let buckets = Buckets::new(written.into()).expect("entries");
        assert_eq!(format!("{buckets:?}"), r#"Buckets(["corpora"])"#);
        let failure = buckets.open("corpora").expect_err("no such variable");
        assert!(failure.message.contains("`INGRAIN_TEST_UNSET`"), "{failure}");
    }
}
