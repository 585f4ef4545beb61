//! A bound on how much more often something bad happens under the treatment, valid at every look and for every number of
//! units: no normal approximation, so it may act when the treatment has ten units and the control no failure at all.
//!
//! Values lie between 0 and 1; larger is worse. The claim to refute is "in every stratum the treatment's rate exceeds the
//! control's rate θ by at most δ". For a bet λ > 0 and a control's rate θ in each cell (π: the treatment's share, S sums, n units)
//!
//! ln M(λ) = Σ  u S_T − n_T ln(1 + (θ + δ)(eᵘ − 1)) − w S_C − n_C ln(1 − θ(1 − e⁻ʷ)),   u = λ(1 − π), w = λπ
//!
//! is the logarithm of a test supermartingale: for a value Y in \[0, 1\] with mean at most p, E eᵘʸ ≤ 1 + p(eᵘ − 1) since eᵘʸ lies below its
//! chord; both factors are concave in the rate, so rates may drift within a stratum. By Ville's inequality the mixture E = Σ q(λ) M(λ) over a
//! fixed set of bets exceeds 1/α with probability at most α, ever (Waudby-Smith and Ramdas, *Estimating means of bounded random variables by
//! betting*, JRSS B 86, 2024, arXiv 2010.09686; Howard et al., *Time-uniform Chernoff bounds*, 2020, arXiv 1808.03204).
//!
//! θ is not known. A tenth of α goes to an upper bound U for it that holds at all looks, and M takes its least value over \[0, U\]. It costs little:
//! with the weights 1 − π and π the first-order effects of θ on both arms cancel.
//! U is where the likelihood ratio of a Beta(½, ½) mixture against θ reaches its threshold, a martingale by the same chord argument
//! (Robbins 1970; Howard et al., section on beta-binomial mixtures). With k cells each has the error probability (α/10) / (k(k + 1)): a cell that is the
//! k-th to come never gets more, and Σ 1/(k(k + 1)) = 1, so the sum stays below α/10 however many come.

use statrs::function::beta::ln_beta;

use super::cells::Cell;

/// Part of α that the control's upper bounds take.
const NUISANCE: f64 = 0.1;
/// Bets and how much is put on each, 1 together. A candidate with some 20 % failures against an allowance of a few percent asks for log-odds
/// of 1 to 2 in the mean; three quarters find it also in those runs that by chance look milder, without which the worst runs meet twice as
/// many users. Smaller bets find small harm in many units.
const BETS: [(f64, f64); 10] = [
    (5.0, 0.03),
    (2.5, 0.07),
    (1.25, 0.20),
    (0.75, 0.45),
    (0.375, 0.12),
    (0.19, 0.06),
    (0.09, 0.03),
    (0.045, 0.02),
    (0.0225, 0.01),
    (0.01125, 0.01),
];
/// Bets above this are balanced for a control that hardly fails, see [`weights`].
const RARE: f64 = 0.5;
/// Most of the chord that a control's failure may cost: its weight stays below ln 20.
const MOST: f64 = 0.95;

/// Harm that may be claimed, cell by cell with the control's upper bounds.
pub struct Harm<'a> {
    cells: &'a [Cell],
    ceilings: Vec<f64>,
    threshold: f64,
}

impl<'a> Harm<'a> {
    /// Prepares the bound for error probability `alpha`.
    pub fn new(cells: &'a [Cell], alpha: f64) -> Self {
        let count = cells.len() as f64;
        let each = alpha * NUISANCE / (count * (count + 1.0)).max(1.0);
        let ceilings = cells.iter().map(|cell| ceiling(cell.control.units, cell.control.mean, each)).collect();
        Self::with_ceilings(cells, ceilings, alpha)
    }

    /// The same with known upper bounds of the control's rates.
    pub fn with_ceilings(cells: &'a [Cell], ceilings: Vec<f64>, alpha: f64) -> Self {
        Self { cells, ceilings, threshold: -(alpha * (1.0 - NUISANCE)).ln() }
    }

    /// Whether it is refuted that the treatment's rate exceeds the control's by at most `delta`.
    pub fn exceeds(&self, delta: f64) -> bool {
        self.evidence(delta) >= self.threshold
    }

    /// The lower bound of the rate's increase: the largest δ that is refuted, −1 if none is.
    pub fn bound(&self) -> f64 {
        let (mut refuted, mut open) = (-1.0, 1.0);
        if !self.exceeds(refuted) {
            return refuted;
        }
        for _ in 0..30 {
            let middle = (refuted + open) / 2.0;
            if self.exceeds(middle) {
                refuted = middle;
            } else {
                open = middle;
            }
        }
        refuted
    }

    /// ln E.
    pub fn evidence(&self, delta: f64) -> f64 {
        let logs = BETS.map(|(bet, stake)| {
            let cells = self.cells.iter().zip(&self.ceilings);
            stake.ln() + cells.map(|(cell, ceiling)| least(cell, bet, delta, *ceiling)).sum::<f64>()
        });
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if most.is_finite() { most + logs.iter().map(|log| (log - most).exp()).sum::<f64>().ln() } else { most }
    }
}

/// The weights u and w of a bet.
///
/// Any two weights are valid that do not depend on outcomes. These make the effects of θ on both arms cancel, so that not knowing it costs
/// little: to the first order in λ for small bets, which are about common outcomes; exactly at θ = 0 and δ = 0 for large ones, which only pay where
/// the control hardly fails: there d ln M / dθ = −n_T (eᵘ − 1) + n_C (1 − e⁻ʷ), which is 0 when the arms have their shares of the units.
fn weights(bet: f64, share: f64) -> (f64, f64) {
    let up = bet * (1.0 - share);
    if bet <= RARE {
        return (up, bet * share);
    }
    let loss = (share / (1.0 - share) * up.exp_m1()).min(MOST);
    (up, -(-loss).ln_1p())
}

/// ln M of a cell at the control's rate that makes it least. It is convex in the rate, and mostly falls up to the ceiling.
fn least(cell: &Cell, bet: f64, delta: f64, ceiling: f64) -> f64 {
    let (up, down) = weights(bet, cell.share);
    let (gain, loss) = (up.exp_m1(), -(-down).exp_m1());
    let (n, m) = (cell.treatment.units, cell.control.units);
    let slope = |rate: f64| -n * gain / (1.0 + (rate + delta) * gain) + m * loss / (1.0 - rate * loss);
    let low = (-delta).clamp(0.0, 1.0);
    let high = ceiling.min(1.0 - delta).max(low);
    let rate = if slope(high) <= 0.0 {
        high
    } else if slope(low) >= 0.0 {
        low
    } else {
        let (mut below, mut above) = (low, high);
        for _ in 0..40 {
            let middle = (below + above) / 2.0;
            if slope(middle) <= 0.0 { below = middle } else { above = middle }
        }
        (below + above) / 2.0
    };
    up * n * cell.treatment.mean
        - n * ((rate + delta) * gain).ln_1p()
        - down * m * cell.control.mean
        - m * (-rate * loss).ln_1p()
}

/// Upper bound of a rate of which `units` showed the mean `mean`, at all looks together with error probability `alpha`.
pub fn ceiling(units: f64, mean: f64, alpha: f64) -> f64 {
    let (hits, misses) = (units * mean, units * (1.0 - mean));
    let mixture = ln_beta(hits + 0.5, misses + 0.5) - ln_beta(0.5, 0.5);
    let part = |count: f64, rate: f64| if count > 0.0 { count * rate.ln() } else { 0.0 };
    let open = |rate: f64| mixture - part(hits, rate) - part(misses, 1.0 - rate) < -alpha.ln();
    let (mut inside, mut outside) = (mean.clamp(0.0, 1.0), 1.0);
    for _ in 0..40 {
        let middle = (inside + outside) / 2.0;
        if open(middle) { inside = middle } else { outside = middle }
    }
    outside
}
