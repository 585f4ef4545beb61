//! Assignment of units to arms: pure, without shared state, the same on every replica and in every language.
//!
//! `bucket = (first 8 bytes of SHA-256(salt ‖ 0x00 ‖ unit), big-endian) mod 10000`. Arms take consecutive ranges of
//! buckets in the order in which they are listed, 100 buckets a percent. So when weight moves between two neighbours
//! only units of the giving arm move, and they move to the receiving one. `docs/reference/assignment.md` has a
//! reference in Python and the vectors that the tests check.

use sha2::{Digest, Sha256};

/// Number of buckets; a percent is a hundredth of them.
pub const BUCKETS: u16 = 10_000;
const PER_PERCENT: u32 = 100;

/// The bucket of a unit, from 0 to [`BUCKETS`] − 1.
pub fn bucket(salt: &str, unit: &str) -> u16 {
    let digest = Sha256::new().chain_update(salt.as_bytes()).chain_update([0]).chain_update(unit.as_bytes()).finalize();
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    // The remainder is below 10000, so it fits.
    u16::try_from(number % u64::from(BUCKETS)).unwrap_or(0)
}

/// The arm that holds a bucket, for weights in percent. `None` when the weights sum to less than 100 and the bucket
/// lies in the rest. Negative weights count as 0.
pub fn arm(bucket: u16, weights: impl IntoIterator<Item = i32>) -> Option<usize> {
    let mut end = 0_u32;
    weights.into_iter().position(|weight| {
        end = end.saturating_add(u32::try_from(weight).unwrap_or(0).saturating_mul(PER_PERCENT));
        u32::from(bucket) < end
    })
}

/// The arm of a unit: [`arm`] of its [`bucket`].
pub fn assign(salt: &str, unit: &str, weights: impl IntoIterator<Item = i32>) -> Option<usize> {
    arm(bucket(salt, unit), weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The vectors of `docs/reference/assignment.md`.
    const VECTORS: [(&str, &str, u16); 8] = [
        ("team-a/docs", "alice", 2012),
        ("team-a/docs", "bob", 113),
        ("team-a/docs", "carol", 4823),
        ("team-a/docs", "", 9656),
        ("team-b/docs", "alice", 367),
        ("second-split", "alice", 7735),
        ("", "alice", 3148),
        ("team-a/docs", "änne@example.com", 9076),
    ];

    #[test]
    fn fixed_vectors() {
        let found: Vec<_> = VECTORS.iter().map(|(salt, unit, _)| (*salt, *unit, bucket(salt, unit))).collect();
        assert_eq!(found, VECTORS);
    }

    #[test]
    fn the_page_lists_the_same_vectors() {
        let page = include_str!("../../docs/reference/assignment.md");
        for (salt, unit, bucket) in VECTORS {
            let row = format!("| `{salt}` | `{unit}` | {bucket} |");
            assert!(page.contains(&row), "docs/reference/assignment.md lacks {row}");
        }
    }

    #[test]
    fn salt_and_unit_do_not_run_together() {
        assert_ne!(bucket("ab", "c"), bucket("a", "bc"));
    }

    #[test]
    fn ranges_are_consecutive() {
        let arms = |weights: [i32; 3]| [0, 4_999, 5_000, 7_499, 7_500, 9_999].map(|bucket| arm(bucket, weights));
        assert_eq!(arms([50, 25, 25]), [Some(0), Some(0), Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(arms([0, 50, 25]), [Some(1), Some(1), Some(2), Some(2), None, None]);
        assert_eq!(arms([-5, 0, 100]), [Some(2); 6]);
    }

    #[test]
    fn units_spread_evenly() {
        let units = 100_000;
        let mut counts = [0_u32; 20];
        for unit in 0..units {
            counts[usize::from(bucket("team-a/docs", &format!("user-{unit}")) / 500)] += 1;
        }
        let expected = f64::from(units) / 20.0;
        let chi_square: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        // 99.9 % quantile of the chi-square distribution with 19 degrees of freedom.
        assert!(chi_square < 43.82, "chi-square {chi_square}, counts {counts:?}");
    }

    proptest! {
        #[test]
        fn weight_moves_only_units_of_the_giver(
            weights in prop::collection::vec(0_i32..=14, 2..8),
            giver in 0_usize..7,
            share in 0_i32..=14,
            to_the_right: bool,
        ) {
            let giver = giver % (weights.len() - 1) + usize::from(!to_the_right);
            let receiver = if to_the_right { giver + 1 } else { giver - 1 };
            let share = share.min(weights[giver]);
            let mut after = weights.clone();
            after[giver] -= share;
            after[receiver] += share;
            let mut moved = 0;
            for bucket in 0..BUCKETS {
                let (old, new) = (arm(bucket, weights.iter().copied()), arm(bucket, after.iter().copied()));
                if old != new {
                    moved += 1;
                    prop_assert_eq!((old, new), (Some(giver), Some(receiver)));
                }
            }
            prop_assert_eq!(moved, share * 100);
        }

        #[test]
        fn every_arm_has_exactly_its_share(weights in prop::collection::vec(0_i32..=25, 1..5)) {
            let mut counts = vec![0; weights.len()];
            for bucket in 0..BUCKETS {
                if let Some(arm) = arm(bucket, weights.iter().copied()) {
                    counts[arm] += 1;
                }
            }
            let expected: Vec<i32> = weights.iter().map(|weight| weight * 100).collect();
            prop_assert_eq!(counts, expected);
        }

        #[test]
        fn a_unit_always_gets_the_same_arm(salt: String, unit: String, weight in 0_i32..=100) {
            let weights = [weight, 100 - weight];
            prop_assert_eq!(assign(&salt, &unit, weights), assign(&salt, &unit, weights));
            prop_assert!(assign(&salt, &unit, weights).is_some());
        }
    }
}
