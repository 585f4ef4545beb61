//! Seeded simulations: with many looks, errors stay below what is promised. The benchmark does the same with thousands of runs.

use super::*;
use crate::experiment::betting::Harm;
use crate::experiment::cells::{Cell, Sample};
use crate::experiment::ratio;
use crate::experiment::sequence::estimate;

const RUNS: u64 = 300;

#[derive(Clone, Copy, Default)]
struct Count {
    units: f64,
    hits: f64,
}

impl Count {
    fn draw(&mut self, rng: &mut fastrand::Rng, rate: f64) {
        self.units += 1.0;
        self.hits += f64::from(u8::from(rng.f64() < rate));
    }
    fn sample(self) -> Sample {
        let mean = self.hits / self.units.max(1.0);
        Sample { units: self.units, mean, m2: self.units * mean * (1.0 - mean) }
    }
}

/// Runs in which `wrong` says so at some look. Strata of (share, rate of control, rate of treatment), each with `looks` looks after `every` units.
fn wrong(seed: u64, strata: &[(f64, f64, f64)], looks: usize, every: usize, wrong: impl Fn(&[Cell]) -> bool) -> u64 {
    let run = |run: u64| {
        let mut rng = fastrand::Rng::with_seed(seed * 10_007 + run);
        let mut cells = Vec::new();
        for (share, control, treatment) in strata {
            let mut counts = [Count::default(); 2];
            cells.push(Cell { share: *share, treatment: Sample::default(), control: Sample::default() });
            for _ in 0..looks {
                for _ in 0..every {
                    let treated = rng.f64() < *share;
                    counts[usize::from(treated)].draw(&mut rng, if treated { *treatment } else { *control });
                }
                if counts.iter().all(|count| count.units >= 1.0) {
                    let last = cells.last_mut().unwrap();
                    (last.control, last.treatment) = (counts[0].sample(), counts[1].sample());
                    if wrong(&cells) {
                        return true;
                    }
                }
            }
        }
        false
    };
    (0..RUNS).filter(|seed| run(*seed)).count() as u64
}

#[test]
fn the_sequence_covers_at_all_looks_together() {
    let misses = |strata: &[(f64, f64, f64)], truth: f64| {
        wrong(1, strata, 25, 120, |cells| {
            let units = |side: fn(&Cell) -> Sample| cells.iter().map(|cell| side(cell).units).sum::<f64>();
            let enough = units(|cell| cell.treatment).min(units(|cell| cell.control)) >= 100.0;
            let found = estimate(cells, Some((0.0, 1.0))).unwrap();
            enough && (found.difference - truth).abs() > found.two_sided(0.05, 500.0)
        })
    };
    // 5 % of 300 runs are 15.
    for (name, strata, truth) in [
        ("even", vec![(0.5, 0.6, 0.6)], 0.0),
        ("a difference", vec![(0.5, 0.6, 0.7)], 0.1),
        ("a ramp while all gets better", vec![(0.05, 0.5, 0.5), (0.25, 0.6, 0.6), (0.5, 0.7, 0.7)], 0.0),
        ("rare", vec![(0.1, 0.02, 0.02)], 0.0),
    ] {
        let count = misses(&strata, truth);
        assert!(count <= 15, "{name}: {count} of {RUNS}");
    }
}

#[test]
fn harm_is_not_claimed_of_what_is_tolerated() {
    for (name, strata) in [
        ("no failures but the tolerated", vec![(0.05, 0.0, 0.05)]),
        ("a few", vec![(0.05, 0.02, 0.07)]),
        ("two steps, and a control that changes", vec![(0.1, 0.02, 0.07), (0.5, 0.3, 0.35)]),
    ] {
        let count = wrong(2, &strata, 20, 150, |cells| Harm::new(cells, 0.05).exceeds(0.05));
        assert!(count <= 15, "{name}: {count} of {RUNS}");
    }
}

/// The bound on users who meet a candidate that fails: it must hold in every run, also in those that look mild by chance.
#[test]
fn a_candidate_that_fails_one_in_five_meets_few_units() {
    const MANY: u64 = 2_000;
    let mut stopped: Vec<f64> = (0..MANY)
        .map(|run| {
            let mut rng = fastrand::Rng::with_seed(run);
            let mut counts = [Count::default(); 2];
            loop {
                let treated = rng.f64() < 0.05;
                counts[usize::from(treated)].draw(&mut rng, if treated { 0.2 } else { 0.005 });
                if !treated || counts[1].units % 10.0 != 0.0 {
                    continue;
                }
                let cells = [Cell { share: 0.05, treatment: counts[1].sample(), control: counts[0].sample() }];
                let harm = Harm::new(&cells, 0.05).exceeds(0.0)
                    && Harm::new(&cells, crate::experiment::reading::LIKELY)
                        .exceeds(crate::experiment::plan::IMPLICIT_ERROR_RATE);
                if harm || counts[1].units >= 1000.0 {
                    return counts[1].units;
                }
            }
        })
        .collect();
    stopped.sort_by(f64::total_cmp);
    let at = |q: f64| stopped[(q * MANY as f64).ceil() as usize - 1];
    assert!(at(0.5) <= 30.0 && at(1.0) <= 150.0, "median {}, 99 % {}, max {}", at(0.5), at(0.99), at(1.0));
}

#[test]
fn the_sample_ratio_gives_no_false_alarm_for_being_looked_at() {
    let alarms = (0..RUNS).filter(|run| {
        let mut rng = fastrand::Rng::with_seed(90_000 + run);
        let mut units = [0_u64; 2];
        (0..60).any(|_| {
            (0..100).for_each(|_| units[usize::from(rng.f64() < 0.05)] += 1);
            let measured = measured([arm(("s", "a", "1", 95), units[0], &[]), arm(("s", "b", "1", 5), units[1], &[])]);
            ratio::check(&measured, |_| true).broken
        })
    });
    // 1 % of 300 runs are 3.
    assert!(alarms.count() <= 3);
}
