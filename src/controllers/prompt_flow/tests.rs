use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use super::*;
use crate::api::PromptFlowStatus;
use crate::controllers::apply::Applied;
use crate::controllers::measure::NoMeasurements;
use crate::controllers::pipeline::Stage;

pub(super) fn flow(spec: Value, status: Option<&PromptFlowStatus>) -> PromptFlow {
    serde_json::from_value(json!({
        "apiVersion": "llmops.dev/v1alpha1", "kind": "PromptFlow",
        "metadata": {"name": "faq", "namespace": "team-a", "generation": 3, "uid": "u"},
        "spec": spec, "status": status,
    }))
    .unwrap()
}

pub(super) fn spec() -> Value {
    json!({
        "models": {"writer": {"modelDeploymentRef": {"name": "smollm2"}}},
        "indexes": {"handbook": {"ragIndexRef": {"name": "docs"}}},
        "inputs": {"question": {"type": "String"}},
        "nodes": [
            {"name": "search", "retrieve": {"index": "handbook", "query": "{{ inputs.question }}"}},
            {"name": "answer", "llm": {"model": "writer", "messages": [
                {"role": "system", "contentFrom": {"configMapKeyRef": {"name": "prompts", "key": "system"}}},
                {"role": "user", "content": "{{ inputs.question }} {{ nodes.search.chunks | length }}"},
            ]}},
        ],
        "output": "{{ nodes.answer.text }}",
        "variants": [
            {"name": "control", "weight": 70},
            {"name": "concise", "weight": 30, "overrides": {"answer": {"llm": {"parameters": {"maxTokens": 20}}}}},
        ],
    })
}

pub(super) fn fetched() -> Fetched {
    Fetched {
        config_maps: ConfigMaps::from([("prompts".into(), BTreeMap::from([("system".into(), "Be kind.".into())]))]),
        models: BTreeMap::from([("smollm2".into(), Model { task: Task::Chat, servable: true })]),
        indexes: BTreeMap::from([("docs".into(), true)]),
        ..Fetched::default()
    }
}

pub(super) fn controller() -> PromptFlows {
    PromptFlows::new("http://gateway:8080/", Arc::new(NoMeasurements))
}

pub(super) fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).unwrap()
}

/// Runs the pure stages: the status after them.
pub(super) fn reconcile(object: &PromptFlow, fetched: &Fetched, now: i64) -> PromptFlowStatus {
    verdict(object, fetched, now).status
}

/// Runs the pure stages.
pub(super) fn verdict(object: &PromptFlow, fetched: &Fetched, now: i64) -> Verdict<PromptFlow> {
    let controller = controller();
    let previous = object.status.clone().unwrap_or_default();
    let view = |stage| View { object, previous: &previous, stage, now: at(now) };
    if object.spec.suspend {
        return controller.status(&view(Stage::Suspended));
    }
    match controller.validate(object, fetched) {
        Err(error) => {
            controller.status(&view(Stage::Failed { fetched: Some(fetched), validated: None, error: &error }))
        }
        Ok(validated) => {
            let plan = controller.build(object, fetched, &validated, at(now)).unwrap();
            let applied = Applied::default();
            controller.status(&view(Stage::Done { fetched, validated: &validated, plan: &plan, applied: &applied }))
        }
    }
}

pub(super) fn edited(pointer: &str, value: Value) -> Value {
    let mut spec = spec();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() { &mut spec } else { spec.pointer_mut(parent).unwrap() };
    parent[key] = value;
    spec
}

#[test]
fn renders_a_revision_for_each_variant() {
    let controller = controller();
    let object = flow(spec(), None);
    let fetched = fetched();
    let validated = controller.validate(&object, &fetched).unwrap();
    let plan = controller.build(&object, &fetched, &validated, at(1)).unwrap();
    assert!(plan.desired.iter().all(|desired| desired.create_only));
    insta::assert_json_snapshot!(plan.desired.iter().map(|desired| &desired.object).collect::<Vec<_>>());
}

#[test]
fn variants_with_the_same_content_share_a_revision() {
    let object = flow(edited("/variants", json!([{"name": "a", "weight": 50}, {"name": "b", "weight": 50}])), None);
    let fetched = fetched();
    let validated = controller().validate(&object, &fetched).unwrap();
    assert_eq!(controller().build(&object, &fetched, &validated, at(1)).unwrap().desired.len(), 1);
}

#[test]
fn status_in_every_situation() {
    let serving = reconcile(&flow(spec(), None), &fetched(), 100);
    let mut no_model = fetched();
    no_model.models.clear();
    let mut embedder = fetched();
    embedder.models.insert("smollm2".into(), Model { task: Task::Embed, servable: true });
    let mut loading = fetched();
    loading.models.insert("smollm2".into(), Model { task: Task::Chat, servable: false });
    let mut building = fetched();
    building.indexes.insert("docs".into(), false);
    let mut no_index = fetched();
    no_index.indexes.clear();
    let mut no_map = fetched();
    no_map.config_maps.clear();
    let mut no_key = fetched();
    no_key.config_maps.insert("prompts".into(), BTreeMap::from([("sytem".into(), String::new())]));
    let mut bad_map = fetched();
    bad_map.config_maps.insert("prompts".into(), BTreeMap::from([("system".into(), "{{ inputs.q }}".into())]));
    let broken = edited("/output", json!("{{ nodes.answer.txt }}"));
    let suspended = edited("/suspend", json!(true));
    for (name, spec, fetched, before) in [
        ("serving", spec(), fetched(), None),
        ("refused_first", broken.clone(), fetched(), None),
        ("refused_later", broken, fetched(), Some(&serving)),
        ("model_missing_first", spec(), no_model, None),
        ("model_is_an_embedder", spec(), embedder, Some(&serving)),
        ("model_loading", spec(), loading, None),
        ("index_building", spec(), building, None),
        ("index_gone_later", spec(), no_index, Some(&serving)),
        ("config_map_missing", spec(), no_map, None),
        ("config_map_key_missing_later", spec(), no_key, Some(&serving)),
        ("config_map_template_broken_later", spec(), bad_map, Some(&serving)),
        ("suspended_first", suspended.clone(), self::fetched(), None),
        ("suspended_later", suspended, self::fetched(), Some(&serving)),
    ] {
        let status = reconcile(&flow(spec, before), &fetched, 200);
        insta::assert_yaml_snapshot!(name, status);
        if let Some(before) = before {
            assert_eq!(status.traffic, before.traffic, "{name}: what served goes on");
        }
    }
}

#[test]
fn a_second_reconcile_changes_nothing() {
    let first = reconcile(&flow(spec(), None), &fetched(), 100);
    let second = reconcile(&flow(spec(), Some(&first)), &fetched(), 900);
    assert_eq!(first, second);
    let broken = edited("/output", json!("{{ x }}"));
    let first = reconcile(&flow(broken.clone(), Some(&first)), &fetched(), 1000);
    assert_eq!(reconcile(&flow(broken, Some(&first)), &fetched(), 2000), first);
}

#[test]
fn a_new_weight_moves_traffic_without_a_revision() {
    let first = reconcile(&flow(spec(), None), &fetched(), 100);
    let mut changed = spec();
    changed["variants"][0]["weight"] = json!(10);
    changed["variants"][1]["weight"] = json!(90);
    let second = reconcile(&flow(changed, Some(&first)), &fetched(), 200);
    let revisions = |status: &PromptFlowStatus| status.traffic.iter().map(|t| t.revision.clone()).collect::<Vec<_>>();
    assert_eq!(revisions(&first), revisions(&second));
    assert_eq!(second.traffic[0].weight, 10);
    assert_eq!(first.conditions[0].last_transition_time, second.conditions[0].last_transition_time);
}

#[test]
fn a_transient_error_leaves_ready_alone() {
    let serving = reconcile(&flow(spec(), None), &fetched(), 100);
    let object = flow(spec(), Some(&serving));
    let error = Error::transient("ApiError", "reading ConfigMap: timeout");
    let stage = Stage::Failed { fetched: None, validated: None, error: &error };
    let status = controller().status(&View { object: &object, previous: &serving, stage, now: at(200) }).status;
    assert_eq!(status.phase, serving.phase);
    assert!(conditions::is_true(&status.conditions, "Ready"));
    assert!(conditions::is_true(&status.conditions, "Reconciling"));
}

#[test]
fn old_revisions_go_but_never_those_in_traffic() {
    let serving = reconcile(&flow(spec(), None), &fetched(), 100);
    let mut changed = edited("/nodes/1/llm/messages/1/content", json!("new {{ inputs.question }}"));
    changed["rollout"] = json!({"historyLimit": 2});
    let object = flow(changed, Some(&serving));
    let named = |name: &str, revision: i64| ControllerRevision {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        revision,
        ..ControllerRevision::default()
    };
    let mut fetched = fetched();
    fetched.revisions = (1..=5).map(|number| named(&format!("pf-faq-old{number}"), number)).collect();
    // What served is older than the rest, as after a rollback.
    for (index, arm) in serving.traffic.iter().enumerate() {
        fetched.revisions.push(named(&format!("pf-faq-{}", arm.revision), -i64::try_from(index).unwrap()));
    }
    let validated = controller().validate(&object, &fetched).unwrap();
    let plan = controller().build(&object, &fetched, &validated, at(1)).unwrap();
    let removed: Vec<&str> = plan.removals.iter().map(|removal| removal.name.as_str()).collect();
    assert_eq!(removed, ["pf-faq-old3", "pf-faq-old2", "pf-faq-old1"]);
    let numbers: Vec<i64> = plan.desired.iter().map(|d| d.object["revision"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [6, 7]);
}

#[test]
fn every_reference_is_watched_once() {
    let references = PromptFlows::references(&flow(spec(), None));
    let names: Vec<String> = references.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["ModelDeployment \"smollm2\"", "RagIndex \"docs\"", "ConfigMap \"prompts\""]);
}
