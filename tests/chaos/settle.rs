//! After the last kill: everything ends up as Git says, within a limit, and nothing is left over.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use kube::Client;
use kube::api::Api;
use llmops::api::evaluation::{RunPhase, Verdict};
use llmops::api::prompt_flow::FlowPhase;
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use serde_json::Value;

use crate::cluster::{Cluster, SYSTEM};
use crate::commits::{Commits, apply};
use crate::objects::{self, EVALUATION, GATED, GROUNDED, INDEX, MODEL, NAMESPACE, PEACE};
use crate::processes::{Kind, victims};
use crate::wait;

/// Longest time from the last kill until everything is as it should be: a pod's longest pause before a restart, a lead that
/// runs out, a Job's pause before its last attempt, and the work itself.
const LIMIT: Duration = Duration::from_secs(240);

fn is_ready<K: wait::Observed + kube::Resource>(object: &K) -> bool {
    let (generation, conditions) = object.observed();
    generation == object.meta().generation && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Waits until every object is Ready with its last content, and no rollout is under way.
pub async fn all(client: &Client, commits: Commits) -> Result<()> {
    for name in ["llmops-controller", "llmops-gateway"] {
        wait::until::<Deployment, _>(client, SYSTEM, name, LIMIT, "available", |deployment| {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            wanted == deployment.status.as_ref().and_then(|status| status.ready_replicas)
        })
        .await?;
    }
    wait::until::<ModelDeployment, _>(client, NAMESPACE, MODEL, LIMIT, "at its last revision", |model| {
        is_ready(model)
            && model.status.as_ref().is_some_and(|status| {
                status.stable_revision.is_some()
                    && status.stable_revision == status.target_revision
                    && status.traffic.len() == 1
            })
    })
    .await?;
    wait::until::<RagIndex, _>(client, NAMESPACE, INDEX, LIMIT, "at its last generation", |index| {
        is_ready(index)
            && index.status.as_ref().is_some_and(|status| {
                let count = status.documents.as_ref().map(|documents| documents.scanned);
                status.candidate.is_none() && count == i64::try_from(objects::documents(commits.documents)).ok()
            })
    })
    .await?;
    let serving = |flow: &PromptFlow| {
        is_ready(flow)
            && flow.status.as_ref().is_some_and(|status| {
                status.phase == Some(FlowPhase::Serving)
                    && status.candidate_revision.is_none()
                    && status.rejected_revisions.is_empty()
            })
    };
    wait::until::<PromptFlow, _>(client, NAMESPACE, GROUNDED, LIMIT, "serving", serving).await?;
    let flow = wait::until::<PromptFlow, _>(client, NAMESPACE, GATED, LIMIT, "serving its last revision", |flow| {
        serving(flow)
            && flow.status.as_ref().is_some_and(|status| status.observed_generation == flow.metadata.generation)
    })
    .await?;
    let stable = flow.status.and_then(|status| status.stable_revision).context("a stable revision")?;
    let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), NAMESPACE);
    let content = revisions.get(&format!("pf-{GATED}-{stable}")).await?;
    let mark = objects::mark(commits.flow);
    ensure!(
        serde_json::to_string(&content.data)?.contains(&mark),
        "the stable revision {stable} of flow {GATED} does not say {mark:?}: {:?}",
        content.data
    );
    wait::until::<Evaluation, _>(client, NAMESPACE, EVALUATION, LIMIT, "passed for what serves", |evaluation| {
        let run = evaluation.status.as_ref().and_then(|status| status.runs.first());
        is_ready(evaluation)
            && run.is_some_and(|run| {
                !run.stale
                    && run.phase == RunPhase::Complete
                    && run.verdict == Some(Verdict::Passed)
                    && run.errors == 0
                    && run.revisions.iter().any(|asked| asked.revision == stable)
            })
    })
    .await?;
    Ok(())
}

/// Compares the index with one that is built from the same documents with nobody killing: number of chunks of each.
pub async fn chunks(cluster: &Cluster, commits: Commits) -> Result<(i64, i64)> {
    let client = cluster.client();
    let built: RagIndex = Api::namespaced(client.clone(), NAMESPACE).get(INDEX).await?;
    cluster.kubectl(&["create", "namespace", PEACE])?;
    apply(&client, &objects::source(PEACE, commits.documents)).await?;
    apply(&client, &objects::index(PEACE)?).await?;
    let peaceful =
        wait::until::<RagIndex, _>(&client, PEACE, INDEX, LIMIT, "built in peace", |index: &RagIndex| is_ready(index))
            .await?;
    let parts = |index: RagIndex| {
        let status = index.status.unwrap_or_default();
        (status.active.map(|active| (active.name, active.digest)), status.chunks.unwrap_or(-1))
    };
    let ((built, chunks), (peaceful, expected)) = (parts(built), parts(peaceful));
    ensure!(
        chunks == expected && built == peaceful,
        "{chunks} chunks in {built:?}; built in peace: {expected} in {peaceful:?}"
    );
    Ok((chunks, expected))
}

/// What is left over: objects whose owner is gone, and processes without a pod.
pub fn orphans(cluster: &Cluster, supervisor: i32) -> Result<Vec<String>> {
    let kinds = "promptflows,modeldeployments,ragindexes,evaluations,deployments,replicasets,jobs,pods,controllerrevisions,\
                 services,serviceaccounts,rolebindings,persistentvolumeclaims";
    let mut found = Vec::new();
    let mut pods = BTreeSet::new();
    for namespace in [NAMESPACE, SYSTEM, PEACE] {
        let listed: Value = serde_json::from_str(&cluster.kubectl(&["get", kinds, "-n", namespace, "-o", "json"])?)?;
        let items = listed["items"].as_array().context("items")?;
        let uids: BTreeSet<&str> = items.iter().filter_map(|item| item["metadata"]["uid"].as_str()).collect();
        for item in items {
            let name = format!("{} {namespace}/{}", item["kind"], item["metadata"]["name"]);
            for owner in item["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
                if owner["uid"].as_str().is_none_or(|uid| !uids.contains(uid)) {
                    found.push(format!("{name}: its owner {} {} is gone", owner["kind"], owner["name"]));
                }
            }
            if item["kind"] == "Pod" {
                pods.extend(item["metadata"]["name"].as_str().map(str::to_owned));
            }
        }
    }
    let strays = victims(supervisor)
        .into_iter()
        .filter(|process| !matches!(process.kind, Kind::ApiServer | Kind::Etcd) && !pods.contains(&process.pod));
    found.extend(
        strays.map(|process| format!("process {} ({}) of no pod: {}", process.pid, process.kind.name(), process.pod)),
    );
    Ok(found)
}
