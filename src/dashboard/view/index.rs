//! The page of an index.

use jiff::Timestamp;
use serde::Serialize;

use super::measure::decimal;
use super::shared::{
    Badge, ConditionRow, EVALUATION, Fact, MODEL, Rejected, State, Tone, bytes, conditions, count, moment, page_path,
    says_no, state, tenth,
};
use crate::api::RagIndex;
use crate::api::rag_index::{CandidatePhase, Quality, RagIndexStatus};

/// Width of a quality's drawing, in its own units.
pub const QUALITY_WIDTH: f64 = 160.0;

/// The page of an index.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexPage {
    pub namespace: String,
    pub name: String,
    pub state: State,
    pub facts: Vec<Fact>,
    pub generations: Vec<Generation>,
    pub width: f64,
    pub quality: Vec<QualityRow>,
    pub documents: Vec<(&'static str, String)>,
    pub failures: Vec<Failure>,
    pub rejected: Vec<Rejected>,
    pub conditions: Vec<ConditionRow>,
}

/// A generation that serves or is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generation {
    pub name: String,
    pub digest: String,
    pub badge: Badge,
    pub detail: String,
    pub endpoints: usize,
}

/// A metric over the golden questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QualityRow {
    pub metric: String,
    pub candidate: String,
    pub active: String,
    pub lower: String,
    pub queries: String,
    pub badge: Badge,
    /// Positions of both means on a scale from 0 to 1.
    pub candidate_at: Option<f64>,
    pub active_at: Option<f64>,
}

/// A document that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub uri: String,
    pub reason: String,
    pub message: String,
}

/// The state of an index.
pub fn index_state(index: &RagIndex) -> State {
    let status = index.status.as_ref();
    let found = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let told = state(found, index.spec.suspend);
    // Ready stays true while a candidate fails: something still serves.
    let failed = says_no(found, "QualityPassed")
        || status.and_then(|status| status.candidate.as_ref()).is_some_and(|on| on.phase == CandidatePhase::Failed);
    if told.badge.tone == Tone::Good && failed {
        let why = status.and_then(|status| status.rejected_generations.last());
        return State {
            badge: Badge::new(Tone::Bad, "Candidate failed"),
            reason: why.map_or(told.reason, |why| why.reason.clone()),
            message: why.map_or(told.message, |why| why.message.clone()),
        };
    }
    told
}

/// The metric's short name, such as `recall@10`.
pub fn metric_name(quality: &Quality) -> String {
    let name = match quality.metric.as_str() {
        "ndcg" => "nDCG",
        other => other,
    };
    format!("{name}@{}", quality.k)
}

/// The view of an index; `endpoints` tells the retrieval pods of a generation that the gateway may call.
pub fn index(index: &RagIndex, endpoints: impl Fn(&str) -> usize, now: Timestamp) -> IndexPage {
    let namespace = index.metadata.namespace.clone().unwrap_or_default();
    let none = RagIndexStatus::default();
    let status = index.status.as_ref().unwrap_or(&none);
    let rejected = status.rejected_generations.iter().map(|rejected| Rejected {
        revision: rejected.name.clone().unwrap_or_else(|| rejected.inputs.clone()),
        reason: rejected.reason.clone(),
        message: rejected.message.clone(),
        time: None,
    });
    IndexPage {
        name: index.metadata.name.clone().unwrap_or_default(),
        state: index_state(index),
        facts: facts(index, status, &namespace),
        generations: generations(status, endpoints, now),
        width: QUALITY_WIDTH,
        quality: status.quality.iter().map(quality).collect(),
        documents: documents(status),
        failures: status
            .failures
            .iter()
            .map(|failure| Failure {
                uri: failure.uri.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
            })
            .collect(),
        rejected: rejected.collect(),
        conditions: conditions(&status.conditions, now),
        namespace,
    }
}

fn facts(index: &RagIndex, status: &RagIndexStatus, namespace: &str) -> Vec<Fact> {
    let spec = &index.spec;
    let mut facts: Vec<Fact> = spec.sources.iter().map(|source| Fact::text("Source", &source.name)).collect();
    facts.push(Fact::text("Retrieval", format!("{:?}, {} chunks", spec.retrieval.mode, spec.retrieval.top_k)));
    if let Some(model) = &spec.embedding.model_ref {
        facts.push(Fact::link("Embedding", &model.name, page_path(MODEL, namespace, &model.name)));
    } else if let Some(embedding) = &status.embedding {
        facts.push(Fact::text("Embedding", format!("{}, {} dimensions", embedding.model, embedding.dimensions)));
    }
    if let Some(chunks) = status.chunks {
        facts.push(Fact::text("Chunks", count(chunks)));
    }
    if let Some(size) = status.bytes {
        facts.push(Fact::text("Size", bytes(size)));
    }
    if let Some(embedding) = &status.embedding {
        let text = format!(
            "{} tokens embedded, {} chunks reused",
            count(embedding.tokens_last_run),
            count(embedding.reused_chunks)
        );
        facts.push(Fact::text("Last build", text));
    }
    for gate in spec.gates.iter().flat_map(|gates| &gates.evaluations) {
        let name = &gate.evaluation_ref.name;
        facts.push(Fact::link("Gate", name, page_path(EVALUATION, namespace, name)));
    }
    if let Some(url) = &status.url {
        facts.push(Fact::code("URL", url));
    }
    facts
}

fn generations(status: &RagIndexStatus, endpoints: impl Fn(&str) -> usize, now: Timestamp) -> Vec<Generation> {
    let active = status.active.as_ref().map(|active| Generation {
        name: active.name.clone(),
        digest: active.digest.clone(),
        badge: Badge::new(Tone::Good, "Active"),
        detail: {
            let since = moment(active.since.0, now);
            format!("since {}, {}", since.shown, since.ago)
        },
        endpoints: endpoints(&active.name),
    });
    let candidate = status.candidate.as_ref().map(|candidate| Generation {
        name: candidate.name.clone().unwrap_or_else(|| candidate.inputs.clone()),
        digest: candidate.digest.clone().unwrap_or_default(),
        badge: Badge::new(
            if candidate.phase == CandidatePhase::Failed { Tone::Bad } else { Tone::Busy },
            format!("{:?}", candidate.phase),
        ),
        detail: if candidate.attempt > 1 { format!("attempt {}", candidate.attempt) } else { String::new() },
        endpoints: candidate.name.as_deref().map_or(0, endpoints),
    });
    active.into_iter().chain(candidate).collect()
}

fn quality(quality: &Quality) -> QualityRow {
    let shown = |number: Option<f64>| number.map_or_else(|| "–".into(), |number| decimal(number, 3));
    let position = |number: f64| tenth(QUALITY_WIDTH * number.clamp(0.0, 1.0));
    let (candidate, active) = (quality.candidate.value(), quality.active.as_ref().and_then(|active| active.value()));
    let lower = quality.lower95.as_ref().and_then(|lower| lower.value());
    QualityRow {
        metric: metric_name(quality),
        candidate: shown(candidate),
        active: shown(active),
        lower: match (lower, active) {
            (Some(lower), Some(_)) => format!("difference at least {}", decimal(lower, 3)),
            (Some(lower), None) => format!("at least {}", decimal(lower, 3)),
            _ => "–".into(),
        },
        queries: count(i64::from(quality.queries)),
        badge: if quality.passed { Badge::new(Tone::Good, "Passed") } else { Badge::new(Tone::Bad, "Failed") },
        candidate_at: candidate.map(position),
        active_at: active.map(position),
    }
}

fn documents(status: &RagIndexStatus) -> Vec<(&'static str, String)> {
    let Some(documents) = &status.documents else { return Vec::new() };
    vec![
        ("Scanned", count(documents.scanned)),
        ("Added", count(documents.added)),
        ("Modified", count(documents.modified)),
        ("Deleted", count(documents.deleted)),
        ("Unchanged", count(documents.unchanged)),
        ("Skipped", count(documents.skipped)),
        ("Failed", count(documents.failed)),
    ]
}
