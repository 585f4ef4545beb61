//! llama.cpp's server on a GGUF file.

use super::{Input, Rendered};
use crate::api::model_deployment::Task;
use crate::controllers::pods::pod_ip;

/// Image when the spec names none.
pub const IMAGE: &str = "ghcr.io/ggml-org/llama.cpp:server";
const PORT: i32 = 8080;

/// Renders the engine. The user's arguments come last: the server takes the last of repeated ones.
pub fn render(input: &Input<'_>) -> Rendered {
    let mut args: Vec<String> = Vec::new();
    if let Some(path) = input.model_path {
        args.extend(["--model".to_owned(), path.0.clone()]);
    }
    args.extend(["--alias", input.model_name, "--host", "$(POD_IP)", "--port", "8080"].map(str::to_owned));
    match input.task {
        Task::Chat => {}
        Task::Embed => args.push("--embeddings".to_owned()),
        Task::Rerank => args.push("--reranking".to_owned()),
    }
    args.extend(input.engine.args.iter().cloned());
    Rendered {
        image: input.engine.image.clone().unwrap_or_else(|| IMAGE.to_owned()),
        command: None,
        args,
        env: vec![pod_ip()],
        port: PORT,
        health_path: "/health".to_owned(),
        read_only_root: true,
    }
}
