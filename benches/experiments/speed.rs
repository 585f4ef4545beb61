//! (e) Time to assign a unit.

use std::hint::black_box;
use std::time::Instant;

use llmops::experiment::assignment;

const UNITS: usize = 100_000;
const ROUNDS: usize = 11;

pub fn table() {
    println!("(e) Assigning a unit to one of two arms, {ROUNDS} rounds of {UNITS} units (at most 200 ns)");
    for (name, pad) in [("names such as user-12345", 0), ("UUIDs (36 bytes)", 26), ("80 bytes", 70)] {
        let units: Vec<String> = (0..UNITS).map(|unit| format!("user-{unit:05}{}", "x".repeat(pad))).collect();
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                for unit in &units {
                    black_box(assignment::assign(black_box("team-a/docs"), black_box(unit), black_box([95, 5])));
                }
                start.elapsed().as_nanos() as f64 / UNITS as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!("    {name:44} median {:>4.0} ns, best {:>4.0} ns", rounds[ROUNDS / 2], rounds[0]);
    }
}
