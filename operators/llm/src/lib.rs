//! Asks a language model: the models of a pipeline file, requests and answers, the memo that keeps every paid answer,
//! the client that asks no question twice, and two teachers: servers of the OpenAI chat protocol, and one without
//! network or weights. A third, a checkpoint in this process, is only configured here: who can run models makes it.
//!
//! The parts, in the order in which a stage meets them:
//!
//! 1. [`ModelConfig`] is an entry under `models:`; [`ModelConfig::connect`] makes a [`Teacher`] of it.
//! 2. [`Memo`] holds the answers that a store already has, and takes new ones durably.
//! 3. [`Client`] puts both together: [`Client::ask`] tries remembered attempts first and asks for what is missing.
//! 4. [`parse`] reads pairs of questions and answers out of what a teacher said.
//! 5. [`ModelConfig::embedder`] makes an [`Embedder`] of an entry; [`Embeddings`] puts it together with a memo, as a client
//!    does for a teacher.

mod budget;
mod client;
mod config;
mod embed;
#[cfg(test)]
mod fuzz;
mod headers;
mod memo;
mod offline;
mod openai;
pub mod parse;
mod request;
mod secret;
mod trial;

pub use budget::{Budget, BudgetError, Nanodollars};
pub use client::{Admission, Client, Counts, Outcome, Reject};
pub use config::{LocalModel, ModelConfig, OfflineModel, OpenAiModel, Price, Provider, Servers, Tokens};
pub use embed::{Embedded, Embedder, Embeddings, Vector};
pub use headers::{HeaderText, Headers};
pub use memo::{Key, Memo, MemoError, Remembered, Removed};
pub use offline::Offline;
pub use request::{Answer, Decoding, Finish, Message, Outage, Request, Role, Teacher, Usage, reasoning_apart};
pub use secret::{MissingSecret, Secret};
