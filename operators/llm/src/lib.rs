//! Asks a language model: the models of a pipeline file, requests and answers, the memo that keeps every paid answer,
//! the client that asks no question twice, and the offline teacher.
//!
//! The parts, in the order in which a stage meets them:
//!
//! 1. [`ModelConfig`] is an entry under `models:`; [`ModelConfig::connect`] makes a [`Teacher`] of it.
//! 2. [`Memo`] holds the answers that a store already has, and takes new ones durably.
//! 3. [`Client`] puts both together: [`Client::ask`] tries remembered attempts first and asks for what is missing.
//! 4. [`parse`] reads pairs of questions and answers out of what a teacher said.

mod client;
mod config;
mod memo;
mod offline;
pub mod parse;
mod request;
mod secret;

pub use client::{Client, Counts, Outcome, Reject};
pub use config::{ConnectError, ModelConfig, OfflineModel, OpenAiModel, Price, Provider, Servers, Tokens};
pub use memo::{Key, Memo, MemoError};
pub use offline::Offline;
pub use request::{Answer, Decoding, Finish, Message, Outage, Request, Role, Teacher, Usage};
pub use secret::{MissingSecret, Secret};
