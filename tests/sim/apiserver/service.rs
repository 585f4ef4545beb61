//! The server as the HTTP service below a `kube::Client`, with latencies and faults.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep_until;
use tower::BoxError;

use super::error::ApiError;
use super::kinds::Kind;
use super::read;
use super::route::{Query, Route};
use super::selector::Selector;
use super::session::Session;
use super::store::Key;
use super::write::{Outcome, Write};
use super::{ApiServer, Inner, WriteRecord};
use crate::faults::strike::neighbours;
use crate::faults::{Badness, OnWrite, Outage};

/// Body of an answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// The service of one session.
#[derive(Clone)]
pub struct SimService {
    server: ApiServer,
    session: Arc<Session>,
}

impl ApiServer {
    /// A client of this server.
    pub fn client(&self, session: Arc<Session>) -> kube::Client {
        kube::Client::new(SimService { server: self.clone(), session }, "default")
    }
}

impl tower::Service<Request<Body>> for SimService {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.answer(request).await })
    }
}

/// A request that can change something: method, path, query, content type, body.
type Sent = (Method, String, Query, String, Bytes);

impl SimService {
    async fn answer(self, request: Request<Body>) -> Result<Response<AnswerBody>, BoxError> {
        self.latency(1..8).await;
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let network = self.session.network.clone();
        if let Some(until) = self.session.is_cut_off() {
            sleep_until(until).await;
            return Err("the connection was cut by the simulation".into());
        }
        if let Some((outage, until)) = network.outage() {
            self.note_failure(&parts.method, parts.uri.path());
            match outage {
                Outage::Code(code) => return Ok(failure(&ApiError::injected(code))),
                Outage::Refused => return Err("connection refused by the simulation".into()),
                Outage::Silent => {
                    sleep_until(until).await;
                    return Err("no answer, by the simulation".into());
                }
            }
        }
        if self.session.is_dead() {
            return pending().await;
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        if parts.method == Method::GET {
            let accept = parts.headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Ok(self.read(parts.uri.path(), &query, accept.contains("as=PartialObjectMetadata")));
        }
        let content_type = parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let write = (parts.method.clone(), parts.uri.path().to_owned(), query, content_type.to_owned(), body);
        match self.bad_neighbour(&write.1) {
            Some(Badness::Refused) => {
                self.note_failure(&write.0, &write.1);
                return Ok(failure(&ApiError::injected(500)));
            }
            Some(Badness::Hanging) => return pending().await,
            Some(Badness::Undecodable) | None => {}
        }
        // The lease and dry runs are not counted: how many there are depends on time.
        let counted = write.2.get("dryRun").is_none() && !write.1.contains("/leases");
        let fault = if counted { network.count() } else { None };
        if let Some(OnWrite::Refuse(code)) = fault {
            self.latency(1..8).await;
            return Ok(failure(&ApiError::injected(code)));
        }
        if let Some(OnWrite::Late(ms)) = fault {
            // On its way whatever becomes of the client.
            let this = self.clone();
            let late = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                this.write(&write)
            });
            return Ok(late.await?);
        }
        let answer = self.write(&write);
        match fault {
            Some(OnWrite::Crash) => {
                self.session.kill();
                return pending().await;
            }
            Some(OnWrite::Hang) => return pending().await,
            Some(OnWrite::Lost) => {
                self.latency(1..8).await;
                return Err("connection reset by the simulation".into());
            }
            Some(OnWrite::Refuse(_) | OnWrite::Late(_)) | None => {}
        }
        self.latency(1..8).await;
        if let Some(until) = self.session.is_cut_off() {
            sleep_until(until).await;
            return Err("the connection was cut by the simulation".into());
        }
        if self.session.is_dead() {
            return pending().await;
        }
        Ok(answer)
    }

    fn note_failure(&self, method: &Method, path: &str) {
        if *method != Method::GET && !path.contains("/leases") && !path.contains("/events") {
            let mut inner = self.server.lock();
            let at = inner.clock.elapsed().as_millis();
            inner.failed.push((at, format!("{method} {path}")));
        }
    }

    /// What is wrong with the object whose child this is, if it is a bad neighbour's.
    fn bad_neighbour(&self, path: &str) -> Option<Badness> {
        let ours = path.contains(llmops::api::GROUP);
        let (refused, hanging) = (path.contains(neighbours::REFUSED), path.contains(neighbours::HANGING));
        match () {
            () if ours => None,
            () if refused => Some(Badness::Refused),
            () if hanging => Some(Badness::Hanging),
            () => None,
        }
    }

    async fn latency(&self, milliseconds: std::ops::Range<u64>) {
        let pause = self.server.lock().rng.u64(milliseconds);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn read(&self, path: &str, query: &Query, metadata_only: bool) -> Response<AnswerBody> {
        let (route, kind) = match self.route(path) {
            Ok(found) => found,
            Err(error) => return failure(&error),
        };
        let verb = match (route.name.is_empty(), query.is("watch")) {
            (false, _) => "get",
            (true, false) => "list",
            (true, true) => "watch",
        };
        if self.session.network.hides(&kind.resource()) {
            return failure(&ApiError::not_found("path", path));
        }
        self.server.lock().reads.push((self.session.name.clone(), verb, kind.resource()));
        let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
            Ok(selector) => selector,
            Err(error) => return failure(&ApiError::bad_request(error)),
        };
        let read = read::Read { kind, namespace: route.namespace, selector, metadata_only };
        match verb {
            "get" => match read.get(&self.server, &route.name) {
                Ok(object) => json_answer(200, &object),
                Err(error) => failure(&error),
            },
            "list" => match read.list(&self.server, query, self.session.network.past()) {
                Ok(list) => json_answer(200, &list),
                Err(error) => failure(&error),
            },
            _ => match read.watch(&self.server, self.session.clone(), query) {
                Ok(body) => answer(200, body),
                Err(error) => failure(&error),
            },
        }
    }

    fn route(&self, path: &str) -> Result<(Route, Arc<Kind>), ApiError> {
        let mut inner = self.server.lock();
        let found = Route::parse(path).and_then(|route| {
            let kind = inner.catalog.by_path(&route.group, &route.version, &route.plural)?;
            Some((route, kind))
        });
        found.ok_or_else(|| {
            inner.warnings.push(format!("{}: {path} is not simulated", self.session.name));
            ApiError::not_found("path", path)
        })
    }

    fn write(&self, (method, path, query, content_type, body): &Sent) -> Response<AnswerBody> {
        let (mut route, kind) = match self.route(path) {
            Ok(found) => found,
            Err(error) => return failure(&error),
        };
        let body: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            Err(_) if body.is_empty() => json!({}),
            Err(error) => return failure(&ApiError::bad_request(error.to_string())),
        };
        let mut inner = self.server.lock();
        let collection = *method == Method::DELETE && route.name.is_empty();
        if collection {
            return self.delete_collection(&mut inner, &route, &kind, query, &body);
        }
        if *method == Method::POST {
            route.name = match (body["metadata"]["name"].as_str(), body["metadata"]["generateName"].as_str()) {
                (Some(name), _) => name.to_owned(),
                (None, Some(prefix)) => format!("{prefix}{:05x}", inner.rng.u32(..0xf_ffff)),
                (None, None) => {
                    return failure(&ApiError::bad_request(
                        "metadata.name: Required value: name or generateName is required",
                    ));
                }
            };
        }
        let key = Key { resource: kind.resource(), namespace: route.namespace.clone(), name: route.name.clone() };
        let manager = query.get("fieldManager").unwrap_or(&self.session.name);
        // An apply must name its manager, everything else is known by its user agent.
        let apply = content_type.starts_with("application/apply-patch+yaml");
        let manager = if apply { query.get("fieldManager").unwrap_or_default() } else { manager };
        let write = Write {
            kind: &kind,
            key: &key,
            subresource: route.subresource.as_deref(),
            manager,
            dry_run: query.get("dryRun").is_some(),
            trusted: false,
        };
        let named = body["metadata"]["name"].as_str();
        let (verb, result) = if *method != Method::DELETE && named.is_some_and(|name| name != key.name) {
            ("refused", Err(ApiError::bad_request("the name of the object does not match the name on the URL")))
        } else if *method == Method::POST {
            ("create", inner.create(&write, body.clone()))
        } else if *method == Method::PUT {
            ("update", inner.update(&write, body.clone()))
        } else if *method == Method::PATCH {
            let verb = if apply { "apply" } else { "patch" };
            (verb, inner.patch(&write, content_type, body.clone(), query.is("force")))
        } else {
            ("delete", inner.delete(&write, &body))
        };
        let (response, changed, code) = match result {
            Ok(outcome) => {
                let code = if outcome.created { 201 } else { 200 };
                let changed = outcome.changed;
                (written(verb, &kind, &key, &outcome, code), changed, code)
            }
            Err(error) => (failure(&error), false, error.code),
        };
        if !write.dry_run {
            self.record(&mut inner, verb, key.clone(), route.subresource, changed, code, body);
        }
        response
    }

    fn delete_collection(
        &self,
        inner: &mut Inner,
        route: &Route,
        kind: &Kind,
        query: &Query,
        options: &Value,
    ) -> Response<AnswerBody> {
        let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
            Ok(selector) => selector,
            Err(error) => return failure(&ApiError::bad_request(error)),
        };
        let resource = kind.resource();
        let keys: Vec<Key> = inner
            .store
            .list(&resource, &route.namespace)
            .filter(|(_, object)| selector.matches(object))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            let write = Write {
                kind,
                key: &key,
                subresource: None,
                manager: &self.session.name,
                dry_run: false,
                trusted: false,
            };
            let changed = inner.delete(&write, options).is_ok_and(|outcome| outcome.changed);
            self.record(inner, "delete", key.clone(), None, changed, 200, options.clone());
        }
        json_answer(200, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }

    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        inner: &mut Inner,
        verb: &'static str,
        key: Key,
        subresource: Option<String>,
        changed: bool,
        code: u16,
        body: Value,
    ) {
        let record = WriteRecord {
            at: inner.clock.elapsed().as_millis(),
            session: self.session.name.clone(),
            verb,
            key,
            subresource,
            changed,
            code,
            body,
            version: inner.store.version(),
        };
        inner.writes.push(record);
    }
}

fn written(verb: &str, kind: &Kind, key: &Key, outcome: &Outcome, code: u16) -> Response<AnswerBody> {
    if verb == "delete" && outcome.removed && kind.kind != "Pod" {
        let details = json!({"name": key.name, "group": kind.group, "kind": kind.plural, "uid": outcome.object["metadata"]["uid"]});
        return json_answer(
            200,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        );
    }
    json_answer(code, &outcome.object)
}

fn failure(error: &ApiError) -> Response<AnswerBody> {
    json_answer(error.code, &error.body())
}

fn json_answer(code: u16, value: &Value) -> Response<AnswerBody> {
    answer(code, Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn answer(code: u16, body: AnswerBody) -> Response<AnswerBody> {
    let response = Response::builder().status(code).header("content-type", "application/json").body(body);
    response.expect("a code and a fixed header make a response")
}
