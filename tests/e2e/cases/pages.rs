//! The dashboard in Chromium over what the tests before left: rollouts that went on and ended, by traffic and feedback that were real.
//!
//! What the pages look like is saved to `target/tmp/e2e/`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmops::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};

use super::indexes::INDEX;
use super::rollouts::{self, FLOW, LIMIT, SHORT};
use crate::chromium::{Chromium, Dom, View};
use crate::cluster::{Cluster, NAMESPACE};
use crate::gateway::Gateway;
use crate::readers::Readers;
use crate::{samples, wait};

/// As short as what serves, in other words.
const ALIKE: (&str, i32) = ("{{ inputs.question }} Please answer in one short sentence.", 12);
/// Units that a plot worth looking at takes.
const UNITS: i64 = 400;
/// Every page at desk and phone, light and dark, with scripts and without.
const VIEWS: [View; 4] = [
    View { width: 1280, dark: false, scripts: true },
    View { width: 1280, dark: true, scripts: false },
    View { width: 390, dark: false, scripts: false },
    View { width: 390, dark: true, scripts: true },
];

struct Pages {
    browser: Chromium,
    gateway: Gateway,
    folder: PathBuf,
}

impl Pages {
    fn open(cluster: &Cluster) -> Result<Self> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("e2e");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { browser: Chromium::start()?, gateway: cluster.gateway()?, folder })
    }

    /// Looks at a page in every view: it can be read, and says this. Gives back what the desk shows.
    fn says(&mut self, name: &str, path: &str, words: &[&str]) -> Result<Dom> {
        let mut first = None;
        for view in VIEWS {
            let file =
                self.folder.join(format!("{name}-{}-{}.png", view.width, if view.dark { "dark" } else { "light" }));
            let url = format!("{}{path}", self.gateway.url);
            let dom = self.browser.open(&url, self.gateway.key(), view, Some(&file))?;
            let context = || format!("{path} in {view:?}");
            ensure!(dom.status == 200, "{}: answered {}", context(), dom.status);
            dom.is_readable(view.width).with_context(context)?;
            for words in words {
                ensure!(dom.text.contains(words), "{}: does not say {words:?}; it says:\n{}", context(), dom.text);
            }
            first.get_or_insert(dom);
        }
        first.context("no view")
    }

    /// The same for an object's page, with words from its status. Status and page must be of the same moment, so it is done again when the
    /// object changed meanwhile.
    fn tells<K>(
        &mut self,
        cluster: &Cluster,
        name: &str,
        object: &str,
        path: &str,
        mut words: impl FnMut(&K) -> Result<Vec<String>>,
    ) -> Result<Dom>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: kube::Api<K> = kube::Api::namespaced(cluster.client(), NAMESPACE);
        for _ in 0..5 {
            let before = cluster.run(api.get(object))?;
            let words = words(&before)?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let seen = self.says(name, path, &words);
            let after = cluster.run(api.get(object))?;
            if before.meta().resource_version == after.meta().resource_version {
                return seen;
            }
        }
        anyhow::bail!("{object} does not come to rest")
    }
}

fn page(kind: &str, name: &str) -> String {
    format!("/dashboard/{kind}/{NAMESPACE}/{name}")
}

/// Differences that the plot for the desk draws: one number pair each.
fn plotted(dom: &Dom) -> Result<usize> {
    let plot = dom.html.split("plot wide").nth(1).context("a plot")?;
    let points = plot.split("<polyline class=\"line\" points=\"").nth(1).and_then(|rest| rest.split('"').next());
    let points: Vec<&str> = points.context("a line")?.split_whitespace().collect();
    for point in &points {
        let numbers: Vec<f64> = point.split(',').map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers.len() == 2 && numbers.iter().all(|number| (0.0..=1000.0).contains(number)), "{point}");
    }
    Ok(points.len())
}

pub fn a_ramp_is_seen_while_it_goes_on(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let mut pages = Pages::open(cluster)?;
    let stable = cluster.run(rollouts::revision_of(cluster))?;
    // The second step asks for more units than there will ever be.
    cluster
        .apply(NAMESPACE, &rollouts::ramped(ALIKE, "{weight: 30, minUnits: 10}, {weight: 60, minUnits: 1000000}"))?;
    let flow: PromptFlow = cluster.run(async {
        let readers = Readers::start(&pages.gateway, &format!("{NAMESPACE}/{FLOW}"), 40_000);
        let seen = wait::until(&client, NAMESPACE, FLOW, LIMIT, "measured at its second step", |flow: &PromptFlow| {
            flow.status.as_ref().is_some_and(|status| {
                let at_second = status.rollout.as_ref().is_some_and(|rollout| rollout.step == Some(1));
                at_second && status.experiment.as_ref().is_some_and(|told| told.units >= UNITS && told.step == Some(1))
            })
        })
        .await?;
        readers.finish().await?;
        anyhow::Ok(seen)
    })?;
    let candidate = flow.status.and_then(|status| status.candidate_revision).context("a candidate")?;
    let seen = pages.tells(cluster, "flow-in-its-ramp", FLOW, &page("flows", FLOW), |flow: &PromptFlow| {
        let status = flow.status.as_ref().context("a status")?;
        let told = status.experiment.as_ref().context("an experiment")?;
        let mut words: Vec<String> = [
            "Progressing",
            "What serves",
            "60 %",
            "40 %",
            "candidate",
            "stable",
            "at least 1,000,000 units",
            "story-gate",
            "Thumbs up",
            "Error rate",
            "as asked for",
            "Interval over time",
            "Recorded answers by arm",
            // What happened before, in the tests of rollouts.
            "Earlier rollouts",
            "MetricRegression",
            "EvaluationFailed",
        ]
        .map(str::to_owned)
        .to_vec();
        words.extend([stable.clone(), candidate.clone()]);
        // The verdicts' sentences, as in the status.
        words.extend(told.metrics.iter().map(|metric| metric.message.clone()));
        Ok(words)
    })?;
    ensure!(plotted(&seen)? >= 8, "the plot has {} points", plotted(&seen)?);
    ensure!(seen.text.contains(" measurements"), "does not count the measurements:\n{}", seen.text);
    pages.says(
        "overview-in-a-ramp",
        "/",
        &["story", "Progressing", "need attention", "smollm2", "handbook", "catalogue"],
    )?;
    // Git asks again for what serves.
    cluster.run(async {
        cluster.apply(NAMESPACE, &rollouts::ramped(SHORT, "{weight: 50, minUnits: 20}"))?;
        let flow: PromptFlow = wait::ready(&client, NAMESPACE, FLOW).await?;
        let status = flow.status.context("a status")?;
        ensure!(status.stable_revision.as_ref() == Some(&stable), "{:?}", status.stable_revision);
        Ok(())
    })?;
    pages.says("flow-that-serves", &page("flows", FLOW), &["Serving", "100 %", &stable, "Recorded answers by arm"])?;
    Ok(())
}

pub fn what_was_refused_is_told_with_its_reason(cluster: &Cluster) -> Result<()> {
    let mut pages = Pages::open(cluster)?;
    let mut report = None;
    pages.tells(cluster, "evaluation", "story-gate", &page("evaluations", "story-gate"), |gate: &Evaluation| {
        let status = gate.status.as_ref().context("a status")?;
        let mut words =
            ["Latest verdict", "fact", "Passed", "Failed", "mean ≥ 0.35", "Runs"].map(str::to_owned).to_vec();
        let latest = status.runs.first().context("a run")?;
        report.get_or_insert(format!("/v1/reports/{NAMESPACE}/story-gate/{}", latest.name));
        words.extend(latest.metrics.iter().map(|metric| metric.variant.clone()));
        words.extend(status.runs.iter().map(|run| run.name.clone()));
        Ok(words)
    })?;
    let report = report.context("a report")?;
    let dom = pages.browser.open(
        &format!("{}{report}", pages.gateway.url),
        pages.gateway.key(),
        VIEWS[0],
        Some(&pages.folder.join("report-1280-light.png")),
    )?;
    ensure!(dom.status == 200 && dom.text.contains("fact-0"), "{report}: {}: {}", dom.status, dom.text);
    pages.tells(
        cluster,
        "model-with-a-refused-file",
        "gated",
        &page("models", "gated"),
        |model: &ModelDeployment| {
            let status = model.status.as_ref().context("a status")?;
            let refused = status.rejected_revisions.first().context("a rejected revision")?;
            let stable = status.stable_revision.clone().context("a stable revision")?;
            Ok(vec![
                "Rolled back".into(),
                "EvaluationFailed".into(),
                "gated-gate".into(),
                stable,
                refused.revision.clone(),
            ])
        },
    )?;
    for (file, index, reason) in [
        ("index-with-wrong-documents", "library", "recall"),
        ("index-refused-by-evaluations", INDEX, "EvaluationFailed"),
    ] {
        pages.tells(cluster, file, index, &page("indexes", index), |index: &RagIndex| {
            let status = index.status.as_ref().context("a status")?;
            let refused = status.rejected_generations.first().context("a rejected generation")?;
            let active = status.active.as_ref().context("an active generation")?;
            let mut words = vec!["Degraded".into(), "Failed".into(), "Rejected generations".into(), reason.into()];
            words.extend([active.name.clone(), refused.reason.clone()]);
            Ok(words)
        })?;
    }
    pages.says("flow-with-variants", &page("flows", samples::FLOW), &["control", "concise"])?;
    pages.says("model-that-serves", &page("models", samples::MODEL), &["Ready endpoints", "100 %"])?;
    pages.says("index-that-serves", &page("indexes", samples::INDEX), &["Documents"])?;
    pages.says("overview", "/", &["gated", "library", "story-gate"])?;
    for object in [
        "promptflow/story",
        "promptflow/catalogue-reader",
        "modeldeployment/gated",
        "ragindex/library",
        "ragindex/catalogue",
        "evaluation/story-gate",
        "evaluation/gated-gate",
        "evaluation/catalogue-itself",
        "evaluation/catalogue-read",
        "configmap/story-cases",
        "configmap/gated-cases",
        "configmap/catalogue-cases",
        "configmap/catalogue",
        "configmap/library",
        "configmap/library-golden",
    ] {
        cluster.kubectl(&["delete", "-n", NAMESPACE, object])?;
    }
    // Nothing of them is left to be looked at.
    cluster.run(wait::eventually(Duration::from_secs(60), "the flow left the dashboard", || async {
        let path = page("flows", FLOW);
        let answer = pages.gateway.request(reqwest::Method::GET, &path).send().await?;
        Ok((answer.status() == 404).then_some(()))
    }))?;
    Ok(())
}
