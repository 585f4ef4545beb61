//! Routing tables of a ramp: between what serves and what shall serve.
//!
//! A table is a list of arms that take consecutive points (percents) in order, see [`crate::experiment::assignment`].
//! Two tables laid over each other cut the 100 points into segments in which each has one arm. Where both have the same
//! arm nothing moves. Where they differ the stable arm keeps the lower part and the candidate takes the upper part, so a
//! higher weight moves only units from stable to candidate, and nobody moves back.
//!
//! Points are handed to the segments by Webster's divisor method: the next point goes to the segment with the largest
//! `length / (2 · points + 1)`. The method is house-monotone: with more points to hand out no segment gets fewer.

use crate::api::rollout::ArmRevision;

/// Points of a table.
const POINTS: i32 = 100;

/// Points in a row that have one arm in each of two tables.
struct Segment<'a> {
    stable: Option<&'a ArmRevision>,
    candidate: Option<&'a ArmRevision>,
    length: i32,
}

impl Segment<'_> {
    fn differs(&self) -> bool {
        match (self.stable, self.candidate) {
            (Some(stable), Some(candidate)) => !same(stable, candidate),
            _ => false,
        }
    }
}

/// Whether two arms are the same revision of the same variant, whatever their weights.
pub fn same(a: &ArmRevision, b: &ArmRevision) -> bool {
    a.variant == b.variant && a.revision == b.revision
}

/// Whether two releases have the same arms, whatever their weights and order.
pub fn same_arms(a: &[ArmRevision], b: &[ArmRevision]) -> bool {
    a.len() == b.len() && news(a, b).next().is_none() && news(b, a).next().is_none()
}

/// Arms of `release` that `before` does not have: what a rollout brings.
pub fn news<'a>(release: &'a [ArmRevision], before: &'a [ArmRevision]) -> impl Iterator<Item = &'a ArmRevision> {
    release.iter().filter(|arm| !before.iter().any(|old| same(old, arm)))
}

/// The table at a weight, in percent of the units that the candidate changes something for. 0 is exactly `stable`,
/// 100 exactly `candidate`; between them at least one point and never all that changes, as far as there are two.
/// An arm may appear in two entries. Without a stable table nobody is served before weight 100.
pub fn mix(stable: &[ArmRevision], candidate: &[ArmRevision], weight: i32) -> Vec<ArmRevision> {
    if weight >= 100 {
        return candidate.to_vec();
    }
    if weight <= 0 || stable.is_empty() || candidate.is_empty() {
        return stable.to_vec();
    }
    let segments = overlay(stable, candidate);
    let changed: i32 = segments.iter().filter(|segment| segment.differs()).map(|segment| segment.length).sum();
    // Rounded down: a step never exposes more than it says, but the first one exposes somebody.
    let given = (changed * weight / 100).max(1).min(changed);
    let parts = apportion(&segments, given);
    let mut table: Vec<ArmRevision> = Vec::new();
    for (segment, part) in segments.iter().zip(parts) {
        let (kept, taken) = if segment.differs() { (segment.length - part, part) } else { (segment.length, 0) };
        push(&mut table, segment.stable.or(segment.candidate), kept);
        push(&mut table, segment.candidate, taken);
    }
    table
}

/// What a ramp compares: the stable arms that give points to a candidate's new arms, and those new arms.
pub fn compared(stable: &[ArmRevision], candidate: &[ArmRevision]) -> (Vec<ArmRevision>, Vec<ArmRevision>) {
    let treatment: Vec<ArmRevision> = news(candidate, stable).cloned().collect();
    let mut control: Vec<ArmRevision> = Vec::new();
    for segment in overlay(stable, candidate).iter().filter(|segment| segment.differs()) {
        let (Some(old), Some(new)) = (segment.stable, segment.candidate) else { continue };
        let is_new = treatment.iter().any(|arm| same(arm, new));
        if is_new && !control.iter().any(|arm| same(arm, old)) {
            control.push(old.clone());
        }
    }
    (control, treatment)
}

/// Appends points of an arm, to the last entry where that is the same arm.
fn push(table: &mut Vec<ArmRevision>, arm: Option<&ArmRevision>, points: i32) {
    let Some(arm) = arm else { return };
    if points == 0 {
        return;
    }
    match table.last_mut() {
        Some(last) if same(last, arm) => last.weight += points,
        _ => table.push(ArmRevision { weight: points, ..arm.clone() }),
    }
}

fn overlay<'a>(stable: &'a [ArmRevision], candidate: &'a [ArmRevision]) -> Vec<Segment<'a>> {
    let mut cuts: Vec<i32> = ends(stable).chain(ends(candidate)).map(|(end, _)| end).filter(|end| *end > 0).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut start = 0;
    cuts.into_iter()
        .map(|end| {
            let segment = Segment { stable: at(stable, start), candidate: at(candidate, start), length: end - start };
            start = end;
            segment
        })
        .collect()
}

/// Where each arm ends, at most at the table's end.
fn ends(table: &[ArmRevision]) -> impl Iterator<Item = (i32, &ArmRevision)> {
    table.iter().scan(0_i32, |end, arm| {
        *end = end.saturating_add(arm.weight.max(0)).min(POINTS);
        Some((*end, arm))
    })
}

/// The arm at a point.
fn at(table: &[ArmRevision], point: i32) -> Option<&ArmRevision> {
    ends(table).find(|(end, _)| *end > point).map(|(_, arm)| arm)
}

/// Hands points to the segments that differ. Never more than a segment has: the method gives a segment its whole
/// length exactly when every other has its own.
fn apportion(segments: &[Segment<'_>], points: i32) -> Vec<i32> {
    let mut parts = vec![0_i32; segments.len()];
    for _ in 0..points {
        let mut best: Option<(usize, i32, i32)> = None;
        for (place, (segment, part)) in segments.iter().zip(&parts).enumerate() {
            let (length, divisor) = (segment.length, 2 * part + 1);
            if !segment.differs() || *part >= length {
                continue;
            }
            // length / divisor compared without division; the first of equals wins.
            if best.is_none_or(|(_, best_length, best_divisor)| length * best_divisor > best_length * divisor) {
                best = Some((place, length, divisor));
            }
        }
        if let Some(part) = best.and_then(|(place, ..)| parts.get_mut(place)) {
            *part += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arm(variant: &str, revision: &str, weight: i32) -> ArmRevision {
        ArmRevision { variant: variant.into(), revision: revision.into(), weight }
    }

    fn text(table: &[ArmRevision]) -> String {
        let one = |arm: &ArmRevision| format!("{}{} {}", arm.variant, arm.revision, arm.weight);
        table.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The arm of each point.
    fn points(table: &[ArmRevision]) -> Vec<String> {
        let name = |arm: &ArmRevision| format!("{}{}", arm.variant, arm.revision);
        table.iter().flat_map(|arm| std::iter::repeat_n(name(arm), usize::try_from(arm.weight).unwrap())).collect()
    }

    #[test]
    fn one_variant_ramps_from_the_upper_end() {
        let (old, new) = ([arm("c", "1", 100)], [arm("c", "2", 100)]);
        assert_eq!(text(&mix(&old, &new, 0)), "c1 100");
        assert_eq!(text(&mix(&old, &new, 5)), "c1 95, c2 5");
        assert_eq!(text(&mix(&old, &new, 99)), "c1 1, c2 99");
        assert_eq!(text(&mix(&old, &new, 100)), "c2 100");
    }

    #[test]
    fn only_what_changes_ramps() {
        let old = [arm("a", "1", 70), arm("b", "1", 30)];
        let new = [arm("a", "1", 70), arm("b", "2", 30)];
        assert_eq!(text(&mix(&old, &new, 50)), "a1 70, b1 15, b2 15");
        assert_eq!(text(&mix(&old, &new, 1)), "a1 70, b1 29, b2 1");
        let both = [arm("a", "2", 70), arm("b", "2", 30)];
        assert_eq!(text(&mix(&old, &both, 50)), "a1 35, a2 35, b1 15, b2 15");
        let third = [arm("a", "1", 50), arm("b", "1", 30), arm("c", "1", 20)];
        assert_eq!(text(&mix(&old, &third, 50)), "a1 60, b1 30, c1 10");
    }

    #[test]
    fn what_gives_points_is_compared_with_what_takes_them() {
        let old = [arm("a", "1", 70), arm("b", "1", 30)];
        let new = [arm("a", "2", 70), arm("b", "1", 20), arm("c", "1", 10)];
        let (control, treatment) = compared(&old, &new);
        assert_eq!((text(&control), text(&treatment)), ("a1 70, b1 30".into(), "a2 70, c1 10".into()));
    }

    #[test]
    fn nobody_is_served_before_the_first_release_is_whole() {
        let new = [arm("a", "1", 100)];
        assert!(mix(&[], &new, 99).is_empty());
        assert_eq!(mix(&[], &new, 100), new);
    }

    fn release(tag: &'static str) -> impl Strategy<Value = Vec<ArmRevision>> {
        (prop::collection::vec(0_i32..=100, 0..4), prop::collection::vec(0_usize..3, 5)).prop_map(
            move |(mut cuts, kinds)| {
                cuts.sort_unstable();
                cuts.push(100);
                let mut start = 0;
                let arm_of = |(place, end): (usize, i32)| {
                    let weight = end - start;
                    start = end;
                    // Some arms are those of the other table, some are new.
                    let revision = if kinds[place] == 0 { "same" } else { tag };
                    arm(&format!("v{place}"), revision, weight)
                };
                cuts.into_iter().enumerate().map(arm_of).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn every_table_sums_to_100(old in release("old"), new in release("new"), weight in 0_i32..=100) {
            prop_assert_eq!(mix(&old, &new, weight).iter().map(|arm| arm.weight).sum::<i32>(), 100);
        }

        #[test]
        fn the_ends_are_the_releases(old in release("old"), new in release("new")) {
            prop_assert_eq!(&mix(&old, &new, 0), &old);
            prop_assert_eq!(&mix(&old, &new, 100), &new);
        }

        #[test]
        fn a_higher_weight_moves_only_from_stable_to_candidate(
            old in release("old"), new in release("new"), a in 0_i32..=100, b in 0_i32..=100,
        ) {
            let (low, high) = (a.min(b), a.max(b));
            let (before, after) = (points(&mix(&old, &new, low)), points(&mix(&old, &new, high)));
            let (stable, candidate) = (points(&old), points(&new));
            for point in 0..100 {
                prop_assert!(before[point] == stable[point] || before[point] == candidate[point]);
                if before[point] != after[point] {
                    prop_assert_eq!((&before[point], &after[point]), (&stable[point], &candidate[point]));
                }
            }
        }

        #[test]
        fn a_step_exposes_somebody_and_never_more_than_it_says(
            old in release("old"), new in release("new"), weight in 1_i32..=99,
        ) {
            let (stable, candidate) = (points(&old), points(&new));
            let table = points(&mix(&old, &new, weight));
            let changed = (0..100).filter(|point| stable[*point] != candidate[*point]).count();
            let exposed = (0..100).filter(|point| table[*point] != stable[*point]).count();
            prop_assert_eq!(exposed > 0, changed > 0);
            prop_assert!(exposed <= 1 || exposed * 100 <= changed * usize::try_from(weight).unwrap());
            prop_assert!(changed < 2 || exposed < changed);
        }

        #[test]
        fn each_segment_gets_its_share_within_a_point_and_a_half(
            lengths in prop::collection::vec(1_i32..=20, 1..6), weight in 1_i32..=99,
        ) {
            let rest = 100 - lengths.iter().sum::<i32>();
            let of = |tag: &str| {
                let arms = lengths.iter().enumerate().map(|(place, length)| arm(&format!("v{place}"), tag, *length));
                arms.chain([arm("rest", "same", rest)]).collect::<Vec<_>>()
            };
            let (old, new) = (of("old"), of("new"));
            let table = mix(&old, &new, weight);
            let changed: i32 = lengths.iter().sum();
            let given = (changed * weight / 100).max(1);
            for (place, length) in lengths.iter().enumerate() {
                let has: i32 = table.iter().filter(|arm| arm.variant == format!("v{place}") && arm.revision == "new").map(|arm| arm.weight).sum();
                let fair = f64::from(given * length) / f64::from(changed);
                prop_assert!((f64::from(has) - fair).abs() < 1.5, "{has} of {length}, fair is {fair}");
            }
        }
    }
}
