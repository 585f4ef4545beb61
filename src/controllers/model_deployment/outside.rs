//! The two questions that are not asked of the API server: how far a download is, and whether a provider answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::api::model_deployment::Download;
use crate::api::revision::short;

/// Time between two looks at a download's progress.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(5);
/// Time between two looks at a provider that answered.
const PROVIDER_PERIOD: Duration = Duration::from_secs(300);
/// Time between two looks at a provider that did not.
const PROVIDER_RETRY: Duration = Duration::from_secs(30);
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Requests to pods and providers at the same time: slow ones must not use up what others need.
const CONCURRENT: usize = 16;

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

/// Who answers.
pub trait Ask: Send + Sync + 'static {
    /// How far the download is whose pod tells it at this address (`host:port`); nothing when it does not answer.
    fn progress<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Option<Download>>;

    /// Whether the provider at this address answers.
    fn provider<'a>(&'a self, base_url: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Provider>;
}

/// Pods and providers, asked over HTTP.
#[derive(Default)]
pub struct OverHttp {
    /// Made when first needed: it loads the trusted certificates.
    client: OnceLock<Option<reqwest::Client>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    bytes: i64,
    total_bytes: Option<i64>,
}

impl OverHttp {
    fn client(&self) -> Option<&reqwest::Client> {
        let made = self.client.get_or_init(|| {
            let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
            match builder.timeout(TIMEOUT).build() {
                Ok(client) => Some(client),
                Err(error) => {
                    tracing::error!(%error, "no HTTP client: downloads' progress and providers' health stay unknown");
                    None
                }
            }
        });
        made.as_ref()
    }
}

impl Ask for OverHttp {
    fn progress<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Option<Download>> {
        async move {
            let asked = self.client()?.get(format!("http://{address}/progress")).send().await;
            let heard = asked.ok()?.error_for_status().ok()?.json::<Progress>().await.ok()?;
            Some(Download { bytes: heard.bytes, total_bytes: heard.total_bytes })
        }
        .boxed()
    }

    fn provider<'a>(&'a self, base_url: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Provider> {
        async move {
            let Some(client) = self.client() else { return Provider::Unknown };
            let url = format!("{}/models", base_url.trim_end_matches('/'));
            let mut request = client.get(&url);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            match request.send().await {
                Ok(response) if matches!(response.status().as_u16(), 401 | 403) => {
                    Provider::Refuses(format!("{url} answers {}", response.status()))
                }
                Ok(response) if response.status().is_server_error() => {
                    Provider::Unreachable(format!("{url} answers {}", response.status()))
                }
                // Not every provider lists its models; that it answers is enough.
                Ok(_) => Provider::Reachable,
                Err(error) => Provider::Unreachable(format!("{url}: {}", reason(&error))),
            }
        }
        .boxed()
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

struct Answer<T> {
    asked: Instant,
    running: bool,
    value: T,
    /// What was asked; an answer to another question is no answer.
    question: String,
}

/// Last answers by the UID of the object that they are about.
type Answers<T> = Arc<Mutex<HashMap<String, Answer<T>>>>;

/// Asks pods and providers beside the reconciles, and remembers their last answers.
pub struct Outside {
    ask: Arc<dyn Ask>,
    slots: Arc<Semaphore>,
    downloads: Answers<Option<Download>>,
    providers: Answers<Provider>,
}

impl Outside {
    /// Nothing heard yet.
    pub fn new(ask: Arc<dyn Ask>) -> Self {
        Self { ask, slots: Arc::new(Semaphore::new(CONCURRENT)), downloads: Arc::default(), providers: Arc::default() }
    }

    /// Forgets an object that needs no answers.
    pub(super) fn forget(&self, uid: &str) {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// A download's progress as last heard; asks again when it is time.
    pub(super) fn progress(&self, uid: &str, address: &str) -> Option<Download> {
        let asked = address.to_owned();
        let ask = |ask: Arc<dyn Ask>| async move { ask.progress(&asked).await };
        // Silence says nothing new.
        let take = |known: &mut Option<Download>, heard: Option<Download>| *known = heard.or(known.take());
        self.last(&self.downloads, uid, address, None, |_| PROGRESS_PERIOD, ask, take)
    }

    /// A provider's health as last heard; asks again when it is time.
    pub(super) fn provider(&self, uid: &str, base_url: &str, token: Option<String>) -> Provider {
        let question = format!("{base_url} {}", short(token.as_deref().unwrap_or_default(), 16));
        let period = |last: &Provider| if *last == Provider::Reachable { PROVIDER_PERIOD } else { PROVIDER_RETRY };
        let base_url = base_url.to_owned();
        let ask = |ask: Arc<dyn Ask>| async move { ask.provider(&base_url, token.as_deref()).await };
        self.last(&self.providers, uid, &question, Provider::Unknown, period, ask, |known, heard| *known = heard)
    }

    /// The last answer to a question; asks it again, beside, when it is time.
    #[allow(clippy::too_many_arguments)]
    fn last<T, F>(
        &self,
        answers: &Answers<T>,
        uid: &str,
        question: &str,
        unknown: T,
        period: impl Fn(&T) -> Duration,
        ask: impl FnOnce(Arc<dyn Ask>) -> F,
        take: fn(&mut T, T),
    ) -> T
    where
        T: Clone + Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let mut known = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_due, last) = due(&mut known, uid, question, unknown, period);
        drop(known);
        if is_due {
            let (heard, slots) = (ask(Arc::clone(&self.ask)), Arc::clone(&self.slots));
            let (answers, uid) = (Arc::clone(answers), uid.to_owned());
            tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                let heard = heard.await;
                answered(&answers, &uid, |value| take(value, heard));
            });
        }
        last
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
