//! What nobody should see: writes without a cause.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::{Cluster, NAMESPACE, SYSTEM};
use crate::{audit, wait};

/// Kinds of ours in the samples' namespace, with one object each at least.
pub(super) const KINDS: usize = 4;

/// What the pod of a component (`controller`, `gateway`) tells to Prometheus.
pub(super) async fn metrics(cluster: &Cluster, component: &str) -> Result<Option<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), SYSTEM);
    let labels = format!("app.kubernetes.io/component={component}");
    let pods = pods.list(&ListParams::default().labels(&labels)).await?;
    for pod in pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else { continue };
        return Ok(Some(reqwest::get(format!("http://{address}:9090/metrics")).await?.text().await?));
    }
    Ok(None)
}

/// Sum of `llmops_controller_reconciles_total` as the controller's pod exposes it.
pub(super) async fn reconciles(cluster: &Cluster) -> Result<Option<f64>> {
    let text = metrics(cluster, "controller").await?;
    Ok(text.map(|text| {
        text.lines()
            .filter(|line| line.starts_with("llmops_controller_reconciles_total"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }))
}

pub(super) async fn until_reconciled(cluster: &Cluster, at_least: f64) -> Result<()> {
    wait::eventually(Duration::from_secs(60), "reconciles", || async {
        Ok(reconciles(cluster).await?.filter(|count| *count >= at_least).map(|_| ()))
    })
    .await
}

/// Writes of the operator since the mark, Lease renewals and events apart.
fn our_writes(cluster: &Cluster, mark: u64) -> Result<Vec<audit::Request>> {
    Ok(audit::since(&cluster.audit_log(), mark)?
        .into_iter()
        .filter(|request| {
            request.user.starts_with(audit::OUR_USERS) && request.is_write() && !request.is_lease_or_review()
        })
        .collect())
}

pub fn a_second_reconcile_writes_nothing(cluster: &Cluster) -> Result<()> {
    let mark = cluster.run(async {
        let before = reconciles(cluster).await?.unwrap_or_default();
        let mark = audit::mark(&cluster.audit_log())?;
        // A third party touches a child of each kind in a way that is none of our business.
        cluster.kubectl(&[
            "annotate",
            "deployments,controllerrevisions,jobs",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/managed-by=llmops",
            "--overwrite",
            &format!("example.com/looked-at={before}"),
        ])?;
        until_reconciled(cluster, before + KINDS as f64).await?;
        anyhow::Ok(mark)
    })?;
    let writes = our_writes(cluster, mark)?;
    ensure!(writes.is_empty(), "a second reconcile wrote:\n{}", audit::lines(&writes));
    Ok(())
}

pub fn a_restarted_controller_writes_nothing(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let mark = audit::mark(&cluster.audit_log())?;
    cluster.run(async {
        let pods: Api<Pod> = Api::namespaced(client, SYSTEM);
        let labels = ListParams::default().labels("app.kubernetes.io/component=controller");
        for pod in pods.list(&labels).await? {
            pods.delete(&pod.name_any(), &kube::api::DeleteParams::default()).await?;
        }
        until_reconciled(cluster, KINDS as f64).await
    })?;
    let writes = our_writes(cluster, mark)?;
    ensure!(writes.is_empty(), "a restarted controller wrote:\n{}", audit::lines(&writes));
    Ok(())
}
