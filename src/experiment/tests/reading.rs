//! Readings of measurements written down by hand.

use super::*;
use crate::api::rollout::ExperimentVerdict::{Better, Inconclusive, Invalid, NotWorse, Worse};
use crate::experiment::{Reading, read};

/// A ramp of one variant from `old` to `new`, in one stratum.
fn ramp(plan: &Plan, weight: i32, control: ArmData<'_>, treatment: ArmData<'_>) -> Reading {
    let measured = measured([
        arm(("s", "control", "old", 100 - weight), control.0, control.1),
        arm(("s", "control", "new", weight), treatment.0, treatment.1),
    ]);
    read(plan, &measured, "candidate", &release(&[("control", "old", 100)]), &release(&[("control", "new", 100)]))
}

type ArmData<'a> = (u64, &'a [(MetricKind, u64, f64, f64)]);

#[test]
fn a_candidate_that_fails_often_is_harm_long_before_min_units() {
    let plan = Plan::new(None, true, 1).unwrap();
    let errors = |units, hits| [share(MetricKind::ErrorRate, units, hits)];
    let reading = ramp(&plan, 5, (1140, &errors(1140, 5)), (60, &errors(60, 15)));
    let harm = reading.harm.expect("harm");
    assert_eq!((harm.metric.as_str(), harm.goal, reading.goal), ("ErrorRate", false, None));
    assert_eq!(reading.comparisons[0].verdict, Worse);
    assert!(
        harm.message.starts_with("candidate: 24.6 points more failed requests than what serves now (between "),
        "{}",
        harm.message
    );
    assert!(harm.message.ends_with("; worse, by more than the 5.0 points tolerated"), "{}", harm.message);
    let reading = ramp(&plan, 5, (1140, &errors(1140, 5)), (60, &errors(60, 1)));
    assert_eq!((reading.harm, reading.comparisons[0].verdict), (None, Inconclusive));
}

#[test]
fn a_goal_gets_each_verdict() {
    let plan = plan(Some((MetricKind::Thumbs, 0.05)), &[], 0.05, 100);
    let verdict = |control, treatment| {
        let (control, treatment) =
            ([share(MetricKind::Thumbs, 2000, control)], [share(MetricKind::Thumbs, 2000, treatment)]);
        ramp(&plan, 50, (2000, &control), (2000, &treatment)).goal.unwrap()
    };
    let found = [1200, 1210, 1190, 1000, 1100].map(|treatment| verdict(1200, treatment));
    assert_eq!(found, [NotWorse, NotWorse, Inconclusive, Worse, Inconclusive]);
    assert_eq!(verdict(1200, 1320), Better);
}

#[test]
fn a_broken_split_voids_every_verdict_but_not_the_rollback() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[(MetricKind::ErrorRate, 0.05)], 0.05, 100);
    let control = [share(MetricKind::Thumbs, 5000, 3000), share(MetricKind::ErrorRate, 5000, 10)];
    let treatment = [share(MetricKind::Thumbs, 4000, 3000), share(MetricKind::ErrorRate, 4000, 1000)];
    let reading = ramp(&plan, 50, (5000, &control), (4000, &treatment));
    assert!(reading.ratio.broken);
    assert_eq!(reading.comparisons.iter().map(|c| c.verdict).collect::<Vec<_>>(), [Invalid, Invalid]);
    assert!(reading.comparisons[0].message.starts_with("the split is not what was asked for"));
    assert_eq!(reading.harm.map(|harm| harm.metric).as_deref(), Some("ErrorRate"));
}
