//! The custom resource definitions: what is in `crds/` is what the code generates, and each rule does what it says.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use llmops::cli::{crds, validate::Checker};
use serde_json::{Value, json};

fn definitions() -> Vec<Value> {
    crds::all().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect()
}

fn kind(crd: &Value) -> &str {
    crd["spec"]["names"]["kind"].as_str().unwrap()
}

fn schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Calls `visit` with the path and schema of every field.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}.*"), &schema["additionalProperties"], visit);
    }
}

fn fields() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for crd in definitions() {
        walk(kind(&crd), schema(&crd), &mut |path, field| all.push((path.to_owned(), field.clone())));
    }
    all
}

#[test]
fn files_are_what_the_code_generates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let generated = crds::files().unwrap();
    for (name, text) in &generated {
        let file = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(&file == text, "crds/{name} differs from the code; run `make crds`");
    }
    let count = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(count, generated.len(), "crds/ holds a file that the code does not generate");
}

#[test]
fn each_is_small_enough_for_last_applied_annotations() {
    for crd in definitions() {
        let bytes = crd.to_string().len();
        assert!(bytes < 200_000, "{} has {bytes} bytes", kind(&crd));
    }
}

#[test]
fn every_field_is_documented() {
    let bare: Vec<_> = fields()
        .into_iter()
        .filter(|(path, field)| {
            let leaf = path.rsplit('.').next().unwrap_or_default();
            // Items and values of maps are described by the field that holds them.
            !leaf.ends_with("[]") && leaf != "*" && field["description"].as_str().unwrap_or_default().is_empty()
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(bare, Vec::<String>::new(), "fields without a description");
}

#[test]
fn numbers_are_integers_of_32_or_64_bits() {
    for (path, field) in fields() {
        assert_ne!(field["type"], "number", "{path} is a float; write a Decimal");
        if field["type"] == "integer" {
            let format = &field["format"];
            assert!(format == "int32" || format == "int64", "{path} has format {format}");
        }
    }
}

#[test]
fn what_a_default_covers_is_not_required_and_optional_fields_are_optional() {
    for (path, field) in fields() {
        for required in field["required"].as_array().into_iter().flatten() {
            let name = required.as_str().unwrap();
            let member = &field["properties"][name];
            assert!(member.get("default").is_none(), "{path}.{name} is required and has a default");
            assert_ne!(member["nullable"], true, "{path}.{name} is required and nullable");
        }
    }
}

#[test]
fn lists_in_specs_are_bounded_so_that_rules_stay_within_their_cost() {
    for (path, field) in fields() {
        // Lists of Kubernetes' own types come as they are.
        let foreign = ["tolerations", "topologySpreadConstraints", "claims", ".env", "conditions"];
        if !path.contains(".spec.") || foreign.iter().any(|name| path.contains(name)) {
            continue;
        }
        if field["type"] == "array" {
            assert!(field["maxItems"].is_u64(), "{path} has no maxItems");
        }
    }
}

#[test]
fn columns_answer_the_first_question_first() {
    for crd in definitions() {
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(names.first(), Some(&"Ready"), "{}", kind(&crd));
        assert_eq!(names.last(), Some(&"Age"), "{}", kind(&crd));
        assert!(names.contains(&"Message"), "{}", kind(&crd));
        for column in columns {
            assert_ne!(column["jsonPath"], "", "{}: {}", kind(&crd), column["name"]);
        }
    }
}

#[test]
fn names_are_the_contract() {
    let names: Vec<_> = definitions()
        .iter()
        .map(|crd| {
            assert_eq!(crd["spec"]["scope"], "Namespaced");
            assert_eq!(crd["spec"]["names"]["categories"], json!(["llmops"]));
            assert_eq!(crd["spec"]["versions"][0]["subresources"], json!({"status": {}}));
            (
                crd["metadata"]["name"].as_str().unwrap().to_owned(),
                crd["spec"]["names"]["shortNames"][0].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected = [
        ("modeldeployments.llmops.dev", "mdep"),
        ("ragindexes.llmops.dev", "rag"),
        ("promptflows.llmops.dev", "pf"),
        ("evaluations.llmops.dev", "eval"),
    ];
    assert_eq!(names, expected.map(|(name, short)| (name.to_owned(), short.to_owned())));
}

#[test]
fn the_table_of_fields_is_what_the_code_generates() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fields.md");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    assert!(text == llmops::cli::reference::markdown(), "docs/fields.md differs from the code; run `make crds`");
}

#[test]
fn every_sample_is_accepted() {
    let mut checker = Checker::new();
    let (mut checked, mut problems) = (0, Vec::new());
    for entry in walkdir::WalkDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples")) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|end| end == "yaml") {
            let outcome = checker.check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
            checked += outcome.checked;
            problems.extend(outcome.problems.iter().map(ToString::to_string));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
    assert!(checked >= 10, "only {checked} resources");
}

/// Every document that a golden question names is a page of docs/, so that a renamed page is noticed here first.
#[test]
fn golden_questions_name_documents_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages: Vec<String> = walkdir::WalkDir::new(root.join("docs"))
        .min_depth(2)
        .into_iter()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let golden = std::fs::read_to_string(root.join("manifests/samples/quickstart/golden.jsonl")).unwrap();
    let mut count = 0;
    for line in golden.lines() {
        let question: Value = serde_json::from_str(line).unwrap();
        count += 1;
        for relevant in question["relevant"].as_array().unwrap() {
            let uri = relevant["uri"].as_str().unwrap().to_owned();
            assert!(pages.contains(&uri), "{}: there is no docs/*/{uri}", question["id"]);
        }
    }
    assert!(count >= 40, "only {count} questions");
}

// ---- rules

fn good(kind: &str) -> Value {
    let spec = match kind {
        "ModelDeployment" => json!({
            "task": "Chat",
            "model": {"source": {"pvc": {"claimName": "models", "path": "m.gguf"}}},
            "engine": {"type": "LlamaCpp"},
        }),
        "RagIndex" => json!({
            "sources": [{"name": "docs", "configMap": {"name": "docs"}}],
            "gates": {
                "golden": {"configMapRef": {"name": "golden", "key": "golden.jsonl"}},
                "metrics": [{"name": "recall", "min": "0.8"}],
            },
        }),
        "PromptFlow" => json!({
            "models": {"writer": {"modelDeploymentRef": {"name": "smollm2"}}},
            "inputs": {"question": {"type": "String"}},
            "nodes": [{"name": "answer", "llm": {"model": "writer", "messages": [{"role": "user", "content": "{{ inputs.question }}"}]}}],
            "output": "{{ nodes.answer.text }}",
            "variants": [{"name": "control", "weight": 70}, {"name": "b", "weight": 30}],
        }),
        _ => json!({
            "target": {"promptFlowRef": {"name": "ask"}},
            "dataset": {"configMapRef": {"name": "cases", "key": "cases.jsonl"}},
            "metrics": [{"name": "named", "type": "Contains"}],
            "gates": [{"metric": "named", "min": "0.5"}],
        }),
    };
    json!({"apiVersion": "llmops.dev/v1alpha1", "kind": kind, "metadata": {"name": "a", "namespace": "n"}, "spec": spec})
}

fn problems(object: &Value) -> Vec<String> {
    let outcome = Checker::new().check("object", &serde_yaml::to_string(object).unwrap());
    outcome.problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
}

/// Sets (or with null: removes) the member at a JSON pointer.
fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        match (parent, value) {
            (Value::Object(members), Value::Null) => {
                members.remove(name);
            }
            (Value::Array(items), value) => items[name.parse::<usize>().unwrap()] = value.clone(),
            (parent, value) => parent[name] = value.clone(),
        }
    }
    object
}

#[test]
fn good_objects_pass() {
    for kind in ["ModelDeployment", "RagIndex", "PromptFlow", "Evaluation"] {
        assert_eq!(problems(&good(kind)), Vec::<String>::new(), "{kind}");
    }
    let external = with(
        good("ModelDeployment"),
        &[
            ("/spec/engine", Value::Null),
            ("/spec/model", Value::Null),
            ("/spec/external", json!({"baseUrl": "https://api.example.com/v1", "model": "m"})),
        ],
    );
    assert_eq!(problems(&external), Vec::<String>::new());
    let custom = with(
        good("ModelDeployment"),
        &[
            ("/spec/model", Value::Null),
            ("/spec/engine", json!({"type": "Custom", "image": "i", "custom": {"command": ["serve"]}})),
        ],
    );
    assert_eq!(problems(&custom), Vec::<String>::new());
}

/// Kind, changes of the good object, and the message that must come.
type Broken = (&'static str, Vec<(&'static str, Value)>, &'static str);

/// Every CEL rule is broken once; the message says what to do.
#[test]
fn each_rule_refuses_what_it_is_for() {
    let cases: Vec<Broken> = vec![
        ("ModelDeployment", vec![("/metadata/name", json!("a".repeat(41)))], "metadata.name must have at most 40"),
        ("RagIndex", vec![("/metadata/name", json!("a.b"))], "metadata.name must have at most 40"),
        ("PromptFlow", vec![("/metadata/name", json!("-a"))], "metadata.name must have at most 40"),
        ("Evaluation", vec![("/metadata/name", json!("A"))], "metadata.name must have at most 40"),
        ("ModelDeployment", vec![("/spec/engine", Value::Null)], "set exactly one of spec.engine"),
        (
            "ModelDeployment",
            vec![("/spec/external", json!({"baseUrl": "https://x", "model": "m"}))],
            "set exactly one of spec.engine",
        ),
        ("ModelDeployment", vec![("/spec/model", Value::Null)], "spec.model.source is required"),
        (
            "ModelDeployment",
            vec![("/spec/engine", Value::Null), ("/spec/external", json!({"baseUrl": "https://x", "model": "m"}))],
            "spec.model.source has no use beside spec.external",
        ),
        ("ModelDeployment", vec![("/spec/model/source", json!({}))], "set exactly one of pvc and http"),
        ("ModelDeployment", vec![("/spec/engine/type", json!("Custom"))], "engine type Custom needs engine.image"),
        ("ModelDeployment", vec![("/spec/engine/custom", json!({}))], "engine.custom is only for type Custom"),
        ("RagIndex", vec![("/spec/sources/0", json!({"name": "docs"}))], "set exactly one of configMap and pvc"),
        (
            "RagIndex",
            vec![("/spec/retrieval", json!({"topK": 10, "candidates": 5}))],
            "spec.retrieval.candidates must not be below",
        ),
        (
            "RagIndex",
            vec![("/spec/chunking", json!({"maxTokens": 100, "overlapTokens": 51}))],
            "chunking.overlapTokens must not be above half",
        ),
        (
            "RagIndex",
            vec![("/spec/embedding", json!({"builtin": "AllMiniLmL6V2", "modelRef": {"name": "m"}}))],
            "set one of embedding.modelRef",
        ),
        ("RagIndex", vec![("/spec/gates/golden", Value::Null)], "gates.metrics needs gates.golden"),
        ("RagIndex", vec![("/spec/gates/metrics/0", json!({"name": "recall"}))], "set min, maxRegression or both"),
        ("PromptFlow", vec![("/spec/variants/1/weight", json!(20))], "the weights of spec.variants must sum to 100"),
        ("PromptFlow", vec![("/spec/assignment", json!({"unit": "Header"}))], "spec.assignment.header is required"),
        (
            "PromptFlow",
            vec![("/spec/nodes/0/retrieve", json!({"index": "i", "query": "q"}))],
            "exactly one of llm and retrieve",
        ),
        ("PromptFlow", vec![("/spec/nodes/0/llm", Value::Null)], "exactly one of llm and retrieve"),
        (
            "PromptFlow",
            vec![("/spec/nodes/0/llm/messages/0", json!({"role": "user"}))],
            "exactly one of content and contentFrom",
        ),
        (
            "PromptFlow",
            vec![("/spec/variants/1/overrides", json!({"answer": {"llm": {"messages": [{"role": "user"}]}}}))],
            "exactly one of content and contentFrom",
        ),
        (
            "PromptFlow",
            vec![("/spec/rollout", json!({"steps": [{"weight": 25}, {"weight": 5}]}))],
            "the weights of spec.rollout.steps must grow",
        ),
        (
            "PromptFlow",
            vec![("/spec/experiment", json!({"goal": {"metric": "Event"}}))],
            "a goal with metric Event needs event",
        ),
        (
            "PromptFlow",
            vec![("/spec/experiment", json!({"guardrails": [{"metric": "Event"}]}))],
            "a guardrail with metric Event needs event",
        ),
        (
            "ModelDeployment",
            vec![("/spec/rollout", json!({"strategy": "Canary", "steps": [{"weight": 5}, {"weight": 5}]}))],
            "the weights of spec.rollout.steps must grow",
        ),
        (
            "ModelDeployment",
            vec![("/spec/rollout", json!({"steps": [{"weight": 5}]}))],
            "spec.rollout.steps need strategy Canary",
        ),
        ("Evaluation", vec![("/spec/gates/0/metric", json!("other"))], "every entry of spec.gates names a metric"),
        ("Evaluation", vec![("/spec/target", json!({}))], "set exactly one of target.promptFlowRef"),
        ("Evaluation", vec![("/spec/metrics/0/type", json!("Regex"))], "metric type Regex needs pattern"),
        ("Evaluation", vec![("/spec/gates/0/max", json!("0.9"))], "a gate has exactly one of min and max"),
    ];
    let mut broken = Vec::new();
    for (kind, changes, message) in cases {
        let found = problems(&with(good(kind), &changes));
        assert!(
            found.iter().any(|text| text.contains(message)),
            "{kind} {changes:?}: wanted {message:?}, got {found:#?}"
        );
        broken.push(message);
    }
    // A rule without an example here would be a rule that nobody has seen work.
    for (path, field) in fields() {
        for rule in field["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(broken.iter().any(|example| message.contains(example)), "{path}: no example breaks {message:?}");
        }
    }
}

#[test]
fn limits_of_single_fields_are_checked() {
    for (kind, pointer, value, message) in [
        ("ModelDeployment", "/spec/replicas", json!(-1), "spec.replicas: must be at least 0"),
        (
            "ModelDeployment",
            "/spec/startup",
            json!({"loadTimeout": "ten"}),
            "spec.startup.loadTimeout: \"ten\" does not match",
        ),
        ("ModelDeployment", "/spec/tsk", json!("x"), "spec.tsk: unknown field; did you mean `task`?"),
        ("PromptFlow", "/spec/nodes/0/name", json!("An-swer"), "spec.nodes[0].name: \"An-swer\" does not match"),
        ("PromptFlow", "/spec/variants/1/name", json!("control"), "spec.variants[1]: has the same name as item 0"),
        (
            "Evaluation",
            "/spec/gates/0/min",
            json!(0.5),
            "spec.gates[0].min: must be a text, not the number 0.5; quote it",
        ),
        (
            "RagIndex",
            "/spec/store",
            json!({"embedded": {"volume": {"size": "2 GB"}}}),
            "spec.store.embedded.volume.size: \"2 GB\" does not match",
        ),
    ] {
        let found = problems(&with(good(kind), &[(pointer, value)]));
        assert!(found.iter().any(|text| text.starts_with(message)), "{pointer}: wanted {message:?}, got {found:#?}");
    }
}

#[test]
fn defaults_satisfy_their_own_schema() {
    let mut checked = 0;
    for (path, field) in fields() {
        let Some(default) = field.get("default") else { continue };
        checked += 1;
        if let (Some(pattern), Some(text)) = (field["pattern"].as_str(), default.as_str()) {
            assert!(regex::Regex::new(pattern).unwrap().is_match(text), "{path}: default {text} against {pattern}");
        }
        if let (Some(allowed), false) = (field["enum"].as_array(), default.is_null()) {
            assert!(allowed.contains(default), "{path}: default {default}");
        }
    }
    assert!(checked > 20, "only {checked} defaults");
}
