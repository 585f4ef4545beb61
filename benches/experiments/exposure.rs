//! (c) Units that meet a candidate before it is rolled back, at a first step of 5 %.

use llmops::api::rollout::MetricKind;
use llmops::experiment::Plan;
use llmops::experiment::plan::IMPLICIT_ERROR_RATE;

use crate::stream::{ArmSums, Sums, look, plan, rng};
use crate::{percent, quantile};

/// Units of the candidate between looks.
const EVERY: u64 = 10;
/// Units of the candidate after which a run ends.
const HORIZON: u64 = 1_000;
const WEIGHT: i32 = 5;

pub fn table(runs: usize) {
    println!(
        "(c) First step of {WEIGHT} %, a look after every {EVERY} units of the candidate: its units when it is rolled back"
    );
    println!(
        "    {:34} {:>10} {:>8} {:>6} {:>6} {:>6} {:>12} {:>14}",
        "", "control", "median", "95 %", "99 %", "max", "within 150", "ever"
    );
    let implicit = Plan::new(None, true, 1).unwrap();
    let shared = plan(Some(MetricKind::Thumbs), &[(MetricKind::ErrorRate, IMPLICIT_ERROR_RATE)]);
    let lenient = plan(None, &[(MetricKind::ErrorRate, 0.05)]);
    for control in [0.0, 0.005, 0.01, 0.02] {
        row("fails 20 %, no experiment in spec", &implicit, control, 0.2, runs);
    }
    row("fails 20 %, alpha shared with a goal", &shared, 0.005, 0.2, runs);
    row("fails 20 %, spec tolerates 5 points", &lenient, 0.005, 0.2, runs);
    row("fails always", &implicit, 0.005, 1.0, runs);
    println!("    wrong rollbacks, within {HORIZON} units of the candidate (2 points are tolerated):");
    for control in [0.0, 0.01, 0.1] {
        row("fails as the control", &implicit, control, control, runs);
    }
    row("fails 1 point more (tolerated)", &implicit, 0.01, 0.02, runs);
    row("fails 2 points more (the limit)", &implicit, 0.01, 0.03, runs);
    row("fails 5 points more, 5 tolerated", &lenient, 0.01, 0.06, runs);
    println!();
}

fn row(name: &str, plan: &Plan, control: f64, candidate: f64, runs: usize) {
    let mut units: Vec<u64> = (0..runs).filter_map(|run| run_once(plan, control, candidate, run)).collect();
    units.sort_unstable();
    let at = |q: f64| {
        // Quantiles over all runs; one that was never rolled back has none.
        let place = (q * runs as f64).ceil() as usize;
        if place <= units.len() && place > 0 {
            quantile(&units, place as f64 / units.len() as f64).to_string()
        } else {
            "-".into()
        }
    };
    let within = units.iter().filter(|units| **units <= 150).count();
    println!(
        "    {name:34} {:>10} {:>8} {:>6} {:>6} {:>6} {:>12} {:>14}",
        format!("{:.1} %", 100.0 * control),
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0),
        percent(within, runs),
        percent(units.len(), runs),
    );
}

fn run_once(plan: &Plan, control: f64, candidate: f64, run: usize) -> Option<u64> {
    let mut rng = rng(20, run);
    let mut errors = [Sums::default(); 2];
    while errors[1].units < HORIZON {
        let treated = rng.i32(0..100) < WEIGHT;
        errors[usize::from(treated)].flips(&mut rng, 1, if treated { candidate } else { control });
        if treated && errors[1].units.is_multiple_of(EVERY) {
            let metrics = errors.map(|sums| [(MetricKind::ErrorRate, sums)]);
            let arms = [(false, 100 - WEIGHT, &metrics[0]), (true, WEIGHT, &metrics[1])];
            let arms = arms.map(|(treatment, weight, metrics)| ArmSums { stratum: "s", treatment, weight, metrics });
            if look(plan, &arms).harm.is_some() {
                return Some(errors[1].units);
            }
        }
    }
    None
}
