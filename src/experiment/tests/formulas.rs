//! Formulas against numbers that were found in another way.

use super::*;
use crate::experiment::betting::{Harm, ceiling};
use crate::experiment::cells::{Cell, Sample};
use crate::experiment::ratio;
use crate::experiment::sequence::{Estimate, estimate};

fn share_sample(units: f64, mean: f64) -> Sample {
    Sample { units, mean, m2: units * mean * (1.0 - mean) }
}

#[test]
fn the_radius_is_that_of_the_theorem() {
    // Theorem 2.2: σ √( 2 (tρ² + 1) / (t² ρ²) · ln( √(tρ² + 1) / α ) ), with t units, ρ² of Appendix B for t* = 500 and α = 0.05:
    // −W₋₁(−α² e⁻¹) − 1 = 8.204 (solved by bisection of u − ln u = 1 − 2 ln α).
    let (alpha, best, sigma) = (0.05_f64, 500.0, 0.7);
    let (mut low, mut high) = (1.0_f64, 50.0);
    for _ in 0..100 {
        let u = (low + high) / 2.0;
        if u - u.ln() < 1.0 - 2.0 * alpha.ln() { low = u } else { high = u }
    }
    let rho = (low - 1.0) / best;
    for t in [10.0, 100.0, 500.0, 10_000.0_f64] {
        let theorem = sigma * (2.0 * (t * rho + 1.0) / (t * t * rho) * ((t * rho + 1.0).sqrt() / alpha).ln()).sqrt();
        let ours = Estimate { difference: 0.0, variance: sigma * sigma / t, time: t }.two_sided(alpha, best);
        assert!((ours / theorem - 1.0).abs() < 1e-9, "{t}: {ours} {theorem}");
    }
    // The promise of "tightest": at t = 500 no other tuning is tighter.
    let at = |tightest| Estimate { difference: 0.0, variance: 1.0, time: 500.0 }.two_sided(alpha, tightest);
    assert!(at(500.0) < at(450.0) && at(500.0) < at(550.0));
    assert!((at(500.0) - 3.035).abs() < 0.005, "{}", at(500.0));
}

#[test]
fn equal_cells_are_as_good_as_one() {
    let cell = |units: f64| Cell { share: 0.5, treatment: share_sample(units, 0.6), control: share_sample(units, 0.5) };
    let one = estimate(&[cell(100_000.0)], Some((0.0, 1.0))).unwrap();
    let two = estimate(&[cell(50_000.0), cell(50_000.0)], Some((0.0, 1.0))).unwrap();
    assert!((one.difference - two.difference).abs() < 1e-12);
    assert!((one.variance / two.variance - 1.0).abs() < 1e-3);
    assert!((one.time / 50_000.0 - 1.0).abs() < 0.01, "intrinsic time is half an arm's units: {}", one.time);
}

#[test]
fn an_arm_without_variance_is_not_certain() {
    let cells = [Cell { share: 0.5, treatment: share_sample(30.0, 0.0), control: share_sample(30.0, 0.0) }];
    let found = estimate(&cells, Some((0.0, 1.0))).unwrap();
    // (1/32)(31/32) for each arm.
    assert!((found.variance - 2.0 * (31.0 / 1024.0) / 30.0).abs() < 1e-9, "{}", found.variance);
    let constant = Sample { units: 30.0, mean: 2.0, m2: 0.0 };
    let spread = Sample { units: 30.0, mean: 1.0, m2: 29.0 };
    let cells = [Cell { share: 0.5, treatment: constant, control: spread }];
    assert!(estimate(&cells, None).unwrap().variance > 1.5 / 30.0);
}

/// The heart of the proof, by enumeration: under a true increase of exactly δ the mixture's mean is at most 1, when the ceiling is the true rate.
#[test]
fn the_bet_has_no_expected_gain() {
    for (share, n, m, control, delta) in
        [(0.05, 8_u32, 40_u32, 0.1, 0.05), (0.5, 15, 15, 0.3, 0.0), (0.9, 20, 5, 0.02, 0.2)]
    {
        let mut mean = 0.0;
        for (hits, chance) in binomial(n, control + delta) {
            for (other, also) in binomial(m, control) {
                let cells = [Cell {
                    share,
                    treatment: share_sample(f64::from(n), f64::from(hits) / f64::from(n)),
                    control: share_sample(f64::from(m), f64::from(other) / f64::from(m)),
                }];
                mean += chance * also * Harm::with_ceilings(&cells, vec![control], 0.05).evidence(delta).exp();
            }
        }
        assert!(mean <= 1.0 + 1e-9, "share {share}: {mean}");
    }
}

/// The control's rate is not known. With hundreds of its units that must cost next to nothing, or a failing candidate meets more users.
#[test]
fn not_knowing_a_rare_rate_costs_little() {
    for (share, units) in [(0.05, 30.0), (0.05, 60.0), (0.05, 150.0)] {
        let control = units * (1.0 - share) / share;
        let cells = [Cell { share, treatment: share_sample(units, 0.12), control: share_sample(control, 0.005) }];
        let (known, unknown) = (Harm::with_ceilings(&cells, vec![0.005], 0.05), Harm::new(&cells, 0.05));
        for delta in [0.0, 0.02, 0.05] {
            let lost = known.evidence(delta) - unknown.evidence(delta);
            assert!((-1e-9..0.25).contains(&lost), "share {share}, {units} units, δ = {delta}: {lost}");
        }
    }
}

fn binomial(n: u32, p: f64) -> Vec<(u32, f64)> {
    let mut chance = (1.0 - p).powi(i32::try_from(n).unwrap());
    let step = |k: u32, chance: f64| chance * f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p);
    (0..=n)
        .map(|k| {
            let now = chance;
            if k < n {
                chance = step(k, chance);
            }
            (k, now)
        })
        .collect()
}

#[test]
fn the_ceiling_covers_and_is_near() {
    assert!((ceiling(0.0, 0.0, 0.01) - 1.0).abs() < 1e-9, "no unit, no knowledge");
    // None of n: Beta(½, ½) gives ln E = −ln(1 − θ) n + ln( B(½, n + ½) / π ); solved here for n = 100, α = 0.01.
    let mixture: f64 = (1..=100).map(|k| ((f64::from(k) - 0.5) / f64::from(k)).ln()).sum();
    let exact = 1.0 - ((mixture + 0.01_f64.ln()) / 100.0).exp();
    assert!((ceiling(100.0, 0.0, 0.01) - exact).abs() < 1e-9);
    let near = ceiling(100_000.0, 0.3, 0.01);
    assert!(near > 0.3 && near < 0.31, "{near}");
}

#[test]
fn chi_square_is_pearsons() {
    let counts = |left, right| measured([arm(("s", "a", "1", 50), left, &[]), arm(("s", "b", "1", 50), right, &[])]);
    // 3.841 and 10.828 are the 95 % and 99.9 % quantiles with one degree of freedom.
    for (square, p) in [(3.841_459_f64, 0.05), (10.827_566, 0.001)] {
        let units = 1_000_000_f64;
        let off = (square * units).sqrt() / 2.0;
        let found = ratio::check(&counts((units / 2.0 + off) as u64, (units / 2.0 - off) as u64), |_| true);
        assert!((found.p_value.unwrap() / p - 1.0).abs() < 0.01, "{found:?}");
    }
    assert_eq!(ratio::check(&counts(4, 5), |_| true).p_value, None, "too few units");
    let broken = ratio::check(&counts(1000, 1300), |_| true);
    assert!(broken.broken && broken.message.starts_with("the split is not what was asked for: "), "{broken:?}");
}
