//! (d) The sample-ratio check, looked at again and again.

use llmops::api::rollout::MetricKind;

use crate::stream::{ArmSums, Sums, look, plan, rng};
use crate::{percent, quantile};

const EVERY: u64 = 100;
const HORIZON: u64 = 20_000;

pub fn table(runs: usize) {
    println!(
        "(d) Sample ratio, a look after every {EVERY} units up to {HORIZON}: runs in which the split is called broken"
    );
    println!("    {:44} {:>16} {:>22} {:>14}", "asked for", "llmops (ever)", "chi-square alone (ever)", "median units");
    for (name, weight, share) in [
        ("50 %, and 50 % came (a false alarm)", 50, 0.5),
        ("5 %, and 5 % came (a false alarm)", 5, 0.05),
        ("50 %, but 45 % came", 50, 0.45),
        ("5 %, but 3 % came", 5, 0.03),
    ] {
        row(name, weight, share, runs);
    }
    println!();
}

fn row(name: &str, weight: i32, share: f64, runs: usize) {
    let plan = plan(None, &[]);
    let (mut ours, mut alone) = (Vec::new(), 0);
    for run in 0..runs {
        let mut rng = rng(30, run);
        let mut units = [0_u64; 2];
        let (mut broken, mut low) = (None, false);
        while units[0] + units[1] < HORIZON && (broken.is_none() || !low) {
            (0..EVERY).for_each(|_| units[usize::from(rng.f64() < share)] += 1);
            let metrics = units.map(|units| [(MetricKind::ErrorRate, Sums { units, ..Sums::default() })]);
            let arms = [(false, 100 - weight, &metrics[0]), (true, weight, &metrics[1])];
            let arms = arms.map(|(treatment, weight, metrics)| ArmSums { stratum: "s", treatment, weight, metrics });
            let ratio = look(&plan, &arms).ratio;
            low |= ratio.p_value.is_some_and(|p| p < 0.001);
            broken = broken.or(ratio.broken.then_some(units[0] + units[1]));
        }
        ours.extend(broken);
        alone += usize::from(low);
    }
    ours.sort_unstable();
    let median = if ours.len() * 2 > runs { quantile(&ours, 0.5).to_string() } else { "-".into() };
    println!("    {name:44} {:>16} {:>22} {median:>14}", percent(ours.len(), runs), percent(alone, runs));
}
