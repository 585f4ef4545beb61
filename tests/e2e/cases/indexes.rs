//! Evaluations before a new generation of an index serves.

use anyhow::{Context, Result, ensure};
use llmops::api::evaluation::Verdict;
use llmops::api::{Evaluation, PromptFlow, RagIndex, conditions};
use serde_json::json;

use super::rollouts::LIBRARY;
use crate::cluster::{Cluster, NAMESPACE};
use crate::wait;

pub const INDEX: &str = "catalogue";

/// The index, which two Evaluations guard: one asks it, the other a flow that reads from it.
fn index(documents: &[(&str, &str)]) -> String {
    let data: String = documents.iter().map(|(name, text)| format!("  {name}: {}\n", json!(text))).collect();
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {INDEX}}}
data:
{data}
---
apiVersion: llmops.dev/v1alpha1
kind: RagIndex
metadata: {{name: {INDEX}}}
spec:
  sources: [{{name: books, configMap: {{name: {INDEX}}}}}]
  embedding: {{builtin: AllMiniLmL6V2}}
  retrieval: {{topK: 2}}
  gates:
    evaluations:
    - evaluationRef: {{name: {INDEX}-itself}}
    - evaluationRef: {{name: {INDEX}-read}}
"#
    )
}

/// The flow has no model: what it finds is its answer.
fn readers_and_gates() -> String {
    let cases: String = LIBRARY
        .iter()
        .map(|(name, text)| {
            let (question, expected) = text.split_once(". ").unwrap_or((text, text));
            format!("    {}\n", json!({"id": name, "question": question, "expected": expected}))
        })
        .collect();
    let gate = |name: &str, target: String| {
        format!(
            r#"
---
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {{name: {INDEX}-{name}}}
spec:
  target: {target}
  dataset: {{configMapRef: {{name: {INDEX}-cases, key: cases.jsonl}}}}
  metrics: [{{name: told, type: Contains}}]
  gates: [{{metric: told, min: "0.9", bound: Mean}}]
"#
        )
    };
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {INDEX}-cases}}
data:
  cases.jsonl: |
{cases}
---
apiVersion: llmops.dev/v1alpha1
kind: PromptFlow
metadata: {{name: {INDEX}-reader}}
spec:
  indexes: {{books: {{ragIndexRef: {{name: {INDEX}}}}}}}
  inputs: {{question: {{type: String, maxLength: 200}}}}
  nodes:
  - name: find
    retrieve: {{index: books, query: "{{{{ inputs.question }}}}", topK: 1}}
  output: "{{{{ nodes.find.chunks[0].text }}}}"
{}{}"#,
        gate("itself", format!("{{ragIndexRef: {{name: {INDEX}}}}}")),
        gate("read", format!("{{promptFlowRef: {{name: {INDEX}-reader}}}}")),
    )
}

pub fn wrong_documents_are_stopped_by_evaluations(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.apply(NAMESPACE, &readers_and_gates())?;
    cluster.apply(NAMESPACE, &index(&LIBRARY))?;
    cluster.run(async {
        let before: RagIndex = wait::ready(&client, NAMESPACE, INDEX).await?;
        let active = before.status.and_then(|status| status.active).context("an active generation")?.name;
        let flow = format!("{INDEX}-reader");
        wait::ready::<PromptFlow>(&client, NAMESPACE, &flow).await?;
        let wrong = LIBRARY
            .map(|(name, _)| (name, "Somebody copied the price list of a hardware shop here: screws, nails, paint."));
        cluster.apply(NAMESPACE, &index(&wrong))?;
        // Readers ask all the while: the old generation answers, whatever the Evaluations ask of the new one.
        let mut asked = 0;
        let after = loop {
            let answer = gateway.ask(&format!("{NAMESPACE}/{flow}"), "What makes the tides?", "reader").await?;
            ensure!(answer["dependencies"]["indexes"]["books"] == active.as_str(), "after {asked} answers: {answer}");
            ensure!(answer["answer"].as_str().is_some_and(|text| text.contains("The moon")), "{answer}");
            asked += 1;
            let index: RagIndex = kube::Api::namespaced(client.clone(), NAMESPACE).get(INDEX).await?;
            if index.status.as_ref().is_some_and(|status| !status.rejected_generations.is_empty()) {
                break index;
            }
            ensure!(asked < 20_000, "not rejected: {:?}", index.status);
        };
        let status = after.status.context("a status")?;
        let rejected = &status.rejected_generations[0];
        ensure!(rejected.reason == "EvaluationFailed", "{rejected:?}");
        let generation = rejected.name.clone().context("the generation's name")?;
        ensure!(status.active.as_ref().is_some_and(|now| now.name == active), "{:?}", status.active);
        ensure!(conditions::is_true(&status.conditions, "Ready"), "{:?}", status.conditions);
        ensure!(!conditions::is_true(&status.conditions, "GatesPassed"), "{:?}", status.conditions);
        // The verdict is about that very generation. The first one to say no ends it; the first generation had passed.
        let mut verdicts = Vec::new();
        for name in ["itself", "read"] {
            let gate: Evaluation =
                kube::Api::namespaced(client.clone(), NAMESPACE).get(&format!("{INDEX}-{name}")).await?;
            for run in gate.status.context("a status")?.runs {
                let parts = run.dependencies.iter().map(|part| &part.revision);
                let asked: Vec<String> = run.revisions.iter().map(|arm| &arm.revision).chain(parts).cloned().collect();
                verdicts.push((name, run.verdict, asked));
            }
        }
        let is = |verdict, revision: &String| {
            verdicts.iter().any(|(_, found, asked)| *found == Some(verdict) && asked.contains(revision))
        };
        ensure!(is(Verdict::Passed, &active) && is(Verdict::Failed, &generation), "{verdicts:#?}");
        Ok(())
    })
}
