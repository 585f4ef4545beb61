//! `llmops validate`: checks manifests offline, by the rules of the cluster.
//!
//! Per object, in this order: YAML, the schema of the CRD (types, unknown fields, limits), the CRD's CEL rules, the
//! values that only the typed form knows, and what the controllers refuse, such as a template with an undefined variable. A later stage runs only when the earlier ones found nothing, because its
//! complaints would be consequences.

mod documents;
mod locate;
mod rules;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{Evaluation, GROUP, ModelDeployment, PromptFlow, RagIndex, VERSION};
pub use documents::{Document, Error as ReadError, split};
pub use schema::{Segment, path_text};

/// Arguments of `llmops validate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files, folders (all *.yaml, *.yml and *.json below) or `-` for standard input.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true, num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// Print problems only, no notes and no summary.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Something that the cluster would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File, or `-`.
    pub file: String,
    /// Line in the file, from 1; the nearest one that could be found.
    pub line: usize,
    /// Kind, namespace and name as far as known, such as `PromptFlow team-a/ask`.
    pub object: String,
    /// Field, such as `spec.nodes[1].llm.model`; empty for the object as a whole.
    pub field: String,
    /// What is wrong and what helps.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// What a check of some manifests found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects of our kinds that were checked.
    pub checked: usize,
    /// What the cluster would refuse.
    pub problems: Vec<Problem>,
    /// Objects that are not ours and were not checked.
    pub notes: Vec<String>,
}

/// Schema and rules of one kind.
struct Rules {
    schema: Value,
    compiled: CompiledSchema,
}

/// Checks manifests against the definitions that this binary carries.
pub struct Checker {
    kinds: BTreeMap<String, Rules>,
    validator: Validator,
    seen: BTreeSet<String>,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// Compiles the schemas and CEL rules of the four kinds.
    pub fn new() -> Self {
        let mut kinds = BTreeMap::new();
        for crd in super::crds::all() {
            let schema = crd
                .spec
                .versions
                .iter()
                .find(|version| version.name == VERSION)
                .and_then(|version| version.schema.as_ref())
                .and_then(|schema| schema.open_api_v3_schema.as_ref())
                .and_then(|schema| serde_json::to_value(schema).ok())
                .unwrap_or_default();
            let compiled = compile_schema(&schema);
            kinds.insert(crd.spec.names.kind, Rules { schema, compiled });
        }
        Self { kinds, validator: Validator::new(), seen: BTreeSet::new() }
    }

    /// Checks all documents of one file's text.
    pub fn check(&mut self, file: &str, text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        for document in split(text) {
            match documents::parse(&document) {
                Ok(None) => {}
                Ok(Some(value)) => self.check_object(file, &document, &value, &[], &mut outcome),
                Err((line, message)) => outcome.problems.push(Problem {
                    file: file.to_owned(),
                    line,
                    object: String::new(),
                    field: String::new(),
                    message,
                }),
            }
        }
        outcome
    }

    fn check_object(
        &mut self,
        file: &str,
        document: &Document<'_>,
        value: &Value,
        base: &[Segment],
        outcome: &mut Outcome,
    ) {
        let text_of = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text_of("apiVersion"), text_of("kind"));
        let object = object_name(value, kind);
        let problem = |path: &[Segment], message: String| {
            let whole: Vec<Segment> = base.iter().chain(path).cloned().collect();
            Problem {
                file: file.to_owned(),
                line: document.first_line + locate::line(document.text, &whole),
                object: object.clone(),
                field: path_text(path),
                message,
            }
        };
        if api_version.is_empty() || kind.is_empty() {
            let message = "apiVersion and kind are required, as texts; is this a Kubernetes object?";
            outcome.problems.push(problem(&[], message.into()));
            return;
        }
        if let (true, Some(Value::Array(items))) = (kind.ends_with("List"), value.get("items")) {
            for (index, item) in items.iter().enumerate() {
                let mut base = base.to_vec();
                base.extend([Segment::Key("items".into()), Segment::Index(index)]);
                self.check_object(file, document, item, &base, outcome);
            }
            return;
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if group != GROUP {
            let line = problem(&[], String::new()).line;
            outcome.notes.push(format!("{file}:{line}: {object}: not checked, only kinds of {GROUP} are"));
            return;
        }
        let Some(rules) = self.kinds.get(kind) else {
            let hint = schema::did_you_mean(kind, self.kinds.keys().map(String::as_str));
            outcome.problems.push(problem(&[Segment::Key("kind".into())], format!("{GROUP} has no kind {kind}{hint}")));
            return;
        };
        if version != VERSION {
            let message = format!("{GROUP} has no version {version}; write {GROUP}/{VERSION}");
            outcome.problems.push(problem(&[Segment::Key("apiVersion".into())], message));
            return;
        }
        outcome.checked += 1;
        if !self.seen.insert(object.clone()) {
            let message = "the same object is defined more than once; the last definition would win silently";
            outcome.problems.push(problem(&[], message.into()));
        }
        let found = schema::check(&rules.schema, value);
        if !found.is_empty() {
            outcome.problems.extend(found.into_iter().map(|(path, message)| problem(&path, message)));
            return;
        }
        if let Err(errors) = self.validator.validate_compiled(&rules.compiled, value, None) {
            for error in errors.into_vec() {
                outcome.problems.push(problem(&schema::parse_path(&error.field_path), error.message));
            }
            return;
        }
        let found = match kind {
            "ModelDeployment" => decode::<ModelDeployment>(value).map(|_| Vec::new()),
            "RagIndex" => decode::<RagIndex>(value).map(|index| rules::of_index(&index.spec)),
            "PromptFlow" => decode::<PromptFlow>(value).map(|flow| rules::of_flow(&flow.spec)),
            _ => decode::<Evaluation>(value).map(|_| Vec::new()),
        };
        match found {
            Err((path, message)) => outcome.problems.push(problem(&schema::parse_path(&path), message)),
            Ok(found) => outcome.problems.extend(found.into_iter().map(|fault| Problem {
                field: fault.field,
                ..problem(&schema::parse_path(&fault.place), fault.message)
            })),
        }
    }
}

fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize::<_, T>(value).map_err(|error| {
        let path = error.path().to_string();
        (if path == "." { String::new() } else { path }, error.into_inner().to_string())
    })
}

/// `Kind namespace/name`, as far as it is known.
fn object_name(value: &Value, kind: &str) -> String {
    let meta = |field: &str| {
        value.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
    };
    let name = if meta("name").is_empty() { meta("generateName") } else { meta("name") };
    match meta("namespace") {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
    .trim()
    .to_owned()
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut checker = Checker::new();
    let mut total = Outcome::default();
    let files = match documents::read(&args.filename) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    for (name, text) in files {
        let outcome = checker.check(&name, &text);
        total.checked += outcome.checked;
        total.problems.extend(outcome.problems);
        total.notes.extend(outcome.notes);
    }
    // A closed pipe (`| head`) ends the command early; what was found still decides the exit code.
    let _ = print(&total, args.quiet);
    if total.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(total: &Outcome, quiet: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if !quiet {
        for note in &total.notes {
            writeln!(out, "note: {note}")?;
        }
    }
    for problem in &total.problems {
        writeln!(out, "error: {problem}")?;
    }
    if !quiet {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        writeln!(out, "{} checked, {}", count(total.checked, "object"), count(total.problems.len(), "problem"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = r#"# a comment before
apiVersion: llmops.dev/v1alpha1
kind: PromptFlow
metadata:
  name: ask
  namespace: team-a
spec:
  models:
    writer:
      modelDeploymentRef: {name: smollm2}
  inputs:
    question: {type: String}
  nodes:
  - name: answer
    llm:
      model: writer
      messages:
      - role: user
        content: "{{ inputs.question }}"
  output: "{{ nodes.answer.text }}"
"#;

    fn problems(text: &str) -> Vec<String> {
        Checker::new().check("f.yaml", text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_object_has_no_problem() {
        assert_eq!(problems(FLOW), Vec::<String>::new());
    }

    #[test]
    fn every_problem_names_line_object_field_and_help() {
        for (from, to, expected) in [
            (
                "content:",
                "contents:",
                "f.yaml:19: PromptFlow team-a/ask: spec.nodes[0].llm.messages[0].contents: unknown field; did you mean `content`?",
            ),
            (
                "role: user",
                "role: usr",
                "f.yaml:18: PromptFlow team-a/ask: spec.nodes[0].llm.messages[0].role: \"usr\" is not one of system, user, assistant; did you mean `user`?",
            ),
            (
                "name: ask",
                "name: Ask",
                "f.yaml:2: PromptFlow team-a/Ask: metadata.name must have at most 40 characters",
            ),
            (
                "  output: \"{{ nodes.answer.text }}\"\n",
                "",
                "f.yaml:7: PromptFlow team-a/ask: spec.output: is required",
            ),
            (
                "{type: String}",
                "{type: String, maxLength: long}",
                "f.yaml:12: PromptFlow team-a/ask: spec.inputs.question.maxLength: must be an integer, not the text \"long\"",
            ),
            (
                "  output:",
                "  variants:\n  - {name: control, weight: 60}\n  - {name: b, weight: 30}\n  output:",
                "f.yaml:7: PromptFlow team-a/ask: spec: the weights of spec.variants must sum to 100",
            ),
            (
                "kind: PromptFlow",
                "kind: Promptflow",
                "f.yaml:3: Promptflow team-a/ask: kind: llmops.dev has no kind Promptflow; did you mean `PromptFlow`?",
            ),
            (
                "v1alpha1",
                "v1",
                "f.yaml:2: PromptFlow team-a/ask: apiVersion: llmops.dev has no version v1; write llmops.dev/v1alpha1",
            ),
            ("kind: PromptFlow", "", "f.yaml:2: team-a/ask: apiVersion and kind are required"),
            ("  inputs:", "  models: {}\n  inputs:", "f.yaml:8: not valid YAML: spec: duplicate entry"),
        ] {
            let found = problems(&FLOW.replacen(from, to, 1));
            assert!(found.first().is_some_and(|text| text.starts_with(expected)), "wanted {expected}\ngot {found:#?}");
        }
    }

    #[test]
    fn documents_lists_and_foreign_kinds() {
        let text =
            format!("kind: Namespace\napiVersion: v1\nmetadata: {{name: n}}\n---\n{FLOW}---\n# nothing\n---\n{FLOW}");
        let outcome = Checker::new().check("f.yaml", &text);
        assert_eq!(outcome.checked, 2);
        assert_eq!(outcome.notes, ["f.yaml:1: Namespace n: not checked, only kinds of llmops.dev are"]);
        assert_eq!(outcome.problems.len(), 1, "{:?}", outcome.problems);
        assert!(outcome.problems[0].message.contains("more than once"));

        let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: llmops.dev/v1alpha1\n  kind: RagIndex\n  metadata: {name: a}\n  spec:\n    sources: []\n";
        assert_eq!(problems(list), ["f.yaml:8: RagIndex a: spec.sources: must have at least 1 items, has 0"]);
    }

    #[test]
    fn a_duration_and_a_duplicate_key() {
        let text = FLOW.replace("{name: smollm2}", "{name: smollm2}\n      timeout: 10 minutes");
        assert!(problems(&text)[0].starts_with("f.yaml:11: PromptFlow team-a/ask: spec.models.writer.timeout: "));
    }
}
