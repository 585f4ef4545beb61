//! Evaluations.

use llmops::evaluator::plan::{EvaluationPlan, PLAN_ENV};
use serde_json::{Value, json};

use crate::cluster::containers::Run;
use crate::cluster::holds;
use crate::prompt_flow::{FLOW, MODEL, PROMPTS};
use crate::scenario::Story;
use crate::world::World;

/// The stories of this kind.
pub const STORIES: &[&Story] = &[&LIFE];

const CASES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: cases}
data:
  cases.jsonl: |
    {"id": "1", "question": "What?", "expected": "That."}
    {"id": "2", "question": "Who?", "expected": "They."}
"#;

const EVALUATION: &str = "
apiVersion: llmops.dev/v1alpha1
kind: Evaluation
metadata: {name: quality}
spec:
  target: {promptFlowRef: {name: ask}}
  dataset: {configMapRef: {name: cases, key: cases.jsonl}}
  metrics: [{name: fact, type: Contains}]
  gates: [{metric: fact, min: '0.5', bound: Mean}]
";

/// What an evaluation's Job would say: a dataset that names `worse` does not pass, one that names `broken` cannot be run.
pub fn judge(pod: &Value, cases: &str) -> Option<Run> {
    let variables = pod.pointer("/spec/containers/0/env")?.as_array()?;
    let plan = variables.iter().find(|variable| variable["name"] == PLAN_ENV)?["value"].as_str()?;
    let _: EvaluationPlan = serde_json::from_str(plan).expect("the plan is one");
    if cases.contains("broken") {
        return Some(Run::fails(42, json!({"message": "the dataset is not what the plan says"}).to_string()));
    }
    let verdict = if cases.contains("worse") { "Failed" } else { "Passed" };
    let summary = json!({"verdict": verdict, "message": "judged", "cases": 2, "errors": 0, "reported": true});
    Some(Run::succeeds(summary.to_string()))
}

fn evaluation(world: &World) -> Value {
    world.get("Evaluation", "quality").expect("the evaluation is there").as_ref().clone()
}

fn assert_verdict(world: &World, verdict: &str) {
    let evaluation = evaluation(world);
    let run = &evaluation["status"]["runs"][0];
    assert_eq!(run["verdict"], verdict, "{}\n{}", evaluation["status"], world.timeline());
    assert_eq!(holds(&evaluation, "GatesPassed"), verdict == "Passed");
}

/// Judged anew when the flow, a model that it uses, or the dataset changes, and when a Job without a verdict is deleted.
const LIFE: Story = Story {
    name: "evaluation.life",
    remembers: None,
    setup: |world| {
        let server = world.server.clone();
        world.pods(move |pod, _, _| {
            let cases = server.get("ConfigMap", "default", "cases");
            judge(pod, &cases.map(|map| map["data"].to_string()).unwrap_or_default())
        });
        world.apply(MODEL);
        world.apply(PROMPTS);
        world.apply(FLOW);
        world.apply(EVALUATION);
    },
    steps: &[
        |world| {
            assert!(!holds(&evaluation(world), "Ready"));
            world.apply(CASES);
        },
        |world| {
            assert_verdict(world, "Passed");
            world.apply(&PROMPTS.replace("Answer", "Tell"));
        },
        |world| {
            assert_verdict(world, "Passed");
            assert_eq!(evaluation(world)["status"]["runs"].as_array().map(Vec::len), Some(2));
            world.apply(&MODEL.replace("type: LlamaCpp", "type: LlamaCpp, args: ['--ctx-size', '512']"));
        },
        |world| {
            assert_verdict(world, "Passed");
            let runs = evaluation(world)["status"]["runs"].as_array().cloned().unwrap_or_default();
            let model = world.get("ModelDeployment", "writer").expect("the model is there");
            assert_eq!(runs.len(), 3, "a model that the flow uses changed");
            assert_eq!(runs[0]["dependencies"][0]["revision"], model["status"]["stableRevision"]);
            assert_eq!((&runs[0]["stale"], &runs[1]["stale"]), (&Value::Null, &json!(true)));
            world.apply(&CASES.replace("That.", "worse"));
        },
        |world| {
            assert_verdict(world, "Failed");
            world.apply(&CASES.replace("That.", "broken"));
        },
        |world| {
            let evaluation = evaluation(world);
            assert_eq!(evaluation["status"]["runs"][0]["phase"], "Failed", "{}", evaluation["status"]);
            world.apply(CASES);
        },
        |world| {
            assert_verdict(world, "Passed");
            world.delete("Evaluation", "quality");
        },
        |world| {
            for kind in ["Job", "ServiceAccount", "RoleBinding"] {
                assert_eq!(world.server.list(kind).len(), 0, "{kind}");
            }
        },
    ],
};
