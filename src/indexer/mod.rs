//! indexer

pub mod chunk;
pub mod embed;
pub mod job;
use std::process::ExitCode;
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct Args {}
/// Runs the process.
pub async fn run(_: Args) -> ExitCode {
    ExitCode::FAILURE
}
