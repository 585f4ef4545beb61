//! What the operator knows of each engine: pure functions from a validated spec to its container.

pub mod custom;
pub mod llama_cpp;

use std::path::Path;

use k8s_openapi::api::core::v1::EnvVar;

use crate::api::model_deployment::{Engine, Task};

/// Where the model is in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath(pub String);

impl ModelPath {
    /// The path of a file or folder below a mount.
    pub fn below(mount: &str, path: &str) -> Self {
        Self(Path::new(mount).join(path.trim_start_matches('/')).display().to_string())
    }
}

/// What an engine's container is made of.
pub struct Input<'a> {
    /// The engine's part of the spec.
    pub engine: &'a Engine,
    /// What the model is for.
    pub task: Task,
    /// Name under which the model is served.
    pub model_name: &'a str,
    /// Where the model is; absent when a `Custom` engine brings its own.
    pub model_path: Option<&'a ModelPath>,
}

/// What an engine adds to the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Image.
    pub image: String,
    /// Command instead of the image's own.
    pub command: Option<Vec<String>>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment before the user's.
    pub env: Vec<EnvVar>,
    /// Port on which it answers.
    pub port: i32,
    /// Path that answers 200 once the model is loaded.
    pub health_path: String,
    /// Whether it runs with a root file system that cannot be written (it gets a `/tmp`).
    pub read_only_root: bool,
}

/// A variable with a value.
pub fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), ..EnvVar::default() }
}
