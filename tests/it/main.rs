//! The real binary on real files: one module a promise.

mod bad_input;
mod cache;
mod checkpoint;
mod damage;
mod determinism;
mod device;
mod docs;
mod embedder;
mod errors;
mod export;
mod forget;
mod fuzz;
mod harness;
mod hub_server;
mod keys;
mod local;
mod matrix;
mod names;
mod openlineage;
mod operators;
mod project;
mod runs;
mod s3;
mod s3_server;
mod teacher;
mod trace;
#[cfg(target_os = "linux")]
mod training;
