//! What people do instead, on the same data.

use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::stream::Sums;

/// Welch's t-test, two-sided at 0.05, as if this were the only look.
pub fn t_test_rejects(control: &Sums, treatment: &Sums) -> bool {
    let part = |arm: &Sums| arm.m2() / (arm.units as f64 - 1.0) / arm.units as f64;
    let (a, b) = (part(control), part(treatment));
    if a + b <= 0.0 {
        return false;
    }
    let freedom = (a + b).powi(2) / (a * a / (control.units as f64 - 1.0) + b * b / (treatment.units as f64 - 1.0));
    let t = (treatment.mean() - control.mean()) / (a + b).sqrt();
    2.0 * StudentsT::new(0.0, 1.0, freedom).unwrap().sf(t.abs()) < 0.05
}

/// A threshold on a metric in the window since the last look, with some failed checks allowed: the analysis of Argo Rollouts (`failureLimit`: the
/// run fails when more measurements fail) and of Flagger (`threshold`: rolled back when as many checks have failed).
pub struct Threshold {
    /// The check fails when the treatment's mean is lower than the control's by more than this.
    pub tolerated: f64,
    /// Failed checks at which it rolls back.
    pub rolls_back_at: u32,
    failed: u32,
}

impl Threshold {
    pub fn new(tolerated: f64, rolls_back_at: u32) -> Self {
        Self { tolerated, rolls_back_at, failed: 0 }
    }

    /// Takes a window; whether it rolls back.
    pub fn check(&mut self, control: &Sums, treatment: &Sums) -> bool {
        self.failed += u32::from(treatment.mean() < control.mean() - self.tolerated);
        self.failed >= self.rolls_back_at
    }
}
