//! A decoder-only language model: Hugging Face checkpoints in and out, tokenizers, packing, training, scoring, generation.
//!
//! The models are Llama 3 (RMSNorm, rotary positions, grouped-query attention, SwiGLU) and Qwen3 (which normalises each head
//! of queries and keys, too). They run twice over: on burn, with its autodiff, for CUDA devices and for adapters; and with a
//! forward and a backward pass written out over host memory for the CPU, where a small model spends its time in overhead.
//! Both compute the same function, and tests hold them against each other and against transformers.

// A test that unwraps says where it failed.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod architecture;
pub mod chat;
pub mod checkpoint;
pub mod device;
pub mod generate;
pub mod header;
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
#[cfg(test)]
mod parity;
mod progress;

pub use architecture::{Architecture, ArchitectureError, Family, Precision, Preset};
pub use chat::{ChatError, ChatTemplate, Example, Turn};
pub use checkpoint::{Adapter, Checkpoint, CheckpointError};
pub use device::{Description, Device, DeviceError};
pub use generate::{Asked, Generated, Generation, WriteError, Written, end_ids};
pub use optimizer::Rule;
pub use pack::{Place, Row, places};
pub use progress::{Every, Progress};
pub use score::{ScoreError, Scorer};
pub use settings::{Lora, Settings};
pub use tokenizer::{Tokenizer, TokenizerError};
pub use train::{Event, Job, Seen, TrainError, Trained, Watched, train};
pub use weights::{HostTensor, Random, TensorError, Tensors, Weights};
