//! What a server's refusal means, in words that say what to do.

use object_store::{
    Error,
    client::{HttpError, HttpErrorKind},
};

use crate::failure::{Failure, innermost};

/// A bucket, for messages.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) bucket: String,
    /// Where it is asked for; `None` for AWS itself.
    pub(super) endpoint: Option<String>,
    /// Whether requests go without credentials.
    pub(super) is_anonymous: bool,
}

impl Place {
    fn name(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("the bucket `{}` at `{endpoint}`", self.bucket),
            None => format!("the bucket `{}`", self.bucket),
        }
    }

    fn server(&self) -> String {
        self.endpoint.clone().map_or_else(|| "AWS".to_owned(), |endpoint| format!("`{endpoint}`"))
    }

    /// An error in our words where it is about the bucket, the credentials or the server; what callers ask about (an object
    /// that isn't there, or is there already) stays what it is.
    pub(super) fn explain(&self, error: Error) -> Error {
        match self.failure(&error) {
            Some(failure) => as_error(failure, matches!(http(&error), Some(kind) if kind != HttpErrorKind::Connect)),
            None => error,
        }
    }

    fn failure(&self, error: &Error) -> Option<Failure> {
        // The body may repeat the id of a key, so that only its code is ever shown.
        let text = error.to_string();
        let code = code(&text);
        let bucket = self.name();
        let failure = match code {
            Some("NoSuchBucket") => Failure::data(format!("{bucket} doesn't exist"))
                .hint("make it, or look at the name, the region and the endpoint: a bucket is found only where it was made"),
            Some("InvalidBucketName") => Failure::data(format!("`{}` is no name for a bucket", self.bucket)),
            Some("InvalidAccessKeyId") => {
                Failure::data(format!("{bucket}: the server doesn't know the id of the access key")).hint(self.credentials_hint())
            }
            Some("SignatureDoesNotMatch") => {
                Failure::data(format!("{bucket}: the secret key is wrong for the id of the access key"))
                    .hint(self.credentials_hint())
            }
            Some("ExpiredToken" | "TokenRefreshRequired" | "RequestExpired") => {
                Failure::external(format!("{bucket}: the credentials have expired"))
                    .hint("get new ones and run again: what was done stays")
            }
            Some("InvalidToken") => Failure::data(format!("{bucket}: the session token is wrong"))
                .hint("set `AWS_SESSION_TOKEN` to the one that belongs to the key, or unset it for keys that have none"),
            Some("RequestTimeTooSkewed") => Failure::external(format!("{bucket}: this machine's clock is wrong"))
                .hint("set the clock: requests are signed with the time"),
            Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
                Failure::data(format!("{bucket} is in another region"))
                    .hint("set `AWS_REGION`, or `region` of the bucket under `s3:`")
            }
            Some("AccessDenied" | "AllAccessDisabled" | "UnauthorizedAccess" | "NotSignedUp") => self.denied(code),
            Some("NotImplemented") => {
                Failure::external(format!("{bucket}: the server doesn't know what it was asked for")).hint(NO_CONDITIONAL_PUT)
            }
            Some("SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout") => {
                Failure::external(format!("{bucket}: the server didn't serve the request after all retries (`{}`)", code?))
                    .hint("run again later: what was done stays")
            }
            _ if text.contains("Received redirect without LOCATION") || text.contains("301 Moved") => {
                Failure::data(format!("{bucket} is in another region"))
                    .hint("set `AWS_REGION`, or `region` of the bucket under `s3:`")
            }
            _ => match error {
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => self.denied(code),
                Error::InvalidPath { source } => {
                    Failure::data(format!("{bucket} holds an object whose key can't be addressed: {source}"))
                        .hint("rename it, or name a folder without it")
                }
                Error::Generic { .. } => return self.transport(error, &text, code),
                _ => return None,
            },
        };
        Some(failure)
    }

    fn denied(&self, code: Option<&str>) -> Failure {
        let which = code.map(|code| format!(" (`{code}`)")).unwrap_or_default();
        if self.is_anonymous {
            return Failure::data(format!("{} can't be used without credentials{which}", self.name()))
                .hint("it isn't public: leave out `anonymous` (or `AWS_SKIP_SIGNATURE`) and give credentials");
        }
        Failure::data(format!("{} can't be used with these credentials{which}", self.name()))
            .hint("they must be allowed to list the bucket and to read; for a store also to write and to delete")
    }

    fn transport(&self, error: &Error, text: &str, code: Option<&str>) -> Option<Failure> {
        if within::<Failure>(error).is_some() {
            return None;
        }
        if let Some(http) = within::<HttpError>(error) {
            let what = match http.kind() {
                HttpErrorKind::Connect => "can't be reached",
                HttpErrorKind::Timeout => "doesn't answer in time",
                _ => "broke the connection",
            };
            return Some(
                Failure::external(format!("{} for the bucket `{}` {what}: {}", self.server(), self.bucket, innermost(http)))
                    .hint("is the endpoint right (`AWS_ENDPOINT_URL`, or `endpoint` under `s3:`), and the server up?"),
            );
        }
        let code = code.map(str::to_owned).or_else(|| status(text))?;
        Some(Failure::external(format!("{}: the server refused with `{code}`", self.name())))
    }

    fn credentials_hint(&self) -> &'static str {
        "they are `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or `key_id` and `key` of the bucket under `s3:`"
    }
}

/// What to do about a server without put-if-absent.
pub(super) const NO_CONDITIONAL_PUT: &str = "a store needs a server that honours `If-None-Match: *` on PUT (AWS S3, MinIO, \
     Ceph, R2 do in their current versions); `ingrain doctor --store URL` looks at all that is needed";

/// No credentials could be had.
pub(super) fn missing_credentials(place: &Place, error: Option<&Error>) -> Error {
    let why = match error.map(ToString::to_string).as_deref().and_then(code) {
        Some(code) => format!(" (`{code}`)"),
        None => String::new(),
    };
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let failure = if set("AWS_WEB_IDENTITY_TOKEN_FILE") {
        Failure::external(format!("{}: the web identity gave no credentials{why}", place.name()))
            .hint("see `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN` and the trust policy of the role")
    } else if set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        Failure::external(format!("{}: the container's role gave no credentials{why}", place.name()))
    } else {
        let mut hint =
            "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or `key_id` and `key` of the bucket under `s3:`; for a \
                        public bucket `anonymous: true` there, or `AWS_SKIP_SIGNATURE=true`"
                .to_owned();
        if set("AWS_PROFILE") || std::env::var_os("HOME").is_some_and(|home| std::path::Path::new(&home).join(".aws").is_dir()) {
            hint.push_str(
                "; profiles of the AWS command aren't read: `eval \"$(aws configure export-credentials --format env)\"` sets the variables",
            );
        }
        Failure::data(format!("{}: there are no credentials, and this machine has no role that gives some", place.name()))
            .hint(hint)
    };
    as_error(failure, false)
}

/// A failure that travels through an `object_store`.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
struct Refusal {
    #[source]
    failure: Failure,
    /// Whether the request may have been served all the same.
    is_unanswered: bool,
}

fn as_error(failure: Failure, is_unanswered: bool) -> Error {
    Error::Generic { store: "S3", source: Box::new(Refusal { failure, is_unanswered }) }
}

/// Whether nobody knows if the request was served: the connection broke, or the time was up.
pub(super) fn is_unanswered(error: &Error) -> bool {
    within::<Refusal>(error).is_some_and(|refusal| refusal.is_unanswered)
}

fn http(error: &Error) -> Option<HttpErrorKind> {
    within::<HttpError>(error).map(HttpError::kind)
}

/// The error of type `T` that `error` comes from.
fn within<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<T>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

/// The code in a server's XML.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(code)
}

/// The HTTP status in the words of `object_store`.
fn status(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("status code: ")?;
    let status: String = rest.chars().take_while(|c| *c != ':' && !c.is_control()).take(60).collect();
    (!status.is_empty()).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(error: Error) -> Failure {
        Place { bucket: "corpora".into(), endpoint: Some("http://minio:9000".into()), is_anonymous: false }.explain(error).into()
    }

    fn refused(body: &str) -> Error {
        Error::PermissionDenied { path: "x".into(), source: body.to_owned().into() }
    }

    #[test]
    fn a_body_is_never_repeated() {
        let body = "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIAHUNTER2</AWSAccessKeyId></Error>";
        let failure = explained(refused(body));
        assert!(failure.message.contains("doesn't know the id"), "{failure}");
        assert!(!format!("{failure:?}").contains("HUNTER2"));
        let failure = explained(refused("<Code>AKIA HUNTER2</Code>"));
        assert!(!format!("{failure:?}").contains("HUNTER2"));
        let failure = explained(Error::Generic { store: "S3", source: "status code: 418 teapot: <a>AKIAHUNTER2".into() });
        assert_eq!(failure.message, "the bucket `corpora` at `http://minio:9000`: the server refused with `418 teapot`");
    }

    #[test]
    fn a_missing_object_stays_one_and_a_missing_bucket_is_named() {
        let missing = |code: &str| Error::NotFound { path: "x".into(), source: format!("<Code>{code}</Code>").into() };
        let place = Place { bucket: "corpora".into(), endpoint: None, is_anonymous: false };
        assert!(matches!(place.explain(missing("NoSuchKey")), Error::NotFound { .. }));
        let failure = Failure::from(place.explain(missing("NoSuchBucket")));
        assert_eq!(failure.message, "the bucket `corpora` doesn't exist");
    }
}
