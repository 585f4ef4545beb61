//! Asymptotic confidence sequences for the difference of two arms: intervals that may be looked at after every unit.
//!
//! Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, *Time-uniform central limit theory and asymptotic confidence
//! sequences*, Annals of Statistics 52 (2024), arXiv 2103.06476: Theorem 2.2 (two-sided), Appendix B (one-sided, and the
//! choice of ρ), and the section on randomised experiments, whose doubly robust estimator is used here without covariates.
//!
//! In stratum s with n_T and n_C units let h = n_T n_C / (n_T + n_C) and d the difference of the means. With H = Σ h:
//!
//! - difference  Δ = Σ h d / H
//! - its variance v = Σ h² (σ²_T / n_T + σ²_C / n_C) / H²
//! - intrinsic time τ = H² v / s², where s² is the mean of the arms' variances (τ = H when they are equal)
//! - x = τ ρ², where ρ² makes the sequence tightest at a chosen τ
//! - two-sided radius √v · √( 2 (1 + 1/x) · ln( √(1 + x) / α ) )
//! - one-sided radius √v · √( 2 (1 + 1/x) · ln( 1 + √(1 + x) / (2 α) ) )
//!
//! Why the weight h: H Δ is the sum over units of (1 − π)(Y − μ_T) for treated and −π (Y − μ_C) for control units, π the treatment's
//! share in the stratum, so each unit's weight is fixed before its outcome is known. The sum stays a martingale when the share
//! changes between strata, which an inverse-variance weight, estimated from the outcomes, would not. It is also the weight of least
//! variance when the arms' variances are equal (the weight of Cochran and of Mantel and Haenszel).

use super::cells::{Cell, Sample};

/// Units of each arm, at even shares, at which the sequence is tightest, for each unit of `minUnits`.
pub const TIGHTEST: f64 = 10.0;

/// A difference and what its radius is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Treatment minus control.
    pub difference: f64,
    /// Variance of the difference.
    pub variance: f64,
    /// Intrinsic time τ, in units: half the units of an arm at even shares.
    pub time: f64,
}

/// Estimates the difference over all cells; `range` are the least and greatest value that a unit can have. `None` without cells.
pub fn estimate(cells: &[Cell], range: Option<(f64, f64)>) -> Option<Estimate> {
    let pooled = pooled(cells);
    let of = |sample: Sample| spread(sample, range, pooled);
    let (mut total, mut difference, mut variance) = (0.0, 0.0, 0.0);
    let (mut treated, mut controlled) = ((0.0, 0.0), (0.0, 0.0));
    for cell in cells {
        let (n, m) = (cell.treatment.units, cell.control.units);
        let weight = n * m / (n + m);
        let both = of(cell.treatment.with(cell.control));
        let (left, right) = (of(cell.treatment).max(both), of(cell.control).max(both));
        total += weight;
        difference += weight * (cell.treatment.mean - cell.control.mean);
        variance += weight * weight * (left / n + right / m);
        treated = (treated.0 + n, treated.1 + n * left);
        controlled = (controlled.0 + m, controlled.1 + m * right);
    }
    if total <= 0.0 {
        return None;
    }
    let scale = (treated.1 / treated.0 + controlled.1 / controlled.0) / 2.0;
    let time = if scale > 0.0 { variance / scale } else { total };
    Some(Estimate { difference: difference / total, variance: variance / (total * total), time })
}

impl Estimate {
    /// Radius of the interval that holds at all looks together with probability 1 − `alpha`. `tightest` is the intrinsic time at
    /// which it is meant to be tightest.
    pub fn two_sided(&self, alpha: f64, tightest: f64) -> f64 {
        let x = self.time * scale(alpha) / tightest;
        self.radius(x, ((1.0 + x).sqrt() / alpha).ln())
    }

    /// The same for a bound on one side only.
    pub fn one_sided(&self, alpha: f64, tightest: f64) -> f64 {
        let x = self.time * scale(2.0 * alpha) / tightest;
        self.radius(x, (1.0 + (1.0 + x).sqrt() / (2.0 * alpha)).ln())
    }

    fn radius(&self, x: f64, log: f64) -> f64 {
        if self.variance <= 0.0 { 0.0 } else { (self.variance * 2.0 * (1.0 + 1.0 / x) * log.max(0.0)).sqrt() }
    }
}

/// The x at which the two-sided radius is least for its variance: x = ln((1 + x) / α²), from Appendix B of the paper, where it is written
/// −W₋₁(−α² / e) − 1 with Lambert's W. The right side is a contraction, so a few rounds give it to the last digit.
fn scale(alpha: f64) -> f64 {
    (0..60).fold(10.0_f64, |x, _| ((1.0 + x) / (alpha * alpha)).ln().max(0.1))
}

/// Variance of a unit of an arm. The estimate takes the greater of an arm's and of both arms' together: in rare events and long tails an arm
/// that is low by chance also looks steadier than it is, and would seem better beyond doubt (with 360 units and a rate of 1 %, no event at all is no rarity).
///
/// Within a range: the variance of the sample with one more unit at either end (for shares the p̃(1 − p̃) of Agresti and Caffo, American
/// Statistician 54, 2000), so that no failures in 30 units do not count as certainty. Otherwise: with two more degrees of freedom at the
/// variance of all arms together, so that an arm of a few equal values does not look certain.
fn spread(sample: Sample, range: Option<(f64, f64)>, pooled: f64) -> f64 {
    match range {
        Some((low, high)) => {
            let ends = Sample { units: 2.0, mean: (low + high) / 2.0, m2: (high - low).powi(2) / 2.0 };
            sample.with(ends).m2 / (sample.units + 2.0)
        }
        None => (sample.m2 + 2.0 * pooled) / ((sample.units - 1.0).max(0.0) + 2.0),
    }
}

/// Variance of a unit within its arm, over all arms and cells.
fn pooled(cells: &[Cell]) -> f64 {
    let samples = || cells.iter().flat_map(|cell| [cell.treatment, cell.control]);
    let freedom: f64 = samples().map(|sample| (sample.units - 1.0).max(0.0)).sum();
    if freedom > 0.0 { samples().map(|sample| sample.m2).sum::<f64>() / freedom } else { 0.0 }
}
