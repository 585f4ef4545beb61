//! The real controllers, driven against a simulated API server in virtual time.
//!
//! `apiserver/` answers as a real one does (`traces/` holds what one answered), `cluster/` does what Kubernetes' own
//! controllers and the node do, `gateway.rs` measures, `world.rs` runs the operator in it, `scenario.rs` runs stories with and without faults
//! and checks the properties that hold in every run. A new kind joins with a file of scenarios.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apiserver;
mod cluster;
mod evaluation;
mod gateway;
mod model_deployment;
mod prompt_flow;
mod rag_index;
mod rollout;
mod scenario;
mod semantics;
mod snapshot;
mod traces;
mod world;
