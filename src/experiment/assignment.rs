//! Assignment of units to arms.
