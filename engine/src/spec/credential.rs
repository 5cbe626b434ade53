//! Credentials inside URLs.

use crate::diagnostic::{Diagnostic, Span};

/// A credential that was found in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Credential {
    what: &'static str,
    is_s3: bool,
}

impl Credential {
    /// Says where it belongs, and repeats nothing of it.
    pub(super) fn diagnostic(self, span: Span) -> Diagnostic {
        let help = if self.is_s3 {
            "credentials of a bucket come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`), or from its entry under \
             `s3:` as `${secret:NAME}`"
        } else {
            "keep it in the environment: `${secret:NAME}` in a field for secrets, such as a model's `api_key`; \
             `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` for buckets"
        };
        Diagnostic::at(span, format!("{} stands in this URL", self.what)).help(help)
    }
}

/// The first credential in a URL inside `text`: `user:password@`, or a parameter that carries a signature or a token.
pub(super) fn in_url(text: &str) -> Option<Credential> {
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let is_s3 = rest[..at].ends_with("s3");
        let url = &rest[at + 3..];
        let end = url.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`')).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        if user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty()) {
            return Some(Credential { what: "a password", is_s3 });
        }
        let query = url.split_once('?').map_or("", |(_, query)| query.split('#').next().unwrap_or(query));
        for parameter in query.split(['&', ';']) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if value.is_empty() {
                continue;
            }
            match name.to_ascii_lowercase().as_str() {
                "x-amz-signature" | "x-goog-signature" | "signature" | "sig" => {
                    return Some(Credential { what: "a signature", is_s3 });
                }
                "x-amz-security-token" | "access_token" => return Some(Credential { what: "a token", is_s3 }),
                _ => {}
            }
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_passwords_and_signatures() {
        for (text, what) in [
            ("https://me:pw@host/v1", "a password"),
            ("see postgres://me:p%40w@host then", "a password"),
            ("http://ok/x http://me:pw@host", "a password"),
            ("https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=ab", "a signature"),
            ("https://a.blob.core.windows.net/c?sv=1&sig=ab#x", "a signature"),
            ("s3://key:secret@bucket/x", "a password"),
        ] {
            assert_eq!(in_url(text).map(|found| found.what), Some(what), "{text}");
        }
        assert!(in_url("s3://key:secret@bucket/x").unwrap().is_s3);
    }

    #[test]
    fn leaves_other_urls_alone() {
        for text in [
            "http://host:8000/v1",
            "hf://owner/name@revision",
            "s3://bucket/a/**/*.{md,html}",
            "http://me@host/",
            "http://me:@host/",
            "https://host/a:b@c",
            "https://host/?q=sig&design=ab&sig=",
            "a: b://",
            "no url",
        ] {
            assert_eq!(in_url(text), None, "{text}");
        }
    }
}
