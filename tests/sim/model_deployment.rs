//! ModelDeployments.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::containers::Run;
use crate::cluster::{holds, number, text};
use crate::evaluation;
use crate::scenario::{Story, in_virtual_time};
use crate::world::World;

/// The stories of this kind.
pub const STORIES: &[&Story] = &[&LIFE, &DOWNLOAD, &DIGEST, &IMAGE, &RECREATE, &HEAL, &AGAIN, &GATES];

const WEIGHTS: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: weights}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

const LLAMA: &str = "
apiVersion: llmops.dev/v1alpha1
kind: ModelDeployment
metadata: {name: chat, labels: {team: a}}
spec:
  task: Chat
  model: {source: {pvc: {claimName: weights, path: model.gguf}}}
  engine: {type: LlamaCpp, args: ['--ctx-size', '2048']}
  resources: {requests: {cpu: 500m, memory: 1024Mi}}
  replicas: 2
";

const DOWNLOADED: &str = "
apiVersion: llmops.dev/v1alpha1
kind: ModelDeployment
metadata: {name: chat}
spec:
  task: Chat
  model:
    source: {http: {url: 'http://models.example/m.gguf', sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}
    credentialsRef: {name: hub}
  engine: {type: LlamaCpp}
";

const HUB: &str = "{apiVersion: v1, kind: Secret, metadata: {name: hub}, data: {token: YQ==}}";

fn status(world: &World) -> Value {
    world.get("ModelDeployment", "chat").expect("the model is there")["status"].clone()
}

fn assert_ready(world: &World) {
    let model = world.get("ModelDeployment", "chat").expect("the model is there");
    assert!(holds(&model, "Ready"), "{}\n{}", model["status"], world.timeline());
    assert_eq!(model["status"]["observedGeneration"], model["metadata"]["generation"]);
    assert_eq!(model["status"]["stableRevision"], model["status"]["targetRevision"]);
}

/// Created, changed, scaled.
const LIFE: Story = Story {
    name: "model.life",
    remembers: None,
    setup: |world| {
        world.apply(WEIGHTS);
        world.apply(LLAMA);
    },
    steps: &[
        |world| {
            assert_ready(world);
            world.apply(&LLAMA.replace("2048", "4096"));
        },
        |world| {
            assert_ready(world);
            world.apply(&LLAMA.replace("2048", "4096").replace("replicas: 2", "replicas: 3"));
        },
        assert_ready,
    ],
};

/// Waits for its Secret, downloads, gets another token.
const DOWNLOAD: Story = Story {
    name: "model.download",
    remembers: None,
    setup: |world| world.apply(DOWNLOADED),
    steps: &[
        |world| {
            assert_eq!(reason(world, "Ready"), "SecretNotFound");
            world.apply(HUB);
        },
        |world| {
            assert_ready(world);
            world.apply(&HUB.replace("YQ==", "Yg=="));
        },
        assert_ready,
    ],
};

/// A wrong digest is found while another revision serves; then the spec is put right.
const DIGEST: Story = Story {
    name: "model.digest",
    remembers: Some("ModelDeployment"),
    setup: |world| {
        world.pods(|pod, container, _| {
            let wrong = pod.to_string().contains("00000000000000000000000000000000");
            let report = json!({"reason": "DigestMismatch", "message": "the file has another digest"}).to_string();
            (container == "fetch" && wrong).then(|| Run::fails(42, report))
        });
        world.apply(HUB);
        world.apply(DOWNLOADED);
    },
    steps: &[
        |world| {
            assert_ready(world);
            world.apply(
                &DOWNLOADED
                    .replace("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", &"0".repeat(64)),
            );
        },
        |world| {
            let status = status(world);
            assert_eq!(reason(world, "Stalled"), "DigestMismatch", "{status}");
            assert_eq!(status["rejectedRevisions"][0]["reason"], "DigestMismatch");
            assert_ne!(status["stableRevision"], status["targetRevision"]);
            assert_eq!(status["traffic"][0]["revision"], status["stableRevision"]);
            world.apply(DOWNLOADED);
        },
        assert_ready,
    ],
};

/// An image that cannot be had is found while another revision serves; then it can be had.
const IMAGE: Story = Story {
    name: "model.image",
    remembers: Some("ModelDeployment"),
    setup: |world| {
        world.pods(|pod, _, _| {
            let missing = text(pod, "/spec/containers/0/image") == "nowhere/engine:1";
            missing.then(|| Run::NoImage { message: "not found".into() })
        });
        world.apply(WEIGHTS);
        world.apply(LLAMA);
    },
    steps: &[
        |world| {
            assert_ready(world);
            world.apply(&LLAMA.replace("type: LlamaCpp", "type: LlamaCpp, image: 'nowhere/engine:1'"));
        },
        |world| {
            let status = status(world);
            assert_eq!(reason(world, "Ready"), "ImagePullFailed", "{status}");
            assert_ne!(status["stableRevision"], status["targetRevision"]);
            assert_eq!(status["traffic"][0]["revision"], status["stableRevision"]);
            world.apply(&LLAMA.replace("type: LlamaCpp", "type: LlamaCpp, image: 'somewhere/engine:1'"));
        },
        assert_ready,
    ],
};

/// The old revision stops before the new one starts.
const RECREATE: Story = Story {
    name: "model.recreate",
    remembers: None,
    setup: |world| {
        world.apply(WEIGHTS);
        world.apply(&LLAMA.replace("replicas: 2", "rollout: {strategy: Recreate, drain: 5s}"));
    },
    steps: &[
        |world| {
            assert_ready(world);
            world.apply(
                &LLAMA.replace("2048", "512").replace("replicas: 2", "rollout: {strategy: Recreate, drain: 5s}"),
            );
        },
        assert_ready,
    ],
};

/// Every child is deleted once, and changed once by somebody else.
const HEAL: Story = Story {
    name: "model.heal",
    remembers: None,
    setup: |world| {
        world.apply(WEIGHTS);
        world.apply(LLAMA);
    },
    steps: &[
        |world| {
            assert_ready(world);
            for kind in ["Deployment", "Service"] {
                for child in world.server.list(kind) {
                    world.server.delete("stranger", &child, &json!({"propagationPolicy": "Background"}));
                }
            }
        },
        |world| {
            assert_ready(world);
            assert_eq!(world.server.list("Deployment").len(), 1);
            let deployment = world.server.list("Deployment").remove(0);
            world.server.change("stranger", &deployment, None, |deployment| {
                deployment["spec"]["replicas"] = json!(1);
                deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!("stranger:1");
            });
            let service = world.server.list("Service").remove(0);
            world.server.change("stranger", &service, None, |service| service["spec"]["selector"] = json!({"a": "b"}));
        },
        |world| {
            assert_ready(world);
            let deployment = world.server.list("Deployment").remove(0);
            assert_eq!(number(&deployment, "/spec/replicas"), 2);
            assert_ne!(text(&deployment, "/spec/template/spec/containers/0/image"), "stranger:1");
            let service = world.server.list("Service").remove(0);
            assert!(service["spec"]["selector"].get("a").is_none(), "{service}");
        },
    ],
};

/// Deleted with all children, and created anew under the same name at once.
const AGAIN: Story = Story {
    name: "model.again",
    remembers: None,
    setup: |world| {
        world.apply(WEIGHTS);
        world.apply(LLAMA);
    },
    steps: &[
        |world| {
            assert_ready(world);
            world.delete("ModelDeployment", "chat");
            world.apply(LLAMA);
        },
        |world| {
            assert_ready(world);
            let uid = world.get("ModelDeployment", "chat").expect("it is there")["metadata"]["uid"].clone();
            for kind in ["Deployment", "Service", "ControllerRevision"] {
                for child in world.server.list(kind) {
                    assert_eq!(child["metadata"]["ownerReferences"][0]["uid"], uid, "{kind}");
                }
            }
            world.delete("ModelDeployment", "chat");
        },
        |world| {
            for kind in ["Deployment", "Service", "ControllerRevision", "ReplicaSet", "Pod"] {
                assert_eq!(world.server.list(kind).len(), 0, "{kind}");
            }
            assert!(world.get("PersistentVolumeClaim", "weights").is_some(), "a user's volume stays");
        },
    ],
};

/// A model whose new revisions must pass an evaluation of it.
const GUARDED: &str = "
apiVersion: llmops.dev/v1alpha1
kind: ModelDeployment
metadata: {name: chat}
spec:
  task: Chat
  model: {source: {pvc: {claimName: weights, path: model.gguf}}}
  engine: {type: LlamaCpp, args: ['--ctx-size', '2048']}
  rollout: {gates: [{evaluationRef: {name: quality}}]}
";

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
  target: {modelDeploymentRef: {name: chat}}
  dataset: {configMapRef: {name: cases, key: cases.jsonl}}
  metrics: [{name: fact, type: Contains}]
  gates: [{metric: fact, min: '0.5', bound: Mean}]
";

/// The first revision is judged before it serves; a bad file is stopped by the gate; a good one serves.
const GATES: Story = Story {
    name: "model.gates",
    remembers: Some("ModelDeployment"),
    setup: |world| {
        let server = world.server.clone();
        world.pods(move |pod, _, _| {
            let plan = pod.pointer("/spec/containers/0/env/0/value")?.as_str()?;
            let bad = server.list("ControllerRevision").into_iter().any(|kept| {
                let revision = text(&kept, "/metadata/labels/llmops.dev~1revision").to_owned();
                plan.contains(&revision) && kept["data"].to_string().contains("bad.gguf")
            });
            evaluation::judge(pod, if bad { "worse" } else { "" })
        });
        world.apply(WEIGHTS);
        world.apply(QUALITY);
        world.apply(GUARDED);
    },
    steps: &[
        |world| {
            assert_eq!(reason(world, "Ready"), "Gating", "{}", status(world));
            assert!(status(world)["traffic"].is_null());
            world.apply(CASES);
        },
        |world| {
            assert_ready(world);
            world.apply(&GUARDED.replace("model.gguf", "bad.gguf"));
        },
        |world| {
            let status = status(world);
            assert_eq!(reason(world, "Stalled"), "EvaluationFailed", "{status}");
            assert_eq!(status["rollout"]["phase"], "RolledBack");
            assert_eq!(status["rejectedRevisions"][0]["revision"], status["targetRevision"]);
            assert_eq!(status["traffic"], json!([{"revision": status["stableRevision"], "weight": 100}]));
            assert_eq!(world.server.list("Deployment").len(), 1, "the candidate's pods are gone");
            world.apply(&GUARDED.replace("2048", "4096"));
        },
        |world| {
            assert_ready(world);
            assert_eq!(status(world)["rollout"]["phase"], "Promoted");
            assert_eq!(world.server.list("Deployment").len(), 1);
        },
    ],
};

fn reason(world: &World, kind: &str) -> String {
    let status = status(world);
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    text(&found, "/reason").to_owned()
}

#[test]
fn a_stranger_of_the_same_name_is_not_adopted() {
    in_virtual_time(async {
        let world = World::new(1);
        world.apply(WEIGHTS);
        world.apply("{apiVersion: v1, kind: Service, metadata: {name: mdep-chat}, spec: {selector: {app: mine}, ports: [{port: 1}]}}");
        let before = world.get("Service", "mdep-chat").expect("the stranger");
        world.apply(LLAMA);
        let operator = world.start();
        // The name is tried again now and then, since whoever has it may go: nothing of that changes anything.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before_rest = world.server.lock().store.version();
        tokio::time::sleep(Duration::from_secs(1200)).await;
        assert_eq!(world.server.lock().store.version(), before_rest, "{}", world.timeline());
        assert_eq!(world.get("Service", "mdep-chat").as_ref(), Some(&before));
        assert_eq!(reason(&world, "Stalled"), "NameConflict", "{}", status(&world));
        world.delete("ModelDeployment", "chat");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.get("Service", "mdep-chat"), Some(before));
        operator.stop().await;
    });
}

#[test]
fn one_that_cannot_be_decoded_does_not_stop_another() {
    in_virtual_time(async {
        let world = World::new(1);
        world.apply(WEIGHTS);
        world.apply(&LLAMA.replace("name: chat", "name: broken"));
        // As after a change of the schema: stored, but not what this version knows.
        let broken = world.get("ModelDeployment", "broken").expect("it is there");
        world.server.tamper(&broken, |broken| broken["spec"]["task"] = json!("Sing"));
        world.apply(LLAMA);
        let operator = world.start();
        world.settle().await;
        assert_ready(&world);
        operator.stop().await;
    });
}

#[test]
fn a_running_operator_sees_a_reference_come() {
    in_virtual_time(async {
        let world = World::new(1);
        world.apply(LLAMA);
        let operator = world.start();
        world.settle().await;
        assert!(!holds(&world.get("ModelDeployment", "chat").expect("it is there"), "Ready"));
        world.apply(WEIGHTS);
        // Much less than a resync: it was the watch.
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_ready(&world);
        operator.stop().await;
    });
}
