//! The `llmops` binary: every process of the operator and its data plane, and the commands for people.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use llmops::cli::request::{self, Verb};
use llmops::cli::{Cli, Command};
use llmops::{controllers, evaluator, fetch, gateway, indexer, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two crates of the set bring a TLS provider of their own; without a process-wide choice TLS panics at run time.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed before main");
        return ExitCode::FAILURE;
    }
    telemetry::init(cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match cli.command {
            Command::Controller(args) => controllers::run(args).await,
            Command::Gateway(args) => gateway::run(args).await,
            Command::Index(args) => indexer::run(args).await,
            Command::Evaluate(args) => evaluator::run(args).await,
            Command::Fetch(args) => fetch::run(args).await,
            Command::Crds(args) => llmops::cli::crds::run(&args),
            Command::Validate(args) => llmops::cli::validate::run(&args),
            Command::Key(args) => llmops::cli::key::run(&args),
            Command::Status(args) => llmops::cli::status::run(args).await,
            Command::Promote(args) => request::run(Verb::Promote, args).await,
            Command::Rollback(args) => request::run(Verb::Rollback, args).await,
            Command::Hold(args) => request::run(Verb::Hold, args).await,
            Command::Resume(args) => request::run(Verb::Resume, args).await,
        }
    })
}
