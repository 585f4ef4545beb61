//! The quickstart's samples, applied as its script applies them, and small objects of the tests' own.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use sha2::{Digest, Sha256};

use crate::cluster::{Cluster, NAMESPACE, SYSTEM, repository, required};

pub const MODEL: &str = "smollm2";
pub const INDEX: &str = "handbook";
pub const FLOW: &str = "ask";
pub const EVALUATION: &str = "ask-quality";

/// The quickstart's samples: what its script renders from `docs/` and `manifests/samples/quickstart/`.
pub fn rendered() -> Result<String> {
    let output = Command::new(repository().join("quickstart/render-samples"))
        .env("LLMOPS_MODEL_GGUF", required("LLMOPS_MODEL_GGUF")?)
        .stdin(Stdio::null())
        .output()
        .context("quickstart/render-samples")?;
    if !output.status.success() {
        bail!("quickstart/render-samples: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Applies the quickstart's samples.
pub fn apply(cluster: &Cluster) -> Result<()> {
    cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], &rendered()?)?;
    Ok(())
}

/// Makes an API key for every namespace and returns it.
pub fn api_key(cluster: &Cluster) -> Result<String> {
    let output = Command::new(required("LLMOPS_BIN")?)
        .args(["key", "new", "tests", "--namespace", SYSTEM, "--namespaces", "*"])
        .output()?;
    if !output.status.success() {
        bail!("llmops key new: {}", String::from_utf8_lossy(&output.stderr));
    }
    cluster.kubectl_with(&["apply", "-f", "-"], &String::from_utf8(output.stdout)?)?;
    let told = String::from_utf8(output.stderr)?;
    let key = told.split_whitespace().find(|word| word.starts_with("llmops_")).context("a key on standard error")?;
    Ok(key.to_owned())
}

async fn source_maps(cluster: &Cluster) -> Result<Vec<ConfigMap>> {
    let index: llmops::api::RagIndex = Api::namespaced(cluster.client(), NAMESPACE).get(INDEX).await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), NAMESPACE);
    let mut found = Vec::new();
    for source in index.spec.sources {
        found.push(maps.get(&source.config_map.context("a ConfigMap source")?.name).await?);
    }
    Ok(found)
}

/// Every document of the index.
pub async fn corpus(cluster: &Cluster) -> Result<BTreeSet<String>> {
    Ok(source_maps(cluster).await?.into_iter().flat_map(|map| map.data.unwrap_or_default().into_keys()).collect())
}

/// Adds a document to the first source, replaces it, or takes it out again.
pub async fn change_document(cluster: &Cluster, name: &str, text: Option<&str>) -> Result<()> {
    let map = source_maps(cluster).await?.into_iter().next().and_then(|map| map.metadata.name).context("a source")?;
    let patch = serde_json::json!({"data": {name: text}}).to_string();
    cluster.kubectl(&["patch", "configmap", &map, "-n", NAMESPACE, "--type=merge", "-p", &patch])?;
    Ok(())
}

/// Questions of the evaluation's dataset.
pub fn questions() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(repository().join("manifests/samples/quickstart/cases.jsonl"))?;
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let case: serde_json::Value = serde_json::from_str(line)?;
            Ok(case["question"].as_str().context("a question")?.to_owned())
        })
        .collect()
}

/// A flow of one call.
pub struct OneCall<'a> {
    /// Its name.
    pub name: &'a str,
    /// What the model is asked, a template.
    pub prompt: &'a str,
    /// Parameters of the call, as in a flow.
    pub parameters: &'a str,
    /// Before the model's answer.
    pub mark: &'a str,
    /// The rest of the spec, indented by two.
    pub rest: &'a str,
}

impl OneCall<'_> {
    /// Its manifest.
    pub fn yaml(&self) -> String {
        let Self { name, prompt, parameters, mark, rest } = self;
        format!(
            r#"
apiVersion: llmops.dev/v1alpha1
kind: PromptFlow
metadata: {{name: {name}}}
spec:
  models: {{writer: {{modelDeploymentRef: {{name: {MODEL}}}}}}}
  inputs: {{question: {{type: String, maxLength: 200}}}}
  nodes:
  - name: answer
    llm:
      model: writer
      messages: [{{role: user, content: "{prompt}"}}]
      parameters: {{{parameters}}}
  output: "{mark}{{{{ nodes.answer.text }}}}"
{rest}"#
        )
    }
}

/// Parameters of a call that is over soon.
const ONE_TOKEN: &str = "maxTokens: 1, temperature: \"0\"";

/// A flow of one call with one token, split between two variants.
pub fn short_flow(name: &str, weight: i32) -> String {
    let rest = format!(
        r#"  variants:
  - {{name: control, weight: {weight}}}
  - name: other
    weight: {}
    overrides: {{answer: {{llm: {{messages: [{{role: user, content: "Greet. {{{{ inputs.question }}}}"}}]}}}}}}
"#,
        100 - weight
    );
    let prompt = "Say hello. {{ inputs.question }}";
    OneCall { name, prompt, parameters: ONE_TOKEN, mark: "", rest: &rest }.yaml()
}

/// A flow of one call with one token, whose new revisions stay at a fifth of the units: the step asks for more units than
/// there will ever be.
pub fn ramped_flow(name: &str, prompt: &str) -> String {
    let prompt = format!("{prompt} {{{{ inputs.question }}}}");
    let rest = "  rollout: {steps: [{weight: 20, minUnits: 1000000}]}\n";
    OneCall { name, prompt: &prompt, parameters: ONE_TOKEN, mark: "", rest }.yaml()
}

/// A dataset whose second line is not JSON.
pub const BROKEN_DATASET: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: broken-cases}
data:
  cases.jsonl: |
    {"id": "one", "question": "What is llmops?", "expected": "operator"}
    {"id": "two", "question": "What is a flow?",
---
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {name: broken-dataset}
spec:
  target: {promptFlowRef: {name: ask}}
  dataset: {configMapRef: {name: broken-cases, key: cases.jsonl}}
  metrics: [{name: named, type: Contains}]
"#;

/// Serves the model file over HTTP, as a model hub would.
pub struct ModelServer {
    address: std::net::SocketAddr,
    pub sha256: String,
    task: tokio::task::JoinHandle<()>,
}

impl ModelServer {
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Self::serve(cluster, std::fs::read(required("LLMOPS_MODEL_GGUF")?)?)
    }

    pub fn serve(cluster: &Cluster, bytes: Vec<u8>) -> Result<Self> {
        let sha256 = hex::encode(Sha256::digest(&bytes));
        cluster.run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let serve = |State(bytes): State<Arc<bytes::Bytes>>| async move { bytes.as_ref().clone().into_response() };
            let router = Router::new()
                .route("/model.gguf", axum::routing::get(serve))
                .with_state(Arc::new(bytes::Bytes::from(bytes)));
            let task = tokio::spawn(async move {
                let _ = axum::serve(listener, router).await;
            });
            Ok(Self { address, sha256, task })
        })
    }

    /// A ModelDeployment that downloads the model from here.
    pub fn model(&self, name: &str, sha256: &str) -> String {
        format!(
            r#"
apiVersion: llmops.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  task: Chat
  model:
    source: {{http: {{url: "http://{}/model.gguf", sha256: "{sha256}"}}}}
    cache: {{size: 1Gi}}
  engine: {{type: LlamaCpp, args: ["--ctx-size", "512", "--threads", "1"]}}
"#,
            self.address
        )
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
