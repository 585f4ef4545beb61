//! Calling an endpoint: picking, waiting, trying again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use tokio::time::Instant;

use super::health::Lease;
use super::pick::Choice;
use super::pool::{PoolState, Target, TargetKind, Unavailable};
use crate::gateway::metrics::Metrics;
use crate::gateway::routing::{External, Routes};
use crate::gateway::server::milliseconds_now;
use crate::gateway::store::{ModelCall, Store, hash_of_unit};
use crate::indexer::job::LOADING;

/// Longest error body that is read from an upstream, in bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Longest wait for an endpoint of a pinned revision that has none: as long as a watch may lag. Whoever pins wants to
/// hear soon that there is none.
const PINNED_WAIT: Duration = Duration::from_secs(2);
/// How often a background call looks for an endpoint.
const LOOK: Duration = Duration::from_millis(25);
/// Pause before the first further try; doubles each time.
const BACKOFF: Duration = Duration::from_millis(25);

/// Bounds on calls.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most calls at a time on one endpoint.
    pub per_endpoint: usize,
    /// Most calls that wait for an endpoint of one model or index.
    pub queue: usize,
    /// Longest wait for an endpoint.
    pub queue_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_endpoint: 64, queue: 1024, queue_timeout: Duration::from_secs(30) }
    }
}

/// Calls pods and providers.
#[derive(Debug)]
pub struct Upstream {
    routes: Arc<Routes>,
    pods: reqwest::Client,
    providers: reqwest::Client,
    limits: Limits,
    metrics: Arc<Metrics>,
    store: Arc<Store>,
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No endpoint took it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It took too long.
    #[error("{target} did not answer within {milliseconds} ms; raise the timeout or lower maxTokens")]
    Timeout {
        /// What was called.
        target: String,
        /// The time it had.
        milliseconds: u128,
    },
    /// The connection broke.
    #[error("the connection to {target} broke: {cause}")]
    Broken {
        /// What was called.
        target: String,
        /// Cause.
        cause: String,
    },
    /// The answer was an error.
    #[error("{target} answered {status}: {message}")]
    Status {
        /// What was called.
        target: String,
        /// Its status.
        status: StatusCode,
        /// Its own words, shortened.
        message: String,
        /// The body, for passing it on.
        body: Bytes,
    },
    /// The answer could not be understood.
    #[error("{target} gave an answer that is not of the OpenAI API: {cause}")]
    Unreadable {
        /// What was called.
        target: String,
        /// Cause.
        cause: String,
    },
    /// Requests cannot be sent at all.
    #[error("{0}")]
    Misconfigured(String),
}

impl CallError {
    /// Whether another try may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Unreadable { .. } => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504),
            Self::Unavailable(_) | Self::Timeout { .. } | Self::Misconfigured(_) => false,
        }
    }
}

/// An upstream that began to answer with a status of success.
#[derive(Debug)]
pub struct Answer {
    /// The response; its body is still to be read.
    pub response: reqwest::Response,
    /// Counts the call as load; keep it until the body is read.
    pub lease: Lease,
}

/// Whether an engine or index server says that it has only begun: it was restarted, and its pod is still taken for
/// ready. Nothing was done with the request. The words are those of llama.cpp's server and of `llmops index serve`.
fn is_loading(error: &CallError) -> bool {
    let CallError::Status { status: StatusCode::SERVICE_UNAVAILABLE, message, .. } = error else { return false };
    message.contains("Loading model") || message.contains(LOADING)
}

/// How often and how long a call may be tried.
#[derive(Debug)]
pub struct Attempts {
    left: u32,
    done: u32,
    started: Instant,
    deadline: Instant,
    queue_until: Instant,
}

impl Attempts {
    /// A call that may be tried again so often and take so long. `queue` bounds the wait for an endpoint.
    pub fn new(retries: u32, timeout: Duration, queue: Duration) -> Self {
        let now = Instant::now();
        Self { left: retries, done: 0, started: now, deadline: now + timeout, queue_until: now + queue.min(timeout) }
    }

    /// When the call must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The error of a call that took too long.
    pub fn timeout(&self, target: &Target) -> CallError {
        CallError::Timeout {
            target: target.to_string(),
            milliseconds: self.deadline.saturating_duration_since(self.started).as_millis(),
        }
    }
}

impl Upstream {
    /// Calls what these routes name.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        routes: Arc<Routes>,
        limits: Limits,
        metrics: Arc<Metrics>,
        store: Arc<Store>,
    ) -> Result<Self, reqwest::Error> {
        let base = || {
            reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(3))
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                // Shorter than engines keep idle connections (llama.cpp: 5 s), so that no call meets one that just closes.
                .pool_idle_timeout(Duration::from_secs(4))
        };
        Ok(Self {
            routes,
            // Pods speak plain HTTP inside the cluster: no proxy, and no certificates of the system are needed.
            pods: base().no_proxy().tls_certs_only([]).build()?,
            providers: match base().build() {
                Ok(client) => client,
                Err(error) => {
                    tracing::warn!(%error, "no certificates of the system: providers with https cannot be reached");
                    base().tls_certs_only([]).build()?
                }
            },
            limits,
            metrics,
            store,
        })
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The routes that calls follow.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Sends a JSON body and waits for the status, trying other endpoints while none answers.
    ///
    /// # Errors
    /// The last failure.
    pub async fn send(
        &self,
        target: &Target,
        path: &str,
        body: &Bytes,
        attempts: &mut Attempts,
    ) -> Result<Answer, CallError> {
        loop {
            let lease = self.acquire(target, attempts).await?;
            let error = match self.once(target, path, body, lease, attempts).await {
                Ok(answer) => return Ok(answer),
                Err(Failure { error, unsent: true, .. }) => {
                    // Nothing was sent, so this is no failed call: another endpoint, or the same one later.
                    tracing::debug!(%target, %error, "endpoint cannot be reached");
                    if Instant::now() >= attempts.queue_until {
                        return Err(error);
                    }
                    continue;
                }
                Err(Failure { error, .. }) => error,
            };
            if !self.again(target, &error, attempts).await {
                return Err(error);
            }
        }
    }

    /// Whether a failed call may be tried again; waits a moment if so. Only for calls of which the client has seen
    /// nothing.
    pub async fn again(&self, target: &Target, error: &CallError, attempts: &mut Attempts) -> bool {
        if target.background || !error.may_pass() || attempts.left == 0 || Instant::now() >= attempts.deadline {
            return false;
        }
        let Some(state) = self.pool_state(target) else { return false };
        if !state.spend(std::time::Instant::now()) {
            self.metrics.retry(target, false);
            return false;
        }
        self.metrics.retry(target, true);
        attempts.left -= 1;
        attempts.done += 1;
        let pause = BACKOFF.saturating_mul(1 << attempts.done.min(5)).mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::time::sleep(pause).await;
        true
    }

    async fn once(
        &self,
        target: &Target,
        path: &str,
        body: &Bytes,
        lease: Lease,
        attempts: &Attempts,
    ) -> Result<Answer, Failure> {
        let external = self.external(target);
        let client = if external.is_some() { &self.providers } else { &self.pods };
        let mut request = client
            .post(format!("{}{path}", lease.endpoint.base))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body.clone());
        if let Some(External { token, problem }) = external {
            if let Some(problem) = problem {
                return Err(Failure::of(CallError::Misconfigured(problem)));
            }
            if let Some(token) = token {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    Failure::of(CallError::Misconfigured(format!(
                        "the token of {target} has characters that no header can carry"
                    )))
                })?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        let state = Arc::clone(&lease.endpoint.state);
        let response = match tokio::time::timeout_at(attempts.deadline, request.send()).await {
            Err(_) => {
                self.metrics.attempt(target, "timeout");
                self.measure(target, &lease.revision, 1, true);
                self.eject(target, !target.background && state.failed(std::time::Instant::now()));
                return Err(Failure::of(attempts.timeout(target)));
            }
            Ok(Err(error)) => {
                self.metrics.attempt(target, if error.is_connect() { "unreachable" } else { "broken" });
                self.eject(target, state.unreachable(std::time::Instant::now()));
                let unsent = error.is_connect();
                if !unsent {
                    self.measure(target, &lease.revision, 1, true);
                }
                return Err(Failure { error: broken(target, &error), unsent });
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status.is_success() {
            self.metrics.attempt(target, "ok");
            self.measure(target, &lease.revision, 1, false);
            state.succeeded();
            return Ok(Answer { response, lease });
        }
        let body = tokio::time::timeout_at(attempts.deadline, error_body(response)).await.unwrap_or_default();
        let error = CallError::Status { target: target.to_string(), status, message: words(&body), body };
        if !target.background && is_loading(&error) {
            self.metrics.attempt(target, "loading");
            self.eject(target, state.unreachable(std::time::Instant::now()));
            return Err(Failure { error, unsent: true });
        }
        self.metrics.attempt(target, "error");
        // An error of the client's is no fault of the revision.
        self.measure(target, &lease.revision, 1, status.is_server_error());
        if status.is_server_error() && !target.background {
            self.eject(target, state.failed(std::time::Instant::now()));
        }
        Err(Failure::of(error))
    }

    /// The body broke off: what that says of the endpoint.
    pub fn broke_off(&self, target: &Target, lease: &Lease) {
        self.metrics.attempt(target, "broken");
        self.measure(target, &lease.revision, 0, true);
        self.eject(target, lease.endpoint.state.unreachable(std::time::Instant::now()));
    }

    /// Notes what a unit met, while the model's requests are split between revisions: a ramp goes on by it.
    fn measure(&self, target: &Target, revision: &str, calls: u32, failed: bool) {
        if !target.counts {
            return;
        }
        let snapshot = self.routes.load();
        let Some(route) = snapshot.model(&target.namespace, &target.name).filter(|route| route.is_split()) else {
            return;
        };
        let weight = route.arms.iter().filter(|arm| arm.revision == revision).map(|arm| arm.weight).sum();
        self.store.called(ModelCall {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            stratum: route.stratum.clone(),
            revision: revision.to_owned(),
            weight,
            unit: hash_of_unit(&target.namespace, &target.name, &target.unit),
            time_ms: milliseconds_now(),
            calls,
            failed: u32::from(failed),
        });
    }

    fn eject(&self, target: &Target, ejected: bool) {
        if ejected {
            self.metrics.ejection(target);
        }
    }

    fn external(&self, target: &Target) -> Option<External> {
        match target.kind {
            TargetKind::Model => self.routes.load().model(&target.namespace, &target.name)?.external.clone(),
            TargetKind::Index => None,
        }
    }

    fn pool_state(&self, target: &Target) -> Option<Arc<PoolState>> {
        self.routes.load().resolve(target).map(|(pool, _)| Arc::clone(&pool.state))
    }

    /// Whether a target has an endpoint with nothing to do.
    pub fn is_idle(&self, target: &Target) -> bool {
        let snapshot = self.routes.load();
        let Some((pool, Some(revision))) = snapshot.resolve(target) else { return false };
        let mut endpoints = pool.endpoints.get(&revision).into_iter().flatten();
        endpoints.any(|endpoint| endpoint.state.in_flight() == 0)
    }

    /// Takes an endpoint while nobody else waits for one. It stays out of the queue and looks again from time to time
    /// instead of being woken: a place that becomes free belongs to those whose answer is awaited.
    async fn acquire_in_background(&self, target: &Target, attempts: &Attempts) -> Result<Lease, Unavailable> {
        loop {
            let snapshot = self.routes.load();
            let (pool, revision) = snapshot.resolve(target).ok_or_else(|| Unavailable::Unknown(target.to_string()))?;
            let exists = |revision: &&String| pool.endpoints.get(*revision).is_some_and(|found| !found.is_empty());
            let taken = match revision.as_ref().filter(exists) {
                None => Err(Choice::Empty),
                Some(_) if pool.state.waiting() > 0 => Err(Choice::Full),
                Some(revision) => pool.take(revision, self.limits.per_endpoint, std::time::Instant::now()),
            };
            let choice = match taken {
                Ok(lease) => return Ok(lease),
                Err(choice) => choice,
            };
            if Instant::now() >= attempts.queue_until {
                let error = if choice == Choice::Full { Unavailable::Busy } else { Unavailable::NoneReady };
                return Err(error(target.to_string()));
            }
            drop(snapshot);
            tokio::time::sleep_until((Instant::now() + LOOK).min(attempts.queue_until)).await;
        }
    }

    /// Takes an endpoint, waiting for one if there is none at the moment.
    async fn acquire(&self, target: &Target, attempts: &Attempts) -> Result<Lease, Unavailable> {
        if target.background {
            return self.acquire_in_background(target, attempts).await;
        }
        let mut changes = self.routes.changes();
        let mut place = None;
        if attempts.done == 0
            && let Some(state) = self.pool_state(target)
        {
            state.earn();
        }
        loop {
            changes.mark_unchanged();
            let snapshot = self.routes.load();
            let (pool, revision) = snapshot.resolve(target).ok_or_else(|| Unavailable::Unknown(target.to_string()))?;
            let state = Arc::clone(&pool.state);
            let free = state.free().notified();
            tokio::pin!(free);
            // From here on a call that ends wakes this one, also between the look at the pool and the wait.
            free.as_mut().enable();
            let now = std::time::Instant::now();
            let taken = match &revision {
                Some(revision) => pool.take(revision, self.limits.per_endpoint, now),
                None => Err(Choice::Empty),
            };
            let mut last = attempts.queue_until;
            let (until, full) = match taken {
                Ok(lease) => return Ok(lease),
                Err(Choice::Until(until)) => (last.min(until.into()), false),
                Err(Choice::Empty) if target.pin.is_some() => {
                    last = last.min(attempts.started + PINNED_WAIT);
                    (last, false)
                }
                Err(choice) => (last, choice == Choice::Full),
            };
            if place.is_none() {
                place = state.queue(self.limits.queue);
                if place.is_none() {
                    return Err(Unavailable::QueueFull(target.to_string(), self.limits.queue));
                }
            }
            if Instant::now() >= last {
                let error = if full { Unavailable::Busy } else { Unavailable::NoneReady };
                return Err(error(target.to_string()));
            }
            drop(snapshot);
            tokio::select! {
                _ = changes.changed() => {}
                () = &mut free => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

struct Failure {
    error: CallError,
    /// Whether the endpoint certainly saw nothing of the request.
    unsent: bool,
}

impl Failure {
    fn of(error: CallError) -> Self {
        Self { error, unsent: false }
    }
}

/// The error of a connection that broke.
pub(in crate::gateway) fn broken(target: &Target, error: &reqwest::Error) -> CallError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    CallError::Broken { target: target.to_string(), cause: cause.to_string() }
}

async fn error_body(mut response: reqwest::Response) -> Bytes {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_ERROR_BODY {
            body.truncate(MAX_ERROR_BODY);
            break;
        }
    }
    body.into()
}

/// What an error body says, in at most 300 characters.
fn words(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value
        .pointer("/error/message")
        .or_else(|| value.pointer("/error"))
        .or_else(|| value.pointer("/message"))
        .and_then(serde_json::Value::as_str);
    let text = message.map_or_else(|| String::from_utf8_lossy(body), std::borrow::Cow::Borrowed);
    match text.trim() {
        "" => "no further words".to_owned(),
        text => text.chars().take(300).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_of_several_engines_are_understood() {
        for (body, expected) in [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"no model"}"#, "no model"),
            (r#"{"object":"error","message":"bad"}"#, "bad"),
            ("plain words\n", "plain words"),
            ("", "no further words"),
        ] {
            assert_eq!(words(body.as_bytes()), expected);
        }
        assert_eq!(words("é".repeat(500).as_bytes()).chars().count(), 300);
    }
}
