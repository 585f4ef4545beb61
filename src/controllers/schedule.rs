//! Which object's turn it is, pure: the caller brings the time.
//!
//! An object is never reconciled twice at the same time; what comes while it runs makes it run once more. Of several
//! wishes for one object the earliest counts, so a burst of child events makes one reconcile.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::kinds::Key;

#[derive(Default)]
struct Turn {
    at: Option<(Instant, u64)>,
    running: bool,
    again: Option<Instant>,
}

/// The turns of one controller's objects.
#[derive(Default)]
pub struct Schedule {
    due: BTreeMap<(Instant, u64), Key>,
    turns: HashMap<Key, Turn>,
    sequence: u64,
}

impl Schedule {
    /// Wishes a reconcile at a time; an earlier wish for the same object stays.
    pub fn wish(&mut self, key: &Key, at: Instant) {
        let turn = self.turns.entry(key.clone()).or_default();
        if turn.running {
            turn.again = Some(turn.again.map_or(at, |earlier| earlier.min(at)));
            return;
        }
        if turn.at.is_some_and(|(earlier, _)| earlier <= at) {
            return;
        }
        if let Some(later) = turn.at.take() {
            self.due.remove(&later);
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        turn.at = Some(slot);
        self.due.insert(slot, key.clone());
    }

    /// Takes the object whose turn it is by `now`; it runs until [`Self::done`].
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        let slot = *self.due.keys().next().filter(|(at, _)| *at <= now)?;
        let key = self.due.remove(&slot)?;
        let turn = self.turns.entry(key.clone()).or_default();
        turn.at = None;
        turn.running = true;
        Some(key)
    }

    /// Ends a run. `next` is when to look again without a reason; `None` forgets the object.
    pub fn done(&mut self, key: &Key, next: Option<Instant>) {
        let Some(turn) = self.turns.get_mut(key) else { return };
        turn.running = false;
        let next = match (turn.again.take(), next) {
            (Some(wished), Some(next)) => Some(wished.min(next)),
            (wished, next) => wished.or(next),
        };
        match next {
            Some(at) => self.wish(key, at),
            None => drop(self.turns.remove(key)),
        }
    }

    /// When the next turn is.
    pub fn next(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Number of objects with a turn to come.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether no object has a turn to come.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_wish_counts_and_nothing_runs_twice_at_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let (a, b) = (Key::new("n", "a"), Key::new("n", "b"));
        let mut schedule = Schedule::default();
        schedule.wish(&a, at(500));
        schedule.wish(&a, at(100));
        schedule.wish(&a, at(300));
        schedule.wish(&b, at(200));
        assert_eq!(schedule.next(), Some(at(100)));
        assert_eq!(schedule.take(at(50)), None);
        assert_eq!(schedule.take(at(250)), Some(a.clone()));
        schedule.wish(&a, at(260));
        assert_eq!(schedule.take(at(1000)), Some(b.clone()));
        assert_eq!(schedule.take(at(1000)), None, "a still runs");
        schedule.done(&a, Some(at(9000)));
        schedule.done(&b, None);
        assert_eq!(schedule.take(at(1000)), Some(a.clone()));
        schedule.done(&a, Some(at(9000)));
        assert_eq!(schedule.len(), 1);
    }
}
