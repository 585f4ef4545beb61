//! Pure statistics of splits: assignment of units to arms.

pub mod assignment;
pub mod measurements;
