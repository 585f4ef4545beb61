//! The API: four namespaced kinds in `llmops.dev/v1alpha1`, their defaults and their validation.
//!
//! Nothing here does I/O. Field names are a contract with everything people keep in Git.

pub mod conditions;
pub mod evaluation;
pub mod flow_revision;
pub mod model_deployment;
pub mod names;
pub mod prompt_flow;
pub mod quantity;
pub mod rag_index;
pub mod refs;
pub mod revision;
pub mod rollout;

pub use evaluation::{Evaluation, EvaluationSpec, EvaluationStatus};
pub use model_deployment::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};
pub use prompt_flow::{PromptFlow, PromptFlowSpec, PromptFlowStatus};
pub use rag_index::{RagIndex, RagIndexSpec, RagIndexStatus};

/// The API group of all kinds.
pub const GROUP: &str = "llmops.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
