//! The charts: rendered by helm with default and edge values, parsed as Kubernetes reads them, checked against what
//! must hold for every value. `DEVCLUSTER_BIN` names the binary that carries helm (the Makefile sets it).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::de::DeserializeOwned;
use serde_json::Value;

const NAMESPACE: &str = "llmops-system";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn helm(chart: &str, arguments: &[&str]) -> Output {
    let binary = std::env::var_os("DEVCLUSTER_BIN")
        .expect("DEVCLUSTER_BIN is not set: run `make chart-test`, or name the devcluster binary (`make devcluster`)");
    let scratch = tempfile::tempdir().unwrap();
    Command::new(binary)
        .args([
            "helm",
            "template",
            chart,
            root().join("charts").join(chart).to_str().unwrap(),
            "--namespace",
            NAMESPACE,
        ])
        .args(arguments)
        .env("DEVCLUSTER_DIR", scratch.path())
        .env("HOME", scratch.path())
        .output()
        .expect("DEVCLUSTER_BIN runs")
}

fn rendered(chart: &str, arguments: &[&str]) -> Vec<Value> {
    let output = helm(chart, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_yaml::Deserializer::from_str(&String::from_utf8(output.stdout).unwrap())
        .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn refused(arguments: &[&str]) -> String {
    let output = helm("llmops", arguments);
    assert!(!output.status.success(), "{arguments:?} must be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Default values and those at the edges.
fn variations() -> Vec<Vec<&'static str>> {
    vec![
        vec![],
        vec!["--set", "image.repository=registry.example/llmops,image.tag=1.2.3,image.pullSecrets={pull}"],
        vec!["--set", "image.tag=sha256:0123", "--set", "logFormat=text"],
        vec!["--set", "watchNamespace=team-a", "--set", "controller.replicas=2"],
        vec!["--set", "gateway.replicas=2"],
        vec!["--set", "gateway.persistence.enabled=false", "--set", "gateway.drainTimeoutSeconds=120"],
        vec!["--set", "gateway.persistence.existingClaim=mine", "--set", "gateway.service.type=LoadBalancer"],
        vec!["--set", "networkPolicy.enabled=false,podDisruptionBudget.enabled=false,rbac.userRoles=false"],
        vec![
            "--set-json",
            r#"gateway={"nodeSelector":{"a":"b"},"tolerations":[{"key":"k","operator":"Exists"}],"affinity":{"nodeAffinity":{}},"priorityClassName":"high","podAnnotations":{"x":"y"}}"#,
            "--set-json",
            r#"networkPolicy={"gatewayFrom":[{"namespaceSelector":{"matchLabels":{"app":"web"}}}]}"#,
            "--set-json",
            r#"serviceAccounts={"annotations":{"cloud.example/role":"r"}}"#,
        ],
    ]
}

fn typed<T: DeserializeOwned + serde::Serialize>(object: &Value) -> T {
    let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let mut unknown = Vec::new();
    let parsed: T = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    // The generated types ignore what they do not know, silently; what is lost on the way back was not a field.
    let back = serde_json::to_value(&parsed).unwrap();
    assert_same_fields(&name, object, &back);
    parsed
}

fn assert_same_fields(path: &str, sent: &Value, read: &Value) {
    match (sent, read) {
        (Value::Object(sent), Value::Object(read)) => {
            for (key, value) in sent {
                let empty = value.is_null() || value == &serde_json::json!({}) || value == &serde_json::json!([]);
                if !empty {
                    let back = read.get(key).unwrap_or_else(|| panic!("{path}.{key} is no field of this kind"));
                    assert_same_fields(&format!("{path}.{key}"), value, back);
                }
            }
        }
        (Value::Array(sent), Value::Array(read)) => {
            for (index, (sent, read)) in sent.iter().zip(read).enumerate() {
                assert_same_fields(&format!("{path}[{index}]"), sent, read);
            }
        }
        _ => {}
    }
}

fn check_pod(name: &str, pod: &PodSpec) {
    assert_eq!(pod.enable_service_links, Some(false), "{name}");
    assert!(pod.automount_service_account_token.is_some(), "{name}: says whether it needs a token");
    let security = pod.security_context.as_ref().unwrap_or_else(|| panic!("{name}: securityContext"));
    assert_eq!(security.run_as_non_root, Some(true), "{name}");
    assert_eq!(
        security.seccomp_profile.as_ref().map(|profile| profile.type_.as_str()),
        Some("RuntimeDefault"),
        "{name}"
    );
    assert!(pod.termination_grace_period_seconds.is_some(), "{name}");
    assert!(!pod.host_network.unwrap_or(false) && !pod.host_pid.unwrap_or(false), "{name}");
    for container in &pod.containers {
        let security =
            container.security_context.as_ref().unwrap_or_else(|| panic!("{name}: container securityContext"));
        assert_eq!(security.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(security.read_only_root_filesystem, Some(true), "{name}");
        assert_eq!(security.privileged, None, "{name}");
        let dropped = security.capabilities.as_ref().and_then(|all| all.drop.clone()).unwrap_or_default();
        assert_eq!(dropped, ["ALL"], "{name}");
        let resources = container.resources.as_ref().unwrap();
        assert!(resources.requests.is_some() && resources.limits.is_some(), "{name}: resources");
        assert!(container.command.is_none(), "{name}: the image's entry point is the binary");
        let ports: BTreeSet<_> = container.ports.iter().flatten().filter_map(|port| port.name.clone()).collect();
        for probe in [&container.liveness_probe, &container.readiness_probe] {
            let get =
                probe.as_ref().and_then(|probe| probe.http_get.as_ref()).unwrap_or_else(|| panic!("{name}: probe"));
            let port = serde_json::to_value(&get.port).unwrap();
            assert!(ports.contains(port.as_str().unwrap_or_default()), "{name}: probes name a port of the container");
        }
        let mounts: BTreeSet<_> = container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect();
        let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|volume| volume.name.clone()).collect();
        assert_eq!(mounts, volumes, "{name}: every volume is mounted");
        let args = container.args.clone().unwrap_or_default();
        assert!(args.iter().all(|arg| !arg.starts_with("0.0.0.0")), "{name}: listens on the pod's address only");
    }
}

fn check_rules(name: &str, rules: &[PolicyRule]) {
    for rule in rules {
        let all = [Some(&rule.verbs), rule.resources.as_ref(), rule.api_groups.as_ref()];
        for value in all.into_iter().flatten().flatten() {
            assert!(!value.contains('*'), "{name}: {value}");
        }
        let resources = rule.resources.clone().unwrap_or_default();
        let writes = ["create", "update", "patch", "delete", "deletecollection"];
        if name == "llmops-controller" && rule.api_groups.as_deref() == Some(&["llmops.dev".to_owned()]) {
            for resource in resources.iter().filter(|resource| !resource.contains('/')) {
                assert!(
                    rule.verbs.iter().all(|verb| !writes.contains(&verb.as_str())),
                    "{name} writes {resource}: spec belongs to Git"
                );
            }
        }
        if resources.iter().any(|resource| resource == "secrets") && name != "llmops-admin" {
            assert!(rule.verbs.iter().all(|verb| !writes.contains(&verb.as_str())), "{name} writes Secrets");
        }
    }
}

fn check(object: &Value) {
    let kind = object["kind"].as_str().unwrap();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("llmops-"), "{kind} {name}");
    assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "llmops", "{kind} {name}");
    let cluster_wide = matches!(kind, "ClusterRole" | "ClusterRoleBinding");
    assert_eq!(object["metadata"]["namespace"].is_string(), !cluster_wide, "{kind} {name}");
    match kind {
        "Deployment" => {
            let deployment: Deployment = typed(object);
            let spec = deployment.spec.unwrap();
            let labels = spec.template.metadata.unwrap().labels.unwrap();
            for (key, value) in spec.selector.match_labels.unwrap() {
                assert_eq!(labels.get(&key), Some(&value), "{name}: the selector finds its pods");
            }
            check_pod(&name, &spec.template.spec.unwrap());
        }
        "ClusterRole" => check_rules(&name, &typed::<ClusterRole>(object).rules.unwrap()),
        "Role" => check_rules(&name, &typed::<Role>(object).rules.unwrap()),
        "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(object)),
        "RoleBinding" => drop(typed::<RoleBinding>(object)),
        "Service" => drop(typed::<Service>(object)),
        "ServiceAccount" => {
            assert_eq!(typed::<ServiceAccount>(object).automount_service_account_token, Some(false), "{name}");
        }
        "PersistentVolumeClaim" => drop(typed::<PersistentVolumeClaim>(object)),
        "NetworkPolicy" => drop(typed::<NetworkPolicy>(object)),
        "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(object)),
        other => panic!("{other} {name}: no check for this kind"),
    }
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("{kind} {name}"))
}

#[test]
fn invariants_hold_for_default_and_edge_values() {
    for values in variations() {
        let objects = rendered("llmops", &values);
        let identities: BTreeSet<_> =
            objects.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
        assert_eq!(identities.len(), objects.len(), "{values:?}: an object twice");
        objects.iter().for_each(check);
    }
}

#[test]
fn names_are_the_contract() {
    let objects = rendered("llmops", &[]);
    for (kind, names) in [
        ("Deployment", vec!["llmops-controller", "llmops-gateway"]),
        ("Service", vec!["llmops-controller", "llmops-gateway"]),
        ("ServiceAccount", vec!["llmops-controller", "llmops-gateway"]),
        ("PersistentVolumeClaim", vec!["llmops-gateway-data"]),
        (
            "ClusterRole",
            vec![
                "llmops-controller",
                "llmops-gateway",
                "llmops-evaluator",
                "llmops-viewer",
                "llmops-prompt-engineer",
                "llmops-ml-engineer",
                "llmops-admin",
            ],
        ),
    ] {
        for name in names {
            find(&objects, kind, name);
        }
    }
}

/// Whether a ClusterRole allows this.
fn allows(objects: &[Value], role: &str, verb: &str, resource: &str) -> bool {
    let role: ClusterRole = typed(find(objects, "ClusterRole", role));
    role.rules.unwrap_or_default().iter().any(|rule| {
        let ours = rule.api_groups.as_ref().is_some_and(|groups| groups.iter().any(|group| group == "llmops.dev"));
        let names_it = rule.resources.as_ref().is_some_and(|resources| resources.iter().any(|known| known == resource));
        ours && names_it && rule.verbs.iter().any(|known| known == verb)
    })
}

#[test]
fn people_may_what_their_role_is_for_and_no_more() {
    let objects = rendered("llmops", &[]);
    let kinds = ["modeldeployments", "ragindexes", "promptflows", "evaluations"];
    let roles = ["llmops-viewer", "llmops-prompt-engineer", "llmops-ml-engineer", "llmops-admin"];
    for role in roles {
        for kind in kinds {
            for verb in ["get", "list", "watch"] {
                assert!(allows(&objects, role, verb, kind), "{role} must {verb} {kind}");
            }
            // The status belongs to the controller.
            for verb in ["update", "patch"] {
                assert!(
                    !allows(&objects, role, verb, &format!("{kind}/status")),
                    "{role} must not {verb} {kind}/status"
                );
            }
        }
        for resource in
            ["promptflows/measurements", "modeldeployments/measurements", "promptflows/splits", "evaluations/reports"]
        {
            assert!(allows(&objects, role, "get", resource), "{role} must read {resource}");
        }
    }
    // Who patches a resource may act on its rollout.
    for (role, patches) in roles.into_iter().zip([&kinds[..0], &kinds[2..], &kinds[..], &kinds[..]]) {
        for kind in kinds {
            let may = allows(&objects, role, "patch", kind);
            assert_eq!(may, patches.contains(&kind), "{role}: patch {kind}");
            assert_eq!(allows(&objects, role, "delete", kind), may, "{role}: delete {kind}");
        }
    }
    // What users wrote is not for every reader, and a pin is not for readers at all.
    assert!(!allows(&objects, "llmops-viewer", "get", "promptflows/interactions"));
    assert!(!allows(&objects, "llmops-viewer", "create", "promptflows/pin"));
}

#[test]
fn values_reach_what_they_are_for() {
    let objects = rendered(
        "llmops",
        &[
            "--set",
            "image.repository=r.example/llmops,image.tag=v7,watchNamespace=team-a,gateway.drainTimeoutSeconds=90",
        ],
    );
    let controller = find(&objects, "Deployment", "llmops-controller");
    let container = &controller["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "r.example/llmops:v7");
    let args: Vec<_> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(args.windows(2).any(|pair| pair == ["--image", "r.example/llmops:v7"]), "{args:?}");
    assert!(args.windows(2).any(|pair| pair == ["--watch-namespace", "team-a"]), "{args:?}");
    assert!(args.contains(&"http://llmops-gateway.llmops-system.svc:8080"), "{args:?}");
    // Bound only where it works.
    assert_eq!(find(&objects, "RoleBinding", "llmops-controller")["metadata"]["namespace"], "team-a");
    assert!(
        !objects
            .iter()
            .any(|object| object["kind"] == "ClusterRoleBinding" && object["metadata"]["name"] == "llmops-controller")
    );
    let gateway = &find(&objects, "Deployment", "llmops-gateway")["spec"];
    assert_eq!(gateway["template"]["spec"]["terminationGracePeriodSeconds"], 100);
    assert_eq!(gateway["strategy"]["type"], "Recreate");

    // Replicas share a file: locks hold on one machine only.
    let two =
        rendered("llmops", &["--set", "gateway.replicas=2", "--set-json", r#"gateway.affinity={"nodeAffinity":{}}"#]);
    let affinity = &find(&two, "Deployment", "llmops-gateway")["spec"]["template"]["spec"]["affinity"];
    let same = &affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(same["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(same["labelSelector"]["matchLabels"]["app.kubernetes.io/component"], "gateway");
    assert!(affinity["nodeAffinity"].is_object());

    let digest = rendered("llmops", &["--set", "image.tag=sha256:0123"]);
    let container = &find(&digest, "Deployment", "llmops-gateway")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "llmops@sha256:0123");
}

#[test]
fn the_schema_refuses_typos_and_impossible_values() {
    for (values, named) in [
        ("gatway.replicas=1", "gatway"),
        ("gateway.replica=1", "replica"),
        ("gateway.replicas=5", "replicas"),
        ("gateway.replicas=2,gateway.persistence.enabled=false", "gateway.persistence.enabled"),
        ("logFormat=xml", "logFormat"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("gateway.persistence.size=big", "size"),
        ("gateway.service.port=0", "port"),
    ] {
        let told = refused(&["--set", values]);
        assert!(told.contains(named), "{values}: {told}");
    }
}

#[test]
fn every_value_is_in_the_schema_and_in_the_readme() {
    let chart = root().join("charts/llmops");
    let values: Value = serde_yaml::from_str(&std::fs::read_to_string(chart.join("values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(chart.join("values.schema.json")).unwrap()).unwrap();
    let readme = std::fs::read_to_string(chart.join("README.md")).unwrap();
    for (group, members) in values.as_object().unwrap() {
        let known = &schema["properties"][group];
        assert!(known.is_object(), "{group} is not in values.schema.json");
        for name in members.as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(known["properties"][name].is_object(), "{group}.{name} is not in values.schema.json");
            assert!(
                readme.contains(&format!("{name}`")) || readme.contains(&format!(".{name}.")),
                "{group}.{name} is not in README.md"
            );
        }
    }
    closed("values.schema.json", &schema);
}

fn closed(path: &str, schema: &Value) {
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        if member["properties"].is_object() {
            assert_eq!(member["additionalProperties"], false, "{path}.{name}");
        }
        closed(&format!("{path}.{name}"), member);
    }
    assert_eq!(schema["properties"].is_object(), schema["additionalProperties"] == false, "{path}");
}

#[test]
fn the_definitions_are_those_of_the_code_and_are_kept() {
    let objects = rendered("llmops-crds", &[]);
    let generated = llmops::cli::crds::all();
    assert_eq!(objects.len(), generated.len());
    for crd in generated {
        let name = crd.metadata.name.clone().unwrap();
        let object = find(&objects, "CustomResourceDefinition", &name);
        assert_eq!(object["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{name}");
        let parsed: CustomResourceDefinition = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(parsed.spec, crd.spec, "{name}: charts/llmops-crds/files differs from the code; run `make crds`");
    }
    let dropped = rendered("llmops-crds", &["--set", "keep=false"]);
    assert!(dropped.iter().all(|object| object["metadata"]["annotations"].is_null()));
}

#[test]
fn install_yaml_is_what_the_charts_render() {
    let file = std::fs::read_to_string(root().join("manifests/install.yaml")).unwrap();
    let installed: Vec<Value> = serde_yaml::Deserializer::from_str(&file)
        .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect();
    let mut wanted = rendered("llmops-crds", &[]);
    wanted.extend(rendered("llmops", &[]));
    for object in &wanted {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        assert_eq!(
            find(&installed, kind, name),
            object,
            "manifests/install.yaml: {kind} {name} differs; run `make manifests`"
        );
    }
    // The namespace itself comes first, which helm does not render.
    assert_eq!(installed.len(), wanted.len() + 1);
    assert_eq!(installed[0]["kind"], "Namespace");
}
