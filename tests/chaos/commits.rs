//! What Git does meanwhile: new revisions of the flow and the model, new documents. Applied as Argo CD applies them: again and
//! again until the API server takes it, without a wait for what was committed before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::ApiResource;
use serde_json::Value;

use crate::objects;

/// Longest time that the API server may stay away.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often each was committed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commits {
    pub flow: usize,
    pub model: usize,
    pub documents: usize,
}

/// What was committed when.
pub type Told = Vec<(Instant, String)>;

/// Applies an object until the API server takes it.
pub async fn apply(client: &Client, object: &Value) -> Result<()> {
    let types: TypeMeta = serde_json::from_value(object.clone())?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let name = object["metadata"]["name"].as_str().context("a name")?;
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams::apply("git").force();
    let started = Instant::now();
    loop {
        let tried =
            tokio::time::timeout(Duration::from_secs(5), api.patch(name, &parameters, &Patch::Apply(object))).await;
        let error = match tried {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 422) => {
                return Err(anyhow::anyhow!("{} {name} is refused: {}", types.kind, status.message));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        ensure!(started.elapsed() < PATIENCE, "{} {name} cannot be applied for {PATIENCE:?}: {error}", types.kind);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Commits until it is stopped.
pub struct Committer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(Commits, Told)>>,
}

impl Committer {
    pub fn start(client: Client, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(client, every, Arc::clone(&stop)));
        Self { stop, task }
    }

    /// What was committed at last, and when what.
    pub async fn finish(self) -> Result<(Commits, Told)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn run(client: Client, every: Duration, stop: Arc<AtomicBool>) -> Result<(Commits, Told)> {
    let mut commits = Commits::default();
    let mut told = Told::new();
    for turn in 0.. {
        let (what, object) = match turn % 5 {
            0 | 3 => {
                commits.flow += 1;
                (format!("flow {}", commits.flow), objects::gated(commits.flow)?)
            }
            1 | 2 => {
                commits.documents += 1;
                (format!("documents {}", commits.documents), objects::source(objects::NAMESPACE, commits.documents))
            }
            _ => {
                commits.model += 1;
                (format!("model {}", commits.model), objects::model(commits.model)?)
            }
        };
        apply(&client, &object).await?;
        told.push((Instant::now(), what));
        let until = Instant::now() + every;
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Ok((commits, told));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok((commits, told))
}
