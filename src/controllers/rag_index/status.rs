//! How an index stands, pure. Ready says that a generation is servable, and stays True while a candidate fails.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use super::RagIndexes;
use super::advance::{Step, is_proven, ready, trouble_of};
use super::validate::{Blocked, Subject, Validated};
use crate::api::conditions::{Observation, find, merge};
use crate::api::rag_index::{CandidatePhase, RagIndexStatus, RejectedGeneration};
use crate::api::rollout::GateVerdict;
use crate::api::{RagIndex, names};
use crate::controllers::apply::Applied;
use crate::controllers::error::Error;
use crate::controllers::events::Note;
use crate::controllers::pipeline::{Stage, Verdict, View};

/// Reasons of an index's conditions: all there are besides those of failed API calls.
#[allow(missing_docs)]
pub mod reason {
    pub const SERVING: &str = "Serving";
    pub const UP_TO_DATE: &str = "UpToDate";
    pub const NOT_STALLED: &str = "NotStalled";
    pub const VALID: &str = "Valid";
    pub const RESOLVED: &str = "Resolved";
    pub const BUILTIN: &str = "Builtin";
    pub const NO_GATES: &str = "NoGates";
    pub const PASSED: &str = "Passed";
    pub const SUSPENDED: &str = "Suspended";
    pub const BUILDING: &str = "Building";
    pub const STARTING: &str = "Starting";
    pub const ROLLING: &str = "Rolling";
    pub const NO_GENERATION: &str = "NoGeneration";
    pub const NO_READY_PODS: &str = "NoReadyPods";
    pub const INVALID_SPEC: &str = "InvalidSpec";
    pub const CONFIG_MAP_NOT_FOUND: &str = "ConfigMapNotFound";
    pub const CONFIG_MAP_KEY_NOT_FOUND: &str = "ConfigMapKeyNotFound";
    pub const VOLUME_NOT_FOUND: &str = "VolumeNotFound";
    pub const SOURCE_NOT_TEXT: &str = "SourceNotText";
    pub const MODEL_NOT_FOUND: &str = "ModelNotFound";
    pub const MODEL_NOT_READY: &str = "ModelNotReady";
    pub const MODEL_TASK_MISMATCH: &str = "ModelTaskMismatch";
    pub const BUILD_FAILED: &str = "BuildFailed";
    pub const BUILD_DEADLINE_EXCEEDED: &str = "BuildDeadlineExceeded";
    pub const BUILD_OUT_OF_MEMORY: &str = "BuildOutOfMemory";
    pub const SERVER_NOT_READY: &str = "ServerNotReady";
    pub const GATING: &str = "Gating";
    pub const AWAITING_APPROVAL: &str = "AwaitingApproval";
    pub const EVALUATION_FAILED: &str = "EvaluationFailed";
    pub const ROLLED_BACK_BY_USER: &str = "RolledBackByUser";
    pub const GATES_PASSED: &str = "GatesPassed";

    /// Reasons that a builder reports.
    const OF_REPORTS: [&str; 18] = [
        INVALID_SPEC,
        "SourceUnreachable",
        "SourceOutdated",
        "SourceEmpty",
        "SourceTooLarge",
        "LinkLeavesSource",
        "Unreadable",
        "GoldenSetInvalid",
        "QualityBelowMinimum",
        "QualityRegression",
        "DeletionGuard",
        "TooManyFailures",
        "DimensionMismatch",
        "ModelUnusable",
        "ModelRefused",
        "StoreUnavailable",
        "ArtifactCorrupt",
        "Interrupted",
    ];

    /// The reason of a report, if it is one of the closed list; else [`BUILD_FAILED`].
    pub fn of_report(reason: Option<&str>) -> &'static str {
        let others = [MODEL_NOT_READY, EVALUATION_FAILED, ROLLED_BACK_BY_USER];
        let known = |reason: &str| OF_REPORTS.iter().copied().chain(others).find(|known| *known == reason);
        reason.and_then(known).unwrap_or(BUILD_FAILED)
    }
}

const CONDITIONS: [&str; 9] = [
    "Ready",
    "Reconciling",
    "Stalled",
    "Accepted",
    "SourcesReady",
    "EmbedderCompatible",
    "Built",
    "QualityPassed",
    GATES_PASSED,
];
const GATES_PASSED: &str = "GatesPassed";

/// The status after a reconcile.
pub fn verdict(view: &View<'_, RagIndexes>) -> Verdict<RagIndex> {
    let object = view.object;
    let mut verdict = Verdict::<RagIndex>::new(view.previous.clone());
    let observed = match &view.stage {
        Stage::Suspended => suspended(&verdict.status),
        Stage::Failed { error, .. } => failed(&verdict.status, error),
        Stage::Done { fetched, validated, plan, applied } => {
            let step = &plan.notes;
            verdict.status = RagIndexStatus { conditions: view.previous.conditions.clone(), ..step.status.clone() };
            verdict.again = step.again;
            verdict.events.extend(events(view.previous, step));
            verdict.events.extend(step.notes.iter().cloned());
            Situation { object, validated, step, applied, fetched }.observe()
        }
    };
    let status: &mut RagIndexStatus = &mut verdict.status;
    let namespace = object.namespace().unwrap_or_default();
    status.url = status
        .active
        .is_some()
        .then(|| format!("http://{}.{namespace}.svc:8080", names::index_service(&object.name_any())));
    let generation = object.metadata.generation.unwrap_or_default();
    status.observed_generation = Some(generation);
    let mut conditions = merge(&view.previous.conditions, &observed, generation, view.now);
    // What this reconcile did not look at stays as it was found.
    let has_gates = super::gating::names(&object.spec).next().is_some();
    for kind in CONDITIONS.into_iter().filter(|kind| has_gates || *kind != GATES_PASSED) {
        if find(&conditions, kind).is_none() {
            conditions.extend(find(&view.previous.conditions, kind).cloned());
        }
    }
    status.conditions = conditions;
    verdict
}

fn events(previous: &RagIndexStatus, step: &Step) -> Option<Note> {
    let generation = step.promoted.as_ref()?;
    let served = previous.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    served.then(|| Note::normal("GenerationServing", format!("{generation} serves now")))
}

struct Situation<'a> {
    object: &'a RagIndex,
    validated: &'a Validated,
    step: &'a Step,
    applied: &'a Applied,
    fetched: &'a super::Fetched,
}

impl Situation<'_> {
    fn blocked(&self) -> Option<&Blocked> {
        self.validated.inputs.as_ref().err()
    }

    fn observe(&self) -> Vec<Observation> {
        let mut observed = vec![self.ready(), self.reconciling(), self.stalled()];
        observed.extend(self.references());
        observed.extend(self.built());
        observed.extend(self.quality());
        observed.extend(self.gates());
        observed
    }

    fn phase(&self) -> Option<CandidatePhase> {
        self.step.status.candidate.as_ref().map(|candidate| candidate.phase)
    }

    fn deployment(&self) -> Option<Deployment> {
        let active = self.step.status.active.as_ref()?;
        self.applied.live::<Deployment>(&names::index_generation(&active.name)).ok().flatten()
    }

    /// Why nothing newer serves, in reason and words.
    fn holdup(&self) -> Option<(&'static str, String)> {
        if let Some(failure) = &self.step.failure {
            return Some((failure.reason, failure.message.clone()));
        }
        let trouble = |text: &str| match &self.step.trouble {
            Some(trouble) => format!("{text}; {trouble}"),
            None => text.to_owned(),
        };
        match self.phase() {
            Some(CandidatePhase::Building) => {
                let candidate = self.step.status.candidate.as_ref()?;
                let job = super::build::job_name(&self.object.name_any(), &candidate.inputs, candidate.attempt);
                Some((reason::BUILDING, trouble(&format!("Job `{job}` builds a generation"))))
            }
            Some(CandidatePhase::Starting) => {
                let name = self.step.status.candidate.as_ref()?.name.as_deref().unwrap_or_default();
                Some((reason::STARTING, trouble(&format!("generation {name} passed, its retrieval pods start"))))
            }
            Some(CandidatePhase::Gating) => {
                let name = self.step.status.candidate.as_ref()?.name.as_deref().unwrap_or_default();
                Some((reason::GATING, trouble(&format!("Evaluations ask generation {name} before it serves"))))
            }
            Some(CandidatePhase::AwaitingApproval) => {
                let name = self.step.status.candidate.as_ref()?.name.as_deref().unwrap_or_default();
                let text = format!(
                    "generation {name} waits for approval: set spec.generations.approve to it, or run `llmops promote`"
                );
                Some((reason::AWAITING_APPROVAL, trouble(&text)))
            }
            Some(CandidatePhase::Failed) | None => {
                self.blocked().map(|blocked| (blocked.reason, blocked.message.clone()))
            }
        }
    }

    fn ready(&self) -> Observation {
        let status = &self.step.status;
        let Some(active) = &status.active else {
            let (reason, message) =
                self.holdup().unwrap_or((reason::NO_GENERATION, "no generation was built yet".to_owned()));
            return Observation::no("Ready", reason, message);
        };
        let pods = self.deployment().as_ref().map_or(0, ready);
        if pods == 0 {
            let trouble = trouble_of(self.fetched, &active.name).unwrap_or_else(|| "no pod is ready".to_owned());
            return Observation::no("Ready", reason::NO_READY_PODS, format!("generation {}: {trouble}", active.name));
        }
        let counts = match (&status.documents, status.chunks) {
            (Some(documents), Some(chunks)) => format!(": {} documents in {chunks} chunks", documents.scanned),
            _ => String::new(),
        };
        Observation::yes("Ready", reason::SERVING, format!("generation {} serves{counts}", active.name))
    }

    fn reconciling(&self) -> Observation {
        let yes = |reason, message: String| Observation::yes("Reconciling", reason, message);
        match (&self.step.failure, self.blocked()) {
            (Some(failure), _) if failure.is_final => {
                return Observation::no("Reconciling", failure.reason, "waiting for other content or another spec");
            }
            (Some(failure), _) => return yes(failure.reason, format!("{}; it will be tried again", failure.message)),
            (None, Some(blocked)) if self.phase().is_none() && blocked.is_final() => {
                return Observation::no("Reconciling", blocked.reason, "waiting for another spec");
            }
            _ => {}
        }
        if let Some((reason, message)) = self.holdup() {
            return yes(reason, message);
        }
        match self.deployment() {
            Some(deployment) if !is_proven(&deployment, self.object.spec.replicas) => yes(
                reason::ROLLING,
                format!("{} of {} retrieval pods are ready", ready(&deployment), self.object.spec.replicas),
            ),
            _ => Observation::no("Reconciling", reason::UP_TO_DATE, "what serves is what the spec asks for"),
        }
    }

    fn stalled(&self) -> Observation {
        let keeps =
            self.step.status.active.as_ref().map_or_else(
                || "nothing serves".to_owned(),
                |active| format!("generation {} keeps serving", active.name),
            );
        if let Some(failure) = self.step.failure.as_ref().filter(|failure| failure.is_final) {
            return Observation::yes("Stalled", failure.reason, format!("{}; {keeps}", failure.message));
        }
        match self.blocked().filter(|blocked| blocked.is_final()) {
            Some(blocked) => Observation::yes("Stalled", blocked.reason, format!("{}; {keeps}", blocked.message)),
            None => Observation::no("Stalled", reason::NOT_STALLED, ""),
        }
    }

    fn references(&self) -> Vec<Observation> {
        let accepted = Observation::yes("Accepted", reason::VALID, "the spec is valid");
        let sources = Observation::yes("SourcesReady", reason::RESOLVED, "all sources and golden questions are there");
        let no = |kind, blocked: &Blocked| Observation::no(kind, blocked.reason, blocked.message.clone());
        match self.blocked() {
            Some(blocked) => match blocked.subject {
                Subject::Spec => vec![no("Accepted", blocked)],
                Subject::Sources => vec![accepted, no("SourcesReady", blocked)],
                Subject::Embedder => vec![accepted, sources, no("EmbedderCompatible", blocked)],
            },
            None => {
                let embedder = match &self.object.spec.embedding.model_ref {
                    Some(model) => (reason::RESOLVED, format!("ModelDeployment `{}` embeds", model.name)),
                    None => (reason::BUILTIN, "the built-in model embeds".to_owned()),
                };
                vec![accepted, sources, Observation::yes("EmbedderCompatible", embedder.0, embedder.1)]
            }
        }
    }

    fn built(&self) -> Option<Observation> {
        let candidate = self.step.status.candidate.as_ref();
        let is_built = candidate.map_or(self.step.status.active.is_some(), |candidate| candidate.name.is_some());
        if is_built {
            let name = candidate.and_then(|candidate| candidate.name.as_deref());
            let name = name.or(self.step.status.active.as_ref().map(|active| active.name.as_str())).unwrap_or_default();
            return Some(Observation::yes("Built", reason::UP_TO_DATE, format!("generation {name} is built")));
        }
        let (reason, message) = self.holdup()?;
        Some(Observation::no("Built", reason, message))
    }

    fn rejected(&self) -> Option<&RejectedGeneration> {
        let candidate = self.step.status.candidate.as_ref()?;
        self.step.status.rejected_generations.iter().find(|rejected| rejected.inputs == candidate.inputs)
    }

    /// What the Evaluations say of the candidate.
    fn gates(&self) -> Option<Observation> {
        super::gating::names(&self.object.spec).next()?;
        if let Some(rejected) = self.rejected().filter(|rejected| is_later(&rejected.reason)) {
            let reason = reason::of_report(Some(&rejected.reason));
            return Some(Observation::no(GATES_PASSED, reason, rejected.message.clone()));
        }
        let Some(candidate) = &self.step.status.candidate else {
            // Not told from the step that promotes: a crash in it would leave what was said before.
            let active = self.step.status.active.as_ref()?;
            let message = format!("generation {} serves, and no candidate stands before the gates", active.name);
            return Some(Observation::yes(GATES_PASSED, reason::GATES_PASSED, message));
        };
        let open = self.step.gates.iter().filter(|gate| gate.verdict != GateVerdict::Passed);
        let open: Vec<&str> = open.map(|gate| gate.message.as_str()).collect();
        Some(match candidate.phase {
            CandidatePhase::Gating | CandidatePhase::AwaitingApproval if open.is_empty() => {
                Observation::yes(GATES_PASSED, reason::GATES_PASSED, "the candidate passed every gate")
            }
            CandidatePhase::Gating | CandidatePhase::AwaitingApproval => {
                Observation::unknown(GATES_PASSED, reason::GATING, open.join("; "))
            }
            CandidatePhase::Building | CandidatePhase::Starting | CandidatePhase::Failed => {
                Observation::unknown(GATES_PASSED, reason::BUILDING, "the candidate is not asked yet")
            }
        })
    }

    fn quality(&self) -> Option<Observation> {
        let status = &self.step.status;
        let gated = self.object.spec.gates.as_ref().is_some_and(|gates| !gates.metrics.is_empty());
        let candidate = status.candidate.as_ref();
        let rejected = self.rejected();
        // What was rejected later had passed its golden questions.
        if let Some(rejected) = rejected.filter(|rejected| !is_later(&rejected.reason)) {
            let reason = reason::of_report(Some(&rejected.reason));
            return Some(Observation::no("QualityPassed", reason, rejected.message.clone()));
        }
        match candidate.map(|candidate| candidate.phase) {
            Some(CandidatePhase::Building) => {
                Some(Observation::unknown("QualityPassed", reason::BUILDING, "the candidate is not judged yet"))
            }
            Some(CandidatePhase::Failed) if candidate.is_some_and(|candidate| candidate.name.is_none()) => {
                let (reason, message) = self.holdup().unwrap_or((reason::BUILD_FAILED, String::new()));
                Some(Observation::unknown(
                    "QualityPassed",
                    reason,
                    format!("nothing was built to be judged: {message}"),
                ))
            }
            None if status.active.is_none() => None,
            _ if !gated => Some(Observation::yes(
                "QualityPassed",
                reason::NO_GATES,
                "spec.gates names no metric; only the guards were checked",
            )),
            _ => Some(Observation::yes("QualityPassed", reason::PASSED, results(status))),
        }
    }
}

/// Whether a generation was rejected after its golden questions.
fn is_later(reason: &str) -> bool {
    [reason::EVALUATION_FAILED, reason::ROLLED_BACK_BY_USER].contains(&reason)
}

/// The judged metrics in one line: `recall@10 0.9512 (41 questions)`.
fn results(status: &RagIndexStatus) -> String {
    let one = |quality: &crate::api::rag_index::Quality| {
        format!("{}@{} {} ({} questions)", quality.metric, quality.k, quality.candidate, quality.queries)
    };
    let all: Vec<String> = status.quality.iter().map(one).collect();
    if status.quality.iter().any(|quality| !quality.passed) {
        // They are those of a generation judged since, which did not pass.
        "the generation in use passed when it was judged".to_owned()
    } else if all.is_empty() {
        "all gates are passed".to_owned()
    } else {
        all.join(", ")
    }
}

fn failed(status: &RagIndexStatus, error: &Error) -> Vec<Observation> {
    let reason = error.reason();
    let mut observed = match error {
        Error::Stalled { message, .. } => vec![
            Observation::no("Reconciling", reason, "waiting for another spec"),
            Observation::yes("Stalled", reason, message.clone()),
        ],
        Error::Waiting { message, .. } => vec![
            Observation::yes("Reconciling", reason, message.clone()),
            Observation::no("Stalled", reason::NOT_STALLED, ""),
        ],
        Error::Transient { message, .. } => {
            vec![Observation::yes("Reconciling", reason, format!("{message}; trying again"))]
        }
        Error::Conflict(_) | Error::NotLeader => return Vec::new(),
    };
    if status.active.is_none() {
        observed.insert(0, Observation::no("Ready", reason, error.to_string()));
    }
    observed
}

fn suspended(status: &RagIndexStatus) -> Vec<Observation> {
    let message = "spec.suspend is true: nothing is built or changed, what serves goes on";
    let mut observed = vec![
        Observation::no("Reconciling", reason::SUSPENDED, message),
        Observation::no("Stalled", reason::NOT_STALLED, ""),
    ];
    if status.active.is_none() {
        observed.insert(0, Observation::no("Ready", reason::SUSPENDED, "spec.suspend is true and nothing serves yet"));
    }
    observed
}
