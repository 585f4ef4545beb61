//! The real gateway, as a process, with traffic behind it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::response::Json;
use axum::routing::post;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::apiserver::ApiServer;

/// Opens all namespaces of the test.
pub const KEY: &str = "llmops_key-of-the-browser";
/// A token; the API server of the test lets it do everything.
const TOKEN: &str = "aaa.bbb.ccc";
const OBJECTS: &str = include_str!("objects.yaml");
/// The moment that the objects are written for.
const AS_OF: &str = "2026-11-24T14:00:00Z";
/// Measurements of the experiment, with its growing units.
pub const MEASUREMENTS: u32 = 44;

pub struct Gateway {
    pub url: String,
    process: Child,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that was free a moment ago.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn serve(router: Router) -> Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(address)
}

/// Answers like a model's engine.
fn engine() -> Router {
    let answer = || async {
        Json(json!({
            "id": "x", "object": "chat.completion", "created": 0, "model": "smollm2",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Within 30 days."}}],
            "usage": {"prompt_tokens": 412, "completion_tokens": 24, "total_tokens": 436},
        }))
    };
    Router::new().route("/v1/chat/completions", post(answer))
}

impl Gateway {
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (server, folder) = (ApiServer::new(), tempfile::tempdir()?);
        let (api, engine) = runtime
            .block_on(async { anyhow::Ok((serve(Arc::clone(&server).router()).await?, serve(engine()).await?)) })?;
        let flow = populate(&server, engine)?;
        let config = folder.path().join("kubeconfig");
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&config, file.to_string())?;
        let (listen, admin) = (free()?, free()?);
        let process = Command::new(env!("CARGO_BIN_EXE_llmops"))
            .args(["gateway", "--listen", &listen.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--namespace", "llmops-system", "--drain-timeout", "1s", "--db"])
            .arg(folder.path().join("gateway.db"))
            .env("KUBECONFIG", &config)
            .spawn()
            .context("the gateway does not start")?;
        let url = format!("http://{listen}");
        let gateway = Self { url, process, _folder: folder, _runtime: runtime };
        let client = Client {
            url: gateway.url.clone(),
            http: reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?,
        };
        gateway._runtime.block_on(async {
            client
                .until("the gateway is ready", || async {
                    let ready = client.http.get(format!("http://{admin}/readyz")).send().await;
                    Ok(ready.is_ok_and(|response| response.status().is_success()))
                })
                .await?;
            client.traffic().await?;
            client.report().await?;
            client.measure(&server, flow).await
        })?;
        Ok(gateway)
    }
}

/// Puts the objects as of now, and gives the flow with the ramp.
fn populate(server: &ApiServer, engine: SocketAddr) -> Result<Value> {
    let later = Timestamp::now().duration_since(AS_OF.parse()?);
    let mut flow = Value::Null;
    for document in serde_yaml::Deserializer::from_str(OBJECTS) {
        let mut object = Value::deserialize(document)?;
        shift(&mut object, later);
        let resource = match object["kind"].as_str() {
            Some("PromptFlow") => "promptflows",
            Some("ModelDeployment") => "modeldeployments",
            Some("RagIndex") => "ragindexes",
            Some("Evaluation") => "evaluations",
            other => bail!("objects.yaml has the kind {other:?}"),
        };
        if object["metadata"]["name"] == "answers" {
            flow = object.clone();
            object["status"]["experiment"] = Value::Null;
        }
        server.put(resource, object);
    }
    for revision in ["5d41a7c09e", "c2b98e4410"] {
        server.put("controllerrevisions", json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {"namespace": "support", "name": format!("pf-answers-{revision}"), "uid": revision,
                         "labels": {"llmops.dev/owner": "answers", "llmops.dev/revision": revision}},
            "revision": 1,
            "data": {
                "format": 1, "models": {"writer": {"deployment": "writer", "timeoutMs": 20_000, "retries": 2}},
                "indexes": {}, "inputs": {"question": {"type": "String"}},
                "nodes": [{"name": "answer", "llm": {"model": "writer", "parameters": {}, "messages": [{"role": "user", "content": "{{ inputs.question }}"}]}}],
                "output": "{{ nodes.answer.text }}",
            },
        }));
    }
    for revision in ["81d3ff02aa", "b07e5521cd"] {
        server.put("pods", json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "support", "name": format!("writer-{revision}"), "uid": revision, "labels": {
                "llmops.dev/component": "model", "llmops.dev/owner": "writer", "llmops.dev/revision": revision}},
            "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": engine.port()}]}]},
            "status": {"podIP": engine.ip().to_string(), "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }
    let digest = hex::encode(Sha256::digest(KEY));
    server.put(
        "secrets",
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"namespace": "llmops-system", "name": "browser", "labels": {"llmops.dev/api-key": "true"}},
            "data": {"sha256": base64(digest.as_bytes()), "namespaces": base64(b"support,research")},
        }),
    );
    Ok(flow)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Moves every moment in an object.
fn shift(value: &mut Value, by: jiff::SignedDuration) {
    match value {
        Value::String(text) if text.len() == 20 && text.ends_with('Z') => {
            if let Ok(time) = text.parse::<Timestamp>() {
                *text = time
                    .saturating_add(by)
                    .map_or_else(|_| text.clone(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| shift(value, by)),
        Value::Object(map) => map.values_mut().for_each(|value| shift(value, by)),
        _ => {}
    }
}

struct Client {
    url: String,
    http: reqwest::Client,
}

impl Client {
    async fn until<F: Future<Output = Result<bool>>>(&self, what: &str, is: impl Fn() -> F) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is().await? {
            if Instant::now() > deadline {
                bail!("it did not come to pass that {what}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Users ask, and some say what they think of it.
    async fn traffic(&self) -> Result<()> {
        for user in 0..60 {
            let body = json!({"inputs": {"question": "When do I get my money back?"}, "user": format!("u{user}")});
            let asked = self.http.post(format!("{}/v1/flows/support/answers", self.url)).bearer_auth(KEY).json(&body);
            let response = asked.send().await?;
            let status = response.status();
            let answer = response.text().await?;
            if !status.is_success() {
                bail!("the flow answered {status}: {answer}");
            }
            if user % 3 == 0 {
                let answer: Value = serde_json::from_str(&answer)?;
                let thumbs = if user % 4 == 0 { "down" } else { "up" };
                let body = json!({"requestId": answer["requestId"], "thumbs": thumbs});
                let given = self.http.post(format!("{}/v1/feedback", self.url)).bearer_auth(KEY).json(&body);
                given.send().await?.error_for_status()?;
            }
        }
        Ok(())
    }

    /// An evaluation's Job leaves its report.
    async fn report(&self) -> Result<()> {
        let page = "<!doctype html><html lang=en><title>Report</title><h1>The report of the run</h1><p>120 cases.";
        for (format, body) in [("html", page), ("json", "{}")] {
            let path = format!("{}/v1/reports/support/answers-quality/3fa2c1d07b/{format}", self.url);
            self.http.put(path).bearer_auth(TOKEN).body(body).send().await?.error_for_status()?;
        }
        Ok(())
    }

    /// The controller measures again and again while the ramp goes on: the interval narrows, the steps change.
    async fn measure(&self, server: &ApiServer, flow: Value) -> Result<()> {
        // What chance adds to the mean of each metric: a sum of independent parts, the same in every run.
        let mut random = fastrand::Rng::with_seed(7);
        let mut sums = [0.0_f64; 8];
        let last: Timestamp = flow["status"]["experiment"]["measured"].as_str().context("measured")?.parse()?;
        for place in 1..=MEASUREMENTS {
            let left = MEASUREMENTS - place;
            let units = 5_460.0 * 1.1_f64.powi(-i32::try_from(left)?);
            let time = last.saturating_sub(jiff::SignedDuration::from_secs(i64::from(left) * 190))?;
            let step = i32::from(left < 17);
            let mut now = flow.clone();
            now["status"]["rollout"]["weight"] = json!(if step == 0 { 5 } else { 25 });
            now["status"]["rollout"]["step"] = json!(step);
            let experiment = &mut now["status"]["experiment"];
            experiment["step"] = json!(step);
            experiment["units"] = serde_json::from_str(&format!("{units:.0}"))?;
            experiment["measured"] = json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            for (number, metric) in experiment["metrics"].as_array_mut().context("metrics")?.iter_mut().enumerate() {
                let value =
                    |name: &str| metric[name].as_str().and_then(|text| text.parse::<f64>().ok()).context("a number");
                let (end, half) = (value("difference")?, (value("upper")? - value("lower")?) / 2.0);
                let half = half * (5_460.0 / units).sqrt();
                // The mean of all users so far: what the new tenth adds counts a tenth.
                let sum = sums.get_mut(number).context("too many metrics")?;
                *sum = *sum / 1.1 + (random.f64() - 0.5) * 0.55 / 1.1;
                let chance = *sum * half * f64::from(left.min(20)) / 20.0;
                let text = |value: f64| json!(format!("{value:.4}"));
                let difference = end + chance;
                metric["difference"] = text(difference);
                metric["lower"] = text(difference - half);
                metric["upper"] = text(difference + half);
            }
            server.put("promptflows", now);
            // Changes that follow at once are seen as one.
            let counted = format!("of {place} measurements");
            let short = format!("{place} measurement");
            self.until("a measurement was kept", || async {
                let page = self.http.get(format!("{}/dashboard/flows/support/answers", self.url)).bearer_auth(KEY);
                let page = page.send().await?.error_for_status()?.text().await?;
                Ok(page.contains(&counted) || (place <= 12 && page.contains(&short)))
            })
            .await?;
        }
        Ok(())
    }
}
