//! How far a download is: for the controller over HTTP, for people on standard error.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::{Json, Router, routing::get};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// How far the download is. A total of 0 means that the server did not say it.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    total: AtomicU64,
}

/// Answer of `GET /progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Bytes on disk.
    pub bytes: u64,
    /// Size of the file in bytes, where the server says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

impl Progress {
    /// Sets the number of bytes on disk.
    pub fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
    /// Sets the size of the file.
    pub fn set_total(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }
    /// Both numbers.
    pub fn snapshot(&self) -> Snapshot {
        let total = self.total.load(Ordering::Relaxed);
        Snapshot { bytes: self.bytes.load(Ordering::Relaxed), total_bytes: (total > 0).then_some(total) }
    }
}

/// Serves `GET /progress` until the process ends; returns the address it listens on.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, progress: Arc<Progress>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = Router::new().route("/progress", get(move || async move { Json(progress.snapshot()) }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(bound)
}

/// Writes a line at each interval in which something moved; never returns.
pub async fn report(progress: Arc<Progress>, interval: Duration) {
    let mut before = progress.snapshot();
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = progress.snapshot();
        if now != before {
            tracing::info!("{}", line(before, now, interval));
            before = now;
        }
    }
}

/// The line of a report.
fn line(before: Snapshot, now: Snapshot, interval: Duration) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rate = mib(now.bytes.saturating_sub(before.bytes)) / interval.as_secs_f64();
    match now.total_bytes {
        Some(total) => format!(
            "{:.1} of {:.1} MiB ({:.0} %), {rate:.1} MiB/s",
            mib(now.bytes),
            mib(total),
            100.0 * now.bytes as f64 / total as f64
        ),
        None => format!("{:.1} MiB, {rate:.1} MiB/s", mib(now.bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_names_share_and_rate() {
        let at = |bytes, total_bytes| Snapshot { bytes, total_bytes };
        let five = Duration::from_secs(5);
        assert_eq!(line(at(0, None), at(10 << 20, Some(40 << 20)), five), "10.0 of 40.0 MiB (25 %), 2.0 MiB/s");
        assert_eq!(line(at(0, None), at(1 << 20, None), five), "1.0 MiB, 0.2 MiB/s");
    }
}
