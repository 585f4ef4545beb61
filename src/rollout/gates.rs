//! What an Evaluation says of a candidate: its matching run, and the verdict.

use crate::api::Evaluation;
use crate::api::conditions::{find, is_true};
use crate::api::evaluation::{Dependency, Run, RunPhase, Verdict};
use crate::api::rollout::{ArmRevision, GateStatus, GateVerdict};
use crate::evaluator::plan::INDEX;

/// How a gate stands. `matches` tells whether a run is about the candidate.
///
/// A run counts when it is not stale and the Evaluation's status describes its present spec: a verdict about another
/// dataset, other metrics or other dependencies opens nothing.
pub fn gate(name: &str, evaluation: Option<&Evaluation>, matches: impl Fn(&Run) -> bool) -> GateStatus {
    let status = |run: Option<&Run>, verdict, message: String| GateStatus {
        evaluation: name.to_owned(),
        run: run.map(|run| run.name.clone()),
        verdict,
        message,
    };
    let Some(evaluation) = evaluation else {
        let message = format!("there is no Evaluation `{name}` in the namespace; create it");
        return status(None, GateVerdict::Inconclusive, message);
    };
    let seen = evaluation.status.as_ref();
    let current = seen.filter(|seen| seen.observed_generation == evaluation.metadata.generation);
    let run = current.and_then(|seen| seen.runs.iter().find(|run| !run.stale && matches(run)));
    let Some(run) = run else {
        if evaluation.spec.suspend {
            let message = format!("Evaluation `{name}` is suspended; set its spec.suspend to false");
            return status(None, GateVerdict::Inconclusive, message);
        }
        let waits = format!("Evaluation `{name}` has not judged this revision yet");
        // Without a case, or with a faulty spec, no run will come.
        let conditions = current.map(|seen| seen.conditions.as_slice()).unwrap_or_default();
        return match find(conditions, "Accepted").filter(|accepted| accepted.status == "False") {
            Some(refused) if is_true(conditions, "Stalled") => {
                let message = format!("Evaluation `{name}` cannot reach a verdict: {}", refused.message);
                status(None, GateVerdict::Inconclusive, message)
            }
            Some(refused) => status(None, GateVerdict::Pending, format!("{waits}: {}", refused.message)),
            None => status(None, GateVerdict::Pending, waits),
        };
    };
    let said = if run.message.is_empty() { String::new() } else { format!(": {}", run.message) };
    match (run.phase, run.verdict) {
        (RunPhase::Complete, Some(Verdict::Passed)) => status(Some(run), GateVerdict::Passed, String::new()),
        (RunPhase::Complete, Some(Verdict::Failed)) => {
            status(Some(run), GateVerdict::Failed, format!("Evaluation `{name}` did not pass{said}"))
        }
        (RunPhase::Complete, _) => {
            status(Some(run), GateVerdict::Inconclusive, format!("Evaluation `{name}` reached no verdict{said}"))
        }
        (RunPhase::Failed, _) => {
            status(Some(run), GateVerdict::Inconclusive, format!("Evaluation `{name}` could not be run{said}"))
        }
        _ => status(Some(run), GateVerdict::Pending, format!("Evaluation `{name}` is running")),
    }
}

/// How a gate of a model's revision or an index's generation stands: asked itself, or through a flow that uses it.
///
/// Before the first one (`is_first`) a flow is not asked: it waits for the model or the index to serve, and both would wait for ever.
pub fn gate_of_part(name: &str, evaluation: Option<&Evaluation>, part: &Dependency, is_first: bool) -> GateStatus {
    let target = evaluation.map(|evaluation| &evaluation.spec.target);
    if is_first && target.is_some_and(|target| target.prompt_flow_ref.is_some()) {
        let message = format!("Evaluation `{name}` asks a flow, which waits for the first revision: not asked");
        return GateStatus { evaluation: name.to_owned(), run: None, verdict: GateVerdict::Passed, message };
    }
    let reference = target.and_then(|target| match part.kind.as_str() {
        INDEX => target.rag_index_ref.as_ref(),
        _ => target.model_deployment_ref.as_ref(),
    });
    let is_target = reference.is_some_and(|reference| reference.name == part.name);
    gate(name, evaluation, |run| {
        let asked_itself = is_target && run.revisions.iter().any(|asked| asked.revision == part.revision);
        asked_itself || run.dependencies.contains(part)
    })
}

/// Whether a run judged these arms, as far as the evaluation evaluates their variants (none named: all).
/// A run that judged none of them is about something else.
pub fn judged(run: &Run, candidate: &[ArmRevision], variants: &[String]) -> bool {
    let evaluated = |arm: &&ArmRevision| variants.is_empty() || variants.contains(&arm.variant);
    let judged = |arm: &ArmRevision| {
        run.revisions.iter().any(|seen| seen.variant == arm.variant && seen.revision == arm.revision)
    };
    let mut arms = candidate.iter().filter(evaluated).peekable();
    arms.peek().is_some() && arms.all(judged)
}

/// Gates that have refused the candidate, in a sentence.
pub fn refusal(gates: &[GateStatus]) -> Option<String> {
    joined(gates, GateVerdict::Failed)
}

/// Gates whose verdict will not come by itself, in a sentence.
pub fn undecided(gates: &[GateStatus]) -> Option<String> {
    joined(gates, GateVerdict::Inconclusive)
}

/// Whether every gate of the plan has passed.
pub fn passed(plan: &[String], gates: &[GateStatus]) -> bool {
    plan.iter().all(|name| gates.iter().any(|gate| gate.evaluation == *name && gate.verdict == GateVerdict::Passed))
}

fn joined(gates: &[GateStatus], verdict: GateVerdict) -> Option<String> {
    let found: Vec<&str> =
        gates.iter().filter(|gate| gate.verdict == verdict).map(|gate| gate.message.as_str()).collect();
    (!found.is_empty()).then(|| found.join("; "))
}
