//! What the pages show: pure functions from objects to structs that templates only print. No clock, no I/O.

mod evaluation;
mod experiment;
mod flow;
mod index;
mod measure;
mod model;
mod overview;
mod plot;
mod rollout;
mod shared;
#[cfg(test)]
mod tests;

pub use evaluation::evaluation;
pub use flow::{Kept, flow};
pub use index::index;
pub use model::model;
pub use overview::overview;
pub use shared::{EVALUATION, FLOW, INDEX, MODEL, Moment, Reports, moment, namespace_path, page_path};
