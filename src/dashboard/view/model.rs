//! The page of a model.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::rollout::{Plan, Rollout, rollout};
use super::shared::{Bar, ConditionRow, Fact, Rejected, Reports, State, bar, bytes, conditions, rejected, state};
use crate::api::ModelDeployment;
use crate::api::model_deployment::{ModelDeploymentStatus, RolloutStrategy};
use crate::api::rollout::{Promotion, RolloutPhase};

/// The page of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelPage {
    pub namespace: String,
    pub name: String,
    pub state: State,
    pub facts: Vec<Fact>,
    pub traffic: Bar,
    pub revisions: Vec<Revision>,
    pub replicas: Option<String>,
    pub download: Option<Download>,
    pub rollout: Option<Rollout>,
    pub rejected: Vec<Rejected>,
    pub conditions: Vec<ConditionRow>,
}

/// A revision that serves, is on its way, or has pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revision {
    pub revision: String,
    pub role: &'static str,
    pub weight: i32,
    /// Ready pods, or the provider.
    pub endpoints: usize,
}

/// A download under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Download {
    pub percent: Option<i64>,
    pub text: String,
}

/// The state of a model.
pub fn model_state(model: &ModelDeployment) -> State {
    let status = model.status.as_ref();
    state(status.map(|status| status.conditions.as_slice()).unwrap_or_default(), model.spec.suspend)
}

/// Its revisions as a bar.
pub fn model_traffic(status: &ModelDeploymentStatus) -> Bar {
    let stable = status.stable_revision.as_deref();
    let under_way = status
        .rollout
        .as_ref()
        .is_some_and(|rollout| !matches!(rollout.phase, RolloutPhase::Promoted | RolloutPhase::RolledBack));
    bar(status.traffic.iter().map(|entry| {
        let candidate = under_way && stable.is_some_and(|stable| stable != entry.revision);
        (entry.revision.clone(), entry.weight, candidate)
    }))
}

/// The view of a model; `endpoints` are those that the gateway may call, by revision.
pub fn model(
    model: &ModelDeployment,
    endpoints: &BTreeMap<String, usize>,
    reports: &Reports,
    now: Timestamp,
) -> ModelPage {
    let namespace = model.metadata.namespace.clone().unwrap_or_default();
    let none = ModelDeploymentStatus::default();
    let status = model.status.as_ref().unwrap_or(&none);
    let spec = &model.spec;
    let steps = if spec.rollout.strategy == RolloutStrategy::Canary { spec.rollout.steps.as_slice() } else { &[] };
    let plan = Plan {
        gated: !spec.rollout.gates.is_empty(),
        shadow: None,
        steps,
        manual: spec.rollout.decision.promotion == Promotion::Manual,
        reached: None,
    };
    let replicas = status.replicas.as_ref().map(|replicas| {
        format!("{} of {} ready, {} of the present revision", replicas.ready, replicas.desired, replicas.updated)
    });
    ModelPage {
        name: model.metadata.name.clone().unwrap_or_default(),
        state: model_state(model),
        facts: facts(model, status),
        traffic: model_traffic(status),
        revisions: revisions(status, endpoints),
        replicas: replicas.filter(|_| spec.external.is_none()),
        download: status.download.as_ref().map(download),
        rollout: status.rollout.as_ref().map(|told| rollout(told, plan, &namespace, reports, now)),
        rejected: rejected(&status.rejected_revisions, now),
        conditions: conditions(&status.conditions, now),
        namespace,
    }
}

fn facts(model: &ModelDeployment, status: &ModelDeploymentStatus) -> Vec<Fact> {
    let spec = &model.spec;
    let mut facts = vec![Fact::text("Task", format!("{:?}", spec.task))];
    if let Some(engine) = &spec.engine {
        facts.push(Fact::text("Engine", format!("{:?}", engine.r#type)));
    }
    if let Some(provider) = &spec.external {
        facts.push(Fact::code("Provider", &provider.base_url));
        facts.push(Fact::code("Model", &provider.model));
    }
    let source = spec.model.as_ref().and_then(|model| model.source.as_ref());
    if let Some(http) = source.and_then(|source| source.http.as_ref()) {
        facts.push(Fact::code("Source", &http.url));
    }
    if let Some(volume) = source.and_then(|source| source.pvc.as_ref()) {
        facts.push(Fact::code("Source", format!("{}/{}", volume.claim_name, volume.path)));
    }
    if let Some(resolved) = &status.resolved_model {
        if let Some(digest) = &resolved.digest {
            facts.push(Fact::code("Digest", digest));
        }
        if let Some(size) = resolved.bytes {
            facts.push(Fact::text("Size", bytes(size)));
        }
    }
    if let Some(cost) = &spec.cost {
        let text = format!(
            "{} in, {} out, {} a million tokens",
            cost.input_per_million, cost.output_per_million, cost.currency
        );
        facts.push(Fact::text("Cost", text));
    }
    if let Some(url) = &status.url {
        facts.push(Fact::code("URL", url));
    }
    facts
}

fn revisions(status: &ModelDeploymentStatus, endpoints: &BTreeMap<String, usize>) -> Vec<Revision> {
    let mut names: Vec<&str> = Vec::new();
    let told = status.traffic.iter().map(|entry| entry.revision.as_str());
    let named = [&status.stable_revision, &status.target_revision].into_iter().flatten().map(String::as_str);
    let candidates = status.rollout.iter().flat_map(|rollout| &rollout.candidate).map(|arm| arm.revision.as_str());
    for name in told.chain(named).chain(candidates).chain(endpoints.keys().map(String::as_str)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let role = |name: &str| {
        if status.stable_revision.as_deref() == Some(name) {
            "stable"
        } else if status.rejected_revisions.iter().any(|rejected| rejected.revision == name) {
            "rejected"
        } else if status.target_revision.as_deref() == Some(name) {
            "candidate"
        } else {
            "leaving"
        }
    };
    let weight = |name: &str| {
        status
            .traffic
            .iter()
            .filter(|entry| entry.revision == name)
            .map(|entry| entry.weight)
            .fold(0, i32::saturating_add)
    };
    let row = |name: &str| Revision {
        revision: name.to_owned(),
        role: role(name),
        weight: weight(name),
        endpoints: endpoints.get(name).copied().unwrap_or(0),
    };
    names.into_iter().map(row).collect()
}

fn download(download: &crate::api::model_deployment::Download) -> Download {
    let total = download.total_bytes.filter(|total| *total > 0);
    Download {
        percent: total.map(|total| (download.bytes.max(0).saturating_mul(100) / total).min(100)),
        text: match total {
            Some(total) => format!("{} of {}", bytes(download.bytes), bytes(total)),
            None => bytes(download.bytes),
        },
    }
}
