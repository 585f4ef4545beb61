use super::*;
use crate::gateway::endpoints::{Target, TargetKind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pod(name: &str, revision: &str, ip: &str, ready: bool) -> Value {
    json!({
        "metadata": {"namespace": "a", "name": name, "uid": name, "labels": {
            "llmops.dev/component": "model", "llmops.dev/owner": "writer", "llmops.dev/revision": revision}},
        "spec": {"containers": [{"name": "side", "ports": [{"name": "other", "containerPort": 1}]},
                                {"name": "engine", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

fn model(traffic: &Value) -> Arc<ModelDeployment> {
    object(json!({
        "metadata": {"namespace": "a", "name": "writer"},
        "spec": {"task": "Chat", "engine": {"type": "LlamaCpp"}, "model": {"name": "smollm2"},
                 "cost": {"inputPerMillion": "2", "outputPerMillion": "10", "currency": "EUR"}},
        "status": {"traffic": traffic},
    }))
}

fn target() -> Target {
    Target {
        kind: TargetKind::Model,
        namespace: "a".into(),
        name: "writer".into(),
        pin: None,
        unit: "u".into(),
        background: false,
        counts: true,
    }
}

#[test]
fn only_ready_pods_with_an_address_of_the_revision_are_endpoints() {
    let mut leaving = pod("leaving", "r1", "10.0.0.4", true);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z");
    let objects = Objects {
        models: vec![model(&json!([{"revision": "r1", "weight": 100}]))],
        pods: [
            pod("p1", "r1", "10.0.0.1", true),
            pod("p2", "r1", "fd00::2", true),
            pod("cold", "r1", "10.0.0.3", false),
            leaving,
            pod("next", "r2", "10.0.0.5", true),
            pod("starting", "r1", "", true),
        ]
        .map(object)
        .into(),
        ..Objects::default()
    };
    let snapshot = build(&objects, "llmops-system", &Snapshot::default());
    let (pool, revision) = snapshot.resolve(&target()).unwrap();
    assert_eq!(revision.as_deref(), Some("r1"));
    let bases: Vec<_> = pool.endpoints["r1"].iter().map(|endpoint| endpoint.base.as_str()).collect();
    assert_eq!(bases, ["http://10.0.0.1:8080", "http://[fd00::2]:8080"]);
    let pinned = Target { pin: Some("r2".into()), ..target() };
    assert_eq!(snapshot.resolve(&pinned).unwrap().1.as_deref(), Some("r2"));
    assert_eq!(pool.endpoints["r2"].len(), 1);
    let route = snapshot.model("a", "writer").unwrap();
    assert_eq!(route.served_name, "smollm2");
    assert_eq!(route.cost(1_000_000, 100_000), Some(3.0));
}

#[test]
fn load_health_and_queue_outlive_a_snapshot() {
    let objects = Objects {
        models: vec![model(&json!([{"revision": "r1", "weight": 100}]))],
        pods: vec![object(pod("p1", "r1", "10.0.0.1", true))],
        ..Objects::default()
    };
    let first = build(&objects, "s", &Snapshot::default());
    let second = build(&objects, "s", &first);
    let (old, new) = (first.resolve(&target()).unwrap().0, second.resolve(&target()).unwrap().0);
    assert!(Arc::ptr_eq(&old.state, &new.state));
    assert!(Arc::ptr_eq(&old.endpoints["r1"][0].state, &new.endpoints["r1"][0].state));
}

#[test]
fn a_provider_needs_no_pods_but_its_token() {
    let provider = |secret: Option<&str>| {
        let mut value = json!({
            "metadata": {"namespace": "a", "name": "writer"},
            "spec": {"task": "Chat", "external": {"baseUrl": "https://api.example.com/v1/", "model": "big"}},
        });
        if let Some(secret) = secret {
            value["spec"]["external"]["credentialsRef"] = json!({"name": secret});
        }
        object::<ModelDeployment>(value)
    };
    let secret = |namespace: &str, data: Value| -> Arc<Secret> {
        object(json!({"metadata": {"namespace": namespace, "name": "key"}, "data": data}))
    };
    let of = |secret_name, secrets: Vec<Arc<Secret>>| {
        let objects = Objects { models: vec![provider(secret_name)], credentials: secrets, ..Objects::default() };
        build(&objects, "s", &Snapshot::default())
    };
    let snapshot = of(Some("key"), vec![secret("a", json!({"token": "c2stMTIz"}))]);
    let route = snapshot.model("a", "writer").unwrap();
    assert_eq!(route.external, Some(External { token: Some("sk-123".into()), problem: None }));
    assert!(!format!("{route:?}").contains("sk-123"), "the token must not reach a log");
    let (pool, revision) = snapshot.resolve(&target()).unwrap();
    assert_eq!(pool.endpoints[&revision.unwrap()][0].base, "https://api.example.com/v1");
    let problem = |snapshot: &Snapshot| snapshot.model("a", "writer").unwrap().external.clone().unwrap().problem;
    assert_eq!(problem(&of(None, vec![])), None);
    assert!(problem(&of(Some("key"), vec![secret("b", json!({"token": "eA=="}))])).unwrap().contains("does not exist"));
    assert!(problem(&of(Some("key"), vec![secret("a", json!({}))])).unwrap().contains("lacks the key `token`"));
}

fn flow(traffic: &Value) -> Arc<PromptFlow> {
    object(json!({
        "metadata": {"namespace": "a", "name": "docs"},
        "spec": {"nodes": [{"name": "answer", "llm": {"model": "writer", "messages": []}}], "output": "x"},
        "status": {"traffic": traffic},
    }))
}

fn revision(name: &str, data: Value) -> Arc<ControllerRevision> {
    object(json!({
        "metadata": {"namespace": "a", "name": format!("pf-docs-{name}"), "uid": name,
                     "labels": {"llmops.dev/owner": "docs", "llmops.dev/revision": name}},
        "revision": 1, "data": data,
    }))
}

fn content() -> Value {
    json!({"format": 1, "models": {}, "indexes": {}, "inputs": {}, "nodes": [], "output": "constant"})
}

#[test]
fn one_broken_revision_stops_no_other() {
    let mut newer = content();
    newer["format"] = json!(2);
    let mut template = content();
    template["output"] = json!("{{ nodes.");
    let objects = Objects {
        flows: vec![flow(&json!([{"variant": "control", "revision": "good", "weight": 100}]))],
        revisions: vec![
            revision("good", content()),
            revision("newer", newer),
            revision("template", template),
            revision("junk", json!({"format": 1, "models": []})),
        ],
        ..Objects::default()
    };
    let snapshot = build(&objects, "s", &Snapshot::default());
    let route = snapshot.flow("a", "docs").unwrap();
    assert_eq!(route.revisions.keys().collect::<Vec<_>>(), ["good"]);
    assert!(route.broken["newer"].contains("upgrade the gateway"));
    assert!(route.broken["template"].starts_with("output: line 1"));
    assert!(route.broken["junk"].starts_with("data.models: "), "{}", route.broken["junk"]);
    assert_eq!(snapshot.problems.len(), 3);
    let again = build(&objects, "s", &snapshot);
    assert!(Arc::ptr_eq(&route.revisions["good"], &again.flow("a", "docs").unwrap().revisions["good"]));
}

#[test]
fn a_routing_table_waits_for_the_contents_that_it_names() {
    let of = |traffic: Value, revisions: Vec<Arc<ControllerRevision>>, previous: &Snapshot| {
        let objects = Objects { flows: vec![flow(&traffic)], revisions, ..Objects::default() };
        build(&objects, "s", previous)
    };
    let arms = |snapshot: &Snapshot| -> Vec<String> {
        snapshot.flow("a", "docs").unwrap().arms.iter().map(|arm| arm.revision.clone()).collect()
    };
    let old = of(
        json!([{"variant": "control", "revision": "r1", "weight": 100}]),
        vec![revision("r1", content())],
        &Snapshot::default(),
    );
    let next = json!([{"variant": "control", "revision": "r2", "weight": 100}]);
    let early = of(next.clone(), vec![revision("r1", content())], &old);
    assert_eq!(arms(&early), ["r1"], "the status may arrive before the ControllerRevision");
    let late = of(next, vec![revision("r1", content()), revision("r2", content())], &early);
    assert_eq!(arms(&late), ["r2"]);
}

#[test]
fn units_follow_the_weights() {
    let objects = Objects {
        flows: vec![flow(&json!([{"variant": "control", "revision": "r1", "weight": 80},
                                 {"variant": "short", "revision": "r2", "weight": 20}]))],
        revisions: vec![revision("r1", content()), revision("r2", content())],
        ..Objects::default()
    };
    let snapshot = build(&objects, "s", &Snapshot::default());
    let route = snapshot.flow("a", "docs").unwrap();
    let short = (0..10_000).filter(|unit| route.route(&unit.to_string(), 0).unwrap().arm.variant == "short").count();
    assert!((1_850..2_150).contains(&short), "{short}");
    assert_eq!(route.salt(), "a/docs");
}

#[test]
fn the_stable_release_serves_while_the_candidate_is_missing_or_broken() {
    let status = |phase: &str| {
        json!({
            "traffic": [{"variant": "control", "revision": "r1", "weight": 95},
                        {"variant": "control", "revision": "r2", "weight": 5}],
            "switch": {"at": "2026-11-24T12:00:00Z", "from": [{"variant": "control", "revision": "r1", "weight": 100}]},
            "stable": [{"variant": "control", "revision": "r1", "weight": 100}],
            "rollout": {"phase": phase, "candidate": [{"variant": "control", "revision": "r2", "weight": 100}],
                        "started": "2026-11-24T11:00:00Z", "since": "2026-11-24T12:00:00Z"},
        })
    };
    let with = |revisions: Vec<Arc<ControllerRevision>>, previous: &Snapshot| {
        let mut flow = serde_json::to_value(&*flow(&json!([]))).unwrap();
        flow["status"] = status("Progressing");
        build(&Objects { flows: vec![object(flow)], revisions, ..Objects::default() }, "s", previous)
    };
    let served = |snapshot: &Snapshot| -> Vec<String> {
        let route = snapshot.flow("a", "docs").unwrap();
        let revisions: BTreeSet<String> =
            (0..200).map(|unit| route.route(&unit.to_string(), i64::MAX).unwrap().arm.revision.clone()).collect();
        revisions.into_iter().collect()
    };
    let both = with(vec![revision("r1", content()), revision("r2", content())], &Snapshot::default());
    assert_eq!(served(&both), ["r1", "r2"]);
    assert_eq!(both.flow("a", "docs").unwrap().variant_of("r2"), Some("control"));
    let missing = vec![revision("r1", content())];
    let mut anew = serde_json::to_value(&*revision("r2", json!({"format": 1}))).unwrap();
    anew["metadata"]["uid"] = json!("another");
    let broken = vec![revision("r1", content()), object(anew)];
    for revisions in [missing, broken] {
        for previous in [&Snapshot::default(), &both] {
            let snapshot = with(revisions.clone(), previous);
            assert_eq!(served(&snapshot), ["r1"]);
            let route = snapshot.flow("a", "docs").unwrap();
            assert_eq!(route.stratum, stratum_of(&route.stable), "what it is routed by is what is told");
        }
    }
    // Nothing that could serve: units of the missing revision are told so, the others are served.
    let nothing = with(vec![revision("r2", content())], &Snapshot::default());
    assert_eq!(served(&nothing), ["r1", "r2"]);
}

#[test]
fn copies_are_made_in_shadow_only() {
    let of = |phase: &str| {
        let mut flow = serde_json::to_value(&*flow(&json!([]))).unwrap();
        flow["spec"]["rollout"] = json!({"shadow": {"percent": 25}});
        flow["status"]["rollout"] = json!({"phase": phase, "candidate": [],
            "started": "2026-11-24T11:00:00Z", "since": "2026-11-24T12:00:00Z"});
        let snapshot = build(&Objects { flows: vec![object(flow)], ..Objects::default() }, "s", &Snapshot::default());
        snapshot.flow("a", "docs").unwrap().shadow
    };
    assert_eq!(of("Shadowing"), Some(25));
    for phase in ["Preparing", "Gating", "Progressing", "AwaitingApproval", "Holding", "Promoted", "RolledBack"] {
        assert_eq!(of(phase), None, "{phase}");
    }
}
