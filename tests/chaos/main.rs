//! Chaos on real processes: a devcluster with our charts and a real model, steady traffic, new commits, and `kill -9` at random.
//!
//! `CHAOS_SECONDS` says for how long processes are killed (default 120), `CHAOS_SEED` in which order; the seed is printed. The
//! programs are named as for the end-to-end tests. `docs/operations/reliability.md` says what is counted, and by which rule.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod account;
#[path = "../e2e/cluster.rs"]
#[allow(dead_code)]
mod cluster;
mod commits;
#[path = "../e2e/gateway.rs"]
#[allow(dead_code)]
mod gateway;
mod killer;
mod objects;
mod processes;
mod report;
mod rule;
#[path = "../e2e/samples.rs"]
#[allow(dead_code)]
mod samples;
mod settle;
mod traffic;
#[path = "../e2e/wait.rs"]
#[allow(dead_code)]
mod wait;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

use account::Account;
use cluster::Cluster;
use commits::{Commits, Committer};
use killer::Killer;
use processes::Kind;
use report::Told;
use traffic::{Ask, Traffic};

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("only_what_was_in_flight_is_excused", || {
            rule::check().map_err(|error| format!("{error:#}").into())
        }),
        Trial::test("nothing_acknowledged_is_lost_when_processes_are_killed", || {
            chaos().map_err(|error| format!("{error:#}").into())
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    Ok(Some(text.parse().with_context(|| format!("{variable} is {text:?}; it must be a number"))?))
}

fn chaos() -> Result<()> {
    let seconds = number("CHAOS_SECONDS")?.unwrap_or(120);
    let seed = number("CHAOS_SEED")?.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    eprintln!("killing for {seconds} s with seed {seed}; CHAOS_SEED={seed} kills in the same order");
    let cluster = Cluster::start()?;
    let outcome = run(&cluster, Duration::from_secs(seconds), seed);
    if outcome.is_err() {
        eprintln!("{}", cluster.diagnosis());
    }
    let left = cluster.supervisor().map(|pid| processes::identities(&processes::descendants(pid)));
    cluster.remove();
    let alive = processes::alive(&left.unwrap_or_default());
    outcome.with_context(|| format!("seed {seed}"))?;
    ensure!(alive.is_empty(), "processes outlive the cluster: {alive:?}");
    Ok(())
}

async fn prepare(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    cluster.kubectl(&["create", "namespace", objects::NAMESPACE])?;
    let mut all = objects::volume()?;
    all.extend(objects::evaluation()?);
    all.push(objects::source(objects::NAMESPACE, 0));
    all.extend([objects::model(0)?, objects::index(objects::NAMESPACE)?, objects::gated(0)?, objects::grounded()?]);
    for object in &all {
        commits::apply(&client, object).await?;
    }
    settle::all(&client, Commits::default()).await
}

fn run(cluster: &Cluster, time: Duration, seed: u64) -> Result<()> {
    cluster.upgrade(&["gateway.replicas=2"])?;
    cluster.run(prepare(cluster)).context("before anything is killed")?;
    let supervisor = cluster.supervisor()?;
    let gateway = cluster.gateway()?;
    let key = gateway.key().to_owned();
    let client = cluster.client();
    // Two processors serve all of it: a few requests a second leave room for restarts.
    let pause = Duration::from_millis;
    let users = [
        (Ask::Flow, pause(250)),
        (Ask::Grounded, pause(300)),
        (Ask::FlowStream, pause(300)),
        (Ask::ModelStream, pause(400)),
        (Ask::Search, pause(200)),
    ];
    let began = Instant::now();
    let (kills, commits, told, requests, opinions, settled) = cluster.run(async {
        let traffic = Traffic::start(&gateway.url, &key, &users)?;
        let killer = Killer::start(client.clone(), supervisor, seed);
        let committer = Committer::start(client.clone(), (time / 9).min(Duration::from_secs(25)));
        // What is committed last has some kills before it, too.
        let quiet = time / 8;
        let mut told = Instant::now();
        while began.elapsed() < time - quiet {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                eprintln!("{} s: {} kills, {} requests", began.elapsed().as_secs(), killer.count(), traffic.count());
            }
        }
        let committed = committer.finish().await;
        tokio::time::sleep(quiet).await;
        let kills = killer.finish().await?;
        let (commits, told) = committed?;
        eprintln!("{} s: the last of {} processes is killed", began.elapsed().as_secs(), kills.len());
        // Users go on while everything comes back.
        let settled = settle::all(&client, commits).await;
        let (requests, opinions) = traffic.finish().await?;
        anyhow::Ok((kills, commits, told, requests, opinions, settled))
    })?;

    let summary = Told { seed, began, kills: &kills, commits, told: &told, requests: &requests };
    let (failed, excused) = rule::unexcused(&requests, &kills);
    let mut problems: Vec<String> = Vec::new();
    let stuck = settled.is_err();
    if let Err(error) = settled {
        problems.push(format!("{error:#}"));
    }
    let account = account::database(cluster.folder()).and_then(|file| account::compare(&file, &requests, &opinions));
    let chunks = if stuck { Err(uncompared()) } else { cluster.run(settle::chunks(cluster, commits)) };
    // What was replaced last is still being collected.
    let none_left = wait::eventually(Duration::from_secs(60), "no orphans", || async {
        let left = settle::orphans(cluster, supervisor)?;
        Ok(left.is_empty().then_some(()))
    });
    let orphans = if cluster.run(none_left).is_ok() { Vec::new() } else { settle::orphans(cluster, supervisor)? };
    let account: Option<Account> = account.map_err(|error| problems.push(format!("{error:#}"))).ok();
    let count = |lost: fn(&Account) -> &Vec<String>| account.as_ref().map_or(1, |account| lost(account).len());
    let counts = [
        ("failed requests beyond those in flight", failed.len()),
        ("acknowledged interactions lost", count(|account| &account.lost_interactions)),
        ("acknowledged feedback lost or doubled", count(|account| &account.lost_feedback)),
        ("indexes with chunks lost or doubled", usize::from(chunks.is_err())),
        ("evaluations with cases asked twice or lost", count(|account| &account.asked_twice)),
        ("rollouts stuck", usize::from(stuck)),
        ("orphans", orphans.len()),
    ];
    println!("{}", summary.table(account.as_ref(), excused, &counts));
    if let Err(error) = chunks {
        problems.push(format!("{error:#}"));
    }
    problems.extend(orphans);
    for lost in account.iter().flat_map(|a| [&a.lost_interactions, &a.lost_feedback, &a.asked_twice]).flatten().take(20)
    {
        problems.push(lost.clone());
    }
    for kind in Kind::ALL {
        if !kills.iter().any(|kill| kill.kind == kind) {
            problems.push(format!("no {} was killed: the test shows nothing of it", kind.name()));
        }
    }
    if counts.iter().any(|(_, count)| *count > 0) || !problems.is_empty() {
        println!("{}", summary.timeline(&failed));
        bail!("{}\n{}", json!(counts.to_vec()), problems.join("\n"));
    }
    Ok(())
}

/// The index is not compared when not even its last generation serves.
fn uncompared() -> anyhow::Error {
    anyhow::anyhow!("the index was not compared: something is stuck")
}
