//! The routing table: immutable, and built as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::keys::KeyTable;
use crate::api::model_deployment::Task;
use crate::api::prompt_flow::{Assignment, Capture};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use crate::experiment::assignment;
use crate::experiment::measurements::stratum;
use crate::gateway::endpoints::{Pool, Target, TargetKind};
use crate::gateway::flow::Program;

/// Objects by namespace and name.
pub type ByName<T> = BTreeMap<String, BTreeMap<String, Arc<T>>>;

/// Everything that decides where a request goes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Flows that are served.
    pub flows: ByName<FlowRoute>,
    /// Models and providers.
    pub models: ByName<ModelRoute>,
    /// Indexes.
    pub indexes: ByName<IndexRoute>,
    /// Who may ask.
    pub keys: KeyTable,
    /// The objects themselves, for the pages that show them.
    pub resources: Resources,
    /// Compiled revisions by namespace and ControllerRevision, kept for the next snapshot.
    pub(super) programs: HashMap<(String, String), Compiled>,
    /// What could not be read, for log and metrics: object and cause.
    pub problems: BTreeMap<String, String>,
}

/// The objects of the four kinds, as the API server has them.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Resources {
    pub flows: ByName<PromptFlow>,
    pub models: ByName<ModelDeployment>,
    pub indexes: ByName<RagIndex>,
    pub evaluations: ByName<Evaluation>,
}

/// A compiled ControllerRevision.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// UID of the ControllerRevision; its data never changes.
    pub uid: Option<String>,
    pub program: Result<Arc<Program>, String>,
}

/// A flow.
#[derive(Clone, Debug)]
pub struct FlowRoute {
    /// Namespace.
    pub namespace: String,
    /// Name of the PromptFlow.
    pub name: String,
    /// What is assigned.
    pub assignment: Assignment,
    /// The routing table of units; a (variant, revision) may have several entries.
    pub arms: Vec<Arm>,
    /// Name of the table, see [`stratum`].
    pub stratum: String,
    /// The table before it, while that one still holds.
    pub switch: Option<Switch>,
    /// The last release that was promoted.
    pub stable: Vec<Arm>,
    /// The release of the rollout under way, or of the last one.
    pub candidate: Vec<Arm>,
    /// Percent of the requests that are copied to the candidate; absent unless the rollout is in shadow.
    pub shadow: Option<i32>,
    /// Events that the experiment asks for.
    pub events: BTreeSet<String>,
    /// Revisions that exist, by name; more than those that get traffic.
    pub revisions: BTreeMap<String, Arc<Program>>,
    /// Revisions that exist and cannot be served, with the cause.
    pub broken: BTreeMap<String, String>,
    /// What is kept of each interaction.
    pub capture: Capture,
    /// How long it is kept.
    pub retention: Duration,
}

/// A change of the routing table at a moment on which all replicas agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// When the new table takes over, in milliseconds since 1970.
    pub at_ms: i64,
    /// The table until then.
    pub from: Vec<Arm>,
    /// Its name.
    pub stratum: String,
}

/// Where a unit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed<'a> {
    /// The arm.
    pub arm: &'a Arm,
    /// Name of the table.
    pub stratum: &'a str,
    /// Percent of the units that go to the arm's variant and revision, over all entries of the table.
    pub weight: i32,
}

/// An entry of a routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// The variant; of a model its own name.
    pub variant: String,
    /// Its revision.
    pub revision: String,
    /// Percent.
    pub weight: i32,
}

/// A model, or a provider.
#[derive(Clone, Debug)]
pub struct ModelRoute {
    /// Namespace.
    pub namespace: String,
    /// Name of the ModelDeployment.
    pub name: String,
    /// What it is for.
    pub task: Task,
    /// Name under which the engine or provider knows the model.
    pub served_name: String,
    /// Revisions that get requests.
    pub arms: Vec<Arm>,
    /// Name of the table, see [`stratum`].
    pub stratum: String,
    /// Its endpoints.
    pub pool: Pool,
    /// Set for a provider outside.
    pub external: Option<External>,
    /// What its use costs.
    pub price: Option<Price>,
}

/// A provider outside the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct External {
    /// Its bearer token.
    pub token: Option<String>,
    /// Why requests cannot be sent, such as a missing Secret.
    pub problem: Option<String>,
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("External").field("problem", &self.problem).finish_non_exhaustive()
    }
}

/// Cost of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    /// Cost of an input token.
    pub input: f64,
    /// Cost of an output token.
    pub output: f64,
    /// ISO 4217 code.
    pub currency: String,
}

/// An index.
#[derive(Clone, Debug)]
pub struct IndexRoute {
    /// Namespace.
    pub namespace: String,
    /// Name of the RagIndex.
    pub name: String,
    /// The generation in use.
    pub active: Option<String>,
    /// Its endpoints.
    pub pool: Pool,
}

fn get<'a, T>(objects: &'a ByName<T>, namespace: &str, name: &str) -> Option<&'a Arc<T>> {
    objects.get(namespace)?.get(name)
}

impl Snapshot {
    /// The flow of this name.
    pub fn flow(&self, namespace: &str, name: &str) -> Option<&Arc<FlowRoute>> {
        get(&self.flows, namespace, name)
    }

    /// The model of this name.
    pub fn model(&self, namespace: &str, name: &str) -> Option<&Arc<ModelRoute>> {
        get(&self.models, namespace, name)
    }

    /// The index of this name.
    pub fn index(&self, namespace: &str, name: &str) -> Option<&Arc<IndexRoute>> {
        get(&self.indexes, namespace, name)
    }

    /// Endpoints of a target, and the revision that it goes to now. `None` when there is no such object.
    pub fn resolve(&self, target: &Target) -> Option<(&Pool, Option<String>)> {
        let (pool, routed) = match target.kind {
            TargetKind::Model => {
                let route = self.model(&target.namespace, &target.name)?;
                (&route.pool, route.revision(&target.unit))
            }
            TargetKind::Index => {
                let route = self.index(&target.namespace, &target.name)?;
                (&route.pool, route.active.as_deref())
            }
        };
        Some((pool, target.pin.as_deref().or(routed).map(str::to_owned)))
    }
}

/// Percent of the units that go to an arm's variant and revision, over all entries of the table.
pub(in crate::gateway) fn weight_of(table: &[Arm], arm: &Arm) -> i32 {
    let same = table.iter().filter(|other| (&other.variant, &other.revision) == (&arm.variant, &arm.revision));
    same.map(|other| other.weight).sum()
}

/// Name of a routing table.
pub(super) fn stratum_of(arms: &[Arm]) -> String {
    stratum(arms.iter().map(|arm| (arm.variant.as_str(), arm.revision.as_str(), arm.weight)))
}

fn salt(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The arm of a unit. Units beyond the weights, if these do not sum to 100, get the first arm that has any.
fn pick<'a>(arms: &'a [Arm], salt: &str, unit: &str) -> Option<&'a Arm> {
    assignment::assign(salt, unit, arms.iter().map(|arm| arm.weight))
        .and_then(|place| arms.get(place))
        .or_else(|| arms.iter().find(|arm| arm.weight > 0))
}

impl FlowRoute {
    /// The salt of the split.
    pub fn salt(&self) -> String {
        self.assignment.salt.clone().unwrap_or_else(|| salt(&self.namespace, &self.name))
    }

    /// The table that holds at a moment, and its name.
    pub fn table(&self, now_ms: i64) -> (&[Arm], &str) {
        match &self.switch {
            Some(switch) if now_ms < switch.at_ms => (&switch.from, &switch.stratum),
            _ => (&self.arms, &self.stratum),
        }
    }

    /// Where a unit goes at a moment; `None` when no revision gets traffic.
    pub fn route(&self, unit: &str, now_ms: i64) -> Option<Routed<'_>> {
        let (table, stratum) = self.table(now_ms);
        let arm = pick(table, &self.salt(), unit)?;
        Some(Routed { arm, stratum, weight: weight_of(table, arm) })
    }

    /// The arm that a unit would have in the candidate release, and the arm's percent.
    pub fn candidate_arm(&self, unit: &str) -> Option<(&Arm, i32)> {
        let arm = pick(&self.candidate, &self.salt(), unit)?;
        Some((arm, weight_of(&self.candidate, arm)))
    }

    /// The variant that a revision belongs to, if it serves or is about to.
    pub fn variant_of(&self, revision: &str) -> Option<&str> {
        let known = self.arms.iter().chain(&self.candidate).chain(&self.stable);
        known.into_iter().find(|arm| arm.revision == revision).map(|arm| arm.variant.as_str())
    }

    /// Whether every arm with weight can be served.
    pub(super) fn can_serve(&self, arms: &[Arm]) -> bool {
        !arms.is_empty() && arms.iter().all(|arm| arm.weight <= 0 || self.revisions.contains_key(&arm.revision))
    }
}

impl ModelRoute {
    /// Whether its requests are split between revisions, as in a ramp.
    pub fn is_split(&self) -> bool {
        self.arms.iter().filter(|arm| arm.weight > 0).count() > 1
    }

    /// The revision of a unit. When none of its pods is ready, another one that gets traffic takes over, for as long.
    fn revision(&self, unit: &str) -> Option<&str> {
        let ready = |arm: &&Arm| self.pool.endpoints.get(&arm.revision).is_some_and(|found| !found.is_empty());
        let assigned = pick(&self.arms, &salt(&self.namespace, &self.name), unit);
        let other = || self.arms.iter().find(|arm| arm.weight > 0 && ready(arm));
        assigned.filter(ready).or_else(other).or(assigned).map(|arm| arm.revision.as_str())
    }

    /// Cost of tokens.
    pub fn cost(&self, input_tokens: u64, output_tokens: u64) -> Option<f64> {
        let price = self.price.as_ref()?;
        // Token counts stay far below 2^53, where a float is exact.
        #[allow(clippy::cast_precision_loss)]
        Some(input_tokens as f64 * price.input + output_tokens as f64 * price.output)
    }
}
