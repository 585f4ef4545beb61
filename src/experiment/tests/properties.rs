//! What holds for all measurements.

use proptest::prelude::*;

use super::*;
use crate::experiment::betting::Harm;
use crate::experiment::cells::{Cell, Sample};
use crate::experiment::read;
use crate::experiment::sequence::estimate;

fn sample() -> impl Strategy<Value = Sample> {
    (1_u32..5_000, 0.0..=1.0_f64).prop_map(|(units, mean)| {
        let units = f64::from(units);
        Sample { units, mean, m2: units * mean * (1.0 - mean) }
    })
}

fn cells() -> impl Strategy<Value = Vec<Cell>> {
    let cell =
        (0.01..0.99_f64, sample(), sample()).prop_map(|(share, treatment, control)| Cell { share, treatment, control });
    prop::collection::vec(cell, 1..4)
}

/// Anything that a gateway could say, sense or nonsense.
fn anything() -> impl Strategy<Value = Measurements> {
    let number = prop_oneof![any::<f64>(), 0.0..=1.0_f64, Just(f64::NAN), Just(0.0)];
    let kind = prop_oneof![
        Just(MetricKind::Thumbs),
        Just(MetricKind::ErrorRate),
        Just(MetricKind::Latency),
        Just(MetricKind::FeedbackScore)
    ];
    let count = prop_oneof![0_u64..2_000, Just(u64::MAX)];
    let metric = (kind, count.clone(), number.clone(), number);
    let one = ("[ab]", "[cd]", "[rs]", -5_i32..120, any::<bool>(), count, prop::collection::vec(metric, 0..4))
        .prop_map(|(stratum, variant, revision, weight, shadow, units, metrics)| ArmMeasurements {
            shadow,
            ..arm((&stratum, &variant, &revision, weight), units, &metrics)
        });
    prop::collection::vec(one, 0..7).prop_map(measured)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changing_sides_changes_the_sign_only(cells in cells()) {
        let swapped: Vec<_> = cells
            .iter()
            .map(|cell| Cell { share: 1.0 - cell.share, treatment: cell.control, control: cell.treatment })
            .collect();
        let (there, back) = (estimate(&cells, Some((0.0, 1.0))).unwrap(), estimate(&swapped, Some((0.0, 1.0))).unwrap());
        prop_assert!((there.difference + back.difference).abs() < 1e-9);
        prop_assert!((there.variance - back.variance).abs() <= 1e-9 * there.variance);
    }

    #[test]
    fn more_of_the_same_is_surer(cells in cells(), times in 2_u32..20) {
        let more: Vec<_> = cells
            .iter()
            .map(|cell| {
                let grow = |s: Sample| Sample { units: s.units * f64::from(times), m2: s.m2 * f64::from(times), ..s };
                Cell { share: cell.share, treatment: grow(cell.treatment), control: grow(cell.control) }
            })
            .collect();
        let (few, many) = (estimate(&cells, Some((0.0, 1.0))).unwrap(), estimate(&more, Some((0.0, 1.0))).unwrap());
        prop_assert!(many.two_sided(0.05, 500.0) < few.two_sided(0.05, 500.0));
        prop_assert!(many.two_sided(0.01, 500.0) > many.two_sided(0.05, 500.0));
        prop_assert!(many.one_sided(0.05, 500.0) < many.two_sided(0.05, 500.0));
    }

    #[test]
    fn the_unit_of_a_metric_does_not_matter(cells in cells(), slope in 0.001..1000.0_f64) {
        let scaled: Vec<_> = cells
            .iter()
            .map(|cell| Cell {
                share: cell.share,
                treatment: cell.treatment.mapped(slope, 3.0),
                control: cell.control.mapped(slope, 3.0),
            })
            .collect();
        let (plain, scaled) = (estimate(&cells, None).unwrap(), estimate(&scaled, None).unwrap());
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (a.abs() + b.abs() + 1e-9);
        prop_assert!(close(plain.difference * slope, scaled.difference));
        prop_assert!(close(plain.two_sided(0.05, 500.0) * slope, scaled.two_sided(0.05, 500.0)));
    }

    #[test]
    fn harm_is_monotone(cells in cells(), worse in 0.0..=1.0_f64, small in -1.0..1.0_f64, step in 0.0..1.0_f64) {
        let harm = Harm::new(&cells, 0.05);
        let large = (small + step).min(1.0);
        prop_assert!(harm.evidence(large) <= harm.evidence(small) + 1e-6, "a larger allowance is not easier to exceed");
        let bound = harm.bound();
        prop_assert!((-1.0..1.0).contains(&bound));
        let mut sicker = cells.clone();
        for cell in &mut sicker {
            cell.treatment.mean += (1.0 - cell.treatment.mean) * worse;
        }
        prop_assert!(Harm::new(&sicker, 0.05).bound() >= bound - 1e-6, "more failures, no smaller bound");
        prop_assert!(Harm::new(&cells, 0.01).bound() <= bound + 1e-6, "surer, no larger bound");
    }

    #[test]
    fn nothing_that_a_gateway_says_breaks_a_reading(measured in anything()) {
        let plan = plan(
            Some((MetricKind::Thumbs, 0.0)),
            &[(MetricKind::ErrorRate, 0.05), (MetricKind::Latency, 0.0), (MetricKind::FeedbackScore, 0.1)],
            0.05,
            100,
        );
        let control = release(&[("c", "r", 50), ("d", "r", 50)]);
        let reading = read(&plan, &measured, "candidate", &control, &release(&[("c", "s", 50), ("d", "s", 50)]));
        prop_assert_eq!(reading.comparisons.len(), 4);
        for found in &reading.comparisons {
            prop_assert!(!found.message.is_empty());
            let value = |number: &Option<crate::api::quantity::Decimal>| number.as_ref().map(|n| n.value().unwrap());
            if let (Some(lower), Some(difference), Some(upper)) = (value(&found.lower), value(&found.difference), value(&found.upper)) {
                prop_assert!(lower <= difference + 1e-3 && difference <= upper + 1e-3, "{found:?}");
            }
        }
    }
}
