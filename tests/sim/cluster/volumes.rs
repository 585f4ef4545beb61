//! Volume claims: bound at once, held while a pod uses them.

use serde_json::{Value, json};

use super::collector::{drop_finalizer, has_finalizer};
use super::{is_going, text};
use crate::apiserver::ApiServer;

/// Binds and releases claims.
pub fn step(server: &ApiServer) {
    for claim in server.list("PersistentVolumeClaim") {
        if is_going(&claim) {
            let used = server.list("Pod").iter().any(|pod| uses(pod, &claim));
            if !used && has_finalizer(&claim, "kubernetes.io/pvc-protection") {
                drop_finalizer(server, &claim, "kubernetes.io/pvc-protection");
            }
        } else if claim["status"]["phase"] != "Bound" {
            server.change("volume-binder", &claim, None, |claim| {
                claim["spec"]["volumeName"] = json!(format!("pvc-{}", text(claim, "/metadata/uid")));
                claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            });
            server.change("volume-binder", &claim, Some("status"), |claim| {
                claim["status"] = json!({
                    "phase": "Bound",
                    "accessModes": claim["spec"]["accessModes"],
                    "capacity": claim["spec"]["resources"]["requests"],
                });
            });
        }
    }
}

fn uses(pod: &Value, claim: &Value) -> bool {
    pod["metadata"]["namespace"] == claim["metadata"]["namespace"]
        && pod["spec"]["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"])
}
