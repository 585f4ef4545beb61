//! Builds a snapshot from what the watches hold. Pure: the same objects give the same table. The previous snapshot only
//! lends what must outlive it: load and health of endpoints, queues, and compiled revisions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Secret};

use super::keys::{self, KeyTable};
use super::table::{
    Arm, ByName, Compiled, External, FlowRoute, IndexRoute, ModelRoute, Price, Resources, Snapshot, Switch, stratum_of,
};
use crate::api::flow_revision::{FLOW_FORMAT, FlowRevision};
use crate::api::names::{COMPONENT_INDEX, COMPONENT_MODEL, LABEL_COMPONENT, LABEL_OWNER, LABEL_REVISION, PORT_NAME};
use crate::api::prompt_flow::FlowTraffic;
use crate::api::rollout::{ArmRevision, RolloutPhase};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use crate::gateway::endpoints::{Endpoint, EndpointState, Pool, PoolState};
use crate::gateway::flow::Program;

/// Revision of a provider whose status has none yet.
const PROVIDER: &str = "external";
/// Key of a provider's Secret that holds its token.
const TOKEN: &str = "token";

/// What the watches hold.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Flows.
    pub flows: Vec<Arc<PromptFlow>>,
    /// Models.
    pub models: Vec<Arc<ModelDeployment>>,
    /// Indexes.
    pub indexes: Vec<Arc<RagIndex>>,
    /// Evaluations; only shown, never routed by.
    pub evaluations: Vec<Arc<Evaluation>>,
    /// Contents of flow revisions.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Pods of models and indexes.
    pub pods: Vec<Arc<Pod>>,
    /// Secrets with an API key.
    pub keys: Vec<Arc<Secret>>,
    /// Secrets of providers.
    pub credentials: Vec<Arc<Secret>>,
    /// Objects that could not be decoded: object and cause.
    pub undecodable: BTreeMap<String, String>,
}

/// Endpoints by component, namespace and owner.
type Pods = HashMap<(String, String, String), BTreeMap<String, Vec<(String, String)>>>;

/// Builds a snapshot.
pub fn build(objects: &Objects, own_namespace: &str, previous: &Snapshot) -> Snapshot {
    let mut snapshot = Snapshot { problems: objects.undecodable.clone(), ..Snapshot::default() };
    let pods = ready_pods(&objects.pods);
    let lent = Lent::of(previous);
    for model in &objects.models {
        if let Some((namespace, name)) = identity(&model.metadata) {
            let route = model_route(model, namespace, name, &pods, &objects.credentials, &lent);
            insert(&mut snapshot.models, namespace, name, route);
        }
    }
    for index in &objects.indexes {
        if let Some((namespace, name)) = identity(&index.metadata) {
            let old = previous.index(namespace, name).map(|route| &route.pool);
            let endpoints = pods.get(&key(COMPONENT_INDEX, namespace, name));
            let active = index.status.as_ref().and_then(|status| status.active.as_ref());
            let route = IndexRoute {
                namespace: namespace.into(),
                name: name.into(),
                active: active.map(|active| active.name.clone()),
                pool: lent.pool(old, endpoints),
            };
            insert(&mut snapshot.indexes, namespace, name, route);
        }
    }
    flows(objects, previous, &mut snapshot);
    let mut found = Vec::with_capacity(objects.keys.len());
    for secret in &objects.keys {
        match keys::read(secret, own_namespace) {
            Ok(key) => found.push(key),
            Err(cause) => {
                snapshot.problems.insert(described("Secret", &secret.metadata), cause);
            }
        }
    }
    snapshot.keys = KeyTable::new(found);
    snapshot.resources = Resources {
        flows: by_name(&objects.flows),
        models: by_name(&objects.models),
        indexes: by_name(&objects.indexes),
        evaluations: by_name(&objects.evaluations),
    };
    snapshot
}

fn by_name<K: kube::Resource>(objects: &[Arc<K>]) -> ByName<K> {
    let mut found = ByName::<K>::new();
    for object in objects {
        if let Some((namespace, name)) = identity(object.meta()) {
            found.entry(namespace.to_owned()).or_default().insert(name.to_owned(), Arc::clone(object));
        }
    }
    found
}

type CompileResult = Result<Arc<Program>, String>;

fn flows(objects: &Objects, previous: &Snapshot, snapshot: &mut Snapshot) {
    // By namespace and flow: revisions, compiled.
    let mut revisions: HashMap<(&str, &str), Vec<(&str, CompileResult)>> = HashMap::new();
    for object in &objects.revisions {
        let Some((namespace, name)) = identity(&object.metadata) else { continue };
        let (Some(owner), Some(revision)) =
            (label(&object.metadata, LABEL_OWNER), label(&object.metadata, LABEL_REVISION))
        else {
            continue;
        };
        let at = (namespace.to_owned(), name.to_owned());
        let compiled = previous
            .programs
            .get(&at)
            .filter(|old| old.uid.is_some() && old.uid == object.metadata.uid)
            .cloned()
            .unwrap_or_else(|| Compiled { uid: object.metadata.uid.clone(), program: compile(object) });
        if let Err(cause) = &compiled.program {
            snapshot.problems.insert(described("ControllerRevision", &object.metadata), cause.clone());
        }
        revisions.entry((namespace, owner)).or_default().push((revision, compiled.program.clone()));
        snapshot.programs.insert(at, compiled);
    }
    for flow in &objects.flows {
        let Some((namespace, name)) = identity(&flow.metadata) else { continue };
        let status = flow.status.as_ref();
        let rollout = status.and_then(|status| status.rollout.as_ref());
        let in_shadow = rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::Shadowing);
        let arms: Vec<Arm> = status.map(|status| traffic(&status.traffic)).unwrap_or_default();
        let switch = status.and_then(|status| status.switch.as_ref()).map(|switch| {
            let from = traffic(&switch.from);
            Switch { at_ms: switch.at.0.as_millisecond(), stratum: stratum_of(&from), from }
        });
        let mut route = FlowRoute {
            namespace: namespace.into(),
            name: name.into(),
            assignment: flow.spec.assignment.clone(),
            stratum: stratum_of(&arms),
            arms,
            switch,
            stable: status.map(|status| release(&status.stable)).unwrap_or_default(),
            candidate: rollout.map(|rollout| release(&rollout.candidate)).unwrap_or_default(),
            shadow: flow.spec.rollout.shadow.as_ref().map(|shadow| shadow.percent).filter(|_| in_shadow),
            events: events(flow),
            revisions: BTreeMap::new(),
            broken: BTreeMap::new(),
            capture: flow.spec.telemetry.capture,
            retention: flow.spec.telemetry.retention.into(),
        };
        for (revision, program) in revisions.remove(&(namespace, name)).unwrap_or_default() {
            match program {
                Ok(program) => drop(route.revisions.insert(revision.to_owned(), program)),
                Err(cause) => drop(route.broken.insert(revision.to_owned(), cause)),
            }
        }
        settle(&mut route, previous.flow(namespace, name).map(Arc::as_ref));
        insert(&mut snapshot.flows, namespace, name, route);
    }
}

/// Sees to it that the table can be served. Status and contents come by different watches, and a candidate's content may
/// vanish or be of a newer format: until it is here and can be read, the table before serves, or else the stable release.
fn settle(route: &mut FlowRoute, previous: Option<&FlowRoute>) {
    if route.switch.as_ref().is_some_and(|switch| !route.can_serve(&switch.from)) {
        route.switch = None;
    }
    if route.arms.is_empty() || route.can_serve(&route.arms) {
        return;
    }
    if let Some(old) = previous.filter(|old| route.can_serve(&old.arms)) {
        let switch = old.switch.clone().filter(|switch| route.can_serve(&switch.from));
        (route.arms, route.stratum, route.switch) = (old.arms.clone(), old.stratum.clone(), switch);
    } else if route.can_serve(&route.stable) {
        (route.arms, route.stratum, route.switch) = (route.stable.clone(), stratum_of(&route.stable), None);
    }
}

/// Events that the flow's experiment names.
fn events(flow: &PromptFlow) -> BTreeSet<String> {
    let experiment = flow.spec.experiment.iter();
    let named = experiment.flat_map(|experiment| {
        let goal = experiment.goal.iter().map(|goal| &goal.event);
        goal.chain(experiment.guardrails.iter().map(|guardrail| &guardrail.event))
    });
    named.flatten().cloned().collect()
}

fn traffic(entries: &[FlowTraffic]) -> Vec<Arm> {
    let arm = |entry: &FlowTraffic| Arm {
        variant: entry.variant.clone(),
        revision: entry.revision.clone(),
        weight: entry.weight,
    };
    entries.iter().map(arm).collect()
}

fn release(entries: &[ArmRevision]) -> Vec<Arm> {
    let arm = |entry: &ArmRevision| Arm {
        variant: entry.variant.clone(),
        revision: entry.revision.clone(),
        weight: entry.weight,
    };
    entries.iter().map(arm).collect()
}

fn compile(object: &ControllerRevision) -> Result<Arc<Program>, String> {
    let data = object.data.as_ref().ok_or("data is empty; delete the object, the controller makes it anew")?;
    // The format is looked at first: a newer one may well not decode as this one.
    let format = data.0.get("format").and_then(serde_json::Value::as_u64);
    if format.is_some_and(|format| format > u64::from(FLOW_FORMAT)) {
        return Err(format!("format {} is newer than {FLOW_FORMAT}; upgrade the gateway", format.unwrap_or_default()));
    }
    let revision: FlowRevision = serde_path_to_error::deserialize(&data.0)
        .map_err(|error| format!("data.{}: {}", error.path(), error.inner()))?;
    Program::compile(revision).map(Arc::new).map_err(|error| error.to_string())
}

fn model_route(
    model: &ModelDeployment,
    namespace: &str,
    name: &str,
    pods: &Pods,
    credentials: &[Arc<Secret>],
    lent: &Lent<'_>,
) -> ModelRoute {
    let status = model.status.as_ref();
    let mut arms: Vec<Arm> = status
        .iter()
        .flat_map(|status| &status.traffic)
        .map(|arm| Arm { variant: name.to_owned(), revision: arm.revision.clone(), weight: arm.weight })
        .collect();
    let old = lent.snapshot.model(namespace, name).map(|route| &route.pool);
    let mut served_name = model.spec.model.as_ref().and_then(|model| model.name.clone()).unwrap_or_else(|| name.into());
    let mut external = None;
    let pool = if let Some(provider) = &model.spec.external {
        served_name.clone_from(&provider.model);
        external =
            Some(provider_access(provider.credentials_ref.as_ref().map(|r| r.name.as_str()), namespace, credentials));
        if arms.is_empty() {
            let revision = status.and_then(|status| status.stable_revision.clone()).unwrap_or_else(|| PROVIDER.into());
            arms.push(Arm { variant: name.to_owned(), revision, weight: 100 });
        }
        // All revisions of a provider are the same address.
        let base = provider.base_url.trim_end_matches('/').to_owned();
        lent.pool(
            old,
            Some(&arms.iter().map(|arm| (arm.revision.clone(), vec![(base.clone(), base.clone())])).collect()),
        )
    } else {
        lent.pool(old, pods.get(&key(COMPONENT_MODEL, namespace, name)))
    };
    let price = model.spec.cost.as_ref().map(|cost| Price {
        input: cost.input_per_million.value().unwrap_or(0.0) / 1e6,
        output: cost.output_per_million.value().unwrap_or(0.0) / 1e6,
        currency: cost.currency.clone(),
    });
    ModelRoute {
        namespace: namespace.into(),
        name: name.into(),
        task: model.spec.task,
        served_name,
        stratum: stratum_of(&arms),
        arms,
        pool,
        external,
        price,
    }
}

fn provider_access(secret: Option<&str>, namespace: &str, credentials: &[Arc<Secret>]) -> External {
    let Some(secret) = secret else { return External { token: None, problem: None } };
    let found = credentials.iter().find(|candidate| identity(&candidate.metadata) == Some((namespace, secret)));
    let token = found
        .and_then(|found| found.data.as_ref()?.get(TOKEN))
        .map(|token| String::from_utf8_lossy(&token.0).trim().to_owned())
        .filter(|token| !token.is_empty());
    let problem = match (found, &token) {
        (None, _) => Some(format!("Secret {namespace}/{secret} does not exist; create it with the key `{TOKEN}`")),
        (Some(_), None) => {
            Some(format!("Secret {namespace}/{secret} lacks the key `{TOKEN}`; add the provider's token"))
        }
        _ => None,
    };
    External { token, problem }
}

/// Ready pods with an address: UID and base address, by component, namespace, owner and revision.
fn ready_pods(pods: &[Arc<Pod>]) -> Pods {
    let mut found = Pods::new();
    for pod in pods {
        let meta = &pod.metadata;
        let (Some(component), Some(owner), Some(revision)) =
            (label(meta, LABEL_COMPONENT), label(meta, LABEL_OWNER), label(meta, LABEL_REVISION))
        else {
            continue;
        };
        let Some((namespace, name)) = identity(meta) else { continue };
        if meta.deletion_timestamp.is_some() {
            continue;
        }
        if let Some(base) = address(pod) {
            let id = meta.uid.clone().unwrap_or_else(|| name.to_owned());
            let revisions = found.entry(key(component, namespace, owner)).or_default();
            revisions.entry(revision.to_owned()).or_default().push((id, base));
        }
    }
    for endpoints in found.values_mut().flat_map(BTreeMap::values_mut) {
        endpoints.sort();
    }
    found
}

fn address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let ready =
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let address: std::net::IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
    let ports = pod.spec.as_ref()?.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port;
    let socket = std::net::SocketAddr::new(address, u16::try_from(port).ok()?);
    ready.then(|| format!("http://{socket}"))
}

/// What the previous snapshot lends.
struct Lent<'a> {
    snapshot: &'a Snapshot,
}

impl<'a> Lent<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Self { snapshot }
    }

    fn pool(&self, old: Option<&Pool>, endpoints: Option<&BTreeMap<String, Vec<(String, String)>>>) -> Pool {
        let state = old.map_or_else(|| Arc::new(PoolState::default()), |old| Arc::clone(&old.state));
        let known: HashMap<(&str, &str), &Arc<EndpointState>> = old
            .iter()
            .flat_map(|old| old.endpoints.values().flatten())
            .map(|endpoint| ((endpoint.id.as_str(), endpoint.base.as_str()), &endpoint.state))
            .collect();
        let endpoints = endpoints.into_iter().flatten().map(|(revision, found)| {
            let found = found.iter().map(|(id, base)| Endpoint {
                id: id.clone(),
                base: base.clone(),
                state: known.get(&(id.as_str(), base.as_str())).map_or_else(Arc::default, |state| Arc::clone(state)),
            });
            (revision.clone(), found.collect())
        });
        Pool { endpoints: endpoints.collect(), state }
    }
}

fn insert<T>(objects: &mut ByName<T>, namespace: &str, name: &str, object: T) {
    objects.entry(namespace.to_owned()).or_default().insert(name.to_owned(), Arc::new(object));
}

fn key(component: &str, namespace: &str, owner: &str) -> (String, String, String) {
    (component.to_owned(), namespace.to_owned(), owner.to_owned())
}

fn identity(meta: &kube::core::ObjectMeta) -> Option<(&str, &str)> {
    Some((meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn label<'a>(meta: &'a kube::core::ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

fn described(kind: &str, meta: &kube::core::ObjectMeta) -> String {
    let (namespace, name) = identity(meta).unwrap_or_default();
    format!("{kind} {namespace}/{name}")
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
