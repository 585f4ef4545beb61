//! Leader election by a Lease. Small and own, because it must run in virtual time with the rest, tell the write guard
//! until when the lead is certain, and survive an API server that is away for minutes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::leadership::{Leadership, Standing};

/// A holder that does not renew for this long has lost the Lease.
const DURATION: Duration = Duration::from_secs(15);
/// A holder trusts a renewal for this long: shorter than [`DURATION`], so that it stops before another starts.
const TRUST: Duration = Duration::from_secs(10);
/// Time between renewals, and between looks of those who wait.
const PERIOD: Duration = Duration::from_secs(3);

/// Takes part in the election for one Lease.
pub(crate) struct Election<'a> {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Name of this process; the pod's name.
    pub(crate) identity: String,
    pub(crate) leadership: Leadership,
    pub(crate) clock: &'a dyn Clock,
}

/// What was last seen of the Lease, and when: expiry is judged by our own clock, not by the holder's.
struct Seen {
    lease: Lease,
    at: Instant,
}

impl Election<'_> {
    /// Takes part until `stop`, then gives the Lease back.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut seen: Option<Seen> = None;
        loop {
            let step = tokio::time::timeout(PERIOD, self.step(&mut seen));
            tokio::select! {
                biased;
                outcome = step => match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(lease = self.name, %error, "lease not renewed");
                        seen = self.keep_unless_conflict(seen, &error);
                    }
                    Err(_) => tracing::warn!(lease = self.name, "lease not renewed: the API server does not answer"),
                },
                () = stop.cancelled() => break,
            }
            if !self.leadership.leads() {
                self.leadership.set(Standing::Follower);
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(PERIOD) => {}
                () = stop.cancelled() => break,
            }
        }
        let led = self.leadership.leads();
        self.leadership.set(Standing::Follower);
        if led && let Some(seen) = seen {
            match tokio::time::timeout(PERIOD, self.release(seen.lease)).await {
                Ok(Ok(())) => tracing::info!(lease = self.name, "lease released"),
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "lease not released; it expires by itself"),
                Err(_) => tracing::warn!(lease = self.name, "lease not released; it expires by itself"),
            }
        }
    }

    fn keep_unless_conflict(&self, seen: Option<Seen>, error: &kube::Error) -> Option<Seen> {
        // A conflict says that another process wrote: what we saw is history.
        let stale = matches!(error, kube::Error::Api(status) if status.code == 409 || status.code == 404);
        if stale { None } else { seen }
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn step(&self, seen: &mut Option<Seen>) -> Result<(), kube::Error> {
        let asked = Instant::now();
        // The holder renews on the version it wrote last, without reading; everyone else looks first.
        let holds = self.leadership.leads() && seen.as_ref().is_some_and(|seen| self.is_mine(&seen.lease));
        if !holds {
            let Some(lease) = self.api().get_opt(&self.name).await? else {
                let created = self.api().create(&PostParams::default(), &self.mine(None)).await?;
                return self.lead(seen, created, asked);
            };
            let same = seen.as_ref().is_some_and(|seen| {
                seen.lease.metadata.resource_version == lease.metadata.resource_version
                    && seen.lease.metadata.uid == lease.metadata.uid
            });
            if !same {
                *seen = Some(Seen { lease, at: asked });
            }
        }
        let Some(last) = seen.as_ref() else { return Ok(()) };
        if !self.is_mine(&last.lease) && !is_free(&last.lease) && last.at.elapsed() < DURATION {
            return Ok(());
        }
        let wanted = self.mine(Some(&last.lease));
        let written = self.api().replace(&self.name, &PostParams::default(), &wanted).await?;
        self.lead(seen, written, asked)
    }

    fn lead(&self, seen: &mut Option<Seen>, lease: Lease, asked: Instant) -> Result<(), kube::Error> {
        if !self.leadership.leads() {
            tracing::info!(lease = self.name, identity = self.identity, "leading");
        }
        *seen = Some(Seen { lease, at: asked });
        self.leadership.set(Standing::Leader(asked + TRUST));
        Ok(())
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        holder(lease) == Some(self.identity.as_str())
    }

    fn mine(&self, last: Option<&Lease>) -> Lease {
        let now = MicroTime(self.clock.now());
        let old = last.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let kept = last.is_some_and(|lease| self.is_mine(lease));
        let transitions = old.lease_transitions.unwrap_or_default();
        Lease {
            metadata: last.map_or_else(
                || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                |lease| ObjectMeta { managed_fields: None, ..lease.metadata.clone() },
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if kept { old.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(if kept || last.is_none() {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..LeaseSpec::default()
            }),
        }
    }

    async fn release(&self, lease: Lease) -> Result<(), kube::Error> {
        let Err(error) = self.give_back(&lease).await else { return Ok(()) };
        let kube::Error::Api(status) = &error else { return Err(error) };
        if status.code != 409 {
            return Err(error);
        }
        // A renewal that was under way at the stop may have been stored without our seeing its answer.
        match self.api().get_opt(&self.name).await? {
            Some(lease) if self.is_mine(&lease) => self.give_back(&lease).await,
            _ => Ok(()),
        }
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), kube::Error> {
        let mut wanted = self.mine(Some(lease));
        if let Some(spec) = &mut wanted.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        self.api().replace(&self.name, &PostParams::default(), &wanted).await.map(drop)
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn is_free(lease: &Lease) -> bool {
    holder(lease).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::{Value, json};

    use crate::controllers::clock::SystemClock;

    /// One Lease, and whether the API server answers.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<Value>>>,
        away: Arc<AtomicBool>,
        slow: Arc<AtomicBool>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: http::Request<Body>| {
                let server = server.clone();
                async move {
                    let writes = request.method() == http::Method::PUT;
                    let answer = server.answer(request).await;
                    // The write is done, its answer takes its time.
                    if writes && server.slow.load(Ordering::SeqCst) {
                        seconds(1).await;
                    }
                    answer
                }
            });
            Client::new(service, "default")
        }

        async fn answer(&self, request: http::Request<Body>) -> Result<http::Response<Body>, std::io::Error> {
            if self.away.load(Ordering::SeqCst) {
                return Err(std::io::Error::other("away"));
            }
            let method = request.method().clone();
            let bytes = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
            let mut stored = self.lease.lock().unwrap();
            let version = |value: &Value| value["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
            let refuse = |code: u16| {
                let reason = if code == 404 { "NotFound" } else { "Conflict" };
                (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": "", "reason": reason}))
            };
            let (code, body) = if method == http::Method::GET {
                stored.clone().map_or_else(|| refuse(404), |lease| (200, lease))
            } else {
                let mut sent: Value = serde_json::from_slice(&bytes).unwrap();
                let current = stored.as_ref().map(version);
                let fits = match &current {
                    None => method == http::Method::POST,
                    Some(current) => method == http::Method::PUT && *current == version(&sent),
                };
                if fits {
                    let next = current.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default() + 1;
                    sent["metadata"]["resourceVersion"] = json!(next.to_string());
                    *stored = Some(sent.clone());
                    (200, sent)
                } else {
                    refuse(409)
                }
            };
            let response = http::Response::builder().status(code);
            Ok(response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap())
        }

        fn start(&self, identity: &str) -> (Leadership, CancellationToken, tokio::task::JoinHandle<()>) {
            let (leadership, stop) = (Leadership::follower(), CancellationToken::new());
            let (client, guard, token, identity) =
                (self.client(), leadership.clone(), stop.clone(), identity.to_owned());
            let task = tokio::spawn(async move {
                let (namespace, name) = ("n".to_owned(), "l".to_owned());
                let clock = &SystemClock;
                Election { client, namespace, name, identity, leadership: guard, clock }.run(token).await;
            });
            (leadership, stop, task)
        }
    }

    async fn seconds(count: u64) {
        tokio::time::sleep(Duration::from_secs(count)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_a_release_hands_over_at_once() {
        let server = Server::default();
        let (first, stop, task) = server.start("first");
        seconds(1).await;
        let (second, _stop, _task) = server.start("second");
        seconds(60).await;
        assert!(first.leads() && !second.leads());
        stop.cancel();
        task.await.unwrap();
        assert!(!first.leads());
        seconds(PERIOD.as_secs() + 1).await;
        assert!(second.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_amid_a_renewal_releases_the_lease_too() {
        let server = Server::default();
        let (first, stop, task) = server.start("first");
        let (second, _stop, _task) = server.start("second");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(first.leads());
        server.slow.store(true, Ordering::SeqCst);
        tokio::time::sleep(PERIOD).await;
        stop.cancel();
        task.await.unwrap();
        seconds(PERIOD.as_secs() + 2).await;
        assert!(second.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_without_an_api_server_stops_before_another_may_start() {
        let server = Server::default();
        let (first, _stop, task) = server.start("first");
        seconds(1).await;
        assert!(first.leads());
        server.away.store(true, Ordering::SeqCst);
        seconds(TRUST.as_secs()).await;
        assert!(!first.leads(), "nobody renewed for longer than a renewal is trusted");
        server.away.store(false, Ordering::SeqCst);
        seconds(2 * PERIOD.as_secs()).await;
        assert!(first.leads(), "the Lease is still its own");
        task.abort();
        let _ = task.await;
        let (second, _stop, _task) = server.start("second");
        seconds(DURATION.as_secs() - 2).await;
        assert!(!second.leads());
        seconds(2 * PERIOD.as_secs() + 2).await;
        assert!(second.leads(), "a holder that vanished is replaced");
    }
}
