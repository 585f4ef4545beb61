//! `llmops status KIND/NAME`: how a resource stands, drawn from its status alone; nothing but the API server is asked.

mod canvas;
mod evaluation;
mod flow;
mod index;
mod model;
mod rollout;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use futures::TryStreamExt;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster::{Connection, Error as ClusterError, Kind, Target, connect};
use crate::api::conditions::find;
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use canvas::{Canvas, Tone};
pub use rollout::is_under_way;

/// Arguments of `llmops status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  llmops status pf/ask -n team-a            how the flow stands
  llmops status pf/ask -n team-a --watch    follow a rollout to its end

Exit code of --watch: 0 when the resource serves what its spec asks for (an evaluation: its gates passed),
1 when that was refused, failed or rolled back. It goes on while a rollout waits for data or a person.
Colours are used on a terminal only, and not when NO_COLOR is set.")]
pub struct Args {
    /// The resource: pf/NAME, mdep/NAME, rag/NAME or eval/NAME.
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,
    /// Draw again on every change, until the rollout or the run ends.
    #[arg(short, long)]
    pub watch: bool,
    /// How to print: a picture of 80 columns, or the object's status as JSON (one document a line with --watch).
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Which cluster and namespace.
    #[command(flatten)]
    pub connection: Connection,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Whether anything is left to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the spec asks for serves; an evaluation's gates passed.
    Good,
    /// It was refused, failed or rolled back.
    Bad,
    /// It goes on, by itself or by a person.
    UnderWay,
}

/// A kind that can be drawn.
pub trait Drawn:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Draws how it stands at this time.
    fn draw(&self, canvas: &mut Canvas, now: Timestamp);
    /// Whether anything is left to wait for.
    fn outcome(&self) -> Outcome;
}

/// An error of `llmops status`.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{target} was deleted from namespace {namespace} while it was watched")]
    Deleted { target: Target, namespace: String },
    #[error("cannot write the status as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    match show(&args).await {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(args: &Args) -> Result<ExitCode, Error> {
    let (client, namespace) = connect(&args.connection).await?;
    match args.target.kind {
        Kind::PromptFlow => follow::<PromptFlow>(client, &namespace, args).await,
        Kind::ModelDeployment => follow::<ModelDeployment>(client, &namespace, args).await,
        Kind::RagIndex => follow::<RagIndex>(client, &namespace, args).await,
        Kind::Evaluation => follow::<Evaluation>(client, &namespace, args).await,
    }
}

async fn follow<K: Drawn>(client: Client, namespace: &str, args: &Args) -> Result<ExitCode, Error> {
    let target = &args.target;
    let api: Api<K> = Api::namespaced(client, namespace);
    let first = api.get(&target.name).await.map_err(|error| ClusterError::of(error, "read", target, namespace))?;
    let screen = Screen::of(args);
    screen.print(&first)?;
    if !args.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let mut last = first;
    let only = watcher::Config::default().fields(&format!("metadata.name={}", target.name));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    let mut present = false;
    while last.outcome() == Outcome::UnderWay {
        // An API server that is away is waited for.
        let object = match events.try_next().await {
            Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => object,
            Ok(Some(watcher::Event::InitDone)) if present => continue,
            Ok(Some(watcher::Event::Delete(_) | watcher::Event::InitDone) | None) => {
                return Err(Error::Deleted { target: target.clone(), namespace: namespace.to_owned() });
            }
            Ok(Some(watcher::Event::Init)) => {
                present = false;
                continue;
            }
            Err(_) => continue,
        };
        present = true;
        if object.resource_version() != last.resource_version() {
            screen.print(&object)?;
        }
        last = object;
    }
    Ok(if last.outcome() == Outcome::Good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the pictures go.
struct Screen {
    output: Output,
    watch: bool,
    terminal: bool,
    colour: bool,
}

impl Screen {
    fn of(args: &Args) -> Self {
        let terminal = std::io::stdout().is_terminal();
        // https://no-color.org: any value that is not empty.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { output: args.output, watch: args.watch, terminal, colour: terminal && !plain }
    }

    fn print(&self, object: &impl Drawn) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => {
                let value = json(object)?;
                let text = if self.watch { value.to_string() } else { serde_json::to_string_pretty(&value)? };
                writeln!(out, "{text}")?;
            }
            Output::Text => {
                let mut canvas = Canvas::new(self.colour);
                object.draw(&mut canvas, Timestamp::now());
                let text = canvas.finish();
                match (self.watch, self.terminal) {
                    // Home, the picture, and nothing of the one before (ECMA-48).
                    (true, true) => write!(out, "\x1b[H\x1b[2J{text}")?,
                    (true, false) => writeln!(out, "{text}---")?,
                    (false, _) => write!(out, "{text}")?,
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}

/// What programs read: which object, and its status as the API server has it.
fn json(object: &impl Drawn) -> Result<serde_json::Value, serde_json::Error> {
    let whole = serde_json::to_value(object)?;
    let meta = &whole["metadata"];
    Ok(serde_json::json!({
        "apiVersion": whole["apiVersion"],
        "kind": whole["kind"],
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "generation": meta["generation"]},
        "status": whole["status"],
    }))
}

/// The first line, and whether the rest is about an older spec.
fn head<K: Drawn>(canvas: &mut Canvas, object: &K, observed: Option<i64>, state: &str, tone: Tone) {
    let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    canvas.head(&K::kind(&()), &name, state, tone);
    let generation = object.meta().generation;
    if observed != generation {
        let of = |generation: Option<i64>| generation.unwrap_or_default();
        let text = format!(
            "the controller has not looked at generation {} yet; this is about generation {}",
            of(generation),
            of(observed)
        );
        canvas.prose(0, Tone::Busy, &text);
    }
}

/// An object that has no status.
fn unseen<K: Drawn>(canvas: &mut Canvas, object: &K) {
    head(canvas, object, object.meta().generation, "not seen yet", Tone::Busy);
    let advice = "the controller has not looked at it yet; is it running? kubectl get pods -A -l app.kubernetes.io/component=controller";
    canvas.prose(0, Tone::Plain, advice);
}

/// Whether a condition has this status.
fn is(conditions: &[Condition], kind: &str, status: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == status)
}

/// What a person must know: why it is stalled, else why it is not ready, else what it does, else that all is well.
fn trouble(conditions: &[Condition]) -> String {
    let told = |kind: &str, status: &str| {
        find(conditions, kind).filter(|condition| condition.status == status && !condition.message.is_empty())
    };
    let bad = told("Stalled", "True").or_else(|| told("Ready", "False"));
    if let Some(condition) = bad {
        return format!("{}: {}", condition.reason, condition.message);
    }
    let doing = told("Reconciling", "True").or_else(|| told("Ready", "Unknown")).or_else(|| told("Ready", "True"));
    doing.map(|condition| condition.message.clone()).unwrap_or_default()
}
