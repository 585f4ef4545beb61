//! Indexes: documents become generations (`llmops index build`), and a generation answers searches
//! (`llmops index serve`).
//!
//! The road of a document: [`sources`] → [`chunk`] → [`embed`] → [`store`]; [`search`] is the one way to ask a
//! generation, for the [`gate`] that judges it and for the server alike.

pub mod build;
pub mod chunk;
pub mod embed;
pub mod gate;
pub mod job;
pub mod search;
pub mod serve;
pub mod sources;
pub mod store;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use job::EXIT_CONFIGURATION;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `llmops index`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Build and judge the generation of the plan in LLMOPS_INDEX_PLAN.
    Build(BuildArgs),
    /// Serve a generation: POST /search.
    Serve(serve::Args),
}

#[derive(clap::Args, Debug)]
struct BuildArgs {
    /// Folder of the store volume; generations are written below it.
    #[arg(long, default_value = job::STORE_MOUNT)]
    store: PathBuf,
    /// Folder with one folder for each source.
    #[arg(long, default_value = job::SOURCES_MOUNT)]
    sources: PathBuf,
    /// Folder with the golden questions.
    #[arg(long, default_value = job::GOLDEN_MOUNT)]
    golden: PathBuf,
    /// How long a mounted ConfigMap may take to show what the plan expects, in seconds.
    #[arg(long, default_value_t = 150)]
    mount_timeout: u64,
}

/// Runs `llmops index`.
pub async fn run(args: Args) -> ExitCode {
    match args.command {
        Command::Build(args) => run_build(args).await,
        Command::Serve(args) => serve::run(args).await,
    }
}

/// How long a build told to stop may take to save what it embedded.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

async fn run_build(args: BuildArgs) -> ExitCode {
    let paths = build::Paths {
        store: args.store,
        sources: args.sources,
        golden: args.golden,
        mount_timeout: Duration::from_secs(args.mount_timeout),
    };
    let cancel = build::Cancel::default();
    let (done, mut result) = tokio::sync::oneshot::channel();
    let (runtime, cancelled) = (Handle::current(), cancel.clone());
    // A thread of its own, not one of the runtime: the process may end while it is in the middle of a model's call.
    std::thread::spawn(move || {
        let build = || {
            let json = std::env::var(job::PLAN_ENV).map_err(|_| {
                let message = format!("the environment variable {} with the plan is not set", job::PLAN_ENV);
                build::BuildError::configuration("InvalidSpec", message)
            })?;
            build::run(&build::parse_plan(&json)?, &paths, &cancelled, &runtime)
        };
        // Nobody listens any more when the process is ending.
        let _ = done.send(build());
    });
    let stop = async {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            }
            _ => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = &mut result => result.ok(),
        () = stop => {
            tracing::info!("told to stop; saving what is embedded");
            cancel.cancel();
            let late = Ok(Err(build::BuildError::interrupted()));
            tokio::time::timeout(STOP_TIMEOUT, &mut result).await.unwrap_or(late).ok()
        }
    };
    let panicked = || Err(build::BuildError::transient("Internal", "the builder panicked; see its log"));
    let (report, code) = match result.unwrap_or_else(panicked) {
        Ok(report) => (report, ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(reason = error.reason(), "{error}");
            let code = match &error {
                build::BuildError::Configuration { .. } => ExitCode::from(EXIT_CONFIGURATION),
                build::BuildError::Transient { .. } => ExitCode::FAILURE,
            };
            (build::failed(&error), code)
        }
    };
    tracing::info!(passed = report.passed, reason = report.reason, "{}", report.message);
    build::report::leave(&build::report::fit(report));
    code
}
