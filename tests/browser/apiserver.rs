//! As much of a Kubernetes API server as the gateway asks for: lists, watches and reviews, over the objects of a test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Name of an object: resource, namespace, name.
type At = (String, String, String);

/// The objects, each with its version.
pub struct ApiServer {
    objects: Mutex<BTreeMap<At, (u64, Value)>>,
    version: watch::Sender<u64>,
}

impl ApiServer {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { objects: Mutex::default(), version: watch::channel(0).0 })
    }

    /// Creates an object, or replaces it.
    pub fn put(&self, resource: &str, mut object: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let at = (resource.to_owned(), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let mut objects = self.objects.lock().unwrap();
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        objects.insert(at, (version, object));
        self.version.send_replace(version);
    }

    /// Objects of a resource, newer than a version, in the order of their changes.
    fn since(&self, resource: &str, version: u64) -> Vec<(u64, Value)> {
        let objects = self.objects.lock().unwrap();
        let mut found: Vec<(u64, Value)> = objects
            .iter()
            .filter(|((kind, ..), (changed, _))| kind == resource && *changed > version)
            .map(|(_, entry)| entry.clone())
            .collect();
        found.sort_by_key(|(changed, _)| *changed);
        found
    }

    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token))
            .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", post(access))
            .route("/api/v1/{resource}", get(list))
            .route("/apis/{group}/{version}/{resource}", get(list_of_group))
            .with_state(self)
    }
}

/// Every token is that of a user who may do everything.
async fn token(Json(mut review): Json<Value>) -> Json<Value> {
    let audiences = review["spec"]["audiences"].clone();
    review["status"] = json!({"authenticated": true, "user": {"username": "tester"}, "audiences": audiences});
    Json(review)
}

async fn access(Json(mut review): Json<Value>) -> Json<Value> {
    review["status"] = json!({"allowed": true});
    Json(review)
}

type Asked = Query<BTreeMap<String, String>>;

async fn list_of_group(
    state: State<Arc<ApiServer>>,
    Path((_, _, resource)): Path<(String, String, String)>,
    query: Asked,
    uri: Uri,
) -> Response {
    list(state, Path(resource), query, uri).await
}

async fn list(
    State(server): State<Arc<ApiServer>>,
    Path(resource): Path<String>,
    Query(query): Asked,
    uri: Uri,
) -> Response {
    let mut changes = server.version.subscribe();
    if query.get("watch").is_none_or(|watch| watch != "true" && watch != "1") {
        let version = *changes.borrow_and_update();
        let items: Vec<Value> = server.since(&resource, 0).into_iter().map(|(_, object)| object).collect();
        let api = if uri.path().starts_with("/api/") {
            "v1".into()
        } else {
            uri.path().split('/').skip(2).take(2).collect::<Vec<_>>().join("/")
        };
        let list = json!({"apiVersion": api, "kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items});
        return Json(list).into_response();
    }
    let mut seen: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let events = async_stream::stream! {
        loop {
            changes.borrow_and_update();
            for (version, object) in server.since(&resource, seen) {
                seen = version;
                let mut line = json!({"type": "MODIFIED", "object": object}).to_string();
                line.push('\n');
                yield Ok::<_, std::convert::Infallible>(line);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    Body::from_stream(events).into_response()
}
