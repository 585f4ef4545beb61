//! PromptFlows.

use serde_json::{Value, json};

use crate::cluster::{holds, text};
use crate::scenario::Story;
use crate::world::World;

/// The stories of this kind.
pub const STORIES: &[&Story] = &[&LIFE];

/// A model that serves from a volume.
pub const MODEL: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: weights}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: llmops.dev/v1alpha1
kind: ModelDeployment
metadata: {name: writer}
spec:
  task: Chat
  model: {source: {pvc: {claimName: weights, path: model.gguf}}}
  engine: {type: LlamaCpp}
";

/// A flow of two variants, one of which has its prompt in a ConfigMap.
pub const FLOW: &str = "
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
      - {role: user, contentFrom: {configMapKeyRef: {name: prompts, key: answer}}}
  output: '{{ nodes.answer.text }}'
  variants:
  - {name: control, weight: 70}
  - name: short
    weight: 30
    overrides: {answer: {llm: {messages: [{role: user, content: 'Short: {{ inputs.question }}'}]}}}
";

/// The ConfigMap of the flow.
pub const PROMPTS: &str =
    "{apiVersion: v1, kind: ConfigMap, metadata: {name: prompts}, data: {answer: 'Answer {{ inputs.question }}'}}";

fn flow(world: &World) -> Value {
    world.get("PromptFlow", "ask").expect("the flow is there").as_ref().clone()
}

fn assert_serving(world: &World) {
    let flow = flow(world);
    assert!(holds(&flow, "Ready"), "{}\n{}", flow["status"], world.timeline());
    assert_eq!(flow["status"]["observedGeneration"], flow["metadata"]["generation"]);
    let traffic = flow["status"]["traffic"].as_array().cloned().unwrap_or_default();
    assert_eq!(traffic.iter().filter_map(|one| one["weight"].as_i64()).sum::<i64>(), 100);
    for one in &traffic {
        let name = format!("pf-ask-{}", text(one, "/revision"));
        assert!(world.get("ControllerRevision", &name).is_some(), "{name} gets traffic and does not exist");
    }
}

/// Its references come one after the other; then the prompt changes, is broken, and is put right.
const LIFE: Story = Story {
    name: "flow.life",
    remembers: Some("PromptFlow"),
    setup: |world| world.apply(FLOW),
    steps: &[
        |world| {
            assert!(!holds(&flow(world), "Ready"));
            world.apply(PROMPTS);
        },
        |world| world.apply(MODEL),
        |world| {
            assert_serving(world);
            world.apply(&PROMPTS.replace("Answer", "Tell"));
        },
        |world| {
            assert_serving(world);
            world.apply(&PROMPTS.replace("inputs.question", "inputs.qeustion"));
        },
        |world| {
            let flow = flow(world);
            assert!(holds(&flow, "Stalled"), "{}", flow["status"]);
            assert_eq!(flow["status"]["traffic"].as_array().map(Vec::len), Some(2), "the last good one serves");
            world.apply(PROMPTS);
            world.apply(&FLOW.replace("weight: 70", "weight: 40").replace("weight: 30", "weight: 60"));
        },
        |world| {
            assert_serving(world);
            for revision in world.server.list("ControllerRevision") {
                if text(&revision, "/metadata/name").starts_with("pf-") {
                    world.server.delete("stranger", &revision, &json!({}));
                }
            }
        },
        |world| {
            assert_serving(world);
            world.delete("PromptFlow", "ask");
        },
        |world| {
            let left = world.server.list("ControllerRevision");
            assert!(left.iter().all(|revision| !text(revision, "/metadata/name").starts_with("pf-")));
        },
    ],
};
