//! The API server's audit log: the witness of who wrote what.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// A finished request to the API server.
#[derive(Clone, Debug)]
pub struct Request {
    pub user: String,
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub code: i64,
    /// What was written, for our own kinds; null for all others.
    pub body: Value,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, verb, group, resource, subresource, namespace, name, code, .. } = self;
        write!(f, "{user} {verb} {group}/{resource}/{subresource} {namespace}/{name}: {code}")
    }
}

/// One line a request.
pub fn lines(requests: &[Request]) -> String {
    requests.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Request {
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// Lease renewals are the only writes at rest; token and access reviews write nothing.
    pub fn is_lease_or_review(&self) -> bool {
        self.resource == "leases" || matches!(self.resource.as_str(), "tokenreviews" | "subjectaccessreviews")
    }
}

/// Length of the log now, to read from later.
pub fn mark(log: &Path) -> Result<u64> {
    Ok(std::fs::metadata(log).with_context(|| format!("audit log {}", log.display()))?.len())
}

/// Finished requests that were logged after the mark.
pub fn since(log: &Path, mark: u64) -> Result<Vec<Request>> {
    let bytes = std::fs::read(log)?;
    let start = usize::try_from(mark)?.min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[start..]);
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["stage"] == "ResponseComplete")
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let object = &event["objectRef"];
            Request {
                user: text(&event["user"]["username"]),
                verb: text(&event["verb"]),
                group: text(&object["apiGroup"]),
                resource: text(&object["resource"]),
                subresource: text(&object["subresource"]),
                namespace: text(&object["namespace"]),
                name: text(&object["name"]),
                code: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
                body: event["requestObject"].clone(),
            }
        })
        .collect())
}

/// ServiceAccounts of the operator start with this.
pub const OUR_USERS: &str = "system:serviceaccount:llmops-system:";
