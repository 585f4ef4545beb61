//! Any server that speaks the OpenAI API. Kubernetes itself replaces `$(MODEL_PATH)`, `$(MODEL_NAME)`, `$(POD_IP)`
//! and `$(PORT)` in command and arguments, from the variables set here.

use super::{Input, Rendered, variable};
use crate::controllers::pods::pod_ip;

/// Renders the engine; `None` when the spec lacks image or `custom`, which validation refuses.
pub fn render(input: &Input<'_>) -> Option<Rendered> {
    let custom = input.engine.custom.as_ref()?;
    let mut env = vec![pod_ip(), variable("PORT", custom.port.to_string()), variable("MODEL_NAME", input.model_name)];
    if let Some(path) = input.model_path {
        env.push(variable("MODEL_PATH", path.0.as_str()));
    }
    Some(Rendered {
        image: input.engine.image.clone()?,
        command: (!custom.command.is_empty()).then(|| custom.command.clone()),
        args: input.engine.args.clone(),
        env,
        port: custom.port,
        health_path: custom.health_path.clone(),
        read_only_root: false,
    })
}
