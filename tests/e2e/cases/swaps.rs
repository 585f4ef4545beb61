//! Changes while people use it: nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use llmops::api::{ModelDeployment, RagIndex};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE};
use crate::gateway::Gateway;
use crate::{samples, wait};

/// Requests from several users at once until stopped; failures are kept.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    users: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(gateway: &Gateway, users: usize, path: &str, body: &serde_json::Value) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let users = (0..users)
            .map(|_| {
                let (gateway, path, body) = (gateway.clone(), path.to_owned(), body.clone());
                let (stop, done) = (stop.clone(), done.clone());
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        match gateway.post(&path, &body).await {
                            Ok(_) => {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => failures.push(format!("{error:#}")),
                        }
                    }
                    failures
                })
            })
            .collect();
        Self { stop, done, users }
    }

    /// How many requests were answered.
    fn answered(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    async fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for user in self.users {
            failures.extend(user.await?);
        }
        ensure!(failures.is_empty(), "{} requests failed, the first: {:?}", failures.len(), failures.first());
        Ok(self.done.load(Ordering::Relaxed))
    }
}

/// Waits until the load has been answered some more times.
async fn more(load: &Load, count: usize) -> Result<()> {
    let goal = load.answered() + count;
    wait::eventually(std::time::Duration::from_secs(60), "answers under load", || async {
        Ok((load.answered() >= goal).then_some(()))
    })
    .await
}

pub fn a_changed_model_spec_loses_no_request(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let before: ModelDeployment = wait::ready(&client, NAMESPACE, samples::MODEL).await?;
        let old = before.status.and_then(|status| status.stable_revision);
        let body = json!({"model": format!("{NAMESPACE}/{}", samples::MODEL), "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]});
        let load = Load::start(&gateway, 2, "/v1/chat/completions", &body);
        more(&load, 4).await?;
        let patch = json!([{"op": "add", "path": "/spec/engine/env", "value": [{"name": "ROLLED", "value": "yes"}]}]).to_string();
        cluster.kubectl(&["patch", "modeldeployment", samples::MODEL, "-n", NAMESPACE, "--type=json", "-p", &patch])?;
        let after: ModelDeployment =
            wait::condition(&client, NAMESPACE, samples::MODEL, "UpToDate", "True", None).await?;
        let new = after.status.and_then(|status| status.stable_revision);
        ensure!(new != old, "the revision did not change: {new:?}");
        wait::ready::<ModelDeployment>(&client, NAMESPACE, samples::MODEL).await?;
        more(&load, 8).await?;
        load.finish().await?;
        // Back to what Git says: the same content has its old revision again.
        let patch = json!([{"op": "remove", "path": "/spec/engine/env"}]).to_string();
        cluster.kubectl(&["patch", "modeldeployment", samples::MODEL, "-n", NAMESPACE, "--type=json", "-p", &patch])?;
        let back: ModelDeployment = wait::condition(&client, NAMESPACE, samples::MODEL, "UpToDate", "True", None).await?;
        ensure!(back.status.and_then(|status| status.stable_revision) == old, "a reverted spec must find its old revision");
        wait::ready::<ModelDeployment>(&client, NAMESPACE, samples::MODEL).await?;
        Ok(())
    })
}

pub fn a_new_generation_swaps_under_load_without_a_failed_query(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let before: RagIndex = wait::ready(&client, NAMESPACE, samples::INDEX).await?;
        let old = before.status.and_then(|status| status.active).context("an active generation")?.name;
        let path = format!("/v1/indexes/{NAMESPACE}/{}/search", samples::INDEX);
        let load =
            Load::start(&gateway, 3, &path, &json!({"query": "Who cut the ribbon of the lighthouse?", "topK": 3}));
        more(&load, 20).await?;
        samples::change_document(
            cluster,
            "lighthouse.md",
            Some("# Lighthouse\n\nThe lighthouse of Zanzivar was opened by Mildred Okonkwo in 1893.\n"),
        )
        .await?;
        let swapped: RagIndex = wait::until(
            &client,
            NAMESPACE,
            samples::INDEX,
            std::time::Duration::from_secs(120),
            "swapped",
            |index: &RagIndex| {
                index.status.as_ref().and_then(|status| status.active.as_ref()).is_some_and(|active| active.name != old)
            },
        )
        .await?;
        more(&load, 50).await?;
        let answered = load.finish().await?;
        let new = swapped.status.and_then(|status| status.active).context("an active generation")?.name;
        let found = gateway.post(&path, &json!({"query": "Who opened the lighthouse of Zanzivar?", "topK": 1})).await?;
        ensure!(found["generation"] == new.as_str(), "{found}");
        ensure!(found["results"][0]["uri"] == "lighthouse.md", "after {answered} queries: {found}");
        samples::change_document(cluster, "lighthouse.md", None).await?;
        wait::until::<RagIndex, _>(
            &client,
            NAMESPACE,
            samples::INDEX,
            std::time::Duration::from_secs(120),
            "back",
            |index| {
                index.status.as_ref().and_then(|status| status.active.as_ref()).is_some_and(|active| active.name == old)
            },
        )
        .await?;
        Ok(())
    })
}
