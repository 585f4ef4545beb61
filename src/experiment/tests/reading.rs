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
    assert!(harm.message.ends_with("; worse, by more than the 2.0 points tolerated"), "{}", harm.message);
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

#[test]
fn min_units_bind_everything_but_harm() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[(MetricKind::Latency, 0.1)], 0.05, 100);
    let arms = |units: u64| {
        let slow =
            [share(MetricKind::Thumbs, units, units / 10), (MetricKind::Latency, units, 3.0, units as f64 * 0.01)];
        let fast = [share(MetricKind::Thumbs, units, units), (MetricKind::Latency, units, 1.0, units as f64 * 0.01)];
        ramp(&plan, 50, (units, &fast), (units, &slow))
    };
    let early = arms(40);
    assert_eq!(
        (early.goal, early.harm),
        (Some(Inconclusive), None),
        "the normal approximation may not speak at 40 units"
    );
    assert!(
        early.comparisons[0]
            .message
            .contains("too early: 40 units with candidate and 40 units with what serves now, 100 each")
    );
    let later = arms(60);
    assert_eq!(later.goal, Some(Inconclusive));
    assert_eq!(later.harm.map(|harm| harm.metric).as_deref(), Some("Latency"));
    let full = arms(100);
    assert_eq!(full.goal, Some(Worse));
}

#[test]
fn a_goal_that_gets_worse_is_harm() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[], 0.05, 100);
    let reading =
        ramp(&plan, 50, (900, &[share(MetricKind::Thumbs, 900, 540)]), (900, &[share(MetricKind::Thumbs, 900, 400)]));
    let harm = reading.harm.expect("harm");
    assert_eq!((harm.metric.as_str(), harm.goal), ("Thumbs", true));
    assert!(
        harm.message.starts_with("candidate: 15.6 points fewer thumbs up than what serves now (between 8."),
        "{}",
        harm.message
    );
    assert!(harm.message.ends_with(" fewer); worse"), "{}", harm.message);
}

#[test]
fn steps_are_compared_one_by_one() {
    // Within each step there is no difference; thrown together, the candidate would look far better (Simpson's paradox).
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[], 0.05, 100);
    let thumbs = |units, hits| [share(MetricKind::Thumbs, units, hits)];
    let measured = measured([
        arm(("a", "control", "old", 90), 9000, &thumbs(9000, 4500)),
        arm(("a", "control", "new", 10), 1000, &thumbs(1000, 500)),
        arm(("b", "control", "old", 10), 1000, &thumbs(1000, 800)),
        arm(("b", "control", "new", 90), 9000, &thumbs(9000, 7200)),
    ]);
    let reading =
        read(&plan, &measured, "candidate", &release(&[("control", "old", 100)]), &release(&[("control", "new", 100)]));
    assert_eq!(reading.goal, Some(Inconclusive));
    let comparison = &reading.comparisons[0];
    assert_eq!(comparison.difference.as_ref().map(|d| d.0.as_str()), Some("0.0000"));
    assert!(
        comparison
            .message
            .starts_with("candidate: the same share of thumbs up as what serves now (between 3.3 fewer and 3.3 more)"),
        "{}",
        comparison.message
    );
    assert_eq!((reading.units, reading.treatment_units, reading.control_units), (20_000, 10_000, 10_000));
}

#[test]
fn variants_meet_themselves_and_new_ones_meet_what_they_replace() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[], 0.05, 10);
    let thumbs = |units, hits| [share(MetricKind::Thumbs, units, hits)];
    let measured = measured([
        arm(("s", "control", "old", 25), 250, &thumbs(250, 100)),
        arm(("s", "concise", "old", 25), 250, &thumbs(250, 200)),
        arm(("s", "control", "new", 25), 250, &thumbs(250, 100)),
        arm(("s", "concise", "new", 25), 250, &thumbs(250, 200)),
    ]);
    let sets = |treatment: &[(&str, &str, i32)]| {
        let control = release(&[("control", "old", 50), ("concise", "old", 50)]);
        read(&plan, &measured, "candidate", &control, &release(treatment))
    };
    let both = sets(&[("control", "new", 50), ("concise", "new", 50)]);
    assert_eq!(both.comparisons[0].difference.as_ref().map(|d| d.0.as_str()), Some("0.0000"));
    // An arm that both have is no treatment.
    let one = sets(&[("control", "old", 50), ("concise", "new", 50)]);
    assert_eq!((one.treatment_units, one.control_units), (250, 250));
    assert_eq!(one.comparisons[0].difference.as_ref().map(|d| d.0.as_str()), Some("0.0000"));
}

#[test]
fn a_variant_beside_the_first_is_called_by_name() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[], 0.05, 100);
    let thumbs = |units, hits| [share(MetricKind::Thumbs, units, hits)];
    let mut arms = vec![
        arm(("s", "control", "r1", 50), 1000, &thumbs(1000, 600)),
        arm(("s", "concise", "r2", 50), 1000, &thumbs(1000, 450)),
    ];
    let reading = |arms: &[ArmMeasurements]| {
        let measured = measured(arms.iter().cloned());
        read(&plan, &measured, "concise", &release(&[("control", "r1", 50)]), &release(&[("concise", "r2", 50)]))
    };
    let found = reading(&arms);
    assert_eq!(found.goal, Some(Worse));
    assert!(found.comparisons[0].message.starts_with("concise: 15.0 points fewer thumbs up than control (between "));
    // Shadow copies are not users.
    arms[1].shadow = true;
    let found = reading(&arms);
    assert_eq!((found.goal, found.treatment_units), (Some(Inconclusive), 0));
    assert_eq!(found.comparisons[0].message, "no thumbs to compare yet: 0 units of concise, 0 units of control");
}

#[test]
fn an_arm_that_leaves_no_record_breaks_the_split() {
    let plan = plan(Some((MetricKind::Thumbs, 0.0)), &[], 0.05, 100);
    let thumbs = [share(MetricKind::Thumbs, 900, 500)];
    let measured =
        measured([arm(("s", "control", "r1", 45), 900, &thumbs), arm(("s", "concise", "r2", 45), 900, &thumbs)]);
    let reading =
        read(&plan, &measured, "concise", &release(&[("control", "r1", 45)]), &release(&[("concise", "r2", 45)]));
    assert_eq!(reading.goal, Some(Invalid));
    assert_eq!(
        reading.ratio.message,
        "the split is not what was asked for: others got 0.0 % of 1800 units instead of 10 %"
    );
}

#[test]
fn the_status_joins_the_readings_of_all_variants() {
    let plan = Plan { alpha: 0.01, ..plan(Some((MetricKind::Thumbs, 0.0)), &[(MetricKind::Cost, 0.0)], 0.05, 100) };
    let metrics = [share(MetricKind::Thumbs, 500, 300), (MetricKind::Cost, 500, 0.000_123, 1e-8)];
    let measured = measured(
        ["control", "b", "c"]
            .map(|variant| arm(("s", variant, "r", if variant == "c" { 34 } else { 33 }), 500, &metrics)),
    );
    let control = release(&[("control", "r", 33)]);
    let readings = ["b", "c"].map(|variant| read(&plan, &measured, variant, &control, &release(&[(variant, "r", 33)])));
    let status = crate::experiment::status(&readings, Some(1), None);
    assert_eq!((status.units, status.step), (1500, Some(1)));
    let names: Vec<_> = status.metrics.iter().map(|m| (m.arm.as_str(), m.name.as_str(), m.goal)).collect();
    assert_eq!(names, [("b", "Thumbs", true), ("b", "Cost", false), ("c", "Thumbs", true), ("c", "Cost", false)]);
    assert_eq!(status.metrics[1].control.as_ref().map(|d| d.0.as_str()), Some("0.0001230"));
    assert!(status.srm_p_value.is_some());
}
