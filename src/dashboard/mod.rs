//! Pages for people: rendered on the server, readable on a phone, without scripts.
//!
//! Objects come from the gateway's watches. `view` makes of them, purely, what is shown; the templates only print it.

mod history;
mod pages;
mod render;
mod view;

use axum::Router;
use axum::routing::get;

use std::sync::Arc;

use crate::gateway::server::Gateway;

pub use history::record as record_history;

/// The pages' routes.
pub fn router() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/", get(pages::overview))
        .route("/dashboard", get(pages::overview))
        .route("/dashboard/flows/{namespace}/{name}", get(pages::flow))
        .route("/dashboard/models/{namespace}/{name}", get(pages::model))
        .route("/dashboard/indexes/{namespace}/{name}", get(pages::index))
        .route("/dashboard/evaluations/{namespace}/{name}", get(pages::evaluation))
}
