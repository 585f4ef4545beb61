//! Names, labels and annotations of owned objects: one place, so that no two kinds can claim the same child.

/// Longest name of a user's resource: child names add a prefix and a revision and must stay below 63 characters.
pub const MAX_NAME: usize = 40;

/// Set on every owned object: `llmops`.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "llmops";
/// What an owned object is part of: `model`, `index`, `flow` or `evaluation`.
pub const LABEL_COMPONENT: &str = "llmops.dev/component";
/// Name of the owning resource.
pub const LABEL_OWNER: &str = "llmops.dev/owner";
/// Revision of a model or flow, or generation of an index, that an owned object serves.
pub const LABEL_REVISION: &str = "llmops.dev/revision";
/// Secrets with this label (any value) hold an API key of the gateway.
pub const LABEL_API_KEY: &str = "llmops.dev/api-key";
/// On a user's resource: a new value forces a reconcile.
pub const ANNOTATION_RECONCILE: &str = "llmops.dev/reconcile-requested-at";
/// On a user's resource, set by a person (`llmops promote|rollback|hold` writes it): `ACTION REVISION ID`, where ACTION is
/// `promote`, `rollback`, `hold` or `resume`, REVISION the candidate's and ID anything that makes the request a new one.
/// It acts once; the status remembers the last value.
pub const ANNOTATION_ROLLOUT: &str = "llmops.dev/rollout-request";
/// On an owned object: hash of what was applied, so that a removed field is noticed without reading it back.
pub const ANNOTATION_APPLIED: &str = "llmops.dev/applied-hash";
/// Name of the container and Service port that answers requests.
pub const PORT_NAME: &str = "http";

/// [`LABEL_COMPONENT`] of what a ModelDeployment owns.
pub const COMPONENT_MODEL: &str = "model";
/// [`LABEL_COMPONENT`] of what a RagIndex owns.
pub const COMPONENT_INDEX: &str = "index";
/// [`LABEL_COMPONENT`] of what a RagIndex's build Job owns.
pub const COMPONENT_INDEX_BUILD: &str = "index-build";
/// [`LABEL_COMPONENT`] of what a PromptFlow owns.
pub const COMPONENT_FLOW: &str = "flow";
/// [`LABEL_COMPONENT`] of what an Evaluation owns.
pub const COMPONENT_EVALUATION: &str = "evaluation";

/// Service of a ModelDeployment: `mdep-NAME`.
pub fn model_service(name: &str) -> String {
    format!("mdep-{name}")
}
/// Deployment and ControllerRevision of a model revision: `mdep-NAME-REVISION`.
pub fn model_revision(name: &str, revision: &str) -> String {
    format!("mdep-{name}-{revision}")
}
/// Cache volume of a ModelDeployment's downloads: `mdep-NAME-cache`.
pub fn model_cache(name: &str) -> String {
    format!("mdep-{name}-cache")
}
/// Service of a RagIndex: `rag-NAME`.
pub fn index_service(name: &str) -> String {
    format!("rag-{name}")
}
/// Retrieval Deployment of an index generation (whose name is `INDEX-HEX`): `rag-INDEX-HEX`.
pub fn index_generation(generation: &str) -> String {
    format!("rag-{generation}")
}
/// Build Job of an index: `rag-NAME-build-INPUTS`.
pub fn index_build(name: &str, inputs: &str) -> String {
    format!("rag-{name}-build-{inputs}")
}
/// Volume of an index's generations and embedding cache: `rag-NAME-store`.
pub fn index_store(name: &str) -> String {
    format!("rag-{name}-store")
}
/// ControllerRevision of a flow revision: `pf-NAME-REVISION`.
pub fn flow_revision(name: &str, revision: &str) -> String {
    format!("pf-{name}-{revision}")
}
/// Job of an evaluation run: `eval-NAME-RUN`.
pub fn evaluation_run(name: &str, run: &str) -> String {
    format!("eval-{name}-{run}")
}
/// ServiceAccount and RoleBinding of an evaluation's Jobs: `eval-NAME`.
pub fn evaluation_account(name: &str) -> String {
    format!("eval-{name}")
}
