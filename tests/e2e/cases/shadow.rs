//! A candidate in shadow: it answers copies, and nobody sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use llmops::api::PromptFlow;
use llmops::api::rollout::RolloutPhase;

use super::quiet::metrics;
use super::rollouts::LIMIT;
use crate::cluster::{Cluster, NAMESPACE};
use crate::gateway::Gateway;
use crate::{samples, wait};

const FLOW: &str = "shaded";
/// Copies that the candidate must have answered.
const COPIES: u64 = 20;
/// Users who ask at the same time: more than copies may run at a time.
const ASKING: usize = 4;

/// A flow whose answers begin with a mark. Copies of all requests go to a new revision before its first step.
fn flow(mark: &str, tokens: i32) -> String {
    let rest = format!(
        "  rollout:\n    shadow: {{percent: 100, minRequests: {COPIES}}}\n    steps: [{{weight: 20, minUnits: 1000000}}]\n"
    );
    let parameters = format!(r#"maxTokens: {tokens}, temperature: "0""#);
    let (prompt, mark) = ("{{ inputs.question }}", format!("{mark} "));
    samples::OneCall { name: FLOW, prompt, parameters: &parameters, mark: &mark, rest: &rest }.yaml()
}

/// A user's requests: all answered by what serves.
async fn ask(gateway: Gateway, stop: Arc<AtomicBool>, asked: Arc<AtomicUsize>, stable: String) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let user = asked.fetch_add(1, Ordering::Relaxed);
        let answer =
            gateway.ask(&format!("{NAMESPACE}/{FLOW}"), "What makes the tides?", &format!("user-{user}")).await?;
        // The last answers may be of the first step, when a fifth of the users gets the candidate.
        let ended = stop.load(Ordering::Relaxed);
        ensure!(ended || answer["revision"] == stable.as_str(), "a user was answered by the candidate: {answer}");
        ensure!(ended || answer["answer"].as_str().is_some_and(|text| text.starts_with("plain:")), "{answer}");
    }
    Ok(())
}

/// Copies by how they ended, as the gateway counts them.
async fn copies(cluster: &Cluster, outcome: &str) -> Result<u64> {
    let text = metrics(cluster, "gateway").await?.context("a gateway")?;
    let wanted = [format!("name=\"{FLOW}\""), format!("outcome=\"{outcome}\"")];
    let line = text.lines().find(|line| {
        line.starts_with("llmops_gateway_shadow_copies_total") && wanted.iter().all(|part| line.contains(part))
    });
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |count| count as u64))
}

pub fn copies_are_seen_by_nobody_and_told_by_revision(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.apply(NAMESPACE, &flow("plain:", 1))?;
    cluster.run(async {
        let before: PromptFlow = wait::ready(&client, NAMESPACE, FLOW).await?;
        let stable = before.status.and_then(|status| status.stable_revision).context("a stable revision")?;
        // Ready is the controller's word; the gateway hears of it a moment later.
        wait::eventually(LIMIT, "the gateway serves the flow", || async {
            Ok(gateway.ask(&format!("{NAMESPACE}/{FLOW}"), "Hello?", "first").await.is_ok().then_some(()))
        })
        .await?;
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let users: Vec<_> = (0..ASKING)
            .map(|_| tokio::spawn(ask(gateway.clone(), stop.clone(), asked.clone(), stable.clone())))
            .collect();
        // The candidate writes longer than what serves: who waited for copies would see it.
        cluster.apply(NAMESPACE, &flow("shaded:", 24))?;
        let left = wait::until(&client, NAMESPACE, FLOW, LIMIT, "out of its shadow", |flow: &PromptFlow| {
            let status = flow.status.as_ref();
            status.and_then(|status| status.rollout.as_ref()).is_some_and(|rollout| {
                // The routing table of the first step changes over a moment later.
                if rollout.phase == RolloutPhase::Progressing {
                    stop.store(true, Ordering::Relaxed);
                }
                rollout.phase == RolloutPhase::Progressing
            })
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        for user in users {
            user.await??;
        }
        let candidate = left?.status.and_then(|status| status.candidate_revision).context("a candidate")?;
        let (answered, dropped) = (copies(cluster, "ok").await?, copies(cluster, "dropped").await?);
        ensure!(answered >= COPIES, "{answered} copies were answered");
        ensure!(dropped > 0, "with {ASKING} users at a time and room for fewer copies, none was dropped");
        let asked = asked.load(Ordering::Relaxed) as u64;
        ensure!(answered + dropped <= asked, "{answered} and {dropped} copies of {asked} requests");
        // Visible for itself, and no part of what users got.
        let told = gateway.get(&format!("/v1/interactions/{NAMESPACE}/{FLOW}?limit=1000")).await?;
        let rows = told["interactions"].as_array().context("interactions")?;
        let of = |shadow: bool| rows.iter().filter(move |row| row["shadow"] == shadow);
        ensure!(of(true).count() > 0 && of(true).all(|row| row["revision"] == candidate.as_str()), "{told}");
        let split = gateway.get(&format!("/v1/splits/{NAMESPACE}/{FLOW}")).await?;
        let requests = |revision: &str| {
            let variants = split["variants"].as_array().into_iter().flatten();
            variants.filter(|arm| arm["revision"] == revision).filter_map(|arm| arm["requests"].as_u64()).sum::<u64>()
        };
        ensure!(requests(&stable) + requests(&candidate) > asked, "{asked} were asked: {split}");
        let page = gateway.request(reqwest::Method::GET, &format!("/dashboard/flows/{NAMESPACE}/{FLOW}"));
        let page = page.send().await?.text().await?;
        let shadows = page.split("In shadow").nth(1).context("the page has no table of copies")?;
        ensure!(
            shadows.contains(&candidate)
                && !shadows.split("</table>").next().is_some_and(|table| table.contains(&stable)),
            "{shadows}"
        );
        Ok(())
    })?;
    // Deleted in the middle of its ramp, it takes its revisions along.
    cluster.kubectl(&["delete", "promptflow", FLOW, "-n", NAMESPACE])?;
    cluster.run(wait::eventually(LIMIT, "the flow's revisions are gone", || async {
        let label = format!("llmops.dev/owner={FLOW}");
        let left = cluster.kubectl(&["get", "controllerrevisions", "-n", NAMESPACE, "-l", &label, "-o", "name"])?;
        Ok(left.trim().is_empty().then_some(()))
    }))
}
