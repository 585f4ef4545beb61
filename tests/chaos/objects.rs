//! What runs while processes are killed: a model on two engines, an index on two servers, two flows, and an Evaluation that
//! stands before one of them. Each can be committed anew, as Git would: with a number that its content shows.

use anyhow::Result;
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use serde_json::{Value, json};

use crate::cluster::required;

/// Namespace of the objects.
pub const NAMESPACE: &str = "chaos";
/// Namespace where the same index is built in peace.
pub const PEACE: &str = "peace";
pub const MODEL: &str = "tiny";
pub const INDEX: &str = "facts";
pub const SOURCE: &str = "facts";
/// A flow of one call, whose revisions serve only after the Evaluation passed.
pub const GATED: &str = "gated";
/// A flow that searches the index before it asks the model.
pub const GROUNDED: &str = "grounded";
pub const EVALUATION: &str = "quality";
/// Cases of the Evaluation, and how often each is asked.
pub const CASES: usize = 24;
pub const REPEATS: usize = 2;
/// Documents of the index before anything is committed.
const DOCUMENTS: usize = 24;
/// Documents that a commit adds.
const ADDED: usize = 6;

/// The volume over the folder of the model file, and its claim.
pub fn volume() -> Result<Vec<Value>> {
    let file = required("LLMOPS_MODEL_GGUF")?;
    let spec = json!({"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeMode": "Filesystem"});
    let with = |more: Value| {
        let mut spec = spec.clone();
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        spec
    };
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "models", "namespace": NAMESPACE});
    Ok(vec![
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "chaos-models"}, "spec": with(json!({
            "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain", "claimRef": claim,
            "hostPath": {"path": file.parent(), "type": "Directory"},
        }))}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models", "namespace": NAMESPACE},
               "spec": with(json!({"volumeName": "chaos-models", "resources": {"requests": {"storage": "1Gi"}}}))}),
    ])
}

/// The model at its commit of this number.
pub fn model(commit: usize) -> Result<Value> {
    let file = required("LLMOPS_MODEL_GGUF")?;
    let path = file.file_name().map(|name| name.to_string_lossy().into_owned());
    typed::<ModelDeployment>(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": MODEL, "namespace": NAMESPACE},
        "spec": {
            "task": "Chat",
            "model": {"source": {"pvc": {"claimName": "models", "path": path}}},
            "engine": {"type": "LlamaCpp", "args": ["--ctx-size", "1024", "--parallel", "2", "--threads", "1"],
                       "env": [{"name": "COMMIT", "value": commit.to_string()}]},
            "replicas": 2,
        },
    }))
}

/// The documents as they are after so many commits.
pub fn source(namespace: &str, commits: usize) -> Value {
    let count = documents(commits);
    let data: serde_json::Map<String, Value> = (0..count)
        .map(|number| {
            let text = format!(
                "# Station {number}\n\nStation {number} of the coast line is kept by warden {}. Its lamp burns {} litres of oil in \
                 a night, and its bell is heard over {} miles of water.\n\n## Visits\n\nThe boat calls on day {} of each month.\n",
                word(number), number * 7 % 31 + 3, number * 5 % 17 + 2, number % 28 + 1,
            );
            (format!("station-{number:04}.md"), Value::String(text))
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SOURCE, "namespace": namespace}, "data": data})
}

/// Number of documents after so many commits.
pub fn documents(commits: usize) -> usize {
    DOCUMENTS + commits * ADDED
}

/// A name that no other document has.
fn word(number: usize) -> String {
    let syllables = ["ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "re", "so", "tu"];
    let mut rest = number + 1;
    let mut name = String::from("V");
    while rest > 0 {
        name.push_str(syllables[rest % syllables.len()]);
        rest /= syllables.len();
    }
    name
}

/// The index. It is the same in both namespaces, so that it comes to the same digest.
pub fn index(namespace: &str) -> Result<Value> {
    typed::<RagIndex>(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "RagIndex", "metadata": {"name": INDEX, "namespace": namespace},
        "spec": {
            "sources": [{"name": "stations", "configMap": {"name": SOURCE}}],
            "chunking": {"strategy": "Markdown", "maxTokens": 64},
            "embedding": {"builtin": "AllMiniLmL6V2"},
            "retrieval": {"mode": "Hybrid", "topK": 3},
            "replicas": 2,
            "job": {"backoffLimit": 3},
        },
    }))
}

/// A question that every document answers.
pub fn question(number: usize) -> String {
    format!("Who keeps station {}?", number % DOCUMENTS)
}

/// The gated flow at its commit of this number. The prompt shows it.
pub fn gated(commit: usize) -> Result<Value> {
    typed::<PromptFlow>(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "PromptFlow", "metadata": {"name": GATED, "namespace": NAMESPACE},
        "spec": {
            "models": {"writer": {"modelDeploymentRef": {"name": MODEL}}},
            "inputs": {"question": {"type": "String", "maxLength": 200}},
            "nodes": [{"name": "answer", "llm": {
                "model": "writer", "parameters": {"maxTokens": 6, "temperature": "0"},
                "messages": [{"role": "user", "content": format!("{} {{{{ inputs.question }}}}", mark(commit))}],
            }}],
            "output": "{{ nodes.answer.text }}",
            "rollout": {"gates": [{"evaluationRef": {"name": EVALUATION}}]},
        },
    }))
}

/// Words of the gated flow's prompt by which its commit is known.
pub fn mark(commit: usize) -> String {
    format!("Commit {commit}.")
}

pub fn grounded() -> Result<Value> {
    typed::<PromptFlow>(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "PromptFlow", "metadata": {"name": GROUNDED, "namespace": NAMESPACE},
        "spec": {
            "models": {"writer": {"modelDeploymentRef": {"name": MODEL}}},
            "indexes": {"facts": {"ragIndexRef": {"name": INDEX}}},
            "inputs": {"question": {"type": "String", "maxLength": 200}},
            "nodes": [
                {"name": "search", "retrieve": {"index": "facts", "query": "{{ inputs.question }}", "topK": 1}},
                {"name": "answer", "llm": {
                    "model": "writer", "parameters": {"maxTokens": 12, "temperature": "0"},
                    "messages": [{"role": "user", "content": "{{ nodes.search.chunks[0].text }} {{ inputs.question }}"}],
                }},
            ],
            "output": "{{ nodes.answer.text }}",
            "telemetry": {"capture": "Full"},
        },
    }))
}

pub fn evaluation() -> Result<Vec<Value>> {
    let cases: String = (0..CASES)
        .map(|number| format!("{}\n", json!({"id": format!("case-{number}"), "question": question(number)})))
        .collect();
    let evaluation = typed::<Evaluation>(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": EVALUATION, "namespace": NAMESPACE},
        "spec": {
            "target": {"promptFlowRef": {"name": GATED}},
            "dataset": {"configMapRef": {"name": "cases", "key": "cases.jsonl"}},
            // Every answer will do: what is tested is that each question is asked, and only once.
            "metrics": [{"name": "answered", "type": "Regex", "pattern": "(?s)^.*$"}],
            "gates": [{"metric": "answered", "min": "0.9", "bound": "Mean"}],
            "repeats": REPEATS,
            "concurrency": 1,
            "report": ["Json"],
            "historyLimit": 50,
        },
    }))?;
    let dataset = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cases", "namespace": NAMESPACE},
                         "data": {"cases.jsonl": cases}});
    Ok(vec![dataset, evaluation])
}

/// The object as it was written, once its type has understood it.
fn typed<K: serde::de::DeserializeOwned>(object: Value) -> Result<Value> {
    serde_json::from_value::<K>(object.clone())?;
    Ok(object)
}
