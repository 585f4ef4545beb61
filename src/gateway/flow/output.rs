//! The template of the answer, and whether its text can be passed on while a model still writes it. Pure.

use super::templates::Template;

/// The compiled output.
#[derive(Debug)]
pub(super) struct Output {
    pub template: Template,
    /// The llm node whose text is the answer, unchanged: its deltas are the answer's deltas.
    pub passes_on: Option<String>,
}

/// Compiles the output. `is_llm` says whether a node asks a model.
pub(super) fn compile(source: &str, is_llm: impl Fn(&str) -> bool) -> Result<Output, String> {
    let template = Template::compile(source).map_err(|error| error.to_string())?;
    let passes_on = node_text(source).filter(|node| is_llm(node)).map(str::to_owned);
    Ok(Output { template, passes_on })
}

/// The node of `{{ nodes.NODE.text }}`, if that is all of the template (one trailing newline is cut by the engine).
fn node_text(source: &str) -> Option<&str> {
    let source = source.strip_suffix('\n').unwrap_or(source);
    let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
    let path = inner.strip_prefix('-').unwrap_or(inner);
    let path = path.strip_suffix('-').unwrap_or(path).trim();
    let node = path.strip_prefix("nodes.")?.strip_suffix(".text")?;
    node.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bare_text_of_a_node_is_passed_on() {
        for source in ["{{ nodes.answer.text }}", "{{nodes.answer.text}}", "{{- nodes.answer.text -}}\n"] {
            assert_eq!(node_text(source), Some("answer"), "{source}");
        }
        for source in [
            " {{ nodes.answer.text }}",
            "{{ nodes.answer.text | trim }}",
            "{{ nodes.a.text }}{{ nodes.b.text }}",
            "{{ nodes.answer.usage }}",
            "{{ inputs.answer }}",
        ] {
            assert_eq!(node_text(source), None, "{source}");
        }
    }
}
