//! Endpoints: which pod (or provider) answers a call, and what happens when it does not.
//!
//! A call takes the less loaded of two random ready pods of its revision. A pod that cannot be reached, or fails
//! several times in a row, is left out for a while. Calls are tried again only while nothing has reached the client,
//! and only under a budget, so that a failing engine does not see its load multiplied. When no pod is free, calls wait
//! in a bounded queue with a deadline.

mod budget;
mod call;
mod health;
mod pick;
mod pool;

pub(in crate::gateway) use call::broken;
pub use call::{Answer, Attempts, CallError, Limits, Upstream};
pub use health::{Endpoint, EndpointState, Lease};
pub use pool::{Pool, PoolState, Target, TargetKind, Unavailable};
