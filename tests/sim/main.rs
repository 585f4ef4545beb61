//! The real controllers, driven against a simulated API server in virtual time.
//!
//! `apiserver/` answers as a real one does (`traces/` holds what one answered), `cluster/` does what Kubernetes' own
//! controllers and the node do, `gateway.rs` measures, `world.rs` runs the operator in it. `faults/` says what goes
//! wrong, `properties/` what must hold nevertheless, `scenario.rs` tells a story with faults in it, and `campaign.rs`
//! tells them all with every fault and with random ones. A new kind joins with a file of stories.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apiserver;
mod campaign;
mod cluster;
mod evaluation;
mod faults;
mod gateway;
mod model_deployment;
mod prompt_flow;
mod properties;
mod rag_index;
mod rollout;
mod scenario;
mod semantics;
mod snapshot;
mod traces;
mod world;
