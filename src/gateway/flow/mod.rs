//! Flows: compiled templates and the engine that runs the graph.

pub mod templates;
