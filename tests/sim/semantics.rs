//! The simulated server's behaviour that single answers do not show: watches, faults, collection, the cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apiserver::ApiServer;
use crate::apiserver::session::Session;
use crate::cluster::containers::Run;
use crate::cluster::{holds, number, text};
use crate::faults::network::Network;
use crate::faults::{Fault, OnWrite};
use crate::scenario::in_virtual_time;
use crate::world::World;

fn config_maps(server: &ApiServer) -> Api<ConfigMap> {
    Api::namespaced(server.client(Session::plain("test")), "default")
}

fn named(name: &str, label: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": label}}})).unwrap()
}

async fn next(
    events: &mut (impl StreamExt<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
) -> (&'static str, String) {
    loop {
        let (kind, object) = match events.next().await.unwrap().unwrap() {
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Modified(object) => ("modified", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => return ("error", status.code.to_string()),
        };
        return (kind, object.metadata.name.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_follows_its_selection_from_a_version() {
    let server = ApiServer::new(1);
    let api = config_maps(&server);
    api.create(&PostParams::default(), &named("before", "a")).await.unwrap();
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = api.watch(&WatchParams::default().labels("app=a"), &version).await.unwrap().boxed();
    api.create(&PostParams::default(), &named("other", "b")).await.unwrap();
    api.create(&PostParams::default(), &named("one", "a")).await.unwrap();
    let label = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"app": value}}}));
    api.patch("one", &PatchParams::default(), &Patch::Merge(json!({"data": {"a": "b"}}))).await.unwrap();
    api.patch("one", &PatchParams::default(), &label("b")).await.unwrap();
    api.patch("other", &PatchParams::default(), &label("a")).await.unwrap();
    api.delete("other", &kube::api::DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(next(&mut events).await);
    }
    let own = |kind, name: &str| (kind, name.to_owned());
    assert_eq!(
        seen,
        [
            own("added", "one"),
            own("modified", "one"),
            own("deleted", "one"),
            own("added", "other"),
            own("deleted", "other")
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn forgotten_versions_are_gone_and_a_watcher_lists_again() {
    let server = ApiServer::new(1);
    let api = config_maps(&server);
    api.create(&PostParams::default(), &named("one", "a")).await.unwrap();
    server.lock().store.compact();
    let mut events = api.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    assert_eq!(next(&mut events).await, ("error", "410".to_owned()));

    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut events = watcher(api.clone(), config).boxed();
        let mut names = Vec::new();
        while let Some(event) = events.try_next().await.unwrap() {
            match event {
                watcher::Event::InitApply(object) => names.push(object.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(names, ["one"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_and_goes_on_where_it_was() {
    let server = ApiServer::new(1);
    let api = config_maps(&server);
    let mut events = watcher(api.clone(), watcher::Config::default()).boxed();
    while !matches!(events.try_next().await.unwrap(), Some(watcher::Event::InitDone)) {}
    let writer = tokio::spawn(async move {
        sleep(Duration::from_secs(3000)).await;
        api.create(&PostParams::default(), &named("late", "a")).await.unwrap();
    });
    let event = events.try_next().await.unwrap();
    assert!(matches!(event, Some(watcher::Event::Apply(object)) if object.metadata.name.as_deref() == Some("late")));
    writer.await.unwrap();
    let reads = server.lock().reads.iter().filter(|(_, verb, _)| *verb == "list").count();
    assert_eq!(reads, 1, "a watch that ended in time needs no new list");
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages() {
    let server = ApiServer::new(1);
    let api = config_maps(&server);
    for name in ["a", "b", "c"] {
        api.create(&PostParams::default(), &named(name, "a")).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    let token = first.metadata.continue_.unwrap();
    let second = api.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(second.items[0].metadata.name.as_deref(), Some("c"));
    assert_eq!(second.metadata.continue_, None);
    let metadata = api.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(metadata.items.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn faults_strike_the_planned_request() {
    let at = |number, what| Arc::new(Session::new("test", Arc::new(Network::new(&[Fault::Write(number, what)]))));
    let server = ApiServer::new(1);
    let api = |session: Arc<Session>| Api::<ConfigMap>::namespaced(server.client(session), "default");
    let create = |api: Api<ConfigMap>, name: &'static str| async move {
        api.create(&PostParams::default(), &named(name, "a")).await
    };

    let lost = api(at(1, OnWrite::Lost));
    assert!(create(lost.clone(), "lost").await.is_err());
    assert!(server.get("ConfigMap", "default", "lost").is_some());
    create(lost, "next").await.unwrap();

    let refused = api(at(1, OnWrite::Refuse(503)));
    assert!(matches!(create(refused, "refused").await, Err(kube::Error::Api(status)) if status.code == 503));
    assert!(server.get("ConfigMap", "default", "refused").is_none());

    let dying = at(2, OnWrite::Crash);
    let api = api(dying.clone());
    create(api.clone(), "first").await.unwrap();
    let never = tokio::time::timeout(Duration::from_secs(3600), create(api.clone(), "second")).await;
    assert!(never.is_err() && dying.is_dead());
    assert!(server.get("ConfigMap", "default", "second").is_some());
    let never = tokio::time::timeout(Duration::from_secs(3600), create(api, "third")).await;
    assert!(never.is_err() && server.get("ConfigMap", "default", "third").is_none());
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: 'x:1'}]}
";

#[test]
fn a_deployment_rolls_without_a_gap_and_takes_its_pods_along() {
    in_virtual_time(async {
        let world = World::new(7);
        world.apply(WEB);
        sleep(Duration::from_secs(30)).await;
        let ready = |world: &World| number(&world.get("Deployment", "web").unwrap(), "/status/readyReplicas");
        assert_eq!(ready(&world), 2);
        world.apply(&WEB.replace("x:1", "x:2"));
        for _ in 0..600 {
            sleep(Duration::from_millis(50)).await;
            let serving = world.server.list("Pod").iter().filter(|pod| holds(pod, "Ready")).count();
            assert!(serving >= 2, "a roll-out leaves a gap");
        }
        let deployment = world.get("Deployment", "web").unwrap();
        assert_eq!(deployment["status"]["updatedReplicas"], 2);
        assert_eq!(deployment["status"]["observedGeneration"], deployment["metadata"]["generation"]);
        let images: Vec<String> =
            world.server.list("Pod").iter().map(|pod| text(pod, "/spec/containers/0/image").to_owned()).collect();
        assert_eq!(images, ["x:2", "x:2"]);
        world.delete("Deployment", "web");
        sleep(Duration::from_secs(60)).await;
        assert!(world.server.list("Pod").is_empty() && world.server.list("ReplicaSet").is_empty());
    });
}

#[test]
fn a_deployment_whose_pods_crash_says_so() {
    in_virtual_time(async {
        let world = World::new(7);
        world.pods(|_, _, restarts| (restarts < 3).then(|| Run::fails(1, "no model")));
        world.apply(WEB);
        sleep(Duration::from_secs(15)).await;
        let pod = world.server.list("Pod").remove(0);
        assert_eq!(text(&pod, "/status/containerStatuses/0/state/waiting/reason"), "CrashLoopBackOff");
        assert_eq!(text(&pod, "/status/containerStatuses/0/lastState/terminated/message"), "no model");
        sleep(Duration::from_secs(300)).await;
        assert_eq!(number(&world.get("Deployment", "web").unwrap(), "/status/readyReplicas"), 2);
    });
}

#[test]
fn a_deployment_that_never_gets_ready_misses_its_deadline() {
    in_virtual_time(async {
        let world = World::new(7);
        world.pods(|_, _, _| Some(Run::Stuck));
        world.apply(WEB);
        let progressing = |world: &World| holds(&world.get("Deployment", "web").unwrap(), "Progressing");
        sleep(Duration::from_secs(500)).await;
        assert!(progressing(&world));
        sleep(Duration::from_secs(200)).await;
        assert!(!progressing(&world));
    });
}

fn job(name: &str) -> String {
    format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  backoffLimit: 2
  podFailurePolicy: {{rules: [{{action: FailJob, onExitCodes: {{operator: In, values: [42]}}}}]}}
  template:
    spec:
      restartPolicy: Never
      containers: [{{name: main, image: 'x:1'}}]
"
    )
}

#[test]
fn jobs_end_by_success_policy_or_limit() {
    in_virtual_time(async {
        let world = World::new(7);
        world.pods(|pod, _, _| match text(pod, "/metadata/labels/job-name") {
            "good" => Some(Run::succeeds("done")),
            "wrong" => Some(Run::fails(42, "bad plan")),
            _ => Some(Run::fails(1, "try again")),
        });
        for name in ["good", "wrong", "weak"] {
            world.apply(&job(name));
        }
        sleep(Duration::from_secs(300)).await;
        let status = |name: &str| world.get("Job", name).unwrap();
        assert!(holds(&status("good"), "Complete") && number(&status("good"), "/status/succeeded") == 1);
        let reason = |name: &str| {
            let job = status(name);
            let all = job["status"]["conditions"].as_array().unwrap();
            let failed = all.iter().find(|one| one["type"] == "Failed").cloned().unwrap_or(Value::Null);
            text(&failed, "/reason").to_owned()
        };
        assert_eq!(reason("wrong"), "PodFailurePolicy");
        assert_eq!(reason("weak"), "BackoffLimitExceeded");
        assert_eq!(number(&status("weak"), "/status/failed"), 3);
        let done =
            world.server.list("Pod").into_iter().find(|pod| text(pod, "/metadata/labels/job-name") == "good").unwrap();
        assert_eq!(text(&done, "/status/containerStatuses/0/state/terminated/message"), "done");
    });
}

#[test]
fn pods_wait_for_volumes_and_claims_for_pods() {
    in_virtual_time(async {
        let world = World::new(7);
        world.apply(&WEB.replace("spec: {containers", "spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}, {name: m, configMap: {name: m}}], containers"));
        sleep(Duration::from_secs(30)).await;
        assert!(world.server.list("Pod").iter().all(|pod| pod["spec"].get("nodeName").is_none()));
        world.apply("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}");
        sleep(Duration::from_secs(30)).await;
        assert_eq!(number(&world.get("Deployment", "web").unwrap(), "/status/readyReplicas"), 0);
        world.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}");
        sleep(Duration::from_secs(30)).await;
        assert_eq!(number(&world.get("Deployment", "web").unwrap(), "/status/readyReplicas"), 2);
        world.delete("PersistentVolumeClaim", "c");
        sleep(Duration::from_secs(30)).await;
        assert!(world.get("PersistentVolumeClaim", "c").is_some(), "a claim in use stays");
        world.delete("Deployment", "web");
        sleep(Duration::from_secs(30)).await;
        assert!(world.get("PersistentVolumeClaim", "c").is_none());
    });
}

#[test]
fn owners_take_along_what_they_own() {
    in_virtual_time(async {
        let world = World::new(7);
        let owned = |name: &str, owner: &Value| {
            let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": text(owner, "/metadata/name"), "uid": text(owner, "/metadata/uid"), "blockOwnerDeletion": true});
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [reference]}})
                .to_string()
        };
        for policy in ["Background", "Foreground", "Orphan"] {
            world.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: top}}");
            let top = world.get("ConfigMap", "top").unwrap();
            world.apply(&owned("below", &top));
            world.server.delete("kubectl", &top, &json!({"propagationPolicy": policy}));
            sleep(Duration::from_secs(10)).await;
            assert!(world.get("ConfigMap", "top").is_none(), "{policy}");
            assert_eq!(world.get("ConfigMap", "below").is_some(), policy == "Orphan", "{policy}");
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        in_virtual_time(async move {
            let world = World::new(seed);
            world.apply(WEB);
            sleep(Duration::from_secs(60)).await;
            let writes = world.server.lock().writes.iter().map(ToString::to_string).collect::<Vec<_>>();
            writes.join("\n")
        })
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_simulated_or_not_known_is_reported() {
    let server = ApiServer::new(1);
    let client = server.client(Session::plain("test"));
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let typo = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {
        "replicsa": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
    }});
    deployments.patch("x", &PatchParams::apply("test"), &Patch::Apply(&typo)).await.unwrap();
    let request = http::Request::get("/apis/example.org/v1/things").body(Vec::new()).unwrap();
    assert!(client.request_text(request).await.is_err());
    let warnings = server.lock().warnings.clone();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("spec.replicsa") && warnings[1].contains("example.org"));
}
