//! `llmops key`.
use std::process::ExitCode;
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct Args {}
/// Runs the command.
pub fn run(_: &Args) -> ExitCode {
    ExitCode::FAILURE
}
