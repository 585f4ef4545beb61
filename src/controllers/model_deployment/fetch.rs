//! What decides about a ModelDeployment besides its spec. Reads the watch caches; the two requests that are not to
//! the API server (a download's progress, a provider's health) run beside, and their last answer is used.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::build::FETCH;
use super::revision::{self, Stored};
use crate::api::Evaluation;
use crate::api::model_deployment::{Download, ModelDeployment};
use crate::api::names;
use crate::api::revision::short;
use crate::controllers::error::Error;
use crate::controllers::kinds::Kind;
use crate::controllers::measure::Measured;
use crate::controllers::pipeline::Scope;

/// Port on which the download tells its progress.
pub const PROGRESS_PORT: u16 = 8081;
/// Time between two looks at a download's progress.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(5);
/// Time between two looks at a provider that answered.
const PROVIDER_PERIOD: Duration = Duration::from_secs(300);
/// Time between two looks at a provider that did not.
const PROVIDER_RETRY: Duration = Duration::from_secs(30);
/// Longest wait for a provider's answer.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests to pods and providers at the same time: slow ones must not use up what others need.
const CONCURRENT: usize = 16;

/// State of the Secret that `credentialsRef` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None is named.
    #[default]
    NotNeeded,
    /// There is no such Secret.
    Missing,
    /// It has no key `token`.
    NoToken,
    /// Hash of its token.
    Hash(String),
}

/// What is known of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It answers.
    Reachable,
    /// It answers that the credentials are wrong.
    Refuses(String),
    /// It does not answer.
    Unreachable(String),
}

/// What decides about a ModelDeployment besides its spec.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Known revisions.
    pub revisions: BTreeMap<String, Stored>,
    /// Deployments, by revision.
    pub deployments: BTreeMap<String, Deployment>,
    /// Pods of all revisions.
    pub pods: Vec<Pod>,
    /// The Secret.
    pub credentials: Credentials,
    /// The Evaluations that `spec.rollout.gates` names, by name.
    pub evaluations: BTreeMap<String, Evaluation>,
    /// What users' requests have shown of the candidate, while it gets some.
    pub measured: Measured,
    /// Whether the volume that the source names exists.
    pub volume_exists: bool,
    /// Progress of a running download, as last heard.
    pub progress: Option<Download>,
    /// The provider outside, as last heard.
    pub provider: Provider,
}

impl Fetched {
    /// Pods of a revision that are not going.
    pub fn pods_of<'a>(&'a self, revision: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.labels().get(names::LABEL_REVISION).is_some_and(|label| label == revision)
        })
    }
}

struct Answer<T> {
    asked: Instant,
    running: bool,
    value: T,
    /// What was asked; an answer to another question is no answer.
    question: String,
}

/// Asks pods and providers, beside the reconciles.
pub struct Outside {
    /// Made when first needed: it loads the trusted certificates.
    client: OnceLock<Option<reqwest::Client>>,
    slots: Arc<Semaphore>,
    downloads: Arc<Mutex<HashMap<String, Answer<Option<Download>>>>>,
    providers: Arc<Mutex<HashMap<String, Answer<Provider>>>>,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            client: OnceLock::new(),
            slots: Arc::new(Semaphore::new(CONCURRENT)),
            downloads: Arc::default(),
            providers: Arc::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    bytes: i64,
    total_bytes: Option<i64>,
}

impl Outside {
    fn client(&self) -> Option<reqwest::Client> {
        let made = self.client.get_or_init(|| {
            let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
            match builder.timeout(PROVIDER_TIMEOUT).build() {
                Ok(client) => Some(client),
                Err(error) => {
                    tracing::error!(%error, "no HTTP client: downloads' progress and providers' health stay unknown");
                    None
                }
            }
        });
        made.clone()
    }

    /// Forgets an object that needs no answers.
    fn forget(&self, uid: &str) {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn progress(&self, uid: &str, address: &str) -> Option<Download> {
        let mut answers = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        let (ask, last) = due(&mut answers, uid, address, None, |_| PROGRESS_PERIOD);
        drop(answers);
        if ask && let Some(client) = self.client() {
            let (slots, answers) = (Arc::clone(&self.slots), Arc::clone(&self.downloads));
            let (uid, url) = (uid.to_owned(), format!("http://{address}/progress"));
            tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                let heard = async { client.get(url).send().await?.error_for_status()?.json::<Progress>().await };
                let heard = heard.await.ok().map(|p| Download { bytes: p.bytes, total_bytes: p.total_bytes });
                answered(&answers, &uid, |value| *value = heard.or(value.take()));
            });
        }
        last
    }

    fn provider(&self, uid: &str, base_url: &str, secret: Option<&Secret>) -> Provider {
        let token = secret.and_then(token);
        let question = format!("{base_url} {}", short(token.as_deref().unwrap_or_default(), 16));
        let mut answers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let period = |last: &Provider| if *last == Provider::Reachable { PROVIDER_PERIOD } else { PROVIDER_RETRY };
        let (ask, last) = due(&mut answers, uid, &question, Provider::Unknown, period);
        drop(answers);
        if ask && let Some(client) = self.client() {
            let (slots, answers) = (Arc::clone(&self.slots), Arc::clone(&self.providers));
            let (uid, url) = (uid.to_owned(), format!("{}/models", base_url.trim_end_matches('/')));
            tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                let mut request = client.get(&url);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                let heard = match request.send().await {
                    Ok(response) if matches!(response.status().as_u16(), 401 | 403) => {
                        Provider::Refuses(format!("{url} answers {}", response.status()))
                    }
                    Ok(response) if response.status().is_server_error() => {
                        Provider::Unreachable(format!("{url} answers {}", response.status()))
                    }
                    // Not every provider lists its models; that it answers is enough.
                    Ok(_) => Provider::Reachable,
                    Err(error) => Provider::Unreachable(format!("{url}: {}", reason(&error))),
                };
                answered(&answers, &uid, |value| *value = heard);
            });
        }
        last
    }
}

fn reason(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "no usable answer"
    }
}

fn due<T: Clone>(
    answers: &mut HashMap<String, Answer<T>>,
    uid: &str,
    question: &str,
    unknown: T,
    period: impl Fn(&T) -> Duration,
) -> (bool, T) {
    let now = Instant::now();
    if let Some(answer) = answers.get_mut(uid)
        && answer.question == question
    {
        let ask = !answer.running && now.duration_since(answer.asked) >= period(&answer.value);
        if ask {
            answer.asked = now;
            answer.running = true;
        }
        return (ask, answer.value.clone());
    }
    let answer = Answer { asked: now, running: true, value: unknown.clone(), question: question.to_owned() };
    answers.insert(uid.to_owned(), answer);
    (true, unknown)
}

fn answered<T>(answers: &Mutex<HashMap<String, Answer<T>>>, uid: &str, set: impl FnOnce(&mut T)) {
    if let Some(answer) = answers.lock().unwrap_or_else(PoisonError::into_inner).get_mut(uid) {
        answer.running = false;
        set(&mut answer.value);
    }
}

fn token(secret: &Secret) -> Option<String> {
    let bytes = secret.data.as_ref()?.get("token")?;
    String::from_utf8(bytes.0.clone()).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Collects what decides.
///
/// # Errors
/// When a Secret cannot be read or a cached object does not fit its type.
pub async fn fetch(outside: &Outside, scope: &Scope<'_>, object: &ModelDeployment) -> Result<Fetched, Error> {
    let spec = &object.spec;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let reference = match (&spec.external, &spec.model) {
        (Some(external), _) => external.credentials_ref.as_ref(),
        (None, Some(model)) => model.credentials_ref.as_ref(),
        _ => None,
    };
    let secret = match reference {
        Some(reference) => scope.secret(&reference.name).await?,
        None => None,
    };
    let credentials = match (reference, &secret) {
        (None, _) => Credentials::NotNeeded,
        (Some(_), None) => Credentials::Missing,
        (Some(_), Some(secret)) => {
            token(secret).map_or(Credentials::NoToken, |token| Credentials::Hash(short(&token, 16)))
        }
    };
    let deployments = scope.children::<Deployment>()?.into_iter().filter_map(|deployment| {
        let revision = deployment.labels().get(names::LABEL_REVISION)?.clone();
        Some((revision, deployment))
    });
    let deployments = deployments.collect();
    if let Some(external) = &spec.external {
        let provider = match credentials {
            Credentials::Missing | Credentials::NoToken => Provider::Unknown,
            _ => outside.provider(&uid, &external.base_url, secret.as_deref()),
        };
        return Ok(Fetched { deployments, credentials, provider, ..Fetched::default() });
    }
    let mut evaluations = BTreeMap::new();
    for gate in &spec.rollout.gates {
        let name = &gate.evaluation_ref.name;
        if let Some(evaluation) = scope.get::<Evaluation>(name)? {
            evaluations.insert(name.clone(), evaluation);
        }
    }
    let pvc = spec.model.as_ref().and_then(|model| model.source.as_ref()).and_then(|source| source.pvc.as_ref());
    let pods = scope.children::<Pod>()?;
    let progress = match pods.iter().find_map(downloading) {
        Some(address) => outside.progress(&uid, &address),
        None => {
            outside.forget(&uid);
            None
        }
    };
    Ok(Fetched {
        measured: Measured::Nothing,
        revisions: revision::read(&scope.children::<ControllerRevision>()?),
        deployments,
        pods,
        credentials,
        evaluations,
        volume_exists: pvc.is_some_and(|pvc| scope.exists(Kind::PersistentVolumeClaim, &pvc.claim_name)),
        progress,
        provider: Provider::Unknown,
    })
}

/// Where a pod's running download tells its progress.
fn downloading(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let running = status.init_container_statuses.iter().flatten().any(|container| {
        container.name == FETCH && container.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    let address = status.pod_ip.as_deref().filter(|_| running)?;
    Some(if address.contains(':') {
        format!("[{address}]:{PROGRESS_PORT}")
    } else {
        format!("{address}:{PROGRESS_PORT}")
    })
}
