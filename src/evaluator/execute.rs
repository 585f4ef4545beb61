//! Asks every case of every revision, within the limits of the run.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::client::{AskError, Gateway, Question};
use super::dataset::{Case, DatasetError};
use super::outcome::{Answers, Asked};
use super::plan::{EvaluationPlan, PlannedTarget};

/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Why nothing more is asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// A case does not fit the target.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The gateway lets the run ask nothing.
    #[error(
        "{0}; check that the RoleBinding of the evaluation's ServiceAccount exists and that the revision is still served"
    )]
    Refused(String),
}

/// What the questions asked so far took.
#[derive(Default)]
struct Spent {
    tokens: AtomicI64,
    cost: Mutex<f64>,
    answers: AtomicUsize,
    errors: AtomicUsize,
}

/// Asks every case of every revision, `repeats` times, at most `concurrency` at once. All revisions are asked of a case before the
/// next case, so that a change of load or weather hits all of them alike.
///
/// # Errors
/// When a case does not fit, or the gateway refuses the run. Other failures are answers with an error.
pub async fn execute(plan: &EvaluationPlan, cases: &[Case], gateway: &Gateway) -> Result<Answers, ExecuteError> {
    let started = Instant::now();
    let questions: Vec<(usize, usize, u32)> = (0..cases.len())
        .flat_map(|case| (0..plan.revisions.len()).map(move |revision| (case, revision)))
        .flat_map(|(case, revision)| (0..plan.repeats).map(move |repeat| (case, revision, repeat)))
        .collect();
    let spent = Spent::default();
    let limit = Mutex::new(None);
    let ask = |(case, revision, repeat): (usize, usize, u32)| {
        let (spent, limit) = (&spent, &limit);
        async move {
            if let Some(reached) = reached(plan, spent, started) {
                limit.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reached);
                return Ok(None);
            }
            let remaining = Duration::from(plan.budget.timeout).saturating_sub(started.elapsed());
            let reply = match tokio::time::timeout(remaining, one(plan, cases, gateway, (case, revision, repeat))).await
            {
                // The run's own time is over, not the answer's: it is not an error of the revision.
                Err(_) => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(reply)) => reply,
            };
            match &reply {
                Ok(reply) => {
                    spent.tokens.fetch_add(reply.input_tokens + reply.output_tokens, Ordering::Relaxed);
                    *spent.cost.lock().unwrap_or_else(PoisonError::into_inner) += reply.cost.unwrap_or(0.0);
                    spent.answers.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    spent.errors.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("case {}: {error}", cases.get(case).map_or("", |case| &case.id));
                }
            }
            Ok(Some(Asked { case, revision, repeat, reply }))
        }
    };
    let total = questions.len();
    let concurrency = plan.concurrency.max(1) as usize;
    let mut running = futures::stream::iter(questions.into_iter().map(ask)).buffer_unordered(concurrency);
    let mut asked = Vec::with_capacity(total);
    let mut told = Instant::now();
    while let Some(outcome) = running.next().await {
        asked.extend(outcome?);
        if told.elapsed() >= PROGRESS_INTERVAL || asked.len() == total {
            told = Instant::now();
            progress(&spent, total, started);
        }
    }
    drop(running);
    asked.sort_by_key(|asked: &Asked| (asked.case, asked.revision, asked.repeat));
    let mut limit = limit.into_inner().unwrap_or_else(PoisonError::into_inner);
    if asked.len() < total && limit.is_none() {
        limit = Some(timeout_reached(plan));
    }
    Ok(Answers { asked, limit })
}

async fn one(
    plan: &EvaluationPlan,
    cases: &[Case],
    gateway: &Gateway,
    (case, place, repeat): (usize, usize, u32),
) -> Result<Result<super::outcome::Reply, String>, ExecuteError> {
    let (Some(row), Some(revision)) = (cases.get(case), plan.revisions.get(place)) else {
        return Ok(Err("there is no such case".into()));
    };
    let question = Question { case, place, revision, repeat };
    let reply = match &plan.target {
        PlannedTarget::Flow { inputs, .. } => gateway.ask_flow(question, &row.inputs(inputs)?).await,
        PlannedTarget::Model { .. } => gateway.ask_model(question, row.question(&plan.dataset.columns)?).await,
        PlannedTarget::Index { filters, .. } => {
            gateway.ask_index(question, row.question(&plan.dataset.columns)?, row.filters(filters)?).await
        }
    };
    match reply {
        Ok(reply) => Ok(Ok(reply)),
        Err(AskError::Failed(cause)) => Ok(Err(cause)),
        Err(AskError::Refused(cause)) => Err(ExecuteError::Refused(cause)),
    }
}

fn reached(plan: &EvaluationPlan, spent: &Spent, started: Instant) -> Option<String> {
    let tokens = spent.tokens.load(Ordering::Relaxed);
    let cost = *spent.cost.lock().unwrap_or_else(PoisonError::into_inner);
    if started.elapsed() >= Duration::from(plan.budget.timeout) {
        return Some(timeout_reached(plan));
    }
    if let Some(most) = plan.budget.max_tokens.filter(|most| tokens >= *most) {
        return Some(format!("spec.budget.maxTokens ({most}) was reached"));
    }
    let most = plan.budget.max_cost.as_ref()?;
    (cost >= most.value()?).then(|| format!("spec.budget.maxCost ({most}) was reached"))
}

fn timeout_reached(plan: &EvaluationPlan) -> String {
    format!("spec.budget.timeout ({}) was reached", plan.budget.timeout)
}

fn progress(spent: &Spent, total: usize, started: Instant) {
    let (answers, errors) = (spent.answers.load(Ordering::Relaxed), spent.errors.load(Ordering::Relaxed));
    let tokens = spent.tokens.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        "{} of {total} asked in {seconds:.0} s: {answers} answers, {errors} errors, {tokens} tokens",
        answers + errors
    );
}
