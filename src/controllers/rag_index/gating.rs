//! What stands before a generation whose retrieval pods are ready: Evaluations, an approval, a person's request. Pure.

use super::advance::Run;
use super::status::reason;
use crate::api::evaluation::Dependency;
use crate::api::names;
use crate::api::rag_index::{CandidateGeneration, CandidatePhase, GenerationPromotion, RagIndexSpec};
use crate::api::rollout::GateStatus;
use crate::controllers::events::Note;
use crate::evaluator::plan::INDEX;
use crate::rollout::gates::{gate_of_part, passed, refusal};
use crate::rollout::request::{Request, Verb};

/// Names of the Evaluations that a generation must pass.
pub fn names(spec: &RagIndexSpec) -> impl Iterator<Item = &str> {
    spec.gates.iter().flat_map(|gates| &gates.evaluations).map(|gate| gate.evaluation_ref.name.as_str())
}

/// Whether anything stands before a generation that is ready.
pub fn stand_before(spec: &RagIndexSpec) -> bool {
    names(spec).next().is_some() || spec.generations.promote == GenerationPromotion::Manual
}

impl Run<'_> {
    /// Does what a person asks for, once.
    pub(super) fn heed(&mut self) {
        let annotations = self.object.metadata.annotations.as_ref();
        let asked = annotations.and_then(|annotations| annotations.get(names::ANNOTATION_ROLLOUT)).cloned();
        let Some(asked) = asked.filter(|asked| self.step.status.last_handled_rollout_request.as_ref() != Some(asked))
        else {
            return;
        };
        if let Err(problem) =
            asked.parse().map_err(|error| format!("{error}")).and_then(|asked| self.do_as_asked(&asked))
        {
            self.step.notes.push(Note::warning("RequestRefused", problem));
        }
        self.step.status.last_handled_rollout_request = Some(asked);
    }

    fn do_as_asked(&mut self, asked: &Request) -> Result<(), String> {
        let named =
            self.step.status.candidate.clone().filter(|candidate| candidate.name.as_ref() == Some(&asked.revision));
        let Some(candidate) = named else {
            let known = self.step.status.candidate.as_ref().and_then(|candidate| candidate.name.as_deref());
            let known =
                known.map_or_else(|| "none is on its way".to_owned(), |known| format!("the candidate is {known}"));
            return Err(format!("`{asked}` names another generation; {known}"));
        };
        let waits = matches!(candidate.phase, CandidatePhase::Gating | CandidatePhase::AwaitingApproval);
        let held = |held| Some(CandidateGeneration { held, ..candidate.clone() });
        match asked.verb {
            Verb::Promote if candidate.phase == CandidatePhase::Failed => {
                let rejected = &mut self.step.status.rejected_generations;
                rejected.retain(|known| known.inputs != candidate.inputs);
                self.step.status.candidate = Some(CandidateGeneration { phase: CandidatePhase::Starting, ..candidate });
            }
            Verb::Promote => {
                let digest = candidate.digest.clone();
                let (Some(digest), true) = (digest, waits && self.answers(&asked.revision)) else {
                    return Err(format!(
                        "{} is not ready and cannot be promoted; ask again when it is",
                        asked.revision
                    ));
                };
                self.promote(candidate, asked.revision.clone(), digest);
            }
            Verb::Rollback if candidate.phase != CandidatePhase::Failed => {
                let message = "a person asked for it; `llmops promote` tries it anew".to_owned();
                self.reject(candidate, reason::ROLLED_BACK_BY_USER.to_owned(), message);
            }
            Verb::Hold if waits => self.step.status.candidate = held(true),
            Verb::Resume if candidate.held => self.step.status.candidate = held(false),
            Verb::Rollback => return Err(format!("`{asked}`: the generation is rejected already")),
            Verb::Hold => return Err(format!("`{asked}`: only a generation whose pods are ready can be held")),
            Verb::Resume => return Err(format!("`{asked}`: no person holds it")),
        }
        Ok(())
    }

    /// The candidate's pods are ready: its Evaluations decide, then a person where the spec asks for one.
    pub(super) fn gating(&mut self, candidate: CandidateGeneration) {
        let starts = CandidateGeneration { phase: CandidatePhase::Starting, ..candidate.clone() };
        let (Some(name), Some(digest)) = (candidate.name.clone(), candidate.digest.clone()) else {
            self.step.status.candidate = Some(starts);
            return;
        };
        if !self.answers(&name) {
            self.step.status.candidate = Some(starts);
            return;
        }
        self.step.gates = self.gates(&name);
        if let Some(message) = refusal(&self.step.gates) {
            let text = format!("{name} is rejected: {message}");
            self.step.notes.push(Note::warning(reason::EVALUATION_FAILED, text));
            self.reject(candidate, reason::EVALUATION_FAILED.to_owned(), message);
            return;
        }
        let wanted: Vec<String> = names(&self.object.spec).map(str::to_owned).collect();
        let is_passed = passed(&wanted, &self.step.gates);
        if candidate.held {
            self.step.trouble = Some("a person holds it; `llmops resume` goes on".to_owned());
        } else if is_passed && self.is_approved(&name) {
            self.promote(candidate, name, digest);
            return;
        } else if !is_passed {
            let open = self.step.gates.iter().filter(|gate| !gate.message.is_empty());
            self.step.trouble = Some(open.map(|gate| gate.message.as_str()).collect::<Vec<_>>().join("; "));
        }
        let phase = if is_passed { CandidatePhase::AwaitingApproval } else { CandidatePhase::Gating };
        // Held, it does not go on, whatever the gates say.
        let phase = if candidate.held { candidate.phase } else { phase };
        self.step.status.candidate = Some(CandidateGeneration { phase, ..candidate });
    }

    fn is_approved(&self, generation: &str) -> bool {
        let generations = &self.object.spec.generations;
        generations.promote == GenerationPromotion::Automatic || generations.approve.as_deref() == Some(generation)
    }

    fn gates(&self, generation: &str) -> Vec<GateStatus> {
        let name = self.object.metadata.name.clone().unwrap_or_default();
        let part = Dependency { kind: INDEX.to_owned(), name, revision: generation.to_owned() };
        let is_first = self.step.status.active.is_none();
        let gate = |name: &str| gate_of_part(name, self.fetched.evaluations.get(name), &part, is_first);
        names(&self.object.spec).map(gate).collect()
    }
}
