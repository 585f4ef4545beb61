//! (a) Verdicts when there is no difference.

use llmops::api::rollout::{ExperimentVerdict, MetricKind};
use llmops::experiment::Reading;

use crate::rivals::{Threshold, t_test_rejects};
use crate::stream::{ArmSums, Sums, look, plan, rng};
use crate::{percent, quantile};

/// Units of each arm between looks, and looks: up to 20,000 units per arm.
const EVERY: u64 = 200;
const LOOKS: u64 = 100;
/// Share of thumbs up of both arms.
const BASE: f64 = 0.6;
/// Points that the plain thresholds tolerate.
const TOLERATED: f64 = 0.05;

pub fn table(runs: usize) {
    println!(
        "(a) No difference: thumbs up {BASE}, a look after every {EVERY} units per arm up to {}; runs with a verdict",
        EVERY * LOOKS
    );
    println!("    {:58} {:>10} {:>14}", "", "wrong", "median first");
    even_split(runs);
    guarded(runs);
    ramp_with_drift(runs);
    rare(runs);
    println!();
}

/// Better or worse on any metric, or harm: all of them wrong here.
fn claims(reading: &Reading) -> bool {
    reading.harm.is_some()
        || reading
            .comparisons
            .iter()
            .any(|comparison| matches!(comparison.verdict, ExperimentVerdict::Better | ExperimentVerdict::Worse))
}

fn row(name: &str, mut first: Vec<u64>, runs: usize) {
    first.sort_unstable();
    let median = if first.is_empty() { "-".into() } else { format!("{} units", quantile(&first, 0.5)) };
    println!("    {name:58} {:>10} {median:>14}", percent(first.len(), runs));
}

fn even_split(runs: usize) {
    let plan = plan(Some(MetricKind::Thumbs), &[]);
    let (mut ours, mut peeking, mut once, mut argo, mut flagger) = (vec![], vec![], vec![], vec![], vec![]);
    for run in 0..runs {
        let mut rng = rng(1, run);
        let (mut control, mut treatment) = (Sums::default(), Sums::default());
        let mut rivals = [Threshold::new(TOLERATED, 4), Threshold::new(TOLERATED, 5)];
        let mut found = [None; 4];
        for step in 1..=LOOKS {
            let before = (control, treatment);
            control.flips(&mut rng, EVERY, BASE);
            treatment.flips(&mut rng, EVERY, BASE);
            let window = (control.minus(&before.0), treatment.minus(&before.1));
            let arms = [(false, control), (true, treatment)]
                .map(|(treatment, sums)| (treatment, [(MetricKind::Thumbs, sums)]));
            let arms = arms.each_ref().map(|(treatment, metrics)| ArmSums {
                stratum: "s",
                treatment: *treatment,
                weight: 50,
                metrics,
            });
            let says = [
                found[0].is_none() && claims(&look(&plan, &arms)),
                found[1].is_none() && t_test_rejects(&control, &treatment),
                rivals[0].check(&window.0, &window.1),
                rivals[1].check(&window.0, &window.1),
            ];
            for (first, says) in found.iter_mut().zip(says) {
                *first = first.or(says.then_some(step * EVERY));
            }
        }
        ours.extend(found[0]);
        peeking.extend(found[1]);
        argo.extend(found[2]);
        flagger.extend(found[3]);
        once.extend(t_test_rejects(&control, &treatment).then_some(EVERY * LOOKS));
    }
    row("llmops: goal Thumbs", ours, runs);
    row("naive peeking: t-test at 0.05 at each look", peeking, runs);
    row("  the same t-test once, at the end (not peeking)", once, runs);
    row("plain threshold, 5 points per window, failureLimit 3 (Argo)", argo, runs);
    row("plain threshold, 5 points per window, threshold 5 (Flagger)", flagger, runs);
}

/// Three metrics that share alpha; errors of 1 %, latencies with a long tail.
fn guarded(runs: usize) {
    let plan = plan(Some(MetricKind::Thumbs), &[(MetricKind::ErrorRate, 0.0), (MetricKind::Latency, 0.0)]);
    let (mut ours, mut peeking) = (vec![], vec![]);
    for run in 0..runs {
        let mut rng = rng(2, run);
        let mut sums = [[Sums::default(); 3]; 2];
        let mut found = [None; 2];
        for step in 1..=LOOKS {
            for arm in &mut sums {
                arm[0].flips(&mut rng, EVERY, BASE);
                arm[1].flips(&mut rng, EVERY, 0.01);
                (0..EVERY).for_each(|_| arm[2].add(log_normal(&mut rng)));
            }
            let metrics = sums.map(|arm| {
                [(MetricKind::Thumbs, arm[0]), (MetricKind::ErrorRate, arm[1]), (MetricKind::Latency, arm[2])]
            });
            let arms = [(false, &metrics[0]), (true, &metrics[1])].map(|(treatment, metrics)| ArmSums {
                stratum: "s",
                treatment,
                weight: 50,
                metrics,
            });
            let says = [
                found[0].is_none() && claims(&look(&plan, &arms)),
                found[1].is_none() && (0..3).any(|metric| t_test_rejects(&sums[0][metric], &sums[1][metric])),
            ];
            for (first, says) in found.iter_mut().zip(says) {
                *first = first.or(says.then_some(step * EVERY));
            }
        }
        ours.extend(found[0]);
        peeking.extend(found[1]);
    }
    row("llmops: goal Thumbs, guardrails ErrorRate and Latency, all 0", ours, runs);
    row("naive peeking at the three", peeking, runs);
}

/// Seconds with median 1 and a long tail (standard deviation of the logarithm 0.8), by Box and Muller.
fn log_normal(rng: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    (0.8 * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).exp()
}

/// A ramp of 5, 25 and 50 % while thumbs get better for everybody (0.5, 0.6, 0.7): the candidate has most of its units late.
fn ramp_with_drift(runs: usize) {
    let plan = plan(Some(MetricKind::Thumbs), &[(MetricKind::ErrorRate, 0.05)]);
    let (mut ours, mut pooled) = (vec![], vec![]);
    for run in 0..runs {
        let mut rng = rng(3, run);
        let mut strata =
            [(5, 0.5), (25, 0.6), (50, 0.7)].map(|(weight, rate)| (weight, rate, [[Sums::default(); 2]; 2]));
        let mut found = [None; 2];
        let mut units = 0;
        for stratum in 0..3 {
            for _ in 0..20 {
                let (weight, rate, arms) = &mut strata[stratum];
                for _ in 0..2 * EVERY {
                    let arm = &mut arms[usize::from(rng.i32(0..100) < *weight)];
                    arm[0].flips(&mut rng, 1, *rate);
                    arm[1].flips(&mut rng, 1, 0.01);
                }
                units += EVERY;
                let metrics: Vec<_> = strata
                    .iter()
                    .take(stratum + 1)
                    .enumerate()
                    .flat_map(|(place, (weight, _, arms))| {
                        [(false, 100 - weight, arms[0]), (true, *weight, arms[1])].map(|(treatment, weight, sums)| {
                            let metrics = [(MetricKind::Thumbs, sums[0]), (MetricKind::ErrorRate, sums[1])];
                            (["5", "25", "50"][place], treatment, weight, metrics)
                        })
                    })
                    .collect();
                let arms: Vec<_> = metrics
                    .iter()
                    .map(|(stratum, treatment, weight, metrics)| ArmSums {
                        stratum,
                        treatment: *treatment,
                        weight: *weight,
                        metrics,
                    })
                    .collect();
                let all = [0, 1].map(|arm| {
                    strata.iter().fold(Sums::default(), |mut sum, (_, _, arms)| {
                        sum.units += arms[arm][0].units;
                        sum.sum += arms[arm][0].sum;
                        sum.squares += arms[arm][0].squares;
                        sum
                    })
                });
                let says = [
                    found[0].is_none() && claims(&look(&plan, &arms)),
                    found[1].is_none() && t_test_rejects(&all[0], &all[1]),
                ];
                for (first, says) in found.iter_mut().zip(says) {
                    *first = first.or(says.then_some(units));
                }
            }
        }
        ours.extend(found[0]);
        pooled.extend(found[1]);
    }
    row("llmops: ramp 5, 25, 50 % while thumbs rise for everybody", ours, runs);
    row("naive peeking, steps thrown together", pooled, runs);
}

/// A goal that few units reach, and one with a long tail, of a variant that few units get.
fn rare(runs: usize) {
    for (name, goal, share) in [
        ("llmops: goal Event of 2 %, the variant at 5 %", MetricKind::Event, 5),
        ("llmops: goal Latency (long tail), the variant at 5 %", MetricKind::Latency, 5),
    ] {
        let plan = plan(Some(goal), &[]);
        let mut ours = vec![];
        for run in 0..runs {
            let mut rng = rng(4, run);
            let mut arms = [Sums::default(); 2];
            for step in 1..=LOOKS {
                for _ in 0..2 * EVERY {
                    let arm = &mut arms[usize::from(rng.i32(0..100) < share)];
                    if goal == MetricKind::Event { arm.flips(&mut rng, 1, 0.02) } else { arm.add(log_normal(&mut rng)) }
                }
                let metrics = arms.map(|sums| [(goal, sums)]);
                let arms = [(false, 100 - share, &metrics[0]), (true, share, &metrics[1])];
                let arms =
                    arms.map(|(treatment, weight, metrics)| ArmSums { stratum: "s", treatment, weight, metrics });
                if claims(&look(&plan, &arms)) {
                    ours.push(step * EVERY);
                    break;
                }
            }
        }
        row(name, ours, runs);
    }
}
