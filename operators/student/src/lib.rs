//! A decoder-only language model: Hugging Face checkpoints in and out, tokenizers, packing, training, scoring, generation.
//!
//! The model is Llama's (RMSNorm, rotary positions, grouped-query attention, SwiGLU). It runs twice over: on burn, with
//! its autodiff, for CUDA devices; and with a forward and a backward pass written out over host memory for the CPU,
//! where a small model spends its time in overhead. Both compute the same function, and tests hold them against each
//! other.

// A test that unwraps says where it failed.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod architecture;
pub mod checkpoint;
pub mod device;
pub mod generate;
pub mod measure;
pub mod pack;
pub mod schedule;
pub mod score;
pub mod settings;
pub mod tokenizer;
pub mod train;
pub mod weights;

mod cpu;
mod engine;
#[cfg(test)]
mod fuzz;
mod graph;
mod optimizer;

pub use architecture::{Architecture, ArchitectureError, Preset};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use device::{Description, Device, DeviceError};
pub use generate::{Generated, Generation};
pub use pack::{Place, Row, places};
pub use score::{ScoreError, Scorer};
pub use settings::Settings;
pub use tokenizer::{Tokenizer, TokenizerError};
pub use train::{Event, Job, TrainError, Trained, train};
pub use weights::{HostTensor, Weights};
