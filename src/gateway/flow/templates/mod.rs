//! Prompt templates: Jinja in a sandbox. Nothing undefined renders as an empty string, nothing reads a file or another
//! template, and work and output are bounded. Used by the controller (which checks) and the gateway (which renders).
//!
//! Lines that hold only a block tag leave no blank line (`trim_blocks`, `lstrip_blocks`), one trailing newline is cut,
//! and nothing is escaped: prompts are not HTML.

mod check;
mod shape;
mod suggest;

use std::collections::BTreeMap;
use std::io;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

pub use check::{Checked, Problem, Read, check};
pub use shape::{Field, Shape, llm_output, retrieve_output};
pub use suggest::{nearest, suggestion};

/// Longest template source, in bytes.
pub const MAX_SOURCE: usize = 256 * 1024;
/// Longest rendered text, in bytes.
pub const MAX_OUTPUT: usize = 1024 * 1024;
/// Work one rendering may do; the engine counts one for an instruction and one for 64 bytes created.
const FUEL: u64 = 500_000;
/// Most tokens inside one pair of `{{ }}` or `{% %}`. The engine's compiler recurses along chains of operators, so an
/// endless one would overflow the stack of the whole process.
const MAX_EXPRESSION_TOKENS: usize = 1000;
/// Most `elif` in a template, for the same reason.
const MAX_ELIFS: usize = 100;
const NAME: &str = "template";

/// A template that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The source is not a template.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The source is longer than [`MAX_SOURCE`].
    #[error("the template has {bytes} bytes; at most {MAX_SOURCE} are allowed, shorten it")]
    TooLong {
        /// Its size in bytes.
        bytes: usize,
    },
}

/// A rendering that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template reads what the context does not have.
    #[error("line {line}: `{variable}` is undefined; give the input, or test `{variable} is defined` first")]
    Undefined {
        /// Line, from 1.
        line: usize,
        /// The variable as the template writes it.
        variable: String,
    },
    /// The template does too much work.
    #[error("the template needs too much work to render; make its loops shorter")]
    TooMuchWork,
    /// The text is longer than [`MAX_OUTPUT`].
    #[error("the rendered text is longer than {MAX_OUTPUT} bytes; shorten the inputs, or retrieve fewer chunks")]
    TooLong,
    /// Anything else that the engine refuses at run time, such as adding a number to a text.
    #[error("line {line}: {message}")]
    Failed {
        /// Line, from 1; 0 when unknown.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// What templates read: `inputs` and the outputs of `nodes`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context(Value);

impl Context {
    /// A context whose members are those of a JSON object.
    pub fn from_json(value: &serde_json::Value) -> Self {
        Self(convert(value))
    }

    /// A context of inputs by name and node outputs by node name.
    pub fn new<'a>(
        inputs: &serde_json::Map<String, serde_json::Value>,
        nodes: impl IntoIterator<Item = (&'a str, &'a serde_json::Value)>,
    ) -> Self {
        let inputs: BTreeMap<String, Value> =
            inputs.iter().map(|(name, value)| (name.clone(), convert(value))).collect();
        let nodes: BTreeMap<String, Value> =
            nodes.into_iter().map(|(name, value)| (name.to_owned(), convert(value))).collect();
        Self(Value::from_pairs([("inputs", Value::from(inputs)), ("nodes", Value::from(nodes))]))
    }
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct Template {
    environment: Environment<'static>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// When the source is too long, is no template, or uses what the sandbox does not have.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        guard(source)?;
        check::refuse_sandboxed(source)?;
        let mut environment = environment();
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| syntax(&error))?;
        Ok(Self { environment })
    }

    /// Renders the template.
    ///
    /// # Errors
    /// When it reads what is undefined, needs too much work, or grows too long.
    pub fn render(&self, context: &Context) -> Result<String, RenderError> {
        let mut output = Limited { text: Vec::new(), full: false };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context.0.clone(), &mut output).map(drop));
        if output.full {
            return Err(RenderError::TooLong);
        }
        rendered.map_err(|error| run_time(&error))?;
        String::from_utf8(output.text)
            .map_err(|error| RenderError::Failed { line: 0, message: format!("the text is not UTF-8: {error}") })
    }
}

/// Cuts off the output at the limit instead of filling the memory.
struct Limited {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len().saturating_add(bytes.len()) > MAX_OUTPUT {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(syntax_config());
    // Debug mode names the undefined variable in the error; `debug()` would put the whole context into a prompt.
    environment.set_debug(true);
    environment.remove_global("debug");
    environment
}

fn syntax_config() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default()
}

/// Refuses what the parser and compiler of the engine should not be given.
fn guard(source: &str) -> Result<(), CompileError> {
    if source.len() > MAX_SOURCE {
        return Err(CompileError::TooLong { bytes: source.len() });
    }
    let mut depth = 0_usize;
    let mut elifs = 0_usize;
    for token in tokenize(source, false, syntax_config()) {
        let (token, span) = token.map_err(|error| syntax(&error))?;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => depth = 0,
            Token::Ident("elif") => elifs += 1,
            _ => depth += 1,
        }
        if elifs > MAX_ELIFS {
            return Err(CompileError::Syntax {
                line: usize::from(span.start_line),
                message: format!("the template has more than {MAX_ELIFS} `elif`; use a mapping instead"),
            });
        }
        if depth > MAX_EXPRESSION_TOKENS {
            return Err(CompileError::Syntax {
                line: usize::from(span.start_line),
                message: format!(
                    "an expression has more than {MAX_EXPRESSION_TOKENS} tokens; split it with {{% set %}}"
                ),
            });
        }
    }
    Ok(())
}

fn syntax(error: &minijinja::Error) -> CompileError {
    CompileError::Syntax {
        line: error.line().unwrap_or(1),
        message: error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
    }
}

fn run_time(error: &minijinja::Error) -> RenderError {
    let line = error.line().unwrap_or(0);
    match error.kind() {
        ErrorKind::OutOfFuel => RenderError::TooMuchWork,
        ErrorKind::UndefinedError => {
            let variable = error
                .detail()
                .and_then(quoted)
                .or_else(|| error.range().and_then(|range| error.template_source()?.get(range)))
                .unwrap_or("a variable");
            RenderError::Undefined { line, variable: variable.trim().to_owned() }
        }
        kind => RenderError::Failed {
            line,
            message: error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
        },
    }
}

/// The first text between backticks.
fn quoted(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('`')?;
    Some(rest.split_once('`')?.0)
}

fn convert(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, Some(number)) => Value::from(number),
            _ => Value::from(number.to_string()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(convert).collect(),
        serde_json::Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), convert(value))).collect::<BTreeMap<_, _>>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, context: serde_json::Value) -> Result<String, RenderError> {
        Template::compile(source).unwrap().render(&Context::from_json(&context))
    }

    #[test]
    fn renders_inputs_and_node_outputs() {
        let source = "{% for chunk in nodes.search.chunks %}\n- {{ chunk.text }} ({{ chunk.uri }})\n{% endfor %}\nQ: {{ inputs.question }}\n";
        let context = json!({
            "inputs": {"question": "a <b> & \"c\"?"},
            "nodes": {"search": {"chunks": [{"text": "t1", "uri": "u1"}, {"text": "t2", "uri": "u2"}]}}
        });
        assert_eq!(render(source, context).unwrap(), "- t1 (u1)\n- t2 (u2)\nQ: a <b> & \"c\"?");
    }

    #[test]
    fn context_from_parts_equals_context_from_json() {
        let inputs = json!({"q": "x"});
        let answer = json!({"text": "y", "usage": {"inputTokens": 3}});
        let context = Context::new(inputs.as_object().unwrap(), [("answer", &answer)]);
        let template =
            Template::compile("{{ inputs.q }}{{ nodes.answer.text }}{{ nodes.answer.usage.inputTokens }}").unwrap();
        assert_eq!(template.render(&context).unwrap(), "xy3");
    }

    #[test]
    fn undefined_names_the_variable_and_line() {
        for (source, variable, line) in [
            ("a\n{{ inputs.qestion }}", "inputs.qestion", 2),
            ("{{ nodes.x.text }}", "nodes.x", 1),
            ("{% if inputs.flag %}x{% endif %}", "inputs.flag", 1),
            ("{% for c in inputs.list %}x{% endfor %}", "inputs.list", 1),
        ] {
            let error = render(source, json!({"inputs": {}, "nodes": {}})).unwrap_err();
            assert_eq!(error, RenderError::Undefined { line, variable: variable.into() }, "{source}");
        }
    }

    #[test]
    fn absent_inputs_can_be_tested() {
        let source =
            "{% if inputs.lang is defined %}{{ inputs.lang }}{% else %}-{% endif %}{{ inputs.x | default('d') }}";
        assert_eq!(render(source, json!({"inputs": {}})).unwrap(), "-d");
    }

    #[test]
    fn syntax_errors_have_a_line() {
        let error = Template::compile("ok\n{% if %}").unwrap_err();
        assert!(matches!(error, CompileError::Syntax { line: 2, .. }), "{error}");
        let error = Template::compile("{{ unclosed").unwrap_err();
        assert!(matches!(error, CompileError::Syntax { line: 1, .. }), "{error}");
    }

    #[test]
    fn the_sandbox_has_no_other_templates() {
        for source in [
            "{% include 'x' %}",
            "{% extends 'x' %}",
            "{% import 'x' as y %}",
            "{% from 'x' import y %}",
            "{% if true %}{% include 'template' %}{% endif %}",
        ] {
            let error = Template::compile(source).unwrap_err();
            assert!(error.to_string().contains("not available"), "{source}: {error}");
        }
        assert!(render("{{ debug() }}", json!({})).is_err());
    }

    #[test]
    fn work_and_output_are_bounded() {
        let error = render("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", json!({}));
        assert_eq!(error.unwrap_err(), RenderError::TooMuchWork);
        let error = render("{{ 'x' * 90000000 }}", json!({})).unwrap_err();
        assert_eq!(error, RenderError::TooMuchWork);
        let long = "x".repeat(MAX_OUTPUT / 2 + 1);
        let error = render("{{ inputs.a }}{{ inputs.a }}", json!({"inputs": {"a": long}})).unwrap_err();
        assert_eq!(error, RenderError::TooLong);
    }

    #[test]
    fn endless_expressions_are_refused_before_they_are_compiled() {
        for source in [
            format!("{{{{ 1{} }}}}", "+1".repeat(60_000)),
            format!("{{{{ x{} }}}}", ".y".repeat(60_000)),
            format!("{{{{ x{} }}}}", "|upper".repeat(30_000)),
            format!("{{{{ {}x }}}}", "not ".repeat(50_000)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(20_000)),
            "{{(".repeat(50_000),
        ] {
            assert!(Template::compile(&source).is_err(), "{}", &source[..20]);
        }
        for allowed in [
            format!("{{{{ 1{} }}}}", "+1".repeat(490)),
            format!("{{{{ 'x'{} }}}}", "|upper".repeat(490)),
            format!("{{{{ {}1 }}}}", "not ".repeat(140)),
            format!("{{% if false %}}{}{{% endif %}}", "{% elif false %}".repeat(100)),
            format!("{}{}", "{% if true %}".repeat(140), "{% endif %}".repeat(140)),
        ] {
            let context = BTreeMap::new();
            assert!(check(&allowed, &context).is_ok(), "{}", &allowed[..20]);
            assert!(render(&allowed, json!({})).is_ok(), "{}", &allowed[..20]);
        }
        assert!(matches!(Template::compile(&"x".repeat(MAX_SOURCE + 1)), Err(CompileError::TooLong { .. })));
    }
}
