//! A small cache with two ages: fresh entries spare a question, older ones serve only while the question cannot be
//! asked. Pure; time comes in as an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Most entries.
const MAX_ENTRIES: usize = 10_000;

/// The cache.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    stale: Duration,
    /// Since when, how long fresh, and what.
    entries: HashMap<K, (Instant, Duration, V)>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Entries are kept for emergencies so long.
    pub fn new(stale: Duration) -> Self {
        Self { stale, entries: HashMap::new() }
    }

    /// An entry that is fresh.
    pub fn fresh(&self, key: &K, now: Instant) -> Option<V> {
        let (since, fresh, value) = self.entries.get(key)?;
        (now.saturating_duration_since(*since) < *fresh).then(|| value.clone())
    }

    /// An entry that is not too old for an emergency.
    pub fn stale(&self, key: &K, now: Instant) -> Option<V> {
        let (since, _, value) = self.entries.get(key)?;
        (now.saturating_duration_since(*since) < self.stale).then(|| value.clone())
    }

    /// Keeps an answer that is fresh for a time.
    pub fn put(&mut self, key: K, value: V, fresh: Duration, now: Instant) {
        if self.entries.len() >= MAX_ENTRIES {
            let stale = self.stale;
            self.entries.retain(|_, (since, _, _)| now.saturating_duration_since(*since) < stale);
            if self.entries.len() >= MAX_ENTRIES {
                self.entries.clear();
            }
        }
        self.entries.insert(key, (now, fresh, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_age_and_stay_bounded() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut cache = Cache::new(3 * second);
        cache.put(0, 'a', second, now);
        assert_eq!(cache.fresh(&0, now), Some('a'));
        assert_eq!(cache.fresh(&0, now + second), None);
        assert_eq!(cache.stale(&0, now + 2 * second), Some('a'));
        assert_eq!(cache.stale(&0, now + 3 * second), None);
        for key in 0..3 * MAX_ENTRIES {
            cache.put(key, 'b', second, now);
        }
        assert!(cache.entries.len() <= MAX_ENTRIES);
    }
}
