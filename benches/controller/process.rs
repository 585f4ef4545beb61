//! The controller as a process of its own, and what it used.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

pub struct Controller {
    child: Child,
    admin: std::net::SocketAddr,
}

impl Controller {
    /// Starts the controller and waits until it is ready.
    pub async fn start(kubeconfig: &Path) -> Result<Self> {
        let program = std::env::var_os("LLMOPS_BIN").context("LLMOPS_BIN is not set; run `make bench-controller`")?;
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .args([
                "controller",
                "--image",
                "llmops:dev",
                "--gateway-url",
                "http://127.0.0.1:1",
                "--namespace",
                "llmops-system",
            ])
            .args(["--admin-listen", &free.to_string()])
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let controller = Self { child, admin: free };
        controller.until("ready", |path| path == "/readyz", |_| true).await?;
        Ok(controller)
    }

    async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool, holds: impl Fn(&str) -> bool) -> Result<()> {
        let path = ["/readyz", "/metrics"].into_iter().find(|path| wanted(path)).context("a path")?;
        let poll = async {
            loop {
                if let Ok(response) = reqwest::get(format!("http://{}{path}", self.admin)).await
                    && response.status().is_success()
                    && let Ok(text) = response.text().await
                    && holds(&text)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), poll)
            .await
            .with_context(|| format!("the controller was not {what} within 120 s"))
    }

    /// Waits until it has reconciled each object at least once.
    pub async fn until_reconciled(&self, count: usize) -> Result<()> {
        let enough = |text: &str| {
            let sum: f64 = text
                .lines()
                .filter(|line| line.starts_with("llmops_controller_reconciles_total"))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            sum >= count as f64
        };
        self.until("done with every object", |path| path == "/metrics", enough).await
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().context("the controller has ended")
    }

    /// CPU time so far, user and system, in milliseconds (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
    pub fn cpu_ms(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        let (_, fields) = stat.rsplit_once(')').context("the form of /proc/PID/stat")?;
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(ticks as f64 * 10.0)
    }

    /// Greatest resident memory so far, in MiB.
    pub fn peak_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Ends it as Kubernetes would, by SIGTERM.
    pub async fn stop(&mut self) -> Result<()> {
        let status = std::process::Command::new("kill").args(["-TERM", &self.pid()?.to_string()]).status()?;
        if !status.success() {
            bail!("kill: {status}");
        }
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .context("the controller did not end within 30 s")??;
        Ok(())
    }
}
