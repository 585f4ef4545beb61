//! The devcluster of the tests: started in a folder of its own, our charts installed, removed at the end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::runtime::Runtime;

use crate::gateway::Gateway;
use crate::samples;

/// Namespace of the operator.
pub const SYSTEM: &str = "llmops-system";
/// Namespace of the samples.
pub const NAMESPACE: &str = "quickstart";

pub struct Cluster {
    folder: PathBuf,
    runtime: Runtime,
    client: Client,
    key: String,
}

/// A program or file that the environment names.
pub fn required(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).with_context(|| format!("{variable} is not set; run `make e2e`"))?;
    let path = PathBuf::from(path);
    if !path.exists() {
        bail!("{variable} names {}, which does not exist; run `make e2e`", path.display());
    }
    Ok(path)
}

impl Cluster {
    /// Starts a cluster with the operator installed and an API key made.
    pub fn start() -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = std::env::temp_dir().join(format!("llmops-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let binary = required("LLMOPS_BIN")?;
        let embedder = required("LLMOPS_EMBEDDER_DIR")?;
        let server = required("LLMOPS_LLAMA_SERVER")?;
        let models = required("LLMOPS_MODELS_DIR")?;
        let images = serde_json::json!({"images": [
            {"image": "llmops:dev", "command": [binary], "env": {"LLMOPS_EMBEDDER_DIR": embedder}},
            // The variable also shows the folder to the container when the checkout is below /tmp.
            {"image": "ghcr.io/ggml-org/llama.cpp:server", "command": [server], "env": {"LLMOPS_MODELS_DIR": models}},
        ]});
        std::fs::write(folder.join("images.yaml"), serde_json::to_vec_pretty(&images)?)?;
        let runtime = Runtime::new()?;
        devcluster(&folder, &["up", "--detach"], None)?;
        let config = Kubeconfig::read_from(folder.join("kubeconfig"))?;
        let client = runtime.block_on(async {
            let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            config.read_timeout = Some(std::time::Duration::from_secs(295));
            anyhow::Ok(Client::try_from(config)?)
        })?;
        let mut cluster = Self { folder, runtime, client, key: String::new() };
        match cluster.install().and_then(|()| samples::api_key(&cluster)) {
            Ok(key) => {
                cluster.key = key;
                Ok(cluster)
            }
            Err(error) => {
                let error = error.context(cluster.diagnosis());
                cluster.remove();
                Err(error)
            }
        }
    }

    fn install(&self) -> Result<()> {
        let root = repository();
        let chart = |name: &str| root.join("charts").join(name).display().to_string();
        self.helm(&[
            "upgrade",
            "--install",
            "llmops-crds",
            &chart("llmops-crds"),
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--wait",
        ])?;
        self.upgrade(&[])?;
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        Ok(())
    }

    /// Installs the chart, or upgrades it to these values, and waits until its pods are ready.
    pub fn upgrade(&self, values: &[&str]) -> Result<()> {
        let chart = repository().join("charts/llmops").display().to_string();
        let mut arguments =
            vec!["upgrade", "--install", "llmops", &chart, "--namespace", SYSTEM, "--wait", "--timeout", "120s"];
        arguments.extend(["--set", "image.repository=llmops", "--set", "image.tag=dev"]);
        for value in values {
            arguments.extend(["--set", value]);
        }
        self.helm(&arguments)?;
        Ok(())
    }

    /// The kubeconfig of the cluster's administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Runs a future on the tests' runtime.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The gateway with the tests' API key.
    pub fn gateway(&self) -> Result<Gateway> {
        let service =
            self.kubectl(&["get", "service", "llmops-gateway", "-n", SYSTEM, "-o", "jsonpath={.spec.clusterIP}"])?;
        Ok(self.gateway_at(&format!("http://{service}:8080")))
    }

    /// A gateway at another address, with the same key.
    pub fn gateway_at(&self, url: &str) -> Gateway {
        Gateway::new(url, &self.key)
    }

    /// `devcluster kubectl …`; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        devcluster(&self.folder, &[&["kubectl"], arguments].concat(), None)
    }

    /// `devcluster kubectl …` with a manifest on standard input.
    pub fn kubectl_with(&self, arguments: &[&str], manifest: &str) -> Result<String> {
        devcluster(&self.folder, &[&["kubectl"], arguments].concat(), Some(manifest))
    }

    /// Applies a manifest to a namespace.
    pub fn apply(&self, namespace: &str, manifest: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-n", namespace, "-f", "-"], manifest)
    }

    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        devcluster(&self.folder, &[&["helm"], arguments].concat(), None)
    }

    /// Stops, starts or kills a component: `kube-apiserver`, `etcd`, ….
    pub fn component(&self, action: &str, name: &str) -> Result<String> {
        devcluster(&self.folder, &["component", action, name], None)
    }

    /// Where the cluster keeps its files.
    #[allow(dead_code, reason = "the chaos test needs it")]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Process id of the cluster's supervisor, above all its processes.
    #[allow(dead_code, reason = "the chaos test needs it")]
    pub fn supervisor(&self) -> Result<i32> {
        let status: serde_json::Value =
            serde_json::from_str(&devcluster(&self.folder, &["status", "-o", "json"], None)?)?;
        status["pid"].as_i64().and_then(|pid| pid.try_into().ok()).context("the supervisor's pid")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// What a person would look at after a failure.
    pub fn diagnosis(&self) -> String {
        let look = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        format!(
            "--- resources\n{}\n--- pods\n{}\n--- controller\n{}\n--- gateway\n{}",
            look(&["get", "llmops", "-A", "-o", "wide"]),
            look(&["get", "pods,jobs", "-A"]),
            look(&["logs", "-n", SYSTEM, "deploy/llmops-controller", "--tail", "40"]),
            look(&["logs", "-n", SYSTEM, "deploy/llmops-gateway", "--tail", "20"]),
        )
    }

    /// Ends every process of the cluster and removes its folder.
    pub fn remove(self) {
        if let Err(error) = devcluster(&self.folder, &["reset"], None) {
            eprintln!("the cluster in {} was not removed: {error:#}", self.folder.display());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn devcluster(folder: &Path, arguments: &[&str], input: Option<&str>) -> Result<String> {
    use std::io::Write;
    let mut child = Command::new(required("DEVCLUSTER_BIN")?)
        .env("DEVCLUSTER_DIR", folder)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
        pipe.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
