//! What breaks: an engine is killed, the API server goes away, resources are deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use llmops::api::{ModelDeployment, PromptFlow};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE};
use crate::{samples, wait};

async fn engine_pods(cluster: &Cluster, model: &str) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
    let labels = format!("llmops.dev/component=model,llmops.dev/owner={model}");
    Ok(pods.list(&ListParams::default().labels(&labels)).await?.items)
}

pub fn a_killed_engine_heals_and_loses_no_accepted_request(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.kubectl(&[
        "patch",
        "modeldeployment",
        samples::MODEL,
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":2}}"#,
    ])?;
    cluster.run(async {
        wait::until::<ModelDeployment, _>(&client, NAMESPACE, samples::MODEL, Duration::from_secs(60), "two replicas", |model| {
            model.status.as_ref().and_then(|status| status.replicas.as_ref()).is_some_and(|replicas| replicas.ready == 2)
        })
        .await?;
        let victim = engine_pods(cluster, samples::MODEL).await?.into_iter().next().context("an engine pod")?;
        let body = json!({"model": format!("{NAMESPACE}/{}", samples::MODEL), "max_tokens": 8, "messages": [{"role": "user", "content": "Count."}]});
        let asked: Vec<_> = (0..12)
            .map(|_| {
                let (gateway, body) = (gateway.clone(), body.clone());
                tokio::spawn(async move { gateway.post("/v1/chat/completions", &body).await })
            })
            .collect();
        // Killed without warning, with requests in flight: what was not answered yet is asked of the other replica.
        cluster.kubectl(&["exec", "-n", NAMESPACE, &victim.name_any(), "--", "sh", "-c", "kill -9 -1"]).ok();
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        pods.delete(&victim.name_any(), &DeleteParams::default().grace_period(0)).await?;
        for request in asked {
            request.await?.context("a request was lost")?;
        }
        wait::eventually(Duration::from_secs(60), "two engines again", || async {
            let alive = engine_pods(cluster, samples::MODEL).await?;
            let ready = alive.iter().filter(|pod| pod.uid() != victim.uid() && is_ready(pod)).count();
            Ok((ready == 2).then_some(()))
        })
        .await
    })?;
    cluster.kubectl(&[
        "patch",
        "modeldeployment",
        samples::MODEL,
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":1}}"#,
    ])?;
    cluster.run(wait::ready::<ModelDeployment>(&client, NAMESPACE, samples::MODEL))?;
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

pub fn the_gateway_serves_while_the_api_server_is_down(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    let flow = samples::short_flow("outage", 100);
    cluster.apply(NAMESPACE, &flow)?;
    let before: PromptFlow = cluster.run(wait::ready(&client, NAMESPACE, "outage"))?;
    let revision = before.status.and_then(|status| status.stable_revision);
    cluster.component("kill", "kube-apiserver")?;
    cluster.run(async {
        for request in 0..10 {
            gateway.ask("quickstart/outage", "Anybody there?", &format!("user-{request}")).await?;
        }
        anyhow::Ok(())
    })?;
    cluster.component("start", "kube-apiserver")?;
    // The controller resumes: a change made after the outage is carried out.
    let changed = flow.replace("Say hello", "Say goodbye");
    cluster.run(wait::eventually(Duration::from_secs(60), "the API server accepts writes", || async {
        cluster.apply(NAMESPACE, &changed).map(Some)
    }))?;
    cluster.run(wait::until::<PromptFlow, _>(
        &client,
        NAMESPACE,
        "outage",
        Duration::from_secs(120),
        "a new revision",
        |flow| {
            flow.status
                .as_ref()
                .is_some_and(|status| status.stable_revision.is_some() && status.stable_revision != revision)
        },
    ))?;
    cluster.kubectl(&["delete", "promptflow", "outage", "-n", NAMESPACE])?;
    Ok(())
}

pub fn a_deleted_resource_takes_its_children_along(cluster: &Cluster) -> Result<()> {
    let listed = "controllerrevisions,deployments,replicasets,services,jobs,pods,persistentvolumeclaims,serviceaccounts,rolebindings";
    for kind in ["evaluations", "promptflows", "ragindexes", "modeldeployments"] {
        cluster.kubectl(&["delete", kind, "--all", "-n", NAMESPACE, "--timeout=60s"])?;
    }
    cluster.run(wait::eventually(Duration::from_secs(120), "no children left", || async {
        let left = cluster.kubectl(&[
            "get",
            listed,
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/managed-by=llmops",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "still there: {left}");
        Ok(Some(()))
    }))
}
