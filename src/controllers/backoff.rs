//! Delays between attempts, pure: the caller brings the random number.

use std::time::Duration;

/// Shortest delay after a failure.
const BASE: Duration = Duration::from_millis(250);
/// Longest delay after a failure.
const MAX: Duration = Duration::from_secs(300);

/// Delay before the next attempt after `failures` (at least 1) failures in a row: doubled each time up to five
/// minutes, of which a random part (`random` in 0..1) of up to one half is taken off, so that what failed together
/// does not come back together.
pub fn after_failures(failures: u32, random: f64) -> Duration {
    let doubled = BASE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(20)));
    doubled.min(MAX).mul_f64(1.0 - 0.5 * random.clamp(0.0, 1.0))
}

/// Time until an object is looked at again although nothing changed: 5 to 10 minutes.
pub fn resync(random: f64) -> Duration {
    Duration::from_secs(300).mul_f64(1.0 + random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_grow_and_stay_within_bounds(failures in 1u32..10_000, random in 0.0f64..1.0) {
            let delay = after_failures(failures, random);
            prop_assert!(delay >= BASE / 2 && delay <= MAX);
            prop_assert!(after_failures(failures + 1, random) >= delay);
            let quiet = resync(random);
            prop_assert!(quiet >= Duration::from_secs(300) && quiet <= Duration::from_secs(600));
        }
    }
}
