//! Mistakes that people make: each gives an error that names the field, and what worked before goes on.

use anyhow::{Context, Result, ensure};
use llmops::api::{Evaluation, ModelDeployment, PromptFlow};

use crate::cluster::{Cluster, NAMESPACE};
use crate::{samples, wait};

fn message(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition], kind: &str) -> String {
    llmops::api::conditions::find(conditions, kind).map(|condition| condition.message.clone()).unwrap_or_default()
}

/// Applies a flow that must be refused or wait, and shows that the revision from before still answers.
fn flow_mistake(cluster: &Cluster, broken: &str, kind: &str, status: &str, named: &[&str]) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    let good = samples::short_flow("victim", 100);
    cluster.apply(NAMESPACE, &good)?;
    let before: PromptFlow = cluster.run(wait::ready(&client, NAMESPACE, "victim"))?;
    let revision = before.status.and_then(|status| status.stable_revision).context("a stable revision")?;
    cluster.apply(NAMESPACE, broken)?;
    cluster.run(async {
        let after: PromptFlow = wait::condition(&client, NAMESPACE, "victim", kind, status, None).await?;
        let text = message(&after.status.context("a status")?.conditions, kind);
        for part in named {
            ensure!(text.contains(part), "the message of {kind} does not name {part:?}: {text}");
        }
        let answer = gateway.ask("quickstart/victim", "Still there?", "someone").await?;
        ensure!(answer["revision"] == revision.as_str(), "served {} instead of {revision}", answer["revision"]);
        anyhow::Ok(())
    })?;
    cluster.apply(NAMESPACE, &good)?;
    cluster.run(wait::ready::<PromptFlow>(&client, NAMESPACE, "victim"))?;
    cluster.kubectl(&["delete", "promptflow", "victim", "-n", NAMESPACE])?;
    Ok(())
}

pub fn weights_that_sum_to_90_are_refused(cluster: &Cluster) -> Result<()> {
    let broken = samples::short_flow("split", 70).replace("weight: 30", "weight: 20");
    let error = cluster.apply(NAMESPACE, &broken).err().context("weights of 90 were admitted")?;
    ensure!(format!("{error:#}").contains("the weights of spec.variants must sum to 100"), "{error:#}");
    Ok(())
}

pub fn an_undefined_variable_is_named_and_the_last_good_revision_serves(cluster: &Cluster) -> Result<()> {
    let broken = samples::short_flow("victim", 100).replace("{{ inputs.question }}", "{{ inputs.quesion }}");
    flow_mistake(
        cluster,
        &broken,
        "Accepted",
        "False",
        &["spec.nodes[0].llm.messages[0].content", "inputs.quesion", "inputs.question"],
    )
}

pub fn an_unknown_reference_is_named_and_the_last_good_revision_serves(cluster: &Cluster) -> Result<()> {
    let broken = samples::short_flow("victim", 100).replace(&format!("name: {}", samples::MODEL), "name: nobody");
    flow_mistake(cluster, &broken, "RefsResolved", "False", &["spec.models.writer", "nobody"])
}

pub fn a_wrong_digest_is_named_and_the_old_model_serves(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    let server = samples::ModelServer::start(cluster)?;
    cluster.apply(NAMESPACE, &server.model("downloaded", &server.sha256))?;
    let before: ModelDeployment = cluster.run(wait::ready(&client, NAMESPACE, "downloaded"))?;
    let revision = before.status.and_then(|status| status.stable_revision).context("a stable revision")?;
    let wrong = "0".repeat(64);
    cluster.apply(NAMESPACE, &server.model("downloaded", &wrong))?;
    cluster.run(async {
        let after: ModelDeployment =
            wait::condition(&client, NAMESPACE, "downloaded", "ModelCached", "False", Some("DigestMismatch")).await?;
        let status = after.status.context("a status")?;
        let text = message(&status.conditions, "ModelCached");
        ensure!(text.contains("sha256") && text.contains(&server.sha256), "the message does not name what was found: {text}");
        ensure!(status.stable_revision.as_deref() == Some(&revision), "{status:#?}");
        let body = serde_json::json!({"model": "quickstart/downloaded", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]});
        gateway.post("/v1/chat/completions", &body).await?;
        anyhow::Ok(())
    })?;
    cluster.kubectl(&["delete", "modeldeployment", "downloaded", "-n", NAMESPACE])?;
    Ok(())
}

pub fn a_broken_line_of_a_dataset_is_named(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    cluster.apply(NAMESPACE, samples::BROKEN_DATASET)?;
    cluster.run(async {
        let evaluation: Evaluation =
            wait::condition(&client, NAMESPACE, "broken-dataset", "Accepted", "False", Some("InvalidDataset")).await?;
        let text = message(&evaluation.status.context("a status")?.conditions, "Accepted");
        for part in ["broken-cases", "cases.jsonl", "line 2"] {
            ensure!(text.contains(part), "the message does not name {part:?}: {text}");
        }
        anyhow::Ok(())
    })?;
    cluster.kubectl(&["delete", "evaluation/broken-dataset", "configmap/broken-cases", "-n", NAMESPACE])?;
    Ok(())
}
