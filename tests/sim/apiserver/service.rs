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
use tower::BoxError;

use super::error::ApiError;
use super::kinds::Kind;
use super::read;
use super::route::{Query, Route};
use super::selector::Selector;
use super::session::{FaultKind, Session};
use super::store::Key;
use super::write::{Outcome, Write};
use super::{ApiServer, Inner, WriteRecord};

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

impl SimService {
    async fn answer(self, request: Request<Body>) -> Result<Response<AnswerBody>, BoxError> {
        self.latency(1..8).await;
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        if self.session.is_dead() {
            return pending().await;
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        if parts.method == Method::GET {
            let accept = parts.headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Ok(self.read(parts.uri.path(), &query, accept.contains("as=PartialObjectMetadata")));
        }
        let fault = if query.get("dryRun").is_some() { None } else { self.session.count() };
        if let Some(FaultKind::Refuse(code)) = fault {
            self.latency(1..8).await;
            return Ok(failure(&ApiError::injected(code)));
        }
        let content_type = parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let answer = self.write(&parts.method, parts.uri.path(), &query, content_type, &body);
        match fault {
            Some(FaultKind::CrashAfter) => {
                self.session.kill();
                return pending().await;
            }
            Some(FaultKind::Hang) => return pending().await,
            Some(FaultKind::ReplyLost) => {
                self.latency(1..8).await;
                return Err("connection reset by the simulation".into());
            }
            Some(FaultKind::Refuse(_)) | None => {}
        }
        self.latency(1..8).await;
        if self.session.is_dead() {
            return pending().await;
        }
        Ok(answer)
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
            "list" => match read.list(&self.server, query) {
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

    fn write(
        &self,
        method: &Method,
        path: &str,
        query: &Query,
        content_type: &str,
        body: &[u8],
    ) -> Response<AnswerBody> {
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
