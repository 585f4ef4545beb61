//! Stores, plans and processes of the tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use llmops::indexer::job::{BuildReport, PLAN_ENV};
use serde_json::{Value, json};

/// A test that waits longer than this for a condition has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn embedder_dir() -> PathBuf {
    std::env::var_os("LLMOPS_EMBEDDER_DIR")
        .expect("set LLMOPS_EMBEDDER_DIR to the folder with model.onnx and tokenizer.json; `make test` prepares it")
        .into()
}

pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/index/corpus")
}

/// Mounts of a builder: a store, a source `docs` and golden questions.
pub struct Pod {
    folder: tempfile::TempDir,
}

impl Pod {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["store", "golden", "sources/docs"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        copy(&corpus(), &folder.path().join("sources/docs"));
        Self { folder }
    }

    /// A pod whose store has the generation of the whole corpus; it is built once for all tests.
    pub fn built() -> Self {
        static STORE: OnceLock<(Pod, BuildReport)> = OnceLock::new();
        let (first, _) = STORE.get_or_init(|| {
            let pod = Self::new();
            let report = pod.build_ok(&plan());
            (pod, report)
        });
        let pod = Self::new();
        copy(&first.store(), &pod.store());
        pod
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn store(&self) -> PathBuf {
        self.at("store")
    }

    pub fn document(&self, uri: &str) -> PathBuf {
        self.at("sources/docs").join(uri)
    }

    pub fn generation(&self, name: &str) -> PathBuf {
        self.store().join("generations").join(name)
    }

    pub fn generations(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.store().join("generations"))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    pub fn start(&self, plan: &Value) -> Process {
        let _ = std::fs::remove_file(self.at("termination"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmops"));
        command.args(["index", "build", "--mount-timeout", "0"]);
        for (option, folder) in [("--store", "store"), ("--sources", "sources"), ("--golden", "golden")] {
            command.arg(option).arg(self.at(folder));
        }
        command.env("RUST_LOG", "warn").env(PLAN_ENV, plan.to_string()).env("LLMOPS_EMBEDDER_DIR", embedder_dir());
        command.env("LLMOPS_TERMINATION_LOG", self.at("termination"));
        Process::start(command)
    }

    pub fn report(&self) -> Option<BuildReport> {
        let text = std::fs::read_to_string(self.at("termination")).ok()?;
        assert!(text.len() <= 4096);
        Some(serde_json::from_str(&text).unwrap())
    }

    pub fn build(&self, plan: &Value) -> (Option<i32>, BuildReport) {
        let status = self.start(plan).wait();
        (status.code(), self.report().expect("each outcome leaves a termination message"))
    }

    pub fn build_ok(&self, plan: &Value) -> BuildReport {
        let (code, report) = self.build(plan);
        assert!(code == Some(0) && report.passed, "{code:?} {report:?}");
        report
    }

    pub fn serve(&self, report: &BuildReport) -> Server {
        let folder = self.generation(report.generation.as_ref().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmops"));
        command.args(["--log-format", "json", "index", "serve", "--listen", "127.0.0.1:0", "--dir"]).arg(folder);
        command.args(["--digest", report.digest.as_ref().unwrap()]);
        command.env("LLMOPS_EMBEDDER_DIR", embedder_dir()).env("LLMOPS_TERMINATION_LOG", self.at("termination"));
        command.env("NO_PROXY", "*").stderr(Stdio::piped());
        let mut process = Process::start(command);
        let mut log = BufReader::new(process.0.stderr.take().unwrap()).lines();
        let address = log
            .find_map(|line| {
                let line: Value = serde_json::from_str(&line.ok()?).ok()?;
                line["address"].as_str().map(str::to_owned)
            })
            .expect("the server logs its address");
        // Someone must read on, or the server's log blocks it.
        std::thread::spawn(move || log.for_each(drop));
        Server { process, url: format!("http://{address}") }
    }
}

/// The plan of the whole corpus.
pub fn plan() -> Value {
    json!({
        "index": "things",
        "sources": [{"name": "docs", "include": ["**/*.md", "**/*.txt"], "tags": {"team": "a"}}],
        "parse": {}, "chunking": {"maxTokens": 96}, "embedder": "allMiniLmL6V2", "batch": 4,
        "retrieval": {"topK": 3}, "history": 1
    })
}

/// A plan with some fields replaced.
pub fn plan_with(changes: Value) -> Value {
    let mut plan = plan();
    plan.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    plan
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A process that ends with its owner.
pub struct Process(Child);

impl Process {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("llmops starts"))
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A retrieval server.
pub struct Server {
    pub process: Process,
    pub url: String,
}

pub fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

impl Server {
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = client().get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn search(&self, body: Value) -> (u16, Value) {
        let response = client().post(format!("{}/search", self.url)).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn ready(&self) {
        until(async || self.get("/readyz").await.0 == 200).await;
    }
}

/// Waits until a condition holds.
pub async fn until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "the condition never held");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
