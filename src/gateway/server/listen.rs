//! Accepting connections and ending them: without Nagle's delay, and without breaking a stream.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::gateway::metrics::Metrics;

/// Longest time for the headers of a request, which includes the idle time before it: longer than clients keep idle
/// connections, or a request could meet a connection that just closes.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// Listens once the first lists are here. Readiness alone would not do: whoever has sent requests to this address before a
/// restart may go on, and a gateway that knows no key and no flow would refuse them all; a refused connection goes elsewhere.
///
/// # Errors
/// When the address cannot be listened on, or the watches have ended.
pub async fn open(address: SocketAddr, mut synced: watch::Receiver<bool>) -> io::Result<TcpListener> {
    synced.wait_for(|synced| *synced).await.map_err(io::Error::other)?;
    TcpListener::bind(address).await
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_answered_before_the_first_lists() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (synced, is_synced) = watch::channel(false);
        let opened = tokio::spawn(open(free, is_synced));
        tokio::task::yield_now().await;
        assert!(tokio::net::TcpStream::connect(free).await.is_err(), "a client met a gateway that knows nothing");
        synced.send_replace(true);
        let listener = opened.await.unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.is_ok());
    }
}
