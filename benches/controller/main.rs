//! What the operator costs: N ModelDeployments on a real API server with pods that run nothing, beside the same
//! Deployments and Services created without an operator, in one run.
//!
//! `make bench-controller` runs N = 200 and 1,000; the arguments are other Ns. Printed for each N: seconds until all
//! are ready, requests by verb and persisted writes (from the audit log), CPU and peak memory of the controller,
//! requests at rest and after a restart, seconds until 50 deleted children are back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../tests/e2e/audit.rs"]
#[allow(dead_code)]
mod audit;
mod cluster;
mod load;
mod process;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use cluster::FakeCluster;
use process::Controller;

/// How long "at rest" is looked at.
const REST: Duration = Duration::from_secs(30);
/// Children deleted to see them healed.
const HEALED: usize = 50;

struct Figures {
    count: usize,
    plain_seconds: f64,
    operator_seconds: f64,
    requests: BTreeMap<String, usize>,
    writes: usize,
    cpu_ms: f64,
    peak_mib: f64,
    rest: BTreeMap<String, usize>,
    restart: BTreeMap<String, usize>,
    heal_seconds: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut counts: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![200, 1000];
    }
    for count in counts {
        print(&measure(count).await?);
    }
    Ok(())
}

async fn measure(count: usize) -> Result<Figures> {
    eprintln!("N = {count}: starting a cluster whose pods run nothing");
    let cluster = FakeCluster::start()?;
    let client = cluster.client().await?;

    cluster.install()?;
    let kubeconfig = cluster.controller_kubeconfig()?;
    let mut controller = Controller::start(&kubeconfig).await?;
    let children = load::children(&client).await?;
    controller.stop().await?;

    eprintln!("N = {count}: the same Deployments and Services without an operator");
    let start = Instant::now();
    load::plain(&client, &children, count).await?;
    let plain_seconds = start.elapsed().as_secs_f64();
    load::remove_plain(&client).await?;

    eprintln!("N = {count}: ModelDeployments");
    controller = Controller::start(&kubeconfig).await?;
    let mark = audit::mark(&cluster.audit_log())?;
    let start = Instant::now();
    load::models(&client, count).await?;
    let operator_seconds = start.elapsed().as_secs_f64();
    let made = cluster.ours(mark)?;
    let (cpu_ms, peak_mib) = (controller.cpu_ms()?, controller.peak_mib()?);

    eprintln!("N = {count}: at rest for {REST:?}");
    let mark = audit::mark(&cluster.audit_log())?;
    tokio::time::sleep(REST).await;
    let rest = by_verb(&cluster.ours(mark)?);

    eprintln!("N = {count}: after a restart");
    controller.stop().await?;
    let mark = audit::mark(&cluster.audit_log())?;
    controller = Controller::start(&kubeconfig).await?;
    controller.until_reconciled(count).await?;
    let restart = by_verb(&cluster.ours(mark)?);

    eprintln!("N = {count}: deleting {HEALED} children");
    let heal_seconds = load::heal(&client, HEALED.min(count)).await?;
    let peak_mib = peak_mib.max(controller.peak_mib()?);
    controller.stop().await?;
    cluster.remove()?;
    Ok(Figures {
        count,
        plain_seconds,
        operator_seconds,
        writes: made.iter().filter(|request| request.is_write()).count(),
        requests: by_verb(&made),
        cpu_ms,
        peak_mib,
        rest,
        restart,
        heal_seconds,
    })
}

/// Requests per verb and resource; Lease renewals apart.
fn by_verb(requests: &[audit::Request]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        let subresource =
            if request.subresource.is_empty() { String::new() } else { format!("/{}", request.subresource) };
        *counts.entry(format!("{} {}{subresource}", request.verb, request.resource)).or_insert(0) += 1;
    }
    counts
}

fn list(counts: &BTreeMap<String, usize>) -> String {
    if counts.is_empty() {
        return "none".into();
    }
    counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

fn print(f: &Figures) {
    let n = f.count as f64;
    println!("N = {}", f.count);
    println!("  children ready without an operator     {:>8.1} s", f.plain_seconds);
    println!(
        "  ModelDeployments ready                 {:>8.1} s   {:.2} times that (budget 1.15)",
        f.operator_seconds,
        f.operator_seconds / f.plain_seconds
    );
    println!(
        "  persisted writes an object             {:>8.2}     (budget 5: three children, two status writes)",
        f.writes as f64 / n
    );
    println!("  requests                                         {}", list(&f.requests));
    println!("  controller CPU an object               {:>8.2} ms  (budget 5)", f.cpu_ms / n);
    println!("  controller peak memory                 {:>8.1} MiB (budget 60 at 1,000)", f.peak_mib);
    println!("  requests in {:>3} s at rest                        {}", REST.as_secs(), list(&f.rest));
    println!("  requests after a restart                         {}", list(&f.restart));
    println!("  {HEALED} deleted children back in           {:>8.1} s   (budget 2)", f.heal_seconds);
}
