//! The budget of retries: a share of the calls, above a small reserve. Pure; time comes in as an argument.

use std::time::Instant;

/// Calls earn this share of a retry each.
const EARNED: f64 = 0.2;
/// Most retries that can be saved up: a lost pod may break that many calls at once.
const RESERVE: f64 = 100.0;
/// Retries earned by time alone, a second.
const PER_SECOND: f64 = 1.0;

/// Saved-up retries of one model or index.
#[derive(Debug)]
pub struct Budget {
    saved: f64,
    since: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: RESERVE, since: None }
    }
}

impl Budget {
    /// Counts a call.
    pub fn earn(&mut self) {
        self.saved = (self.saved + EARNED).min(RESERVE);
    }

    /// Takes a retry; false when there is none.
    pub fn spend(&mut self, now: Instant) -> bool {
        let seconds = self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        self.since = Some(now);
        self.saved = (self.saved + seconds * PER_SECOND).min(RESERVE);
        let granted = self.saved >= 1.0;
        if granted {
            self.saved -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn retries_are_a_share_of_the_calls_once_the_reserve_is_gone() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let granted = (0..1_000).filter(|_| budget.spend(now)).count();
        assert_eq!(granted, 100);
        for _ in 0..100 {
            budget.earn();
        }
        let granted = (0..1_000).filter(|_| budget.spend(now)).count();
        assert!((19..=20).contains(&granted), "{granted}");
        assert!(!budget.spend(now));
        assert!(budget.spend(now + Duration::from_secs(2)));
    }
}
