//! A devcluster whose pods run nothing, and a kubeconfig that is the controller's own ServiceAccount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::audit;

const USER: &str = "system:serviceaccount:llmops-system:llmops-controller";

pub struct FakeCluster {
    folder: PathBuf,
}

impl FakeCluster {
    pub fn start() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("llmops-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let cluster = Self { folder };
        cluster.devcluster(&["up", "--detach", "--pods", "fake"])?;
        Ok(cluster)
    }

    pub async fn client(&self) -> Result<Client> {
        let config = Kubeconfig::read_from(self.folder.join("kubeconfig"))?;
        Ok(Client::try_from(kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)?)
    }

    /// Our charts, with the operator's own pods that (being fake) run nothing.
    pub fn install(&self) -> Result<()> {
        let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts");
        for chart in ["llmops-crds", "llmops"] {
            let path = charts.join(chart).display().to_string();
            self.devcluster(&["helm", "install", chart, &path, "--namespace", "llmops-system", "--create-namespace"])?;
        }
        Ok(())
    }

    /// A kubeconfig with a token of the controller's ServiceAccount: what RBAC forbids it, it cannot do here either.
    pub fn controller_kubeconfig(&self) -> Result<PathBuf> {
        let token = self.devcluster(&[
            "kubectl",
            "create",
            "token",
            "llmops-controller",
            "-n",
            "llmops-system",
            "--duration=4h",
        ])?;
        let mut config = Kubeconfig::read_from(self.folder.join("kubeconfig"))?;
        for user in &mut config.auth_infos {
            let info = kube::config::AuthInfo { token: Some(token.trim().to_owned().into()), ..Default::default() };
            user.auth_info = Some(info);
        }
        let path = self.folder.join("controller-kubeconfig");
        std::fs::write(&path, serde_yaml::to_string(&config)?)?;
        Ok(path)
    }

    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// The controller's requests since the mark, Lease renewals apart.
    pub fn ours(&self, mark: u64) -> Result<Vec<audit::Request>> {
        let all = audit::since(&self.audit_log(), mark)?;
        Ok(all.into_iter().filter(|request| request.user == USER && !request.is_lease_or_review()).collect())
    }

    pub fn remove(self) -> Result<()> {
        self.devcluster(&["reset"])?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }

    fn devcluster(&self, arguments: &[&str]) -> Result<String> {
        let program =
            std::env::var_os("DEVCLUSTER_BIN").context("DEVCLUSTER_BIN is not set; run `make bench-controller`")?;
        let output = Command::new(program).env("DEVCLUSTER_DIR", &self.folder).args(arguments).output()?;
        if !output.status.success() {
            bail!("`devcluster {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}
