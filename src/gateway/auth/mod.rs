//! Who asks, and what they may do. Closed by default: no credential, no answer.

mod cache;
mod credential;
mod kubernetes;

use std::sync::Arc;

use http::HeaderMap;

pub use kubernetes::{Access, KubernetesReviewer, ReviewError, Reviewer, Tokens, User};

use super::error::ApiError;
use super::routing::{Routes, Scope};
use credential::Credential;

/// Audience that Kubernetes tokens must have.
pub const AUDIENCE: &str = "llmops-gateway";

/// What someone wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Run a flow.
    InvokeFlow,
    /// Call a model.
    InvokeModel,
    /// Search an index.
    SearchIndex,
    /// Choose exact revisions.
    Pin,
    /// Keep a report.
    WriteReport,
    /// Read reports.
    ReadReport,
    /// Read recorded interactions, which may hold what users wrote.
    ReadInteractions,
    /// Read the figures of a split.
    ReadSplit,
    /// Read what was measured of the arms of a split, which decides rollouts.
    ReadMeasurements,
    /// The same of a model.
    ReadModelMeasurements,
    /// Give feedback on an answer.
    GiveFeedback,
    /// See a flow.
    ReadFlow,
    /// See a model.
    ReadModel,
    /// See an index.
    ReadIndex,
    /// See an evaluation.
    ReadEvaluation,
}

impl Action {
    /// Verb, resource and subresource by which Kubernetes decides.
    fn access(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::InvokeFlow | Self::GiveFeedback => ("create", "promptflows", "invoke"),
            Self::InvokeModel => ("create", "modeldeployments", "invoke"),
            Self::SearchIndex => ("create", "ragindexes", "search"),
            Self::Pin => ("create", "promptflows", "pin"),
            Self::WriteReport => ("create", "evaluations", "reports"),
            Self::ReadReport => ("get", "evaluations", "reports"),
            Self::ReadInteractions => ("get", "promptflows", "interactions"),
            Self::ReadSplit => ("get", "promptflows", "splits"),
            Self::ReadMeasurements => ("get", "promptflows", "measurements"),
            Self::ReadModelMeasurements => ("get", "modeldeployments", "measurements"),
            // Whoever may read the object at the API server sees it here.
            Self::ReadFlow => ("get", "promptflows", ""),
            Self::ReadModel => ("get", "modeldeployments", ""),
            Self::ReadIndex => ("get", "ragindexes", ""),
            Self::ReadEvaluation => ("get", "evaluations", ""),
        }
    }

    /// Whether an API key can open it. Pins, reports and measurements belong to rollouts, so they need a Kubernetes
    /// identity.
    fn open_to_keys(self) -> bool {
        !matches!(self, Self::Pin | Self::WriteReport | Self::ReadMeasurements | Self::ReadModelMeasurements)
    }
}

/// Someone whose credential was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// The holder of an API key.
    Key {
        /// `NAMESPACE/NAME` of the key.
        name: String,
        /// The namespaces that it opens.
        scope: Scope,
    },
    /// A Kubernetes user or ServiceAccount.
    Kubernetes(Arc<User>),
}

impl Principal {
    /// Name for logs and records.
    pub fn name(&self) -> &str {
        match self {
            Self::Key { name, .. } => name,
            Self::Kubernetes(user) => &user.name,
        }
    }
}

/// Checks credentials and permissions.
#[derive(Debug)]
pub struct Auth {
    routes: Arc<Routes>,
    tokens: Tokens,
}

impl Auth {
    /// Keys come from the routes, tokens are reviewed by the API server.
    pub fn new(routes: Arc<Routes>, tokens: Tokens) -> Self {
        Self { routes, tokens }
    }

    /// Who sent these headers.
    ///
    /// # Errors
    /// 401 without a credential or with one that opens nothing, 503 when a token cannot be reviewed.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        match credential::read(headers)? {
            Credential::Key(digest) => {
                let snapshot = self.routes.load();
                let key = snapshot.keys.find(&digest);
                key.map(|key| Principal::Key { name: key.name.clone(), scope: key.scope.clone() }).ok_or_else(|| {
                    ApiError::unauthenticated(
                        "this API key is not known; make one with `llmops key` and apply its Secret",
                    )
                })
            }
            Credential::Token(token) => self.tokens.user(&token).await.map(Principal::Kubernetes),
        }
    }

    /// Whether someone may do something with an object; without a name, with all objects of the namespace.
    ///
    /// # Errors
    /// 403 when not, 503 when the API server cannot be asked.
    pub async fn authorize(
        &self,
        principal: &Principal,
        action: Action,
        namespace: &str,
        name: Option<&str>,
    ) -> Result<(), ApiError> {
        let (verb, resource, subresource) = action.access();
        match principal {
            Principal::Key { name, scope } => {
                if !action.open_to_keys() {
                    return Err(ApiError::forbidden(format!(
                        "an API key cannot {verb} {resource}/{subresource}: use a Kubernetes token with the audience {AUDIENCE}"
                    )));
                }
                if scope.opens(namespace) {
                    Ok(())
                } else {
                    Err(ApiError::forbidden(format!("the API key {name} does not open the namespace {namespace}")))
                }
            }
            Principal::Kubernetes(user) => {
                let access = Access {
                    verb,
                    resource,
                    subresource,
                    namespace: namespace.to_owned(),
                    name: name.map(str::to_owned),
                };
                if self.tokens.allowed(user, &access).await? {
                    Ok(())
                } else {
                    Err(ApiError::forbidden(format!(
                        "{} may not {verb} {resource}/{subresource} in the namespace {namespace}; bind a role that allows it",
                        user.name
                    )))
                }
            }
        }
    }

    /// Whether someone may; a review that cannot be made counts as no.
    pub async fn may(&self, principal: &Principal, action: Action, namespace: &str) -> bool {
        self.authorize(principal, action, namespace, None).await.is_ok()
    }
}
