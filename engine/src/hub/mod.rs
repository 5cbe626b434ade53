//! The Hugging Face hub: the only place that knows its endpoint and token.
//!
//! As everywhere, `HF_ENDPOINT` says where it is, `HF_TOKEN` (or the file `token` that `hf auth login` writes) who asks, and
//! `HF_HUB_CACHE` or `HF_HOME` where files are kept, in the layout that other tools use: what these have downloaded isn't
//! downloaded again.

mod fetch;
mod listing;
mod location;
mod refusal;

use std::path::PathBuf;

use hf_hub::{
    Cache,
    api::tokio::{Api, ApiBuilder},
};

pub(crate) use self::{listing::File, location::Location};
use crate::failure::Failure;

/// A client of the hub.
pub(crate) struct Hub {
    api: Api,
    cache: Cache,
    /// Without a user or a query, for messages.
    shown: String,
    has_token: bool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hub({})", self.shown)
    }
}

impl Hub {
    /// The hub that the environment leads to. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When a variable makes no sense, or there is no folder to keep files in.
    pub(crate) fn from_environment() -> Result<Self, Failure> {
        let variable = |name| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let url = url::Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = url else {
            return Err(Failure::data("`HF_ENDPOINT` is no URL").hint("it looks like `https://huggingface.co`"));
        };
        let shown = url.origin().ascii_serialization();
        // The client's own default ends the process where there is no home folder.
        if variable("HF_HOME").is_none() && std::env::home_dir().is_none() {
            return Err(Failure::external("there is no folder for files of the hub").hint("set `HF_HOME` or `HF_HUB_CACHE`"));
        }
        let home = if variable("HF_HOME").is_some() { Cache::from_env() } else { Cache::default() };
        let token = variable("HF_TOKEN").or_else(|| home.token());
        let cache = variable("HF_HUB_CACHE").map_or(home, |folder| Cache::new(PathBuf::from(folder)));
        let has_token = token.is_some();
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint)
            .with_token(token)
            .with_progress(false)
            .with_user_agent("ingrain", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|_| {
                Failure::data("the token for the hub can't be sent").hint("look at `HF_TOKEN`: it is one word, `hf_...`")
            })?;
        Ok(Self { api, cache, shown, has_token })
    }
}
