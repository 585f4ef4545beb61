//! What users see: the samples come up, answers are grounded, split and judged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};
use serde_json::json;
use statrs::distribution::{ChiSquared, ContinuousCDF};

use crate::cluster::{Cluster, NAMESPACE};
use crate::{samples, wait};

pub fn the_samples_become_ready(cluster: &Cluster) -> Result<()> {
    samples::apply(cluster)?;
    let client = cluster.client();
    cluster.run(async {
        wait::ready::<ModelDeployment>(&client, NAMESPACE, samples::MODEL).await?;
        wait::ready::<RagIndex>(&client, NAMESPACE, samples::INDEX).await?;
        wait::ready::<PromptFlow>(&client, NAMESPACE, samples::FLOW).await?;
        wait::ready::<Evaluation>(&client, NAMESPACE, samples::EVALUATION).await?;
        Ok(())
    })
}

pub fn a_stranger_is_refused(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        for path in ["/v1/models", "/v1/interactions/quickstart/ask"] {
            let status = gateway.anonymous(path).send().await?.status();
            ensure!(status == 401, "{path} without a key: {status}");
        }
        let status = gateway.anonymous("/v1/models").bearer_auth("llmops_wrong").send().await?.status();
        ensure!(status == 401, "a wrong key: {status}");
        // A pin needs a Kubernetes identity with permission; an API key is none.
        let status = gateway
            .request(reqwest::Method::POST, &format!("/v1/flows/{NAMESPACE}/{}", samples::FLOW))
            .header("llmops-pin", "flow=0000000000")
            .json(&json!({"inputs": {"question": "Who may pin?"}}))
            .send()
            .await?
            .status();
        ensure!(status == 403, "a pin with an API key: {status}");
        Ok(())
    })
}

/// Pearson's chi-square test of counts against shares: the probability of a split at least this far off.
fn split_p_value(counts: &BTreeMap<String, u64>, weights: &BTreeMap<String, i32>) -> Result<f64> {
    let total: u64 = counts.values().sum();
    let statistic: f64 = weights
        .iter()
        .map(|(variant, weight)| {
            let expected = total as f64 * f64::from(*weight) / 100.0;
            let seen = counts.get(variant).copied().unwrap_or(0) as f64;
            (seen - expected).powi(2) / expected
        })
        .sum();
    Ok(1.0 - ChiSquared::new((weights.len() - 1) as f64)?.cdf(statistic))
}

pub fn the_split_matches_the_weights_and_sticks(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    // One token an answer: the split is tested, not the prose.
    cluster.apply(NAMESPACE, &samples::short_flow("split", 70))?;
    cluster.run(async {
        let flow: PromptFlow = wait::ready(&client, NAMESPACE, "split").await?;
        let weights: BTreeMap<String, i32> =
            flow.status.context("a status")?.traffic.into_iter().map(|arm| (arm.variant, arm.weight)).collect();
        let mut arms = BTreeMap::new();
        for user in 0..200 {
            let answer = gateway.ask("quickstart/split", "Hello?", &format!("user-{user}")).await?;
            arms.insert(user, answer["variant"].as_str().context("a variant")?.to_owned());
        }
        let mut counts = BTreeMap::new();
        for variant in arms.values() {
            *counts.entry(variant.clone()).or_insert(0) += 1;
        }
        let p = split_p_value(&counts, &weights)?;
        ensure!(p > 0.001, "the split {counts:?} does not match the weights {weights:?}: p = {p}");
        for user in (0..200).step_by(20) {
            let answer = gateway.ask("quickstart/split", "Hello again?", &format!("user-{user}")).await?;
            ensure!(
                answer["variant"] == json!(arms[&user]),
                "user-{user} moved from {} to {}",
                arms[&user],
                answer["variant"]
            );
        }
        Ok(())
    })?;
    cluster.kubectl(&["delete", "promptflow", "split", "-n", NAMESPACE])?;
    Ok(())
}

pub fn every_source_of_a_grounded_answer_is_in_the_corpus(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let corpus = samples::corpus(cluster).await?;
        for (at, question) in samples::questions()?.into_iter().take(8).enumerate() {
            let answer =
                gateway.ask(&format!("{NAMESPACE}/{}", samples::FLOW), &question, &format!("reader-{at}")).await?;
            ensure!(answer["answer"].as_str().is_some_and(|text| !text.trim().is_empty()), "no answer: {answer}");
            let sources = answer["sources"].as_array().context("sources")?;
            ensure!(!sources.is_empty(), "no sources: {answer}");
            for source in sources {
                let uri = source["uri"].as_str().context("a uri")?;
                ensure!(corpus.contains(uri), "{uri} is not in the corpus {corpus:?}");
            }
        }
        Ok(())
    })
}

pub fn streams_and_openai_clients_work(cluster: &Cluster) -> Result<()> {
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let models = gateway.get("/v1/models").await?;
        let names: BTreeSet<&str> = models["data"].as_array().context("data")?.iter().filter_map(|model| model["id"].as_str()).collect();
        let model = format!("{NAMESPACE}/{}", samples::MODEL);
        let flow = format!("{NAMESPACE}/{}", samples::FLOW);
        ensure!(names.contains(model.as_str()) && names.contains(flow.as_str()), "{names:?}");
        for name in [&model, &flow] {
            let body = json!({"model": name, "max_tokens": 16, "messages": [{"role": "user", "content": "What is a RagIndex?"}]});
            let answer = gateway.post("/v1/chat/completions", &body).await?;
            ensure!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
            ensure!(answer["usage"]["completion_tokens"].as_i64().is_some_and(|tokens| tokens > 0), "{answer}");
            let mut streamed = body.clone();
            streamed["stream"] = json!(true);
            let text = gateway.request(reqwest::Method::POST, "/v1/chat/completions").json(&streamed).send().await?.text().await?;
            ensure!(text.contains("data: ") && text.trim_end().ends_with("data: [DONE]"), "{text}");
        }
        let text = gateway
            .request(reqwest::Method::POST, &format!("/v1/flows/{flow}"))
            .json(&json!({"inputs": {"question": "What is a PromptFlow?"}, "stream": true}))
            .send()
            .await?
            .text()
            .await?;
        ensure!(text.contains("event: delta") && text.contains("event: done"), "{text}");
        // An answer can be judged by its reader.
        let answer = gateway.ask(&flow, "What is an Evaluation?", "judge").await?;
        let feedback = json!({"requestId": answer["requestId"], "thumbs": "up", "comment": "good"});
        let response = gateway.request(reqwest::Method::POST, "/v1/feedback").json(&feedback).send().await?;
        ensure!(response.status() == 202, "feedback: {}", response.status());
        let splits = gateway.get(&format!("/v1/splits/{flow}")).await?;
        let judged: i64 = splits["variants"].as_array().context("variants")?.iter().filter_map(|v| v["feedback"]["count"].as_i64()).sum();
        ensure!(judged == 1, "{splits}");
        Ok(())
    })
}

pub fn the_evaluation_gives_a_verdict_and_reports(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let gateway = cluster.gateway()?;
    cluster.run(async {
        let evaluation: Evaluation =
            wait::condition(&client, NAMESPACE, samples::EVALUATION, "Complete", "True", None).await?;
        let run = evaluation.status.context("a status")?.runs.into_iter().next().context("a run")?;
        ensure!(run.verdict.is_some() && run.errors == 0 && run.cases > 0, "{run:#?}");
        let variants: BTreeSet<&str> = run.metrics.iter().map(|metric| metric.variant.as_str()).collect();
        ensure!(variants.len() == 2, "both variants are judged: {variants:?}");
        let path = format!("/v1/reports/{NAMESPACE}/{}/{}", samples::EVALUATION, run.name);
        for (suffix, sign) in [("", "<html"), (".json", "{"), (".xml", "<testsuites")] {
            let response = gateway.request(reqwest::Method::GET, &format!("{path}{suffix}")).send().await?;
            ensure!(response.status().is_success(), "{path}{suffix}: {}", response.status());
            let text = response.text().await?;
            ensure!(text.contains(sign), "{path}{suffix}: {text}");
        }
        Ok(())
    })
}
