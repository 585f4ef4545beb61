//! A gateway without a cluster: routing tables, keys and reviews come from the test.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::engine::Engine;
use crate::gateway::auth::{Access, Auth, ReviewError, Reviewer, Tokens, User};
use crate::gateway::clock::Clock;
use crate::gateway::endpoints::{Limits, Upstream};
use crate::gateway::metrics::Metrics;
use crate::gateway::routing::{Objects, Routes, build};
use crate::gateway::server::{Gateway, router, serve};
use crate::gateway::store::Store;

/// Opens the namespace `a`.
pub const KEY: &str = "llmops_key-of-a";
/// A token with the permissions that a test grants.
pub const TOKEN: &str = "aaa.bbb.ccc";

/// Fails the test when something does not come to pass in a time that is ample.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it should have come to pass by now")
}

/// Reviews tokens as a test says.
#[derive(Debug, Default)]
pub struct FakeReviewer {
    pub away: AtomicBool,
    /// `RESOURCE/SUBRESOURCE` that the holder of [`TOKEN`] may use in the namespace `a`.
    pub granted: Mutex<BTreeSet<String>>,
}

impl Reviewer for FakeReviewer {
    fn token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
        Box::pin(async move {
            if self.away.load(Ordering::Relaxed) {
                return Err(ReviewError("away".into()));
            }
            Ok((token == TOKEN).then(|| User { name: "system:serviceaccount:a:eval".into(), ..User::default() }))
        })
    }

    fn access<'a>(&'a self, _: &'a User, access: &'a Access) -> BoxFuture<'a, Result<bool, ReviewError>> {
        Box::pin(async move {
            if self.away.load(Ordering::Relaxed) {
                return Err(ReviewError("away".into()));
            }
            let wanted = format!("{}/{}", access.resource, access.subresource);
            Ok(access.namespace == "a" && self.granted.lock().unwrap().contains(&wanted))
        })
    }
}

/// A running gateway.
pub struct TestGateway {
    pub base: String,
    pub gateway: Arc<Gateway>,
    pub reviewer: Arc<FakeReviewer>,
    /// The time by which routing tables change over, in milliseconds since 1970.
    pub clock: Arc<AtomicI64>,
    pub client: reqwest::Client,
    pub objects: Mutex<Objects>,
    pub folder: tempfile::TempDir,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    server: tokio::task::JoinHandle<std::io::Result<usize>>,
}

impl TestGateway {
    pub async fn start() -> Self {
        Self::with(Limits { queue_timeout: Duration::from_secs(10), ..Limits::default() }).await
    }

    pub async fn with(limits: Limits) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let routes = Arc::new(Routes::default());
        let clock = Arc::new(AtomicI64::new(0));
        let metrics = Arc::new(Metrics::default());
        let reviewer = Arc::new(FakeReviewer::default());
        let tokens = Tokens::new(Arc::clone(&reviewer) as Arc<dyn Reviewer>);
        let store = Arc::new(Store::open(&folder.path().join("gateway.db"), Arc::clone(&metrics)).unwrap());
        let gateway = Arc::new(Gateway {
            auth: Auth::new(Arc::clone(&routes), tokens),
            upstream: Upstream::new(Arc::clone(&routes), limits, Arc::clone(&metrics), Arc::clone(&store)).unwrap(),
            store,
            routes,
            metrics: Arc::clone(&metrics),
            clock: Clock::Set(Arc::clone(&clock)),
            shadows: crate::gateway::shadow::limit(1),
            model_timeout: Duration::from_secs(20),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(
            listener,
            router(Arc::clone(&gateway)),
            metrics,
            async {
                let _ = stopped.await;
            },
            Duration::from_secs(20),
        ));
        let started = Self {
            base,
            gateway,
            reviewer,
            clock,
            client: reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap(),
            objects: Mutex::default(),
            folder,
            stop: Mutex::new(Some(stop)),
            server,
        };
        started.add(|objects| {
            objects.keys.push(decode(json!({
                "metadata": {"namespace": "a", "name": "key"},
                "data": {"sha256": base64(hex::encode(Sha256::digest(KEY)).as_bytes())},
            })));
        });
        started
    }

    /// Changes what is in the cluster.
    pub fn add(&self, change: impl FnOnce(&mut Objects)) {
        let mut objects = self.objects.lock().unwrap();
        change(&mut objects);
        let snapshot = build(&objects, "llmops-system", &self.gateway.routes.load());
        assert_eq!(snapshot.problems, std::collections::BTreeMap::new());
        self.gateway.routes.store(snapshot);
    }

    /// A model in the namespace `a`, served by these engines at revision `r1`.
    pub fn model(&self, name: &str, engines: &[&Engine]) {
        self.model_of("Chat", name, engines);
    }

    pub fn model_of(&self, task: &str, name: &str, engines: &[&Engine]) {
        self.add(|objects| {
            objects.models.push(decode(json!({
                "metadata": {"namespace": "a", "name": name},
                "spec": {"task": task, "engine": {"type": "LlamaCpp"}, "model": {"name": format!("served-{name}")},
                         "cost": {"inputPerMillion": "1000", "outputPerMillion": "100000", "currency": "EUR"}},
                "status": {"traffic": [{"revision": "r1", "weight": 100}]},
            })));
            objects.pods.extend(engines.iter().map(|engine| decode(pod("model", name, "r1", engine))));
        });
    }

    /// An index in the namespace `a`.
    pub fn index(&self, name: &str, generation: &str, engine: &Engine) {
        self.add(|objects| {
            objects.indexes.push(decode(json!({
                "metadata": {"namespace": "a", "name": name},
                "spec": {"sources": [], "embedding": {"builtin": "AllMiniLmL6V2"}},
                "status": {"active": {"name": generation, "digest": "sha256:0", "inputs": "0", "since": "2026-11-24T12:00:00Z"}},
            })));
            objects.pods.push(decode(pod("index", name, generation, engine)));
        });
    }

    /// A flow `a/docs` with these traffic entries, its spec patched, and these revisions.
    pub fn flow(&self, traffic: &Value, spec: &Value, revisions: &[(&str, Value)]) {
        self.flow_at(&json!({"traffic": traffic}), spec, revisions);
    }

    /// The same with a whole status.
    pub fn flow_at(&self, status: &Value, spec: &Value, revisions: &[(&str, Value)]) {
        let mut full =
            json!({"nodes": [{"name": "answer", "llm": {"model": "writer", "messages": []}}], "output": "x"});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.add(|objects| {
            objects.flows = vec![decode(json!({
                "metadata": {"namespace": "a", "name": "docs"}, "spec": full, "status": status,
            }))];
            objects.revisions = revisions.iter().map(|(name, data)| decode(json!({
                "metadata": {"namespace": "a", "name": format!("pf-docs-{name}"), "uid": format!("{name}-{data}"),
                             "labels": {"llmops.dev/owner": "docs", "llmops.dev/revision": name}},
                "revision": 1, "data": data,
            }))).collect();
        });
    }

    /// The flow `a/docs` with one variant that asks the model `writer`.
    pub fn simple_flow(&self) {
        self.flow(
            &json!([{"variant": "control", "revision": "f1", "weight": 100}]),
            &json!({}),
            &[("f1", asking("writer"))],
        );
    }

    /// Asks the flow `a/docs` with a Kubernetes token that may do this, and with pins.
    pub fn ask_pinned(&self, pins: &str) -> reqwest::RequestBuilder {
        for permission in ["promptflows/invoke", "promptflows/pin"] {
            self.reviewer.granted.lock().unwrap().insert(permission.into());
        }
        self.client
            .post(format!("{}/v1/flows/a/docs", self.base))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("llmops-pin", pins)
            .body(json!({"inputs": {"question": "why?"}}).to_string())
    }

    /// Adds a ready pod.
    pub fn pod(&self, component: &str, owner: &str, revision: &str, engine: &Engine) {
        self.add(|objects| objects.pods.push(decode(pod(component, owner, revision, engine))));
    }

    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.base)).header("authorization", format!("Bearer {KEY}"))
    }

    /// Asks the flow `a/docs`.
    pub fn ask(&self, more: Value) -> reqwest::RequestBuilder {
        let mut body = json!({"inputs": {"question": "why?"}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/flows/a/docs", &body)
    }

    /// What is kept of the flow `a/docs`, once there are so many entries.
    pub async fn interactions(&self, count: usize) -> Vec<Value> {
        soon(async {
            loop {
                let body: Value = json_of(self.get("/v1/interactions/a/docs")).await.1;
                let found = body["interactions"].as_array().unwrap().clone();
                if found.len() >= count {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    pub async fn splits(&self) -> Vec<Value> {
        json_of(self.get("/v1/splits/a/docs")).await.1["variants"].as_array().unwrap().clone()
    }

    /// Begins to drain; the listener closes.
    pub fn drain(&self) {
        self.stop.lock().unwrap().take().unwrap().send(()).unwrap();
    }

    /// Waits for the server's end; gives the number of requests that were cut.
    pub async fn ended(self) -> usize {
        soon(self.server).await.unwrap().unwrap()
    }
}

pub fn decode<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub fn pod(component: &str, owner: &str, revision: &str, engine: &Engine) -> Value {
    let name = format!("{owner}-{revision}-{}", engine.address.port());
    json!({
        "metadata": {"namespace": "a", "name": name, "uid": name, "labels": {
            "llmops.dev/component": component, "llmops.dev/owner": owner, "llmops.dev/revision": revision}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": engine.address.port()}]}]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A revision with one llm node, whose text is the answer.
pub fn asking(model: &str) -> Value {
    json!({
        "format": 1,
        "models": {
            "writer": {"deployment": model, "timeoutMs": 20_000, "retries": 2},
        },
        "indexes": {},
        "inputs": {"question": {"type": "String", "maxLength": 20}, "lang": {"type": "String", "default": "en"}},
        "nodes": [{"name": "answer", "llm": {"model": "writer", "parameters": {"maxTokens": 16}, "messages": [
            {"role": "system", "content": "Answer in {{ inputs.lang }}."}, {"role": "user", "content": "{{ inputs.question }}"}]}}],
        "output": "{{ nodes.answer.text }}",
    })
}

/// Status and body of an answer.
pub async fn json_of(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = soon(request.send()).await.unwrap();
    let status = response.status().as_u16();
    let text = soon(response.text()).await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Names and data of a stream's events.
pub fn events(text: &str) -> Vec<(String, String)> {
    text.split("\n\n")
        .filter(|event| !event.trim().is_empty())
        .map(|event| {
            let part =
                |prefix: &str| event.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default().to_owned();
            (part("event: "), part("data: "))
        })
        .collect()
}
