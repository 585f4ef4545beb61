//! Which failed requests are excused: those that were in flight on a process when it was killed, and no other.
//!
//! - A request whose connection broke is excused by the kill of a gateway if it began before that process was dead and ended
//!   after the kill began. One kill excuses at most as many requests as the killed gateway had connections, and those that
//!   began between that count and its death.
//! - A stream that had begun and ended with an error event is excused by the kill of an engine while it ran: nobody can take
//!   back what the client has seen.
//! - An answer with an error status is never excused. What is in flight on a killed engine or index server and not yet seen
//!   by the client is asked again by the gateway; kills of all other processes must not be noticed at all.

use std::time::Instant;

use crate::processes::Kind;
use crate::traffic::{End, Request};

/// A process that was killed.
#[derive(Clone, Debug)]
pub struct Kill {
    pub kind: Kind,
    pub pod: String,
    pub pid: i32,
    /// When its connections were counted.
    pub counted: Instant,
    pub dead: Instant,
    /// Connections of a gateway.
    pub connections: usize,
}

/// The requests that failed and nothing excuses, and how many are excused.
pub fn unexcused<'a>(requests: &'a [Request], kills: &[Kill]) -> (Vec<&'a Request>, usize) {
    let mut failed: Vec<&Request> =
        requests.iter().filter(|request| !matches!(request.end, End::Acknowledged(_))).collect();
    failed.sort_by_key(|request| request.ended);
    let mut left: Vec<usize> = kills
        .iter()
        .map(|kill| {
            let late =
                requests.iter().filter(|request| request.started >= kill.counted && request.started <= kill.dead);
            kill.connections + late.count()
        })
        .collect();
    let mut excused = 0;
    failed.retain(|request| {
        let at = kills.iter().enumerate().position(|(place, kill)| {
            let overlaps = request.started <= kill.dead && request.ended >= kill.counted;
            overlaps
                && match request.end {
                    End::Cut(_) => kill.kind == Kind::Gateway && left[place] > 0,
                    End::Broken(_) => kill.kind == Kind::Engine,
                    End::Acknowledged(_) | End::Refused(_) => false,
                }
        });
        match at {
            Some(place) => {
                left[place] = left[place].saturating_sub(1);
                excused += 1;
                false
            }
            None => true,
        }
    });
    (failed, excused)
}

/// What the rule excuses and what not.
pub fn check() -> anyhow::Result<()> {
    use std::time::Duration;

    use crate::traffic::Ask;

    let zero = Instant::now();
    let at = |ms: u64| zero + Duration::from_millis(ms);
    let cut = || End::Cut("reset".into());
    let request =
        |from: u64, to: u64, end: End| Request { ask: Ask::Flow, user: 0, started: at(from), ended: at(to), end };
    let kill = |kind: Kind, connections: usize| Kill {
        kind,
        pod: "p".into(),
        pid: 1,
        counted: at(100),
        dead: at(110),
        connections,
    };
    let cases: [(&str, Vec<Request>, Kind, usize, usize); 9] = [
        ("in flight on a killed gateway", vec![request(50, 112, cut())], Kind::Gateway, 1, 0),
        ("began between count and death", vec![request(105, 111, cut())], Kind::Gateway, 0, 0),
        ("began after the death", vec![request(111, 112, cut())], Kind::Gateway, 5, 1),
        ("ended before the kill", vec![request(50, 99, cut())], Kind::Gateway, 5, 1),
        ("more than were in flight", vec![request(50, 112, cut()), request(60, 112, cut())], Kind::Gateway, 1, 1),
        ("an error status", vec![request(50, 112, End::Refused("503".into()))], Kind::Gateway, 1, 1),
        ("a cut by another process", vec![request(50, 112, cut())], Kind::Engine, 1, 1),
        ("a begun stream of a killed engine", vec![request(50, 112, End::Broken("cut".into()))], Kind::Engine, 0, 0),
        (
            "a broken stream without a killed engine",
            vec![request(50, 112, End::Broken("cut".into()))],
            Kind::ApiServer,
            0,
            1,
        ),
    ];
    for (what, requests, kind, connections, expected) in cases {
        let found = unexcused(&requests, &[kill(kind, connections)]).0.len();
        anyhow::ensure!(found == expected, "{what}: {found} unexcused, not {expected}");
    }
    Ok(())
}
