//! Random faults, which proptest makes smaller when a case fails.

use proptest::prelude::*;

use super::{Badness, Fault, OnWrite, Outage, Sudden};

/// Up to four faults of a story with so many steps whose operator sends about so many requests to write.
pub fn faults(steps: usize, writes: usize) -> impl Strategy<Value = Vec<Fault>> {
    prop::collection::vec(prop_oneof![2 => at_write(writes), 3 => at_moment(steps)], 1..=4)
}

fn at_write(writes: usize) -> impl Strategy<Value = Fault> {
    let what = prop_oneof![
        4 => Just(OnWrite::Crash),
        2 => Just(OnWrite::Lost),
        1 => prop::sample::select(vec![409, 429, 500, 503]).prop_map(OnWrite::Refuse),
        1 => Just(OnWrite::Hang),
        1 => (100..60_000u64).prop_map(OnWrite::Late),
    ];
    (1..=writes.max(1), what).prop_map(|(at, what)| Fault::Write(at, what))
}

fn at_moment(steps: usize) -> impl Strategy<Value = Fault> {
    // Most of what matters happens soon after a step; some of it, such as rollouts, later.
    let ms = prop_oneof![3 => 0..3_000u64, 1 => 3_000..120_000u64];
    (0..=steps, ms, sudden())
        // A kind that comes later was not there at the start.
        .prop_map(|(step, ms, what)| match what {
            Sudden::Absent(..) => Fault::Moment(0, 0, what),
            _ => Fault::Moment(step, ms, what),
        })
}

fn sudden() -> impl Strategy<Value = Sudden> {
    let outage = prop_oneof![
        prop::sample::select(vec![429, 500, 503]).prop_map(Outage::Code),
        Just(Outage::Refused),
        Just(Outage::Silent),
    ];
    let bad = prop::sample::select(vec![Badness::Undecodable, Badness::Refused, Badness::Hanging]);
    let pick = any::<u8>();
    prop_oneof![
        2 => Just(Sudden::Kill),
        2 => (1_000..60_000u64).prop_map(Sudden::Stale),
        2 => (200..30_000u64).prop_map(Sudden::Lag),
        1 => Just(Sudden::Drop),
        1 => Just(Sudden::Repeat),
        1 => Just(Sudden::Compact),
        2 => (outage, 500..90_000u64).prop_map(|(outage, ms)| Sudden::Outage(outage, ms)),
        1 => (1_000..90_000u64).prop_map(Sudden::Gateway),
        2 => (1_000..60_000u64).prop_map(Sudden::CutOff),
        1 => (-150..150i64, 1_000..90_000u64).prop_map(|(seconds, ms)| Sudden::Clock(seconds, ms)),
        1 => (pick, 1_000..60_000u64).prop_map(|(pick, ms)| Sudden::Absent(pick % 4, ms)),
        3 => pick.prop_map(Sudden::Edit),
        3 => pick.prop_map(Sudden::Delete),
        2 => pick.prop_map(Sudden::Recreate),
        2 => (pick, 100..60_000u64).prop_map(|(pick, ms)| Sudden::Vanish(pick, ms)),
        1 => (pick, 100..60_000u64).prop_map(|(pick, ms)| Sudden::Waver(pick, ms)),
        1 => bad.prop_map(Sudden::Neighbour),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Case;

    proptest! {
        #[test]
        fn a_case_is_read_as_it_is_written(seed: u64, replicas in 1..=2u8, faults in faults(5, 40)) {
            let case = Case { story: "model.life".into(), seed, replicas, faults };
            prop_assert_eq!(case.to_string().parse::<Case>(), Ok(case));
        }
    }
}
