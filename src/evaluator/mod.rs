//! `llmops evaluate`: the Job of an evaluation run. It asks every case of the pinned revisions, measures the answers, judges them by
//! the gates, stores the reports at the gateway and leaves a summary for the controller.
//!
//! A run that was killed is done again, but no question that was answered is asked again: the gateway keeps each answer under the
//! Job, the case, the revision and the repeat, and gives it to the next attempt. The reports of the last attempt count.

pub mod client;
pub mod dataset;
pub mod execute;
pub mod metrics;
pub mod outcome;
pub mod plan;
pub mod report;
pub mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::api::evaluation::{MetricType, ReportFormat};
use crate::indexer::embed::{MiniLm, builtin_dir};
use crate::termination::TerminationLog;
use client::Gateway;
use dataset::{Case, DatasetError};
use metrics::Embed;
use plan::{EXIT_CONFIGURATION, EvaluationPlan, RunSummary};
use report::Report;

/// How often the dataset's mount is looked at until it shows what the controller saw.
const MOUNT_POLL: Duration = Duration::from_secs(2);
/// How long the mount may take; the kubelet refreshes it about once a minute.
const MOUNT_PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `llmops evaluate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The run, as JSON; the Evaluation controller writes it.
    #[arg(long, env = plan::PLAN_ENV, hide_env_values = true)]
    pub plan: String,
    /// Folder with the dataset.
    #[arg(long, default_value = plan::DATASET_MOUNT, value_name = "DIR")]
    pub dataset_dir: PathBuf,
    /// File with the token for the gateway.
    #[arg(long, default_value = plan::TOKEN_FILE, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Identity of the Job: what one of its attempts was answered is not asked again by the next. Empty: everything is asked.
    #[arg(long, env = plan::JOB_ENV, default_value = "")]
    pub job: String,
    /// Also write the reports into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub termination: TerminationLog,
}

/// Why a run could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan is not readable.
    #[error("the plan in LLMOPS_EVALUATION_PLAN is not readable: {0}")]
    Plan(serde_json::Error),
    /// The dataset cannot be read.
    #[error("cannot read the dataset {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The dataset is another one than the controller saw.
    #[error("the dataset {} has the digest {found}, but the run is for {expected}; the ConfigMap changed meanwhile", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// As mounted.
        found: String,
        /// As planned.
        expected: String,
    },
    /// The dataset is wrong.
    #[error("dataset {config_map}/{key}: {source}")]
    Dataset {
        /// Name of the ConfigMap.
        config_map: String,
        /// Its key.
        key: String,
        /// What is wrong.
        source: DatasetError,
    },
    /// The built-in embedder cannot be loaded.
    #[error("metric type EmbeddingSimilarity needs the built-in embedder: {0}")]
    Embedder(String),
    /// The HTTP client cannot be built.
    #[error("cannot make an HTTP client: {0}")]
    Client(String),
    /// Nothing more could be asked.
    #[error(transparent)]
    Execute(#[from] execute::ExecuteError),
    /// The answers could not be judged.
    #[error(transparent)]
    Judge(#[from] outcome::JudgeError),
    /// A report cannot be written.
    #[error("cannot write the {0} report: {1}")]
    Report(&'static str, String),
    /// The process was asked to end.
    #[error("interrupted; the next attempt goes on with what was not answered yet")]
    Interrupted,
}

impl Error {
    /// Whether only another plan or dataset helps.
    fn is_configuration(&self) -> bool {
        match self {
            Self::Plan(_) | Self::Dataset { .. } | Self::Report(..) => true,
            Self::Judge(error) => !matches!(error, outcome::JudgeError::Embed(_)),
            Self::Execute(error) => matches!(error, execute::ExecuteError::Dataset(_)),
            Self::Read { .. } | Self::Changed { .. } | Self::Embedder(_) | Self::Client(_) | Self::Interrupted => false,
        }
    }
}

/// A report, ready to be stored.
struct Rendered {
    /// Last part of the report's address.
    format: &'static str,
    file: &'static str,
    content_type: &'static str,
    body: String,
}

/// Runs the process.
pub async fn run(args: Args) -> ExitCode {
    // The first process of a container ignores SIGTERM unless it handles it, and the pod would linger for its whole grace period.
    let result = match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            result = evaluate(&args) => result,
            _ = terminated.recv() => Err(Error::Interrupted),
        },
        Err(_) => evaluate(&args).await,
    };
    match result {
        Ok(summary) => {
            args.termination.write(&summary);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error}");
            args.termination.write(&RunSummary::failure(error.to_string()).fitted());
            if error.is_configuration() { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

async fn evaluate(args: &Args) -> Result<RunSummary, Error> {
    let plan: EvaluationPlan = serde_json::from_str(&args.plan).map_err(Error::Plan)?;
    let started = jiff::Timestamp::now();
    let cases = read_cases(&plan, &args.dataset_dir).await?;
    let embedder = embedder(&plan).await?;
    let gateway = Gateway::new(&plan, args.token_file.clone(), Some(args.job.clone()), Duration::from_millis(500));
    let gateway = gateway.map_err(Error::Client)?;
    tracing::info!(
        "run {} of {}/{}: {} cases × {} revisions × {} repeats, at {}",
        plan.run,
        plan.namespace,
        plan.evaluation,
        cases.len(),
        plan.revisions.len(),
        plan.repeats,
        plan.gateway_url
    );
    let answers = execute::execute(&plan, &cases, &gateway).await?;
    let times = (started, jiff::Timestamp::now());
    let judging = plan.clone();
    // Embedding and comparing takes the CPU for seconds; the signal must be heard meanwhile.
    let judged = tokio::task::spawn_blocking(move || {
        let embedder = embedder.as_ref().map(|model| model as &dyn Embed);
        outcome::judge(&judging, &cases, &answers, embedder, times)
    });
    let report = judged.await.map_err(|error| Error::Report("JSON", error.to_string()))??;
    let (reported, problem) = store(&plan, &report, &gateway, args.out.as_deref()).await?;
    let mut summary = report.summary(reported);
    if let Some(problem) = problem {
        // The verdict stands without its report; who looks for the report must learn why there is none.
        tracing::warn!("{problem}");
        summary.message = format!("{} ({problem})", summary.message);
        summary = summary.fitted();
    }
    println!("{}", report::console::render(&report, reported.then(|| plan.report_url()).as_deref()));
    Ok(summary)
}

/// Reads the dataset once its mount shows what the controller saw.
async fn read_cases(plan: &EvaluationPlan, folder: &Path) -> Result<Vec<Case>, Error> {
    let path = folder.join(&plan.dataset.key);
    let deadline = tokio::time::Instant::now() + MOUNT_PATIENCE;
    let text = loop {
        let text =
            tokio::fs::read_to_string(&path).await.map_err(|source| Error::Read { path: path.clone(), source })?;
        let found = dataset::digest(&text);
        if found == plan.dataset.digest {
            break text;
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Changed { path, found, expected: plan.dataset.digest.clone() });
        }
        tokio::time::sleep(MOUNT_POLL).await;
    };
    let columns = &plan.dataset.columns;
    dataset::parse(&text, columns, plan.dataset.limit.map(|limit| limit as usize))
        .and_then(|cases| dataset::check(&cases, &plan.target, &plan.metrics, columns).map(|()| cases))
        .map_err(|source| Error::Dataset {
            config_map: plan.dataset.config_map.clone(),
            key: plan.dataset.key.clone(),
            source,
        })
}

/// The built-in embedder, when a metric needs it; loaded before anything is asked, so that its absence costs nothing.
async fn embedder(plan: &EvaluationPlan) -> Result<Option<MiniLm>, Error> {
    if !plan.metrics.iter().any(|metric| metric.r#type == MetricType::EmbeddingSimilarity) {
        return Ok(None);
    }
    let loaded = tokio::task::spawn_blocking(|| MiniLm::load(&builtin_dir())).await;
    let model = loaded.map_err(|error| Error::Embedder(error.to_string()))?;
    model.map(Some).map_err(|error| Error::Embedder(error.to_string()))
}

impl Embed for MiniLm {
    fn vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        self.embed(texts).map_err(|error| error.to_string())
    }
}

fn render(plan: &EvaluationPlan, report: &Report) -> Result<Vec<Rendered>, Error> {
    let mut rendered = Vec::new();
    for format in &plan.report {
        rendered.push(match format {
            ReportFormat::Json => Rendered {
                format: "json",
                file: "report.json",
                content_type: "application/json",
                body: serde_json::to_string(report).map_err(|error| Error::Report("JSON", error.to_string()))?,
            },
            ReportFormat::Junit => Rendered {
                format: "junit",
                file: "report.xml",
                content_type: "application/xml",
                body: report::junit::render(report).map_err(|error| Error::Report("JUnit", error.to_string()))?,
            },
            ReportFormat::Html => Rendered {
                format: "html",
                file: "report.html",
                content_type: "text/html; charset=utf-8",
                body: report::html::render(report).map_err(|error| Error::Report("HTML", error.to_string()))?,
            },
        });
    }
    Ok(rendered)
}

/// Stores the reports; says whether all are at the gateway, and else why not.
async fn store(
    plan: &EvaluationPlan,
    report: &Report,
    gateway: &Gateway,
    out: Option<&Path>,
) -> Result<(bool, Option<String>), Error> {
    let mut problem = None;
    let rendered = render(plan, report)?;
    let any = !rendered.is_empty();
    for Rendered { format, file, content_type, body } in rendered {
        if let Some(folder) = out {
            let written = tokio::fs::write(folder.join(file), &body).await;
            written.map_err(|error| Error::Report(format, format!("{}: {error}", folder.join(file).display())))?;
        }
        if let Err(error) = gateway.put_report(format, content_type, body).await {
            problem.get_or_insert(error);
        }
    }
    Ok((any && problem.is_none(), problem))
}

#[cfg(test)]
mod tests;
