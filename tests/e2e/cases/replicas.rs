//! Two gateways that hear of a change at different moments.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmops::api::PromptFlow;
use llmops::api::rollout::RolloutPhase;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::rollouts::LIMIT;
use crate::cluster::{Cluster, NAMESPACE, SYSTEM, required};
use crate::gateway::Gateway;
use crate::{samples, wait};

const FLOW: &str = "moving";
/// So much later than the other the second gateway hears of everything.
const LATE: Duration = Duration::from_millis(700);
const USERS: usize = 24;

/// A gateway beside the installed one, whose API server is far away.
struct Far {
    process: Child,
    folder: tempfile::TempDir,
    url: String,
    admin: String,
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Far {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(cluster.kubeconfig())?)?;
        let server = config.pointer_mut("/clusters/0/cluster").context("a cluster")?;
        let address = server["server"].as_str().context("an address")?.trim_start_matches("https://").to_owned();
        let host = address.split(':').next().context("a host")?.to_owned();
        let far = delay(address).await?;
        server["server"] = format!("https://{far}").into();
        server["tls-server-name"] = host.into();
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, serde_json::to_vec(&config)?)?;
        let free = || async { anyhow::Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string()) };
        let (listen, admin) = (free().await?, free().await?);
        let process = Command::new(required("LLMOPS_BIN")?)
            .args(["gateway", "--listen", &listen, "--admin-listen", &admin, "--namespace", SYSTEM, "--db"])
            .arg(folder.path().join("gateway.db"))
            .env("KUBECONFIG", &kubeconfig)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        Ok(Self { process, folder, url: format!("http://{listen}"), admin: format!("http://{admin}/readyz") })
    }

    async fn ready(&self) -> Result<()> {
        let ready = wait::eventually(Duration::from_secs(60), "the second gateway is ready", || async {
            Ok(reqwest::get(&self.admin).await?.status().is_success().then_some(()))
        });
        ready.await.with_context(|| std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default())
    }
}

/// Passes connections on to an address; what comes back comes late.
async fn delay(address: String) -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&address).await else { continue };
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
            let (sender, mut queue) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = far_in.read(&mut buffer).await {
                    if sender.send((Instant::now() + LATE, buffer[..count].to_vec())).is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Some((due, bytes)) = queue.recv().await {
                    tokio::time::sleep_until(due).await;
                    if near_out.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(at)
}

fn flow(prompt: &str) -> String {
    samples::ramped_flow(FLOW, prompt)
        .replace("{weight: 20, minUnits: 1000000}", "{weight: 20}, {weight: 50}, {weight: 80}")
}

/// A user who asks the two in turn: by which revision each answer was.
async fn ask(gateways: [Gateway; 2], user: usize, stop: Arc<AtomicBool>) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for gateway in &gateways {
            let answer = gateway.ask(&format!("{NAMESPACE}/{FLOW}"), "Hello?", &format!("mover-{user}")).await?;
            seen.push(answer["revision"].as_str().context("a revision")?.to_owned());
        }
    }
    Ok(seen)
}

pub fn no_unit_goes_back_while_replicas_change_over(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let near = cluster.gateway()?;
    cluster.apply(NAMESPACE, &flow("Say hello."))?;
    cluster.run(async {
        let before: PromptFlow = wait::ready(&client, NAMESPACE, FLOW).await?;
        let stable = before.status.and_then(|status| status.stable_revision).context("a stable revision")?;
        let second = Far::start(cluster).await?;
        second.ready().await?;
        let far = cluster.gateway_at(&second.url);
        // Ready is the controller's word; the gateways hear of it a moment later, one of them later than that.
        for gateway in [&near, &far] {
            wait::eventually(LIMIT, "both gateways serve the flow", || async {
                Ok(gateway.ask(&format!("{NAMESPACE}/{FLOW}"), "Hello?", "first").await.is_ok().then_some(()))
            })
            .await?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let users: Vec<_> =
            (0..USERS).map(|user| tokio::spawn(ask([near.clone(), far.clone()], user, stop.clone()))).collect();
        cluster.apply(NAMESPACE, &flow("Greet."))?;
        let ended = wait::until(&client, NAMESPACE, FLOW, LIMIT, "promoted", |flow: &PromptFlow| {
            let rollout = flow.status.as_ref().and_then(|status| status.rollout.as_ref());
            rollout.is_some_and(|rollout| {
                rollout.phase == RolloutPhase::Promoted && rollout.candidate.iter().all(|arm| arm.revision != stable)
            })
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        let mut moved = 0;
        for (user, task) in users.into_iter().enumerate() {
            let seen = task.await?.with_context(|| format!("mover-{user}"))?;
            let first = seen.iter().position(|revision| *revision != stable).unwrap_or(seen.len());
            ensure!(
                seen[first..].iter().all(|revision| *revision != stable),
                "mover-{user} went to the new revision and back: {seen:?}"
            );
            moved += usize::from(first > 0 && first < seen.len());
        }
        ended?;
        ensure!(moved > USERS / 3, "only {moved} of {USERS} users were seen to move");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "promptflow", FLOW, "-n", NAMESPACE])?;
    Ok(())
}
