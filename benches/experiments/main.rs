//! What the statistics of splits are worth: wrong verdicts when there is no difference, units until a real one is found, users who meet a
//! candidate that fails, and the time to assign a unit. `make bench-experiments` prints the tables of `docs/concepts/experiments.md`.
//!
//! Everything is seeded: the same runs give the same numbers. An argument sets the number of runs (2,000).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod exposure;
mod false_verdicts;
mod power;
mod ratio;
mod rivals;
mod speed;
mod stream;

fn main() {
    let runs = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2_000);
    println!("{runs} runs each, alpha 0.05, seeded\n");
    false_verdicts::table(runs);
    power::table(runs);
    exposure::table(runs);
    ratio::table(runs);
    speed::table();
}

/// A share of runs in percent.
fn percent(count: usize, runs: usize) -> String {
    format!("{:.2} %", 100.0 * count as f64 / runs as f64)
}

/// The smallest value that at least the share `q` of the sorted values does not exceed.
fn quantile(sorted: &[u64], q: f64) -> u64 {
    sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1]
}
