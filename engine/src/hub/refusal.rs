//! What the hub's refusals mean, in words that say what to do.

use hf_hub::api::tokio::ApiError;
use reqwest::{Response, StatusCode};

use super::{Hub, Location};
use crate::failure::{Failure, innermost};

/// What is wrong with a request.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The repository is there, and the revision isn't.
    Revision,
    /// Anything else, and whether another try may help.
    Other { failure: Failure, is_passing: bool },
}

impl Hub {
    /// What a refused answer means.
    pub(super) fn refused(&self, location: &Location, response: &Response) -> Refusal {
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        self.refused_with(location, response.status(), code)
    }

    fn refused_with(&self, location: &Location, status: StatusCode, code: Option<&str>) -> Refusal {
        let (repository, shown) = (location.repository(), &self.shown);
        let token = "set `HF_TOKEN` to a token that may read it (`hf auth login` keeps one, too)";
        let failure = match (status.as_u16(), code) {
            (_, Some("RevisionNotFound")) => return Refusal::Revision,
            (_, Some("GatedRepo")) => Failure::data(format!("`{repository}` is gated, and {} may not read it", self.who()))
                .hint(format!("ask for access at {shown}/{repository}, then {token}")),
            (404, Some("EntryNotFound")) => {
                Failure::data(format!("`{location}` isn't there")).hint("which files does the commit have?")
            }
            (_, Some("RepoNotFound")) | (401 | 404, _) => {
                Failure::data(format!("there is no `{repository}` at {shown} that {} may see", self.who()))
                    .hint(format!("look at the name; if the repository is private or gated, {token}"))
            }
            (403, _) => Failure::data(format!("{shown} refuses `{repository}` to {}", self.who()))
                .hint(format!("look at what the token may read, or {token}")),
            (status, _) => {
                let failure = Failure::external(format!("{shown} answered {status} when it was asked for `{location}`"));
                let is_passing = status == 429 || status >= 500;
                return Refusal::Other { failure: failure.hint("run again later: what was done stays"), is_passing };
            }
        };
        Refusal::Other { failure, is_passing: false }
    }

    /// What an error of the transport means.
    pub(super) fn unreachable(&self, error: reqwest::Error) -> Failure {
        // Its URL may hold the signature of a redirect.
        let error = innermost(&error.without_url());
        Failure::external(format!("{} can't be reached: {error}", self.shown)).hint(
            "is there a network here? `HF_ENDPOINT` names another hub. Files that are in the hub's cache folder, of a commit that \
             was looked at before, need none",
        )
    }

    /// What an error of the client means.
    pub(super) fn failed(&self, location: &Location, error: ApiError) -> Refusal {
        let failure = match error {
            ApiError::RequestError(error) => match error.status() {
                // The client drops the code. Whoever may list a repository and not read it is at a gate.
                Some(status) => {
                    let code = matches!(status.as_u16(), 401 | 403).then_some("GatedRepo");
                    return self.refused_with(location, status, code);
                }
                None => return Refusal::Other { failure: self.unreachable(error), is_passing: true },
            },
            ApiError::TooManyRetries(error) => return self.failed(location, *error),
            ApiError::IoError(error) if error.kind() == std::io::ErrorKind::StorageFull => Failure::from(error),
            ApiError::IoError(error) => {
                Failure::external(format!("the hub's cache folder `{}` can't be used: {error}", self.cache.path().display()))
                    .hint("`HF_HUB_CACHE` names another one")
            }
            ApiError::MissingHeader(name) | ApiError::InvalidHeader(name) => {
                Failure::external(format!("{} doesn't say `{name}` of `{location}`", self.shown))
                    .hint("does `HF_ENDPOINT` name a hub?")
            }
            error => Failure::external(format!("`{location}` can't be had: {error}")).hint("run again: it goes on where it was"),
        };
        Refusal::Other { failure, is_passing: false }
    }

    fn who(&self) -> &'static str {
        if self.has_token { "your token" } else { "one without a token" }
    }
}
