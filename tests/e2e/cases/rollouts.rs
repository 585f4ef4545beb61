//! The road of a new revision: gates, a ramp among real readers, promotion or the way back. Nobody's request fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmops::api::rollout::RolloutPhase;
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex, conditions};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE, required};
use crate::readers::{FACTS, Readers, cases};
use crate::{samples, wait};

pub const FLOW: &str = "story";
/// A rollout, its evaluation and its ramp.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Right, and of a length that pleases some.
const GOOD: (&str, i32) = ("{{ inputs.question }} Answer in two sentences.", 24);
/// Knows nothing of the question.
const WRONG: (&str, i32) = ("Write a friendly greeting to a visitor.", 24);
/// Right often enough for the gate, and longer than anybody likes.
const LONG: (&str, i32) = ("{{ inputs.question }} Explain in detail with the history and many examples.", 48);
/// Right, and short.
pub const SHORT: (&str, i32) = ("{{ inputs.question }} Answer in one short sentence.", 12);

fn flow(prompt: (&str, i32)) -> String {
    ramped(prompt, "{weight: 50, minUnits: 20}")
}

/// The flow with a ramp of these steps.
pub fn ramped((prompt, tokens): (&str, i32), steps: &str) -> String {
    let rest = format!(
        r#"  experiment:
    goal: {{metric: Thumbs}}
    guardrails: [{{metric: ErrorRate, maxRegression: "0.05"}}]
    minUnits: 20
  rollout:
    gates: [{{evaluationRef: {{name: story-gate}}}}]
    steps: [{steps}]
"#
    );
    let parameters = format!(r#"maxTokens: {tokens}, temperature: "0", seed: 7"#);
    samples::OneCall { name: FLOW, prompt, parameters: &parameters, mark: "", rest: &rest }.yaml()
}

fn gate() -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: story-cases}}
data:
  cases.jsonl: |
{cases}
---
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {{name: story-gate}}
spec:
  target: {{promptFlowRef: {{name: {FLOW}}}}}
  dataset: {{configMapRef: {{name: story-cases, key: cases.jsonl}}}}
  metrics: [{{name: fact, type: Contains, ignoreCase: true}}]
  gates: [{{metric: fact, min: "0.35", bound: Mean}}]
"#,
        cases = cases("    ", ""),
    )
}

pub async fn revision_of(cluster: &Cluster) -> Result<String> {
    let flow: PromptFlow = kube::Api::namespaced(cluster.client(), NAMESPACE).get(FLOW).await?;
    flow.status.and_then(|status| status.stable_revision).context("a stable revision")
}

/// Commits a prompt and waits until its rollout has ended in one way or the other.
pub async fn commit(cluster: &Cluster, prompt: (&str, i32), end: RolloutPhase) -> Result<PromptFlow> {
    cluster.apply(NAMESPACE, &flow(prompt))?;
    wait::until(&cluster.client(), NAMESPACE, FLOW, LIMIT, &format!("{end:?}"), |flow: &PromptFlow| {
        flow.status.as_ref().is_some_and(|status| {
            status.observed_generation == flow.metadata.generation
                && status.rollout.as_ref().is_some_and(|rollout| rollout.phase == end)
        })
    })
    .await
}

/// What a refused revision leaves: the old one serves, the reason is remembered, and health says so while Git still asks for it.
fn refused(flow: &PromptFlow, stable: &str, reason: &str) -> Result<()> {
    let status = flow.status.as_ref().context("a status")?;
    ensure!(status.traffic.iter().all(|arm| arm.revision == stable), "{:?}", status.traffic);
    ensure!(status.traffic.iter().map(|arm| arm.weight).sum::<i32>() == 100, "{:?}", status.traffic);
    let rejected = status.rejected_revisions.first().context("a rejected revision")?;
    ensure!(rejected.reason == reason, "{rejected:?}");
    ensure!(conditions::is_true(&status.conditions, "Stalled"), "{:?}", status.conditions);
    Ok(())
}

pub fn the_first_revision_serves_after_its_gate(cluster: &Cluster) -> Result<()> {
    cluster.apply(NAMESPACE, &gate())?;
    cluster.run(async {
        let flow = commit(cluster, GOOD, RolloutPhase::Promoted).await?;
        let status = flow.status.context("a status")?;
        ensure!(status.traffic.len() == 1 && status.traffic[0].weight == 100, "{:?}", status.traffic);
        let gate: Evaluation = kube::Api::namespaced(cluster.client(), NAMESPACE).get("story-gate").await?;
        let run = gate.status.context("a status")?.runs.into_iter().next().context("a run")?;
        ensure!(run.revisions.iter().any(|arm| Some(&arm.revision) == status.stable_revision.as_ref()), "{run:?}");
        ensure!(run.dependencies.iter().any(|on| on.name == samples::MODEL), "{:?}", run.dependencies);
        wait::ready::<PromptFlow>(&cluster.client(), NAMESPACE, FLOW).await?;
        Ok(())
    })
}

pub fn a_worse_prompt_is_caught_by_its_gate(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let stable = revision_of(cluster).await?;
        let readers = Readers::start(&gateway, &format!("{NAMESPACE}/{FLOW}"), 10_000);
        let flow = commit(cluster, WRONG, RolloutPhase::RolledBack).await?;
        readers.finish().await?;
        refused(&flow, &stable, "EvaluationFailed")
    })
}

pub fn a_prompt_with_worse_feedback_is_rolled_back_in_its_ramp(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let stable = revision_of(cluster).await?;
        let readers = Readers::start(&gateway, &format!("{NAMESPACE}/{FLOW}"), 20_000);
        let flow = commit(cluster, LONG, RolloutPhase::RolledBack).await?;
        readers.finish().await?;
        refused(&flow, &stable, "MetricRegression")?;
        let status = flow.status.context("a status")?;
        let message = &status.rejected_revisions.first().context("a rejected revision")?.message;
        ensure!(message.contains("thumbs"), "the reason does not say what got worse: {message}");
        Ok(())
    })
}

pub fn a_better_prompt_is_promoted(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let stable = revision_of(cluster).await?;
        let readers = Readers::start(&gateway, &format!("{NAMESPACE}/{FLOW}"), 30_000);
        let flow = commit(cluster, SHORT, RolloutPhase::Promoted).await?;
        readers.finish().await?;
        let status = flow.status.context("a status")?;
        ensure!(status.stable_revision.as_ref() != Some(&stable), "{stable} still serves");
        ensure!(status.traffic.len() == 1 && status.traffic[0].weight == 100, "{:?}", status.traffic);
        wait::ready::<PromptFlow>(&cluster.client(), NAMESPACE, FLOW).await?;
        Ok(())
    })
}

/// The model's own gate: the same facts, asked without a flow.
fn model_gate(model: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {model}-cases}}
data:
  cases.jsonl: |
{cases}
---
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {{name: {model}-gate}}
spec:
  target: {{modelDeploymentRef: {{name: {model}}}}}
  dataset: {{configMapRef: {{name: {model}-cases, key: cases.jsonl}}}}
  metrics: [{{name: fact, type: Contains, ignoreCase: true}}]
  gates: [{{metric: fact, min: "0.35", bound: Mean}}]
"#,
        cases = cases("    ", " Answer in two sentences."),
    )
}

pub fn a_bad_model_file_is_stopped_by_its_gate(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    let good = std::fs::read(required("LLMOPS_MODEL_GGUF")?)?;
    // It loads and answers, and has forgotten what it knew: the last third of its weights is gone.
    let mut bad = good.clone();
    let from = bad.len() / 3 * 2;
    bad[from..].fill(0);
    let good = samples::ModelServer::serve(cluster, good)?;
    let bad = samples::ModelServer::serve(cluster, bad)?;
    let gated = |server: &samples::ModelServer| {
        let gates = "  rollout: {gates: [{evaluationRef: {name: gated-gate}}]}\n";
        format!("{}{gates}", server.model("gated", &server.sha256))
    };
    cluster.apply(NAMESPACE, &model_gate("gated"))?;
    cluster.apply(NAMESPACE, &gated(&good))?;
    cluster.run(async {
        let before: ModelDeployment =
            wait::until(&client, NAMESPACE, "gated", LIMIT, "ready", |model: &ModelDeployment| {
                model.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, "Ready"))
            })
            .await?;
        let stable = before.status.and_then(|status| status.stable_revision).context("a stable revision")?;
        let body = json!({"model": format!("{NAMESPACE}/gated"), "max_tokens": 24, "temperature": 0, "seed": 7,
            "messages": [{"role": "user", "content": format!("{} Answer in two sentences.", FACTS[1].0)}]});
        cluster.apply(NAMESPACE, &gated(&bad))?;
        let mut asked = 0;
        // Asked all the while: the old model answers.
        let after: ModelDeployment = loop {
            let answer = gateway.post("/v1/chat/completions", &body).await?;
            let text = answer["choices"][0]["message"]["content"].as_str().context("an answer")?;
            ensure!(text.contains(FACTS[1].1), "after {asked} answers, another model answers: {text}");
            asked += 1;
            let model: ModelDeployment = kube::Api::namespaced(client.clone(), NAMESPACE).get("gated").await?;
            let rejected = model.status.as_ref().is_some_and(|status| !status.rejected_revisions.is_empty());
            if rejected {
                break model;
            }
            ensure!(asked < 2_000, "not rejected: {:?}", model.status);
        };
        let status = after.status.context("a status")?;
        ensure!(status.stable_revision.as_ref() == Some(&stable), "{:?}", status.stable_revision);
        ensure!(status.rejected_revisions[0].reason == "EvaluationFailed", "{:?}", status.rejected_revisions);
        ensure!(status.traffic.iter().all(|arm| arm.revision == stable), "{:?}", status.traffic);
        Ok(())
    })
}

/// An index of a few documents, with questions that only these answer.
fn index(documents: &[(&str, &str)]) -> String {
    let data: String = documents.iter().map(|(name, text)| format!("  {name}: {}\n", json!(text))).collect();
    let golden: String = LIBRARY
        .iter()
        .map(|(name, text)| {
            let question = json!({"id": name, "query": text.split('.').next(), "relevant": [{"uri": name}]});
            format!("    {question}\n")
        })
        .collect();
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: library}}
data:
{data}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: library-golden}}
data:
  golden.jsonl: |
{golden}
---
apiVersion: llmops.dev/v1alpha1
kind: RagIndex
metadata: {{name: library}}
spec:
  sources: [{{name: books, configMap: {{name: library}}}}]
  embedding: {{builtin: AllMiniLmL6V2}}
  gates:
    golden: {{configMapRef: {{name: library-golden, key: golden.jsonl}}, minQueries: 3}}
    metrics:
    - {{name: recall, k: 1, min: "0.9"}}
    - {{name: ndcg, k: 3, min: "0.8", maxRegression: "0.05"}}
"#
    )
}

pub const LIBRARY: [(&str, &str); 4] = [
    ("bees.md", "Bees carry pollen between flowers. A hive has one queen."),
    ("bridges.md", "Suspension bridges hang from cables of steel. Their towers carry the load."),
    ("tides.md", "The moon pulls the sea and makes the tides. There are two a day."),
    ("yeast.md", "Yeast makes dough rise by its gas. Warmth helps."),
];

pub fn an_index_of_the_wrong_documents_is_stopped_by_its_gate(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.apply(NAMESPACE, &index(&LIBRARY))?;
    cluster.run(async {
        let before: RagIndex = wait::ready(&client, NAMESPACE, "library").await?;
        let active = before.status.and_then(|status| status.active).context("an active generation")?.name;
        let wrong = LIBRARY
            .map(|(name, _)| (name, "Somebody copied the price list of a hardware shop here: screws, nails, paint."));
        cluster.apply(NAMESPACE, &index(&wrong))?;
        let after: RagIndex = wait::until(&client, NAMESPACE, "library", LIMIT, "rejected", |index: &RagIndex| {
            index.status.as_ref().is_some_and(|status| !status.rejected_generations.is_empty())
        })
        .await?;
        let status = after.status.context("a status")?;
        ensure!(status.active.as_ref().is_some_and(|now| now.name == active), "{:?}", status.active);
        ensure!(conditions::is_true(&status.conditions, "Ready"), "{:?}", status.conditions);
        ensure!(!conditions::is_true(&status.conditions, "QualityPassed"), "{:?}", status.conditions);
        let found = gateway
            .post(
                &format!("/v1/indexes/{NAMESPACE}/library/search"),
                &json!({"query": "What makes the tides?", "topK": 1}),
            )
            .await?;
        ensure!(found["generation"] == active.as_str() && found["results"][0]["uri"] == "tides.md", "{found}");
        Ok(())
    })
}
