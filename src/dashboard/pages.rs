//! The pages: who may see them, and what they need.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::render::{Chrome, Crumb, html, response};
use super::view::{self, EVALUATION, FLOW, INDEX, Kept, MODEL, Reports, moment, namespace_path, page_path};
use crate::api::rollout::RolloutStatus;
use crate::gateway::auth::{Action, Principal};
use crate::gateway::error::ApiError;
use crate::gateway::routing::{ByName, Resources};
use crate::gateway::server::{Asked, Gateway, identify};

/// Seconds between two loads of a page that loads itself anew.
const REFRESH: u32 = 10;

/// What the address asks for.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    namespace: Option<String>,
    refresh: Option<String>,
}

impl Wanted {
    /// Seconds, if the page is to load itself anew; not so often that it is a burden.
    fn refresh(&self) -> Option<u32> {
        self.refresh.as_ref().map(|text| text.parse().unwrap_or(REFRESH).clamp(2, 3_600))
    }
}

/// What went wrong, as a page. Without a credential the answer is that of the API: browsers show their own question.
pub(super) struct PageError {
    error: ApiError,
    chrome: Option<Box<Chrome>>,
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        Self { error, chrome: None }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Page<'a> {
            title: &'static str,
            message: &'a str,
        }
        let Some(chrome) = &self.chrome else { return self.error.into_response() };
        let title = match self.error.status {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::FORBIDDEN => "Not allowed",
            StatusCode::SERVICE_UNAVAILABLE => "Not available now",
            _ => "Something failed",
        };
        match html("error.html", chrome, Page { title, message: &self.error.message }) {
            Ok(page) => response(self.error.status, page),
            Err(cause) => ApiError::internal(&cause).into_response(),
        }
    }
}

type Page = Result<Response, PageError>;

async fn identified(gateway: &Gateway, headers: &HeaderMap) -> Result<Asked, PageError> {
    Ok(identify(gateway, headers).await.map_err(ApiError::asking_browser)?)
}

/// A page that is asked for by somebody who is known.
struct Visit<'a> {
    gateway: &'a Gateway,
    asked: Asked,
    chrome: Chrome,
}

impl<'a> Visit<'a> {
    async fn begin(
        gateway: &'a Gateway,
        headers: &HeaderMap,
        wanted: &Wanted,
        title: String,
        path: String,
        crumbs: Vec<Crumb>,
    ) -> Result<Self, PageError> {
        let asked = identified(gateway, headers).await?;
        let now = now();
        let mark = if path.contains('?') { '&' } else { '?' };
        let chrome = Chrome {
            title,
            crumbs,
            who: asked.principal.name().to_owned(),
            now: moment(now, now),
            refresh: wanted.refresh(),
            live: format!("{path}{mark}refresh={REFRESH}"),
            still: path,
            filter: wanted.namespace.clone(),
        };
        Ok(Self { gateway, asked, chrome })
    }

    /// The page of one object.
    async fn of_object(
        gateway: &'a Gateway,
        headers: &HeaderMap,
        wanted: &Wanted,
        folder: &str,
        namespace: &str,
        name: &str,
        action: Action,
    ) -> Result<Self, PageError> {
        let crumbs = vec![
            Crumb { text: namespace.to_owned(), path: Some(namespace_path(namespace)) },
            Crumb { text: name.to_owned(), path: None },
        ];
        let title = format!("{namespace}/{name}");
        let path = page_path(folder, namespace, name);
        let visit = Self::begin(gateway, headers, wanted, title, path, crumbs).await?;
        let allowed = gateway.auth.authorize(&visit.asked.principal, action, namespace, Some(name)).await;
        match allowed {
            Ok(()) => Ok(visit),
            Err(error) => Err(visit.fail(error)),
        }
    }

    fn fail(&self, error: ApiError) -> PageError {
        PageError { error, chrome: Some(Box::new(self.chrome.clone())) }
    }

    fn internal(&self, cause: &dyn std::fmt::Display) -> PageError {
        self.fail(ApiError::internal(cause))
    }

    fn missing(&self, kind: &str) -> PageError {
        self.fail(ApiError::not_found(format!("There is no {kind} {}.", self.chrome.title)))
    }

    /// Whether whoever asks may see this, too.
    async fn may(&self, action: Action, namespace: &str) -> Result<bool, PageError> {
        may(self.gateway, &self.asked.principal, action, namespace).await.map_err(|error| self.fail(error))
    }

    /// The HTML reports of a rollout's gates that may be linked to.
    async fn reports(&self, namespace: &str, rollout: Option<&RolloutStatus>) -> Result<Reports, PageError> {
        let mut reports = Reports::new();
        let Some(rollout) = rollout.filter(|rollout| !rollout.gates.is_empty()) else { return Ok(reports) };
        if !self.may(Action::ReadReport, namespace).await? {
            return Ok(reports);
        }
        for gate in &rollout.gates {
            let found = self.gateway.store.reports_of(namespace, &gate.evaluation).await;
            let found = found.map_err(|error| self.internal(&error))?;
            let html = found.into_iter().filter(|report| report.formats.iter().any(|format| format == "html"));
            reports.extend(html.map(|report| (report.evaluation, report.run)));
        }
        Ok(reports)
    }

    fn render(&self, template: &str, page: impl Serialize) -> Page {
        let page = html(template, &self.chrome, page).map_err(|cause| self.internal(&cause))?;
        Ok(response(StatusCode::OK, page))
    }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// A refusal is a no; a question that cannot be answered is an error, for an empty page would be a lie.
async fn may(gateway: &Gateway, principal: &Principal, action: Action, namespace: &str) -> Result<bool, ApiError> {
    match gateway.auth.authorize(principal, action, namespace, None).await {
        Ok(()) => Ok(true),
        Err(error) if error.status == StatusCode::FORBIDDEN => Ok(false),
        Err(error) => Err(error),
    }
}

/// The objects that somebody may see. Whoever may see a kind in all namespaces is asked about once.
async fn permitted<T>(
    gateway: &Gateway,
    principal: &Principal,
    action: Action,
    objects: &ByName<T>,
) -> Result<ByName<T>, ApiError> {
    if objects.is_empty() || may(gateway, principal, action, "").await? {
        return Ok(objects.clone());
    }
    let asked = objects.iter().map(|(namespace, named)| async move {
        Ok(may(gateway, principal, action, namespace).await?.then(|| (namespace.clone(), named.clone())))
    });
    join_all(asked).await.into_iter().filter_map(Result::transpose).collect()
}

/// `GET /`: everything that whoever asks may see.
///
/// # Errors
/// 401, so that the browser asks for a key; 503 when permissions cannot be reviewed.
pub(super) async fn overview(
    State(gateway): State<Arc<Gateway>>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Page {
    let path = wanted.namespace.as_deref().map_or_else(|| "/".to_owned(), namespace_path);
    let crumbs = wanted.namespace.iter().map(|namespace| Crumb { text: namespace.clone(), path: None }).collect();
    let title = wanted.namespace.clone().unwrap_or_else(|| "All resources".into());
    let visit = Visit::begin(&gateway, &headers, &wanted, title, path, crumbs).await?;
    let snapshot = gateway.routes.load();
    let all = &snapshot.resources;
    let only = wanted.namespace.as_deref();
    let who = &visit.asked.principal;
    let failed = |error| visit.fail(error);
    let seen = Resources {
        flows: permitted(&gateway, who, Action::ReadFlow, &chosen(&all.flows, only)).await.map_err(failed)?,
        models: permitted(&gateway, who, Action::ReadModel, &chosen(&all.models, only)).await.map_err(failed)?,
        indexes: permitted(&gateway, who, Action::ReadIndex, &chosen(&all.indexes, only)).await.map_err(failed)?,
        evaluations: permitted(&gateway, who, Action::ReadEvaluation, &chosen(&all.evaluations, only))
            .await
            .map_err(failed)?,
    };
    let mut problems = BTreeMap::new();
    for (object, cause) in &snapshot.problems {
        // Objects of other kinds are of no concern to those who look at ours.
        let Some((kind, namespace)) =
            object.split_once(' ').and_then(|(kind, rest)| Some((kind, rest.split_once('/')?.0)))
        else {
            continue;
        };
        let action = match kind {
            // The other one holds a flow's revision.
            "PromptFlow" | "ControllerRevision" => Action::ReadFlow,
            "ModelDeployment" => Action::ReadModel,
            "RagIndex" => Action::ReadIndex,
            "Evaluation" => Action::ReadEvaluation,
            _ => continue,
        };
        if only.is_none_or(|only| only == namespace) && visit.may(action, namespace).await? {
            problems.insert(object.clone(), cause.clone());
        }
    }
    visit.render("overview.html", view::overview(&seen, &problems, now()))
}

fn chosen<T>(objects: &ByName<T>, only: Option<&str>) -> ByName<T> {
    match only {
        None => objects.clone(),
        Some(only) => objects.get(only).map(|named| (only.to_owned(), named.clone())).into_iter().collect(),
    }
}

fn find<T>(objects: &ByName<T>, namespace: &str, name: &str) -> Option<Arc<T>> {
    objects.get(namespace)?.get(name).cloned()
}

/// `GET /dashboard/flows/{namespace}/{name}`.
///
/// # Errors
/// 401, 403, 404; 503 when permissions cannot be reviewed.
pub(super) async fn flow(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Page {
    let visit = Visit::of_object(&gateway, &headers, &wanted, FLOW, &namespace, &name, Action::ReadFlow).await?;
    let snapshot = gateway.routes.load();
    let flow = find(&snapshot.resources.flows, &namespace, &name).ok_or_else(|| visit.missing("PromptFlow"))?;
    let failed = |error| visit.internal(&error);
    gateway.store.flush().await.map_err(failed)?;
    let (splits, shadows) = if visit.may(Action::ReadSplit, &namespace).await? {
        let splits = gateway.store.splits(&namespace, &name).await.map_err(failed)?;
        (Some(splits), gateway.store.shadows(&namespace, &name).await.map_err(failed)?)
    } else {
        (None, Vec::new())
    };
    let uid = flow.metadata.uid.clone().unwrap_or_default();
    let points = gateway.store.points(&namespace, &name, &uid).await.map_err(failed)?;
    let rollout = flow.status.as_ref().and_then(|status| status.rollout.as_ref());
    let reports = visit.reports(&namespace, rollout).await?;
    let kept = Kept { points: &points, splits: splits.as_deref(), shadows: &shadows, reports: &reports };
    visit.render("flow.html", view::flow(&flow, kept, now()))
}

/// `GET /dashboard/models/{namespace}/{name}`.
///
/// # Errors
/// 401, 403, 404; 503 when permissions cannot be reviewed.
pub(super) async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Page {
    let visit = Visit::of_object(&gateway, &headers, &wanted, MODEL, &namespace, &name, Action::ReadModel).await?;
    let snapshot = gateway.routes.load();
    let model = find(&snapshot.resources.models, &namespace, &name).ok_or_else(|| visit.missing("ModelDeployment"))?;
    let endpoints = snapshot
        .model(&namespace, &name)
        .map(|route| route.pool.endpoints.iter().map(|(revision, pods)| (revision.clone(), pods.len())).collect())
        .unwrap_or_default();
    let reports = visit.reports(&namespace, model.status.as_ref().and_then(|status| status.rollout.as_ref())).await?;
    visit.render("model.html", view::model(&model, &endpoints, &reports, now()))
}

/// `GET /dashboard/indexes/{namespace}/{name}`.
///
/// # Errors
/// 401, 403, 404; 503 when permissions cannot be reviewed.
pub(super) async fn index(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Page {
    let visit = Visit::of_object(&gateway, &headers, &wanted, INDEX, &namespace, &name, Action::ReadIndex).await?;
    let snapshot = gateway.routes.load();
    let index = find(&snapshot.resources.indexes, &namespace, &name).ok_or_else(|| visit.missing("RagIndex"))?;
    let route = snapshot.index(&namespace, &name);
    let endpoints = |generation: &str| route.and_then(|route| route.pool.endpoints.get(generation)).map_or(0, Vec::len);
    visit.render("index.html", view::index(&index, endpoints, now()))
}

/// `GET /dashboard/evaluations/{namespace}/{name}`.
///
/// # Errors
/// 401, 403, 404; 503 when permissions cannot be reviewed.
pub(super) async fn evaluation(
    State(gateway): State<Arc<Gateway>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Page {
    let visit =
        Visit::of_object(&gateway, &headers, &wanted, EVALUATION, &namespace, &name, Action::ReadEvaluation).await?;
    let snapshot = gateway.routes.load();
    let evaluation =
        find(&snapshot.resources.evaluations, &namespace, &name).ok_or_else(|| visit.missing("Evaluation"))?;
    let reports = if visit.may(Action::ReadReport, &namespace).await? {
        gateway.store.reports_of(&namespace, &name).await.map_err(|error| visit.internal(&error))?
    } else {
        Vec::new()
    };
    visit.render("evaluation.html", view::evaluation(&evaluation, &reports, now()))
}
