//! `llmops promote|rollback|hold|resume KIND/NAME`: a person's request, as an annotation that acts once.
//!
//! Nothing in Git changes: the annotation is not in Git and has a field manager of its own. The controller acts when the
//! revision that is named is the candidate's, so a request that comes too late does nothing to another one.

use std::process::ExitCode;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};

use super::cluster::{Connection, Error as ClusterError, Kind, Target, connect};
use super::status::Drawn;
use crate::api::names::ANNOTATION_ROLLOUT;
use crate::api::rollout::{ArmRevision, RejectedRevision, RolloutPhase, RolloutStatus};
use crate::api::{ModelDeployment, PromptFlow, RagIndex};
use crate::rollout::request::Request;
pub use crate::rollout::request::Verb;

/// Field manager of the annotation.
pub const MANAGER: &str = "llmops-cli";

/// What is asked for, as people say it.
fn words(action: Verb) -> &'static str {
    if action == Verb::Rollback { "roll back" } else { action.name() }
}

/// Arguments of the four commands.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The resource: pf/NAME, mdep/NAME or rag/NAME.
    #[arg(value_name = "KIND/NAME")]
    pub target: Target,
    /// The revision (of an index, the generation) that is meant. Default: the candidate of the rollout under way. `promote` also
    /// takes a rejected one, and tries it again.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// How long to wait until the controller has acted.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Which cluster and namespace.
    #[command(flatten)]
    pub connection: Connection,
}

/// An error of the four commands.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(
        "{0} is an Evaluation, which has no rollout; name the flow, model or index that it gates: pf/NAME, mdep/NAME or rag/NAME"
    )]
    NoRollouts(Target),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(
        "the controller has not acted within {seconds} s: is it running? kubectl get pods -A -l app.kubernetes.io/component=controller\n\
         The request stays and is acted upon later. To take it back: kubectl annotate {target} -n {namespace} {annotation}-",
        annotation = ANNOTATION_ROLLOUT
    )]
    Timeout { seconds: u64, target: Target, namespace: String },
    #[error("{target} was deleted from namespace {namespace} before the controller acted")]
    Deleted { target: Target, namespace: String },
}

/// Why a request is not made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("spec.suspend is true: the controller acts on nothing; set it to false in Git first")]
    Suspended,
    #[error("nothing to {action}: no rollout is under way (status has no candidate){rejected}", rejected = list(rejected))]
    NoCandidate { action: &'static str, rejected: Vec<String> },
    #[error(
        "--revision {revision} is not the candidate, which is {candidate}{rejected}; leave --revision out to {action} the candidate",
        rejected = list(rejected)
    )]
    OtherRevision { action: &'static str, revision: String, candidate: String, rejected: Vec<String> },
    #[error(
        "--revision {revision} was rejected already and gets no traffic; only `llmops promote` takes a rejected revision, and tries it again"
    )]
    AlreadyRejected { revision: String },
    #[error("--revision {revision} is unknown: no rollout is under way{rejected}", rejected = list(rejected))]
    Unknown { revision: String, rejected: Vec<String> },
}

fn list(rejected: &[String]) -> String {
    if rejected.is_empty() {
        return String::new();
    }
    format!("; rejected are {}, which `llmops promote --revision REVISION` tries again", rejected.join(", "))
}

/// What a resource tells of its rollout, the same for all kinds.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    suspended: bool,
    candidate: Option<String>,
    /// What the last rollout was about, if it was rolled back and Git still asks for it.
    rolled_back: Option<String>,
    /// Revision and reason, the newest first.
    rejected: Vec<(String, String)>,
    serves: Vec<String>,
    held: bool,
    handled: Option<String>,
    message: String,
}

/// A kind that has rollouts.
trait Rolled: Drawn {
    fn state(&self) -> State;
}

fn of_rollout(state: &mut State, rollout: Option<&RolloutStatus>, rejected: &[RejectedRevision]) {
    state.rejected = rejected.iter().rev().map(|one| (one.revision.clone(), one.reason.clone())).collect();
    let Some(rollout) = rollout else { return };
    state.held = rollout.held;
    state.message.clone_from(&rollout.message);
    if rollout.phase == RolloutPhase::RolledBack {
        let changed = |arm: &&ArmRevision| state.rejected.iter().any(|(revision, _)| *revision == arm.revision);
        state.rolled_back = rollout.candidate.iter().find(changed).map(|arm| arm.revision.clone());
    }
}

impl Rolled for PromptFlow {
    fn state(&self) -> State {
        let mut state = State { suspended: self.spec.suspend, ..State::default() };
        let Some(status) = &self.status else { return state };
        state.candidate.clone_from(&status.candidate_revision);
        state.handled.clone_from(&status.last_handled_rollout_request);
        state.serves = status.stable.iter().map(|arm| arm.revision.clone()).collect();
        of_rollout(&mut state, status.rollout.as_ref(), &status.rejected_revisions);
        state
    }
}

impl Rolled for ModelDeployment {
    fn state(&self) -> State {
        let mut state = State { suspended: self.spec.suspend, ..State::default() };
        let Some(status) = &self.status else { return state };
        let running = status.rollout.as_ref().filter(|rollout| super::status::is_under_way(rollout.phase));
        state.candidate = running.and_then(|rollout| rollout.candidate.first()).map(|arm| arm.revision.clone());
        state.handled.clone_from(&status.last_handled_rollout_request);
        state.serves = status.stable_revision.iter().cloned().collect();
        of_rollout(&mut state, status.rollout.as_ref(), &status.rejected_revisions);
        state
    }
}

impl Rolled for RagIndex {
    fn state(&self) -> State {
        let mut state = State { suspended: self.spec.suspend, ..State::default() };
        let Some(status) = &self.status else { return state };
        let failed = crate::api::rag_index::CandidatePhase::Failed;
        let candidate = status.candidate.as_ref();
        state.candidate = candidate.filter(|one| one.phase != failed).and_then(|one| one.name.clone());
        state.rolled_back = candidate.filter(|one| one.phase == failed).and_then(|one| one.name.clone());
        state.held = candidate.is_some_and(|one| one.held);
        state.handled.clone_from(&status.last_handled_rollout_request);
        state.serves = status.active.iter().map(|active| active.name.clone()).collect();
        let named = |one: &crate::api::rag_index::RejectedGeneration| Some((one.name.clone()?, one.reason.clone()));
        state.rejected = status.rejected_generations.iter().rev().filter_map(named).collect();
        state.message = crate::api::conditions::find(&status.conditions, "Reconciling")
            .map(|condition| condition.message.clone())
            .unwrap_or_default();
        state
    }
}

/// The revision that a request means.
fn revision(state: &State, action: Verb, named: Option<&str>) -> Result<String, Refused> {
    if state.suspended {
        return Err(Refused::Suspended);
    }
    let rejected = || state.rejected.iter().map(|(revision, reason)| format!("{revision} ({reason})")).collect();
    let is_rejected = |revision: &str| state.rejected.iter().any(|(known, _)| known == revision);
    let again = state.rolled_back.as_ref().filter(|revision| action == Verb::Promote && is_rejected(revision));
    match (named, &state.candidate) {
        (None, Some(candidate)) => Ok(candidate.clone()),
        (None, None) => match again {
            Some(revision) => Ok(revision.clone()),
            None => Err(Refused::NoCandidate { action: words(action), rejected: rejected() }),
        },
        (Some(named), Some(candidate)) if named == candidate => Ok(candidate.clone()),
        (Some(named), _) if is_rejected(named) => match action {
            Verb::Promote => Ok(named.to_owned()),
            _ => Err(Refused::AlreadyRejected { revision: named.to_owned() }),
        },
        (Some(named), Some(candidate)) => Err(Refused::OtherRevision {
            action: words(action),
            revision: named.to_owned(),
            candidate: candidate.clone(),
            rejected: rejected(),
        }),
        (Some(named), None) => Err(Refused::Unknown { revision: named.to_owned(), rejected: rejected() }),
    }
}

/// What came of a request, and whether it is what was asked for.
fn result(state: &State, action: Verb, revision: &str) -> (bool, String) {
    let rejected = state.rejected.iter().any(|(known, _)| known == revision);
    let serves = state.serves.iter().any(|known| known == revision);
    let is_candidate = state.candidate.as_deref() == Some(revision);
    let (done, told) = match action {
        Verb::Promote if serves => (true, format!("revision {revision} serves everybody")),
        Verb::Promote if is_candidate => (true, format!("revision {revision} is on its way")),
        Verb::Rollback if rejected => (true, format!("revision {revision} is rolled back and gets no traffic")),
        Verb::Hold if is_candidate && state.held => (true, format!("revision {revision} is held where it is")),
        Verb::Resume if is_candidate && !state.held => (true, format!("revision {revision} goes on")),
        Verb::Resume if serves => (true, format!("revision {revision} serves everybody")),
        _ => (false, format!("the controller did not {} revision {revision}", words(action))),
    };
    let told = if state.message.is_empty() { told } else { format!("{told}: {}", state.message) };
    (done, told)
}

/// Runs one of the commands.
pub async fn run(action: Verb, args: Args) -> ExitCode {
    match request(action, &args).await {
        Ok((true, told)) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Ok((false, told)) => {
            let target = &args.target;
            eprintln!("error: {told}\n`llmops status {target}` shows the rollout, `kubectl events --for {target}` why");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn request(action: Verb, args: &Args) -> Result<(bool, String), Error> {
    let target = &args.target;
    if target.kind == Kind::Evaluation {
        return Err(Error::NoRollouts(target.clone()));
    }
    let (client, namespace) = connect(&args.connection).await?;
    match target.kind {
        Kind::PromptFlow => act(Api::<PromptFlow>::namespaced(client, &namespace), &namespace, action, args).await,
        Kind::ModelDeployment => {
            act(Api::<ModelDeployment>::namespaced(client, &namespace), &namespace, action, args).await
        }
        Kind::RagIndex | Kind::Evaluation => {
            act(Api::<RagIndex>::namespaced(client, &namespace), &namespace, action, args).await
        }
    }
}

async fn act<K: Rolled>(api: Api<K>, namespace: &str, action: Verb, args: &Args) -> Result<(bool, String), Error> {
    let target = &args.target;
    let before = api.get(&target.name).await.map_err(|error| ClusterError::of(error, "read", target, namespace))?;
    let revision = revision(&before.state(), action, args.revision.as_deref())?;
    let asked = Request { verb: action, revision: revision.clone(), id: Timestamp::now().to_string() };
    let value = asked.to_string();
    let patch = serde_json::json!({"metadata": {"annotations": {ANNOTATION_ROLLOUT: value}}});
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&target.name, &parameters, &Patch::Merge(&patch))
        .await
        .map_err(|error| ClusterError::of(error, "annotate", target, namespace))?;
    println!("{target}: asked to {} revision {revision}", words(action));
    let after = tokio::time::timeout(Duration::from_secs(args.timeout), handled(api, args, namespace, &value)).await;
    let after = after.map_err(|_| Error::Timeout {
        seconds: args.timeout,
        target: target.clone(),
        namespace: namespace.to_owned(),
    })??;
    Ok(result(&after, action, &revision))
}

/// The state once the controller has acted.
async fn handled<K: Rolled>(api: Api<K>, args: &Args, namespace: &str, value: &str) -> Result<State, Error> {
    let target = &args.target;
    let only = watcher::Config::default().fields(&format!("metadata.name={}", target.name));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                let state = object.state();
                if state.handled.as_deref() == Some(value) {
                    return Ok(state);
                }
                // Somebody else's request took its place before the controller saw it.
                let replaced = object.annotations().get(ANNOTATION_ROLLOUT).is_none_or(|now| now != value);
                if replaced && state.handled.as_deref() != Some(value) {
                    eprintln!(
                        "note: the request was replaced: {}",
                        object.annotations().get(ANNOTATION_ROLLOUT).map_or("removed", String::as_str)
                    );
                    return Ok(state);
                }
            }
            Ok(Some(watcher::Event::Delete(_)) | None) => {
                return Err(Error::Deleted { target: target.clone(), namespace: namespace.to_owned() });
            }
            // An API server that is away is waited for.
            Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(name: &str) -> State {
        let path =
            format!("{}/manifests/argocd/llmops.dev/PromptFlow/testdata/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let flow: PromptFlow = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        flow.state()
    }

    const OLD: &str = "3fa9c1d2e0";
    const NEW: &str = "81be02aa11";

    #[test]
    fn the_candidate_is_meant_unless_another_revision_is_named() {
        let state = flow("progressing");
        for action in [Verb::Promote, Verb::Rollback, Verb::Hold, Verb::Resume] {
            assert_eq!(revision(&state, action, None), Ok(NEW.into()));
            assert_eq!(revision(&state, action, Some(NEW)), Ok(NEW.into()));
        }
        let error = revision(&state, Verb::Hold, Some("0000000000")).unwrap_err().to_string();
        assert_eq!(
            error,
            "--revision 0000000000 is not the candidate, which is 81be02aa11; leave --revision out to hold the candidate"
        );
    }

    #[test]
    fn only_promote_takes_what_was_rejected() {
        let state = flow("rolled_back");
        assert_eq!(revision(&state, Verb::Promote, None), Ok(NEW.into()));
        assert_eq!(revision(&state, Verb::Promote, Some(NEW)), Ok(NEW.into()));
        let error = revision(&state, Verb::Rollback, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "nothing to roll back: no rollout is under way (status has no candidate); rejected are 81be02aa11 (MetricRegression), which \
             `llmops promote --revision REVISION` tries again"
        );
        let error = revision(&state, Verb::Hold, Some(NEW)).unwrap_err().to_string();
        assert!(error.contains("was rejected already"), "{error}");
    }

    #[test]
    fn nothing_to_act_on_is_said_so() {
        let error = revision(&flow("serving"), Verb::Promote, None).unwrap_err().to_string();
        assert_eq!(error, "nothing to promote: no rollout is under way (status has no candidate)");
        let error = revision(&flow("serving"), Verb::Promote, Some(NEW)).unwrap_err().to_string();
        assert_eq!(error, "--revision 81be02aa11 is unknown: no rollout is under way");
        assert_eq!(revision(&flow("suspended"), Verb::Hold, None), Err(Refused::Suspended));
        assert!(revision(&flow("no_status"), Verb::Hold, None).is_err());
    }

    #[test]
    fn the_result_says_whether_it_is_what_was_asked_for() {
        for (name, action, done, told) in [
            ("promoted", Verb::Promote, true, "serves everybody"),
            ("rolled_back_by_user", Verb::Rollback, true, "is rolled back"),
            ("holding_person", Verb::Hold, true, "is held where it is"),
            ("progressing", Verb::Resume, true, "goes on"),
            ("progressing", Verb::Hold, false, "did not hold"),
            ("preparing", Verb::Promote, true, "is on its way: revision 81be02aa11 is made ready"),
            ("rolled_back", Verb::Promote, false, "did not promote"),
            ("holding_person", Verb::Resume, false, "did not resume"),
        ] {
            let (is_done, text) = result(&flow(name), action, NEW);
            assert!(is_done == done && text.contains(told), "{name} {action:?}: {text}");
        }
        assert!(!result(&flow("promoted"), Verb::Rollback, OLD).0);
    }
}
