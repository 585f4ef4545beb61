//! Recording a request: once, however it ends, and before its answer is given.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Asked, Gateway};
use crate::api::prompt_flow::Capture;
use crate::gateway::flow::Trace;
use crate::gateway::metrics::Served;
use crate::gateway::store::{Assigned, GivenAnswer, Interaction, Status, hash_of_unit};

/// What a request is about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `flow`, `model`, `embedding`, `rerank` or `index`.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Revision that serves.
    pub revision: String,
    /// Variant; empty for models.
    pub variant: String,
    /// The unit; only its hash is kept.
    pub unit: String,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether exact revisions were asked for.
    pub pinned: bool,
    /// How the unit was assigned; absent for pinned requests and for what is no flow.
    pub assigned: Option<Assigned>,
    /// Whether this is a shadow copy.
    pub shadow: bool,
    /// What is kept.
    pub capture: Capture,
    /// How long it is kept.
    pub retention: Duration,
    /// Inputs, kept with capture `Full`.
    pub inputs: Option<Map<String, Value>>,
}

/// Records a request when it ends. Dropped before that, it records that the client left.
#[derive(Debug)]
pub struct Recorder {
    gateway: Arc<Gateway>,
    asked: Asked,
    /// What the request is about.
    pub subject: Subject,
    /// What was done for it.
    pub trace: Arc<Trace>,
    ended: bool,
}

impl Recorder {
    /// Starts the clock.
    pub fn start(gateway: Arc<Gateway>, asked: Asked, subject: Subject) -> Self {
        Self { gateway, asked, subject, trace: Arc::new(Trace::start()), ended: false }
    }

    /// Request id.
    pub fn id(&self) -> &str {
        &self.asked.id
    }

    /// Who asked and when.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Nothing is recorded: the request says nothing of what it is about.
    pub fn discard(&mut self) {
        self.ended = true;
    }

    /// The request ended with an answer, which may be given once this returns. `given` is what will be given again to who
    /// asks again under the same key.
    pub async fn ok(&mut self, answer: Option<&str>, given: Option<GivenAnswer>) {
        let interaction = self.end(Status::Ok, None, answer);
        self.gateway.store.answered(interaction, given).await;
    }

    /// The request ended with an error of this code, which may be told once this returns.
    pub async fn failed(&mut self, code: &str) {
        let interaction = self.end(Status::Error, Some(code), None);
        self.gateway.store.answered(interaction, None).await;
    }

    /// What is to be kept; nothing when that was said before.
    fn end(&mut self, status: Status, error: Option<&str>, answer: Option<&str>) -> Option<Interaction> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let latency_ms = self.trace.elapsed_ms();
        let done = self.trace.done();
        let subject = &self.subject;
        let served = Served {
            kind: subject.kind,
            namespace: &subject.namespace,
            name: &subject.name,
            variant: &subject.variant,
            outcome: status.name(),
        };
        let tokens = (done.usage.input_tokens, done.usage.output_tokens);
        if subject.shadow {
            // Copies have a metric of their own; they are no requests that anybody made.
            self.gateway.metrics.tokens(&served, tokens);
        } else {
            self.gateway.metrics.served(&served, latency_ms, done.first_token_ms, tokens);
        }
        if subject.capture == Capture::None {
            return None;
        }
        let full = subject.capture == Capture::Full;
        let retention = i64::try_from(subject.retention.as_millis()).unwrap_or(i64::MAX);
        let json = |value: serde_json::Result<String>| value.unwrap_or_default();
        Some(Interaction {
            request: self.asked.id.clone(),
            time_ms: self.asked.time_ms,
            expires_ms: self.asked.time_ms.saturating_add(retention),
            kind: subject.kind,
            namespace: subject.namespace.clone(),
            name: subject.name.clone(),
            revision: subject.revision.clone(),
            variant: subject.variant.clone(),
            unit: hash_of_unit(&subject.namespace, &subject.name, &subject.unit),
            principal: self.asked.principal.name().to_owned(),
            status,
            error: error.map(str::to_owned),
            input_tokens: tokens.0,
            output_tokens: tokens.1,
            cost: done.usage.cost,
            currency: done.usage.currency.clone(),
            latency_ms,
            first_token_ms: done.first_token_ms,
            stream: subject.stream,
            pinned: subject.pinned,
            assigned: subject.assigned.clone(),
            shadow: subject.shadow,
            fallbacks: done.fallbacks,
            nodes: json(serde_json::to_string(&done.nodes)),
            dependencies: json(serde_json::to_string(&done.dependencies)),
            inputs: subject.inputs.as_ref().filter(|_| full).map(|inputs| json(serde_json::to_string(inputs))),
            answer: answer.filter(|_| full).map(str::to_owned),
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(interaction) = self.end(Status::Cancelled, None, None) {
            self.gateway.store.record(interaction);
        }
    }
}
