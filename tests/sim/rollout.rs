//! Rollouts of flows: gates, ramps, verdicts, people, faults in between.

use std::time::Duration;

use llmops::evaluator::plan::{EvaluationPlan, PLAN_ENV};
use serde_json::{Value, json};

use crate::cluster::containers::Run;
use crate::cluster::{holds, number, text};
use crate::prompt_flow::MODEL;
use crate::scenario::Story;
use crate::world::World;

/// The stories of this kind.
pub const STORIES: &[&Story] = &[&LIFE, &PEOPLE];

const EVALUATION: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: cases}
data:
  cases.jsonl: |
    {"id": "1", "question": "What?", "expected": "That."}
    {"id": "2", "question": "Who?", "expected": "They."}
---
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {name: quality}
spec:
  target: {promptFlowRef: {name: ask}}
  dataset: {configMapRef: {name: cases, key: cases.jsonl}}
  metrics: [{name: fact, type: Contains}]
  gates: [{metric: fact, min: '0.5', bound: Mean}]
"#;

const FLOW: &str = "
apiVersion: llmops.dev/v1alpha1
kind: PromptFlow
metadata: {name: ask}
spec:
  models: {writer: {modelDeploymentRef: {name: writer}}}
  inputs: {question: {type: String}}
  nodes:
  - name: answer
    llm:
      model: writer
      messages:
      - {role: user, content: 'PROMPT {{ inputs.question }}'}
  output: '{{ nodes.answer.text }}'
  experiment:
    goal: {metric: Thumbs, margin: '0.1'}
  rollout:
    gates: [{evaluationRef: {name: quality}}]
    steps:
    - {weight: 10, minDuration: 30s, minUnits: 100}
    - {weight: 50, minDuration: 60s}
";

/// A prompt is committed. `Bad` ones fail their gate; users like `Worse` ones less and `Better` ones more.
fn commit(world: &World, prompt: &str) {
    world.apply(&FLOW.replace("PROMPT", prompt));
}

fn setup(world: &World) {
    let server = world.server.clone();
    world.pods(move |pod, _, _| {
        let variables = pod.pointer("/spec/containers/0/env")?.as_array()?;
        let plan = variables.iter().find(|variable| variable["name"] == PLAN_ENV)?["value"].as_str()?;
        let plan: EvaluationPlan = serde_json::from_str(plan).expect("the plan is one");
        let name = format!("pf-ask-{}", plan.revisions.first()?.revision);
        let content = server.get("ControllerRevision", "default", &name).expect("what is judged exists");
        let verdict = if content["data"].to_string().contains("Bad") { "Failed" } else { "Passed" };
        let summary = json!({"verdict": verdict, "message": "judged", "cases": 2, "errors": 0, "reported": true});
        Some(Run::Ends { after: Duration::from_secs(20), code: 0, reason: "Completed", message: summary.to_string() })
    });
    world.gateway.users(|content| match () {
        () if content.contains("Worse") => 0.3,
        () if content.contains("Better") => 0.8,
        () => 0.6,
    });
    world.apply(MODEL);
    world.apply(EVALUATION);
    commit(world, "First");
}

fn flow(world: &World) -> Value {
    world.get("PromptFlow", "ask").expect("the flow is there").as_ref().clone()
}

/// The prompt of the revision that serves everybody.
fn assert_serves(world: &World, prompt: &str) {
    let flow = flow(world);
    let traffic = flow["status"]["traffic"].as_array().cloned().unwrap_or_default();
    assert_eq!(traffic.len(), 1, "{}\n{}", flow["status"], world.timeline());
    assert_eq!(number(&traffic[0], "/weight"), 100);
    let name = format!("pf-ask-{}", text(&traffic[0], "/revision"));
    let content = world.get("ControllerRevision", &name).expect("what serves exists");
    assert!(content["data"].to_string().contains(prompt), "{}\n{}", flow["status"], world.timeline());
}

fn assert_phase(world: &World, phase: &str, rollout: &str) {
    let flow = flow(world);
    let status = &flow["status"];
    assert_eq!(status["phase"], phase, "{status}\n{}", world.timeline());
    assert_eq!(status["rollout"]["phase"], rollout, "{status}\n{}", world.timeline());
    assert_eq!(holds(&flow, "Ready"), phase == "Serving");
    assert_eq!(holds(&flow, "Stalled"), phase == "Degraded");
}

/// What a person writes with `llmops promote` and its like.
fn ask(world: &World, verb: &str, id: u32) {
    let flow = flow(world);
    let candidate = text(&flow, "/status/candidateRevision").to_owned();
    let request = format!("{verb} {candidate} {id}");
    let object = json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "PromptFlow",
        "metadata": {"name": "ask", "namespace": "default", "annotations": {"llmops.dev/rollout-request": request}},
    });
    world.server.apply("llmops", &object).expect("a person may annotate");
}

/// Good, bad, worse and better prompts, one after the other.
const LIFE: Story = Story {
    name: "rollout.life",
    remembers: Some("PromptFlow"),
    setup,
    steps: &[
        |world| {
            assert_phase(world, "Serving", "Promoted");
            assert_serves(world, "First");
            commit(world, "Bad");
        },
        |world| {
            assert_phase(world, "Degraded", "RolledBack");
            assert_eq!(flow(world)["status"]["rejectedRevisions"][0]["reason"], "EvaluationFailed");
            assert_serves(world, "First");
            commit(world, "Worse");
        },
        |world| {
            assert_phase(world, "Degraded", "RolledBack");
            assert_eq!(flow(world)["status"]["rejectedRevisions"][0]["reason"], "MetricRegression");
            assert_serves(world, "First");
            commit(world, "Better");
        },
        |world| {
            assert_phase(world, "Serving", "Promoted");
            assert_serves(world, "Better");
            commit(world, "Other");
        },
        |world| {
            // What was good enough before is worse than what serves now.
            assert_phase(world, "Degraded", "RolledBack");
            commit(world, "Better");
        },
        |world| {
            let status = flow(world)["status"].clone();
            assert_eq!((&status["phase"], &status["rollout"]), (&json!("Serving"), &Value::Null));
            assert_serves(world, "Better");
        },
    ],
};

/// Held, without its evaluation, without measurements, promoted by a person.
const PEOPLE: Story = Story {
    name: "rollout.people",
    remembers: Some("PromptFlow"),
    setup,
    steps: &[
        |world| {
            assert_serves(world, "First");
            world.gateway.down(true);
            commit(world, "Second");
        },
        |world| {
            assert_phase(world, "Progressing", "Progressing");
            let status = flow(world)["status"].clone();
            assert_eq!((number(&status, "/rollout/step"), number(&status, "/rollout/weight")), (0, 10));
            assert!(text(&status, "/rollout/message").contains("connection refused"), "{status}");
            ask(world, "hold", 1);
        },
        |world| {
            assert_phase(world, "Holding", "Holding");
            world.gateway.down(false);
        },
        |world| {
            assert_phase(world, "Holding", "Holding");
            ask(world, "resume", 2);
        },
        |world| {
            // As good as the first one, within the margin.
            assert_phase(world, "Serving", "Promoted");
            assert_serves(world, "Second");
            world.delete("Evaluation", "quality");
            commit(world, "Third");
        },
        |world| {
            assert_phase(world, "Holding", "Holding");
            let message = flow(world)["status"]["rollout"]["message"].to_string();
            assert!(message.contains("there is no Evaluation `quality`"), "{message}");
            ask(world, "promote", 3);
        },
        |world| {
            assert_phase(world, "Serving", "Promoted");
            assert_serves(world, "Third");
            commit(world, "Fourth");
        },
        |world| ask(world, "rollback", 4),
        |world| {
            assert_phase(world, "Degraded", "RolledBack");
            assert_serves(world, "Third");
            world.apply(EVALUATION);
            commit(world, "Fifth");
        },
        |world| assert_serves(world, "Fifth"),
    ],
};
