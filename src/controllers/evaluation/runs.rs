//! The list of runs: what earlier statuses say, what the Jobs say now. Pure.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api::evaluation::{Run, RunPhase, Verdict};
use crate::api::names;
use crate::controllers::workload::{self, Cause};
use crate::evaluator::plan::RunSummary;

/// How a Job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// It runs, or is about to.
    Running,
    /// It ended well, with what it said; `None` when its message is lost.
    Succeeded(Option<RunSummary>),
    /// It failed for good.
    Failed(String),
}

/// How a Job stands.
pub fn state(job: &Job, pods: &[Pod]) -> JobState {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let has = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
    if has("Complete").is_some() {
        return JobState::Succeeded(messages(job, pods).into_iter().find(|summary| summary.verdict.is_some()));
    }
    let Some(failed) = has("Failed") else { return JobState::Running };
    let said = messages(job, pods).into_iter().map(|summary| summary.message).find(|message| !message.is_empty());
    let reason = failed.reason.as_deref().unwrap_or("Failed");
    let because = said.or_else(|| failed.message.clone()).unwrap_or_default();
    JobState::Failed(match reason {
        "DeadlineExceeded" => {
            format!("it took longer than spec.budget.timeout allows; raise it or ask less (last: {because})")
        }
        _ => format!("{reason}: {because}"),
    })
}

/// Whether the Job ended and left nothing that says how.
pub fn is_lost(job: &Job, pods: &[Pod]) -> bool {
    state(job, pods) == JobState::Succeeded(None)
}

/// What keeps a Job from ending well, as far as its pods show: the end of the last attempt, or why none can start.
pub fn trouble(job: &Job, pods: &[Pod]) -> Option<String> {
    let said = messages(job, pods).into_iter().map(|summary| summary.message).find(|message| !message.is_empty());
    if let Some(message) = said {
        return Some(format!("an attempt failed and is made again: {message}"));
    }
    let own = pods.iter().filter(|pod| is_of(pod, job));
    let mut troubles =
        own.filter_map(workload::trouble).filter(|trouble| !matches!(trouble.cause, Cause::Crashed { .. }));
    troubles.next().map(|trouble| trouble.message)
}

fn is_of(pod: &Pod, job: &Job) -> bool {
    let mut owners = pod.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Job");
    pod.labels().get("batch.kubernetes.io/job-name") == Some(&job.name_any())
        && owners.all(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
}

/// What the Job's pods said at their end, the latest first.
fn messages(job: &Job, pods: &[Pod]) -> Vec<RunSummary> {
    let mut ended: Vec<(Option<Time>, RunSummary)> = pods
        .iter()
        .filter(|pod| is_of(pod, job))
        .flat_map(|pod| pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()))
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .filter_map(|terminated| {
            let summary = serde_json::from_str(terminated.message.as_deref()?).ok()?;
            Some((terminated.finished_at.clone(), summary))
        })
        .collect();
    ended.sort_by(|a, b| b.0.cmp(&a.0));
    ended.into_iter().map(|(_, summary)| summary).collect()
}

/// Name of the run that a Job does.
pub fn run_of(job: &Job) -> Option<&str> {
    job.labels().get(names::LABEL_REVISION).map(String::as_str)
}

/// The runs as they are now, the one of the present state first, then the newest.
///
/// `current` is the run that the spec, the target and the dataset ask for now, or `None` when that is not known; then nothing becomes
/// stale. `report_url` tells where a run's report is.
pub fn history(
    previous: &[Run],
    current: Option<Run>,
    jobs: &[Job],
    pods: &[Pod],
    limit: usize,
    report_url: impl Fn(&str) -> String,
) -> Vec<Run> {
    let mut runs = previous.to_vec();
    if let Some(current) = &current {
        let known = runs.iter().position(|run| run.name == current.name).map(|at| runs.remove(at));
        runs.insert(0, known.unwrap_or_else(|| current.clone()));
    }
    let current_name = current.as_ref().map(|run| run.name.clone());
    let job_of = |run: &Run| jobs.iter().find(|job| run_of(job) == Some(run.name.as_str()));
    runs.retain_mut(|run| {
        let is_current = current_name.as_deref() == Some(run.name.as_str());
        match job_of(run).map(|job| (job, state(job, pods))) {
            // A run of a state that nobody asks for any more gives no verdict: its Job is deleted.
            Some((_, JobState::Running)) if !is_current && current_name.is_some() => return false,
            Some((job, JobState::Running)) => restart(run, job),
            Some((job, JobState::Succeeded(Some(summary)))) => complete(run, job, summary, &report_url),
            // Told once: when the pods are collected later, what they said is gone.
            Some((_, JobState::Failed(_))) if run.phase == RunPhase::Failed => {}
            Some((job, JobState::Failed(message))) => fail(run, job, message),
            Some((job, JobState::Succeeded(None))) if run.phase == RunPhase::Running && is_current => restart(run, job),
            Some((_, JobState::Succeeded(None))) => return run.phase != RunPhase::Running,
            // Without the trigger on revisions, the name is that of a run about the revisions before: a new Job asks the present ones.
            None if is_current && (wants_retry(run) || run.phase == RunPhase::Running) => {
                *run = current.as_ref().map_or_else(|| fresh(run), fresh);
            }
            None => return run.phase != RunPhase::Running || is_current || current_name.is_none(),
        }
        true
    });
    runs.truncate(limit.max(1));
    if let Some(current) = &current {
        for run in &mut runs {
            run.stale = run.name != current.name
                || run.revisions != current.revisions
                || run.dependencies != current.dependencies;
        }
    }
    runs
}

/// Whether a run without a Job is done again: deleting the Job of a run without a verdict asks for that.
fn wants_retry(run: &Run) -> bool {
    run.phase == RunPhase::Failed || run.verdict == Some(Verdict::Inconclusive)
}

/// The run before anything is known of it.
fn fresh(run: &Run) -> Run {
    Run {
        name: run.name.clone(),
        revisions: run.revisions.clone(),
        dependencies: run.dependencies.clone(),
        stale: false,
        dataset_digest: run.dataset_digest.clone(),
        phase: RunPhase::Running,
        verdict: None,
        message: String::new(),
        started: None,
        finished: None,
        cases: run.cases,
        errors: 0,
        cost: None,
        metrics: Vec::new(),
        report_url: None,
    }
}

fn restart(run: &mut Run, job: &Job) {
    let started = job.status.as_ref().and_then(|status| status.start_time.clone());
    *run = Run { started, ..fresh(run) };
}

fn times(run: &mut Run, job: &Job) {
    let status = job.status.as_ref();
    run.started = status.and_then(|status| status.start_time.clone());
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ended = conditions
        .iter()
        .find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True");
    let ended = ended.and_then(|condition| condition.last_transition_time.clone());
    run.finished = status.and_then(|status| status.completion_time.clone()).or(ended);
}

fn complete(run: &mut Run, job: &Job, summary: RunSummary, report_url: impl Fn(&str) -> String) {
    times(run, job);
    run.phase = RunPhase::Complete;
    run.verdict = summary.verdict;
    run.message = match summary.omitted {
        0 => summary.message,
        omitted => format!("{} ({omitted} results are only in the report)", summary.message),
    };
    run.cases = summary.cases;
    run.errors = summary.errors;
    run.cost = summary.cost;
    run.metrics = summary.metrics;
    run.report_url = summary.reported.then(|| report_url(&run.name));
}

fn fail(run: &mut Run, job: &Job, message: String) {
    times(run, job);
    run.phase = RunPhase::Failed;
    run.verdict = None;
    run.message = message;
}
