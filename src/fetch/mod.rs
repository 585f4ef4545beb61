//! `llmops fetch`: downloads a model file into the cache volume before the engine starts.

pub mod download;
pub mod partial;
pub mod progress;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::termination::{TerminationLog, shorten};
use download::{Download, Error};
use progress::Progress;

/// Exit code when a retry cannot help: the server's file is not the one that the spec names.
pub const EXIT_DIGEST_MISMATCH: u8 = 42;

/// Arguments of `llmops fetch`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address of the file, http or https.
    #[arg(long)]
    pub url: String,
    /// SHA-256 of the file, 64 hex characters.
    #[arg(long, value_parser = sha256)]
    pub sha256: String,
    /// Where the file goes; it appears there only whole and checked.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Address that answers GET /progress while the download runs, such as 10.0.0.7:8081.
    #[arg(long, value_name = "ADDR")]
    pub progress_listen: Option<SocketAddr>,
    /// Longest time without a byte before the download counts as stalled, such as 300s or 5m.
    #[arg(long, default_value = "300s", value_parser = positive_duration)]
    pub stall_timeout: Duration,
    /// Sent as a bearer token to the address's own host.
    #[arg(long, env = "LLMOPS_FETCH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub termination: TerminationLog,
}

/// Termination message of a failed download.
#[derive(Debug, Serialize)]
struct Failure<'a> {
    reason: &'a str,
    message: &'a str,
}

/// Runs the process.
pub async fn run(args: Args) -> ExitCode {
    let progress = Arc::new(Progress::default());
    if let Some(address) = args.progress_listen {
        // The download matters more than its progress: without the address it goes on.
        match progress::serve(address, Arc::clone(&progress)).await {
            Ok(address) => tracing::info!("progress at http://{address}/progress"),
            Err(error) => tracing::warn!("progress is not served: cannot listen on {address}: {error}"),
        }
    }
    let reporter = tokio::spawn(progress::report(Arc::clone(&progress), Duration::from_secs(5)));
    let download = Download {
        url: args.url,
        sha256: args.sha256,
        out: args.out,
        stall_timeout: args.stall_timeout,
        token: args.token.filter(|token| !token.is_empty()),
        pause: Duration::from_secs(1),
    };
    // The first process of a container ignores SIGTERM unless it handles it, and the pod would linger for its whole grace period.
    let result = match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            result = download.run(&progress) => result,
            _ = terminated.recv() => Err(Error::Interrupted),
        },
        Err(_) => download.run(&progress).await,
    };
    reporter.abort();
    match result {
        Ok(bytes) => {
            tracing::info!("{} is complete: {bytes} bytes, digest checked", download.out.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = error.to_string();
            tracing::error!("{message}");
            args.termination.write(&Failure { reason: error.reason(), message: &shorten(&message, 2048) });
            match error {
                Error::DigestMismatch { .. } => ExitCode::from(EXIT_DIGEST_MISMATCH),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected 64 hex characters".into())
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration: kube::core::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if duration.is_negative() || Duration::from(duration).is_zero() {
        return Err("must be above zero".into());
    }
    Ok(duration.into())
}

#[cfg(test)]
mod tests;
