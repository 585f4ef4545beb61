//! Pure statistics of splits: assignment of units to arms, and verdicts that may be read at any time.
//!
//! [`plan::Plan::new`] makes a plan from the spec, [`reading::read`] compares a treatment with its control.

pub mod assignment;
mod betting;
mod cells;
pub mod measurements;
pub mod plan;
mod ratio;
mod reading;
mod sequence;
mod words;

pub use plan::{Plan, PlanError};
pub use ratio::SampleRatio;
pub use reading::{Harm, Reading, read, status};

#[cfg(test)]
mod tests;
