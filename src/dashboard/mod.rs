//! Pages for people: rendered on the server, readable on a phone, without scripts.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;

use crate::gateway::auth::Action;
use crate::gateway::error::ApiError;
use crate::gateway::server::{Gateway, identify};
use crate::gateway::store::{FlowSplit, ReportEntry};

const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Most reports that are listed.
const REPORTS: u32 = 200;

#[derive(Serialize)]
struct Flow<'a> {
    namespace: &'a str,
    name: &'a str,
    arms: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    variant: String,
    revision: String,
    weight: i32,
    recorded: Option<FlowSplit>,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    entry: &'a ReportEntry,
    path: String,
}

/// The path of a report; what is not unreserved in a URL is percent-encoded.
fn path(parts: &[&str]) -> String {
    use std::fmt::Write;
    let mut path = String::from("/v1/reports");
    for part in parts {
        path.push('/');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                path.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

/// `GET /`: the flows and reports that whoever asks may see.
///
/// # Errors
/// 401, so that the browser asks for a key; 500 when the database fails.
pub async fn index(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asked = identify(&gateway, &headers).await.map_err(ApiError::asking_browser)?;
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(error);
    let snapshot = gateway.routes.load();
    gateway.store.flush().await.map_err(|error| internal(&error))?;
    let mut flows = Vec::new();
    for (namespace, named) in &snapshot.flows {
        if !gateway.auth.may(&asked.principal, Action::ReadSplit, namespace).await {
            continue;
        }
        for (name, route) in named {
            let splits = gateway.store.splits(namespace, name).await.map_err(|error| internal(&error))?;
            let arms = route.arms.iter().map(|arm| Row {
                variant: arm.variant.clone(),
                revision: arm.revision.clone(),
                weight: arm.weight,
                recorded: splits
                    .iter()
                    .find(|split| split.variant == arm.variant && split.revision == arm.revision)
                    .cloned(),
            });
            flows.push(Flow { namespace, name, arms: arms.collect() });
        }
    }
    let mut reports: Vec<ReportEntry> = Vec::new();
    for report in gateway.store.reports(REPORTS).await.map_err(|error| internal(&error))? {
        if gateway.auth.may(&asked.principal, Action::ReadReport, &report.namespace).await {
            reports.push(report);
        }
    }
    let page = render(&flows, &reports, asked.principal.name()).map_err(|error| internal(&error))?;
    Ok(([(CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-store")], Html(page)).into_response())
}

fn render(flows: &[Flow<'_>], reports: &[ReportEntry], who: &str) -> Result<String, minijinja::Error> {
    let entries: Vec<Report<'_>> = reports
        .iter()
        .map(|entry| Report { entry, path: path(&[&entry.namespace, &entry.evaluation, &entry.run]) })
        .collect();
    let mut environment = Environment::new();
    // The name's ending switches on the escaping of HTML.
    environment.add_template("index.html", include_str!("index.html"))?;
    environment.get_template("index.html")?.render(context! {
        flows => Value::from(Serde(flows)),
        reports => Value::from(Serde(entries)),
        who,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_whatever_it_shows() {
        let report = ReportEntry {
            namespace: "team-a".into(),
            evaluation: "docs".into(),
            run: "<script>alert(1)</script>".into(),
            time: "2026-11-24T12:00:00Z".into(),
            formats: vec!["html".into(), "json".into()],
        };
        let arms = vec![Row { variant: "control".into(), revision: "abc".into(), weight: 100, recorded: None }];
        let flows = [Flow { namespace: "team-a", name: "docs", arms }];
        let page = render(&flows, &[report], "key").unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(page.contains("control") && page.contains("100"));
        assert!(
            page.replace("&#x2f;", "/")
                .contains("\"/v1/reports/team-a/docs/%3Cscript%3Ealert%281%29%3C%2Fscript%3E.json\"")
        );
    }
}
