//! How an Evaluation stands. Pure.

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use super::build::current_run;
use super::fetch::Fetched;
use super::runs::{history, run_of, trouble};
use super::{Evaluations, reason};
use crate::api::conditions::{Observation, find, merge};
use crate::api::evaluation::{Dependency, EvaluatedRevision, EvaluationStatus, Run, RunPhase, Verdict as Judgement};
use crate::api::{Evaluation, names};
use crate::controllers::apply::Applied;
use crate::controllers::error::Error;
use crate::controllers::events::Note;
use crate::controllers::kinds::Kind;
use crate::controllers::pipeline::{Stage, Verdict, View};
use crate::evaluator::plan::{EvaluationPlan, INDEX};

/// The status after a reconcile.
pub fn status(view: &View<'_, Evaluations>, gateway_url: &str) -> Verdict<Evaluation> {
    let object = view.object;
    let previous = view.previous;
    let limit = usize::try_from(object.spec.history_limit).unwrap_or(1);
    let url = |run: &str| {
        let base = gateway_url.trim_end_matches('/');
        format!("{base}/v1/reports/{}/{}/{run}", object.namespace().unwrap_or_default(), object.name_any())
    };
    let (runs, observed) = match &view.stage {
        Stage::Suspended => (previous.runs.clone(), suspended(previous)),
        Stage::Failed { fetched, error, .. } => {
            // What is wrong now takes nothing from the runs before, and one under way may end meanwhile.
            let mut runs = match fetched {
                Some(Fetched { jobs, pods, .. }) => history(&previous.runs, None, jobs, pods, limit, url),
                None => previous.runs.clone(),
            };
            if matches!(error, Error::Stalled { .. }) {
                // They are about a spec and a dataset that could be run.
                runs.iter_mut().for_each(|run| run.stale = true);
            }
            (runs, failed(previous, error))
        }
        Stage::Done { fetched, validated, applied, .. } => {
            let jobs = jobs(object, fetched, &validated.plan.run, applied);
            let current = current_run(validated);
            let runs = history(&previous.runs, Some(current), &jobs, &fetched.pods, limit, url);
            let own = jobs.iter().find(|job| run_of(job) == Some(validated.plan.run.as_str()));
            let trouble = own.and_then(|job| trouble(job, &fetched.pods));
            let mut observed = runs.first().map(|run| done(object, run, trouble)).unwrap_or_default();
            observed.extend(runs.first().map(|run| stale(run, &validated.plan)));
            (runs, observed)
        }
    };
    let events = events(&previous.runs, &runs);
    let generation = object.metadata.generation.unwrap_or_default();
    let conditions = merge(&previous.conditions, &observed, generation, view.now);
    let status = EvaluationStatus { observed_generation: Some(generation), runs, conditions };
    Verdict { events, ..Verdict::new(status) }
}

/// The Jobs after the apply: without those that were deleted, with the one that was made.
fn jobs(object: &Evaluation, fetched: &Fetched, run: &str, applied: &Applied) -> Vec<Job> {
    let name = names::evaluation_run(&object.name_any(), run);
    let gone = |job: &Job| applied.removed.contains(&(Kind::Job, job.name_any()));
    let mut jobs: Vec<Job> = fetched.jobs.iter().filter(|job| !gone(job) && job.name_any() != name).cloned().collect();
    if let Ok(Some(live)) = applied.live::<Job>(&name) {
        jobs.push(live);
    } else {
        jobs.extend(fetched.jobs.iter().filter(|job| !gone(job) && job.name_any() == name).cloned());
    }
    jobs
}

fn done(object: &Evaluation, run: &Run, trouble: Option<String>) -> Vec<Observation> {
    let accepted =
        Observation::yes("Accepted", reason::VALID, format!("{} cases fit the target and the metrics", run.cases));
    let job = names::evaluation_run(&object.name_any(), &run.name);
    match run.phase {
        RunPhase::Running => {
            let message = match trouble {
                Some(trouble) => format!("run {}: Job {job:?}: {trouble}", run.name),
                None => format!("run {}: Job {job:?} asks {} cases", run.name, run.cases),
            };
            vec![
                Observation::no("Ready", reason::RUN_IN_PROGRESS, &message),
                Observation::yes("Reconciling", reason::RUN_IN_PROGRESS, &message),
                Observation::no("Stalled", reason::OK, ""),
                accepted,
                Observation::no("Complete", reason::RUN_IN_PROGRESS, message),
                Observation::unknown("GatesPassed", reason::NO_VERDICT, "no verdict on the present state yet"),
            ]
        }
        RunPhase::Complete => {
            let (gates, why) = match run.verdict {
                Some(Judgement::Passed) => (Some(true), reason::GATES_PASSED),
                Some(Judgement::Failed) => (Some(false), reason::GATES_NOT_PASSED),
                Some(Judgement::Inconclusive) | None => (None, reason::INCONCLUSIVE),
            };
            let message = match gates {
                None => format!("{}; delete Job {job:?} to ask again", run.message),
                _ => run.message.clone(),
            };
            let report = match &run.report_url {
                Some(url) => format!("run {}: the report is at {url}", run.name),
                None => format!("run {} has no stored report; Job {job:?} has the table in its log", run.name),
            };
            vec![
                // Ready says that there is a result, not that it is good: GatesPassed says that.
                Observation::yes("Ready", why, &message),
                Observation::no("Reconciling", reason::RUN_COMPLETE, ""),
                Observation::no("Stalled", reason::OK, ""),
                accepted,
                Observation::yes("Complete", reason::RUN_COMPLETE, report),
                Observation { kind: "GatesPassed", status: gates, reason: why, message },
            ]
        }
        RunPhase::Failed => {
            let message =
                format!("Job {job:?} failed: {}; delete the Job to try again, or change the spec", run.message);
            vec![
                Observation::no("Ready", reason::RUN_FAILED, &message),
                Observation::no("Reconciling", reason::RUN_FAILED, ""),
                Observation::yes("Stalled", reason::RUN_FAILED, &message),
                accepted,
                Observation::no("Complete", reason::RUN_FAILED, message),
                Observation::unknown("GatesPassed", reason::NO_VERDICT, "the run failed before it had a verdict"),
            ]
        }
    }
}

/// Whether the newest run is about the past: only without the trigger on revisions, which would have started another.
fn stale(run: &Run, plan: &EvaluationPlan) -> Observation {
    if !run.stale {
        let message = "the newest run is about the present spec, dataset, revisions and what they use";
        return Observation::no("Stale", reason::UP_TO_DATE, message);
    }
    let asked = combination(&run.revisions, &run.dependencies);
    let present = combination(&plan.revisions, &plan.dependencies);
    let message = format!(
        "run {} is about {asked}, now there is {present}; set spec.trigger.onRevision to true to have that asked",
        run.name
    );
    Observation::yes("Stale", reason::REVISIONS_CHANGED, message)
}

/// Revisions and what they use in a few words: `control a1, model/writer b2`.
fn combination(revisions: &[EvaluatedRevision], dependencies: &[Dependency]) -> String {
    let revisions = revisions.iter().map(|asked| format!("{} {}", asked.variant, asked.revision));
    let used = dependencies.iter().map(|used| {
        let kind = if used.kind == INDEX { "index" } else { "model" };
        format!("{kind}/{} {}", used.name, used.revision)
    });
    revisions.chain(used).collect::<Vec<_>>().join(", ")
}

fn failed(previous: &EvaluationStatus, error: &Error) -> Vec<Observation> {
    let (why, message) = (error.reason(), error.to_string());
    let verdict = Observation::unknown("GatesPassed", reason::NO_VERDICT, format!("no verdict: {message}"));
    let stale = keep(previous, &["Stale"]);
    match error {
        Error::Stalled { .. } => {
            let mut observed = vec![
                Observation::no("Ready", why, &message),
                Observation::no("Reconciling", why, ""),
                Observation::yes("Stalled", why, &message),
                Observation::no("Accepted", why, &message),
                Observation::no("Complete", why, &message),
                verdict,
            ];
            if !previous.runs.is_empty() {
                let why_stale = format!("the runs are about what could still be run: {message}");
                observed.push(Observation::yes("Stale", why, why_stale));
            }
            observed
        }
        Error::Waiting { .. } => {
            // A target on its way is no fault of this object; one that is not there may be.
            let accepted = match why {
                reason::TARGET_NOT_READY => {
                    Observation::yes("Accepted", reason::VALID, "the dataset fits the target and the metrics")
                }
                _ => Observation::no("Accepted", why, &message),
            };
            let mut observed = vec![
                Observation::no("Ready", why, &message),
                Observation::yes("Reconciling", why, &message),
                Observation::no("Stalled", reason::OK, ""),
                accepted,
                Observation::no("Complete", why, message),
                verdict,
            ];
            observed.extend(stale);
            observed
        }
        // What may go away by itself takes no verdict back.
        Error::Transient { .. } | Error::Conflict(_) | Error::NotLeader => {
            let mut kept = keep(previous, &["Ready", "Accepted", "Complete", "GatesPassed", "Stale"]);
            if kept.iter().all(|observation| observation.kind != "Ready") {
                kept.insert(0, Observation::no("Ready", why, &message));
            }
            kept.insert(1, Observation::yes("Reconciling", why, message));
            kept.insert(2, Observation::no("Stalled", reason::OK, ""));
            kept
        }
    }
}

fn suspended(previous: &EvaluationStatus) -> Vec<Observation> {
    let message = "spec.suspend is true: nothing starts, a running Job goes on; set it to false to go on";
    let mut observed = vec![
        Observation::no("Ready", reason::SUSPENDED, message),
        Observation::no("Reconciling", reason::SUSPENDED, message),
        Observation::no("Stalled", reason::SUSPENDED, ""),
    ];
    observed.extend(keep(previous, &["Accepted", "Complete", "GatesPassed", "Stale"]));
    observed
}

/// Conditions of the status before, as they were.
fn keep(previous: &EvaluationStatus, kinds: &[&'static str]) -> Vec<Observation> {
    kinds
        .iter()
        .filter_map(|kind| {
            let condition = find(&previous.conditions, kind)?;
            let status = match condition.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            };
            let reason = known(&condition.reason)?;
            Some(Observation { kind, status, reason, message: condition.message.clone() })
        })
        .collect()
}

/// The reason of this text, if it is one of this kind's.
fn known(text: &str) -> Option<&'static str> {
    [
        reason::INVALID_SPEC,
        reason::DATASET_NOT_FOUND,
        reason::INVALID_DATASET,
        reason::TARGET_NOT_FOUND,
        reason::TARGET_NOT_READY,
        reason::UNKNOWN_VARIANT,
        reason::VALID,
        reason::RUN_IN_PROGRESS,
        reason::RUN_COMPLETE,
        reason::RUN_FAILED,
        reason::GATES_PASSED,
        reason::GATES_NOT_PASSED,
        reason::INCONCLUSIVE,
        reason::NO_VERDICT,
        reason::REVISIONS_CHANGED,
        reason::UP_TO_DATE,
        reason::SUSPENDED,
        reason::OK,
    ]
    .into_iter()
    .find(|known| *known == text)
}

/// An event for each verdict that is new. Failed runs make theirs by the condition `Stalled`.
fn events(before: &[Run], now: &[Run]) -> Vec<Note> {
    let was = |run: &Run| before.iter().find(|old| old.name == run.name).map(|old| old.phase);
    now.iter()
        .filter(|run| run.phase == RunPhase::Complete && was(run) != Some(RunPhase::Complete))
        .map(|run| match run.verdict {
            Some(Judgement::Passed) => Note::normal(reason::GATES_PASSED, format!("run {}: {}", run.name, run.message)),
            Some(Judgement::Failed) => {
                Note::warning(reason::GATES_NOT_PASSED, format!("run {}: {}", run.name, run.message))
            }
            Some(Judgement::Inconclusive) | None => {
                Note::warning(reason::INCONCLUSIVE, format!("run {}: {}", run.name, run.message))
            }
        })
        .collect()
}
