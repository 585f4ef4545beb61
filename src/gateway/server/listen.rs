//! Accepting connections and ending them: without Nagle's delay, and without breaking a stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use crate::gateway::metrics::Metrics;

/// Longest time for the headers of a request, which includes the idle time before it: longer than clients keep idle
/// connections, or a request could meet a connection that just closes.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connection(true);
        Self(Arc::clone(metrics))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connection(false);
    }
}

/// Serves until `stop` completes. Then no new connections are accepted, idle ones are closed, and running requests have
/// `timeout` to finish. Gives the number of connections that had not finished.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
    timeout: Duration,
) -> io::Result<usize> {
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: those that wait are served when others end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = connections.watch(connection);
        let counted = Counted::new(&metrics);
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    let open = connections.count();
    if open > 0 {
        tracing::info!(open, "finishing open requests");
    }
    let left = tokio::select! {
        () = connections.shutdown() => 0,
        () = tokio::time::sleep(timeout) => open,
    };
    Ok(left)
}
