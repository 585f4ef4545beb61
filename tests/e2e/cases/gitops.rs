//! What belongs to Git: nobody but people writes it, and nothing makes the cluster differ from it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use llmops::api::prompt_flow::FlowPhase;
use llmops::api::rollout::RolloutPhase;
use llmops::api::{PromptFlow, PromptFlowStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use super::quiet::{KINDS, until_reconciled};
use crate::cluster::{Cluster, NAMESPACE, repository, required};
use crate::{audit, samples, wait};

/// Objects of a manifest or of a List, by kind, namespace and name.
fn objects(text: &str, namespace: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        let items = match value["items"].as_array() {
            Some(items) if value["kind"] == "List" => items.clone(),
            _ if value.is_null() => Vec::new(),
            _ => vec![value],
        };
        for item in items {
            let own = item["metadata"]["namespace"].as_str().unwrap_or(namespace);
            let cluster_wide = matches!(item["kind"].as_str(), Some("Namespace" | "PersistentVolume"));
            let place = if cluster_wide { "" } else { own };
            let name = item["metadata"]["name"].as_str().context("a name")?;
            found.insert(format!("{} {place}/{name}", item["kind"].as_str().context("a kind")?), item);
        }
    }
    Ok(found)
}

fn is_ours(object: &Value) -> bool {
    object["apiVersion"].as_str().is_some_and(|version| version.starts_with("llmops.dev/"))
}

/// Whether the cluster has everything that Git says, and lists as Git says them: how a merge patch compares.
fn holds(git: &Value, live: &Value) -> bool {
    match (git, live) {
        (Value::Object(git), Value::Object(live)) => {
            git.iter().all(|(key, value)| live.get(key).is_some_and(|live| holds(value, live)))
        }
        _ => git == live,
    }
}

/// The manifest is what the cluster has, as both comparisons of Argo CD see it: a server-side apply as Argo CD's would
/// change nothing, and a merge patch would be empty.
fn equals_git(cluster: &Cluster, namespace: &str, manifest: &str) -> Result<()> {
    let apply =
        ["apply", "--server-side", "--dry-run=server", "--field-manager=argocd-controller", "--force-conflicts"];
    let rest = ["-n", namespace, "-o", "json", "-f", "-"];
    let predicted = objects(&cluster.kubectl_with(&[&apply[..], &rest].concat(), manifest)?, namespace)?;
    let get = ["get", "--show-managed-fields"];
    let live = objects(&cluster.kubectl_with(&[&get[..], &rest].concat(), manifest)?, namespace)?;
    let git = objects(manifest, namespace)?;
    ensure!(live.len() == git.len() && predicted.len() == git.len(), "{} of {} objects", live.len(), git.len());
    for (name, live) in &live {
        let (git, predicted) = (&git[name], &predicted[name]);
        for part in ["/spec", "/data", "/metadata/labels", "/metadata/annotations"] {
            let (would_be, is) = (predicted.pointer(part), live.pointer(part));
            ensure!(would_be == is, "{name}: a server-side apply would change {part} from {is:?} to {would_be:?}");
            if let (true, Some(git)) = (is_ours(live), git.pointer(part)) {
                ensure!(
                    is.is_some_and(|is| holds(git, is)),
                    "{name}: a merge patch would change {part}: Git {git}, cluster {is:?}"
                );
            }
        }
        for owner in live["metadata"]["managedFields"].as_array().into_iter().flatten().filter(|_| is_ours(live)) {
            let manager = owner["manager"].as_str().unwrap_or_default();
            let is_operator = manager.starts_with("llmops-") && manager != llmops::cli::request::MANAGER;
            ensure!(!is_operator || owner["subresource"] == "status", "{name}: {manager} owns {}", owner["fieldsV1"]);
        }
    }
    Ok(())
}

/// Manifests below `manifests/samples` that are no part of the quickstart.
fn other_samples() -> Result<String> {
    let mut text = String::new();
    for folder in std::fs::read_dir(repository().join("manifests/samples"))? {
        let folder = folder?.path();
        if folder.is_dir() && !folder.ends_with("quickstart") {
            for file in std::fs::read_dir(&folder)? {
                let file = file?.path();
                if file.extension().is_some_and(|extension| extension == "yaml") {
                    text.push_str("---\n");
                    text.push_str(&std::fs::read_to_string(&file)?);
                }
            }
        }
    }
    Ok(text)
}

pub fn git_and_the_cluster_stay_equal(cluster: &Cluster) -> Result<()> {
    samples::apply(cluster)?;
    equals_git(cluster, NAMESPACE, &samples::rendered()?)?;
    // The others wait for models, volumes and providers that are not here; the operator looks at them all the same.
    let namespace = "git";
    let others = other_samples()?;
    cluster.kubectl(&["create", "namespace", namespace])?;
    cluster.kubectl_with(
        &["apply", "--server-side", "--field-manager=argocd-controller", "-n", namespace, "-f", "-"],
        &others,
    )?;
    let names: BTreeSet<String> =
        objects(&others, namespace)?.into_iter().filter(|(_, object)| is_ours(object)).map(|(name, _)| name).collect();
    ensure!(names.len() >= KINDS, "samples of every kind: {names:?}");
    cluster.run(wait::eventually(Duration::from_secs(60), "every sample was looked at", || async {
        let live = cluster.kubectl_with(&["get", "-n", namespace, "-o", "json", "-f", "-"], &others)?;
        let live = objects(&live, namespace)?;
        let seen = |object: &Value| object["status"]["observedGeneration"] == object["metadata"]["generation"];
        Ok(live.values().filter(|object| is_ours(object)).all(seen).then_some(()))
    }))?;
    equals_git(cluster, namespace, &others)?;
    cluster.kubectl(&["delete", "namespace", namespace, "--timeout=120s"])?;
    Ok(())
}

/// Waits until a fifth of the units gets the candidate.
async fn mid_ramp(client: &Client, name: &str) -> Result<PromptFlow> {
    let holds = |flow: &PromptFlow| {
        let Some(status) = &flow.status else { return false };
        let rollout = status.rollout.as_ref();
        status.observed_generation == flow.metadata.generation
            && rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::Progressing && rollout.weight == 20)
            && status.traffic.len() == 2
    };
    wait::until(client, NAMESPACE, name, Duration::from_secs(60), "in mid-ramp", holds).await
}

/// A flow whose second revision is in mid-ramp, and the manifest of it.
fn start_ramp(cluster: &Cluster, name: &str) -> Result<(PromptFlow, String)> {
    let client = cluster.client();
    samples::apply(cluster)?;
    cluster.apply(NAMESPACE, &samples::ramped_flow(name, "Say hello."))?;
    cluster.run(wait::ready::<PromptFlow>(&client, NAMESPACE, name))?;
    let git = samples::ramped_flow(name, "Greet.");
    cluster.apply(NAMESPACE, &git)?;
    Ok((cluster.run(mid_ramp(&client, name))?, git))
}

fn status(flow: &PromptFlow) -> Result<&PromptFlowStatus> {
    flow.status.as_ref().context("a status")
}

/// What must not change: who gets what, and where the rollout is.
fn decisions(flow: &PromptFlow) -> Result<Value> {
    let status = status(flow)?;
    let rollout = status.rollout.as_ref().context("a rollout")?;
    Ok(json!({
        "traffic": status.traffic, "stable": status.stable, "candidateRevision": status.candidate_revision,
        "rejected": status.rejected_revisions, "phase": rollout.phase, "step": rollout.step, "weight": rollout.weight,
        "candidate": rollout.candidate, "started": rollout.started,
    }))
}

/// Pods of models and indexes, and how often their containers were started.
async fn engines(client: &Client) -> Result<BTreeSet<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let labels =
        ListParams::default().labels("app.kubernetes.io/managed-by=llmops,llmops.dev/component in (model,index)");
    let pods = pods.list(&labels).await?;
    Ok(pods
        .iter()
        .map(|pod| {
            let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let restarts: i32 = containers.into_iter().flatten().map(|container| container.restart_count).sum();
            format!("{} {} {restarts}", pod.name_any(), pod.uid().unwrap_or_default())
        })
        .collect())
}

pub fn a_chart_upgrade_changes_nothing_in_mid_rollout(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let (flow, _) = start_ramp(cluster, "ramped")?;
    let before = decisions(&flow)?;
    let pods = cluster.run(engines(&client))?;
    ensure!(!pods.is_empty(), "an engine runs");
    // The same values; others, which restart controller and gateway; and back.
    for values in [&[][..], &["logFormat=text"], &[]] {
        let mark = audit::mark(&cluster.audit_log())?;
        cluster.upgrade(values)?;
        cluster.run(until_reconciled(cluster, KINDS as f64))?;
        let flow: PromptFlow = cluster.run(mid_ramp(&client, "ramped"))?;
        let after = decisions(&flow)?;
        ensure!(after == before, "after an upgrade to {values:?}: {after}\nbefore: {before}");
        // One that is replaced or restarted shows as a new one. What an earlier case left may end meanwhile.
        let now = cluster.run(engines(&client))?;
        let touched: Vec<&String> = now.difference(&pods).collect();
        ensure!(touched.is_empty() && !now.is_empty(), "an upgrade to {values:?} touched the engines: {touched:?}");
        let children: Vec<_> = audit::since(&cluster.audit_log(), mark)?
            .into_iter()
            .filter(|request| request.user.starts_with(audit::OUR_USERS) && request.is_write())
            .filter(|request| {
                !request.is_lease_or_review() && !matches!(request.group.as_str(), "llmops.dev" | "events.k8s.io")
            })
            .collect();
        ensure!(children.is_empty(), "an upgrade to {values:?} wrote:\n{}", audit::lines(&children));
    }
    cluster.kubectl(&["delete", "promptflow", "ramped", "-n", NAMESPACE])?;
    Ok(())
}

/// Runs `llmops` as a person would; exit code and what it printed.
fn llmops(cluster: &Cluster, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(required("LLMOPS_BIN")?)
        .args(arguments)
        .args(["-n", NAMESPACE])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env_remove("HOME")
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8(text)?))
}

/// Runs `llmops`, which must succeed and say this.
fn says(cluster: &Cluster, arguments: &[&str], words: &str) -> Result<()> {
    let (code, text) = llmops(cluster, arguments)?;
    if code != 0 || !text.contains(words) {
        bail!("llmops {}: exit code {code}, not {words:?}: {text}", arguments.join(" "));
    }
    Ok(())
}

pub fn people_act_on_a_rollout_and_git_stays_equal(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let (flow, git) = start_ramp(cluster, "acted")?;
    let candidate = status(&flow)?.candidate_revision.clone().context("a candidate")?;
    let stable = status(&flow)?.stable_revision.clone().context("a stable revision")?;
    says(cluster, &["status", "pf/acted"], "▶ step 1   20%")?;
    says(cluster, &["hold", "pf/acted"], &format!("revision {candidate} is held where it is"))?;
    says(cluster, &["status", "pf/acted"], "‖ step 1   20%")?;
    says(cluster, &["resume", "pf/acted"], &format!("revision {candidate} goes on"))?;
    let (code, text) = llmops(cluster, &["rollback", "pf/acted", "--revision", "0000000000"])?;
    ensure!(code == 1 && text.contains(&format!("is not the candidate, which is {candidate}")), "{code}: {text}");
    equals_git(cluster, NAMESPACE, &git)?;

    // Rolled back: Argo CD shows Synced and Degraded, with the reason, and a sync changes nothing.
    says(cluster, &["rollback", "pf/acted"], &format!("revision {candidate} is rolled back"))?;
    cluster.kubectl_with(
        &[
            "apply",
            "--server-side",
            "--field-manager=argocd-controller",
            "--force-conflicts",
            "-n",
            NAMESPACE,
            "-f",
            "-",
        ],
        &git,
    )?;
    let flow: PromptFlow = cluster.run(wait::condition(&client, NAMESPACE, "acted", "Stalled", "True", None))?;
    let rolled_back = status(&flow)?;
    ensure!(rolled_back.phase == Some(FlowPhase::Degraded), "{rolled_back:#?}");
    ensure!(rolled_back.traffic.iter().all(|arm| arm.revision == stable), "{rolled_back:#?}");
    ensure!(rolled_back.rejected_revisions.iter().any(|rejected| rejected.revision == candidate), "{rolled_back:#?}");
    equals_git(cluster, NAMESPACE, &git)?;
    let (code, text) = llmops(cluster, &["status", "pf/acted", "--watch"])?;
    ensure!(code == 1 && text.contains("Degraded") && text.contains(&candidate), "{code}: {text}");

    // Another commit recovers.
    let git = samples::ramped_flow("acted", "Good day.");
    cluster.apply(NAMESPACE, &git)?;
    cluster.run(mid_ramp(&client, "acted"))?;
    says(cluster, &["promote", "pf/acted"], "serves everybody")?;
    says(cluster, &["status", "pf/acted", "--watch"], "✓ everybody gets it")?;
    equals_git(cluster, NAMESPACE, &git)?;
    cluster.kubectl(&["delete", "promptflow", "acted", "-n", NAMESPACE])?;
    Ok(())
}

/// A ServiceAccount of the operator, or of an evaluation's Jobs.
fn is_operator(user: &str) -> bool {
    let job = user.strip_prefix("system:serviceaccount:").and_then(|user| user.split_once(':'));
    user.starts_with(audit::OUR_USERS) || job.is_some_and(|(_, name)| name.starts_with("eval-"))
}

/// A patch of a status and of nothing else; the API server would drop the rest, but it is not even asked for.
fn is_of_the_status(request: &audit::Request) -> bool {
    let only_status = match &request.body {
        Value::Object(body) => {
            let names = |value: &Value| {
                value.as_object().is_none_or(|meta| {
                    meta.keys().all(|key| key == "name" || key == "namespace" || key == "resourceVersion")
                })
            };
            body.iter().all(|(key, value)| match key.as_str() {
                "apiVersion" | "kind" | "status" => true,
                "metadata" => names(value),
                _ => false,
            })
        }
        Value::Array(steps) => steps.iter().all(|step| {
            let path = step["path"].as_str().unwrap_or_default();
            path == "/status" || path.starts_with("/status/") || step["op"] == "test"
        }),
        _ => false,
    };
    request.subresource == "status" && request.verb == "patch" && only_status
}

pub fn nothing_of_users_was_ever_written_by_us(cluster: &Cluster) -> Result<()> {
    let writes: Vec<_> = audit::since(&cluster.audit_log(), 0)?
        .into_iter()
        .filter(|request| request.group == "llmops.dev" && request.is_write() && is_operator(&request.user))
        .collect();
    let others: Vec<_> = writes.iter().filter(|request| !is_of_the_status(request)).cloned().collect();
    ensure!(others.is_empty(), "the operator wrote to users' objects:\n{}", audit::lines(&others));
    // The witness was awake: every kind has a status that the operator wrote.
    let kinds: BTreeSet<&str> = writes.iter().map(|request| request.resource.as_str()).collect();
    ensure!(kinds.len() == KINDS, "status writes were logged for {kinds:?} only");
    Ok(())
}
