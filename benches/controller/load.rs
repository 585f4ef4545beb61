//! The objects: plain ones, and ours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use llmops::api::{ModelDeployment, conditions};
use serde_json::json;

const PLAIN: &str = "plain";
const MODELS: &str = "models";
/// Creates under way at once, for both sides.
const WRITERS: usize = 8;

async fn namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

/// What the operator renders for one model: what the plain side creates by itself, so that both sides ask the same of
/// the API server, the scheduler and the node.
pub struct Children {
    deployment: Deployment,
    service: Service,
}

/// Creates one model, takes its children as they are, and removes it again.
pub async fn children(client: &Client) -> Result<Children> {
    models(client, 1).await?;
    let deployments = Api::<Deployment>::namespaced(client.clone(), MODELS).list(&ListParams::default()).await?;
    let services = Api::<Service>::namespaced(client.clone(), MODELS).list(&ListParams::default()).await?;
    let deployment = deployments.items.into_iter().next().context("the model has no Deployment")?;
    let service = services.items.into_iter().next().context("the model has no Service")?;
    // The model first: a controller that sees its children go would make them again in a namespace that is going, too.
    Api::<ModelDeployment>::namespaced(client.clone(), MODELS)
        .delete_collection(&DeleteParams::background(), &ListParams::default())
        .await?;
    remove(client, MODELS).await?;
    Ok(Children { deployment, service })
}

/// Creates N times the children of a model and waits until every Deployment is available.
pub async fn plain(client: &Client, children: &Children, count: usize) -> Result<()> {
    namespace(client, PLAIN).await?;
    claim(client, PLAIN).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), PLAIN);
    let services: Api<Service> = Api::namespaced(client.clone(), PLAIN);
    stream::iter(0..count)
        .map(|at| {
            let (deployments, services) = (&deployments, &services);
            async move {
                let name = format!("plain-{at}");
                let (deployment, service) = children.named(&name);
                deployments.create(&PostParams::default(), &deployment).await?;
                services.create(&PostParams::default(), &service).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(WRITERS)
        .try_collect::<Vec<_>>()
        .await?;
    all(deployments, count, |deployment: &Deployment| {
        deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0) >= 1
    })
    .await
}

impl Children {
    /// The children under another name, with labels of their own and nobody's.
    fn named(&self, name: &str) -> (Deployment, Service) {
        let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.clone()), ..ObjectMeta::default() };
        let mut deployment =
            Deployment { metadata: metadata.clone(), spec: self.deployment.spec.clone(), ..Deployment::default() };
        if let Some(spec) = &mut deployment.spec {
            spec.selector.match_labels = Some(labels.clone());
            spec.template.metadata.get_or_insert_default().labels = Some(labels.clone());
        }
        let mut service = Service { metadata, spec: self.service.spec.clone(), ..Service::default() };
        if let Some(spec) = &mut service.spec {
            spec.selector = Some(labels);
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        (deployment, service)
    }
}

pub async fn remove_plain(client: &Client) -> Result<()> {
    remove(client, PLAIN).await
}

async fn remove(client: &Client, name: &str) -> Result<()> {
    Api::<Namespace>::all(client.clone()).delete(name, &DeleteParams::default()).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let gone = async {
        while namespaces.get_opt(name).await?.is_some() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(600), gone)
        .await
        .with_context(|| format!("namespace {name} was not gone within 600 s"))?
}

async fn claim(client: &Client, namespace: &str) -> Result<()> {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "files"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    }))?;
    Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &claim).await?;
    Ok(())
}

/// Creates N ModelDeployments and waits until every one is Ready.
pub async fn models(client: &Client, count: usize) -> Result<()> {
    namespace(client, MODELS).await?;
    claim(client, MODELS).await?;
    let models: Api<ModelDeployment> = Api::namespaced(client.clone(), MODELS);
    stream::iter(0..count)
        .map(|at| {
            let models = &models;
            async move {
                let model: ModelDeployment = serde_json::from_value(json!({
                    "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment",
                    "metadata": {"name": format!("model-{at}")},
                    "spec": {"task": "Chat", "model": {"source": {"pvc": {"claimName": "files", "path": "model.gguf"}}}, "engine": {"type": "LlamaCpp"}}
                }))?;
                models.create(&PostParams::default(), &model).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(WRITERS)
        .try_collect::<Vec<_>>()
        .await?;
    all(models, count, |model: &ModelDeployment| {
        model.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, "Ready"))
    })
    .await
}

/// Waits until so many objects hold at once.
async fn all<K>(api: Api<K>, count: usize, holds: impl Fn(&K) -> bool) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let watched = async {
        let mut ready = BTreeSet::new();
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
        while let Some(object) = events.try_next().await? {
            if holds(&object) {
                ready.insert(object.name_any());
            } else {
                ready.remove(&object.name_any());
            }
            if ready.len() >= count {
                return Ok(());
            }
        }
        bail!("the watch ended with {} of {count} ready", ready.len())
    };
    tokio::time::timeout(Duration::from_secs(1200), watched).await.context("not all were ready within 1200 s")?
}

/// Deletes the Deployments of some models and measures until others are there in their place.
pub async fn heal(client: &Client, count: usize) -> Result<f64> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), MODELS);
    let before = deployments.list(&ListParams::default()).await?;
    let victims: BTreeSet<String> = before.items.iter().take(count).map(ResourceExt::name_any).collect();
    let old: BTreeSet<String> = before.items.iter().filter_map(ResourceExt::uid).collect();
    // Watched, not listed again and again: lists of everything would take the time of who heals.
    let version = before.metadata.resource_version.clone().unwrap_or_default();
    let mut events = deployments.watch_metadata(&WatchParams::default(), &version).await?.boxed();
    let start = Instant::now();
    stream::iter(&victims)
        .map(|name| {
            let deployments = deployments.clone();
            async move { deployments.delete(name, &DeleteParams::background()).await }
        })
        .buffer_unordered(WRITERS)
        .try_collect::<Vec<_>>()
        .await?;
    let deleted = start.elapsed().as_secs_f64();
    let mut healed = BTreeSet::new();
    let back = async {
        while healed.len() < victims.len() {
            let event = events.try_next().await?.context("the watch ended before the children were back")?;
            if let WatchEvent::Added(child) = event
                && victims.contains(&child.name_any())
                && child.uid().is_some_and(|uid| !old.contains(&uid))
            {
                healed.insert(child.name_any());
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(120), back)
        .await
        .context("the deleted children were not back within 120 s")??;
    Ok(start.elapsed().as_secs_f64() - deleted)
}
