//! (b) Units until a real difference is found.

use llmops::api::rollout::{ExperimentVerdict, MetricKind};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::stream::{ArmSums, Sums, look, plan, rng};
use crate::{percent, quantile};

const EVERY: u64 = 200;
const HORIZON: u64 = 50_000;
const BASE: f64 = 0.6;

pub fn table(runs: usize) {
    println!(
        "(b) Thumbs up {BASE} against more: runs with verdict Better within {HORIZON} units per arm, a look every {EVERY}"
    );
    println!(
        "    {:12} {:>10} {:>10} {:>12} {:>12} {:>12}   one look with 80 % power would take",
        "difference", "Better", "Worse", "mean units", "median", "95 %"
    );
    let plan = plan(Some(MetricKind::Thumbs), &[]);
    for points in [2_u32, 5, 10] {
        let rate = BASE + f64::from(points) / 100.0;
        let (mut better, mut worse, mut units) = (0, 0, Vec::with_capacity(runs));
        for run in 0..runs {
            let mut rng = rng(10 + u64::from(points), run);
            let (mut control, mut treatment) = (Sums::default(), Sums::default());
            while control.units < HORIZON {
                control.flips(&mut rng, EVERY, BASE);
                treatment.flips(&mut rng, EVERY, rate);
                let metrics = [[(MetricKind::Thumbs, control)], [(MetricKind::Thumbs, treatment)]];
                let arms = [(false, &metrics[0]), (true, &metrics[1])].map(|(treatment, metrics)| ArmSums {
                    stratum: "s",
                    treatment,
                    weight: 50,
                    metrics,
                });
                match look(&plan, &arms).goal {
                    Some(ExperimentVerdict::Better) => better += 1,
                    Some(ExperimentVerdict::Worse) => worse += 1,
                    _ => continue,
                }
                break;
            }
            units.push(control.units);
        }
        units.sort_unstable();
        let mean = units.iter().sum::<u64>() as f64 / runs as f64;
        println!(
            "    {:12} {:>10} {:>10} {mean:>12.0} {:>12} {:>12}   {:.0}",
            format!("{points} points"),
            percent(better, runs),
            percent(worse, runs),
            quantile(&units, 0.5),
            quantile(&units, 0.95),
            fixed(BASE, rate),
        );
    }
    println!();
}

/// Units of each arm for a two-sided test at 0.05 with power 0.8, looked at once.
fn fixed(p: f64, q: f64) -> f64 {
    let normal = Normal::standard();
    let z = normal.inverse_cdf(0.975) + normal.inverse_cdf(0.8);
    z * z * (p * (1.0 - p) + q * (1.0 - q)) / (q - p).powi(2)
}
