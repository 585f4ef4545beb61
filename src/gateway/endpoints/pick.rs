//! Picking an endpoint: power of two choices on running calls. Pure; load, health and chance come in as arguments.

use std::time::Instant;

use super::health::Ejected;

/// What is known of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Calls that run on it.
    pub in_flight: usize,
    /// Whether it is left out.
    pub ejected: Option<Ejected>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Call the endpoint at this place.
    Take(usize),
    /// All are full: wait for a call to end.
    Full,
    /// Those that are not full cannot be reached: wait until this time at most.
    Until(Instant),
    /// There are no endpoints: wait for one.
    Empty,
}

/// Picks one of the candidates. Those left out for failing are used when nothing else is left; those that cannot be
/// reached are not. `limit` is the most calls at a time on one endpoint; `chance` gives a number below its argument.
pub fn pick(candidates: &[Candidate], limit: usize, mut chance: impl FnMut(usize) -> usize) -> Choice {
    let usable = |failing_too: bool| -> Vec<usize> {
        (0..candidates.len())
            .filter(|place| match candidates[*place].ejected {
                None => true,
                Some(Ejected::Failing(_)) => failing_too,
                Some(Ejected::Unreachable(_)) => false,
            })
            .collect()
    };
    let mut places = usable(false);
    if places.is_empty() {
        places = usable(true);
    }
    if places.is_empty() {
        let soonest = candidates.iter().filter_map(|candidate| match candidate.ejected {
            Some(Ejected::Unreachable(until) | Ejected::Failing(until)) => Some(until),
            None => None,
        });
        return soonest.min().map_or(Choice::Empty, Choice::Until);
    }
    places.retain(|place| candidates[*place].in_flight < limit);
    let count = places.len();
    if count == 0 {
        return Choice::Full;
    }
    let first = chance(count) % count;
    // The second is drawn from the others, so that two endpoints are always compared.
    let second = if count == 1 { first } else { (first + 1 + chance(count - 1) % (count - 1)) % count };
    let (first, second) = (places[first], places[second]);
    Choice::Take(if candidates[second].in_flight < candidates[first].in_flight { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn candidate(in_flight: usize) -> Candidate {
        Candidate { in_flight, ejected: None }
    }

    #[test]
    fn of_two_the_less_loaded_is_taken_whatever_chance_says() {
        for draw in 0..4 {
            assert_eq!(pick(&[candidate(3), candidate(1)], 8, |_| draw), Choice::Take(1));
        }
    }

    #[test]
    fn the_failing_are_a_last_resort_and_the_unreachable_none() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let failing = Candidate { in_flight: 0, ejected: Some(Ejected::Failing(now)) };
        let gone = Candidate { in_flight: 0, ejected: Some(Ejected::Unreachable(later)) };
        assert_eq!(pick(&[failing, candidate(5), gone], 8, |_| 0), Choice::Take(1));
        assert_eq!(pick(&[gone, failing], 8, |_| 0), Choice::Take(1));
        assert_eq!(pick(&[gone], 8, |_| 0), Choice::Until(later));
        assert_eq!(pick(&[], 8, |_| 0), Choice::Empty);
        assert_eq!(pick(&[candidate(8), candidate(9)], 8, |_| 0), Choice::Full);
    }

    proptest! {
        #[test]
        fn never_takes_one_that_is_full_or_unreachable(
            loads in prop::collection::vec((0_usize..6, 0_u8..3), 0..10),
            draws in prop::collection::vec(0_usize..100, 2),
        ) {
            let now = Instant::now();
            let candidates: Vec<_> = loads.iter().map(|(in_flight, health)| Candidate {
                in_flight: *in_flight,
                ejected: match health { 0 => None, 1 => Some(Ejected::Failing(now)), _ => Some(Ejected::Unreachable(now)) },
            }).collect();
            let mut draws = draws.into_iter();
            if let Choice::Take(place) = pick(&candidates, 4, |_| draws.next().unwrap()) {
                prop_assert!(candidates[place].in_flight < 4);
                prop_assert!(!matches!(candidates[place].ejected, Some(Ejected::Unreachable(_))));
            }
        }
    }
}
