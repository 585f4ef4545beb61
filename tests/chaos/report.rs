//! What is told at the end: a table of counts, and after a failure everything that helps to find the cause.

use std::fmt::Write;
use std::time::Instant;

use crate::account::Account;
use crate::commits::Commits;
use crate::processes::Kind;
use crate::rule::Kill;
use crate::traffic::{End, Request};

/// The asked shares of the times of answered requests, in milliseconds.
fn quantiles<const N: usize>(requests: &[&Request], shares: [usize; N]) -> [u128; N] {
    let mut times: Vec<u128> = requests.iter().map(|request| (request.ended - request.started).as_millis()).collect();
    times.sort_unstable();
    shares.map(|share| times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(0))
}

/// What the run is told by.
pub struct Told<'a> {
    pub seed: u64,
    pub began: Instant,
    pub kills: &'a [Kill],
    pub commits: Commits,
    pub told: &'a [(Instant, String)],
    pub requests: &'a [Request],
}

impl Told<'_> {
    /// The closing table; `counts` are those that must be zero.
    pub fn table(&self, account: Option<&Account>, excused: usize, counts: &[(&str, usize)]) -> String {
        let mut text = format!("\nseed {}\n\n{:<20} {:>6}\n", self.seed, "killed", "times");
        for kind in Kind::ALL {
            let times = self.kills.iter().filter(|kill| kill.kind == kind).count();
            let _ = writeln!(text, "{:<20} {times:>6}", kind.name());
        }
        let Commits { flow, model, documents } = self.commits;
        let _ = writeln!(
            text,
            "\ncommitted: {flow} flow revisions, {model} model revisions, {documents} sets of documents"
        );
        let _ = writeln!(
            text,
            "\n{:<20} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "requests", "asked", "answered", "p50 ms", "p99 ms", "max ms"
        );
        let mut asks: Vec<_> = self.requests.iter().map(|request| request.ask).collect();
        asks.sort_unstable();
        asks.dedup();
        for ask in asks {
            let of: Vec<&Request> = self.requests.iter().filter(|request| request.ask == ask).collect();
            let answered: Vec<&Request> =
                of.iter().copied().filter(|r| matches!(r.end, End::Acknowledged(_))).collect();
            let [p50, p99, max] = quantiles(&answered, [50, 99, 100]);
            let _ =
                writeln!(text, "{:<20} {:>8} {:>8} {p50:>8} {p99:>8} {max:>8}", ask.name(), of.len(), answered.len());
        }
        let _ = writeln!(text, "\nin flight on a killed process, and failed: {excused}");
        if let Some(account) = account {
            let Account { acknowledged, opinions, questions, .. } = account;
            let _ = writeln!(
                text,
                "acknowledged: {acknowledged} answers, {opinions} opinions; questions of evaluations answered: {questions}"
            );
        }
        let _ = writeln!(text, "\n{:<44} {:>6}", "must be zero", "count");
        for (what, count) in counts {
            let _ = writeln!(text, "{what:<44} {count:>6}");
        }
        text
    }

    /// Kills, commits and these requests in the order of time.
    pub fn timeline(&self, requests: &[&Request]) -> String {
        let ms = |at: Instant| at.saturating_duration_since(self.began).as_millis();
        let mut lines: Vec<(Instant, String)> = Vec::new();
        for Kill { kind, pod, pid, counted, dead, connections } in self.kills {
            let open = if *kind == Kind::Gateway { format!(", {connections} connections") } else { String::new() };
            lines.push((*counted, format!("killed {} {pod} (pid {pid}{open}), dead at {}", kind.name(), ms(*dead))));
        }
        lines.extend(self.told.iter().map(|(at, what)| (*at, format!("committed {what}"))));
        for request in requests {
            let Request { ask, user, started, ended, end } = request;
            lines.push((*ended, format!("user {user}: {} asked at {}: {end:?}", ask.name(), ms(*started))));
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().fold(String::from("milliseconds from the first kill on\n"), |mut text, (at, line)| {
            let _ = writeln!(text, "{:>8}  {line}", ms(at));
            text
        })
    }
}
