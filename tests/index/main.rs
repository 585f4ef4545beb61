//! Index builds and retrieval servers as real processes, with the real embedding model.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod builds;
mod process;
mod services;
mod serving;
