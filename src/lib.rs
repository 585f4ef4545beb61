//! `llmops`: a Kubernetes operator and its data plane for LLM features that live in Git.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
pub mod cli;
pub mod controllers;
pub mod dashboard;
pub mod evaluator;
pub mod experiment;
pub mod fetch;
pub mod gateway;
pub mod indexer;
pub mod rollout;
pub mod telemetry;
pub mod termination;
