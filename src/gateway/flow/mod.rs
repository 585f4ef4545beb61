//! Flows: compiled revisions and the engine that runs the graph.

mod engine;
mod inputs;
mod llm;
mod output;
mod pins;
mod program;
mod retrieve;
pub mod templates;
mod trace;

pub use engine::{FlowError, Run, run};
pub use inputs::{read as read_inputs, single_text};
pub use pins::Pins;
pub use program::{Program, ProgramError};
pub(in crate::gateway) use retrieve::query as query_index;
pub use trace::{Dependencies, NodeTime, Sourced, Trace, Usage};
