//! RagIndexes.

use llmops::api::revision::{canonical, short};
use llmops::indexer::job::{BuildPlan, BuildReport, PLAN_ENV};
use serde_json::{Value, json};

use crate::cluster::containers::Run;
use crate::cluster::{holds, text};
use crate::evaluation;
use crate::scenario::Story;
use crate::world::World;

/// The stories of this kind.
pub const STORIES: &[&Story] = &[&LIFE, &HEAL, &GATES];

const DOCS: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: docs}, data: {a.md: 'All good.'}}";

const INDEX: &str = "
apiVersion: llmops.dev/v1alpha1
kind: RagIndex
metadata: {name: handbook}
spec:
  sources: [{name: docs, configMap: {name: docs}}]
";

/// What a builder would report of a plan: the same content has the same name, and bad documents do not pass.
pub fn build(pod: &Value, documents: &str) -> Option<Run> {
    let variables = pod.pointer("/spec/containers/0/env")?.as_array()?;
    let plan = variables.iter().find(|variable| variable["name"] == PLAN_ENV)?["value"].as_str()?;
    let plan: BuildPlan = serde_json::from_str(plan).expect("the plan is one");
    let inputs = plan.inputs(None).expect("a plan has a hash");
    let passed = !documents.contains("bad");
    let report = BuildReport {
        generation: Some(format!("{}-{}", plan.index, short(&inputs, 10))),
        digest: Some(format!("sha256:{}", short(&canonical(&inputs).ok()?, 64))),
        passed,
        reason: (!passed).then(|| "QualityBelowGate".to_owned()),
        message: if passed { String::new() } else { "recall is below spec.gates".to_owned() },
        documents: serde_json::from_value(json!({
            "scanned": 1, "added": 1, "modified": 0, "deleted": 0, "unchanged": 0, "skipped": 0, "failed": 0,
        }))
        .ok()?,
        failures: Vec::new(),
        chunks: 1,
        bytes: 10,
        embedding: None,
        quality: Vec::new(),
    };
    Some(Run::succeeds(serde_json::to_string(&report).ok()?))
}

/// Builders that read the ConfigMap `docs`; the first attempt of each Job fails when asked for.
pub fn with_builders(world: &World, stumble: bool) {
    let server = world.server.clone();
    world.pods(move |pod, _, _| {
        let docs = server.get("ConfigMap", "default", "docs").map(|map| map["data"].to_string()).unwrap_or_default();
        let run = build(pod, &docs)?;
        let job = text(pod, "/metadata/labels/job-name");
        let earlier = server.list("Pod").iter().filter(|other| text(other, "/metadata/labels/job-name") == job).count();
        Some(if stumble && earlier == 1 { Run::fails(1, "") } else { run })
    });
}

fn index(world: &World) -> Value {
    world.get("RagIndex", "handbook").expect("the index is there").as_ref().clone()
}

fn assert_ready(world: &World) {
    let index = index(world);
    assert!(holds(&index, "Ready"), "{}\n{}", index["status"], world.timeline());
    assert!(!holds(&index, "Reconciling") && !holds(&index, "Stalled"), "{}", index["status"]);
    assert_eq!(index["status"]["observedGeneration"], index["metadata"]["generation"]);
}

fn active(world: &World) -> String {
    text(&index(world), "/status/active/name").to_owned()
}

/// Waits for its documents, is built, follows a change, keeps what serves when a change does not pass.
const LIFE: Story = Story {
    name: "index.life",
    remembers: Some("RagIndex"),
    setup: |world| {
        with_builders(world, true);
        world.apply(INDEX);
    },
    steps: &[
        |world| {
            assert!(!holds(&index(world), "Ready"));
            world.apply(DOCS);
        },
        |world| {
            assert_ready(world);
            world.apply(&DOCS.replace("All good.", "Better."));
        },
        |world| {
            assert_ready(world);
            world.apply(&DOCS.replace("All good.", "A bad change."));
        },
        |world| {
            let index = index(world);
            assert!(holds(&index, "Ready"), "{}", index["status"]);
            assert_eq!(index["status"]["rejectedGenerations"][0]["reason"], "QualityBelowGate", "{}", index["status"]);
            assert!(!active(world).is_empty());
            world.apply(&DOCS.replace("All good.", "Good again."));
        },
        |world| {
            assert_ready(world);
            assert_eq!(world.server.list("Deployment").len(), 1, "{}", world.timeline());
        },
    ],
};

/// Children are deleted and come back; then the index goes with all of them.
const HEAL: Story = Story {
    name: "index.heal",
    remembers: None,
    setup: |world| {
        with_builders(world, false);
        world.apply(DOCS);
        world.apply(INDEX);
    },
    steps: &[
        |world| {
            assert_ready(world);
            for kind in ["Deployment", "Service", "Job"] {
                for child in world.server.list(kind) {
                    world.server.delete("stranger", &child, &json!({"propagationPolicy": "Background"}));
                }
            }
        },
        |world| {
            assert_ready(world);
            assert_eq!(world.server.list("Service").len(), 1);
            world.delete("RagIndex", "handbook");
        },
        |world| {
            for kind in ["Deployment", "Service", "Job", "PersistentVolumeClaim", "ControllerRevision", "Pod"] {
                assert_eq!(world.server.list(kind).len(), 0, "{kind}");
            }
        },
    ],
};

const CASES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: cases}
data: {cases.jsonl: '{\"id\": \"1\", \"question\": \"What?\", \"expected\": \"That.\"}'}
";

const QUALITY: &str = "
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {name: quality}
spec:
  target: {ragIndexRef: {name: handbook}}
  dataset: {configMapRef: {name: cases, key: cases.jsonl}}
  metrics: [{name: fact, type: Contains}]
  gates: [{metric: fact, min: '0.5', bound: Mean}]
";

/// The first generation is judged before it serves; one of the wrong documents is stopped by the gate; a good one serves.
const GATES: Story = Story {
    name: "index.gates",
    remembers: Some("RagIndex"),
    setup: |world| {
        let server = world.server.clone();
        world.pods(move |pod, _, _| {
            let docs =
                server.get("ConfigMap", "default", "docs").map(|map| map["data"].to_string()).unwrap_or_default();
            // Builds pass whatever the documents say; only who reads the answers sees that they are the wrong ones.
            let candidate = server.get("RagIndex", "default", "handbook");
            let candidate =
                candidate.map(|index| text(&index, "/status/candidate/name").to_owned()).unwrap_or_default();
            let plan = text(pod, "/spec/containers/0/env/0/value").to_owned();
            let is_about_it = !candidate.is_empty() && plan.contains(&candidate);
            let wrong = is_about_it && docs.contains("wrong");
            build_any(pod, &docs).or_else(|| evaluation::judge(pod, if wrong { "worse" } else { "" }))
        });
        world.apply(DOCS);
        world.apply(CASES);
        world.apply(QUALITY);
        world.apply(&format!("{INDEX}  gates: {{evaluations: [{{evaluationRef: {{name: quality}}}}]}}\n"));
    },
    steps: &[
        |world| {
            assert_ready(world);
            assert!(holds(&index(world), "GatesPassed"));
            world.apply(&DOCS.replace("All good.", "The wrong documents."));
        },
        |world| {
            let index = index(world);
            assert!(holds(&index, "Ready") && holds(&index, "Stalled"), "{}", index["status"]);
            assert_eq!(index["status"]["rejectedGenerations"][0]["reason"], "EvaluationFailed", "{}", index["status"]);
            assert_ne!(index["status"]["rejectedGenerations"][0]["name"], index["status"]["active"]["name"]);
            assert_eq!(world.server.list("Deployment").len(), 1, "the candidate's server is gone");
            world.apply(&DOCS.replace("All good.", "Better."));
        },
        |world| {
            assert_ready(world);
            assert_eq!(world.server.list("Deployment").len(), 1);
        },
    ],
};

/// A builder whose generation passes its golden questions.
fn build_any(pod: &Value, documents: &str) -> Option<Run> {
    let is_build = text(pod, "/metadata/labels/llmops.dev~1component") == "index-build";
    is_build.then(|| build(pod, &documents.replace("bad", ""))).flatten()
}
