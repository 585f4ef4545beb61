//! Answers that took long are given again for a while: who asks every few seconds must not keep a processor busy.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Answers about fewer interactions are never kept, however slow the machine is.
const MANY: u64 = 20_000;
/// Answers that took longer are kept.
const LONG: Duration = Duration::from_millis(100);
/// For so many times as long as they took.
const TIMES: u32 = 9;

/// Answers by question.
#[derive(Debug)]
pub(super) struct Kept<Q, A>(HashMap<Q, (Instant, A)>);

impl<Q, A> Default for Kept<Q, A> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Q: Eq + Hash + Clone, A: Clone> Kept<Q, A> {
    /// The answer that is kept, or a new one. `count` tells how many interactions an answer is about.
    pub(super) fn answer<E>(
        &mut self,
        question: &Q,
        find: impl FnOnce() -> Result<A, E>,
        count: impl FnOnce(&A) -> u64,
    ) -> Result<A, E> {
        let started = Instant::now();
        self.0.retain(|_, (until, _)| *until > started);
        if let Some((_, known)) = self.0.get(question) {
            return Ok(known.clone());
        }
        let found = find()?;
        let ended = Instant::now();
        self.keep(question, &found, count(&found), ended - started, ended);
        Ok(found)
    }

    fn keep(&mut self, question: &Q, answer: &A, count: u64, took: Duration, now: Instant) {
        if count >= MANY && took > LONG {
            self.0.insert(question.clone(), (now + took * TIMES, answer.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_answers_about_much_are_kept_and_not_for_ever() {
        let mut kept = Kept::<u8, &str>::default();
        let new = |kept: &mut Kept<u8, &'static str>, question: u8| {
            kept.answer(&question, || Ok::<_, ()>("new"), |_| 0).unwrap()
        };
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        kept.keep(&1, &"old", MANY, hour, now);
        kept.keep(&2, &"old", MANY - 1, hour, now);
        kept.keep(&3, &"old", MANY, LONG, now);
        assert_eq!([1, 2, 3].map(|question| new(&mut kept, question)), ["old", "new", "new"]);
        kept.0.insert(1, (now, "old"));
        assert_eq!(new(&mut kept, 1), "new");
    }
}
