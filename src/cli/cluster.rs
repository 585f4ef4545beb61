//! What the commands for people share: which cluster, and which resource of it.

use std::fmt;
use std::str::FromStr;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

/// Which cluster and namespace.
#[derive(clap::Args, Clone, Debug)]
pub struct Connection {
    /// Namespace of the resource. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig. Default: its current one. The file is the one of KUBECONFIG, else ~/.kube/config.
    #[arg(long)]
    pub context: Option<String>,
}

/// Kinds that commands name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    PromptFlow,
    ModelDeployment,
    RagIndex,
    Evaluation,
}

impl Kind {
    /// As `kubectl` calls it in short.
    pub fn short(self) -> &'static str {
        match self {
            Self::PromptFlow => "pf",
            Self::ModelDeployment => "mdep",
            Self::RagIndex => "rag",
            Self::Evaluation => "eval",
        }
    }

    fn names(self) -> [&'static str; 3] {
        match self {
            Self::PromptFlow => ["pf", "promptflow", "promptflows"],
            Self::ModelDeployment => ["mdep", "modeldeployment", "modeldeployments"],
            Self::RagIndex => ["rag", "ragindex", "ragindexes"],
            Self::Evaluation => ["eval", "evaluation", "evaluations"],
        }
    }
}

/// A resource as people write it: `pf/ask`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.short(), self.name)
    }
}

/// A text that names no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write KIND/NAME, with pf, mdep, rag or eval (or the long name) as KIND: for example pf/ask")]
pub struct NoTarget;

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let (kind, name) = text.split_once('/').ok_or(NoTarget)?;
        let kind = kind.to_lowercase();
        let kinds = [Kind::PromptFlow, Kind::ModelDeployment, Kind::RagIndex, Kind::Evaluation];
        let kind = kinds.into_iter().find(|known| known.names().contains(&kind.as_str())).ok_or(NoTarget)?;
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        if name.is_empty() || !name.bytes().all(good) {
            return Err(NoTarget);
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// Why there is no way to the cluster, or no resource there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No configuration.
    #[error("no cluster: {0}; set KUBECONFIG, or run `kubectl config get-contexts` to see what --context may name")]
    Config(Box<dyn std::error::Error + Send + Sync>),
    /// The client cannot be made of it.
    #[error("the kubeconfig cannot be used: {0}")]
    Client(#[source] kube::Error),
    /// The resource is not there.
    #[error("{target} does not exist in namespace {namespace}; `kubectl get {kind} -A` lists all, -n picks the namespace", kind = target.kind.short())]
    NotFound {
        /// What was looked for.
        target: Target,
        /// Where.
        namespace: String,
    },
    /// The API server refuses.
    #[error("the API server refuses to {doing} {target} in namespace {namespace}: {message}{help}", help = forbidden(*code))]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// On what.
        target: Target,
        /// Where.
        namespace: String,
        /// HTTP code.
        code: u16,
        /// Its words.
        message: String,
    },
    /// The API server cannot be asked.
    #[error("the API server does not answer: {0}")]
    Unreachable(#[source] kube::Error),
}

fn forbidden(code: u16) -> &'static str {
    match code {
        401 => "; the kubeconfig's credentials are not valid any more",
        403 => {
            "; the roles llmops-prompt-engineer (flows and evaluations) and llmops-ml-engineer (all kinds) may, llmops-viewer may only read"
        }
        _ => "",
    }
}

impl Error {
    /// What a failed request says.
    pub fn of(error: kube::Error, doing: &'static str, target: &Target, namespace: &str) -> Self {
        let (target, namespace) = (target.clone(), namespace.to_owned());
        match error {
            kube::Error::Api(status) if status.code == 404 => Self::NotFound { target, namespace },
            kube::Error::Api(status) => {
                Self::Refused { doing, target, namespace, code: status.code, message: status.message.clone() }
            }
            error => Self::Unreachable(error),
        }
    }
}

/// A client, and the namespace to look in.
///
/// # Errors
/// When there is no usable kubeconfig.
pub async fn connect(connection: &Connection) -> Result<(Client, String), Error> {
    let config = match &connection.context {
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
            Config::from_kubeconfig(&options).await.map_err(|error| Error::Config(error.into()))?
        }
        None => Config::infer().await.map_err(|error| Error::Config(error.into()))?,
    };
    let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    Ok((Client::try_from(config).map_err(Error::Client)?, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kinds_by_every_name() {
        for (text, kind) in [
            ("pf/ask", Kind::PromptFlow),
            ("PromptFlow/ask", Kind::PromptFlow),
            ("modeldeployments/ask", Kind::ModelDeployment),
            ("rag/ask", Kind::RagIndex),
            ("evaluation/ask", Kind::Evaluation),
        ] {
            assert_eq!(text.parse(), Ok(Target { kind, name: "ask".into() }), "{text}");
        }
        for text in ["ask", "pod/ask", "pf/", "pf/a/b", "pf/Ask", ""] {
            assert_eq!(text.parse::<Target>(), Err(NoTarget), "{text}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let target: Target = "pf/ask".parse().unwrap();
        let status = |code| kube::Error::Api(Box::new(kube::core::Status { code, ..kube::core::Status::default() }));
        let missing = Error::of(status(404), "read", &target, "team-a").to_string();
        assert!(missing.contains("pf/ask does not exist in namespace team-a; `kubectl get pf -A`"), "{missing}");
        let refused = Error::of(status(403), "annotate", &target, "team-a").to_string();
        assert!(
            refused.contains("refuses to annotate pf/ask") && refused.contains("llmops-prompt-engineer"),
            "{refused}"
        );
    }
}
