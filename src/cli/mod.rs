//! Command line: the subcommands of the one binary. Each process's arguments live in its own room.

pub mod cluster;
pub mod crds;
pub mod key;
pub mod reference;
pub mod request;
pub mod status;
pub mod validate;

use clap::{Parser, Subcommand, ValueEnum};

/// Kubernetes operator and data plane for LLM features that live in Git.
#[derive(Parser, Debug)]
#[command(name = "llmops", version, about, max_term_width = 110)]
pub struct Cli {
    /// Format of log lines on standard error.
    #[arg(long, global = true, env = "LLMOPS_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the controllers of the four kinds.
    Controller(crate::controllers::Args),
    /// Run the gateway that serves flows, models and embeddings.
    Gateway(crate::gateway::Args),
    /// Build or serve a generation of an index.
    Index(crate::indexer::Args),
    /// Run an evaluation against the gateway.
    Evaluate(crate::evaluator::Args),
    /// Download a model file: resumed, digest-checked.
    Fetch(crate::fetch::Args),
    /// Print the custom resource definitions.
    Crds(crds::Args),
    /// Check manifests offline, by the rules of the cluster.
    Validate(validate::Args),
    /// Make an API key for the gateway.
    Key(key::Args),
    /// Draw how a resource stands: traffic, rollout, gates, intervals.
    Status(status::Args),
    /// Ask the operator to give everybody the candidate now, or to try a rejected revision again.
    #[command(after_help = REQUESTS)]
    Promote(request::Args),
    /// Ask the operator to give the candidate to nobody any more, and to reject it.
    #[command(after_help = REQUESTS)]
    Rollback(request::Args),
    /// Ask the operator to keep a rollout where it is.
    #[command(after_help = REQUESTS)]
    Hold(request::Args),
    /// Ask the operator to go on with a rollout that is held.
    #[command(after_help = REQUESTS)]
    Resume(request::Args),
}

const REQUESTS: &str = "The request is the annotation llmops.dev/rollout-request on the resource: it names the revision, acts once, and makes no
difference to Git. Who may patch the resource may make it: the roles llmops-prompt-engineer (flows), llmops-ml-engineer
and llmops-admin. The command waits until the controller has acted and says what came of it.

Exit code: 0 when what was asked for is done, 1 when not.";
