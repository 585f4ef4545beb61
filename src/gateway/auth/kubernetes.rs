//! Kubernetes tokens: reviewed by the API server, and what it said is remembered briefly. When it is away, an answer of
//! the last minutes still counts; without one the request is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::AUDIENCE;
use super::cache::Cache;
use crate::api::GROUP;
use crate::gateway::error::ApiError;

/// How long an answer spares the next question.
const FRESH: Duration = Duration::from_secs(20);
/// How long a refusal does: a token or role may be new, and what grants it on its way.
const FRESH_REFUSAL: Duration = Duration::from_secs(1);
/// How long an answer counts while the API server is away.
const STALE: Duration = Duration::from_secs(300);
/// Longest wait for the API server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most questions to the API server at a time.
const QUESTIONS: usize = 16;

/// A Kubernetes user or ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User {
    /// Name, such as `system:serviceaccount:team-a:eval-docs`.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What authenticators add.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a user wants to do with an object of our API group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Verb.
    pub verb: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// Subresource.
    pub subresource: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Object; absent means all.
    pub name: Option<String>,
}

/// A question that the API server did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the Kubernetes API server did not answer: {0}")]
pub struct ReviewError(pub String);

/// Answers questions about tokens; the API server, or a stand-in for tests.
pub trait Reviewer: Send + Sync + std::fmt::Debug {
    /// Whose token this is; `None` when it is not valid for our audience.
    fn token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>>;
    /// Whether a user may do something.
    fn access<'a>(&'a self, user: &'a User, access: &'a Access) -> BoxFuture<'a, Result<bool, ReviewError>>;
}

/// Asks the API server.
#[derive(Clone)]
pub struct KubernetesReviewer {
    client: kube::Client,
}

impl std::fmt::Debug for KubernetesReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubernetesReviewer")
    }
}

impl KubernetesReviewer {
    /// Asks through this client.
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }
}

async fn within<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, ReviewError> {
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ReviewError(error.to_string())),
        Err(_) => Err(ReviewError(format!("no answer within {TIMEOUT:?}"))),
    }
}

impl Reviewer for KubernetesReviewer {
    fn token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
        Box::pin(async move {
            let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
            let review = TokenReview { spec, ..TokenReview::default() };
            let api: Api<TokenReview> = Api::all(self.client.clone());
            let status = within(api.create(&PostParams::default(), &review)).await?.status.unwrap_or_default();
            let ours = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
            if status.authenticated != Some(true) || !ours {
                return Ok(None);
            }
            Ok(status.user.map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }))
        })
    }

    fn access<'a>(&'a self, user: &'a User, access: &'a Access) -> BoxFuture<'a, Result<bool, ReviewError>> {
        Box::pin(async move {
            let spec = SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    version: Some("*".to_owned()),
                    verb: Some(access.verb.to_owned()),
                    resource: Some(access.resource.to_owned()),
                    subresource: Some(access.subresource.to_owned()),
                    namespace: Some(access.namespace.clone()),
                    name: access.name.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let answer = within(api.create(&PostParams::default(), &review)).await?;
            Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
        })
    }
}

/// Reviews with memory.
#[derive(Debug)]
pub struct Tokens {
    reviewer: Arc<dyn Reviewer>,
    users: Mutex<Cache<[u8; 32], Option<Arc<User>>>>,
    accesses: Mutex<Cache<(Arc<User>, Access), bool>>,
    questions: Semaphore,
}

impl Tokens {
    /// Reviews by this reviewer.
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        Self {
            reviewer,
            users: Mutex::new(Cache::new(STALE)),
            accesses: Mutex::new(Cache::new(STALE)),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// 401 when it is not valid for our audience, 503 when it cannot be reviewed.
    pub async fn user(&self, token: &str) -> Result<Arc<User>, ApiError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let cached = lock(&self.users).fresh(&digest, Instant::now());
        let user = match cached {
            Some(user) => user,
            None => {
                let asked = self.ask(self.reviewer.token(token)).await.map(|user| user.map(Arc::new));
                remember(&self.users, digest, asked, Option::is_some)?
            }
        };
        user.ok_or_else(|| {
            ApiError::unauthenticated(format!("the Kubernetes token is not valid for the audience {AUDIENCE}; request one with `kubectl create token --audience {AUDIENCE}`"))
        })
    }

    /// Whether a user may do something.
    ///
    /// # Errors
    /// 503 when the API server cannot be asked.
    pub async fn allowed(&self, user: &Arc<User>, access: &Access) -> Result<bool, ApiError> {
        let key = (Arc::clone(user), access.clone());
        let cached = lock(&self.accesses).fresh(&key, Instant::now());
        match cached {
            Some(allowed) => Ok(allowed),
            None => {
                let asked = self.ask(self.reviewer.access(user, access)).await;
                remember(&self.accesses, key, asked, |allowed| *allowed)
            }
        }
    }

    async fn ask<T>(&self, question: BoxFuture<'_, Result<T, ReviewError>>) -> Result<T, ReviewError> {
        let _place = self.questions.acquire().await.map_err(|error| ReviewError(error.to_string()))?;
        question.await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a new answer; without one, an older answer counts for a while.
fn remember<K: Eq + std::hash::Hash, V: Clone>(
    cache: &Mutex<Cache<K, V>>,
    key: K,
    asked: Result<V, ReviewError>,
    granted: impl FnOnce(&V) -> bool,
) -> Result<V, ApiError> {
    let now = Instant::now();
    match asked {
        Ok(answer) => {
            let fresh = if granted(&answer) { FRESH } else { FRESH_REFUSAL };
            lock(cache).put(key, answer.clone(), fresh, now);
            Ok(answer)
        }
        Err(error) => lock(cache).stale(&key, now).ok_or_else(|| {
            tracing::warn!(%error, "a Kubernetes token cannot be reviewed");
            ApiError::unavailable("review_unavailable", "the Kubernetes token cannot be checked now; try again", 2)
        }),
    }
}
